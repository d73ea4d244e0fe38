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
# So: what does the student really gain, from where, and what does it cost, on the machine in front
# of you? And can a student learn something it was **never shown**?

# %% jupyter={"source_hidden": true}
from statistics import mean

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax, one_hot, softmax

from accel_lab import distillation
from accel_lab.experiments import distillation as experiment
from accel_lab.workbench import chapter as lab

torch.set_num_threads(1)  # models this small gain nothing from a second core

# %% [markdown]
# The next cell holds the settings of this chapter. Change one, as in `knobs = {"samples": 400}`,
# and run the notebook again: everything below follows.

# %% tags=["parameters"]
knobs = {}

# %%
base = lab.settings(experiment.Knobs, knobs, device="cpu")
alone = base.turned(soft_share=0.0)
digits = lab.datasets.mnist5k()
teacher = experiment.teacher_of("mnist5k", base.teacher_channels, base.teacher_updates)
right = experiment.share_right(distillation.logits_of(teacher, digits.test_x), digits.test_y)
print(f"the teacher was trained here, on {len(digits.train_x):,} labelled digits,")
print(f"and recognises {right:.1%} of {len(digits.test_x):,} others")

# %% [markdown]
# ## 2. Predict
#
# The student is a network of the same kind, an eighth of the size. Make two guesses; a wrong one
# costs nothing, and you may skip them.
#
# First, the student sees 200 digits only. Once it learns from their labels, once it is taught.

# %%
guess_gain = lab.Prediction(
    "By how many points does a taught student beat one that learns from 200 labels alone?",
    low=0.1,
    high=50,
    default=2.0,
    unit="points",
)
guess_gain

# %% [markdown]
# Second, another lesson: **all** training digits except the threes, without any label. The student
# never sees a 3. The teacher knows threes.

# %%
guess_threes = lab.Prediction(
    "Of 100 threes in the test, how many does that second student recognise?",
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
panel = lab.Panel(
    experiment.run,
    base,
    [
        lab.Curve("accuracy", "digits recognised, %", scale=100, over="updates", ends=(0, 100)),
        lab.Curve("throughput", "samples/s"),
        lab.Sweep("temperature", "perplexity", "classes the teacher names"),
        lab.Curve("loss", "loss", over="updates"),
    ],
    controls=["temperature", "soft_share", "samples"],
    baselines={"the student alone": {"soft_share": 0.0}},
    headline=lab.Headline("accuracy", "test accuracy", points=True),
    tour=[base.turned(temperature=1.0), base],
    seconds=1.0,
)
panel

# %% [markdown]
# What to look for:
#
# - The taught student may start more slowly, then passes the other one, with the *same* samples and
#   the *same* start.
# - Its samples per second are nearly those of the student alone. The teacher is large; where is its
#   work?
# - The losses cannot be compared: they measure different things. Accuracy can.

# %% [markdown]
# ## 4. Build
#
# ### What a teacher says
#
# A label is one class. A teacher's logits are an opinion of all ten. Here is a digit, and the
# teacher's opinion of it: its probabilities, after the logits were divided by a **temperature**
# *T*.

# %%
opinions = distillation.logits_of(teacher, digits.train_x)
sure = softmax(opinions, 1).max(1).values > 0.9
seen = int(torch.nonzero((digits.train_y == 7) & sure)[0])  # a 7 that the teacher is fairly sure of
for temperature in (1, 4, 20):
    said = softmax(opinions[seen] / temperature, 0).tolist()
    print(f"T = {temperature:<2}", *(f"{probability:.2f}" for probability in said))


# %% jupyter={"source_hidden": true} tags=["hero"]
def draw_opinion(axes, temperature):
    axes.bar(range(10), softmax(opinions[seen] / temperature, 0), color=lab.figure.BLUE)
    axes.set(xticks=range(10), ylim=(0, 1), xlabel=f"class, at T = {temperature:.3g}")


picture, (digit, *rest) = lab.figure.axes(9, 2.2, columns=4)
digit.imshow(digits.train_x[seen, 0], cmap="gray_r")
digit.axis("off")
for axes, temperature in zip(rest, (1, 4, 20)):
    draw_opinion(axes, temperature)
rest[0].set_ylabel("probability")
picture

# %% [markdown]
# At *T* = 1 the label is nearly all that you can *see*; the other probabilities are small, not
# absent. At *T* = 4 you can read which digits the teacher takes for *nearly* this one. At *T* = 20
# it gives all of them nearly the same probability. Move it yourself:


# %%
def at(temperature=4.0):
    picture, (axes,) = lab.figure.axes(5, 2)
    draw_opinion(axes, temperature)
    return picture


lab.Sliders(at, temperature=(1.0, 20.0, 0.5))

# %% [markdown]
# ### The loss
#
# With $p = \operatorname{softmax}(\text{teacher}/T)$ and $q =
# \operatorname{softmax}(\text{student}/T)$, and a share $a$ for the teacher:
#
# $$L = (1-a) \cdot \mathrm{CE}(\text{labels}, \text{student})
# + a \cdot T^2 \cdot \mathrm{KL}(p \,\|\, q)$$
#
# Why $T^2$? The gradient of the second part by the student's logits is $T \,(q - p)$ for each
# sample. For a large *T* the difference $q - p$ itself shrinks as $1/T$, since both come closer to
# giving every class the same probability. So with $T^2$ the teacher is heard roughly as loud at
# every temperature; without it, $1/T^2$ times as loud.

# %%
lab.show_source(distillation.distillation_loss, docstring=False)

# %% [markdown]
# And its second part, with one line left out. Choose the line; what you choose is compared with
# PyTorch's `kl_div`, on logits drawn at random, at *T* = 4:


# %%
def like_kl_div(soft_loss, temperature=4.0):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 50, 10, dtype=torch.float64)
    log_q, log_p = log_softmax(student / temperature, 1), log_softmax(teacher / temperature, 1)
    torchs = temperature**2 * kl_div(log_q, log_p, log_target=True, reduction="batchmean")
    ways = {"torch": torchs, "yours": soft_loss(student, teacher, temperature)}
    return lab.prove({name: [{"loss": loss}] for name, loss in ways.items()}, steps=1)


# %% jupyter={"source_hidden": true}
lab.MissingLine(
    distillation.soft_loss,
    {
        "return temperature**2 * (p * difference).sum(1).mean()": (
            "The sum over the classes, the mean over the samples. T² makes up for a gradient that "
            "shrinks as 1/T²."
        ),
        "return (p * difference).sum(1).mean()": (
            "Without T² the loss and its gradient are 16 times too small at T = 4."
        ),
        "return temperature**2 * (p * difference).mean()": (
            "The mean over samples and 10 classes, kl_div's default: 10 times too small."
        ),
        "return temperature**2 * difference.sum(1).mean()": (
            "Not weighted by p: classes that the teacher finds unlikely count as much as its "
            "first choice."
        ),
    },
    like_kl_div,
)

# %% [markdown]
# ### The teacher's work, once
#
# A teacher does not learn. What it says about a sample today it says tomorrow. So ask it about the
# whole lesson **once**, in evaluation mode, and keep the logits: ten numbers a sample.

# %%
lab.show_source(distillation.logits_of, docstring=False)

# %% [markdown]
# That is all. Here is the whole training, the plain loop with another loss:


# %%
def teach(x, kept, temperature, updates=180, batch_size=100, seed=0):
    torch.manual_seed(seed)
    student = lab.models.cnn(base.student_channels)
    optimizer = torch.optim.Adam(student.parameters(), lr=base.learning_rate)
    order = torch.cat([torch.randperm(len(x)) for _ in range(1 + updates * batch_size // len(x))])
    for index in order.split(batch_size)[:updates]:
        optimizer.zero_grad()
        distillation.soft_loss(student(x[index]), kept[index], temperature).backward()
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

labels = 30 * one_hot(digits.train_y[no_threes], 10).float()  # "opinions" that repeat the label
said_of_each = {"T = 1": (kept, 1), "T = 4": (kept, 4), "labels alone": (labels, 1)}


# %%
def percent_right(logits, of):
    return 100 * experiment.share_right(logits[of], digits.test_y[of])


answers, everything = {}, torch.ones_like(threes)
for name, lesson in said_of_each.items():
    students = [teach(x, *lesson, seed=seed) for seed in lab.some_seeds(4)]
    answers[name] = [distillation.logits_of(student, digits.test_x) for student in students]
    for what, of in (("threes", threes), ("all digits", everything)):
        rights = [percent_right(logits, of) for logits in answers[name]]
        print(f"{name:<12} {what:<10}", lab.figure.tell_over_seeds(rights, "%"))

# %% [markdown]
# The taught students have never seen a three. They have seen eights, fives and twos of which the
# teacher said: *a little like a three*. Compare them with the student of labels alone, which was
# told nothing of the kind. Between *T* = 1 and *T* = 4, look at the ranges before you look at the
# means: starts differ much in this.
#
# A taught student still thinks of threes as rare, because in its lesson they never were the first
# choice. Its last layer has a number for exactly that, the bias of the class. Turn it up, and touch
# nothing else:


# %%
def threes_found(starts, bias):
    turned_up = bias * torch.eye(10)[3]
    return mean(percent_right(logits + turned_up, threes) for logits in starts)


biases = torch.linspace(0, 6, 25).tolist()
found = {name: {b: threes_found(starts, b) for b in biases} for name, starts in answers.items()}

# %% jupyter={"source_hidden": true}
picture, (axes,) = lab.figure.axes(8, 3)
axes.set(xlabel="added to the bias of class 3", ylim=(-2, 102))
axes.set_ylabel("threes recognised, %:\nmean of all starts")
lab.figure.draw_lines(axes, found, points=False)
picture

# %%
guess_threes.against(max(0.5, found["T = 4"][0.0]))

# %% [markdown]
# (With a bias high enough everything would be called a three: the third exercise finds the right
# bias without looking at a single label.)
#
# *Half-way. This is a good place to stop and come back to: run all cells above, and go on here.*
#
# ## 5. Prove
#
# Three ways to the same loss: ours; PyTorch's `kl_div`, which wants logarithms first and
# probabilities second; and cross-entropy with soft labels, which differs by a constant and so has
# the same gradient. Ten updates of each, in float64:


# %%
def framework(student, teacher, T):
    divergence = kl_div(log_softmax(student / T, 1), softmax(teacher / T, 1), reduction="batchmean")
    return T**2 * divergence


def with_soft_labels(student, teacher, T):
    return T**2 * cross_entropy(student / T, softmax(teacher / T, 1))


# %%
def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def training(loss, batches, T=4.0):
    def update(model, optimizer, index, _):
        optimizer.zero_grad()
        loss(model(digits.train_x[index].double()), opinions[index].double(), T).backward()
        optimizer.step()

    return lab.trajectory(start, sgd, update, batches)


# %% tags=["nbval-check-output"]
torch.manual_seed(0)
start = lab.models.cnn(4).double()
batches = [(index, None) for index in torch.arange(500).split(50)]
ways = {"kl_div · T²": framework, "ours": distillation.soft_loss, "soft labels": with_soft_labels}
proof = lab.prove({name: training(loss, batches) for name, loss in ways.items()})
assert proof.holds
print(proof)

# %%
proof

# %% [markdown]
# And the logits that were kept are those the teacher would give again, for each batch anew: the
# losses of two short trainings, one that asks once and one that asks at every step.


# %% tags=["nbval-check-output"]
def losses(**changes):
    steps = zip(experiment.run(base.turned(**changes)), range(10))
    return torch.tensor([step.metrics["loss"] for step, _ in steps])


same = torch.allclose(losses(), losses(teacher="every step"), atol=1e-4)
print("asked once = asked at every step:", same)

# %% [markdown]
# ## 6. Measure
#
# ### The gain, over several seeds
#
# One run proves nothing: another start gives another accuracy. So several starts, each alone and
# taught with the same samples in the same order, and the difference of each pair.

# %%
by_labels, taught = experiment.over_seeds(alone, 5), experiment.over_seeds(base, 5)
gain = [with_teacher - without for without, with_teacher in zip(by_labels, taught)]
print("alone ", lab.figure.tell_over_seeds(by_labels, "%"))
print("taught", lab.figure.tell_over_seeds(taught, "%"))
print("gain  ", lab.figure.tell_over_seeds(gain, "points"))

# %%
guess_gain.against(max(0.1, mean(gain)))

# %% [markdown]
# ### The price
#
# An update of distillation against one of the student alone: with the logits kept, and with the
# teacher asked at every step, as many programs do it. All three take turns, in a random order.
# Training the teacher comes on top, and so does asking it once: neither is in these times.

# %%
ways = {"kept": base, "asked": base.turned(teacher="every step"), "alone": alone}
seconds = lab.race(experiment.run, ways, updates=5)
names = {"kept": "distillation, logits kept", "asked": "distillation, teacher asked each time"}
prices = {
    way: lab.compared(seconds, way, "alone", (name, "the student alone"))
    for way, name in names.items()
}
print(*prices.values(), sep="\n")

# %% [markdown]
# ### The reward
#
# What it is all for: the student beside its teacher.

# %%
student = lab.models.cnn(base.student_channels).eval()
pictures = digits.test_x[:500]
speed = lab.compare(
    lambda: distillation.logits_of(student, pictures),
    lambda: distillation.logits_of(teacher, pictures),
    names=("student", "teacher"),
    patience=3,
)
sizes = [sum(p.numel() for p in model.parameters()) for model in (teacher, student)]
faster = 1 / speed.ratio

# %%
print(f"{'':<8} parameters   × samples/s   recognised")
print(f"teacher  {sizes[0]:>10,}   {1:>11.1f}   {right:.1%}")
print(
    f"student  {sizes[1]:>10,}   {faster:>11.1f}   {mean(taught):.1f}%, taught with {base.samples}"
)

# %% jupyter={"source_hidden": true}
picture, (axes,) = lab.figure.axes(7, 3)
results = {"student alone": by_labels, "student taught": taught, "teacher": [100 * right]}
lab.figure.draw_over_seeds(axes, results)
axes.set(ylabel="recognised, %: mean, and all seeds")
picture

# %% [markdown]
# The quote promises that the loss of accuracy is *removed*: taught student and teacher would stand
# level. Look how much of the gap remains.
#
# ## 7. Break it
#
# Press **Start** and click through the mistakes. Which of them lose accuracy? Their code stands
# below the panel.

# %%
break_it = lab.Panel(
    experiment.run,
    base,
    [
        lab.Curve("accuracy", "digits recognised, %", scale=100, over="updates", ends=(0, 100)),
        lab.Curve("loss", "loss", over="updates"),
    ],
    controls=["temperature", "soft_share", "mistake"],
    baselines={"no mistake": {"mistake": "none"}},
    headline=lab.Headline("accuracy", "test accuracy", points=True),
    tour=[base.turned(mistake="the article's formula"), base.turned(mistake="no logarithm")],
    seconds=1.0,
)
break_it

# %%
lab.show_source(experiment.swapped, experiment.no_logarithm, docstring=False)

# %%
lab.show_source(experiment.no_square, experiment.mean_of_all, docstring=False)

# %% [markdown]
# <details><summary>What each of them does</summary>
#
# - **the article's formula.** Taken with the letters as the field uses them, T the teacher and S
#   the student, it is the wrong way round: it is least when the student bets everything on the
#   teacher's first choice. (The article calls the *original* model S and the *target* T. Read so it
#   is cross-entropy with soft labels: right, at *T* = 1. Its weights *w* are all 1 here.)
# - **no logarithm.** `kl_div` takes log-probabilities first. With probabilities it raises no error,
#   returns a number, and asks for another thing: like the article's formula, it is least when the
#   student bets everything on the teacher's first choice.
# - **no T squared** and **mean of all** are quiet ones. At this temperature and this share the
#   teacher is loud enough to be heard anyway.
#
# </details>
#
# Did *no T squared* and *mean of all* do any harm? Now raise the temperature, and give the labels
# half of the loss:

# %%
heats = (1.0, 16.0)
harm = {
    mistake: {
        heat: experiment.accuracy_after(
            base.turned(mistake=mistake, temperature=heat, soft_share=0.5)
        )
        for heat in heats
    }
    for mistake in ("none", "no T squared", "mean of all")
}

# %% jupyter={"source_hidden": true}
picture, (axes,) = lab.figure.axes(8, 3)
lab.figure.powers_of_two(axes, "temperature", heats)
axes.set_ylabel("recognised, %")
level = dict.fromkeys(heats, mean(by_labels))
lab.figure.draw_lines(axes, harm, dashed={"student alone": level})
picture

# %% [markdown]
# (One start each: trust only large gaps.) A mistake that shows itself only under other settings is
# one you will meet in somebody's repository.
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
student_only = {"soft_share": 0.0, "hint_weight": 0.0}  # and whichever teacher there would be
student_only |= {name: getattr(alone, name) for name in ("teacher_channels", "teacher_updates")}

# %%
gains = {}
for name, changes in lessons.items():
    without = experiment.over_seeds(base.turned(**(changes | student_only)), 2)
    with_teacher = experiment.over_seeds(base.turned(**changes), 2)
    gains[name] = [there - here for here, there in zip(without, with_teacher)]
    by_teacher = experiment.teacher_accuracy(base.turned(**changes))
    known = f"teacher {by_teacher:.0f} %, alone {mean(without):.0f} %"
    print(f"{name:<28} {known}: {lab.figure.tell_over_seeds(gains[name], 'points gained')}")

# %% jupyter={"source_hidden": true}
picture, (axes,) = lab.figure.axes(9, 3)
lab.figure.draw_over_seeds(axes, gains)
axes.axhline(0, **lab.figure.LIMIT)
axes.set_ylabel("points gained by being taught")
axes.tick_params(axis="x", labelsize=8)
picture

# %% [markdown]
# Where a whole bar lies below the line, teaching did harm, and that is a result. A teacher passes
# on its errors along with its knowledge, and the student trusts both. Before you distil: is the
# teacher better than a small model trained alone *on what you will meet*? By how much? Compare this
# lead with the gain in each line above: it is a first estimate, and can be wrong in both
# directions.
#
# The verdict, for this machine:

# %%
verdict = (
    f"{base.samples} samples: taught {mean(taught):.1f} %, alone {mean(by_labels):.1f} %, teacher "
    f"{100 * right:.1f} %; {faster:.1f} × the teacher's samples/s at {sizes[1] / sizes[0]:.3f} × "
    f"its parameters; an update costs {prices['kept'].ratio:.2f} × (teacher at every step: "
    f"{prices['asked'].ratio:.2f} ×); crops of photographs: "
    f"{mean(gains['400 crops of photographs']):+.1f} points"
)
lab.log_verdict("distillation", verdict)

# %% [markdown]
# ## 9. Exercises
#
# Write the functions and run the cells; `check` tries each on fresh data. It says what is right
# already, shows a small case that is not, and gives a hint where it knows the mistake. After two
# different tries it offers a worked solution. Some functions are written already, with faults:
# repair them.

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
    logits = []
    for start in range(0, len(x) - batch_size + 1, batch_size):
        logits.append(teacher(x[start : start + batch_size]))
    return torch.cat(logits)


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
# - A temperature makes that part larger, and T² keeps it about as loud at every temperature. Which
#   one is best, measure.
# - Keep the logits: the teacher is asked once for each sample (and view), and an epoch costs little
#   more than plain training.
# - The gain is largest where the student's own data is scarce and the teacher's was not.
# - Nothing is removed for free. The student gains from a teacher that knows more than its own
#   data shows; look at several seeds before you believe in a gain.

# %% [markdown]
# Known from elsewhere, and not measured here: the idea is older than its name (C. Buciluǎ et al.,
# *Model compression*, 2006; J. Ba and R. Caruana, 2014, arXiv:1312.6184). In *self-distillation*
# the student is as large as its teacher, and can end up ahead of it (T. Furlanello et al.,
# *Born-again neural networks*, ICML 2018, arXiv:1805.04770). A teacher can be too large for its
# student (J. H. Cho and B. Hariharan, 2019, arXiv:1910.01348). Students often agree with their
# teachers less than their accuracy suggests (S. Stanton et al., 2021, arXiv:2106.05945).
#
# A network is *calibrated* if it is right as often as its probabilities say; modern ones are often
# too sure, and one temperature, fitted on samples kept aside, repairs most of that (C. Guo et al.,
# *On calibration of modern neural networks*, ICML 2017, arXiv:1706.04599). For language models the
# two sides of the KL divergence are sometimes exchanged (Y. Gu et al., *MiniLLM*, 2023,
# arXiv:2306.08543).

# %% [markdown]
# **What would prove this wrong?** A student whose threes come back with *labels alone*; or a small
# student that gains as much from a teacher that saw only what the student saw.

# %% [markdown]
# **Sources.** G. Hinton, O. Vinyals and J. Dean, *Distilling the knowledge in a neural network*,
# 2015, arXiv:1503.02531, sections 2 (the loss, T²), 3 (the missing three) · A. Romero et al.,
# *FitNets*, 2015, arXiv:1412.6550 (hints) · L. Beyer et al., *A good teacher is patient and
# consistent*, 2022, arXiv:2106.05237 (same views for both).
#
# **Next.** A student is a small network from the start. Can a large one be *made* small instead, by
# cutting away what it does not need? You have what it takes to find out: set nine weights of ten to
# zero, compare the two with `lab.compare`, and ask `lab.roofline` why the ratio is what it is. All
# chapters are listed on the [first page](00_start_here.ipynb).
