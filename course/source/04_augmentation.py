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
# Labelled pictures are expensive. Pictures made from pictures are nearly free: shift one by three
# pixels, turn it by ten degrees, and the network has never seen it. So you will read:
#
# > *Flip, crop, rotate, scale: the more samples, the better the model.*
# >
# > *For text: replace words by synonyms, or by words that sound the same.*
# >
# > *For generative models: flip, rotate, and add noise.*
#
# But a mirrored 2 is not a 2. And a sentence without its "not" is another sentence. You will
# measure what a made-up picture is worth, in real ones; what happens when the label does not
# survive; and what all this costs the loader.

# %% jupyter={"source_hidden": true}
import math
from statistics import mean

import torch
from torch.nn.functional import affine_grid, grid_sample, pad

from accel_lab import augmentation
from accel_lab.experiments import augmentation as experiment
from accel_lab.workbench import chapter as lab

torch.set_num_threads(1)  # networks this small gain nothing from a second core

# %% [markdown]
# The next cell holds the settings of this chapter. Change one, as in `knobs = {"pictures": 20}`,
# and run the notebook again.

# %% tags=["parameters"]
knobs = {}

# %%
base = lab.settings(experiment.Knobs, knobs, batch_size=32)
chance = (math.log(10), "chance, ln 10")
mnist = lab.datasets.mnist5k()
some = experiment.few(mnist, base.pictures, base.seed)
next(experiment.run(base))  # a process's first update takes long: PyTorch loads its optimizers
print(f"{len(some.train_y)} training pictures, {base.pictures} of each digit")
print(f"{len(some.test_y):,} pictures to test on")

# %% [markdown]
# ## 2. Predict
#
# Ten pictures of each digit are all you have. At every update, each picture is shifted anew, at
# random, by up to a tenth of its side, nearly three pixels, in each direction. How many *real*
# pictures would have been as good? Say it as a multiple: 1 means that shifting is worth nothing, 3
# that it stands for thirty real pictures of each digit. (Less than 1 is possible, too.)

# %%
guess_shift = lab.Prediction(
    "Shifting is worth how many times as many real pictures?",
    low=0.2,
    high=20,
    default=1.3,
    unit="×",
)
guess_shift

# %%
guess_flip = lab.Prediction(
    "And shifting and mirroring them, together?", low=0.2, high=20, default=1.5, unit="×"
)
guess_flip

# %% [markdown]
# ## 3. See
#
# First, look at what is made. Move the sliders: every picture draws its own amount. Which of these
# would you still label with the same digit?

# %%
first = torch.stack([some.train_x[some.train_y == digit][0] for digit in range(10)])


def made_by(policy, seed=0, x=first, way=augmentation.augment):
    return way(x, policy, torch.Generator().manual_seed(seed), kind="digits", unsafe=True)


def wall(rotate=15, zoom=0.15, shift=0.1, flip=0.0, noise=0.0):
    policy = augmentation.Policy(flip=flip, rotate=rotate, zoom=zoom, shift=shift, noise=noise)
    rows = {"original": first[:, 0]} | {f"{n}": made_by(policy, n)[:, 0] for n in range(1, 7)}
    picture, (axes,) = lab.figure.axes(7, 4.9)
    lab.figure.draw_images(axes, rows, line_below="original")
    return picture


# %% tags=["hero"]
lab.Sliders(
    wall,
    rotate=(0, 180, 5),
    zoom=(0, 0.5, 0.05),
    shift=(0, 0.5, 0.05),
    flip=(0, 1, 0.5),
    noise=(0, 1, 0.1),
)

# %% [markdown]
# Above the line are the originals. Now train on them: a small convolutional network, for as long as
# you like. *Pictures as they are* is the baseline.
#
# Press **Start**. Move **shift** to 0.1. Then **flip** to 0.5. Then take flip back, press **Pin**,
# undo the shift and take more **pictures** instead: the orange line follows, and the pinned one
# stays. From how many pictures on does orange win?

# %%
panel = lab.Panel(
    experiment.run,
    base,
    [
        lab.Curve("test_accuracy", "test accuracy, %", scale=100, over="updates", ends=(0, 100)),
        lab.Curve("gap", "training minus test accuracy, %", scale=100, over="updates"),
        lab.Curve("augment_share", "augmentation, % of the time", scale=100, summary="median"),
        lab.Curve("loss", "loss", over="updates", log=(1e-4, 1e1), limit=chance),
    ],
    controls=["pictures", "shift", "flip"],
    baselines={"pictures as they are": {"shift": 0.0, "flip": 0.0}},
    headline=lab.Headline("test_accuracy", "test accuracy", points=True),
    tour=[base.turned(shift=0.1, flip=0.5), base.turned(shift=0.1)],
    seconds=2.5,
)
panel

# %% [markdown]
# What to look for:
#
# - Without augmentation the loss falls to nearly zero within some two hundred updates: a hundred
#   pictures are quickly learned by heart. The gap to the test pictures stays.
# - With shifts the loss stays higher, and the test accuracy is *better*. A training loss that does
#   not vanish says that the task got harder. Whether that is worth it, only the test accuracy says:
#   mirroring keeps the loss higher still.
# - With mirroring added, part of the gain is lost again. Part 6 measures how much.
# - Augmentation takes some time even where the pictures stay as they are: random numbers are drawn
#   for every picture, used or not. Part 4 says why.

# %% [markdown]
# ## 4. Build
#
# Turning, zooming, shifting and mirroring are all one thing: a map that says, for each pixel of the
# new picture, where in the old one to look.
#
# $$p_{\text{in}} = F \, R(-\alpha) \, (p_{\text{out}} - \text{shift}) \,/\, \text{zoom}$$
#
# Here *p* counts pixels from the picture's centre, *F* mirrors left and right or does nothing, and
# *R* turns by the angle *α*. Maps of this kind multiply into one. So however many transforms you
# ask for, each picture is resampled **once**; doing them one after another would blur it each time.
# And all pictures go in one call, each with its own map.
#
# One line is left out. Your function gets two pictures, 28 pixels wide and 20 high. It mirrors the
# first, and looks 3 pixels to the right and 2 up in the second. Moving pixels gives the exact
# answers:


# %%
def like_moved_pixels(warp):
    chosen = torch.Generator().manual_seed(0)
    pictures = torch.rand(2, 1, 20, 28, generator=chosen, dtype=torch.float64)
    mirror, shift = [[-1, 0, 0], [0, 1, 0]], [[1, 0, 3], [0, 1, -2]]  # in pixels, x and y
    moved = torch.stack([pictures[0].flip(-1), pad(pictures[1], (-3, 3, 2, -2))])
    warped = warp(pictures, torch.tensor([mirror, shift], dtype=torch.float64))
    ways = {"moved": moved, "yours": warped}
    return lab.prove({name: [{"x": made}] for name, made in ways.items()}, steps=1)


# %% jupyter={"source_hidden": true}
lab.MissingLine(
    augmentation.warp,
    {
        "halves = maps.new_tensor([width / 2, height / 2]).view(1, 2, 1)": (
            "grid_sample's −1 and 1 are the outer edges: half a width or height from the centre."
        ),
        "halves = maps.new_tensor([(width - 1) / 2, (height - 1) / 2]).view(1, 2, 1)": (
            "The centres of the outer pixels, as for align_corners=True: here, too far out."
        ),
        "halves = maps.new_tensor([height / 2, width / 2]).view(1, 2, 1)": (
            "Exchanged: wrong wherever pictures are not square, and right on all of our digits."
        ),
        "halves = maps.new_tensor([width, height]).view(1, 2, 1)": (
            "It looks half as far out: without other changes, the middle quarter fills the picture."
        ),
    },
    like_moved_pixels,
)

# %% [markdown]
# All random numbers are drawn first, seven per picture, whichever transforms are on. So two
# policies can be compared on the same numbers:

# %%
lab.show_source(augmentation.random_numbers, augmentation.transform, docstring=False)

# %% [markdown]
# What a label endures depends on what is in the picture. That knowledge belongs into the interface,
# not into a comment:

# %% tags=["nbval-check-output"]
for kind, endures in augmentation.KINDS.items():
    mirrored = "yes" if endures.mirrored else "no"
    print(f"{kind:<12} mirrored: {mirrored:<4} turned by up to {endures.degrees:>3} degrees")

# %% tags=["nbval-check-output"]
mirror = augmentation.Policy(flip=0.5)
try:
    augmentation.augment(mnist.train_x[:8], mirror, torch.Generator(), kind="digits")
except ValueError as error:
    print("refused:", error)

# %% [markdown]
# Text works alike: pick words from a seed, replace them, leave everything else alone. Synonyms
# come from WordNet, English homophones from a short list, Chinese ones (同音字) from a dictionary
# of words and their syllables:

# %% tags=["nbval-check-output"]
sentence = "The movie is not terrible, but their story is too quick."
for name, operation in augmentation.TEXT_OPERATIONS.items():
    print(f"{name:<11}", operation(sentence, seed=4, share=0.25))

# %% tags=["nbval-check-output"]
chinese = "这个公式没有错，但是他的权利不大。"
for seed in range(4):
    print(augmentation.homophones(chinese, seed=seed, share=0.3, language="chinese"))

# %% [markdown]
# Words that reverse a sentence's meaning, "not" and "didn't" and 没有 and 不, are neither replaced,
# deleted nor moved, and none is put in ("know" sounds like "no"), for the same reason that digits
# are not mirrored. With `unsafe=True` they are:

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
policy = augmentation.Policy(flip=0.5, rotate=30, zoom=0.2, shift=0.1, crop=2, noise=0.1)
at_once = made_by(policy, x=x)
one_by_one = made_by(policy, x=x, way=augmentation.naive_augment)
mirrored = made_by(augmentation.Policy(flip=1.0), x=x)

print("at once = one by one, within 1e-12:", bool((at_once - one_by_one).abs().max() < 1e-12))
print("the same seed, the same pictures:  ", torch.equal(at_once, made_by(policy, x=x)))
print("another seed, other pictures:      ", not torch.equal(at_once, made_by(policy, 1, x)))
print("mirrored pixels are copies:        ", torch.equal(mirrored, x.flip(-1)))

# %% [markdown]
# And the map is the one that PyTorch's own `affine_grid` would have built from it. (Its units are
# −1 to 1 from edge to edge, ours are pixels from the centre.)

# %% tags=["nbval-check-output"]
numbers = augmentation.random_numbers(64, torch.Generator().manual_seed(0)).double()
maps = augmentation.affine_maps(policy, numbers[:, 0] < 0.5, numbers, 28, 28)
theta = maps.clone()
theta[:, :, 2] /= 14
theirs = grid_sample(x, affine_grid(theta, x.shape, align_corners=False), align_corners=False)
gap = (augmentation.warp(x, maps) - theirs).abs().max()
print("equal to torch's affine_grid, within 1e-9:", bool(gap < 1e-9))

# %% [markdown]
# *Half-way. This is a good place to stop and come back to: run all cells above, and go on here.*

# %% [markdown]
# ## 6. Measure
#
# What is a made-up picture worth? Train on 5, 10, 20 and 40 real pictures of each digit, as they
# are: that is the scale. Then train on 10 and augment, and read off how many real ones would have
# been as good. One run proves little: each is made three times, with other pictures and other
# weights.

# %%
SEEDS = 3
plain = {count: base.turned(pictures=count) for count in (5, 10, 20, 40)}
real = experiment.accuracies_over_seeds(plain, SEEDS)
for count, scores in real.items():
    print(f"{count:>3} of each digit: {lab.figure.tell_over_seeds(scores, '%')}")

# %%
changes = {
    "shift": {"shift": 0.1},
    "shift, turn, zoom": {"shift": 0.1, "rotate": 15, "zoom": 0.15},
    "mirror": {"flip": 0.5},
    "shift, mirror": {"shift": 0.1, "flip": 0.5},
}
ways = {name: base.turned(pictures=10, **change) for name, change in changes.items()}
made = experiment.accuracies_over_seeds(ways, SEEDS)

# %%
scale = {count: mean(scores) for count, scores in real.items()}
worths = {name: [experiment.worth(one, scale) for one in scores] for name, scores in made.items()}
for name, found in worths.items():
    print(f"10 pictures, {name:<17} worth {lab.figure.tell_over_seeds(found, '×')}")

# %% jupyter={"source_hidden": true}
picture, (axes,) = lab.figure.axes(8, 3.4)
axes.set(xlabel="training pictures of each digit", ylabel="test accuracy, %")
lab.figure.powers_of_two(axes, "training pictures of each digit", real)
lab.figure.draw_over_seeds(axes, real, label="real pictures", color=lab.figure.GREY)
lines = {
    f"{name}: {mean(found):.1f} ×": {10: mean(made[name]), 10 * mean(found): mean(made[name])}
    for name, found in worths.items()
}
lab.figure.draw_lines(axes, lines)
picture

# %%
guess_shift.against(mean(worths["shift"]))

# %%
guess_flip.against(mean(worths["shift, mirror"]))

# %% [markdown]
# Each coloured line leads from ten pictures, changed in this way, to the number of real ones that
# reach the same accuracy. That a digit three pixels to the right is the same digit, the network
# need not find out from real examples: the person who chose the shifts *knew* it.
#
# Where the made-up pictures do not mean the same any more, the same trick teaches something false.
# Augmentation does not add data. It is a way of saying what does not matter.

# %% [markdown]
# Now the costs. As a loader does it, picture after picture, against the batch at once; and both
# against the update they feed:

# %%
batch = mnist.train_x[:64]
policy = augmentation.Policy(rotate=15, zoom=0.15, shift=0.1)
speed = lab.compare(
    lambda: made_by(policy, x=batch),
    lambda: made_by(policy, x=batch, way=augmentation.naive_augment),
    names=("the batch at once", "one by one"),
    patience=3.0,
)
speed

# %%
settings = base.turned(batch_size=64, shift=0.1, rotate=15, zoom=0.15)
for way, one_by_one in (("the batch at once", False), ("one by one", True)):
    seconds, update = experiment.augmentation_share(settings.turned(one_by_one=one_by_one))
    share = seconds / (seconds + update)
    print(f"{way:<18} {seconds * 1e3:6.2f} ms, update {update * 1e3:6.2f} ms: {share:.0%}", end=" ")
    print("of the time")

# %% [markdown]
# Each call into PyTorch costs some microseconds, however small the picture. Sixty-four pictures one
# by one pay sixty-four times. A training can be slow because of this loop, and not because of its
# network.
#
# ### Text
#
# A small reader learns to tell praise from blame in sentences from film reviews: the mean of its
# word vectors, and one linear layer. It is tested on clean sentences, and on sentences in which up
# to four words of ten have been changed: as many as have a synonym, or a homophone.

# %%
train, test = lab.words.reviews()
texts, labels = zip(*train[:3000])
tests, truth = zip(*test)
texts, labels, tests, truth = map(list, (texts, labels, tests, truth))
noisy = {"clean": tests}
for name, operation in augmentation.TEXT_OPERATIONS.items():
    noisy[name] = augmentation.augment_texts(tests, operation, 7, share=0.4)
short = (row for row in zip(*noisy.values()) if len(row[0]) < 100)
example = next(row for row in short if len(set(row)) == len(row))  # one that all of them change
print(*(f"{name:<11} {text}" for name, text in zip(noisy, example)), sep="\n")

# %% [markdown]
# The augmented readers see each sentence twice, as it is and changed, in half as many epochs. So
# all three take about the same number of updates.

# %%
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
# ones it usually helps most against the noise that it imitated; but this is one run, so trust only
# large differences. And look at *swap*: it equals *clean* to the last digit. A mean ignores the
# order of its words, so for this model exchanging them changes nothing.

# %% [markdown]
# ### Noise
#
# For a denoising autoencoder, noise *is* the task: it sees the noisy picture and must give back the
# clean one. Two of them, trained on the same pictures; one saw noise while training, the other did
# not. With a prediction: the best *linear* denoiser can be computed from the pictures' variances λ
# along their principal directions; along each it leaves λσ²/(λ + σ²).

# %%
sigma = 0.4
clean, only_noise = mnist.test_x, augmentation.Policy(noise=sigma)
noisy_test = made_by(only_noise, x=clean)
policies = {
    "never saw noise": augmentation.Policy(shift=0.05),
    "trained on noise": augmentation.Policy(shift=0.05, noise=sigma),
}
images = {"noisy": noisy_test}
for name, policy in policies.items():
    model = experiment.train_denoiser(mnist.train_x, policy, updates=150)
    with torch.no_grad():
        images[name] = model(noisy_test)

# %%
for name, image in images.items():
    print(f"{name:<24} mean squared error {(image - clean).square().mean():.4f}")
linear = experiment.best_linear_error(clean, sigma)
print(f"{'best linear (predicted)':<24} mean squared error {linear:.4f}")

# %% jupyter={"source_hidden": true}
picture, (axes,) = lab.figure.axes(7, 3)
rows = {"clean": clean} | images
lab.figure.draw_images(axes, {name: image[:10, 0].numpy() for name, image in rows.items()})
picture

# %% [markdown]
# Trained on noise, the network takes it out, about as well as the best linear denoiser after these
# few updates. The other one has only ever copied. It removes much of the noise just by being narrow
# in the middle; but its error stays larger.
#
# ## 7. Break it
#
# Now as far as you like: half turns, mirrors, shifts by half the width. When does the accuracy fall
# below that of the pictures as they are? And tick **one by one**, and watch the share of time.

# %%
plain = {"shift": 0.0, "rotate": 0.0, "flip": 0.0, "one_by_one": False}
break_it = lab.Panel(
    experiment.run,
    base.turned(shift=0.1),
    [
        lab.Curve("test_accuracy", "test accuracy, %", scale=100, over="updates", ends=(0, 100)),
        lab.Curve("augment_share", "augmentation, % of the time", scale=100, summary="median"),
    ],
    controls=["shift", "rotate", "flip", "one_by_one"],
    baselines={"pictures as they are": plain, "shift 0.1": {**plain, "shift": 0.1}},
    headline=lab.Headline("test_accuracy", "test accuracy", points=True),
    tour=[base.turned(shift=0.1, rotate=180, flip=0.5), base.turned(shift=0.5)],
)
break_it

# %% [markdown]
# The code of the refusal that stands between you and this, unless you say `unsafe`:

# %%
lab.show_source(augmentation.refuse_unsafe, docstring=False)

# %% [markdown]
# The quietest mistake has no switch here, because no curve shows it: augmenting *before* splitting
# into training and test. Changed copies of the test pictures are then in the training set. The
# second exercise is that case.
#
# ## 8. When it does not help
#
# When there is enough data, and when there is little time. Forty times as many real pictures, after
# few updates and after many:

# %%
many = base.turned(pictures=400)
gains = experiment.gains_over_seeds(many, many.turned(shift=0.1), updates=(200, 800), seeds=2)
few = [shifted - plain for shifted, plain in zip(made["shift"], real[10], strict=True)]
print(" 10 of each digit,  200 updates:", lab.figure.tell_over_seeds(few, "points gained"))
for updates, gained in gains.items():
    said = lab.figure.tell_over_seeds(gained, "points gained")
    print(f"400 of each digit, {updates:>4} updates: {said}")

# %% [markdown]
# What augmentation can tell, enough data tells, too: the gain shrinks. And it asks for patience:
# every picture is new, so learning takes more updates. With few of them and plenty of data you can
# even lose; with more of them you lose less, or win. Compare at the number of updates that you will
# spend.
#
# So, about the claims from the start, the verdict for this machine:

# %%
synonym_gain = scores["synonyms"]["synonyms"] - scores["as they are"]["synonyms"]
shifted, mirrored = (mean(worths[way]) for way in ("shift", "shift, mirror"))
verdict = (
    f"10 of each digit, shifted, are worth {shifted:.1f} × as many; mirrored as well, "
    f"{mirrored:.1f} ×; a batch at once takes {speed.ratio:.2f} × the time of one "
    f"by one; synonyms: {100 * synonym_gain:+.1f} points on text with synonyms"
)
lab.log_verdict("augmentation", verdict)

# %% [markdown]
# - *The more, the better:* if the label survives. What counts is the knowledge, not the number.
# - *Synonyms and homophones:* robustness, above all to just that noise; on clean text, little.
# - *Noise for generative models:* for a denoiser, noise is not augmentation but the task.
#
# ## 9. Exercises
#
# Write the functions and run the cells; `check` tries each on fresh data. It says what is right
# already, shows a small case that is not, and gives a hint where it knows the mistake. After two
# different tries it offers a worked solution. Some functions are written already, with faults:
# repair them.

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
    x = torch.cat([x, *(change(x, seed) for seed in range(copies))])
    y = y.repeat(copies + 1)
    return x[tests:], y[tests:], x[:tests], y[:tests]


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
# - On text it buys robustness to the noise it imitates. Leave alone the words that reverse a
#   sentence's meaning.
# - Split first, augment afterwards, and leave the test set alone.

# %% [markdown]
# Known from elsewhere, and not measured here: mixing two pictures and their labels (mixup,
# arXiv:1710.09412; CutMix, arXiv:1905.04899), policies drawn at random (RandAugment,
# arXiv:1909.13719), changes of colour and contrast. A model that *generates* pictures learns to
# generate augmented ones, too, unless care is taken (T. Karras et al., 2020, arXiv:2006.06676).
# And where several processes load the data, each needs a seed of its own, or all draw the same
# changes.

# %% [markdown]
# **What would prove this wrong?** A data set on which mirrored digits raise the test accuracy. Look
# at what is in it: are there only 0, 1 and 8?

# %% [markdown]
# **Sources.** P. Simard, D. Steinkraus, J. Platt, *Best Practices for Convolutional Neural
# Networks*, 2003, section 2 · J. Wei, K. Zou, *EDA: Easy Data Augmentation*, 2019, arXiv:1901.11196
# · P. Vincent et al., *Denoising Autoencoders*, 2008 · B. Pang, L. Lee, *Seeing stars*, 2005 (the
# sentences) · G. Miller, *WordNet*, 1995.
#
# **Next.** Sentences were multiplied here, word by word. How does a network read words at all, and
# what should be cleaned off them before? That is [chapter 05](05_text.ipynb). All chapters are
# listed on the [first page](00_start_here.ipynb).
