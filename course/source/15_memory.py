# ---
# jupyter:
#   kernelspec:
#     name: python3
#     display_name: Python 3
# ---

# %% [markdown]
# # 15 · Training in less memory
#
# ## 1. The question
#
# A model that does not fit cannot be trained at all, however fast the machine is. You can read
# about it:
#
# > *Memory is saved by memory pools, by splitting the model, and by sharing weights.*
#
# All three exist, and you will measure each of them. The method that people reach for first is
# missing in that list. It is called **recomputation**, or activation checkpointing: forget what the
# forward pass has computed, and compute it again when the backward pass asks for it.
#
# How much should a network forget? Everything?

# %% jupyter={"source_hidden": true}
import warnings
from itertools import islice
from statistics import median

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy

from accel_lab import memory
from accel_lab.experiments import memory as experiment
from accel_lab.workbench import chapter as lab

torch.set_num_threads(1)  # layers this small gain little from a second core

# %% [markdown]
# The next cell holds the settings of this chapter. Change one, as in `knobs = {"blocks": 16}`, and
# run the notebook again: everything below follows.

# %% tags=["parameters"]
knobs = {}

# %%
base = lab.settings(experiment.Knobs, knobs, device="cpu", blocks=32).turned(segments=1)
mnist = lab.datasets.mnist5k()
n, MIB = base.blocks, 2**20
x, y = mnist.train_x[: base.batch_size], mnist.train_y[: base.batch_size]
print(f"a chain of {n} {base.block} blocks, {base.batch_size} digits in a batch")

# %% [markdown]
# ## 2. Predict
#
# The chain has many equal blocks, one after another. Each keeps its **activations**, the
# intermediate results that the backward pass needs. Now let *every* block forget them, and compute
# them again from its input. Two guesses. A wrong one costs nothing, and you may skip them.

# %%
guess_memory = lab.Prediction(
    "Activations kept at once when every block forgets: how many times those of keeping all?",
    low=0.01,
    high=2,
    default=0.1,
    unit="×",
)
guess_memory

# %%
guess_time = lab.Prediction(
    "Time of an update when every block forgets: how many times that of keeping all?",
    low=0.5,
    high=5,
    default=2.0,
    unit="×",
)
guess_time

# %% [markdown]
# ## 3. See
#
# The chain is trained here, now, on handwritten digits. It is cut into **segments**: the
# activations inside of a segment are forgotten, only what enters it is kept. One segment keeps
# everything: that is the dashed orange line.
#
# Press **Start**. Then move **segments** up, slowly, and watch the activations. A segment has at
# least one block, so there can be at most as many segments as blocks.

# %%
activations = lab.Sweep(
    "segments",
    "activation_bytes",
    "activations kept, MiB",
    scale=1 / MIB,
    predicted=experiment.predicted_activation_bytes,
    formula="predicted",
)
parts = {"weight_bytes": "weights", "gradient_bytes": "gradients"}
parts |= {"state_bytes": "optimizer state", "activation_bytes": "activations"}

# %%
best = experiment.best_number(base)
charts = [
    activations,
    lab.Budget(parts, "memory by what fills it, MiB", scale=1 / MIB),
    lab.Curve("throughput", "samples/s"),
    lab.Curve("loss", "loss", over="updates"),
]

# %%
panel = lab.Panel(
    experiment.run,
    base,
    charts,
    controls=["segments", "blocks", "batch_size", "block"],
    baselines={"keep all": {"segments": 1}},
    headline=lab.Headline("activation_bytes", "activations"),
    tour=lab.along([base.turned(segments=k) for k in (n, 2, best)]),
    seconds=1.5,
)
panel

# %% [markdown]
# What to look for:
#
# - The activations of these blocks first fall and then **rise again**. The dots lie on the
#   predicted curve.
# - The loss curves lie on one another: the same training, however much is forgotten.
# - The bars show what recomputation can change, and what it leaves as it is.
#
# Why does more forgetting need more memory? The next part takes that apart.

# %% [markdown]
# ## 4. Build
#
# ### What fills the memory
#
# In float32 each of *P* weights takes 4 bytes, its gradient 4 more, and Adam keeps two numbers for
# it, 8 bytes. These do not depend on the batch. The activations do: *n* blocks that keep *s*
# tensors each keep *s·n*. Let us count *s*, on this chain:

# %%
kept = experiment.kept_per_sample(base)
tensors = kept.block / kept.boundary
print(f"between two blocks: {kept.boundary:,.0f} bytes per sample")
print(f"kept by each block: {kept.block:,.0f} bytes per sample, so s = {tensors:.1f}")

# %%
model = experiment.start(base)
optimizer = torch.optim.Adam(model.parameters())
found = experiment.bytes_of_one_update(base, x, y)
weights = sum(p.numel() for p in model.parameters())
for name, formula in (("weight", 4), ("gradient", 4), ("state", 8)):
    counted = found[f"{name}_bytes"]
    print(
        f"{name:<9} {counted / MIB:6.2f} MiB, {counted / weights:.2f} bytes per weight ({formula})"
    )
print(f"activations {found['activation_bytes'] / MIB:5.2f} MiB")

# %% [markdown]
# ### Forget, and compute again
#
# The plain loop keeps everything:

# %%
lab.show_source(memory.keep_all, docstring=False)

# %% [markdown]
# The other one cuts the chain into segments and lets all but the last of them forget. One line of
# it is left out. Yours has to reach the same gradients as the plain loop, and keep less.
# (`recompute` itself comes next.)


# %%
def the_same_from_less(in_segments):
    torch.manual_seed(0)
    chain = [torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh()) for _ in range(8)]
    rows, model = torch.randn(5, 8), torch.nn.Sequential(*chain)
    found, peaks = {}, {}
    for name, run, how in ("plain", memory.keep_all, ()), ("yours", in_segments, (4,)):
        model.zero_grad(set_to_none=False)  # where no gradient comes, zeros stay
        with lab.ActivationMeter(model, rows) as meter:
            run(chain, rows, *how).sum().backward()
        peaks[name] = meter.peak
        found[name] = [{key: p.grad.clone() for key, p in model.named_parameters()}]
    return peaks["yours"] < peaks["plain"] and lab.prove(found, steps=1, tolerance=1e-6)


# %% jupyter={"source_hidden": true}
lab.MissingLine(
    memory.in_segments,
    {
        "x = recompute(nn.Sequential(*part), x, **options)": (
            "Only what enters the segment is kept; backward computes the rest again."
        ),
        "x = keep_all(part, x)": (
            "The right gradients, and nothing is forgotten: it keeps as much as the plain loop."
        ),
        "x = nn.Sequential(*part)(x).detach()": (
            "Forgotten for good: no gradient reaches the blocks before the last segment."
        ),
        "x = recompute(nn.Sequential(*part), x.detach(), **options)": (
            "Backward ends where a segment begins: only the last two segments learn."
        ),
    },
    the_same_from_less,
)

# %% [markdown]
# The last segment is kept, because its backward pass comes next: it would be computed again at
# once. Part 8 measures that.
#
# To forget is to run a segment without a graph. Autograd has to believe that it is one operation,
# so it is written as an `autograd.Function`. Its forward keeps the input, and what else decides the
# result: the random numbers, for dropout, and buffers that the run has changed.

# %%
lab.show_source(memory.Recompute.forward, docstring=False)

# %% [markdown]
# Its backward runs the module a second time, with a graph, and goes backward through that:

# %%
lab.show_source(memory.Recompute.backward, docstring=False)

# %% [markdown]
# The parameters are handed to the operation as well, although its forward does not use them. So its
# output needs a gradient even where its input does not:

# %%
lab.show_source(memory.recompute, docstring=False)

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
block = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5), torch.nn.Tanh())
inputs, gradients = torch.randn(3, 4), []
for run in (block, lambda inputs: memory.recompute(block, inputs)):
    torch.manual_seed(1)
    block.zero_grad()
    run(inputs).sum().backward()
    gradients.append(block[0].weight.grad)
print("the same gradient to the last bit:", torch.equal(*gradients))

# %% [markdown]
# ### One update, moment by moment
#
# Here is what autograd holds for each block during one update, recorded on a chain of at most 16
# blocks. Press **Play**, or move **moment**. Then choose another number of **segments**. The orange
# bar is the block at work.

# %%
short = base.turned(blocks=min(16, n), segments=1)
choices = sorted({1, experiment.best_number(short), short.blocks})
recorded = {str(k): experiment.moments(short.turned(segments=k)) for k in choices}
middle = str(choices[len(choices) // 2])
halfway = len(recorded[middle]) // 2
longest = max(map(len, recorded.values()))
tallest = max(max(one.held) for taken in recorded.values() for one in taken)
most = max(sum(one.held) for taken in recorded.values() for one in taken)


# %% jupyter={"source_hidden": true}
def draw_held(axes, now):
    blocks = range(len(now.held))
    colors = [lab.figure.ORANGE if i == now.block else lab.figure.BLUE for i in blocks]
    axes.bar(blocks, now.held, color=colors)
    axes.axvline(now.block, color=lab.figure.ORANGE, linewidth=0.8)
    axes.set(ylim=(0, 1.1 * tallest), xlabel="block", ylabel="MiB held for it")
    axes.set_title(f"{now.what}, block {now.block}", loc="left", fontsize=10)


# %% jupyter={"source_hidden": true}
def draw_moment(moment=halfway, segments=middle):
    totals = [sum(one.held) for one in recorded[segments]]
    moment = min(moment, len(totals) - 1)
    picture, (left, right) = lab.figure.axes(9.5, 3, columns=2)
    draw_held(left, recorded[segments][moment])
    right.plot(totals[: moment + 1], color=lab.figure.BLUE)
    right.axhline(max(totals), **lab.figure.LIMIT)
    right.set(xlim=(0, longest), ylim=(0, 1.1 * most), xlabel="moment", ylabel="MiB held")
    right.set_title(f"segments: {segments}; dashed: the peak", loc="left", fontsize=10)
    return picture


lab.Sliders(draw_moment, moment=range(longest), segments=list(recorded))

# %% [markdown]
# With one segment there is one mountain. With a segment for each block there is a staircase: the
# input of every block is kept, and there are as many inputs as blocks. In between the mountain is
# cut into teeth, and the row of kept inputs is short.
#
# So the peak has two parts. With *k* equal segments it is
#
# $$s \, \frac nk + (k - 1)$$
#
# tensors: what the last segment keeps, and one input for each segment before it. The first part
# falls with *k*, the second rises. They balance near $k = \sqrt{s \, n}$.
#
# Where *k* does not divide *n*, the first segments are one block longer. `peak_tensors` takes the
# largest of the sums of all segments:

# %% tags=["nbval-check-output"]
for k in (1, 2, 4, 6, 8, 9, 12, 18, 36):
    print(f"36 blocks, s = 2, {k:>2} segments: {memory.peak_tensors(36, 2, k):>2} tensors")
print("best:", memory.best_segments(36, 2), "segments; √(s·n) =", round((2 * 36) ** 0.5, 1))

# %% [markdown]
# ### The optimizer's state, on several ranks
#
# In data parallelism ([chapter 16](16_ddp.ipynb)) every rank, a process with its own part of the
# batch, keeps a copy of everything. ZeRO's first stage deals out the optimizer's state: a rank
# keeps the state of its **piece** of the weights, and updates that piece alone.
#
# Ranks average gradients by an all-reduce, which has two halves: after the first one each rank
# holds the complete sum of one piece, and the second one sends the pieces round. The update moves
# in between, and the second half carries new weights:

# %%
lab.show_source(memory.ShardedOptimizer.step, docstring=False)

# %%
sharding = memory.ShardedOptimizer
lab.show_source(sharding._reduce_scatter, sharding._all_gather, docstring=False)

# %% [markdown]
# *Half-way. This is a good place to stop and come back to: run all cells above, and go on here.*

# %% [markdown]
# ## 5. Prove
#
# ### Recomputation
#
# Ten updates by Adam, in float64, with dropout: keeping all; ours; and PyTorch's
# `checkpoint_sequential`. All draw from the same random numbers.

# %%
small = experiment.Knobs(blocks=7, dropout=0.3, batch_size=32)
torch.manual_seed(0)
start = experiment.Chain(small).double()
batches = [(x.double(), y) for x, y in islice(mnist.batches(32), 10)]


def way(rule):
    def update(model, optimizer, x, y):
        model.rule = rule
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()

    torch.manual_seed(1)
    yield from lab.trajectory(start, lambda m: torch.optim.Adam(m.parameters()), update, batches)


# %% tags=["nbval-check-output"]
from torch.utils.checkpoint import checkpoint, checkpoint_sequential


def ours(blocks, x):
    return memory.in_segments(blocks, x, 3)


def torchs(blocks, x):
    return checkpoint_sequential(list(blocks), 3, x, use_reentrant=False)


ways = {"keep all": memory.keep_all, "ours": ours, "torch's": torchs}
proof = lab.prove({name: list(way(rule)) for name, rule in ways.items()})
assert proof.holds
print(proof)

# %%
proof

# %% [markdown]
# Do both keep the same number of bytes? The meter listens to both.


# %% tags=["nbval-check-output"]
def bytes_kept(rule, model, x, y):
    model.rule = rule
    with lab.ActivationMeter(model, x, y) as meter:
        cross_entropy(model(x), y).backward()
    return meter.peak


even = experiment.Chain(experiment.Knobs(blocks=9))
ours_kept, torchs_kept, all_kept = (
    bytes_kept(r, even, x, y) for r in (ours, torchs, memory.keep_all)
)
print("as many bytes as torch's:", ours_kept == torchs_kept)
print("fewer than keeping all:", ours_kept < all_kept)

# %% [markdown]
# ### Dealt out
#
# On two ranks: PyTorch's `DistributedDataParallel` with Adam, and ours, over the network and in
# shared memory. The weights have to be equal **to the last bit**, after every step.

# %%
from torch.nn.parallel import DistributedDataParallel


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


# %%
def train_dealt_out(kind, batches):
    torch.manual_seed(dist.get_rank())  # ranks start apart, and take rank 0's weights
    model = forward = lab.models.mlp(784, 32, 10)
    if kind is None:
        forward, optimizer = DistributedDataParallel(model), adam(model.parameters())
    else:
        optimizer = kind(model, adam)
    for x, y in batches:
        optimizer.zero_grad()
        cross_entropy(forward(x[dist.get_rank() :: 2]), y[dist.get_rank() :: 2]).backward()
        optimizer.step()
        yield lab.snapshot(model)


# %% tags=["nbval-check-output"]
def one_after_another(batches):
    for kind in (None, memory.ShardedOptimizer, memory.ShardedInSharedMemory):
        yield list(train_dealt_out(kind, batches))


rank_0, rank_1 = lab.collect(one_after_another, 2, list(islice(mnist.batches(32), 10))).values()
ways = {"torch's DDP": rank_0[0], "ours, rank 0": rank_0[1], "ours, rank 1": rank_1[1]}
ways["in shared memory"] = rank_0[2]
dealt_out = lab.prove(ways, tolerance=0.0)
assert dealt_out.holds
print(dealt_out)

# %% [markdown]
# ## 6. Measure
#
# ### The U
#
# The bytes are counted: they are the same on every machine. The time is measured in pairs, and the
# ratio is the time with *k* segments over that of keeping all.

# %%
ks = sorted(k for k in {1, 2, 4, best, n // 2, n} if k <= n)
turned = {k: base.turned(segments=k) for k in ks}
counted = {k: experiment.bytes_of_one_update(one, x, y) for k, one in turned.items()}
mib = {k: found["activation_bytes"] / MIB for k, found in counted.items()}
formula = {
    k: experiment.predicted_activation_bytes(base.turned(segments=k)) / MIB for k in range(1, n + 1)
}
off = max(abs(mib[k] / formula[k] - 1) for k in ks)
print(f"the formula is at most {100 * off:.1f} % off")

# %%
plain = experiment.updating(base)
ratios = {
    k: lab.compare(
        experiment.updating(turned[k]), plain, names=(f"k = {k}", "keep all"), patience=1.0
    )
    for k in lab.along([k for k in ks if k > 1])
}
for ratio in ratios.values():
    print(ratio)

# %% jupyter={"source_hidden": true} tags=["hero"]
picture, (left, right) = lab.figure.axes(9.5, 3.3, columns=2)
for axes in (left, right):
    axes.set(xlabel="segments", xscale="log")
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.minorticks_off()
left.plot(list(formula), list(formula.values()), label="formula", **lab.figure.LIMIT)
left.plot(list(mib), list(mib.values()), "o", color=lab.figure.BLUE, label="counted")
left.set(ylabel="activations kept, MiB", ylim=(0, 1.08 * max(mib.values())))
left.legend(frameon=False)
lab.figure.draw_ratios(right, ratios, "time of an update, × keeping all")
foreseen = [experiment.predicted_time(base.turned(segments=k)) for k in formula]
right.plot(list(formula), foreseen, color=lab.figure.GREY, label="a forward pass more")
lab.figure.draw_guess(right, {n: guess_time.value})
right.legend(frameon=False, fontsize=8)
picture

# %%
lowest = min(mib, key=lambda k: mib[k])
for k in (n, lowest):
    share = mib[k] / mib[1]
    print(f"{k:>2} segments: {share:.2f} × the activations, 1/{1 / share:.1f} of keeping all")
shares = {k: mib[k] / mib[1] for k in ks}
guess_memory.against(shares[n])

# %%
guess_time.against(ratios[n])

# %%
times = mib[n] / mib[lowest]
if lowest < n:
    print(
        f"to forget everything takes {times:.1f} × the memory of forgetting with {lowest} segments"
    )
else:
    print("these blocks are so fat that the lowest peak is where every one forgets")

# %% [markdown]
# **More forgetting can need more memory.** The arithmetic of time is simple: what is forgotten is
# computed once more. Where backward costs two forward passes, a forward pass more is a third of an
# update: the grey line. Where a whole bar lies above it, something else is paid for as well: more
# calls, and memory that is taken anew.

# %% [markdown]
# Does the whole process need less as well? Here the system counts, on a longer chain with a larger
# batch.

# %%
large, grown = experiment.Knobs(blocks=64, batch_size=1024), {}
for k in (1, memory.best_segments(64, 2)):
    found = experiment.bytes_of_one_update(large.turned(segments=k), *next(mnist.batches(1024)))
    grown[k] = found["process_peak_bytes"] / MIB
    activated = found["activation_bytes"] / MIB
    print(f"{k:>2} segments: activations {activated:5.1f} MiB, process grew by {grown[k]:5.0f} MiB")
less = "less" if grown[k] < grown[1] else "not less"
print(f"the process needs {less}")

# %% [markdown]
# The process holds more than activations: gradients, Adam's state, and what the operations need for
# a moment.

# %% [markdown]
# ### Thin blocks and fat blocks
#
# How much a chain gains depends on *s*. A thin block, a linear layer and a ReLU, keeps one tensor.
# A transformer block keeps many. For each kind: the lowest peak, and the peak when every block
# forgets.

# %%
rows = {}
for kind in ("thin", "residual", "transformer"):
    chain = base.turned(block=kind, segments=1)
    peaks = {
        k: experiment.predicted_activation_bytes(chain.turned(segments=k)) for k in range(1, n + 1)
    }
    lowest_k = min(peaks, key=lambda k: peaks[k])
    kept = experiment.kept_per_sample(chain)
    rows[kind] = peaks[lowest_k] / peaks[1], peaks[n] / peaks[1]
    print(
        f"{kind:<11} s = {kept.block / kept.boundary:4.1f}: lowest with {lowest_k:>2} segments",
        end="",
    )
    print(f", {rows[kind][0]:.2f} × keeping all; every block forgotten {rows[kind][1]:.2f} ×")

# %%
thin = base.turned(block="thin")
small_batch = experiment.bytes_of_one_update(thin.turned(segments=n), x, y)["activation_bytes"]
saved = 1 - small_batch / experiment.bytes_of_one_update(thin, x, y)["activation_bytes"]
price = lab.compare(
    experiment.updating(thin.turned(segments=n)),
    experiment.updating(thin),
    names=("each thin block forgotten", "keep all"),
    patience=1.0,
)
print(f"thin blocks, every one forgotten: {100 * saved:.0f} % of the bytes saved")
print(price)

# %% [markdown]
# A thin block's input is as large as all that it keeps, so keeping its input saves nothing. "Put a
# checkpoint around each block" is good advice for fat blocks alone.

# %% [markdown]
# ### Sharing weights
#
# Use one block many times instead of many blocks. That is one line, `[block] * n`, and autograd
# adds up the gradients of all uses.

# %%
several = experiment.Knobs(blocks=6, block="transformer", batch_size=64)
ways = {"six blocks": several, "one block, six times": several.turned(shared=True)}
for name, way_ in ways.items():
    found = experiment.bytes_of_one_update(way_, x[:64], y[:64])
    standing = sum(found[f"{part}_bytes"] for part in ("weight", "gradient", "state")) / MIB
    print(f"{name:<21} weights, gradients, state {standing:.3f} MiB", end="")
    print(f", activations {found['activation_bytes'] / MIB:.2f} MiB")

# %%
programs = [experiment.updating(way_) for way_ in reversed(ways.values())]
print(lab.compare(*programs, names=tuple(reversed(ways)), patience=1.0))

# %% [markdown]
# Sharing divides what stands per weight **of the blocks** by the number of uses; the layers before
# and after them are not shared. The activations are those of six blocks, and so is the arithmetic.

# %% [markdown]
# ### Gradients freed early
#
# The optimizer need not wait for the whole gradient. A hook updates each weight as soon as its
# gradient is complete, and frees it:

# %%
lab.show_source(memory.step_in_backward, docstring=False)

# %%
widths = (784, 512, 512, 512, 10)
for early in (False, True):
    held = experiment.gradient_bytes_over_time(widths, early)
    print(f"freed early: {early!s:<5} at most {max(held):.2f} MiB of gradients at once")

# %% [markdown]
# What remains is the largest single gradient. The price: no clipping by the global norm
# ([chapter 12](12_clipping.ipynb)), and no accumulation over micro-batches
# ([chapter 11](11_accumulation.ipynb)), because the whole gradient never exists.

# %% [markdown]
# ### A memory pool
#
# New memory is not free in time: the system hands out pages, and clears each of them. A **pool**
# keeps memory that was freed and hands it out again. Here an addition writes into new memory, and
# into a buffer that is kept:

# %%
numbers = torch.zeros(9 * 2**20)  # 36 MiB
buffer = torch.empty_like(numbers)
pool = lab.compare(
    lambda: torch.add(numbers, 1, out=buffer),
    lambda: torch.add(numbers, 1),
    names=("into a kept buffer", "into new memory"),
    patience=1.0,
)
print(pool)
numbers = buffer = None  # their memory goes back

# %% [markdown]
# glibc, the usual C library of Linux, has such a pool for small pieces. From 32 MiB on it asks the
# system each time. It can be told to keep all: for the whole process, and without a way back, so
# this runs in a process of its own. How many pages does the system hand out for one addition?

# %%
pages = {}
if experiment.has_pool():
    for keeps in (False, True):
        heard = lab.collect(experiment.new_pages, 1, keeps, 9 * 2**20, 9, backend=None)
        pages[keeps] = heard[0][0]
        print(f"glibc keeps all: {keeps!s:<5} {pages[keeps]:8,.0f} new pages for an addition")
    fewer = "fewer" if pages[True] < 0.5 * pages[False] else "as many (it was passed over here)"
    print(f"with the pool an addition takes {fewer} new pages")
else:
    print("this system's C library is not glibc: only the pair above")

# %% [markdown]
# Time is what a pool can save. It saves no memory: what it keeps counts as used. On a GPU, PyTorch
# brings its own pool, the caching allocator, and there is nothing to turn on.

# %% [markdown]
# ### Splitting the model
#
# Two ways deal a model out over processes. A pipeline gives each rank a part of the *layers*
# ([chapter 18](18_pipeline.ipynb)). ZeRO gives each rank a piece of *everything that stands per
# weight*, in three stages: stage 1 deals out the optimizer's state, stage 2 the gradients as well,
# stage 3 the weights too, which then travel before each use.

# %%
stages = experiment.stages_of_zero(1e9, 8)
for name, bytes_ in stages.items():
    print(f"{name:<13} " + ", ".join(f"{part} {b / 1e9:.1f}" for part, b in bytes_.items()))

# %% jupyter={"source_hidden": true}
picture, (axes,) = lab.figure.axes(8, 2.6)
ends = dict.fromkeys(stages, 0.0)
colors = (lab.figure.BLUE, lab.figure.ORANGE, lab.figure.GREEN)
for part, color in zip(stages["data parallel"], colors):
    sizes = [stages[name][part] / 1e9 for name in stages]
    axes.barh(list(stages), sizes, 0.6, list(ends.values()), color=color, label=part)
    ends = {name: ends[name] + size for name, size in zip(stages, sizes)}
axes.set(xlabel="GB on a rank, by formula: a billion weights, 8 ranks", xlim=(0, 21))
axes.invert_yaxis()
axes.legend(frameon=False, fontsize=8, loc="lower right")
picture

# %% [markdown]
# Stage 1 runs here. Below, two ranks train a network. Press **Start**, then choose how the state is
# **sharded**, and another **optimizer**. The bars are what one rank holds. (The step size is one
# for Adam: plain SGD hardly learns with it.)

# %%
on_ranks = experiment.ShardKnobs(seed=base.seed)
state = {name: parts[name] for name in ("weight_bytes", "gradient_bytes", "state_bytes")}

# %%
panel_of_ranks = lab.Panel(
    experiment.run_on_ranks,
    on_ranks,
    [
        lab.Budget(state, "memory on a rank, MiB", scale=1 / MIB),
        lab.Curve("throughput", "samples/s"),
        lab.Curve("loss", "loss", over="updates"),
    ],
    controls=["sharded", "optimizer", "ranks", "width"],
    baselines={"not sharded": {"sharded": "no"}},
    headline=lab.Headline("state_bytes", "optimizer state"),
    tour=[on_ranks.turned(sharded="in shared memory"), on_ranks.turned(optimizer="sgd")],
    seconds=1.5,
)
panel_of_ranks

# %% [markdown]
# The same, counted on a narrower network:

# %%
hows = ("no", "over the network", "in shared memory")
narrow = on_ranks.turned(width=128)
settings = {how: narrow.turned(sharded=how) for how in hows}
settings["plain SGD"] = narrow.turned(optimizer="sgd")  # for part 8
taken = experiment.several_on_ranks(settings, updates=2)
on_a_rank = {name: steps[-1].metrics for name, steps in taken.items()}

# %%
state_share = {}
for how in hows:
    state_share[how] = on_a_rank[how]["state_bytes"] / on_a_rank["no"]["state_bytes"]
    print(f"sharded: {how:<17} {state_share[how]:.3f} × the state", end="")
    print(f", sends {on_a_rank[how]['bytes_sent'] / MIB:.2f} MiB an update")

# %% [markdown]
# Over the network both send the same number of bytes: the two halves of an all-reduce. Where the
# ranks of one machine can share memory, nothing is sent, and the weights themselves exist once for
# both.

# %% [markdown]
# ## 7. Break it
#
# Three famous mistakes of recomputation, one click each. The blocks have dropout and batch
# normalization now. Every gradient is compared with that of keeping all. The *error* is the size of
# the difference, as a share of the right gradient. The running statistics are compared in the same
# way, and the larger error counts. (An error of exactly 0 has no place on this axis.)

# %%
broken = base.turned(twin=True, dropout=0.3, batch_norm=True, block="residual")
broken = broken.turned(blocks=min(12, n), segments=min(4, n), batch_size=min(64, base.batch_size))
mistakes = ("other masks", "statistics twice", "input without gradient")
right = lab.Badge(
    "error", 1e-5, "gradient and statistics of keeping all", "not those of keeping all"
)
error = lab.Curve("error", "error", over="updates", log=(1e-8, 1e2))

# %%
break_it = lab.Panel(
    experiment.run,
    broken,
    [error, lab.Curve("loss", "loss", over="updates")],
    controls=["segments", "mistake"],
    baselines={"no mistake": {"mistake": "none"}},
    headline=None,
    tour=lab.along([broken.turned(mistake=mistake) for mistake in mistakes]),
    seconds=1.0,
    badge=right,
)
break_it

# %% [markdown]
# Write down what you think each mistake does, then look.
#
# <details><summary>What each of them does</summary>
#
# - **other masks**: the second run draws another dropout mask. The gradient belongs to a network
#   that never computed the loss.
# - **statistics twice**: batch normalization updates its running statistics in both runs. The
#   gradients are right, and the statistics move twice per update. PyTorch's `checkpoint` does this.
# - **input without gradient**: the layer before the blocks is frozen, and PyTorch's older,
#   *reentrant* way finds no parameter's gradient in any forgotten segment.
#
# </details>
#
# Compare the losses as well. A loss that falls proves nothing: look at the gradient.
#
# PyTorch tells of an input without gradient in a warning. Here is its text, for one layer:

# %%
with warnings.catch_warnings(record=True) as heard:
    warnings.simplefilter("always")
    out = checkpoint(torch.nn.Linear(4, 4), torch.randn(2, 4), use_reentrant=True)
print("the output needs a gradient:", out.requires_grad)
print("torch:", *(one.message for one in heard))

# %% [markdown]
# How wrong is each, over several seeds?

# %%
errors = {}
for mistake in ("none", *mistakes):
    errors[mistake] = []
    for seed in lab.some_seeds(5):
        turned = broken.turned(mistake=mistake, seed=base.seed + seed)
        steps = list(islice(experiment.run(turned), 3))
        errors[mistake].append(median(step.metrics["error"] for step in steps))
    print(f"{mistake:<23} error {lab.figure.tell_over_seeds(errors[mistake])}")

# %% [markdown]
# What cannot be run again is refused, in one line: a module that changes its input in place, and an
# input that is changed afterwards.

# %% tags=["nbval-check-output"]
in_place = torch.nn.Sequential(torch.nn.ReLU(inplace=True), torch.nn.Linear(4, 4))
try:
    memory.recompute(in_place, torch.randn(2, 4))
except RuntimeError as refused:
    print(refused)

# %%
inputs = torch.randn(2, 4)
out = memory.recompute(torch.nn.Linear(4, 4), inputs)
inputs.add_(1)
try:
    out.sum().backward()
except RuntimeError as refused:
    print(str(refused).split(":")[0])

# %% [markdown]
# Sharing has a mistake of its own: an optimizer that was made **before** the weights were tied
# keeps the old tensor, with its state.

# %% tags=["nbval-check-output"]
first, last = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
early = torch.optim.Adam([first.weight, last.weight])
last.weight = first.weight
late = torch.optim.Adam({first.weight, last.weight})
for name, made in (("made before tying", early), ("made after tying", late)):
    print(name, "holds", len(made.param_groups[0]["params"]), "tensors")

# %% [markdown]
# And on ranks: **own norm** lets each rank clip by the norm of its own piece; **not gathered**
# forgets to send the new weights round. The *drift* is the distance from one process with the whole
# batch, after 20 updates, as a share of the way that this process has gone.

# %%
clipped = on_ranks.turned(twin=True, max_norm=0.3, width=64)
settings = {
    (mistake, seed): clipped.turned(mistake=mistake, seed=base.seed + seed)
    for mistake in ("none", "own norm", "not gathered")
    for seed in lab.some_seeds(5)
}
drifts = {}
for (mistake, _), steps in experiment.several_on_ranks(settings, updates=20).items():
    drifts.setdefault(mistake, []).append(steps[-1].metrics["drift"])
for mistake, found in drifts.items():
    print(f"{mistake:<13} drift {lab.figure.tell_over_seeds(found)}")

# %% [markdown]
# ## 8. When it does not help
#
# **When activations are the smaller part.** With a small batch, or few blocks, the weights and what
# stands per weight fill the memory. Measure the share first:

# %%
shares_of_batch = {}
for size in (8, 64, 512):
    batch = mnist.train_x[:size], mnist.train_y[:size]
    found = experiment.bytes_of_one_update(base.turned(batch_size=size), *batch)
    whole = sum(found[part] for part in parts)
    shares_of_batch[size] = found["activation_bytes"] / whole
    percent = 100 * shares_of_batch[size]
    print(f"batch of {size:>3}: activations are {percent:.0f} % of {whole / MIB:.1f} MiB")

# %% [markdown]
# **When the last segment is forgotten, too.** It is computed again at once:

# %%
half = base.turned(blocks=min(12, n), segments=2)
both = {last: half.turned(last_too=last) for last in (False, True)}
peaks = {
    last: experiment.bytes_of_one_update(k, x, y)["activation_bytes"] for last, k in both.items()
}
more = lab.compare(
    experiment.updating(both[True]),
    experiment.updating(both[False]),
    names=("both of 2 segments forgotten", "the first alone"),
    patience=1.0,
)
saved = 1 - peaks[True] / peaks[False]
print(f"the peak falls by {100 * saved:.1f} %: by what follows the chain, and by nothing inside it")
print(more)

# %% [markdown]
# **When there is no state to deal out.** Plain SGD has no state:

# %%
for rule, name in (("sgd", "plain SGD"), ("adam", "over the network")):
    mib_held = on_a_rank[name]["state_bytes"] / MIB
    print(f"{rule:<4} state on a rank, sharded: {mib_held:.2f} MiB")

# %% [markdown]
# So, about the claim from the start: the verdict, for this machine.

# %%
quickest = min(ratios, key=lambda k: mib[k])
verdict = (
    f"{lowest} segments keep {shares[lowest]:.2f} × the activations, {n} keep {shares[n]:.2f} ×; "
    f"time {ratios[quickest].ratio:.2f} × at {quickest}, {ratios[n].ratio:.2f} × at {n}; a kept "
    f"buffer takes {pool.ratio:.2f} × the time of new memory; ZeRO-1 on 2 ranks keeps "
    f"{state_share['over the network']:.2f} × the state"
)
lab.log_verdict("memory", verdict)

# %% [markdown]
# Each method of that list has its place, and none of them does what recomputation does. A pool can
# save time. Sharing leaves the activations as they are. Splitting needs further processes.

# %% [markdown]
# ## 9. Exercises
#
# Write the functions and run the cells; `check` tries each on fresh data. It says what is right
# already, shows a small case that is not, and gives a hint where it knows the mistake. After two
# different tries it offers a worked solution. Some functions are written already, with faults:
# repair them.

# %%
from accel_lab.grading.practice import check, exercises

AGAIN, SHARD, PLAN = exercises("memory")
AGAIN


# %% tags=["exercise"]
def recompute_with(run, x, context):
    raise NotImplementedError


check(recompute_with)

# %%
SHARD


# %% tags=["exercise"]
def sharded_update(weights, gradient, share, momentum, rate, rank, world, send, receive):
    total = passing = gradient / world
    for _ in range(world - 1):
        send(passing)
        passing = receive()
        total = total + passing
    momentum = 0.9 * momentum + total.tensor_split(world)[rank]
    weights = weights.clone()
    weights.tensor_split(world)[rank].sub_(rate * momentum)
    return weights, momentum


check(sharded_update)

# %%
PLAN


# %% tags=["exercise"]
def segments_for(blocks, kept, boundary, budget):
    raise NotImplementedError


check(segments_for)

# %% [markdown]
# ## 10. Take away
#
# - Memory holds weights, gradients, optimizer state and activations. Count them before you choose a
#   method. Recomputation cuts activations, as accumulation does; a step in backward cuts gradients;
#   ZeRO-1 cuts the state; sharing cuts all that stands per weight.
# - Recomputation cuts activations, from $s \, n$ tensors to about $2\sqrt{s \, n}$, for at most the
#   arithmetic of one forward pass more. More segments than that need more memory.
# - Around each block it is right where blocks are fat, and saves nothing where they are thin.
# - Sharing makes what stands per weight smaller, and leaves the arithmetic as it is. A pool can
#   save time, and saves no memory.
# - ZeRO-1 deals the optimizer's state out to the ranks, and sends the bytes of an all-reduce.

# %% [markdown]
# Known from elsewhere, and not measured here: segments need not be equal, and shorter ones at the
# end save some more; with several levels of forgetting, memory grows as log *n* (A. Griewank and A.
# Walther, *revolve*, 2000). *Selective* recomputation keeps the results of expensive operations
# (V. Korthikanti et al., 2022, arXiv:2205.05198). *Offloading* sends activations to another memory.
# FSDP is ZeRO-3 in PyTorch. 16 bits halve activations, see [chapter 13](13_precision.ipynb).

# %% [markdown]
# **What would prove this wrong?** A module that computes the same twice from the same input, random
# numbers and buffers, whose gradients come out different when it is recomputed. If you find one,
# look for a state besides these: Python's `random`, a counter, a cache.

# %% [markdown]
# **Sources.** T. Chen et al., *Training deep nets with sublinear memory cost*, 2016,
# arXiv:1604.06174, section 4 · A. Griewank and A. Walther, *Algorithm 799: revolve*, 2000 · S.
# Rajbhandari et al., *ZeRO*, 2020, arXiv:1910.02054 · Z. Lan et al., *ALBERT*, 2020,
# arXiv:1909.11942 (sharing) · K. Lv et al., *LOMO*, 2023, arXiv:2306.09782 (gradients freed early).
#
# **Next.** Two ranks shared an optimizer here, and the chapter took for granted how they average
# their gradients. What has to be averaged, what does it cost, and when are two ranks faster than
# one? That is data parallelism, [chapter 16](16_ddp.ipynb). The other chapters are listed on the
# [first page](00_start_here.ipynb).
