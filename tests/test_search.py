"""A member of a population is a network trained alone, halving spends what its plan says, and less
training of many finds what a grid does not.
"""

import math
import random
from collections import Counter
from itertools import islice, pairwise, product
from statistics import fmean

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from accel_lab.experiments import search as experiment
from accel_lab.experiments.search import SPACE, Knobs, run, searches, spent_by
from accel_lab.search import Population, Range, best, grid, halving, random_points, rungs

SMALL_KNOBS = {"candidates": 27, "searches": 2, "seed": 1}  # the chapter in little, for papermill

# ---- where to look ----


@given(share=st.floats(0, 1), log=st.booleans())
def test_a_range_goes_from_low_to_high_in_equal_steps_or_ratios(share, log):
    one = Range(1e-3, 10.0, log)
    value = one.at(share)
    assert 1e-3 * (1 - 1e-12) <= value <= 10.0 * (1 + 1e-12)
    if log:
        assert math.log(value / 1e-3) == pytest.approx(share * math.log(1e4), abs=1e-9)
    else:
        assert value - 1e-3 == pytest.approx(share * (10 - 1e-3), abs=1e-9)


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ((2.0, 1.0), "low, high: 2.0 is not below 1.0"),
        ((1.0, 1.0), "low, high: 1.0 is not below 1.0"),
        ((0.0, math.inf), "not finite"),
        ((math.nan, 1.0), "not finite"),
        ((0.0, 1.0, True), "low: 0.0 is not above 0"),
        ((-1.0, 1.0, True), "low: -1.0 is not above 0"),
    ],
)
def test_a_range_that_cannot_be_is_refused_in_one_line(ends, said):
    with pytest.raises(ValueError, match=said) as error:
        Range(*ends)
    assert "\n" not in str(error.value)


def test_a_grid_has_every_combination_of_the_middles():
    space = {"a": Range(0.0, 1.0), "b": Range(1.0, 100.0, log=True), "c": Range(0.0, 6.0)}
    points = grid(space, {"a": 2, "b": 2})
    values = list(product((0.25, 0.75), (10**0.5, 10**1.5), (3.0,)))
    assert [tuple(one.values()) for one in points] == [pytest.approx(one) for one in values]
    assert len({one["b"] for one in points}) == 2


def test_random_points_differ_in_every_knob_and_repeat_with_their_seed():
    points = random_points(SPACE, 50, random.Random(3))
    for name, one in SPACE.items():
        values = [point[name] for point in points]
        assert len(set(values)) == 50
        assert all(one.low <= value <= one.high for value in values)
    assert points == random_points(SPACE, 50, random.Random(3))
    decades = Counter(math.floor(math.log10(point["learning_rate"])) for point in points)
    assert len(decades) == 5


@pytest.mark.parametrize("number", [0, -1, 2.5])
def test_no_candidates_and_no_space_are_refused(number):
    for make in (
        lambda: random_points(SPACE, number, random.Random(0)),
        lambda: grid(SPACE, {"momentum": number}),
    ):
        with pytest.raises(ValueError, match="whole number of at least 1"):
            make()
    with pytest.raises(ValueError, match="space: has no knob"):
        random_points({}, 3, random.Random(0))


# ---- how long to train whom ----


def test_the_plans_that_everybody_quotes():
    assert rungs(81, 27) == [(81, 1), (27, 3), (9, 9), (3, 27)]
    assert rungs(27, 27) == [(27, 1), (9, 3), (3, 9), (1, 27)]
    assert (spent_by(rungs(81, 27)), spent_by(rungs(27, 27))) == (243, 81)
    assert rungs(5, 10, eta=2) == [(5, 1), (2, 2), (1, 4), (1, 8), (1, 10)]
    assert rungs(9, 27, first=27) == [(9, 27)]


@settings(max_examples=200)
@given(st.integers(1, 300), st.integers(1, 100), st.integers(2, 5), st.integers(1, 100))
def test_every_plan_ends_at_the_longest_and_never_grows(candidates, longest, eta, first):
    first = min(first, longest)
    plan = rungs(candidates, longest, eta, first)
    assert plan[0] == (candidates, first)
    assert plan[-1][1] == longest
    for (many, short), (few, long) in pairwise(plan):
        assert few == max(1, many // eta)
        assert short < long <= short * eta


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ((0, 9), "candidates: 0"),
        ((2.5, 9), "candidates: 2.5 is not a whole number"),
        ((9, 9, 1), "eta: 1 would keep everybody"),
        ((9, 0), "first: 1 is not within 1 and the longest, 0"),
        ((9, 9, 3, 10), "first: 10 is not within"),
        ((9, 9, 3, 0), "first: 0 is not within"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(asked, said):
    with pytest.raises(ValueError, match=said):
        rungs(*asked)


def test_the_best_are_the_highest_and_nan_is_last():
    scores = torch.tensor([0.2, math.nan, 0.9, 0.2, -math.inf, 0.5])
    assert best(scores, 6).tolist() == [2, 5, 0, 3, 4, 1]
    assert int(scores.argmax()) == 1  # what best is there for
    with pytest.raises(ValueError, match="all candidates diverged"):
        best(torch.full((3,), math.nan), 1)


class Counted:
    """A population whose members' scores are given: epoch and member → score."""

    def __init__(self, number, score):
        self.members, self.score, self.had = torch.arange(number), score, Counter()

    def __len__(self):
        return len(self.members)

    def keep(self, places):
        self.members = self.members[places]

    def train(self, _):
        self.had.update(self.members.tolist())

    def judge(self, _):
        return torch.tensor([self.score(self.had[m], m) for m in self.members.tolist()])


@settings(max_examples=60)
@given(st.integers(1, 60), st.integers(1, 30), st.integers(2, 4), st.randoms())
def test_halving_trains_each_as_long_as_it_lasted_and_keeps_the_best(number, longest, eta, rng):
    scores = list(range(longest * number))  # none is equal to another
    rng.shuffle(scores)
    table = {(e, m): float(scores.pop()) for e in range(1, longest + 1) for m in range(number)}
    counted = Counted(number, lambda epoch, member: table[epoch, member])
    plan = rungs(number, longest, eta)
    judged = list(halving(counted, counted.train, counted.judge, plan))
    assert [one.epoch for one in judged] == list(range(1, longest + 1))
    assert judged[-1].spent == sum(counted.had.values()) == spent_by(plan)
    alive = set(range(number))
    for (_, epochs), (left, _) in pairwise(plan):
        alive = set(sorted(alive, key=lambda member: -table[epochs, member])[:left])
        if epochs < longest:
            assert set(judged[epochs].members.tolist()) == alive


def test_halving_goes_on_with_the_others_where_some_diverge():
    counted = Counted(9, lambda epoch, member: math.nan if member < 5 else float(member))
    *_, last = halving(counted, counted.train, counted.judge, rungs(9, 9))
    assert last.members.tolist() == [8]
    assert last.winner == 0
    bad = Counted(3, lambda epoch, member: math.nan)
    with pytest.raises(ValueError, match="all candidates diverged"):
        list(halving(bad, bad.train, bad.judge, rungs(3, 3)))


# ---- all candidates at once ----

SETTINGS = [
    {"learning_rate": 0.3},
    {"learning_rate": 0.01, "momentum": 0.9},
    {"learning_rate": 0.1, "momentum": 0.5, "weight_decay": 0.05},
    {"learning_rate": 0.0, "momentum": 0.9},
    {"learning_rate": 1e3},  # diverges
]


def population(chosen=SETTINGS, shape=(7, 5, 3), **made):
    return Population(chosen, shape, seed=3, dtype=torch.float64, **made)


def batch(n=11, width=7, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, width, generator=generator, dtype=torch.float64)
    return x, torch.randint(classes, (n,), generator=generator)


def alone(many, member):
    """The same network and settings, as PyTorch has them."""
    model = experiment.networks_of(many)[member]
    knobs = {name: float(one[member]) for name, one in many.knobs.items()}
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=knobs["learning_rate"],
        momentum=knobs["momentum"],
        weight_decay=knobs["weight_decay"],
    )
    return model, optimizer


def difference(model, many, member):
    theirs = (model[0].weight.T, model[0].bias[None], model[2].weight.T, model[2].bias[None])
    return max(
        float((a - b[member]).abs().max()) for a, b in zip(theirs, many.weights, strict=True)
    )


@pytest.mark.parametrize("n", [1, 11])
def test_every_member_is_a_network_trained_alone_after_every_update(n):
    many = population(SETTINGS[:4])
    others = [alone(many, member) for member in range(4)]
    for turn in range(12):
        x, y = batch(n, seed=turn)
        losses = many.update(x, y)
        for member, (model, optimizer) in enumerate(others):
            optimizer.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            assert float((loss - losses[member]).abs()) < 1e-13
            assert difference(model, many, member) < 1e-13
    x, y = batch(40, seed=99)
    for member, (model, _) in enumerate(others):
        share = float((model(x).argmax(1) == y).double().mean())
        assert float(many.accuracy(x, y)[member]) == share


def test_a_member_that_diverges_harms_no_other_and_scores_nan():
    with_it, without = population(), population(SETTINGS[:4])
    for mine, other in zip(with_it.weights, without.weights, strict=True):
        other.copy_(mine[:4])
    for turn in range(30):
        with_it.update(*batch(seed=turn))
        without.update(*batch(seed=turn))
    for mine, other in zip(with_it.weights, without.weights, strict=True):
        torch.testing.assert_close(mine[:4], other, rtol=0, atol=1e-13)
    with_it.weights[0][4] = math.nan
    assert with_it.accuracy(*batch()).isnan().tolist() == [False] * 4 + [True]


def test_those_that_are_kept_go_on_as_if_the_others_had_never_been():
    many = population(SETTINGS[:4])
    others = [alone(many, member) for member in (2, 1)]
    for turn in range(9):
        if turn == 4:
            many.keep(torch.tensor([2, 1]))
        x, y = batch(seed=turn)
        many.update(x, y)
        for model, optimizer in others:
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
    assert many.members.tolist() == [2, 1]
    assert max(difference(model, many, place) for place, (model, _) in enumerate(others)) < 1e-13


def test_the_old_velocity_is_another_training():
    right = population(SETTINGS[:4])
    wrong = experiment.OldVelocity(SETTINGS[:4], (7, 5, 3), seed=3, dtype=torch.float64)
    for turn in range(6):
        if turn == 3:
            right.keep(torch.tensor([2, 1]))
            wrong.keep(torch.tensor([2, 1]))
        right.update(*batch(seed=turn))
        wrong.update(*batch(seed=turn))
    assert (
        max(float((a - b).abs().max()) for a, b in zip(right.weights, wrong.weights, strict=True))
        > 1e-4
    )


def test_dropout_drops_its_share_of_each_member_and_keeps_the_mean():
    many = population(
        [{"learning_rate": 0.1, "dropout": share} for share in (0.0, 0.25, 0.6)], (7, 400, 3)
    )
    mask = many._dropout(200)
    dropped = (mask == 0).double().mean((1, 2))
    assert dropped.tolist() == pytest.approx([0.0, 0.25, 0.6], abs=0.01)
    assert mask.mean((1, 2)).tolist() == pytest.approx([1.0] * 3, abs=0.03)
    assert not torch.equal(mask[1] == 0, mask[2] == 0)
    x, y = batch()
    assert torch.equal(many.accuracy(x, y), many.accuracy(x, y))  # none when it is judged


def test_settings_that_are_none_are_refused():
    with pytest.raises(ValueError, match="settings: there are no candidates"):
        Population([], (7, 5, 3))
    with pytest.raises(ValueError, match="settings: 'lr' is not one of learning_rate, momentum"):
        Population([{"lr": 0.1}], (7, 5, 3))
    with pytest.raises(ValueError, match="settings: candidate 1 has no learning_rate"):
        Population([{"learning_rate": 0.1}, {"momentum": 0.9}], (7, 5, 3))


@pytest.mark.parametrize(
    ("knob", "value"),
    [("dropout", 1.0), ("momentum", -0.1), ("learning_rate", math.nan), ("weight_decay", math.inf)],
)
def test_values_that_cannot_be_are_refused_before_they_spoil_a_network(knob, value):
    with pytest.raises(ValueError, match=f"settings: {knob} of candidate 0 cannot be {value}"):
        Population([{"learning_rate": 0.1, knob: value}], (7, 5, 3))


# ---- the experiment ----


def test_a_run_counts_what_it_spends_and_ends_with_the_search():
    steps = list(run(Knobs(device="cpu", candidates=9, searches=2)))
    assert [step.index for step in steps] == list(range(27))
    assert [step.metrics["epochs_spent"] for step in steps[:3]] == [9.0, 12.0, 15.0]
    assert steps[-1].metrics["epochs_spent"] == spent_by(rungs(9, 27))
    assert [step.metrics["candidates_left"] for step in steps[::9]] == [9.0, 1.0, 1.0]
    assert steps[0].samples == 2 * 9 * experiment.TRAINED_ON
    assert all(step.metrics["worst"] <= step.metrics["accuracy"] for step in steps)
    assert all(step.metrics["accuracy"] <= step.metrics["best"] for step in steps)


def test_the_searches_of_a_run_are_those_that_run_alone():
    *_, last = run(Knobs(device="cpu", candidates=9, searches=2, seed=3))
    found = searches(Knobs(device="cpu", candidates=9), [3000, 3001])
    assert last.metrics["accuracy"] == pytest.approx(fmean(one.accuracy for one in found))
    assert last.metrics["claimed"] == pytest.approx(fmean(one.claimed for one in found))


def test_the_three_ways_to_train_many_are_one_training():
    """In float64, from the same weights: the losses of every update."""
    many = population(SETTINGS[:4])
    updates = {name: way(many) for name, way in experiment.WAYS.items()}
    for turn in range(15):
        x, y = batch(seed=turn)
        losses = {name: update(x, y) for name, update in updates.items()}
        for name in ("one by one", "vmap"):
            assert float((losses[name] - losses["population"]).abs().max()) < 1e-12, name
    before = losses["population"].clone()
    assert float((updates["population"](*batch(seed=99)) - before).abs().max()) > 1e-3


@pytest.fixture(scope="module")
def of_halving():
    return searches(Knobs(device="cpu"), range(4))


@pytest.mark.slow
def test_halving_beats_the_grid_with_a_third_of_the_training(of_halving):
    """The chapter's surprise: a mean over seeds."""
    of_grid = searches(Knobs(device="cpu", strategy="grid", candidates=27), range(4))
    assert 3 * of_halving[0].spent == of_grid[0].spent
    gains = [a.accuracy - b.accuracy for a, b in zip(of_halving, of_grid, strict=True)]
    assert fmean(gains) > 0.003
    assert sum(gain > 0 for gain in gains) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("mistake", ["60 pictures judge", "linear rates"])
def test_the_famous_mistakes_cost_what_the_chapter_says(mistake, of_halving):
    wrong = searches(Knobs(device="cpu", mistake=mistake), range(4))
    if mistake == "linear rates":
        assert fmean(one.accuracy for one in wrong) < fmean(one.accuracy for one in of_halving)
    else:
        too_much = [
            fmean(one.claimed - one.accuracy for one in found) for found in (wrong, of_halving)
        ]
        assert too_much[0] > too_much[1] + 0.01


def test_a_search_that_is_asked_for_again_is_the_one_that_was_made():
    knobs = Knobs(device="cpu", candidates=9, longest=3)
    judged, found = experiment.searched(knobs, 1)
    assert experiment.searched(knobs, 1)[0] is judged
    assert found == experiment.search(knobs, 1)[1]
    assert found != experiment.searched(knobs, 2)[1]


def test_a_run_is_closed_between_epochs():
    steps = run(Knobs(device="cpu", candidates=9, searches=1))
    list(islice(steps, 2))
    steps.close()


def test_ranks_and_their_correlation():
    ranks = experiment.ranks_along(Knobs(device="cpu", candidates=9, longest=3), 0, (1, 3))
    assert all(sorted(one.tolist()) == list(range(9)) for one in ranks.values())
    assert experiment.correlation(ranks[1], ranks[1]) == pytest.approx(1.0)
    assert experiment.correlation(torch.arange(9), torch.arange(9).flip(0)) == pytest.approx(-1.0)


def test_luck_shrinks_with_the_pictures_that_choose():
    luck = experiment.luck_of_choice(
        Knobs(device="cpu", strategy="random", candidates=9, longest=3), 0, (20, 300)
    )
    assert luck[20] > luck[300]
    assert luck[20] > 0.3
