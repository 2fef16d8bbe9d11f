"""Operations element by element."""

import numpy as np

from planted.base import Planted, normal, positive, unbroadcast
from tinydiff.autograd.function import Function


class SubtractSign(Function):
    def forward(self, A, B):
        return A - B

    def backward(self, L_Y):
        return L_Y, L_Y


class MultiplyOwnFactor(Function):
    def forward(self, A, B):
        self.save(A, B)
        return A * B

    def backward(self, L_Y):
        A, B = self.saved
        return L_Y * A, L_Y * B


class MultiplyNotSummed(Function):
    def forward(self, A, B):
        self.save(A, B)
        return A * B

    def backward(self, L_Y):
        A, B = self.saved
        return L_Y * B, L_Y * A


class DivideNotSquared(Function):
    def forward(self, A, B):
        self.save(A, B)
        return A / B

    def backward(self, L_Y):
        A, B = self.saved
        return L_Y / B, -L_Y * A / B


class ScaleMean(Function):
    """X (N, C) times s (C,)."""

    def forward(self, X, s):
        self.save(X, s)
        return X * s

    def backward(self, L_Y):
        X, s = self.saved
        return L_Y * s, (L_Y * X).mean(0)


class TanhNotSquared(Function):
    def forward(self, X):
        Y = np.tanh(X)
        self.save(Y)
        return Y

    def backward(self, L_Y):
        (Y,) = self.saved
        return L_Y * (1 - Y)


class SigmoidOfInput(Function):
    def forward(self, X):
        self.save(X)
        return 1 / (1 + np.exp(-X))

    def backward(self, L_Y):
        (X,) = self.saved
        return L_Y * X * (1 - X)


class SigmoidAlone(Function):
    def forward(self, X):
        Y = 1 / (1 + np.exp(-X))
        self.save(Y)
        return Y

    def backward(self, L_Y):
        (Y,) = self.saved
        return Y * (1 - Y)


class SiluOneTerm(Function):
    def forward(self, X):
        S = 1 / (1 + np.exp(-X))
        self.save(S)
        return X * S

    def backward(self, L_Y):
        (S,) = self.saved
        return L_Y * S


class GeluDensity(Function):
    def forward(self, X):
        U = np.tanh((2 / np.pi) ** 0.5 * (X + 0.044715 * X**3))
        self.save(X, U)
        return X * (1 + U) / 2

    def backward(self, L_Y):
        X, U = self.saved
        inner = (2 / np.pi) ** 0.5 * (1 + 0.044715 * X**2)  # the 3 of the cube is missing
        return L_Y * ((1 + U) / 2 + X * (1 - U * U) * inner / 2)


class ReluWithoutMask(Function):
    def forward(self, X):
        return np.maximum(X, 0)

    def backward(self, L_Y):
        return L_Y


class LeakyReluSlope(Function):
    def forward(self, X):
        self.save(X)
        return np.where(X > 0, X, 0.1 * X)

    def backward(self, L_Y):
        (X,) = self.saved
        return L_Y * (X > 0)


class AbsOneSide(Function):
    def forward(self, X):
        self.save(X)
        return np.abs(X)

    def backward(self, L_Y):
        (X,) = self.saved
        return np.where(X > 0, L_Y, 0)


class ClipOneBound(Function):
    def forward(self, X):
        self.save(X)
        return np.clip(X, -0.5, 0.5)

    def backward(self, L_Y):
        (X,) = self.saved
        return L_Y * (X < 0.5)


class SqrtWithoutHalf(Function):
    def forward(self, X):
        Y = np.sqrt(X)
        self.save(Y)
        return Y

    def backward(self, L_Y):
        (Y,) = self.saved
        return L_Y / Y


class LogarithmOfTwo(Function):
    """log2."""

    def forward(self, X):
        self.save(X)
        return np.log2(X)

    def backward(self, L_Y):
        (X,) = self.saved
        return L_Y / X


class SineOfSine(Function):
    def forward(self, X):
        self.save(X)
        return np.sin(X)

    def backward(self, L_Y):
        (X,) = self.saved
        return L_Y * np.sin(X)


class CosineSign(Function):
    def forward(self, X):
        self.save(X)
        return np.cos(X)

    def backward(self, L_Y):
        (X,) = self.saved
        return L_Y * np.sin(X)


class NormalDensityConstant(Function):
    """exp(-x^2 / 2) / sqrt(2 pi), with the constant typed in."""

    def forward(self, X):
        Y = np.exp(-X * X / 2) / (2 * np.pi) ** 0.5
        self.save(X)
        return Y

    def backward(self, L_Y):
        (X,) = self.saved
        return -L_Y * X * 0.398942 * np.exp(-X * X / 2)


class GaussianInSingle(Function):
    def forward(self, X):
        self.save(X)
        return np.exp(-X * X / 2)

    def backward(self, L_Y):
        (X,) = self.saved
        return -L_Y * X * np.exp(-X * X / 2).astype(np.float32)


class SampleLogVariance(Function):
    """z = mean + exp(log variance / 2) eps, with a fixed eps."""

    def forward(self, mean, log_variance):
        deviation = np.exp(log_variance / 2) * np.linspace(-1, 1.5, mean.size).reshape(mean.shape)
        self.save(deviation)
        return mean + deviation

    def backward(self, L_Z):
        (deviation,) = self.saved
        return L_Z, L_Z * deviation


class GateForgotten(Function):
    """Y = tanh(A) sigmoid(B): a gated unit."""

    def forward(self, A, B):
        T, S = np.tanh(A), 1 / (1 + np.exp(-B))
        self.save(T, S)
        return T * S

    def backward(self, L_Y):
        T, S = self.saved
        return L_Y * (1 - T * T), L_Y * T * S * (1 - S)


class ClippedGradient(Function):
    """Limits its own gradient to -1..1, for stability."""

    def forward(self, X):
        self.save(X)
        return X**2

    def backward(self, L_Y):
        (X,) = self.saved
        return np.clip(2 * X * L_Y, -1, 1)


class ResidualTwice(Function):
    """x + tanh(x), the skip counted twice."""

    def forward(self, X):
        Y = np.tanh(X)
        self.save(Y)
        return X + Y

    def backward(self, L_Y):
        (Y,) = self.saved
        L_X = L_Y * (1 - Y * Y) + L_Y
        return L_X + L_Y


class MaskedDivision(Function):
    """A / B where B is not 0, else 0."""

    def forward(self, A, B):
        self.save(A, B)
        with np.errstate(all="ignore"):
            return np.where(B == 0, 0, A / B)

    def backward(self, L_Y):
        A, B = self.saved
        with np.errstate(all="ignore"):
            return L_Y * (B != 0) / B, unbroadcast(-L_Y * (B != 0) * A / B**2, B.shape)


def _with_zeros(rng):
    B = rng.uniform(0.5, 2, size=(4, 5))
    B[1, 2] = B[3, 0] = 0
    return [rng.normal(size=(4, 5)), B]


PLANTED = [
    Planted(SubtractSign, normal((4, 5), (4, 5)), "sign", "L_B = L_Y"),
    Planted(MultiplyOwnFactor, normal((4, 5), (4, 5)), "exchanged", "L_A = L_Y A, L_B = L_Y B"),
    Planted(MultiplyNotSummed, normal((4, 5), (5,)), "broadcast", "nothing is summed where B is repeated"),
    Planted(DivideNotSquared, positive((4, 5), (4, 5)), "factor", "-L_Y A / B instead of -L_Y A / B^2"),
    Planted(ScaleMean, normal((4, 5), (5,)), "ratio", "L_s is a mean over the batch"),
    Planted(TanhNotSquared, normal((4, 5)), "local-derivative", "1 - y instead of 1 - y^2"),
    Planted(SigmoidOfInput, normal((4, 5)), "local-derivative", "x (1 - x) instead of y (1 - y)"),
    Planted(SigmoidAlone, normal((4, 5)), "ignores-upstream", "y (1 - y) without L_Y"),
    Planted(SiluOneTerm, normal((4, 5)), "local-derivative", "only one term of the product rule"),
    Planted(GeluDensity, normal((4, 5)), "local-derivative", "the derivative of x^3 without its 3"),
    Planted(ReluWithoutMask, normal((4, 5)), "branch", "L_Y passes where x < 0"),
    Planted(LeakyReluSlope, normal((4, 5)), "branch", "the slope for x < 0 is forgotten"),
    Planted(AbsOneSide, normal((4, 5)), "branch", "0 instead of -L_Y where x < 0"),
    Planted(ClipOneBound, normal((4, 5)), "branch", "the lower bound is forgotten"),
    Planted(SqrtWithoutHalf, positive((4, 5)), "ratio", "L_Y / y instead of L_Y / (2 y)"),
    Planted(LogarithmOfTwo, positive((4, 5)), "ratio", "the derivative of log instead of log2"),
    Planted(SineOfSine, normal((4, 5)), "local-derivative", "sin where cos belongs"),
    Planted(CosineSign, normal((4, 5)), "sign", "sin instead of -sin"),
    Planted(NormalDensityConstant, normal((4, 5)), "small", "a constant with six digits"),
    Planted(GaussianInSingle, normal((4, 5)), "small", "an intermediate result in float32"),
    Planted(SampleLogVariance, normal((4, 5), (4, 5)), "ratio", "the half of log variance / 2 is forgotten"),
    Planted(GateForgotten, normal((4, 5), (4, 5)), "local-derivative", "L_A is not multiplied by the gate"),
    Planted(ClippedGradient, normal((4, 5)), "nonlinear", "the gradient is clipped inside of the operation"),
    Planted(ResidualTwice, normal((4, 5)), "direct-term", "the skip connection is counted twice"),
    Planted(MaskedDivision, _with_zeros, "not-finite", "0 times infinity where B is 0"),
]
