# ---
# jupyter:
#   kernelspec:
#     name: python3
#     display_name: Python 3
# ---

# %% [markdown]
# # 12 · Gradient clipping
#
# ## 1. The question
#
# Imagine a training run on pictures. The pixels are divided by 255 when a file is read. One file
# was forgotten, so one batch in 300 comes with pixels from 0 to 255 instead of 0 to 1. No error is
# raised.
#
# What does one bad batch do to a training run? And what does *gradient clipping*, one line between
# `backward()` and `step()`, do about it? You can read:
#
# > *Gradient clipping limits the largest and the smallest value of the gradient.*
# >
# > *It prevents exploding gradients, and it speeds up training.*
#
# Beside the first sentence there often stands a line of code: `clipnorm=1.0`. That is another rule.
# You will find out what each rule does to the gradient, and which of the promises hold.

# %% jupyter={"source_hidden": true}
import warnings
from itertools import islice
from statistics import fmean

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, get_total_norm

from accel_lab import clipping
from accel_lab.experiments import clipping as experiment
from accel_lab.workbench import chapter as lab

torch.set_num_threads(1)  # so small a network gains nothing from a second thread

# %% [markdown]
# The next cell holds the settings of this chapter. Change one, as in `knobs = {"momentum": 0.0}`,
# and run the notebook again: everything below follows.

# %% tags=["parameters"]
knobs = {}

# %%
base = lab.settings(experiment.Knobs, knobs)
mnist = lab.datasets.mnist5k()
chance = (experiment.CHANCE, "chance, ln 10")
print(f"{len(mnist.train_x):,} training pictures, pixels 0 to {mnist.train_x.max():.0f}")
print(f"update {base.spike_at}: a batch with pixels 0 to {base.spike:g}")

# %% [markdown]
# ## 2. Predict
#
# A small network learns handwritten digits, with SGD and momentum. After 100 good batches comes the
# bad one, then only good ones. Compare the loss on good batches, five to fifteen updates after the
# bad one, with the loss before it. Two guesses; skip them if you like.

# %%
guess_plain = lab.Prediction(
    "Without clipping: how many times the loss before the bad batch is the loss after it?",
    low=0.1,
    high=100,
    default=1.5,
    unit="×",
)
guess_plain

# %%
guess_clipped = lab.Prediction(
    "With the norm of the gradient limited to 1: how many times the loss before it?",
    low=0.1,
    high=100,
    default=1.2,
    unit="×",
)
guess_clipped

# %% [markdown]
# ## 3. See
#
# The dashed orange run has no clipping. Press **Start**: yours limits the global norm. Then choose
# another **rule**, and move the **limit**. A limit of 1 means little to the rule *value*: look for
# one that clips.
#
# Last, take the rule `none` and lower **spike**, the factor of the bad batch, until the run
# survives. Press **Stop** soon after the peak: a long run squeezes it to the left.

# %%
norm = lab.Curve(
    "norm",
    "gradient norm before clipping",
    over="updates",
    log=(1e-3, 1e3),
    limit=(base.limit, f"{base.limit:g}, the limit to begin with"),
    summary="max",
)

# %%
share_clipped = lab.Sweep(
    "limit",
    "clipped",
    "updates clipped, %",
    scale=100,
    predicted=experiment.predicted_share_clipped,
    formula="predicted",
    summary="mean",
)

# %%
panel = lab.Panel(
    experiment.run,
    base.turned(watch=True),
    [
        lab.Curve("loss", "loss", over="updates", log=(1e-3, 1e2), limit=chance),
        norm,
        lab.Curve("angle", "gradient turned by, degrees", over="updates", ends=(0, 90)),
        share_clipped,
    ],
    controls=["rule", "limit", "learning_rate", "spike"],
    baselines={"no clipping": {"rule": "none"}},
    headline=lab.Headline("test_accuracy", "test accuracy", points=True),
    tour=[base.turned(watch=True, rule="value", limit=0.01), base.turned(watch=True)],
)
panel

# %% [markdown]
# What to look for:
#
# - At the bad batch the norm of the gradient leaps, with every rule: it is measured before
#   clipping.
# - Without clipping the loss goes to chance and stays there, although all later batches are good.
# - Each rule survives, if its limit is low enough to clip. So survival does not tell them apart.
# - The angle does. The global norm stays at 0°: it shortens the gradient and does not turn it.
# - At a limit of 1 the global norm clips many *good* batches, too. The dots say how many; the line
#   predicts it for 150 updates, from the norms of a run without clipping and without a bad batch.
#   In a longer run good gradients become shorter, and the dot sinks below the line.

# %% [markdown]
# ### Why does the run not recover?
#
# Record the hidden units. After each update, 500 test pictures go through the network, and each
# unit shows the share of them that excites it: dark for all, white for none. A unit behind a ReLU
# that no picture excites has gradient 0. It cannot learn any more: it is **dead**.

# %%
until = base.spike_at + 24
units = {
    "no clipping": experiment.units_over_time(base.turned(rule="none"), until),
    "global norm": experiment.units_over_time(base.turned(rule="global norm"), until),
}


# %% jupyter={"source_hidden": true} tags=["hero"]
def hidden_units(update=base.spike_at + 20):
    picture, row = lab.figure.axes(8, 4.2, columns=2)
    for axes, (name, taken) in zip(row, units.items()):
        excited = taken[update]
        axes.pcolormesh(excited.view(-1, 16), cmap="Blues", vmin=0, vmax=1, edgecolors="#dddddd")
        axes.set(xticks=[], yticks=[4, 12], yticklabels=["layer 1", "layer 2"], ylim=(16, 0))
        axes.axhline(8, color=lab.figure.ORANGE)
        axes.grid(False)
        alive = int((excited > 0).sum())
        axes.set_title(f"{name}: {alive} of {len(excited)} alive after update {update}", fontsize=9)
    return picture


lab.Sliders(hidden_units, update=range(max(0, base.spike_at - 4), until))

# %% [markdown]
# Press **Play**. One update moves the weights so far that most units' sums are negative for every
# picture, or nearly every one. Momentum keeps moving them the same way for some ten updates. In
# the end little more is left than the bias of the last layer: it gives every picture the same ten
# probabilities.

# %%
for name, taken in units.items():
    before, after = (float((taken[at] > 0).double().mean()) for at in (base.spike_at - 1, -1))
    print(f"{name:<12} units alive: {before:4.0%} before, {after:4.0%} after some 20 updates")

# %% [markdown]
# ## 4. Build
#
# The plain update, and the clipped one. Two lines differ:

# %%
lab.show_source(clipping.plain_update, docstring=False)

# %%
lab.show_source(clipping.clipped_update, docstring=False)

# %% [markdown]
# `gradients_of` collects the gradients of all parameters that have one. A *rule* changes them in
# place and returns their norm before.
#
# ### Three rules
#
# A gradient consists of tensors, and tensors consist of numbers. So there are three things to
# limit. Here are two tensors, of norm 5 and 12:

# %% tags=["nbval-check-output"]
start = [torch.tensor([3.0, 4.0]), torch.tensor([12.0])]
for name, rule in experiment.RULES.items():
    parts = [gradient.clone() for gradient in start]
    norm_before = rule(parts, 1.0)
    numbers = torch.cat(parts)
    degrees = experiment.angle(start, parts)
    shown = " ".join(f"{number:6.3f}" for number in numbers)
    norms = f"norm {norm_before:.0f} → {numbers.norm():.3f}"
    print(f"{name:<12}{shown}   {norms}, turned by {degrees:2.0f}°")

# %% [markdown]
# - **value** limits each number to −1…1. The large ones come down to the small ones.
# - **each norm** limits the norm of each tensor by itself. Keras calls this `clipnorm`.
# - **global norm** multiplies everything by one factor. Only this one keeps the direction.
#
# The norm of the whole is 13: $\sqrt{5^2 + 12^2}$, not 5 + 12.
#
# Move the **limit**. The grey arrow is the gradient before clipping; here each of its two numbers
# is a tensor by itself, so *value* and *each norm* do the same.


# %% jupyter={"source_hidden": true}
def arrows(limit=2.0):
    picture, (axes,) = lab.figure.axes(6, 3.2)
    gradient, told = [torch.tensor([5.0]), torch.tensor([1.5])], []
    rules = {"before": experiment.unclipped, **experiment.RULES}
    for name, color in (("before", "GREY"), ("value", "ORANGE"), ("global norm", "BLUE")):
        clipped = [part.clone() for part in gradient]
        rules[name](clipped, limit)
        style = {"arrowstyle": "->", "color": getattr(lab.figure, color), "lw": 2}
        axes.annotate("", tuple(map(float, clipped)), (0, 0), arrowprops=style)
        told.append(f"{color.lower()}, {name}: {experiment.angle(gradient, clipped):.0f}°")
    axes.set(xlim=(0, 5.5), ylim=(0, 2.2), xlabel="first number", ylabel="second number")
    axes.set_title(f"limit {limit:g} · {' · '.join(told[1:])}", fontsize=9)
    return picture


lab.Sliders(arrows, limit=(0.5, 5.5, 0.5))

# %% [markdown]
# This is the code of the first two, and of the third as the formula has it:

# %%
lab.show_source(clipping.clip_value_, clipping.clip_each_norm_, docstring=False)

# %%
lab.show_source(clipping.naive_clip_global_norm_, docstring=False)

# %% [markdown]
# And the global norm as a library does it. PyTorch computes all norms in one call, which saves the
# way through Python for each tensor. On a CPU the gradients are written only if they change. On a
# GPU the program would have to wait for the norm before it can decide, so it multiplies by 1.

# %%
lab.show_source(clipping.clip_global_norm_, docstring=False)

# %% [markdown]
# The norm itself, with one line left out. It has an **order**: 2 is the length, order 1 adds up all
# absolute values, and order ∞ takes the largest of them. Yours is compared with PyTorch's in all
# three, on three gradients of different shapes:


# %%
def like_get_total_norm(global_norm):
    generator = torch.Generator().manual_seed(0)
    shapes = (3, 4), (5,), (2, 2, 2)
    three = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    orders = {"order 1": 1, "order 2": 2, "order ∞": torch.inf}
    torchs = {name: get_total_norm(three, order) for name, order in orders.items()}
    yours = {name: global_norm(three, order) for name, order in orders.items()}
    return lab.prove({"torch": [torchs], "yours": [yours]}, steps=1)


# %% jupyter={"source_hidden": true}
lab.MissingLine(
    clipping.global_norm,
    {
        "return torch.linalg.vector_norm(torch.stack(norms), order)": (
            "The norm of the norms. For order 2 it is the root of the sum of all squares."
        ),
        "return torch.stack(norms).square().sum().sqrt()": (
            "The root of the sum of squares, whatever the order is: right for order 2 alone."
        ),
        "return torch.stack(norms).sum()": (
            "Right for order 1 alone. For order 2 squares add up, norms do not: it is too large."
        ),
        "return torch.stack(norms).pow(order).sum().pow(1 / order)": (
            "The formula, right for orders 1 and 2. For ∞ the powers are 0 or infinite: it says 1."
        ),
    },
    like_get_total_norm,
)

# %% [markdown]
# ### The longest step
#
# With the global norm, a clipped gradient is at most *c* long. An update of SGD, with learning rate
# η and momentum µ, adds up this gradient, µ times the one before, µ² times the one before that, and
# so on. Therefore its length is at most
#
# $$\|\Delta w\| \le \eta \, c \, (1 + \mu + \mu^2 + \dots) = \frac{\eta \, c}{1 - \mu}$$
#
# however large the gradients were. Measure it: the longest of all updates, the bad batch included.

# %%
lengths = {}
for name, rule in (("global norm", "global norm"), ("no clipping", "none")):
    steps = islice(experiment.run(base.turned(rule=rule, watch=True)), until)
    lengths[name] = [step.metrics["moved"] for step in steps]
    print(f"{name:<12} longest update {max(lengths[name]):6.2f}")
print(f"{'formula':<12} at most        {experiment.longest_step(base):6.2f}, with the global norm")

# %% jupyter={"source_hidden": true}
picture, (axes,) = lab.figure.axes(8, 3)
axes.set(yscale="log", xlabel="update", ylabel="length of the update, ‖Δw‖")
lines = {name: dict(enumerate(moved)) for name, moved in lengths.items()}
lab.figure.draw_lines(
    axes, lines, limit=(experiment.longest_step(base), "η c / (1 − µ)"), points=False
)
picture

# %% [markdown]
# *Half-way. This is a good place to stop and come back to: run all cells above, and go on here.*
#
# ## 5. Prove
#
# Ten updates in float64, with momentum and weight decay, one bad batch among them. The truth is
# PyTorch's `clip_grad_norm_`; beside it our two forms, and Hugging Face *Accelerate*.

# %%
from accelerate import Accelerator


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


def with_torch(clip):
    def update(model, optimizer, x, y):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        clip(model.parameters())
        optimizer.step()

    return update


# %%
def with_ours(rule, limit):
    def update(model, optimizer, x, y):
        clipping.clipped_update(model, optimizer, x, y, rule=rule, limit=limit)

    return update


torch.manual_seed(0)
fresh = lab.models.mlp(784, 32, 32, 10).double()
batches = [(x.double(), y) for x, y in islice(mnist.batches(64), 10)]
batches[4] = (255 * batches[4][0], batches[4][1])
accelerator = Accelerator(cpu=True)

# %% tags=["nbval-check-output"]
ways = {
    "clip_grad_norm_": with_torch(lambda parameters: clip_grad_norm_(parameters, 1.0)),
    "ours": with_ours(clipping.clip_global_norm_, 1.0),
    "naive": with_ours(clipping.naive_clip_global_norm_, 1.0),
    "Accelerate": with_torch(lambda parameters: accelerator.clip_grad_norm_(parameters, 1.0)),
}
proof = lab.prove({name: lab.trajectory(fresh, sgd, way, batches) for name, way in ways.items()})
assert proof.holds
print(proof)

# %%
proof

# %% [markdown]
# (PyTorch adds 10⁻⁶ to the norm before it divides. Ours does the same, or they would differ in the
# seventh digit.) The rule *value* has a truth, too. And *each norm* is another training:

# %% tags=["nbval-check-output"]
by_value = {
    "clip_grad_value_": with_torch(lambda parameters: clip_grad_value_(parameters, 0.01)),
    "value": with_ours(clipping.clip_value_, 0.01),
}
states = {name: lab.trajectory(fresh, sgd, way, batches) for name, way in by_value.items()}
value_proof = lab.prove(states)
assert value_proof.holds
print(value_proof)
both = {"global norm": ways["ours"], "each norm": with_ours(clipping.clip_each_norm_, 1.0)}
print(lab.prove({name: lab.trajectory(fresh, sgd, way, batches) for name, way in both.items()}))

# %% [markdown]
# ## 6. Measure
#
# ### One bad batch, over seeds
#
# One run proves little. So five seeds (fewer in a quick look), each with other weights and another
# order of the data, 300 updates each: without clipping, and with each rule at a limit that clips.

# %%
limits = {"none": base.limit, "value": 0.01, "each norm": 1.0, "global norm": 1.0}
found = {
    rule: experiment.outcomes(base.turned(rule=rule, limit=limit)) for rule, limit in limits.items()
}
print("mean loss    before the bad batch   after it   at the end   test accuracy")
for rule, runs in found.items():
    losses = (fmean(getattr(run, when) for run in runs) for when in ("before", "after", "end"))
    before, after, end = (f"{loss:.2f}" for loss in losses)
    accuracy = lab.figure.tell_over_seeds([run.accuracy for run in runs], "%")
    print(f"{rule:<12} {before:>20} {after:>10} {end:>12}   {accuracy}")

# %%
dead = {rule: sum(run.accuracy < 15 for run in runs) for rule, runs in found.items()}
for rule, count in dead.items():
    print(f"{rule:<12} {count} of {len(found[rule])} runs end at chance")

# %% jupyter={"source_hidden": true}
picture, (axes,) = lab.figure.axes(7.5, 3)
lab.figure.draw_over_seeds(
    axes, {rule: [run.accuracy for run in runs] for rule, runs in found.items()}
)
axes.set(ylabel="test accuracy after 300\nupdates, %: mean, all seeds", ylim=(0, 100))
lab.figure.limit_line(axes, 10, "chance, 10 %")
picture

# %%
rises = {
    rule: fmean(run.after for run in runs) / fmean(run.before for run in runs)
    for rule, runs in found.items()
}
guess_plain.against(rises["none"])

# %%
guess_clipped.against(rises["global norm"])

# %%
clipped = [rule for rule in found if rule != "none"]
print(f"one bad batch ended {dead['none']} of {len(found['none'])} runs that did not clip, and")
print(sum(dead[rule] for rule in clipped), "of", sum(len(found[rule]) for rule in clipped), end=" ")
print("that did; with each rule, 5 to 15 updates later, the mean loss was at most")
print(f"{max(rises[rule] for rule in clipped):.2f} × the loss before the batch")

# %% [markdown]
# At the bad batch itself the loss is high, clipped or not: the pixels are what they are.
#
# How deadly the batch is depends on the knobs. And a limit of 1, right for a norm, is far too high
# for a single number. The test accuracy, a column for each seed:

# %%
milder = {
    "value, limit 1": {"rule": "value", "limit": 1.0},
    "no clipping, learning rate / 5": {"learning_rate": base.learning_rate / 5},
    "no clipping, no momentum": {"momentum": 0.0},
    "no clipping, pixels × 30": {"spike": 30.0},
}
for name, changes in milder.items():
    runs = experiment.outcomes(base.turned(**{"rule": "none", **changes}), seeds=2)
    print(f"{name:<30}", *(f"{run.accuracy:3.0f} %" for run in runs))

# %% [markdown]
# ### The direction
#
# If all rules save the run, does it matter which? Compare them fairly: each with the limit that
# leaves the *same* norm, half of what the gradient had, or 0.5 if it was longer than 1. By how many
# degrees is the gradient turned?

# %%
seeds = lab.some_seeds(3)
turned = {rule: {} for rule in experiment.RULES}
for network, updates in (("mlp", 60), ("cnn", 20)):
    for kind, factor in (("good", 1.0), ("bad", base.spike)):
        settings = [base.turned(model=network, seed=base.seed + seed) for seed in seeds]
        angles = [experiment.angles(knobs, factor, updates=updates) for knobs in settings]
        for rule in turned:
            turned[rule][f"{network}, {kind} batch"] = [one[rule] for one in angles]

# %%
for rule, cases in turned.items():
    for case, degrees in cases.items():
        told = lab.figure.tell_over_seeds([round(angle) for angle in degrees], "°")
        print(f"{rule:<12} {case:<15} {told}")

# %% jupyter={"source_hidden": true}
picture, (axes,) = lab.figure.axes(8, 3)
colors = (lab.figure.ORANGE, lab.figure.GREEN, lab.figure.BLUE)
for (rule, cases), color, mark in zip(turned.items(), colors, ("-s", "-D", "-o")):
    lab.figure.draw_over_seeds(axes, cases, label=rule, color=color, style=mark)
axes.set(ylabel="turned by, degrees:\nmean, all seeds", ylim=(-5, 120))
axes.set_yticks(range(0, 91, 30))
lab.figure.limit_line(axes, 90, "90°, a right angle")
axes.legend(frameon=False, loc="upper left", ncols=3, fontsize=8)
picture

# %% [markdown]
# At 90° a step has nothing to do with the gradient any more. *Value* turns it, because it gives the
# few large numbers and the many small ones nearly the same size. *Each norm* turns it, because it
# shifts the weight between layers. The global norm does not turn it at all.
#
# So the first sentence from the start describes the rule *value*, and the code beside it is *each
# norm*. PyTorch's `clip_grad_norm_`, and the paper that made clipping known (Pascanu et al., 2013),
# limit the global norm, which is neither of them.
#
# ### The price
#
# Clipping reads every gradient once. Ours writes it only when it clips; PyTorch's function always
# multiplies it, if only by 1. How long does that take, beside PyTorch's function and beside the
# whole update? The limit is so high here that nothing is clipped.

# %%
model = lab.models.mlp(784, 128, 128, 10)
optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
x, y = next(mnist.batches(64))
clipping.plain_update(model, optimizer, x, y)
parameters = list(model.parameters())
gradients = clipping.gradients_of(model)
flat = torch.cat([gradient.flatten() for gradient in gradients])
programs = {
    "clip_grad_norm_": lambda: clip_grad_norm_(parameters, 1e9),
    "ours": lambda: clipping.clip_global_norm_(gradients, 1e9),
    "naive": lambda: clipping.naive_clip_global_norm_(gradients, 1e9),
    "one buffer": lambda: clipping.clip_flat_(flat, 1e9),
    "a whole update": lambda: clipping.plain_update(model, optimizer, x, y),
}


# %%
def price(name, other):
    pair = (programs[name], programs[other])
    return lab.compare(*pair, names=(name, other), patience=1.0)


prices = {name: price(name, "clip_grad_norm_") for name in ("ours", "naive", "one buffer")}
share = price("ours", "a whole update")
print(*prices.values(), share, sep="\n")

# %% [markdown]
# *One buffer* is the case where all gradients lie side by side in memory, so that one dot product
# reads them: `flat_gradients` arranges that. It reads the same numbers as *ours*. What *ours* takes
# longer is not arithmetic: it is the way to each tensor.
#
# ## 7. Break it
#
# Five famous mistakes. Each update is repeated from the same weights by the right rule, and the
# difference is drawn: the *error of the update*, 1 meaning that all of it is wrong.
#
# Here the bad batch comes at update 50. Press **Start**, then choose one **mistake** after the
# other. The badge judges the latest updates only, so look at the curve, too. Which mistake would
# you have noticed from the loss? Set **spike** to 1 and look again.

# %%
broken = base.turned(twin=True, spike_at=50)
right = lab.Badge("update_error", 1e-4, "latest updates right", "latest updates not right")
error = lab.Curve(
    "update_error", "error of the update", over="updates", log=(1e-8, 1e3), summary="max"
)

# %%
break_it = lab.Panel(
    experiment.run,
    broken,
    [error, lab.Curve("loss", "loss", over="updates", log=(1e-3, 1e2), limit=chance)],
    controls=["mistake", "limit", "spike"],
    baselines={"no mistake": {"mistake": "none"}},
    headline=None,
    tour=[broken.turned(mistake=mistake) for mistake in experiment.MISTAKES],
    seconds=1.2,
    badge=right,
)
break_it

# %% [markdown]
# Write down what you think each mistake does to the step, then look.
#
# <details><summary>What each of them does</summary>
#
# - **before unscale.** In half precision the loss is multiplied by a *scale*, so that small
#   gradients are not lost. Clip before it is divided out, and a step of 1/65,536 of the limit is
#   left: nothing is learned.
# - **each micro-batch.** With accumulation ([chapter 11](11_accumulation.ipynb)) the parts are
#   clipped, and their average comes out shorter than the limit allows: parts point in different
#   directions.
# - **after the step.** The optimizer has used the gradient already: nothing is limited. While the
#   norms stay below the limit, nobody sees it.
# - **added norms** takes the norm for larger than it is: it clips updates that are short enough,
#   and leaves too little of the others.
# - **always scaled** forgets the `min(1, …)`: short gradients are made longer. It is right for
#   every gradient above the limit.
#
# </details>

# %%
lab.show_source(experiment.before_unscale, docstring=False)

# %%
lab.show_source(experiment.after_the_step, docstring=False)

# %%
lab.show_source(experiment.each_micro_batch, docstring=False)

# %%
lab.show_source(experiment.added_norms, experiment.always_scaled, docstring=False)

# %% [markdown]
# ### What PyTorch lets pass
#
# Three calls that raise no error. A generator that has been read already; a negative limit; and a
# gradient with one NaN:


# %% tags=["nbval-check-output"]
def tried(numbers, limit, spent=False):
    parameter = torch.nn.Parameter(torch.zeros(3))
    parameter.grad = torch.tensor(numbers)
    parameters = (one for one in ([] if spent else [parameter]))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        norm = clip_grad_norm_(parameters, limit)
    after = " ".join(f"{number:5.2f}" for number in parameter.grad)
    return f"norm {norm:.0f}, gradient after: {after}" + ", and a warning" * bool(told)


print("spent generator:", tried([3.0, 0.0, 4.0], 1.0, spent=True))
print("limit of −1:    ", tried([3.0, 0.0, 4.0], -1.0))
print("one NaN:        ", tried([3.0, float("nan"), 4.0], 1.0))
print("one infinity:   ", tried([3.0, float("inf"), 4.0], 1.0))

# %% [markdown]
# The spent generator is not clipped. A negative limit turns the gradient round, so that the
# training climbs. One NaN makes every gradient NaN. One infinity makes the others 0.
#
# Ours refuses the limit, and `clipped_update` skips an update whose norm is not finite: no factor
# can repair it.

# %% tags=["nbval-check-output"]
try:
    clipping.clip_global_norm_([torch.tensor([3.0, 0.0, 4.0])], -1.0)
except ValueError as refusal:
    print(refusal)
bad_x, bad_y = mnist.train_x[:8].clone(), mnist.train_y[:8]
bad_x[0, 0, 0, 0] = float("nan")
weights = lab.snapshot(model)
_, spoilt = clipping.clipped_update(
    model, sgd(model), bad_x, bad_y, rule=clipping.clip_global_norm_, limit=1.0
)
kept = all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
print(f"norm {spoilt:.0f}, weights kept: {kept}")

# %% [markdown]
# ## 8. When it does not help
#
# ### Adam
#
# Adam divides the gradient by its own usual size. Multiply all gradients by a factor, and Adam's
# steps stay the same. So what is a limit worth that clips *every* update? First without a bad
# batch, then with one. The mean loss over the seeds, 200 updates:

# %%
adam = base.turned(optimizer="adam", learning_rate=1e-3)
limits_of_adam = {"none": None, "1": 1.0, "0.01": 0.01, "0.001": 0.001}
with_adam = {}
for spike in (1.0, base.spike):
    for name, limit in limits_of_adam.items():
        rule = {"rule": "global norm", "limit": limit} if limit else {"rule": "none"}
        runs = experiment.outcomes(adam.turned(spike=spike, **rule), seeds=2, updates=200)
        with_adam[spike, name] = runs
        after, end = (fmean(getattr(run, when) for run in runs) for when in ("after", "end"))
        print(f"pixels × {spike:<4g} limit {name:<6} after {after:.2f}, at the end {end:.3f}")

# %%
calm, hit = (
    {name: fmean(run.end for run in with_adam[spike, name]) for name in limits_of_adam}
    for spike in (1.0, base.spike)
)
harm = {name: hit[name] / calm[name] for name in limits_of_adam}
limited = [name for name in limits_of_adam if name != "none"]
ends = [calm[name] for name in limited]
print(f"no bad batch, limits from 1 to 0.001: losses within {max(ends) / min(ends):.2f} ×, the")
print(f"lowest of them {min(ends) / calm['none']:.2f} × that without a limit")
print("one bad batch, how many times the loss of the run without it, at the end:")
print(f"{harm['none']:.2f} × without a limit, at most", end=" ")
print(f"{max(harm[name] for name in limited):.2f} × with one")

# %% jupyter={"source_hidden": true}
if harm["none"] <= 1.1:
    print("Adam without a limit has recovered")
elif hit["none"] < 0.75 * experiment.CHANCE:
    print("Adam without a limit has recovered in part")
else:
    print("Adam without a limit has not recovered")

# %% [markdown]
# The first line says how little the *value* of the limit means under Adam, and whether a run
# without a bad batch gains from it. With a bad batch, compare the columns: without a limit the loss
# rises, and how much of that is left at the end is what clipping is worth here. Adam's own division
# limits what the bad batch does: the last line says whether that was enough.
#
# ### SGD that always clips
#
# When every update is clipped, the size of the gradient is gone: each gradient enters the step with
# the length *learning rate × limit*, and only this product counts. No bad batch this time.
# One number for each seed:

# %%
ways_of_sgd = {
    "no clipping": {"rule": "none"},
    "limit 1,    rate × 1": {"limit": 1.0},
    "limit 0.01, rate × 1": {"limit": 0.01},
    "limit 0.01, rate × 100": {"limit": 0.01, "learning_rate": min(10, 100 * base.learning_rate)},
}
always = {
    name: experiment.outcomes(base.turned(spike=1.0, **changes), seeds=2)
    for name, changes in ways_of_sgd.items()
}
for name, runs in always.items():
    print(f"{name:<23} loss at the end", *(f"{run.end:.2f}" for run in runs))
one, none = (fmean(run.end for run in always[name]) for name in list(ways_of_sgd)[1::-1])
print(f"so a limit of 1 {'gains' if one < 0.9 * none else 'does not gain'}:", end=" ")
print(f"{one / none:.2f} × the loss without clipping")

# %% [markdown]
# A limit that is too low looks like a learning rate that is too low: the loss falls slowly. Look at
# the share of clipped updates: near 100 % the limit is a second learning rate.
#
# ### Does it speed up training?
#
# The second sentence from the start. For this network, and without a bad batch, the last line above
# answers it. The sentence comes from recurrent networks, where gradients multiply through many
# steps. This one reads a digit row by row. Each learning rate, without clipping and with a limit of
# 0.25, over the seeds:

# %%
rates, two = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2), lab.some_seeds(2)
recurrent = {
    name: {rate: [experiment.recurrent_loss(rate, limit, seed) for seed in two] for rate in rates}
    for name, limit in (("no clipping", None), ("limit 0.25", 0.25))
}

# %% jupyter={"source_hidden": true}
picture, (axes,) = lab.figure.axes(8, 3)
styles = ((lab.figure.ORANGE, "--o"), (lab.figure.BLUE, "-s"))
for (name, losses), (color, style) in zip(recurrent.items(), styles):
    lab.figure.draw_over_seeds(axes, losses, label=name, color=color, style=style)
lab.figure.limit_line(axes, *chance)
axes.set(xscale="log", xlabel="learning rate", ylabel="loss at the end", ylim=(0, 2.6))
axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
axes.minorticks_off()
axes.legend(frameon=False, loc="lower left")
picture

# %%
best = {
    name: min(losses, key=lambda rate: fmean(losses[rate])) for name, losses in recurrent.items()
}
lowest = {name: fmean(recurrent[name][rate]) for name, rate in best.items()}
for name, rate in best.items():
    print(f"{name:<12} best learning rate {rate:g}: loss {lowest[name]:.2f}")
larger = best["limit 0.25"] > best["no clipping"]
print(f"with clipping the best learning rate is {'larger' if larger else 'not larger'}")

# %% [markdown]
# If clipping makes larger learning rates possible, a gain can come from them. It takes a network
# whose loss now and then is far steeper than usual, and more curved there, as theory assumes (Zhang
# et al., 2020), and a learning rate chosen anew.
#
# So, about the sentences from the start, the verdict for this machine:

# %%
turns = {
    rule: fmean(angle for angles in cases.values() for angle in angles)
    for rule, cases in turned.items()
}
accuracy = {rule: fmean(run.accuracy for run in runs) for rule, runs in found.items()}
verdict = (
    f"one bad batch in 300: {accuracy['none']:.0f} % without clipping, "
    f"{accuracy['global norm']:.0f} % with the global norm; value turns the gradient by "
    f"{turns['value']:.0f}°, the global norm by {turns['global norm']:.0f}°; ours takes "
    f"{prices['ours'].ratio:.2f} × PyTorch's time, {100 * share.ratio:.1f} % of an update"
)
lab.log_verdict("clipping", verdict)

# %% jupyter={"source_hidden": true}
most = max(turns, key=turns.get)
gains = "does" if one < 0.9 * none else "does not"
recurrent_gains = "does" if lowest["limit 0.25"] < 0.9 * lowest["no clipping"] else "does not"
print("Limits the largest and the smallest value: that is one of three rules.")
print(f"  The rule that turns the gradient most here: {most}.")
print("Prevents exploding gradients: it limits what they do. They come as large as before.")
print(f"Speeds up training: the small network {gains} gain from it, the recurrent one")
print(f"  {recurrent_gains}. There the best learning rate {'is' if larger else 'is not'} larger.")

# %% [markdown]
# ## 9. Exercises
#
# Write the functions and run the cells; `check` tries each on fresh data. It says what is right
# already, shows a small case that is not, and gives a hint where it knows the mistake. After two
# different tries it offers a worked solution. Some functions are written already, with faults:
# repair them.

# %%
from accel_lab.grading.practice import check, exercises

ONCE, LOOP, RANKS = exercises("clipping")
ONCE


# %% tags=["exercise"]
def clip_accumulated(model, optimizer, micro_batches, max_norm, scale):
    raise NotImplementedError


check(clip_accumulated)

# %%
LOOP


# %% tags=["exercise"]
def train_clipped(model, optimizer, scaler, schedule, batches, max_norm):
    parameters = model.parameters()
    for micro_batches in batches:
        samples = sum(len(y) for _, y in micro_batches)
        optimizer.zero_grad()
        for x, y in micro_batches:
            loss = cross_entropy(model(x), y) * len(y) / samples
            scaler.scale(loss).backward()
            clip_grad_norm_(parameters, max_norm)
        scaler.step(optimizer)
        scaler.update()
        schedule.step()


check(train_clipped)

# %%
RANKS


# %% tags=["exercise"]
def clip_sharded(piece, replicated, max_norm, all_reduce):
    raise NotImplementedError


check(clip_sharded)

# %% [markdown]
# ## 10. Take away
#
# - One bad batch can end a run for good: it kills the hidden units, and no later batch revives
#   them.
# - Three rules are called clipping. All limit the harm; only the global norm keeps the direction.
# - With SGD, η · c / (1 − µ) is the longest step that a batch can cause.
# - Clip once, when the gradient is complete: accumulated, averaged, unscaled; before the step.
# - Watch the norm before clipping, and the share of clipped updates. Near 100 %, the limit is a
#   second learning rate. Under Adam its value means little.

# %% [markdown]
# Known from elsewhere, and not measured here: *adaptive clipping* limits the gradient of each unit
# relative to the norm of its weights (A. Brock et al., 2021, arXiv:2102.06171, section 4). Why
# and when clipping speeds up training: J. Zhang et al., 2020, arXiv:1905.11881. With noisy
# gradients, clipping leads to a slightly different solution: A. Koloskova et al., 2023,
# arXiv:2305.01588. On several ranks that hold different parts of a model, the squares of the norms
# have to be added up over the ranks first: the third exercise.

# %% [markdown]
# **What would prove this wrong?** A run of SGD with the global norm limited to *c* in which one
# update moves the weights by more than η · c / (1 − µ). If you find one, look for weight decay: it
# moves the weights beside the gradient.

# %% [markdown]
# **Sources.** R. Pascanu, T. Mikolov, Y. Bengio, *On the difficulty of training recurrent neural
# networks*, 2013, arXiv:1211.5063, section 3.2 · T. Mikolov, *Statistical language models based on
# neural networks*, 2012, section 3.2.2 · PyTorch, `torch.nn.utils.clip_grad_norm_`.
#
# **Next.** Clipping guards each update against its batch. But an update can also get lost, gradient
# right and all, where weights have too few bits: [chapter 13](13_precision.ipynb). The other
# chapters are listed on the [first page](00_start_here.ipynb).
