# ---
# jupyter:
#   kernelspec:
#     name: python3
#     display_name: Python 3
# ---

# %% [markdown]
# # 06 · Caching
#
# ## 1. The question
#
# Before a network can learn from a picture, somebody has to read its file, decode it, and cut a
# crop out of it. The next epoch needs the same picture again. So one keeps it. You can read:
#
# > *Caching the data set avoids disk reads.*
# >
# > *`dataset.cache().shuffle().batch().repeat()`*
#
# One word, and the data are there from the second epoch on. Are they? And is it the disk that
# costs the time? This chapter counts what a cache *hits*, which hardly any program prints.

# %% jupyter={"source_hidden": true}
from contextlib import closing
from itertools import islice
from statistics import fmean, median

import torch

from accel_lab import caching
from accel_lab.experiments import caching as experiment
from accel_lab.workbench import chapter as lab

torch.set_num_threads(1)  # the second core, where there is one, is left to the loading

# %% [markdown]
# The next cell holds the settings of this chapter. Change one, as in `knobs = {"pictures": 400}`,
# and run the notebook again: everything below follows.

# %% tags=["parameters"]
knobs = {}

# %%
base = lab.settings(experiment.Knobs, knobs, device="cpu", cache="nothing", tested=0)
seeds = [base.seed + place for place in lab.some_seeds(3)]
with experiment.photographs(base.pictures) as files:
    size = fmean(file.stat().st_size for file in files)
print(f"{base.pictures} JPEG files of 160 × 160 pixels, {size / 1e3:.1f} kB each: parts of")
print("10 photographs. From which of them is a crop of 32 × 32 pixels?")

# %% [markdown]
# The files lie in a temporary folder while something runs, and are gone afterwards.
#
# ## 2. Predict
#
# PyTorch's `DataLoader` can load in *workers*, which are separate processes. Take two of them, and
# a data set that keeps each picture once it is decoded. Two guesses; a wrong one costs nothing, and
# you may skip them.

# %%
guess_decoded = lab.Prediction(
    "In a training of 5 epochs, how often is each picture decoded?",
    low=0.5,
    high=10,
    default=1.0,
    unit="×",
)
guess_decoded

# %%
guess_disk = lab.Prediction(
    "Reading the file, decoding it, cutting a crop: what share of this time is the reading?",
    low=0.5,
    high=100,
    default=50.0,
    unit="%",
)
guess_disk

# %% [markdown]
# ## 3. See
#
# A small network trains here, now. The clock counts both, the update and the wait for its batch.
# The dashed orange run keeps nothing. Press **Start**, then turn **cache**:
#
# - *bytes* keeps the files as they are, *decoded* the pixels. *augmented* keeps the pixels too, and
#   repeats the first crop of each picture in every epoch.
# - **workers** are processes that load. **persistent** ones stay when an epoch ends.
#   **shared** gives all of them one cache of the pixels; that of the bytes cannot be shared here.
# - **prefetch** loads ahead in a thread.
#
# Half of the pictures are enough here, so that an epoch is short.
#
# First the clock is read at each stage, for the dashed curves:

# %%
cost = experiment.costs(base.device, base.channels)
for stage, seconds in cost.items():
    print(f"{stage:<8} {seconds * 1e6:6.0f} µs a picture")
by_formula = {"predicted": experiment.predicted_epoch_seconds, "formula": "predicted"}
spent = lab.Sweep("cache", "epoch_seconds", "seconds of an epoch", **by_formula)
by_formula = {"predicted": experiment.predicted_kept, "formula": "predicted"}
kept = lab.Sweep("workers", "kept_bytes", "kept, MiB", 2**-20, summary="max", **by_formula)
found = lab.Curve("hits", "found in a cache, %", 100, over="updates", ends=(0, 100))
waits = lab.Curve("wait_share", "waiting for batches, %", 100, over="updates", ends=(0, 100))

# %%
half = base.turned(pictures=max(20, base.pictures // 2), batch_size=max(4, base.batch_size // 2))
turns = ({"workers": 2}, {"workers": 2, "persistent": True}, {"cache": "bytes"}, {})
panel = lab.Panel(
    experiment.run,
    half.turned(cache="decoded"),
    [spent, found, waits, kept],
    controls=["cache", "workers", "persistent", "shared", "prefetch"],
    baselines={"no cache": {"cache": "nothing", "workers": 0, "prefetch": 0}},
    headline=lab.Headline("epoch_seconds", "epoch time"),
    tour=[half.turned(**({"cache": "decoded"} | turn)) for turn in turns],
    seconds=1.4,
)
panel

# %% [markdown]
# What to look for:
#
# - Which cache saves most of the seconds: that of the bytes, or that of the pixels?
# - Set **cache** to *decoded* and **workers** to 2. What does the chart of the hits show? Then turn
#   on **persistent**, or **shared**.
# - How much memory is kept, with two workers that stay?
#
# ## 4. Build
#
# ### Where does the time go?
#
# The costs above, as shares of loading. A file that was read of late lies in the system's own
# cache, in memory. So the reading is measured twice more, one file right after another, which is
# quicker than between two decodings: *warm*, as it is, and *cold*, after the system was asked to
# forget the files. Not every system can be asked; and where temporary files lie in memory, cold is
# as fast as warm.

# %%
reading = experiment.read_seconds()
loading = cost["read"] + cost["decode"] + cost["augment"]
share = {stage: cost[stage] / loading for stage in ("read", "decode", "augment")}
print(*(f"{stage} {part:.0%}" for stage, part in share.items()), sep=", ")
for name, seconds in reading.items():
    print(f"reading, {name}: {seconds * 1e6:.0f} µs a file")
coldest = max(reading.values()) / (max(reading.values()) + cost["decode"] + cost["augment"])
largest = max(share, key=share.get)
print(f"most of the loading goes to: {largest}")
print(f"with the slowest of these readings, it is {coldest:.0%} of the loading")
print("so the disk is", "most of it here" if coldest > 0.5 else "not where the time goes here")
guess_disk.against(100 * share["read"])

# %% [markdown]
# A network drive or an old disk can be much slower, and then the disk may be most of it. What is
# worth keeping is the result of the most expensive stage: the bytes, or the pixels.
#
# ### A cache
#
# The naive one is a dictionary. It returns the very tensor that it keeps. Whoever darkens the
# picture darkens it for all epochs:

# %%
lab.show_source(caching.DictCache)

# %% tags=["nbval-check-output"]
naive = caching.DictCache(lambda index: torch.full((3, 2, 2), 200.0))
for epoch in (1, 2, 3):
    picture = naive[0]
    print(f"epoch {epoch}: {picture.mean():.0f}", end="  ")
    picture.mul_(0.5)  # the augmentation, in place

# %% [markdown]
# The real one is a single tensor of all pictures, one byte a number, and one bit of memory for each
# picture: is it there? Indexing with a tensor copies, so nobody can change what is kept. With
# `shared=True` both tensors lie in memory that all processes see. Here it is in use:

# %%
with experiment.photographs(8) as eight:
    cache = caching.Cache(lambda index: caching.read_picture(eight[index], 96), 8, (3, 96, 96))
    for epoch in (1, 2):
        for batch in (torch.tensor([0, 3, 5]), torch.tensor([3, 5, 7])):
            print(f"epoch {epoch}, pictures {batch.tolist()}: {cache.fill(batch)} hits")
print(f"{cache.have.sum()} of 8 pictures kept, {cache.pictures.nbytes / 1e3:.0f} kB for all")

# %% [markdown]
# Reading fills the cache, then copies:

# %%
lab.show_source(caching.Cache.__getitem__, docstring=False)

# %% [markdown]
# One line of `fill` is left out. Yours is given two batches in which pictures come twice, and the
# pictures that it decodes are listed:


# %%
def decodes_each_once(fill):
    decoded = []

    def decode(index):
        decoded.append(index)
        return torch.full((1, 2, 2), index, dtype=torch.uint8)

    tried = type("Mine", (caching.Cache,), {"fill": fill})(decode, 8, (1, 2, 2))
    for batch in ([3, 3, 5], [5, 7, 7]):
        tried.fill(torch.tensor(batch))
    return sorted(decoded), [3, 5, 7]


# %% jupyter={"source_hidden": true}
lab.MissingLine(
    caching.Cache.fill,
    {
        "for index in indices[~there].unique().tolist():": (
            "The pictures that are missing, each of them once."
        ),
        "for index in indices[~there].tolist():": (
            "A missing picture that comes twice in a batch is decoded twice."
        ),
        "for index in indices.unique().tolist():": (
            "All pictures of the batch: those that are there are decoded again, in every epoch."
        ),
        "for index in indices[there].unique().tolist():": (
            "Only pictures that are there already: nothing is decoded, and the cache stays empty."
        ),
    },
    decodes_each_once,
)

# %% [markdown]
# ### What must stay behind it
#
# A crop is random: another place, perhaps flipped, darker or brighter. So it comes *behind* the
# cache, in every epoch anew. `unfold` makes a view of all crops that could be cut, without copying
# one. A single index then picks a crop of each picture. Here are the crops of 5 × 5 numbers, and
# below that `augment`:

# %% tags=["nbval-check-output"]
one = torch.arange(25).view(1, 1, 5, 5)
windows = one.unfold(2, 3, 1).unfold(3, 3, 1)
print("from a picture", list(one.shape[2:]), "come", windows.shape[2] * windows.shape[3], "crops")
print("new memory:", windows.data_ptr() != one.data_ptr())
print("the crop at row 1, column 2:", windows[0, 0, 1, 2].tolist())
lab.show_source(caching.augment, docstring=False)

# %% [markdown]
# ### Loading ahead
#
# While the network computes, a thread can load the next batch. A queue of limited length lies
# between the two. Pillow and PyTorch release Python's lock while they compute, so a second core, if
# there is one, is used.

# %%
lab.show_source(caching._prefetch, first="left =", last="thread.start()")

# %% [markdown]
# The error of a thread would be lost; so it is handed over like a batch. And when the training
# stops early, the thread may be waiting for room in the queue. So the queue is emptied until the
# thread has ended. Below are two runs without a cache, recorded: each by itself, then with the
# thread.

# %%
lab.show_source(caching._prefetch, first="thread.start()", last="thread.join")

# %% jupyter={"source_hidden": true}
alone, ahead = base.turned(prefetch=0), base.turned(prefetch=2)
lanes = {name: experiment.lanes(way, 6) for name, way in (("alone", alone), ("thread", ahead))}
picture_of_lanes = lab.figure.draw_timelines(lanes, label="milliseconds since the first batch")
for axes in picture_of_lanes.axes:
    axes.set_yticks([0, 1], ["loads", "trains"])
picture_of_lanes

# %% [markdown]
# With a core that is free, the thread's batches lie above the training of the batch before. How
# much that gains is measured in part 6.
#
# ### Two formulas
#
# With *r*, *d*, *a*, *t* for the seconds of reading, decoding, augmenting and training, an epoch of
# *N* pictures takes
#
# $$N(r+d+a+t) \;\text{ at first,}\qquad N(a+t) \;\text{ with full hits,}\qquad
# N\max(r+d+a,\;t) \;\text{ loading ahead.}$$
#
# The third one needs a second core. On one core it is the first.
#
# The second formula is about hits. A worker is a process, and a process has its own memory. The
# `DataLoader` starts new workers for each epoch, and ends them with it. **So their caches die with
# every epoch**: hits 0, and nothing says so.
#
# *Persistent* workers stay. But each has its own cache, and chance decides which worker gets a
# picture. In epoch *e* it is missing only if its worker has not had it in any epoch before:
#
# $$\text{hits}(e) = 1 - \left(1 - \frac{1}{W}\right)^{e-1}$$

# %% tags=["nbval-check-output"]
print("epoch                   ", *(f"{epoch:>5}" for epoch in range(1, 7)))
for name, how in {
    "no worker, or one shared": {"workers": 0},
    "2 new workers each epoch": {"workers": 2},
    "2 persistent workers    ": {"workers": 2, "persistent": True},
    "8 persistent workers    ": {"workers": 8, "persistent": True},
}.items():
    print(name, *(f"{caching.expected_hits(epoch, **how):5.0%}" for epoch in range(1, 7)))

# %% [markdown]
# Who holds which picture? Each square is a picture; blue is kept by the first worker, orange by the
# second, green by both. Recorded from real workers, after each epoch. Above stands what the next
# epoch can expect to find: half of a picture that one of two workers keeps. Press **Play**:

# %% jupyter={"source_hidden": true}
few = base.turned(cache="decoded", pictures=60, batch_size=6, workers=2)
ways_to_hold = {
    "new workers each epoch": few,
    "persistent workers": few.turned(persistent=True),
    "a shared cache": few.turned(shared=True, persistent=True),
}
held = {name: experiment.holders(way, 4) for name, way in ways_to_hold.items()}
INK = torch.tensor([[230, 230, 230], [0, 114, 178], [213, 94, 0], [0, 158, 115]]) / 255


def who_holds(epoch=2):
    drawn_now, row = lab.figure.axes(9.5, 2.0, columns=3)
    for axes, (name, epochs) in zip(row, held.items()):
        first, second = epochs[epoch - 1]
        axes.imshow(INK[first.long() + 2 * second.long()].view(5, 12, 3))
        for place in range(12):
            axes.axvline(place - 0.5, color="white")
            axes.axhline(place % 5 - 0.5, color="white")
        axes.set(xticks=[], yticks=[])
        finds = 0 if name.startswith("new") else (first.float() + second.float()).mean() / 2
        axes.set_title(f"{name}: next, {finds:.0%} hits", fontsize=9)
    row[0].set_ylabel(f"after epoch {epoch}")
    return drawn_now


lab.Sliders(who_holds, epoch=range(1, 5))

# %% [markdown]
# On the left every epoch ends with each picture in one of the two caches, and both are thrown away
# before the next one begins.
#
# *Half-way. This is a good place to stop and come back to: run all cells above, and go on here.*
#
# ## 5. Prove
#
# Does it matter to the training who loads, and what is kept? All random numbers are drawn in the
# training process, together with the order of the pictures. So all batches should be the same, bit
# for bit. Two epochs, in six ways.
#
# And are they those of a `DataLoader` as people write it, one picture at a time, if it gets the
# same order and the same draws? The last batch of an epoch is shorter.


# %% tags=["nbval-check-output"]
def batches_of(epochs=2, **how):
    way = base.turned(pictures=60, batch_size=8, seed=3, **how)
    with experiment.photographs(60) as some, closing(experiment.Feed(way, some)) as feed:
        return list(islice(feed, epochs * 8))


uncached = batches_of(cache="nothing")
for how in (
    {"cache": "bytes"},
    {"cache": "decoded"},
    {"cache": "decoded", "prefetch": 3},
    {"cache": "decoded", "workers": 2},
    {"cache": "decoded", "workers": 2, "shared": True, "persistent": True},
):
    same = [torch.equal(a.x, b.x) for a, b in zip(uncached, batches_of(**how))]
    print(f"the same {len(same)} batches: {all(same)}", *(f"{k} {v}" for k, v in how.items()))

# %% tags=["nbval-check-output"]
from torch.utils.data import DataLoader


class OneByOne(list):
    def __getitem__(self, index):
        picture = caching.read_picture(super().__getitem__(index), 96)
        draws = of_picture[index].clone()
        draws[0] = 0  # the only picture of its batch
        return caching.augment(picture[None], draws[:, None], 32)[0]


epoch_of_draws = torch.cat(next(experiment.orders(base.turned(pictures=60, seed=3))), 1)
of_picture = {int(draws[0]): draws for draws in epoch_of_draws.T}
order = epoch_of_draws[0].tolist()
print("each picture once:", sorted(order) == list(range(60)))

# %% tags=["nbval-check-output"]
with experiment.photographs(60) as some:
    theirs = list(DataLoader(OneByOne(some), 24, sampler=order))
    way = base.turned(pictures=60, batch_size=24, seed=3, cache="decoded")
    with closing(experiment.Feed(way, some)) as feed:
        ours = [loaded.x for loaded in islice(feed, 3)]
print("sizes:", [len(x) for x in theirs])
print("bit for bit:", all(torch.equal(a, b) for a, b in zip(ours, theirs)))

# %% [markdown]
# ## 6. Measure
#
# ### Hits and seconds, epoch by epoch
#
# Five ways, five epochs each, with several seeds. The ways take turns, in a random order.

# %%
decoded = base.turned(cache="decoded")
ways = {
    "no cache": base,
    "2 workers": decoded.turned(workers=2),
    "2 persistent": decoded.turned(workers=2, persistent=True),
    "2, shared": decoded.turned(workers=2, shared=True),
    "no worker": decoded,
}
runs = experiment.ways_by_epoch(ways, seeds, 5)
hits = {way: [fmean(run[e].hits for run in each) for e in range(5)] for way, each in runs.items()}
print("hits in epoch  ", *(f"{epoch:>5}" for epoch in range(1, 6)))
for way, shares in hits.items():
    print(f"{way:<15}", *(f"{share:5.0%}" for share in shares))

# %% jupyter={"source_hidden": true} tags=["hero"]
drawing, (left, right) = lab.figure.axes(10, 3.6, columns=2)
numbers, drawn = range(1, 6), ("no worker", "2 persistent", "2 workers", "no cache")
lines = {way: dict(zip(numbers, [100 * share for share in hits[way]])) for way in drawn}
expected = {e: 100 * caching.expected_hits(e, 2, persistent=True) for e in numbers}
lab.figure.draw_lines(left, lines, dashed={"formula": expected})
left.set(ylim=(-6, 108), ylabel="found in a cache, %", title="Does the cache hit?")
in_epoch = {
    way: {e: median(run[e - 1].seconds for run in runs[way]) for e in numbers} for way in drawn
}
lab.figure.draw_lines(right, in_epoch)
right.set(ylim=(0, None), ylabel="seconds of an epoch", title="And is it faster?")
for axes in (left, right):
    axes.set(xlabel="epoch", xticks=list(numbers))
drawing


# %%
def of_last(way, against="no cache"):
    return [a[-1].seconds / b[-1].seconds for a, b in zip(runs[way], runs[against])]


decodes_each = {way: sum(1 - share for share in line) for way, line in hits.items()}
for way, number in decodes_each.items():
    print(f"{way:<13} decodes each picture {number:.2f} times in 5 epochs")
off = max(abs(100 * share - expected[e]) for e, share in enumerate(hits["2 persistent"], 1))
print(f"2 persistent workers: at most {off:.0f} points off the formula, in the mean of all seeds")
for way in list(ways)[1:]:
    ratio = lab.figure.tell_over_seeds(of_last(way), "×")
    print(f"{way:<13} {ratio} the seconds of no cache, in the last epoch")
faster = sum(ratio < 1 for ratio in of_last("no worker", "2 workers"))
of_all = len(runs["no worker"])
print(f"one process with a cache beats two workers with caches in {faster} of {of_all} runs")
guess_decoded.against(decodes_each["2 workers"])

# %% [markdown]
# The workers of *2 workers* have a cache each, and pay for it in memory. If they gain something,
# they gain it by working beside the training, on a core that is free.
#
# ### Predicted and measured

# %%
print("seconds of the last epoch    measured   predicted")
for way in ("no cache", "2 persistent", "no worker"):
    measured = median(run[-1].seconds for run in runs[way])
    print(f"{way:<28} {measured:>8.3f} {experiment.predicted_epoch_seconds(ways[way]):>11.3f}")
first = median(run[0].seconds / run[-1].seconds for run in runs["no worker"])
print(f"with a cache and no worker the first epoch takes {first:.1f} × the last one")

# %% [markdown]
# The prediction knows only the stages. Starting workers, and carrying batches from one process to
# another, are not in it; in an epoch as short as these they weigh much.
#
# ### Which side of the cache?
#
# The second sentence of part 1 has no augmentation in it. Where does it belong? Behind the cache,
# where it is computed in each epoch; or in front of it, where it is computed once? With 100
# pictures, of which crops are cut:

# %%
small = base.turned(pictures=100, batch_size=20, channels=8)
results = {"augment → cache": [], "cache → augment": []}
for seed in seeds:
    for each, what in zip(results.values(), ("augmented", "decoded")):
        each.append(experiment.trained(small.turned(cache=what, seed=seed), 30))
for name, each in results.items():
    tested = lab.figure.tell_over_seeds([100 * accuracy for accuracy, _ in each], "%")
    print(f"{name}: {tested} of the test crops,")
    print(f"{'':>15}  loss on the training crops {fmean(loss for _, loss in each):.2f}")
gains = [100 * (b - a) for (a, _), (b, _) in zip(*results.values())]
better = sum(gain > 0 for gain in gains)
print(f"cache → augment gains {lab.figure.tell_over_seeds(gains, 'points')},")
print(f"and is better with {better} of {len(gains)} seeds")

# %% [markdown]
# Compare the two losses as well. A frozen crop can be learnt by heart, and a low loss looks like
# success until somebody tests. (With many pictures there may be less to lose: set `pictures` in the
# cell above to 1,000, and see.)
#
# ### Loading ahead
#
# Without a cache, and with it: what does the thread gain?

# %%
overlap = {}
for name, way in {"nothing kept": base, "kept": decoded}.items():
    overlap |= {name: way, f"{name}, ahead": way.turned(prefetch=2)}
timed = experiment.ways_by_epoch(overlap, seeds[:2], 2)
for name in ("nothing kept", "kept"):
    pairs = zip(timed[f"{name}, ahead"], timed[name])
    ratios = [with_it[-1].seconds / without[-1].seconds for with_it, without in pairs]
    said = "faster in all runs" if max(ratios) < 0.95 else "no clear gain"
    print(f"{name:<13} {lab.figure.tell_over_seeds(ratios, '×')} with the thread: {said}")
predicted = [experiment.predicted_epoch_seconds(overlap[name]) for name in list(overlap)[:2]]
gain_foreseen = predicted[1] / predicted[0]
print(f"predicted for {lab.usable_cores()} cores, nothing kept: {gain_foreseen:.2f} ×")

# %% [markdown]
# A thread needs a core that nobody else uses. Where the ratio is near 1, look at what else runs on
# the machine. The cache needs no second core.
#
# ## 7. Break it
#
# Press **Start**, then choose one **mistake** after the other, or set **cache** to *augmented*.
# Watch the loss, and the memory.

# %%
broken = base.turned(cache="decoded")
pieces = {"kept_bytes": "cache", "ahead_bytes": "batches ahead"}
memory = lab.Budget(pieces, "MiB", scale=2**-20, summary="max")
tried = [{"cache": "augmented"}, {"mistake": "changed in place"}, {"mistake": "no limit"}]
break_it = lab.Panel(
    experiment.run,
    broken,
    [lab.Curve("loss", "loss of the batch", over="updates"), memory],
    controls=["mistake", "cache"],
    baselines={"no mistake": {"mistake": "none", "cache": "decoded"}},
    headline=None,
    tour=[broken.turned(**turn) for turn in tried],
    seconds=1.2,
)
break_it

# %% [markdown]
# Write down what each setting spoils, the loss, the memory or neither, then look.
#
# <details><summary>What each of them does</summary>
#
# - **cache: augmented.** After some epochs the loss is lower than without the mistake. You have
#   seen above what a test says.
# - **changed in place.** The augmentation darkens the kept picture itself, in each epoch more.
# - **float cache** keeps what the network wants, 32 bits a number instead of 8.
# - **no limit.** The thread loads ahead without end: with a full cache, loading is faster than
#   training. (Here it is stopped at 200 batches, before the memory is full.)
# - **order kept** puts the cache behind the shuffle: the same pictures meet in each batch, in every
#   epoch. Their crops are new. To see it, count the different batches.
#
# </details>

# %%
told = {}
for mistake in ("none", "changed in place", "float cache", "no limit"):
    few_of_them = broken.turned(mistake=mistake, pictures=60, batch_size=6)
    with closing(experiment.run(few_of_them)) as steps:
        told[mistake] = [step.metrics for step in islice(steps, 60)]
    last = fmean(metrics["loss"] for metrics in told[mistake][-10:])
    most = max(metrics["kept_bytes"] + metrics["ahead_bytes"] for metrics in told[mistake])
    print(f"{mistake:<17} loss {last:5.2f} in epoch 6, {most / 2**20:6.1f} MiB")
for mistake in ("none", "order kept"):
    some_orders = islice(experiment.orders(experiment.Knobs(mistake=mistake)), 10)
    different = {tuple(drawn[0].tolist()) for epoch in some_orders for drawn in epoch}
    print(f"{mistake}: {len(different)} different batches in 10 epochs")

# %% [markdown]
# ### The same luck for all
#
# One more mistake with workers. A data set that has its own random generator is copied to each
# worker, with the generator. PyTorch seeds its global one for each worker; it cannot know yours.


# %% tags=["nbval-check-output"]
class Lucky(list):
    def __getitem__(self, index):
        return torch.randint(100, (), generator=own), torch.randint(100, ())


own = torch.Generator().manual_seed(0)
two = DataLoader(Lucky(range(8)), 4, num_workers=2, multiprocessing_context="fork")
epochs_of_luck = [list(two) for _ in range(2)]  # a batch from each worker
(first_a, first_b), (second_a, _) = epochs_of_luck
print("own generator: both workers draw the same:", torch.equal(first_a[0], first_b[0]))
print("               and the next epoch, too:   ", torch.equal(first_a[0], second_a[0]))
print("PyTorch's generator: the same:", torch.equal(first_a[1], first_b[1]))

# %% [markdown]
# Both workers cut the same crops, and they begin anew with the same ones in each epoch. Use
# PyTorch's generator, or draw where the order is drawn, as this chapter does.
#
# ### Bad input
#
# A picture that is cut off would be a grey area, kept for all epochs. It is refused, by the name of
# its file:

# %% tags=["nbval-check-output"]
grey = caching.Cache(lambda index: torch.zeros(1, 96, 96).byte(), 10, (3, 96, 96))
with experiment.photographs(1) as (file,):
    file.write_bytes(file.read_bytes()[:2000])
    for attempt in (
        lambda: caching.read_picture(file, 96),
        lambda: grey.fill(torch.tensor([0])),
        lambda: grey.fill(torch.tensor([-1])),
        lambda: caching.Cache(None, 0, (3, 96, 96)),
        lambda: caching.prefetch([], depth=0),
    ):
        try:
            attempt()
        except (ValueError, IndexError) as refusal:
            print(str(refusal).rpartition("/")[2].partition(" (")[0])  # without the folder

# %% [markdown]
# ## 8. When it does not help
#
# ### When nobody waits
#
# A cache saves waiting. Data that lie in memory, decoded, are as if cached already. What could the
# next trick still gain? The share that the training waits is all there is:

# %%
for way in ("no cache", "no worker"):
    shares_of_wait = [run[-1].wait for run in runs[way]]
    print(f"{way:<10} waits {fmean(shares_of_wait):.0%} of the last epoch")
cheap = of_last("2, shared", "no worker")
print(f"two workers beside a full cache take {lab.figure.tell_over_seeds(cheap, '×')} the seconds")

# %% [markdown]
# A worker has to send its batch to another process. For crops that cost some microseconds, sending
# can cost more than cutting. And a training of one epoch hits nothing.
#
# ### When only a part fits
#
# With room for half of the pictures, one would hope for half of the hits. It depends on what is
# evicted. The usual cache throws out what was used least recently (LRU). In a random order, that
# throws out what the next epoch asks for:
#
# $$\text{LRU: } c + (1-c)\ln(1-c) \qquad\qquad \text{keep the first, evict nothing: } c$$

# %%
rooms = (0.25, 0.5, 0.75)
parts = {}
for policy in ("recent", "first"):
    for room in rooms:
        simulated = experiment.hits_of_a_part(policy, room, 2000, 4, base.seed)
        parts[policy, room] = fmean(simulated[1:])
for room in rooms:
    formula = caching.hits_of_recent(room)
    print(
        f"room for {room:.0%}: evicting the least recent hits {parts['recent', room]:.1%}", end=""
    )
    print(f" (formula {formula:.1%}), evicting nothing {parts['first', room]:.1%}")

# %% [markdown]
# The file cache of an operating system is roughly of the first kind. So if the files take twice the
# memory, expect hits of about 15 % from it, and not of 50 %.
#
# So, about the sentences from the start, the verdict for this machine:

# %%
kind = "the disk" if coldest > 0.5 else "decoding" if largest == "decode" else largest
verdict = (
    f"two workers with a cache hit {hits['2 workers'][-1]:.0%} in epoch 5, persistent ones "
    f"{hits['2 persistent'][-1]:.0%}, one process {hits['no worker'][-1]:.0%}; an epoch takes "
    f"{median(of_last('no worker')):.2f} × the seconds of no cache in one process; reading is "
    f"{share['read']:.0%} of loading (cold {coldest:.0%}), most of it is {kind}; cached behind the "
    f"augmentation: {fmean(gains):+.0f} points of test accuracy for the other order"
)
lab.log_verdict("caching", verdict)

# %% [markdown]
# - *Avoids disk reads:* it does, and what it saves most depends on where the time goes. Measure the
#   stages first.
# - *`.cache().shuffle().batch().repeat()`:* the order is right. What is random belongs behind the
#   cache, what is expensive and always the same before it. And ask in which process the cache
#   lives.
#
# ## 9. Exercises
#
# Write the functions and run the cells; `check` tries each on fresh data. It says what is right
# already, shows a small case that is not, and gives a hint where it knows the mistake. After two
# different tries it offers a worked solution. Some functions are written already, with faults:
# repair them.

# %%
from accel_lab.grading.practice import check, exercises

DECODED, FIRST, ORDER, AHEAD, CROPS = exercises("caching")
DECODED


# %% tags=["exercise"]
def decodes(pictures, epochs, workers, persistent, shared):
    raise NotImplementedError


check(decodes)

# %%
FIRST


# %% tags=["exercise"]
def keep_first(decode, capacity):
    raise NotImplementedError


check(keep_first)

# %%
ORDER


# %% tags=["exercise"]
def augmented_batches(decode, augment, orders):
    cache, batches = {}, []
    for order in orders:
        pictures = []
        for index in order:
            if index not in cache:
                cache[index] = augment(decode(index))
            pictures.append(cache[index])
        batches.append(torch.stack(pictures))
    return batches


check(augmented_batches)

# %%
AHEAD


# %% tags=["exercise"]
def read_ahead(load, names, depth):
    raise NotImplementedError


check(read_ahead)

# %%
CROPS


# %% tags=["exercise"]
def cut_crops(pictures, rows, columns, side):
    raise NotImplementedError


check(cut_crops)

# %% [markdown]
# ## 10. Take away
#
# - Count the hits. A cache that never hits looks like any other.
# - Measure read, decode, augment and train by themselves, and keep what is expensive and always the
#   same.
# - A cache belongs to a process. Workers lose theirs with each epoch, unless they stay, or share
#   one.
# - What is random stays behind the cache. What leaves the cache is a copy.
# - If only a part fits, keep the first that come and evict nothing.
# - Loading ahead hides a wait behind the training, if there is a free core. A cache removes it.
#
# Known from elsewhere, and not measured here: with hundreds of gigabytes, FFCV packs a data set
# into one file, so that reading is sequential and one process serves all GPUs. CoorDL shares one
# cache between the jobs of a machine, and found that the file cache of the system thrashes (Mohan
# et al., 2021). A tool that benchmarks storage has to make sure that it does not measure the cache.
# Workers that are *spawned* rather than forked import PyTorch anew, in seconds, and with more
# memory each; newer Pythons no longer fork by default.

# %% [markdown]
# **What would prove this wrong?** Two workers that are started anew for each epoch, with a cache in
# the data set, and hits above 0. If you find one, look for memory that is shared: a tensor in
# shared memory, a file, a server. Or two persistent workers that are off the formula by more than
# chance: then a picture does not go to a worker by chance.
#
# **Sources.** J. Mohan et al., *Analyzing and Mitigating Data Stalls in DNN Training*, 2021,
# arXiv:2007.06775, "When datasets cannot be fully cached" and "The MinIO cache" · D. Murray et al.,
# *tf.data: A Machine Learning Data Processing Framework*, 2021, arXiv:2101.12127 · G. Leclerc et
# al., *FFCV: Accelerating Training by Removing Data Bottlenecks*, 2023, arXiv:2306.12517 · PyTorch,
# `torch.utils.data`.
#
# **Next.** The data wait for the network now, and not the other way round. How deep should that
# network be, and how wide? That is [chapter 07](07_structure.ipynb). The other chapters are listed
# on the [first page](00_start_here.ipynb).
