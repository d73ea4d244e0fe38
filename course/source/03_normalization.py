# ---
# jupyter:
#   kernelspec:
#     name: python3
#     display_name: Python 3
# ---

# %% [markdown]
# # 03 · Normalization
#
# ## 1. The question
#
# A pixel is a whole number from 0 to 255. Before training, pixels are *normalized*: they are moved
# and scaled. You will read three sentences about it:
#
# > *Min-max normalization maps the data to [0, 1], or to [−1, 1].*
# >
# > *Mean-variance normalization is (X − μ)/σ, where σ is the variance.*
# >
# > *Normalization avoids overflow and makes the model train better.*
#
# Each sentence is a little wrong. Why should a network care? Its first layer multiplies the pixels
# by weights that it learns: it could learn weights 255 times smaller. You will see what the scale
# of the pixels really changes, and when it does not matter at all.

# %% jupyter={"source_hidden": true}
import math
from itertools import islice

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from accel_lab import normalization
from accel_lab.experiments import normalization as experiment
from accel_lab.workbench import chapter as lab

torch.set_num_threads(1)  # so small a network gains nothing from a second thread

# %% [markdown]
# The next cell holds the settings of this chapter. Change one, as in `knobs = {"layers": 3}`, and
# run the notebook again.

# %% tags=["parameters"]
knobs = {}

# %%
base = lab.settings(experiment.Knobs, knobs)
mnist = lab.datasets.mnist5k()
pixels, test_pixels = ((x * 255).round().to(torch.uint8) for x in (mnist.train_x, mnist.test_x))
count, _, height, width = pixels.shape
chance = (experiment.CHANCE, "chance, ln 10")
first, last = f"activation_{min(1, base.layers)}", f"activation_{base.layers}"
print(f"{count:,} training pictures of {height} × {width} pixels, {pixels.min()} to {pixels.max()}")

# %% [markdown]
# ## 2. Predict
#
# For every network there is a learning rate above which training falls apart. Divide all pixels by
# 255, and that limit may move. Three guesses; skip them if you like.

# %%
guess_plain = lab.Prediction(
    "No hidden layers, pixels divided by 255: how many times as large may the learning rate be?",
    low=0.1,
    high=1e6,
    default=255,
    unit="×",
)
guess_plain

# %%
guess_hidden = lab.Prediction(
    "With two hidden layers: how many times as large?", low=0.1, high=1e6, default=255, unit="×"
)
guess_hidden

# %%
guess_batch_norm = lab.Prediction(
    "With two hidden layers, and batch normalization after each: how many times as large?",
    low=0.1,
    high=1e6,
    default=16,
    unit="×",
)
guess_batch_norm

# %% [markdown]
# ## 3. See
#
# A network with two hidden layers learns the digits. The dashed orange line is the run on raw
# pixels with the learning rate and batch norm that you choose.
#
# Press **Start**. Choose a **method**, then another. Go back to `none` and look for a **learning
# rate** at which raw pixels do train. Finally tick **batch norm**, and switch the methods again.

# %%
panel = lab.Panel(
    experiment.run,
    base,
    [
        lab.Curve("test_accuracy", "test accuracy, %", 100, over="updates", ends=(0, 100)),
        lab.Curve("loss", "loss", over="updates", log=(1e-2, 1e2), limit=chance),
        lab.Curve(last, "last activations (RMS)", over="updates", log=(1e-3, 1e3)),
        lab.Curve("throughput", "samples/s"),
    ],
    controls=["method", "learning_rate", "batch_norm"],
    baselines={"pixels 0…255": {"method": "none"}},
    headline=lab.Headline("test_accuracy", "test accuracy", points=True),
    tour=[base.turned(method="mean and deviation"), base.turned(batch_norm=True)],
)
panel

# %% [markdown]
# What to look for:
#
# - Raw pixels at an ordinary learning rate: the activations (their root mean square, RMS) explode
#   in the first updates. Then the ReLUs die, and the loss stays at chance, ln 10.
# - The methods differ from each other: the one that *subtracts the mean* is ahead.
# - With batch norm the curves of all methods lie on one another. Hold that thought.
# - The samples per second say nothing about a method: where they differ, it is the machine's load,
#   or dead ReLUs. Batch norm lowers them.
#   **Normalization does not make updates faster. It makes each update worth more.**
#
# ## 4. Build
#
# ### One map
#
# This is the expression that everyone writes:

# %%
lab.show_source(normalization.naive_normalize, docstring=False)

# %% [markdown]
# All methods are one map, channel by channel, $y = (x - \text{centre}) \cdot \text{scale}$, and it
# has an inverse:
#
# | to | centre | scale |
# | --- | --- | --- |
# | 0…1 | min | 1 / (max − min) |
# | −1…1 | (min + max) / 2 | 2 / (max − min) |
# | mean 0, variance 1 | μ | 1 / σ |
#
# σ is the standard deviation, the *root* of the variance. A small example, five pixels, one of them
# bright:

# %% tags=["nbval-check-output"]
five = torch.tensor([[0], [10], [20], [30], [240]], dtype=torch.uint8)
statistics = normalization.fit(five)
mean, variance = statistics.mean.item(), statistics.variance.item()
print(f"mean {mean:.0f}, variance {variance:,.0f}, deviation {math.sqrt(variance):.1f}")
wrong = {"divided by variance": experiment.divided_by_the_variance}
for name, method in (experiment.METHODS | wrong).items():
    y = method(statistics)(five).flatten()
    print(f"{name:<19}", *(f"{value:6.3f}" for value in y), f" variance {y.var(correction=0):.5f}")

# %% [markdown]
# The last line is what the sentence at the top would do. Dividing by σ² leaves a variance of 1/σ²,
# not 1.
#
# ### Statistics in one pass
#
# Where do min, max, μ and σ come from when the data does not fit into memory? From one pass over
# it, a batch at a time. The textbook way adds up $x$ and $x^2$, and uses $\sigma^2 = \overline{x^2}
# - \bar x^2$. Watch what it does to numbers far from zero:

# %% tags=["nbval-check-output"]
chosen = torch.Generator().manual_seed(0)
far = torch.randn(10_000, 1, generator=chosen, dtype=torch.float64) + 1e9
print(f"true variance         {far.var(correction=0):.3f}")
print(f"textbook              {far.square().mean() - far.mean().square():.3f}")
print(f"ours, in 100 pieces   {normalization.fit(far.split(100)).variance.item():.3f}")

# %% [markdown]
# Two numbers near 10¹⁸ were subtracted, and float64 keeps 16 digits. **What is left is noise.** Two
# repairs, and we use both:
#
# - Pixels are **whole numbers**, and whole numbers add up exactly. For uint8 the sums are kept as
#   integers: mean and variance are the same to the last bit, in whichever pieces and on however
#   many machines the data is read.
# - For floats, keep the mean and the sum of squared deviations $M$, and merge part *b* into part
#   *a* by Chan's rule: $M = M_a + M_b + \delta^2 \, n_a n_b / n$, with δ the distance of their
#   means.

# %%
lab.show_source(normalization.Moments.__add__, docstring=False)

# %% [markdown]
# ### Inside the network
#
# Now look inside. Six layers, fresh weights, one batch of pictures: how large are the activations?
# Here is the RMS of each layer, from the first to the sixth.

# %%
raw = pixels[:512].float()
scaled = normalization.to_unit_variance(normalization.fit(pixels))(pixels[:512])
flows = {
    "pixels 0…255": experiment.fresh_activations(raw, 6, batch_norm=False),
    "mean and deviation": experiment.fresh_activations(scaled, 6, batch_norm=False),
    "pixels 0…255, batch norm": experiment.fresh_activations(raw, 6, batch_norm=True),
}
for name, flow in flows.items():
    print(f"{name:<25}", *(f"{experiment.root_mean_square(layer):7.3f}" for layer in flow))

# %% jupyter={"source_hidden": true} tags=["hero"]
picture, row = lab.figure.axes(9.5, 2.8, columns=3)
for axes, (name, flow) in zip(row, flows.items()):
    layers = {f"layer {place}": layer[layer > 0].numpy() for place, layer in enumerate(flow, 1)}
    lab.figure.draw_histograms(axes, layers, (1e-3, 1e3))
    axes.set_title(name, fontsize=10)
    axes.set_xlabel("activation (faint: first layer)")
picture

# %% [markdown]
# - On raw pixels, the first layers carry values in the tens, some above a hundred.
# - With normalized pixels they start below one, and the first layers shrink them further.
# - With batch norm, every layer has the same distribution.
#
# This is batch norm, with one line left out. `_track` keeps the running averages that inference
# uses. Choose the line, and eight small pictures are sent through your batch norm and PyTorch's:


# %%
def like_batch_norm_2d(forward):
    pictures = torch.randn(8, 3, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    mine = type("Mine", (normalization.BatchNorm,), {"forward": forward})(3).double()
    ways = {"torch": torch.nn.BatchNorm2d(3).double(), "yours": mine}
    made = {name: [{"normalized": norm(pictures)}] for name, norm in ways.items()}
    return lab.prove(made, steps=1)


# %% jupyter={"source_hidden": true}
lab.MissingLine(
    normalization.BatchNorm.forward,
    {
        "mean, variance = exact.mean(over), exact.var(over, correction=0)": (
            "Of this batch, one mean and one variance for each channel, divided by n."
        ),
        "mean, variance = exact.mean(over), exact.var(over)": (
            "Divided by n − 1. PyTorch does that for the running variance alone."
        ),
        "mean, variance = exact.mean(over), exact.std(over, correction=0)": (
            "σ in place of σ²: the pictures are then divided by the root of σ."
        ),
        "mean, variance = exact.mean((1, 2, 3)), exact.var((1, 2, 3), correction=0)": (
            "A mean for each picture, over its channels and pixels: 8 numbers, where 3 are wanted."
        ),
    },
    like_batch_norm_2d,
)

# %% [markdown]
# ## 5. Prove
#
# First, the statistics: in pieces of any size, they are those of the whole, bit by bit.

# %% tags=["nbval-check-output"]
whole = normalization.fit(pixels)
for size in (1, 7, 1000):
    pieces = normalization.fit(pixels.split(size))
    equal = torch.equal(pieces.mean, whole.mean) and torch.equal(pieces.variance, whole.variance)
    print(f"in pieces of {size}: equal to the last bit: {equal}")

# %% [markdown]
# Second, our batch norm is PyTorch's. Two small convolutional networks, equal but for this layer,
# take ten updates on the same batches. The states hold the weights and the running averages.
# Inference uses these, so PyTorch's last state then goes into both networks, and their outputs on
# test pictures are compared too.


# %%
def update(model, optimizer, x, y):
    optimizer.zero_grad()
    cross_entropy(model(x), y).backward()
    optimizer.step()


def training(model, size, learning_rate, scale=1):
    batches = [(x.double() * scale, y) for x, y in islice(mnist.batches(size), 10)]
    sgd = torch.optim.SGD
    return lab.trajectory(model, lambda m: sgd(m.parameters(), learning_rate), update, batches)


# %%
def convolutional(layer):
    torch.manual_seed(1)
    parts = nn.Conv2d(1, 4, 3, stride=2), layer, nn.ReLU(), nn.Flatten(), nn.Linear(676, 10)
    return nn.Sequential(*parts).double()


theirs, ours = convolutional(nn.BatchNorm2d(4)), convolutional(normalization.BatchNorm(4))
states, own_states = (list(training(model, 32, 0.05)) for model in (theirs, ours))

# %% tags=["nbval-check-output"]
proof = lab.prove({"nn.BatchNorm2d": states, "ours": own_states})
assert proof.holds
print(proof)
for model in (theirs, ours):
    model.load_state_dict(states[-1])
    model.eval()
x = mnist.test_x[:20].double()
print("equal in inference:", torch.allclose(theirs(x), ours(x), rtol=0, atol=1e-12))

# %%
proof

# %% [markdown]
# Third, the thought that you held. Multiply all pixels by *s*: the outputs of the first layer,
# their mean and their deviation are multiplied by *s*, and batch norm divides by it.
#
# $$\mathrm{BN}(W s x) = \frac{s\,Wx - s\,\mu}{s\,\sigma} = \mathrm{BN}(W x)
# \quad\text{for every } s > 0, \text{ so}\quad \nabla_W \text{ is the same, too.}$$

# %% tags=["nbval-check-output"]
norm = normalization.BatchNorm(4).double()
norm.eps = 0.0  # it is there to avoid a division by zero
weight = torch.randn(784, 4, generator=chosen, dtype=torch.float64)
rows = mnist.train_x[:64].flatten(1).double()
for scale in (1, 255, 65_025):
    y = norm(rows * scale @ weight)[0]
    print(f"pixels 0…{scale:<6,}", *(f"{value:.6f}" for value in y.tolist()))

# %% [markdown]
# Not nearly the same: the same. Now whole trainings, ten updates from the same weights, in float64
# and with the ε of the first batch norm set to 0. And the control: without batch norm.


# %% tags=["nbval-check-output"]
def on_pixels(scale, batch_norm):
    torch.manual_seed(2)
    model = experiment.network(2, batch_norm).double()
    if batch_norm:
        model[2].eps = 0.0
    for state in training(model, 128, 0.5, scale):
        yield {name: state[name] for name in ("1.weight", f"{len(model) - 1}.weight")}


scales = (1, 255, 255**2)
with_it = {f"0…{scale:,}": on_pixels(scale, batch_norm=True) for scale in scales}
indifferent = lab.prove(with_it, tolerance=1e-9)
assert indifferent.holds
print(indifferent)

# %%
indifferent

# %%
without_it = {f"0…{scale:,}": on_pixels(scale, batch_norm=False) for scale in scales[:2]}
lab.prove(without_it, tolerance=1e-9)

# %% [markdown]
# Without batch norm the two trainings part at the first step.
#
# *Half-way. This is a good place to stop and come back to: run all cells above, and go on here.*

# %% [markdown]
# ## 6. Measure
#
# ### The edge of the learning rates
#
# For *softmax regression*, a network without hidden layers, the largest learning rate can be
# predicted. Gradient descent is stable below 2/λ, where λ is the largest curvature of the loss. At
# the start that is
#
# $$\lambda = \tfrac{1}{10}\,\lambda_{\max}\!\left(\mathbb{E}[x x^{\mathsf T}]\right),$$
#
# a property of the inputs alone. Inputs *s* times as large have *s*² times the curvature, and allow
# 1/*s*² of the learning rate. So the prediction for a division by 255 is 255² = 65,025. (The next
# cell prints a little less: the bias sees a 1, which does not scale.) Then the measurement: for
# each method, train at learning rates around its edge, and note the loss at the end.

# %%
methods = ("none", *experiment.METHODS)
regression = {name: base.turned(method=name, layers=0) for name in methods}
edges = {name: experiment.predicted_edge(knobs) for name, knobs in regression.items()}
for name, edge in edges.items():
    print(f"{name:<19} predicted edge {edge:8.2g}, {edge / edges['none']:8,.0f} × that of none")

# %%
losses = {
    name: experiment.sweep(knobs, experiment.around(edges[name]))
    for name, knobs in regression.items()
}

# %% jupyter={"source_hidden": true}
picture, (axes,) = lab.figure.axes(8.5, 3.4)
axes.set(xscale="log", yscale="log", ylim=(0.2, 60))
axes.set(xlabel="learning rate (dashed: predicted edge)", ylabel="loss at the end")
lab.figure.draw_lines(axes, losses, limit=chance, edges=edges)
picture

# %% [markdown]
# To the left of a valley learning is slow; to its right the weights swing ever wider. **The bottom
# lies close to the dashed line: learning is fastest at the edge of stability.**
#
# Beyond the edge training still goes on for a while, because the curvature falls as the network
# becomes sure of itself. The method that subtracts the mean has the *lowest* valley, although its
# pixels are larger than those of 0…1: once the mean is subtracted, the curvatures in different
# directions are less unequal, and one learning rate fits them all better.
#
# Where does training end? Beyond some rate no loss is clearly below chance any more, by a tenth.
# (A dead network still learns how frequent each digit is, and that alone puts it a little below
# ln 10.)

# %%
ends = {name: experiment.largest_training_rate(found) for name, found in losses.items()}
for name, end in ends.items():
    print(f"{name:<19} trains up to {end:8.2g}, {end / edges[name]:4.0f} × the predicted edge")
gain = {"softmax regression": ends["0 to 1"] / ends["none"]}
print(f"0…1 over none: {gain['softmax regression']:,.0f} ×, predicted {255**2:,} ×")
guess_plain.against(gain["softmax regression"])

# %% [markdown]
# ### Two hidden layers
#
# Theory says less about a network with hidden layers, but a sweep says enough. Raw pixels and
# pixels of 0…1, each without and with batch norm, at whole decades first; then, where training
# ends, at quarters of a decade:

# %%
rates = [10.0**exponent for exponent in range(-5, 3)]
network = {}
for label, batch_norm in (("", False), (", batch norm", True)):
    for name in ("none", "0 to 1"):
        knobs_of_one = base.turned(method=name, batch_norm=batch_norm)
        network[name + label] = experiment.finer_sweep(knobs_of_one, rates, updates=100)

# %% jupyter={"source_hidden": true}
picture, (axes,) = lab.figure.axes(8.5, 3.4)
axes.set(xscale="log", yscale="log", ylim=(5e-2, 60))
axes.set(xlabel="learning rate", ylabel="loss at the end")
lab.figure.draw_lines(axes, network, limit=chance)
picture

# %%
limits = {name: experiment.largest_training_rate(found) for name, found in network.items()}
for name, label in (("two hidden layers", ""), ("batch norm", ", batch norm")):
    gain[name] = limits["0 to 1" + label] / limits["none" + label]
    print(f"0…1 over none, {name}: {gain[name]:,.1f} ×")
guess_hidden.against(gain["two hidden layers"])

# %%
guess_batch_norm.against(gain["batch norm"])

# %%
twins = network["none, batch norm"], network["0 to 1, batch norm"]
pairs_of_losses = [sorted(found[rate] for found in twins) for rate in rates]
apart = max((b / a for a, b in pairs_of_losses if b < experiment.LEARNED), default=math.inf)
print(f"batch norm, rates at which both learn: losses at most {apart:.2f} × apart")
one_curve = apart < 1.1 and 2 / 3 < gain["batch norm"] < 1.5
print("the scale of the inputs changes", "hardly anything" if one_curve else "something", "there")

# %% [markdown]
# Without batch norm, the valley moves with the scale of the pixels, though not by 255² any more:
# the formula is that of a network without hidden layers. **Batch norm divides the scale of the
# inputs out again.** What is left is its ε and rounding. Near the largest rates the training
# magnifies both, so the two curves need not end at exactly the same rate.
#
# ### The time of the pass itself
#
# For the loader, time matters too. The naive expression makes a new tensor of floats in each of its
# operations. The same can be done in one buffer, a block at a time, while the block is in the
# processor's cache:

# %%
lab.show_source(normalization.Normalizer.__call__, first="shape = (", last="return out")

# %%
photographs = torch.randint(0, 256, (32, 3, 224, 224), dtype=torch.uint8)
normalize = normalization.to_unit_variance(normalization.fit(photographs))
mean, deviation = normalize.centre, 1 / normalize.scale
buffer = torch.empty(photographs.shape)
slowly = normalization.naive_normalize(photographs, mean, deviation)
print("equal:", torch.allclose(normalize(photographs, buffer), slowly, atol=1e-5))

# %%
timed = {
    "one pass, kept buffer": lambda: normalize(photographs, buffer),
    "the naive expression": lambda: normalization.naive_normalize(photographs, mean, deviation),
    "the conversion alone": lambda: buffer.copy_(photographs),
}
ours, naive, converted = timed.values()
said, *others = timed
speed = lab.compare(ours, naive, names=(said, others[0]), patience=3.0)
bound = lab.compare(ours, converted, names=(said, others[1]), patience=3.0)
print(speed)
print(bound)

# %% [markdown]
# The second line holds it against the least that any such pass has to do: read each byte and write
# each float, once. What is above 1 is the arithmetic. (The naive expression also asks the operating
# system for new memory, for each of its tensors.)
#
# ## 7. Break it
#
# One pixel, in one of 4,000 pictures, is broken: a dead sensor that reports a multiple of 255. Move
# **outlier** and compare the methods. Then choose `mean and deviation`, and try the two mistakes:
# the variance in place of the deviation, and statistics that were taken over the training *and* the
# test set. (With `none` there are no statistics, so neither of them does anything.)

# %%
broken = base.turned(method="0 to 1")
break_it = lab.Panel(
    experiment.run,
    broken,
    [
        lab.Curve("test_accuracy", "test accuracy, %", 100, over="updates", ends=(0, 100)),
        lab.Curve(first, "first activations (RMS)", over="updates", log=(1e-4, 1e2)),
    ],
    controls=["method", "outlier", "mistake"],
    baselines={"nothing broken": {"outlier": broken.outlier, "mistake": "none"}},
    headline=lab.Headline("test_accuracy", "test accuracy", points=True),
    tour=[broken.turned(outlier=64), broken.turned(outlier=64, method="mean and deviation")],
)
break_it

# %% [markdown]
# By how much does one pixel shrink the other 3,135,999?
#
# - For min-max, the range grows *v*-fold, so all pictures shrink to 1/*v*.
# - For mean and deviation, one value in *n* adds about (255 *v*)²/*n* to the variance.

# %%
multiples = [1, 4, 16, 64, 256, 1000]
spread = {
    name: {v: experiment.spread(base.turned(method=name, outlier=v)) for v in multiples}
    for name in ("0 to 1", "mean and deviation")
}
squeezed, steady = (found[1] for found in spread.values())
variance, n = whole.variance.item(), pixels.numel()
formula = {
    "predicted: 1/v": {v: squeezed / v for v in multiples},
    "predicted: 1/σ": {v: steady / math.sqrt(1 + (255 * v) ** 2 / n / variance) for v in multiples},
}

# %% jupyter={"source_hidden": true}
picture, (axes,) = lab.figure.axes(8, 3)
axes.set(xscale="log", yscale="log")
axes.set(xlabel="brightness of the broken pixel, × 255", ylabel="deviation of the\ntest pictures")
lab.figure.draw_lines(axes, spread, dashed=formula)
picture

# %% [markdown]
# The variance in place of the deviation shrinks everything as well, by another factor of σ: for
# pixels of 0…255 that is about eighty, and squared in the learning rate, six thousand. The loss
# curve only says "slow".
#
# And the leaked statistics? Their curve looks fine. That is what makes them dangerous. So don't ask
# the curve: ask whether the *training* data changes when only the *test set* does. Here one test
# picture is made brighter, and nothing else:


# %% tags=["nbval-check-output"]
def training_pictures(test, leaked):
    statistics = normalization.fit(torch.cat([pixels, test]) if leaked else pixels)
    return normalization.to_unit_variance(statistics)(pixels)


brighter = test_pixels.clone()
brighter[0] = 255
for leaked in (False, True):
    before, after = training_pictures(test_pixels, leaked), training_pictures(brighter, leaked)
    where = "both splits" if leaked else "training alone"
    print(f"statistics over {where}: training data changed: {not torch.equal(before, after)}")

# %% [markdown]
# A test set that has a say in the training is not a test.
#
# How large is the leak? Here is how far the statistics move when the test pictures join in, and by
# how much that changes a network's test accuracy:

# %%
splits = {"training alone": pixels, "both splits": torch.cat([pixels, test_pixels])}
for where, split in splits.items():
    found = normalization.fit(split)
    print(f"{where:<15} mean {found.mean.item():.3f}, deviation {found.variance.sqrt().item():.3f}")
honest = base.turned(method="mean and deviation")
peeking = honest.turned(mistake="leaked statistics")
pairs = zip(experiment.accuracies(peeking), experiment.accuracies(honest))
print("test accuracy:", lab.figure.tell_over_seeds([a - b for a, b in pairs], "points by the leak"))

# %% [markdown]
# Here both splits were drawn from the same digits, so their statistics are close. Where the test
# data comes from elsewhere, the leak is larger. And whoever has leaked has no honest run to compare
# with.
#
# ## 8. When it does not help
#
# You have proved the first case: with batch norm, the scale of the inputs does not matter. The
# second case is batch norm itself, when the batch is small. Its mean and deviation are then
# estimates from a handful of samples. (A band shows several seeds.)

# %%
small = base.turned(method="mean and deviation", learning_rate=0.02)
reached = {"without batch norm": {}, "with batch norm": {}}
for size in (2, 4, 8, 32, 128):
    for batch_norm, (name, found) in zip((False, True), reached.items()):
        turned = small.turned(batch_norm=batch_norm, batch_size=size)
        found[size] = experiment.accuracies(turned)
        told = lab.figure.tell_over_seeds(found[size], "%")
        print(f"batches of {size:>3} {name:<18} {told}")

# %% jupyter={"source_hidden": true}
picture, (axes,) = lab.figure.axes(7.5, 3)
styles = ((lab.figure.ORANGE, "--o"), (lab.figure.BLUE, "-s"))
for (name, found), (color, style) in zip(reached.items(), styles):
    lab.figure.draw_over_seeds(axes, found, label=name, color=color, style=style)
lab.figure.powers_of_two(axes, "samples in a batch", reached["with batch norm"])
axes.set(ylabel="test accuracy after\n250 updates, %", ylim=(0, 100))
axes.legend(frameon=False, loc="lower right")
picture

# %% [markdown]
# Nor does normalization make an update faster: it costs a pass over the data. Its gain is how far
# an update gets. So, about the three sentences from the start, the verdict for this machine:

# %%
verdict = (
    "÷255 raises the largest learning rate that trains softmax regression "
    f"{gain['softmax regression']:,.0f} × (predicted 65,025), with two hidden layers "
    f"{gain['two hidden layers']:,.0f} ×, with batch norm too {gain['batch norm']:.2g} ×; one pass "
    f"takes {speed.ratio:.2f} × the naive time"
)
lab.log_verdict("normalization", verdict)

# %% [markdown]
# - *To [0, 1], or to [−1, 1]:* two different maps, and one broken pixel ruins either of them.
# - *σ is the variance:* no. It is the deviation, its root.
# - *Avoids overflow, trains better:* 255 is far from the largest float. Where a loss ran away, the
#   learning rate was too large, on normalized pixels too. Normalization sets the scale of the
#   learning rate, and evens out the curvatures; with batch norm inside the network, the first of
#   these is gone.
#
# ## 9. Exercises
#
# Write the functions and run the cells; `check` tries each on fresh data. It says what is right
# already, shows a small case that is not, and gives a hint where it knows the mistake. After two
# different tries it offers a worked solution. Some functions are written already, with faults:
# repair them.

# %%
from accel_lab.grading.practice import check, exercises

SCALED, MERGE, REPAIR, LEAN = exercises("normalization")
SCALED


# %% tags=["exercise"]
def scaled_alike(train, test):
    raise NotImplementedError


check(scaled_alike)

# %%
MERGE


# %% tags=["exercise"]
def merged(a, b):
    raise NotImplementedError


check(merged)

# %%
REPAIR


# %% tags=["exercise"]
def batch_norm(x, mean, variance, training):
    now_mean, now_variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    if training:
        mean = 0.9 * mean + 0.1 * now_mean
        variance = 0.9 * variance + 0.1 * now_variance
    y = (x - now_mean.view(-1, 1, 1)) / (now_variance.view(-1, 1, 1) + 1e-5).sqrt()
    return y, mean, variance


check(batch_norm)

# %%
LEAN


# %% tags=["exercise"]
def normalize_into(x, mean, deviation, out):
    raise NotImplementedError


check(normalize_into)

# %% [markdown]
# ## 10. Take away
#
# - Normalizing inputs is one map: subtract a centre, multiply by a scale. Divide by the deviation,
#   never by the variance.
# - Without hidden layers, inputs *s* times as large need a learning rate *s*² times as small. With
#   hidden layers the shift is smaller, but it is there.
# - Subtracting the mean does what no learning rate can: it evens out the curvatures.
# - Statistics come from the training split, in one pass; for pixels they can be exact.
# - With batch norm after the first layer, the scale of the inputs does not matter. In small
#   batches, batch norm guesses.

# %% [markdown]
# Known from elsewhere, and not measured here: layer normalization (J. Ba et al., 2016,
# arXiv:1607.06450), group normalization (Y. Wu and K. He, 2018, arXiv:1803.08494) and RMSNorm (B.
# Zhang and R. Sennrich, 2019, arXiv:1910.07467) scale within a sample, so the batch does not
# matter to them. Why batch norm helps is disputed: S. Santurkar et al., 2018, arXiv:1805.11604,
# find a smoother loss rather than steadier inputs. Adam divides by the gradient's own size, so
# with it the best learning rate falls about as 1/*s*, not 1/*s*². The edge of
# stability is described by J. Cohen et al., 2021, arXiv:2103.00065.

# %% [markdown]
# **What would prove this wrong?** A network with batch norm after its first layer whose training,
# in exact arithmetic, depends on the scale of its inputs. If you think you found one, look at ε: it
# is added to the variance, and so is large beside small inputs and small beside large ones. Weight
# decay has no such part. It shrinks the weights, and without ε these stay the same at every scale.
#
# **Sources.** Y. LeCun et al., *Efficient BackProp*, 1998, sections 4.3 and 5 · S. Ioffe, C.
# Szegedy, *Batch Normalization*, 2015, arXiv:1502.03167 · T. Chan, G. Golub, R. LeVeque,
# *Algorithms for Computing the Sample Variance*, 1983.
#
# **Next.** The pictures now have the right scale, but there are only so many of them. Can one make
# more? [Chapter 04](04_augmentation.ipynb). The other chapters are listed on the
# [first page](00_start_here.ipynb).
