"""Exercises of chapter 06: what is decoded in a whole training, a cache for a part of the data, a
pipeline with its steps in the wrong order, reading ahead, and crops in half of the time.
"""

from __future__ import annotations

import functools
import queue
import random
import threading
from collections.abc import Iterator

import torch

from accel_lab.exercises import Case, Exercise, LessTime, Wrong
from accel_lab.exercises._data import shuffled, whole

# ---- build: what is decoded in a whole training ----


def decodes_cases(rng: random.Random) -> Iterator[Case]:
    def case(workers, persistent, shared):
        return {
            "pictures": rng.randrange(100, 1000),
            # after W + 1 epochs two of the wrong answers are the same number
            "epochs": rng.choice([e for e in range(4, 9) if e != workers + 1]),
            "workers": workers,
            "persistent": persistent,
            "shared": shared,
        }

    yield case(0, False, False)
    yield case(rng.randrange(2, 4), False, False)
    for workers in rng.sample(range(3, 7), 2):
        yield case(workers, True, False)
    yield case(rng.randrange(2, 5), True, True)
    yield case(rng.randrange(2, 5), False, True)


def decodes_drive(answer, case):
    names = ("pictures", "epochs", "workers", "persistent", "shared")
    return {"decoded": float(answer(*(case[name] for name in names)))}


def decodes(pictures, epochs, workers, persistent, shared):
    if shared or workers == 0:
        return pictures
    if not persistent:
        return pictures * epochs
    missing = 1 - 1 / workers
    return sum(pictures * missing**epoch for epoch in range(epochs))


DECODES = Exercise(
    name="decodes",
    points=2,
    task="""Write `decodes(pictures, epochs, workers, persistent, shared)`: how many pictures are
decoded in a whole training, as an expected number. Each process has a cache that holds all it
decoded, and each picture goes to a worker by chance, anew in each epoch.

`workers` is 0 where the training process loads by itself. `persistent`: the workers stay from epoch
to epoch. `shared`: all processes have one cache, in memory that outlives the workers.""",
    cases=decodes_cases,
    drive=decodes_drive,
    reference=decodes,
    reasoning="""One cache that stays decodes each picture once. Workers that are started anew begin
with nothing, so every epoch decodes everything. With W private caches that stay, a picture is
missing in epoch e when its worker has not had it in the e − 1 epochs before: (1 − 1/W)^(e−1). The
sum of that over the epochs, times the pictures, goes to W · pictures: in the end each worker has
decoded all of them once.""",
    wrong=(
        Wrong.changed(
            decodes,
            "range(epochs)",
            "range(1, epochs + 1)",
            "You are off by one epoch: in the first one the caches are empty, and everything is "
            "decoded.",
        ),
        Wrong.changed(
            decodes,
            "if shared or workers == 0:",
            "if shared or workers == 0 or persistent:",
            "One cache that stays hits always from the second epoch on. With several private ones "
            "a picture often comes to a worker that has not seen it.",
        ),
        Wrong.changed(
            decodes,
            "    if not persistent:\n        return pictures * epochs\n",
            "",
            "Workers that are started anew for each epoch begin with an empty cache: every epoch "
            "decodes everything.",
        ),
        Wrong.changed(
            decodes,
            "missing = 1 - 1 / workers",
            "missing = 1 / workers",
            "1/W is the chance that a picture comes to a certain worker. It is missing there with "
            "the chance 1 − 1/W.",
        ),
        Wrong.changed(
            decodes,
            "return sum(pictures * missing**epoch for epoch in range(epochs))",
            "return pictures * workers",
            "That is the number after infinitely many epochs. Add up what is missing in each.",
        ),
        Wrong.changed(
            decodes,
            "return sum(pictures * missing**epoch for epoch in range(epochs))",
            "return pictures + (epochs - 1) * pictures * missing",
            "You let the same share be missing in every epoch after the first. The caches fill up: "
            "in epoch e a picture is missing only if its worker has had it in none of the e − 1 "
            "epochs before.",
        ),
        Wrong.changed(
            decodes,
            "if shared or workers == 0:",
            "if workers == 0:",
            "A shared cache is one cache: each picture is decoded once, by whichever worker comes "
            "first.",
        ),
        Wrong(
            lambda pictures, epochs, workers, persistent, shared: pictures,
            "Each picture once: that holds where one cache stays. With which cache does a worker "
            "begin that is started anew?",
        ),
    ),
)


# ---- build: a cache for a part of the data ----


def keep_first_cases(rng: random.Random) -> Iterator[Case]:
    for _ in range(3):
        count = rng.randrange(14, 20)
        yield {
            "pictures": whole(rng, 0, 200, count, 3, 2, 2, dtype=torch.uint8),
            "orders": [shuffled(rng, count).tolist() for _ in range(4)],
            "capacity": count // 2,
        }


def keep_first_drive(answer, case):
    """Each picture that comes back is changed by who got it."""
    import torch

    asked, got = [], []

    def decode(index):
        asked[-1][index] += 1
        return case["pictures"][index].clone()

    fetch = answer(decode, case["capacity"])
    for order in case["orders"]:
        asked.append(torch.zeros(len(case["pictures"]), dtype=torch.int64))
        for index in order:
            picture = fetch(index)
            got.append(picture.clone())
            picture.add_(1)
    return {"decoded in each epoch": torch.stack(asked), "pictures": torch.stack(got)}


def keep_first(decode, capacity):
    kept = {}

    def fetch(index):
        if index in kept:
            return kept[index].clone()
        picture = decode(index)
        if len(kept) < capacity:
            kept[index] = picture.clone()
        return picture

    return fetch


def _keep_recent(decode, capacity):
    kept = {}

    def fetch(index):
        picture = kept.pop(index) if index in kept else decode(index)
        kept[index] = picture
        if len(kept) > capacity:
            del kept[next(iter(kept))]
        return picture.clone()

    return fetch


def _keep_recent_itself(decode, capacity):
    return functools.lru_cache(capacity)(decode)


def _keep_latest(decode, capacity):
    kept = {}

    def fetch(index):
        if index not in kept:
            kept[index] = decode(index)
            if len(kept) > capacity:
                del kept[next(iter(kept))]
            return decode(index) if index not in kept else kept[index].clone()
        return kept[index].clone()

    return fetch


KEEP_FIRST = Exercise(
    name="keep_first",
    points=3,
    task="""Memory has room for `capacity` pictures, and there are more. Write `keep_first(decode,
capacity)`: it returns a function `fetch(index)`, which returns picture `index`, a tensor.
`decode(index)` makes it; that is expensive. Where each epoch asks for each picture once, no policy
hits more often than this one: keep the **first** `capacity` different pictures that are asked for,
and evict none. So in each later epoch exactly `capacity` pictures must not be decoded. The caller
may change the picture that it gets.""",
    cases=keep_first_cases,
    drive=keep_first_drive,
    reference=keep_first,
    reasoning="""A dict that stops growing. In a shuffled epoch every picture is asked for once, so
each kept one hits once an epoch, whichever it is: the hits are the share that is kept. Evicting
throws away pictures that are still to come in this epoch or the next. The dict keeps a copy,
and hands out copies: otherwise a change made by the caller would stay.""",
    wrong=(
        Wrong(
            _keep_recent,
            "You evict a kept picture to make room for a new one. In a random order that throws "
            "away what the next epoch asks for: keep what is there, and do not keep the new one.",
            also=(_keep_latest, _keep_recent_itself),
        ),
        Wrong.changed(
            keep_first,
            "if len(kept) < capacity:",
            "if True:",
            "Everything is kept. There is room for `capacity` pictures and no more.",
        ),
        Wrong.changed(
            keep_first,
            "if len(kept) < capacity:",
            "if len(kept) <= capacity:",
            "One picture too many is kept: compare before it is added.",
        ),
        Wrong.changed(
            keep_first,
            "if len(kept) < capacity:",
            "if index < capacity:",
            "You keep the pictures with the lowest numbers. Keep those that are asked for first: "
            "nobody promises that all numbers come.",
        ),
        Wrong.changed(
            keep_first,
            "return kept[index].clone()",
            "return kept[index]",
            "You hand out the kept tensor itself: what the caller does to it stays in the cache. "
            "Return a copy.",
        ),
        Wrong.changed(
            keep_first,
            "kept[index] = picture.clone()",
            "kept[index] = picture",
            "The picture that is handed out at first is the kept one itself: what the caller does "
            "to it stays in the cache. Keep a copy.",
        ),
        Wrong(
            lambda decode, capacity: decode,
            "Nothing is kept: every picture is decoded in every epoch.",
        ),
    ),
)


# ---- diagnose: the steps in the wrong order ----


def augmented_batches_cases(rng: random.Random) -> Iterator[Case]:
    for _ in range(3):
        count = rng.randrange(4, 7)
        orders = [shuffled(rng, count).tolist() for _ in range(3)]
        yield {
            "pictures": whole(rng, 1, 100, count, 2, 3),
            "orders": orders,
            "factors": [rng.randrange(2, 10) for _ in range(3 * count)],
        }


def augmented_batches_drive(answer, case):
    """Augmenting changes the picture that it is given, as many functions do."""
    decoded, augmented = [], []

    def decode(index):
        decoded.append(index)
        return case["pictures"][index].clone()

    def augment(picture):
        augmented.append(picture)
        return picture.mul_(case["factors"][min(len(augmented), len(case["factors"])) - 1])

    batches = answer(decode, augment, case["orders"])
    return {
        "batches": [batch.clone() for batch in batches],
        "times decoded": len(decoded),
        "times augmented": len(augmented),
    }


def augmented_batches(decode, augment, orders):
    cache, batches = {}, []
    for order in orders:
        pictures = []
        for index in order:
            if index not in cache:
                cache[index] = decode(index)
            pictures.append(augment(cache[index].clone()))
        batches.append(torch.stack(pictures))
    return batches


def _as_found(decode, augment, orders):
    cache, batches = {}, []
    for order in orders:
        pictures = []
        for index in order:
            if index not in cache:
                cache[index] = augment(decode(index))
            pictures.append(cache[index])
        batches.append(torch.stack(pictures))
    return batches


def _copied_too_late(decode, augment, orders):
    cache, batches = {}, []
    for order in orders:
        for index in order:
            if index not in cache:
                cache[index] = decode(index)
        batches.append(torch.stack([augment(cache[index]).clone() for index in order]))
    return batches


AUGMENTED_BATCHES = Exercise(
    name="augmented_batches",
    points=3,
    task="""Training with this loader learns the pictures by heart. Repair it, without changing what
it takes and returns.

`orders` holds a list of indices for each epoch, and each epoch makes one batch. `decode(index)`
returns a picture and is expensive: call it once for each. `augment(picture)` returns a picture
changed by chance, differently at each call: call it once each time a picture is used. Beware: it
works **in place**, on the tensor that it is given.""",
    cases=augmented_batches_cases,
    drive=augmented_batches_drive,
    reference=augmented_batches,
    reasoning="""The cache sits behind what is expensive and always the same, decoding, and before
what is random. As found, the first augmentation of each picture is kept and repeated. Moving
`augment` behind the cache is not enough: in place, it would change the kept picture, and the
changes of all epochs would pile up. So it gets a copy.""",
    wrong=(
        Wrong(
            _as_found,
            "This is the loader as found: it keeps what `augment` made, so every epoch sees the "
            "same. Which of the two steps is the same in every epoch?",
            given=True,
        ),
        Wrong.changed(
            augmented_batches,
            "augment(cache[index].clone())",
            "augment(cache[index])",
            "The order is right now. But `augment` works in place on the kept picture, so the "
            "changes of all epochs pile up. Give it a copy.",
            also=(_copied_too_late,),
        ),
        Wrong.changed(
            augmented_batches,
            "if index not in cache:",
            "if True:",
            "The batches are right, but every picture is decoded in every epoch: nothing is kept.",
        ),
    ),
)


# ---- build: reading ahead ----


def read_ahead_cases(rng: random.Random) -> Iterator[Case]:
    for broken in (False, True):
        count = rng.randrange(6, 9)
        names = [f"{rng.randrange(1000):03d}.jpg" for _ in range(count)]
        yield {
            "names": names,
            "values": [rng.randrange(1000) for _ in names],
            "broken": rng.randrange(2, count - 1) if broken else -1,
            "depth": rng.randrange(1, 4),
        }


def read_ahead_drive(answer, case):
    import threading
    import time

    begun = []

    def load(name):
        place = len(begun)
        begun.append(name)
        if place == case["broken"]:
            raise OSError(f"{name} is gone")
        return case["values"][place]

    def wait_for(what, seconds):
        until = time.monotonic() + seconds
        while not what() and time.monotonic() < until:
            time.sleep(0.002)

    before = threading.active_count()
    items = iter(answer(load, case["names"], case["depth"]))
    got, error = [next(items)], ""
    last = case["broken"] if case["broken"] > 0 else len(case["names"]) - 1
    wait_for(lambda: len(begun) > min(case["depth"], last), 0.5)
    time.sleep(0.03)
    ahead = len(begun) - 1
    try:
        while len(got) < 100:
            got.append(next(items))
    except StopIteration:
        error = "none, it ended"
    except OSError as raised:
        error = str(raised)
    begun.clear()
    items = iter(answer(load, case["names"], case["depth"]))
    next(items)
    if ahead:
        wait_for(lambda: len(begun) > min(case["depth"] + 1, last), 0.5)
        time.sleep(0.03)
    getattr(items, "close", lambda: None)()
    wait_for(lambda: threading.active_count() <= before, 0.3)
    return {
        "ahead": ahead,
        "items": [list(item) for item in got],
        "error": error,
        "threads left": threading.active_count() > before,
    }


def read_ahead_assess(returned, case):
    last = case["broken"] if case["broken"] > 0 else len(case["names"]) - 1
    return {
        "loads while the caller is at work": returned["ahead"] >= min(case["depth"], last),
        "loads further ahead than depth": returned["ahead"] > case["depth"] + 1,
        "items": returned["items"],
        "error": returned["error"],
        "a thread is left after close()": returned["threads left"],
    }


def read_ahead(load, names, depth):
    ready, left = queue.Queue(depth), threading.Event()

    def work():
        end = None
        try:
            for name in names:
                ready.put((name, load(name)))
                if left.is_set():
                    return
        except Exception as error:
            end = error
        ready.put(end)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while isinstance(item := ready.get(), tuple):
            yield item
        if item is not None:
            raise item
    finally:
        left.set()
        while thread.is_alive():
            while not ready.empty():
                ready.get()
            thread.join(0.01)


def _at_its_turn(load, names, depth):
    for name in names:
        yield name, load(name)


def _all_before(load, names, depth):
    ready = []
    for name in names:
        try:
            ready.append((name, load(name)))
        except Exception as error:
            ready.append(error)
            break
    for item in ready:
        if isinstance(item, Exception):
            raise item
        yield item


READ_AHEAD = Exercise(
    name="read_ahead",
    points=4,
    task="""Write the generator `read_ahead(load, names, depth)`: it yields the pairs `(name,
load(name))` in the order of `names`. A thread loads ahead while the caller works, until `depth`
pairs lie ready; it may have one more in its hands. What `load` raises is raised in its place: after
the pairs before it. When the generator is closed, the thread ends.
(`queue` and `threading` have what is needed.)""",
    cases=read_ahead_cases,
    drive=read_ahead_drive,
    assess=read_ahead_assess,
    reference=read_ahead,
    reasoning="""A `queue.Queue(depth)` holds the pairs; `put` waits while it is full, and that is
the limit. The end, or the error, goes through the same queue, so it comes after the pairs before it
and none is lost. Closing a generator runs its `finally`: it tells the thread to stop, and empties
the queue, because the thread may be waiting for room in it.""",
    wrong=(
        Wrong(
            _at_its_turn,
            "Nothing is loaded while the caller is at work: each pair is loaded when it is asked "
            "for. Let a thread fill a queue.",
        ),
        Wrong.changed(
            read_ahead,
            "queue.Queue(depth)",
            "queue.Queue()",
            "Everything is loaded ahead, however slowly the caller takes it. With data larger than "
            "memory that ends badly: limit the queue to `depth`.",
            also=(_all_before,),
        ),
        Wrong.changed(
            read_ahead,
            "for name in names:",
            "for name in names[:-1]:",
            "The last pair is lost. Say that it is the end after it has been handed over, through "
            "the same queue.",
        ),
        Wrong.changed(
            read_ahead,
            "            end = error\n",
            "            pass\n",
            "What `load` raised is swallowed in the thread, and the training ends early as if all "
            "were well. Hand the error over, and raise it in the generator.",
        ),
        Wrong.changed(
            read_ahead,
            "        while thread.is_alive():\n"
            "            while not ready.empty():\n"
            "                ready.get()\n"
            "            thread.join(0.01)\n",
            "        pass\n",
            "After close() the thread is still there: it waits for room in a queue that nobody "
            "empties. Empty it, until the thread has ended.",
        ),
    ),
)


# ---- target: crops in half of the time ----


def cut_crops_cases(rng: random.Random) -> Iterator[Case]:
    for _ in range(3):
        count, height, width, side = rng.randrange(4, 7), 8, 10, rng.randrange(3, 5)
        rows = [*rng.sample(range(height - side + 1), 3), height - side]
        columns = [*rng.sample(range(width - side + 1), 3), width - side]
        while len(rows) < count:
            rows.append(rng.randrange(height - side + 1))
            columns.append(rng.randrange(width - side + 1))
        yield {
            "pictures": whole(rng, 0, 256, count, 3, height, width, dtype=torch.uint8),
            "rows": torch.tensor(rows),
            "columns": torch.tensor(columns),
            "side": side,
        }


def cut_crops_large(rng: random.Random) -> Case:
    return {
        "pictures": whole(rng, 0, 256, 512, 3, 24, 24, dtype=torch.uint8),
        "rows": whole(rng, 0, 9, 512),
        "columns": whole(rng, 0, 9, 512),
        "side": 16,
    }


def cut_crops_drive(answer, case):
    return answer(case["pictures"], case["rows"], case["columns"], case["side"])


def cut_crops(pictures, rows, columns, side):
    windows = pictures.unfold(2, side, 1).unfold(3, side, 1)
    return windows[torch.arange(len(pictures)), :, rows, columns]


def _one_by_one(pictures, rows, columns, side):
    import torch

    crops = []
    for picture, row, column in zip(pictures, rows.tolist(), columns.tolist(), strict=True):
        crops.append(picture[:, row : row + side, column : column + side])
    return torch.stack(crops)


ONE_BY_ONE = Wrong(
    _one_by_one,
    "Right, but not fast enough. A loop makes several calls for each crop, and an index for each "
    "pixel costs time as well. `unfold` makes a view of all crops, without copying; index it once, "
    "with all rows and columns.",
)

CUT_CROPS = Exercise(
    name="cut_crops",
    points=2,
    task="""**Target:** at most half of the time of a loop over the pictures.

Write `cut_crops(pictures, rows, columns, side)`: `pictures` is uint8 `[n, channels, height,
width]`, `rows` and `columns` are index tensors `[n]`. Return the crops `[n, channels, side, side]`:
of picture *i* the one whose upper left corner is at `rows[i]`, `columns[i]`.""",
    cases=cut_crops_cases,
    drive=cut_crops_drive,
    reference=cut_crops,
    reasoning="""`pictures.unfold(2, side, 1).unfold(3, side, 1)` has the shape [n, channels, height
− side + 1, width − side + 1, side, side]: a view of all crops, with no copy made. One index with
three tensors then picks a crop of each picture: `[arange(n), :, rows, columns]`. The colon between
them puts the picked dimension first, so the result is [n, channels, side, side], copied once.""",
    wrong=(
        ONE_BY_ONE,
        Wrong.changed(
            cut_crops,
            ":, rows, columns]",
            ":, columns.clamp(max=windows.shape[2] - 1), rows]",
            "Rows and columns are swapped: the rows count downwards, along the height, which is "
            "dimension 2.",
        ),
        Wrong.changed(
            cut_crops,
            ":, rows, columns]",
            ":, rows[0], columns[0]]",
            "All pictures are cropped at the corner of the first one. Use each one's row and "
            "column.",
        ),
        Wrong.changed(
            cut_crops,
            ":, rows, columns]",
            ":, (rows - side // 2).clamp(min=0), (columns - side // 2).clamp(min=0)]",
            "`rows` and `columns` name the upper left corner of a crop, not its middle.",
        ),
    ),
    target=LessTime(cut_crops_large, 0.5, ONE_BY_ONE),
)
