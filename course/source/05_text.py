# ---
# jupyter:
#   kernelspec:
#     name: python3
#     display_name: Python 3
# ---

# %% [markdown]
# # 05 · Text
#
# ## 1. The question
#
# A network computes with numbers, and a text consists of words. Two steps lie between them: the
# text is cut and *cleaned*, and each word that is left becomes a vector, its *embedding*. About
# both steps you can read:
#
# > *Strip punctuation, lower the case, tokenise, drop stop words, lemmatise: models get better.*
# >
# > *A word embedding maps text to dense vectors.*
#
# The first sentence can be measured, step by step. The second is true, and hides where the time
# goes. You will find out what a lookup saves, and what the training of a large vocabulary spends
# most of its time on.

# %% jupyter={"source_hidden": true}
import string
from statistics import fmean, median

import torch
from torch.nn import functional

from accel_lab import text
from accel_lab.experiments import text as experiment
from accel_lab.workbench import chapter as lab

torch.set_num_threads(1)  # all ways alike: their work is compared, not how it is shared out

# %% [markdown]
# The next cell holds the settings of this chapter. Change one, as in `knobs = {"batch_size": 8}`,
# and run the notebook again: everything below follows.

# %% tags=["parameters"]
knobs = {}

# %%
base = lab.settings(experiment.Knobs, knobs)
sentences, labels = experiment.all_reviews()
hashed = experiment.hashed_reviews(base.cleaning)
print(f"{len(sentences):,} sentences of film reviews, praise or blame, the first one:")
print(sentences[0])
print(f"{len(hashed.ids):,} words and pairs of neighbours, {len(hashed.ids.unique()):,} different")

# %% [markdown]
# ## 2. Predict
#
# The reader in this chapter is small: each word, and each pair of neighbours, has a row of 64
# numbers in a table. A text is the mean of its rows, and one linear layer tells praise from blame.
#
# Three guesses, before you see anything. Skip them if you like.

# %%
guess_lookup = lab.Prediction(
    "Multiply one-hot vectors by a table of 20,000 rows: how many times as long as looking up?",
    low=1,
    high=10_000,
    default=10,
    unit="×",
)
guess_lookup

# %%
guess_update = lab.Prediction(
    "Update only the rows of the batch: how many times the time of Adam on the whole table?",
    low=0.01,
    high=10,
    default=0.8,
    unit="×",
)
guess_update

# %%
guess_clean = lab.Prediction(
    "Lower case, no punctuation, no stop words, lemmas: how many times as many errors as before?",
    low=0.5,
    high=2,
    default=0.9,
    unit="×",
)
guess_clean

# %% [markdown]
# ## 3. See
#
# The dashed orange run updates the whole table by Adam, as `optimizer.step()` does. Press
# **Start**: yours updates the rows of the batch alone. Then move **vocabulary** down, and **batch
# size** up. Last, choose a **cleaning**, and look at the accuracy.

# %%
touched = lab.Sweep(
    "vocabulary",
    "touched",
    "rows that the batch needs, % of the table",
    scale=100,
    predicted=experiment.predicted_touched,
    formula="Σ 1 − (1 − p)ⁿ over the words",
    log=True,
)
milliseconds = lab.Sweep("vocabulary", "update_ms", "time of an update, ms", log=True)
accuracy = lab.Curve("test_accuracy", "test accuracy, %", scale=100, over="updates", ends=(40, 80))
speed = lab.Curve("words_per_second", "thousand words/s", scale=1e-3, noisy=True)

# %%
panel = lab.Panel(
    experiment.run,
    base,
    [milliseconds, touched, accuracy, speed],
    controls=["update", "vocabulary", "batch_size", "cleaning"],
    baselines={"dense Adam": {"update": "dense Adam"}},
    headline=lab.Headline("update_ms", "time of an update"),
    tour=[base.turned(vocabulary=max(1000, base.vocabulary // 15)), base],
)
panel

# %% [markdown]
# What to look for:
#
# - Your dot for the rows lies on the line, which is computed from the counts of the words alone.
#   Read off how small the share is at a large vocabulary. (It is the line of the batch size and the
#   cleaning that are set now. Former dots of others lie beside it.)
# - The time of *dense Adam* follows the vocabulary. The time of *rows* follows the batch.
# - *Dense Adam* ran for a moment only. Look where its accuracy curve ends: in equal time, the
#   slower rule makes fewer updates. The two rules also differ: part 5 shows how.

# %% [markdown]
# ## 4. Build
#
# ### From text to tokens
#
# A regular expression cuts a text into words and signs. Each step of cleaning takes tokens and
# gives tokens, so each can be switched off:

# %% tags=["nbval-check-output"]
sample = "The <br />Film wasn't good, NOT at all: the worst of 2 movies!"
for name, cleaning in experiment.CLEANINGS.items():
    print(f"{name:<19}", " · ".join(cleaning(sample)))

# %% [markdown]
# *Stop words* are frequent words that a list declares to be empty; this list is scikit-learn's. A
# *lemma* is a word's base form. The sentence has two negations: *stop words* leaves out "NOT",
# *lemmas* turns "wasn't" into "be", and *all* loses both.

# %%
lab.show_source(text.split, text.without_punctuation, text.without_stop_words, docstring=False)

# %% [markdown]
# ### From tokens to numbers
#
# A word's number is a hash of its letters, modulo the size of the table. No dictionary has to be
# kept, and now and then two words share a row. Pairs of neighbours are hashed in the same way, so
# "not good" has a row as well:

# %% tags=["nbval-check-output"]
features = experiment.with_pairs(text.split("not good at all"))
print({feature: experiment.hash_of(feature) % 1000 for feature in features})

# %% [markdown]
# ### From numbers to vectors
#
# A *one-hot* vector has a 1 at the place of its word and zeros elsewhere. Times a table, it picks
# out one row. A lookup picks the row without the products:

# %%
lab.show_source(text.one_hot_lookup, text.lookup, docstring=False)

# %% tags=["nbval-check-output"]
table = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
ids = torch.tensor([2, 0, 2])
print(functional.one_hot(ids, 3).tolist(), "@ table =", text.one_hot_lookup(ids, table).tolist())
print("looked up:", text.lookup(ids, table).tolist())

# %% [markdown]
# Texts have different lengths. So all words stand in one row, and `begins` says where each text
# begins. An *embedding bag* takes the mean of each text's rows, without padding.
#
# One line is left out. Your function is compared with PyTorch's own, on three texts of which one is
# empty.


# %%
def like_embedding_bag(bag):
    table = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    ids, begins = torch.tensor([5, 0, 5, 2]), torch.tensor([0, 3, 3])  # 3 words, none, 1 word
    torchs = functional.embedding_bag(ids, table, begins, mode="mean")
    ways = {"torch": torchs, "yours": bag(ids, begins, table)}
    return lab.prove({name: [{"x": made}] for name, made in ways.items()}, steps=1, tolerance=1e-6)


# %% jupyter={"source_hidden": true}
lab.MissingLine(
    text.embedding_bag,
    {
        "return sums / lengths.clamp(min=1)[:, None]": (
            "Each text's sum, divided by its own number of words. Without words, it stays zero."
        ),
        "return sums / lengths[:, None]": (
            "0/0 for the text without words: NaN, which the next layer spreads."
        ),
        "return sums / len(ids)": (
            "Divided by the words of all texts: the more texts, the smaller each vector."
        ),
        "return sums / lengths.float().mean()": (
            "Divided by the mean length: long texts get large vectors, and short texts small ones."
        ),
    },
    like_embedding_bag,
)

# %% tags=["nbval-check-output"]
begins = torch.tensor([0, 2, 2])  # words 0 and 1, none (zeros), word 2
print(text.embedding_bag(ids, begins, table).tolist())

# %% [markdown]
# ### The gradient of a table
#
# Backwards, the one-hot product gives each word's gradient to its row. By default, PyTorch returns
# a gradient as large as the table. How many of its rows are not zero, after one batch?

# %%
bags = hashed.hashed(base.vocabulary).bags(torch.arange(base.batch_size))
table = torch.randn(base.vocabulary, experiment.WIDTH, requires_grad=True)
functional.embedding_bag(bags[0], table, bags[1]).square().sum().backward()
needed = int((table.grad != 0).any(1).sum())
print(f"gradient: {len(table.grad):,} rows, {needed:,} of them not zero")
print(f"zeros: {1 - needed / len(table.grad):.1%} of the rows")

# %% [markdown]
# **Looking up skips the zeros. The optimizer does not:** Adam reads the gradient, two moments and
# the table, and writes both moments and the table, row by row, zeros or not. This is the plain
# update, and the one by rows:

# %%
lab.show_source(text.dense_update, text.row_update, docstring=False)

# %% [markdown]
# `take` copies the rows of the batch, each once. They are a small table for the forward pass, and
# collect a small gradient. `step` writes them back:

# %%
lab.show_source(text.RowSGD.take, text.RowSGD.step, docstring=False)

# %% [markdown]
# And Adam, on the same few rows:

# %%
lab.show_source(text.RowAdam.step, docstring=False)

# %% [markdown]
# ### Watch the rows
#
# A table of 1,500 rows, batches of four texts. Each cell is a row of the table, dark if this update
# moved it. Press **Play**.

# %%
UPDATES = 12
moved = {way: experiment.rows_moved(way, UPDATES) for way in ("dense Adam", "rows")}


# %% jupyter={"source_hidden": true}
def rows_of_the_table(update=6):
    picture, row = lab.figure.axes(8.5, 3.3, columns=2)
    for axes, (way, taken) in zip(row, moved.items()):
        far = taken[update - 1]
        axes.pcolormesh(far.view(30, -1), cmap="Blues", vmin=0, vmax=0.08)
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        count = int((far > 0).sum())
        axes.set_title(f"{way}, update {update}: {count:,} of {len(far):,} rows move", fontsize=9)
    return picture


lab.Sliders(rows_of_the_table, update=range(1, UPDATES + 1))

# %% [markdown]
# In the first update both move the same rows. From then on dense Adam also moves words that are
# *not* in the batch: their momentum goes on, a little weaker each time. So the two are different
# rules, and "lazy Adam" is the usual name of the second one.
#
# *Half-way. This is a good place to stop and come back to: run all cells above, and go on here.*

# %% [markdown]
# ## 5. Prove
#
# ### A lookup is the product
#
# To the last bit, and an embedding bag is PyTorch's own, its gradient as well, empty texts
# included:

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
table = torch.randn(5000, 64)
ids = torch.randint(5000, (300,))
print("equal bits:", torch.equal(text.one_hot_lookup(ids, table), text.lookup(ids, table)))
begins = torch.tensor([0, 0, 7, 120, 120])
ours, theirs = (table.double().requires_grad_() for _ in range(2))
text.embedding_bag(ids, begins, ours).sin().sum().backward()
functional.embedding_bag(ids, theirs, begins).sin().sum().backward()
print("gradients equal, within 1e-12:", bool((ours.grad - theirs.grad).abs().max() < 1e-12))

# %% [markdown]
# ### Rows are the whole table, for SGD
#
# A row whose gradient is zero does not move under SGD. So updating only the rows of the batch must
# be dense SGD. Ten updates in float64:

# %%
batches = [hashed.hashed(800).bags(places) for places in torch.arange(10 * 16).split(16)]


def by_rows(make):
    torch.manual_seed(0)
    rows = make(torch.randn(800, 8, dtype=torch.float64))
    for ids, begins in batches:
        part, places = rows.take(ids)
        functional.embedding_bag(places, part, begins).sin().sum().backward()
        rows.step()
        yield {"table": rows.table.clone()}


# %%
def by_torch(make, sparse=False):
    torch.manual_seed(0)
    table = torch.randn(800, 8, dtype=torch.float64, requires_grad=True)
    optimizer = make([table])
    for ids, begins in batches:
        optimizer.zero_grad()
        functional.embedding_bag(ids, table, begins, sparse=sparse).sin().sum().backward()
        optimizer.step()
        yield {"table": table.detach().clone()}


# %% tags=["nbval-check-output"]
sgd = {
    "torch.optim.SGD": by_torch(lambda table: torch.optim.SGD(table, lr=0.1)),
    "RowSGD": by_rows(lambda table: text.RowSGD(table, lr=0.1)),
}
proof = lab.prove(sgd, tolerance=0.0)
assert proof.holds
print(proof)

# %% [markdown]
# ### For Adam they are SparseAdam
#
# PyTorch has this rule, too: `SparseAdam`, for gradients that are stored as sparse tensors
# (`sparse=True`). Ours equals it, and differs from dense Adam:

# %% tags=["nbval-check-output"]
adam = {
    "SparseAdam": lambda: by_torch(lambda t: torch.optim.SparseAdam(t, lr=0.1), sparse=True),
    "RowAdam": lambda: by_rows(lambda t: text.RowAdam(t, lr=0.1)),
    "dense Adam": lambda: by_torch(lambda t: torch.optim.Adam(t, lr=0.1)),
}
adam_proof = lab.prove({name: adam[name]() for name in ("SparseAdam", "RowAdam")})
assert adam_proof.holds
print(adam_proof)
others = {name: adam[name]() for name in ("RowAdam", "dense Adam")}
print(lab.prove(others, tolerance=1e-4))

# %% [markdown]
# ## 6. Measure
#
# ### A lookup against a product
#
# 1,280 words, in tables of three sizes. The one-hot vectors are made before the clock runs.


# %%
def product_against_lookup(rows):
    table, ids = torch.randn(rows, 64), torch.randint(rows, (1280,))
    hot = torch.zeros(1280, rows).scatter_(1, ids[:, None], 1.0)
    ways = (lambda: hot @ table, lambda: text.lookup(ids, table))
    return lab.compare(*ways, names=("the product", f"a lookup in {rows:,} rows"), patience=1.0)


products = {rows: product_against_lookup(rows) for rows in (1000, 5000, 20_000)}
print(*products.values(), sep="\n")

# %%
guess_lookup.against(products[20_000])

# %% [markdown]
# The product multiplies all the zeros, so its work grows with the rows of the table. The lookup
# copies one row for each word, however large the table is.
#
# ### An update of rows against an update of the table
#
# Five ways take turns, at four sizes of the table. *Fused* Adam is PyTorch's in one pass over the
# memory. *No table* trains the linear layer alone: no rule for the table can be faster than that.

# %%
WAYS = ("rows", "dense Adam", "fused Adam", "SparseAdam", "no table")
SIZES = sorted({2000, 8000, 30_000, base.vocabulary})


def seconds_at(**changes):
    ways = {way: base.turned(update=way, **changes) for way in WAYS}
    return lab.race(experiment.run, ways)


seconds = {size: seconds_at(vocabulary=size) for size in SIZES}

# %%
times = {way: {size: 1e3 * median(taken[way]) for size, taken in seconds.items()} for way in WAYS}
shares = {size: experiment.predicted_touched(base.turned(vocabulary=size)) for size in SIZES}
print("milliseconds of an update" + "".join(f"{size:>10,}" for size in SIZES), " rows")
for way, line in times.items():
    print(f"{way:<25}" + "".join(f"{ms:>10.2f}" for ms in line.values()))
print(f"{'needed by the batch':<25}" + "".join(f"{share:>10.1%}" for share in shares.values()))

# %% jupyter={"source_hidden": true} tags=["hero"]
picture, (axes,) = lab.figure.axes(8, 3.6)
axes.set(yscale="log", ylabel="time of an update, ms")
axes.set(xscale="log", xlabel="rows of the embedding table")
lab.figure.draw_lines(axes, times)
axes.set_xticks(SIZES, [f"{size:,}" for size in SIZES])
axes.yaxis.set_major_formatter("{x:g}")
axes.minorticks_off()
picture

# %%
largest = max(SIZES)
against_dense, against_fused, against_sparse = (
    lab.compared(seconds[largest], "rows", way) for way in WAYS[1:4]
)
print(f"{largest:,} rows:", against_dense, against_fused, against_sparse, sep="\n")
absent, saved = 1 - shares[largest], 1 - against_dense.ratio
print(f"{absent:.1%} of the rows are not in the batch; leaving them alone", end=" ")
print(f"saved {saved:.0%} of dense Adam's time here" if saved > 0 else "saved nothing here")

# %%
guess_update.against(against_dense.ratio)

# %% [markdown]
# ### Predict the time
#
# Dense Adam should take a fixed time and a time for each row of the table: a + c · V. For rows,
# replace V by *u*, the number of different words in a batch. If word w makes up a share p of all
# words, a batch of n words holds it with the probability 1 − (1 − p)ⁿ, therefore
#
# $$u = \sum_w \bigl(1 - (1 - p_w)^n\bigr) .$$
#
# The two ends of each curve give a and c. What lies between is predicted.


# %%
def line_through(way, work):
    (low, high), ms = (SIZES[0], SIZES[-1]), times[way]
    slope = (ms[high] - ms[low]) / (work[high] - work[low])
    return {size: ms[low] + slope * (work[size] - work[low]) for size in SIZES}


rows_needed = {size: share * size for size, share in shares.items()}
for way, work in (("dense Adam", {size: size for size in SIZES}), ("rows", rows_needed)):
    foreseen = line_through(way, work)
    for size in SIZES[1:-1]:
        print(f"{way:<11}{size:>7,} rows: {foreseen[size]:6.2f} ms predicted,", end=" ")
        print(f"{times[way][size]:6.2f} measured")

# %% [markdown]
# If the prediction for dense Adam is too high, a row costs less in a small table than in a large
# one. A likely reason, not measured here: a small table, its gradient and its moments fit into the
# processor's cache.
#
# ### The accuracy of the rules
#
# Two different rules, so do they learn equally well? Both make equally many updates, from the same
# few seeds, and are tested on the same sentences. So few sentences leave much to chance: of n
# sentences, the share told right has a standard error of √(p (1 − p) / n).

# %%
rules = {}
for way in ("dense Adam", "rows"):
    settings = base.turned(update=way, vocabulary=min(4000, base.vocabulary), batch_size=64)
    rules[way] = [
        experiment.accuracy_after(settings.turned(seed=seed)) for seed in lab.some_seeds(3)
    ]
    print(f"{way:<11}", lab.figure.tell_over_seeds(rules[way], "%"))

# %%
tested, p = len(labels) // 5, fmean(rules["dense Adam"]) / 100
chance = 100 * (p * (1 - p) / tested) ** 0.5
difference = fmean(rules["rows"]) - fmean(rules["dense Adam"])
print(f"rows − dense Adam: {difference:+.1f} points; standard error of each: {chance:.1f} points")
print("no difference shown" if abs(difference) < 3 * chance else "more than chance explains")

# %% [markdown]
# These runs can show a large difference only. That no difference is shown does not mean that the
# rules learn equally well, and ranges of a few seeds that do not overlap would not rank them.

# %% [markdown]
# ### Each step of cleaning, on sentences
#
# Now the first claim. Each cleaning prepares the same sentences. A reader learns from 5,000 of
# them and is tested on all others; each seed draws other sentences and other weights. Words alone
# this time, no pairs: a cleaning has to show what it does to words. These sentences come in lower
# case, with spaces around the signs. So *lower case* and *spaces only* are left for the whole
# reviews.

# %%
STEPS = ("none", "punctuation", "stop words", "stop words but not", "lemmas", "all")
short = {
    name: experiment.cleaned(sentences, labels, experiment.CLEANINGS[name], training=5000)
    for name in STEPS
}


# %%
def table_of(found):
    print(f"{'':<19} accuracy, %       points gained, each seed         tokens  vocabulary")
    for name, one in found.items():
        gains = one.gains(found["none"])
        told = "" if name == "none" else " ".join(f"{gain:+.1f}" for gain in gains)
        print(f"{name:<19} {fmean(one.accuracies):>8.1f}", end="          ")
        print(f"{told:<30} {one.tokens:>9,} {one.vocabulary:>11,}")


table_of(short)


# %% jupyter={"source_hidden": true}
def draw_gains(found):
    picture, (axes,) = lab.figure.axes(9.6, 3.2)
    gains = {name: one.gains(found["none"]) for name, one in found.items() if name != "none"}
    lab.figure.draw_over_seeds(axes, gains)
    axes.axhline(0, **lab.figure.LIMIT)
    axes.set(ylabel="points of accuracy gained:\nmean, all seeds")
    axes.tick_params(axis="x", labelsize=8)
    return picture


draw_gains(short)


# %%
def tell(judged, runs):
    print(f"of one sign in {runs} of {runs} runs (at least 3), and a point or more on average:")
    for verdict, names in judged.items():
        print(f"{verdict + ':':<16}", ", ".join(names) or "none")


judged = experiment.sorted_out(short)
tell(judged, runs=len(short["none"].accuracies))

# %%
errors = {name: 100 - fmean(one.accuracies) for name, one in short.items()}
guess_clean.against(errors["all"] / errors["none"])

# %% [markdown]
# A step that makes texts shorter throws evidence away. In a sentence of twenty words each word
# counts. Compare *stop words* with *stop words but not*: keeping the negations is the well-known
# remedy, and the picture says how much of the loss it makes good.
#
# ### The same on whole reviews
#
# Whole reviews are some ten times as long, and as people typed them: capitals, HTML, commas that
# stick to words. So cutting into words and lower case have something to do here as well: *spaces
# only* leaves the signs at the words. Whole reviews take longer, so there are fewer of them, and
# fewer seeds.

# %%
STEPS_THERE = ("none", "spaces only", "lower case", "stop words", "lemmas", "all")
whole, their_labels = experiment.whole_reviews()
most = 2 * len(whole) // 3
long = {}
for name in STEPS_THERE:
    cleaning = experiment.CLEANINGS[name]
    long[name] = experiment.cleaned(whole, their_labels, cleaning, seeds=3, training=most, epochs=8)
draw_gains(long)

# %% [markdown]
# A whole review says the same thing many times, so leaving words out should spoil less. Is a step
# that harms sentences harmful here, too?

# %%
judged_long = experiment.sorted_out(long)
tell(judged_long, runs=len(long["none"].accuracies))
unsure = [name for name in judged["worse"] if name in judged_long["not told apart"]]
print("worse on sentences, not told apart here:", ", ".join(unsure) or "none")

# %% [markdown]
# *Not told apart* means that these few runs show neither harm nor gain. And a verdict holds for one
# size of the data and one length of training: while this chapter was written, fewer reviews and
# fewer epochs made *all* look better than *none*. The reader of the longer, uncleaned texts had not
# finished learning; with more epochs, the gain was gone.
#
# So switch each step on and off on your own texts, and train long enough, before you keep it.
#
# What cleaning does buy is room: fewer tokens, a smaller table, shorter bags. And it takes time:

# %%
for name, one in long.items():
    print(f"{name:<12} {one.tokens / one.seconds:>10,.0f} tokens/s, left:", end=" ")
    print(f"{one.tokens / long['none'].tokens:.0%} of the tokens,", end=" ")
    print(f"{one.vocabulary / long['none'].vocabulary:.0%} of the vocabulary")

# %% [markdown]
# ### Chinese
#
# What do the same steps mean for a text in Chinese? No labelled Chinese reviews come with this
# course, so the accuracy is not measured here. But each step can be tried, on sentences written for
# this chapter.
#
# **Tokens.** There are no spaces. A regular expression finds runs of characters between the signs.
# Words come from a dictionary: jieba's 349,045 words with their counts.

# %% tags=["nbval-check-output"]
chinese = "这部电影不错，但是结局太长！"  # This film is not bad, but its end is too long!
print("at spaces:     ", chinese.split())
print("at signs:      ", text.split(chinese))
print("by dictionary: ", text.cut_chinese(text.split(chinese)))

# %% [markdown]
# A run of characters can be cut in many ways. The best one has the largest product of the shares
# of its words. It is found from the end, each place once:

# %%
lab.show_source(text.most_likely_words, docstring=False)

# %% [markdown]
# **Case, punctuation, lemmas.** Chinese characters have no capitals, and Chinese words no endings.
# Chinese signs are not in Python's list of punctuation, so a step that uses that list leaves them
# in:

# %% tags=["nbval-check-output"]
known = lab.words.chinese_words()
print(f"words that lower case changes: {sum(word != word.lower() for word in known)}", end=" ")
print(f"of {len(known):,}")
print("in string.punctuation:", {sign: sign in string.punctuation for sign in "，。！"})
print("ours:", text.without_punctuation(text.cut_chinese(text.split(chinese))))

# %% [markdown]
# **Stop words.** The short list of this chapter holds 不 (not), as English lists hold "not". But 不
# is also a part of words: 不错 is "good", and 错 is "wrong". A list that is applied to characters
# tears such words apart:

# %% tags=["nbval-check-output"]
without = "".join(sign for sign in chinese if sign not in text.CHINESE_STOP_WORDS)
print(chinese, "→ by character →", without)
print(f"words of the dictionary with 不 in them: {sum('不' in word for word in known):,}")

# %% [markdown]
# Now pairs of sentences that differ by a negation alone, "This film is good" and "This film is not
# good". After cleaning, how many of six pairs can a reader that does not see the order of words
# still tell apart?

# %% tags=["nbval-check-output"]
kept = text.keeping_negations
stops = {"English": lab.words.english_stop_words(), "Chinese": text.CHINESE_STOP_WORDS}
pairs = {"English": experiment.ENGLISH_PAIRS, "Chinese": experiment.CHINESE_PAIRS}
for language, stop in stops.items():
    for name, list_ in (("none", frozenset()), ("stop words", stop), ("but not", kept(stop))):
        cleaning = text.Cleaning(punctuation=True, stop=list_, chinese=language == "Chinese")
        apart = experiment.told_apart(pairs[language], cleaning)
        print(f"{language}, {name:<11} {apart} of {len(pairs[language])} pairs told apart")

# %% [markdown]
# In Chinese a negation is often a part of its word, as in 不合理 (unreasonable), and then a list of
# words leaves it alone. The price is the dictionary:

# %%
both = [one for pair in experiment.CHINESE_PAIRS for one in pair]
dictionary = lab.compare(
    lambda: [text.cut_chinese(text.split(one)) for one in both],
    lambda: [text.split(one) for one in both],
    names=("by dictionary", "at signs"),
    patience=1.0,
)
dictionary

# %% [markdown]
# ## 7. Break it
#
# Two famous mistakes of updates by rows. Each update is repeated from the same rows by the right
# rule, and the difference is drawn: the *error of the update*. 0 is the right update; at 1 the
# error is as large as the right update itself. Press **Start**, then choose the mistakes. Would the
# accuracy have told you?

# %%
broken = base.turned(update="rows", twin=True, vocabulary=min(4000, base.vocabulary))
right = lab.Badge("update_error", 1e-4, "latest updates right", "latest updates not right")
error = lab.Curve("update_error", "error of the update", over="updates", ends=(0, 1.2))
break_it = lab.Panel(
    experiment.run,
    broken,
    [error, accuracy],
    controls=["mistake", "batch_size"],
    baselines={"no mistake": {"mistake": "none"}},
    headline=None,
    tour=[broken.turned(mistake="duplicates lost"), broken.turned(mistake="padded length")],
    seconds=1.2,
    badge=right,
)
break_it

# %% [markdown]
# Write down what is wrong in each of them, then look.
#
# <details><summary>What each of them does</summary>
#
# - **duplicates lost** takes a row for each occurrence, and writes each back. Of a word that occurs
#   twice, one copy overwrites the other: its other gradients are gone.
# - **padded length** fills short texts up with word 0, and averages over all places. The vector of
#   a short text is mostly row 0, its own words count too little, and every batch trains row 0.
#
# </details>
#
# Here is the code of both:

# %%
lab.show_source(experiment.LostDuplicates.take, experiment.padded, docstring=False)

# %% [markdown]
# The first one in its shortest form. Word 1 occurs twice, each gradient is 1, so its row should
# move by 2:

# %% tags=["nbval-check-output"]
ids, gradients = torch.tensor([1, 1, 3]), torch.ones(3, 1)
lost, added = torch.zeros(4, 1), torch.zeros(4, 1)
lost[ids] -= gradients
added.index_add_(0, ids, gradients, alpha=-1)
print("table[ids] -= g:", lost.flatten().tolist())
print("index_add_:     ", added.flatten().tolist())

# %% [markdown]
# ### What is refused
#
# A word number beyond the table raises an error deep inside PyTorch. Ours says what to do:

# %% tags=["nbval-check-output"]
for wrong in (
    lambda: text.lookup(torch.tensor([4000]), torch.zeros(4000, 8)),
    lambda: text.embedding_bag(torch.tensor([1, 2]), torch.tensor([0, 3]), torch.zeros(4, 8)),
    lambda: text.Cleaning()(b"bytes"),
):
    try:
        wrong()
    except (ValueError, TypeError) as refusal:
        print(refusal)

# %% [markdown]
# ## 8. When it does not help
#
# Where a batch needs much of the table, collecting rows can cost more than it saves. Larger and
# larger batches show it:

# %%
SMALL = SIZES[1]
growing = {}
for size in lab.along((2, 8, 32, 128, 512)):
    share = experiment.predicted_touched(base.turned(vocabulary=SMALL, batch_size=size))
    growing[100 * share] = seconds_at(vocabulary=SMALL, batch_size=size)

# %% [markdown]
# Predict the ratio against dense Adam. Both ways need the time of *no table*. To it each adds a
# fixed time, and a time that grows with the rows that the batch needs. The two ends of the curve
# give them; what lies between is predicted.


# %%
def added(way, share):
    return 1e3 * (median(growing[share][way]) - median(growing[share]["no table"]))


low, high = min(growing), max(growing)
slopes = {way: (added(way, high) - added(way, low)) / (high - low) for way in WAYS}
foreseen = {}
for share, taken in growing.items():
    rest = 1e3 * median(taken["no table"])
    rows, whole_table = (
        rest + added(way, low) + slopes[way] * (share - low) for way in ("rows", "dense Adam")
    )
    foreseen[share] = rows / whole_table

# %%
ratios = {
    way: {share: lab.compared(taken, "rows", way) for share, taken in growing.items()}
    for way in ("dense Adam", "fused Adam")
}
for way, found in ratios.items():
    faster = [share for share, one in found.items() if one.proved and one.ratio < 1]
    slower = [share for share, one in found.items() if one.proved and one.ratio > 1]
    print(f"against {way}: surely faster at {', '.join(f'{s:.1f} %' for s in faster) or 'none'};")
    print(f"{'':<8} surely slower at {', '.join(f'{s:.1f} %' for s in slower) or 'none'}")

# %% jupyter={"source_hidden": true}
picture, (axes,) = lab.figure.axes(8, 3.2)
styles = ((lab.figure.BLUE, "o"), (lab.figure.ORANGE, "s"))
for (way, found), (color, style) in zip(ratios.items(), styles):
    lab.figure.draw_ratios(axes, found, label=f"against {way}", color=color, style=style)
axes.plot(*zip(*foreseen.items()), color=lab.figure.BLUE, label="predicted, dense Adam")
axes.set(xscale="log", xlabel="rows that the batch needs, % of the table")
axes.set_xticks(list(growing), [f"{share:.1f}" for share in growing])
axes.minorticks_off()
top = max(one.ratio for found in ratios.values() for one in found.values())
axes.set(ylabel="time of an update by rows, ×", ylim=(0, 1.8 * max(1, top)))
axes.legend(frameon=False, fontsize=8, loc="upper left", ncols=2)
picture

# %% [markdown]
# Above the dashed line, update the whole table instead: that is where small vocabularies, long
# texts and large batches lead. And lazy Adam is another rule than Adam: the moments of absent words
# stand still, and weight decay does not reach their rows.
#
# About the first claim, part 6 prints which steps made these two readers better, and which worse:
# what it promises has to be measured on each kind of text. The second claim is true, and a lookup
# is all that the map takes. The time goes into the training of the table. The verdict for this
# machine, on one thread:

# %%
loss = fmean(short["all"].gains(short["none"]))
verdict = (
    f"a one-hot product takes {products[20_000].ratio:.0f} × the time of a lookup in 20,000 rows; "
    f"an update by rows takes {against_dense.ratio:.2f} × dense Adam's time at {largest:,} rows, "
    f"{against_fused.ratio:.2f} × fused Adam's; all cleaning changes the accuracy by {loss:+.1f} "
    f"points on sentences, {fmean(long['all'].gains(long['none'])):+.1f} on whole reviews"
)
lab.log_verdict("text", verdict)

# %% [markdown]
# ## 9. Exercises
#
# Write the functions and run the cells; `check` tries each on fresh data. It says what is right
# already, shows a small case that is not, and gives a hint where it knows the mistake. After two
# different tries it offers a worked solution. Some functions are written already, with faults:
# repair them.

# %%
from accel_lab.grading.practice import check, exercises

MEANS, ROWS, ADAGRAD, CLEAN = exercises("text")
MEANS


# %% tags=["exercise"]
def bag_means(ids, begins, table, weights):
    raise NotImplementedError


check(bag_means)

# %%
ROWS


# %% tags=["exercise"]
def apply_rows(table, ids, gradients, lr, decay):
    table *= 1 - lr * decay
    table[ids] -= lr * gradients
    return table


check(apply_rows)

# %%
ADAGRAD


# %% tags=["exercise"]
def adagrad_rows(table, squares, ids, gradients, lr):
    raise NotImplementedError


check(adagrad_rows)

# %%
CLEAN


# %% tags=["exercise"]
def clean_tokens(texts, stop, negations):
    cleaned = []
    for tokens in texts:
        kept = [token.lower() for token in tokens if token not in stop]
        if kept:
            cleaned.append(kept)
    return cleaned


check(clean_tokens)

# %% [markdown]
# ## 10. Take away
#
# - An embedding lookup is a one-hot product that skips the zeros, forwards and, with rows,
#   backwards.
# - A dense optimizer pays for the vocabulary, an update by rows for the batch. Count the rows that
#   a batch needs, before you choose.
# - Updating rows is dense SGD to the last bit. For Adam it is another rule, SparseAdam.
# - Add up the gradients of a word before its row is written.
# - Each step of cleaning throws something away. Measure each one, on texts as long as yours.

# %% [markdown]
# Known from elsewhere, and not measured here: language models cut words into frequent *pieces*
# (byte-pair encoding, R. Sennrich et al., 2016, arXiv:1508.07909), so that no word is unknown, and
# keep capitals, signs and stop words. Stop words harmed sentiment analysis of tweets as well (H.
# Saif et al., 2014). On many machines, tables are split between them by rows, and only the rows of
# a batch travel.

# %% [markdown]
# **What would prove this wrong?** A run of SGD without momentum in which a row moves whose word is
# not in the batch. If you find one, look for weight decay: it shrinks every row.

# %% [markdown]
# **Sources.** A. Joulin et al., *Bag of Tricks for Efficient Text Classification*, 2016,
# arXiv:1607.01759, section 2 · D. Kingma, J. Ba, *Adam*, 2015, arXiv:1412.6980 · H. Saif et al.,
# *On Stopwords, Filtering and Data Sparsity for Sentiment Analysis of Twitter*, 2014 · B. Pang, L.
# Lee, *Seeing stars*, 2005, and A. Maas et al., *Learning Word Vectors for Sentiment Analysis*,
# 2011 (the reviews) · PyTorch, `torch.optim.SparseAdam`.
#
# **Next.** Texts and pictures are ready. Before a network sees a picture, somebody reads, decodes
# and crops it, in every epoch anew. What is worth keeping, and in which process? That is
# [chapter 06](06_caching.ipynb). The other chapters are listed on the
# [first page](00_start_here.ipynb).
