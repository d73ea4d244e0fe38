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
# It looks easy: read the clock, run the program, read the clock again. You will see people conclude
# from that
#
# > *Ours is 1.3 times as fast.*
#
# and you will read, about what this chapter uses as its examples,
#
# > *Vector and matrix operations accelerate.*
# >
# > *Mini-batches are an inference technique: everything is computed at once.*
#
# Three statements, and two questions behind them. **Is it faster, surely?** And **how much faster
# could it be?** By the end you have an instrument for each: the *paired comparison* and the
# *roofline*.

# %%
import inspect
from itertools import islice, product

import torch
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from accel_lab import measuring
from accel_lab.experiments import measuring as experiment
from accel_lab.experiments.measuring import Knobs
from accel_lab.workbench import models
from accel_lab.workbench.data import datasets
from accel_lab.workbench.device import threads
from accel_lab.workbench.drawing import figure
from accel_lab.workbench.drawing.curve import Curve
from accel_lab.workbench.drawing.sweep import Sweep
from accel_lab.workbench.loop import train
from accel_lab.workbench.measure.comparison import Comparison, compare, reading
from accel_lab.workbench.measure.roofline import fastest, roofline
from accel_lab.workbench.notebook.speed_log import log_verdict
from accel_lab.workbench.panel import Panel, Prediction

# %% [markdown]
# The next cell holds the settings of this chapter. Change one, as in `knobs = {"cores": 2}`, and
# run the notebook again: everything below follows.

# %% tags=["parameters"]
knobs = {}

# %%
base = Knobs(**{"device": "cpu", **knobs})
cpu = torch.device("cpu")
mnist = datasets.mnist5k()
limits = roofline(cpu, base.cores)  # two seconds: this machine's limits, which part 4 explains

# %% [markdown]
# ## 2. Predict
#
# Four guesses. There is no penalty for a wrong one, and you may skip them.
#
# The first is about a program and *itself*: the same function, timed once as "ours" and once as
# "the peer". We do that 40 times.

# %%
guess_alarms = Prediction(
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
guess_matmul = Prediction(
    "A linear layer (matmul): how many times the samples per second, in one call?",
    low=0.5,
    high=300,
    default=2.0,
    unit="×",
)
guess_matmul

# %%
guess_table = Prediction(
    "A look-up of word vectors (embedding): how many times the samples per second, in one call?",
    low=0.5,
    high=300,
    default=2.0,
    unit="×",
)
guess_table

# %% [markdown]
# And one is about company. In an *all-reduce* two processes add up what each of them has, as in
# training with several GPUs. It makes one addition for every 8 bytes; doubling numbers, element by
# element, makes one multiplication for every 8 bytes.

# %%
guess_sum = Prediction(
    "How many times the bytes per second of an all-reduce does the element-wise operation move?",
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
# The thin curve is drawn before anything runs: it is what this machine's limits allow. The dashed
# orange run is one sample at a time.
#
# Then choose another **operation**. Which of them climb, and where do they stop?

# %%
panel = Panel(
    experiment.run,
    base,
    [
        Curve("share_of_limit", "share of what the roofline allows", limit=(1.0, "the roofline")),
        Sweep(
            "batch_size",
            "throughput",
            "samples/s",
            predicted=experiment.most_samples_per_second,
            formula="the roofline allows",
            log=(1e3, 1e8),
        ),
    ],
    controls=["operation", "batch_size", "way"],
    baselines={"matmul, one sample": base},
    tour=[base.turned(batch_size=16), base.turned(batch_size=64), base.turned(batch_size=256)],
    seconds=1.0,
)
panel

# %% [markdown]
# The curve rises steeply, bends, and lies flat. Two different limits, then, and a place where one
# takes over from the other. To understand that picture we need readings that can be trusted. So,
# back to the clock.
#
# ## 4. Build
#
# ### A clock, step by step
#
# Here is a program, and ten readings of it, the very first ones:

# %%
signal = torch.rand(64, 784)


def program():
    with threads(base.cores):
        return torch.fft.rfft(signal).abs().sum()


first = [reading(program) for _ in range(10)]
print("microseconds:", *(f"{seconds * 1e6:.0f}" for seconds in first))

# %% [markdown]
# The first is in a class of its own: libraries are loaded, memory is fetched from the operating
# system, caches are empty. That is what **warm-up** takes away. What remains after it? The same
# program, 600 times:

# %%
readings = [reading(program) * 1e6 for _ in range(600)]
picture, (left, right) = figure.axes(9, 2.8, columns=2)
left.plot(readings, ".", color=figure.BLUE, markersize=3)
left.set(xlabel="reading", ylabel="microseconds", yscale="log")
right.hist(readings, bins=60, range=(min(readings), sorted(readings)[540]), color=figure.BLUE)
right.set(xlabel="microseconds (the slowest tenth left out)", ylabel="readings")
picture

# %% [markdown]
# There is a floor, and above it a long tail. Nothing makes a program faster than it is, and
# everything else on the machine can make it slower. So the readings are not a bell curve around a
# true value, and their **mean** belongs to the tail as much as to the program. Within moments, the
# *fastest* of a few readings is steady.
#
# But the floor itself moves: clocks change their pace, neighbours come and go, for seconds at a
# time. A reading of *ours* now and one of *the peer* in a minute may have met two different
# machines. Hence **pairs**: time both within moments, take the ratio, and do it again. Inside a
# pair they alternate (A B B A …), and a **coin** decides who is A.
#
# The coin is more than tidiness. If the two programs are equal, only the coin decides which way a
# pair leans, *whatever the load does*. Nine pairs that all lean one way are then like nine heads in
# a row, and we know how rare that is. The interval below is built on nothing else:

# %%
print(inspect.getsource(Comparison.interval.fget))

# %% [markdown]
# And now the instrument. First a program and itself, then one with a tenth more to do:


# %%
def work(turns):
    return lambda: sum(range(turns))


print(compare(work(5_000), work(5_000), names=("a program", "itself")))
print(compare(work(5_500), work(5_000), names=("a tenth more", "the program")))

# %% [markdown]
# When the pairs do not agree it says *no difference shown*. That is not "they are equal": it is
# what this many pairs can tell, and the interval says what is still possible.
#
# ### A limit, step by step
#
# Now the second question. An operation moves bytes and does arithmetic on them. However well it is
# written, it lasts at least
#
# $$\text{seconds} \;\ge\; \text{calling it} + \max\left(\frac{\text{bytes}}{\text{bytes/s}},\; \frac{\text{FLOPs}}{\text{FLOP/s}}\right)$$
#
# and the three constants belong to the machine. They were measured at the top of this notebook, on
# one core:

# %%
print(f"{limits.flops_per_second / 1e9:8.1f} GFLOP/s, multiplying matrices")
print(f"{limits.bytes_per_second / 1e9:8.1f} GB/s, from memory")
print(f"{limits.bandwidth[0][1] / 1e9:8.1f} GB/s, from cache")
print(
    f"{limits.call_seconds * 1e6:8.2f} µs to call the smallest operation there is: the sign of one "
    "number, turned"
)

# %%
sizes, speeds = zip(*limits.bandwidth, strict=True)
picture, (axes,) = figure.axes(8, 2.8)
axes.plot(sizes, [speed / 1e9 for speed in speeds], "o-", color=figure.BLUE)
axes.set(xlabel="bytes moved", ylabel="GB/s", xscale="log", ylim=(0, None))
axes.set_xscale("log", base=2)
picture

# %% [markdown]
# Memory is no single number: what fits into a cache comes faster, and the steps in this picture are
# your processor's caches. So an operation is held against the speed of *its own* size.
#
# Divide FLOPs by bytes and you have an operation's **arithmetic intensity**: how much it does with
# each byte. Here is what is counted for a linear layer, whose weights are read once for the whole
# batch:

# %%
print(inspect.getsource(measuring.matmul))

# %% [markdown]
# ## 5. Prove
#
# Before anything is timed: do the programs compute the same, and is what we count what happens?
# Sums of a linear layer, three ways, and our FLOPs beside those that PyTorch counts by itself:

# %% tags=["nbval-check-output"]
generator = torch.Generator().manual_seed(0)
x, weight = torch.rand(64, 784, generator=generator), torch.rand(784, 10, generator=generator)
for way in (measuring.python_loop, measuring.one_by_one):
    torch.testing.assert_close(
        way(x, weight), measuring.batched(x, weight), rtol=1e-5, atol=0
    )  # sums taken in another order
    print(f"{way.__name__} = batched")
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
sizes_of_gap = [1.02 + 0.01 * place for place in range(9)]
outcomes = list(product((1, -1), repeat=9))
claims = sum(
    Comparison.of([(gap**lean, 1.0) for gap, lean in zip(sizes_of_gap, leans)]).differs
    for leans in outcomes
)
print(
    f"{claims} of {len(outcomes)} outcomes, at most 1 in 100 wanted: "
    f"{claims / len(outcomes) <= 0.01}"
)

# %% [markdown]
# That holds for any load, because the load does not know the coin.
#
# ## 6. Measure
#
# ### The same program, against itself
#
# Forty comparisons of a program with itself, in three ways that you meet everywhere, and in pairs:

# %%
for wrong in experiment.WRONG_RATIOS.values():
    print(inspect.getsource(wrong))

# %%
tries = 40
alarms = {
    name: sum(abs(wrong(work(2_000), work(2_000)) - 1) > 0.05 for _ in range(tries))
    for name, wrong in experiment.WRONG_RATIOS.items()
}
alarms["in pairs"] = sum(compare(work(2_000), work(2_000)).differs for _ in range(tries))
found = sum(compare(work(2_200), work(2_000)).differs for _ in range(tries))

picture, (axes,) = figure.axes(8, 2.4)
axes.barh(list(alarms), list(alarms.values()), color=[figure.ORANGE] * 3 + [figure.GREEN])
for place, count in enumerate(alarms.values()):
    axes.text(count + 0.3, place, str(count), va="center")
axes.set(xlabel=f"false alarms in {tries} comparisons of a program with itself", xlim=(0, tries))
axes.invert_yaxis()
picture

# %%
guess_alarms.against(max(alarms["one reading"], 0.5))

# %%
print(
    f"in pairs, a program that really does a tenth more was found out in {found} of {tries} "
    "comparisons"
)

# %% [markdown]
# This machine may be quiet now, and the orange bars short. Start something heavy beside the
# notebook (a browser with a video will do) and run the cells again: they grow, and the green one
# does not. *The best of five* is the most tempting of the mistakes, for it needs no load at all. It
# only needs a wish.

# %% [markdown]
# ### Loop, vector, batch
#
# 64 samples through a small linear layer: in pure Python, one vector at a time, and all at once.

# %%
with threads(base.cores):
    for way in (measuring.python_loop, measuring.one_by_one):
        names = (way.__name__.replace("_", " "), "batched")
        print(compare(lambda way=way: way(x, weight), lambda: x @ weight, names=names, patience=3))

# %% [markdown]
# The first ratio is Python asking, for each single multiplication, what kind of numbers these are.
# "Vector operations accelerate" means: ask once for many. The second ratio is smaller and has the
# same root: PyTorch asks its questions once a *call*. A profiler shows it. This is PyTorch's own,
# its trace drawn by us: the calls of one sample each, and then the single call.


# %%
def both():
    measuring.one_by_one(x[:24], weight)
    measuring.batched(x[:24], weight)


with threads(base.cores):
    spans = experiment.spans_of(both)
picture, (axes,) = figure.axes(9, 1.8)
figure.draw_spans(axes, spans)
axes.set(xlabel="milliseconds (the profiler's own work included)", yticks=[])
picture

# %% [markdown]
# (To see everything it knows: `torch.profiler.profile()` as a context, then
# `export_chrome_trace("trace.json")`, and open that file in a browser's trace viewer.)
#
# ### Below the roof
#
# And now all operations, at three batch sizes, on the roofline of this machine. The all-reduce is
# timed in two processes of its own; its bytes are those that each of them has to send,
# $2\frac{p-1}{p}$ times its numbers where there are *p* (chapter 16 shows why).

# %%
points, batches = {}, (1, 16, 256)
with threads(base.cores):
    for name, make in measuring.OPERATIONS.items():
        for n in batches:
            operation = make(n, cpu)
            points[name, n] = operation, fastest(operation.call, 0.05)
for n, seconds in experiment.all_reduce_seconds(batches).items():
    points["all-reduce", n] = measuring.all_reduce(n), seconds

# %%
picture, (axes,) = figure.axes(9, 4.2)
across = torch.logspace(-1.5, 2.5, 100)
for speed, where in ((limits.bandwidth[0][1], "cache"), (limits.bytes_per_second, "memory")):
    roof = torch.minimum(across * speed, torch.tensor(limits.flops_per_second)) / 1e9
    axes.plot(
        across,
        roof,
        **figure.LIMIT | {"linestyle": "-" if where == "memory" else ":"},
        label=f"roof, from {where}",
    )
for name, (color, _), marker in zip(
    dict.fromkeys(name for name, _ in points), figure.STYLES, "osD^v"
):
    marks = [
        (op.intensity, op.flops / seconds / 1e9, n)
        for (of, n), (op, seconds) in points.items()
        if of == name
    ]
    axes.plot(
        [m[0] for m in marks],
        [m[1] for m in marks],
        marker + "-",
        color=color,
        label=name,
        linewidth=1,
    )
    for intensity, speed, n in marks:
        axes.annotate(n, (intensity, speed), xytext=(5, -3), textcoords="offset points", fontsize=8)
axes.set(xscale="log", yscale="log", xlabel="arithmetic intensity, FLOP per byte", ylabel="GFLOP/s")
axes.legend(frameon=False, fontsize=8, loc="lower right")
picture

# %% [markdown]
# The numbers at the marks are batch sizes. Look at which way each operation goes as its batch
# grows:
#
# - **matmul** moves *right*: the weights are read once, and every further sample does more with
#   them. It slides along the slanted roof until the flat one stops it.
# - **element-wise** and **embedding** move *up*, to the slanted roof, and never right. A larger
#   batch saves them calls, nothing else.
# - **convolution** stands far to the right from the start: few weights, used again for each pixel.
# - **all-reduce** stands right below *element-wise*, for it does as much with each byte. But its
#   bytes go from process to process: a road with a roof of its own, on which every call waits for
#   somebody else.
#
# A point above the memory roof is no miracle: its data came from the cache. And where an operation
# falls again with a large batch, its results have outgrown the cache, or the memory for them is
# fetched from the operating system anew at each call.

# %%
gains = {}
for name in ("matmul", "embedding"):
    make = measuring.OPERATIONS[name]
    together, apart = make(256, cpu), measuring.separately(make(1, cpu), 256)
    with threads(base.cores):
        gains[name] = compare(
            apart.call, together.call, names=(f"{name}, 256 calls", "one call"), patience=3
        )
    print(gains[name])

# %%
guess_matmul.against(gains["matmul"].ratio)

# %%
guess_table.against(gains["embedding"].ratio)

# %%
in_memory, between = (
    op.bytes / seconds
    for op, seconds in (points[name, 256] for name in ("element-wise", "all-reduce"))
)
guess_sum.against(in_memory / between)

# %% [markdown]
# ## 7. Break it
#
# Two ways to spoil a reading without touching the program. Press **Start**, then click through
# **mistake**, with *element-wise* and a small batch. What fails worst is what is shortest.

# %%
small = base.turned(operation="element-wise", batch_size=8)
break_it = Panel(
    experiment.run,
    small,
    [
        Curve("seconds_a_batch", "microseconds a batch", scale=1e6, log=(1, 1e4)),
        Curve("share_of_limit", "share of what the roofline allows", limit=(1.0, "the roofline")),
    ],
    controls=["operation", "batch_size", "mistake"],
    baselines={"no mistake": small},
    tour=[small.turned(mistake="one call"), small.turned(mistake="data in the clock")],
    seconds=1.0,
)
break_it

# %% [markdown]
# - **one call** reads the clock around a single call of a few microseconds. Reading it costs
#   something, too, and between two readings the caches have seen other things. How much that
#   matters depends on your machine; the scatter grows in any case.
# - **data in the clock** makes the input inside the timed part. What is measured is mostly a random
#   number generator.
# - On a GPU there is a third, the most popular of all: the call returns before the work is done.
#   Without `torch.cuda.synchronize()` on both sides you have measured how fast a request can be
#   made. Our `reading` waits:

# %%
print(inspect.getsource(reading))

# %% [markdown]
# ## 8. When it does not help
#
# Batches are fast. Are they *useful*? In training a batch is one step, whatever its size. Here are
# 8,000 samples, spent on batches of 8, 64 and 512, with a learning rate that grows with the batch:


# %%
def spent(batch_size, samples=8_000):
    torch.manual_seed(0)
    model = models.mlp(784, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05 * (batch_size / 8) ** 0.5)

    def update(x, y):
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return {"loss": loss.detach()}

    with threads(base.cores):
        list(islice(train(update, mnist.batches(batch_size)), 3))  # warms up
        return list(train(update, mnist.batches(batch_size), steps=samples // batch_size))


# %%
losses = {}
for size in (8, 64, 512):
    steps = spent(size)
    seconds = sum(step.seconds for step in steps)
    losses[size] = sum(step.metrics["loss"] for step in steps[-5:]) / 5
    rate = sum(step.samples for step in steps) / seconds
    print(
        f"batches of {size:>3}: {len(steps):>5} steps, {rate:>9,.0f} samples/s, loss "
        f"{losses[size]:.2f} after {seconds:.2f} s"
    )

# %% [markdown]
# More samples a second, and less learned from each. A mini-batch is a *training* technique first of
# all, a compromise between the roof and the number of steps; and it exists exactly because the
# whole data set does not fit.
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
    f"ridge at {limits.ridge:.0f} FLOP/byte; a byte costs {in_memory / between:.1f} × as much "
    "between processes; "
    f"a program differs from itself in {alarms['one reading']} of {tries} single readings, in "
    f"{alarms['in pairs']} of {tries} paired comparisons"
)
log_verdict("measuring", verdict)

# %% [markdown]
# ## 9. Exercises
#
# Write the functions and run the cells; `check` tries each on fresh data and explains what it
# finds. An exercise left alone counts as not attempted, nothing worse.

# %%
from accel_lab.grading.practice import check, exercises

REPAIR, PAIRS, INTENSITY = exercises("measuring")
REPAIR


# %% tags=["exercise"]
def measure_pairs(ours, peer, clock, pairs):
    # The function as found:
    #
    #   measured = []
    #   for _ in range(pairs):
    #       start = clock()
    #       ours()
    #       middle = clock()
    #       peer()
    #       measured.append([middle - start, clock() - middle])
    #   return measured
    raise NotImplementedError


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
# - One reading is no measurement. Warm up, take pairs, alternate, let a coin decide who goes first.
# - Say the ratio *and* its interval, or say "no difference shown". Decide how often you measure
#   before you look.
# - Other programs only add: within moments take the fastest, over the pairs take the median, and
#   never a mean.
# - An operation is bound by calls, by bytes or by FLOPs. Find out which, before you optimise one of
#   the other two.
# - A batch helps by fewer calls and by weights read less often. Where there are no weights to
#   share, only by the first.
#
# **What would prove this wrong?** A comparison of a function with itself, by `compare`, that claims
# a difference in more than 5 of 100 tries. `python -m benchmarks measuring` makes a hundred, with
# two other programs running beside.
#
# **Sources.** S. Williams, A. Waterman and D. Patterson, *Roofline*, 2009 · T. Hoefler and R.
# Belli, *Scientific benchmarking of parallel computing systems*, 2015, rules 4 to 8 · T. Mytkowicz
# et al., *Producing wrong data without doing anything obviously wrong!*, 2009 · F. Wilcoxon,
# *Individual comparisons by ranking methods*, 1945.
#
# **Next.** You can tell what is faster, and how much faster it could be. So to the first technique:
# why should a network care whether its pixels run from 0 to 255 or from 0 to 1? Chapter 03,
# normalization.
