# ---
# jupyter:
#   kernelspec:
#     name: python3
#     display_name: Python 3
# ---

# %% [markdown]
# # 18 · Pipeline parallelism
#
# ## 1. The question
#
# A network is a row of layers. If it is too large for one worker, or too slow, deal the layers out:
# the first worker gets the first few, the next worker the next few. Each worker's share is a
# **stage**. Activations travel down the row, gradients travel back up. One often reads:
#
# > *Stage 1 → stage 2 → … → stage n: the stages work in parallel, so training is faster.*
#
# Assembly lines do work. But look at the arrows: stage 2 needs what stage 1 has made. So when do
# the two work *at the same time*? You will start real processes, watch them work and wait, and find
# the one number that decides. Its formula contains no time at all. (The words of the field are in
# the glossary, at the end of [Start here](00_start_here.ipynb).)

# %% jupyter={"source_hidden": true}
from itertools import islice

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy

from accel_lab import pipeline
from accel_lab.experiments import pipeline as experiment
from accel_lab.workbench import chapter as lab

# %% [markdown]
# The next cell holds the settings of this chapter. Change one, as in `knobs = {"width": 1024}`, and
# run the notebook again: everything below follows.

# %% tags=["parameters"]
knobs = {}

# %%
torch.set_num_threads(1)  # as in every rank: layers timed here take as long as they take there
base = lab.settings(experiment.Knobs, knobs, batch_size=512, micro_batches=8)
mnist = lab.datasets.mnist5k()
print(f"a network of {base.depth} linear layers, {base.width} wide, on {base.ranks} processes")
print(f"batches of {base.batch_size}; this machine has {lab.usable_cores()} cores that we may use")

# %% [markdown]
# ## 2. Predict
#
# Two workers, called *ranks*, each hold half of the network and have a processor core each. Compare
# with one process that holds it all and has one core. Two guesses, before you see anything; a wrong
# one costs nothing.

# %%
guess_one = lab.Prediction(
    "The batch goes through in one piece. Time of an update on two ranks: how many times that of "
    "one process?",
    low=0.25,
    high=4,
    default=0.5,
    unit="×",
)
guess_one

# %%
guess_eight = lab.Prediction(
    "The batch is cut into 8 micro-batches. Time of an update on two ranks: how many times that of "
    "one process?",
    low=0.25,
    high=4,
    default=0.5,
    unit="×",
)
guess_eight

# %% [markdown]
# ## 3. See
#
# The ranks below are separate processes, started when you press **Start**. The timeline shows what
# each of them does during one update: its forward and backward passes, one for each micro-batch. A
# gap is waiting. The **bubble** is all of the gaps together: the share of all ranks' time, from the
# first forward to the last backward, in which a rank had nothing to do.
#
# The orange run has the batch in one piece, *m* = 1. Press **Start** and move **micro batches**
# down to 2, then up to 4 and 8.

# %% jupyter={"source_hidden": true}
charts = [
    lab.Curve("throughput", "samples/s"),
    lab.Sweep(
        "micro_batches",
        "bubble_measured",
        "bubble, % of all ranks' time",
        scale=100,
        predicted=lambda knobs: pipeline.bubble(knobs.ranks, knobs.micro_batches),
        formula="(p − 1) / (m + p − 1)",
    ),
    lab.Timeline(),
]

# %%
panel = lab.Panel(
    experiment.run,
    base,
    charts,
    controls=["ranks", "micro_batches", "schedule", "stages"],
    baselines={"m = 1": {"micro_batches": 1}},
    tour=[base.turned(micro_batches=2), base.turned(micro_batches=4)],
    seconds=1.5,
)
panel

# %% [markdown]
# What to look for:
#
# - With *m* = 1 the bars never overlap. While one rank works the other waits, so half of the time
#   of both is empty: two workers are there, and at each moment one of them works.
# - With more micro-batches, rank 1 starts on micro-batch 0 while rank 0 has micro-batch 1. The gaps
#   shrink.
# - The dashed curve is the formula of part 4. With a free core for each rank the dots come close to
#   it. Where cores are shared, or busy with other work, they lie above it.
# - Set **ranks** to more than your machine has cores. Now ranks wait for a core as well, and the
#   formula knows nothing of that.
# - Set **stages** to *wait*: processes, messages and schedule stay, but each pass only waits for a
#   set time, which needs no core. On a quiet machine the dots now come close to the formula, even
#   with four ranks; what is left above it is the time of messages. (Nothing is learned meanwhile.)

# %% [markdown]
# ## 4. Build
#
# **First, the cut.** A stage is a run of consecutive layers. All ranks wait for the slowest stage,
# so the cut goes by time. `layer_seconds` measures every layer, forward and backward, and
# `balanced` finds the cut whose slowest stage is fastest:

# %%
torch.manual_seed(0)
model = lab.models.mlp(784, *[base.width] * (base.depth - 1), 10)
x, y = next(mnist.batches(base.batch_size))
seconds = pipeline.layer_seconds(model, x)
runs = pipeline.balanced(seconds, 2)
for stage, run in enumerate(runs):
    spent = 1e3 * sum(seconds[layer] for layer in run)
    print(f"stage {stage}: layers {run.start} to {run.stop - 1}, {spent:.1f} ms")

# %% jupyter={"source_hidden": true}
picture, (axes,) = lab.figure.axes(8, 2.6)
for stage, (run, color) in enumerate(zip(runs, (lab.figure.BLUE, lab.figure.ORANGE))):
    names = [f"{type(model[layer]).__name__}\n{layer}" for layer in run]
    milliseconds = [seconds[layer] * 1e3 for layer in run]
    axes.bar(names, milliseconds, color=color, label=f"stage {stage}")
axes.set(ylabel="milliseconds, both ways")
axes.tick_params(axis="x", labelsize=7)
axes.legend(frameon=False)
del model
picture

# %% [markdown]
# For the first steps a smaller network will do. `stage_of` takes some layers out of it; one stage
# after the other is the whole model:


# %% tags=["nbval-check-output"]
def small_model():
    torch.manual_seed(1)
    return lab.models.mlp(784, 32, 32, 32, 10).double()


model, x = small_model(), x.double()
stages = [pipeline.stage_of(model, layers) for layers in (range(3), range(3, 8))]
for stage in stages:
    print(*(f"{name}: {layer}" for name, layer in stage.named_children()), sep=", ")
print("equal to the whole:", torch.equal(stages[1](stages[0](x)), model(x)))

# %% [markdown]
# **Then, one micro-batch's way.** What crosses the border is a plain tensor of numbers: autograd's
# graph ends there. So the second stage marks what it has received with `requires_grad_()`; after
# its backward pass, the tensor's `.grad` is exactly what the first stage needs to go on with. Here
# both stages are still in this process:

# %% tags=["nbval-check-output"]
whole = torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))

sent = stages[0](x)  # forward on stage 0
received = sent.detach().requires_grad_()  # the message down: numbers, no graph
cross_entropy(stages[1](received), y).backward()  # forward and backward on stage 1
sent.backward(received.grad)  # the message up, and backward on stage 0

gap = max((p.grad - g).abs().max().item() for p, g in zip(model.parameters(), whole))
print("what travels down:", list(sent.shape[1:]), "per sample, and as much travels up")
print("the gradients are the whole model's:", gap < 1e-12)

# %% [markdown]
# Now with two real processes. `launch` starts them, runs a function in each, and hands back what
# they return. This is the function for rank 0, and for rank 1. Who receives must know the shape of
# what will come:


# %%
def first_stage(layers, x):
    out = layers(x)
    dist.send(out.detach(), 1)
    gradient = torch.empty_like(out)
    dist.recv(gradient, 1)
    out.backward(gradient)


def last_stage(layers, y):
    received = torch.empty(len(y), 32, dtype=torch.float64)
    dist.recv(received, 0)
    received.requires_grad_()
    cross_entropy(layers(received), y).backward()
    dist.send(received.grad, 0)


# %% tags=["nbval-check-output"]
def one_way_and_back(stages, x, y):
    mine = stages[dist.get_rank()]
    if dist.get_rank() == 0:
        first_stage(mine, x)
    else:
        last_stage(mine, y)
    return [p.grad for p in mine.parameters()]


model.zero_grad()
answers = dict(lab.launch(one_way_and_back, 2, stages, x, y))
gap = max((p - g).abs().max().item() for p, g in zip(answers[0] + answers[1], whole))
print("two processes, the same gradients:", gap < 1e-12)

# %% [markdown]
# **Last, the order.** Cut the batch into micro-batches, and each stage has a list of things to do:
# forward and backward, each micro-batch once. The plainest order is called GPipe, after the article
# that introduced it: all forwards, then all backwards.

# %%
lab.show_source(pipeline.gpipe, docstring=False)


# %% tags=["nbval-check-output"]
def in_short(actions):
    return " ".join(f"{kind[0].upper()}{i}" for kind, i in actions)


for stage in range(3):
    print(f"stage {stage} of 3:", in_short(pipeline.gpipe(stage, 3, 4)))

# %% [markdown]
# Play it on paper: a forward takes 1 unit of time, a backward 2, and every action begins as soon as
# what it needs is there.

# %%
pieces = {f"m = {m}": experiment.play(pipeline.gpipe, 3, m) for m in (1, 4)}
lab.figure.draw_timelines(pieces, label="units of time")

# %% [markdown]
# Read off the lower picture how long it lasts. Let *t* be one forward and one backward, and *p* the
# number of stages. Each stage works for *m* · *t*. The last stage must wait until the first
# micro-batch has come down, and at the end the first stage waits until the last gradient has come
# up: together (*p* − 1) · *t*. So the step takes (*m* + *p* − 1) · *t*, of which every rank waits
# (*p* − 1) · *t*:
#
# $$\text{bubble} = \frac{p-1}{m+p-1}$$

# %% tags=["nbval-check-output"]
for p, m in ((2, 1), (2, 4), (2, 8), (4, 4), (4, 32)):
    played = experiment.bubble_of(experiment.play(pipeline.gpipe, p, m), p)
    print(f"p = {p}, m = {m:>2}: played {played:.3f}, formula {pipeline.bubble(p, m):.3f}")

# %% [markdown]
# The *t* has cancelled. A faster processor, a larger model, a better library: as long as all stages
# take the same time, none of them changes the bubble. Only *m* and *p* do. And *m* = 1 gives
# (*p* − 1)/*p*: with *p* workers, one works.

# %% [markdown]
# GPipe pays in memory. A stage holds a micro-batch's activations from its forward to its backward,
# and here every forward comes before the first backward: all *m* are held at once. (The paper's own
# keeps only what enters the stage, and computes the rest again before each backward.)
#
# The second famous order turns back as soon as it can: **one forward, one backward**, or *1F1B*.
# Warm-up: one forward for each later stage. Steady state: forward and backward in turn. Cool-down:
# the remaining backwards.
#
# One line is left out below. Your list is played for three stages and six micro-batches: each stage
# has to do everything once, and may hold 3, 2 and 1 micro-batches at most.


# %%
def turns_back_early(order, stages=3, micro_batches=6):
    lists = [order(stage, stages, micro_batches) for stage in range(stages)]
    experiment.play(order, stages, micro_batches)  # raises if stages wait for each other
    everything = sorted(pipeline.gpipe(0, stages, micro_batches))
    held = [experiment.most_held(actions) for actions in lists]
    return all(sorted(actions) == everything for actions in lists) and held == [3, 2, 1]


# %% jupyter={"source_hidden": true}
lab.MissingLine(
    pipeline.one_forward_one_backward,
    {
        'actions += [("forward", i), ("backward", i - ahead)]': (
            "A new micro-batch goes down, then the oldest one that is held comes back."
        ),
        'actions += [("backward", i - ahead), ("forward", i)]': (
            "The last stage would begin with the backward of micro-batch 0, before its forward."
        ),
        'actions += [("forward", i), ("backward", i)]': (
            "The newest comes back instead of the oldest: before the last stage, the first few "
            "never come back, and the last few twice."
        ),
        'actions += [("forward", i)]': (
            "Only forwards until the cool-down, which has backwards for the last few alone: "
            "the first ones never come back."
        ),
    },
    turns_back_early,
)

# %% tags=["nbval-check-output"]
for stage in range(3):
    actions = pipeline.one_forward_one_backward(stage, 3, 4)
    print(f"stage {stage} of 3: {in_short(actions)}")

# %% tags=["hero"]
orders = {"GPipe": pipeline.gpipe, "1F1B": pipeline.one_forward_one_backward}
played = {name: experiment.play(order, 3, 6) for name, order in orders.items()}
lab.figure.draw_timelines(played, label="units of time")

# %% [markdown]
# Both end at the same moment: 1F1B does not shrink the bubble, though one often reads that it does.
# It shrinks what a stage **holds**: the micro-batches whose backward is still to come.
#
# Try all of it. The model and the batch stay the same, so more stages and more micro-batches mean
# shorter passes; 100 is the time of one process. **Play** runs the **time** from start to end:


# %%
def on_paper(stages=3, micro_batches=6, schedule="1F1B", time=100):
    order, now = orders[schedule], time / 100
    spans = experiment.play_one_batch(order, stages, micro_batches)
    end, notes = max(span.end for span in spans), []
    for stage in range(stages):
        held = experiment.held_at(spans, stage, now * end)
        most = experiment.most_held(order(stage, stages, micro_batches))
        notes.append(f"holds {held} now, most {most}")
    played, formula = experiment.bubble_of(spans, stages), pipeline.bubble(stages, micro_batches)
    title = f"bubble: {100 * played:.1f} % as played, {100 * formula:.1f} % by the formula"
    label = "time, % of what one process takes for the batch"
    options = {"longest": 100, "lanes": 4, "notes": notes, "label": label}
    return lab.motion.draw_lanes(spans, title, until=now, **options)


# %%
lab.Sliders(
    on_paper,
    stages=(1, 4, 1),
    micro_batches=(1, 8, 1),
    schedule=list(orders),
    time=range(0, 101, 4),
)

# %% [markdown]
# What to look for:
#
# - **stages** at 4 and **micro batches** at 1: four ranks take as long as one process.
# - More **micro batches** shrink the shaded bubble and the time, with less and less effect.
# - **GPipe** and **1F1B** have the same bubble. What rank 0 holds at most grows with *m* under
#   GPipe, and stops at *p* under 1F1B.
#
# Count what is held for each of 4 stages:

# %% tags=["nbval-check-output"]
for name, order in orders.items():
    held = [experiment.most_held(order(stage, 4, 16)) for stage in range(4)]
    bubble = experiment.bubble_of(experiment.play(order, 4, 16), 4)
    print(f"{name:<5}, 16 micro-batches: bubble {bubble:.3f}, held at most {held}")

# %% [markdown]
# And the real thing? This is one rank's part. It follows its list, and each action waits for its
# message. (Receives are announced early, so that messages travel while the stage computes; that
# part is not shown.)

# %%
lab.show_source(pipeline.Stage.step, docstring=False)

# %%
lab.show_source(pipeline.Stage._forward, pipeline.Stage._backward, docstring=False)

# %% [markdown]
# *Half-way. This is a good place to stop and come back to: run all cells above, and go on here.*
#
# ## 5. Prove
#
# Is it still the same training? Ten updates each: one process with the whole batch; our pipeline,
# in both orders; and PyTorch's own `torch.distributed.pipelining`. Momentum and weight decay are
# on, arithmetic is in float64, so that rounding cannot hide a mistake. First the plain one, which
# runs on a rank too, the only one:


# %%
def sgd(layers):
    return torch.optim.SGD(layers.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


def one_process(batches):
    model = small_model()
    optimizer = sgd(model)
    for x, y in batches:
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
        yield lab.snapshot(model)


# %% [markdown]
# Next, ours. Each rank yields its own layers after every update. The loss is a *sum* that `Stage`
# divides by the targets of the whole batch; that keeps micro-batches of unequal size right.


# %%
def my_layers(model):
    runs = pipeline.balanced([1.0] * len(model), dist.get_world_size())
    return pipeline.stage_of(model, runs[dist.get_rank()])


def summed(out, y):
    return cross_entropy(out, y, reduction="sum")


# %%
def ours(order, m, batches):
    layers = my_layers(small_model())
    stage, optimizer = pipeline.Stage(layers, summed), sgd(layers)
    actions = pipeline.SCHEDULES[order](dist.get_rank(), dist.get_world_size(), m)
    for x, y in batches:
        optimizer.zero_grad()
        stage.step(actions, x.tensor_split(m), y.tensor_split(m))
        optimizer.step()
        yield lab.snapshot(layers)


# %% [markdown]
# And PyTorch's, on two ranks: the first has the samples, the last the targets.


# %%
def torchs(m, batches):
    from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

    rank, layers = dist.get_rank(), my_layers(small_model())
    stage, optimizer = PipelineStage(layers, rank, 2, torch.device("cpu")), sgd(layers)
    schedule = ScheduleGPipe(stage, n_microbatches=m, loss_fn=cross_entropy)
    for x, y in batches:
        optimizer.zero_grad()
        schedule.step(x) if rank == 0 else schedule.step(target=y, losses=[])
        optimizer.step()
        yield lab.snapshot(layers)


# %% tags=["nbval-check-output"]
def together(worker, world, *args):
    """The whole model after each update, put together from what the ranks yield."""
    for parts in zip(*lab.collect(worker, world, *args).values()):
        yield {name: tensor for part in parts for name, tensor in part.items()}


batches = [(x.double(), y) for x, y in islice(mnist.batches(32), 10)]
ways = {"one process": together(one_process, 1, batches)}
ways["ours, GPipe, 2 ranks"] = together(ours, 2, "gpipe", 4, batches)
ways["ours, 1F1B, 3 ranks"] = together(ours, 3, "1f1b", 8, batches)
ways["torch, GPipe, 2 ranks"] = together(torchs, 2, 4, batches)
proof = lab.prove(ways)
assert proof.holds
print(proof)

# %%
proof

# %% [markdown]
# And a batch of 30 in 8 micro-batches, six of them with 4 samples and two with 3:

# %% tags=["nbval-check-output"]
batches = [(x.double(), y) for x, y in islice(mnist.batches(30), 10)]
alone, piped = together(one_process, 1, batches), together(ours, 2, "1f1b", 8, batches)
ragged = lab.prove({"one process": alone, "ours, ragged": piped})
assert ragged.holds
print(ragged)

# %% [markdown]
# Pipeline parallelism changes who computes what and when. It does not change what comes out, as
# long as the model treats each sample by itself. Batch normalization does not: a stage computes its
# mean and variance over a micro-batch, as in gradient accumulation (chapter 11).
#
# ## 6. Measure
#
# **The bubble, without any computing.** To see the order of work alone, give each rank a layer that
# only *waits*, 8 milliseconds forward and 16 backward. Processes, messages and schedule are the
# real ones; but waiting needs no core, so this works with four ranks on any machine.

# %%
lab.show_source(experiment.Wait, docstring=False)

# %%
counts = [m for m in (1, 2, 4, 8, 16) if m <= base.batch_size]
waiting = {p: experiment.waiting_stages(p, "gpipe", counts) for p in (2, 4)}
in_turns = experiment.waiting_stages(4, "1f1b", [8])
measured = {"GPipe, m = 8, measured": waiting[4][8], "1F1B, m = 8, measured": in_turns[8]}
lab.figure.draw_timelines(measured, label="milliseconds")

# %% [markdown]
# These times were taken by real processes, and they look like the pictures on paper.
#
# **Now with computing**: the network of the panel on your ranks. The fastest of eight updates
# counts, because other programs can only add to its time. Here is its bubble beside that of the
# ranks that wait:

# %%
computing = {m: experiment.computing_stages(base.turned(micro_batches=m)) for m in counts}
bubbles = {f"waiting, p = {p}": (p, spans) for p, spans in waiting.items()}
bubbles[f"computing, p = {base.ranks}"] = (base.ranks, computing)
bubbles = {
    name: {m: 100 * experiment.bubble_of(spans[m], p) for m in counts}
    for name, (p, spans) in bubbles.items()
}
for name, found in bubbles.items():
    print(f"{name}: ", ", ".join(f"m = {m}: {share:.0f} %" for m, share in found.items()))

# %% jupyter={"source_hidden": true}
picture, (axes,) = lab.figure.axes(8, 3.2)
for p in (2, 4):
    formula = {m: 100 * pipeline.bubble(p, m) for m in range(1, counts[-1] + 1)}
    label = "formula: (p − 1) / (m + p − 1)" if p == 2 else None
    axes.plot(list(formula), list(formula.values()), **lab.figure.LIMIT, label=label)
colors = (lab.figure.BLUE, lab.figure.GREEN, lab.figure.ORANGE)
for (name, found), color, marker in zip(bubbles.items(), colors, "os^"):
    axes.plot(list(found), list(found.values()), marker, color=color, markersize=8, label=name)
axes.set(ylabel="bubble, % of all ranks' time", ylim=(0, 100))
lab.figure.powers_of_two(axes, "micro-batches", counts)
axes.legend(frameon=False, fontsize=8)
picture

# %% [markdown]
# The ranks that wait lie on the formula or a little above it: messages take time, too. Those that
# compute lie on it or above: their stages never take exactly the same time, small micro-batches
# make the work less even, and other programs take their share of the cores.
#
# And what is held? A meter on each rank counts the bytes that autograd keeps, in both orders:

# %%
last, names = base.ranks - 1, {"gpipe": "GPipe", "1f1b": "1F1B"}
held = experiment.activations_held(base, counts)
held = {
    f"{names[order]}, rank {rank}": {m: size / 2**20 for m, size in sizes.items()}
    for (order, rank), sizes in held.items()
    if rank in (0, last)
}
picture, (axes,) = lab.figure.axes(8, 3)
lab.figure.powers_of_two(axes, "micro-batches", counts)
axes.set(
    ylabel="activations held, MiB", ylim=(0, 1.1 * max(max(h.values()) for h in held.values()))
)
lab.figure.draw_lines(axes, held)
picture

# %% [markdown]
# Under 1F1B the bytes fall once *m* is larger than what a rank holds: a fixed number of ever
# smaller micro-batches, at most one for each stage from its own to the last. Under GPipe all of
# them are held at every *m*. Gradient accumulation on one process (chapter 11) would have saved
# this memory; GPipe spends it again.
#
# **And the speed?** One process with the whole batch races the pipeline on the same ranks. While
# the one process works the others wait for it. A last competitor is one process with as many
# *threads* as there are ranks.

# %%
lab.show_source(experiment.competitors, first="def alone", last="return", docstring=False)

# %% [markdown]
# They take turns, in a random order in every round. A ratio is the time over that of one process
# with one thread; **below 1 is faster**.


# %%
def raced(settings, counts):
    """{way: its time, compared with that of one process with one thread}"""
    seconds = experiment.race(settings, counts)
    names = {m: f"{settings.ranks} ranks with m = {m}" for m in counts}
    names["threads"] = f"one process with {settings.ranks} threads"
    pairs = {way: (name, "one process with one thread") for way, name in names.items()}
    return {way: lab.compared(seconds, way, "one process", pair) for way, pair in pairs.items()}


ratios = raced(base, counts)
for ratio in ratios.values():
    print(ratio)

# %% jupyter={"source_hidden": true}
p, by_count = base.ranks, {m: ratios[m] for m in counts}
promised = [(m + p - 1) / (m * p) for m in counts]
picture, (axes,) = lab.figure.axes(8, 3.4)
lab.figure.draw_ratios(axes, by_count, "time of an update, × one process")
style = {"color": lab.figure.GREEN, "linestyle": "-."}
axes.plot(counts, promised, **style, label="promised: (m + p − 1) / (m · p)")
style = {"color": lab.figure.PURPLE, "linestyle": ":"}
axes.axhline(ratios["threads"].ratio, **style, label=f"one process, {p} threads")
lab.figure.draw_guess(axes, {1: guess_one.value, 8: guess_eight.value})
axes.set_ylim(0, 1.4 * axes.get_ylim()[1])  # room for the legend
lab.figure.powers_of_two(axes, "micro-batches", counts)
axes.legend(frameon=False, fontsize=8)
picture

# %%
guess_one.against(ratios[1])

# %%
guess_eight.against(ratios[8 if 8 in ratios else counts[-1]])

# %% [markdown]
# The green line is what the formula promises: (*m* + *p* − 1) · *t*, where one process needs *m* ·
# *p* · *t*. At *m* = 1 it promises nothing at all. Further right the measurement leaves it, sooner
# or later: each micro-batch costs a message each way and some microseconds for every layer, and a
# small matrix product uses a core less well than a large one.
#
# The bubble wants many micro-batches, and the arithmetic wants large ones. The best *m* is a
# compromise between the two, and it depends on the machine.

# %% [markdown]
# ## 7. Break it
#
# Choose them one by one; some end the run. The *error of the update* is its distance to the update
# of one process, 1 meaning that all of it is wrong; rounding alone gives about 10⁻⁵. Some mistakes
# spoil the *numbers*, others only the *time*. Which are which? Look at the timeline as well. (The
# learning rate is lower and the network narrower than above.)
#
# Leave **micro batches** at 2 or more: with one there is nothing to divide by, and no order to mix
# up. After *two schedules* the ranks wait for a message for some seconds before they give up.

# %% jupyter={"source_hidden": true}
slow = max(1e-4, base.learning_rate / 10)  # or some mistakes would end the run at once
broken = base.turned(twin=True, learning_rate=slow, width=min(base.width, 256), timeout=8.0)
charts = [
    lab.Curve("update_error", "error of the update", over="updates", log=(1e-8, 1e2)),
    lab.Curve("bubble_measured", "bubble, % of all ranks' time", scale=100),
    lab.Timeline(),
]
right_or_wrong = lab.Badge(
    "update_error", 1e-4, "every update is one process's", "not one process's update"
)

# %%
some = ("skip the division", "wrong rank order", "unbalanced stages")
break_it = lab.Panel(
    experiment.run,
    broken,
    charts,
    controls=["micro_batches", "schedule", "mistake"],
    baselines={"no mistake": {"mistake": "none"}},
    headline=None,
    tour=[broken.turned(mistake=mistake) for mistake in some],
    seconds=1.0,
    badge=right_or_wrong,
)
break_it

# %% [markdown]
# Write down which mistakes spoil the numbers and which the time, then look.
#
# <details><summary>What each of them does</summary>
#
# - **skip the division** adds up each micro-batch's own mean: the gradient is *m* times too large.
#   It is the famous mistake of chapter 11, in a pipeline.
# - **wrong rank order** lets the last stage send two gradients in each other's place. Shapes fit,
#   nothing complains, and each of the two arrives at the other's activations. Messages between two
#   ranks have no names, only an order.
# - **unbalanced stages** gives almost all layers to the first rank. The numbers are right. The
#   bubble is not: the formula assumes equal stages.
# - **slow rank** sleeps a little at every forward. All the others wait for it, each time.
#
# </details>

# %% [markdown]
# Three mishaps end the run, and the panel says so in one line. Here they are side by side. Without
# a limit on waiting, the last one would never end.

# %% tags=["nbval-check-output"]
plain = base.turned(ranks=2, micro_batches=min(4, base.batch_size), width=64, mistake="none")
failures = {}
for mistake in ("mismatched shapes", "dying rank", "two schedules"):
    patience = 2.0 if mistake == "two schedules" else 30.0
    settings = plain.turned(mistake=mistake, timeout=patience)
    failures[mistake] = failed = lab.failure_of(experiment.run(settings))
    who = "the ranks" if failed.how == "hung" else f"rank {failed.rank}"
    print(f"{mistake}: {who} {failed.how}")

# %%
print(failures["mismatched shapes"].headline)
print(failures["dying rank"].headline)

# %% [markdown]
# - **mismatched shapes**: the ranks agree on shapes before anything is sent, and the one whose
#   layers do not fit says so.
# - **dying rank**: rank 1 is killed, as when a machine fails. Rank 0 only waits for it, and is not
#   blamed.
# - **two schedules** is a *deadlock*: one rank follows GPipe and the other 1F1B. Each waits for a
#   message that the other is not going to send next.

# %% [markdown]
# ## 8. When it does not help
#
# Three cases, measured here:
#
# - **One batch in flight** you have seen.
# - **Tiny stages**: the same race with layers 16 wide, where a pass costs less than the message
#   that follows it.
# - **A model that fits**: one process with several threads spreads each matrix product over the
#   cores, and has neither bubble nor messages.

# %%
most = min(8, base.batch_size)
tiny = raced(base.turned(width=16), [most])
best = min(counts, key=lambda m: ratios[m].ratio)
cases = {
    "one batch in flight (m = 1)": ratios[1].ratio,
    f"tiny stages (width 16, m = {most})": tiny[most].ratio,
    f"the pipeline at its best (m = {best})": ratios[best].ratio,
    f"no pipeline: one process, {p} threads": ratios["threads"].ratio,
}
picture, (axes,) = lab.figure.axes(8, 2.6)
lab.figure.draw_bars(axes, cases, unit="×", limit=(1, "one process, one thread"))
axes.set_xlabel("time of an update, × one process with one thread")
picture

# %% [markdown]
# Compare the two bars at the bottom. If threads win on your machine, then for this model the
# pipeline was the wrong tool: within one machine there are simpler ways to use the cores. Pipelines
# are for models whose weights do not fit one device, and for connections too slow to send the
# gradients of the whole model: between two stages only one layer's output travels, and as much
# comes back.
#
# The verdict, for this machine:

# %%
gains = "a gain" if ratios[1].proved and ratios[1].ratio < 1 else "no gain"
faster = "faster" if ratios[best].proved and ratios[best].ratio < 1 else "not faster"
verdict = (
    f"{p} ranks, one batch in flight: {ratios[1].ratio:.2f} × the time of one process ({gains}); "
    f"best at m = {best}: {ratios[best].ratio:.2f} × ({faster}), where the formula allows "
    f"{(best + p - 1) / (best * p):.2f} ×; {p} threads: {ratios['threads'].ratio:.2f} ×"
)
lab.log_verdict("pipeline", verdict)

# %% [markdown]
# ## 9. Exercises
#
# Write the functions and run the cells; `check` tries each on fresh data. It says what is right
# already, shows a small case that is not, and gives a hint where it knows the mistake. After two
# different tries it offers a worked solution.

# %%
from accel_lab.grading.practice import check, exercises

WIRES, CUT, AGAIN = exercises("pipeline")
WIRES


# %% tags=["exercise"]
def schedule_over_wires(stage, stages, micro_batches, message):
    raise NotImplementedError


check(schedule_over_wires)

# %% [markdown]
# A picture helps more than a number: where does 1F1B wait, if a message takes 1.5 units? As soon as
# your schedule can be played, it appears below the two others.

# %%
schedules = experiment.over_slow_wires(schedule_over_wires)
lab.figure.draw_timelines(schedules, label="units of time")

# %%
CUT


# %% tags=["exercise"]
def cut(seconds, bytes_held, stages, limit):
    raise NotImplementedError


check(cut)

# %%
AGAIN


# %% tags=["exercise"]
def backward_again(layers, x, gradient):
    raise NotImplementedError


check(backward_again)

# %% [markdown]
# ## 10. Take away
#
# - Stages in a row do not work in parallel by themselves. With one batch in flight, *p* workers are
#   one worker.
# - Micro-batches fill the pipeline. With equal stages and either of these orders, at least
#   (*p* − 1)/(*m* + *p* − 1) of all ranks' time is lost, on any hardware.
# - GPipe and 1F1B have the same bubble. 1F1B holds at most *p* micro-batches on a stage, GPipe all
#   *m*.
# - The weights that come out are those of one process. If not, look for a mean of means, or for an
#   order of messages.
# - The slowest stage sets the pace: cut by measured time, not by the number of layers.

# %% [markdown]
# Known from elsewhere, and not measured here: with several small stages on each rank,
# *interleaved* 1F1B shortens the bubble and sends more (Narayanan 2021, who divides the bubble by
# the ideal time and so writes (*p* − 1)/*m*). Dropout draws other masks than one process does. And
# weights that the first and the last stage share, as many language models have, need their
# gradients added.

# %% [markdown]
# **What would prove this wrong?** A pipeline with equal stages that waits less than the formula
# says, updates its weights once a batch, and makes the same update as one process. Look closely at
# what it does first: some train with weights that are a few steps old, some deal several small
# stages to each rank, others split the backward pass in two and fill the bubble with its second
# half.
#
# **Sources.** Y. Huang et al., *GPipe*, 2019, arXiv:1811.06965, section 2.3 · D. Narayanan et al.,
# *PipeDream*, SOSP 2019, section 3.2, and *Efficient Large-Scale Language Model Training on GPU
# Clusters*, 2021, arXiv:2104.04473, section 2.2, for 1F1B · P. Qi et al., *Zero Bubble Pipeline
# Parallelism*, 2024, arXiv:2401.10241, for the split backward pass.

# %% [markdown]
# **Next.** Sharing work among several workers has a limit. A smaller model has none of these
# troubles, if it can be taught to do as well. That is distillation,
# [chapter 19](19_distillation.ipynb). The other chapters are listed on the
# [first page](00_start_here.ipynb).
