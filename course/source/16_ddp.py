# ---
# jupyter:
#   kernelspec:
#     name: python3
#     display_name: Python 3
# ---

# %% [markdown]
# # 16 · Data parallelism
#
# ## 1. The question
#
# One worker trains a model. Now you have two. In **data parallelism** each holds the whole model
# and takes half of every batch; before the weights change, the two agree on one gradient. Real
# trainings run this way on thousands of workers, and you will run it here, on processes of their
# own that talk through the network interface of this machine.
#
# You can read about it:
#
# > *The model is split over the machines, each trains its part, and the parameters are aggregated:*
# > *new = average(old + gradient × number of processes).*
# >
# > *With more machines, training is faster.*
#
# The first one means something real. Somebody has to bring the workers' results together, and an
# average is part of how. The second one is why people do it at all. In the next fifty minutes you
# find out what has to be averaged, what that costs, and from what size of model on two workers are
# faster than one. Or whether they ever are, on the machine in front of you.

# %%
import inspect
import os
import random
from collections import defaultdict
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

# %%
import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from accel_lab import ddp
from accel_lab.experiments import ddp as experiment
from accel_lab.workbench import models
from accel_lab.workbench.data import datasets
from accel_lab.workbench.drawing import figure
from accel_lab.workbench.drawing.chart import Badge
from accel_lab.workbench.drawing.curve import Curve
from accel_lab.workbench.drawing.sweep import Sweep
from accel_lab.workbench.drawing.timeline import Timeline
from accel_lab.workbench.loop import NonFiniteLoss
from accel_lab.workbench.measure.comparison import Comparison
from accel_lab.workbench.measure.proof import prove, snapshot
from accel_lab.workbench.notebook.speed_log import log_verdict
from accel_lab.workbench.panel import Panel, Prediction
from accel_lab.workbench.ranks.launch import RankFailed, launch
from accel_lab.workbench.ranks.rank import RankSpanRecorder

# %% [markdown]
# The next cell holds the settings of this chapter. Change one, as in `knobs = {"width": 512}`, and
# run the notebook again: everything below follows.

# %% tags=["parameters"]
knobs = {}

# %%
base = experiment.Knobs(**knobs)
mnist = datasets.mnist5k()
parameters = sum(p.numel() for p in models.mlp(784, base.width, base.width, 10).parameters())
print(
    f"a network of {parameters:,} parameters: {4 * parameters / 2**20:.2f} MiB of gradients at "
    "each update"
)
print(f"this machine lends us {os.cpu_count()} processor cores")

# %% [markdown]
# A worker is called a **rank** here, and their number is the **world size** *p*. To start some
# takes one line. `launch` runs a function on each of them, even one from a cell, and hands over
# what they return:


# %% tags=["nbval-check-output"]
def introduce(greeting):
    return f"{greeting} from rank {dist.get_rank()} of {dist.get_world_size()}"


for _, line in sorted(launch(introduce, 2, "hello")):
    print(line)

# %% [markdown]
# ## 2. Predict
#
# Two guesses, before you see anything. There is no penalty for a wrong one, and you may skip them.

# %%
guess_bytes = Prediction(
    "Four ranks, each with a gradient of its own, and all four need the sum. How much does each "
    "have to send, in gradients?",
    low=0.5,
    high=12,
    default=3.0,
    unit="× the gradient",
)
guess_bytes

# %%
guess_speed = Prediction(
    f"Two ranks train the network above (width {base.width}). How many times the samples per "
    "second of one rank?",
    low=0.1,
    high=4,
    default=2.0,
    unit="×",
)
guess_speed

# %% [markdown]
# ## 3. See
#
# A small network is trained on handwritten digits, by processes that are started as you press the
# button. The batch stays as it is; more ranks get smaller parts of it. The dashed orange line is
# one rank that has it to itself.
#
# Press **Start**. Then change the **ranks**, move **width** up and down, and try the **methods**:
# what makes two ranks catch up? In the timeline each lane is one process; the thin bars below a
# lane are messages under way.


# %%
def bytes_of_the_ring(knobs):
    parameters = sum(p.numel() for p in models.mlp(784, knobs.width, knobs.width, 10).parameters())
    return 2 * (knobs.ranks - 1) / knobs.ranks * 4 * parameters


# %%
panel = Panel(
    experiment.run,
    base,
    [
        Curve("throughput", "samples/s"),
        Sweep(
            "ranks",
            "bytes_sent",
            "MiB sent by each rank",
            scale=2**-20,
            predicted=bytes_of_the_ring,
            formula="2(p − 1)/p · gradient",
        ),
        Curve("loss", "loss", over="updates"),
        Timeline(),
    ],
    controls=["method", "ranks", "width", "bucket_mib"],
    baselines={"one rank": base.turned(ranks=1)},
    tour=[base.turned(ranks=4), base.turned(ranks=2)],
)
panel

# %% [markdown]
# What to look for:
#
# - The **loss** curves lie on one another: two ranks, or four, do the training of one.
# - What each rank **sends** soon hardly grows any more: with ever more ranks it nears twice the
#   gradient, and stays there.
# - The **throughput** has no such rule. A narrow network loses by a second rank. Does a wide one
#   win on your machine? We come back to it, with care.
#
# ## 4. Build
#
# The loss of a batch is a mean over its *n* samples. If rank *r* has $n_r$ of them, and $L_r$ is
# the mean loss of these,
#
# $$\nabla L = \sum_{r=1}^{p} \frac{n_r}{n} \nabla L_r .$$
#
# So each rank weighs its gradient by its share of the batch, and all need the sum: an
# **all-reduce**. Then every rank makes the same update. Weights that began equal stay equal,
# without ever being sent again. Nothing is split here but the batch.
#
# ### The ring
#
# How do *p* ranks add up? If each sent its gradient to all others, it would send *p* − 1 of them. A
# ring does better. Cut the gradient into *p* **chunks**; each rank receives only from the rank
# before it and sends only to the one after it, and every link is busy all the time. The two halves
# are called **reduce-scatter** and **all-gather**:

# %%
print(inspect.getsource(ddp.ring_reduce_scatter))
print(inspect.getsource(ddp.ring_all_gather))

# %% [markdown]
# Here it goes round among four ranks, a turn at a time. Every rank begins with ones, so that each
# number counts how many ranks' contributions it holds by now.


# %%
def go_round(n):
    rank, world = dist.get_rank(), dist.get_world_size()
    chunks = torch.ones(n).tensor_split(world)
    yield None, [int(chunk[0]) for chunk in chunks]
    for out, into in ddp.reduce_scatter_turns(rank, world):
        arrived = torch.empty_like(chunks[into])
        ddp.ring_exchange(chunks[out], arrived)
        chunks[into].add_(arrived)
        yield into, [int(chunk[0]) for chunk in chunks]
    for out, into in ddp.all_gather_turns(rank, world):
        ddp.ring_exchange(chunks[out], chunks[into])
        yield into, [int(chunk[0]) for chunk in chunks]


def on_ranks(worker, world, *args, **options):
    """{rank: all that it yields}"""
    said = defaultdict(list)
    for rank, value in launch(worker, world, *args, **options):
        said[rank].append(value)
    return dict(sorted(said.items()))


# %%
said = on_ranks(go_round, 4, 12)
picture, row = figure.axes(9.5, 2.1, columns=len(said[0]))
for turn, axes in enumerate(row):
    holds = [said[rank][turn][1] for rank in range(4)]
    axes.imshow(holds, cmap="Blues", vmin=0, vmax=7)
    for rank, counts in enumerate(holds):
        for chunk, contributions in enumerate(counts):
            axes.text(chunk, rank, contributions, ha="center", va="center", fontsize=9)
        if turn:
            came = {
                "xy": (said[rank][turn][0], rank - 0.22),
                "xytext": (said[rank][turn][0], rank - 0.85),
            }
            axes.annotate(
                "",
                **came,
                arrowprops={"arrowstyle": "-|>", "color": figure.ORANGE, "linewidth": 1.6},
            )
    axes.grid(False)
    axes.set(xticks=range(4), xticklabels="ABCD", yticks=range(4) if not turn else [])
    axes.set_title(f"turn {turn}" if turn else "at first", fontsize=10, pad=12)
row[0].set(ylabel="rank", xlabel="chunk")
picture

# %% [markdown]
# An orange arrow is a chunk that has just arrived from the rank above, and for rank 0 from rank 3.
# Reduce-scatter takes the first three turns: sums grow, until each rank holds one complete chunk, a
# 4. All-gather takes the last three: the complete chunks go round and replace what is there. Each
# rank has sent 2(*p* − 1) chunks of 1/*p* of the gradient, which is $2(p-1)/p$ of it, the least
# possible.

# %% tags=["nbval-check-output"]
print(
    "at the end every rank holds",
    said[0][-1][1],
    "- all equal:",
    all(turns[-1][1] == said[0][-1][1] for turns in said.values()),
)

# %% [markdown]
# The all-reduce composes the two halves. This is the same journey in time, recorded on four
# processes:

# %%
print(inspect.getsource(ddp.ring_all_reduce))


# %%
def recorded_ring(n):
    spans, gradient = RankSpanRecorder(), torch.ones(n)
    for _ in range(4):  # the first times warm up
        spans.restart()
        ddp.ring_all_reduce(gradient, spans)
    return spans.taken


spans = [span for taken in on_ranks(recorded_ring, 4, 2_000_000).values() for span in taken[0]]
picture, (axes,) = figure.axes(9, 2.6)
figure.draw_spans(
    axes, [replace(span, name=f"chunk {'ABCD'[int(span.name[-1])]}") for span in spans]
)
axes.set(xlabel="milliseconds since all were ready", xlim=(0, None))
picture

# %% [markdown]
# Read a lane from left to right: a rank hands on the chunk that it has just received. A bar ends
# when the rank's own chunk is away and the other one is here, so one rank that comes late makes all
# of them late.
#
# ### One message for each parameter, one for all, or buckets
#
# With an all-reduce at hand, data parallelism takes two lines more than the plain loop. After the
# backward pass:

# %%
print(inspect.getsource(ddp.average_per_parameter))
print(inspect.getsource(ddp.average_flat))

# %% [markdown]
# The first one sends a message for each parameter, and each message waits for a round of greetings,
# however small it is. The second one packs everything into one long tensor: fewer waits, and a
# copy. Both leave the network idle while the backward pass computes, and have nothing to compute
# while the messages travel.
#
# The third way uses what backward does anyway: it finishes the gradients of the **last** layer
# first. So they can be on their way while it still works on the others. Gradients are collected in
# **buckets**, and each is sent as soon as it is full:

# %%
print(inspect.getsource(ddp.Buckets._has_gradient))
print(inspect.getsource(ddp.Buckets.send))

# %% [markdown]
# PyTorch calls `_has_gradient` as soon as a parameter's gradient is there. Note the loop at its
# end: buckets leave in a fixed order, whatever becomes full first, for a collective has no name.
# The ranks' first messages are added up, then their second ones.
#
# Here is one update of each kind, recorded on real ranks:


# %%
def timeline_of(**changes):
    """The spans of a typical one of some updates."""
    steps = list(
        islice(experiment.run(base.turned(ranks=2, timeline=True, mistake="none", **changes)), 14)
    )[4:]
    return sorted(steps, key=lambda step: step.seconds)[len(steps) // 2].spans


width = max(512, base.width)
recorded = {
    method: timeline_of(method=method, width=width, bucket_mib=0.5)
    for method in ("per parameter", "flat", "buckets")
}
picture = figure.Picture((9, 5.6), dpi=100, layout="constrained")
rows = picture.subplots(3, 1, sharex=True)
for axes, (method, spans) in zip(rows, recorded.items()):
    figure.tidy(axes)
    figure.draw_spans(axes, spans)
    axes.set_title(method, loc="right", fontsize=10)
rows[-1].set_xlabel("milliseconds since the update began")
picture

# %% [markdown]
# With buckets, the thin bars lie *below* backward: the messages set out while it works. Its own bar
# has grown, for it now ends only when the last message is through; compare where the whole updates
# end. Whether they get any shorter is another matter: where two ranks share two cores, carrying
# bytes is work for the same two cores, and what is hidden in the picture is not free. On a cluster
# the network card does it, and there the overlap is worth a lot.
#
# ## 5. Prove
#
# Is it the training of one process? Three ways, ten updates each, momentum and weight decay on, in
# float64: one process with the full batch; two ranks with ours; two ranks with PyTorch's own
# `DistributedDataParallel`. The ranks start from **different** weights, for that is what happens
# when each makes its own model; rank 0's are the ones to be shared.


# %%
def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


def ten_updates(way, batches):
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(rank)
    model = models.mlp(784, 32, 10).double()
    forward = DistributedDataParallel(model) if way == "torch" else model
    parallel = ddp.DataParallel(model) if way == "ours" else None
    optimizer = sgd(model)
    for x, y in batches:
        x_mine, y_mine = x[rank::world], y[rank::world]
        if parallel:
            parallel.share = len(y_mine) / len(y)
        optimizer.zero_grad()
        cross_entropy(forward(x_mine), y_mine).backward()
        optimizer.step()
        yield snapshot(model)


# %%
def one_process(batches):
    torch.manual_seed(0)
    model = models.mlp(784, 32, 10).double()
    optimizer = sgd(model)
    for x, y in batches:
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
        yield snapshot(model)


def proof_with(size):
    batches = [(x.double(), y) for x, y in islice(mnist.batches(size), 10)]
    ours, torchs = (on_ranks(ten_updates, 2, way, batches) for way in ("ours", "torch"))
    return prove(
        {
            "one process": one_process(batches),
            "ours, rank 0": ours[0],
            "ours, rank 1": ours[1],
            "torch's DDP": torchs[0],
        }
    )


# %% tags=["nbval-check-output"]
proof = proof_with(64)
assert proof.holds
print(proof)

# %%
proof

# %% [markdown]
# All are the same training, on either rank. Now a batch of 61: one rank has 31 samples and the
# other 30.

# %% tags=["nbval-check-output"]
ragged = proof_with(61)
print(ragged)

# %%
ragged

# %% [markdown]
# PyTorch's own divides by the number of ranks, whatever each of them holds: the mean of means. That
# is documented, and usually it does not matter, since its sampler makes the shards equal by giving
# some samples out twice. But then it is no longer exactly your data set. Weighing by the share
# needs one line, and no such trick.
#
# ## 6. Measure
#
# First the bytes. Our formula promises 2(*p* − 1)/*p* of the gradient from each rank. We do not
# count them ourselves: Linux counts what a process hands over to be written, to files and to
# sockets.


# %%
def written():
    """bytes that this process has written so far, NaN where the system does not tell"""
    try:
        counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return int(counters["wchar"])
    except OSError:
        return float("nan")


def count_bytes(n):
    gradient, counted = torch.ones(n), {}
    for name, all_reduce in (
        ("gloo's all-reduce", dist.all_reduce),
        ("our ring", ddp.ring_all_reduce),
    ):
        all_reduce(gradient)  # connections are made at the first call
        dist.barrier()
        before = written()
        all_reduce(gradient)
        counted[name] = (written() - before) / gradient.nbytes
    return counted


# %%
worlds = (2, 3, 4)
counted = {p: on_ranks(count_bytes, p, 1_000_000)[0][0] for p in worlds}
picture, (axes,) = figure.axes(7, 3)
ps = [1, *worlds, 5, 6, 7, 8]
axes.plot(ps, [2 * (p - 1) / p for p in ps], **figure.LIMIT, label="predicted: 2(p − 1)/p")
for (name, marker, size), color in zip(
    (("gloo's all-reduce", "o", 10), ("our ring", "s", 5)), (figure.BLUE, figure.ORANGE)
):
    axes.plot(
        worlds,
        [counted[p][name] for p in worlds],
        marker,
        markersize=size,
        color=color,
        label=f"{name}, counted by Linux",
    )
axes.plot(
    ps[:5], [p - 1 for p in ps[:5]], ":", color=figure.GREY, label="each to all others: p − 1"
)
axes.plot(4, guess_bytes.value, "*", color=figure.GREEN, markersize=13, label="predicted in part 2")
axes.set(xlabel="ranks p", ylabel="sent by each rank, × its gradient", ylim=(0, None))
axes.legend(frameon=False, fontsize=8)
picture

# %%
guess_bytes.against(counted[4]["our ring"] if counted[4]["our ring"] > 0 else 1.5)

# %% [markdown]
# Now the time. What should two ranks be held against? Against *one rank with one thread*, says
# everybody who wants to show a gain. But the second rank came with a second core, and one process
# with **two threads** could have had that, too. Both comparisons are below. All three runs are kept
# open and take turns, in an order left to chance, and their times are compared turn by turn.


# %%
def race(rounds=9, **changes):
    """seconds of an update, {way: one value for each round}"""
    quiet = base.turned(timeline=False, mistake="none", twin=False, **changes)
    ways = {
        "two ranks": {"ranks": 2},
        "one rank": {"ranks": 1},
        "one rank, two threads": {"ranks": 1, "threads": 2},
    }
    seconds = {way: [] for way in ways}
    with ExitStack() as stack:
        runs = {
            way: stack.enter_context(closing(experiment.run(quiet.turned(**changed))))
            for way, changed in ways.items()
        }
        for _ in range(rounds + 1):
            for way in random.sample(list(runs), len(runs)):
                next(runs[way]), next(runs[way])  # these were begun while another was timed
                seconds[way].append(min(next(runs[way]).seconds for _ in range(3)))
    return {way: taken[1:] for way, taken in seconds.items()}


def against(way, races):
    pairs = {size: zip(seconds["two ranks"], seconds[way]) for size, seconds in races.items()}
    return {
        size: Comparison.of(pair, ("training on two ranks", f"that on {way}"))
        for size, pair in pairs.items()
    }


# %%
by_width = {width: race(width=width) for width in (16, 64, 256, 1024)}
over_one, over_threads = against("one rank", by_width), against("one rank, two threads", by_width)
for width in by_width:
    print(f"width {width}\n    {over_one[width]}\n    {over_threads[width]}")


# %%
def draw_race(axes, races, label):
    """Time of two ranks over the time of one process: below the line, two ranks are faster."""
    axes.axhline(1, **figure.LIMIT, label="equally fast")
    for way, color, style in (
        ("one rank", figure.ORANGE, "--s"),
        ("one rank, two threads", figure.BLUE, "-o"),
    ):
        ratios = against(way, races)
        axes.plot(
            list(ratios),
            [r.ratio for r in ratios.values()],
            style,
            color=color,
            label=f"two ranks over {way}",
        )
        low, high = zip(*(r.interval for r in ratios.values()))
        axes.fill_between(list(ratios), low, high, color=color, alpha=0.15, linewidth=0)
    figure.powers_of_two(axes, label, races)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("time of an update, ×")


picture, (axes,) = figure.axes(8, 3.4)
draw_race(axes, by_width, "width of the hidden layers")
if base.width in by_width:
    axes.plot(
        base.width,
        1 / guess_speed.value,
        "*",
        color=figure.GREEN,
        markersize=13,
        label="predicted in part 2",
    )
axes.legend(frameon=False, fontsize=8)
picture


# %%
def break_even(ratios, what):
    """From which size on two ranks are surely faster, and up to which they are surely slower, in
    words.
    """
    sizes = sorted(ratios)
    slower = [size for size in sizes if ratios[size].differs and ratios[size].ratio > 1]
    surely = {size: ratios[size].differs and ratios[size].ratio < 1 for size in sizes}
    faster = [size for size in sizes if all(surely[larger] for larger in sizes if larger >= size)]
    said = [f"surely slower up to {what} {max(slower)}"] if slower else []
    said.append(
        f"surely faster from {what} {min(faster)} on" if faster else f"at no {what} surely faster"
    )
    return ", ".join(said)


print("two ranks, against one rank:               ", break_even(over_one, "width"))
print("two ranks, against one with two threads:   ", break_even(over_threads, "width"))

# %%
at = min(by_width, key=lambda width: abs(width - base.width))
guess_speed.against(1 / over_one[at].ratio)

# %% [markdown]
# Two workers are slower, until the model is this big. *How* big depends on the machine, and on what
# else it does meanwhile; and where the lines above say *at no width*, that is an answer, too: the
# second core was busy with something else, or sending costs more than it saves. A wide band means
# that this machine was busy, and that the run did not settle it.
#
# Two costs are at work. Each message takes some time, however small it is; that is what a narrow
# network pays, and a wider one soon outgrows. And each byte takes some time. That cost does *not*
# shrink in proportion here: with the width, the sums to be done and the bytes to be sent both grow
# as the number of parameters. Part 8 shows the lever for that one.

# %% [markdown]
# ## 7. Break it
#
# In the panel below every update is repeated from the same weights by one process that has the
# whole batch, and the difference is drawn: the *error of the update*, 1 meaning that all of it is
# wrong. Rounding alone gives about 10⁻⁶.
#
# Press **Start**, then go through the mistakes. Which of them would you have noticed from the loss?
# *Mismatched shapes*, *dying rank* and *the article's formula* end the run, and the line beside the
# buttons says why.

# %%
broken = base.turned(twin=True, ranks=max(2, base.ranks), mistake="none")
break_it = Panel(
    experiment.run,
    broken,
    [
        Curve("update_error", "error of the update", over="updates", log=(1e-8, 1e2)),
        Curve("loss", "loss", over="updates"),
        Timeline(),
    ],
    controls=["mistake", "ranks"],
    baselines={"no mistake": broken},
    tour=[
        broken.turned(mistake=m)
        for m in ("skip the division", "forget the broadcast", "same shard everywhere", "slow rank")
    ],
    seconds=1.5,
    badge=Badge(
        "update_error", 1e-4, "every update is that of one process", "not the update of one process"
    ),
)
break_it

# %% [markdown]
# - **skip the division** adds up the ranks' means: the gradient is *p* times too long.
# - **forget the broadcast**: the ranks start apart and stay apart. They exchange gradients that
#   belong to other weights, and the loss falls all the same.
# - **same shard everywhere** is the quietest. All ranks agree perfectly, the loss falls nicely, and
#   every second sample trains nothing. A sampler that does not know its rank does this, without a
#   word.
# - **wrong rank order**: one rank packs its parameters in another order. Gradients are added up
#   that have nothing to do with one another.
# - **slow rank** is no mistake in the result, look at the badge. In the timeline above, all others
#   wait: the slowest rank sets the pace.
#
# ### The article's formula
#
# And *new = average(old + gradient × number of processes)*? Averaging the weights of ranks that
# made the same kind of step is averaging their gradients, so the idea has a sound core. Three
# things are wrong with it as it stands: the sign climbs, there is no learning rate, and the step
# grows with the number of ranks. Word for word it is this:

# %%
print(inspect.getsource(experiment.article_update))


# %%
def losses_until_it_ends(settings, updates=25):
    losses = []
    with closing(experiment.run(settings)) as steps:
        try:
            losses += (step.metrics["loss"] for step in islice(steps, updates))
        except NonFiniteLoss as error:
            print(f"{settings.mistake}: {error}")
    return losses


plain = base.turned(ranks=2, timeline=False, mistake="none")
rules = {
    "the right rule": plain,
    "the article's formula": plain.turned(mistake="the article's formula"),
}
picture, (axes,) = figure.axes(8, 3)
for (rule, settings), (color, style) in zip(
    rules.items(), ((figure.BLUE, "-o"), (figure.ORANGE, "--s"))
):
    axes.plot(losses_until_it_ends(settings), style, color=color, markersize=4, label=rule)
axes.set(yscale="log", xlabel="updates", ylabel="loss")
axes.legend(frameon=False)
picture

# %% [markdown]
# ### When a rank fails
#
# The worst of many workers is that one of them can fail, and the others then complain more loudly
# than it does. Ours say one line, and it is about the rank that began. Here one has a fault of its
# own, one is killed, one hangs, and one brings another model:


# %%
def has_a_fault():
    if dist.get_rank() == 1:
        raise ValueError("a label of 10, and there are 10 classes")
    dist.barrier()


def sleeps_in():
    if dist.get_rank() == 1:
        torch.futures.Future().wait()  # for ever
    dist.barrier()


def first_line(ranks):
    try:
        list(islice(ranks, 20))
    except RankFailed as failed:
        print(str(failed).splitlines()[0].partition("(")[0])


# %% tags=["nbval-check-output"]
first_line(launch(has_a_fault, 2))
first_line(experiment.run(plain.turned(mistake="dying rank")))

# %%
first_line(launch(sleeps_in, 2, timeout=2))
first_line(experiment.run(plain.turned(mistake="mismatched shapes")))

# %% [markdown]
# The rest of each message, left out here, holds the traceback, or the place where every rank
# stands.
#
# ## 8. When it does not help
#
# **When there is too little to compute for each byte.** A rank computes for its *samples*, and
# sends for its *parameters*. More samples per rank are more work for the same bytes. Here is the
# batch as the lever, at one width:

# %%
by_batch = {size: race(batch_size=size) for size in (32, 128, 512)}
picture, (axes,) = figure.axes(8, 3.2)
draw_race(axes, by_batch, f"samples in a batch (width {base.width})")
axes.legend(frameon=False, fontsize=8)
picture

# %%
more_samples, more_over_threads = (
    against("one rank", by_batch),
    against("one rank, two threads", by_batch),
)
print("two ranks, against one rank:               ", break_even(more_samples, "batch size"))
print("two ranks, against one with two threads:   ", break_even(more_over_threads, "batch size"))

# %% [markdown]
# That is why large trainings use large batches, and it is no free lunch: a larger batch means fewer
# updates for the same samples, and the learning rate must be found again.
#
# **When ranks outnumber the cores.** Ranks that take turns on a core compute no faster, and there
# are more of them to wait for:

# %%
for ranks in (1, 2, 4):
    steps = list(islice(experiment.run(plain.turned(ranks=ranks, width=256)), 16))[4:]
    typical = sorted(step.throughput for step in steps)[len(steps) // 2]
    sent = steps[-1].metrics["bytes_sent"] / 2**20
    print(
        f"{ranks} rank{'s' if ranks > 1 else ' '}: {typical:>9,.0f} samples/s, {sent:.2f} MiB sent "
        "by each per update"
    )

# %% [markdown]
# **When the model does not fit.** Every rank holds all of it, and the optimizer's memory besides.
# For that the model itself has to be split, over pipeline stages or shards.
#
# On one machine, threads are the first thing to try. Ranks are for what threads cannot have: a GPU
# each, or a machine each. The worker you have been running does not know the difference. Started by
# PyTorch's own launcher on each of two machines it trains across them:
#
# ```
# torchrun --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint FIRST_MACHINE:29500 -m accel_lab run ddp --steps 100
# ```
#
# So, about the claims from the start: the verdict, for this machine.

# %%
widest = max(by_width)
verdict = (
    f"2 ranks against 1: {break_even(over_one, 'width')} ({over_one[widest].ratio:.2f} × the time "
    f"at {widest}); "
    f"against 1 process with 2 threads: {break_even(over_threads, 'width')} "
    f"({over_threads[widest].ratio:.2f} × at {widest}); "
    f"same weights to rounding"
)
log_verdict("ddp", verdict)

# %% [markdown]
# ## 9. Exercises
#
# Write the functions and run the cells; `check` tries each on fresh data and explains what it
# finds. An exercise left alone counts as not attempted, nothing worse.

# %%
from accel_lab.grading.practice import check, exercises

RING, SHARD, PLAN = exercises("ddp")
RING


# %% tags=["exercise"]
def ring_average(gradient, share, rank, world, send, receive):
    raise NotImplementedError


check(ring_average)

# %%
SHARD


# %% tags=["exercise"]
def train_on_rank(model, optimizer, x, y, batches, rank, world, all_reduce):
    # The worker as found:
    #
    #   for batch in batches:
    #       mine = batch[: -(-len(batch) // world)]
    #       loss = cross_entropy(model(x[mine]), y[mine])
    #       (loss / world).backward()
    #       for parameter in model.parameters():
    #           all_reduce(parameter.grad)
    #       optimizer.step()
    raise NotImplementedError


check(train_on_rank)

# %%
PLAN


# %% tags=["exercise"]
def best_ranks(batch_size, seconds_per_sample, gradient_bytes, latency, bytes_per_second, most):
    raise NotImplementedError


check(best_ranks)

# %% [markdown]
# ## 10. Take away
#
# - Data parallelism splits the batch, not the model. Ranks that start equal and average their
#   gradients, each weighed by its share, do the training of one process with the whole batch.
# - A ring sends 2(*p* − 1)/*p* of the gradient from each rank, less than twice its size for any
#   number of ranks.
# - It pays when the computing per rank outweighs the sending: more samples per rank, or a better
#   wire. Width alone outgrows only the cost per message.
# - Compare two ranks with what one process can do with the same cores.
# - The dangerous mistakes do not crash: a shard dealt twice, weights never shared, a mean of means.
#
# **What would prove this wrong?** A model without batch normalization or dropout, whose ranks
# differ from one process by more than rounding. Batch normalization sees a rank's samples only, and
# dropout draws on each rank for itself.
#
# **Sources.** P. Patarasuk and X. Yuan, *Bandwidth optimal all-reduce algorithms for clusters of
# workstations*, 2009 · S. Li et al., *PyTorch Distributed: Experiences on accelerating data
# parallel training*, 2020, arXiv:2006.15704 · P. Goyal et al., *Accurate, Large Minibatch SGD*,
# 2017, arXiv:1706.02677, for the learning rate of large batches.
#
# **Next.** Every rank here holds the whole model. If that is too large for one of them, the layers
# can be dealt out instead. That is pipeline parallelism, chapter 18.
