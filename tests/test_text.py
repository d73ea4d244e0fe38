"""Rows alone equal the whole table's update where they should; bags, cleaning and Chinese words."""

import copy
import re
from itertools import count, islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.nn.functional import cross_entropy

from accel_lab import text
from accel_lab._cleaning import Lexicon, lemma, most_likely_words
from accel_lab.experiments import text as experiment
from accel_lab.experiments.text import Knobs
from accel_lab.text import Cleaning, RowAdam, RowSGD
from accel_lab.workbench import loop
from accel_lab.workbench.data import words
from accel_lab.workbench.knobs import KnobError

SMALL_KNOBS = {"vocabulary": 3000, "batch_size": 32, "seed": 1}  # the chapter in little

some = settings(max_examples=40)
lengths = st.lists(st.integers(0, 5), min_size=1, max_size=6)


def bags(sizes, vocabulary=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocabulary, (sum(sizes),), generator=generator)
    return ids, torch.tensor([0, *sizes[:-1]]).cumsum(0)


def table_of(rows=30, width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=generator, dtype=torch.float64)


# ---- lookup and bags ----


def test_a_lookup_is_the_one_hot_product_to_the_last_bit():
    table = table_of(500, 16).float()
    ids, _ = bags([400], 500)
    assert torch.equal(text.lookup(ids, table), text.one_hot_lookup(ids, table))
    ways = [table.clone().requires_grad_() for _ in range(2)]
    weights = torch.randn(400, 16)
    for way, found in zip(ways, (text.lookup, text.one_hot_lookup), strict=True):
        (found(ids, way) * weights).sum().backward()
    torch.testing.assert_close(ways[0].grad, ways[1].grad, rtol=0, atol=1e-5)


@some
@given(lengths, st.integers(0, 99))
def test_bags_equal_pytorchs_and_the_slow_means(sizes, seed):
    ids, begins = bags(sizes, seed=seed)
    ours, theirs = (table_of().requires_grad_() for _ in range(2))
    means = text.embedding_bag(ids, begins, ours)
    expected = functional.embedding_bag(ids, theirs, begins)
    torch.testing.assert_close(means, expected, rtol=0, atol=1e-12)
    for mean, bag in zip(means, ids.split(sizes), strict=True):
        slow = ours[bag].mean(0) if len(bag) else torch.zeros(4).double()
        torch.testing.assert_close(mean, slow, rtol=0, atol=1e-12)
    weights = torch.randn(means.shape, dtype=torch.float64)
    (means * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("ids", "begins", "said"),
    [
        ([0, 30], [0], "ids: 30 is not a row of a table of 30"),
        ([0, -1], [0], "ids: -1 is not a row"),
        ([0.5], [0], "ids: torch.float32 are not word numbers"),
        ([0, 1], [0, 2, 1], "begins: should rise from 0 to at most 2"),
        ([0, 1], [0, 3], "begins: should rise"),
        ([0, 1], [1], "begins: should rise"),
        ([0, 1], [], "begins: there are 2 words and no text"),
    ],
)
def test_what_is_no_bag_is_refused_in_one_line(ids, begins, said):
    with pytest.raises(ValueError, match=said) as error:
        text.embedding_bag(torch.tensor(ids), torch.tensor(begins, dtype=torch.int64), table_of())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("ids", "begins", "said"),
    [
        ([[0, 1]], [0], "ids: [1, 2] should be one row"),
        ([0, 1], [[0, 1]], "begins: torch.int64 [1, 2] should be one row of int64"),
        ([0, 1], [0.0, 1.0], "begins: torch.float32 [2] should be one row of int64"),
    ],
)
def test_bags_of_another_shape_or_kind_are_refused_in_one_line(ids, begins, said):
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        text.embedding_bag(torch.tensor(ids), torch.tensor(begins), table_of())
    assert "\n" not in str(error.value)


def test_a_table_without_rows_holds_no_word():
    with pytest.raises(ValueError, match="ids: the table has no rows"):
        text.lookup(torch.tensor([0]), torch.zeros(0, 4))


@pytest.mark.parametrize(
    ("counts", "words", "said"),
    [([0, 0], 3, "counts: no word occurs"), ([], 3, "counts: no"), ([1, 2], -1, "words: -1")],
)
def test_what_can_not_be_drawn_is_refused(counts, words, said):
    with pytest.raises(ValueError, match=said):
        text.expected_rows(torch.tensor(counts), words)


def test_rows_refuse_what_is_not_in_the_table():
    with pytest.raises(ValueError, match="ids: 30 is not a row of a table of 30"):
        RowAdam(table_of()).take(torch.tensor([2, 30]))


@pytest.mark.parametrize("make", [lambda table: RowSGD(table, 0.1), RowAdam])
def test_a_step_without_a_gradient_is_refused_and_changes_nothing(make):
    table = table_of()
    before, rows = table.clone(), make(table)
    for taken in (False, True):
        if taken:
            rows.take(torch.tensor([1, 2]))
        with pytest.raises(ValueError, match=r"^step: the rows have no gradient; call take.*$"):
            rows.step()
    assert torch.equal(table, before)


def test_no_words_at_all_are_zeros():
    none = torch.tensor([], dtype=torch.int64)
    assert torch.equal(
        text.embedding_bag(none, torch.tensor([0, 0]), table_of()), torch.zeros(2, 4).double()
    )
    part, places = RowAdam(table_of()).take(none)
    assert part.shape == (0, 4) and places.shape == (0,)  # noqa: PT018


# ---- updates ----

LAYER = nn.Linear(4, 3, dtype=torch.float64)
LAYER.requires_grad_(False).weight.copy_(torch.randn(3, 4, generator=torch.Generator()))
LAYER.requires_grad_(True)


def batches(count=20, vocabulary=30, empty=True):
    for seed in range(count):
        sizes = [3, 0 if empty else 2, 7, 1]
        generator = torch.Generator().manual_seed(seed)
        yield bags(sizes, vocabulary, seed), torch.randint(3, (4,), generator=generator)


def by_rows(make, dtype=torch.float64, count=20):
    table, layer = table_of().to(dtype), copy.deepcopy(LAYER).to(dtype)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    rows = make(table)
    losses = [text.row_update(rows, layer, optimizer, *batch) for batch in batches(count)]
    return table, layer.weight.detach(), torch.stack(losses)


def by_torch(make, sparse, dtype=torch.float64, count=20):
    """Table and layer of their own optimizers: PyTorch's sparse ones take no dense gradients."""
    table, layer = nn.Parameter(table_of().to(dtype)), copy.deepcopy(LAYER).to(dtype)
    optimizers = [make([table]), torch.optim.SGD(layer.parameters(), lr=0.1)]
    losses = []
    for (ids, begins), y in batches(count):
        for optimizer in optimizers:
            optimizer.zero_grad()
        means = functional.embedding_bag(ids, table, begins, sparse=sparse)
        loss = cross_entropy(layer(means), y)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.detach())
    return table.detach(), layer.weight.detach(), torch.stack(losses)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sgd_by_rows_is_dense_sgd_to_the_last_bit(dtype):
    ours = by_rows(lambda table: RowSGD(table, 0.5), dtype)
    theirs = by_torch(lambda table: torch.optim.SGD(table, lr=0.5), sparse=False, dtype=dtype)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_adam_by_rows_is_sparse_adam_and_not_dense_adam():
    ours = by_rows(lambda table: RowAdam(table, 0.1, (0.8, 0.95), 1e-6))
    options = {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-6}
    sparse = by_torch(lambda table: torch.optim.SparseAdam(table, **options), sparse=True)
    torch.testing.assert_close(ours, sparse, rtol=0, atol=1e-12)
    dense = by_torch(lambda table: torch.optim.Adam(table, **options), sparse=False)
    assert (ours[0] - dense[0]).abs().max() > 1e-2


def test_while_all_rows_are_in_every_batch_adam_by_rows_is_dense_adam():
    table, ids = table_of(5), torch.arange(5)
    dense = nn.Parameter(table.clone())
    rows, adam = RowAdam(table, 0.1), torch.optim.Adam([dense], lr=0.1)
    for _ in range(5):
        part, places = rows.take(ids)
        part[places].square().sum().backward()
        rows.step()
        adam.zero_grad()
        dense.square().sum().backward()
        adam.step()
    torch.testing.assert_close(table, dense.detach(), rtol=0, atol=1e-5)  # eps counts otherwise


def test_the_plain_update_is_one_optimizer_on_table_and_layer():
    table, layer = nn.Parameter(table_of()), copy.deepcopy(LAYER)
    both = torch.optim.SGD([table, *layer.parameters()], lr=0.1)
    losses = [text.dense_update(table, layer, both, *batch) for batch in batches()]
    ours = by_rows(lambda rows: RowSGD(rows, 0.1))
    assert torch.equal(table.detach(), ours[0])
    assert torch.equal(torch.stack(losses), ours[2])


def test_absent_words_stay_where_they_are():
    table = table_of()
    before, rows = table.clone(), RowAdam(table, 0.1)
    for ids in ([3, 3, 5], [5, 9]):
        part, places = rows.take(torch.tensor(ids))
        part[places].sum().backward()
        rows.step()
    moved = (table != before).any(1).nonzero().flatten().tolist()
    assert moved == [3, 5, 9]


@given(st.lists(st.integers(0, 9), min_size=2, max_size=30).filter(sum), st.integers(1, 50))
def test_expected_rows_are_the_mean_of_what_is_drawn(counts, drawn):
    expected = text.expected_rows(torch.tensor(counts), drawn)
    kinds = sum(count > 0 for count in counts)
    assert min(1, kinds) - 1e-9 <= expected <= min(kinds, drawn) + 1e-9


def test_expected_rows_of_many_draws():
    counts = torch.tensor([50, 30, 10, 5, 5])
    generator = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(counts.double(), 40_000, True, generator=generator).view(-1, 8)
    mean = sum(len(row.unique()) for row in drawn) / len(drawn)
    assert text.expected_rows(counts, 8) == pytest.approx(mean, abs=0.05)


# ---- cleaning ----

STOP = words.english_stop_words()
TEXT = "The <br />Film wasn't good, NOT at all: the worst of 2 movies!"


@pytest.mark.parametrize(
    ("cleaning", "found"),
    [
        (Cleaning(words=False), TEXT),
        (Cleaning(), "The Film wasn't good , NOT at all : the worst of 2 movies !"),
        (Cleaning(lower=True), "the film wasn't good , not at all : the worst of 2 movies !"),
        (Cleaning(punctuation=True), "The Film wasn't good NOT at all the worst of 2 movies"),
        (Cleaning(stop=STOP), "Film wasn't good , : worst 2 movies !"),
        (Cleaning(stop=text.keeping_negations(STOP)), "Film wasn't good , NOT : worst 2 movies !"),
        (Cleaning(lemmas=True), "the Film be good , not at all : the bad of 2 movie !"),
        (Cleaning(True, True, True, STOP, True), "film be good bad 2 movie"),
    ],
)
def test_each_step_does_what_it_says(cleaning, found):
    assert " ".join(cleaning(TEXT)) == found


ALL = Cleaning(True, True, True, STOP, True, True)
anything = st.text() | st.sampled_from(["", "...", "\0", "a\0b", "\ud800x", "x" * 1_000_000, "🙂"])


@some
@given(anything)
def test_any_text_can_be_cleaned(found):
    tokens = ALL(found)
    assert all(token and not token.isspace() for token in tokens)
    assert len(tokens) <= len(found)


@pytest.mark.parametrize("thing", [None, b"good", 3, ["good"]])
def test_what_is_not_a_text_is_refused_in_one_line(thing):
    with pytest.raises(TypeError, match=r"^text: \w+ is not a string.*$"):
        ALL(thing)


def test_nothing_but_punctuation_is_an_empty_bag():
    assert ALL("?! … 。，") == []


def test_a_word_too_long_for_a_word_has_no_lemma():
    assert lemma("z" * 1000) == "z" * 1000


def test_negations_are_kept():
    kept = text.keeping_negations(STOP)
    assert STOP - kept >= {"not", "no", "never", "nothing", "cannot"}
    assert {"the", "of"} <= kept < STOP
    assert "不" not in text.keeping_negations(text.CHINESE_STOP_WORDS)


# ---- Chinese ----


def test_the_most_likely_words_are_those_of_all_cuts():
    known = Lexicon.of({"ab": 5, "abc": 1, "c": 3, "cd": 4, "d": 2, "bcd": 1})

    def cuts(run):
        if not run:
            yield [], 1.0
        for end in range(1, len(run) + 1):
            count = known.counts.get(run[:end], 1 if end == 1 else 0)
            for rest, share in cuts(run[end:]) if count else ():
                yield [run[:end], *rest], share * count / 16

    for run in ("abcd", "abcdcd", "xabc", "dcba", "bcdab"):
        assert most_likely_words(run, known) == max(cuts(run), key=lambda cut: cut[1])[0]


@pytest.mark.slow
def test_chinese_words_are_jiebas():
    import jieba

    sentences = ["这部电影不错，但是他的权利不大。", "我来到北京清华大学", "研究生命的起源"]
    sentences += ["小明硕士毕业于中国科学院计算所", "他说的确实在理", "结婚的和尚未结婚的"]
    known = list(words.chinese_words())
    generator = torch.Generator().manual_seed(0)
    for places in torch.randint(len(known), (200, 6), generator=generator).tolist():
        sentences.append("".join(known[place] for place in places))
    for sentence in sentences:
        ours = text.cut_chinese(text.split(sentence))
        theirs = jieba.lcut(sentence, HMM=False)
        if all(map(words.is_han, sentence.strip("，。"))):
            assert ours == theirs


@pytest.mark.slow
def test_cleaning_of_chinese():
    cut = Cleaning(chinese=True)
    assert cut("这部电影不错！") == ["这部", "电影", "不错", "！"]
    assert Cleaning()("这部电影不错！") == ["这部电影不错", "！"]
    assert Cleaning(chinese=True, punctuation=True)("不错！。") == ["不错"]
    by_stop = Cleaning(chinese=True, punctuation=True, stop=text.CHINESE_STOP_WORDS)
    assert by_stop("这部电影不好看。") == by_stop("这部电影好看。")
    assert Cleaning(chinese=True)("iPhone很好") == ["iPhone", "很", "好"]


# ---- the data ----


@pytest.mark.slow
def test_the_stop_list_is_scikit_learns():
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    assert words.english_stop_words() == ENGLISH_STOP_WORDS


def test_long_reviews_are_raw_and_of_both_kinds():
    found = words.long_reviews(100)
    assert len(found) == 100
    assert 30 < sum(label for _, label in found) < 70
    assert any("<br" in review for review, _ in found)
    assert any(review != review.lower() for review, _ in found)
    assert words.long_reviews(50) == found[:50]
    short = [sentence for part in words.reviews() for sentence, _ in part]
    assert not {review for review, _ in found} & set(short)


# ---- the experiment ----


def metrics(updates=21, **knobs):
    knobs = Knobs(**{"vocabulary": 2000, "batch_size": 16, "device": "cpu", **knobs})
    return [step.metrics for step in islice(experiment.run(knobs), updates)]


def test_a_clock_with_coarse_ticks_says_no_speed_of_no_time(monkeypatch):
    ticks = count()  # it moves at each fiftieth look alone
    monkeypatch.setattr(loop, "perf_counter", lambda: next(ticks) // 50 / 1000)
    steps = list(islice(experiment.run(Knobs(vocabulary=1000, batch_size=1)), 20))
    assert 0 in [step.seconds for step in steps]
    for step in steps:
        assert ("words_per_second" in step.metrics) == (step.seconds > 0)


def test_run_trains_and_reports():
    steps = list(islice(experiment.run(Knobs(vocabulary=4000, batch_size=64)), 101))
    assert {step.samples for step in steps} == {64}
    assert [i for i, step in enumerate(steps) if "test_accuracy" in step.metrics][:3] == [0, 20, 40]
    assert steps[100].metrics["test_accuracy"] > 0.58 > steps[0].metrics["test_accuracy"]
    assert all(step.metrics["words_per_second"] > 0 for step in steps)


def test_the_prediction_is_what_run_counts():
    for knobs in (Knobs(vocabulary=2000), Knobs(vocabulary=50_000, batch_size=8)):
        counted = [step.metrics["touched"] for step in islice(experiment.run(knobs), 30)]
        predicted = experiment.predicted_touched(knobs)
        assert sum(counted) / len(counted) == pytest.approx(predicted, rel=0.05)


def test_ways_that_are_one_rule_train_alike():
    def losses(**knobs):
        return [one["loss"] for one in metrics(**knobs)]

    assert losses() == losses()
    assert losses(update="SparseAdam") == pytest.approx(losses(), abs=1e-5)
    assert losses(update="fused Adam") == pytest.approx(losses(update="dense Adam"), abs=1e-4)
    assert losses(update="dense Adam") != pytest.approx(losses(), abs=1e-4)
    assert losses(seed=1) != losses()


def test_no_table_leaves_the_table_alone():
    torch.manual_seed(0)
    table = torch.randn(2000, experiment.WIDTH)
    training = experiment.Training(
        Knobs(update="no table"), table, layer := nn.Linear(experiment.WIDTH, 2)
    )
    before, weight = table.clone(), layer.weight.detach().clone()
    training.update(bags([3, 4], 2000), torch.tensor([0, 1]))
    assert torch.equal(table, before)
    assert not torch.equal(layer.weight, weight)


def test_a_mistake_is_seen_in_the_error_of_the_update():
    assert all(one["update_error"] < 1e-6 for one in metrics(twin=True))
    for mistake in ("duplicates lost", "padded length"):
        assert all(one["update_error"] > 0.05 for one in metrics(twin=True, mistake=mistake))


def test_padding_fills_up_to_the_longest():
    ids, begins = experiment.padded((torch.tensor([5, 6, 7, 8]), torch.tensor([0, 0, 3])))
    assert ids.view(3, 3).tolist() == [[0, 0, 0], [5, 6, 7], [8, 0, 0]]
    assert begins.tolist() == [0, 3, 6]


@given(lengths, st.data())
def test_the_bags_of_any_texts(sizes, data):
    ids, begins = bags(sizes)
    texts = experiment.Texts(ids, torch.cat([begins, torch.tensor([len(ids)])]))
    places = data.draw(st.lists(st.integers(0, len(sizes) - 1), min_size=1, max_size=5))
    found, starts = texts.bags(torch.tensor(places))
    parts = ids.split(sizes)
    assert torch.equal(found, torch.cat([parts[place] for place in places]))
    counts = torch.tensor([sizes[place] for place in places])
    assert torch.equal(text.lengths_of(starts, len(found)), counts)
    known = torch.arange(30) % 3 > 0
    kept = texts.only(known)
    expected = [part[known[part]] for part in parts]
    assert kept.begins.diff().tolist() == [len(part) for part in expected]
    assert torch.equal(torch.arange(30)[known][kept.ids], torch.cat(expected))


def test_texts_are_told_by_what_is_in_them():
    """A reader learns what is there to be learned, and not what a cleaning has taken away."""
    texts = ["a good film", "a not good film"] * 600
    labels = torch.tensor([1, 0] * 600)
    found = {
        name: experiment.cleaned(texts, labels, experiment.CLEANINGS[name], seeds=1, training=900)
        for name in ("none", "stop words")
    }
    assert found["none"].accuracies == [100.0]
    assert 20 < found["stop words"].accuracies[0] < 80
    assert (found["none"].tokens, found["none"].vocabulary) == (600 * 7, 4)
    assert (found["stop words"].tokens, found["stop words"].vocabulary) == (600 * 4, 2)
    assert experiment.judged(3 * found["stop words"].gains(found["none"])) == "worse"


def test_gains_of_both_signs_tell_nothing():
    assert experiment.judged([0.1, 2.0, 2.0]) == "better"
    assert experiment.judged([-0.1, 2.0, 2.0]) == "not told apart"
    assert experiment.judged([-0.4, -0.9, -0.9]) == "not told apart"
    assert experiment.judged([-0.4, -2.9, -2.9]) == "worse"


@pytest.mark.parametrize("gains", [[], [-5.0], [5.0, 5.0]])
def test_fewer_than_three_gains_tell_nothing(gains):
    assert experiment.judged(gains) == "not told apart"


def test_in_the_first_update_dense_adam_moves_the_rows_of_the_batch_and_later_others():
    dense, rows = (
        [moved > 0 for moved in experiment.rows_moved(way, 3, 3000)]
        for way in ("dense Adam", "rows")
    )
    assert torch.equal(dense[0], rows[0])
    assert (dense[2] & rows[2]).sum() == rows[2].sum() < dense[2].sum()


def test_pairs_are_told_apart_by_their_negation():
    for pairs, stop, chinese in (
        (experiment.ENGLISH_PAIRS, STOP, False),
        (experiment.CHINESE_PAIRS, text.CHINESE_STOP_WORDS, True),
    ):
        for stop_words, kept in ((stop, False), (text.keeping_negations(stop), True)):
            cleaning = Cleaning(punctuation=True, stop=stop_words, chinese=chinese)
            assert (experiment.told_apart(pairs, cleaning) == len(pairs)) is kept


@pytest.mark.parametrize(
    ("knobs", "line"),
    [
        ({"vocabulary": 10}, "vocabulary: should be greater than or equal to 1000"),
        ({"update": "row"}, "update: should be 'dense Adam'"),
        ({"update": "dense Adam", "mistake": "padded length"}, "update: mistakes are made"),
        ({"update": "SparseAdam", "twin": True}, "update: mistakes are made"),
        ({"cleaning": "soap"}, "cleaning: should be 'spaces only'"),
    ],
)
def test_a_wrong_knob_is_named_in_one_line(knobs, line):
    with pytest.raises(KnobError) as error:
        Knobs(**knobs)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def test_every_cleaning_can_be_chosen():
    assert set(Knobs.model_fields["cleaning"].annotation.__args__) == set(experiment.CLEANINGS)
