# ---
# jupyter:
#   kernelspec:
#     name: python3
#     display_name: Python 3
# ---

# %% [markdown]
# # 10 · Transfer learning
#
# ## 1. The question
#
# Somebody has trained a network on a million photographs. You have ten pictures of each class, and
# another task. About this you can read:
#
# > *Transfer learning accelerates training: freeze the layers, and train only the last one.*
#
# Most tutorials then train for many epochs, and in each epoch all pictures go through the frozen
# layers again. You will find out what freezing saves, what else there is to save, and how far ten
# pictures of each class reach.

# %% jupyter={"source_hidden": true}
import math
from statistics import fmean, median

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from accel_lab import transfer
from accel_lab.experiments import transfer as experiment
from accel_lab.workbench import chapter as lab

torch.set_num_threads(1)  # all ways alike: their work is compared, not how it is shared out

# %% [markdown]
# The next cell holds the settings of this chapter. Change one, as in `knobs = {"pictures": 30}`,
# and run the notebook again: everything below follows.

# %% tags=["parameters"]
knobs = {}

# %%
base = lab.settings(experiment.Knobs, knobs)
at_length = lab.effort() == 1  # no quick look
network = experiment.photo_network()
weights = sum(parameter.numel() for parameter in network.parameters())
of_head = (experiment.WIDTH + 1) * experiment.CLASSES
print(f"EfficientNet-Lite0: {len(network)} parts, {weights:,} weights, 1,280 numbers a picture")
print(f"a new last layer for {experiment.CLASSES} classes: {of_head:,} weights,", end=" ")
print(f"{of_head / (weights + of_head):.1%} of all")

# %% [markdown]
# The network comes with a package, and so nothing is downloaded. The new task: here is a small
# piece of one of ten photographs. Which one is it from? Training pieces lie in the left part of a
# photograph, test pieces in the right part.

# %% jupyter={"source_hidden": true}
pieces = experiment.photographs(base)
picture, row = lab.figure.axes(9, 1.2, columns=10)
for label, axes in enumerate(row):
    piece = pieces.train_x[pieces.train_y == label][0]
    axes.imshow(piece.permute(1, 2, 0))
    axes.set(xticks=[], yticks=[], title=label)
    axes.grid(False)
    axes.spines[:].set_visible(False)
picture

# %% [markdown]
# ## 2. Predict
#
# Three guesses, before you see anything. Skip them if you like.

# %%
guess_frozen = lab.Prediction(
    "Only the last layer learns: how many times as fast is an epoch as training everything?",
    low=1,
    high=1000,
    default=100,
    unit="×",
)
guess_frozen

# %%
guess_kept = lab.Prediction(
    "Ask the frozen layers once, not in each of 30 epochs: how many times as fast is that in all?",
    low=1,
    high=1000,
    default=2,
    unit="×",
)
guess_kept

# %%
guess_right = lab.Prediction(
    f"Test accuracy of the last layer, from {base.pictures} pictures of each class:",
    low=10,
    high=100,
    default=40,
    unit="%",
)
guess_right

# %% [markdown]
# ## 3. See
#
# First the clock is read: what a picture takes through each of the 18 parts, and what an update of
# the new last layer takes. The dashed marks below are made of these.

# %%
cost = experiment.costs(base.side, base.device)
print(f"a picture through all 18 parts: {1e3 * cost.trunk(18):6.2f} ms")
print(f"its share of an update of the last layer: {1e3 * cost.head:6.3f} ms")

# %% [markdown]
# The network is cut in two. The *trunk*, what lies before the **cut**, is frozen. What lies behind
# it learns, and ends in a new last layer, the *head*. The dashed orange run asks the trunk at every
# update. Press **Start**: yours asks once, and keeps the answers.
#
# Then move the **cut** down, and look at both the time and the accuracy. Last, choose **small
# CNN**, which begins from nothing and has neither a cut nor another side than 32, and change the
# number of **pictures**.

# %%
foreseen = {"predicted": experiment.predicted_epoch_seconds, "formula": "predicted"}
epoch = lab.Sweep("cut", "epoch_seconds", "milliseconds an epoch", 1e3, log=True, **foreseen)
parts = {f"{kind.replace(' ', '_')}_ms": kind for kind in experiment.PIECES}
charts = [
    lab.Curve("test_accuracy", "test accuracy, %", scale=100, ends=(0, 100)),
    epoch,
    lab.Budget(parts, "where the time of an epoch goes, ms"),
    lab.Curve("asked", "pictures through the trunk so far", over="updates", summary="max"),
]

# %%
panel = lab.Panel(
    experiment.run,
    base.turned(judged=100),
    charts,
    controls=["way", "cut", "pictures", "side"],
    baselines={"asking at every update": {"way": "asked"}},
    headline=lab.Headline("epoch_seconds", "epoch time"),
    tour=[base.turned(judged=100, **changes) for changes in experiment.TOUR],
    seconds=1.6,  # so that the asked one has a curve, too
)
panel

# %% [markdown]
# What to look for:
#
# - The run that keeps begins a little later: its first update asks about all pictures. From then on
#   no picture goes through the trunk.
# - With the cut at 18, nearly all of an epoch was the frozen forward pass.
# - The lower the cut, the longer an epoch: *backward* grows. Does the accuracy grow as well?

# %% [markdown]
# ## 4. Build
#
# ### Freeze, and cut
#
# "Frozen" means two things: no weight learns, and the network is in evaluation mode. Batch
# normalization has a running mean and a running variance, which are no weights and change whenever
# it runs in training mode. `model.train()` would switch that on, so a frozen network does not
# listen to it.

# %%
lab.show_source(transfer.Frozen, docstring=False)

# %% [markdown]
# The cut is one number, from "train everything" to "train the head alone". One line is left out.
# Your function cuts a network of four layers in the middle; the second layer is batch
# normalization. Then comes an update in training mode. Layers 0 and 1 have to be what they were,
# and layers 2 and 3 have to learn.


# %%
def only_the_rest_learns(split):
    torch.manual_seed(0)
    layers = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 3)
    small = nn.Sequential(*layers)
    before, both = lab.snapshot(small), nn.Sequential(*split(small, 2)).train()
    cross_entropy(both(torch.randn(32, 4)), torch.arange(32) % 3).backward()
    torch.optim.SGD(both.parameters(), lr=0.1).step()
    after = lab.snapshot(small)
    changed = {int(name[0]) for name in before if not torch.equal(before[name], after[name])}
    return sorted(changed), [2, 3]


# %% jupyter={"source_hidden": true}
lab.MissingLine(
    transfer.split,
    {
        "return Frozen(nn.Sequential(*parts[:cut])), nn.Sequential(*parts[cut:])": (
            "No weight before the cut learns, no statistics move, and train() changes neither."
        ),
        "return Frozen(nn.Sequential(*parts[:-1])), nn.Sequential(*parts[-1:])": (
            "Only the head learns, whatever the cut: layer 2, which should learn, is frozen, too."
        ),
        "return nn.Sequential(*parts[:cut]).eval(), nn.Sequential(*parts[cut:])": (
            "Evaluation mode ends with the next train(), and the weights learn in either mode."
        ),
        "return nn.Sequential(*parts[:cut]).requires_grad_(False), nn.Sequential(*parts[cut:])": (
            "No weight before the cut learns, but train() lets the running statistics move."
        ),
    },
    only_the_rest_learns,
)

# %%
x, _ = experiment.pictures_of(base, pieces)
print("cut   numbers kept of a picture   KiB")
for cut in (18, 17, 15, 11, 0):
    trunk, rest = transfer.split(network, cut)
    kept = transfer.answers(trunk, x[:1])
    print(f"{cut:>3} {kept[0].numel():>27,} {kept.nbytes / 2**10:>5.0f}")

# %% [markdown]
# ### Ask, or keep
#
# This is the usual update. The trunk is asked about each batch:

# %%
lab.show_source(transfer.asked_update, transfer.kept_update, docstring=False)

# %% [markdown]
# **A frozen network gives the same answer to the same picture in every epoch.** So it is asked
# once, in batches and without gradients, and each update picks the answers of its batch. The whole
# training of a head is then a loop over small products:

# %%
lab.show_source(transfer.answers, transfer.train_head, docstring=False)

# %% [markdown]
# ### What it costs
#
# With *n* pictures, *E* epochs, *f* seconds for a picture through the trunk and *h* for its share
# of an update behind the cut:
#
# $$\text{asked: } E\,n\,(f + h) \qquad \text{kept: } n\,f + E\,n\,h$$
#
# The ratio is $E(f+h)/(f+Eh)$. It is near $E$, as long as $E\,h$ is small beside $f$.

# %%
for epochs in (1, 3, 10, 30, 100, 1000):
    asked = experiment.predicted_seconds(base.turned(way="asked"), epochs)
    kept_too = experiment.predicted_seconds(base.turned(way="kept"), epochs)
    print(f"{epochs:>5} epochs: {asked:8.2f} s asked, {kept_too:6.2f} s kept,", end=" ")
    print(f"{asked / kept_too:6.1f} × as fast")

# %% [markdown]
# ### Watch them
#
# Three trainings, recorded here: the head on kept answers, the head on asked ones, and a small CNN
# from scratch. Tests are outside the clock. Press **Play**.

# %%
told = base.turned(cut=18, way="kept", mistake="none")
slow = 3 if at_length else 2  # epochs of what takes long
recorded = {
    "kept": experiment.outcome(told, 30),
    "asked": experiment.outcome(told.turned(way="asked"), slow),
    "small CNN": experiment.outcome(told.turned(way="small CNN"), 30),
}


# %% jupyter={"source_hidden": true}
def trained_until(tenth=4):
    longest = max(run.seconds for run in recorded.values())
    now = longest * tenth / 10
    picture, (left, right) = lab.figure.axes(9, 3, columns=2)
    for (name, run), (color, style) in zip(recorded.items(), lab.figure.STYLES):
        done = [(0.0, 10.0)] + [test for test in run.tests if test[0] <= now]
        left.plot(*zip(*done), style, color=color, label=name)
        right.barh(name, len(done) - 1, color=color)
    left.axvline(now, **lab.figure.LIMIT)
    left.set(xlim=(0, 1.02 * longest), ylim=(0, 100), xlabel="seconds of training")
    left.set_title(f"test accuracy, %, after {now:.2f} s", loc="left", fontsize=10)
    left.legend(frameon=False, loc="lower right", fontsize=8)
    right.set(xlim=(0, 31), xlabel="epochs done", ylim=(2.5, -0.5))
    return picture


lab.Sliders(trained_until, tenth=range(11))

# %% [markdown]
# *Half-way. This is a good place to stop and come back to: run all cells above, and go on here.*
#
# ## 5. Prove
#
# ### Frozen is frozen
#
# Three updates of a model that contains the network, with momentum and weight decay, in training
# mode. Which of the network's tensors have changed? First with `Frozen`, then with
# `requires_grad_(False)` alone:


# %%
def tensors_changed(trunk):
    before = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
    model = nn.Sequential(trunk, nn.Linear(experiment.WIDTH, 10))
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        model.train()
        transfer.kept_update(model, sgd, few, labels)
    return [name for name, old in before.items() if not trunk.state_dict()[name].equal(old)]


# %% tags=["nbval-check-output"]
generator = torch.Generator().manual_seed(0)
few = experiment.prepared(torch.rand(8, 3, 32, 32, generator=generator), 32)
labels = torch.arange(8)
print("Frozen:", len(tensors_changed(transfer.Frozen(experiment.photo_network()))), "changed")
changed = tensors_changed(experiment.photo_network().requires_grad_(False))
kinds = sorted({name.rpartition(".")[2] for name in changed})
print("requires_grad_(False) alone:", len(changed), "changed:", ", ".join(kinds))

# %% [markdown]
# ### Kept is asked
#
# Three ways to train the last part and a head, for 5 updates in float64: the whole network,
# whose first parts do not learn; the trunk asked at every update; its answers kept.


# %%
def trained(way, cut=17, updates=5):
    torch.manual_seed(1)
    whole = nn.Sequential(*experiment.photo_network(), nn.Linear(experiment.WIDTH, 10)).double()
    trunk, rest = transfer.split(whole, cut)
    adam = torch.optim.Adam(rest.parameters(), lr=1e-3)
    seen = few.double()
    once = transfer.answers(trunk, seen, batch_size=3)
    for places in torch.stack([torch.randperm(8)[:3] for _ in range(updates)]):
        if way == "whole":
            transfer.kept_update(whole.eval(), adam, seen[places], labels[places])
        elif way == "asked":
            transfer.asked_update(trunk, rest, adam, seen[places], labels[places])
        else:
            transfer.kept_update(rest, adam, once[places], labels[places])
        yield lab.snapshot(rest)


# %% tags=["nbval-check-output"]
three = {name: trained(name) for name in ("whole", "asked", "kept")}
proof = lab.prove(three, steps=5, tolerance=1e-9)
assert proof.holds
print(proof)

# %% [markdown]
# ## 6. Measure
#
# ### One update
#
# Three updates take turns: everything learns, the head alone learns and the trunk is asked, the
# head alone learns from kept answers. Whoever trains everything also needs memory for gradients and
# for what the backward pass reads.

# %%
everything = told.turned(learns="all", way="asked", judged=100)
update = {
    "all": experiment.update_of(everything),
    "asked": experiment.update_of(told.turned(way="asked")),
    "kept": experiment.update_of(told),
}
frozen = lab.compare(update["asked"], update["all"], names=("frozen, asked", "all"), patience=1)
once = lab.compare(update["kept"], update["asked"], names=("kept", "asked"), patience=1)
update.clear()
print(frozen, once, sep="\n")
print("by the products of matrices, training everything takes 3 × a forward pass;", end=" ")
print(f"measured here: {1 / frozen.ratio:.1f} ×")
guess_frozen.against(1 / frozen.ratio)

# %% [markdown]
# Freezing nearly all of the weights does not save nearly all of the time: the forward pass stays.
# Keeping the answers saves that, too.
#
# ### Thirty epochs
#
# The trainings recorded above, and the law with the costs from part 3. What is not recorded of the
# asked one goes on at the speed of its epochs:

# %%
asked_at = {number: run[0] for number, run in enumerate(recorded["asked"].tests, 1)}
kept_at = {number: run[0] for number, run in enumerate(recorded["kept"].tests, 1)}
pace = median(b - a for a, b in zip([0, *asked_at.values()], asked_at.values()))
asked_30 = asked_at[slow] + (30 - slow) * pace
saved = asked_30 / kept_at[30]
for name, last, measured in (("asked", 30, asked_30), ("kept", 30, kept_at[30])):
    law = experiment.predicted_seconds(told.turned(way=name), last)
    print(f"{name:<5} 30 epochs: {measured:6.2f} s, by the law {law:6.2f} s")
print(f"keeping is {saved:.0f} × as fast")
guess_kept.against(saved)

# %% [markdown]
# ### Accuracy per second
#
# Now all ways in one race, the slow ones for few epochs only: everything trained, for two epochs
# from the weights that the network came with, for one from new weights.

# %%
race = {
    "kept": recorded["kept"],
    "asked": recorded["asked"],
    "all trained": experiment.outcome(everything, 2),
    "new weights": experiment.outcome(everything.turned(learns="new weights"), 1),
    "small CNN": recorded["small CNN"],
}
for name, run in race.items():
    print(f"{name:<12} {1e3 * run.epoch:7.1f} ms an epoch, {len(run.tests):>2} epochs,", end=" ")
    print(f"{run.seconds:5.2f} s, {run.grown / 2**20:4.0f} MiB more: {run.accuracy:.0f} %")

# %% jupyter={"source_hidden": true} tags=["hero"]
picture, (axes,) = lab.figure.axes(8, 3.8)
axes.set_xscale("log")
lines = {name: dict(run.tests) for name, run in race.items()}
for (name, line), mark in zip(lines.items(), "osD^v"):
    color, style = ([(lab.figure.BLUE, "-"), *lab.figure.STYLES] * 2)[list(lines).index(name)]
    axes.plot(list(line), list(line.values()), style, color=color, marker=mark, markersize=4)
    axes.plot([], [], style, color=color, marker=mark, label=name)
axes.axhline(10, **lab.figure.LIMIT, label="chance")
axes.set(ylim=(0, 100), xlabel="seconds of training, the first pass included")
axes.set_ylabel("test accuracy, %")
axes.xaxis.set_major_formatter("{x:g}")
axes.set_title("Which way learns most in a second?", loc="left", fontsize=10)
axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
picture

# %% [markdown]
# ### Over seeds
#
# Each seed chooses other training pictures, weights and orders. All runs have the same number of
# updates, and are tested on the same pictures; those of the first seed are recorded above.

# %%
more_seeds = lab.some_seeds(3)[1:]
learned = {
    way: [recorded[way], *experiment.over_seeds(told.turned(way=way), 30, more_seeds)]
    for way in ("kept", "small CNN")
}
for way, found in learned.items():
    percent = lab.figure.tell_over_seeds([run.accuracy for run in found], "%")
    print(f"{way:<9} {percent}, {fmean(run.seconds for run in found):.2f} s")
by_kept, by_small = learned.values()
gained = [a.accuracy - b.accuracy for a, b in zip(by_kept, by_small)]
quicker = fmean(a.seconds for a in by_kept) / fmean(b.seconds for b in by_small)
print(f"kept answers minus small CNN: {lab.figure.tell_over_seeds(gained, 'points')},")
print(f"in {quicker:.2f} × its time, the first pass included")
guess_right.against(fmean(run.accuracy for run in by_kept))

# %% [markdown]
# ### Where to cut
#
# First the head alone, on kept answers. Then two epochs that also train what lies behind the cut,
# at a low rate, from that head on. (Trained at once, a new head's first gradients would spoil what
# the parts below have learned: Kumar et al., 2022.)

# %%
gains, seeds = {}, [base.seed + one for one in lab.some_seeds(2)]
for cut in (17, 15) if at_length else (17,):
    tried = [everything.turned(learns="behind the cut", cut=cut, seed=seed) for seed in seeds]
    gains[cut] = [b - a for a, b in (experiment.head_first(turned, 2) for turned in tried)]
    points = lab.figure.tell_over_seeds(gains[cut], "points")
    ms = 1e3 * experiment.predicted_epoch_seconds(tried[0])
    print(f"cut {cut}: {points} more than the head; about {ms:.0f} ms an epoch")
sure = [cut for cut, found in gains.items() if min(found) > 1]
print("gained more than a point at every seed:", ", ".join(map(str, sure)) or "no cut")

# %% [markdown]
# Few test pictures decide here, and few seeds: a point more or less means nothing. The time is the
# prediction, from forward passes; compare dots and dashes in the panel.
#
# ## 7. Break it
#
# Six mistakes, one click each. Press **Start**, then choose one **mistake** after the other. *High
# rate* is about what is not frozen: lower the cut for it.

# %%
sound = told.turned(judged=100, batch_size=20)  # so that a run is short
tried_first = {"high rate": 15, "batch norm": 18}  # mistake: cut
chance = (math.log(10), "chance, ln 10")
loss_curve = lab.Curve("loss", "loss of the batch", over="updates", log=(1e-3, 100), limit=chance)
test_curve = lab.Curve("test_accuracy", "test accuracy, %", 100, over="updates", ends=(0, 100))
break_it = lab.Panel(
    experiment.run,
    sound,
    [loss_curve, test_curve],
    controls=["mistake", "cut"],
    baselines={"no mistake": {"mistake": "none"}},
    headline=lab.Headline("test_accuracy", "test accuracy", points=True),
    tour=[sound.turned(mistake=name, cut=cut) for name, cut in tried_first.items()],
    seconds=0.8,
)
break_it

# %% [markdown]
# Write down what you think each mistake does, then look.
#
# <details><summary>What each of them does</summary>
#
# - **batch norm.** The network is asked in training mode. Each answer depends on the other pictures
#   of its batch, and the running statistics move away from what the network has learned.
# - **no scale.** This network wants pictures from −1 to 1. From 0 to 1 it still answers, but worse.
# - **old head.** The optimizer was made before the new head. It trains a layer nobody asks.
# - **drawn once.** Pictures are cut and mirrored at random, and then kept: one draw for all epochs
#   is not augmentation.
# - **high rate.** The rate of the new head for all that learns: it destroys what was learned.
# - **ImageNet scale.** The mean and spread that most networks want. This one was trained with
#   others, and gets 2.2 × the contrast that it knows.
#
# </details>
#
# Now all of them over seeds, each against the same run without it. What is below zero was gained:

# %%
mistakes = ["batch norm", "old head"]
if at_length:
    mistakes += ["no scale", "high rate", "drawn once", "ImageNet scale"]
lost = {}
for name in mistakes:
    turned = sound.turned(mistake=name, cut=tried_first.get(name, 18))
    epochs = 2 if name == "high rate" else 15
    found, right = (
        [run.accuracy for run in experiment.over_seeds(one, epochs, lab.some_seeds(4))]
        for one in (turned, turned.turned(mistake="none"))
    )
    lost[name] = [a - b for a, b in zip(right, found)]
    points = lab.figure.tell_over_seeds(lost[name], "points")
    print(f"{name:<15}{fmean(found):3.0f} % instead of {fmean(right):.0f} %, lost: {points}")
worst = [name for name, found in lost.items() if min(found) > 5]
print("more than five points lost at every seed:", ", ".join(worst) or "none")

# %% [markdown]
# ### Bad input
#
# What cannot be is refused in one line:

# %% tags=["nbval-check-output"]
for wrong in (
    lambda: transfer.split(network, 19),
    lambda: transfer.answers(nn.Sequential(nn.Dropout()), torch.ones(2)),
    lambda: transfer.train_head(torch.ones(2, 4), torch.tensor([3, 12]), 10, []),
    lambda: experiment.prepared(torch.rand(2, 1, 28, 28), 64),
    lambda: experiment.prepared(torch.full((2, 3, 32, 32), 255.0), 64),
    lambda: experiment.prepared(torch.rand(2, 3, 32, 32), 16),
    lambda: experiment.some_of_each(torch.tensor([0, 0, 2]), 3, 1),
):
    try:
        wrong()
    except ValueError as refusal:
        print(refusal)

# %% [markdown]
# ## 8. When it does not help
#
# ### Another kind of picture
#
# Our pieces come from photographs, as ImageNet's pictures do. Handwritten digits do not. Here are
# the head on kept answers and a small CNN of 8 channels, both with 100 updates:

# %%
of_digits = [experiment.digits(200, seed) for seed in lab.some_seeds(2)]
for way in ("kept", "small"):
    accuracies = [getattr(run, way) for run in of_digits]
    print(f"200 digits, {way:<5}", lab.figure.tell_over_seeds(accuracies, "%"))
behind = all(run.kept < run.small - 2 for run in of_digits)
print("more than two points behind the small CNN at every seed:", "yes" if behind else "no")

# %% [markdown]
# Transfer helps as far as the tasks are related. Ours are, and that is part of the result.
#
# ### Larger pictures
#
# The network was trained with pictures of 224 pixels. Ours have 32, and enlarging them adds no
# detail. Each step costs time; what does it gain?

# %%
for side in (32, 64, 96) if at_length else (32, 64):
    found = experiment.over_seeds(sound.turned(side=side), 15, lab.some_seeds(1))
    right = lab.figure.tell_over_seeds([run.accuracy for run in found], "%")
    print(f"{side} pixels: {right} in {fmean(run.seconds for run in found):.2f} s")

# %% [markdown]
# ### One epoch, or augmentation
#
# In a single epoch each picture is asked about once either way: nothing is saved. With new
# augmentations in each epoch the pictures are new as well, and no kept answer fits them. The fourth
# exercise finds out when keeping several views of each picture pays.

# %%
kept_right, small_right = (fmean(run.accuracy for run in runs) for runs in (by_kept, by_small))
verdict = (
    f"10 classes, {base.pictures} pictures each: frozen takes {frozen.ratio:.2f} × the time of an "
    f"update that trains everything, kept answers {once.ratio:.3f} × that of frozen; 30 epochs "
    f"are {saved:.0f} × as fast as asking, {kept_right:.0f} % right in "
    f"{fmean(run.seconds for run in by_kept):.2f} s, a small CNN from scratch {small_right:.0f} %"
)
lab.log_verdict("transfer", verdict)

# %% [markdown]
# ## 9. Exercises
#
# Write the functions and run the cells; `check` tries each on fresh data. It says what is right
# already, shows a small case that is not, and gives a hint where it knows the mistake. After two
# different tries it offers a worked solution. One function is written already, with faults: repair
# it.

# %%
from accel_lab.grading.practice import check, exercises

IN_PLACE, SEEMING, ON_KEPT, PAYING = exercises("transfer")
IN_PLACE


# %% tags=["exercise"]
def freeze_first(model, parts):
    raise NotImplementedError


check(freeze_first)

# %%
SEEMING


# %% tags=["exercise"]
def tune_head(trunk, head, batches):
    both = torch.nn.Sequential(trunk, head)
    optimizer = torch.optim.SGD(both.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    both.train()
    losses = []
    for x, y in batches:
        optimizer.zero_grad()
        loss = cross_entropy(both(x), y)
        loss.backward()
        for parameter in trunk.parameters():
            parameter.grad.zero_()  # frozen
        optimizer.step()
        losses.append(loss.item())
    return losses


check(tune_head)

# %%
ON_KEPT


# %% tags=["exercise"]
def epochs_on_kept(trunk, head, x, y, order):
    raise NotImplementedError


check(epochs_on_kept)

# %%
PAYING


# %% tags=["exercise"]
def epochs_to_pay(pictures, forward, update, write, read, views):
    raise NotImplementedError


check(epochs_to_pay)

# %% [markdown]
# ## 10. Take away
#
# - Freezing saves the backward pass. The forward pass through the frozen layers stays.
# - A frozen network's answers do not change: ask once and keep them. Then the number of epochs
#   hardly matters.
# - Frozen means no weight *and* no statistic: keep batch normalization in evaluation mode.
# - Give the network what it was trained with: its scale, and pictures that are not too small.
# - First the head. Then, if the pictures are worth it, a few parts more, at a low rate.

# %% [markdown]
# Known from elsewhere, and not measured here: the first layers of a network transfer to nearly all
# tasks, the last ones are specific (Yosinski et al., 2014). Networks that are better on ImageNet
# are better to transfer from (Kornblith et al., 2019). With many labels, fine-tuning everything
# beats the head alone; where the new pictures differ from the training pictures, it can lose to it
# (Kumar et al., 2022).
#
# **What would prove this wrong?** A head that is trained on kept answers and ends with other
# weights than one that asked each time. If you find one, look for dropout, for batch normalization
# in training mode, or for augmentation: then the trunk was not frozen.

# %% [markdown]
# **Sources.** J. Yosinski et al., *How transferable are features in deep neural networks?*, 2014,
# arXiv:1411.1792 · S. Kornblith et al., *Do Better ImageNet Models Transfer Better?*, 2019,
# arXiv:1805.08974 · A. Kumar et al., *Fine-Tuning can Distort Pretrained Features*, 2022,
# arXiv:2202.10054 · M. Tan, Q. Le, *EfficientNet*, 2019, arXiv:1905.11946.
#
# **Next.** Training more of a network needs more memory for each picture of the batch. How a large
# batch still fits is gradient accumulation, [chapter 11](11_accumulation.ipynb). The other chapters
# are listed on the [first page](00_start_here.ipynb).
