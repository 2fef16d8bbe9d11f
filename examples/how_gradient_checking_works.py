"""How gradient checking works, and why each probe of td.gradcheck exists.

    python examples/how_gradient_checking_works.py

Every number below is computed as you read it, and every claim is an `assert`: the page cannot be wrong and still run.
"""

import numpy as np

import tinydiff as td
from tinydiff import ops

rng = np.random.default_rng(0)


def title(text):
    print(f"\n{text}\n{'-' * len(text)}")


def finds(fn, inputs, **options):
    """The report if gradcheck finds an error, else None."""
    try:
        td.gradcheck(fn, inputs, **options)
    except td.GradientError as error:
        return error.report


# 1 -------------------------------------------------------------------------------------------------------------------
title("1. What is compared")
print("""
A function takes x to y. Near x it is a matrix, the Jacobian J: a small step v of x moves y by J v. Backward gets L_Y,
the slope of the loss by each element of y, and must return L_X = J^T L_Y. Nobody wants to build J. But for any v

    <L_Y, J v> = <J^T L_Y, v> = <L_X, v>

and J v is a slope along one direction, (f(x + h v) - f(x - h v)) / 2h, by evaluating f only. So two numbers are
compared, for a random L_Y and a random v. If L_X is wrong in any element they differ, except for a v that happens to be
at a right angle to the error, which has probability zero.""")

X, W = rng.normal(size=(5, 4)), rng.normal(size=(4, 3))
L_Y, v, h = rng.normal(size=(5, 3)), rng.normal(size=(5, 4)), 1e-5
by_differences = np.sum(L_Y * ((X + h * v) @ W - (X - h * v) @ W) / (2 * h))
by_backward = np.sum((L_Y @ W.T) * v)
print(f"\n    y = x w:  <L_Y, J v> = {by_differences:.10f} by differences, <L_X, v> = {by_backward:.10f} by backward")
assert abs(by_differences - by_backward) < 1e-8

# 2 -------------------------------------------------------------------------------------------------------------------
title("2. Which step")
print("""
A large step is wrong because f bends, a small one because f is rounded: the difference of two nearly equal numbers is
divided by h. Between the two lies a best step. Two steps h and 2h are better than one: (4 D(h) - D(2h)) / 3 takes the
h^2 part of the error away, and what the two disagree about tells how large it was. Where code also takes complex
numbers, Im f(x + ih) / h subtracts nothing and is exact. Errors of the slope of exp(x) sin(3x) at x = 1:
""")


def f(x):
    return np.exp(x) * np.sin(3 * x)


right = np.e * (np.sin(3) + 3 * np.cos(3))
print("        h    one-sided    central   two steps   complex")
best = {}
for exponent in range(1, 15, 2):
    h = 10.0**-exponent
    one_sided = (f(1 + h) - f(1)) / h
    central, wide = (f(1 + h) - f(1 - h)) / (2 * h), (f(1 + 2 * h) - f(1 - 2 * h)) / (4 * h)
    slopes = (one_sided, central, (4 * central - wide) / 3, np.imag(f(1 + 1j * h)) / h)
    errors = [abs(slope - right) for slope in slopes]
    best = {i: min(best.get(i, 1.0), e) for i, e in enumerate(errors)}
    print(f"    1e-{exponent:02d}     {'    '.join(f'{e:.1e}' for e in errors)}")
assert best[0] > 10 * best[1] > 10 * best[3]
print("""
td.gradcheck begins at h = 1e-5 with two steps, measures the rounding of f in the fourth difference of the five values
(a smooth f leaves nothing there), and allows for it: a tolerance that is too tight accuses what is right, one that is
too wide lets small errors through. Then it tries the exact ways.""")


# 3 -------------------------------------------------------------------------------------------------------------------
title("3. Why not y.sum()")
print("""
The quick check calls y.sum().backward(), which makes L_Y all ones. But softmax adds up to 1 whatever x is: the gradient
of its sum is zero, and a backward pass that returns zeros, or anything that multiplies L_Y - mean(L_Y), passes.""")


class SoftmaxOfZeros(td.Function):
    def forward(self, X):
        P = np.exp(X - X.max(1, keepdims=True))
        return P / P.sum(1, keepdims=True)

    def backward(self, L_Y):
        return np.zeros_like(L_Y)


x = td.Tensor(rng.normal(size=(4, 5)), requires_grad=True)
SoftmaxOfZeros.apply(x).sum().backward()
total = SoftmaxOfZeros.apply(x.data + 1e-4).sum().item() - SoftmaxOfZeros.apply(x.data - 1e-4).sum().item()
print(
    f"\n    gradient of the sum: {np.abs(x.grad).max():.1f} by backward, {abs(total) / 2e-4:.1e} by differences: passed"
)
assert abs(total) / 2e-4 < 1e-9
report = finds(SoftmaxOfZeros, [x.data])
print(f"    td.gradcheck: {report.findings[0].diagnoses[0]}")
assert report.diagnosis == "zero"


# 4 -------------------------------------------------------------------------------------------------------------------
title("4. Why not a few elements")


class OneTapMissing(td.Function):
    """y_i = x_{i-1} + x_i + x_{i+1}, whose backward forgets one of three where i is a multiple of 6."""

    def forward(self, X):
        return X + np.roll(X, 1) + np.roll(X, -1)

    def backward(self, L_Y):
        return L_Y + np.roll(L_Y, 1) + np.where(np.arange(len(L_Y)) % 6 == 0, 0, np.roll(L_Y, -1))


data, L = rng.normal(size=60), rng.normal(size=60)
x = td.Tensor(data, requires_grad=True)
OneTapMissing.apply(x).backward(L)
exact = L + np.roll(L, 1) + np.roll(L, -1)
seen = np.mean(np.abs(x.grad - exact) > 1e-6)
print(f"""
Of a mistake at some places, single elements see little: here {100 * seen:.0f}% of them are wrong. One random direction sees
all of them at once. When it fails, the whole Jacobian is computed, to say what the error looks like:""")
report = finds(OneTapMissing, [data])
print(f"\n    {report.findings[0].diagnoses[0]}")
assert report.diagnosis in ("missing", "overwritten") and seen < 0.2


# 5 -------------------------------------------------------------------------------------------------------------------
title("5. Is it the differences that are wrong?")


class Tanh(td.Function):
    def forward(self, X):
        Y = np.tanh(X)
        self.save(Y)
        return Y

    def backward(self, L_Y):
        return L_Y * (1 - self.saved[0])


report = finds(Tanh, [rng.normal(size=(4, 5))])
true, false = report.findings[0].convergence
print(f"""
As h shrinks, differences must approach the true value like h^2; from a false one they stay where they are. For a tanh
with 1 - y instead of 1 - y^2 the power is {true:.2f} towards their own limit, {abs(false):.2f} towards backward's value.""")
assert abs(true - 2) < 0.1 and abs(false) < 0.3
print("\nThe whole report of this failure:\n")
print("\n".join("    " + line for line in str(report).splitlines()))


# 6 -------------------------------------------------------------------------------------------------------------------
title("6. Kinks")
report = td.gradcheck(ops.relu, [np.array([[-1.0, 0.0, 2.0], [0.5, -0.5, 0.0]])])
print(f"""
At 0 relu has no slope; differences say 1/2 there, backward says 0, and both are within their rights. A kink does not
vanish as h shrinks, so it can be told from a mistake: the check moves the inputs a little and says so:

    note: {report.notes[0]}

At the kink itself it still asks for a value between the slopes on both sides. Two equal maxima that both get the whole
gradient fail that:""")


class MaxToBoth(td.Function):
    def forward(self, X):
        top = X.max(1, keepdims=True)
        self.hit = top == X
        return X.max(1)

    def backward(self, L_Y):
        return L_Y[:, None] * self.hit


ties = np.array([[1.0, 3.0, 3.0], [2.0, 0.0, 1.0]])
report = finds(MaxToBoth, [ties])
print(f"\n    {report.findings[0].message}")
assert report.diagnosis == "kink"


# 7 -------------------------------------------------------------------------------------------------------------------
title("7. Right formulas that are wrong all the same")
print("""
All of the above looks at one contiguous L_Y, all gradients wanted, each input used once. Real backward passes meet
other circumstances. Each probe below has a bug that only it finds: without the probe the check passes.
""")


def only(probe, fn, inputs, *story):
    """Shows that the check finds the bug, and that it does not when this one probe is left out."""
    report = finds(fn, inputs)
    assert report is not None and report.findings[0].probe == probe
    assert finds(fn, inputs, skip=[probe]) is None
    for label, line in zip([probe, *[""] * len(story)], [*story, f"-> {report.findings[0].diagnoses[0]}"], strict=True):
        print(f"{label:8}  {line}")
    print()


class ReadsMemory(td.Function):
    def forward(self, X):
        return X * 2.0

    def backward(self, L_Y):
        return L_Y.ravel(order="K").reshape(L_Y.shape) * 2.0


only(
    "strides",
    ReadsMemory,
    [rng.normal(size=(4, 5))],
    "A kernel reads L_Y as it lies in memory. A transpose, a slice or the gradient of a sum (stride 0)",
    "hands it something else.",
)


class ReadsItsInput(td.Function):
    def forward(self, X):
        self.save(X)
        return X**2

    def backward(self, L_Y):
        (X,) = self.saved
        return 2 * X.ravel(order="K").reshape(X.shape) * L_Y


only("layouts", ReadsItsInput, [rng.normal(size=(4, 5))], "The same with an input.")


class SkipsWork(td.Function):
    def forward(self, A, B):
        self.save(A, B)
        return A * B

    def backward(self, L_Y):
        A, B = self.saved
        L_A = L_Y * B if self.needs[0] else None
        return L_A, L_A * A / B if self.needs[0] else np.zeros_like(B)


only(
    "needs",
    SkipsWork,
    [rng.normal(size=(3, 4)), rng.normal(size=(3, 4))],
    "L_B is computed from L_A, and L_A is skipped where only L_B is wanted: the first layer of a network,",
    "whose data need no gradient.",
)


class MeanAndSquare(td.Function):
    def forward(self, X):
        self.save(X)
        return X.mean(1), (X * X).mean(1)

    def backward(self, L_mean, L_square):
        (X,) = self.saved
        if not L_mean.any():
            return np.zeros_like(X)
        return (L_mean[:, None] + 2 * X * L_square[:, None]) / X.shape[1]


only("dropped", MeanAndSquare, [rng.normal(size=(3, 4))], "Two outputs, and a shortcut for when the first is not used.")


class Plus(td.Function):
    def forward(self, A, B):
        self.same = A is B
        return A * 1.0 + B

    def backward(self, L_Y):
        return (2 * L_Y, 2 * L_Y) if self.same else (L_Y, L_Y)


only(
    "shared",
    Plus,
    [rng.normal(size=(3, 4)), rng.normal(size=(3, 4))],
    "x + x: a special case for equal inputs returns the sum of both gradients, twice.",
)


class KeptOnTheClass(td.Function):
    def forward(self, X):
        KeptOnTheClass.X = X
        return X**3

    def backward(self, L_Y):
        return 3 * KeptOnTheClass.X**2 * L_Y


only(
    "reuse",
    KeptOnTheClass,
    [rng.normal(size=(3, 4))],
    "What backward needs is kept where the next call overwrites it: a layer that is used twice gets the",
    "gradient of its second use, twice.",
)


class OfFour(td.Function):
    def forward(self, X):
        return X.mean(0)

    def backward(self, L_Y):
        return np.broadcast_to(L_Y / 4, self.shapes[0])


only(
    "sizes",
    OfFour,
    [rng.normal(size=(4, 5))],
    "A mean is always divided by 4, the number of rows in the test. So each length is tried three times as",
    "long. Lengths 0 and 1 are tried, too; of those the report has only a note, if sizes=True is not given.",
)


# 8 -------------------------------------------------------------------------------------------------------------------
title("8. What every check begins with")


class WritesIntoL(td.Function):
    def forward(self, X):
        self.save(np.exp(X))
        return self.saved[0]

    def backward(self, L_Y):
        L_Y *= self.saved[0]
        return L_Y


class NeverCleared(td.Function):
    total = np.zeros(4)

    def forward(self, X, w):
        self.save(X, w)
        return X * w

    def backward(self, L_Y):
        X, w = self.saved
        NeverCleared.total = NeverCleared.total + (L_Y * X).sum(0)
        return L_Y * w, NeverCleared.total


class InFloat32(td.Function):
    def forward(self, X):
        self.save(X)
        return np.exp(-X * X)

    def backward(self, L_Y):
        (X,) = self.saved
        return -2 * X * np.exp(-X * X).astype(np.float32) * L_Y


reports = [
    finds(WritesIntoL, [rng.normal(size=(3, 4))]),
    finds(NeverCleared, [rng.normal(size=(3, 4)), rng.normal(size=4)]),
    finds(InFloat32, [rng.normal(size=(3, 4))]),
]
assert [r.diagnosis for r in reports] == ["in-place", "not-repeatable", "small"]
assert finds(InFloat32, [rng.normal(size=(3, 4))], rtol=1e-3) is None
print(f"""
purity    The inputs and L_Y still hold the same bits afterwards: another branch of the graph may share them.
          -> {reports[0].findings[0].message}

repeat    Backward run twice gives the same bits; so does forward, with its random numbers put back.
          -> {reports[1].findings[0].diagnoses[0]}

slopes    Exact slopes (complex step, or one difference of an affine map) find an error of 1e-8, which the usual
          tolerance of 1e-3 lets through: float32 somewhere in a float64 computation.
          -> {reports[2].findings[0].diagnoses[0]}
""")

# 9 -------------------------------------------------------------------------------------------------------------------
title("9. Without float64: the adjoint test")


class CumulativeKernel(td.Function):
    """As a CUDA kernel would be: float32 and nothing else."""

    def forward(self, X):
        if X.dtype != np.float32:
            raise TypeError("float32 only")
        return np.cumsum(X, 1)

    def backward(self, L_Y):
        return np.cumsum(L_Y[:, ::-1], 1)[:, ::-1]


report = td.gradcheck(CumulativeKernel, [rng.normal(size=(6, 7)).astype(np.float32)], dtype=np.float32)
print(f"""
In float32 differences are good for three digits. A linear map needs none: f(x + v) - f(x) is J v, for a step of 1.
That is the test of an adjoint, <L_Y, A v> = <A^T L_Y, v>, and it holds a kernel to float32's own rounding:

{report}""")
assert report.verdicts[0].method == "adjoint test"
