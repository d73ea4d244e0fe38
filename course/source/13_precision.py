# ---
# jupyter:
#   kernelspec:
#     name: python3
#     display_name: Python 3
# ---

# %% [markdown]
# # 13 · Mixed precision
#
# ## 1. The question
#
# A number in float32 takes 4 bytes. In bfloat16 or float16 it takes 2. A network with numbers half
# as long should need half the memory, and processors can multiply short numbers faster.
#
# *Mixed precision* computes some parts in 16 bits and others in 32. You can read about it:
#
# > *Mixed precision saves memory and is faster.*
# >
# > *It decides by the size of the model which parts run in half precision.*
#
# Why mixed? Why not all of it in 16 bits? You will train both ways, see where an update gets lost
# although its gradient is right, and measure what is saved on the machine in front of you.

# %% jupyter={"source_hidden": true}
import copy
import math
from contextlib import nullcontext
from itertools import islice
from statistics import fmean

import torch
from torch.nn.functional import cross_entropy

from accel_lab import precision
from accel_lab.experiments import precision as experiment
from accel_lab.workbench import chapter as lab

torch.set_num_threads(1)  # so small a network gains nothing from a second thread

# %% [markdown]
# The next cell holds the settings of this chapter. Change one, as in `knobs = {"learning_rate":
# 0.03}`, and run the notebook again: everything below follows.

# %% tags=["parameters"]
knobs = {}

# %%
base = lab.settings(experiment.Knobs, knobs, device="cpu")
digits = lab.datasets.mnist5k()
pure = base.turned(precision="pure bf16")
has = lab.low_precision()
print("this CPU computes in bfloat16 by:", ", ".join(has.get("bfloat16", ())) or "no instruction")
print("this CPU computes in float16 by: ", ", ".join(has.get("float16", ())) or "no instruction")

# %% [markdown]
# ## 2. Predict
#
# A small network learns handwritten digits with SGD. First we make everything 16-bit: its weights
# are bfloat16 numbers. Each update moves each weight by learning rate × gradient, and the result is
# rounded to the nearest bfloat16 number.

# %%
guess_lost = lab.Prediction(
    f"Learning rate {base.learning_rate:g}: of 100 updates of a weight, how many change nothing?",
    low=0.1,
    high=100,
    default=5,
    unit="of 100",
)
guess_lost

# %% [markdown]
# Then mixed precision: the weights stay in float32, the products are computed in bfloat16. Look at
# what this CPU has, above, before you guess.

# %%
guess_time = lab.Prediction(
    "Time of one mixed update in bfloat16: how many times that of float32?",
    low=0.1,
    high=100,
    default=0.5,
    unit="×",
)
guess_time

# %% [markdown]
# ## 3. See
#
# The dashed orange run is float32. Press **Start**: yours has bfloat16 weights. Then turn
# **precision** to *mixed bf16*, and go back to *pure bf16* with a larger **learning rate**.

# %%
experiment.learn_to_predict(pure)  # of both models, so that the panel need not wait for it
lost_over_rate = lab.Sweep(
    "learning_rate",
    "lost_updates",
    "updates that change nothing, %",
    scale=100,
    predicted=experiment.predicted_lost,
    formula="predicted",
    summary="mean",
)
curves = [
    lab.Curve("loss", "loss", over="updates", ends=(0, 2.5)),
    lost_over_rate,
    lab.Curve("test_accuracy", "test accuracy, %", 100, over="updates", ends=(0, 100)),
    lab.Curve("throughput", "samples/s"),
]

# %%
panel = lab.Panel(
    experiment.run,
    pure,
    curves,
    controls=["precision", "learning_rate", "model"],
    baselines={"float32": {"precision": "fp32"}},
    headline=lab.Headline("test_accuracy", "test accuracy", points=True),
    tour=[base, pure.turned(learning_rate=min(1.0, 30 * base.learning_rate)), pure],
    seconds=1.5,
)
panel

# %% [markdown]
# What to look for:
#
# - With bfloat16 weights the loss stays far above that of float32, and the dots say that most
#   updates change nothing. (It falls slowly: the few updates that count are the large ones.)
# - With *mixed bf16* the loss follows that of float32.
# - At a large learning rate *pure bf16* learns as well. The share of lost updates is smaller there.
#   (The dashed curve is predicted for the first updates. Once the network has learned, gradients
#   are smaller: more updates are lost, and the dot rises above the curve.)
# - The samples per second: which precision is faster here? We come back to it.

# %%
for kind in ("bf16", "fp16"):
    for model in ("mlp", "cnn"):
        how = experiment.arithmetic_of(base.turned(precision=f"mixed {kind}", model=model))
        print(f"products in {kind} here, {model}: {how}")

# %% [markdown]
# *Native* means that the processor multiplies 16-bit numbers. Where that takes more than ten times
# as long as float32, this chapter's runs use *rounded* products: computed in float32, the result
# rounded to 16 bits. The losses are nearly the same, but the samples per second then say nothing
# about 16-bit products. Part 6 times native ones.

# %% [markdown]
# ## 4. Build
#
# ### Neighbours
#
# A floating-point number has a fixed number of significant bits: 24 in float32, 11 in float16, 8 in
# bfloat16. So the distance to the next number grows with the number itself:

# %% tags=["nbval-check-output"]
for weight in (0.05, 1.0, 3.0):
    row = []
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        half = precision.half_spacing(torch.tensor([weight]), dtype)
        row.append(f"{2 * float(half):.1e}")
    print(f"around {weight:<4}: float32 {row[0]}, float16 {row[1]}, bfloat16 {row[2]}")

# %% [markdown]
# Add something that is less than half of that distance, and the nearest number is the old one:

# %% tags=["nbval-check-output"]
one = torch.tensor(1.0, dtype=torch.bfloat16)
for update in (0.01, 0.005, 0.003):
    print(f"1 + {update} = {float(one + update):.6f} in bfloat16")

# %% [markdown]
# So an update Δ of a weight *w* vanishes when
#
# $$|\Delta| < \tfrac12 \cdot \text{spacing}(w), \qquad \text{spacing}(w) = 2^{\lfloor \log_2 |w|
# \rfloor - 7} \text{ in bfloat16.}$$
#
# (Only powers of 2 are closer to their neighbour on one side: towards zero it is half as far.)
#
# `frexp` takes a number apart into its bits and its power of 2. That is all the formula needs:

# %%
lab.show_source(precision.half_spacing, precision.lost_share, docstring=False)

# %% [markdown]
# Here is one weight, and 40 equal updates of it. The grey lines are the numbers that bfloat16 has.
# Press **Play**.

# %%
paths = experiment.one_weight(0.05, 4e-5, 40)
numbers = [float(paths["fp32"][0, 0]) + k * 2.0**-12 for k in range(-1, 15)]


# %% jupyter={"source_hidden": true}
def dots(update):
    picture, (axes,) = lab.figure.axes(8, 2.4)
    for number in numbers:
        axes.axvline(number, color=lab.figure.GREY, linewidth=0.8)
    colors = (lab.figure.ORANGE, lab.figure.GREEN, lab.figure.BLUE)
    for place, (path, color) in enumerate(zip(paths.values(), colors)):
        heights = torch.linspace(-0.3, 0.3, len(path)) + place if len(path) > 1 else [place]
        axes.plot(path[:, update], heights, "o", color=color, markersize=8)
    axes.set(xlim=(numbers[0], numbers[-1]), ylim=(2.6, -0.6), xlabel="weight")
    axes.set_yticks(range(3), list(paths))
    axes.grid(False)
    return picture, axes


# %% jupyter={"source_hidden": true}
def walk(update=40):
    picture, axes = dots(update)
    mean = float(paths["bf16, by chance"][:, update].mean())
    told = f"after {update} updates of 0.00004: fp32 {float(paths['fp32'][0, update]):.4f}"
    axes.set_title(f"{told}, by chance on average {mean:.4f}", loc="left", fontsize=10)
    return picture


lab.Sliders(walk, update=range(41))

# %% [markdown]
# Rounded to the nearest number, the weight never moves, however many updates come. The eight blue
# ones are rounded *by chance*, to the nearer neighbour more often. After 40 updates none of them is
# where float32 is; compare their mean with it. Part 8 comes back to this.
#
# ### The naive version
#
# Cast the model, cast the input, and train as always:

# %%
lab.show_source(precision.pure_update, docstring=False)

# %% [markdown]
# ### Mixed
#
# Keep the weights in float32. Cast *copies* of them for the forward pass; gradients find their way
# back through the casts:

# %%
lab.show_source(precision.mixed_update, docstring=False)

# %% [markdown]
# `Mixed` listens to every function that the model calls. This is all of it:

# %%
lab.show_source(precision.Mixed.__torch_function__, precision.Mixed.cast, docstring=False)

# %% [markdown]
# Two sets of functions decide what is cast. All other functions compute in what they are given:

# %%
for name, functions in (("16 bits", precision.LOW), ("32 bits", precision.FULL)):
    print(f"{name}:", ", ".join(sorted({function.__name__ for function in functions})))

# %% [markdown]
# ### By size, or by operation?
#
# The second sentence from the start. Listen to a forward pass with `torch.autocast`, PyTorch's own
# mixed precision, and with ours: which operation gives results of which type? A small network, one
# of 250 times as many weights, and a transformer:


# %%
def heard(model, x, context):
    with experiment.Listening() as listening, context:
        cross_entropy(model(x), digits.train_y[: len(x)])
    skip = {"_to_copy", "t", "view", "transpose", "expand", "unbind", "detach", "_unsafe_view"}
    return {name: dtypes for name, dtypes in listening.seen.items() if name not in skip}


x = digits.train_x[:8]
torch.manual_seed(0)
small, large = lab.models.mlp(784, 4, 10), lab.models.mlp(784, 1000, 10)
transformer, _ = experiment.speed_models()["transformer"]

# %%
found = {}
for name, model in (("small", small), ("large", large), ("transformer", transformer)):
    theirs = heard(model, x, torch.autocast("cpu", dtype=torch.bfloat16))
    found[name] = heard(model, x, precision.Mixed(torch.bfloat16))
    print(f"{name}: ours as torch.autocast: {theirs == found[name]}")
print("small as large:", found["small"] == found["large"])
for operation, dtypes in found["transformer"].items():
    print(f"{operation:<32} {', '.join(sorted(dtypes))}")

# %%
by_operation = found["small"] == found["large"]
print("It decides by", "operation, not by size." if by_operation else "more than the operation.")

# %% [markdown]
# *Half-way. This is a good place to stop and come back to: run all cells above, and go on here.*
#
# ### The range
#
# float16 has 11 significant bits, three more than bfloat16. It pays with its range: what is 2⁻²⁵ or
# less becomes 0, and from 65,520 on everything is infinite. Gradients are small numbers. Here are
# the sizes of those of our network. Each mark on the axis is 16 powers of 2 from the next, and the
# blue area is what float16 can hold.
#
# **Loss scaling** multiplies the loss by a factor before the backward pass. All gradients grow by
# this factor. Press **Play**.

# %%
sizes = experiment.gradient_sizes(base)
print(f"{len(sizes):,} gradients above zero, the median is 2^{float(sizes.log2().median()):.0f}")


# %% jupyter={"source_hidden": true}
def window(power=0):
    picture, (axes,) = lab.figure.axes(8, 2.6)
    scaled = sizes.double() * 2.0**power
    axes.axvspan(2.0**-25, 65520, color=lab.figure.BLUE, alpha=0.12)
    lab.figure.draw_histograms(axes, {"": scaled.tolist()[::5]}, ends=(2.0**-54, 2.0**30))
    low, high = ((scaled <= 2.0**-25).double().mean(), (scaled >= 65520).double().mean())
    axes.set_xticks([2.0**at for at in range(-48, 17, 16)], ["2⁻⁴⁸", "2⁻³²", "2⁻¹⁶", "1", "2¹⁶"])
    axes.minorticks_off()
    axes.set_xlabel("absolute value of a gradient × loss scale")
    told = f"loss scale 2^{power}: {low:.0%} become 0, {high:.2%} infinite"
    axes.set_title(told, loc="left", fontsize=10)
    return picture


lab.Sliders(window, power=range(-24, 25, 4))

# %% [markdown]
# The right scale is not known beforehand, and it changes during training. So a scaler looks for it:
# halve the scale after an overflow, and skip that update. Double it after a long time without one.

# %%
lab.show_source(precision.LossScaler.step, docstring=False)

# %% [markdown]
# How the scale changes is below, with one line left out. Your scale goes through twelve updates,
# three of which overflow, beside that of PyTorch's `GradScaler`. Both double it after three good
# updates in a row.


# %%
def like_grad_scaler(update):
    mine = type("Mine", (precision.LossScaler,), {"update": update})(1024.0, interval=3)
    torchs = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer, scales = torch.optim.SGD([weight], lr=0.0), {"torch": [], "yours": []}
    for finite in map(bool, (1, 1, 0, 1, 1, 1, 0, 0, 1, 1, 1, 1)):
        torchs.scale(weight.sum())
        weight.grad = torch.full_like(weight, 1.0 if finite else math.inf)
        torchs.step(optimizer)
        torchs.update()
        mine.update(finite)
        for name, scale in {"torch": torchs.get_scale(), "yours": mine.scale}.items():
            scales[name].append({"scale": torch.tensor(scale)})
    return lab.prove(scales, steps=12)


# %% jupyter={"source_hidden": true}
lab.MissingLine(
    precision.LossScaler.update,
    {
        "self.in_a_row = self.in_a_row + 1 if finite else 0": (
            "It counts the good updates in a row: an overflow sets the count back to 0."
        ),
        "self.in_a_row = self.in_a_row + finite": (
            "An overflow leaves the count as it is: after it, the scale is doubled too early."
        ),
        "self.in_a_row = self.in_a_row + 1": (
            "Skipped updates count as good ones. Here the third is skipped, and the count is "
            "compared with 3 after good ones only: it goes past 3, and the scale never grows."
        ),
        "self.in_a_row = 0 if finite else self.in_a_row + 1": (
            "It counts the overflows in a row, and good updates reset it: the scale never rises."
        ),
    },
    like_grad_scaler,
)

# %% [markdown]
# In `step`, `unscale_` looks whether all gradients are finite. One sum per tensor is
# enough in nearly every case, for the sum of an infinite number with others is never finite:

# %%
lab.show_source(precision.unscale_, docstring=False)

# %% [markdown]
# ## 5. Prove
#
# Ten updates with momentum and weight decay. The slow truth has every cast written out by hand, for
# a network of two layers. Beside it: ours, `torch.autocast`, and Hugging Face *Accelerate*. The
# numbers are rounded to 16 bits in between, so nearly equal would prove little. They must agree to
# the last bit.

# %%
from accelerate import Accelerator

low = torch.bfloat16


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)


def by_hand(model, x):
    _, first, _, last = model
    x = x.flatten(1).to(low)
    hidden = torch.nn.functional.linear(x, first.weight.to(low), first.bias.to(low)).relu()
    return torch.nn.functional.linear(hidden, last.weight.to(low), last.bias.to(low)).float()


# %%
def updating(loss_of):
    def update(model, optimizer, x, y):
        optimizer.zero_grad()
        loss_of(model, x, y).backward()
        optimizer.step()

    return update


def within(context):
    def loss_of(model, x, y):
        with context():
            return cross_entropy(model(x), y)

    return updating(loss_of)


# %% tags=["nbval-check-output"]
torch.manual_seed(0)
start, batches = lab.models.mlp(784, 24, 10), list(islice(digits.batches(32), 10))
accelerator = Accelerator(cpu=True, mixed_precision="bf16")
ways = {
    "by hand": updating(lambda model, x, y: cross_entropy(by_hand(model, x), y)),
    "ours": lambda *all: precision.mixed_update(*all, dtype=low),
    "torch.autocast": within(lambda: torch.autocast("cpu", dtype=low)),
    "Accelerate": within(accelerator.autocast),
}
states = {name: lab.trajectory(start, sgd, way, batches) for name, way in ways.items()}
proof = lab.prove(states, tolerance=0.0)
assert proof.holds
print(proof)

# %%
proof

# %% [markdown]
# The scaler's peer is `torch.amp.GradScaler`. Forty batches, every ninth of which overflows:


# %% tags=["nbval-check-output"]
def scaled_training(scaler, step):
    model = copy.deepcopy(start)
    optimizer, scales = sgd(model), []
    for number, (x, y) in enumerate(islice(digits.batches(32), 40)):
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y) * (float("inf") if number % 9 == 5 else 1)
        scales.append(step(scaler, optimizer, loss))
    return scales, model.state_dict()


def ours(scaler, optimizer, loss):
    (loss * scaler.scale).backward()
    scaler.step(optimizer)
    return scaler.scale


# %% tags=["nbval-check-output"]
def theirs(scaler, optimizer, loss):
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    return scaler.get_scale()


scales, weights = scaled_training(precision.LossScaler(interval=3), ours)
peer = torch.amp.GradScaler("cpu", growth_interval=3)
their_scales, their_weights = scaled_training(peer, theirs)
print("same scales:", scales == their_scales)
print("same weights:", all(torch.equal(weights[name], their_weights[name]) for name in weights))

# %% [markdown]
# ## 6. Measure
#
# ### Where the updates go
#
# One run proves little. So several seeds, with other weights and another order of the data, the
# same number of updates each:

# %%
updates, short = (300, 100) if lab.effort() == 1 else (120, 50)
runs = {
    kind: experiment.outcomes(base.turned(precision=kind), updates, seeds=5)
    for kind in ("fp32", "mixed bf16", "pure bf16")
}
for kind, found in runs.items():
    loss = lab.figure.tell_over_seeds([run.loss for run in found])
    accuracy = lab.figure.tell_over_seeds([run.accuracy for run in found], "%")
    lost = fmean(run.lost for run in found)
    print(f"{kind:<11} loss {loss}\n{'':11} accuracy {accuracy}\n{'':11} lost updates {lost:.2g} %")

# %% jupyter={"source_hidden": true} tags=["hero"]
picture, (left, right) = lab.figure.axes(9.5, 3.2, columns=2)
looks = ((lab.figure.ORANGE, "-", 5), (lab.figure.BLUE, "--", 1.8), (lab.figure.GREEN, "-", 1.8))
for (kind, found), (color, style, wide) in zip(runs.items(), looks):
    losses = torch.tensor([run.curve for run in found]).mean(0)
    smooth = losses.unfold(0, 10, 5).mean(1)
    across = [10 + 5 * place for place in range(len(smooth))]
    left.plot(across, smooth, style, color=color, linewidth=wide, label=kind)
left.set(xlabel="update", ylabel="loss, mean of all seeds")
left.legend(frameon=False)
lost = {kind: fmean(run.lost for run in found) for kind, found in runs.items()}
lab.figure.draw_bars(right, lost, unit="%")
right.set_xlabel("updates that change nothing")
picture

# %%
gap = abs(fmean(run.loss for run in runs["mixed bf16"]) - fmean(run.loss for run in runs["fp32"]))
behind = [pure.loss - full.loss for pure, full in zip(runs["pure bf16"], runs["fp32"])]
worse = sum(one > 0.02 for one in behind)
print(f"mixed and float32: mean losses {gap:.4f} apart")
print(f"pure bfloat16 is more than 0.02 behind float32 in {worse} of {len(behind)} runs")
off = {kind: fmean(run.gradient_error for run in found) for kind, found in runs.items()}
for kind in ("mixed bf16", "pure bf16"):
    print(f"{kind}: gradients {off[kind]:.2f} % off what float32 computes from the same weights")

# %%
guess_lost.against(max(0.1, lost["pure bf16"]))

# %% [markdown]
# **Both runs multiply in bfloat16; compare how far off their gradients are. What the green one
# lacks is a place where small updates can add up: one float32 copy of the weights.**
#
# ### Which learning rates lose updates
#
# The formula, with weights and updates of a float32 run, against what happens in runs with
# 16-bit weights:

# %%
rates = tuple(lab.along((0.003, 0.01, 0.03, 0.1, 0.3)))
measured, formula = {}, {}
for kind in ("pure bf16", "pure fp16"):
    for rate in rates:
        settings = base.turned(precision=kind, learning_rate=rate)
        measured[kind, rate] = experiment.outcome(settings, short)
        formula[kind, rate] = 100 * experiment.predicted_lost(settings)
adam = pure.turned(optimizer="adam", learning_rate=1e-4)
with_adam = experiment.outcome(adam, short).lost, 100 * experiment.predicted_lost(adam)

# %%
apart = max(abs(measured[key].lost - formula[key]) for key in measured)
for (kind, rate), run in measured.items():
    told = f"{run.lost:5.1f} % lost, predicted {formula[kind, rate]:5.1f} %"
    print(f"{kind} at {rate:<5g} {told}")
print(f"formula and measurement are at most {apart:.0f} points apart")
print(f"Adam at 0.0001: {with_adam[0]:.1f} % lost in bfloat16, predicted {with_adam[1]:.1f} %")
ended = experiment.outcome(adam.turned(precision="pure fp16"), 20).loss
tiny = float(torch.tensor(1e-8, dtype=torch.float16))
print(f"Adam in pure float16: loss {ended:.1f}; its ε of 1e-8 is {tiny:g} there")

# %% jupyter={"source_hidden": true}
picture, (axes,) = lab.figure.axes(8, 3)
axes.set(xscale="log", xlabel="learning rate", ylabel="updates that change nothing, %")
axes.set(ylim=(0, 105))
for kind, color, mark in (
    ("pure bf16", lab.figure.BLUE, "o"),
    ("pure fp16", lab.figure.ORANGE, "s"),
):
    axes.plot(rates, [measured[kind, rate].lost for rate in rates], mark, color=color, label=kind)
    predicted = [formula[kind, rate] for rate in rates]
    axes.plot(rates, predicted, "--", color=color, label=f"{kind}, predicted")
axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
axes.minorticks_off()
axes.legend(frameon=False)
picture

# %% [markdown]
# float16 has three bits more, so its numbers lie eight times as close. It loses fewer updates at
# every rate.
#
# ### Time
#
# One update with native products in 16 bits, against float32, on three networks. The reason stands
# beside it: what `torch.cpu.get_capabilities()` says about this processor.


# %%
def program(model, batch, dtype=None):
    model, (x, y) = copy.deepcopy(model), next(digits.batches(batch))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    if dtype is None:
        plain = lab.classifier_update(model, optimizer)
        return lambda: plain(x, y)
    return lambda: precision.mixed_update(model, optimizer, x, y, dtype=dtype)


# %%
torch.manual_seed(0)
networks = experiment.speed_models()
ratios = {
    name: lab.compare(
        program(*one, low), program(*one), names=(f"{name} in bfloat16", "float32"), patience=1
    )
    for name, one in networks.items()
}

# %%
print(*ratios.values(), sep="\n")
product = experiment.slowdown(low, torch.device("cpu"))
print(f"a product of two 256 × 256 matrices: {product:.1f} × the time of float32")
told = ", ".join(has.get("bfloat16", ()))
print("instructions for bfloat16:", told or "none, so each number is converted before it is used")

# %%
guess_time.against(ratios["mlp"])

# %%
faster = [name for name, one in ratios.items() if one.proved and one.ratio < 1]
slower = [name for name, one in ratios.items() if one.proved and one.ratio > 1]
print("faster in mixed precision here:", ", ".join(faster) or "none")
print("slower in mixed precision here:", ", ".join(slower) or "none")

# %% [markdown]
# Speed is a matter of hardware. Processors with instructions for 16-bit products, and GPUs, do more
# of them in the same time; others have to convert every number first. And a small network spends
# much of its time outside its products, where there is nothing to gain.
#
# Our `Mixed` runs in Python, `torch.autocast` inside PyTorch. Does that cost anything?

# %%
model, batch = networks["mlp"]
other, (x, y) = copy.deepcopy(model), next(digits.batches(batch))
optimizer = torch.optim.SGD(other.parameters(), lr=0.0)
with_torch = within(lambda: torch.autocast("cpu", dtype=low))
price = lab.compare(
    program(model, batch, low),
    lambda: with_torch(other, optimizer, x, y),
    names=("Mixed", "torch.autocast"),
    patience=1,
)
print(price)

# %% [markdown]
# ### Memory
#
# The meter of chapter 11 counts what autograd keeps for the backward pass:


# %%
def bytes_kept(model, batch, context):
    x, y = next(digits.batches(batch))
    with lab.ActivationMeter(model, x, y) as meter:
        with context:
            loss = cross_entropy(model(x), y)
        loss.backward()
    return meter.peak


weighed = networks | {"wide mlp": (lab.models.mlp(784, 1024, 1024, 10), 64)}
kept = {}
for name, one in weighed.items():
    full = bytes_kept(*one, nullcontext())
    kept[name] = bytes_kept(*one, precision.Mixed(low)) / full
    print(f"{name:<12} {full / 2**20:5.1f} MiB in float32, × {kept[name]:.2f} in mixed precision")

# %%
more = [name for name, ratio in kept.items() if ratio > 1]
less = [name for name, ratio in kept.items() if ratio < 1]
print("keeps less in mixed precision:", ", ".join(less) or "none")
print("keeps more in mixed precision:", ", ".join(more) or "none")

# %% [markdown]
# Activations become half as long, where they are results of 16-bit operations. But the 16-bit
# copies of the weights are kept as well, beside the float32 ones. Where a batch is small and the
# matrices are large, the copies outweigh what is saved.

# %% [markdown]
# ## 7. Break it
#
# Five famous mistakes in float16. The loss here is divided by 65,536, as in a mean over so many
# tokens (and the learning rate is multiplied by it, so that the training stays the same). That
# makes the gradients so small that float16 needs its loss scale. The scale doubles after ten good
# updates, so that you see it move.
#
# Press **Start**, then choose one **mistake** after the other. Some end with a message.

# %%
broken = base.turned(precision="mixed fp16", learning_rate=0.1, mean_over=2**16, interval=10)
mistakes = ("no scaling", "clipped too early", "old copies")

# %%
break_it = lab.Panel(
    experiment.run,
    broken,
    [
        lab.Curve("loss", "loss", over="updates", ends=(0, 5)),
        lab.Curve("scale", "loss scale, power of 2", over="updates", ends=(0, 40)),
    ],
    controls=["mistake", "loss_scale", "learning_rate"],
    baselines={"no mistake": {"mistake": "none"}},
    headline=None,
    tour=[broken.turned(mistake=mistake) for mistake in mistakes],
    seconds=1.0,
)
break_it

# %% [markdown]
# Write down which mistakes end the run, which slow it and which do nothing at first, then look.
#
# <details><summary>What each of them does</summary>
#
# - **no scaling**: most gradients are 0, and the few others are rounded coarsely. (Without the
#   division by 65,536 this mistake is harmless here; part 8 measures it.)
# - **not unscaled**: the gradient still carries the loss scale, so each step is too long by this
#   factor.
# - **clipped too early**: the scaled gradient is clipped, then divided by the scale. What is left
#   of the limit is 1/scale.
# - **never checked**: all is well until the first overflow, which makes every weight NaN.
# - **old copies**: one `Mixed` is used for all updates, so the model always sees the 16-bit copies
#   of its first weights.
#
# </details>

# %%
for mistake in ("not unscaled", "never checked"):
    try:
        list(islice(experiment.run(broken.turned(mistake=mistake, loss_scale=24)), 150))
    except lab.NonFiniteLoss as message:
        print(f"{mistake}: {message}")

# %%
lab.show_source(experiment.clipped_too_early, docstring=False)

# %%
lab.show_source(experiment.never_checked, docstring=False)

# %%
lab.show_source(experiment.OldCopies.__call__, docstring=False)

# %% [markdown]
# ### Sums in 16 bits
#
# The weights are not the only place where small numbers add up. Add 4,096 ones, one after the
# other:

# %% tags=["nbval-check-output"]
for name in ("bfloat16", "float16", "float32"):
    total, ones = torch.zeros((), dtype=getattr(torch, name)), torch.ones(4096)
    for one in ones.to(total.dtype):
        total += one
    print(f"{name:<9} {float(total):5.0f}, torch.sum {float(ones.to(total.dtype).sum()):.0f}")

# %% [markdown]
# A running mean of the loss, or gradients accumulated by hand, end in the same way. `torch.sum`
# adds up in float32 and rounds once.
#
# ### A schedule that does not wait
#
# A scale that begins high overflows in the first updates, and they are skipped. A schedule that is
# advanced after every batch has gone on meanwhile:

# %%
model, share = copy.deepcopy(start), 1.0
optimizer, scaler = sgd(model), precision.LossScaler(2.0**24)
for number, (x, y) in enumerate(islice(digits.batches(32), 20)):
    _, stepped = precision.mixed_update(model, optimizer, x, y, dtype=torch.float16, scaler=scaler)
    if stepped:
        print(f"{number} updates skipped; the first one has {share:.0%} of its learning rate")
        break
    share *= 0.9  # as a schedule does

# %% [markdown]
# ## 8. When it does not help
#
# ### When nothing is lost
#
# bfloat16 weights harm because updates vanish. With a larger learning rate fewer do:

# %%
for rate in lab.along((base.learning_rate, 0.1, 0.3)):
    losses = {}
    for kind in ("fp32", "pure bf16"):
        found = experiment.outcomes(base.turned(precision=kind, learning_rate=rate), 100, seeds=2)
        losses[kind] = fmean(run.loss for run in found)
    told = ", ".join(f"{kind} {loss:.3f}" for kind, loss in losses.items())
    full, half = (experiment.CHANCE - loss for loss in losses.values())
    way = f"{half / full:.0%} of the way down" if full > 0.01 else "float32 hardly moves itself"
    print(f"rate {rate:<5g} loss: {told}, {way}")

# %% [markdown]
# The last number says how much of float32's way down from chance, ln 10, the bfloat16 weights have
# gone. Compare the rates. But learning rates fall during training, and gradients get smaller by
# themselves: what is harmless in the beginning need not stay so.
#
# ### Without float32 weights
#
# Two ways to keep 16-bit weights and lose nothing. *By chance*: round up or down at random, so that
# the mean is right (**stochastic rounding**). *Kahan*: keep what rounding took away in a second
# 16-bit number. The learning rate is the small one again.

# %%
saved = {
    rounding: experiment.outcomes(pure.turned(rounding=rounding), updates, seeds=2)
    for rounding in ("stochastic", "kahan")
}
same = slice(len(saved["kahan"]))  # the same seeds of the runs in part 6
before = {"fp32": runs["fp32"][same], "nearest": runs["pure bf16"][same]}
for name, found in (before | saved).items():
    losses = lab.figure.tell_over_seeds([run.loss for run in found])
    print(f"{name:<11} loss {losses}")

# %%
lab.show_source(precision.stochastic_round, docstring=False)

# %% [markdown]
# Stochastic rounding needs 2 bytes per weight, and random numbers. Kahan needs 4 bytes, as float32
# does: two for the weight, which the products can use as it is, and two for the rest. Mixed
# precision needs 6 while it computes: 4 and a copy of 2.
#
# ### When the range is wide enough
#
# Does float16 need loss scaling at all? Train with fixed scales: once as it is, once with the loss
# divided by 65,536.

# %%
powers = (-24, -16, -12, -8, 0, 4, 8, 16, 20, 24) if lab.effort() == 1 else (-24, 0, 24)
long = 60 if lab.effort() == 1 else 30
fixed = base.turned(precision="mixed fp16", learning_rate=0.3, scaling="fixed")
swept = {}
for places in (1, 2**16):
    for power in powers:
        settings = fixed.turned(mean_over=places, loss_scale=power)
        swept[places, power] = experiment.outcome(settings, long)

# %% jupyter={"source_hidden": true}
picture, (left, right) = lab.figure.axes(9.5, 3.2, columns=2)
for places, color, mark in ((1, lab.figure.BLUE, "-o"), (2**16, lab.figure.ORANGE, "--s")):
    found = [swept[places, power] for power in powers]
    name = f"mean over {places:,}"
    left.plot(powers, [min(run.loss, 3) for run in found], mark, color=color, label=name)
    right.plot(powers, [run.lost_gradients for run in found], mark, color=color, label=name)
left.set(xlabel="loss scale, power of 2", ylabel=f"loss after {long} updates", ylim=(0, 3.2))
right.set(xlabel="loss scale, power of 2", ylabel="gradients that become 0, %", ylim=(-3, 105))
right.legend(frameon=False)
picture

# %%
for places in (1, 2**16):
    best = min(swept[places, power].loss for power in powers)
    good = [power for power in powers if swept[places, power].loss < best + 0.05]
    print(f"mean over {places:>6,}: within 0.05 of the best from 2^{good[0]} to 2^{good[-1]}")

# %%
at_one, best = swept[1, 0], min(swept[1, power].loss for power in powers)
print(f"scale 1: {at_one.lost_gradients:.2f} % of the gradients become 0, loss {at_one.loss:.2f}")
enough = at_one.loss < best + 0.05
print("So without a loss scale", "this classifier trains as well." if enough else "it is worse.")

# %% [markdown]
# A plateau between two cliffs. On the left gradients become 0. Where only a few are left, each
# rounded to float16's smallest numbers, the loss can even rise. On the right, within this range for
# the blue runs, they overflow, and every update is skipped. A mean over 2¹⁶ times as many places
# moves all of it by 16 powers of 2 to the right. The loss of a language model is a mean over many
# tokens, so its gradients are small: there a scale of 1 may lie on the wrong side of the cliff.
#
# The verdict, for this machine:

# %%
instructions = "with" if has.get("bfloat16") else "without"
verdict = (
    f"pure bfloat16 loses {lost['pure bf16']:.0f} % of the updates at a rate of "
    f"{base.learning_rate:g}, mixed {lost['mixed bf16']:.1f} %; mixed takes "
    f"{ratios['mlp'].ratio:.2f} × float32's time (mlp), {ratios['cnn'].ratio:.2f} × (cnn) "
    f"{instructions} bfloat16 instructions, and keeps {kept['cnn']:.2f} × (cnn), "
    f"{kept['wide mlp']:.2f} × (wide mlp) of its activations"
)
lab.log_verdict("precision", verdict)

# %% [markdown]
# About the sentences from the start:
#
# - *Saves memory:* of activations, where they outweigh the copies of the weights. The weights take
#   more.
# - *Is faster:* where the processor has instructions for it, and large products take most of the
#   time. The line above says what that means here.
# - *Decides by the size of the model:* it decides by operation.
#
# ## 9. Exercises
#
# Write the functions and run the cells; `check` tries each on fresh data. It says what is right
# already, shows a small case that is not, and gives a hint where it knows the mistake. After two
# different tries it offers a worked solution. Some functions are written already, with faults:
# repair them.

# %%
from torch.nn.utils import clip_grad_norm_

from accel_lab.grading.practice import check, exercises

CHANCE, LOOP, TWICE = exercises("precision")
CHANCE


# %% tags=["exercise"]
def round_by_chance(x, bits):
    raise NotImplementedError


check(round_by_chance)

# %%
LOOP


# %% tags=["exercise"]
def train_scaled(model, optimizer, schedule, batches, max_norm, scale, interval):
    parameters, in_a_row, scales = list(model.parameters()), 0, []
    for x, y in batches:
        optimizer.zero_grad()
        (scale * cross_entropy(model(x), y)).backward()
        norm = clip_grad_norm_(parameters, max_norm)
        for parameter in parameters:
            parameter.grad.div_(scale)
        if norm.isfinite():
            optimizer.step()
            in_a_row += 1
        else:
            scale = scale / 2
        schedule.step()
        if in_a_row == interval:
            scale, in_a_row = 2 * scale, 0
        scales.append(scale)
    return scales


check(train_scaled)

# %%
TWICE


# %% tags=["exercise"]
def compensated_step(weight, rest, update):
    raise NotImplementedError


check(compensated_step)

# %% [markdown]
# ## 10. Take away
#
# - Around a weight *w*, bfloat16 has a number only every 2⁻⁷ of its size, roughly. Updates below
#   half of that vanish, however right the gradient is.
# - Mixed precision keeps weights in float32, multiplies in 16 bits, and takes losses in 32.
# - It decides by operation. It is faster where the processor has instructions for it and large
#   products take most of the time. It saves memory where activations outweigh the copies of the
#   weights.
# - float16 needs a loss scale when gradients are small: unscale, check, clip, step, in this order.
#   bfloat16 has float32's range and needs none.
# - Do not add up in 16 bits: weights, running sums, accumulated gradients.

# %% [markdown]
# Known from elsewhere, and not measured here: GPUs since 2017, and CPUs with AMX or AVX512-BF16,
# multiply 16-bit numbers several times as fast as float32; the 2018 paper below trains large
# networks to the same accuracy. Training in bfloat16 alone, with stochastic or compensated
# rounding: P. Zamirai et al., 2020, arXiv:2010.06192. Eight bits need a scale for every tensor:
# P. Micikevicius et al., 2022, arXiv:2209.05433.

# %% [markdown]
# **What would prove this wrong?** A run with bfloat16 weights, rounded to the nearest number, in
# which weights move although each of their updates is below half the distance to the neighbour on
# that side. If you find one, look whether the optimizer keeps a float32 copy.

# %% [markdown]
# **Sources.** P. Micikevicius et al., *Mixed precision training*, 2018, arXiv:1710.03740, section 3
# · D. Kalamkar et al., *A study of bfloat16 for deep learning training*, 2019, arXiv:1905.12322 ·
# S. Gupta et al., *Deep learning with limited numerical precision*, 2015, arXiv:1502.02551, section
# 3 · PyTorch, `torch.autocast` and `torch.amp.GradScaler`.
#
# **Next.** One float32 copy of the weights rescued the updates. A second copy that moves more
# slowly can do something else: be better than each of the models that a run passes through.
# [Chapter 14](14_averaging.ipynb). The other chapters are listed on the
# [first page](00_start_here.ipynb).
