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
# One worker trains a model. Now you have two. In **data parallelism** each worker holds the whole
# model and takes half of every batch; before the weights change, the two agree on one gradient. You
# can read about it:
#
# > *The model is split over the machines, each trains its part, and the parameters are aggregated:*
# > *new = average(old + gradient × number of processes).*
# >
# > *With more machines, training is faster.*
#
# The first claim has a sound core. The second is why people do it at all. You will find out what
# has to be averaged, what that costs, and at which size of model two workers are faster than one,
# if they are on your machine.

# %% jupyter={"source_hidden": true}
import math
import time
from itertools import islice

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from accel_lab import ddp
from accel_lab.experiments import ddp as experiment
from accel_lab.workbench import chapter as lab

# %% [markdown]
# The next cell holds the settings of this chapter. Change one, as in `knobs = {"width": 512}`, and
# run the notebook again: everything below follows.

# %% tags=["parameters"]
knobs = {}

# %%
base = lab.settings(experiment.Knobs, knobs)
mnist = lab.datasets.mnist5k()
sizes = [p.numel() for p in lab.models.mlp(784, base.width, base.width, 10).parameters()]
print(f"a network of {sum(sizes):,} parameters in {len(sizes)} tensors")
print(f"each update averages {4 * sum(sizes) / 2**20:.2f} MiB of gradients")
print(f"this machine has {lab.usable_cores()} cores that we may use")

# %% [markdown]
# A worker is called a **rank** here, and the number of ranks is the **world size** *p*. (Such words
# are in the glossary, at the end of [Start here](00_start_here.ipynb).) `launch` starts some: it
# runs a function on each of them, even one from a cell, and hands over what they return.


# %% tags=["nbval-check-output"]
def introduce(greeting):
    return f"{greeting} from rank {dist.get_rank()} of {dist.get_world_size()}"


for _, line in sorted(lab.launch(introduce, 2, "hello")):
    print(line)

# %% [markdown]
# ## 2. Predict
#
# Two guesses, before you see anything. A wrong one costs nothing, and you may skip them.

# %%
guess_bytes = lab.Prediction(
    "Four ranks have different gradients, and all four need the sum. How much does each rank "
    "have to send, in gradients?",
    low=0.5,
    high=12,
    default=3.0,
    unit="× the gradient",
)
guess_bytes

# %%
guess_speed = lab.Prediction(
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
# A small network is trained on handwritten digits, by processes that start when you press the
# button. The size of the batch stays the same; more ranks get smaller parts of it. The dashed
# orange line is one rank that takes the whole batch. In the timeline each lane is one process; the
# thin bars below a lane are messages on their way.
#
# Press **Start**. Then change **ranks**, move **width** up and down, and try the **methods**: what
# makes two ranks catch up?

# %% jupyter={"source_hidden": true}
charts = [
    lab.Curve("throughput", "samples/s"),
    lab.Sweep(
        "ranks",
        "bytes_sent",
        "MiB sent by each rank",
        scale=2**-20,
        predicted=experiment.predicted_bytes_sent,
        formula="2(p − 1)/p · gradient",
    ),
    lab.Curve("loss", "loss", over="updates", limit=(math.log(10), "chance, ln 10")),
    lab.Timeline(),
]

# %%
panel = lab.Panel(
    experiment.run,
    base,
    charts,
    controls=["method", "ranks", "width", "bucket_mib"],
    baselines={"one rank": {"ranks": 1}},
    tour=[base.turned(ranks=4), base.turned(ranks=2)],
    seconds=1.5,
)
panel

# %% [markdown]
# What to look for:
#
# - The **loss** over the updates is the same: two ranks, or four, do the training of one (part 5
#   proves it). A fast run is drawn at fewer updates, so the straight pieces between its points can
#   lie apart.
# - The **bytes sent** by each rank soon level off: with more and more ranks they approach twice the
#   gradient.
# - The **throughput** has no such rule. Compare a narrow network with a wide one: where does the
#   second rank cost speed on your machine, and does it gain any? We come back to it, with care.

# %% [markdown]
# ## 4. Build
#
# The loss of a batch is a mean over its *n* samples. If rank *r* has $n_r$ of them, and $L_r$ is
# the mean loss of these,
#
# $$\nabla L = \sum_{r=1}^{p} \frac{n_r}{n} \nabla L_r .$$
#
# So each rank weights its gradient by its **share** of the batch, $n_r/n$, and all need the sum.
# Adding up over ranks so that each of them gets the result is called an **all-reduce**; PyTorch's
# works in place. Here are 61 samples on two ranks:


# %% tags=["nbval-check-output"]
def averaged(model, x, y):
    x_mine, y_mine = x[dist.get_rank() :: 2], y[dist.get_rank() :: 2]
    cross_entropy(model(x_mine), y_mine).backward()
    share, gradient = len(y_mine) / len(y), model[1].weight.grad
    dist.all_reduce(gradient.mul_(share))
    return share, gradient


model = lab.models.mlp(784, 32, 10).double()
x, y = mnist.train_x[:61].double(), mnist.train_y[:61]
whole = torch.autograd.grad(cross_entropy(model(x), y), model[1].weight)[0]
for rank, (share, gradient) in sorted(lab.launch(averaged, 2, model, x, y)):
    same = torch.allclose(gradient, whole, atol=1e-12)
    print(f"rank {rank}: share {share:.3f}; the gradient of the whole batch: {same}")

# %% [markdown]
# With the same gradient every rank makes the same update. Weights that start equal stay equal,
# without being sent again. Only the batch is split; the model is not.
#
# ### The ring
#
# How do *p* ranks add up? If each sent its gradient to all others, it would send *p* − 1 of them. A
# ring does better. Each rank sends only to the next rank and receives only from the previous one,
# and every link is busy all the time.
#
# The gradient is cut into *p* **chunks**, and there are two halves. In the first,
# **reduce-scatter**, a rank adds what it receives to its own chunk, and passes the sum on in the
# next turn:

# %%
reduce_scatter = (ddp.ring_exchange, ddp.reduce_scatter_turns, ddp.ring_reduce_scatter)
lab.show_source(*reduce_scatter, docstring=False)

# %% [markdown]
# In the second half, **all-gather**, the complete chunks go round and replace what is there. It
# begins where the first half ends: rank *r* has the complete chunk *r* + 1, the last rank chunk 0.
#
# One line of its turns is left out. Like the first half's, it gives a pair for each turn: the chunk
# to send right, and the chunk to receive from the left. Yours is played on four ranks, with a dot
# for what is not complete:


# %%
def all_get_all(turns_of):
    chunks, ranks = "ABCD", range(4)
    holds = [[chunks[c] if c == (rank + 1) % 4 else "." for c in ranks] for rank in ranks]
    for pairs in zip(*[turns_of(rank, 4) for rank in ranks]):
        sent = [held[out] for held, (out, _) in zip(holds, pairs)]
        for rank, (_, into) in enumerate(pairs):
            holds[rank][into] = sent[rank - 1]
    return ["".join(held) for held in holds], [chunks] * 4


# %% jupyter={"source_hidden": true}
lab.MissingLine(
    ddp.all_gather_turns,
    {
        (
            "return [((rank - turn + 1) % world, (rank - turn) % world)"
            " for turn in range(world - 1)]"
        ): ("A rank sends its complete chunk first, and then passes on what has just arrived."),
        (
            "return [((rank - turn) % world, (rank - turn - 1) % world)"
            " for turn in range(world - 1)]"
        ): (
            "The turns of reduce-scatter: only incomplete chunks are sent, and in the last turn "
            "they replace the complete ones."
        ),
        (
            "return [((rank + turn + 1) % world, (rank + turn) % world)"
            " for turn in range(world - 1)]"
        ): (
            "Counts up, not down: in the second turn an incomplete chunk replaces the complete one."
        ),
        "return [((rank + 1) % world, rank) for turn in range(world - 1)]": (
            "The same chunk in every turn: a rank only ever gets its left neighbour's."
        ),
    },
    all_get_all,
)

# %% [markdown]
# The all-reduce is the two halves, one after the other:

# %%
lab.show_source(ddp.ring_all_gather, ddp.ring_all_reduce, docstring=False)

# %% [markdown]
# Here is the whole journey on four real ranks. Each begins with ones, so that a number says how
# many ranks' contributions are in a chunk. First rank 0 alone, turn by turn:

# %% tags=["nbval-check-output"]
heard = lab.collect(experiment.ring_turn_by_turn, 4)
for turn, (received, holds) in enumerate(heard[0]):
    print(f"turn {turn}: {holds}", "" if received is None else f"received {'ABCD'[received]}")
print("all ranks end with", [turns[-1][1] for turns in heard.values()])

# %% [markdown]
# Now all four. A row is a rank. An orange frame is a chunk that has just arrived, the arrow shows
# from whom, and the number beside it is what travelled. Press **Play**, or move **turn** with the
# arrow keys:


# %% tags=["hero"]
def ring(turn=1):
    halves = ["at first"] + 3 * ["reduce-scatter: a rank adds what arrives"]
    halves += 3 * ["all-gather: what arrives replaces what was there"]
    title = f"turn {turn} of 6 · {halves[turn]}"
    return lab.motion.draw_turn(turns, turn, title, columns="ABCD")


turns = list(zip(*heard.values()))  # [turn][rank]: the chunk just received, and all that it holds
lab.Sliders(ring, turn=range(7))

# %% [markdown]
# The three states to remember, this time with the *complete* chunks framed. After
# **reduce-scatter** each rank holds one of them, a 4; after **all-gather** every rank holds all
# four:

# %% jupyter={"source_hidden": true}
states = {"at first": 0, "after reduce-scatter": 3, "after all-gather": 6}
holds = {name: [held for _, held in turns[turn]] for name, turn in states.items()}
cells = [(rank, chunk) for rank in range(4) for chunk in range(4)]
complete = {name: [(r, c) for r, c in cells if held[r][c] == 4] for name, held in holds.items()}
lab.figure.draw_grid(holds, arrived=complete, columns="ABCD")

# %% [markdown]
# Each half takes *p* − 1 turns, and in each turn a rank sends one chunk, 1/*p* of the gradient: in
# all $2(p-1)/p$ gradients. Less is not possible if all ranks send equally much.

# %% [markdown]
# The same journey in time, with two million numbers, recorded on four processes:

# %%
taken = lab.collect(experiment.recorded_ring, 4, 2_000_000)
spans = [span for each in taken.values() for span in each]
lab.figure.draw_timelines({"": spans}, label="milliseconds since all were ready")

# %% [markdown]
# Read a lane from left to right: a rank passes on the chunk that it has just received. A bar ends
# when the rank's own chunk is sent and the other one has arrived, so one late rank makes all of
# them late.
#
# ### One message for each parameter, one for all, or buckets
#
# With an all-reduce at hand, data parallelism takes two more lines than the plain loop. After the
# backward pass, either of these:

# %%
lab.show_source(ddp.average_per_parameter, ddp.average_flat, docstring=False)

# %% [markdown]
# The first sends a message for each parameter, and each message costs a round trip, however small
# it is. The second packs everything into one long tensor: fewer waits, and a copy. Both leave the
# network idle while backward computes, and compute nothing while the messages travel.
#
# The third way overlaps the two. Backward finishes the gradients of the **last** layer first, so
# these can travel while it still works on the others. Gradients are collected in **buckets**, and
# each bucket is sent as soon as it is full. PyTorch calls `_has_gradient` when a parameter's
# gradient is there:

# %%
lab.show_source(ddp.Buckets._has_gradient, ddp.Buckets.send, docstring=False)

# %% [markdown]
# Note the loop at the end of the hook: buckets leave in a fixed order, whichever becomes full
# first. All-reduces are matched only by their order, the first of one rank with the first of the
# others.
#
# Here is one typical update of each kind, recorded on two ranks:

# %%
wide = base.turned(width=max(512, base.width), bucket_mib=0.5, ranks=2, mistake="none")
typical = {}
for method in ("per parameter", "flat", "buckets"):
    typical[method] = experiment.typical_update(wide.turned(method=method, timeline=True))
    print(f"{method:<13}: {1e3 * typical[method].seconds:6.1f} ms")
lab.figure.draw_timelines({method: step.spans for method, step in typical.items()})

# %% [markdown]
# With buckets, the thin bars lie *below* backward: the messages leave while it works. Its own bar
# is longer, because it now ends only when the last message has arrived. What counts is where the
# whole update ends, in milliseconds above.
#
# Overlap is not free where two ranks share two cores: carrying bytes is work for the same cores. On
# a cluster whose network cards or GPUs do that work by themselves, the overlap is worth a lot.
#
# *Half-way. This is a good place to stop and come back to: run all cells above, and go on here.*

# %% [markdown]
# ## 5. Prove
#
# Is it the training of one process? Ten updates in three ways, with momentum and weight decay, in
# float64. First one process with the full batch. It runs on a rank too, the only one:


# %%
def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


def network(seed):
    torch.manual_seed(seed)
    return lab.models.mlp(784, 32, 10).double()


def one_process(batches):
    model = network(0)
    optimizer = sgd(model)
    for x, y in batches:
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
        yield lab.snapshot(model)


# %% [markdown]
# Then ours, and PyTorch's `DistributedDataParallel`. The ranks start from **different** weights, as
# they do when each makes its own model; rank 0's are sent to all. Compare with the loop above: what
# is new is the shard, and in ours the share.


# %%
def ours(batches):
    rank, world = dist.get_rank(), dist.get_world_size()
    model = network(rank)
    parallel, optimizer = ddp.DataParallel(model), sgd(model)
    for x, y in batches:
        x_mine, y_mine = x[rank::world], y[rank::world]
        parallel.share = len(y_mine) / len(y)
        optimizer.zero_grad()
        cross_entropy(model(x_mine), y_mine).backward()
        optimizer.step()
        yield lab.snapshot(model)


# %%
def torchs(batches):
    rank, world = dist.get_rank(), dist.get_world_size()
    model = network(rank)
    forward, optimizer = DistributedDataParallel(model), sgd(model)
    for x, y in batches:
        optimizer.zero_grad()
        cross_entropy(forward(x[rank::world]), y[rank::world]).backward()
        optimizer.step()
        yield lab.snapshot(model)


# %% tags=["nbval-check-output"]
def proof_with(size):
    batches = [(x.double(), y) for x, y in islice(mnist.batches(size), 10)]
    rank_0, rank_1 = lab.collect(ours, 2, batches).values()
    alone = lab.collect(one_process, 1, batches)[0]
    theirs = lab.collect(torchs, 2, batches)[0]
    ways = {"one process": alone, "ours, rank 0": rank_0, "ours, rank 1": rank_1}
    return lab.prove({**ways, "torch's DDP": theirs})


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

# %% [markdown]
# PyTorch's own divides by the number of ranks, even if they hold different numbers of samples: a
# mean of means. This is documented. Usually it does not matter, because its sampler makes the
# shards equal by giving out some samples twice; but then it is no longer exactly your data set.
# Weighting by the share takes one line instead.

# %% [markdown]
# ## 6. Measure
#
# First the bytes. The formula promises 2(*p* − 1)/*p* of the gradient from each rank. We do not
# count them ourselves: Linux counts what a process hands over to be written, to files and to
# sockets.


# %%
def count_bytes(n):
    gradient = torch.ones(n)
    for all_reduce in (dist.all_reduce, ddp.ring_all_reduce):
        all_reduce(gradient)  # connections are made at the first call
        dist.barrier()
        before = lab.bytes_written()
        all_reduce(gradient)
        yield (lab.bytes_written() - before) / gradient.nbytes


counted = {p: lab.collect(count_bytes, p, 1_000_000)[0] for p in (2, 3, 4)}
for p, (gloo, ring) in counted.items():
    print(f"p = {p}: gloo's {gloo:.3f}, our ring {ring:.3f}, formula {2 * (p - 1) / p:.3f}")

# %% jupyter={"source_hidden": true}
picture, (axes,) = lab.figure.axes(7.5, 3)
ps, four = range(1, 9), range(1, 5)
axes.plot(ps, [2 * (p - 1) / p for p in ps], **lab.figure.LIMIT, label="predicted: 2(p − 1)/p")
gloos, rings = zip(*counted.values())
style = {"markersize": 10, "color": lab.figure.BLUE}
axes.plot(list(counted), gloos, "o", **style, label="gloo's all-reduce, counted by Linux")
style = {"markersize": 5, "color": lab.figure.GREEN}
axes.plot(list(counted), rings, "s", **style, label="our ring, counted by Linux")
axes.plot(four, [p - 1 for p in four], ":", color=lab.figure.GREY, label="to all others: p − 1")
lab.figure.draw_guess(axes, {4: guess_bytes.value})
axes.set(xlabel="ranks p", ylabel="sent by each rank, × its gradient", ylim=(0, None))
axes.legend(frameon=False, fontsize=8)
picture

# %%
sent = counted[4][1]
guess_bytes.against(sent if sent > 0 else 1.5)

# %% [markdown]
# Now the time. What should two ranks be compared with? Usually it is *one rank with one thread*,
# because that shows the larger gain. But the second rank came with a second core, and one process
# with **two threads** could have used that core as well. So there are two comparisons.
#
# Two runs are open at a time and take turns, in random order, and their times are compared turn by
# turn:


# %%
def raced(threads, **changes):
    """The time of an update on two ranks over that in one process with some threads."""
    quiet = base.turned(timeline=False, mistake="none", twin=False, **changes)
    number = ("one thread", "two threads")[threads - 1]
    ours, peer = "training on two ranks", f"one process with {number}"
    ways = {ours: quiet.turned(ranks=2), peer: quiet.turned(ranks=1, threads=threads)}
    seconds = lab.race(experiment.run, ways, updates=2)
    return lab.compared(seconds, ours, peer)


# %%
widths = lab.along((16, 64, 256, 1024))
over_one = {width: raced(1, width=width) for width in widths}
over_threads = {width: raced(2, width=width) for width in widths}
for width in widths:
    print(f"width {width}:\n  {over_one[width]}\n  {over_threads[width]}")


# %% jupyter={"source_hidden": true}
def draw_race(over_one, over_threads, label):
    """Below the line, two ranks are faster."""
    picture, (axes,) = lab.figure.axes(8, 3.4)
    lab.figure.powers_of_two(axes, label, over_one)
    ylabel, one = "time on two ranks, ×", {"color": lab.figure.ORANGE, "style": "--s"}
    lab.figure.draw_ratios(axes, over_one, ylabel, label="two ranks over one thread", **one)
    lab.figure.draw_ratios(axes, over_threads, label="two ranks over two threads", style="-o")
    return picture, axes


picture, axes = draw_race(over_one, over_threads, "width of the hidden layers")
lab.figure.draw_guess(axes, {base.width: 1 / guess_speed.value})
axes.legend(frameon=False, fontsize=8)
picture

# %%
print("two ranks, against one thread: ", lab.break_even(over_one, "width"))
print("two ranks, against two threads:", lab.break_even(over_threads, "width"))
nearest = min(widths, key=lambda width: abs(width - base.width))
guess_speed.against(over_one[nearest], inverse=True)

# %% [markdown]
# *At no width* is an answer too: the second core was busy, or sending costs more than it saves. A
# wide interval means that this machine was busy, and that the run did not settle it. Two costs are
# at work:
#
# - **Each message** takes some time, however small it is. A narrow network pays for that; a wider
#   one soon outgrows it.
# - **Each byte** takes some time. This cost does *not* shrink in proportion: with the width, the
#   arithmetic and the bytes both grow as the number of parameters. Part 8 shows what helps.

# %% [markdown]
# ## 7. Break it
#
# In the panel below, one process with the whole batch repeats every update from the same weights,
# and the difference is drawn: the *error of the update*, where 1 means that all of it is wrong.
# Rounding alone gives about 10⁻⁶.
#
# Press **Start**, then go through the mistakes. Which of them would you have noticed from the loss?
# *Mismatched shapes*, *dying rank* and *the article's formula* end the run, and the line below the
# buttons says why.

# %% jupyter={"source_hidden": true}
broken = base.turned(twin=True, ranks=max(2, base.ranks), mistake="none")
charts = [
    lab.Curve("update_error", "error of the update", over="updates", log=(1e-8, 1e2)),
    lab.Curve("loss", "loss", over="updates", limit=(math.log(10), "chance, ln 10")),
    lab.Timeline(),
]
right_or_wrong = lab.Badge(
    "update_error", 1e-4, "every update is that of one process", "not the update of one process"
)

# %%
quiet_ones = ("skip the division", "forget the broadcast", "same shard everywhere", "slow rank")
break_it = lab.Panel(
    experiment.run,
    broken,
    charts,
    controls=["mistake", "ranks"],
    baselines={"no mistake": {"mistake": "none"}},
    headline=None,
    tour=[broken.turned(mistake=mistake) for mistake in quiet_ones],
    seconds=1.0,
    badge=right_or_wrong,
)
break_it

# %% [markdown]
# Write down what you think each mistake does, then look.
#
# <details><summary>What each of them does</summary>
#
# - **skip the division** adds up the ranks' means: the gradient is *p* times too large.
# - **forget the broadcast**: the ranks start apart and stay apart. They exchange gradients that
#   belong to other weights, and the loss falls anyway.
# - **same shard everywhere** is the quietest. All ranks agree perfectly, the loss falls nicely, and
#   only one sample in *p* is ever used. A sampler that does not know its rank does this silently.
# - **wrong rank order**: one rank packs its parameters in another order. Gradients are added up
#   that have nothing to do with one another.
# - **slow rank** does not spoil the result, look at the badge. In the timeline all others wait: the
#   slowest rank sets the pace.
#
# </details>

# %% [markdown]
# ### The article's formula
#
# And *new = average(old + gradient × number of processes)*? Averaging the weights of ranks that
# made the same kind of step is averaging their gradients, so the idea has a sound core. Three
# things are wrong with it: the sign climbs, there is no learning rate, and the step
# grows with the number of ranks. Word for word it is this:

# %%
lab.show_source(experiment.article_update, docstring=False)

# %%
plain = base.turned(ranks=2, timeline=False, twin=False, mistake="none")
losses, _ = experiment.losses_until_it_ends(plain)
climbing, why = experiment.losses_until_it_ends(plain.turned(mistake="the article's formula"))
print("the article's formula:", why or f"still finite after {len(climbing)} updates")
picture, (axes,) = lab.figure.axes(8, 3)
axes.set(yscale="log", xlabel="updates", ylabel="loss")
lab.figure.draw_lines(axes, {"the right rule": losses, "the article's formula": climbing})
picture

# %% [markdown]
# ### When a rank fails
#
# The worst about many workers is that one of them can fail, and that the others then complain more
# loudly than it does. Here the message names the rank that failed first, and goes on with its
# traceback, or with the line at which every rank stands. These are first lines: one rank has a bug;
# one is killed; one never comes, so that the other waits in vain; one brings a different model.


# %% tags=["nbval-check-output"]
def has_a_fault():
    if dist.get_rank() == 1:
        raise ValueError("a label of 10, and there are 10 classes")
    dist.barrier()


print(lab.failure_of(lab.launch(has_a_fault, 2)).headline)
print(lab.failure_of(experiment.run(plain.turned(mistake="dying rank"))).headline)


# %%
def sleeps_in():
    if dist.get_rank() == 1:
        time.sleep(1000)
    dist.barrier()


hung = lab.failure_of(lab.launch(sleeps_in, 2, timeout=2))
print(hung.headline.partition(" (")[0])
print(lab.failure_of(experiment.run(plain.turned(mistake="mismatched shapes"))).headline)

# %% [markdown]
# ## 8. When it does not help
#
# **When there is too little to compute for each byte.** A rank computes for its *samples*, and
# sends for its *parameters*. More samples per rank are more work for the same bytes. Here is the
# batch size as the lever, at one width:

# %%
batch_sizes = lab.along((32, 128, 512))
more_over_one = {size: raced(1, batch_size=size) for size in batch_sizes}
more_over_threads = {size: raced(2, batch_size=size) for size in batch_sizes}
print("two ranks, against one thread: ", lab.break_even(more_over_one, "batch size"))
print("two ranks, against two threads:", lab.break_even(more_over_threads, "batch size"))
label = f"samples in a batch (width {base.width})"
picture, axes = draw_race(more_over_one, more_over_threads, label)
axes.legend(frameon=False, fontsize=8)
picture

# %% [markdown]
# That is why large trainings use large batches. It has a price: a larger batch means fewer updates
# for the same samples, and the learning rate must be tuned again.
#
# **When ranks outnumber the cores.** Ranks that take turns on a core compute no faster, and there
# are more of them to wait for:

# %%
for ranks in (1, 2, 4):
    step = experiment.typical_update(plain.turned(ranks=ranks, width=256))
    sent = step.metrics["bytes_sent"] / 2**20
    print(
        f"ranks: {ranks}, {step.throughput:>8,.0f} samples/s, each sends {sent:.2f} MiB an update"
    )

# %% [markdown]
# **When the model does not fit.** Every rank holds all of it, and the optimizer's memory as well.
# For that the model itself has to be split, over pipeline stages or shards.
#
# On one machine, threads are the first thing to try. Ranks are for what threads cannot have: a GPU
# each, or a machine each. The worker you have been running does not know the difference. Started by
# PyTorch's own launcher on each of two machines, it trains across them:
#
# ```
# torchrun --nnodes 2 --nproc-per-node 1 \
#     --rdzv-backend c10d --rdzv-endpoint FIRST_MACHINE:29500 \
#     -m accel_lab run ddp --steps 100
# ```
#
# So, about the claims from the start: the verdict, for this machine.

# %%
widest = max(widths)
one, two = over_one[widest].ratio, over_threads[widest].ratio
verdict = (
    f"2 ranks against 1 thread: {lab.break_even(over_one, 'width')} ({one:.2f} × the time at "
    f"{widest}); against 2 threads: {lab.break_even(over_threads, 'width')} ({two:.2f} × at "
    f"{widest}); same weights to rounding"
)
lab.log_verdict("ddp", verdict)

# %% [markdown]
# ## 9. Exercises
#
# Write the functions and run the cells; `check` tries each on fresh data. It says what is right
# already, shows a small case that is not, and gives a hint where it knows the mistake. After two
# different tries it offers a worked solution. Some functions are written already, with faults:
# repair them.

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
    for batch in batches:
        mine = batch[: -(-len(batch) // world)]
        loss = cross_entropy(model(x[mine]), y[mine]) / world
        loss.backward()
        for parameter in model.parameters():
            all_reduce(parameter.grad)
        optimizer.step()


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
#   gradients, each weighted by its share, do the training of one process with the whole batch.
# - A ring sends 2(*p* − 1)/*p* of the gradient from each rank, less than twice its size for any
#   number of ranks.
# - It pays when the computing per rank outweighs the sending: more samples per rank, or a faster
#   network. Width alone outgrows only the cost per message.
# - Compare two ranks with what one process can do with the same cores.
# - The dangerous mistakes do not crash: a shard dealt twice, weights never shared, a mean of means.

# %% [markdown]
# Known from elsewhere, and not measured here: with *k* times the batch the learning rate usually
# has to grow, about *k*-fold and after a warm-up (Goyal). In this chapter the batch stays the
# same, and each rank's share of it shrinks: *strong* scaling. In *weak* scaling each rank keeps
# its batch, and the whole one grows. PyTorch's buckets hold 25 MiB. `SyncBatchNorm` shares
# statistics, `Join` lets ranks have unequally many batches, `DistributedSampler.set_epoch` deals
# new shards. ZeRO (arXiv:1910.02054) and FSDP (arXiv:2304.11277) cut the model's state as well.
# Averaging *weights* after every step equals averaging gradients only where the update is linear in
# the gradient: SGD, with momentum and weight decay too, but not Adam.

# %% [markdown]
# **What would prove this wrong?** A model without batch normalization or dropout, and a loss that
# is a mean over samples, whose ranks differ from one process by more than rounding. (A contrastive
# loss compares each sample with the others of its batch: ranks that see a shard each compute
# another loss.)
#
# **Sources.** P. Patarasuk and X. Yuan, *Bandwidth optimal all-reduce algorithms for clusters of
# workstations*, 2009 · S. Li et al., *PyTorch Distributed: Experiences on accelerating data
# parallel training*, 2020, arXiv:2006.15704 · P. Goyal et al., *Accurate, Large Minibatch SGD*,
# 2017, arXiv:1706.02677, for the learning rate of large batches.
#
# **Next.** Every update here waits for the slowest rank. Need the others wait? A server could keep
# the weights, take each gradient as it comes, and answer at once. What that speeds up, and what it
# unlearns, is [chapter 17](17_parameter_server.ipynb). The other chapters are listed on the
# [first page](00_start_here.ipynb).
