"""Accumulated updates equal the full batch's in float64; memory as predicted; mistakes show."""

import copy
from contextlib import nullcontext
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LinearLR
from torch.utils.checkpoint import checkpoint

from accel_lab.accumulation import accumulated_update, full_batch_update, split
from accel_lab.experiments import accumulation as experiment
from accel_lab.experiments.accumulation import MISTAKES, Knobs, predicted_activation_bytes, run
from accel_lab.workbench import models
from accel_lab.workbench.data import datasets
from accel_lab.workbench.knobs import KnobError
from accel_lab.workbench.loop import NonFiniteLoss
from accel_lab.workbench.measure.memory_meter import ActivationMeter
from accel_lab.workbench.measure.proof import Twin, prove, trajectory
from tests.networks import Tied

SMALL_KNOBS = {"batch_size": 64, "seed": 1}  # the chapter in little, for papermill


MODELS = {
    "cnn": lambda: models.cnn(channels=2, side=8),
    "mlp": lambda: models.mlp(64, 20, 10),
    "tied and frozen": Tied,
    "group norm": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)
    ),
}


def batches(size: int, steps: int = 10) -> list:
    return [(x.double(), y) for x, y in islice(datasets.digits().batches(size), steps)]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.003)


def accumulated(m: int, rule=accumulated_update, **options):
    return lambda model, optimizer, x, y: rule(model, optimizer, split(x, y, m), **options)


def full_batch(**options):
    return lambda model, optimizer, x, y: full_batch_update(model, optimizer, x, y, **options)


def start(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]().double()


@pytest.mark.parametrize("optimizer", [sgd, adam])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("size", "m"), [(32, 4), (33, 4), (13, 13), (9, 4), (5, 1)])
def test_ten_updates_equal_the_full_batchs(name, size, m, optimizer):
    model = start(name)
    ways = {"full": full_batch(max_norm=0.5), "ours": accumulated(m, max_norm=0.5)}
    proof = prove(
        {way: trajectory(model, optimizer, update, batches(size)) for way, update in ways.items()},
        tolerance=1e-11,
    )
    assert proof.holds, proof


def test_equals_accelerate_where_micro_batches_are_equal_and_not_where_they_are_ragged():
    from accelerate import Accelerator

    def theirs(size):
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)

        def update(model, optimizer, x, y):
            for x_i, y_i in split(x, y, 4):
                with accelerator.accumulate(model):
                    accelerator.backward(cross_entropy(model(x_i), y_i))
                    optimizer.step()
                    optimizer.zero_grad()

        return trajectory(
            start("mlp"), lambda model: accelerator.prepare(sgd(model)), update, batches(size)
        )

    for size, equal in ((32, True), (30, False)):
        ours = trajectory(start("mlp"), sgd, accumulated(4), batches(size))
        assert prove({"ours": ours, "accelerate": theirs(size)}).holds is equal


@settings(max_examples=40)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), seed=st.integers(0, 2**16))
def test_micro_batches_of_any_sizes_give_the_full_batchs_gradient(sizes, seed):
    torch.manual_seed(seed)
    model = models.mlp(7, 5, 3).double()
    x, y = torch.randn(sum(sizes), 7).double(), torch.randint(3, (sum(sizes),))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    loss = full_batch_update(model, optimizer, x, y)
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    total = accumulated_update(
        model, optimizer, list(zip(x.split(sizes), y.split(sizes), strict=True))
    )
    torch.testing.assert_close(total, loss, rtol=0, atol=1e-12)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=1e-12)


class Mixed(nn.Module):
    """What is awkward, in one: a sparse embedding, a buffer, and a parameter without elements."""

    def __init__(self, checkpointed: bool = False):
        super().__init__()
        self.words = nn.Embedding(9, 8, sparse=True)
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.register_buffer("scale", torch.tensor(2.0))
        self.hidden = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.last = nn.Linear(8, 5)
        self.checkpointed = checkpointed

    def forward(self, x):
        x = self.words(x) * self.scale
        x = checkpoint(self.hidden, x, use_reentrant=False) if self.checkpointed else self.hidden(x)
        return self.last(x + self.empty.sum()).movedim(
            -1, 1
        )  # [n, classes] or [n, classes, length]


def words(*shape):
    return torch.randint(9, shape)


def padded(y, lengths):
    for row, length in zip(y, lengths, strict=True):
        row[length:] = -100
    return y


def mixed(**options):
    return lambda: (Mixed(**options), words(8, 6), words(8, 6) % 5)


def with_padding(*lengths):  # words in each sample; −100 behind them
    return lambda: (Mixed(), words(8, 6), padded(words(8, 6) % 5, lengths))


BATCHES = {
    "one label a sample": lambda: (Mixed(), words(8), words(8) % 5),
    "one label a word": mixed(),
    "checkpointed": mixed(checkpointed=True),
    "padded": with_padding(1, 6, 2, 0, 3, 1, 6, 5),
    "a micro-batch is all padding": with_padding(0, 0, 6, 2, 3, 1, 6, 5),
    "padded to nothing but one word": with_padding(0, 0, 0, 0, 0, 0, 0, 1),
    "probabilities": lambda: (Mixed(), words(8), torch.rand(8, 5).softmax(1)),
    "probabilities of words": lambda: (Mixed(), words(8, 6), torch.rand(8, 5, 6).softmax(1)),
}


def after_three_updates(rule, start, dtype, cast):
    torch.manual_seed(0)
    model, x, y = start()
    model = model.to(dtype)
    model.words.sparse = dtype != torch.float16  # torch cannot add sparse gradients of these
    y = y.to(dtype) if y.is_floating_point() else y
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16) if cast else nullcontext():
        losses = [float(rule(model, optimizer, x, y)) for _ in range(3)]
    return torch.tensor(losses), [part.detach().double() for part in model.state_dict().values()]


@pytest.mark.parametrize("m", [3, 8])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(
    ("dtype", "cast"),
    [
        (torch.float64, False),
        (torch.float32, False),
        (torch.bfloat16, False),
        (torch.float16, False),
        (torch.float32, True),
    ],
    ids=["float64", "float32", "bfloat16", "float16", "autocast"],
)
def test_whatever_the_batch_holds_it_is_the_full_batchs_update(batch, dtype, cast, m):
    start = BATCHES[batch]
    ours = after_three_updates(accumulated(m), start, dtype, cast)
    theirs = after_three_updates(full_batch_update, start, dtype, cast)
    tolerance = 40 * torch.finfo(torch.bfloat16 if cast else dtype).eps
    if dtype == torch.float64:
        tolerance = 1e-6  # the losses are compared in float32
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_a_generator_of_micro_batches_is_the_list():
    x, y = batches(16, steps=1)[0]

    def weights(micro_batches):
        model = start("mlp")
        accumulated_update(model, sgd(model), micro_batches)
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    parts = split(x, y, 4)
    assert torch.equal(weights(part for part in parts), weights(parts))
    assert not torch.equal(
        weights(parts), torch.cat([p.flatten() for p in start("mlp").parameters()])
    )


def test_no_micro_batches_are_refused_in_one_line():
    model = start("mlp")
    spent = iter(split(*batches(8, steps=1)[0], 2))
    list(spent)
    for nothing in ([], spent):
        with pytest.raises(ValueError, match=r"^micro_batches: there are none.*$"):
            accumulated_update(model, sgd(model), nothing)


def test_many_labels_in_half_precision_do_not_overflow():
    """Their sum, some 90,000, is more than float16 holds."""
    torch.manual_seed(0)
    model = nn.Linear(2, 50).half()
    x, y = torch.randn(24_000, 2).half(), torch.randint(50, (24_000,))
    loss = accumulated_update(model, torch.optim.SGD(model.parameters(), lr=0.1), [(x, y)])
    assert 3 < loss < 6


@given(n=st.integers(1, 300), m=st.integers(1, 300))
def test_split_loses_nothing_and_is_as_equal_as_can_be(n, m):
    x = torch.arange(n)
    if m > n:
        with pytest.raises(KnobError, match=r"micro_batches: .* do not fit a batch of"):
            split(x, x, m)
        return
    parts = [part for part, _ in split(x, x, m)]
    sizes = [len(part) for part in parts]
    assert len(parts) == m
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) == -(-n // m)
    assert torch.equal(torch.cat(parts), x)


def test_the_schedule_advances_once_an_update():
    model = start("mlp")
    optimizer = sgd(model)
    schedule = LinearLR(optimizer, 0.1, total_iters=4)
    rates = []
    for x, y in batches(16, steps=4):
        accumulated_update(model, optimizer, split(x, y, 8), schedule=schedule)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.05 * share for share in (0.325, 0.55, 0.775, 1.0)])


@pytest.mark.parametrize("m", [1, 2, 3, 8, 50])
def test_activations_fall_with_the_largest_micro_batch(m):
    x, y = next(datasets.digits().batches(50))
    model = models.cnn(channels=4, side=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def peak(parts: int) -> int:
        with ActivationMeter(model, x, y) as meter:
            accumulated_update(model, optimizer, split(x, y, parts))
        assert meter.held == 0
        return meter.peak

    # the loss keeps a few bytes that no sample adds to
    assert peak(m) == pytest.approx(peak(1) * -(-50 // m) / 50, abs=64)


def test_the_prediction_is_what_run_counts():
    for knobs in (Knobs(batch_size=50, micro_batches=8), Knobs(batch_size=64, micro_batches=1)):
        counted = next(run(knobs)).metrics["activation_bytes"]
        assert counted == pytest.approx(predicted_activation_bytes(knobs), abs=64)


# ---- mistakes ----


def update_error(rule, size: int, model: nn.Module | None = None) -> float:
    """Of the third update: the first ones of some mistakes are right."""
    model = copy.deepcopy(model) if model else start("mlp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    twin = Twin(model, optimizer, full_batch_update)
    for x, y in twin.ahead_of(batches(size, steps=3)):
        rule(model, optimizer, split(x, y, 4))
    return twin.error()


@pytest.mark.parametrize(
    ("mistake", "size", "least", "most"),
    [
        ("no scaling", 32, 2.99, 3.01),  # m − 1
        ("unweighted", 32, 0, 1e-12),  # right, as long as all have one size
        ("unweighted", 30, 1e-3, 1),
        ("off by one", 32, 0.05, 2),
        ("forgotten clear", 32, 0.3, 10),
    ],
)
def test_a_mistake_is_as_wrong_as_it_is_said_to_be(mistake, size, least, most):
    assert update_error(accumulated_update, size) < 1e-12
    assert least <= update_error(MISTAKES[mistake], size) <= most


def test_batch_norm_sees_another_batch():
    torch.manual_seed(0)
    model = models.cnn(channels=2, side=8, batch_norm=True).double()
    assert update_error(accumulated_update, 32, model) > 1e-3


def test_every_mistake_can_be_chosen():
    assert set(Knobs.model_fields["mistake"].annotation.__args__) == {"none", *MISTAKES}


# ---- run ----


def test_run_trains_and_reports():
    knobs = Knobs(batch_size=64, micro_batches=4, twin=True, timeline=True)
    steps = list(islice(run(knobs), 30))
    assert [step.index for step in steps] == list(range(30))
    assert {step.samples for step in steps} == {64}
    assert all(step.metrics["update_error"] < 1e-4 for step in steps)
    assert [span.name for span in steps[0].spans] == ["forward", "backward"] * 4 + [
        "optimizer step"
    ]
    # Between the two clocks' readings another program may have the core, but not each time.
    within = [
        all(0 <= span.start <= span.end <= step.seconds * 1.01 + 1e-3 for span in step.spans)
        for step in steps
    ]
    assert sum(within) > len(steps) / 2
    early, late = steps[0].metrics["loss"], sum(step.metrics["loss"] for step in steps[-5:]) / 5
    assert late < 0.9 * early


def test_the_same_knobs_train_the_same_model_whatever_m_is():
    def losses(**knobs):
        return [
            step.metrics["loss"]
            for step in islice(run(Knobs(batch_size=64, device="cpu", **knobs)), 5)
        ]

    assert losses(micro_batches=4) == losses(micro_batches=4)
    assert losses(micro_batches=4) == pytest.approx(losses(micro_batches=1), abs=1e-4)
    assert losses(micro_batches=4, seed=1) != losses(micro_batches=4)


def test_clipping_and_warm_up_reach_the_update():
    def weights_moved(**knobs):
        first, second = islice(run(Knobs(batch_size=64, micro_batches=2, **knobs)), 2)
        return first.metrics["loss"] - second.metrics["loss"]

    assert (
        abs(
            weights_moved(learning_rate=1.0, max_norm=1e-6)
            - weights_moved(learning_rate=0.001, max_norm=1e-6)
        )
        < 1e-4
    )
    assert weights_moved(warmup_updates=1000) != weights_moved()


def test_a_loss_that_is_no_number_ends_the_run_with_one_line(monkeypatch):
    monkeypatch.setattr(
        experiment, "accumulated_update", lambda *arguments, **options: torch.tensor(float("nan"))
    )
    with pytest.raises(
        NonFiniteLoss, match=r"^the loss is nan at step 0: lower the learning rate"
    ) as error:
        next(run(Knobs(batch_size=8)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("knobs", "knob", "line"),
    [
        (
            {"micro_batches": 99},
            "micro_batches",
            "micro_batches: should be less than or equal to 64 (backward passes per "
            "update), not 99",
        ),
        ({"micro_batches": "many"}, "micro_batches", "micro_batches: should be a valid integer"),
        ({"micro_batches": 2.5}, "micro_batches", "micro_batches: should be a valid integer"),
        ({"micro_batch": 2}, "", "no knob is called 'micro_batch'; did you mean 'micro_batches'?"),
        (
            {"batch_size": 8, "micro_batches": 16},
            "micro_batches",
            "micro_batches: 16 do not fit a batch of 8",
        ),
        (
            {"learning_rate": float("nan")},
            "learning_rate",
            "learning_rate: should be a finite number",
        ),
        ({"mistake": "typo"}, "mistake", "mistake: should be 'none'"),
    ],
)
def test_a_wrong_knob_is_named_in_one_line(knobs, knob, line):
    with pytest.raises(KnobError) as error:
        Knobs(**knobs)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)
    assert error.value.knob == knob
