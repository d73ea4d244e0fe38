# ---
# jupyter:
#   kernelspec:
#     name: python3
#     display_name: Python 3
# ---

# %% [markdown]
# # 07 · Depth, width and dropout
#
# ## 1. The question
#
# How large is a network? Most people answer with the number of its weights. But the same number of
# weights can be one wide layer, or 64 thin ones. About the shape of a network you can read:
#
# > *More layers express more.*
# >
# > *Fewer neurons are faster.*
# >
# > *Dropout tames over-fitting.*
#
# And on the last one a reader asked: dropout leaves out half of the units, so why does an epoch
# take *longer* with it? This chapter keeps the number of weights fixed, changes the shape, and
# measures.

# %% jupyter={"source_hidden": true}
from functools import partial
from itertools import combinations, islice
from statistics import fmean, median

import torch
from torch.nn.functional import cross_entropy, dropout

from accel_lab import structure
from accel_lab.experiments import structure as experiment
from accel_lab.workbench import chapter as lab

torch.set_num_threads(1)  # part 8 asks what a second core does

# %% [markdown]
# The next cell holds the settings of this chapter. Change one, as in
# `knobs = {"parameters": 400_000}`, and run the notebook again: everything below follows.

# %% tags=["parameters"]
knobs = {}

# %%
base = lab.settings(experiment.Knobs, knobs)
depths = lab.along([1, 2, 4, 8, 16, 32, 64])
seeds = lab.some_seeds(3)
print(f"{base.parameters:,} weights and biases, 784 inputs, 10 outputs; layers:")
for depth in depths:
    print(f"{depth:>3} hidden, of {base.turned(depth=depth).width} units each")

# %% [markdown]
# ## 2. Predict
#
# All of these networks have the same number of weights, so an answer takes the same number of
# multiplications and additions, up to a few percent. Two guesses; skip them if you like.

# %%
guess_deep = lab.Prediction(
    "64 thin layers: how many times the seconds of an update of one wide layer?",
    low=0.1,
    high=50,
    default=1.0,
    unit="×",
)
guess_deep

# %%
guess_mask = lab.Prediction(
    "Dropout of one half, on two layers: how many times the seconds of an update without it?",
    low=0.1,
    high=10,
    default=0.7,
    unit="×",
)
guess_mask

# %% [markdown]
# ## 3. See
#
# The networks train on handwritten digits here, now. First two times are measured, for the dashed
# curve: an update of one wide layer, and what a further layer adds. That layer has four units, with
# next to nothing to add up.

# %%
cost = experiment.costs(base.batch_size, base.device)
for parameters, wide in cost.wide.items():
    print(f"{parameters:>9,} weights in one layer: {1e3 * wide:5.2f} ms an update")
print(f"each further layer adds {1e3 * cost.layer:.3f} ms, by its calls alone")

# %% [markdown]
# The dashed orange run has one wide layer. Press **Start**, then move **depth** to 64, always with
# the same number of weights. What happens to the time of an update, and what to the accuracy?
#
# Then take depth to 16, and switch **residual** on and off. Last try the two kinds of **dropout**
# at a small depth. *Cut* is refused while residual is on.

# %%
milliseconds = lab.Sweep(
    "depth",
    "update_seconds",
    "milliseconds an update",
    scale=1e3,
    predicted=experiment.predicted_seconds,
    formula="predicted",
    log=True,
)
parts = {f"{one}_bytes": f"{one}s" for one in ("weight", "gradient", "activation")}
parts |= {"optimizer_bytes": "optimizer"}

# %%
panel = lab.Panel(
    experiment.run,
    base.turned(depth=8),
    [
        milliseconds,
        lab.Curve("test_accuracy", "test accuracy, %", 100, over="updates", ends=(0, 100)),
        lab.Budget(
            parts, "memory of an update, MiB", scale=1 / 2**20, predicted=experiment.predicted_bytes
        ),
        lab.Curve("gap", "test loss − training loss", over="updates"),
    ],
    controls=["depth", "parameters", "residual", "dropout"],
    baselines={"one wide layer": {"depth": 1, "residual": False, "dropout": "none"}},
    headline=lab.Headline("update_seconds", "time of an update"),
    tour=[base.turned(**changes) for changes in experiment.TOUR],
    seconds=1.1,
)
panel

# %% [markdown]
# What to look for:
#
# - The weights stay the same, and so do gradients and optimizer. The activations grow with depth.
# - The dashed curve was there before the dots: one wide layer, plus the calls of each further one.
#   It foresees the time without dropout, and the mark at the bars the memory without it.
# - Without residual connections, very deep networks may stay at 10 %, which is chance. With them,
#   16 layers learn, but 64 may still not; part 6 looks for the reason.
# - *mask* and *cut* leave out the same share of units. Which one takes less time? Is it the same
#   one with 1,000,000 weights?
#
# ## 4. Build
#
# ### The width
#
# With *d* hidden layers of width *w* there are $d - 1$ square matrices, a first and a last layer,
# and a bias for each unit:
#
# $$P = (d - 1)\,w^2 + (in + out + d)\,w + out$$
#
# Solve for *w* and round down:

# %%
lab.show_source(structure.width_for, docstring=False)

# %% [markdown]
# The network itself is plain. `drop` is what dropout does to the units of a hidden layer; without
# it, nothing. And `count` says what a network costs on paper: an answer multiplies each weight once
# for each sample, and between forward and backward every unit of every sample has to be kept.

# %%
lab.show_source(structure.Net.forward, structure.count, docstring=False)

# %%
print("layers   width   weights    answer, MFLOP   update, MFLOP   activations, KiB")
for depth in depths:
    turned = base.turned(depth=depth)
    paper = structure.count(experiment.net_of(turned), base.batch_size)
    print(f"{depth:>6} {turned.width:>7} {paper.parameters:>9,}", end="")
    print(f" {paper.answer_flops / 1e6:>16.1f} {paper.update_flops / 1e6:>15.1f}", end="")
    print(f" {paper.activation_bytes / 2**10:>18.0f}")

# %% [markdown]
# The sums of an answer are nearly the same. Those of an update grow, because the first layer needs
# no gradient for the pictures, and a thin network has fewer of its weights in that layer. The
# activations grow with every line. Once the square matrices have most of the weights, *w* falls
# like $1/\sqrt{d}$ and the activations grow like $\sqrt{d}$.
#
# ### Dropout by a mask
#
# In training each unit of each sample is multiplied by 0 with probability *p*, and otherwise by a
# number that keeps the mean as it was. Which? One line is left out. Yours is compared with
# PyTorch's dropout, on the same random numbers, with *p* = 0.2:


# %%
def like_dropout(masked, p=0.2):
    made, hidden = {}, torch.ones(50, 20, dtype=torch.float64)
    for name, drop in {"torch": dropout, "yours": masked}.items():
        torch.manual_seed(0)
        made[name] = [{"h": drop(hidden, p)}]
    return lab.prove(made, steps=1)


# %% jupyter={"source_hidden": true}
lab.MissingLine(
    structure.masked_dropout,
    {
        "return h * mask / (1 - p)": (
            "A unit stays with probability 1 − p. Dividing by that keeps the mean."
        ),
        "return h * mask": (
            "1 − p of the mean is left: at inference the next layer sees more than in training."
        ),
        "return h * mask / p": (
            "p is the share that is dropped: what stays is made 5 times as large, not 1.25 times."
        ),
        "return h * mask * (1 - p)": (
            "(1 − p)² of the mean is left. A factor 1 − p is for inference, if training has none."
        ),
    },
    like_dropout,
)

# %% [markdown]
# All units were computed before; the mask is one more piece of work. To *save* work, a unit has to
# be left out before it is computed. With another pattern for every sample, one product of matrices
# cannot do that.
#
# ### Dropout by cutting
#
# But if one pattern serves the whole batch, the units that are left out can be cut out: the kept
# rows of a weight matrix are the kept units of this layer, and the kept columns are those of the
# layer before. Half of the rows and half of the columns are a quarter of the matrix.

# %%
lab.show_source(structure.cut_forward, structure.cut_layer, docstring=False)

# %% [markdown]
# Press **Play**. On the left is the weight matrix between two small hidden layers, and dark is what
# this batch multiplies. On the right: how often each weight has been trained so far, the darker the
# more often.

# %%
torch.manual_seed(base.seed)
tiny = structure.Net(784, 10, 8, 10)
taken_part = torch.zeros(16, 8, 10)
for part in taken_part:
    columns, rows = structure.draw_kept(tiny, 0.5)
    part[rows[:, None], columns] = 1


# %% jupyter={"source_hidden": true}
def cut_out(batch=1):
    picture, (left, right) = lab.figure.axes(8.4, 3, columns=2)
    now, trained = taken_part[batch - 1], taken_part[:batch].sum(0)
    for axes, shown, most in ((left, now, 1.4), (right, trained, 10)):
        axes.pcolormesh(shown, cmap="Blues", vmin=0, vmax=most, edgecolors="#cccccc")
        axes.set(xticks=[], yticks=[], ylim=(8, 0), xlabel="units before", ylabel="units after")
        axes.grid(False)
    left.set_title(f"batch {batch}: {int(now.sum())} of 80 weights", fontsize=9)
    right.set_title(f"trained so far: {int((trained > 0).sum())} of 80 weights", fontsize=9)
    return picture


lab.Sliders(cut_out, batch=range(1, len(taken_part) + 1))

# %% [markdown]
# Each batch trains another small network, and all of them share their weights. That is the idea of
# dropout. Srivastava et al. (2014) draw a network for each sample, not for each batch. Cutting was
# proposed by Graham et al. in 2015.
#
# *Half-way. This is a good place to stop and come back to: run all cells above, and go on here.*
#
# ## 5. Prove
#
# First the counts: PyTorch counts the sums of its own products, and the workbench's meter counts
# what autograd keeps.

# %% tags=["nbval-check-output"]
from torch.utils.flop_counter import FlopCounterMode

x, y = next(lab.datasets.mnist5k().batches(32))
for depth, residual in ((1, False), (5, False), (5, True)):
    net = structure.Net(784, *[40] * depth, 10, residual=residual)
    paper = structure.count(net, len(x))
    with FlopCounterMode(display=False) as flops, lab.ActivationMeter(net, x, y) as meter:
        cross_entropy(net(x), y).backward()
    off = meter.peak - paper.activation_bytes
    same = flops.get_total_flops() == paper.update_flops
    print(f"hidden layers {depth}, residual {residual}: sums by PyTorch = by the formula: {same}")
    print(f"  activations by the meter {meter.peak:,} bytes, {off} more than by the formula")

# %% [markdown]
# (The 4 bytes are one number that the loss keeps, the sum of the samples' weights.)
#
# Second: is cutting the same training as masking? The truth uses a mask that is the same for all
# samples of a batch; ours cuts. Ten updates in float64, with the same patterns:


# %%
def by_mask(model, optimizer, x, y):
    kept = structure.draw_kept(model, 0.5)
    masks = iter([structure.as_mask(one, 24, x.dtype) for one in kept])
    experiment.one_update(partial(model, drop=lambda h: h * next(masks)), optimizer, x, y)


def by_cut(model, optimizer, x, y):
    kept = structure.draw_kept(model, 0.5)
    experiment.one_update(lambda x: structure.cut_forward(model, x, kept), optimizer, x, y)


# %% tags=["nbval-check-output"]
fresh = structure.Net(784, 24, 24, 10).double()
batches = [(x.double(), y) for x, y in islice(lab.datasets.mnist5k().batches(32), 10)]
states = {}
for name, way in (("mask", by_mask), ("cut", by_cut)):
    torch.manual_seed(1)  # the same patterns
    adam = partial(lambda model: torch.optim.Adam(model.parameters(), lr=1e-3))
    states[name] = list(lab.trajectory(fresh, adam, way, batches))
proof = lab.prove(states)
assert proof.holds
print(proof)

# %% [markdown]
# Third: the mask is that of PyTorch's own dropout, if both draw the same random numbers. And the
# scale is right: behind a linear layer, the mean over *all* patterns is the layer without dropout.
# Here are all 10 ways to keep two of five units:

# %% tags=["nbval-check-output"]
h = torch.rand(6, 5, dtype=torch.float64)
torch.manual_seed(2)
ours = structure.masked_dropout(h, 0.3)
torch.manual_seed(2)
print("mask = PyTorch's:", torch.allclose(ours, dropout(h, 0.3)))

linear = torch.nn.Linear(5, 3, dtype=torch.float64)
every = [torch.tensor(kept) for kept in combinations(range(5), 2)]
outputs = [structure.cut_layer(linear, h[:, kept] * 5 / 2, None, kept) for kept in every]
print(
    "mean over all",
    len(every),
    "patterns = the layer:",
    torch.allclose(sum(outputs) / 10, linear(h)),
)

# %% [markdown]
# ## 6. Measure
#
# ### The same weights, deep or wide
#
# The networks take turns, in a random order, and so do networks of layers with four units. *By the
# sums* is the time that the wide network's speed would give. *By the calls* is the law of part 3:
# the time of one wide layer, and a fixed price for each further one.

# %%
taken = experiment.depths_in_turn(base, depths)
ms = {depth: 1e3 * median(taken[depth]) for depth in depths}
layer = 1e3 * experiment.layer_seconds(taken)
paper = {
    depth: structure.count(experiment.net_of(base.turned(depth=depth)), base.batch_size)
    for depth in depths
}
sums = {depth: paper[depth].update_flops / paper[1].update_flops for depth in depths}
by_sums = {depth: ms[1] * sums[depth] for depth in depths}
by_calls = {depth: ms[1] + (depth - 1) * layer for depth in depths}
print("layers   ms an update   by the sums   by the calls")
for depth in depths:
    print(f"{depth:>6} {ms[depth]:>14.2f} {by_sums[depth]:>13.2f} {by_calls[depth]:>14.2f}")

# %% [markdown]
# Where does the time go? A layer is called, computes, and hands on; the next one cannot begin
# before. Each call costs the same, whether 4 units or 400 wait behind it.

# %%
end = depths[-1]
deep = lab.compared(taken, end, 1, names=(f"{end} layers", "one layer"))
kept = paper[end].activation_bytes / paper[1].activation_bytes
print(f"{end} layers: {paper[end].parameters / paper[1].parameters:.2f} × the weights,", end=" ")
print(f"{sums[end]:.2f} × the sums of an update, {kept:.1f} × the activations,")
print(
    f"{deep.ratio:.1f} × the time, of which {1 - ms[1] / by_calls[end]:.0%} are calls by the law;"
)
print(f"measured is {ms[end] / by_calls[end]:.2f} × what the law says")
guess_deep.against(deep.ratio)

# %% [markdown]
# And what do they learn? After 150 updates, with and without residual connections:

# %%
of_depth = [*lab.along([1, 4, 16, 32])]
learned = {
    (depth, residual): experiment.outcomes(
        base.turned(depth=depth, residual=residual), seeds, updates=150
    )
    for depth in of_depth
    for residual in (False, True)
    if depth > 1 or not residual
}
for (depth, residual), runs in learned.items():
    told = lab.figure.tell_over_seeds([run.accuracy for run in runs], "%")
    print(f"{depth:>3} layers{', residual' * residual:<12} {told}")

# %% jupyter={"source_hidden": true} tags=["hero"]
picture, (left, right) = lab.figure.axes(10, 3.6, columns=2)
for axes, ticks in ((left, depths), (right, of_depth)):
    lab.figure.powers_of_two(axes, "hidden layers, the same number of weights", ticks)
left.set(ylim=(0, 1.1 * max(*ms.values(), *by_calls.values())), ylabel="ms an update")
left.set_title("How long does an update take?", loc="left", fontsize=10)
left.plot(depths, list(ms.values()), "-o", color=lab.figure.BLUE, label="measured")
left.plot(depths, list(by_calls.values()), **lab.figure.LIMIT, label="by the calls")
left.plot(depths, list(by_sums.values()), ":", color=lab.figure.ORANGE, label="by the sums")
left.legend(frameon=False, loc="upper left", fontsize=8)
for residual, color, style in ((False, "BLUE", "-o"), (True, "GREEN", "--s")):
    one = {d: [r.accuracy for r in runs] for (d, res), runs in learned.items() if res == residual}
    name, ink = ("plain", "residual")[residual], getattr(lab.figure, color)
    lab.figure.draw_over_seeds(right, one, label=name, color=ink, style=style)
right.set(ylim=(0, 105), ylabel="test accuracy, %")
right.set_title("And what has it learned?", loc="left", fontsize=10)
right.axhline(10, **lab.figure.LIMIT)
right.annotate("chance", (1, 12), fontsize=8)
right.legend(frameon=False, loc="center left", fontsize=8)
picture

# %% [markdown]
# ### What residual connections do not do
#
# They carry the signal past every layer. But each layer adds to what went in, and after ReLU
# nothing that is added is negative. Here are new networks, before any training: how large are the
# units of the last hidden layer, compared with those of the first?

# %%
print("layers        plain     residual")
for depth in lab.along([4, 16, 32, 64]):
    grown = [experiment.growth(base.turned(depth=depth, residual=one)) for one in (False, True)]
    print(f"{depth:>6} {grown[0]:>12,.2g} {grown[1]:>12,.0f}")

# %% [markdown]
# With residual connections the units grow with every layer. At 64 layers the first losses are huge,
# and 150 updates may not be enough to recover. So deep residual networks normalize, too, as in
# [chapter 03](03_normalization.ipynb).
#
# ### Answers
#
# A trained network answers, often one sample at a time. Then there is hardly any arithmetic to hide
# the calls behind:

# %%
answers = {}
for samples in (1, 64):
    seconds = experiment.answer_seconds(depths, base, samples)
    answers[samples] = seconds[end] / seconds[1]
    told = ", ".join(f"{depth}: {1e3 * one:.3f}" for depth, one in seconds.items())
    print(f"{samples:>2} at once, ms by depth: {told}")
    print(f"   {end} layers take {answers[samples]:.1f} × the time of one")

# %% [markdown]
# ### Pick one and defend it
#
# Time across, accuracy up. A point is a good choice if no other one is both faster and more
# accurate. The bars reach over the seeds.

# %% jupyter={"source_hidden": true}
picture, (axes,) = lab.figure.axes(7.5, 3.4)
for (depth, residual), runs in learned.items():
    across, ups = 1e3 * fmean(run.seconds for run in runs), [run.accuracy for run in runs]
    ends = [[fmean(ups) - min(ups)], [max(ups) - fmean(ups)]]
    ink, mark = (lab.figure.GREEN, "s") if residual else (lab.figure.BLUE, "o")
    axes.errorbar(across, fmean(ups), ends, fmt=mark, color=ink, capsize=3)
    side = {"xytext": (6, 6 if residual else -12), "textcoords": "offset points"}
    axes.annotate(f"{depth}", (across, fmean(ups)), fontsize=8, color=ink, **side)
across = [1e3 * fmean(run.seconds for run in runs) for runs in learned.values()]
axes.set(ylim=(0, 105), xlim=(0, 1.15 * max(across)))
axes.set(xlabel="ms an update", ylabel="test accuracy after 150 updates, %")
axes.set_title("numbers: hidden layers; blue plain, green residual", loc="left", fontsize=10)
picture

# %% [markdown]
# ### The price of dropout
#
# Two hidden layers, half of the units left out: a million weights with batches of 256, and 100,000
# with batches of 16. *Half the width* is a network that has only the kept units: no dropout by
# cutting can be faster than that.

# %%
shape = base.turned(depth=2, residual=False)
large = shape.turned(parameters=1_000_000, batch_size=256)
small = shape.turned(parameters=100_000, batch_size=16)
pairs = (("mask", "none"), ("cut", "none"), ("cut", "mask"), ("cut", "half the width"))
prices = {pair: experiment.price(large, *pair) for pair in pairs}
copied = experiment.price(small, "cut", "none")
print(f"width {large.width}, batch {large.batch_size}:", *prices.values(), sep="\n  ")
print(f"width {small.width}, batch {small.batch_size}:", copied, sep="\n  ")
guess_mask.against(prices["mask", "none"].ratio)

# %% [markdown]
# ### Does the cut regularize as well?
#
# One pattern for the whole batch is less random than one for each sample. So: 500 training
# pictures, which a network of 400,000 weights learns by heart, and each kind of dropout. Beside it,
# the same with all 4,000. *Better test* counts the seeds whose test loss is below that of the run
# without dropout, both after 150 updates. Dropout learns more slowly, so a much earlier stop would
# favour the run without it.

# %%
few = base.turned(depth=2, parameters=400_000, samples=500, residual=False)
kinds = ("none", "mask", "cut")
tamed = {
    (samples, how): experiment.outcomes(few.turned(samples=samples, dropout=how), some, 150)
    for samples, some, ways in ((500, seeds, kinds), (4000, seeds[:2], lab.along(kinds)))
    for how in ways
}

# %%
print("pictures  dropout  training loss  test loss    gap  better test   test accuracy")
for (samples, how), runs in tamed.items():
    known, test, gap = (
        fmean(getattr(r, n) for r in runs) for n in ("train_loss", "test_loss", "gap")
    )
    plain = tamed[samples, "none"]
    better = sum(a.test_loss < b.test_loss for a, b in zip(runs, plain))
    told = lab.figure.tell_over_seeds([run.accuracy for run in runs], "%")
    print(f"{samples:>8}  {how:<7} {known:>14.3f} {test:>10.3f} {gap:>6.3f}", end="")
    print(f"       {better} of {len(runs)}   {told}")

# %% [markdown]
# ## 7. Break it
#
# Five famous mistakes, one click each. Press **Start**, then choose one **mistake** after the
# other. Four of them are about dropout by a mask; the last one is about the start of the training.

# %%
broken = few.turned(parameters=base.parameters, dropout="mask")
mistakes = [*experiment.DROPOUT_MISTAKES, "weights N(0, 1)"]
break_it = lab.Panel(
    experiment.run,
    broken,
    [
        lab.Curve("loss", "loss of the batch", over="updates", log=(1e-3, 1e4)),
        lab.Curve("test_loss", "test loss", over="updates", log=(1e-1, 1e3)),
    ],
    controls=["mistake", "depth"],
    baselines={"no mistake": {"mistake": "none"}},
    headline=lab.Headline("test_accuracy", "test accuracy", points=True),
    tour=[broken.turned(mistake=mistake) for mistake in mistakes],
    seconds=1.0,
)
break_it

# %% [markdown]
# Write down which of them the two losses show, and why, then look.
#
# <details><summary>What each of them does</summary>
#
# - **left on.** Dropout works in use, too: asked twice, the network gives two answers.
# - **not scaled.** Without $1/(1-p)$ each layer's sums are larger in use than in training. The most
#   probable class may stay the same, but the probabilities are wrong.
# - **on the logits.** Half of the time the right class has a logit of 0, so the loss of the batch
#   cannot come down to that of the others.
# - **one pattern.** All batches leave out the same units: a smaller network learns. The other units
#   stay as they began, and answer in use.
# - **weights N(0, 1).** With 784 inputs such weights make sums of the order of 10, and each further
#   layer multiplies. The first losses are huge.
#
# </details>
#
# Here is the code of three of them. Then all, with some seeds, 150 updates each.

# %%
lab.show_source(
    experiment.not_scaled, experiment.on_the_logits, experiment.one_pattern, docstring=False
)

# %%
print(f"{'':<16} loss of the batch   test loss   test accuracy")
tests = {}
for mistake in ("none", *mistakes):
    turned = [broken.turned(mistake=mistake, seed=base.seed + seed) for seed in seeds[:2]]
    runs = [[step.metrics for step in islice(experiment.run(one), 150)] for one in turned]
    of_batch = fmean(step["loss"] for run in runs for step in run[-10:])
    tests[mistake] = fmean(run[-1]["test_loss"] for run in runs)
    accuracy = fmean(run[-1]["test_accuracy"] for run in runs)
    print(f"{mistake:<16} {of_batch:>17.3f} {tests[mistake]:>11.3f} {accuracy:>15.1%}")
unseen = [mistake for mistake in mistakes if tests[mistake] < 1.1 * tests["none"]]
print("not to be seen in the test loss:", ", ".join(unseen) or "none of them")

# %% [markdown]
# A mistake that the test loss does not show is still one: something else is trained than was meant.
#
# ### NaN, and bad input
#
# One unit is broken and holds NaN. Dropout leaves it out. What comes out? (0 · NaN is NaN; what is
# cut out is not multiplied at all.) Below, settings that cannot work are refused in one line.

# %% tags=["nbval-check-output"]
net = structure.Net(784, 8, 10)
with torch.no_grad():
    net.layers[0].weight[0] = float("nan")
without_it = torch.arange(1, 8)
masked = net(x, lambda h: h * structure.as_mask(without_it, 8))
cut = structure.cut_forward(net, x, [without_it])
print("mask: finite answers", bool(masked.isfinite().all()))
print("cut:  finite answers", bool(cut.isfinite().all()))

# %% tags=["nbval-check-output"]
for wrong in (
    lambda: structure.width_for(0, 100_000, 784, 10),
    lambda: structure.width_for(8, 500, 784, 10),
    lambda: structure.Net(784, 20, 30, 10, residual=True),
    lambda: structure.masked_dropout(x, 1.0),
    lambda: experiment.Knobs(dropout="cut", residual=True),
):
    try:
        wrong()
    except ValueError as refusal:
        print(refusal)

# %% [markdown]
# ## 8. When it does not help
#
# ### Depth without ReLU
#
# Two linear layers with nothing between them are one linear layer: depth that expresses nothing.
# The fourth exercise finds that layer.
#
# ### Cutting small matrices
#
# Cutting copies weights. With a small network and a small batch, the copy can cost more than the
# sums that it saves: compare the last line of *The price of dropout* with those above it.
#
# ### Enough data
#
# Where training and test loss are close already, there is little to tame: look at the lines with
# 4,000 pictures in the table above. Dropout costs the same time there.
#
# ### A noise that the batch shares
#
# With a mask for each sample, the noise of dropout averages out over the batch. With one pattern
# for all, it does not: a larger batch does not calm it. Adam trained all runs above. Here is SGD
# with a momentum of 0.9, at a high rate and at a lower one, 100 updates each. A rate that is right
# for the others can be too high for the cut:

# %%
for rate in (0.1, 0.02):
    for how in ("none", "mask", "cut"):
        turned = [broken.turned(dropout=how, seed=base.seed + seed) for seed in seeds[:2]]
        runs = [experiment.with_momentum(one, rate) for one in turned]
        told = " ".join(f"{100 * run['test_accuracy']:3.0f} %" for run in runs)
        print(f"rate {rate:<5} {how:<5} test accuracy {told}")

# %% [markdown]
# ### A second core
#
# The units of a layer can be shared out among cores; the layers cannot, they wait for one another.
# So width should gain more from a second core than depth. Here is an update of a million weights,
# with batches of 256, on one core against two:

# %%
cores = {}
for depth in (1, 32) if lab.usable_cores() > 1 else ():
    turned = base.turned(depth=depth, parameters=1_000_000, batch_size=256)
    cores[depth] = experiment.second_core(turned)
    print(f"{depth:>2} layers:", cores[depth])
if not cores:
    print("this machine has one core that we may use, so there is nothing to compare")
elif cores[1].interval[0] > max(1, cores[32].interval[1]):
    print("the wide network surely gains more from the second core")
else:
    print("no sure gain of the wide network here: another program may hold the second core")

# %% [markdown]
# So, about the sentences from the start, the verdict for this machine:

# %%
means = {shape: fmean(run.accuracy for run in runs) for shape, runs in learned.items()}
best = max(means, key=means.get)
gain, name = means[best] - means[1, False], f"{best[0]} layers{', residual' * best[1]}"
more = f"the best on average, {name}: {gain:.1f} points more than one layer"
print(more if gain > 1 else "no depth gains more than a point over one layer, on average")
verdict = (
    f"{base.parameters:,} weights in {end} layers: {deep.ratio:.1f} × the time of an update "
    f"of one wide layer, {answers[1]:.1f} × that of an answer, {kept:.1f} × the activations; "
    f"accuracy of {of_depth[-1]} layers {means[of_depth[-1], False]:.0f} %, with residual "
    f"connections {means[of_depth[-1], True]:.0f} %, of one {means[1, False]:.0f} %; dropout of "
    f"one half takes {prices['mask', 'none'].ratio:.2f} × the time by a mask, "
    f"{prices['cut', 'none'].ratio:.2f} × by cutting"
)
lab.log_verdict("structure", verdict)

# %% [markdown]
# - *More layers express more:* they can. Whether they learn it is another question, and they have a
#   price in time and memory.
# - *Fewer neurons are faster:* compare the widths in the first table with the times. What counts is
#   how many layers wait for one another, and how many sums there are.
# - *Dropout tames over-fitting:* compare the test losses where data are few. A mask adds work. What
#   is cut out is not computed, which can save time if matrices and batches are large.
#
# ## 9. Exercises
#
# Write the functions and run the cells; `check` tries each on fresh data. It says what is right
# already, shows a small case that is not, and gives a hint where it knows the mistake. After two
# different tries it offers a worked solution. Some functions are written already, with faults:
# repair them.

# %%
from accel_lab.grading.practice import check, exercises

WIDTH, LAYER, CUT, TWO = exercises("structure")
WIDTH


# %% tags=["exercise"]
def width_within(depth, budget, batch, inputs, outputs):
    raise NotImplementedError


check(width_within)

# %%
LAYER


# %% tags=["exercise"]
def drop_units(h, p, training):
    mask = torch.rand(h.shape[1]) >= p
    return h * mask


check(drop_units)

# %%
CUT


# %% tags=["exercise"]
def cut_linear(x, weight, bias, rows, columns):
    raise NotImplementedError


check(cut_linear)

# %%
TWO


# %% tags=["exercise"]
def collapse(w1, b1, w2, b2):
    raise NotImplementedError


check(collapse)

# %% [markdown]
# ## 10. Take away
#
# - The number of weights, or of sums, is not a time. Layers wait for one another; units do not.
# - With the same number of weights, a deeper network keeps more activations.
# - Make a network as deep as the task needs, with residual connections and, if it is very deep,
#   normalization. Then make it wide.
# - A mask is additional work. A cut leaves work out before it is computed; it can save time if the
#   matrices and the batch are large, and takes more if they are small.
# - Scale by 1/(1 − p) in training, and switch dropout off in use.

# %% [markdown]
# Known from elsewhere, and not measured here: wide residual networks reach the accuracy of thin
# ones that are far deeper, and train several times faster (Zagoruyko and Komodakis, 2016, section
# 3). On large tasks depth does pay, once residual connections let it learn (He et al., 2015,
# section 4). Dropout can be aimed at weights that are to be pruned later (A. N. Gomez et al., 2019,
# arXiv:1905.13678).
#
# **What would prove this wrong?** A network of 64 layers that takes no longer for an update than
# one wide layer with as many weights, on one core. If you find one, look for layers that were fused
# into one call, or for a batch so large that the calls vanish beside the sums.

# %% [markdown]
# **Sources.** S. Zagoruyko, N. Komodakis, *Wide Residual Networks*, 2016, arXiv:1605.07146 · K. He
# et al., *Deep Residual Learning for Image Recognition*, 2015, arXiv:1512.03385 · N. Srivastava et
# al., *Dropout*, Journal of Machine Learning Research 15, 2014 · B. Graham, J. Reizenstein, L.
# Robinson, *Efficient batchwise dropout training using submatrices*, 2015, arXiv:1502.02478.
#
# **Next.** The network has its shape. What if its input is a sentence, and each has another length?
# That is [chapter 08](08_recurrent.ipynb). The other chapters are listed on the
# [first page](00_start_here.ipynb).
