# ---
# jupyter:
#   kernelspec:
#     name: python3
#     display_name: Python 3
# ---

# %% [markdown]
# # 14 · Averaging weights
#
# ## 1. The question
#
# A training run passes through thousands of models, one per update, and keeps the last one. *Weight
# averaging* keeps the mean of many: one model whose every weight is the average of that weight.
#
# You can read about it:
#
# > *Parts of the model are trained independently and then fused.*
#
# The code beside that sentence does something else: it averages the weights of **one** run over
# time. These are two ideas. You will measure both: the mean of the models of one run, and the mean
# of two runs that were trained independently.

# %% jupyter={"source_hidden": true}
import copy
from itertools import islice
from statistics import fmean

import torch
from torch.nn.functional import cross_entropy

from accel_lab import averaging
from accel_lab.experiments import averaging as experiment
from accel_lab.workbench import chapter as lab

torch.set_num_threads(1)  # models this small gain nothing from a second core

# %% [markdown]
# The next cell holds the settings of this chapter. Change one, as in `knobs = {"learning_rate":
# 0.1}`, and run the notebook again: everything below follows.

# %% tags=["parameters"]
knobs = {}

# %%
base = lab.settings(experiment.Knobs, knobs, device="cpu")
digits = lab.datasets.mnist5k()
seeds = lab.some_seeds(5)
size = sum(p.numel() for p in experiment.network(base.network).parameters())
print(f"{len(digits.train_x):,} training digits, {len(digits.test_x):,} test digits")
print(f"a network of {size:,} weights, {base.batch_size} digits per update")

# %% [markdown]
# ## 2. Predict
#
# Two guesses. A wrong one costs nothing, and you may skip them.
#
# First, one run. It trains at a constant learning rate, and an average of its last hundred or so
# models runs along.

# %%
guess_gain = lab.Prediction(
    "By how many points of test accuracy does the averaged model beat the last ones?",
    low=0.1,
    high=20,
    default=0.5,
    unit="points",
)
guess_gain

# %% [markdown]
# Second, two runs. Two networks of the same shape start from different random weights and train on
# the same digits. We average their weights, one to one.

# %%
parents = experiment.parents(base)
for name in ("first", "other start"):
    share = 100 * experiment.accuracy(parents[name], digits)
    print(f"{name}: recognises {share:.0f} of 100 test digits")

# %%
guess_merged = lab.Prediction(
    "Of 100 test digits, how many does the mean of the two networks recognise?",
    low=5,
    high=100,
    default=85,
    unit="of 100",
)
guess_merged

# %% [markdown]
# ## 3. See
#
# The network trains here, now. The dashed orange line is the accuracy of the last weights. Press
# **Start**: your run is the same training, evaluated with an average.
#
# - **average** chooses the kind (part 4 explains them; SWA begins after some hundred updates),
#   **window** how many updates an EMA spans.
# - **second model** trains a second network beside the first one. The chart below on the left shows
#   the accuracy of the mean of both.

# %%
gain_over_window = lab.Sweep(
    "window", "gain", "points gained over the last weights", summary="mean"
)
accuracy = lab.Curve("accuracy", "test accuracy, %", 100, over="updates", ends=(0, 100))
merged = lab.Curve(
    "merged_accuracy", "accuracy of the mean of two models, %", 100, over="updates", ends=(0, 100)
)

# %%
panel = lab.Panel(
    experiment.run,
    base,
    [accuracy, gain_over_window, merged, lab.Curve("throughput", "samples/s")],
    controls=["average", "window", "learning_rate", "second_model"],
    baselines={"the last weights": {"average": "none", "second_model": "none"}},
    headline=lab.Headline("accuracy", "test accuracy", points=True),
    tour=[
        base.turned(window=5),
        base.turned(second_model="same start"),
        base.turned(second_model="other start"),
    ],
    seconds=3.0,
)
panel

# %% [markdown]
# What to look for:
#
# - The average recognises more than the last weights, long before the training ends. A dot on the
#   right is the mean gain of its run so far: let runs go equally long before you compare dots.
# - Set **second model** to *other start*. Each of the two networks learns. Look at their mean.
# - Set it to *same start*: both begin with the same weights, and see the digits in another order.
# - Compare the samples per second. An average reads and writes all weights once per update, and in
#   a network as small as this one that can show. Part 6 measures the price.
#
# The rest of the chapter takes these one by one.

# %% [markdown]
# ## 4. Build
#
# ### A running average
#
# An average does not need all models at once. It moves a share *a* of the way towards each new
# value:
#
# $$m \leftarrow m + a\,(w - m)$$
#
# With a constant share $a = 1 - d$ this is an **exponential moving average** (EMA) with **decay**
# *d*. With $a = 1/t$ at the *t*-th value it is the plain mean. For weights that plain mean is
# called **stochastic weight averaging** (SWA).

# %% tags=["nbval-check-output"]
values = [4.0, 2.0, 6.0, 0.0]
ema = swa = values[0]
for t, value in enumerate(values[1:], 2):
    ema += 0.1 * (value - ema)
    swa += 1 / t * (value - swa)
    print(f"value {value}: EMA {ema:.3f}, plain mean {swa:.3f}")

# %% [markdown]
# For a network, do this for each weight. This is the loop that most programs contain:

# %%
lab.show_source(averaging.naive_ema_update)

# %% [markdown]
# It makes three new tensors per parameter, and it forgets the buffers. Here is the update of our
# library. It finds all tensors once, moves all of them with one call, copies integers, and refuses
# weights that are not finite: one NaN would stay in the average.

# %%
lab.show_source(averaging.Average.update, docstring=False)

# %% [markdown]
# The kinds of average differ in the share of the new weights alone. `before` is the number of
# updates that are in the average already. In the plain mean all shares are equal:

# %%
lab.show_source(averaging.SWA.weight)

# %% [markdown]
# An EMA can begin in three ways. **Debiased** is how Adam treats its own averages: begin at 0, and
# divide by $1 - d^t$, which is what the shares of *t* updates add up to.
#
# An average that moves by the right share is the same, without the division. Which share? One line
# is left out. Yours is compared with Adam's way on six numbers:


# %%
def like_adams(weight, decay=0.9):
    ema = averaging.EMA(torch.nn.Linear(1, 1), decay, start="debiased")
    numbers = torch.rand(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    biased, mean, ways = 0.0, numbers[0], {"Adam's": [], "yours": []}
    for t, number in enumerate(numbers, 1):
        biased = decay * biased + (1 - decay) * number
        mean = number if t == 1 else torch.lerp(mean, number, weight(ema, t - 1))
        ways["Adam's"].append({"mean": biased / (1 - decay**t)})
        ways["yours"].append({"mean": mean})
    return lab.prove(ways, steps=6)


# %% jupyter={"source_hidden": true}
lab.MissingLine(
    averaging.EMA.weight,
    {
        "return (1 - self.decay) / (1 - self.decay ** (before + 1))": (
            "With the new one there are before + 1 updates: divide by what their shares add up to."
        ),
        "return (1 - self.decay) / (1 - self.decay**before)": (
            "One update too few: the second share is 1, so the second update replaces the first."
        ),
        "return (1 - self.decay) * (1 - self.decay ** (before + 1))": (
            "Multiplied, not divided: the first updates get even smaller shares than 1 − d."
        ),
        "return 1 - self.decay ** (before + 1)": (
            "What all shares add up to, later near 1: late updates replace nearly all before them."
        ),
    },
    like_adams,
)

# %% [markdown]
# ### Which updates are in it
#
# The share of each update in the finished average follows from these formulas. Here for an average
# of 200 updates, and a decay of 0.99.

# %%
tiny = torch.nn.Linear(1, 1)
starts = ("first weights", "debiased", "warm-up")
kinds = {f"EMA, {one}": averaging.EMA(tiny, 0.99, start=one) for one in starts}
kinds["SWA"] = averaging.SWA(tiny)
shares = {name: experiment.shares(average, 200) for name, average in kinds.items()}
for name, found in shares.items():
    print(f"{name:<18} the first update has a share of {found[0]:7.2%}, the last {found[-1]:6.2%}")

# %% jupyter={"source_hidden": true}
picture, (axes,) = lab.figure.axes(8.5, 3)
axes.set(xlabel="update", ylabel="its share in the average, %", ylim=(0, 6))
lines = {name: {t: 100 * s for t, s in enumerate(found, 1)} for name, found in shares.items()}
lab.figure.draw_lines(axes, lines, points=False)
picture

# %% [markdown]
# An EMA that begins with the **first weights** keeps a large share of them: the share falls as
# $d^t$. In this picture it leaves the axis at the first update. Those weights are random numbers.
# Two cures are in use:
#
# - **Debiased**: divide by what the shares add up to. The young EMA is then nearly a plain mean.
# - **Warm-up**: use a smaller decay early, $\min\left(d, \frac{t}{9+t}\right)$. The window grows
#   with the run, to about a ninth of it.

# %% [markdown]
# ### A young average
#
# How much does the start matter? One run, watched by three EMAs with a decay of 0.999, a popular
# value:

# %%
at = tuple(t for t in (10, 50, 100, 300, 600) if t <= base.updates)
young = experiment.early(base.turned(window=1000), starts, at)
print(f"{'accuracy in %, after updates':<28}", *(f"{t:>5}" for t in at))
for name, found in young.items():
    print(f"{name:<28}", *(f"{found[t]:5.0f}" for t in at))

# %% [markdown]
# Compare the row *first weights* with the others: hundreds of updates later the random start is
# still in that average.

# %% [markdown]
# ### The walk
#
# Why should a mean be better than the models it is made of? Look at the weights themselves. The
# next cells record the last part of one run. The picture shows two directions of the many: across,
# the one in which the average went; up, the one in which the weights shake most. (The two axes have
# different scales.)

# %%
recorded = experiment.walk(base, max(100, min(400, base.updates // 2)))
last, average = experiment.plane(recorded)
moments = list(recorded.last)
both = torch.cat([last, average])
low, high = both.min(0).values, both.max(0).values
ends = torch.stack([low - 0.05 * (high - low), high + 0.05 * (high - low)], 1).tolist()
for name, path in (("last weights", recorded.weights), ("average", recorded.averaged)):
    steps, came = (path[1:] - path[:-1]).norm(dim=1).sum(), (path[-1] - path[0]).norm()
    print(f"{name:<12} walked {steps:5.1f}, came {came:.1f} far: {steps / came:.1f} × the way")


# %% jupyter={"source_hidden": true}
def draw_walk(update=moments[-1]):
    picture, (axes,) = lab.figure.axes(7.5, 3.6)
    axes.set(xlim=ends[0], ylim=ends[1], xlabel="where the average went", ylabel="largest shaking")
    for path, color, mark in ((last, lab.figure.ORANGE, "s"), (average, lab.figure.BLUE, "o")):
        wide = 0.7 if path is last else 2
        axes.plot(*path[: update + 1].T, color=color, linewidth=wide)
        axes.plot(*path[update], mark, color=color)
    said = f"last weights {recorded.last[update]:.1f} %, average {recorded.average[update]:.1f} %"
    axes.set_title(f"update {update} of {len(last)}: {said}", loc="left", fontsize=10)
    return picture


lab.Sliders(draw_walk, update=range(0, moments[-1] + 1, experiment.MOMENT_EVERY))

# %% [markdown]
# Every batch throws the orange square, the last weights, to and fro. The blue dot, their average,
# goes the same way, a little behind, without the shaking. Press **Play** and compare the two
# accuracies in the title.

# %% [markdown]
# ## 5. Prove
#
# The slow truth stores the weights after every update, and computes each average anew from its
# formula. Ours keeps one copy. PyTorch's `AveragedModel` is what many people use. The network has
# batch normalization, with buffers of both kinds; ten updates in float64.


# %%
def training():
    model = copy.deepcopy(start)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for x, y in islice(digits.batches(32), 10):
        optimizer.zero_grad()
        cross_entropy(model(x.double()), y).backward()
        optimizer.step()
        yield model


def parameters_of(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


# %%
def ours(average):
    for model in training():
        average.update(model)
        yield parameters_of(average.model)


def by_formula(shares_of):
    stored = []
    for model in training():
        stored.append(copy.deepcopy(model))
        yield parameters_of(averaging.mean_of(stored, shares_of(len(stored))))


# %%
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def pytorchs(**rule):
    average = AveragedModel(start, **rule)
    for model in training():
        average.update_parameters(model)
        yield parameters_of(average.module)


# %% tags=["nbval-check-output"]
torch.manual_seed(0)
start = lab.models.cnn(4, batch_norm=True).double()
ema = averaging.EMA(start, 0.9, start="first weights")
ways = {
    "Σ (1−d)·dᵏ·w": by_formula(
        lambda t: [0.9 ** (t - 1), *(0.1 * 0.9**k for k in range(t - 2, -1, -1))]
    ),
    "ours": ours(ema),
    "PyTorch's EMA": pytorchs(multi_avg_fn=get_ema_multi_avg_fn(0.9)),
}
proof = lab.prove(ways)
assert proof.holds
print(proof)

# %% tags=["nbval-check-output"]
ways = {
    "mean of all stored": by_formula(lambda t: [1 / t] * t),
    "ours": ours(averaging.SWA(start)),
    "PyTorch's SWA": pytorchs(),
}
proof_of_swa = lab.prove(ways)
assert proof_of_swa.holds
print(proof_of_swa)

# %%
proof

# %% [markdown]
# *Half-way. This is a good place to stop and come back to: run all cells above, and go on here.*

# %% [markdown]
# ## 6. Measure
#
# ### One run
#
# A single accuracy proves little: the last weights zigzag by several points, and a lucky one may
# lie at the top. So we compare with the **mean of the last fifty updates**, over five seeds (fewer
# in a quick look). All averages watch the same runs.

# %%
kinds = {"EMA": base, "SWA of the second half": base.turned(average="SWA")}
kinds["last ten checkpoints"] = base.turned(average="last ten")
windows = (3, 10, 30, 100, 300, 1000)
plain = {n: base.turned(window=n, start="first weights") for n in windows}
warm = {n: base.turned(window=n) for n in windows[1::2]}
watching = kinds | {f"plain {n}": one for n, one in plain.items()}
watching |= {f"warm {n}": one for n, one in warm.items()}

# %%
results = [experiment.gain(base.turned(seed=base.seed + seed), watching) for seed in seeds]
for result in results:
    ema = result.averaged["EMA"]
    print(
        f"last weights {result.last:.1f} % ({result.low:.1f} to {result.high:.1f}), EMA {ema:.1f} %"
    )


# %%
def gained(name, results=results):
    return [result.of(name) for result in results]


for name in kinds:
    print(f"{name:<24} gains {lab.figure.tell_over_seeds(gained(name), 'points')}")
above = sum(result.averaged["EMA"] > result.high for result in results)
print(f"in {above} of {len(results)} runs the EMA beats each of the last models that we evaluated")

# %%
guess_gain.against(max(0.1, fmean(gained("EMA"))))

# %% [markdown]
# ### The window
#
# A short window leaves shaking in. A long one holds weights that are out of date, and without
# warm-up the random ones of the start.

# %%
over_windows = {
    "first weights": {n: gained(f"plain {n}") for n in plain},
    "warm-up": {n: gained(f"warm {n}") for n in warm},
}
best = max(plain, key=lambda n: fmean(over_windows["first weights"][n]))
worst = min(plain, key=lambda n: fmean(over_windows["first weights"][n]))
print(f"from the first weights: best with a window of {best}, worst with {worst}")

# %% jupyter={"source_hidden": true}
picture, (axes,) = lab.figure.axes(8, 3.2)
styles = ((lab.figure.ORANGE, "--o"), (lab.figure.BLUE, "-s"))
for (name, found), (color, style) in zip(over_windows.items(), styles):
    lab.figure.draw_over_seeds(axes, found, label=name, color=color, style=style)
axes.axhline(0, **lab.figure.LIMIT)
axes.set(xscale="log", xlabel="window, updates", ylabel="points gained")
axes.set_xticks(windows, [f"{n:,}" for n in windows])
axes.minorticks_off()
axes.legend(frameon=False)
picture

# %% [markdown]
# With warm-up a window that is too long does no harm, because it is never reached: after *t*
# updates the window is (9 + *t*)/9 at most.

# %% [markdown]
# ### How much shaking is left
#
# If each update's weights shook independently of all others, an EMA would leave
#
# $$\frac{1-d}{1+d}$$
#
# of the variance. But weights move in small steps: where they are at one update tells where they
# are at the next. With $\rho_k$ for the correlation of two updates that are *k* apart, the formula
# is
#
# $$\frac{1-d}{1+d}\,\Bigl(1 + 2\sum_{k\ge1} d^k \rho_k\Bigr).$$

# %%
shaking = experiment.noise(recorded.weights)
alike = experiment.correlations(shaking, min(60, len(shaking) // 3))
left = {}
for n in (3, 10, 30):
    left[n] = experiment.left_of_noise(shaking, n)
    free, linked = experiment.predicted_left(n), experiment.predicted_left(n, alike)
    print(f"window {n:>2}: independent {free:.3f}, with correlation {linked:.3f}", end=", ")
    print(f"measured {left[n]:.3f}")
print(
    f"correlation of neighbours: {float(alike[1]):.2f}, of updates 20 apart: {float(alike[20]):.2f}"
)

# %% [markdown]
# So an average over ten updates is not an average over ten independent models. The window has to
# outlast the time for which the weights remember where they were.

# %% [markdown]
# ### Two runs
#
# Now the mean of two models that were trained separately. For each seed there are three models:
# the first one; one with the **same start**, which saw the digits in another order; and one
# with another **start**. The curve shows the accuracy on the straight line from the first model
# (left) to the second one (right).

# %%
line = [place / 8 for place in range(9)]
found = experiment.between(base, line, seeds)
for name, values in found.items():
    parents = [*values[0.0], *values[1.0]]
    print(f"{name}: the models themselves {lab.figure.tell_over_seeds(parents, '%')}")
    print(f"{'their mean':>{len(name) + 12}} {lab.figure.tell_over_seeds(values[0.5], '%')}")

# %% jupyter={"source_hidden": true} tags=["hero"]
picture, (axes,) = lab.figure.axes(8.5, 3.6)
looks = ((lab.figure.GREEN, ":^"), (lab.figure.ORANGE, "--o"), (lab.figure.BLUE, "-s"))
for (name, values), (color, style) in zip(found.items(), looks):
    lab.figure.draw_over_seeds(axes, values, label=name, color=color, style=style)
axes.set(xlabel="share of the second model in the mean", ylabel="test accuracy, %", ylim=(0, 100))
axes.legend(frameon=False, title="second model", loc="lower left")
picture

# %%
guess_merged.against(fmean(found["other start"][0.5]))

# %% [markdown]
# Both ends of the orange line are far better models than their mean. Nothing is wrong with either:
# they **number their hidden units differently**. Unit 5 of one may look for a stroke at the
# left, unit 5 of the other for a loop. The mean of the two looks for neither.
#
# The order of hidden units means nothing to a network. You can reorder them, and it answers as
# before: move a unit's row of weights, its bias, and its column in the next layer.

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
model = experiment.network("mlp").double()
shuffled, order = copy.deepcopy(model), torch.randperm(64)
with torch.no_grad():
    shuffled[1].weight.copy_(model[1].weight[order])
    shuffled[1].bias.copy_(model[1].bias[order])
    shuffled[3].weight.copy_(model[3].weight[:, order])

x = digits.test_x.double()
print("same answers:", torch.allclose(model(x), shuffled(x)))
middle = averaging.mean_of([model, shuffled])
print("same answers from the mean of both:", torch.allclose(model(x), middle(x)))

# %% [markdown]
# So sort the units of the second model into the order of the first. Two units match when their
# weights, incoming and outgoing, point the same way:

# %%
lab.show_source(averaging.sorted_like, first="for _ in range(rounds)", last="return copied")

# %%
lab.show_source(averaging.matching)

# %%
first, _, other = experiment.parents(base).values()
alike = averaging.sorted_like(first, other)
with torch.no_grad():
    same = torch.allclose(other(digits.test_x), alike(digits.test_x), atol=1e-3)
moved = (first[1].weight - other[1].weight).norm(), (first[1].weight - alike[1].weight).norm()
print("the sorted model answers as before:", same)
print(f"distance of the first layers: {moved[0]:.1f}, sorted {moved[1]:.1f}")

# %% [markdown]
# The blue line in the picture is the result: the same two models, and the collapse is gone. Two
# networks that look unrelated had learned similar units in another order.

# %% [markdown]
# ### The price
#
# One update of the average: ours, PyTorch's, and an update of the model itself. All take turns on
# the same network, one of many small layers, where the calls cost more than the arithmetic.

# %%
torch.manual_seed(0)
deep = lab.models.mlp(784, *[64] * 50, 10)
optimizer = torch.optim.SGD(deep.parameters(), lr=1e-3)
x, y = digits.train_x[:64], digits.train_y[:64]
ema = averaging.EMA(deep, 0.99)
theirs = AveragedModel(deep, multi_avg_fn=get_ema_multi_avg_fn(0.99))
step = lab.classifier_update(deep, optimizer)

# %%
price = lab.compare(
    lambda: ema.update(deep), lambda: step(x, y), names=("our average", "an update"), patience=2
)
peer = lab.compare(
    lambda: ema.update(deep),
    lambda: theirs.update_parameters(deep),
    names=("our average", "PyTorch's"),
    patience=2,
)
print(price, peer, sep="\n")

# %% [markdown]
# Memory: an average is one more copy of the weights. Where even the time matters, update it every
# tenth step, with a decay that fits.

# %% [markdown]
# ## 7. Break it
#
# Five famous mistakes, one click each. The network now has batch normalization, whose running mean
# and variance are *buffers*, not parameters. Press **Start**, then click through the mistakes. For
# *no warm-up*, set **window** to 1,000 as well.

# %%
broken = base.turned(network="mlp with batch norm")
mistakes = ("buffers of the start", "buffers of the last", "never swapped back")
stops = [broken.turned(mistake=mistake) for mistake in mistakes]
stops = [broken.turned(mistake="no warm-up", window=1000), *stops]

# %%
break_it = lab.Panel(
    experiment.run,
    broken,
    [
        lab.Curve("accuracy", "test accuracy, %", 100, over="updates", ends=(0, 100)),
        lab.Curve("loss", "loss", over="updates", noisy=True),
    ],
    controls=["window", "learning_rate", "mistake"],
    baselines={"no mistake": {"mistake": "none"}},
    headline=lab.Headline("accuracy", "test accuracy", points=True),
    tour=stops,
    seconds=1.5,
)
break_it

# %% [markdown]
# Write down what you think each mistake does, then look.
#
# <details><summary>What each of them does</summary>
#
# - **buffers of the start**: the loop over `parameters()` above. The averaged weights meet running
#   statistics that never moved.
# - **buffers of the last**: copied from the last model. They do not belong to the averaged weights.
#   In this panel the harm is small; for SWA it is measured below.
# - **no warm-up**: with a window of 1,000 updates the average is mostly the random start for
#   hundreds of updates.
# - **per micro-batch**: with gradient accumulation the weights do not change between micro-batches.
#   An average that is updated after each of them forgets faster: its window is divided by their
#   number. The curve need not show it, for a shorter window still averages.
# - **never swapped back**: the average is loaded into the model to evaluate it, and the training
#   goes on from there. Every evaluation throws the latest progress away: compare the loss. The
#   average is never far behind with these knobs, so the accuracy suffers little.
#
# </details>

# %%
lab.show_source(experiment.BuffersOfTheStart, experiment.BuffersOfTheLast)

# %%
lab.show_source(experiment.PerMicroBatch, experiment.never_swapped_back, docstring=False)

# %% [markdown]
# How much do the buffers matter for SWA, whose window is half of the run? The same averaged
# weights, with running statistics from four sources. *Measured anew* is one pass over training
# data with the averaged weights, as PyTorch's `update_bn` does it:

# %%
sources = [experiment.statistics(base.turned(seed=base.seed + seed)) for seed in seeds[:3]]
buffers = {name: [found[name] for found in sources] for name in sources[0]}
for name, values in buffers.items():
    print(f"{name:<17} {lab.figure.tell_over_seeds(values, '%')}")

# %%
lab.show_source(averaging.fresh_statistics, docstring=False)

# %% [markdown]
# ## 8. When it does not help
#
# ### A learning rate that falls
#
# Averaging removes the shaking. So does a falling learning rate: at its end the steps are small,
# and the weights settle by themselves. The same runs with a *cosine* schedule, from the same
# rate down to zero:

# %%
falling = base.turned(schedule="cosine")
settled = [
    experiment.gain(falling.turned(seed=base.seed + seed), {"EMA": falling}) for seed in seeds
]
noisy = base.turned(wrong_labels=0.3)
shaken = [
    experiment.gain(noisy.turned(seed=base.seed + seed), {"EMA": noisy}) for seed in seeds[:3]
]

# %%
rows = {"constant rate": results, "falling rate": settled, "30 % of labels drawn anew": shaken}
for name, found_ in rows.items():
    told = lab.figure.tell_over_seeds([result.last for result in found_], "%")
    print(f"{name:<26} last weights {told}")
    print(f"{'':<26} EMA gains {lab.figure.tell_over_seeds(gained('EMA', found_), 'points')}")

# %% jupyter={"source_hidden": true}
picture, (axes,) = lab.figure.axes(7.5, 3)
lab.figure.draw_over_seeds(axes, {name: gained("EMA", found_) for name, found_ in rows.items()})
axes.axhline(0, **lab.figure.LIMIT)
axes.set_ylabel("points that the EMA gains")
picture

# %%
ema = fmean(result.averaged["EMA"] for result in results)
decayed = fmean(result.last for result in settled)
better = "more" if ema > decayed else "less"
print(f"EMA at a constant rate: {ema:.1f} %; last weights of the falling rate: {decayed:.1f} %")
print(f"so here averaging brings {abs(ema - decayed):.1f} points {better} than the decay")

# %% [markdown]
# An average takes out the shaking, as a falling rate does, and needs no plan: it can be read at any
# time, and the training goes on at full speed. The two need not come out alike. A falling rate also
# takes smaller steps towards the goal, and that tells in a run as short as this one. Where the rate
# has fallen already there is little left to average. Where more noise is in the gradients, as with
# wrong labels, more can be gained.

# %% [markdown]
# ### Strangers in the soup
#
# If a mean can collapse, measure it before you trust it. A **greedy soup** starts with the best
# model and adds the next best one, unless that lowers the accuracy on data set aside. Offer it the
# three models: once as they are, once with the units of the stranger sorted. It chooses by one half
# of the test digits; the other half gives the accuracy.

# %%
judged, reported = experiment.halves(base)
mixed = {"other start": 0, "other start, units sorted": 0}
for seed in seeds:
    one, same, other = experiment.parents(base.turned(seed=base.seed + seed)).values()
    for name, third in zip(mixed, (other, averaging.sorted_like(one, other))):
        soup, chosen = averaging.greedy_soup([one, same, third], judged)
        mixed[name] += 2 in chosen and len(chosen) > 1
        told = " and ".join(("first", "same start", name)[index] for index in chosen)
        print(f"offered {name + ':':<26} {reported(soup):.1f} % from {told}")
for name, count in mixed.items():
    print(f"{name}: mixed with another model in {count} of {len(seeds)} soups")

# %% [markdown]
# So, about the claim from the start: the verdict, for this machine.

# %%
middle = {name: fmean(values[0.5]) for name, values in found.items()}
verdict = (
    f"EMA gains {fmean(gained('EMA')):+.1f} points at a constant rate, "
    f"{fmean(gained('EMA', settled)):+.1f} with a falling one; the mean of two starts recognises "
    f"{middle['other start']:.0f} %, sorted {middle['other start, units sorted']:.0f} %; "
    f"an average costs {price.ratio:.2f} × an update"
)
lab.log_verdict("averaging", verdict)

# %% [markdown]
# *Trained independently and then fused* describes the case that collapses, unless the units are
# sorted first. What helps, and what the code beside the sentence does, is the mean along one run.

# %% [markdown]
# ## 9. Exercises
#
# Write the functions and run the cells; `check` tries each on fresh data. It says what is right
# already, shows a small case that is not, and gives a hint where it knows the mistake. After two
# different tries it offers a worked solution. Some functions are written already, with faults:
# repair them.

# %%
from accel_lab.grading.practice import check, exercises

DEBIASED, LOOP, SORT, FAST = exercises("averaging")
DEBIASED


# %% tags=["exercise"]
def debiased_ema(states, decay):
    raise NotImplementedError


check(debiased_ema)

# %%
LOOP


# %% tags=["exercise"]
def train_averaged(model, optimizer, batches, decay, x):
    average = copy.deepcopy(model)
    answers = []
    for micro_batches in batches:
        optimizer.zero_grad()
        for inputs, y in micro_batches:
            for mean, now in zip(average.parameters(), model.parameters(), strict=True):
                mean.data = decay * mean.data + (1 - decay) * now.data
            loss = cross_entropy(model(inputs), y) / len(micro_batches)
            loss.backward()
        optimizer.step()
        model.load_state_dict(average.state_dict())
        model.eval()
        with torch.no_grad():
            answers.append(model(x))
        model.train()
    return answers


check(train_averaged)

# %%
SORT


# %% tags=["exercise"]
def sort_units(a, b):
    raise NotImplementedError


check(sort_units)

# %%
FAST


# %% tags=["exercise"]
def ema_update(averages, weights, decay):
    raise NotImplementedError


check(ema_update)

# %% [markdown]
# ## 10. Take away
#
# - At a constant learning rate the weights shake, and their average along the run is a better model
#   than the last one. It costs one copy of the weights.
# - It takes out what a falling learning rate takes out, without a plan. Where the rate has fallen
#   to zero it gains nothing.
# - Choose how an EMA starts: warm-up or debiased. The first weights are random numbers.
# - Buffers belong to the average. Batch normalization's statistics are averaged, or measured anew.
# - The mean of two independent runs collapses, because their hidden units stand in another order.
#   Sort them, or start both runs from the same weights, and measure before you trust a mean.

# %% [markdown]
# Known from elsewhere, and not measured here: the same start is enough for a mean only once the
# runs share enough of their way; for large networks and hard data they must share the first part of
# the training (J. Frankle et al., 2020, arXiv:1912.05671). Fine-tuned copies of one pretrained
# model can be averaged into one better model. Semi- and self-supervised methods learn from an EMA
# of themselves (A. Tarvainen and H. Valpola, *Mean teacher*, 2017, arXiv:1703.01780), and diffusion
# models are sampled from one. *Schedule-free* optimizers build the average into the update (A.
# Defazio et al., 2024, arXiv:2405.15682).

# %% [markdown]
# **What would prove this wrong?** Two networks from different starts, wide enough to learn the
# task, whose mean works as well as they do without any sorting. (With sorting, wider networks come
# closer to it: Ainsworth et al., 2022.)

# %% [markdown]
# **Sources.** B. Polyak and A. Juditsky, *Acceleration of stochastic approximation by averaging*,
# 1992 · P. Izmailov et al., *Averaging weights leads to wider optima and better generalization*,
# 2018, arXiv:1803.05407, section 3 (SWA, and batch normalization) · M. Wortsman et al., *Model
# soups*, 2022, arXiv:2203.05482 · S. Ainsworth et al., *Git Re-Basin*, 2022, arXiv:2209.04836,
# section 3.2 (matching weights).
#
# **Next.** An average costs one more copy of the weights. Where does the memory of a training go,
# and how does one train in less of it? [Chapter 15](15_memory.ipynb). The other chapters are listed
# on the [first page](00_start_here.ipynb).
