"""Losses. Each is a negative log likelihood up to constants (source A, 3.3 and 3.5)."""

from __future__ import annotations

from typing import Any

from tinydiff.autograd.function import Function
from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import array_module
from tinydiff.ops.arguments import as_array, as_tensor
from tinydiff.ops.reduction import sum_of_squares
from tinydiff.ops.softmaxes import log_softmax_array


class MseLoss(Function):
    """Y = (P - T)^2 of a prediction and its target; its sum; or its mean, which divides by n.

    L_P = 2 (P - T) * L_Y / n
    L_T = -2 (P - T) * L_Y / n    (n is the number of elements for the mean, else 1)
    """

    widens_half = True

    def forward(self, P, T, reduction):
        D = P - T
        self.save(D)
        self.n = max(D.size, 1) if reduction == "mean" else 1
        if reduction == "none":
            return D * D
        total = sum_of_squares(D.reshape(-1))
        return total / D.dtype.type(self.n) if reduction == "mean" else total

    def backward(self, L_Y):
        (D,) = self.saved
        L_P = D * (L_Y * (2 / self.n))
        return L_P if self.needs[0] else None, -L_P if self.needs[1] else None


class CrossEntropy(Function):
    """l_n = -log p_n,y(n) with p the softmax of the logits; its derivative is p - onehot(y) (from A 3.3.7).

    L_X = (softmax(X) - onehot(labels)) * L_Y / n    (n is the number of rows for the mean, else 1)
    """

    widens_half = True

    def forward(self, X, labels, reduction):
        xp, rows = array_module(X), array_module(X).arange(X.shape[0])
        self.labels, self.rows = labels, rows
        log_p = log_softmax_array(X, 1)
        self.save(log_p)
        self.n = max(X.shape[0], 1) if reduction == "mean" else 1
        losses = -log_p[rows, labels]
        return losses if reduction == "none" else xp.asarray(losses.sum() * X.dtype.type(1 / self.n), X.dtype)

    def backward(self, L_Y):
        (log_p,) = self.saved
        L_X = array_module(log_p).exp(log_p)
        L_X[self.rows, self.labels] -= 1
        L_X *= (L_Y * (1 / self.n)).reshape(-1, 1)
        return L_X


def _check_reduction(name: str, reduction: str) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'{name}: reduction must be "mean", "sum" or "none", not {reduction!r}')


def mse_loss(prediction: Any, target: Any, reduction: str = "mean") -> Tensor:
    """The squared error (prediction - target)^2 of two arrays of one shape.

    reduction: "mean" or "sum" over all elements, a scalar; "none" for each element. Minimising the mean is maximum
    likelihood under Gaussian noise of fixed variance (source A, 3.5.6). ValueError where the shapes differ or for
    another reduction.
    """
    _check_reduction("mse_loss", reduction)
    prediction, target = as_tensor(prediction), as_tensor(target)
    if prediction.shape != target.shape:
        a, b = prediction.shape, target.shape
        turned = len(a) == len(b) == 4 and a in ((b[0], *b[2:], b[1]), (b[0], b[3], *b[1:3]))
        hint = (
            "; images are (N, H, W, C): write x.transpose(0, 2, 3, 1) for the one that is (N, C, H, W)"
            if turned
            else ""
        )
        raise ValueError(f"mse_loss: prediction {a} and target {b} differ in shape{hint}")
    return MseLoss.apply(prediction, target, reduction=reduction)


def cross_entropy(logits: Any, labels: Any, reduction: str = "mean") -> Tensor:
    """-log softmax(logits)[label] in nats: logits (N, K), integer labels (N,) in 0..K-1.

    reduction: "mean" or "sum" over the rows, a scalar; "none" for each row (N,). Minimising it is maximum likelihood
    for a categorical distribution (source A, 3.3.7). ValueError for shapes that do not fit, labels out of range and
    another reduction, TypeError for labels that are not integers.
    """
    _check_reduction("cross_entropy", reduction)
    logits = as_tensor(logits)
    labels = array_module(logits.data).asarray(as_array(labels))
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"cross_entropy: logits {logits.shape} and labels {labels.shape} must be (N, K) and (N,)")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"cross_entropy: labels must be integers, not {labels.dtype}")
    if labels.size and (int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]):
        raise ValueError(
            f"cross_entropy: labels {int(labels.min())}..{int(labels.max())} are not in 0..{logits.shape[1] - 1}"
        )
    return CrossEntropy.apply(logits, labels=labels, reduction=reduction)
