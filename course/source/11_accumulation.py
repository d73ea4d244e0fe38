# ---
# jupyter:
#   kernelspec:
#     name: python3
#     display_name: Python 3
# ---

# %% [markdown]
# # 11 · Gradient accumulation
#
# ## 1. The question
#
# Large batches give steady gradients, and they need memory: for every sample in the batch the
# network keeps its intermediate results, the *activations*, until the backward pass has used them.
# What if the batch you want does not fit?
#
# Gradient accumulation cuts the batch into **micro-batches**, sends them through the network one
# after another, and lets their gradients add up before the optimizer takes its one step.
#
# You can read two things about it, sometimes in the same article:
#
# > *It is a technique that speeds up training.*
# >
# > *It is slower than training without it.*
#
# Both cannot be right. In the next forty minutes you find out what it does on the machine in front
# of you: to the memory, to the speed, and to the weights that come out.

# %%
import inspect
from itertools import islice

import torch
from torch.nn.functional import cross_entropy

from accel_lab import accumulation
from accel_lab.experiments import accumulation as experiment
from accel_lab.workbench import models
from accel_lab.workbench.data import datasets
from accel_lab.workbench.drawing import figure
from accel_lab.workbench.drawing.chart import Badge
from accel_lab.workbench.drawing.curve import Curve
from accel_lab.workbench.drawing.sweep import Sweep
from accel_lab.workbench.drawing.timeline import Timeline
from accel_lab.workbench.measure.comparison import compare
from accel_lab.workbench.measure.memory_meter import ActivationMeter, memory_of
from accel_lab.workbench.measure.proof import prove, trajectory
from accel_lab.workbench.notebook.speed_log import log_verdict
from accel_lab.workbench.panel import Panel, Prediction

# %% [markdown]
# The next cell holds the settings of this chapter. Change one, as in `knobs = {"batch_size": 128}`,
# and run the notebook again: everything below follows.

# %% tags=["parameters"]
knobs = {}

# %%
base = experiment.Knobs(**{"timeline": True, **knobs})
mnist = datasets.mnist5k()
print(
    f"{len(mnist.train_x):,} training pictures of {tuple(mnist.train_x.shape[1:])}, a batch of "
    f"{base.batch_size} at a time"
)

# %% [markdown]
# ## 2. Predict
#
# Take a batch and cut it into 8 micro-batches. The sums that are done stay the same: every sample
# goes through the network once, forwards and backwards. Two guesses, before you see anything. There
# is no penalty for a wrong one, and you may skip them.

# %%
guess_memory = Prediction(
    "Activations kept at once with 8 micro-batches: how many times those of the full batch?",
    low=0.05,
    high=4,
    default=0.5,
    unit="×",
)
guess_memory

# %%
guess_time = Prediction(
    "Time of one update with 8 micro-batches: how many times that of the full batch?",
    low=0.25,
    high=8,
    default=2.0,
    unit="×",
)
guess_time

# %% [markdown]
# ## 3. See
#
# A small convolutional network is trained on handwritten digits: really, now, in this notebook. The
# dashed orange line is the full batch.
#
# Press **Start**. Then move **micro batches** from 1 to 8, and on to 64, and watch three things:
# the activations, the samples per second, and the loss. Each run that you leave stays behind as a
# grey ghost. (A panel trains on one core fewer than there are: your browser needs it for drawing.
# Part 6 uses them all.)

# %%
panel = Panel(
    experiment.run,
    base,
    [
        Curve("throughput", "samples/s"),
        Sweep(
            "micro_batches",
            "activation_bytes",
            "activations kept, MiB",
            scale=2**-20,
            predicted=experiment.predicted_activation_bytes,
            formula="predicted: ⌈n/m⌉ · bytes of a sample",
        ),
        Curve("loss", "loss", over="updates"),
        Timeline(),
    ],
    controls=["batch_size", "micro_batches", "learning_rate"],
    baselines={"full batch": base.turned(micro_batches=1)},
    tour=[base.turned(micro_batches=min(64, base.batch_size)), base.turned(micro_batches=8)],
)
panel

# %% [markdown]
# What to look for:
#
# - The dots lie **on** the predicted curve. Half the samples at a time, half the activations.
# - The loss curves lie on one another. Whatever *m* is, the same training happens.
# - The timeline at the lower right shows why nobody should expect a gain in speed: the passes of
#   the micro-batches stand in a row. Nothing runs beside anything else.
# - The throughput is the odd one. Does yours fall when *m* grows, or does it rise first? We come
#   back to it.

# %% [markdown]
# ## 4. Build
#
# This is an update from the full batch, the loop that everybody knows:

# %%
print(inspect.getsource(accumulation.full_batch_update))

# %% [markdown]
# The loss is a mean over the *n* samples of the batch, and a mean can be taken in parts. If
# micro-batch *i* holds $n_i$ samples and its own mean loss is $L_i$, then
#
# $$L = \frac1n \sum_{j=1}^{n} \ell_j = \sum_{i=1}^{m} \frac{n_i}{n} L_i \qquad\Rightarrow\qquad \nabla L = \sum_{i=1}^{m} \frac{n_i}{n} \nabla L_i .$$
#
# Two habits of PyTorch turn this into code. `backward()` **adds** to `.grad`, it does not
# overwrite. And once it has run, the activations it needed are let go. First, see that the sum of
# the parts is the whole:

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
model = models.cnn().double()
x, y = mnist.train_x[:100].double(), mnist.train_y[:100]

cross_entropy(model(x), y).backward()
whole = [p.grad.clone() for p in model.parameters()]

model.zero_grad()
for x_i, y_i in zip(x.split(32), y.split(32)):  # 32 + 32 + 32 + 4
    (cross_entropy(model(x_i), y_i) * len(y_i) / len(y)).backward()

gap = max((p.grad - g).abs().max().item() for p, g in zip(model.parameters(), whole))
print("the parts add up to the whole:", gap < 1e-12)

# %% [markdown]
# Now the update, whole. Compare it with the plain one: a loop, and a weight.

# %%
print(inspect.getsource(accumulation.accumulated_update))

# %% [markdown]
# And the memory? PyTorch tells, through `saved_tensors_hooks`, about each tensor that it keeps for
# the backward pass. Our meter adds up their bytes. This is one update of each kind, over time:

# %%
x, y = mnist.train_x[: base.batch_size], mnist.train_y[: base.batch_size]
model = models.cnn()
optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
picture, (axes,) = figure.axes(8, 3)
for m, color in ((1, figure.ORANGE), (8, figure.BLUE)):
    for _ in range(2):  # the first time warms up
        with ActivationMeter(model, x, y) as meter:
            accumulation.accumulated_update(model, optimizer, accumulation.split(x, y, m))
    times, held = zip((0, 0), *meter.history)
    axes.step(
        [t * 1e3 for t in times],
        [b / 2**20 for b in held],
        where="post",
        color=color,
        label=f"micro-batches: {m}",
    )
axes.set(xlabel="milliseconds since the update began", ylabel="activations kept, MiB")
axes.legend(frameon=False)
picture

# %% [markdown]
# One mountain, or a row of foothills. The forward pass piles activations up, the backward pass
# takes them away, and the peak is what your machine must be able to hold.
#
# ## 5. Prove
#
# Equal gradients once are not yet equal training. So train three copies of a network for ten
# updates each: ours; the full batch; and Hugging Face *Accelerate*, whose `accumulate` is what many
# people use. Momentum and weight decay are on, arithmetic is in float64, so that rounding cannot
# hide a mistake.

# %%
from accelerate import Accelerator


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


def full_batch(batches):
    return trajectory(
        start,
        sgd,
        lambda model, optimizer, x, y: accumulation.full_batch_update(model, optimizer, x, y),
        batches,
    )


def ours(batches, m):
    def update(model, optimizer, x, y):
        accumulation.accumulated_update(model, optimizer, accumulation.split(x, y, m))

    return trajectory(start, sgd, update, batches)


# %%
def with_accelerate(batches, m):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=m)

    def update(model, optimizer, x, y):
        for x_i, y_i in accumulation.split(x, y, m):
            with accelerator.accumulate(model):
                loss = cross_entropy(model(x_i), y_i)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()

    return trajectory(start, lambda model: accelerator.prepare(sgd(model)), update, batches)


# %% tags=["nbval-check-output"]
def batches(size):
    return [(x.double(), y) for x, y in islice(mnist.batches(size), 10)]


torch.manual_seed(0)
start = models.cnn(channels=4).double()
proof = prove(
    {
        "full batch": full_batch(batches(64)),
        "ours": ours(batches(64), 8),
        "Accelerate": with_accelerate(batches(64), 8),
    }
)
assert proof.holds
print(proof)

# %%
proof

# %% [markdown]
# All three are the same training. Now a batch of 60, which 8 does not divide: four micro-batches
# hold 8 samples and four hold 7.

# %% tags=["nbval-check-output"]
ragged = prove(
    {
        "full batch": full_batch(batches(60)),
        "ours": ours(batches(60), 8),
        "Accelerate": with_accelerate(batches(60), 8),
    }
)
print(ragged)

# %%
ragged

# %% [markdown]
# That is no bug in Accelerate; its documentation asks you to weigh the losses yourself when
# micro-batches differ. It divides each loss by *m*, whatever the micro-batch holds. But it shows
# how quietly this goes wrong: the training ran, the loss fell, and it was not the training that was
# asked for.
#
# ## 6. Measure
#
# Now the speed, properly: full batch and micro-batches in turn, in pairs, on the same data, so that
# what else happens on this machine hits both. The ratio is the time with *m* micro-batches over the
# time of the full batch. **Below 1 is faster.**

# %%
torch.manual_seed(0)
model = models.cnn()
optimizer = torch.optim.SGD(model.parameters(), lr=0.0)


def updating(m):
    parts = accumulation.split(x, y, m)
    return lambda: accumulation.accumulated_update(model, optimizer, parts)


counts = [m for m in (2, 4, 8, 16, 32, 64) if m <= base.batch_size]
ratios = {
    m: compare(updating(m), updating(1), names=(f"m = {m}", "full batch"), patience=1.0)
    for m in counts
}
for ratio in ratios.values():
    print(ratio)

# %%
activations = {m: memory_of(updating(m), model, x, y) for m in (1, *counts)}
predicted = {
    m: experiment.predicted_activation_bytes(base.turned(micro_batches=m)) for m in activations
}

picture, (left, right) = figure.axes(9, 3.2, columns=2)
figure.draw_ratios(left, ratios, ylabel="time of an update, × full batch")
left.plot(8, guess_time.value, "*", color=figure.ORANGE, markersize=13, label="predicted in part 2")
for what, color, marker in (("activation", figure.BLUE, "o"), ("process_peak", figure.GREEN, "s")):
    measured = [memory[f"{what}_bytes"] / 2**20 for memory in activations.values()]
    right.plot(activations.keys(), measured, marker, color=color, label=what.replace("_", " "))
right.plot(
    predicted.keys(),
    [b / 2**20 for b in predicted.values()],
    **figure.LIMIT,
    label="predicted activation",
)
right.set(yscale="log", ylabel="MiB")
for axes in (left, right):
    figure.powers_of_two(axes, "micro-batches", activations)
    axes.legend(frameon=False, fontsize=8)
picture

# %%
guess_memory.against(activations[8]["activation_bytes"] / activations[1]["activation_bytes"])

# %%
guess_time.against(ratios[8].ratio)

# %% [markdown]
# Surprised by the left picture? On many CPUs the time first **falls** as *m* grows. The sums are
# the same, but the activations of a micro-batch are small enough to stay in the processor's cache,
# and the memory that one micro-batch has let go is taken again by the next, instead of being
# fetched from the operating system anew. With ever smaller micro-batches a second effect takes
# over: each call into PyTorch costs some microseconds, however little it has to do, and there are
# *m* times as many of them. On a GPU the first effect is mostly absent, and the second one comes
# early.
#
# Speed is a side effect here, of whatever size suits your machine. Memory is the purpose.
#
# The green squares are the operating system's view: by how much the whole process grew. It is more
# than the activations, because gradients on their way back need room, too; and it falls with them.

# %% [markdown]
# ## 7. Break it
#
# Five famous ways to get it wrong, one click each. Below, every update is repeated from the same
# weights with the full batch, and the difference of the two is drawn: the *error of the update*, 1
# meaning that all of it is wrong. Rounding alone gives about 10⁻⁶.
#
# Press **Start**, then click through the mistakes. Which of them would you have noticed from the
# loss?

# %%
broken = base.turned(twin=True, timeline=False, micro_batches=min(8, base.batch_size))
break_it = Panel(
    experiment.run,
    broken,
    [
        Curve("update_error", "error of the update", over="updates", log=(1e-8, 1e2)),
        Curve("loss", "loss", over="updates"),
    ],
    controls=["batch_size", "micro_batches", "mistake"],
    baselines={"no mistake": broken},
    tour=[
        broken.turned(mistake=mistake)
        for mistake in ("no scaling", "off by one", "forgotten clear", "batch norm")
    ],
    seconds=1.0,
    badge=Badge(
        "update_error", 1e-4, "every update is the full batch's", "not the full batch's update"
    ),
)
break_it

# %% [markdown]
# - **no scaling** adds up means: the gradient is *m* times too long. It is as if the learning rate
#   had been multiplied by *m*. (Adam divides by the gradient's own size and hides this mistake
#   almost entirely. That is why it lives on.)
# - **unweighted** is *right*, as long as all micro-batches have one size. Now set the batch size to
#   250.
# - **off by one** is the popular `if step % accumulate_steps == 0`: it fires at step 0. Each update
#   mixes the gradients of two batches.
# - **forgotten clear** never empties `.grad`. For a while it even looks good, like momentum; then
#   it runs away.
# - **batch norm** is no mistake in the loop. Batch normalization computes mean and variance over
#   what it gets to see, and that is the micro-batch now. No weight repairs it: the model itself
#   does not split. Group or layer normalization does.
#
# Here is the code of each, as short as it is dangerous:

# %%
for name in ("no_scaling", "unweighted", "off_by_one", "forgotten_clear"):
    print(inspect.getsource(getattr(experiment, name)))

# %% [markdown]
# The one that cannot be seen in the loss is the one to fear. In 2024 just this mistake, in the form
# that counts tokens instead of samples, was found in the most widely used libraries for training
# language models; it had been there for years. The first exercise is that case.

# %%
for mistake in ("none", "no scaling", "unweighted"):
    settings = broken.turned(
        twin=False, mistake=mistake, batch_size=250, optimizer="adam", learning_rate=0.002
    )
    steps = list(islice(experiment.run(settings), 40))
    print(f"Adam, {mistake:<10}: loss {steps[-1].metrics['loss']:.3f} after 40 updates")

# %% [markdown]
# ## 8. When it does not help
#
# Accumulation makes large batches *possible*. It does not make them *useful*. Suppose the large
# batch fits already, or the small one would do: then accumulating only delays the optimizer. Here
# are equal numbers of samples, spent in three ways:

# %%
samples = 40 * base.batch_size
ways = {
    "full batch": (base.batch_size, 1),
    "accumulated": (base.batch_size, 8),
    "small batches, a step each": (max(8, base.batch_size // 8), 1),
}
spent = {}
for way, (size, m) in ways.items():
    settings = base.turned(batch_size=size, micro_batches=m, timeline=False)
    spent[way] = steps = list(islice(experiment.run(settings), samples // size))
    loss = sum(step.metrics["loss"] for step in steps[-5:]) / 5
    print(
        f"{way:<27} {len(steps):>4} updates, loss {loss:.2f}, "
        f"{sum(step.seconds for step in steps):.1f} s"
    )

# %%
picture, (axes,) = figure.axes(8, 3)
for (way, steps), (color, style) in zip(spent.items(), figure.STYLES):
    seen = [step.samples * (step.index + 1) for step in steps]
    axes.plot(seen, [step.metrics["loss"] for step in steps], style, color=color, label=way)
axes.set(xlabel="samples seen", ylabel="loss", ylim=(0, None))
axes.legend(frameon=False)
picture

# %% [markdown]
# With the memory of small batches you could have *taken* small batches, and stepped after each of
# them. If the loss falls faster that way, as it usually does early in training, accumulation was
# the wrong tool. It earns its place where a batch must be large for a reason: a gradient too noisy
# to follow, a recipe that was tuned for that batch size, or many workers that should talk to each
# other rarely.
#
# So, about the two claims from the start: the verdict, for this machine.

# %%
best = min(ratios, key=lambda m: ratios[m].ratio)
share = activations[8]["activation_bytes"] / activations[1]["activation_bytes"]
slowest = ratios[counts[-1]]
how = "faster" if ratios[best].differs and ratios[best].ratio < 1 else "not faster"
verdict = (
    f"8 micro-batches keep {share:.3f} × the activations; best time {ratios[best].ratio:.2f} × the "
    f"full batch's at m = {best} ({how}), "
    f"{slowest.ratio:.2f} × at m = {counts[-1]}"
)
log_verdict("accumulation", verdict)

# %% [markdown]
# ## 9. Exercises
#
# Write the functions and run the cells; `check` tries each on fresh data and explains what it
# finds. An exercise left alone counts as not attempted, nothing worse.

# %%
from accel_lab.exercises import check, exercises

TOKENS, LOOP, PLAN = exercises("accumulation")
TOKENS


# %% tags=["exercise"]
def token_update(model, optimizer, micro_batches):
    raise NotImplementedError


check(token_update)

# %%
LOOP


# %% tags=["exercise"]
def train_epoch(model, optimizer, loader, accumulate):
    # The loop as found:
    #
    #   updates = 0
    #   for step, (x, y) in enumerate(loader):
    #       loss = cross_entropy(model(x), y) / accumulate
    #       loss.backward()
    #       if step % accumulate == 0:
    #           optimizer.step()
    #           optimizer.zero_grad()
    #           updates += 1
    #   return updates
    raise NotImplementedError


check(train_epoch)

# %%
PLAN


# %% tags=["exercise"]
def fewest_micro_batches(batch_size, bytes_per_sample, budget):
    raise NotImplementedError


check(fewest_micro_batches)

# %% [markdown]
# ## 10. Take away
#
# - Gradient accumulation trades nothing but patience for memory: activations fall as 1/*m*, and the
#   weights that come out are those of the full batch.
# - Weigh every micro-batch by its share of what the mean runs over: samples, or tokens.
# - Step, clip and advance the schedule once a batch. Clear once a batch.
# - It does not split what looks across samples, such as batch normalization.
# - It speeds nothing up by design. Where a smaller micro-batch is faster on your machine, the cache
#   did that.
#
# **What would prove this wrong?** A model without batch normalization whose accumulated training
# differs from the full batch's by more than rounding. If you find one, look for something random
# first: dropout draws other masks.
#
# **Sources.** P. Goyal et al., *Accurate, Large Minibatch SGD*, 2017, arXiv:1706.02677, sections 2
# and 3 · Y. Huang et al., *GPipe*, 2019, arXiv:1811.06965, for micro-batches · Hugging Face,
# *Fixing Gradient Accumulation*, October 2024, for the token count.
#
# **Next.** The micro-batches stood in a row because there was one worker. What if the *layers* were
# spread over several, and each worked on another micro-batch? That is pipeline parallelism, chapter
# 18.
