"""Exercises of chapter 01: pairs that can be trusted, what they say, and where an operation stands
below the roof.
"""

from __future__ import annotations

from statistics import mean, median

from accel_lab.exercises import Exercise, Wrong

# ---- 1: diagnose ----


def measure_pairs(ours, peer, clock, pairs):
    ours(), peer()
    measured = []
    for index in range(pairs):
        seconds = {}
        for program in (ours, peer) if index % 2 == 0 else (peer, ours):
            start = clock()
            program()
            seconds[program] = clock() - start
        measured.append([seconds[ours], seconds[peer]])
    return measured


def without_warm_up(ours, peer, clock, pairs):
    measured = []
    for index in range(pairs):
        seconds = {}
        for program in (ours, peer) if index % 2 == 0 else (peer, ours):
            start = clock()
            program()
            seconds[program] = clock() - start
        measured.append([seconds[ours], seconds[peer]])
    return measured


def one_after_the_other(ours, peer, clock, pairs):
    columns = []
    for program in (ours, peer):
        program()
        column = []
        for _ in range(pairs):
            start = clock()
            program()
            column.append(clock() - start)
        columns.append(column)
    return [list(pair) for pair in zip(*columns, strict=True)]


def always_ours_first(ours, peer, clock, pairs):
    ours(), peer()
    measured = []
    for _ in range(pairs):
        start = clock()
        ours()
        middle = clock()
        peer()
        measured.append([middle - start, clock() - middle])
    return measured


def _machines(rng):
    for pairs in (1, rng.randint(2, 4), rng.randint(5, 9)):
        yield {
            "pairs": pairs,
            "ours": rng.uniform(1, 2),
            "peer": rng.uniform(1, 2),
            "start_up": rng.uniform(3, 9),
            "drift": rng.uniform(0.01, 0.05),
        }


def _on_a_made_up_machine(answer, case):
    """Its clock moves when a program runs; the first run of each costs more, and the machine grows
    slower with every run.
    """
    now, runs, started = [0.0], [0], set()

    def program(name):
        def run():
            seconds = case[name] * (1 + case["drift"] * runs[0]) + (
                0 if name in started else case["start_up"]
            )
            started.add(name)
            runs[0] += 1
            now[0] += seconds

        return run

    return [
        list(pair)
        for pair in answer(program("ours"), program("peer"), lambda: now[0], case["pairs"])
    ]


repair_the_clock = Exercise(
    name="measure_pairs",
    points=3,
    task="""`measure_pairs(ours, peer, clock, pairs)` times two programs and returns a list of
`[seconds of ours, seconds of the peer]`. `clock()` returns seconds, and the machine grows slower
while it works. The function below was written in a hurry. Repair it, so that

- each program runs once before anything is timed, ours first,
- the two are timed in turn, and whoever went second in one pair goes first in the next; in the
  first pair that is ours.""",
    cases=_machines,
    drive=_on_a_made_up_machine,
    reference=measure_pairs,
    wrong=(
        Wrong(
            without_warm_up,
            "The first run of a program pays for starting up. Run each once before the first pair, "
            "off the clock.",
        ),
        Wrong(
            one_after_the_other,
            "Timing all of one and then all of the other takes what the machine did meanwhile for "
            "a difference. Take turns.",
        ),
        Wrong(
            always_ours_first,
            "Whoever always goes second meets a slower machine each time. Swap the order from pair "
            "to pair.",
        ),
    ),
)


# ---- 2: build ----


def paired_speedup(ours, peer):
    speedups = [theirs / own for own, theirs in zip(ours, peer, strict=True)]
    return {
        "speedup": median(speedups),
        "agreeing": max(sum(s > 1 for s in speedups), sum(s < 1 for s in speedups)),
    }


def _counted(ours, peer):
    return paired_speedup(ours, peer)["agreeing"]


def ratio_of_medians(ours, peer):
    return {"speedup": median(peer) / median(ours), "agreeing": _counted(ours, peer)}


def mean_speedup(ours, peer):
    return {
        "speedup": mean(b / a for a, b in zip(ours, peer, strict=True)),
        "agreeing": _counted(ours, peer),
    }


def upside_down(ours, peer):
    return {"speedup": 1 / paired_speedup(ours, peer)["speedup"], "agreeing": _counted(ours, peer)}


def only_wins(ours, peer):
    right = paired_speedup(ours, peer)
    return {**right, "agreeing": sum(a < b for a, b in zip(ours, peer, strict=True))}


def _drifting_pairs(rng):
    for factor in (rng.uniform(0.6, 0.8), rng.uniform(1.2, 1.6), 1.0):
        pace = [1.5**index * rng.uniform(0.9, 1.1) for index in range(9)]
        rng.shuffle(pace)
        peer = [seconds * rng.uniform(0.95, 1.05) for seconds in pace]
        ours = [seconds * factor * rng.choice((0.9, 1.0, 1.3)) for seconds in pace]
        yield {"ours": ours, "peer": peer}


def _of_two_lists(answer, case):
    result = answer(case["ours"], case["peer"])
    return {"speedup": float(result["speedup"]), "agreeing": int(result["agreeing"])}


verdict_of_pairs = Exercise(
    name="paired_speedup",
    points=2,
    task="""`paired_speedup(ours, peer)` gets two lists of seconds, measured in pairs: `ours[i]` and
`peer[i]` belong together. Return a dict:

- `speedup`: the median, over the pairs, of how many times as fast ours is (above 1: ours is
  faster),
- `agreeing`: how many pairs lean the way that most of them lean, whichever way that is. A pair of
  equal times leans neither way.""",
    cases=_drifting_pairs,
    drive=_of_two_lists,
    reference=paired_speedup,
    wrong=(
        Wrong(
            ratio_of_medians,
            "The median of each list forgets which seconds belong together. First the ratios, then "
            "their median.",
        ),
        Wrong(
            mean_speedup,
            "One disturbed pair moves a mean as far as it likes. Take the median of the ratios.",
        ),
        Wrong(
            upside_down,
            "This is our time over the peer's. A speed-up is the peer's time over ours.",
        ),
        Wrong(
            only_wins,
            "These are the pairs that ours won. If most lean the other way, those are the ones "
            "that agree.",
        ),
    ),
)


# ---- 3: build ----


def intensity_of_linear(samples, inputs, outputs, bytes_a_number):
    flops = 2 * samples * inputs * outputs
    moved = samples * inputs + inputs * outputs + samples * outputs
    return flops / (bytes_a_number * moved)


def without_the_additions(samples, inputs, outputs, bytes_a_number):
    return intensity_of_linear(samples, inputs, outputs, bytes_a_number) / 2


def weights_for_each_sample(samples, inputs, outputs, bytes_a_number):
    moved = samples * (inputs + inputs * outputs + outputs)
    return 2 * samples * inputs * outputs / (bytes_a_number * moved)


def without_the_result(samples, inputs, outputs, bytes_a_number):
    return 2 * samples * inputs * outputs / (bytes_a_number * (samples * inputs + inputs * outputs))


def numbers_for_bytes(samples, inputs, outputs, bytes_a_number):
    return intensity_of_linear(samples, inputs, outputs, 1)


def _layers(rng):
    for samples in (1, rng.randint(2, 64), rng.randint(65, 4096)):
        yield {
            "samples": samples,
            "inputs": rng.randint(8, 2048),
            "outputs": rng.randint(8, 2048),
            "bytes_a_number": rng.choice((2, 4, 8)),
        }


def _one_layer(answer, case):
    return float(answer(case["samples"], case["inputs"], case["outputs"], case["bytes_a_number"]))


place_below_the_roof = Exercise(
    name="intensity_of_linear",
    points=2,
    task="""`intensity_of_linear(samples, inputs, outputs, bytes_a_number)`: the arithmetic
intensity, in FLOP per byte, of a linear layer without bias, `x [samples, inputs] @ weight [inputs,
outputs]`. A multiplication and an addition are two FLOPs. Count the least that has to move: each
input once, the weights once for the whole batch, the result once.""",
    cases=_layers,
    drive=_one_layer,
    reference=intensity_of_linear,
    wrong=(
        Wrong(
            without_the_additions,
            "Each product is also added to a sum: two FLOPs for each weight and sample.",
        ),
        Wrong(
            weights_for_each_sample,
            "The weights are read once for the whole batch: that is what batching is for.",
        ),
        Wrong(without_the_result, "The result has to be written, too: samples × outputs numbers."),
        Wrong(numbers_for_bytes, "That is FLOP per number. How many bytes is a number?"),
    ),
    tolerance=1e-9,
)
