"""What is cached is what is decoded, whoever loads it; hits are as foretold; nothing is left."""

import gc
import threading
import time
from contextlib import closing
from itertools import islice
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from accel_lab import caching
from accel_lab.caching import (
    Cache,
    DictCache,
    augment,
    check_room,
    draw,
    expected_hits,
    hits_of_recent,
    prefetch,
    read_picture,
)
from accel_lab.experiments import caching as experiment
from accel_lab.experiments.caching import KEPT, SIDE, Feed, Knobs, photographs, run
from accel_lab.workbench.knobs import KnobError
from accel_lab.workbench.loop import NonFiniteLoss

SMALL_KNOBS = {"pictures": 96, "seed": 1}  # the chapter in little, for papermill


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(index: int) -> torch.Tensor:
    return torch.randint(256, (3, 12, 10), generator=seeded(index), dtype=torch.uint8)


class Counted:
    """Decodes, and counts how often."""

    def __init__(self):
        self.asked = []

    def __call__(self, index: int) -> torch.Tensor:
        self.asked.append(index)
        return noise(index)


# ---- files ----


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "CMYK", "P", "1"])
def test_a_picture_of_any_kind_is_read_as_three_channels(mode, tmp_path):
    image = Image.fromarray(noise(0).permute(1, 2, 0).numpy()).convert(mode)
    image.save(file := tmp_path / ("one.tif" if mode == "CMYK" else "one.png"))
    want = torch.tensor(list(image.convert("RGB").resize((8, 8), 2).tobytes())).view(8, 8, 3)
    found = read_picture(file, 8)
    assert found.dtype == torch.uint8
    assert torch.equal(found, want.permute(2, 0, 1).byte())


def test_a_file_that_cannot_be_read_is_named_in_one_line_and_not_kept(tmp_path):
    with photographs(20) as files:
        whole = files[0].read_bytes()
    (cut := tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (text := tmp_path / "text.jpg").write_text("no picture")
    Image.new("I;16", (9, 9)).save(deep := tmp_path / "deep.png")
    for file, said in ((cut, "truncated"), (text, "cannot identify"), (deep, "more than 8 bits")):
        cache = Cache(lambda _, file=file: read_picture(file, 12), 1, (3, 12, 12))
        with pytest.raises(ValueError, match=said) as error:
            cache[torch.tensor([0])]
        assert str(file) in str(error.value)
        assert "\n" not in str(error.value)
        assert not cache.have.any()
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        read_picture(tmp_path / "gone.jpg", 12)


# ---- caches ----


@settings(max_examples=40)
@given(
    batches=st.lists(st.lists(st.integers(0, 8), min_size=1, max_size=6), max_size=6),
    shared=st.booleans(),
)
def test_the_cache_hands_out_what_was_decoded_and_decodes_it_once(batches, shared):
    decode, seen = Counted(), set()
    cache = Cache(decode, 9, (3, 12, 10), shared)
    for batch in batches:
        indices = torch.tensor(batch)
        assert cache.fill(indices) == sum(index in seen for index in batch)
        seen |= set(batch)
        assert torch.equal(cache[indices], torch.stack([noise(index) for index in batch]))
    assert sorted(decode.asked) == sorted(seen)


def test_what_the_cache_hands_out_is_a_copy_and_what_the_dict_hands_out_is_not():
    cache, naive = Cache(noise, 3, (3, 12, 10)), DictCache(noise)
    cache[torch.tensor([1])].zero_()
    naive[1].zero_()
    assert torch.equal(cache[torch.tensor([1])][0], noise(1))
    assert not torch.equal(naive[1], noise(1))


@pytest.mark.parametrize("bad", [[-1], [3], [0, 7]])
def test_an_index_out_of_range_is_refused(bad):
    with pytest.raises(IndexError, match="are not all in 0…2"):
        Cache(noise, 3, (3, 12, 10))[torch.tensor(bad)]


@pytest.mark.parametrize(
    "bad",
    [
        torch.arange(3).numpy(),
        torch.ones(3).bool(),
        torch.tensor([1.0]),
        torch.tensor([0, 2]).byte(),
        torch.zeros(1, 1).long(),
        [1],
        1,
    ],
)
def test_indices_of_another_kind_are_refused_in_one_line(bad):
    """True and False would be pictures 1 and 0, and bytes a mask."""
    with pytest.raises(IndexError, match=r"^indices: .*an int64 tensor \[B\]$"):
        Cache(noise, 3, (3, 12, 10))[bad]


def test_a_picture_that_is_no_tensor_is_named():
    with pytest.raises(ValueError, match="picture 1: ndarray, and not a tensor"):
        Cache(lambda index: noise(index).numpy(), 3, (3, 12, 10))[torch.tensor([1])]


@pytest.mark.parametrize(
    "other", [torch.zeros(1, 12, 10).byte(), torch.zeros(3, 12, 10), torch.zeros(3, 10, 12).byte()]
)
def test_a_picture_of_another_shape_or_dtype_is_not_kept(other):
    """Assigned to a row, a grey one would fill all three channels without a word."""
    cache = Cache(lambda _: other, 3, (3, 12, 10))
    with pytest.raises(ValueError, match="picture 2: ") as error:
        cache[torch.tensor([2])]
    assert "and not uint8 [3, 12, 10]" in str(error.value)
    assert not cache.have.any()


def test_no_pictures_and_no_room_are_refused_before_anything_is_filled():
    with pytest.raises(ValueError, match="count: 0 pictures"):
        Cache(noise, 0, (3, 12, 10))
    with pytest.raises(ValueError, match="MB of memory are free"):
        check_room(10**9, (3, 1000, 1000))
    with pytest.raises(ValueError, match="MB of shared memory are free"):
        check_room(10**9, (3, 1000, 1000), shared=True)
    with pytest.raises(ValueError, match=r"shape: \[3, 0, 4\]"):
        Cache(noise, 3, (3, 0, 4))


# ---- augmentation ----


def augmented_one_by_one(pictures, drawn, side):
    """The slow truth."""
    found = []
    for index, row, column, flip, light in drawn.T.tolist():
        crop = pictures[index, :, row : row + side, column : column + side]
        crop = torch.flip(crop, (2,)) if flip else crop
        found.append(crop.double() * light / 255 / 255)
    return torch.stack(found)


@pytest.mark.parametrize(("side", "room"), [(8, 2), (10, 0), (1, 9)])
def test_the_batch_is_augmented_as_one_by_one(side, room):
    pictures = torch.stack([noise(index) for index in range(6)])
    turned = pictures.transpose(2, 3).contiguous().transpose(2, 3)
    drawn = draw(torch.tensor([5, 0, 0, 3, 2, 5, 1]), room, seeded(side))
    before = pictures.clone()
    for lying in (pictures, turned):
        found = augment(lying, drawn, side)
        torch.testing.assert_close(found.double(), augmented_one_by_one(pictures, drawn, side))
    found.zero_()
    assert torch.equal(pictures, before)


def test_chance_reaches_all_corners_and_both_directions():
    indices, rows, columns, flips, light = draw(torch.arange(4000), 3, seeded())
    assert torch.equal(indices, torch.arange(4000))
    assert set(rows.tolist()) == set(columns.tolist()) == {0, 1, 2, 3}
    assert abs(float(flips.float().mean()) - 0.5) < 0.05
    assert (int(light.min()), int(light.max())) == (128, 255)


# ---- loading ahead ----


def threads_of_ours() -> list:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.mark.parametrize("depth", [1, 2, 7])
@pytest.mark.parametrize("batches", [0, 1, 5])
def test_prefetch_hands_out_the_same_in_the_same_order_and_ends(batches, depth):
    assert list(prefetch(iter(range(batches)), depth)) == list(range(batches))
    assert list(prefetch([None] * batches, depth)) == [None] * batches
    assert not threads_of_ours()


def test_prefetch_loads_ahead_and_no_further_than_its_depth():
    made = []
    with closing(prefetch((made.append(n) or n for n in range(100)), 3)) as ahead:
        assert next(ahead) == 0
        until = time.monotonic() + 10
        while len(made) < 5 and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.1)
        assert len(made) == 5  # one handed out, three in the queue, one in the thread's hands
    assert not threads_of_ours()


def test_what_loading_raises_is_raised_in_its_place():
    def broken():
        yield from (0, 1)
        raise OSError("the disk is gone")

    ahead = prefetch(broken(), 2)
    assert [next(ahead), next(ahead)] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(ahead)
    assert not threads_of_ours()


@pytest.mark.parametrize("leave", ["close", "collect", "raise"])
def test_whoever_leaves_prefetch_ends_its_thread_and_closes_what_it_reads(leave):
    closed = threading.Event()

    def batches():
        try:
            yield from range(10**9)
        finally:
            closed.set()

    ahead = prefetch(batches(), 2)
    next(ahead)
    if leave == "close":
        ahead.close()
    elif leave == "raise":
        with pytest.raises(KeyboardInterrupt):
            ahead.throw(KeyboardInterrupt)
    del ahead
    gc.collect()
    assert closed.is_set()
    assert not threads_of_ours()


@pytest.mark.parametrize("depth", [0, -1, float("nan"), 2.5, "2"])
def test_a_queue_without_a_limit_is_refused_at_once(depth):
    with pytest.raises(KnobError, match="depth: "):
        prefetch([], depth)


# ---- what is foretold ----


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_hits_of_private_caches_are_as_foretold(workers):
    """Simulated: a picture goes to a worker by chance, and stays in its cache."""
    held = torch.zeros(workers, 20_000, dtype=torch.bool)
    for epoch in range(1, 6):
        to = torch.randint(workers, (20_000,), generator=seeded(epoch))
        hits = float(held[to, torch.arange(20_000)].float().mean())
        assert hits == pytest.approx(expected_hits(epoch, workers, persistent=True), abs=0.015)
        held[to, torch.arange(20_000)] = True


def test_hits_of_the_other_caches():
    assert [expected_hits(epoch, 0) for epoch in (1, 2, 3)] == [0, 1, 1]
    assert [expected_hits(epoch, 2) for epoch in (1, 2, 9)] == [0, 0, 0]
    assert [expected_hits(epoch, 2, shared=True) for epoch in (1, 2, 9)] == [0, 1, 1]
    for bad in ((0, 1), (1, -1)):
        with pytest.raises(ValueError, match="epochs begin at 1"):
            expected_hits(*bad)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75, 1.0])
def test_a_cache_of_a_part_hits_as_foretold(share):
    recent = experiment.hits_of_a_part("recent", share, 4000, 3, seed=1)
    first = experiment.hits_of_a_part("first", share, 4000, 3, seed=1)
    assert recent[0] == first[0] == 0
    assert recent[1:] == pytest.approx([hits_of_recent(share)] * 2, abs=0.03)
    assert first[1:] == [share, share]


@pytest.mark.parametrize("share", [-0.5, float("nan")])
def test_a_share_below_nothing_is_refused(share):
    with pytest.raises(ValueError, match="share: "):
        hits_of_recent(share)


# ---- the experiment ----


def knobs(**changes) -> Knobs:
    small = {"pictures": 40, "batch_size": 8, "device": "cpu", "channels": 4, "tested": 0}
    return Knobs(**(small | changes))


def losses(count: int = 12, **changes) -> list[float]:
    with closing(run(knobs(**changes))) as steps:
        return [step.metrics["loss"] for step in islice(steps, count)]


WAYS = {
    "bytes": {"cache": "bytes"},
    "decoded": {},
    "floats": {"mistake": "float cache"},
    "ahead": {"prefetch": 2},
    "workers": {"workers": 2, "persistent": True},
    "shared": {"workers": 1, "shared": True},
}


@pytest.mark.parametrize("way", WAYS)
def test_whoever_loads_and_whatever_is_kept_the_training_is_the_same(way):
    assert losses(**WAYS[way]) == losses(cache="nothing")


def test_a_cache_behind_the_augmentation_and_a_changed_one_train_otherwise():
    plain = losses(cache="nothing")
    for other in ({"cache": "augmented"}, {"mistake": "changed in place"}):
        changed = losses(**other)
        assert changed[5:] != plain[5:]
    assert losses(cache="augmented")[:5] == plain[:5]  # the first epoch has no difference yet


class OneByOne(Dataset):
    """As people write it: a picture at a time, for a DataLoader that collects them."""

    def __init__(self, files, drawn):
        self.files, self.drawn = files, {int(one[0]): one for one in drawn.T}

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        picture = read_picture(self.files[index], KEPT)[None]
        one = self.drawn[index].clone()
        one[0] = 0
        return augment(picture, one[:, None], SIDE)[0], index % 10


@pytest.mark.parametrize("way", [{}, {"prefetch": 3}, {"workers": 2}])
def test_the_batches_are_those_of_a_data_loader_with_the_same_order_and_draws(way):
    settings = knobs(pictures=41, **way)
    with photographs(41) as files:
        for epoch in islice(experiment.orders(settings), 1):
            drawn = torch.cat(epoch, 1)
            order = drawn[0].tolist()
            theirs = DataLoader(OneByOne(files, drawn), 8, sampler=order)
            with closing(Feed(settings, files)) as feed:
                for ours, (x, y) in zip(islice(feed, 6), theirs, strict=True):
                    assert torch.equal(ours.x, x)
                    assert torch.equal(ours.y, y)
    assert sorted(order) == list(range(41))


def test_hits_epoch_by_epoch(monkeypatch):
    monkeypatch.setattr(experiment, "read_picture", lambda *_: torch.zeros(3, KEPT, KEPT).byte())

    def hits(**changes):
        return [epoch.hits for epoch in experiment.by_epoch(knobs(**changes), 3)]

    assert hits() == hits(prefetch=1) == hits(cache="bytes") == [0, 1, 1]
    assert hits(cache="nothing") == [0, 0, 0]
    assert hits(workers=1, persistent=True) == hits(workers=2, shared=True) == [0, 1, 1]
    assert hits(workers=2) == [0, 0, 0]
    private = hits(workers=2, persistent=True, pictures=400)
    assert private[0] == 0
    assert private[1:] == pytest.approx([0.5, 0.75], abs=0.15)


def test_run_reports_what_it_keeps_and_how_long_it_waits():
    one = 3 * KEPT * KEPT
    for changes, kept in (
        ({}, 40 * one),
        ({"mistake": "float cache"}, 4 * 40 * one),
        ({"workers": 2, "shared": True}, 40 * one),
        ({"cache": "nothing"}, 0),
    ):
        with closing(run(knobs(**changes))) as steps:
            last = list(islice(steps, 10))[-1]
        assert last.metrics["kept_bytes"] == kept
        assert 0 < last.metrics["wait_share"] < 1
        assert last.metrics["epoch_seconds"] > 0
    with closing(run(knobs(mistake="no limit", pictures=20))) as steps:
        ahead = max(step.metrics["ahead_bytes"] for step in islice(steps, 40))
    assert ahead > 10 * 8 * 3 * SIDE**2 * 4
    assert experiment.predicted_kept(knobs(workers=2, persistent=True)) == 2 * 40 * one


def test_bytes_are_kept_by_each_worker_even_where_pixels_would_be_shared():
    """So the memory is that of two caches, and the prediction says so."""
    stays = {"workers": 2, "persistent": True, "cache": "bytes"}
    with closing(run(knobs(**stays, shared=True))) as steps:
        most = max(step.metrics["kept_bytes"] for step in islice(steps, 40))
    one = experiment.predicted_kept(knobs(cache="bytes"))
    assert one < most <= 2 * one
    for more in ({}, {"shared": True}):
        assert experiment.predicted_kept(knobs(**stays, **more)) == 2 * one


@pytest.mark.parametrize("way", [{}, {"workers": 2, "shared": True}])
def test_the_first_crop_of_each_picture_stays_where_its_cache_stays(way):
    """Even of workers that are started anew, if they share one."""
    settings = knobs(cache="augmented", **way)
    with photographs(40) as files, closing(experiment.Feed(settings, files)) as feed:
        batches = list(islice(feed, 10))
    crops = [
        torch.cat([b.x for b in epoch])[torch.cat([b.chosen for b in epoch]).argsort()]
        for epoch in (batches[:5], batches[5:])
    ]
    assert torch.equal(*crops)


def left_behind() -> list:
    folders = list(Path("/tmp").glob("accel_lab_*"))
    segments = list(Path("/dev/shm").glob("torch_*")) if Path("/dev/shm").is_dir() else []
    return [*folders, *segments, *threads_of_ours(), *psutil.Process().children()]


@pytest.mark.parametrize("way", ["decoded", "ahead", "workers", "both"])
@pytest.mark.parametrize("end", ["close", "raise", "collect"])
def test_nothing_is_left_of_a_run(way, end, monkeypatch, tmp_path):
    monkeypatch.setattr(experiment.tempfile, "tempdir", str(tmp_path))
    changes = WAYS.get(way, {"workers": 2, "prefetch": 2, "shared": True})
    before = left_behind()
    steps = run(knobs(**changes, learning_rate=0.1))
    list(islice(steps, 7))
    if end == "close":
        steps.close()
    elif end == "raise":
        with pytest.raises(KeyboardInterrupt):
            steps.throw(KeyboardInterrupt)
    del steps
    gc.collect()
    assert left_behind() == before
    assert not list(tmp_path.iterdir())


def test_a_file_that_vanishes_ends_the_run_with_its_name_and_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment.tempfile, "tempdir", str(tmp_path))
    before = psutil.Process().children()
    for way in ({"cache": "nothing"}, {"prefetch": 2, "cache": "nothing"}, {"workers": 2}):
        steps = run(knobs(**way))
        list(islice(steps, 5))
        for file in tmp_path.rglob("0007.jpg"):
            file.unlink()
        with pytest.raises(FileNotFoundError, match=r"0007\.jpg"):
            list(islice(steps, 40))
        assert not list(tmp_path.iterdir())
        assert psutil.Process().children() == before


def test_the_order_stays_only_where_it_is_kept_on_purpose():
    first, second = islice(experiment.orders(knobs()), 2)
    assert not torch.equal(torch.cat(first, 1), torch.cat(second, 1))
    kept = islice(experiment.orders(knobs(mistake="order kept")), 2)
    first, second = (torch.cat(epoch, 1) for epoch in kept)
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[1:], second[1:])  # the crops are new


def test_who_holds_what():
    fresh = experiment.holders(knobs(workers=2), 2)
    assert [sum(int(one.sum()) for one in epoch) for epoch in fresh] == [40, 40]
    stay = experiment.holders(knobs(workers=2, persistent=True), 3)
    assert 40 < sum(int(one.sum()) for one in stay[1]) <= 80
    shared = experiment.holders(knobs(workers=2, shared=True), 1)
    assert all(one.all() for one in shared[0])


def test_lanes_have_each_batch_once_and_trained_after_it_was_loaded():
    spans = experiment.lanes(knobs(prefetch=2), 6)
    ends = {span.name: span for span in spans}
    assert len(ends) == 12
    for number in range(6):
        assert ends[f"load {number}"].end <= ends[f"train {number}"].start


def test_costs_and_predictions():
    cost = experiment.costs("cpu", 4)
    assert list(cost) == list(experiment.STAGES)
    assert cost["decode"] > cost["read"] > 0
    predicted = experiment.predicted_epoch_seconds
    assert predicted(knobs()) < predicted(knobs(cache="bytes")) < predicted(knobs(cache="nothing"))
    assert predicted(knobs(workers=2)) == predicted(knobs(workers=2, cache="nothing"))
    assert predicted(knobs(workers=2, shared=True)) < predicted(knobs(workers=2))


@pytest.mark.slow
def test_a_frozen_augmentation_learns_less_from_few_pictures():
    def tested(cache):
        few = knobs(cache=cache, pictures=100, batch_size=20, channels=8)
        found = [experiment.trained(few.turned(seed=seed), 40)[0] for seed in range(2)]
        return sum(found) / len(found)

    assert tested("decoded") > tested("augmented") + 0.05


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"workers": 3}, "workers: should be less than or equal to 2"),
        ({"cache": "disk"}, "cache: should be 'nothing'"),
        ({"pictures": 20, "batch_size": 32}, "batch_size: 32 of 20 pictures"),
        ({"prefetch": -1}, "prefetch: should be greater than or equal to 0"),
    ],
)
def test_a_wrong_knob_is_named_in_one_line(changes, said):
    with pytest.raises(KnobError) as error:
        Knobs(**changes)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


def test_without_fork_workers_are_refused(monkeypatch):
    monkeypatch.setattr(experiment, "get_all_start_methods", lambda: ["spawn"])
    with pytest.raises(KnobError, match="workers: this system has no fork"):
        Knobs(workers=1)
    assert Knobs(workers=0).workers == 0


def test_a_loss_that_is_no_number_ends_the_run_and_its_workers(monkeypatch):
    nan, before = {"loss": float("nan")}, psutil.Process().children()
    monkeypatch.setattr(experiment, "classifier_update", lambda *_: lambda x, y: nan)
    with pytest.raises(NonFiniteLoss):
        list(run(knobs(workers=2)))
    assert psutil.Process().children() == before


def test_the_technique_draws_no_random_number_of_the_global_generator():
    before = torch.get_rng_state()
    caching.draw(torch.arange(4), 3, seeded())
    assert torch.equal(before, torch.get_rng_state())
