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
# the first worker gets the first few, the next worker the next few, and so on. Each worker's share
# is a **stage**. Activations travel down the row, gradients travel back up.
#
# One often reads it like this:
#
# > *Stage 1 → stage 2 → … → stage n: the stages work in parallel, so training is faster.*
#
# There is something to it: assembly lines do work. But look at the arrows. Stage 2 needs what stage
# 1 has made. So when, just, do the two work *at the same time*?
#
# In the next forty minutes you start real processes, watch each of them work and wait, and find the
# one number that decides. It is a formula without a single time in it.

# %%
import inspect
import random
import time
from itertools import islice

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy

from accel_lab import pipeline
from accel_lab.experiments import pipeline as experiment
from accel_lab.workbench import models
from accel_lab.workbench.data import datasets
from accel_lab.workbench.drawing import figure
from accel_lab.workbench.drawing.chart import Badge
from accel_lab.workbench.drawing.curve import Curve
from accel_lab.workbench.drawing.sweep import Sweep
from accel_lab.workbench.drawing.timeline import Timeline
from accel_lab.workbench.measure.comparison import Comparison
from accel_lab.workbench.measure.proof import prove, snapshot
from accel_lab.workbench.notebook.speed_log import log_verdict
from accel_lab.workbench.panel import Panel, Prediction
from accel_lab.workbench.ranks.launch import RankFailed, launch
from accel_lab.workbench.ranks.rank import RankSpanRecorder

# %% [markdown]
# The next cell holds the settings of this chapter. Change one, as in `knobs = {"width": 1024}`, and
# run the notebook again: everything below follows.

# %% tags=["parameters"]
knobs = {}

# %%
torch.set_num_threads(1)  # as every rank has: layers timed here take what they take there
base = experiment.Knobs(**{"batch_size": 512, "micro_batches": 8, **knobs})
mnist = datasets.mnist5k()
print(
    f"a network of {base.depth} linear layers, {base.width} wide, on {base.ranks} processes; "
    f"batches of {base.batch_size}"
)

# %% [markdown]
# ## 2. Predict
#
# Two workers, called *ranks*, each hold half of the network and have a processor core each. Compare
# with one process that holds it all and has one core. Two guesses, before you see anything; a wrong
# one costs nothing.

# %%
guess_one = Prediction(
    "The batch goes through in one piece. Time of an update on two ranks: how many times that of "
    "one process?",
    low=0.25,
    high=4,
    default=0.5,
    unit="×",
)
guess_one

# %%
guess_eight = Prediction(
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
# The ranks below are processes of their own, started when you press **Start**. The timeline shows
# what each of them does during one update: forward and backward passes, numbered by micro-batch. A
# gap is waiting. The **bubble** is all of the gaps: the share of all ranks' time, from the first
# forward to the last backward, in which a rank had nothing to do.
#
# The orange run has the batch in one piece, *m* = 1. Press **Start** and move **micro batches**
# from 1 to 2, 4, 8.

# %%
panel = Panel(
    experiment.run,
    base,
    [
        Curve("throughput", "samples/s"),
        Sweep(
            "micro_batches",
            "bubble_measured",
            "bubble, % of all ranks' time",
            scale=100,
            predicted=lambda knobs: pipeline.bubble(knobs.ranks, knobs.micro_batches),
            formula="(p − 1) / (m + p − 1)",
        ),
        Timeline(),
    ],
    controls=["ranks", "micro_batches", "schedule"],
    baselines={"m = 1": base.turned(micro_batches=1)},
    tour=[base.turned(micro_batches=2), base.turned(micro_batches=4)],
)
panel

# %% [markdown]
# What to look for:
#
# - With *m* = 1 the bars never overlap. While one rank works the other waits, so half of the time
#   of both is empty. Two workers are there, and at each moment one of them works.
# - With more micro-batches, rank 1 starts on micro-batch 0 while rank 0 has micro-batch 1. The gaps
#   shrink.
# - The dashed curve is the formula of part 4. On a machine with a free core for each rank the dots
#   come close to it. Where cores are shared, or the machine has other work to do, they lie above:
#   nobody can wait less than the order of work demands.
# - Set **ranks** to more than your machine has cores. Now ranks wait for a core as well, and the
#   formula knows nothing of that.
#
# ## 4. Build
#
# **First, the cut.** A stage is a run of consecutive layers. Everybody will wait for the slowest
# stage, so the cut goes by time: `layer_seconds` measures every layer, forwards and backwards, and
# `balanced` finds the runs whose costliest is cheapest.

# %%
torch.manual_seed(0)
model = models.mlp(784, *[base.width] * (base.depth - 1), 10)
x, y = next(mnist.batches(base.batch_size))
seconds = pipeline.layer_seconds(model, x)
runs = pipeline.balanced(seconds, 2)

picture, (axes,) = figure.axes(8, 2.6)
for stage, (run, color) in enumerate(zip(runs, (figure.BLUE, figure.ORANGE))):
    names = [f"{type(model[layer]).__name__}\n{layer}" for layer in run]
    axes.bar(names, [seconds[layer] * 1e3 for layer in run], color=color, label=f"stage {stage}")
axes.set(ylabel="milliseconds, both ways")
axes.tick_params(axis="x", labelsize=7)
axes.legend(frameon=False)
picture

# %% tags=["nbval-check-output"]
stages = [pipeline.stage_of(model, run) for run in runs]
print(
    "one stage after the other is the whole model:", torch.equal(stages[1](stages[0](x)), model(x))
)

# %% [markdown]
# **Then, one micro-batch's way.** What crosses the border is a plain tensor of numbers: autograd's
# graph ends there. The second stage therefore marks what it has received with `requires_grad_()`;
# after its backward pass the tensor's `.grad` is just what the first stage needs to go on with.
# Here both stages are still in this process:

# %% tags=["nbval-check-output"]
model.double()
x = x.double()
cross_entropy(model(x), y).backward()
whole = [p.grad.clone() for p in model.parameters()]
model.zero_grad()

sent = stages[0](x)  # forward on stage 0
received = sent.detach().requires_grad_()  # the message down: numbers, no graph
cross_entropy(stages[1](received), y).backward()  # forward and backward on stage 1
sent.backward(received.grad)  # the message up, and backward on stage 0

gap = max((p.grad - g).abs().max().item() for p, g in zip(model.parameters(), whole))
print("the gradients are the whole model's:", gap < 1e-12)

# %% [markdown]
# Now with two real processes. `launch` starts them, runs the function below in each, and hands back
# what they return.


# %%
def one_way_and_back(stages, width, x, y):
    mine = stages[dist.get_rank()]
    if dist.get_rank() == 0:
        out = mine(x)
        dist.send(out.detach(), 1)
        gradient = torch.empty_like(out)
        dist.recv(gradient, 1)
        out.backward(gradient)
    else:
        received = torch.empty(
            len(x), width, dtype=x.dtype
        )  # whoever receives must know what will come
        dist.recv(received, 0)
        received.requires_grad_()
        cross_entropy(mine(received), y).backward()
        dist.send(received.grad, 0)
    return [p.grad for p in mine.parameters()]


# %% tags=["nbval-check-output"]
model.zero_grad()
answers = dict(launch(one_way_and_back, 2, stages, base.width, x, y))
gap = max((p - g).abs().max().item() for p, g in zip(answers[0] + answers[1], whole))
print("two processes, the same gradients:", gap < 1e-12)
answers.clear()  # as large as the model, and nothing below needs them

# %% [markdown]
# **Last, the order.** Cut the batch into micro-batches and each stage has a list of things to do:
# forwards and backwards, each micro-batch once. The plainest order is called GPipe, after the
# article that introduced it: all forwards, then all backwards.

# %%
print(inspect.getsource(pipeline.gpipe))

# %% [markdown]
# Play it on paper. Let a forward take 1 unit of time and a backward 2, and let every action begin
# as soon as what it needs is there:


# %%
from accel_lab.workbench.step import Span


def play(schedule, stages, micro_batches, forward=1e-3, backward=2e-3):
    to_do = [list(schedule(stage, stages, micro_batches)) for stage in range(stages)]
    ends, clock, spans = {}, [0.0] * stages, []
    while any(to_do):
        before = len(spans)
        for stage, actions in enumerate(to_do):
            while actions:
                kind, i = actions[0]
                source = (kind, i, stage - 1 if kind == "forward" else stage + 1)
                if 0 <= source[2] < stages and source not in ends:
                    break  # not there yet: look at the other stages first
                start = max(clock[stage], ends.get(source, 0.0))
                clock[stage] = ends[kind, i, stage] = start + (
                    forward if kind == "forward" else backward
                )
                spans.append(Span(stage, f"{kind} {i}", start, clock[stage]))
                actions.pop(0)
        assert len(spans) > before, "every stage waits for another: a deadlock"
    return spans


# %%
def draw(*titled_spans, height=2.1, xlabel="units of time"):
    picture, columns = figure.axes(10, height, columns=len(titled_spans))
    end = max(span.end for _, spans in titled_spans for span in spans) * 1e3
    for axes, (title, spans) in zip(columns, titled_spans):
        figure.draw_spans(axes, spans)
        axes.set(xlabel=xlabel, xlim=(0, end))
        axes.set_title(title, fontsize=10, loc="right")
    return picture


# %%
draw(("m = 1", play(pipeline.gpipe, 3, 1)), ("m = 4", play(pipeline.gpipe, 3, 4)))

# %% [markdown]
# Read off the right picture how long it lasts. Each stage works for *m* · *t*, with *t* one forward
# and one backward. The last stage cannot begin before the first micro-batch has come down, and at
# the end the first stage must wait until the last gradient has come up: together (*p* − 1) · *t*,
# for *p* stages. So the step takes (*m* + *p* − 1) · *t*, of which every rank waits (*p* − 1) ·
# *t*:
#
# $$\text{bubble} = \frac{p-1}{m+p-1}$$
#
# The *t* has cancelled. A faster processor, a larger model, a better library: as long as all stages
# take the same time, none of them changes the bubble. Only *m* and *p* do. And *m* = 1 gives (*p* −
# 1)/*p*: with *p* workers, one works.


# %% tags=["nbval-check-output"]
def bubble_of(spans, ranks):
    lasted = max(span.end for span in spans) - min(span.start for span in spans)
    return 1 - sum(span.end - span.start for span in spans) / (ranks * lasted)


for p, m in ((2, 1), (2, 4), (2, 8), (4, 4), (4, 32)):
    print(
        f"p = {p}, m = {m:>2}: played {bubble_of(play(pipeline.gpipe, p, m), p):.3f}, formula "
        f"{pipeline.bubble(p, m):.3f}"
    )

# %% [markdown]
# GPipe pays in another currency. A stage holds a micro-batch's activations from its forward to its
# backward, and here every forward comes before the first backward: all *m* are held at once. The
# second famous order turns back as soon as it can. A stage runs ahead by as many forwards as there
# are stages behind it, and from there on takes turns: **one forward, one backward**, hence *1F1B*.

# %%
print(inspect.getsource(pipeline.one_forward_one_backward))

# %%
draw(("GPipe", play(pipeline.gpipe, 3, 6)), ("1F1B", play(pipeline.one_forward_one_backward, 3, 6)))

# %% [markdown]
# Both end at the same moment: 1F1B does not shrink the bubble, whatever is said of it. What it
# shrinks is what a stage holds. Count it:


# %% tags=["nbval-check-output"]
def most_held(actions):
    held = [0]
    for kind, _ in actions:
        held.append(held[-1] + (1 if kind == "forward" else -1))
    return max(held)


for name, schedule in pipeline.SCHEDULES.items():
    held = [most_held(schedule(stage, 4, 16)) for stage in range(4)]
    print(
        f"{name:<5}: 4 stages and 16 micro-batches, held at most by each stage: {held}, bubble "
        f"{pipeline.bubble(4, 16):.3f}"
    )

# %% [markdown]
# And the real thing? One rank's part, on one screen. It follows its list, and each action waits for
# its message. (What is not shown announces the receivers early, so that messages travel while the
# stage computes.)

# %%
for part in ("step", "_forward", "_backward"):
    print(inspect.getsource(getattr(pipeline.Stage, part)))

# %% [markdown]
# ## 5. Prove
#
# Is it still the same training? Ten updates each: one process with the whole batch; our pipeline,
# in both orders; and PyTorch's own `torch.distributed.pipelining`. Momentum and weight decay are
# on, arithmetic is in float64, so that rounding cannot hide a mistake. This is the plain one, and
# what the others share:


# %%
def small_model():
    torch.manual_seed(1)
    return models.mlp(784, 32, 32, 32, 10).double()


def sgd(layers):
    return torch.optim.SGD(layers.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


def my_layers(model):
    runs = pipeline.balanced([1.0] * len(model), dist.get_world_size())
    return pipeline.stage_of(model, runs[dist.get_rank()])


# %%
def one_process(batches):
    model = small_model()
    optimizer = sgd(model)
    for x, y in batches:
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
        yield snapshot(model)


# %% [markdown]
# Next, the workers. Each rank yields its own layers after every update. Our loss is a *sum* that
# `Stage` divides by the samples of the whole batch; that keeps micro-batches of unequal size right.


# %%
def summed(out, y):
    return cross_entropy(out, y, reduction="sum")


def ours(order, m, batches):
    layers = my_layers(small_model())
    stage, optimizer = pipeline.Stage(layers, batches[0][0], summed), sgd(layers)
    actions = pipeline.SCHEDULES[order](dist.get_rank(), dist.get_world_size(), m)
    for x, y in batches:
        optimizer.zero_grad()
        stage.step(actions, x.tensor_split(m), y.tensor_split(m))
        optimizer.step()
        yield snapshot(layers)


# %%
def torchs(m, batches):
    from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

    rank, last = dist.get_rank(), dist.get_world_size() - 1
    layers = my_layers(small_model())
    stage = PipelineStage(layers, rank, last + 1, torch.device("cpu"))
    schedule, optimizer = ScheduleGPipe(stage, n_microbatches=m, loss_fn=cross_entropy), sgd(layers)
    for x, y in batches:
        optimizer.zero_grad()
        schedule.step(
            *([x] if rank == 0 else []), **({"target": y, "losses": []} if rank == last else {})
        )
        optimizer.step()
        yield snapshot(layers)


# %%
def on_ranks(worker, world, *args):
    """The whole model after each update, put together from what the ranks yield."""
    states = {}
    for rank, state in launch(worker, world, *args):
        states.setdefault(rank, []).append(state)
    for parts in zip(*states.values()):
        yield {name: tensor for part in parts for name, tensor in part.items()}


def some_batches(size):
    return [(x.double(), y) for x, y in islice(mnist.batches(size), 10)]


# %% tags=["nbval-check-output"]
batches = some_batches(32)
ways = {
    "one process": one_process(batches),
    "ours, GPipe, 2 ranks": on_ranks(ours, 2, "gpipe", 4, batches),
    "ours, 1F1B, 3 ranks": on_ranks(ours, 3, "1f1b", 8, batches),
    "torch, GPipe, 2 ranks": on_ranks(torchs, 2, 4, batches),
}
proof = prove(ways)
assert proof.holds
print(proof)

# %%
proof

# %% [markdown]
# And a batch of 30 in 8 micro-batches, six of them with 4 samples and two with 3:

# %% tags=["nbval-check-output"]
batches = some_batches(30)
ragged = prove(
    {"one process": one_process(batches), "ours, ragged": on_ranks(ours, 2, "1f1b", 8, batches)}
)
assert ragged.holds
print(ragged)

# %% [markdown]
# Pipeline parallelism changes who computes what and when. It does not change what comes out.
#
# ## 6. Measure
#
# **The bubble, without any computing.** To see the order of work alone, give each rank a layer that
# merely *waits*, a short time forwards and twice that backwards. Processes, messages and schedule
# are the real ones; but waiting needs no core, so this works with four ranks on any machine.


# %%
class Waits(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        time.sleep(0.008)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(0.016)
        return gradient


class Wait(nn.Module):
    def forward(self, x):
        return Waits.apply(x)


# %%
def wait_in_line(order, counts):
    x, spans = torch.zeros(32, 1, requires_grad=True), RankSpanRecorder()
    stage = pipeline.Stage(nn.Sequential(Wait()), x, lambda out, y: out.sum(), spans)
    for m in counts:
        actions = pipeline.SCHEDULES[order](dist.get_rank(), dist.get_world_size(), m)
        for _ in range(3):
            spans.restart()
            stage.step(actions, x.tensor_split(m), x.tensor_split(m))
            yield m, list(spans.taken)


# %%
def joined(worker, world, *args):
    """m → the spans of all ranks, once for each step."""
    of_rank = {rank: [] for rank in range(world)}
    for rank, (m, spans) in launch(worker, world, *args):
        of_rank[rank].append((m, spans))
    steps = {}
    for parts in zip(*of_rank.values()):
        steps.setdefault(parts[0][0], []).append([span for _, spans in parts for span in spans])
    return steps


counts = (1, 2, 4, 8, 16)
waiting = {p: joined(wait_in_line, p, "gpipe", counts) for p in (2, 4)}
turns = joined(wait_in_line, 4, "1f1b", [8])
draw(
    ("GPipe, measured", waiting[4][8][-1]),
    ("1F1B, measured", turns[8][-1]),
    xlabel="milliseconds",
    height=2.6,
)

# %% [markdown]
# These times were taken by real processes, and they look like the pictures on paper. **Now with
# computing**: the network of the panel on your ranks. And a meter on each rank counts the
# activations that it holds, in both orders.

# %%
computing = {}
for m in [m for m in counts if m <= base.batch_size]:
    steps = experiment.run(base.turned(micro_batches=m))
    computing[m] = [step.spans for step in islice(steps, 10)][2:]
    steps.close()


# %%
from accel_lab.workbench.measure.memory_meter import ActivationMeter


def activations(model, counts, x, y):
    layers = my_layers(model)
    stage = pipeline.Stage(layers, x, summed)
    for order, schedule in pipeline.SCHEDULES.items():
        for m in counts:
            actions = schedule(dist.get_rank(), dist.get_world_size(), m)
            with ActivationMeter(layers, x) as meter:
                stage.step(actions, x.tensor_split(m), y.tensor_split(m))
            yield order, m, meter.peak


held = {}
for rank, (order, m, peak) in launch(
    activations, base.ranks, model.float(), list(computing), x.float(), y
):
    held.setdefault((order, rank), {})[m] = peak / 2**20


# %%
def undisturbed(steps, ranks):
    """The bubble of the fastest step, in percent: whatever else the machine does can only add to
    its time.
    """
    work = [[span for span in spans if span.kind != "optimizer step"] for spans in steps]
    fastest = min(
        work, key=lambda spans: max(span.end for span in spans) - min(span.start for span in spans)
    )
    return 100 * bubble_of(fastest, ranks)


# %%
picture, (left, right) = figure.axes(9.5, 3.4, columns=2)
for p, color, marker in ((2, figure.BLUE, "o"), (4, figure.GREEN, "s")):
    formula = [100 * pipeline.bubble(p, m) for m in range(1, 17)]
    left.plot(
        range(1, 17), formula, **figure.LIMIT, label="(p − 1) / (m + p − 1)" if p == 2 else None
    )
    left.plot(
        counts,
        [undisturbed(waiting[p][m], p) for m in counts],
        marker,
        color=color,
        label=f"waiting, p = {p}",
    )
measured = [undisturbed(steps, base.ranks) for steps in computing.values()]
left.plot(
    computing.keys(), measured, "^", color=figure.ORANGE, label=f"computing, p = {base.ranks}"
)
left.set(ylabel="bubble, % of all ranks' time", ylim=(0, 100))

last, names = base.ranks - 1, {"gpipe": "GPipe", "1f1b": "1F1B"}
for (order, rank), (color, style) in zip(
    (("gpipe", 0), ("gpipe", last), ("1f1b", 0), ("1f1b", last)), figure.STYLES
):
    peaks = held[order, rank]
    right.plot(
        peaks.keys(),
        peaks.values(),
        style,
        marker="o",
        color=color,
        label=f"{names[order]}, rank {rank}",
    )
right.set(ylabel="activations held, MiB", ylim=(0, None))
for axes in (left, right):
    figure.powers_of_two(axes, "micro-batches", counts)
    axes.legend(frameon=False, fontsize=8)
picture

# %% [markdown]
# On the left, dashed, the formula. The ranks that wait lie on it, for two stages and for four, or a
# hair above: messages take time, too. Those that compute lie on it or above: their stages never
# take exactly the same time, small micro-batches make the work less even, and other programs take
# their share of the cores.
#
# On the right, the bytes that autograd keeps, counted by the meter of chapter 11. Under 1F1B they
# fall as *m* grows: a fixed number of ever smaller micro-batches is held, and the last rank holds a
# single one. Under GPipe all of them are held, whatever *m* is. Gradient accumulation on one
# process would have saved this memory; GPipe spends it again.
#
# **And the speed?** One process with the whole batch against the pipeline, forward and backward, in
# turns on the same ranks and in random order. While the one process works the others wait for it.
# The last way in the race is one process that uses as many *threads* as there are ranks.


# %%
def race(knobs, counts, rounds, digits, coin):
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    whole = models.mlp(784, *[knobs.width] * (knobs.depth - 1), 10)
    x, y = next(digits.batches(knobs.batch_size))
    stage = pipeline.Stage(my_layers(whole), x, summed)

    def alone(threads):
        if rank == 0:
            torch.set_num_threads(threads)
            cross_entropy(whole(x), y).backward()
            torch.set_num_threads(1)

    def piped(m):
        stage.step(
            pipeline.SCHEDULES[knobs.schedule](rank, world, m), x.tensor_split(m), y.tensor_split(m)
        )

    ways = {
        "one process": lambda: alone(1),
        "threads": lambda: alone(world),
        **{m: lambda m=m: piped(m) for m in counts},
    }
    for _ in range(rounds):
        yield {way: timed(ways[way]) for way in coin.sample(list(ways), len(ways))}


# %%
def timed(work):
    dist.all_reduce(torch.zeros(1))  # all meet before and after
    start = time.perf_counter()
    work()
    dist.all_reduce(torch.zeros(1))
    return time.perf_counter() - start


def raced(settings, counts, rounds=13):
    """Way → its time beside that of one process. The first round warms up."""
    heard = launch(race, settings.ranks, settings, counts, rounds, mnist, random.Random(0))
    laps = [seconds for rank, seconds in heard if rank == 0][1:]
    names = {
        "threads": f"one process, {settings.ranks} threads",
        **{m: f"{settings.ranks} ranks, m = {m}" for m in counts},
    }
    return {
        way: Comparison.of(
            [(lap[way], lap["one process"]) for lap in laps], (name, "one process, one thread")
        )
        for way, name in names.items()
    }


# %%
ratios = raced(base, list(computing))
for ratio in ratios.values():
    print(ratio)

# %%
p = base.ranks
picture, (axes,) = figure.axes(7, 3.4)
figure.draw_ratios(
    axes, {m: ratios[m] for m in computing}, ylabel="time of an update, × one process"
)
axes.plot(
    computing.keys(),
    [(m + p - 1) / (m * p) for m in computing],
    color=figure.GREEN,
    linestyle="-.",
    label="(m + p − 1) / (m · p)",
)
axes.axhline(
    ratios["threads"].ratio, color=figure.PURPLE, linestyle=":", label=f"one process, {p} threads"
)
axes.plot(
    [1, 8],
    [guess_one.value, guess_eight.value],
    "*",
    color=figure.ORANGE,
    markersize=13,
    label="predicted in part 2",
)
highest = [ratios[m].interval[1] for m in computing] + [ratios["threads"].ratio]
axes.set_ylim(0, 1.1 * max(highest))
figure.powers_of_two(axes, "micro-batches", computing)
axes.legend(frameon=False, fontsize=8)
picture

# %%
guess_one.against(ratios[1].ratio)

# %%
guess_eight.against(ratios[8 if 8 in ratios else max(computing)].ratio)

# %% [markdown]
# The green line is what the formula promises: (*m* + *p* − 1) · *t*, where one process needs *m* ·
# *p* · *t*. At *m* = 1 it promises nothing at all. Further right the measurement leaves it, sooner
# or later: each micro-batch costs a message each way and some microseconds for every layer, and a
# small matrix product uses a core less well than a large one. The bubble wants many micro-batches
# and the arithmetic wants large ones. In between lies the *m* that is best on your machine.
#
# ## 7. Break it
#
# One click each. The error of the update is its distance to what one process would have done;
# rounding alone gives about 10⁻⁵. Some mistakes spoil the *numbers*, others only the *time*. Which
# are which? Look at the timeline as well.

# %%
broken = base.turned(
    twin=True, learning_rate=max(1e-4, base.learning_rate / 10)
)  # or some mistakes would end the run at once
break_it = Panel(
    experiment.run,
    broken,
    [
        Curve("update_error", "error of the update", over="updates", log=(1e-8, 1e2)),
        Curve("bubble_measured", "bubble, % of all ranks' time", scale=100),
        Timeline(),
    ],
    controls=["micro_batches", "schedule", "mistake"],
    baselines={"no mistake": broken},
    tour=[
        broken.turned(mistake=mistake)
        for mistake in ("skip the division", "wrong rank order", "unbalanced stages")
    ],
    seconds=1.0,
    badge=Badge("update_error", 1e-4, "every update is one process's", "not one process's update"),
)
break_it

# %% [markdown]
# - **skip the division** adds up each micro-batch's own mean: the gradient is *m* times too long.
#   It is the famous mistake of chapter 11, at home in pipelines, too.
# - **wrong rank order** lets the last stage send two gradients in each other's place. Shapes fit,
#   nothing complains, and every gradient arrives at another micro-batch's activations. Messages
#   between two ranks have no names, only an order.
# - **unbalanced stages** gives all but one layer to the first rank. The numbers are right. The
#   bubble is not: the formula took equal stages for granted.
# - **slow rank** sleeps a little at every forward. All the others wait for it, each time.
#
# Three mishaps end the run, and the panel says so in one line. Here they are side by side. Without
# a limit on waiting, the last one would stand still for as long as you let it.

# %% tags=["nbval-check-output"]
failures = {}
for mistake, patience in (
    ("mismatched shapes", 30.0),
    ("dying rank", 30.0),
    ("two schedules", 3.0),
):
    settings = base.turned(ranks=2, micro_batches=4, mistake=mistake, timeout=patience)
    try:
        list(islice(experiment.run(settings), 10))
    except RankFailed as failed:
        failures[mistake] = failed
        print(
            f"{mistake}: {'the ranks' if failed.how == 'hung' else f'rank {failed.rank}'} "
            f"{failed.how}"
        )

# %%
for mistake in ("mismatched shapes", "dying rank"):
    print(str(failures[mistake]).partition("\n")[0])

# %% [markdown]
# A reader of logs is most grateful for the first: the ranks agree on shapes before anything is
# sent, and the one whose layers do not fit says so. In the second, rank 1 is killed, as by a
# machine that fails; rank 0 only waits for it, and is not blamed. The third is a *deadlock*: one
# rank follows GPipe and the other 1F1B, each waits for a message that the other is not going to
# send next, and neither is at fault alone.

# %% [markdown]
# ## 8. When it does not help
#
# Three cases, measured here. **One batch in flight** you have seen. **Tiny stages**: the same race
# with layers 16 wide, where a pass costs less than the message that follows it. **A model that
# fits**: one process with several threads, which spreads each matrix product over the cores and has
# neither bubble nor messages.

# %%
most = min(8, base.batch_size)
tiny = raced(base.turned(width=16), [most])
cases = {
    "one batch in flight (m = 1)": ratios[1].ratio,
    f"tiny stages (width 16, m = {most})": tiny[most].ratio,
    "the pipeline at its best m": min(ratios[m].ratio for m in computing),
    f"no pipeline: one process, {p} threads": ratios["threads"].ratio,
}
picture, (axes,) = figure.axes(8, 2.6)
axes.barh(
    list(cases),
    list(cases.values()),
    color=[figure.ORANGE, figure.ORANGE, figure.BLUE, figure.GREEN],
)
axes.axvline(1, **figure.LIMIT, zorder=0)
axes.bar_label(
    axes.containers[0],
    fmt="%.2f ×",
    padding=4,
    bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
)
axes.set(
    xlabel="time of an update, × one process with one thread", xlim=(0, 1.2 * max(cases.values()))
)
axes.invert_yaxis()
picture

# %% [markdown]
# Compare the two bars at the bottom. If threads win on your machine, then for this model the
# pipeline was the wrong tool: within one machine there are simpler ways to use the cores. Pipelines
# are for models whose weights do not fit one device, over wires too slow to send gradients of the
# whole model: what crosses the border between two stages is one layer's output, no more.
#
# The verdict, for this machine:

# %%
best = min(computing, key=lambda m: ratios[m].ratio)
gains = "a gain" if ratios[1].differs and ratios[1].ratio < 1 else "no gain"
faster = "faster" if ratios[best].differs and ratios[best].ratio < 1 else "not faster"
verdict = (
    f"{p} ranks, one batch in flight: {ratios[1].ratio:.2f} × the time of one process ({gains}); "
    f"best at m = {best}: "
    f"{ratios[best].ratio:.2f} × ({faster}), where the formula allows "
    f"{(best + p - 1) / (best * p):.2f} ×; "
    f"{p} threads: {ratios['threads'].ratio:.2f} ×"
)
log_verdict("pipeline", verdict)

# %% [markdown]
# ## 9. Exercises
#
# Write the functions and run the cells; `check` tries each on fresh data and explains what it
# finds. An exercise left alone counts as not attempted, nothing worse.

# %%
from accel_lab.grading.practice import check, exercises

WIRES, CUT, AGAIN = exercises("pipeline")
WIRES


# %% tags=["exercise"]
def schedule_over_wires(stage, stages, micro_batches, message):
    raise NotImplementedError


check(schedule_over_wires)

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
# - Micro-batches fill the pipeline. With equal stages, (*p* − 1)/(*m* + *p* − 1) of all ranks' time
#   is lost, on any hardware.
# - GPipe and 1F1B have the same bubble. 1F1B holds at most *p* micro-batches on a stage, GPipe all
#   *m*.
# - The weights that come out are those of one process. If not, look for a mean of means, or for an
#   order of messages.
# - The slowest stage sets the pace: cut by measured time, not by the number of layers.
#
# **What would prove this wrong?** A pipeline with equal stages that waits less than the formula
# says, updates its weights once a batch, and makes the same update as one process. Look closely at
# what it does first: some give up the last of these and train with weights that are a few steps
# old, others split the backward pass in two and fill the bubble with its second half.
#
# **Sources.** Y. Huang et al., *GPipe*, 2019, arXiv:1811.06965, section 2.3 · D. Narayanan et al.,
# *PipeDream*, SOSP 2019, section 3.2, and *Efficient Large-Scale Language Model Training on GPU
# Clusters*, 2021, arXiv:2104.04473, section 2.2, for 1F1B · P. Qi et al., *Zero Bubble Pipeline
# Parallelism*, 2024, arXiv:2401.10241, for the split backward pass.
#
# **Next.** Sharing work among several workers has a limit. A smaller model has none of its
# troubles, if it can be taught to do as well. That is distillation, chapter 19.
