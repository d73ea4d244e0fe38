"""Exercises of chapter 09: how many candidates a budget allows, the winner among trials, draws on a
logarithmic scale, and many models trained by the calls of one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import torch

from accel_lab.exercises import Case, Exercise, LessTime, Wrong
from accel_lab.exercises._data import normal, shuffled, uniform

# ---- build: draws on a logarithmic scale ----


def draw_rates_cases(rng: random.Random) -> Iterator[Case]:
    for low, high in ((-4, 0), (-6, -1), (-1, 3)):
        shares = uniform(rng, 9)
        shares[:2] = torch.tensor([0.0, 1.0])
        yield {
            "shares": shares[shuffled(rng, 9)],
            "low": 10.0**low * rng.uniform(1.5, 4.0),
            "high": 10.0**high * rng.uniform(1.5, 4.0),
        }


def draw_rates_drive(answer, case):
    return {"rates": answer(case["shares"], case["low"], case["high"])}


def draw_rates(shares, low, high):
    return low * (high / low) ** shares


DRAW_RATES = Exercise(
    name="draw_rates",
    points=1,
    task="""Write `draw_rates(shares, low, high)`: learning rates for a random search. `shares` is a
tensor `[n]` of numbers from 0 to 1, drawn evenly; `low` and `high` are numbers above 0. Return a
tensor `[n]`: share 0 becomes `low`, share 1 becomes `high`, and equal steps of the share multiply
the rate by equal factors.""",
    cases=draw_rates_cases,
    drive=draw_rates_drive,
    reference=draw_rates,
    reasoning="""From low to high the rate grows by the factor high / low. Half of the way must
multiply by its square root, a share s of the way by its s-th power: low · (high / low)^s. In
logarithms, of any base, that is a straight line: every decade gets equally many draws.""",
    wrong=(
        Wrong.changed(
            draw_rates,
            "low * (high / low) ** shares",
            "low + (high - low) * shares",
            "Equal steps of the share add equal amounts here. Of draws from 0.0001 to 1 nine in "
            "ten are then above 0.1: multiply instead.",
        ),
        Wrong.changed(
            draw_rates,
            "low * (high / low) ** shares",
            "10 ** (math.log(low) + (math.log(high) - math.log(low)) * shares)",
            "You take natural logarithms and go back with powers of ten. Use one base both ways.",
        ),
        Wrong.changed(
            draw_rates,
            "low * (high / low) ** shares",
            "torch.exp(math.log10(low) + (math.log10(high) - math.log10(low)) * shares)",
            "You take logarithms to base ten and go back with exp. Use one base both ways.",
        ),
        Wrong.changed(
            draw_rates,
            "low * (high / low) ** shares",
            "high * (low / high) ** shares",
            "The ends are swapped: share 0 is to become low.",
        ),
        Wrong.changed(
            draw_rates,
            "low * (high / low) ** shares",
            "math.log(low) + (math.log(high) - math.log(low)) * shares",
            "These are the logarithms of the rates. Go back with exp.",
        ),
        Wrong.changed(
            draw_rates,
            "low * (high / low) ** shares",
            "low * high**shares",
            "Share 1 becomes low · high. The factor from low to high is high / low.",
        ),
    ),
)


# ---- build: what a budget allows ----


def candidates_for_cases(rng: random.Random) -> Iterator[Case]:
    """Budgets that are spent to the last epoch, and one that is too small."""
    for eta, longest, candidates in (
        (3, 27, 3 * rng.randrange(9, 20) + rng.randrange(1, 3)),
        (2, 2 * rng.randrange(5, 8) + 1, 2 * rng.randrange(10, 20) + 1),
        (4, 64, rng.randrange(4, 12)),  # one is left long before the end
    ):
        budget = _spent(candidates, longest, eta)
        yield {"budget": budget, "longest": longest, "eta": eta}
    yield {"budget": rng.randrange(3, 9), "longest": 9, "eta": 3}


def _spent(candidates, longest, eta, most=None):
    spent, before, epochs = 0, 0, 1
    while True:
        spent += candidates * (epochs - before)
        if epochs >= longest:
            return spent
        candidates = max(1, candidates // eta)
        before, epochs = epochs, min(most or longest, epochs * eta)


def candidates_for_drive(answer, case):
    return {"candidates": int(answer(case["budget"], case["longest"], case["eta"]))}


def candidates_for(budget, longest, eta):
    def cost(candidates):
        spent, before, epochs = 0, 0, 1
        while True:
            spent += candidates * (epochs - before)
            if epochs == longest:
                return spent
            candidates = max(1, candidates // eta)
            before, epochs = epochs, min(longest, epochs * eta)

    candidates = 0
    while cost(candidates + 1) <= budget:
        candidates += 1
    return candidates


def _past_the_longest(budget, longest, eta):
    candidates = 0
    while _spent(candidates + 1, longest, eta, most=longest * eta) <= budget:
        candidates += 1
    return candidates


CANDIDATES_FOR = Exercise(
    name="candidates_for",
    points=3,
    task="""Successive halving begins with some candidates and trains each for 1 epoch. At each cut
it keeps `candidates // eta` of them, at least one, and trains these *on* until they have had `eta`
times as many epochs as before, but no more than `longest`. It ends when the last ones have had
`longest` epochs.

Write `candidates_for(budget, longest, eta)`: the largest number of candidates to begin with, so
that all epochs of all candidates together are at most `budget`. Return 0 where even one candidate
would spend more. For `eta = 3` and `longest = 27`, 81 candidates spend 243 epochs.""",
    cases=candidates_for_cases,
    drive=candidates_for_drive,
    reference=candidates_for,
    reasoning="""A rung costs its candidates times the epochs that are *new*: survivors keep their
weights. So subtract the epochs they have had. Survivors are rounded down but never vanish, and the
last rung stops at the longest training. The cost grows with the candidates, so try one more until
the budget is passed.""",
    wrong=(
        Wrong.changed(
            candidates_for,
            "candidates * (epochs - before)",
            "candidates * epochs",
            "You count the epochs of each rung from zero. Survivors are trained on, so a rung "
            "costs only what is new.",
        ),
        Wrong.changed(
            candidates_for,
            "max(1, candidates // eta)",
            "max(1, -(-candidates // eta))",
            "You round the survivors up. candidates // eta rounds down.",
        ),
        Wrong.changed(
            candidates_for,
            "max(1, candidates // eta)",
            "candidates // eta",
            "Where fewer than eta are left you keep nobody. At least one goes on to the end.",
        ),
        Wrong(_past_the_longest, "The last rung goes past the longest training. Stop at longest."),
        Wrong.changed(
            candidates_for,
            "    return candidates\n",
            "    return candidates + 1\n",
            "One too many: with that number the budget is passed.",
            also=(lambda budget, longest, eta: max(1, candidates_for(budget, longest, eta)),),
        ),
        Wrong.changed(
            candidates_for,
            "cost(candidates + 1) <= budget",
            "cost(candidates + 1) < budget",
            "A halving that spends just the budget is allowed, too.",
        ),
        Wrong(
            lambda budget, longest, eta: budget // longest,
            "That is plain search, which trains everybody to the end. Halving cuts on the way.",
        ),
    ),
)


# ---- diagnose: the winner among trials ----


def winner_of_cases(rng: random.Random) -> Iterator[Case]:
    """The best on validation is not the best on test, and has an equal; NaN is first, last, all."""
    for kind in ("first", "last", "only"):
        n = rng.randrange(5, 9)
        losses = [round(rng.uniform(0.3, 2.0), 3) for _ in range(n)]
        one, other = sorted(rng.sample(range(1, n - 1), 2))
        losses[one] = losses[other] = 0.2
        if kind == "first":
            losses[0] = math.nan
        elif kind == "last":
            losses[-1] = math.nan
        else:
            losses = [math.nan] * n
        tests = [loss + rng.uniform(0.5, 0.6) for loss in losses]
        lucky = 0 if kind == "last" else -1
        tests[lucky] = 0.1
        if kind != "only":
            losses[lucky] = 0.25  # neither the best nor the worst
        yield {
            "trials": [
                {"validation_loss": loss, "test_loss": test}
                for loss, test in zip(losses, tests, strict=True)
            ]
        }


def winner_of_drive(answer, case):
    found = answer([dict(one) for one in case["trials"]])
    return {"winner": None if found is None else int(found)}


def winner_of(trials):
    winner = None
    for place, trial in enumerate(trials):
        loss = trial["validation_loss"]
        if loss != loss:  # NaN
            continue
        if winner is None or loss < trials[winner]["validation_loss"]:
            winner = place
    return winner


def _winner_as_found(trials):
    winner = 0
    for place, trial in enumerate(trials):
        if not trial["validation_loss"] > trials[winner]["validation_loss"]:
            winner = place
    return winner


def _nan_stays(trials):
    winner = 0
    for place, trial in enumerate(trials):
        if trial["validation_loss"] < trials[winner]["validation_loss"]:
            winner = place
    return winner


def _place_among_those_left(trials):
    losses = [one["validation_loss"] for one in trials if one["validation_loss"] >= 0]
    return losses.index(min(losses)) if losses else None


def _none_is_never(trials):
    losses = [trial["validation_loss"] for trial in trials]
    finite = [loss if loss == loss else math.inf for loss in losses]
    return finite.index(min(finite))


def _by_test(trials):
    """Those that diverged on validation are left out."""
    left = [place for place, one in enumerate(trials) if one["validation_loss"] >= 0]
    return min(left, key=lambda place: trials[place]["test_loss"], default=None)


WINNER_OF = Exercise(
    name="winner_of",
    points=2,
    task="""This function is to return the place of the best trial of a search, and it has faults.
Repair it, without changing what it takes and returns.

`trials` is a list of dicts with `validation_loss` and `test_loss`, less is better. A trial that
diverged has the loss NaN, and never wins. Where several are equal the first one wins. Where all
diverged there is no winner: return `None`. What chose the winner cannot judge it, so choose in such
a way that `test_loss` can still be reported.""",
    cases=winner_of_cases,
    drive=winner_of_drive,
    reference=winner_of,
    reasoning="""Every comparison with NaN is false, so "not greater" lets NaN in, and "less" never
gets rid of a NaN that is there first. Leave NaN out before you compare; it is the only number that
differs from itself. A strict "less" keeps the first of equal ones. The test loss takes no part, so
it is a fair estimate of the winner.""",
    wrong=(
        Wrong(
            _winner_as_found,
            "This is the function as found. What is `not loss > best` where loss is NaN, and where "
            "both are equal?",
            given=True,
        ),
        Wrong(
            _nan_stays,
            "A NaN in the first place stays the winner: nothing is less than NaN. Leave those "
            "trials out before you compare.",
        ),
        Wrong(
            _place_among_those_left,
            "You number the trials that are left once NaN is out. Return the place in `trials`.",
        ),
        Wrong(_none_is_never, "Where all diverged you still return a winner. Return None."),
        Wrong.changed(
            winner_of,
            "loss < trials",
            "loss <= trials",
            "Of equal trials the last one wins. Let the first one win.",
        ),
        Wrong.changed(
            winner_of, "loss < trials", "loss > trials", "The largest loss wins. Less is better."
        ),
        Wrong(
            lambda trials: winner_of([{"validation_loss": one["test_loss"]} for one in trials]),
            "You choose by the test loss. Then nothing is left that could judge the winner: choose "
            "by the validation loss.",
            also=(_by_test,),
        ),
    ),
)


# ---- target: many models by the calls of one ----


def train_all_cases(rng: random.Random) -> Iterator[Case]:
    for models in (1, rng.randrange(3, 6), rng.randrange(6, 9)):
        samples, width, outputs = rng.randrange(7, 12), rng.randrange(3, 6), rng.randrange(2, 4)
        yield {
            "weights": normal(rng, models, width, outputs),
            "rates": 0.05 + 0.3 * uniform(rng, models),
            "x": normal(rng, samples, width),
            "y": normal(rng, samples, outputs),
            "steps": rng.randrange(3, 7),
        }


def train_all_large(rng: random.Random) -> Case:
    return {
        "weights": normal(rng, 64, 16, 4),
        "rates": 0.01 + 0.1 * uniform(rng, 64),
        "x": normal(rng, 32, 16),
        "y": normal(rng, 32, 4),
        "steps": 20,
    }


def train_all_drive(answer, case):
    before = case["weights"].clone()
    found = answer(case["weights"], case["rates"], case["x"], case["y"], case["steps"])
    return {"weights": found, "given weights unchanged": bool((case["weights"] == before).all())}


def train_all(weights, rates, x, y, steps):
    rates = rates[:, None, None]
    for _ in range(steps):
        error = x @ weights - y
        weights = weights - rates * (2 / y.numel()) * (x.T @ error)
    return weights


def _model_by_model(weights, rates, x, y, steps):
    import torch

    trained = []
    for weight, rate in zip(weights, rates, strict=True):
        for _ in range(steps):
            error = x @ weight - y
            weight = weight - rate * (2 / y.numel()) * (x.T @ error)
        trained.append(weight)
    return torch.stack(trained)


MODEL_BY_MODEL = Wrong(
    _model_by_model,
    "Right, but not fast enough. Calls for one model at a time cost more than their sums here. A "
    "product of x [n, in] with weights [K, in, out] is one call for all K models.",
)

TRAIN_ALL = Exercise(
    name="train_all",
    points=3,
    task="""**Target:** at most a quarter of the time of a loop over the models.

Write `train_all(weights, rates, x, y, steps)`: K linear models without bias, trained by `steps`
steps of full-batch gradient descent, each with its own learning rate. `weights` is `[K, in, out]`,
`rates` is `[K]`, `x` is `[n, in]`, `y` is `[n, out]`. The loss of a model is the **mean** over all
n · out numbers of (x @ weight − y)², so its gradient is 2 / (n · out) · xᵀ (x @ weight − y). Return
the trained weights `[K, in, out]` and leave the given ones as they are.""",
    cases=train_all_cases,
    drive=train_all_drive,
    reference=train_all,
    reasoning="""`x @ weights` broadcasts x over the K models: one call gives [K, n, out]. The
gradient is one product, too. `rates[:, None, None]` multiplies each model's gradient by its own
rate. No model's loss depends on another's weights, so nothing has to be kept apart. A loop over the
steps remains, for each needs the one before.""",
    wrong=(
        MODEL_BY_MODEL,
        Wrong.changed(
            train_all,
            "rates = rates[:, None, None]",
            "rates = rates.mean()",
            "All models are trained with one rate. Each has its own: shape the rates [K, 1, 1].",
            also=(
                lambda weights, rates, x, y, steps: train_all(
                    weights, rates[:1].expand(len(rates)), x, y, steps
                ),
            ),
        ),
        Wrong.changed(
            train_all,
            "2 / y.numel()",
            "2 / len(y)",
            "You divide by the samples alone. The mean runs over all n · out numbers.",
        ),
        Wrong.changed(
            train_all,
            "(2 / y.numel())",
            "2",
            "This is the gradient of the sum of the squares. The loss is their mean.",
        ),
        Wrong.changed(
            train_all,
            "(2 / y.numel())",
            "(1 / y.numel())",
            "The 2 of the square's derivative is missing.",
        ),
        Wrong.changed(
            train_all,
            "(2 / y.numel())",
            "(2 / error.numel())",
            "You divide by the numbers of all models together, so each learns K times too slowly. "
            "The mean is each model's own.",
        ),
        Wrong.changed(
            train_all,
            "weights = weights - rates",
            "weights -= rates",
            "`-=` changes the tensor that was given. Write weights = weights − …, or begin with a "
            "copy.",
        ),
        Wrong.changed(
            train_all, "weights - rates", "weights + rates", "You go up the gradient. Subtract it."
        ),
        Wrong.changed(
            train_all, "range(steps)", "range(1)", "You take one step in place of `steps`."
        ),
    ),
    target=LessTime(train_all_large, 0.25, MODEL_BY_MODEL),
)
