"""The verdict is as sure as it says, and what is counted below the roof is what happens."""

import math
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from itertools import islice, product
from types import SimpleNamespace

import psutil
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from accel_lab import ddp, measuring
from accel_lab.experiments import measuring as experiment
from accel_lab.experiments.measuring import Knobs
from accel_lab.workbench.drawing.record import Record
from accel_lab.workbench.knobs import KnobError
from accel_lab.workbench.measure import comparison, load
from accel_lab.workbench.measure import roofline as roofs
from accel_lab.workbench.measure.comparison import Comparison, compare
from accel_lab.workbench.measure.race import Readings, break_even, compared
from accel_lab.workbench.measure.roofline import Operation, Roofline, roofline
from accel_lab.workbench.ranks.launch import launch
from accel_lab.workbench.step import Step

SMALL_KNOBS = {"operation": "element-wise", "batch_size": 4}
CPU = torch.device("cpu")


# ---- the verdict ----


class Machine:
    """A clock that programs push on, under load that comes in bursts and drifts.

    ``work(s)`` lasts s if undisturbed.
    """

    def __init__(self, seed: int):
        self.now, self.chance, self.drift, self.burst = 0.0, random.Random(seed), 0.0, 0.0
        self.to_look = 50e-9  # seconds that looking at the clock takes

    def clock(self) -> float:
        self.now += self.to_look
        return self.now

    def work(self, seconds: float) -> None:
        self.drift = 0.95 * self.drift + self.chance.gauss(0, 0.03)  # seen by neighbours alike
        if self.burst <= 0 and self.chance.random() < 0.05:
            # for 20 ms on average, half of the machine is gone
            self.burst = self.chance.expovariate(1 / 0.02)
        lasts = seconds * math.exp(self.drift) * (1 + abs(self.chance.gauss(0, 0.02)))
        if self.burst > 0:
            lasts *= self.chance.uniform(1, 3)
            self.burst -= lasts
        self.now += lasts


@pytest.fixture
def machine(monkeypatch):
    def make(seed: int) -> Machine:
        made = Machine(seed)
        monkeypatch.setattr(comparison, "perf_counter", made.clock)
        coin = SimpleNamespace(Random=lambda: random.Random(~seed))
        monkeypatch.setattr(comparison, "random", coin)
        return made

    return make


def found(machine, slower_by: float, tries: int, seconds: float) -> int:
    """How often a program that is slower by this share is said to differ from the other."""
    verdicts = 0
    for seed in range(tries):
        made = machine(seed)
        ours, peer = (
            lambda made=made, s=s: made.work(s) for s in (seconds * (1 + slower_by), seconds)
        )
        verdicts += compare(ours, peer).differs
    return verdicts


@pytest.mark.parametrize("seconds", [1e-3, 0.2], ids=["short", "long"])
def test_equal_programs_are_told_apart_in_at_most_two_of_a_hundred_tries(machine, seconds):
    assert found(machine, 0.0, tries=300, seconds=seconds) <= 6


@pytest.mark.parametrize("seconds", [1e-3, 0.05], ids=["short", "longer"])
def test_ten_percent_is_found(machine, seconds):
    assert found(machine, 0.10, tries=100, seconds=seconds) >= 95


def claims(machine, ratio_of, tries: int = 100) -> int:
    """How often a way of comparing says that equal programs differ by more than 5 %."""
    claimed = 0
    for seed in range(tries):
        made = machine(seed)
        ours, peer = (lambda made=made: made.work(1e-3) for _ in range(2))
        claimed += abs(ratio_of(ours, peer) - 1) > 0.05
    return claimed


def test_the_usual_ways_claim_differences_between_equal_programs_and_pairs_seldom(machine):
    for wrong in experiment.WRONG_RATIOS.values():
        assert claims(machine, wrong) > 20
    assert claims(machine, experiment.RATIOS["in pairs"]) <= 5


def test_pairs_that_are_as_many_calls_notice_ten_percent(machine):
    noticed = 0
    for seed in range(100):
        made = machine(seed)
        ours, peer = (lambda made=made, s=s: made.work(s) for s in (1.1e-3, 1e-3))
        noticed += experiment.RATIOS["in pairs"](ours, peer) > 1.05
    assert noticed >= 95


@pytest.mark.parametrize("name", experiment.RATIOS)
def test_every_way_of_comparing_calls_each_program_equally_often(name):
    called = Counter()
    experiment.RATIOS[name](lambda: called.update(["ours"]), lambda: called.update(["peer"]))
    assert called == {"ours": experiment.CALLS, "peer": experiment.CALLS}


def test_the_interval_is_as_sure_as_it_says_whatever_each_pair_weighs():
    for pairs in range(1, 12):
        refused = comparison._refused(pairs)
        outcomes = [
            sum(rank for rank, leans in enumerate(way, 1) if leans)
            for way in product((0, 1), repeat=pairs)
        ]
        wrong = 2 * sum(outcome < refused for outcome in outcomes) / len(outcomes)
        one_more = 2 * sum(outcome < refused + 1 for outcome in outcomes) / len(outcomes)
        assert wrong <= 1 - comparison.SURE < one_more


seconds = st.floats(1e-6, 1e3)
some_pairs = st.lists(st.tuples(seconds, seconds), min_size=1, max_size=20)


@pytest.mark.parametrize("pairs", [8, 9, 14])
def test_the_interval_is_what_too_few_outcomes_of_the_coin_refuse(pairs):
    chance = random.Random(pairs)
    found = Comparison.of([(chance.uniform(1, 1.2), 1.0) for _ in range(pairs)])
    low, high = found.interval
    for inside, outside in ((low * 1.0001, low / 1.0001), (high / 1.0001, high * 1.0001)):
        assert experiment.as_lopsided(found.ratios, inside) > 0.01
        assert experiment.as_lopsided(found.ratios, outside) <= 0.01
    assert experiment.as_lopsided([1.1] * pairs, 1.0) == 2 / 2**pairs


@pytest.mark.parametrize("truth", [0.8, 1.0, 1.3])
def test_a_drift_is_blamed_on_a_program_in_blocks_and_not_in_pairs(truth):
    off = {}
    for drift in (0.0, 0.25, 0.5):
        blocks, pairs = (
            way(experiment.SlowingMachine(drift, 18), truth, 1.0, 9)
            for way in (experiment.in_blocks, experiment.in_pairs)
        )
        ours, peer = (experiment.mean_of(blocks, name) for name in ("ours", "the peer"))
        found = Comparison.of(experiment.pairs_of(pairs))
        off[drift] = abs(ours / peer / truth - 1)
        assert found.interval[0] < truth < found.interval[1]
        assert found.ratio == pytest.approx(truth, rel=0.03)
    assert off[0.0] < 0.01
    assert 0.08 < off[0.25] < off[0.5]


@given(some_pairs)
def test_swapping_the_programs_turns_the_verdict_round(pairs):
    one, other = Comparison.of(pairs), Comparison.of([(peer, ours) for ours, peer in pairs])
    assert one.differs == other.differs
    low, high = other.interval
    assert one.interval == pytest.approx(
        (1 / high if high < math.inf else 0, 1 / low if low else math.inf)
    )


@given(some_pairs, st.floats(0.01, 100))
def test_a_program_so_many_times_slower_has_so_many_times_the_ratio(pairs, factor):
    one, other = (
        Comparison.of(pairs),
        Comparison.of([(factor * ours, peer) for ours, peer in pairs]),
    )
    assert other.ratio == pytest.approx(factor * one.ratio)
    assert other.interval == pytest.approx(tuple(factor * end for end in one.interval))


@given(some_pairs)
def test_low_ratio_high_and_the_interval_lie_in_order(pairs):
    one = Comparison.of(pairs)
    assert one.low <= one.ratio <= one.high
    low, high = one.interval
    assert low <= high
    assert (low == 0) == (len(pairs) < 8)


def test_what_it_says():
    nine = [(1.3 + 0.01 * i, 1.0) for i in range(9)]
    assert str(Comparison.of(nine)) == "ours takes 1.34 × the time of peer, 1.30–1.37 over 9 pairs"
    assert (
        Comparison.of(nine).line("small", "torch")
        == "small: ratio 1.34 (1.30–1.38 of 9 pairs) vs torch"
    )
    equal = Comparison.of([(1.0 + 0.02 * (i - 4), 1.0) for i in range(9)], ("A", "B"))
    assert str(equal) == "no difference shown between A and B: 1.00 ×, 0.93–1.07 over 9 pairs"
    assert (
        str(Comparison.of(nine[:7])) == "no verdict: 7 pairs of ours and peer are too few to tell"
    )


def test_a_difference_too_small_to_mean_anything_is_not_shown():
    assert not Comparison.of([(1.005, 1.0)] * 20).differs
    assert Comparison.of([(1.02, 1.0)] * 20).differs


@pytest.mark.parametrize("pairs", [[], [(1.0, 0.0)], [(math.nan, 1.0)], [(math.inf, 1.0)]])
def test_pairs_that_cannot_be_compared(pairs):
    with pytest.raises(ValueError, match=r"^pairs: "):
        Comparison.of(pairs)


def test_programs_run_as_often_as_asked_at_least_and_the_learners_chance_is_left_alone():
    calls = {"ours": 0, "peer": 0}

    def program(name: str) -> None:
        calls[name] += 1

    random.seed(0)
    expected = random.random()
    random.seed(0)
    result = compare(
        lambda: program("ours"), lambda: program("peer"), pairs=3, warmup=2, patience=0
    )
    assert random.random() == expected
    assert len(result.pairs) == 3
    assert min(calls.values()) >= 3 + 2


@pytest.mark.parametrize("times", [1, 30, 2000])
def test_a_short_program_and_a_very_long_one(machine, times):
    """Each is read over as many calls as it needs itself: one call of the short one lasts about as
    long as reading the clock.
    """
    made = machine(0)
    made.to_look = 5e-7

    def lasting(seconds: float) -> None:  # whatever the load
        made.now += seconds

    result = compare(lambda: lasting(times * 1e-6), lambda: lasting(1e-6))
    assert result.ratio == pytest.approx(times, rel=0.02)


def test_a_clock_with_coarse_ticks(monkeypatch):
    """As some systems have: it sees no time pass in what is short."""
    monkeypatch.setattr(comparison, "perf_counter", lambda: round(time.perf_counter(), 3))
    ratio = compare(lambda: sum(range(500)), lambda: sum(range(500)), pairs=3, patience=0).ratio
    assert 0 < ratio < math.inf


@pytest.mark.parametrize("digits", [3, 2])
def test_speeds_by_a_clock_with_coarse_ticks(monkeypatch, digits):
    for module in (comparison, roofs):
        monkeypatch.setattr(module, "perf_counter", lambda: round(time.perf_counter(), digits))
    assert 0 < roofs.fastest(lambda: None, 0.02) < math.inf


def test_a_speed_is_left_out_where_the_clock_saw_no_time_pass():
    assert math.isnan(Step(0, 8, 0.0).throughput)
    record = Record(Knobs(), "run")
    for index, seconds in enumerate((0.0, 0.004, 0.0)):
        record.add(Step(index, 8, seconds))
        record.close_window(0.01 * index)
    assert record.latest("throughput") == record.typical("throughput") == 2000
    assert [list(one) for one in record.points("throughput")] == [[2], [2000]]


def test_large_factors_are_written_in_people_s_digits():
    pairs = [(1067.77 + place, 1.0) for place in range(9)]
    assert "takes 1,070 × the time of peer, 1,070–1,080" in str(Comparison.of(pairs))


async def a_coroutine():
    """Never run."""


def a_generator():
    yield


@pytest.mark.parametrize("lazy", [a_coroutine, a_generator])
def test_what_is_made_and_not_run_cannot_be_compared(lazy):
    with pytest.raises(
        TypeError, match=r"^theirs: a call of it only makes a (coroutine|generator)"
    ):
        compare(lambda: None, lazy, names=("ours", "theirs"))


BUSY_LOOP = [sys.executable, "-c", "while True: sum(range(10_000))"]


@pytest.mark.parametrize("is_ours", [True, False])
def test_what_others_take_of_the_machine_is_told_from_what_we_take(is_ours):
    """A loop that one of our processes runs is ours; one without a parent is somebody else's."""
    code = f"import subprocess; loop = subprocess.Popen({BUSY_LOOP}); print(loop.pid, flush=True)"
    code += "; loop.wait()" if is_ours else ""
    starter = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    loop = psutil.Process(int(starter.stdout.readline()))
    try:
        if not is_ours:
            starter.wait()
        (all_before, ours_before), loop_before = load._used(), sum(loop.cpu_times()[:2])
        time.sleep(1.0)
        (by_all, by_us), by_loop = load._used(), sum(loop.cpu_times()[:2]) - loop_before
        assert by_all - all_before > 0.8 * by_loop - 0.05
        if is_ours:
            assert by_us - ours_before > 0.8 * by_loop - 0.05
        else:
            assert by_us - ours_before < 0.3 * by_loop + 0.05
    finally:
        loop.kill()
        starter.kill()
        starter.wait()
        starter.stdout.close()


def test_a_comparison_beside_others_says_so():
    result = Comparison.of([(1.0, 2.0)] * 9)
    assert "other programs" not in str(result)
    busy = replace(result, others=0.63)
    assert "other programs used 63 % of the machine" in str(busy)
    assert result.proved
    assert str(busy).startswith("not settled: ours took 0.50 ×")
    assert not busy.proved
    assert replace(Comparison.of([(20.0, 1.0)] * 9), others=0.63).proved  # no load does that
    equal = replace(Comparison.of([(1.0, 1.0)] * 9), others=0.63)
    assert str(equal).startswith("no difference shown")


def test_a_race_beside_others_proves_nothing():
    readings = Readings({"ours": [1.0] * 9, "peer": [2.0] * 9})
    assert compared(readings, "ours", "peer").proved
    assert break_even({64: compared(readings, "ours", "peer")}, "width") == (
        "surely faster from width 64 on"
    )
    readings.others = 0.5
    assert not compared(readings, "ours", "peer").proved
    assert break_even({64: compared(readings, "ours", "peer")}, "width") == (
        "at no width surely faster"
    )


@pytest.mark.alone
@pytest.mark.slow
def test_on_this_machine_under_load():
    """As on the made-up one, while two other programs want all of its cores."""

    def work(turns: int) -> int:
        return sum(range(turns))

    loops = [subprocess.Popen(BUSY_LOOP) for _ in range(2)]
    try:
        equal = [compare(lambda: work(5_000), lambda: work(5_000)).differs for _ in range(20)]
        slower = [compare(lambda: work(5_500), lambda: work(5_000)).differs for _ in range(20)]
    finally:
        for process in loops:
            process.kill()
            process.wait()
    assert sum(equal) <= 2  # of 20; benchmarks/measuring.py makes a hundred
    assert sum(slower) >= 17


# ---- the roofline ----

LIMITS = Roofline(bandwidth=((1000, 4e9), (100_000, 1e9)), flops_per_second=8e9, call_seconds=1e-6)


def an_operation(flops: int, bytes: int, pieces: int = 1) -> Operation:
    return Operation("made up", lambda: torch.ones(()), 1, flops, bytes, pieces)


def test_the_roof_is_the_slower_of_moving_and_computing():
    assert LIMITS.ridge == 8
    assert LIMITS.least_seconds(an_operation(1_000, 100_000)) == pytest.approx(1e-6 + 100e-6)
    assert LIMITS.least_seconds(an_operation(8_000_000, 100_000)) == pytest.approx(1e-6 + 1e-3)
    bounds = [
        LIMITS.bound(an_operation(*work)) for work in ((1, 1), (1, 100_000), (8_000_000, 100_000))
    ]
    assert bounds == ["calls", "bytes", "FLOPs"]


def test_each_piece_moves_at_the_speed_of_its_own_size():
    assert [LIMITS.bandwidth_at(size) for size in (10, 1000, 100_000, 10**9)] == [
        4e9,
        4e9,
        1e9,
        1e9,
    ]
    assert LIMITS.bandwidth_at(10_000) == pytest.approx(2.5e9)  # half-way on a logarithmic scale
    assert LIMITS.least_seconds(an_operation(0, 100_000, pieces=100)) == pytest.approx(
        100 * 1e-6 + 100_000 / 4e9
    )


def test_the_machines_limits_are_possible():
    limits = roofline(CPU, 1)
    assert all(
        later <= earlier
        for (_, earlier), (_, later) in zip(limits.bandwidth, limits.bandwidth[1:], strict=False)
    )
    assert 1e8 < limits.bytes_per_second < 1e13
    assert 1e8 < limits.flops_per_second < 1e16
    assert 1e-8 < limits.call_seconds < 1e-3


class CountBytes(TorchDispatchMode):
    """Adds up the bytes of all tensors that go into operations and come out."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.total += sum(
            leaf.nbytes
            for leaf in tree_leaves((args, kwargs, result))
            if isinstance(leaf, torch.Tensor)
        )
        return result


@pytest.mark.parametrize("n", [1, 3, 17])
@pytest.mark.parametrize("name", measuring.OPERATIONS)
def test_what_is_counted_is_what_happens(name, n):
    operation = measuring.OPERATIONS[name](n, CPU)
    with FlopCounterMode(display=False) as flops:
        result = operation.call()
    if name in ("matmul", "convolution"):
        assert operation.flops == flops.get_total_flops()
    assert len(result) == operation.samples == n
    with CountBytes() as counted:
        operation.call()
    if name == "embedding":  # of its table only the rows that are asked for
        rows = (
            (operation.bytes - 8 * n * measuring.LENGTH - result.nbytes) / 4 / measuring.DIMENSIONS
        )
        drawn = torch.randint(measuring.WORDS, (200, n * measuring.LENGTH))
        different = [len(words.unique()) for words in drawn]
        assert rows == pytest.approx(sum(different) / 200, rel=0.01)
    else:
        assert operation.bytes == counted.total


def test_only_the_size_matters_to_the_counts():
    for name, make in measuring.OPERATIONS.items():
        real, meta = make(5, CPU), make(5, torch.device("meta"))
        assert (real.flops, real.bytes, real.intensity) == (
            meta.flops,
            meta.bytes,
            meta.intensity,
        ), name


def one_all_reduce(n):
    """This rank's numbers, their sum, (bytes, FLOPs) counted, numbers a ring sends and adds."""
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(rank)
    own = torch.rand(n, measuring.PIXELS)
    torch.manual_seed(rank)
    operation = measuring.all_reduce(n, world)
    chunks = [len(chunk) for chunk in own.flatten().tensor_split(world)]
    adding, passing = ddp.reduce_scatter_turns(rank, world), ddp.all_gather_turns(rank, world)
    sent = sum(chunks[out] for out, _ in adding + passing)
    added = sum(chunks[into] for _, into in adding)
    return own, operation.call(), (operation.bytes, operation.flops), (sent, added)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_an_all_reduce_sends_and_adds_what_a_ring_does(world):
    heard = [value for _, value in launch(one_all_reduce, world, 3)]
    total = sum(own for own, *_ in heard)
    for _, result, counted, (sent, added) in heard:
        torch.testing.assert_close(result, total)
        assert counted == (4 * sent, added)
    two, four = measuring.all_reduce(5, 2), measuring.all_reduce(5, 4)
    assert two.intensity == four.intensity == measuring.element_wise(5, CPU).intensity


def test_all_reduces_are_timed_between_two_processes():
    seconds = experiment.all_reduce_seconds((1, 4096), readings=2, calls=1)
    assert list(seconds) == [1, 4096]
    # so far apart that load cannot swap them
    assert 0 < seconds[1] < seconds[4096] < 10


def test_every_operation_is_timed_at_every_size(monkeypatch):
    monkeypatch.setattr(experiment, "all_reduce_seconds", lambda sizes: dict.fromkeys(sizes, 0.5))
    timed = experiment.timed_operations((1, 8))
    assert list(timed) == [*measuring.OPERATIONS, "all-reduce"]
    for name, by_size in timed.items():
        assert [operation.samples for operation, _ in by_size.values()] == [1, 8], name
        assert all(0 < seconds < 1 for _, seconds in by_size.values()), name


@given(st.integers(1, 9), st.integers(1, 30), st.integers(1, 12), st.integers(0, 2**31))
def test_three_ways_to_the_same_sums(n, inputs, outputs, seed):
    generator = torch.Generator().manual_seed(seed)
    x, weight = (
        torch.rand(n, inputs, generator=generator),
        torch.rand(inputs, outputs, generator=generator),
    )
    for way in (measuring.python_loop, measuring.one_by_one):
        torch.testing.assert_close(way(x, weight), measuring.batched(x, weight))


# ---- the run ----


@pytest.mark.parametrize("operation", measuring.OPERATIONS)
@pytest.mark.parametrize("way", ["batched", "one by one"])
def test_a_step_is_a_reading(operation, way):
    before = torch.get_num_threads()
    steps = experiment.run(Knobs(operation=operation, way=way, batch_size=4))
    for step in islice(steps, 3):
        batches = step.samples / 4
        assert step.seconds == pytest.approx(batches * step.metrics["seconds_a_batch"])
        assert 0 < step.metrics["share_of_limit"] < 5
        assert torch.get_num_threads() == before
    steps.close()


def test_only_the_mistake_makes_data_inside_the_clock(monkeypatch):
    made = []

    def making(n, device):
        made.append(n)
        return measuring.element_wise(n, device)

    monkeypatch.setitem(measuring.OPERATIONS, "element-wise", making)
    for mistake, times in (("none", 1), ("one call", 1), ("data in the clock", 1 + 3)):
        made.clear()
        list(islice(experiment.run(Knobs(operation="element-wise", mistake=mistake)), 3))
        assert len(made) == times


def test_batching_is_predicted_to_gain_where_weights_are_shared(monkeypatch):
    monkeypatch.setattr(experiment, "roofline", lambda device, cores: LIMITS)

    def predicted(**knobs) -> float:
        return experiment.most_samples_per_second(Knobs(**knobs))

    assert predicted(operation="matmul", batch_size=256) > 10 * predicted(
        operation="matmul", batch_size=1
    )
    assert predicted(operation="element-wise", batch_size=256) < 2 * predicted(
        operation="element-wise", batch_size=16
    )
    assert predicted(batch_size=64, way="one by one") == pytest.approx(predicted(batch_size=1))


def test_the_profilers_trace_is_a_timeline():
    x = torch.ones(8, 8)
    spans = experiment.spans_of(lambda: (x @ x).relu())
    assert [span.name for span in spans] == ["aten::matmul", "aten::relu"]
    assert all(0 <= span.start <= span.end for span in spans)
    assert spans[0].end <= spans[1].start


def test_caches_are_read_from_linux_and_left_out_elsewhere(tmp_path):
    assert experiment.caches(tmp_path / "not there") == {}
    there = [("Unified", "3", "30720K"), ("Data", "1", "48K"), ("Instruction", "1", "32K")]
    for place, facts in enumerate([*there, ("Unified", "2", "")]):
        index = tmp_path / f"index{place}"
        index.mkdir()
        for name, fact in zip(("type", "level", "size"), facts, strict=True):
            (index / name).write_text(fact + "\n")
    (tmp_path / "index9").mkdir()
    assert experiment.caches(tmp_path) == {"L1": 48 * 2**10, "L3": 30 * 2**20}
    assert list(experiment.caches(tmp_path)) == ["L1", "L3"]


def test_a_wrong_knob_is_one_line():
    with pytest.raises(KnobError, match=r"^batch_size: ") as error:
        Knobs(batch_size=0)
    assert "\n" not in str(error.value)
