# ---
# jupyter:
#   kernelspec:
#     name: python3
#     display_name: Python 3
# ---

# %% [markdown]
# # 01 · Measuring honestly
#
# ## 1. The question
#
# Every chapter of this course ends in a verdict: faster, or not, on the machine in front of you. So
# the first thing to learn is how to tell.
#
# It looks easy: read the clock, run the program, read the clock again. From that, people conclude
#
# > *Ours is 1.3 times as fast.*
#
# and you will read, about what this chapter uses as its examples,
#
# > *Vector and matrix operations accelerate.*
# >
# > *Mini-batches are an inference technique: everything is computed at once.*

# %% [markdown]
# Three statements, and two questions behind them. **Is it surely faster?** And **how much faster
# could it be?** This chapter gives you an instrument for each: the *paired comparison* and the
# *roofline*. (Words of the field are in the glossary, at the end of [Start
# here](00_start_here.ipynb).)

# %% jupyter={"source_hidden": true}
from functools import partial
from itertools import product

import torch
from torch.utils.flop_counter import FlopCounterMode

from accel_lab import measuring
from accel_lab.experiments import measuring as experiment
from accel_lab.workbench import chapter as lab

# %% [markdown]
# The next cell holds the settings of this chapter. Change one, as in `knobs = {"cores": 2}`, and
# run the notebook again: everything below follows.

# %% tags=["parameters"]
knobs = {}

# %%
base = lab.settings(experiment.Knobs, knobs, device="cpu")
cpu = torch.device("cpu")
limits = lab.roofline(cpu, base.cores)  # this machine's limits, which part 4 explains

# %% [markdown]
# ## 2. Predict
#
# Four guesses. A wrong one costs nothing, and you may skip them.
#
# The first is about a program and *itself*: the same function, timed once as "ours" and once as
# "the peer". We do that 40 times.

# %%
guess_alarms = lab.Prediction(
    "In how many of 40 comparisons does a program differ from itself by more than 5 %?",
    low=0.5,
    high=40,
    default=2.0,
    unit="of 40",
)
guess_alarms

# %% [markdown]
# Two are about batches. 256 samples go through an operation, in one call, or in 256 calls.

# %%
guess_matmul = lab.Prediction(
    "A linear layer (matmul): how many times the samples per second, in one call?",
    low=0.5,
    high=300,
    default=2.0,
    unit="×",
)
guess_matmul

# %%
guess_table = lab.Prediction(
    "A look-up of word vectors (embedding): how many times the samples per second, in one call?",
    low=0.5,
    high=300,
    default=2.0,
    unit="×",
)
guess_table

# %% [markdown]
# And one is about communication. In an *all-reduce* two processes add up their numbers, as in
# training with several GPUs. It makes one addition for every 8 bytes; doubling numbers, element by
# element, makes one multiplication for every 8 bytes.

# %%
guess_sum = lab.Prediction(
    "Moving a byte between two processes: how many times slower than within one?",
    low=0.1,
    high=300,
    default=1.0,
    unit="×",
)
guess_sum

# %% [markdown]
# ## 3. See
#
# One operation is called again and again. Press **Start**, then move **batch size** from 1 to 256.
# The dashed curve is drawn before anything runs: it is what this machine's limits, its *roofline*,
# allow. The dashed orange run is one sample at a time.
#
# Then choose another **operation**. Which of them climb, and where do they stop?

# %%
share = lab.Curve(
    "share_of_limit",
    "share of what the roofline allows",
    limit=(1.0, "the roofline"),
    summary="median",
)
climb = lab.Sweep(
    "batch_size",
    "throughput",
    "samples/s",
    predicted=experiment.most_samples_per_second,
    formula="the roofline allows",
    log=True,
)

# %%
panel = lab.Panel(
    experiment.run,
    base,
    [share, climb],
    controls=["operation", "batch_size", "way"],
    baselines={f"a batch of {base.batch_size}": {"batch_size": base.batch_size, "way": "batched"}},
    tour=[base.turned(batch_size=size) for size in (16, 64, 256)],
    seconds=1.0,
)
panel

# %% [markdown]
# For *matmul* the curve rises, bends, and lies flat. So there are two different limits, and a place
# where one takes over from the other. To understand that picture we need readings that can be
# trusted: back to the clock.
#
# ## 4. Build
#
# ### A clock, step by step
#
# Here is a program, and ten readings of it, the very first ones:

# %%
signal = torch.rand(64, 784)


def program():
    with lab.threads(base.cores):
        return torch.fft.rfft(signal).abs().sum()


early = [lab.reading(program) for _ in range(10)]
print("microseconds:", *(f"{seconds * 1e6:.0f}" for seconds in early))

# %% [markdown]
# In a fresh kernel the first reading is by far the longest: libraries are loaded, memory is fetched
# from the operating system, caches are empty. **Warm-up** takes that away. What remains after it?
# The same program, 600 times:

# %%
readings = [lab.reading(program) * 1e6 for _ in range(600)]
in_order = sorted(readings)
fast, typical, slow = in_order[0], in_order[300], in_order[-1]
print(
    f"fastest {fast:.0f}, median {typical:.0f}, mean {sum(readings) / 600:.0f}, slowest {slow:.0f}"
)

# %% jupyter={"source_hidden": true} tags=["hero"]
picture, (left, right) = lab.figure.axes(9, 2.8, columns=2)
left.plot(readings, ".", color=lab.figure.BLUE, markersize=3)
left.set(xlabel="reading", ylabel="microseconds", yscale="log")
right.hist(readings, bins=60, range=(fast, in_order[540]), color=lab.figure.BLUE)
right.set(xlabel="microseconds (the slowest tenth left out)", ylabel="readings")
picture

# %% [markdown]
# There is a floor, and above it a long tail, often with several humps. Nothing makes a program
# faster than it is, and everything else on the machine can make it slower. So the readings are not
# a bell curve around a true value, and their **mean** belongs to the tail as much as to the
# program. Within moments, the *fastest* of a few readings is steady.

# %% [markdown]
# But the floor itself moves: clocks change their pace, other programs come and go, for seconds at a
# time. A reading of *ours* now and one of *the peer* in a minute may have met two different
# machines. Hence **pairs**: time both within moments, take the ratio, and do it again.
#
# Here is a *simulated* machine that becomes slower while two programs are timed, nine readings
# each. Move **drift**, by how many percent it is slower in the end, and **true ratio**:


# %% jupyter={"source_hidden": true}
def two_ways(drift=30, true_ratio=1.0):
    taken = {}
    for name, way in {"in blocks": experiment.in_blocks, "in pairs": experiment.in_pairs}.items():
        machine = experiment.SlowingMachine(drift / 100, readings=18)
        taken[name] = way(machine, true_ratio, 1.0, pairs=9)
    ours, peer = (experiment.mean_of(taken["in blocks"], name) for name in ("ours", "the peer"))
    compared = lab.Comparison.of(experiment.pairs_of(taken["in pairs"]))
    found = {"in blocks": (ours / peer, None), "in pairs": (compared.ratio, compared.interval)}
    ends = {"seconds": (0.7, 2.1), "ratios": (0.5, 1.5)}
    return lab.motion.draw_two_ways(taken, found, true_ratio, **ends)


lab.Sliders(two_ways, drift=(0, 50, 5), true_ratio=(0.8, 1.3, 0.05))

# %% [markdown]
# In blocks, the drift is blamed on the peer, which came second. In pairs, both programs meet almost
# the same machine, and the ratio stays. What is left of the drift, from one reading to the next,
# must not always hit the same program. So a **coin** decides who goes first:

# %%
lab.show_source(experiment.in_pairs, docstring=False)

# %% [markdown]
# `compare`, our instrument, does the same with real programs. Inside each pair it alternates them a
# few times (A B B A …), and takes the fastest reading of each.
#
# The coin has a second use: it says how sure we are. Between equal programs it alone decides which
# way a pair leans, *regardless of the load*. Nine pairs have 2⁹ = 512 outcomes, all equally likely,
# and in only 2 of them all nine lean the same way, all heads or all tails: 0.4 %.

# %% [markdown]
# The same holds for every **candidate** for the true ratio: if it is right, the pairs lie above or
# below it by the coin. If fewer than 1 in 100 outcomes would be as lopsided as the pairs we have,
# the candidate is *refused*. The candidates that are not refused are the **interval**. *Lopsided*
# counts far pairs more than near ones: pairs are ranked by their distance from the candidate, and
# the ranks of each side added up (*Wilcoxon's signed-rank test*).
#
# Try some candidates, on nine pairs from the simulated machine, where ours takes 1.1 times as long:


# %%
def try_out(candidate=1.06):
    share_of = partial(experiment.as_lopsided, nine.ratios)
    return lab.motion.draw_refusals(nine, share_of, candidate=candidate, ends=(1.0, 1.2))


machine = experiment.SlowingMachine(drift=0.3, readings=18)
nine = lab.Comparison.of(experiment.pairs_of(experiment.in_pairs(machine, 1.1, 1.0, pairs=9)))
lab.Sliders(try_out, candidate=(1.0, 1.2, 0.005))

# %% [markdown]
# The interval can be had without trying out: sort the means of every two log-ratios, and leave out
# as many at each end as the coin's outcomes say. `_refused` counts these, and `sure` is 0.99:

# %%
lab.show_source(lab.Comparison.interval.fget, docstring=False)

# %% [markdown]
# Now the instrument. First a program and itself, then one with a tenth more to do:


# %%
def work(turns):
    return lambda: sum(range(turns))


print(lab.compare(work(5_000), work(5_000), names=("a program", "itself")))
print(lab.compare(work(5_500), work(5_000), names=("a tenth more", "the program")))

# %% [markdown]
# When the pairs do not agree it says *no difference shown*. That does not mean "they are equal": it
# is what this many pairs can tell, and the interval says what is still possible.

# %% [markdown]
# ### A limit, step by step
#
# Now the second question. An operation moves bytes and does arithmetic on them. However well it is
# written, it lasts at least
#
# $$\text{seconds} \;\ge\; \text{calling it} + \max\left(\frac{\text{bytes}}{\text{bytes/s}},\;
# \frac{\text{FLOPs}}{\text{FLOP/s}}\right)$$
#
# and the three constants belong to the machine. They were measured at the top of this notebook:

# %%
smallest = "the smallest operation there is: flipping one number's sign"
print(f"{limits.flops_per_second / 1e9:8.1f} GFLOP/s, multiplying matrices")
largest, caches = limits.bandwidth[-1][0], experiment.caches()
source = "memory" if max(caches.values(), default=0) < largest else "memory or the last cache"
print(f"{limits.bytes_per_second / 1e9:8.1f} GB/s, from {source} ({largest / 2**20:.0f} MiB)")
print(f"{limits.bandwidth[0][1] / 1e9:8.1f} GB/s, from cache")
print(f"{limits.call_seconds * 1e6:8.2f} µs to call {smallest}")
for name, size in caches.items():
    print(f"{size / 2**20:8.2f} MiB in the cache {name}")

# %% jupyter={"source_hidden": true}
bandwidth = {size / 2**20: speed / 1e9 for size, speed in limits.bandwidth}
picture, (axes,) = lab.figure.axes(8, 2.8)
lab.figure.powers_of_two(axes, "MiB moved", bandwidth)
axes.set(ylabel="GB/s", ylim=(0, 1.1 * max(bandwidth.values())))
axes.plot(list(bandwidth), list(bandwidth.values()), "o-", color=lab.figure.BLUE)
for name, size in caches.items():  # those that the system tells, within the picture
    if min(bandwidth) <= size / 2**20 <= max(bandwidth):
        axes.axvline(size / 2**20, color="black", linewidth=0.8)
        end = (size / 2**20, 1)
        axes.annotate(
            name, end, (3, -10), xycoords=axes.get_xaxis_transform(), textcoords="offset points"
        )
picture

# %% [markdown]
# The speed of memory is not one number: data that fits into a cache comes faster, and the steps in
# this picture are your processor's caches. Where the system tells their sizes, a thin line marks
# each that lies within the picture. (The last one is often shared with other cores, so less of it
# may be free.) So an operation is held against the speed of *its own* size.
#
# Divide FLOPs by bytes and you have an operation's **arithmetic intensity**: how much it does with
# each byte. Low intensity is limited by bytes, high intensity by FLOPs, and the **ridge** is where
# the two limits meet.
#
# The function below counts FLOPs and bytes of a linear layer, for `n` samples of 784 `PIXELS` in
# float32. One line is left out: how many numbers are moved. Your count is compared with the tensors
# that the product reads and writes:


# %%
def counts_all_tensors(matmul):
    weight, counted, there = torch.rand(784, 784), [], []
    for n in (1, 16, 256):
        x = torch.rand(n, 784)
        counted.append(matmul(n, cpu).bytes)
        there.append(sum(tensor.nbytes for tensor in (x, weight, x @ weight)))
    return counted, there


# %% jupyter={"source_hidden": true}
lab.MissingLine(
    measuring.matmul,
    {
        "numbers = 2 * n * PIXELS + PIXELS**2": (
            "The samples, the results, and the weights, which are read once for the whole batch."
        ),
        "numbers = n * PIXELS + PIXELS**2": ("Without the results, which have to be written."),
        "numbers = 2 * n * PIXELS + n * PIXELS**2": (
            "The weights anew for each sample: then a larger batch would not raise the intensity."
        ),
        "numbers = 2 * n * PIXELS": (
            "Without the weights: for one sample they are almost all there is to read."
        ),
    },
    counts_all_tensors,
)

# %%
for n in (1, 16, 256):
    print(f"matmul, {n:>3} samples: {measuring.matmul(n, cpu).intensity:5.1f} FLOP per byte")
print(f"here the two limits meet at {limits.ridge:.1f} FLOP per byte, the ridge")

# %% [markdown]
# ## 5. Prove
#
# Before anything is timed: do the programs compute the same? The sums of a linear layer, three
# ways:

# %% tags=["nbval-check-output"]
generator = torch.Generator().manual_seed(0)
x, weight = torch.rand(64, 784, generator=generator), torch.rand(784, 10, generator=generator)
expected = measuring.batched(x, weight)
for way in (measuring.python_loop, measuring.one_by_one):
    found = way(x, weight)  # sums taken in another order
    print(f"{way.__name__} = batched:", torch.allclose(found, expected, rtol=1e-5, atol=0))

# %% [markdown]
# And is what we count what happens? Our FLOPs beside those that PyTorch counts by itself:

# %% tags=["nbval-check-output"]
for name in ("matmul", "convolution"):
    operation = measuring.OPERATIONS[name](17, cpu)
    with FlopCounterMode(display=False) as counter:
        operation.call()
    print(f"{name}: our FLOPs = PyTorch's: {operation.flops == counter.get_total_flops()}")

# %% [markdown]
# And the verdict? "Sure" can be checked by counting. Nine pairs of equal programs lean to one side
# or the other, by the coin: 512 outcomes, all equally likely. In how many would we claim a
# difference?

# %% tags=["nbval-check-output"]
gaps = [1.02 + 0.01 * place for place in range(9)]
outcomes = list(product((1, -1), repeat=9))
claims = 0
for leans in outcomes:
    pairs = [(gap**lean, 1.0) for gap, lean in zip(gaps, leans)]
    claims += lab.Comparison.of(pairs).differs
share_of_claims = claims / len(outcomes)
print(f"{claims} of {len(outcomes)} outcomes, at most 1 in 100 wanted: {share_of_claims <= 0.01}")

# %% [markdown]
# That holds for one look, at any load, because the load does not know the coin. `compare` looks up
# to three times while it is undecided, so at most 3 in 100. How *large* a difference is needs more:
# that a load slows both programs by the same factor.
#
# *Half-way. This is a good place to stop and come back to: run all cells above, and go on here.*
#
# ## 6. Measure
#
# ### The same program, against itself
#
# Forty comparisons of a program with itself, in three ways that you meet everywhere, and in pairs.
# All four call each program equally often, and one rule judges them: a ratio more than 5 % from 1
# is a difference. (A way that never claims anything has no false alarms either. So a program that
# really does a tenth more has to be noticed, too.)

# %%
lab.show_source(*experiment.RATIOS.values())

# %%
tries = 40
alarms, noticed = {}, {}
for name, ratio_of in experiment.RATIOS.items():
    alarms[name] = sum(abs(ratio_of(work(2_000), work(2_000)) - 1) > 0.05 for _ in range(tries))
    noticed[name] = sum(ratio_of(work(2_200), work(2_000)) > 1.05 for _ in range(tries))
mistakes = {name: alarms[name] + tries - noticed[name] for name in alarms}
fewest = [name for name, number in mistakes.items() if number == min(mistakes.values())]
print(f"mistakes in {2 * tries} answers: {mistakes}")
print("fewest on this machine, now:", ", ".join(fewest))

# %% jupyter={"source_hidden": true}
picture, (left, right) = lab.figure.axes(9, 2.4, columns=2)
lab.figure.draw_bars(left, alarms)
lab.figure.draw_bars(right, noticed)
left.set(xlabel=f"of {tries} times with itself, a false alarm", xlim=(0, 1.15 * tries))
right.set(xlabel=f"of {tries} times, a tenth more is noticed", xlim=(0, 1.15 * tries))
right.tick_params(labelleft=False)
picture

# %%
guess_alarms.against(max(alarms["one reading"], 0.5))

# %% [markdown]
# This machine may be quiet now, and the bars of false alarms short. Start something heavy beside
# the notebook (a browser with a video will do) and run the cells again: the upper three usually
# grow, and the last one should stay near 0.
#
# *The best of five* is the most tempting of the mistakes, because it needs no load. It only needs a
# wish.
#
# `compare` judges by its interval instead of the 5 %, and takes more pairs while it is undecided:

# %%
claimed = sum(lab.compare(work(2_000), work(2_000)).differs for _ in range(tries))
confirmed = sum(lab.compare(work(2_200), work(2_000)).differs for _ in range(tries))
print(f"compare, a program with itself: a difference claimed in {claimed} of {tries} tries")
print(f"compare, a tenth more to do: a difference found in {confirmed} of {tries} tries")

# %% [markdown]
# ### Loop, vector, batch
#
# 64 samples through a small linear layer: in pure Python, one vector at a time, and all at once.

# %%
with lab.threads(base.cores):
    for way in (measuring.python_loop, measuring.one_by_one):
        names = (way.__name__.replace("_", " "), "batched")
        both = (lambda way=way: way(x, weight), lambda: measuring.batched(x, weight))
        print(lab.compare(*both, names=names, patience=3))

# %% [markdown]
# The first ratio is Python asking, for each single multiplication, what kind of numbers these are.
# "Vector operations accelerate" means: ask once for many.
#
# The second ratio is smaller and has the same root: PyTorch asks its questions once a *call*.
# PyTorch's own profiler shows it: the calls of one sample each, and then the single call.


# %%
def both():
    measuring.one_by_one(x[:24], weight)
    measuring.batched(x[:24], weight)


with lab.threads(base.cores):
    *spans, single = experiment.spans_of(both)
each = [span for span in spans if span.name == single.name]
single = lab.Span(0, f"{single.name} of all samples", single.start, single.end)

# %% jupyter={"source_hidden": true}
label = "milliseconds (the profiler's own work included)"
picture = lab.figure.draw_timelines({"": [*spans, single]}, label=label)
(strip,) = picture.axes
strip.set(yticks=[], ylim=(0.9, -0.5))
beside = {"va": "center", "fontsize": 9}
strip.text(500 * (each[0].start + each[-1].end), 0.62, "24 calls", ha="center", **beside)
strip.text(1000 * single.end, 0.62, "the single call", ha="right", **beside)
picture

# %% [markdown]
# (To see everything it knows: `torch.profiler.profile()` as a context, then
# `export_chrome_trace("trace.json")`, and open that file in a browser's trace viewer.)
#
# ### Below the roof
#
# Now all operations, at three batch sizes, on the roofline of this machine. The all-reduce is timed
# between two processes. Its bytes are those that each of them has to send: $2\frac{p-1}{p}$ times
# its numbers for *p* processes (chapter 16 shows why).

# %%
timed = experiment.timed_operations((1, 16, 256), base.cores)
for name, by_size in timed.items():
    operation, seconds = by_size[256]
    moved, done = operation.bytes / seconds / 1e9, operation.flops / seconds / 1e9
    print(f"{name:<12} {operation.intensity:5.2f} FLOP/byte {done:8.2f} GFLOP/s {moved:7.2f} GB/s")

# %% jupyter={"source_hidden": true}
points = {
    name: {n: (one.intensity, one.flops / seconds) for n, (one, seconds) in by_size.items()}
    for name, by_size in timed.items()
}
picture, (axes,) = lab.figure.axes(9, 4.2)
lab.figure.draw_roofline(axes, limits, points)
labels = [(name, n) for name, by_size in points.items() for n in by_size]
for (name, n), text in zip(labels, axes.texts):  # apart, and beside the lines
    left = name == "element-wise" or (name, n) == ("convolution", 1)
    up = -13 if (name, n) == ("convolution", 16) else {"matmul": -11, "embedding": 2}.get(name, -3)
    text.set(position=(-6 if left else 6, up), ha="right" if left else "left")
picture

# %% [markdown]
# The numbers at the marks are batch sizes. Look at which way each operation goes as its batch
# grows:
#
# - **matmul** moves *right*: the weights are read once, and every further sample does more with
#   them. It slides along the slanted roof until the flat one stops it.
# - **element-wise** moves *up*, to the slanted roof, and never right: a larger batch saves calls,
#   nothing else. **embedding** moves up too, and a little right: the texts of one batch share some
#   rows of the table.
# - **convolution** stands far to the right from the start: few weights, used again for each pixel.

# %% [markdown]
# - **all-reduce** stands right below *element-wise*, because it does as much with each byte. But
#   its bytes go from process to process. That connection has a roof of its own, and on it every
#   call waits for the other process.
#
# A point above the lower roof is possible: its data came from a faster cache. And where an
# operation falls again with a large batch, its results have outgrown the cache, or the memory for
# them is fetched from the operating system again at each call.

# %%
gains = {}
for name in ("matmul", "embedding"):
    make = measuring.OPERATIONS[name]
    together, apart = make(256, cpu), measuring.separately(make(1, cpu), 256)
    names = (f"{name}, 256 calls", "one call")
    with lab.threads(base.cores):
        gains[name] = lab.compare(apart.call, together.call, names=names, patience=3)
    print(gains[name])

# %%
guess_matmul.against(gains["matmul"])

# %%
guess_table.against(gains["embedding"])

# %%
ends = (timed[name][256] for name in ("element-wise", "all-reduce"))
in_memory, between = (operation.bytes / seconds for operation, seconds in ends)
guess_sum.against(in_memory / between)

# %% [markdown]
# ## 7. Break it
#
# Two ways to spoil a reading without touching the program. Press **Start**, then click through
# **mistake**, with *element-wise* and a small batch. The shorter the operation, the larger the
# damage.

# %%
small = base.turned(operation="element-wise", batch_size=8)
time = lab.Curve(
    "seconds_a_batch", "microseconds a batch", scale=1e6, log=(1, 1e4), summary="median"
)
break_it = lab.Panel(
    experiment.run,
    small,
    [time, share],
    controls=["operation", "batch_size", "mistake"],
    baselines={"no mistake": {"mistake": "none"}},
    headline=lab.Headline("seconds_a_batch", "time"),
    tour=[small.turned(mistake="one call"), small.turned(mistake="data in the clock")],
    seconds=1.0,
)
break_it

# %% [markdown]
# Write down what you think each mistake does, then look.
#
# <details><summary>What each of them does</summary>
#
# - **one call** reads the clock around a single call of a few microseconds. Reading it costs
#   something, too, and between two readings other data has gone through the caches. How much that
#   matters depends on your machine.
# - **data in the clock** makes the input inside the timed part. What is measured is mostly a random
#   number generator.
#
# </details>

# %% [markdown]
# On a GPU there is a third, the most popular of all: the call returns before the work is done.
# Without `torch.cuda.synchronize()` on both sides you have measured how fast a request can be made.
# Our `reading` waits:

# %%
lab.show_source(lab.reading)

# %% [markdown]
# ## 8. When it does not help
#
# Batches are fast. Are they *useful*? In training a batch is one step, however many samples it
# holds. Here are 8,000 samples, spent on batches of 8, 64 and 512, with a learning rate that grows
# with the batch:


# %%
def trained(batch_size, samples=8_000):
    torch.manual_seed(0)
    model = lab.models.mlp(784, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05 * (batch_size / 8) ** 0.5)
    update, batches = lab.classifier_update(model, optimizer), mnist.batches(batch_size)
    list(lab.train(update, batches, steps=3))  # warms up
    return list(lab.train(update, batches, steps=samples // batch_size))


# %%
mnist = lab.datasets.mnist5k()
for size in (8, 64, 512):
    with lab.threads(base.cores):
        steps = trained(size)
    seconds = sum(step.seconds for step in steps)
    loss = sum(step.metrics["loss"] for step in steps[-5:]) / 5
    print(
        f"batches of {size:>3}: {len(steps):>5} steps, {size * len(steps) / seconds:>9,.0f} "
        f"samples/s, loss {loss:.2f} after {seconds:.2f} s"
    )

# %% [markdown]
# More samples a second, and less learned from each. A mini-batch is a *training* technique first of
# all: a compromise between the roof and the number of steps. It would be one even if the whole data
# set fitted, as it does here.
#
# Nor does batching help an operation that has nothing to share, once the calls are paid for. And a
# comparison helps nobody if the two programs do different things: that is why every benchmark of
# this course first proves them equal.
#
# The verdict, for this machine:

# %%
verdict = (
    f"one call for 256 samples instead of 256 calls: matmul {gains['matmul'].ratio:.1f} ×, "
    f"embedding {gains['embedding'].ratio:.1f} ×; "
    f"ridge at {limits.ridge:.0f} FLOP/byte; an all-reduce moves 1/{in_memory / between:.0f} of "
    f"the bytes per second of an element-wise operation; a program differs from itself by more "
    f"than 5 % in {alarms['one reading']} of {tries} single readings, in {alarms['in pairs']} of "
    f"{tries} comparisons in pairs"
)
lab.log_verdict("measuring", verdict)

# %% [markdown]
# ## 9. Exercises
#
# Write the functions and run the cells; `check` tries each on fresh data. It says what is right
# already, shows a small case that is not, and gives a hint where it knows the mistake. After two
# different tries it offers a worked solution. Some functions are written already, with faults:
# repair them.

# %%
from accel_lab.grading.practice import check, exercises

REPAIR, PAIRS, INTENSITY = exercises("measuring")
REPAIR


# %% tags=["exercise"]
def measure_pairs(ours, peer, clock, pairs):
    measured = []
    for _ in range(pairs):
        start = clock()
        ours()
        middle = clock()
        peer()
        measured.append([middle - start, clock() - middle])
    return measured


check(measure_pairs)

# %%
PAIRS


# %% tags=["exercise"]
def paired_speedup(ours, peer):
    raise NotImplementedError


check(paired_speedup)

# %%
INTENSITY


# %% tags=["exercise"]
def intensity_of_linear(samples, inputs, outputs, bytes_a_number):
    raise NotImplementedError


check(intensity_of_linear)

# %% [markdown]
# ## 10. Take away
#
# - One reading is not a measurement. Warm up, take pairs, alternate, let a coin decide who goes
#   first.
# - Say the ratio *and* its interval, or say "no difference shown". Decide how often you measure
#   before you look.
# - Other programs only add: within moments take the fastest, over the pairs take the median, and
#   never a mean.
# - An operation is bound by calls, by bytes or by FLOPs. Find out which, before you optimise one of
#   the other two.
# - A batch helps by fewer calls and by weights read less often. Without anything to share, only by
#   the first.

# %% [markdown]
# Three things that this chapter leaves out. Where the code and its data lie in memory is the same
# in all pairs of one process: only fresh processes vary it (Mytkowicz). A store usually reads the
# line it writes to first, so the element-wise operation may move half as much again as is counted
# here. And samples per second are not progress: beyond a *critical batch size* more samples per
# update hardly save updates (S. McCandlish et al., *An empirical model of large-batch training*,
# 2018, arXiv:1812.06162).

# %% [markdown]
# **What would prove this wrong?** A comparison of a function with itself, by `compare`, that claims
# a difference in more than 5 of 100 tries. `python -m benchmarks measuring` makes a hundred, with
# two other programs running beside.

# %% [markdown]
# **Sources.** S. Williams, A. Waterman and D. Patterson, *Roofline*, 2009 · T. Hoefler and R.
# Belli, *Scientific benchmarking of parallel computing systems*, 2015, rules 4 to 8 · T. Mytkowicz
# et al., *Producing wrong data without doing anything obviously wrong!*, 2009 · F. Wilcoxon,
# *Individual comparisons by ranking methods*, 1945.
#
# **Next.** You can tell what is faster, and how much faster it could be. So to the first technique:
# a larger batch makes more samples per second, but which batch reaches a given loss first? That is
# [chapter 02](02_minibatch.ipynb). The other chapters are listed on the
# [first page](00_start_here.ipynb).
