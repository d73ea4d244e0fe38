"""Packed sentences end in the states of PyTorch's layers and of each sentence alone, gradients
included; bucketed batches deal out each sentence once; mistakes and costs are as the chapter says.
"""

from itertools import count, islice, permutations
from statistics import fmean

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_sequence, pad_sequence

from accel_lab.experiments import recurrent as experiment
from accel_lab.experiments.recurrent import FORMS, Knobs, Reader
from accel_lab.recurrent import (
    bucketed,
    by_length,
    expected_padding,
    gru_cell,
    lstm_cell,
    pack,
    packed_last,
    pad,
    padding_share,
    unrolled,
)
from accel_lab.workbench import loop
from accel_lab.workbench.knobs import KnobError

SMALL_KNOBS = {"batch_size": 32, "cell": "GRU", "seed": 1}  # the chapter in little, for papermill
LAYERS = {"GRU": (nn.GRU, gru_cell, 1), "LSTM": (nn.LSTM, lstm_cell, 2)}
both_cells = pytest.mark.parametrize("kind", LAYERS)
some = settings(max_examples=30)
lengths_ = st.lists(st.integers(1, 9), min_size=1, max_size=7).map(torch.tensor)
ODD = torch.tensor([3, 7, 1, 7, 2, 1, 5])  # ties, and single words


def layer_of(kind, dtype=torch.float64):
    torch.manual_seed(0)
    make, cell, states = LAYERS[kind]
    return make(6, 5).to(dtype), cell, states


def words_of(lengths, dtype=torch.float64):
    return torch.randn(int(lengths.sum()), 6, dtype=dtype, requires_grad=True)


def ours(kind, x, lengths, layer):
    _, cell, states = LAYERS[kind]
    packed = pack(torch.arange(len(x)), lengths)
    last = packed_last(x[packed.ids], packed.sizes, tuple(layer.parameters()), cell, states)
    return packed.in_order(last)


def by_torch(kind, x, lengths, layer):
    _, last = layer(pack_sequence(x.split(lengths.tolist()), enforce_sorted=False))
    return (last[0] if kind == "LSTM" else last)[0]


def padded(kind, x, lengths, layer):
    _, cell, states = LAYERS[kind]
    rectangle = pad_sequence(x.split(lengths.tolist()))
    return unrolled(rectangle, lengths, tuple(layer.parameters()), cell, states)


def alone(kind, x, lengths, layer):
    return torch.cat([layer(one)[0][-1:] for one in x.split(lengths.tolist())])


# ---- states and gradients ----


@both_cells
@some
@given(lengths=lengths_)
def test_packed_is_pytorch_and_each_sentence_alone_gradients_included(kind, lengths):
    layer, _, _ = layer_of(kind)
    x = words_of(lengths)
    found = []
    for way in (alone, ours, by_torch, padded):
        last = way(kind, x, lengths, layer)
        weights = [x, *layer.parameters()]
        found.append([last, *torch.autograd.grad(last.sin().sum(), weights)])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-12)


@both_cells
def test_in_float32_they_agree_too(kind):
    layer, _, _ = layer_of(kind, torch.float32)
    x = words_of(ODD, torch.float32)
    found = [way(kind, x, ODD, layer) for way in (ours, by_torch, padded)]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(found[2], found[1], rtol=0, atol=1e-6)


@both_cells
def test_nan_in_one_sentence_stays_there(kind):
    layer, _, _ = layer_of(kind)
    x = words_of(ODD).detach()
    x[4] = float("nan")  # the second sentence's second word
    finite = ours(kind, x, ODD, layer).isfinite().all(1)
    assert finite.tolist() == [True, False, True, True, True, True, True]


def test_the_filling_gets_no_gradient_and_changes_nothing():
    reader = Reader("GRU", 4, vocabulary=30)
    ids, lengths = torch.randint(1, 30, (int(ODD.sum()),)), ODD
    before = FORMS["padded"](reader, ids, lengths)
    with torch.no_grad():
        reader.embedding.weight[0] = 9.0
    after = FORMS["padded"](reader, ids, lengths)
    assert torch.equal(before, after)
    rectangle = reader.embedding(pad(ids, lengths)).detach().requires_grad_()
    unrolled(rectangle, lengths, reader.weights, gru_cell).sum().backward()
    used = rectangle.grad.abs().sum(2) > 0
    assert torch.equal(used.sum(0), lengths)


def test_only_the_last_place_trains_the_filling():
    ids, lengths = torch.randint(1, 30, (int(ODD.sum()),)), ODD
    for form, trained in ((experiment.padded, False), (experiment.last_place, True)):
        reader = Reader("GRU", 4, vocabulary=30)
        reader.embedding.padding_idx = None  # forget to say which row is filling
        form(reader, ids, lengths).sum().backward()
        assert bool(reader.embedding.weight.grad[0].any()) == trained


@pytest.mark.parametrize("cell", ["GRU", "LSTM"])
def test_all_forms_of_the_reader_are_one(cell):
    torch.manual_seed(0)
    reader = Reader(cell, 7).double()
    ids = torch.randint(1, 8000, (int(ODD.sum()),))
    found = []
    for form in FORMS.values():
        last = form(reader, ids, ODD)
        weights = list(reader.parameters())[:-2]
        found.append([last, *torch.autograd.grad(last.sin().sum(), weights)])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-12)


# ---- making batches ----


@given(lengths=lengths_)
def test_pad_is_pytorchs(lengths):
    ids = torch.arange(1, 1 + int(lengths.sum()))
    assert torch.equal(pad(ids, lengths), pad_sequence(ids.split(lengths.tolist())))
    filled = pad(ids, lengths, filling=-5)
    assert (filled == -5).sum() == lengths.max() * len(lengths) - lengths.sum()


@given(lengths=lengths_)
def test_pack_is_pytorchs(lengths):
    ids = torch.arange(int(lengths.sum()))
    packed = pack(ids, lengths)
    theirs = pack_sequence([ids.split(lengths.tolist())[place] for place in packed.order.tolist()])
    assert torch.equal(packed.ids, theirs.data)
    assert packed.sizes == theirs.batch_sizes.tolist()
    assert torch.equal(packed.in_order(packed.order), torch.arange(len(lengths)))


@some
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 5), st.integers(0, 99))
def test_bucketed_deals_out_each_sentence_once(number, size, pool, seed):
    lengths = torch.randint(1, 20, (number,), generator=torch.Generator().manual_seed(seed))
    batches = bucketed(lengths, size, pool, torch.Generator().manual_seed(seed))
    assert torch.cat(batches).sort().values.tolist() == list(range(number))
    assert sorted(map(len, batches), reverse=True)[: number // size] == [size] * (number // size)
    again = bucketed(lengths, size, pool, torch.Generator().manual_seed(seed))
    assert all(torch.equal(one, other) for one, other in zip(batches, again, strict=True))


def test_bucketed_batches_come_in_another_order_each_epoch():
    lengths, generator = torch.arange(1, 401), torch.Generator().manual_seed(0)
    for pool in (1, 8, 50):
        firsts = [
            [int(lengths[one].max()) for one in bucketed(lengths, 8, pool, generator)]
            for _ in range(2)
        ]
        assert firsts[0] != firsts[1]
        assert all(longest != sorted(longest) for longest in firsts)


def test_the_larger_the_pool_the_less_filling():
    lengths = experiment.numbered_reviews().lengths
    generator = torch.Generator().manual_seed(0)
    shares = [padding_share(lengths, bucketed(lengths, 64, pool, generator)) for pool in (1, 4, 50)]
    assert shares[0] > 0.4
    assert shares[0] > 1.5 * shares[1] > 3 * shares[2]
    assert shares[2] < 0.05
    assert padding_share(lengths, by_length(lengths, 64)) < shares[2]


def test_padding_share_counts_places():
    lengths = torch.tensor([1, 4, 2, 2])
    batches = [torch.tensor([0, 1]), torch.tensor([2, 3])]
    assert padding_share(lengths, batches) == pytest.approx(3 / 12)
    assert padding_share(lengths, by_length(lengths, 2)) == pytest.approx(1 - 9 / 12)


@pytest.mark.parametrize(("size", "pool"), [(1, 1), (8, 1), (16, 4), (8, 32)])
def test_the_expected_padding_is_what_is_dealt(size, pool):
    lengths = experiment.numbered_reviews().lengths[:1024]
    generator = torch.Generator().manual_seed(0)
    found = fmean(
        padding_share(lengths, bucketed(lengths, size, pool, generator)) for _ in range(5)
    )
    assert expected_padding(lengths, size, pool) == pytest.approx(found, abs=0.02)


def test_the_expected_padding_of_two_by_hand():
    lengths = torch.tensor([1, 3])  # the longer of two drawn: 1 in a quarter of the draws, else 3
    assert expected_padding(lengths, 2) == pytest.approx(1 - 2 / 2.5)
    assert expected_padding(torch.tensor([4, 4, 4]), 2, 3) == pytest.approx(0, abs=1e-12)


# ---- what is refused ----


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: pack(torch.arange(3), torch.tensor([2, 0, 1])), "lengths: sentence 1 has 0 words"),
        (lambda: pad(torch.arange(0), torch.tensor([0, 0])), "lengths: sentence 0 has 0 words"),
        (lambda: pad(torch.arange(3), torch.tensor([2, 2])), "lengths: they add up to 4 words"),
        (lambda: pack(torch.arange(3), torch.tensor([1.5, 1.5])), "lengths: torch.float32 [2]"),
        (
            lambda: pack(torch.arange(0), torch.tensor([], dtype=torch.int64)),
            "lengths: torch.int64",
        ),
        (lambda: packed_last(torch.zeros(4, 6), [1, 3], (), gru_cell), "sizes: 1 rise to 3"),
        (lambda: packed_last(torch.zeros(4, 6), [3, 2], (), gru_cell), "sizes: 5 words in 2 steps"),
        (lambda: packed_last(torch.zeros(0, 6), [], (), gru_cell), "sizes: there is no step"),
        (lambda: packed_last(torch.zeros(3, 6), [3, 0], (), gru_cell), "sizes: 3 words in 2 steps"),
        (lambda: unrolled(torch.zeros(2, 1, 6), torch.tensor([0]), (), gru_cell), "lengths: sen"),
        (lambda: unrolled(torch.zeros(2, 1, 6), torch.tensor([3]), (), gru_cell), "lengths: sen"),
        (lambda: expected_padding(torch.tensor([1, 2]), 0), "size 0, pool 1: both"),
        (lambda: bucketed(torch.tensor([1, 2]), 1, 0, torch.Generator()), "size 1, pool 0: both"),
        (lambda: by_length(torch.tensor([1, 2]), 0), "size 0, pool 1: both"),
        (lambda: padding_share(torch.tensor([1, 2]), []), "batches: there is none"),
        (
            lambda: padding_share(torch.tensor([1, 2]), [torch.tensor([], dtype=torch.int64)]),
            "batches: there is none, or an empty one",
        ),
        (lambda: padding_share(torch.tensor([0, 0]), [torch.arange(2)]), "lengths: sentence 0 has"),
        (lambda: pack(torch.arange(3), [1, 2]), "lengths: list should be a tensor"),
        (lambda: pack(torch.arange(2), torch.tensor([True, True])), "lengths: torch.bool [2]"),
        (
            lambda: bucketed(torch.tensor([], dtype=torch.int64), 2, 1, torch.Generator()),
            "lengths: torch.int64 [0]",
        ),
        (lambda: by_length(torch.tensor([], dtype=torch.int64), 2), "lengths: torch.int64 [0]"),
        (
            lambda: unrolled(torch.zeros(2, 3, 6), torch.tensor([1, 2]), (), gru_cell),
            "lengths: 2 of them, and 3 sentences",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(call, line):
    with pytest.raises(ValueError, match=r"^[^\n]+$") as refusal:
        call()
    assert str(refusal.value).startswith(line)


@pytest.mark.parametrize(
    ("knobs", "line"),
    [
        ({"pool": 0}, "pool: should be greater than or equal to 1"),
        ({"form": "unpacked"}, "form: should be 'padded'"),
        ({"cell": "RNN"}, "cell: should be 'GRU'"),
    ],
)
def test_a_wrong_knob_is_named_in_one_line(knobs, line):
    with pytest.raises(KnobError) as error:
        Knobs(**knobs)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


# ---- the experiment ----


def test_a_clock_with_coarse_ticks_says_no_speed_of_no_time(monkeypatch):
    ticks = count()  # it moves at each fiftieth look alone
    monkeypatch.setattr(loop, "perf_counter", lambda: next(ticks) // 50 / 1000)
    steps = list(islice(experiment.run(Knobs(pool=8, hidden=16, batch_size=8, device="cpu")), 20))
    assert 0 in [step.seconds for step in steps]
    for step in steps:
        assert ("words_per_second" in step.metrics) == (step.seconds > 0)


def test_run_trains_and_reports():
    steps = list(islice(experiment.run(Knobs(pool=8, hidden=16, device="cpu")), 21))
    assert {step.samples for step in steps} == {64}
    assert [place for place, one in enumerate(steps) if "test_accuracy" in one.metrics] == [19]
    assert all(one.metrics["words_per_second"] > 0 for one in steps)
    one = steps[3]
    words = one.metrics["words_per_second"] * one.seconds
    assert words == pytest.approx(round(words))
    assert one.metrics["ns_per_word"] == pytest.approx(1e9 * one.seconds / words)


def test_the_accuracy_is_that_after_the_last_update(monkeypatch):
    """Of any number of updates, and tested once."""
    tested = []
    monkeypatch.setattr(experiment, "accuracy", lambda *_: tested.append(1) or len(tested) / 4)
    assert experiment.accuracy_after(Knobs(hidden=2, batch_size=8, device="cpu"), updates=41) == 25
    assert len(tested) == 1


@pytest.mark.slow
def test_it_learns():
    assert experiment.accuracy_after(Knobs(pool=8, cell="GRU"), updates=120) > 57


def test_all_forms_train_alike():
    losses = {}
    for form in FORMS:
        knobs = Knobs(form=form, pool=4, hidden=8, batch_size=16, device="cpu")
        losses[form] = [step.metrics["loss"] for step in islice(experiment.run(knobs), 6)]
    for other in losses.values():
        assert other == pytest.approx(losses["padded"], abs=1e-4)


def test_the_prediction_is_what_run_counts():
    for knobs in (Knobs(hidden=1), Knobs(hidden=1, pool=8)):
        found = [step.metrics["padding"] for step in islice(experiment.run(knobs), 60)]
        rooms = fmean(found)  # a mean of shares, where the prediction is the share of all places
        assert rooms == pytest.approx(experiment.predicted_padding(knobs), abs=0.05)


def test_mistakes_read_another_state():
    torch.manual_seed(0)
    reader, ids = Reader("GRU", 7), torch.randint(1, 8000, (int(ODD.sum()),))
    right = FORMS["padded"](reader, ids, ODD)
    for name, mistake in experiment.MISTAKES.items():
        same = (mistake(reader, ids, ODD) - right).abs().max(1).values < 1e-6
        if name != "order lost":
            assert same.tolist() == [length == 7 for length in ODD.tolist()], name
        else:
            assert sum(same.tolist()) < len(ODD) / 2
            others = mistake(reader, ids, ODD)[pack(ids, ODD).order.argsort()]
            torch.testing.assert_close(others, right, rtol=0, atol=1e-6)


def test_a_mistake_is_seen_in_the_error_of_the_states():
    def errors(**knobs):
        knobs = Knobs(twin=True, hidden=8, batch_size=16, device="cpu", **knobs)
        return [step.metrics["state_error"] for step in islice(experiment.run(knobs), 3)]

    assert all(one < 1e-5 for form in FORMS for one in errors(form=form))
    assert all(one < 1e-5 for one in errors(mistake="never shuffled"))
    for mistake in experiment.MISTAKES:
        assert all(one > 0.05 for one in errors(mistake=mistake)), mistake


def test_never_shuffled_begins_with_the_shortest():
    knobs = Knobs(mistake="never shuffled", batch_size=4)
    lengths = torch.tensor([5, 1, 9, 2, 2, 7, 3, 8])
    batches = experiment.epoch(knobs, lengths, torch.Generator())
    assert torch.cat([lengths[one] for one in batches]).tolist() == sorted(lengths.tolist())


def test_slices_of_a_packed_batch_fill_steps_times_words():
    """What PyTorch's packed backward writes is counted, and grows with the square of the length."""
    for cell, gates in (("GRU", 3), ("LSTM", 4)):
        for longest in (8, 40):
            _, lengths = experiment.sentences_of(longest)
            law = experiment.filled_bytes(cell, 16, lengths)
            assert law == longest * int(lengths.sum()) * gates * 16 * 4
            found = {
                form: experiment.filled_by_slices(experiment.one_pass(form, cell, 16, lengths))
                for form in ("packed", "packed, ours")
            }
            assert law <= found["packed"] < 1.3 * law
            assert found["packed, ours"] < 0.3 * law


def test_programs_of_an_epoch_see_the_same_sentences():
    seen = []

    def fetched(places, device, real=experiment.fetched):
        seen.append(places)
        return real(places, device)

    for pool in (1, 4):
        program = experiment.part_of_an_epoch(Knobs(pool=pool, hidden=2, batch_size=8), batches=4)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(experiment, "fetched", fetched)
            program()
    first, second = (torch.cat(part).sort().values for part in (seen[:4], seen[4:]))
    assert torch.equal(first, second)
    assert len(first) == 32


def test_in_turn_leaves_the_first_round_out():
    calls = []
    taken = experiment.in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert len(calls) == 8
    assert [len(one) for one in taken.values()] == [3, 3]
    assert {tuple(sorted(calls[place : place + 2])) for place in (0, 2, 4, 6)} == {("a", "b")}


# ---- how far back ----


def test_the_gradient_of_a_first_word_fades_and_an_open_gate_keeps_it():
    for name in ("RNN", "GRU", "LSTM"):
        shares = [experiment.first_word_share(name, length) for length in (2, 10, 40)]
        assert shares[0] > 30 * shares[1] > 1e5 * shares[2]
    opened = experiment.first_word_share("LSTM, gate +2", 40)
    assert opened > 1e4 * experiment.first_word_share("LSTM", 40)


def test_the_open_gate_is_the_forget_gate():
    torch.manual_seed(0)
    plain = experiment.layer_of("LSTM", 3, 4)
    torch.manual_seed(0)
    opened = experiment.layer_of("LSTM, gate +2", 3, 4)
    moved = (opened.bias_ih_l0 - plain.bias_ih_l0).tolist()
    assert moved == pytest.approx([0] * 4 + [2] * 4 + [0] * 8)
    x = torch.zeros(1, 1, 3)
    kept = [
        layer(x, (torch.zeros(1, 1, 4), torch.ones(1, 1, 4)))[1][1] for layer in (plain, opened)
    ]
    assert (kept[1] > kept[0]).all()  # more of an old cell is left


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_what_is_recalled_of_short_and_of_long_rows(seed):
    assert experiment.recalled("LSTM", 5, seed, updates=120) > 95
    assert experiment.recalled("LSTM", 40, seed, updates=120) < 70


def test_permutations_of_a_batch_change_no_state():
    layer, _, _ = layer_of("GRU")
    lengths = torch.tensor([2, 1, 3])
    x = words_of(lengths).detach()
    parts = x.split(lengths.tolist())
    right = ours("GRU", x, lengths, layer)
    for order in permutations(range(3)):
        turned = ours("GRU", torch.cat([parts[one] for one in order]), lengths[list(order)], layer)
        torch.testing.assert_close(turned, right[list(order)], rtol=0, atol=1e-12)
