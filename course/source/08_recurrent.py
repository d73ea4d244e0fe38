# ---
# jupyter:
#   kernelspec:
#     name: python3
#     display_name: Python 3
# ---

# %% [markdown]
# # 08 · Recurrent networks
#
# ## 1. The question
#
# A *recurrent* network reads a sentence word by word. It keeps a *state*, and each word changes it.
# The state after the last word stands for the whole sentence. About such networks you can read:
#
# > *Recurrent networks capture long-range dependencies automatically.*
#
# And about their speed, as a matter of course:
#
# > *Pack the batch, so that no time is spent on padding.*
#
# Sentences have different lengths, so a batch of them is filled up, or *padded*, to the longest.
# Half of all places can be filling. This chapter measures three ways to deal with it, and then asks
# how far back a state remembers.

# %% jupyter={"source_hidden": true}
from statistics import fmean, median

import torch
from torch.nn.utils.rnn import pack_sequence

from accel_lab import recurrent
from accel_lab.experiments import recurrent as experiment
from accel_lab.workbench import chapter as lab

torch.set_num_threads(1)  # all ways alike: their work is compared, not how it is shared out

# %% [markdown]
# The next cell holds the settings of this chapter. Change one, as in `knobs = {"cell": "GRU"}`, and
# run the notebook again: everything below follows.

# %% tags=["parameters"]
knobs = {}

# %%
base = lab.settings(experiment.Knobs, knobs)
_, lengths, _ = experiment.numbered_reviews()
print(f"{len(lengths):,} sentences of film reviews, praise or blame, as in chapter 05;")
print(f"words of a sentence: {lengths.min()} to {lengths.max()}, median {lengths.median()}")
print(f"batches of {base.batch_size}, {base.cell} with {base.hidden} numbers in its state")

# %% [markdown]
# ## 2. Predict
#
# Three guesses, before you see anything. Skip them if you like.

# %%
guess_packed = lab.Prediction(
    "PyTorch's packing computes no filling. How long does it take, if padding takes 1?",
    low=0.1,
    high=10,
    default=0.5,
    unit="×",
)
guess_packed

# %%
guess_bucketed = lab.Prediction(
    "Sentences of like length in one batch, padded: how long, if random batches take 1?",
    low=0.1,
    high=10,
    default=0.8,
    unit="×",
)
guess_bucketed

# %%
guess_recalled = lab.Prediction(
    "An LSTM, trained for 120 updates, tells the first of 40 symbols, one of two: % right?",
    low=40,
    high=100,
    default=95,
    unit="%",
)
guess_recalled

# %% [markdown]
# ## 3. See
#
# The dashed orange run pads random batches. Press **Start**, then choose *packed* as **form**: that
# is PyTorch's packing, and *packed, ours* is this chapter's. Next, go back to *padded*, and move
# **pool** up: so many batches are drawn together, sorted by length, and dealt out again. Last, put
# both together, and try the other **cell**.

# %%
filling = lab.Sweep(
    "pool",
    "padding",
    "filling, % of all places",
    scale=100,
    predicted=experiment.predicted_padding,
    formula="from the lengths alone",
    summary="mean",
)
per_word = lab.Sweep("form", "ns_per_word", "µs for each word", scale=1e-3)
accuracy = lab.Curve("test_accuracy", "test accuracy, %", scale=100, over="updates", ends=(40, 80))
speed = lab.Curve("words_per_second", "thousand words/s", scale=1e-3, noisy=True)

# %%
panel = lab.Panel(
    experiment.run,
    base,
    [filling, per_word, accuracy, speed],
    controls=["form", "pool", "cell", "batch_size"],
    baselines={"padded at random": {"form": "padded", "pool": 1}},
    headline=lab.Headline("words_per_second", "words/s"),
    tour=[
        base.turned(form="packed"),
        base.turned(form="packed, ours", pool=32),
        base.turned(form="padded", pool=32),
    ],
    seconds=1.0,
)
panel

# %% [markdown]
# What to look for:
#
# - *Filling* is computed where a batch is padded. The dashed line was there before the dots: it
#   needs the lengths of the sentences, and nothing else.
# - Only words count in *words/s*. Counting places would praise padding for computing nothing of
#   use.
# - How much of the filling is gone at a pool of 32, and what happens to words/s?
#
# ## 4. Build
#
# ### One step
#
# A cell takes a word and the state before it, and returns the state after it. This is the *GRU*,
# and below it the *LSTM*, which has a second state `c`. `words` are multiplied by their weights
# already; the product with the state has to wait for the state.
#
# Each `sigmoid` is a *gate*: a number from 0, shut, to 1, open, for each number of the state. The
# LSTM's *forget gate* `f` says how much of the old `c` is kept.

# %%
lab.show_source(recurrent.gru_cell, recurrent.lstm_cell, docstring=False)

# %% [markdown]
# ### Padded
#
# The batch becomes a rectangle of steps and sentences, filled up with zeros. All rows are computed
# at all steps. At the end, each sentence's state is taken *after its last word*:

# %%
lab.show_source(recurrent.pad, recurrent.unrolled, docstring=False)

# %% tags=["nbval-check-output"]
ids, three = torch.tensor([11, 12, 21, 22, 23, 24, 31]), torch.tensor([2, 4, 1])
print("a row for each step:", recurrent.pad(ids, three).tolist())

# %% [markdown]
# ### Packed
#
# Sorted by length, the sentences that still go on are always the first rows. So the words are put
# step by step: all first words, then all second words of those that have one. `sizes` says how many
# there are in each step.

# %%
lab.show_source(recurrent.pack, docstring=False)

# %% [markdown]
# All words are multiplied by `w_in` *in one product*, before the first step, because that product
# waits for no state. And they are cut into steps by *one split*. Rows whose sentence has ended are
# set aside.
#
# One line is left out. Your function reads five short sentences with a GRU. Its states have to be
# those of the padded batch, the longest sentence first.


# %%
def like_padded(packed_last):
    torch.manual_seed(0)
    table, gru = torch.randn(14, 6, dtype=torch.float64), torch.nn.GRU(6, 5).double()
    weights, cell = [weight.detach() for weight in gru.parameters()], recurrent.gru_cell
    ids, lengths = torch.arange(14), torch.tensor([2, 4, 1, 4, 3])
    packed = recurrent.pack(ids, lengths)
    padded = recurrent.unrolled(table[recurrent.pad(ids, lengths)], lengths, weights, cell)
    yours = packed_last(table[packed.ids], packed.sizes, weights, cell)
    ways = {"padded": padded[packed.order], "yours": yours}
    return lab.prove({name: [{"state": state}] for name, state in ways.items()}, steps=1)


# %% jupyter={"source_hidden": true}
lab.MissingLine(
    recurrent.packed_last,
    {
        "return torch.cat([held[0], *reversed(ended)])": (
            "The longest are held to the end. Of the others, the last to end are the longest."
        ),
        "return torch.cat([held[0], *ended])": (
            "The shortest ended first: its state comes right after the longest, in a wrong row."
        ),
        "return torch.cat([*ended, held[0]])": (
            "In the order in which they ended, the shortest first. Row 0 belongs to the longest."
        ),
        "return held[0]": (
            "Only the states of the longest sentences. Those of all others were set aside."
        ),
    },
    like_padded,
)

# %% tags=["nbval-check-output"]
by_step = recurrent.pack(ids, three)
print("words, step by step:", by_step.ids.tolist())
print("sentences in each step:", by_step.sizes, " row → sentence:", by_step.order.tolist())

# %% [markdown]
# ### Watch a batch
#
# The first 12 sentences, a row each. Blue is a word that was read, grey one that is still to come,
# and orange is filling that was computed. Press **Play** (▶).

# %% jupyter={"source_hidden": true}
twelve = lengths[experiment.TESTS : experiment.TESTS + 12]
INK = torch.tensor([[255, 255, 255], [225, 225, 225], [86, 140, 200], [235, 150, 60]]) / 255


def batch_at(step=20):
    picture, row = lab.figure.axes(8.6, 3.0, columns=2)
    for axes, packed in zip(row, (False, True)):
        what = experiment.places(twelve, step, packed)
        axes.imshow(INK[what], aspect="auto", extent=(0, what.shape[1], 12, 0))
        axes.set(yticks=[], xlabel="step", ylabel="sentences")
        axes.grid(False)
        name, done = ("padded", "packed")[packed], (int((what == kind).sum()) for kind in (2, 3))
        axes.set_title("{}: {} words and {} of filling".format(name, *done), fontsize=9)
    return picture


lab.Sliders(batch_at, step=range(int(twelve.max()) + 1))

# %% [markdown]
# ### Bucketed
#
# If sentences of like length come into one batch, there is little to fill. But sorted data are not
# random: each sentence would always meet the same others, and short ones would come first. So
# shuffle, sort within a *pool* of some batches, and shuffle the batches:

# %%
lab.show_source(recurrent.bucketed, recurrent.by_length, docstring=False)

# %% tags=["nbval-check-output"]
tiny = torch.tensor([3, 9, 2, 8, 3, 7, 1, 9])
for pool in (1, 2, 4):
    dealt = recurrent.bucketed(tiny, 2, pool, torch.Generator().manual_seed(3))
    share = recurrent.padding_share(tiny, dealt)
    print(f"pool {pool}: lengths", [tiny[one].tolist() for one in dealt], f"filling {share:.0%}")

# %% [markdown]
# ### The share to expect
#
# A batch has as many places as its size times its longest sentence. Draw *n* sentences for a pool,
# each from all of them. With F(x) the share of sentences of at most x words, the chance that
# exactly k of the n have at most x words is
#
# $$\binom{n}{k}\, F(x)^k\, (1 - F(x))^{n-k} .$$
#
# Added up, these chances give the expected length of the longest sentence in each batch of the
# pool, and so the expected share of filling, without dealing a single batch. That is
# `recurrent.expected_padding`; part 6 compares it with batches.
#
# *Half-way. This is a good place to stop and come back to: run all cells above, and go on here.*
#
# ## 5. Prove
#
# The truth is a sentence read alone, by PyTorch's own layer. Do a padded batch and both kinds of
# packing return the same states? Equal lengths and single words are included, in float64:

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
seven = torch.tensor([3, 7, 1, 7, 2, 1, 5])
x = torch.randn(int(seven.sum()), 16, dtype=torch.float64, requires_grad=True)
parts = x.split(seven.tolist())
gru = torch.nn.GRU(16, 24).double()
weights = tuple(gru.parameters())
packed = recurrent.pack(torch.arange(len(x)), seven)
last = recurrent.packed_last(x[packed.ids], packed.sizes, weights, recurrent.gru_cell)
filled = torch.nn.utils.rnn.pad_sequence(parts)
ways = {
    "each alone": torch.cat([gru(one)[0][-1:] for one in parts]),
    "nn.GRU, packed": gru(pack_sequence(parts, enforce_sorted=False))[1][0],
    "ours, packed": packed.in_order(last),
    "ours, padded": recurrent.unrolled(filled, seven, weights, recurrent.gru_cell),
}

# %% tags=["nbval-check-output"]
truth, *others = (
    (one.detach(), *torch.autograd.grad(one.sin().sum(), [x, *weights], retain_graph=True))
    for one in ways.values()
)
for name, found in zip(list(ways)[1:], others):
    off = [max((a - b).abs().max() for a, b in zip(found[k:], truth[k:])) for k in (0, 1)]
    print(f"{name:<15} states and gradients equal, within 1e-12:", max(off).item() < 1e-12)

# %% [markdown]
# And in training? Ten updates on film reviews with each form. Then bucketing, which changes which
# sentences meet, and nothing else: each one comes once in an epoch.

# %% tags=["nbval-check-output"]
for cell in ("GRU", "LSTM"):
    proof = lab.prove({form: experiment.weights_along(form, cell) for form in experiment.FORMS})
    assert proof.holds
    print(cell, "·", proof)
dealt = recurrent.bucketed(lengths, 64, 50, torch.Generator().manual_seed(0))
once = torch.equal(torch.cat(dealt).sort().values, torch.arange(len(lengths)))
print(f"{len(dealt)} batches, each sentence exactly once: {once}")

# %% [markdown]
# ## 6. Measure
#
# ### The filling, and the time
#
# First the filling: one epoch of batches for each pool, against the share to expect. Then six ways
# take turns in training on the same sentences, one pool of batches. The clock includes all that
# makes a batch: finding the words, sorting, padding or packing.

# %%
pools = lab.along((1, 2, 4, 8, 16, 32, 64))
shares = experiment.shares_of(pools, base.batch_size)
for pool, share in shares.items():
    expected = 100 * experiment.predicted_padding(base.turned(pool=pool))
    print(f"pool {pool:>2}: {share:4.1f} % filling, expected {expected:4.1f} %")
POOL = max(4, round(8 * lab.effort()))
forms = ("padded", "packed", "packed, ours")
programs = {
    (form, pool): experiment.part_of_an_epoch(base.turned(form=form, pool=pool), batches=POOL)
    for pool in (1, POOL)
    for form in forms
}
taken = experiment.in_turn(programs, rounds=8)
words = int(lengths[experiment.TESTS : experiment.TESTS + POOL * base.batch_size].sum())
micros = {way: 1e6 * median(seconds) / words for way, seconds in taken.items()}

# %%
plain = ("padded", 1)
ratios = {way: lab.compared(taken, way, plain) for way in taken}
print("                    µs a word     × padded at random")
for (form, pool), found in ratios.items():
    order = "random" if pool == 1 else "bucketed"
    print(f"{form:<16} {order:<9} {micros[form, pool]:>5.1f} {found.ratio:>12.2f}")

named = {("packed", 1): "packing by torch", ("padded", POOL): "bucketing"}
packing, bucketing = (
    lab.compared(taken, way, plain, (name, "padding at random")) for way, name in named.items()
)
print(packing, bucketing, sep="\n")
guess_packed.against(packing.ratio)

# %%
least, most = packing.interval
print(f"Packing skips {shares[1]:.0f} % of all places.", end=" ")
if packing.proved and least > 1:
    print("It is slower than computing them.")
elif least > 1 - shares[1] / 100:
    print("It saves a smaller share of the time, if any.")
elif most < 1:
    print("It is faster than computing them.")
else:
    print("These rounds do not tell whether that saves time.")
guess_bucketed.against(bucketing.ratio)

# %% [markdown]
# ### Why packing can be slow
#
# PyTorch's packed layer slices the words of each step out of the batch. Backwards, the gradient of
# a slice is a tensor as large as all that was sliced: zeros, and the few rows of this step. With T
# steps, n words and g · H numbers for each word (g is 3 for a GRU, 4 for an LSTM), that writes
#
# $$T \cdot n \cdot g\,H \cdot 4 \ \text{bytes.}$$
#
# Both T and n grow with the length, so it grows with the *square* of the length. Count what is
# written, in a batch of 32 sentences:

# %%
LONGEST = lab.along((25, 50, 100, 200))
end = LONGEST[-1]
batches = {longest: experiment.sentences_of(longest)[1] for longest in LONGEST}


def one_pass(form, longest):
    return experiment.one_pass(form, base.cell, base.hidden, batches[longest])


print("longest   formula, MB   by torch, MB   by ours, MB")
for longest, some in batches.items():
    counted = [experiment.filled_by_slices(one_pass(form, longest)) for form in forms[1:]]
    law = experiment.filled_bytes(base.cell, base.hidden, some)
    print(f"{longest:>7}" + "".join(f"{one / 1e6:>14.1f}" for one in (law, *counted)))

# %% [markdown]
# Does that explain the time? *Zeros alone* is a program that makes such zeros, adds them up, and
# does nothing else. Compare our packing plus this program with packing by torch:

# %%
times, columns = {}, (*forms, "ours + zeros")
print("longest", *(f"{name:>13}" for name in columns), "  ms, forward and backward")
for longest, some in batches.items():
    passes = {form: one_pass(form, longest) for form in forms}
    passes["zeros"] = experiment.zeros_alone(base.cell, base.hidden, some)
    ms = {way: 1e3 * median(one) for way, one in experiment.in_turn(passes, rounds=5).items()}
    times[longest] = ms | {"ours + zeros": ms["packed, ours"] + ms["zeros"]}
    print(f"{longest:>7}", *(f"{times[longest][name]:>13.1f}" for name in columns))
longer = times[end]["packed"] / times[end]["packed, ours"]
print(f"at {end} words, packing by torch takes {longer:.1f} × the time of ours")
sums = [ms["ours + zeros"] / ms["packed"] for ms in times.values()]
print(f"ours + zeros takes {min(sums):.1f} to {max(sums):.1f} × the time of packing by torch:")
near = min(sums) > 0.7 and max(sums) < 1.4
print("the zeros explain it" if near else "the bytes are explained, the seconds only in part")

# %% jupyter={"source_hidden": true} tags=["hero"]
picture, (left, right) = lab.figure.axes(10, 3.6, columns=2)
colors = dict(zip(forms, (lab.figure.ORANGE, lab.figure.BLUE, lab.figure.GREEN)))
orders = {1: "random", POOL: "bucketed"}
bars = {f"{form}, {orders[pool]}": cost for (form, pool), cost in micros.items()}
lab.figure.draw_bars(left, bars)
for bar, (form, _) in zip(left.patches, micros):
    bar.set_color(colors[form])
left.set_xlabel("µs for each word of a training on reviews")
left.set_title("Which form is the fastest?", loc="left", fontsize=10)
for form, mark in zip(columns, "so^"):
    each = {n: 1e3 * ms[form] / int(batches[n].sum()) for n, ms in times.items()}
    right.plot(*zip(*each.items()), f"-{mark}", color=colors[form], label=form)
foreseen = {n: 1e3 * ms["ours + zeros"] / int(batches[n].sum()) for n, ms in times.items()}
right.plot(*zip(*foreseen.items()), **lab.figure.LIMIT, label="ours + zeros")
right.set(xlabel="longest sentence, words", ylabel="µs for each word")
right.set(xlim=(0, 1.05 * end), ylim=(0, None))
right.set_title("And with longer sentences?", loc="left", fontsize=10)
right.legend(frameon=False, fontsize=8, loc="best")
picture

# %% [markdown]
# ### Does bucketing harm what is learned?
#
# All forms compute the same numbers, so only the order of the sentences can matter. After the same
# number of updates, some seeds each:

# %%
seeds = lab.some_seeds(3)
updates = round(100 * lab.effort())
learned = {
    pool: [
        experiment.accuracy_after(base.turned(pool=pool, seed=base.seed + seed), updates)
        for seed in seeds
    ]
    for pool in (1, 32)
}
print(f"{updates} updates")
for pool, found in learned.items():
    print(f"pool {pool:>2}: test accuracy {lab.figure.tell_over_seeds(found, '%')}")
gained = fmean(learned[32]) - fmean(learned[1])
print(f"bucketed against random batches: {round(gained, 1) + 0.0:+.1f} points, on average")

# %% [markdown]
# A difference that is smaller than the spread over the seeds is noise, and one seed tells nothing.
# Besides, the test sentences are few: each accuracy alone is uncertain by a point or two.
#
# ### How far back does a state remember?
#
# Now the first claim. Each step multiplies the gradient once more. How large is it at the *first*
# word, compared with the last one? Here are new layers, before any training. *Gate +2* is an LSTM
# whose forget gate begins further open: its bias is larger by 2.

# %%
SPANS = (5, 10, 20, 40)
reach = {
    name: {n: fmean(experiment.first_word_share(name, n, s) for s in range(2)) for n in SPANS}
    for name in experiment.LAYERS
}
print(f"{'words':<13}" + "".join(f"{n:>10}" for n in SPANS) + "   predicted for the last")
for name, line in reach.items():
    step = (line[10] / line[5]) ** (1 / 5)
    foreseen = line[10] * step ** (SPANS[-1] - 10)
    print(f"{name:<13}" + "".join(f"{one:>10.0e}" for one in line.values()), f"{foreseen:>12.0e}")

# %% [markdown]
# *Predicted* takes the factor of one step, ρ, from the first two columns, and continues it as
# ρ to the power of the steps. A factor below 1 vanishes like this in any layer; a gate that is open
# has a factor near 1.
#
# Is it a matter of numbers only, or can a state really not remember? A small task: rows of random
# symbols, the first of which is one of two. Tell it at the end. 120 updates each; the GRU is left
# out here, for it takes the most time:

# %%
spans = lab.along((5, 20, 40))
recalled = {
    name: {n: [experiment.recalled(name, n, seed) for seed in seeds] for n in spans}
    for name in ("RNN", "LSTM", "LSTM, gate +2")
}
print("right at the end, %; guessing gives 50")
for name, line in recalled.items():
    said = [f"{n} symbols: {fmean(found):3.0f}" for n, found in line.items()]
    print(f"{name:<13}", "   ".join(said))
far = spans[-1]
guess_recalled.against(fmean(recalled["LSTM"][far]))

# %% jupyter={"source_hidden": true}
picture, (left, right) = lab.figure.axes(10, 3.4, columns=2)
left.set(yscale="log", xlabel="words", ylabel="gradient at the first word / at the last")
lab.figure.draw_lines(left, reach)
left.set_title("How much of the gradient reaches the first word?", loc="left", fontsize=10)
means = {name: {n: fmean(found) for n, found in line.items()} for name, line in recalled.items()}
lab.figure.draw_lines(right, means)
right.axhline(50, **lab.figure.LIMIT)
right.set(xlabel="symbols", ylabel="told right, %", ylim=(35, 105), xlim=(0, 1.1 * far))
right.set_title("And is the first symbol remembered?", loc="left", fontsize=10)
picture

# %%
able = {name: [n for n in spans if min(line[n]) > 90] for name, line in recalled.items()}
for name, told in able.items():
    print(f"{name:<13} told more than 90 % right, with every seed, of rows of", told or "no length")
opened = fmean(recalled["LSTM, gate +2"][far]) - fmean(recalled["LSTM"][far])
if opened > 10:
    print(f"At {far} symbols the first bias of one gate makes {opened:.0f} points difference:")
    print("these updates do not capture long-range dependencies automatically.")
else:
    print(f"At {far} symbols the bias of the gate makes {opened:.0f} points difference here.")

# %% [markdown]
# ## 7. Break it
#
# Four famous mistakes. The states that the reader judges by are compared with those after each
# sentence's last word: 0 is right, at 1 the error is as large as the state itself. On the right is
# the mean length of the sentences in each batch. Press **Start**, then choose one **mistake** after
# the other, each with a pool of 1 and with a larger one.

# %%
wrong_by = lab.Curve("state_error", "error of the states", over="updates", ends=(0, 1.6))
mean_length = lab.Curve("words_per_sentence", "words a sentence", over="updates", ends=(0, 40))
judged = lab.Badge("state_error", 1e-4, "states of the last words", "states of something else")
break_it = lab.Panel(
    experiment.run,
    base.turned(twin=True),
    [wrong_by, mean_length],
    controls=["mistake", "pool"],
    baselines={"no mistake": {"mistake": "none"}},
    headline=None,
    tour=[base.turned(twin=True, mistake=one) for one in ("last place", "never shuffled")],
    seconds=0.8,
    badge=judged,
)
break_it

# %% [markdown]
# Write down what each of them does to the two curves, and why, then look.
#
# <details><summary>What each of them does</summary>
#
# - **last place.** The state is taken at the end of the padded row. A short sentence has read much
#   filling by then. The larger the pool, the less there is to read, and the smaller the error is
#   on average.
# - **off by one.** One place of filling is read, where there is any.
# - **order lost.** Packed states come out the longest first, and the labels do not.
# - **never shuffled.** The least filling of all, and each epoch begins with the shortest sentences.
#
# </details>
#
# Here are the first three. Would the accuracy have told you? The same number of updates as in part
# 6, in bucketed batches, one seed:

# %%
lab.show_source(
    experiment.last_place, experiment.off_by_one, experiment.order_lost, docstring=False
)

# %%
told_right = {"none": learned[32][0]}
for mistake in (*experiment.MISTAKES, "never shuffled"):
    turned = base.turned(mistake=mistake, pool=32)
    told_right[mistake] = experiment.accuracy_after(turned, updates)
for mistake, right_share in told_right.items():
    print(f"{mistake:<15} {right_share:>5.1f} % of the test sentences told right")

# %% [markdown]
# A mistake that this number does not show is still one. The first three train another state than
# was meant. The fourth reads the right states, and always in the same order.
#
# A fifth mistake is a pool of one batch. Sorting *inside* a batch moves no sentence to another one,
# so the filling stays: look at pool 1 in the table of part 6.
#
# ### What is refused
#
# An empty sentence has no last word. PyTorch says so, too, but not which one it is: the last two
# lines are PyTorch's.

# %% tags=["nbval-check-output"]
for wrong in (
    lambda: recurrent.pack(torch.arange(3), torch.tensor([2, 0, 1])),
    lambda: recurrent.pad(torch.arange(3), torch.tensor([2, 2])),
    lambda: recurrent.packed_last(torch.zeros(4, 16), [1, 3], weights, recurrent.gru_cell),
    lambda: pack_sequence([torch.zeros(2, 3), torch.zeros(0, 3)]),  # PyTorch's
    lambda: pack_sequence([torch.zeros(2, 3), torch.zeros(4, 3)]),  # PyTorch's as well
):
    try:
        wrong()
    except (ValueError, RuntimeError) as refusal:
        print(str(refusal).split(". ")[0])

# %% [markdown]
# ## 8. When it does not help
#
# ### Nothing to skip
#
# Sentences of equal length have no filling, and a batch of one has none either. Then packing is
# only additional work. And where sentences are short, the calls can cost more than the sums. One
# batch each, ours packed against PyTorch's padded layer:

# %%
drawn = lengths[experiment.TESTS : experiment.TESTS + 64]
kinds = {
    "equal lengths": torch.full((64,), 20),
    "a batch of one": torch.tensor([20]),
    "64 sentences of reviews": drawn,
}
print("packed, ours, × padded       GRU    LSTM")
for name, some in kinds.items():
    line = []
    for cell in ("GRU", "LSTM"):
        passes = {form: experiment.one_pass(form, cell, 64, some) for form in experiment.FORMS}
        one = experiment.in_turn({form: passes[form] for form in (forms[0], forms[2])}, rounds=5)
        line.append(lab.compared(one, forms[2], forms[0]).ratio)
    print(f"{name:<24}" + "".join(f"{ratio:>8.2f}" for ratio in line))

# %% [markdown]
# ### "Use the built-in layer"
#
# Is PyTorch's padded layer much faster than a Python loop over our cells? That depends on whether
# it is *fused*, one program for many steps. On a CPU, PyTorch hands an LSTM to oneDNN, a library of
# such programs, and computes a GRU step by step:

# %%
for cell in ("GRU", "LSTM"):
    passes = {
        form: experiment.one_pass(form, cell, 64, drawn) for form in ("cell by cell", "padded")
    }
    one = experiment.in_turn(passes, rounds=5)
    loop = lab.compared(one, "cell by cell", "padded").ratio
    print(f"{cell:<5} our loop over cells takes {loop:.2f} × the time of nn.{cell}")

# %%
verdict = (
    f"{base.cell} on sentences, {shares[1]:.0f} % filling: packing by torch takes "
    f"{packing.ratio:.2f} × the time of padding, ours {ratios['packed, ours', 1].ratio:.2f} ×, "
    f"bucketing alone {bucketing.ratio:.2f} ×; at {end} words torch takes {longer:.1f} × ours; "
    f"of {far} symbols an LSTM tells the first one {fmean(recalled['LSTM'][far]):.0f} % right, "
    f"with its forget gate open {fmean(recalled['LSTM, gate +2'][far]):.0f} %"
)
lab.log_verdict("recurrent", verdict)

# %% [markdown]
# ## 9. Exercises
#
# Write the functions and run the cells; `check` tries each on fresh data. It says what is right
# already, shows a small case that is not, and gives a hint where it knows the mistake. After two
# different tries it offers a worked solution. Some functions are written already, with faults:
# repair them.

# %%
from accel_lab.grading.practice import check, exercises

LONGEST_FIRST, LAST, PACKED, EXPECTED = exercises("recurrent")
LONGEST_FIRST


# %% tags=["exercise"]
def longest_first(lengths, size, pool, generator):
    raise NotImplementedError


check(longest_first)

# %%
LAST


# %% tags=["exercise"]
def last_states(outputs, lengths, order):
    return outputs[-1]


check(last_states)

# %%
PACKED


# %% tags=["exercise"]
def packed_rnn(x, sizes, w, u, b):
    raise NotImplementedError


check(packed_rnn)

# %%
EXPECTED


# %% tags=["exercise"]
def filling_to_expect(lengths, size):
    raise NotImplementedError


check(filling_to_expect)

# %% [markdown]
# ## 10. Take away
#
# - Count the filling before you fight it: the lengths alone tell its share.
# - Sort within pools and shuffle the batches. Most of the filling is gone, and the layer is the
#   built-in one.
# - Work that is skipped is not time that is saved. Packing calls many small products, and in
#   PyTorch its backward pass on a CPU writes zeros in the square of the length.
# - Multiply all words at once, before the first step, and cut them with one split.
# - How far back a recurrent layer remembers is not automatic. Try it on a task like yours, and open
#   the forget gate before training begins.
#
# Known from elsewhere, and not measured here: on a CUDA device, cuDNN computes packed sentences in
# its own programs, so there packing can be the faster way; compare the panel's forms on yours. A
# forget bias of 1 or more is old advice (Gers et al., 2000; Jozefowicz et al., 2015).
# *Transformers* look at all words at once, so no step waits for another; padding and bucketing are
# their problem, too.

# %% [markdown]
# **What would prove this wrong?** A packed batch with other states than its sentences alone; or, on
# a CPU, a packed layer of PyTorch's whose time for each word stays the same from 25 to 200 words.
#
# **Sources.** J. Appleyard, T. Kocisky, P. Blunsom, *Optimizing Performance of Recurrent Neural
# Networks on GPUs*, 2016, arXiv:1604.01946 · V. Khomenko et al., *Accelerating recurrent neural
# network training using sequence bucketing and multi-GPU data parallelization*, 2016,
# arXiv:1708.05604 · R. Pascanu, T. Mikolov, Y.
# Bengio, *On the difficulty of training recurrent neural networks*, 2013, arXiv:1211.5063 · F.
# Gers, J. Schmidhuber, F. Cummins, *Learning to Forget*, Neural Computation 12, 2000 · R.
# Jozefowicz, W. Zaremba, I. Sutskever, *An Empirical Exploration of Recurrent Network
# Architectures*, 2015 · B. Pang, L. Lee, *Seeing stars*, 2005 (the sentences).
#
# **Next.** Every network so far had settings that somebody had chosen: a learning rate, a momentum.
# How are good ones found with little training? That is [chapter 09](09_search.ipynb). The other
# chapters are listed on the [first page](00_start_here.ipynb).
