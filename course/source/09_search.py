# ---
# jupyter:
#   kernelspec:
#     name: python3
#     display_name: Python 3
# ---

# %% [markdown]
# # 09 · Hyper-parameter search
#
# ## 1. The question
#
# A network has weights, which training finds, and settings, which somebody has to choose: the
# learning rate, momentum, weight decay, dropout. These are its **hyper-parameters**. A search tries
# some settings, the *candidates*, and keeps the best.
#
# You can read about it:
#
# > *Grid search is thorough: it tries every combination.*
# >
# > *A finer grid finds better settings.*
# >
# > *Every candidate has to be trained to the end, or the comparison is unfair.*
#
# Each candidate is a whole training. So which search finds a good network with the least training?

# %% jupyter={"source_hidden": true}
import random
from functools import partial
from itertools import pairwise
from statistics import fmean, median

import torch

from accel_lab import search
from accel_lab.experiments import search as experiment
from accel_lab.workbench import chapter as lab

torch.set_num_threads(1)  # so small a network gains nothing from a second thread

# %% [markdown]
# The next cell holds the settings of this chapter. Change one, as in `knobs = {"seed": 1}`, and run
# the notebook again: everything below follows.

# %% tags=["parameters"]
knobs = {}

# %%
base = lab.settings(experiment.Knobs, knobs, device="cpu")
digits = experiment.parts_of(base)
x, y = digits.train
seeds = [base.seed + place for place in lab.some_seeds(5)]
print(f"{len(x):,} pictures of digits to train, {len(digits.choose[0])} to choose the winner,")
print(f"{len(digits.judge[0])} to judge it; a perceptron 64-{base.hidden}-10")
for name, one in experiment.SPACE.items():
    print(f"{name:<14} {one.low:g} to {one.high:g}{', logarithmic' * one.log}")

# %% [markdown]
# ## 2. Predict
#
# A grid has 27 candidates and trains each for 27 epochs. Another search takes 81 random candidates,
# trains each for one epoch, and gives up on two of three; it goes on so until three are left, which
# it trains to 27 epochs. The *test error* is the share of wrong answers on the test pictures.
#
# The candidates are small networks of one shape. They can be trained one after the other, or 64 of
# them at once, by the same calls. Two guesses:

# %%
guess_error = lab.Prediction(
    "The winner of that search: how many times the test error of the grid's winner?",
    low=0.2,
    high=5,
    default=2.0,
    unit="×",
)
guess_error

# %%
guess_speed = lab.Prediction(
    "64 networks at once: how many times as fast as one after the other?",
    low=0.5,
    high=64,
    default=2.0,
    unit="×",
)
guess_speed

# %% [markdown]
# ## 3. See
#
# Searches with several seeds run side by side here, now. The dashed orange run is the grid of 27,
# as far as it came in a few seconds. Press **Start** and let it end. Then change the **strategy**
# and press **Start** again.
#
# - **eta**, η: at each cut one candidate in η goes on.
# - **first**: epochs before the first cut.
# - An *epoch spent* is one epoch of one candidate: the unit of cost.
# - An *update* in the panel is one more epoch of all candidates that are left.

# %%
spent = lab.Curve(
    "accuracy", "winner's test accuracy, %", 100, over="epochs_spent", ends=(60, 100), noisy=False
)
left = lab.Curve("candidates_left", "candidates left", log=(1, 1e3))
panel = lab.Panel(
    experiment.run,
    base,
    [spent, left, lab.Curve("throughput", "thousand samples/s", 1e-3)],
    controls=["strategy", "candidates", "eta", "first"],
    baselines={"a grid of 27": {"strategy": "grid", "candidates": 27}},
    headline=lab.Headline("accuracy", "test accuracy", points=True),
    tour=[base],
    seconds=4.0,
)
panel

# %% [markdown]
# What to look for:
#
# - The large number compares after equally many updates, the first graph after equal cost. Which
#   line is higher at the same epochs spent?
# - Does a grid of 81 end higher than one of 27?
# - When few candidates are left, the samples per second fall. Part 6 says why.
#
# ## 4. Build
#
# ### Where to look, and what to try
#
# A knob has a range, and a place in it, from 0 to 1. Good learning rates can be 0.001 or 1, so
# equal steps have to be equal *ratios*: that is `at`. A **grid** combines some values of each knob.
# **Random search** draws every knob anew for each candidate.

# %%
lab.show_source(search.Range.at, search.grid, search.random_points, docstring=False)

# %% tags=["nbval-check-output"]
rates = experiment.SPACE["learning_rate"]
plain = search.Range(rates.low, rates.high)
for share in (0.0, 0.25, 0.5, 0.75, 1.0):
    print(f"at {share:.2f}: {rates.at(share):8.4f} with log, {plain.at(share):8.4f} without")
above = sum(plain.at(place / 999) > 1 for place in range(1000)) / 1000
print(f"without log {above:.0%} of all draws are above 1")
of_grid = experiment.candidates_of(base.turned(strategy="grid", candidates=27), base.seed)
at_random = search.random_points(experiment.SPACE, 27, random.Random(base.seed))
for name, points in (("grid of 27", of_grid), ("27 at random", at_random)):
    different = {knob: len({one[knob] for one in points}) for knob in experiment.SPACE}
    print(f"{name:<13}", ", ".join(f"{knob}: {n} values" for knob, n in different.items()))

# %% [markdown]
# Look at the learning rates in the last two lines. If only they matter, the grid has tried three
# settings, nine times each.
#
# ### Successive halving
#
# Train all candidates for one epoch. Keep the best third. Train these until they have had three
# epochs, keep the best third, and so on. Each level is called a *rung*. Every rung costs about the
# same: a third of the candidates, three times the epochs.
#
# One line of the plan is left out. Yours is asked for two plans. From 81 candidates up to 27
# epochs, the product of candidates and epochs has to stay the same. From 5 candidates up to 10
# epochs, the last rung has to end at 10, with a candidate left.


# %%
def product_stays(rungs):
    even, odd = rungs(81, 27), rungs(5, 10)
    products = {candidates * epochs for candidates, epochs in even}
    ends = even[-1][1] == 27 and odd[-1][1] == 10
    return len(products) == 1 and ends and all(left > 0 for left, _ in even + odd)


# %% jupyter={"source_hidden": true}
lab.MissingLine(
    search.rungs,
    {
        "candidates, first = max(1, candidates // eta), min(longest, first * eta)": (
            "A third, for three times the epochs: one at least, and not beyond the longest."
        ),
        "candidates, first = candidates // eta, first * eta": (
            "Right for 81 and 27. But of 5 candidates none is left, and 27 epochs are beyond 10."
        ),
        "candidates, first = max(1, candidates // eta), min(longest, first + eta)": (
            "Three more epochs, not three times as many: the product changes from rung to rung."
        ),
        "candidates, first = max(1, candidates - eta), min(longest, first * eta)": (
            "Three are cut, not two thirds: the product almost triples from rung to rung."
        ),
    },
    product_stays,
)

# %% tags=["nbval-check-output"]
plan = search.rungs(candidates=81, longest=27, eta=3)
before = 0
for number, epochs in plan:
    print(
        f"{number:>3} candidates, {epochs:>2} epochs each: {number * (epochs - before):>3} new ones"
    )
    before = epochs
print(f"together {experiment.spent_by(plan)}; 27 candidates to the end: {27 * 27}")

# %% [markdown]
# The search itself is below. With one rung nobody is cut, so the same function is plain search,
# too. `best` ranks the scores; part 7 shows its trap, NaN.

# %%
lab.show_source(search.halving, search.best, docstring=False)

# %% [markdown]
# ### Watch one
#
# A recorded search: each dot is a candidate, blue as long as it is trained, grey once it is cut.
# Press **Play** (▶).

# %% jupyter={"source_hidden": true}
watched = base.turned(strategy="halving", candidates=81, first=1)
recorded, _ = experiment.searched(watched, base.seed)
begun = experiment.candidates_of(watched, base.seed)


def draw_moment(epoch=1):
    picture, (axes,) = lab.figure.axes(8, 3.2)
    last_seen = {}
    for moment in recorded[:epoch]:
        last_seen |= dict(zip(moment.members.tolist(), (100 * moment.scores).tolist()))
    alive = moment.members.tolist()
    for group, color, size in ((last_seen, lab.figure.GREY, 14), (alive, "C0", 34)):
        at = [begun[member]["learning_rate"] for member in group]
        axes.scatter(at, [last_seen[member] for member in group], s=size, color=color)
    axes.set(xscale="log", xlim=(5e-5, 20), ylim=(0, 103))
    axes.set(xlabel="learning rate", ylabel="accuracy when last seen, %")
    said = f"epoch {epoch}: {len(alive)} candidates are trained, {moment.spent} epochs spent"
    axes.set_title(said, loc="left", fontsize=10)
    return picture


lab.Sliders(draw_moment, epoch=range(1, len(recorded) + 1))

# %% [markdown]
# ### All candidates at once
#
# The candidates have one shape and see the same batches. So their weights fit into one tensor
# `[K, in, out]`, and one call, `baddbmm`, multiplies all of them and adds the biases. The update is
# that of SGD, with a learning rate, a momentum and a weight decay for each member. A cut takes rows
# out of every tensor. The *velocity*, the state of the momentum, has to go along:

# %%
crowded = search.Population
lab.show_source(crowded.logits, crowded.update, crowded.keep, docstring=False)

# %% tags=["nbval-check-output"]
population = search.Population(begun[:5], shape=(64, 8, 10))
print("weights:", [list(one.shape) for one in population.weights])
losses = population.update(x[:16], y[:16])
print("one update of five networks, losses:", list(losses.shape))
population.keep(torch.tensor([3, 0]))
print("kept:", population.members.tolist(), "weights:", list(population.weights[0].shape))

# %% [markdown]
# *Half-way. This is a good place to stop and come back to: run all cells above, and go on here.*
#
# ## 5. Prove
#
# A member of a population must be the network that it would be alone. Three ways to train the same
# candidates, in float64: one by one with `torch.optim.SGD`; `torch.func.vmap`, PyTorch's own way
# to map one network's gradient over stacked weights; and ours. And who is kept must go on as if the
# others had never been there.

# %% tags=["nbval-check-output"]
settings = [
    {**one, "dropout": 0.0, "learning_rate": 0.02 * (1 + place)}
    for place, one in enumerate(begun[:6])
]
exact = search.Population(settings, (64, 16, 10), dtype=torch.float64)
updates = {name: way(exact) for name, way in experiment.WAYS.items()}
apart = {"one by one": 0.0, "vmap": 0.0}
for place in range(20):
    part = slice(16 * place, 16 * (place + 1))
    found = {name: update(x[part].double(), y[part]) for name, update in updates.items()}
    for name in apart:
        difference = float((found[name] - found["population"]).abs().max())
        apart[name] = max(apart[name], difference)
for name, most in apart.items():
    print(f"20 updates of 6 networks, {name} = population: {most < 1e-12}")

# %% tags=["nbval-check-output"]
many = search.Population(settings, (64, 16, 10), dtype=torch.float64)
few = search.Population(settings, (64, 16, 10), dtype=torch.float64)
few.keep(torch.tensor([4, 1]))  # from the start
for place in range(20):
    part = slice(16 * place, 16 * (place + 1))
    for one in (many, few):
        one.update(x[part].double(), y[part])
    if place == 9:
        many.keep(torch.tensor([4, 1]))  # half-way
same = max(float((a - b).abs().max()) for a, b in zip(many.weights, few.weights))
print("cut half-way = alone from the start:", same < 1e-12)

# %% [markdown]
# The third witness is Optuna, a library for searches. It gets our candidates and trains each by
# itself, with the same weights at the start and the same batches. Does it name the same winner?

# %%
import optuna

optuna.logging.set_verbosity(optuna.logging.WARNING)
short = base.turned(strategy="random", candidates=9, longest=3)
drawn_few = experiment.candidates_of(short, base.seed)
candidates = [{**one, "dropout": 0.0} for one in drawn_few]  # whose draws would differ
ours, _ = experiment.search_among(candidates, short, base.seed)
study = optuna.create_study(direction="maximize")
for one in candidates:
    study.enqueue_trial(one)
study.optimize(experiment.objective(candidates, short, base.seed), n_trials=len(candidates))
theirs = torch.tensor([trial.value for trial in study.trials])
print(
    f"the same winner: {study.best_trial.number == ours[-1].winner}; accuracies differ by", end=" "
)
print(f"at most {100 * float((ours[-1].scores - theirs).abs().max()):.1f} points")

# %% [markdown]
# ## 6. Measure
#
# ### Which search finds the best network?
#
# Each search runs with every seed. The winner is chosen on some pictures and judged on others, the
# test pictures, which have chosen nothing.

# %%
ways = {
    "grid of 27": {"strategy": "grid", "candidates": 27},
    "27 at random": {"strategy": "random", "candidates": 27},
    "halving of 81": {"strategy": "halving", "candidates": 81},
    "halving of 27": {"strategy": "halving", "candidates": 27},
}
results = {}
for name, changes in ways.items():
    results[name] = experiment.searches(base.turned(**changes), seeds)
    told = lab.figure.tell_over_seeds([100 * one.accuracy for one in results[name]], "%")
    print(f"{name:<14} {results[name][0].spent:>4} epochs spent: {told}")

# %%
accuracy = {name: [100 * one.accuracy for one in found] for name, found in results.items()}
gain = {}
for name in list(ways)[1:]:
    gain[name] = [a - b for a, b in zip(accuracy[name], accuracy["grid of 27"])]
    better, equal = sum(one > 0 for one in gain[name]), sum(one == 0 for one in gain[name])
    print(f"{name:<14} against the grid: {fmean(gain[name]):+.1f} points,", end=" ")
    print(f"better in {better} of {len(seeds)} seeds, equal in {equal}")
wrong_share = {name: 100 - fmean(found) for name, found in accuracy.items()}
guess_error.against(wrong_share["halving of 81"] / wrong_share["grid of 27"])

# %% [markdown]
# ### A finer grid
#
# Three times as many candidates, by three values of dropout, the fourth knob:

# %%
few_seeds = seeds[: len(lab.some_seeds(2))]
finer = experiment.searches(base.turned(strategy="grid", candidates=81), few_seeds)
coarse = results["grid of 27"][: len(finer)]
for name, found in (("27", coarse), ("81", finer)):
    chosen, real = (100 * fmean(part) for part in zip(*((r.claimed, r.accuracy) for r in found)))
    print(f"grid of {name}, {found[0].spent:>4} epochs spent: the winner has", end=" ")
    print(f"{chosen:.1f} % on the pictures that chose it, {real:.1f} % on the test pictures")
changes = [100 * (a.accuracy - b.accuracy) for a, b in zip(finer, coarse)]
change = fmean(changes)
print(f"{finer[0].spent / coarse[0].spent:.0f} × the epochs:", end=" ")
print(lab.figure.tell_over_seeds(changes, "points"), end=": ")
print("it has not found better ones" if change < 0.5 else "it has found better ones")

# %% [markdown]
# All settings of the coarse grid are in the finer one. Still its winner can be no better on the
# test pictures, even where it is better on those that chose it: among more candidates more are
# lucky. Part 7 measures that luck.
#
# ### Why
#
# Which knob matters? Take many random candidates, and look at their accuracy by the decade of the
# learning rate, and by halves of each other knob:

# %%
everybody = base.turned(strategy="random", candidates=81)
judged, _ = experiment.searched(everybody, base.seed)
drawn = experiment.candidates_of(everybody, base.seed)
scores = [100 * score for score in judged[-1].scores.nan_to_num(0).tolist()]
reach = {}
for knob, one in experiment.SPACE.items():
    parts = 5 if knob == "learning_rate" else 2
    edges = [one.at(place / parts) for place in range(parts + 1)]
    means = [
        fmean(s for s, point in zip(scores, drawn) if low <= point[knob] <= high)
        for low, high in pairwise(edges)
    ]
    reach[knob] = max(means) - min(means)
    print(f"{knob:<14}", " ".join(f"{mean:5.1f}" for mean in means), "% from low to high")
print(f"the knob whose parts differ most: {max(reach, key=reach.get)}")

# %% jupyter={"source_hidden": true} tags=["hero"]
picture, (left_axes, right_axes) = lab.figure.axes(10, 3.6, columns=2)
shown, _ = experiment.searched(base.turned(**ways["grid of 27"]), base.seed)
for points, values, color, label in (
    (drawn, scores, lab.figure.GREY, "at random"),
    (of_grid, [100 * one for one in shown[-1].scores.tolist()], lab.figure.ORANGE, "grid of 27"),
):
    rates_ = [one["learning_rate"] for one in points]
    left_axes.scatter(rates_, values, s=12, color=color, label=label)
left_axes.set(xscale="log", xlabel="learning rate", ylabel="accuracy, %", ylim=(0, 103))
left_axes.set_title("What has the grid seen?")
left_axes.legend(frameon=False, fontsize=8, loc="upper left")
for (name, found), color in zip(accuracy.items(), ("ORANGE", "GREY", "BLUE", "GREEN")):
    middle, color = fmean(found), getattr(lab.figure, color)
    cost = results[name][0].spent * {"grid of 27": 0.93, "27 at random": 1.07}.get(name, 1.0)
    ends = [[middle - min(found)], [max(found) - middle]]
    right_axes.errorbar([cost], [middle], ends, color=color, marker="o", capsize=4)
    side = {"grid of 27": "right", "27 at random": "left"}.get(name, "center")
    place = {"xytext": (0, 5), "textcoords": "offset points", "ha": side, "fontsize": 9}
    right_axes.annotate(name, (cost, max(found)), color=color, **place)
right_axes.set(xscale="log", xlabel="epochs spent", ylabel="winner's test accuracy, %")
right_axes.set_xticks([81, 243, 729], ["81", "243", "729"])
right_axes.minorticks_off()
right_axes.set_xlim(35, 2200)
right_axes.margins(y=0.15)
right_axes.set_title("What does a good winner cost? Mean and range")
picture

# %% [markdown]
# The grid's candidates stand in three columns, and the best column is where it happens to stand. A
# finer grid of the other knobs moves no column. The random candidates have tried the rates between.
#
# ### Is one epoch enough to judge?
#
# Train all candidates to the end. Rank them where halving would cut, and compare with the ranking
# at the end, by Spearman's correlation: 1 is the same order, 0 is chance. Then make the cuts: does
# the best one survive?

# %%
plan = base.turned(strategy="halving").plan(len(drawn))
along = {}
for seed in few_seeds:
    ranks = experiment.ranks_along(everybody, seed, [epochs for _, epochs in plan])
    final, stay = ranks[base.longest], torch.arange(len(drawn))
    print(f"seed {seed}: the best one at the end has place", end=" ")
    for (_, epochs), (number, _) in pairwise(plan):
        stay = stay[ranks[epochs][stay].argsort()[:number]]
        along.setdefault(epochs, []).append(experiment.correlation(ranks[epochs], final))
        print(f"{int(ranks[epochs][final == 0]) + 1} at epoch {epochs}", end=", ")
    print(f"and the best of those kept has place {int(final[stay].min()) + 1} at the end")
for epochs, found in along.items():
    print(f"epoch {epochs}: correlation {lab.figure.tell_over_seeds(found)}")

# %% [markdown]
# A cut does not have to find the best candidate, and it can lose it: a candidate goes on only if it
# stands high at *every* cut. But where the best one is lost, one near the top goes on. That is why
# a rough ranking is enough, and why η should not be large.
#
# ### Many networks by the calls of one
#
# The time of an update of 64 candidates, in three ways:

# %%
crowd = experiment.candidates_without_dropout(64, base.hidden)
batch = x[:64], y[:64]
faster = {}
for peer in ("one by one", "vmap"):
    at_once, other = (experiment.WAYS[name](crowd) for name in ("population", peer))
    faster[peer] = lab.compare(
        partial(at_once, *batch), partial(other, *batch), names=("population", peer), patience=2.0
    )
print(*faster.values(), sep="\n")
guess_speed.against(1 / faster["one by one"].ratio)

# %% [markdown]
# An update costs its calls, *c*, and the sums of each network, *f*: seconds c + K·f for K networks.
# So the networks per second are
#
# $$\frac{K}{c + K f}$$
#
# They grow with K while the calls are most of the cost, and end at 1/f. Both are read from the
# smallest and the largest population; are those between where they should be?

# %%
numbers = (1, 4, 16, 64, 256)
taken = experiment.update_seconds(numbers, base.hidden)
first, last = numbers[0], numbers[-1]
each = (taken[last] - taken[first]) / (last - first)
call = taken[first] - first * each
print(f"c = {1e6 * call:.0f} µs, f = {1e6 * each:.1f} µs, c/f = {call / each:.0f} networks")
for number, seconds in taken.items():
    predicted = number / (call + number * each)
    print(
        f"K = {number:>3}: {number / seconds / 1e3:6.1f} thousand updates of a network per second,",
        f"{number / seconds / predicted:.2f} × the formula",
    )

# %% [markdown]
# That is also why the samples per second in the panel fall at each cut: with three candidates left
# the calls are paid for three.
#
# ### On processes, and on a cluster
#
# Networks of different shapes cannot be stacked. Then each trial gets a process, and several run at
# a time. If one dies, its trial is given to another.
#
# The command line searches the knobs of every chapter's experiment in this way. It writes down each
# trial as it ends, so the same command goes on after an interruption, and `--scheduler` spreads the
# trials over the workers of a Dask cluster:
#
# ```sh
# python -m accel_lab search accumulation --vary learning_rate --vary batch_size=8:256 \
#     --strategy halving --candidates 27 --steps 90 --scheduler tcp://…
# ```

# %%
tasks = [(one, (one, 3)) for one in candidates[:4]]
for one, score in lab.on_processes(experiment.score_alone, tasks):
    print(f"learning rate {one['learning_rate']:8.4f}: {score:.1%} after 3 epochs")

# %% [markdown]
# ## 7. Break it
#
# Four famous mistakes, one click each. Press **Start** and let it end. Then choose one **mistake**
# after the other, and press **Start** each time. Compare what the winner *claims*, on the pictures
# that chose it, with what it does on others.

# %%
broken = base.turned(strategy="halving", candidates=27)
mistakes = ["winner by test", "60 pictures judge", "linear rates", "old velocity"]
of_epochs = {"over": "epochs_spent", "ends": (50, 100)}
claims = lab.Curve("claimed", "claimed accuracy, %", 100, **of_epochs)
truths = lab.Curve("accuracy", "on fresh pictures, %", 100, **of_epochs)
break_it = lab.Panel(
    experiment.run,
    broken,
    [claims, truths],
    controls=["mistake", "candidates"],
    baselines={"no mistake": {"mistake": "none"}},
    headline=None,
    tour=[broken.turned(mistake=mistake) for mistake in mistakes[:3]],
    seconds=2.0,
)
break_it

# %% [markdown]
# Write down which claims you would believe, then look.
#
# <details><summary>What each of them does</summary>
#
# - **winner by test.** The test pictures choose the winner, so none is left to judge it: both
#   curves are the same, and the pictures are not fresh.
# - **60 pictures judge.** With few pictures some candidate is lucky, and luck wins.
# - **linear rates.** Learning rate and weight decay are drawn in equal steps: most are too large.
# - **old velocity.** A cut keeps the weights of the survivors and the velocity of others.
#
# </details>
#
# The winner's accuracy as claimed, and as judged, over seeds. A cost whose range holds both signs
# is not shown by so few of them:

# %%
rows = {}
for mistake in ("none", *mistakes):
    turned = broken.turned(mistake=mistake)
    rows[mistake] = experiment.searches(turned, seeds[: len(lab.some_seeds(3))])
    claimed, real = (
        100 * fmean(part) for part in zip(*((r.claimed, r.accuracy) for r in rows[mistake]))
    )
    judge = "none is left to judge" if mistake == "winner by test" else f"on others {real:.1f} %"
    print(f"{mistake:<18} claimed {claimed:.1f} %, {judge}")
for name in ("linear rates", "old velocity"):
    lost = [100 * (a.accuracy - b.accuracy) for a, b in zip(rows["none"], rows[name])]
    print(f"{name} costs {lab.figure.tell_over_seeds(lost, 'points')}")

# %% [markdown]
# ### How much of a claim is luck?
#
# The part that chose can be easier or harder than the part that judges, which hides the luck. So
# take 27 trained candidates and all pictures that trained none of them. Draw some of these at
# random, choose the winner on them, and judge it on the others, many times:

# %%
luck = experiment.luck_of_choice(broken.turned(strategy="random"), base.seed, (30, 60, 120, 360))
for number, points in luck.items():
    print(f"winner chosen on {number:>3} pictures: it claims {points:.1f} points too much")

# %% [markdown]
# Few pictures, much luck. *Winner by test* has no fresh pictures left, so nobody can tell how much
# of its number is luck.
#
# ### NaN wins, and bad input
#
# A candidate that diverges has a loss that is not a number, and every comparison with it is false.
# PyTorch's functions put it first; `best` puts it last. What cannot be is refused before anything
# is trained, in one line each:

# %% tags=["nbval-check-output"]
three = torch.tensor([0.91, float("nan"), 0.95])
firsts = int(three.argmax()), three.topk(2).indices.tolist(), search.best(three, 2).tolist()
print("argmax: {}, topk: {}, best: {}".format(*firsts))
for wrong in (
    lambda: search.Range(0.0, 1.0, log=True),
    lambda: search.Range(1.0, 0.1),
    lambda: search.rungs(81, 27, eta=1),
    lambda: search.random_points(experiment.SPACE, 0, random.Random(0)),
    lambda: search.Population([{"lr": 0.1}], (64, 32, 10)),
    lambda: search.best(torch.tensor([float("nan")] * 3), 1),
):
    try:
        wrong()
    except ValueError as refusal:
        print(refusal)

# %% [markdown]
# ## 8. When it does not help
#
# ### A slow starter
#
# Halving judges early, so a setting that is slow at first and good at the end can be cut. How many
# of the ten best at the end would have been, after one epoch? It depends on how many are kept:

# %%
first_epoch, last_epoch = judged[0].scores, judged[-1].scores
good = set(search.best(last_epoch, 10).tolist())
for share in (3, 9, 27):
    middle_rate = {}
    stay = set(search.best(first_epoch, len(drawn) // share).tolist())
    print(f"keep {len(stay):>2} of {len(drawn)}: {len(good - stay)} of the ten best are cut")
    for name, group in (("cut", good - stay), ("kept", good & stay)):
        if group:
            middle_rate[name] = median(drawn[member]["learning_rate"] for member in group)
told = ", ".join(f"{rate:.2g} of those {name}" for name, rate in middle_rate.items())
print(f"learning rate at the last line, median: {told}")

# %% [markdown]
# A large η keeps those that are fast at first, often with a large learning rate, and cuts those
# that start slowly. Remedies: a smaller η, or more epochs before the first cut (**first**). Both
# cost epochs.
#
# ### When the range is known already
#
# Search only where every learning rate is good. How far is the best candidate above the median
# one?

# %%
narrow = dict(experiment.SPACE) | {"learning_rate": search.Range(0.05, 0.5, log=True)}
gaps = []
for seed in few_seeds:
    points = search.random_points(narrow, 27, random.Random(seed))
    found, _ = experiment.search_among(points, base.turned(strategy="random"), seed)
    tail = found[-1].scores.nan_to_num(0)
    gaps.append(100 * float(tail.max() - tail.median()))
print(f"best minus median of 27: {lab.figure.tell_over_seeds(gaps, 'points')} in the narrow range,")
print(f"{max(scores) - median(scores):.1f} points in the wide one, of {len(scores)}")

# %% [markdown]
# Where all settings do alike, no search finds much.
#
# ### Wide networks
#
# One call for many networks saves calls, not sums. Wide networks are mostly sums:

# %%
for hidden in (base.hidden, 256):
    wide_crowd = experiment.candidates_without_dropout(16, hidden)
    at_once, singly = (
        partial(experiment.WAYS[name](wide_crowd), *batch) for name in ("population", "one by one")
    )
    ratio = lab.compare(at_once, singly, names=("16 at once", "one by one"), patience=1.0)
    print(f"64-{hidden}-10: {ratio}")

# %%
verdict = (
    f"halving of 81 with {results['halving of 81'][0].spent} epochs finds a winner "
    f"{fmean(gain['halving of 81']):+.1f} points from the grid's with "
    f"{results['grid of 27'][0].spent}; a finer grid {change:+.1f} points; "
    f"64 networks at once take {faster['one by one'].ratio:.2f} × the time of one by one"
)
lab.log_verdict("search", verdict)

# %% [markdown]
# So, about the sentences from the start:
#
# - *Grid search is thorough:* in combinations. In values of the one knob that matters it is not.
# - *A finer grid finds better settings:* not by more values of a knob that matters little.
# - *Every candidate has to be trained to the end:* a rough ranking is enough to drop the worst.
#
# ## 9. Exercises
#
# Write the functions and run the cells; `check` tries each on fresh data. It says what is right
# already, shows a small case that is not, and gives a hint where it knows the mistake. After two
# different tries it offers a worked solution. One function is written already, with faults: repair
# it.

# %%
from accel_lab.grading.practice import check, exercises

RATES, BUDGET, WINNER, TOGETHER = exercises("search")
RATES


# %% tags=["exercise"]
def draw_rates(shares, low, high):
    raise NotImplementedError


check(draw_rates)

# %%
BUDGET


# %% tags=["exercise"]
def candidates_for(budget, longest, eta):
    raise NotImplementedError


check(candidates_for)

# %%
WINNER


# %% tags=["exercise"]
def winner_of(trials):
    winner = 0
    for place, trial in enumerate(trials):
        if not trial["validation_loss"] > trials[winner]["validation_loss"]:
            winner = place
    return winner


check(winner_of)

# %%
TOGETHER


# %% tags=["exercise"]
def train_all(weights, rates, x, y, steps):
    raise NotImplementedError


check(train_all)

# %% [markdown]
# ## 10. Take away
#
# - Count what a search spends in epochs, not in candidates.
# - Draw at random, and learning rates on a logarithmic scale.
# - Cut early and often, and never trust the number that chose the winner.
# - NaN must lose; a cut takes the optimizer's state along.
# - Many small networks of one shape are one large tensor.
#
# Known from elsewhere, and not measured here: *Hyperband* runs several halvings with different
# first rungs, so that slow starters get a chance (Li et al., 2018). *ASHA* cuts without waiting for
# a rung to be complete, which suits clusters (Li et al., 2020). Methods that learn from former
# trials, such as Optuna's TPE, pay off when trials are few and expensive; random search is a strong
# baseline (Li and Talwalkar, 2019).

# %% [markdown]
# **What would prove this wrong?** A problem where several knobs matter alike, and a grid whose
# winner beats that of a halving with the same epochs, in most of ten seeds.
#
# **Sources.** J. Bergstra and Y. Bengio, *Random Search for Hyper-Parameter Optimization*, JMLR 13,
# 2012 · K. Jamieson and A. Talwalkar, *Non-stochastic Best Arm Identification and Hyperparameter
# Optimization*, 2016, arXiv:1502.07943 · L. Li et al., *Hyperband*, 2018, arXiv:1603.06560 · L. Li
# et al., *A System for Massively Parallel Hyperparameter Tuning*, 2020, arXiv:1810.05934 · L. Li
# and A. Talwalkar, *Random Search and Reproducibility for Neural Architecture Search*, 2019,
# arXiv:1902.07638.
#
# **Next.** The settings are found, and the training begins from nothing. It need not:
# [chapter 10](10_transfer.ipynb) begins with a network that somebody else has trained. The other
# chapters are listed on the [first page](00_start_here.ipynb).
