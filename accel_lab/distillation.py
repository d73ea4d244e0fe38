"""Distillation: a small student learns a large teacher's probabilities, not only the labels.

A label says "this is a 7". A trained teacher says "a 7, a little like a 1, hardly like a 9": which
mistakes are near ones, for this very sample. Dividing the logits by a temperature T before the
softmax makes the small probabilities large enough to teach:

    p = softmax(teacher / T)        q = softmax(student / T)

    L = (1 − a) · CE(labels, student) + a · T² · KL(p ‖ q)

The gradient of KL(p ‖ q) by the student's logits is (q − p) / T, and for a large T q − p itself
shrinks as 1/T: the factor T² then keeps the weight of the soft term at about a, and the soft term
becomes matching the (centred) logits.

The teacher does not learn, so its logits for a sample never change: compute them once for the whole
data set, and a step of distillation costs little more than a step of plain training. With
augmentation, student and teacher must see the same views.

The student gains most from what the teacher knows and the student's own data does not say.

Sources: Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network",
arXiv:1503.02531, sections 2, 2.1 and 3; Romero et al. 2015, "FitNets", arXiv:1412.6550, section 2.2
(hints); Beyer et al. 2022, "A good teacher is patient and consistent", arXiv:2106.05237, section 3
(same views for both).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, mse_loss, softmax


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Compute T² · KL(p ‖ q), the mean over samples: 0 where the student agrees with its teacher.

    student, teacher: logits [n, classes]; −∞ rules a class out. temperature: above 0. Returns [].
    Raises ValueError, one line, for other shapes, and for any other temperature.
    """
    _check(temperature, student, teacher)
    log_q, log_p = log_softmax(student / temperature, 1), log_softmax(teacher / temperature, 1)
    p = log_p.exp()
    difference = (log_p - log_q).masked_fill(p == 0, 0)  # 0 · log 0 is 0, not NaN
    return temperature**2 * (p * difference).sum(1).mean()


def distillation_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, soft_share: float
) -> Tensor:
    """Mix the cross-entropy with the labels and the soft loss with the teacher.

    student, teacher: logits [n, classes]. labels: [n]; where one is −100 only the teacher is heard.
    soft_share: a, from 0 (labels only) to 1 (teacher only).
    Returns the loss [].
    """
    hard = cross_entropy(student, labels)
    return (1 - soft_share) * hard + soft_share * soft_loss(student, teacher, temperature)


def hint_loss(student_features: Tensor, teacher_features: Tensor, regressor: nn.Module) -> Tensor:
    """Match the output of a hidden layer, [n, channels, height, width]: the second form.

    regressor: maps the student's channels to the teacher's; trained along, then thrown away.
    Returns the mean squared error [].
    Raises ValueError when the regressor's output has not the shape of the teacher's features.
    """
    features = regressor(student_features)
    _check_alike(features, teacher_features)
    return mse_loss(features, teacher_features)


@torch.no_grad()
def logits_of(teacher: nn.Module, x: Tensor, batch_size: int = 200) -> Tensor:
    """Compute the teacher's logits for a data set once, in evaluation mode.

    teacher: a whole network, or its first layers for their features. Each part of it is left in the
    mode in which it came.
    x: [n, …]. Returns [n, classes], or the features.
    """
    modes = {part: part.training for part in teacher.modules()}
    teacher.eval()
    try:
        return torch.cat([teacher(part) for part in x.split(batch_size)])
    finally:
        for part, training in modes.items():
            part.training = training


def perplexity(logits: Tensor, temperature: float) -> float:
    """Compute exp(entropy) of soft labels, the mean over samples.

    It counts the classes that a soft label names: 1 for a hard label, all for a uniform one.

    logits: [n, classes]. temperature: above 0.
    """
    _check(temperature, logits, logits)
    p = softmax(logits / temperature, 1)
    return float(torch.special.entr(p).sum(1).exp().mean())


def _check(temperature: float, student: Tensor, teacher: Tensor) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature: {temperature} is not above 0")
    if student.dim() != 2:
        raise ValueError(
            f"logits: {list(student.shape)} given; [n, classes] is needed: flatten(0, 1) makes it "
            "of [batch, length, classes]"
        )
    _check_alike(student, teacher)


def _check_alike(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:  # arithmetic would repeat the smaller one
        shapes = f"the student's {list(student.shape)} is not the teacher's {list(teacher.shape)}"
        raise ValueError(f"shapes: {shapes}")
