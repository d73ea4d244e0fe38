"""Distillation: a small student learns a large teacher's probabilities, not only the labels.

A label says "this is a 7". A trained teacher says "a 7, a little like a 1, hardly like a 9": which
mistakes are near ones, for this very sample. Dividing the logits by a temperature T before the
softmax makes the small probabilities large enough to teach:

    p = softmax(teacher / T)        q = softmax(student / T)

    L = (1 − a) · CE(labels, student) + a · T² · KL(p ‖ q)

The gradient of KL(p ‖ q) by the student's logits is (q − p) / T, and q − p itself shrinks as 1/T:
the factor T² keeps the weight of the soft term at a, whatever T is. For large T, the soft term
becomes matching the (centred) logits.

The teacher does not learn, so its logits for a sample never change: compute them once for the whole
data set, and a step of distillation costs little more than a step of plain training. With
augmentation, student and teacher must see the same views.

The student gains only what the teacher knows and the student's own data does not say.

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

    student, teacher: logits [n, classes]. Returns [].
    """
    log_q, log_p = log_softmax(student / temperature, 1), log_softmax(teacher / temperature, 1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(1).mean()


def distillation_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, soft_share: float
) -> Tensor:
    """Mix the cross-entropy with the labels and the soft loss with the teacher.

    student, teacher: logits [n, classes]. labels: [n].
    soft_share: a, from 0 (labels only) to 1 (teacher only).
    Returns the loss [].
    """
    hard = cross_entropy(student, labels)
    return (1 - soft_share) * hard + soft_share * soft_loss(student, teacher, temperature)


def hint_loss(student_features: Tensor, teacher_features: Tensor, regressor: nn.Module) -> Tensor:
    """Match the output of a hidden layer, [n, channels, height, width]: the second form.

    regressor: maps the student's channels to the teacher's; trained along, then thrown away.
    Returns the mean squared error [].
    """
    return mse_loss(regressor(student_features), teacher_features)


@torch.no_grad()
def logits_of(teacher: nn.Module, x: Tensor, batch_size: int = 200) -> Tensor:
    """Compute the teacher's logits for a data set once, in evaluation mode.

    teacher: a whole network, or its first layers for their features; its mode is left as it was.
    x: [n, …]. Returns [n, classes], or the features.
    """
    was_training = teacher.training
    teacher.eval()
    logits = torch.cat([teacher(part) for part in x.split(batch_size)])
    teacher.train(was_training)
    return logits


def perplexity(logits: Tensor, temperature: float) -> float:
    """Compute exp(entropy) of soft labels, the mean over samples.

    It counts the classes that a soft label names: 1 for a hard label, all for a uniform one.

    logits: [n, classes].
    """
    p = softmax(logits / temperature, 1)
    return float(torch.special.entr(p).sum(1).exp().mean())
