# ---
# jupyter:
#   kernelspec:
#     name: python3
#     display_name: Python 3
# ---

# %% [markdown]
# # 19 · Distillation
#
# ## 1. The question
#
# A large network answers well and slowly, a small one fast and not so well. *Distillation* lets the
# large one, the **teacher**, teach the small one, the **student**: it learns from what the teacher
# says about each sample, not only from the label.
#
# You can read about it:
#
# > *The small model learns from the large one, which removes the loss of accuracy.*
# >
# > *The loss is* $L = -\log(p_T) \cdot w^\top \cdot \operatorname{softmax}(\text{logits}_S)$.
#
# Published distillations fail to reproduce more often than most things in this field. So: what does
# the student really gain, from where, and what does it cost, on the machine in front of you? And
# can a student learn something it was **never shown**?

# %%
import inspect
from functools import cache
from itertools import islice
from statistics import mean

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from accel_lab.distillation import distillation_loss, logits_of, soft_loss
from accel_lab.experiments import distillation as experiment
from accel_lab.experiments.distillation import Knobs, teacher_of
from accel_lab.workbench import models
from accel_lab.workbench.data import datasets
from accel_lab.workbench.drawing import figure
from accel_lab.workbench.drawing.curve import Curve
from accel_lab.workbench.drawing.sweep import Sweep
from accel_lab.workbench.measure.comparison import Comparison, compare
from accel_lab.workbench.measure.proof import prove, trajectory
from accel_lab.workbench.notebook.speed_log import log_verdict
from accel_lab.workbench.panel import Panel, Prediction, Sliders

torch.set_num_threads(1)  # models this small gain nothing from a second core

# %% [markdown]
# The next cell holds the settings of this chapter. Change one, as in `knobs = {"samples": 400}`,
# and run the notebook again: everything below follows.

# %% tags=["parameters"]
knobs = {}

# %%
base = Knobs(**{"device": "cpu", **knobs})
alone = base.turned(soft_share=0.0)
digits = datasets.mnist5k()
teacher = teacher_of(
    "mnist5k", base.teacher_channels, base.teacher_updates
)  # trained here, in a few seconds


def share_right(logits, labels):
    return (logits.argmax(1) == labels).float().mean().item()


print(f"the teacher saw {len(digits.train_x):,} labelled digits and recognises", end=" ")
print(
    f"{share_right(logits_of(teacher, digits.test_x), digits.test_y):.1%} of "
    f"{len(digits.test_x):,} others"
)

# %% [markdown]
# ## 2. Predict
#
# The student is a network of the same kind, an eighth of the size. Two guesses; no penalty for a
# wrong one, and you may skip them.
#
# First, the student sees 200 digits only. Once it learns from their labels, once it is taught.

# %%
guess_gain = Prediction(
    "By how many points does a taught student beat one that learns from 200 labels alone?",
    low=0.1,
    high=50,
    default=2.0,
    unit="points",
)
guess_gain

# %% [markdown]
# Second: we take every 3 out of the student's lesson. It never sees one, and no label says "3". The
# teacher knows threes.

# %%
guess_threes = Prediction(
    "Of 100 threes in the test, how many does that student recognise?",
    low=0.5,
    high=100,
    default=1.0,
    unit="of 100",
)
guess_threes

# %% [markdown]
# ## 3. See
#
# The dashed orange run is the student alone. Press **Start**: yours is taught. Then move the
# **temperature** (part 4 says what it is), and take the teacher's **soft share** away bit by bit.

# %%
panel = Panel(
    experiment.run,
    base,
    [
        Curve("accuracy", "digits recognised, %", scale=100, over="updates"),
        Curve("throughput", "samples/s"),
        Sweep("temperature", "perplexity", "classes the teacher names"),
        Curve("loss", "loss", over="updates"),
    ],
    controls=["temperature", "soft_share", "samples"],
    baselines={"student alone": alone},
    tour=[base.turned(temperature=1.0), base],
    seconds=1.0,
)
panel

# %% [markdown]
# What to look for:
#
# - The taught student leaves the other one far behind, with the *same* samples and the *same*
#   start.
# - Its samples per second are nearly those of the student alone. The teacher is large; where is its
#   work?
# - The losses cannot be compared: they measure different things. Accuracy can.
#
# ## 4. Build
#
# ### What a teacher says
#
# A label is one class. A teacher's logits are an opinion of all ten. Here is a digit, and the
# teacher's opinion of it: its probabilities, after the logits were divided by a **temperature**
# *T*.

# %%
opinions = logits_of(teacher, digits.train_x)
doubts = softmax(opinions, 1).max(1).values
seen = int(
    torch.nonzero((digits.train_y == 7) & (doubts > 0.9))[0]
)  # a 7 that the teacher is fairly sure of


def draw_opinion(axes, temperature):
    axes.bar(range(10), softmax(opinions[seen] / temperature, 0), color=figure.BLUE)
    axes.set(xticks=range(10), ylim=(0, 1), xlabel=f"class, at T = {temperature:.3g}")


picture, (digit, *rest) = figure.axes(9, 2.2, columns=4)
digit.imshow(digits.train_x[seen, 0], cmap="gray_r")
digit.axis("off")
for axes, temperature in zip(rest, (1, 4, 20)):
    draw_opinion(axes, temperature)
rest[0].set_ylabel("probability")
picture

# %% [markdown]
# At *T* = 1 the teacher says little more than the label. At *T* = 4 you can read which digits it
# takes for *nearly* this one. At *T* = 20 it names them all alike. Move it yourself:


# %%
def at(temperature=4.0):
    picture, (axes,) = figure.axes(5, 2)
    draw_opinion(axes, temperature)
    return picture


Sliders(at, temperature=(1.0, 20.0, 0.5))

# %% [markdown]
# ### The loss
#
# With $p = \operatorname{softmax}(\text{teacher}/T)$ and $q =
# \operatorname{softmax}(\text{student}/T)$, and a share $a$ for the teacher:
#
# $$L = (1-a) \cdot \mathrm{CE}(\text{labels}, \text{student}) + a \cdot T^2 \cdot \mathrm{KL}(p \,\|\, q)$$
#
# Why $T^2$? The gradient of the second part by the student's logits is $T \,(q - p)$ for each
# sample. The difference $q - p$ itself shrinks as $1/T$, since both come closer to "all alike". So
# with $T^2$ the teacher is heard equally loud at any temperature; without it, $1/T^2$ times as
# loud.

# %%
print(inspect.getsource(soft_loss))
print(inspect.getsource(distillation_loss))

# %% [markdown]
# ### The teacher's work, once
#
# A teacher does not learn. What it says about a sample today it says tomorrow. So ask it about the
# whole lesson **once**, in evaluation mode, and keep the logits: ten numbers a sample.

# %%
print(inspect.getsource(logits_of))

# %% [markdown]
# That is all. Here is the whole training, the plain loop with another loss:


# %%
def teach(x, kept, temperature, updates=180, batch_size=100, seed=0):
    torch.manual_seed(seed)
    student = models.cnn(base.student_channels)
    optimizer = torch.optim.Adam(student.parameters(), lr=base.learning_rate)
    order = torch.cat([torch.randperm(len(x)) for _ in range(1 + updates * batch_size // len(x))])
    for index in order.split(batch_size)[:updates]:
        optimizer.zero_grad()
        soft_loss(student(x[index]), kept[index], temperature).backward()
        optimizer.step()
    return student


# %% [markdown]
# ### What it was never shown
#
# No labels at all in this loss. So let us see what travels in a teacher's opinion. The lesson: all
# digits **except the threes**.

# %%
no_threes = digits.train_y != 3
x, kept = digits.train_x[no_threes], opinions[no_threes]
threes = digits.test_y == 3

students = {f"T = {temperature}": teach(x, kept, temperature) for temperature in (1, 4)}
certain = (
    30 * torch.nn.functional.one_hot(digits.train_y[no_threes], 10).float()
)  # "opinions" that only repeat the label
students["labels alone"] = teach(x, certain, 1)
for name, student in students.items():
    print(
        f"{name:<13} recognises "
        f"{share_right(student(digits.test_x[threes]), digits.test_y[threes]):4.0%} of the threes",
        end=", ",
    )
    print(f"{share_right(student(digits.test_x), digits.test_y):.0%} of all digits")

# %% [markdown]
# It has never seen a three. It has seen eights, fives and twos of which the teacher said: *a little
# like a three*. That was enough to learn what a three is; the label alone, which says nothing of
# the kind, leaves it at none.
#
# Even now it thinks of threes as something rare, because in its lesson they never were the first
# choice. Its last layer has a number for exactly that, the bias of the class. Turn it up, and touch
# nothing else:

# %%
picture, (axes,) = figure.axes(8, 3)
added = torch.linspace(0, 6, 25)
for (name, student), (color, style) in zip(students.items(), figure.STYLES):
    with torch.no_grad():
        logits = student(digits.test_x)
    shares = [
        share_right(logits[threes] + bias * torch.eye(10)[3], digits.test_y[threes])
        for bias in added
    ]
    axes.plot(added, shares, style, color=color, label=name)
axes.set(xlabel="added to the bias of class 3", ylabel="threes recognised", ylim=(-0.02, 1.02))
axes.legend(frameon=False)
picture

# %%
hot = students["T = 4"]
guess_threes.against(max(0.5, 100 * share_right(hot(digits.test_x[threes]), digits.test_y[threes])))

# %% [markdown]
# (Everything would be a three with a bias high enough, so look at *all* digits as well. The third
# exercise finds the bias without looking at a single label.)
#
# ## 5. Prove
#
# Three ways to the same loss: ours; PyTorch's `kl_div`, which wants logarithms first and
# probabilities second; and cross-entropy with soft labels, which differs by a constant and so has
# the same gradient. Ten updates of each, in float64:


# %%
def framework(student, teacher, T):
    return (
        kl_div(log_softmax(student / T, 1), softmax(teacher / T, 1), reduction="batchmean") * T**2
    )


def with_soft_labels(student, teacher, T):
    return cross_entropy(student / T, softmax(teacher / T, 1)) * T**2


def training(loss, batches, T=4.0):
    def update(model, optimizer, index, _):
        optimizer.zero_grad()
        loss(model(digits.train_x[index].double()), opinions[index].double(), T).backward()
        optimizer.step()

    return trajectory(
        start,
        lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        update,
        batches,
    )


# %% tags=["nbval-check-output"]
torch.manual_seed(0)
start = models.cnn(4).double()
batches = [(index, None) for index in torch.arange(500).split(50)]
ways = {"kl_div · T²": framework, "ours": soft_loss, "soft labels": with_soft_labels}
proof = prove({name: training(loss, batches) for name, loss in ways.items()})
assert proof.holds
print(proof)

# %%
proof

# %% [markdown]
# And the logits that were kept are those the teacher would give again, for each batch anew: the
# losses of two short trainings, one that asks once and one that asks at every step.


# %% tags=["nbval-check-output"]
def losses(**changes):
    return torch.tensor(
        [step.metrics["loss"] for step in islice(experiment.run(base.turned(**changes)), 10)]
    )


print(
    "asked once = asked at every step:",
    torch.allclose(losses(), losses(teacher="every step"), atol=1e-4),
)

# %% [markdown]
# ## 6. Measure
#
# ### The gain, over five seeds
#
# One run proves nothing: another start gives another accuracy. So five starts, each alone and
# taught with the same samples in the same order, and the difference of each pair.


# %%
@cache
def accuracy(knobs):
    steps = islice(experiment.run(knobs), 120)
    return 100 * list(steps)[-1].metrics["accuracy"]


def accuracies(knobs, seeds):
    return [accuracy(knobs.turned(seed=seed)) for seed in range(seeds)]


def spread(values):
    return f"{mean(values):5.1f} ({min(values):.1f} to {max(values):.1f})"


by_labels, taught = accuracies(alone, seeds=5), accuracies(base, seeds=5)
gain = [b - a for a, b in zip(by_labels, taught)]
print(
    f"alone  {spread(by_labels)} %\ntaught {spread(taught)} %\ngain   {spread(gain)} points, over "
    f"{len(gain)} seeds"
)

# %%
guess_gain.against(max(0.1, mean(gain)))

# %% [markdown]
# ### The price
#
# An epoch of distillation against an epoch of the student alone: with the logits kept, and with the
# teacher asked at every step as many programs do it. In pairs, a coin deciding who goes first.


# %%
def epoch(knobs):
    return sum(step.seconds for step in islice(experiment.run(knobs.turned(samples=250)), 5))


def price(knobs, pairs=9):
    epoch(knobs), epoch(alone)
    measured = []
    for first in torch.randint(2, (pairs,)):
        a = epoch(knobs) if first else None
        b = epoch(alone)
        measured.append((a or epoch(knobs), b))
    return Comparison.of(measured, ("distillation", "the student alone"))


prices = {
    "logits kept": price(base),
    "teacher asked at every step": price(base.turned(teacher="every step")),
}
for how, ratio in prices.items():
    print(f"{how}: {ratio}")

# %% [markdown]
# ### The reward
#
# What it is all for: the student beside its teacher.

# %%
students_model = models.cnn(base.student_channels).eval()
sizes = [sum(p.numel() for p in model.parameters()) for model in (teacher, students_model)]
pictures = digits.test_x[:500]
speed = compare(
    lambda: logits_of(students_model, pictures),
    lambda: logits_of(teacher, pictures),
    names=("student", "teacher"),
    patience=3,
)
right = share_right(logits_of(teacher, digits.test_x), digits.test_y)
print(f"{'':<8} parameters   × samples/s   recognised")
print(f"teacher  {sizes[0]:>10,}   {1:>11.1f}   {right:.1%}")
print(
    f"student  {sizes[1]:>10,}   {1 / speed.ratio:>11.1f}   {mean(taught):.1f}% taught with "
    f"{base.samples} samples"
)

# %%
picture, (axes,) = figure.axes(8, 3)
axes.plot([1], [100 * right], "s", color="black", label="teacher")
for place, (name, values, color) in enumerate(
    (("student taught", taught, figure.BLUE), ("student alone", by_labels, figure.ORANGE))
):
    axes.plot(
        [1 / speed.ratio] * len(values),
        values,
        "o^"[place],
        color=color,
        alpha=0.7,
        label=f"{name}, {len(values)} seeds",
    )
axes.set(xlabel="samples/s, × the teacher's", ylabel="recognised, %", xlim=(0, 1.15 / speed.ratio))
axes.legend(frameon=False)
picture

# %% [markdown]
# The gap between teacher and taught student is what "removes the loss of accuracy" leaves out. It
# became smaller; it is not gone.
#
# ## 7. Break it
#
# Press **Start** and click through the mistakes.

# %%
break_it = Panel(
    experiment.run,
    base,
    [
        Curve("accuracy", "digits recognised, %", scale=100, over="updates"),
        Curve("loss", "loss", over="updates"),
    ],
    controls=["temperature", "soft_share", "mistake"],
    baselines={"no mistake": base},
    tour=[base.turned(mistake="the article's formula"), base.turned(mistake="no logarithm")],
    seconds=1.0,
)
break_it

# %%
for name in ("swapped", "no_square", "mean_of_all", "no_logarithm"):
    print(inspect.getsource(getattr(experiment, name)))

# %% [markdown]
# - **the article's formula.** Taken with the letters as the field uses them, T the teacher and S
#   the student, it is the wrong way round: it is least when the student bets everything on the
#   teacher's first choice. (The article calls the *original* model S and the *target* T. Read so it
#   is cross-entropy with soft labels: right, at *T* = 1, where the teacher says little.)
# - **no logarithm.** `kl_div` takes log-probabilities first. With probabilities it raises no error,
#   returns a number, and teaches nothing.
# - **no T squared** and **mean of all** are quiet ones. Did you see any harm? At this temperature
#   and this share the teacher is loud enough to be heard anyway. Now raise the temperature, and
#   give the labels half of the loss:

# %%
picture, (axes,) = figure.axes(8, 3)
heats = (1.0, 16.0)
for (mistake, marker), (color, style) in zip(
    {"none": "o", "no T squared": "s", "mean of all": "^"}.items(), figure.STYLES
):
    settings = [base.turned(mistake=mistake, temperature=heat, soft_share=0.5) for heat in heats]
    axes.plot(
        heats,
        [accuracy(setting) for setting in settings],
        marker + style,
        color=color,
        label=mistake,
    )
axes.axhline(mean(by_labels), **figure.LIMIT, label="student alone")
figure.powers_of_two(axes, "temperature", heats)
axes.set(ylabel="recognised, %")
axes.legend(frameon=False, fontsize=8)
picture

# %% [markdown]
# A mistake that needs two other settings to show itself is one you will meet in somebody's
# repository.
#
# ## 8. When it does not help
#
# What the student gains is what the teacher knows and the student's own data does not say. So give
# the student *all* the data; or a teacher that knows little; or another task, where the two are
# close: from which photograph is this crop of 32 × 32 pixels? Test crops come from another part of
# the photograph than training crops. We add a second form as well, **hints**: match the features
# inside the network instead of its answers. Two starts each: enough for what is plain, and for
# nothing finer.

# %%
crops = {"data": "rgb_crops", "samples": 400, "teacher_channels": 16, "teacher_updates": 100}
lessons = {
    "200 digits": {},
    "200 digits, 9 shifted views": {"views": 9},
    "200 digits, hints as well": {"hint_weight": 1.0},
    "all 4,000 digits": {"samples": 4000},
    "a teacher after 10 updates": {"teacher_updates": 10},
    "400 crops of photographs": crops,
}
gains = {}
for name, changes in lessons.items():
    asking = {"hint_weight", "teacher_channels", "teacher_updates"}
    without = {name: value for name, value in changes.items() if name not in asking} | {
        "soft_share": 0.0
    }
    a, b = accuracies(base.turned(**without), seeds=2), accuracies(base.turned(**changes), seeds=2)
    gains[name] = [there - here for here, there in zip(a, b)]
    print(f"{name:<28} alone {spread(a)}   taught {spread(b)}")

# %%
picture, (axes,) = figure.axes(8, 3)
axes.axvline(0, **figure.LIMIT)
for place, values in enumerate(gains.values()):
    axes.plot(values, [place] * len(values), "o", color=figure.BLUE, alpha=0.6)
    axes.plot(mean(values), place, "|", color="black", markersize=16)
axes.set(
    yticks=range(len(gains)),
    yticklabels=list(gains),
    xlabel="points gained by being taught: each seed, and their mean",
)
axes.invert_yaxis()
picture

# %% [markdown]
# Where the points lie left of the line, teaching did harm, and that is a result. A teacher that is
# hardly better than the student passes on its errors along with its knowledge, and the student
# trusts both. Before you distil: is the teacher better than a small model trained alone *on what
# you will meet*? By how much? That is the most there is to gain.
#
# The verdict, for this machine:

# %%
kept_price, naive_price = (ratio.ratio for ratio in prices.values())
verdict = (
    f"{base.samples} samples: taught {mean(taught):.1f} %, alone {mean(by_labels):.1f} %, teacher "
    f"{100 * right:.1f} %; "
    f"{1 / speed.ratio:.1f} × the teacher's samples/s at {sizes[1] / sizes[0]:.3f} × its "
    f"parameters; an epoch costs {kept_price:.2f} × "
    f"(teacher at every step: {naive_price:.2f} ×); crops of photographs: "
    f"{mean(gains['400 crops of photographs']):+.1f} points"
)
log_verdict("distillation", verdict)

# %% [markdown]
# ## 9. Exercises
#
# Write the functions and run the cells; `check` tries each on fresh data and explains what it
# finds. An exercise left alone counts as not attempted, nothing worse.

# %%
from accel_lab.grading.practice import check, exercises

LOSS, KEEP, BIAS = exercises("distillation")
LOSS


# %% tags=["exercise"]
def half_labelled_loss(student, teacher, labels, temperature, soft_share):
    raise NotImplementedError


check(half_labelled_loss)

# %%
KEEP


# %% tags=["exercise"]
def keep_logits(teacher, x, batch_size):
    # The function as found:
    #
    #   logits = []
    #   for start in range(0, len(x) - batch_size + 1, batch_size):
    #       logits.append(teacher(x[start : start + batch_size]))
    #   return torch.cat(logits)
    raise NotImplementedError


check(keep_logits)

# %%
BIAS


# %% tags=["exercise"]
def bias_for_share(logits, column, share):
    raise NotImplementedError


check(bias_for_share)

# %% [markdown]
# ## 10. Take away
#
# - A teacher's opinion of the *wrong* classes carries knowledge that no label has: enough to
#   recognise what was never shown.
# - The temperature makes that part audible, and T² keeps it equally loud at every temperature.
# - Keep the logits: the teacher is asked once for each sample (and view), and an epoch costs little
#   more than plain training.
# - The gain is largest where the student's own data is scarce and the teacher's was not.
# - Nothing is removed for free. A weak teacher makes a weak student; look at several seeds before
#   you believe in a gain.
#
# **What would prove this wrong?** A student whose threes come back with *labels alone*; or a gain
# that is as large when the teacher has seen nothing that the student has not.
#
# **Sources.** G. Hinton, O. Vinyals and J. Dean, *Distilling the knowledge in a neural network*,
# 2015, arXiv:1503.02531, sections 2 (the loss, T²), 3 (the missing three) · A. Romero et al.,
# *FitNets*, 2015, arXiv:1412.6550 (hints) · L. Beyer et al., *A good teacher is patient and
# consistent*, 2022, arXiv:2106.05237 (same views for both).
#
# **Next.** A student is a small network from the start. Can a large one be *made* small instead, by
# cutting away what it does not need? That is pruning, and no chapter of this course yet. You have
# what it takes to find out by yourself: set nine weights of ten to zero, `compare` the two, and ask
# the roofline why the ratio is what it is.
