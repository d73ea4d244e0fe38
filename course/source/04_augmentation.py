# ---
# jupyter:
#   kernelspec:
#     name: python3
#     display_name: Python 3
# ---

# %% [markdown]
# # 04 · Augmentation
#
# ## 1. The question
#
# Pictures with labels are dear. Pictures made from pictures are nearly free: shift one by three
# pixels, turn it by ten degrees, and the network has never seen it. So it is said:
#
# > *Flip, crop, rotate, scale: the more samples, the better the model.*
# >
# > *For text: replace words by synonyms, or by words that sound the same.*
# >
# > *For generative models: flip, rotate, and add noise.*
#
# But a mirrored 2 is no 2. And a sentence without its "not" is another sentence. In the next forty
# minutes you measure what a made-up picture is worth, in real ones; what happens when the label
# does not survive; and what all this costs the loader.

# %%
import inspect
import math
from itertools import islice, pairwise

import torch

from accel_lab import augmentation
from accel_lab.augmentation import Policy
from accel_lab.experiments import augmentation as experiment
from accel_lab.workbench.data import datasets, words
from accel_lab.workbench.drawing import figure
from accel_lab.workbench.drawing.curve import Curve
from accel_lab.workbench.measure.comparison import compare
from accel_lab.workbench.notebook.speed_log import log_verdict
from accel_lab.workbench.panel import Panel, Prediction, Sliders

# %% [markdown]
# The next cell holds the settings of this chapter. Change one, as in `knobs = {"pictures": 20}`,
# and run the notebook again.

# %% tags=["parameters"]
knobs = {}

# %%
base = experiment.Knobs(**{"batch_size": 32, **knobs})
mnist = datasets.mnist5k()
some = experiment.few(mnist, base.pictures, base.seed)
_ = next(
    experiment.run(base)
)  # the first update of a process takes long: PyTorch loads its optimizers
torch.set_num_threads(
    1
)  # the networks here are so small that threads would wait for each other more than they work
print(
    f"{len(some.train_y)} training pictures, {base.pictures} of each digit; {len(some.test_y):,} "
    "to test on"
)

# %% [markdown]
# ## 2. Predict
#
# Ten pictures of each digit are all you have. At every update, each picture is shifted anew, at
# random, by up to three pixels in each direction. How many *real* pictures would have been as good?
# Say it as a multiple: 1 means that shifting is worth nothing, 3 that it stands for thirty real
# pictures of each digit. (Less than 1 is possible, too.)

# %%
guess_shift = Prediction(
    "Shifting is worth how many times as many real pictures?",
    low=0.2,
    high=20,
    default=1.3,
    unit="×",
)
guess_shift

# %%
guess_flip = Prediction(
    "And shifting and mirroring them, together?", low=0.2, high=20, default=1.5, unit="×"
)
guess_flip

# %% [markdown]
# ## 3. See
#
# First, look at what is made. Move the sliders: every picture draws its own amount. Which of these
# would you still label with the same digit?


# %%
def wall(rotate=15, zoom=0.15, shift=0.1, flip=0.0, noise=0.0):
    policy = Policy(flip=flip, rotate=rotate, zoom=zoom, shift=shift, noise=noise)
    x = torch.cat(
        [some.train_x[some.train_y == digit][:1].expand(6, -1, -1, -1) for digit in range(10)]
    )
    made = augmentation.augment(
        x, policy, torch.Generator().manual_seed(0), kind="digits", unsafe=True
    )
    rows = torch.cat(
        [x[::6, None], made.view(10, 6, 1, 28, 28)], 1
    )  # the original, and six made of it
    picture, (axes,) = figure.axes(7, 4.9)
    axes.imshow(rows.permute(1, 3, 0, 4, 2).reshape(7 * 28, 10 * 28), cmap="gray_r", vmin=0, vmax=1)
    axes.axhline(27.5, color=figure.ORANGE, linewidth=2)
    axes.set_axis_off()
    return picture


Sliders(
    wall,
    rotate=(0, 180, 5),
    zoom=(0, 0.5, 0.05),
    shift=(0, 0.5, 0.05),
    flip=(0, 1, 0.5),
    noise=(0, 1, 0.1),
)

# %% [markdown]
# Above the line are the originals. Now train on them: a small convolutional network, for as long as
# you like. The dashed orange line saw the ten pictures of each digit as they are.
#
# Press **Start**. Move **shift** to 0.1. Then **flip** to 0.5. Then undo both and take more
# **pictures** instead.

# %%
panel = Panel(
    experiment.run,
    base,
    [
        Curve("test_accuracy", "test accuracy, %", scale=100, over="updates"),
        Curve("gap", "training minus test accuracy, %", scale=100, over="updates"),
        Curve("augment_share", "augmentation, % of the time", scale=100),
        Curve("loss", "loss", over="updates", log=(1e-4, 1e1)),
    ],
    controls=["pictures", "shift", "flip"],
    baselines={"pictures as they are": base},
    tour=[base.turned(shift=0.1, flip=0.5), base.turned(shift=0.1)],
    seconds=2.5,
)
panel

# %% [markdown]
# What to look for:
#
# - Without augmentation the loss goes to nothing, within a few updates: a hundred pictures are
#   quickly learned by heart. The gap to the test pictures stays.
# - With shifts the loss stays higher, and the test accuracy is *better*. A training loss that does
#   not vanish is the sign that augmentation works.
# - With mirroring added, the test accuracy falls back.
#
# ## 4. Build
#
# Turning, zooming, shifting and mirroring are all one thing: a map that says, for each pixel of the
# new picture, where in the old one to look.
#
# $$p_{\text{in}} = F \, R(-\alpha) \, (p_{\text{out}} - \text{shift}) \,/\, \text{zoom}$$
#
# Maps of this kind multiply into one. So however many transforms you ask for, each picture is
# resampled **once**; doing them one after another would blur it each time. And all pictures go in
# one call, each with its own map:

# %%
print(inspect.getsource(augmentation.warp))

# %% [markdown]
# The luck is drawn beforehand: seven numbers for each picture, whatever is asked for.

# %%
print(inspect.getsource(augmentation.random_numbers))
print(inspect.getsource(augmentation.transform))

# %% [markdown]
# What a label endures depends on what is in the picture. That knowledge belongs into the interface,
# not into a comment:

# %% tags=["nbval-check-output"]
for kind, endures in augmentation.KINDS.items():
    print(
        f"{kind:<12} mirrored: {'yes' if endures.mirrored else 'no':<4} turned by up to "
        f"{endures.degrees:>3} degrees  {endures.why}"
    )

try:
    augmentation.augment(mnist.train_x[:8], Policy(flip=0.5), torch.Generator(), kind="digits")
except ValueError as error:
    print("\nrefused:", error)

# %% [markdown]
# Text works alike: pick words from a seed, replace them, leave everything else alone. Synonyms come
# from WordNet, English homophones from a short list, Chinese ones (同音字) from a dictionary of words
# and their syllables:

# %% tags=["nbval-check-output"]
sentence = "The movie is not terrible, but their story is too quick."
for name, operation in augmentation.TEXT_OPERATIONS.items():
    print(f"{name:<11}", operation(sentence, seed=4, share=0.25))

# %% tags=["nbval-check-output"]
chinese = "这个公式没有错，但是他的权利不大。"
for seed in range(4):
    print(augmentation.homophones(chinese, seed=seed, share=0.3, language="chinese"))

# %% [markdown]
# What turns a sentence round, "not" and 没有 and 不, is neither replaced nor deleted, for the reason
# why digits are not mirrored. With `unsafe=True` it is:

# %% tags=["nbval-check-output"]
print("safe:  ", augmentation.delete("the film is not bad at all", seed=1, share=0.4))
print("unsafe:", augmentation.delete("the film is not bad at all", seed=1, share=0.4, unsafe=True))

# %% [markdown]
# ## 5. Prove
#
# The batch at once is the same as picture after picture; the same seed gives the same pictures; and
# mirrored and cropped pixels are copies, not mixtures:

# %% tags=["nbval-check-output"]
x = mnist.train_x[:64].double()
policy = Policy(flip=0.5, rotate=30, zoom=0.2, shift=0.1, crop=2, noise=0.1)


def made_by(way, policy, seed=0):
    return way(x, policy, torch.Generator().manual_seed(seed), kind="digits", unsafe=True)


at_once, one_by_one = (
    made_by(augmentation.augment, policy),
    made_by(augmentation.naive_augment, policy),
)
print("at once = one by one, within 1e-12:", bool((at_once - one_by_one).abs().max() < 1e-12))
print(
    "the same seed, the same pictures:  ",
    torch.equal(at_once, made_by(augmentation.augment, policy)),
)
print(
    "another seed, other pictures:      ",
    not torch.equal(at_once, made_by(augmentation.augment, policy, seed=1)),
)
mirrored = made_by(augmentation.augment, Policy(flip=1.0))
print("mirrored pixels are copies:        ", torch.equal(mirrored, x.flip(-1)))

# %% [markdown]
# And the map is the one that PyTorch's own `affine_grid` would have built from it. (Its units are
# −1 to 1 from edge to edge, ours are pixels from the centre.)

# %% tags=["nbval-check-output"]
from torch.nn.functional import affine_grid, grid_sample

draws = augmentation.random_numbers(64, torch.Generator().manual_seed(0)).double()
maps = augmentation.affine_maps(policy, draws[:, 0] < 0.5, draws, 28, 28)
theta = maps.clone()
theta[:, :, 2] /= 14
theirs = grid_sample(x, affine_grid(theta, x.shape, align_corners=False), align_corners=False)
print(
    "equal to torch's affine_grid, within 1e-9:",
    bool((augmentation.warp(x, maps) - theirs).abs().max() < 1e-9),
)

# %% [markdown]
# ## 6. Measure
#
# What is a made picture worth? Train on 5, 10, 20 and 40 real pictures of each digit, as they are:
# that is the scale. Then train on 10 and augment, and read off how many real ones would have been
# as good.


# %%
def accuracy(updates=201, **changes):
    steps = list(islice(experiment.run(base.turned(**changes)), updates))
    return steps[-1].metrics["test_accuracy"]


real = {pictures: accuracy(pictures=pictures) for pictures in (5, 10, 20, 40)}

# %%
made = {
    "shift": accuracy(pictures=10, shift=0.1),
    "shift, turn, zoom": accuracy(pictures=10, shift=0.1, rotate=15, zoom=0.15),
    "mirror": accuracy(pictures=10, flip=0.5),
    "shift, mirror": accuracy(pictures=10, shift=0.1, flip=0.5),
}


# %%
def worth(reached):
    """How many real pictures reach this accuracy, over the 10 there were: between the measured
    points, beyond them along the ends.
    """
    points = [(math.log(pictures), score) for pictures, score in real.items()]
    pairs = list(pairwise(points))
    (x0, y0), (x1, y1) = next((pair for pair in pairs if reached <= pair[1][1]), pairs[-1])
    return math.exp(x0 + (reached - y0) * (x1 - x0) / (y1 - y0)) / 10


worths = {name: worth(score) for name, score in made.items()}
picture, (axes,) = figure.axes(7.5, 3.4)
axes.plot(
    real.keys(),
    [100 * score for score in real.values()],
    "o-",
    color="black",
    label="real pictures, as they are",
)
for (name, score), color, mark in zip(
    made.items(), (figure.BLUE, figure.GREEN, figure.GREY, figure.ORANGE), "s^vD"
):
    axes.plot([10, 10 * worths[name]], [100 * score] * 2, ":", color=color)
    axes.plot(
        10,
        100 * score,
        mark,
        color=color,
        markersize=8,
        label=f"10 pictures, {name}: worth {worths[name]:.1f} ×",
    )
axes.set(xscale="log", xlabel="training pictures of each digit", ylabel="test accuracy, %")
axes.set_xticks(list(real), map(str, real))
axes.minorticks_off()
axes.legend(frameon=False, fontsize=8)
picture

# %%
guess_shift.against(worths["shift"])

# %%
guess_flip.against(worths["shift, mirror"])

# %% [markdown]
# Ten pictures, shifted, stand for many more. The network need not learn from examples that a digit
# three pixels to the right is the same digit: somebody who *knew* it has told it. And where the
# made pictures are not the same thing any more, the same trick tells it something false.
# Augmentation is no supply of data. It is a way of saying what does not matter.
#
# Now the costs. As a loader does it, picture after picture, against the batch at once; and both
# against the update they feed:

# %%
batch, policy = mnist.train_x[:64], Policy(rotate=15, zoom=0.15, shift=0.1)


def augmenting(way):
    return lambda: way(batch, policy, torch.Generator().manual_seed(0), kind="digits")


speed = compare(
    augmenting(augmentation.augment),
    augmenting(augmentation.naive_augment),
    names=("the batch at once", "one by one"),
    patience=3.0,
)
print(speed)

# %%
settings = base.turned(batch_size=64, shift=0.1, rotate=15, zoom=0.15)
shares = {}
for one_by_one in (False, True):
    steps = list(islice(experiment.run(settings.turned(one_by_one=one_by_one)), 40))[5:]
    augment = sorted(step.metrics["augment_seconds"] for step in steps)[len(steps) // 2]
    update = sorted(step.seconds for step in steps)[len(steps) // 2]
    shares[one_by_one] = augment / (augment + update)
    way = "one by one" if one_by_one else "the batch at once"
    print(
        f"{way:<18} augmentation {augment * 1e3:6.2f} ms, update {update * 1e3:6.2f} ms: "
        f"{shares[one_by_one]:.0%} of the time"
    )

# %% [markdown]
# Each call into PyTorch costs some microseconds, however small the picture. Sixty-four pictures one
# by one pay sixty-four times. Many a training is slow not because of its network but because of
# this loop.
#
# ### Text
#
# A small reader learns to tell praise from blame in sentences from film reviews: the mean of its
# word vectors, and one linear layer. It is tested on clean sentences, and on sentences in which
# four words of ten have been changed.

# %%
train, test = words.reviews()
texts, labels = [text for text, _ in train[:3000]], [label for _, label in train[:3000]]
tests, truth = [text for text, _ in test], [label for _, label in test]
noisy = {"clean": tests} | {
    name: augmentation.augment_texts(tests, op, 7, share=0.4)
    for name, op in augmentation.TEXT_OPERATIONS.items()
}
readers = {"as they are": experiment.SentimentClassifier(texts, labels, epochs=6)}
for name in ("synonyms", "homophones"):
    more = augmentation.augment_texts(texts, augmentation.TEXT_OPERATIONS[name], 1, share=0.3)
    readers[name] = experiment.SentimentClassifier(texts + more, labels + labels, epochs=3)

# %%
scores = {
    name: {noise: reader.accuracy(changed, truth) for noise, changed in noisy.items()}
    for name, reader in readers.items()
}
print("trained on   " + "".join(f"{noise:>12}" for noise in noisy) + "   (tested on, accuracy)")
for name, row in scores.items():
    print(f"{name:<13}" + "".join(f"{100 * score:>11.1f}%" for score in row.values()))

# %% [markdown]
# Read it by columns. On clean sentences augmentation changes little, one way or the other. On noisy
# ones it helps most against the noise that it imitated. And look at *swap*: it equals *clean* to
# the last digit. A mean does not know the order of its words, so exchanging them is no augmentation
# at all, for this model.
#
# ### Noise
#
# For a denoising autoencoder, noise *is* the task: it sees the noisy picture and must give back the
# clean one. Two of them, trained on the same pictures; one saw noise while training, the other did
# not. With a prediction: the best *linear* denoiser can be computed from the pictures' variances λ
# along their principal directions; along each it leaves λσ²/(λ + σ²).

# %%
sigma = 0.4
noisy_test = augmentation.augment(
    mnist.test_x, Policy(noise=sigma), torch.Generator().manual_seed(0), kind="digits"
)
policies = {
    "never saw noise": Policy(shift=0.05),
    "trained on noise": Policy(shift=0.05, noise=sigma),
}
restored = {}
with torch.no_grad():
    for name, policy in policies.items():
        with torch.enable_grad():
            model = experiment.train_denoiser(mnist.train_x, policy, updates=150)
        restored[name] = model(noisy_test)
errors = {
    name: float((image - mnist.test_x).square().mean())
    for name, image in {"noisy": noisy_test, **restored}.items()
}
errors["best linear (predicted)"] = experiment.best_linear_error(mnist.test_x, sigma)
for name, error in errors.items():
    print(f"{name:<24} mean squared error {error:.4f}")

# %%
picture, (axes,) = figure.axes(7, 3)
shown = torch.stack(
    [mnist.test_x[:10], noisy_test[:10], *(image[:10] for image in restored.values())]
)
axes.imshow(
    shown[:, :, 0].permute(0, 2, 1, 3).reshape(4 * 28, 10 * 28), cmap="gray_r", vmin=0, vmax=1
)
axes.set_yticks([14, 42, 70, 98], ["clean", "noisy", *restored])
axes.set_xticks([])
axes.grid(False)
picture

# %% [markdown]
# Noise in, and the network learns to take it out, about as well as the best linear denoiser after
# these few updates. The other one, which has only ever copied, takes some of the noise away just by
# being narrow in the middle, and copies the rest.
#
# ## 7. Break it
#
# Now as far as you like: half turns, mirrors, shifts by half the width. When does the accuracy fall
# below that of the plain pictures? And tick **one by one**, and watch the share of time.

# %%
break_it = Panel(
    experiment.run,
    base.turned(shift=0.1),
    [
        Curve("test_accuracy", "test accuracy, %", scale=100, over="updates"),
        Curve("augment_share", "augmentation, % of the time", scale=100),
    ],
    controls=["shift", "rotate", "flip", "one_by_one"],
    baselines={"shift 0.1": base.turned(shift=0.1)},
    tour=[
        base.turned(shift=0.1, rotate=180, flip=0.5),
        base.turned(shift=0.5),
        base.turned(shift=0.1, one_by_one=True),
    ],
    seconds=2,
)
break_it

# %% [markdown]
# The code of the refusal that stands between you and this, unless you say `unsafe`:

# %%
print(inspect.getsource(augmentation.refuse_unsafe))

# %% [markdown]
# The quietest mistake has no switch here, because no curve shows it: augmenting *before* splitting
# into training and test. Changed copies of the test pictures are then in the training set. The
# second exercise is that case.
#
# ## 8. When it does not help
#
# When there is enough. Forty times as many real pictures, and the same number of updates:

# %%
plenty = {
    name: accuracy(pictures=400, shift=shift)
    for name, shift in (("as they are", 0.0), ("shift", 0.1))
}
scarce = {"as they are": real[10], "shift": made["shift"]}
for pictures, scores_of in ((10, scarce), (400, plenty)):
    gain = scores_of["shift"] - scores_of["as they are"]
    print(
        f"{pictures:>3} pictures of each: {scores_of['as they are']:.1%}, shifted "
        f"{scores_of['shift']:.1%}: {gain:+.1%}"
    )

# %% [markdown]
# What augmentation can tell, enough data tells, too. And it asks for patience: every picture is
# new, so learning takes more updates. With a fixed budget of updates, plenty of data and strong
# augmentation, you can even lose.
#
# So, about the claims from the start, the verdict for this machine:

# %%
synonym_gain = scores["synonyms"]["synonyms"] - scores["as they are"]["synonyms"]
verdict = (
    f"10 digits of each, shifted, are worth {worths['shift']:.1f} × as many; mirrored as well, "
    f"{worths['shift, mirror']:.1f} ×; "
    f"a batch at once takes {speed.ratio:.2f} × the time of one by one; synonyms: "
    f"{synonym_gain:+.1%} on text with synonyms"
)
log_verdict("augmentation", verdict)

# %% [markdown]
# - *The more, the better:* if the label survives. It is the knowledge that counts, not the number.
# - *Synonyms and homophones:* robustness, above all to just that noise; on clean text, little.
# - *Noise for generative models:* for a denoiser, noise is no augmentation but the task.
#
# ## 9. Exercises
#
# Write the functions and run the cells; `check` tries each on fresh data and explains what it
# finds. An exercise left alone counts as not attempted, nothing worse.

# %%
from accel_lab.grading.practice import check, exercises

SHIFT, LEAK, WORDS = exercises("augmentation")
SHIFT


# %% tags=["exercise"]
def shift_each(x, right, down):
    raise NotImplementedError


check(shift_each)

# %%
LEAK


# %% tags=["exercise"]
def enlarged(x, y, tests, copies, change):
    # The colleague's version:
    #
    #   x = torch.cat([x, *(change(x, seed) for seed in range(copies))])
    #   y = y.repeat(copies + 1)
    #   return x[tests:], y[tests:], x[:tests], y[:tests]
    raise NotImplementedError


check(enlarged)

# %%
WORDS


# %% tags=["exercise"]
def misheard(text, table, keep):
    raise NotImplementedError


check(misheard)

# %% [markdown]
# ## 10. Take away
#
# - Augmentation says what does not matter. If that is true, it is worth many real pictures; if not,
#   it teaches an error.
# - Put what a label endures into the interface, and refuse the rest.
# - One map, one resampling, the whole batch in one call, from a seed.
# - On text it buys robustness to the noise it imitates. Words that turn a sentence round are not to
#   be touched.
# - Split first, augment afterwards, and leave the test set alone.
#
# **What would prove this wrong?** A data set on which mirrored digits raise the test accuracy. Look
# at what is in it: are there only 0, 1 and 8?
#
# **Sources.** P. Simard, D. Steinkraus, J. Platt, *Best Practices for Convolutional Neural
# Networks*, 2003, section 2 · J. Wei, K. Zou, *EDA: Easy Data Augmentation*, 2019, arXiv:1901.11196
# · P. Vincent et al., *Denoising Autoencoders*, 2008 · B. Pang, L. Lee, *Seeing stars*, 2005 (the
# sentences) · G. Miller, *WordNet*, 1995.
#
# **Next.** Data is scaled and multiplied; the batch is still as large as it was. What if it should
# be larger than the memory? Chapter 11.
