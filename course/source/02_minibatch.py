# ---
# jupyter:
#   kernelspec:
#     name: python3
#     display_name: Python 3
# ---

# %% [markdown]
# # 02 · Mini-batches
#
# ## 1. The question
#
# An update of a network looks at some samples, computes the gradient of their mean loss, and
# changes the weights. How many samples should it look at? One, all of them, or something between: a
# **mini-batch**.
#
# You can read about it:
#
# > *A technique to speed up inference: everything is computed at once.*
# >
# > *It fails if the samples do not fit into memory.*
# >
# > *The larger the batch, the faster the training.*
#
# [Chapter 01](01_measuring.ipynb) has shown that one call for many samples makes more samples per
# second. This chapter asks the other half: which batch reaches a given loss first, and can it be
# computed before anything is tried?

# %% jupyter={"source_hidden": true}
import math
from functools import partial
from itertools import islice
from statistics import fmean, median

import torch

from accel_lab import minibatch
from accel_lab.experiments import minibatch as experiment
from accel_lab.workbench import chapter as lab

torch.set_num_threads(1)  # so small a network gains nothing from a second thread

# %% [markdown]
# The next cell holds the settings of this chapter. Change one, as in `knobs = {"seed": 1}`, and run
# the notebook again: everything below follows.

# %% tags=["parameters"]
knobs = {}

# %%
base = lab.settings(experiment.Knobs, knobs, device="cpu")
digits = lab.datasets.mnist5k()
x, y = digits.train_x, digits.train_y
seeds = [base.seed + place for place in lab.some_seeds(5)]
print(f"{len(x):,} training pictures, a network of one hidden layer, 784-64-10")
print(f"the target: a loss of {base.target:g} on {experiment.JUDGED} of them")

# %% [markdown]
# ## 2. Predict
#
# Compare a batch of 2,048 with a batch of 64. Two guesses; a wrong one costs nothing, and you may
# skip them.

# %%
guess_speed = lab.Prediction(
    "Training with batches of 2,048: how many times the samples per second of batches of 64?",
    low=0.2,
    high=50,
    default=5.0,
    unit="×",
)
guess_speed

# %%
guess_time = lab.Prediction(
    "And until the loss is down at the target: how many times the seconds of batches of 64?",
    low=0.02,
    high=50,
    default=0.5,
    unit="×",
)
guess_time

# %% [markdown]
# ## 3. See
#
# The network trains here, now. The dashed orange run has batches of 2,048. Press **Start**, then
# move **batch size** from 1 to 2,048, and wait each time until the loss has crossed the line.
#
# - **learning rate** is that of a very large batch; **scale rate** makes it smaller for a small
#   one.
# - **fetch** says how a batch is collected: by one call, or sample by sample.
#
# The clock of this chapter counts both, the update and the wait for its batch. First it is read at
# four batch sizes, for the dashed curves:

# %%
for fetch in ("index", "one by one"):
    fixed, each = experiment.costs(fetch, base.device)
    print(f"{fetch:<11} an update takes {fixed * 1e6:.0f} µs and {each * 1e6:.2f} µs per sample")

# %%
speed = lab.Sweep(
    "batch_size",
    "throughput",
    "thousand samples/s",
    scale=1e-3,
    predicted=experiment.predicted_throughput,
    formula="B / (a + bB)",
    log=True,
)
soonest = lab.Sweep(
    "batch_size",
    "seconds_to_target",
    "seconds to the target",
    predicted=experiment.predicted_seconds,
    formula="predicted",
    log=True,
)

# %%
loss = lab.Curve("target_loss", "loss", log=(1e-3, 1e1), limit=(base.target, "the target"))
panel = lab.Panel(
    experiment.run,
    base,
    [speed, soonest, loss, lab.Curve("wait_share", "waiting for batches, %", 100, ends=(0, 100))],
    controls=["batch_size", "learning_rate", "scale_rate", "fetch"],
    baselines={"batches of 2,048": {"batch_size": 2048}},
    headline=lab.Headline("seconds_to_target", "seconds to the target"),
    tour=[base.turned(batch_size=size) for size in (8, 512, 64)],
    seconds=2.5 if lab.effort() == 1 else 6.0,  # enough for batches of 2,048, in a quick look, too
)
panel

# %% [markdown]
# What to look for:
#
# - Where do the samples per second stop climbing?
# - And at which batch are the seconds to the target lowest? Is it the same one? The headline
#   compares the two runs once both have reached the target.
# - Both dashed curves were there before the dots. The second one comes from a single run at a batch
#   of 64, with the learning rate as it was at first; part 4 explains how.
# - A short run reaches the target while the page is still drawn for it. Drawing and training take
#   turns in one process, so such a dot stands above the curve. Part 6 measures without a panel.
# - Set **fetch** to *one by one*: how long does the network wait for its data? Does a larger batch
#   help?

# %% [markdown]
# ## 4. Build
#
# ### An epoch
#
# An *epoch* takes every sample once, in an order that chance picks. Draw one order, cut it into
# pieces, and fetch the samples of a piece:

# %% tags=["nbval-check-output"]
order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
for part in order.split(4):
    print("a batch of", len(part), "has the samples", part.tolist())

# %% [markdown]
# The last batch is shorter. This is the naive way to fetch a batch, the one that a `DataLoader`
# takes by default: each sample by itself, then stacked.

# %%
lab.show_source(minibatch.naive_batches, docstring=False)

# %% [markdown]
# And the direct way: one call fetches all samples of a batch.

# %%
lab.show_source(minibatch.batches, docstring=False)

# %% [markdown]
# ### A gradient is a sample of something
#
# A batch is a random choice, so its gradient is the true one plus noise. How much noise? Take the
# network at its start, and compare the gradients of some batches with that of all pictures:

# %%
torch.manual_seed(base.seed)
model = lab.models.mlp(784, 64, 10)


def flat(gradient):
    return torch.cat([part.flatten() for part in gradient])


truth = flat(minibatch.gradient_of_batch(model, x, y))
print("  B   ‖noise‖²/‖G‖²   times B")
for size in (4, 16, 64, 256):
    some = islice(minibatch.batches(x, y, size), 12)
    off = fmean(
        (flat(minibatch.gradient_of_batch(model, *one)) - truth).norm() ** 2 for one in some
    )
    share = off / truth.norm() ** 2
    print(f"{size:>3} {share:>15.2f} {share * size:>9.0f}")

# %% [markdown]
# Four times the samples, about a quarter of the noise. So the last column changes little. It is a
# number of samples, the **noise scale**:
#
# $$B_{noise} = \frac{\operatorname{tr}(\Sigma)}{\|G\|^2}$$
#
# Σ is the covariance of the gradients of single samples, *G* the gradient of all. A batch of
# $B_{noise}$ samples has as much noise as gradient. A much larger one repeats what is known.

# %% [markdown]
# ### Two laws
#
# The first law is the machine's. An update costs a fixed time *a*, for its calls, and a time *b*
# per sample:
#
# $$t(B) = a + b\,B$$

# %%
call, sample = experiment.costs("index", base.device)
print(f"a = {call * 1e6:.0f} µs, b = {sample * 1e6:.2f} µs, as read above: ", end="")
print(f"half of the highest samples/s at a batch of a/b = {call / sample:.0f}")

# %% [markdown]
# The second law is the data's. With noise, an update goes less far in the right direction, so more
# of them are needed:
#
# $$S(B) = S_{min}\left(1 + \frac{B_{crit}}{B}\right)$$
#
# Small batches: twice the batch, half of the updates. Large batches: the updates stop falling, at
# $S_{min}$. The bend lies at the **critical batch size** $B_{crit}$, which theory puts near the
# noise scale.

# %% [markdown]
# For the same reason the learning rate belongs to the batch. A noisy gradient bears a smaller step,
# here $\eta\, B/(B + 70)$, with 70 of the order of the noise scale:

# %% tags=["nbval-check-output"]
for size in (8, 64, 512, 2048):
    turned = experiment.Knobs(batch_size=size)
    print(f"batch of {size:>4}: learning rate {turned.rate:.2f}")

# %% [markdown]
# Multiply the two laws, and you have the seconds until the target. There is a best batch:
#
# $$T(B) = S(B)\,t(B), \qquad B^* = \sqrt{B_{crit}\cdot\frac{a}{b}}$$
#
# **The best batch is the geometric mean of what the machine wants, a/b, and what the data allow,
# $B_{crit}$.** Move the two, and watch the curve. A GPU, with its many cores, has a large *a/b*.


# %% jupyter={"source_hidden": true}
def two_wishes(machine=100, data=50):
    laws = minibatch.Laws(call=machine * 1e-6, sample=1e-6, least=1.0, critical=data)
    sizes = [2**power for power in range(15)]
    least = laws.seconds(laws.best)
    picture, (axes,) = lab.figure.axes(8, 3)
    lab.figure.powers_of_two(axes, "batch size", sizes[::2])
    axes.set(yscale="log", ylim=(0.8, 100), ylabel="seconds, × the least")
    axes.set_yticks([1, 10, 100], ["1", "10", "100"])
    axes.plot(sizes, [laws.seconds(size) / least for size in sizes], color=lab.figure.BLUE)
    for value, color in ((machine, "GREEN"), (data, "PURPLE"), (laws.best, "ORANGE")):
        axes.axvline(value, color=getattr(lab.figure, color), linestyle="--")
    said = f"green, a/b: {machine:,} · purple, B_crit: {data:,} · orange, best: {laws.best:,.0f}"
    axes.set_title(said, loc="left", fontsize=10)
    return picture


lab.Sliders(two_wishes, machine=(20, 4000, 20), data=(10, 2000, 10))

# %% [markdown]
# ### The critical batch from one run
#
# To fit the second law one would have to train at many batch sizes. But the noise scale can be read
# off a single run. The expected ‖g‖² of a batch of *B* samples is
#
# $$E\|g\|^2 = \|G\|^2 + \frac{\operatorname{tr}(\Sigma)}{B}$$
#
# Take each batch of 64 apart, into 8 parts of 8. The parts and the whole give two equations:

# %%
lab.show_source(minibatch.squares_of_parts, docstring=False)

# %% [markdown]
# The next function solves them. One of its lines is left out: the one for tr(Σ), the noise of a
# single sample. Your function is tried on squares made by the formula, with ‖G‖² = 3 and
# tr(Σ) = 40.


# %%
def finds_the_noise(noise_scale, square=3.0, trace=40.0):
    def expected(samples):
        return square + trace / samples

    found = [noise_scale(expected(8), expected(big), 8, big) for big in (64, 200)]
    return [round(one, 6) for one in found], [round(trace / square, 6)] * 2


# %% jupyter={"source_hidden": true}
lab.MissingLine(
    minibatch.noise_scale,
    {
        "trace = (small_sq - big_sq) / (1 / small - 1 / big)": (
            "‖G‖² drops out of the difference. What is left is tr(Σ) times the divisor."
        ),
        "trace = (small_sq - big_sq) * (1 / small - 1 / big)": (
            "The difference is tr(Σ) times this bracket: now the bracket is in it squared."
        ),
        "trace = small_sq - big_sq": (
            "‖G‖² drops out. But in both squares tr(Σ) was divided by a size, and it still is."
        ),
        "trace = (small_sq - big_sq) / (big - small)": (
            "Divided by the difference of the sizes. The equations hold 1/B, not B."
        ),
    },
    finds_the_noise,
)

# %% [markdown]
# The mean of the parts' gradients is the gradient of the batch, so a run that takes its batches
# apart trains as usual. One update says little. Both squares are averaged over the run, and divided
# last.

# %%
single = experiment.one_run(base)
for first in (1, 2, 4, len(single.squares)):
    some = experiment.OneRun(first, single.squares[:first])
    try:
        print(f"noise scale from {first:>3} updates: {some.noise:6.0f} samples")
    except ValueError as refusal:
        print(f"noise scale from {first:>3} updates: {refusal}")

# %% [markdown]
# Everything is there now: *a* and *b* from a stopwatch, $B_{crit}$ from the noise, $S_{min}$ from
# the updates that this one run took. No other batch size has been trained. What do they predict?

# %%
predicted = experiment.laws_of_one_run(single, (call, sample))
outcome = "to the target" if single.reached else "and the target missed"
print(f"one run at 64: {single.updates} updates {outcome}, noise scale {predicted.critical:.0f}")
print(f"√({predicted.critical:.0f} · {predicted.half_speed:.0f}): best batch {predicted.best:.0f}")
for size in (8, 64, 2048):
    print(f"batch of {size:>4}: {predicted.seconds(size):.3f} s to the target, predicted")

# %% [markdown]
# *Half-way. This is a good place to stop and come back to: run all cells above, and go on here.*
#
# ## 5. Prove
#
# First: are our batches those of PyTorch's `DataLoader`, if it gets the same order?

# %% tags=["nbval-check-output"]
from torch.utils.data import DataLoader, TensorDataset

for size, last in ((64, "shorter"), (64, "drop"), (2048, "shorter")):
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1)).tolist()
    theirs = DataLoader(TensorDataset(x, y), size, sampler=order, drop_last=last == "drop")
    ours = list(minibatch.batches(x, y, size, torch.Generator().manual_seed(1), last))
    same = all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(ours, theirs, strict=True)
    )
    print(f"batches of {size}, last {last}: {len(ours)} batches, the same: {same}")

# %% [markdown]
# Second: the gradient of a batch is the mean of the gradients of its samples. Three ways, in
# float64: a loop over the samples; all at once; and `torch.func`, which returns each sample's
# gradient.

# %% tags=["nbval-check-output"]
exact = lab.models.mlp(784, 64, 10).double()
few, labels = x[:37].double(), y[:37]
together = flat(minibatch.gradient_of_batch(exact, few, labels))
apart = flat(minibatch.gradient_one_by_one(exact, few, labels))
each = flat([one.mean(0) for one in minibatch.gradients_of_samples(exact, few, labels)])
print("one by one = at once:", float((apart - together).abs().max()) < 1e-14)
print("mean of each = at once:", float((each - together).abs().max()) < 1e-14)

# %% [markdown]
# Third: the noise scale. With parts of one sample the estimate must be the exact one, from the
# covariance of all samples' gradients:

# %% tags=["nbval-check-output"]
squares = minibatch.squares_of_parts(exact, few, labels, parts=37)
estimated = minibatch.noise_scale(*squares, small=1, big=37)
slow_truth = experiment.exact_noise(exact, few, labels)
print("estimate = tr(Σ)/‖G‖²:", abs(estimated / slow_truth - 1) < 1e-9)

# %% [markdown]
# ## 6. Measure
#
# ### Which batch reaches the target first?
#
# Now train at all sizes, with several seeds. The sizes take turns, in a random order.

# %%
sizes = sorted({*lab.along([8, 16, 32, 64, 128, 256, 512, 1024, 2048]), 64, 128})
ways = experiment.ways_to_target(base, sizes, seeds)
experiment.check_reached(ways, base)
seconds = experiment.mean_seconds(ways)
updates = {size: fmean(way.updates for way in runs) for size, runs in ways.items()}
ends = {size: [way.losses[-1] for way in runs] for size, runs in ways.items()}  # at the target
per_second = {size: sum(e[1] for e in ends[size]) / sum(e[0] for e in ends[size]) for size in sizes}
print("    B   updates   samples/s   seconds to the target")
for size, runs in ways.items():
    spread = lab.figure.tell_over_seeds([way.seconds for way in runs], "s")
    print(f"{size:>5} {updates[size]:>9.0f} {per_second[size]:>11,.0f}   {spread}")

# %% jupyter={"source_hidden": true} tags=["hero"]
picture, (left, right) = lab.figure.axes(10, 3.6, columns=2)
for axes in (left, right):
    lab.figure.powers_of_two(axes, "batch size", sizes)
    axes.tick_params(axis="x", labelsize=8)
by_law = {size: size / predicted.update_seconds(size) / 1e3 for size in sizes}
thousands = {size: value / 1e3 for size, value in per_second.items()}
lab.figure.draw_lines(left, {"measured": thousands}, dashed={"B/(a + bB)": by_law})
left.set(ylabel="thousand samples/s", ylim=(0, None), title="Most samples per second?")
over_seeds = {size: [way.seconds for way in runs] for size, runs in ways.items()}
lab.figure.draw_over_seeds(right, over_seeds, label="measured: mean, all seeds")
right.plot(
    sizes, list(map(predicted.seconds, sizes)), **lab.figure.LIMIT, label="predicted from one run"
)
right.axvline(
    predicted.best, color=lab.figure.ORANGE, label=f"√(B_crit · a/b) = {predicted.best:.0f}"
)
right.set(yscale="log", ylabel="seconds to the target", title="Fewest seconds to the target?")
right.set_ylim(top=6 * right.get_ylim()[1])
right.yaxis.set_major_formatter("{x:g}")
right.legend(loc="upper center", frameon=True, framealpha=1, edgecolor="none", fontsize=8)
picture

# %%
best = min(seconds, key=seconds.get)
quickest = max(per_second, key=per_second.get)
late = seconds[2048] / seconds[best]
times_later = sum(a.seconds > b.seconds for a, b in zip(ways[2048], ways[best]))
print(f"most samples/s: batches of {quickest}; fewest seconds to the target: batches of {best}")
print(f"2,048 against {best}: {per_second[2048] / per_second[best]:.1f} × the samples/s,", end=" ")
print(f"{late:.1f} × the seconds, later in {times_later} of {len(seeds)} seeds")

# %%
guess_speed.against(per_second[2048] / per_second[64])

# %%
guess_time.against(seconds[2048] / seconds[64])

# %% [markdown]
# By the formula the optimum is flat: a batch twice as large as the best one, or half as large,
# costs at most an eighth more. So nobody has to hit it. What counts is to stay off the two slopes.

# %%
near = [size for size in sizes if seconds[size] <= 1.5 * seconds[best]]
print(f"within 1.5 × of the least: batches of {', '.join(map(str, near))}")
print(f"on the left slope: batches of {sizes[0]} take {seconds[sizes[0]] / seconds[best]:.1f} ×")

# %% [markdown]
# ### How good was the forecast?
#
# The batch nearest to the forecast, in seconds over the least. Then, for comparison, both laws
# fitted to all sizes that reached the target. An error that all sizes share, such as that of
# $S_{min}$, does not move the best batch.

# %%
closest = min(sizes, key=lambda size: abs(torch.tensor(size / predicted.best).log()))
counted = {size: needed for size, needed in updates.items() if needed < float("inf")}
per_update = {size: seconds[size] / needed for size, needed in counted.items()}
both = {"from one run at 64": predicted}
if len(counted) > 1:
    both["fitted to all sizes"] = experiment.fitted_laws(counted, minibatch.fit_line(per_update))
print(f"predicted {predicted.best:.0f}: {closest} takes {seconds[closest] / seconds[best]:.2f} ×")
for name, laws in both.items():
    wishes = f"a/b {laws.half_speed:.0f}, B_crit {laws.critical:.0f}, S_min {laws.least:.0f}"
    print(f"{name:<20} {wishes}, best batch {laws.best:.0f}")

# %%
for name, laws in both.items():
    print(f"by the laws {name}, over those counted and measured:")
    for what, law, real in (("updates", laws.updates, updates), ("seconds", laws.seconds, seconds)):
        print(what, *(f"{size}: {law(size) / real[size]:.2f}" for size in counted), sep="   ")
fitted = laws  # those of the one run, where fewer than two sizes got there

# %% [markdown]
# The noise scale gives the order of magnitude of $B_{crit}$, and no more is promised: it is an
# average over a run in which the noise changes (part 8). The square root forgives. A factor of 2 in
# $B_{crit}$ is a factor of 1.4 in the best batch, and there the optimum is flat.

# %% [markdown]
# ### Three axes, three winners?
#
# The same runs, over updates, over samples and over seconds. Press **Play**, then choose another
# axis.


# %% jupyter={"source_hidden": true}
def same_runs(over="seconds", percent=100):
    picture, (axes,) = lab.figure.axes(8, 3.2)
    shown, least = {}, {}
    for size in (sizes[0], best, 2048):
        first = ways[size][0]
        across = {"seconds": 0, "samples": 1}.get(over)
        line = [(p[1] / size if across is None else p[across], p[2]) for p in first.losses]
        shown[size], least[size] = line, line[-1][0]
    end = max(least.values()) * percent / 100
    for (size, line), color in zip(shown.items(), ("GREEN", "BLUE", "ORANGE")):
        done = [point for point in line if point[0] <= end] or line[:1]
        axes.plot(*zip(*done), "o-", markersize=3, color=getattr(lab.figure, color), label=size)
    axes.set(yscale="log", ylim=(0.2, 3), xlim=(0, 1.15 * max(least.values())))
    axes.set(xlabel=f"{over} so far", ylabel="loss")
    axes.set_yticks([0.2, 0.3, 0.5, 1, 2], ["0.2", "0.3", "0.5", "1", "2"])
    axes.minorticks_off()
    lab.figure.limit_line(axes, base.target, "the target")
    axes.legend(title="batch size", frameon=False, fontsize=8)
    axes.set_title(
        f"fewest {over} with the first seed: batches of {min(least, key=least.get)}",
        loc="left",
        fontsize=10,
    )
    return picture


lab.Sliders(same_runs, over=["updates", "samples", "seconds"], percent=range(0, 101, 4))

# %%
for over, cost in (
    ("updates", updates),
    ("samples", {size: size * updates[size] for size in sizes}),
    ("seconds", seconds),
):
    print(f"fewest {over:<7} over all sizes and seeds: batches of {min(cost, key=cost.get)}")

# %% [markdown]
# *Which batch is best* depends on what is paid for: updates, where many machines share each of
# them; samples, where every label costs money; seconds, where you wait.

# %% [markdown]
# ### Is it the learning rate?
#
# Maybe 2,048 is late because its learning rate is bad. So try others, and give each size its best.
# The runs with rate × 1 are those from above:

# %%
tried = {1: seconds}
for rate in experiment.other_rates(base, (0.5, 1.3)):
    turned = base.turned(learning_rate=rate * base.learning_rate)
    runs = experiment.ways_to_target(turned, (best, 2048), seeds[: len(lab.some_seeds(2))])
    tried[rate] = experiment.mean_seconds(runs)
for size in (best, 2048):
    told = (f"rate × {rate:g}: {found[size]:.3f} s" for rate, found in sorted(tried.items()))
    print(f"batch of {size:>4}:", *told, sep="  ")
least = {size: min(found[size] for found in tried.values()) for size in (best, 2048)}
print(f"each with its best: 2,048 takes {least[2048] / least[best]:.1f} × the seconds of {best}")

# %% [markdown]
# (A run that has not reached the target after 40 epochs counts as `inf`, and so does a mean with
# such a run.)
#
# ### The price of fetching
#
# How long does it take to collect the batches of an epoch? The peer is a `DataLoader` with a
# `TensorDataset`; the limit is one copy of each batch, without any choice.


# %%
def epoch(way, size):
    for _ in way(size):
        pass


# %%
fetching = {
    "DataLoader": lambda size: DataLoader(TensorDataset(x, y), size, shuffle=True),
    "one copy": lambda size: ((a.clone(), b.clone()) for a, b in zip(x.split(size), y.split(size))),
}
direct = partial(minibatch.batches, x, y)
fetched = {
    name: lab.compare(
        partial(epoch, direct, 64), partial(epoch, way, 64), names=("ours", name), patience=1.0
    )
    for name, way in fetching.items()
}
print(*fetched.values(), sep="\n")

# %% [markdown]
# And what is it beside the updates? Here is the share of its time that the network waits for its
# batches:

# %%
waits = {}
for size in (16, 1024):
    for fetch in ("index", "one by one"):
        steps = islice(experiment.run(base.turned(batch_size=size, fetch=fetch)), 20)
        shares = [step.metrics["wait_share"] for step in steps if "wait_share" in step.metrics]
        waits[size, fetch] = median(shares)
    print(f"batches of {size:>4}: by one call {waits[size, 'index']:4.0%}", end=", ")
    print(f"sample by sample {waits[size, 'one by one']:4.0%} of the time waits")

# %% [markdown]
# Two cures when the data are a tensor already: index it as we do, or hand the `DataLoader` a
# `BatchSampler`, so that it fetches a whole batch by one index. Where each sample has to be read
# from a file, other cures are needed.

# %% [markdown]
# ### The price of a gradient
#
# Three ways to the same gradient, proved equal above. How much longer do the other two take than
# one batch?

# %%
some = x[:64], y[:64]
gradients = {
    "one by one": minibatch.gradient_one_by_one,
    "each sample's (vmap)": minibatch.gradients_of_samples,
}
for name, way in gradients.items():
    one, other = (partial(f, model, *some) for f in (way, minibatch.gradient_of_batch))
    print(lab.compare(one, other, names=(name, "one batch"), patience=1.0))
numbers = sum(p.numel() for p in model.parameters())
print(f"and the gradients of 1,000 samples, each by itself, are {4 * numbers * 1000 / 1e6:.0f} MB")

# %% [markdown]
# ## 7. Break it
#
# Four famous mistakes, one click each. Press **Start**, then choose one **mistake** after the
# other. Watch two losses: that of the batch, which every program prints, and that of the pictures
# that the target is about.

# %%
broken = base.turned(batch_size=64)
mistakes = [
    name for name in experiment.Knobs.model_fields["mistake"].annotation.__args__ if name != "none"
]
chance = (math.log(10), "chance, ln 10")
of_batch = lab.Curve("loss", "loss of the batch", over="updates", log=(1e-3, 1e3), limit=chance)
judged = lab.Curve(
    "target_loss",
    "loss of the target's pictures",
    over="updates",
    log=(1e-3, 1e3),
    limit=(base.target, "the target"),
)

# %%
break_it = lab.Panel(
    experiment.run,
    broken,
    [of_batch, judged],
    controls=["mistake", "batch_size"],
    baselines={"no mistake": {"mistake": "none"}},
    headline=None,
    tour=[broken.turned(mistake=mistake) for mistake in mistakes],
    seconds=1.0,
)
break_it

# %% [markdown]
# Write down what you think each mistake does to the two losses, then look.
#
# <details><summary>What each of them does</summary>
#
# - **rate of a batch of 8.** The batch was made larger, the learning rate was left alone: the steps
#   are too short. "Large batches train worse" can come from this.
# - **sum of losses** instead of their mean: the gradient grows with the batch, so each batch size
#   needs another learning rate.
# - **not shuffled.** Many data sets lie sorted by class. A batch then has one class, or two, and
#   the network learns to answer with just that.
# - **with replacement** draws each batch from all samples anew. What is wrong is the word epoch, as
#   a later cell shows.
#
# </details>
#
# With all seeds, 150 updates each:

# %%
print(f"{'':<22} reached   loss of the batch   of the target's pictures")
for mistake in ("none", *mistakes):
    turned = [broken.turned(mistake=mistake, seed=seed) for seed in seeds]
    runs = [list(islice(experiment.run(one), 150)) for one in turned]
    lasts = [[s.metrics for s in run if "target_loss" in s.metrics][-1] for run in runs]
    reached = sum("updates_to_target" in last for last in lasts)
    batch, target = (median(last[name] for last in lasts) for name in ("loss", "target_loss"))
    print(f"{mistake:<22} {reached} of {len(seeds)} {batch:>19.3g} {target:>26.3g}")

# %% [markdown]
# Is it a mistake, then, to keep one learning rate for all sizes? Here are two rates, each kept for
# two sizes. Updates to the target, `inf` where it was missed:

# %%
needed = {}
print("batch of    64    256")
for rate in (0.05, 0.5):
    kept = base.turned(learning_rate=rate, scale_rate=False)
    for size in (64, 256):
        turned = [kept.turned(batch_size=size, seed=seed) for seed in lab.some_seeds(2)]
        needed[size, rate] = fmean(experiment.way_to_target(one).updates for one in turned)
    print(f"rate {rate:<4g}{needed[64, rate]:>5.0f}{needed[256, rate]:>7.0f}")
for rate in (0.05, 0.5):
    ratio = needed[64, rate] / needed[256, rate]
    print(f"at {rate:g}, four times the samples save a factor of {ratio:.1f} of the updates")

# %% [markdown]
# With steps that are too short, the number of steps is what counts, and larger batches hardly need
# fewer. So look twice before you blame "one rate for all": it may be a rate that is too low.
#
# ### An epoch with repeats
#
# Draw as many samples as there are, but with replacement. How many of them took part?

# %%
generator = torch.Generator().manual_seed(0)
drawn = torch.cat(list(experiment.with_replacement(x, y, 64, generator)))
print(f"{len(drawn):,} samples drawn, {len(drawn.unique()):,} different ones:", end=" ")
print(f"{1 - len(drawn.unique()) / len(x):.1%} never took part (1/e = 36.8 %)")

# %% [markdown]
# ### The mean of an epoch
#
# A mistake that trains well and reports wrongly. The mean loss of an epoch is often taken as the
# mean over its batches. But the last batch is shorter. Here are 65 samples in batches of 64, the
# last sample a hard one:

# %% tags=["nbval-check-output"]
losses = torch.tensor([1.0] * 64 + [10.0])
of_batches = [part.mean() for part in losses.split(64)]
weighed = sum(part.mean() * len(part) for part in losses.split(64)) / len(losses)
print(f"mean of the batches' means: {sum(of_batches) / len(of_batches):.2f}")
print(f"weighed by samples:         {weighed:.2f}, mean of all: {losses.mean():.2f}")

# %% [markdown]
# ### Bad input
#
# A size that cannot be is refused before anything is fetched, in one line:

# %% tags=["nbval-check-output"]
for size in (0, 5000, 2.5, True):
    try:
        minibatch.batches(x, y, size)
    except ValueError as refusal:
        print(refusal)
try:
    minibatch.noise_scale(small_sq=8.0, big_sq=1.0, small=1, big=8)
except ValueError as refusal:
    print(refusal)

# %% [markdown]
# ## 8. When it does not help
#
# ### Convolutions
#
# A larger batch makes more samples per second where the calls are expensive beside the arithmetic.
# In a convolutional network the arithmetic is most of it. And the memory for large activations may
# have to be fetched from the operating system at every update:

# %%
shares = experiment.system_shares(lambda: lab.models.cnn(8), (8, 64, 256, 1024))
for size, (rate, system) in shares.items():
    print(f"CNN, batch of {size:>4}: {rate:>7,.0f} samples per second of CPU", end=", ")
    print(f"{system:4.0%} of it in the system")
print(
    f"from 64 to 1,024: {shares[1024][0] / shares[64][0]:.2f} × the samples/s; the network above,"
)
print(f"from 64 to {sizes[-1]:,}: {per_second[sizes[-1]] / per_second[64]:.2f} ×")

# %% [markdown]
# ### All samples at once
#
# The full batch has the exact gradient, so by the second law it needs the fewest updates. What does
# it cost? By the laws fitted in part 6, for all 4,000 pictures:

# %%
for size in (64, 2048, 4000):
    needed = fitted.updates(size)
    print(
        f"batches of {size:>4}: {needed:>4.0f} updates, {needed * size / len(x):5.1f} epochs",
        end="",
    )
    print(f", {fitted.seconds(size):.3f} s")

# %% [markdown]
# ### Memory
#
# "It fails if the samples do not fit" has it backwards. What an update keeps grows with the
# batch, not with the data:

# %%
kept = {}
for size in (64, 512, 4000):
    net = lab.models.mlp(784, 64, 10)
    update = lab.classifier_update(net, torch.optim.SGD(net.parameters(), lr=0.0))
    part = (x[:size], y[:size])
    update(*part)
    kept[size] = lab.memory_of(partial(update, *part), net, *part)["activation_bytes"]
    of_data = part[0].numel() * 4
    print(f"batch of {size:>4}: {of_data / 2**20:5.2f} MiB of pictures", end=", ")
    print(f"{kept[size] / 2**20:5.2f} MiB of activations")

# %% [markdown]
# Data that do not fit into memory are a reason *for* mini-batches: one batch at a time has to.
# Where a single batch is too large, [chapter 11](11_accumulation.ipynb) cuts it.
#
# ### The best batch moves
#
# The noise scale is not a constant. Here it is along one run, each time from the gradients of 128
# samples:

# %%
moments = (0, 10, 20, 40, 80, 160)
along = experiment.noise_along(base.turned(batch_size=64), moments)
for done, noise in along.items():
    print(f"after {done:>3} updates: noise scale {noise:4.0f}")
early, end = (fmean([along[done] for done in part]) for part in ((10, 20), (80, 160)))
how = "grows" if end > 1.5 * early else "does not grow"
print(f"from early to late the noise {how}: {early:.0f} and {end:.0f}")

# %% [markdown]
# Near a minimum the mean gradient becomes small, and the noise need not. So a batch that is right
# early can be too small later. That is one reason to raise the batch during a training, and why
# another target can have another best batch. (Set `target` in the settings at the top and see.)
#
# So, about the sentences from the start, the verdict for this machine:

# %%
verdict = (
    f"batches of 2,048 make {per_second[2048] / per_second[best]:.1f} × the samples/s of {best}, "
    f"and take {late:.1f} × the seconds to the target; predicted from one run: best batch "
    f"{predicted.best:.0f}, and the size nearest to it takes "
    f"{seconds[closest] / seconds[best]:.2f} × the least; "
    f"fetching takes {fetched['DataLoader'].ratio:.2f} × a DataLoader's time"
)
lab.log_verdict("minibatch", verdict)

# %% [markdown]
# - *A technique to speed up inference:* training works by it, too, and there the size of the batch
#   decides how much is learned from each sample.
# - *Everything is computed at once:* that is the full batch. A mini-batch is a part.
# - *It fails if the samples do not fit:* only one batch has to fit.
# - *The larger the batch, the faster:* in samples per second, up to a point. In seconds to a
#   target, compare the two pictures.
#
# ## 9. Exercises
#
# Write the functions and run the cells; `check` tries each on fresh data. It says what is right
# already, shows a small case that is not, and gives a hint where it knows the mistake. After two
# different tries it offers a worked solution. Some functions are written already, with faults:
# repair them.

# %%
from torch.nn.functional import cross_entropy

from accel_lab.grading.practice import check, exercises

EPOCH, MEAN, NOISE, FETCH = exercises("minibatch")
EPOCH


# %% tags=["exercise"]
def epoch_batches(n, size, generator):
    raise NotImplementedError


check(epoch_batches)

# %%
MEAN


# %% tags=["exercise"]
def epoch_mean_loss(model, loader):
    total = 0.0
    for x, y in loader:
        total += cross_entropy(model(x), y).item()
    return total / len(loader)


check(epoch_mean_loss)

# %%
NOISE


# %% tags=["exercise"]
def noise_of_ranks(gradients, samples):
    raise NotImplementedError


check(noise_of_ranks)

# %%
FETCH


# %% tags=["exercise"]
def fetch_batches(x, y, order, size):
    raise NotImplementedError


check(fetch_batches)

# %% [markdown]
# ## 10. Take away
#
# - Two laws: an update costs a + b·B seconds, and S_min · (1 + B_crit/B) updates are needed.
# - The best batch is √(B_crit · a/b): between what the machine wants and what the data allow. The
#   optimum is flat.
# - "Most samples per second" and "trained first" are two questions. Say which one you answer.
# - Change the learning rate with the batch, or you compare learning rates.
# - Shuffle; take every sample once; weigh means by samples; fetch a batch by one call.

# %% [markdown]
# Known from elsewhere, and not measured here: how the critical batch grows during the training of
# large models, and with the task (McCandlish et al., 2018, section 3). Across many networks and
# data sets the updates bend in the same way, and the best learning rate follows no simple rule
# (Shallue et al., 2019, sections 4.1 and 4.7). Linear scaling of the rate with warm-up holds for
# ImageNet up to a batch of 8,192 (Goyal et al., 2017).

# %% [markdown]
# **What would prove this wrong?** A batch size far from √(B_crit · a/b), by a factor of 16, that
# reaches the target sooner, in every seed and with the best learning rate for each size. If you
# find one, look at the learning rates first: the second law holds for the best of them.

# %% [markdown]
# **Sources.** S. McCandlish et al., *An Empirical Model of Large-Batch Training*, 2018,
# arXiv:1812.06162, sections 2.2 and 2.3, and appendix A.1 · C. J. Shallue et al., *Measuring the
# Effects of Data Parallelism on Neural Network Training*, 2019, arXiv:1811.03600 · P. Goyal et al.,
# *Accurate, Large Minibatch SGD*, 2017, arXiv:1706.02677, section 2.
#
# **Next.** The batch is chosen, and its samples are fetched. But why should a network care whether
# its pixels run from 0 to 255 or from 0 to 1? That is [chapter 03](03_normalization.ipynb). The
# other chapters are listed on the [first page](00_start_here.ipynb).
