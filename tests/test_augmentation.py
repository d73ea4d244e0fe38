"""Augmentation equals the slow, obvious way, repeats from a seed, and refuses unsafe transforms."""

import math
from itertools import count, islice

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from accel_lab import augmentation as a
from accel_lab._wording import negates, split_words
from accel_lab.augmentation import KINDS, Policy
from accel_lab.experiments import augmentation as experiment
from accel_lab.workbench import loop
from accel_lab.workbench.data import datasets, words
from accel_lab.workbench.knobs import KnobError

SMALL_KNOBS = {"pictures": 5, "batch_size": 16, "seed": 1}  # the chapter in little, for papermill

some = settings(max_examples=40)
policies = st.builds(
    Policy,
    flip=st.sampled_from([0.0, 0.5, 1.0]),
    rotate=st.sampled_from([0.0, 20.0, 180.0]),
    zoom=st.sampled_from([0.0, 0.3]),
    shift=st.sampled_from([0.0, 0.2]),
    crop=st.integers(0, 3),
    noise=st.sampled_from([0.0, 0.1]),
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(*shape, seed=0):
    return torch.rand(shape, generator=seeded(seed), dtype=torch.float64)


def augmented(x, policy, seed=0):
    return a.augment(x, policy, seeded(seed), kind="from above")


def slow_warp(picture, flip, angle, zoom, right, down):
    """Warp one picture [h, w], pixel by pixel.

    For each output pixel, undo shift, zoom, turn and mirror, and mix the four pixels around.
    """
    height, width = picture.shape
    out = torch.zeros_like(picture)
    for row in range(height):
        for column in range(width):
            x, y = column - (width - 1) / 2 - right, row - (height - 1) / 2 - down
            x, y = x / zoom, y / zoom
            # y points down, so turning the picture against the clock takes each place back by a
            # turn with this sign.
            x, y = (
                x * math.cos(angle) - y * math.sin(angle),
                x * math.sin(angle) + y * math.cos(angle),
            )
            x, y = (-x if flip else x) + (width - 1) / 2, y + (height - 1) / 2
            left, top = math.floor(x), math.floor(y)
            for i, j, weight in (
                (top, left, (1 - (y - top)) * (1 - (x - left))),
                (top, left + 1, (1 - (y - top)) * (x - left)),
                (top + 1, left, (y - top) * (1 - (x - left))),
                (top + 1, left + 1, (y - top) * (x - left)),
            ):
                if 0 <= i < height and 0 <= j < width:
                    out[row, column] += weight * picture[i, j]
    return out


# ---- pictures ----


@pytest.mark.parametrize(
    "policy", [Policy(rotate=40), Policy(zoom=0.4), Policy(shift=0.3), Policy(0.5, 180, 0.5, 0.2)]
)
@pytest.mark.parametrize("shape", [(5, 2, 7, 6), (3, 1, 1, 5), (4, 1, 8, 8)])
def test_warping_is_the_slow_way(policy, shape):
    x = pictures(*shape)
    draws = a.random_numbers(len(x), seeded())
    ours = augmented(x, policy)
    for picture, done, (flip, angle, zoom, right, down, *_) in zip(
        x, ours, draws.double().tolist(), strict=True
    ):
        amounts = (
            flip < policy.flip,
            math.radians((2 * angle - 1) * policy.rotate),
            1 + (2 * zoom - 1) * policy.zoom,
            (2 * right - 1) * policy.shift * shape[3],
            (2 * down - 1) * policy.shift * shape[2],
        )
        for channel, done_channel in zip(picture, done, strict=True):
            # the random numbers are float32
            assert torch.allclose(done_channel, slow_warp(channel, *amounts), atol=1e-4)


@some
@given(
    policies,
    st.integers(0, 5),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 7),
    st.integers(0, 1000),
)
def test_the_batch_at_once_is_one_by_one(policy, n, channels, height, width, seed):
    x = pictures(n, channels, height, width, seed=seed)
    before = x.clone()
    one_by_one = a.naive_augment(x, policy, seeded(seed), kind="from above")
    at_once = augmented(x, policy, seed)
    assert at_once.shape == x.shape
    assert torch.allclose(at_once, one_by_one, atol=1e-12)
    assert torch.equal(x, before)
    assert torch.equal(at_once, augmented(x, policy, seed))


def test_another_seed_is_another_batch():
    x = pictures(8, 1, 9, 9)
    assert not torch.equal(augmented(x, Policy(rotate=20)), augmented(x, Policy(rotate=20), seed=1))


def test_a_picture_keeps_its_random_numbers_when_another_amount_is_turned():
    x = pictures(6, 1, 9, 9)
    turned = augmented(augmented(x, Policy(flip=0.5)), Policy(rotate=30))  # the same draws, twice
    assert torch.allclose(turned, augmented(x, Policy(flip=0.5, rotate=30)), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_flips_and_crops_copy_pixels(dtype):
    x = (pictures(40, 2, 6, 5) * 255).to(dtype)
    flipped = augmented(x, Policy(flip=0.5))
    mirrored = [torch.equal(new, old.flip(-1)) for new, old in zip(flipped, x, strict=True)]
    assert all(
        is_so or torch.equal(new, old) for is_so, new, old in zip(mirrored, flipped, x, strict=True)
    )
    assert 5 < sum(mirrored) < 35
    big = torch.nn.functional.pad(x, (2, 2, 2, 2))
    for new, old in zip(augmented(x, Policy(crop=2)), big, strict=True):
        assert any(
            torch.equal(new, old[:, i : i + 6, j : j + 5]) for i in range(5) for j in range(5)
        )


EVERYTHING = Policy(flip=0.5, rotate=30, zoom=0.3, shift=0.2, crop=2, noise=0.1)


@pytest.mark.parametrize(
    "policy", [Policy(rotate=20, shift=0.1), Policy(noise=0.1), Policy(0.5, crop=2), EVERYTHING]
)
@pytest.mark.parametrize("way", [a.augment, a.naive_augment])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("side", [28, 500])
def test_half_precision_is_float32_rounded_once(dtype, policy, way, side):
    x = pictures(3, 2, side, side - 3).to(dtype)
    half, single = (way(one, policy, seeded(), kind="from above") for one in (x, x.float()))
    assert half.dtype == dtype
    assert torch.equal(half, single.to(dtype))


def as_it_is(x):
    return x


@pytest.mark.parametrize(
    "laid_out",
    [
        as_it_is,
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.repeat_interleave(2, 3)[..., ::2],
        lambda x: x.clone().requires_grad_(),
        torch.nn.Parameter,
    ],
    ids=["contiguous", "channels last", "strided", "with a gradient", "a parameter"],
)
@pytest.mark.parametrize("cast", [False, True], ids=["", "autocast"])
def test_it_is_torchs_affine_grid_however_the_pictures_lie(laid_out, cast):
    policy = Policy(flip=0.5, rotate=30, zoom=0.3, shift=0.2)
    x, draws = pictures(4, 3, 9, 9).float(), a.random_numbers(4, seeded())
    theta = a.affine_maps(policy, draws[:, 0] < policy.flip, draws, 9, 9)
    theta[:, :, 2] /= 9 / 2  # torch counts from −1 to 1
    grid = torch.nn.functional.affine_grid(theta, list(x.shape), align_corners=False)
    expected = torch.nn.functional.grid_sample(x, grid, align_corners=False)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cast):
        assert torch.allclose(augmented(laid_out(x), policy), expected, atol=1e-5)


def test_every_window_of_a_crop_comes_up():
    x = torch.arange(1.0, 10).view(1, 1, 3, 3).repeat(400, 1, 1, 1)
    found = {tuple(picture.flatten().tolist()) for picture in augmented(x, Policy(crop=1))}
    assert len(found) == 9


def test_the_amounts_are_spread_evenly_over_their_range():
    policy = Policy(flip=0.3, rotate=90, zoom=0.5, shift=0.25)
    draws = a.random_numbers(20_000, seeded())
    flip = draws[:, 0] < policy.flip
    maps = a.affine_maps(policy, flip, draws, 10, 20)
    angle = torch.atan2(maps[:, 1, 0], maps[:, 1, 1])
    zoom = 1 / torch.linalg.vector_norm(maps[:, 1, :2], dim=1)
    assert flip.double().mean().item() == pytest.approx(0.3, abs=0.02)
    for amount, low, high in ((torch.rad2deg(angle), -90, 90), (zoom, 0.5, 1.5)):
        assert amount.min() >= low - 1e-4
        assert amount.max() <= high + 1e-4
        quartiles = torch.quantile(amount, torch.tensor([0.25, 0.5, 0.75]))
        expected = torch.tensor([low + (high - low) * share for share in (0.25, 0.5, 0.75)])
        assert torch.allclose(quartiles, expected, atol=0.02 * (high - low))


def test_noise_has_the_asked_for_deviation():
    noise = augmented(torch.zeros(50, 1, 20, 20), Policy(noise=0.3))
    assert noise.std().item() == pytest.approx(0.3, rel=0.05)


def test_nothing_asked_for_is_nothing_done():
    x = pictures(3, 1, 4, 4)
    assert augmented(x, Policy()) is x


@pytest.mark.parametrize(
    ("x", "policy", "message"),
    [
        (pictures(4, 28, 28), Policy(crop=1), "a tensor"),
        ([pictures(1, 4, 4), pictures(1, 5, 5)], Policy(crop=1), "of one size"),
        ((pictures(2, 1, 4, 4) * 255).byte(), Policy(rotate=5), "floats"),
        ((pictures(2, 1, 4, 4) * 255).byte(), Policy(noise=0.1), "floats"),
    ],
)
@pytest.mark.parametrize("way", [a.augment, a.naive_augment])
def test_what_is_no_batch_of_pictures_is_said_in_one_line(x, policy, message, way):
    with pytest.raises(ValueError, match=message) as error:
        way(x, policy, seeded(), kind="digits")
    assert "\n" not in str(error.value)


def test_a_doubtful_layout_is_taken_as_given_with_a_warning():
    for shape in ((4, 28, 28, 3), (5, 16, 100, 1), (5, 32, 32, 2)):
        x = pictures(*shape)
        with pytest.warns(UserWarning, match=r"^layout: .* give x\.movedim\(-1, 1\)$") as seen:
            done = augmented(x, Policy(rotate=20))
        assert done.shape == x.shape
        assert [one.filename for one in seen] == [__file__]  # it points at who called augment


@pytest.mark.parametrize(
    "amount",
    [{"flip": 1.1}, {"rotate": 181}, {"zoom": 1.0}, {"shift": -0.1}, {"noise": float("nan")}],
)
def test_an_amount_out_of_range(amount):
    with pytest.raises(ValueError, match=next(iter(amount))):
        Policy(**amount)


@pytest.mark.parametrize("way", [a.augment, a.naive_augment])
def test_what_a_label_does_not_survive_is_refused(way):
    x = pictures(2, 1, 8, 8)
    with pytest.raises(ValueError, match="flip: not for digits, since a mirrored 2"):
        way(x, Policy(flip=0.5), seeded(), kind="digits")
    with pytest.raises(ValueError, match="rotate: at most 45 degrees for photographs"):
        way(x, Policy(rotate=90), seeded(), kind="photographs")
    with pytest.raises(ValueError, match="did you mean 'digits'"):
        way(x, Policy(), seeded(), kind="digit")
    assert (
        way(x, Policy(flip=0.5, rotate=180), seeded(), kind="digits", unsafe=True).shape == x.shape
    )
    assert way(x, Policy(flip=0.5, rotate=180), seeded(), kind="from above").shape == x.shape


def test_every_kind_says_what_it_endures():
    assert all(kind.why or (kind.mirrored and kind.degrees == 180) for kind in KINDS.values())


# ---- text ----

SENTENCES = [
    "",
    "The movie is not good, and their story is terrible!",
    "公式没有错，权利也不是小事。",
    "¿Dónde está la biblioteca?",
    "🙂🙃 1234 \x00\n\t",
    "FILM",
]
anything = st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from([*SENTENCES, "buy", "to"]), max_size=5).map(" ".join),
)
languages = st.sampled_from(["english", "chinese"])


@some
@given(anything, languages)
@example("公式abc公 式", "chinese")
def test_the_pieces_are_the_text(sentence, language):
    pieces = split_words(sentence, language)
    assert "".join(pieces) == sentence
    assert len(pieces) % 2 == 1
    assert all(pieces[1::2])


@some
@given(anything, st.integers(0, 1000), st.floats(0, 1), languages)
def test_the_same_seed_gives_the_same_text(sentence, seed, share, language):
    for operation in (a.homophones, a.delete, a.swap):
        assert operation(sentence, seed, share, language) == operation(
            sentence, seed, share, language
        )
    assert a.synonyms(sentence, seed, share) == a.synonyms(sentence, seed, share)


@some
@given(anything, st.integers(0, 1000), languages)
def test_a_share_of_nothing_changes_nothing(sentence, seed, language):
    for operation in (a.homophones, a.delete, a.swap):
        assert operation(sentence, seed, 0.0, language) == sentence


def test_a_synonym_is_one():
    table = words.synonyms()
    for seed in range(20):
        done = split_words(a.synonyms("The movie has a terrible story", seed, share=0.5))[1::2]
        for old, new in zip(["The", "movie", "has", "a", "terrible", "story"], done, strict=True):
            assert new == old or new in table[old.lower()]
    assert table["movie"][0] == "film"


def test_case_is_kept():
    table = {name.lower() for name in words.synonyms()["movie"]}
    assert a.synonyms("MOVIE", 0).lower() in table
    assert a.synonyms("MOVIE", 0).isupper()
    assert a.synonyms("Movie", 0).istitle()


def test_how_many_words_change():
    sentence = " ".join(["their"] * 40)
    changed = [word != "their" for word in a.homophones(sentence, 3, share=0.25).split()]
    assert sum(changed) == 10
    assert a.homophones("their house", 0, share=0.01) != "their house"  # one at least


def test_chinese_homophones_sound_the_same():
    from pypinyin import lazy_pinyin

    done = {a.homophones("公式", seed, share=1.0, language="chinese") for seed in range(30)}
    assert "攻势" in done
    assert all(lazy_pinyin(word) == lazy_pinyin("公式") for word in done)
    assert all(words.is_han(word) and len(word) == 2 for word in done)


def test_english_homophones_are_symmetric():
    table = words.english_homophones()
    assert all(word in table[other] for word, others in table.items() for other in others)
    groups = {frozenset((word, *others)) for word, others in table.items()}
    assert len(groups) >= 60


VERBS = ["ai", "are", "ca", "could", "did", "do", "does", "had", "has", "have", "is"]
VERBS += ["might", "must", "need", "sha", "should", "was", "were", "wo", "would"]
CONTRACTIONS = [
    verb + ending
    for verb in VERBS
    for ending in ("n't", "n’t", "nʼt", "n`t", "n´t", "nt", "N’T", "n’t’ve")
]
NEGATIVE = ["not", "No", "NEVER", "nobody", "nowhere", "without", "cannot", "hardly", "n't"]
HARMLESS = [
    "know",
    "knot",
    "note",
    "want",
    "ant",
    "paint",
    "pants",
    "o'clock",
    "it’s",
    "另外",
    "公式",
]


def negations(text, language="english"):
    return [word for word in split_words(text, language)[1::2] if negates(word)]


def test_every_contraction_is_known_to_negate_with_every_apostrophe():
    for word in (*CONTRACTIONS, *NEGATIVE):
        assert split_words(word) == ["", word, ""]
        assert negates(word), word
    assert not any(map(negates, HARMLESS))


@pytest.mark.parametrize("operation", a.TEXT_OPERATIONS.values())
@pytest.mark.parametrize(
    "sentence",
    [
        "not not not bad bad",
        "I don’t like this film and it isn’t good, I mustn't see their story; nobody does",
        "I know the knot, and there was zero need: hardly scarcely DIDN’T",
    ],
)
def test_what_turns_a_sentence_round_is_kept_and_nothing_else_does(operation, sentence):
    for seed in range(100):
        for share in (0.3, 0.9):
            assert negations(operation(sentence, seed, share)) == negations(sentence)


@pytest.mark.parametrize("operation", a.TEXT_OPERATIONS.values())
def test_what_is_unsafe_is_done_when_it_is_asked_for(operation):
    sentence = "not not not bad bad"
    assert any(
        "not not not" not in operation(sentence, seed, 0.9, unsafe=True) for seed in range(30)
    )


def test_a_negation_and_what_it_denies_are_not_moved():
    sentence = "a film that is not bad but very good and long"
    for seed in range(50):
        done = a.swap(sentence, seed, 0.9)
        assert done.split()[4:6] == ["not", "bad"]
        assert sorted(done.split()) == sorted(sentence.split())
    assert any(a.swap(sentence, seed, 0.9, unsafe=True).split()[4] != "not" for seed in range(50))
    assert a.swap("not bad but", 0, 0.9) == "not bad but"  # one word alone cannot move


CHINESE_SENTENCES = [
    "公式没有错",
    "我不满意，不如以前",
    "他从不无故迟到，尚未来过",
    "别去！是非无关",
]


@pytest.mark.parametrize("operation", [a.homophones, a.delete, a.swap])
@pytest.mark.parametrize("sentence", CHINESE_SENTENCES)
def test_chinese_negations_are_kept(operation, sentence):
    before = negations(sentence, "chinese")
    assert before
    for seed in range(50):
        after = operation(sentence, seed, 0.9, "chinese")
        assert [one for one in after if one in "不没无非未别"] == [
            one for one in sentence if one in "不没无非未别"
        ]
        assert all(word in after for word in before)


def test_no_chinese_homophone_takes_or_brings_a_negation():
    for word in words.chinese_homophones():
        done = {a.homophones(word, seed, 1.0, "chinese") for seed in range(3)}
        if negates(word):
            assert done == {word}
        assert negates(word) or not any(map(negates, done))


@some
@given(
    st.lists(st.sampled_from(["film", "story", "plot", "a"]), min_size=1, max_size=12).map(
        " ".join
    ),
    st.integers(0, 1000),
)
def test_deletion_leaves_a_word_and_swapping_leaves_all(sentence, seed):
    kept = a.delete(sentence, seed, 1.0).split()
    assert len(kept) == 1
    assert kept[0] in sentence.split()
    assert sorted(a.swap(sentence, seed, 0.5).split()) == sorted(sentence.split())


@pytest.mark.parametrize(
    "sentence", ["", "¿Dónde está biblioteca?", "🙂🙃 1234 \x00\n\t", "Всё хорошо", "ﷺ"]
)
def test_a_text_without_a_known_word_comes_back(sentence):
    assert a.synonyms(sentence, 0, 1.0) == sentence
    for language in ("english", "chinese"):
        assert a.homophones(sentence, 0, 1.0, language) == sentence


@pytest.mark.slow
def test_a_megabyte_of_text():
    long = "their story is not great, 公式 🙂\x00 " * 35_000
    assert len(long) >= 1_000_000
    for operation in (a.synonyms, a.homophones, a.delete, a.swap):
        assert operation(long, 0, 0.01) != long


@pytest.mark.parametrize("wrong", [b"bytes", None, 3])
def test_what_is_no_text(wrong):
    with pytest.raises(TypeError, match="a str is needed"):
        a.synonyms(wrong, 0)


def test_an_unknown_language_or_share():
    with pytest.raises(
        ValueError, match="no language is called 'klingon'; there are: english, chinese"
    ):
        a.homophones("tlhIngan", 0, language="klingon")
    with pytest.raises(ValueError, match="share"):
        a.delete("a b", 0, share=10)


def test_each_of_many_texts_has_a_seed_of_its_own():
    texts = ["to be or not to be there"] * 20
    done = a.augment_texts(texts, a.homophones, seed=1)
    assert len(set(done)) > 1
    assert done == a.augment_texts(texts, a.homophones, seed=1)
    assert done[5:] != a.augment_texts(texts[5:], a.homophones, seed=1)  # by place


def test_a_classifier_learns_and_cannot_see_the_order_of_words():
    praise, blame = (
        ["a good film", "great and moving", "so good , great"],
        ["a bad film", "dull and boring", "so dull , bad"],
    )
    texts, labels = 20 * (praise + blame), 20 * [1, 1, 1, 0, 0, 0]
    classifier = experiment.SentimentClassifier(texts, labels)
    assert classifier.accuracy(texts, labels) == 1
    swapped = a.augment_texts(texts, a.swap, seed=0, share=0.5)
    assert swapped != texts
    assert classifier.accuracy(swapped, labels) == 1
    assert 0 <= classifier.accuracy(["", "\x00", "unheard of"], [0, 1, 1]) <= 1


# ---- the run and the denoiser ----


def test_a_clock_with_coarse_ticks_says_no_share_of_no_time(monkeypatch):
    ticks = count()  # it moves at each fiftieth look alone
    for module in (loop, experiment):
        monkeypatch.setattr(module, "perf_counter", lambda: next(ticks) // 50 / 1000)
    steps = list(islice(experiment.run(experiment.Knobs(batch_size=1)), 20))
    both = [step.metrics["augment_seconds"] + step.seconds for step in steps]
    assert 0 in both
    for step, spent in zip(steps, both, strict=True):
        assert ("augment_share" in step.metrics) == (spent > 0)


def test_run_yields_steps_and_repeats_itself():
    knobs = experiment.Knobs(pictures=3, shift=0.1, batch_size=8, flip=0.5)
    runs = [list(islice(experiment.run(knobs), 2)) for _ in range(2)]
    assert [step.metrics["loss"] for step in runs[0]] == [step.metrics["loss"] for step in runs[1]]
    first, second = runs[0]
    cost = {"augment_seconds", "augment_share"}
    evaluated = {"train_accuracy", "test_accuracy", "gap"}
    assert first.metrics.keys() == {"loss"} | cost | evaluated
    assert second.metrics.keys() == {"loss"} | cost  # a metric comes with the step that measured it
    gap = first.metrics["train_accuracy"] - first.metrics["test_accuracy"]
    assert first.metrics["gap"] == pytest.approx(gap)


def test_one_by_one_trains_alike():
    losses = [
        [
            step.metrics["loss"]
            for step in islice(
                experiment.run(
                    experiment.Knobs(pictures=2, rotate=20, batch_size=6, one_by_one=way)
                ),
                2,
            )
        ]
        for way in (False, True)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_few_pictures_are_that_many_of_each_class():
    some = experiment.few(datasets.mnist5k(), 7, seed=3)
    assert torch.bincount(some.train_y).tolist() == [7] * 10
    assert len(some.test_y) == len(datasets.mnist5k().test_y)


def test_a_knob_out_of_range_is_one_line():
    with pytest.raises(KnobError, match="rotate"):
        experiment.Knobs(rotate=200)


def test_a_denoiser_trained_on_noise_removes_it():
    x = datasets.mnist5k().train_x[:256]
    noisy = augmented(x, Policy(noise=0.4))
    models = {
        noise: experiment.train_denoiser(x, Policy(noise=noise), updates=60) for noise in (0.0, 0.4)
    }
    error = {noise: (model(noisy) - x).square().mean().item() for noise, model in models.items()}
    assert error[0.4] < 0.8 * error[0.0]
    assert error[0.4] < 0.4**2


def test_the_best_linear_denoiser_is_as_good_as_predicted():
    """Against Wiener's filter, built and applied."""
    x = pictures(400, 1, 3, 3) @ pictures(3, 3, seed=1)
    rows = x.flatten(1)
    covariance = rows.T.cov(correction=0)
    noise = 0.5
    wiener = covariance @ torch.linalg.inv(
        covariance + noise**2 * torch.eye(9, dtype=torch.float64)
    )
    many = rows.repeat(100, 1)
    noisy = many + noise * torch.randn(many.shape, generator=seeded(), dtype=torch.float64)
    restored = (noisy - rows.mean(0)) @ wiener.T + rows.mean(0)
    assert float((restored - many).square().mean()) == pytest.approx(
        experiment.best_linear_error(x, noise), rel=0.02
    )
