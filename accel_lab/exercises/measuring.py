"""Exercises of chapter 01: pairs that can be trusted, what they say, and where an operation stands
below the roof.
"""

from __future__ import annotations

from statistics import median

from accel_lab.exercises import Exercise, Wrong

# ---- diagnose: the order of what is timed ----


def measure_pairs_cases(rng):
    for pairs in (1, rng.randint(2, 4), rng.randint(5, 9)):
        yield {
            "pairs": pairs,
            "ours": rng.uniform(1, 2),
            "peer": rng.uniform(1, 2),
            "start_up": rng.uniform(3, 9),
            "drift": rng.uniform(0.01, 0.05),
        }


def measure_pairs_drive(answer, case):
    """On a made-up machine. Its clock moves when a program runs; the first run of each costs more,
    and the machine grows slower with every run.
    """
    now, runs = [0.0], []

    def program(name):
        def run():
            start_up = 0 if name in runs else case["start_up"]
            now[0] += case[name] * (1 + case["drift"] * len(runs)) + start_up
            runs.append(name)

        return run

    measured = answer(program("ours"), program("peer"), lambda: now[0], case["pairs"])
    seconds = {
        f"pair {number}, seconds of {who}": float(one)
        for number, pair in enumerate(measured)
        for who, one in zip(("ours", "the peer"), pair, strict=True)
    }
    return {"number of pairs": len(measured), **seconds, "what ran, in turn": " ".join(runs)}


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


def _one_after_the_other(ours, peer, clock, pairs):
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


MEASURE_PAIRS = Exercise(
    name="measure_pairs",
    points=3,
    task="""`measure_pairs(ours, peer, clock, pairs)` times two programs and returns a list of
`[seconds of ours, seconds of the peer]`. `clock()` returns seconds, and the machine grows slower
while it works. The function below was written in a hurry. Repair it, so that

- each program runs once before anything is timed, ours first,
- the two are timed in turn, and the one that went second in a pair goes first in the next; in the
  first pair that is ours.""",
    cases=measure_pairs_cases,
    drive=measure_pairs_drive,
    reference=measure_pairs,
    reasoning="""Three things can make two programs look different though they are not: the first
call is slower than all others, the machine drifts, and whoever goes second finds the caches as the
first has left them. The warm-up removes the first. Timing in pairs keeps both readings of a pair
close in time, so that they share the drift. And swapping the order gives each program the second
place equally often: what it gains or loses by that cancels over the pairs.""",
    wrong=(
        Wrong.changed(
            measure_pairs,
            "    ours(), peer()\n",
            "",
            "The first run of a program pays for starting up. Run each once before the first pair, "
            "off the clock.",
        ),
        Wrong.changed(
            measure_pairs,
            "    ours(), peer()\n    measured = []\n    for index in range(pairs):\n",
            "    measured = []\n    for index in range(pairs):\n        ours(), peer()\n",
            "Both programs are run once more before every pair. Warm up once, before the loop.",
        ),
        Wrong.changed(
            measure_pairs,
            "[seconds[ours], seconds[peer]]",
            "list(seconds.values())",
            "The seconds are listed in the order of running. Where the peer went first, ours still "
            "comes first in the list.",
        ),
        Wrong.changed(
            measure_pairs,
            "ours(), peer()",
            "peer(), ours()",
            "You warm up the peer first. Ours is to run first, then the peer.",
        ),
        Wrong.changed(
            measure_pairs,
            "(ours, peer) if index % 2 == 0 else (peer, ours)",
            "(ours, peer)",
            "Ours always goes first, so the peer meets a slower machine each time. Swap the order "
            "from pair to pair.",
        ),
        Wrong.changed(
            measure_pairs,
            "index % 2 == 0",
            "index == 0",
            "The order is swapped once and never swapped back. It has to change with every pair: "
            "ours first in pairs 0, 2, 4, …",
        ),
        Wrong.changed(
            measure_pairs,
            "index % 2 == 0",
            "index % 2",
            "The order alternates, but the peer goes first in the first pair. Start with ours.",
        ),
        Wrong(
            _one_after_the_other,
            "You time all of one program, then all of the other, so the slowdown of the machine "
            "looks like a difference between them. Take turns.",
        ),
    ),
)


# ---- build: what pairs say ----


def paired_speedup_cases(rng):
    def pairs(factor, count, ties=0):
        pace = [1.5**index * rng.uniform(0.9, 1.1) for index in range(count)]
        rng.shuffle(pace)
        peer = [seconds * rng.uniform(0.95, 1.05) for seconds in pace]
        ours = [seconds * factor * rng.choice((0.9, 1.0, 1.25)) for seconds in pace]
        for place in rng.sample(range(count), ties):
            ours[place] = peer[place]
        return {"ours": ours, "peer": peer}

    faster, slower = rng.uniform(0.5, 0.7), rng.uniform(1.3, 1.6)
    yield pairs(faster, 9)
    yield pairs(slower, 9)
    for factor in (faster, slower):
        yield pairs(factor, 2 * rng.randint(3, 5))
        yield pairs(factor, rng.randint(7, 9), ties=2)
    yield pairs(1.0, 9)


def paired_speedup_drive(answer, case):
    result = answer(case["ours"], case["peer"])
    return {"speedup": float(result["speedup"]), "agreeing": int(result["agreeing"])}


def paired_speedup(ours, peer):
    speedups = [theirs / own for own, theirs in zip(ours, peer, strict=True)]
    wins, losses = sum(s > 1 for s in speedups), sum(s < 1 for s in speedups)
    return {"speedup": median(speedups), "agreeing": max(wins, losses)}


def _ratio_of_medians(ours, peer):
    return {**paired_speedup(ours, peer), "speedup": median(peer) / median(ours)}


def _ratio_of_sums(ours, peer):
    return {**paired_speedup(ours, peer), "speedup": sum(peer) / sum(ours)}


PAIRED_SPEEDUP = Exercise(
    name="paired_speedup",
    points=2,
    task="""`paired_speedup(ours, peer)` gets two lists of seconds, measured in pairs: `ours[i]` and
`peer[i]` belong together. Return a dict:

- `speedup`: the median, over the pairs, of how many times as fast ours is (above 1: ours is
  faster),
- `agreeing`: how many pairs lean the way that most of them lean, whichever way that is. A pair of
  equal times leans neither way.""",
    cases=paired_speedup_cases,
    drive=paired_speedup_drive,
    reference=paired_speedup,
    reasoning="""The two readings of a pair share the machine's state of that moment, so their
*ratio* is free of it; two separate medians throw that away. The median of the ratios shrugs off
the few pairs that something else disturbed. A pair of equal times says nothing about who is
faster, so it counts for neither side.""",
    wrong=(
        Wrong(
            _ratio_of_medians,
            "The median of each list forgets which seconds belong together. First the ratios, then "
            "their median.",
        ),
        Wrong(
            _ratio_of_sums,
            "A ratio of sums, or of means, is decided by the slowest pairs, and forgets which "
            "seconds belong together. First the ratios, then their median.",
        ),
        Wrong.changed(
            paired_speedup,
            "median(speedups)",
            "sum(speedups) / len(speedups)",
            "One disturbed pair can move a mean by any amount. Take the median of the ratios.",
        ),
        Wrong.changed(
            paired_speedup,
            "median(speedups)",
            "sorted(speedups)[len(speedups) // 2]",
            "With an even number of pairs no ratio is in the middle: the median is the mean of the "
            "two middle ones. `statistics.median` knows that.",
        ),
        Wrong.changed(
            paired_speedup,
            '"speedup": median(speedups)',
            '"speedup": 1 / median(speedups)',
            "This is our time over the peer's. A speed-up is the peer's time over ours.",
            also=(lambda ours, peer: paired_speedup(peer, ours),),
        ),
        Wrong.changed(
            paired_speedup,
            "max(wins, losses)",
            "wins",
            "These are the pairs that ours won. If most lean the other way, count those instead.",
        ),
        Wrong.changed(
            paired_speedup,
            "max(wins, losses)",
            "abs(wins - losses)",
            "That is by how many pairs one side is ahead. Count the pairs on the larger side.",
        ),
        Wrong.changed(
            paired_speedup,
            "max(wins, losses)",
            "max(sum(s >= 1 for s in speedups), sum(s <= 1 for s in speedups))",
            "A pair of equal times was counted. It leans neither way: count only ratios above 1, "
            "and only ratios below 1.",
            also=(
                lambda ours, peer: {
                    **paired_speedup(ours, peer),
                    "agreeing": max(
                        wins := sum(a < b for a, b in zip(ours, peer, strict=True)),
                        len(ours) - wins,
                    ),
                },
            ),
        ),
    ),
)


# ---- build: the arithmetic intensity of a layer ----


def intensity_of_linear_cases(rng):
    sizes = rng.sample((2, 4, 8), 3)
    for samples, size in zip((1, rng.randint(2, 64), rng.randint(65, 4096)), sizes, strict=True):
        yield {
            "samples": samples,
            "inputs": rng.randint(8, 2048),
            "outputs": rng.randint(8, 2048),
            "bytes_a_number": size,
        }


def intensity_of_linear_drive(answer, case):
    return float(answer(case["samples"], case["inputs"], case["outputs"], case["bytes_a_number"]))


def intensity_of_linear(samples, inputs, outputs, bytes_a_number):
    flops = 2 * samples * inputs * outputs
    moved = samples * inputs + inputs * outputs + samples * outputs
    return flops / (bytes_a_number * moved)


INTENSITY_OF_LINEAR = Exercise(
    name="intensity_of_linear",
    points=2,
    task="""`intensity_of_linear(samples, inputs, outputs, bytes_a_number)`: the arithmetic
intensity, in FLOP per byte, of a linear layer without bias, `x [samples, inputs] @ weight [inputs,
outputs]`. A multiplication and an addition are two FLOPs. Count the least that has to move: each
input once, the weights once for the whole batch, the result once.""",
    cases=intensity_of_linear_cases,
    drive=intensity_of_linear_drive,
    reference=intensity_of_linear,
    reasoning="""Each of the samples · outputs results is a sum of `inputs` products: one
multiplication and one addition each, 2 · samples · inputs · outputs FLOPs. The bytes are those of
three matrices: x goes in, the weights go in once for the whole batch, the result comes out. With
more samples the weights are shared by more work, and the intensity grows.""",
    wrong=(
        Wrong.changed(
            intensity_of_linear,
            "flops = 2 * samples",
            "flops = samples",
            "Each product is also added to a sum: two FLOPs for each weight and sample.",
        ),
        Wrong.changed(
            intensity_of_linear,
            "inputs * outputs + samples",
            "samples * inputs * outputs + samples",
            "The weights are read once for the whole batch: that is what batching is for.",
        ),
        Wrong.changed(
            intensity_of_linear,
            " + samples * outputs",
            "",
            "The result has to be written, too: samples × outputs numbers.",
        ),
        Wrong.changed(
            intensity_of_linear,
            " + inputs * outputs",
            "",
            "The weights have to be read, too: inputs × outputs numbers.",
        ),
        Wrong.changed(
            intensity_of_linear,
            "samples * inputs + inputs",
            "inputs",
            "The inputs have to be read, too: samples × inputs numbers.",
        ),
        Wrong.changed(
            intensity_of_linear,
            "flops / (bytes_a_number * moved)",
            "bytes_a_number * moved / flops",
            "That is bytes per FLOP. Intensity is FLOPs over bytes.",
        ),
        Wrong.changed(
            intensity_of_linear,
            "bytes_a_number * moved",
            "moved",
            "That is FLOP per number. How many bytes does a number have?",
        ),
        Wrong.changed(
            intensity_of_linear,
            "bytes_a_number * moved",
            "4 * moved",
            "You take 4 bytes for every number. A number has `bytes_a_number` bytes.",
        ),
    ),
    tolerance=1e-9,
)
