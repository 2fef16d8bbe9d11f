"""Slips in source A, the manifesto: what is printed fails, and what is correct holds. In the order of the README's table."""

import itertools
import math

import numpy as np
import pytest

import tinydiff as td
from tinydiff import ops
from tinydiff.diffusion import Diffusion, Schedule, gaussian, sample_steps
from tinydiff.random import Generator

S = Schedule.linear(40, 0.005, 0.4)
T = 20  # the step at which formulas are compared


def same(a, b):
    return bool(np.allclose(a, b, rtol=1e-9, atol=1e-12))


def gradient_of(f, x):
    X = td.Tensor(np.array(x), requires_grad=True)
    f(X).sum().backward()
    return X.grad


def test_a_2_1_1_a_norm_needs_absolute_values():
    a = np.array([1.0, -1.0])
    assert np.sum(a**3) == 0  # printed: the norm of a vector that is not 0 would be 0, and of (-1,) not a number
    assert ops.sum(ops.abs(a) ** 3).item() ** (1 / 3) == pytest.approx(np.linalg.norm(a, 3))


def test_a_2_4_weights_of_jensen_are_a_distribution():
    x = np.array([2.0, 0.0])
    for c in ([-0.5, 0.5], [1.5, -0.5]):  # Manhattan norm 1; sum 1 with a negative weight
        assert (np.dot(c, x)) ** 2 > np.dot(c, x**2)
    c = np.array([0.5, 0.5])
    assert np.dot(c, x) ** 2 <= np.dot(c, x**2)


def test_a_2_6_repeated_eigenvalues_and_the_scaling_of_eigenvectors(rng):
    Q = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    values = np.array([2.0, 2.0, -1.0])
    A = Q @ np.diag(values) @ Q.T
    found, V = np.linalg.eigh(A)
    assert same(V.T @ V, np.eye(3)) and same(sorted(found), [-1, 2, 2])  # not distinct, and a basis all the same
    P = Q * [1.0, 2.0, 3.0]  # orthogonal eigenvectors of other lengths
    D = np.diag([1.0, 4.0, 9.0])
    assert same(P.T @ P, D) and not same(P @ P.T, D)
    P_unit = P @ np.diag(1 / np.sqrt(np.diag(D)))
    assert same(P_unit @ np.diag(values) @ P_unit.T, A) and not same(P_unit @ np.diag(values) @ D @ P_unit.T, A)


def test_a_2_7_and_a_2_8_definiteness_is_about_eigenvalues(rng):
    A = np.array([[2.0, -1.0], [-1.0, 2.0]])
    assert np.linalg.eigh(A)[1].min() < 0  # an eigenvector with negative elements, whatever its sign: (1, -1)
    assert np.linalg.eigvalsh(A).min() > 0 and gaussian.entropy(A) > 0
    # a positive definite matrix is semi-definite too, and invertible; one with an eigenvalue 0 is not
    assert np.linalg.det(A) == pytest.approx(3)
    with pytest.raises(ValueError, match="not positive definite"):
        gaussian.entropy(np.diag([1.0, 0.0]))


def test_a_2_9_18_taylor_needs_a_half(rng):
    H = np.array([[2.0, 0.5], [0.5, 1.0]])
    b, x, dx = rng.standard_normal((3, 2))

    def f(X):
        return ops.exp(0.5 * ops.sum(X * (X @ H)) + ops.sum(X * b))

    error = []
    at, slope = f(td.Tensor(x)).item(), gradient_of(f, x)
    hessian = at * H + np.outer(slope, slope) / at
    for factor in (0.5, 1.0):
        small = [h * dx for h in (1e-2, 1e-3)]
        error.append([abs(f(td.Tensor(x + d)).item() - at - slope @ d - factor * d @ hessian @ d) for d in small])
    assert error[0][0] / error[0][1] == pytest.approx(1000, rel=0.1)  # what is left is of third order
    assert error[1][0] / error[1][1] == pytest.approx(100, rel=0.1)  # printed: second order


def test_a_2_9_1_a_semi_definite_quadratic_has_critical_points_iff_b_is_in_the_range_of_A():
    A = np.diag([1.0, 0.0])

    def q(b):
        return lambda X: ops.sum(X * (X @ A), axis=1) + X @ np.array(b)

    # printed: none for b != 0; but a whole line of them if b is in the range of A
    assert same(gradient_of(q([2.0, 0.0]), [[-1.0, 5.0], [-1.0, 0.0]]), 0)
    grid = np.stack(np.meshgrid(np.linspace(-3, 3, 7), np.linspace(-3, 3, 7)), -1).reshape(-1, 2)
    assert np.all(np.abs(gradient_of(q([0.0, 1.0]), grid)[:, 1]) == 1)  # b outside: none


def test_a_2_9_1_normal_of_the_inclined_plane(rng):
    """y = x^T b + c has the normal (b, -1); printed: 1 along the axis of y."""
    b, x = rng.standard_normal(3), rng.standard_normal((2, 3))
    y = ops.linear(x, b[:, None], np.array([0.7])).data
    along = np.append(x[0] - x[1], y[0] - y[1])
    assert same(along @ np.append(b, -1), 0) and not same(along @ np.append(b, 1), 0)


def test_a_2_9_2_level_sets_of_a_gaussian_are_ellipsoids_but_gradient_norm_contours_are_not():
    """Around the narrow axis of C = diag(4, 1) a contour of |grad g| cannot be an ellipse: |grad g| has a maximum on
    each ray from the centre, so a contour crosses the ray twice."""
    C = np.diag([4.0, 1.0])

    def g(X):
        return ops.exp(-0.5 * ops.sum(X * (X @ np.linalg.inv(C)), axis=1))

    r = np.linspace(0.01, 6, 400)
    for axis, semi in ((0, 2.0), (1, 1.0)):
        ray = np.outer(r, np.eye(2)[axis])
        norm = np.linalg.norm(gradient_of(g, ray), axis=1)
        peak = np.argmax(norm)
        assert r[peak] == pytest.approx(semi, abs=0.02) and 0 < peak < 399  # semi-axes of the level set, the peak
        level = norm[peak] / 2
        assert np.count_nonzero(np.diff(np.sign(norm - level))) == 2
    # nor is the inner branch alone an ellipse: |grad g| = 0.29 on both axes and between them
    inner, r = [], np.linspace(0, 2, 20001)
    for angle in (0, math.pi / 4, math.pi / 2):
        ray = np.outer(r, [2 * math.cos(angle), math.sin(angle)])
        inner.append(ray[np.argmax(np.linalg.norm(gradient_of(g, ray), axis=1) >= 0.29)])
    (a, _), (x, y), (_, b) = inner
    assert abs((x / a) ** 2 + (y / b) ** 2 - 1) > 0.01  # the grid is good for 1e-4


def test_a_2_9_2_normalising_constant_has_the_determinant_of_the_covariance(covariance):
    C = covariance(2)
    A = -np.linalg.inv(C) / 2
    at_mean = gaussian.log_prob(np.zeros(2), np.zeros(2), C)
    assert at_mean == pytest.approx(-math.log(2 * math.pi) - math.log(np.linalg.det(C)) / 2)
    assert at_mean != pytest.approx(-math.log(2 * math.pi) - math.log(np.linalg.det(A)) / 2)
    assert np.linalg.det(-0.5 * np.eye(3)) < 0  # printed, in odd dimensions: the root of a negative number


def test_a_3_1_2_variance_is_the_square_of_sigma(rng, agrees):
    x = rng.standard_normal(40000) * 3
    agrees(x**2, 9)
    assert abs(np.mean(x**2) - 3) > 5


def test_a_3_2_squeezing_shrinks_the_eigenvalue_of_the_covariance_and_pca_drops_the_smallest(rng):
    x = rng.standard_normal((20000, 2)) * [2.0, 1.0]
    squeezed = x * [1.0, 0.1]
    before, after = (np.linalg.eigvalsh(np.cov(z.T)) for z in (x, squeezed))
    assert after[0] < before[0] / 50  # printed: it grows; that is true of the precision
    assert np.linalg.eigvalsh(np.linalg.inv(np.cov(squeezed.T)))[1] > 50 / before[0]
    V = np.linalg.eigh(np.cov(squeezed.T))[1]
    lost = [np.mean((squeezed @ V[:, i]) ** 2) for i in (0, 1)]  # what is lost by dropping that direction
    assert lost[0] < lost[1] / 100  # printed: the plane normal to the largest is kept, so the largest is dropped


def factorises(p):
    """Whether p(y1, y2 | x1, x2) = p(y1 | x1) p(y2 | x2), for a table p[x1, x2, y1, y2]."""
    given = p / p.sum((2, 3), keepdims=True)
    y1 = p.sum((1, 3)) / p.sum((1, 2, 3))[:, None]
    y2 = p.sum((0, 2)) / p.sum((0, 2, 3))[:, None]
    return same(given, np.einsum("ay,bz->abyz", y1, y2))


def test_a_3_2_1_a_label_is_independent_of_the_other_inputs_given_its_own(rng):
    """Printed (2): x_i, y_i independent given x_j. Two inputs whose labels are swapped satisfy it and do not
    factorise. For more than two, y_i must be independent of the other inputs jointly, not of each alone."""
    p_x, q1, q2 = np.full((2, 2), 0.25), *rng.dirichlet(np.ones(2), (2, 2))
    swapped = np.einsum("ab,by,az->abyz", p_x, q1, q2)
    y1_given = swapped.sum(3) / swapped.sum((2, 3))[..., None]
    assert same(y1_given[0], y1_given[1])  # x_1, y_1 independent given x_2
    assert not factorises(swapped)
    assert factorises(np.einsum("ab,ay,bz->abyz", p_x, q1, q2))
    # y_1 = x_2 xor x_3: independent of x_2 given x_1 and of x_3 given x_1, but p(y_1 | x) is not p(y_1 | x_1)
    p = np.zeros((2, 2, 2, 2))
    for x1, x2, x3 in itertools.product((0, 1), repeat=3):
        p[x1, x2, x3, x2 ^ x3] = 1 / 8
    for other in (1, 2):
        pair = p.sum(3 - other)  # [x1, the other one left, y1]
        assert same(pair / pair.sum(2, keepdims=True), 0.5)
    assert not same(p / p.sum(3, keepdims=True), 0.5)
    # nor do labels independent in pairs factorise: y_3 = y_1 xor y_2, whatever x
    labels = np.zeros((2, 2, 2))
    for y1, y2 in itertools.product((0, 1), repeat=2):
        labels[y1, y2, y1 ^ y2] = 1 / 4
    assert all(same(labels.sum(k), 1 / 4) for k in range(3)) and not same(labels, 1 / 8)


def test_a_3_3_6_and_3_5_5_the_estimate_is_the_argmin_and_the_constant_half_log_2_pi(rng):
    labels = np.array([1] * 3 + [0] * 7)
    theta = np.linspace(0.01, 0.99, 99)
    losses = [ops.cross_entropy(np.tile(np.log([1 - p, p]), (10, 1)), labels).item() for p in theta]
    best = theta[np.argmin(losses)]
    assert best == pytest.approx(0.3) and best != pytest.approx(-math.log(0.3))
    y, f = rng.standard_normal((2, 5, 1))
    minus_log = -gaussian.log_prob(y, f, variance=1.0).sum()
    half_squares = ops.mse_loss(f, y, reduction="sum").item() / 2
    assert minus_log == pytest.approx(5 * math.log(2 * math.pi) / 2 + half_squares)
    assert minus_log != pytest.approx(5 * math.log(2 * math.pi) + half_squares)


def test_a_3_6_14_the_last_term_is_a_m_b_n(rng):
    """With m = 3 and n = 2, b_3 being zero: printed a_n b_m."""
    X, Y = rng.standard_normal((3, 30)), rng.standard_normal((2, 30))
    a, b = np.array([1.0, 2.0, 4.0]), np.array([3.0, 5.0, 0.0])

    def cov(u, v):
        return np.mean((u - u.mean()) * (v - v.mean()))

    u, v = a[:2] @ X[:2], b[0] * Y[0]
    rest = cov(u, v) + b[1] * cov(u, Y[1]) + a[2] * cov(X[2], v)
    both = cov(a @ X, b[:2] @ Y)
    assert both == pytest.approx(rest + a[2] * b[1] * cov(X[2], Y[1]))
    assert both != pytest.approx(rest + a[1] * b[2] * cov(X[2], Y[1]), rel=1e-2)


def test_a_3_6_29_the_factor_belongs_inside(rng):
    y = rng.standard_normal((8, 1)) + 3
    theta = np.linspace(0, 6, 601)
    sums = [ops.mse_loss(np.full((8, 1), v), y, reduction="sum").item() for v in theta]
    means = [ops.mse_loss(np.full((8, 1), v), y).item() for v in theta]
    assert np.argmin(sums) == np.argmin(means)
    assert theta[np.argmin(means)] == pytest.approx(y.mean(), abs=0.005)
    assert abs(theta[np.argmin(sums)] / 8 - y.mean()) > 1  # printed


def test_a_4_1_7_4_1_10_4_1_13_indices(rng):
    """The free index belongs to the element: with any other fixed row or column the sums are wrong."""
    X, W, b = (td.Tensor(rng.standard_normal(s), requires_grad=True) for s in [(4, 3), (3, 4), 4])
    L_Y = rng.standard_normal((4, 4))
    ops.linear(X, W, b).backward(L_Y)
    for free in range(4):
        L_X = np.array([[sum(L_Y[free, m] * W.data[j, m] for m in range(4)) for j in range(3)] for _ in range(4)])
        L_W = np.array([[sum(L_Y[n, free] * X.data[n, i] for n in range(4)) for _ in range(4)] for i in range(3)])
        assert not same(L_X, X.grad) and not same(L_W, W.grad) and not same(np.full(4, L_Y[:, free].sum()), b.grad)
    assert same(np.einsum("im,jm->ij", L_Y, W.data), X.grad)
    assert same(np.einsum("nj,ni->ij", L_Y, X.data), W.grad) and same(np.einsum("nj->j", L_Y), b.grad)
    assert same(X.data.T @ L_Y, W.grad)  # (4.1.11): X^T


def test_a_5_1_the_reverse_process_removes_noise(agrees):
    """Data N(0, 1/4) and the exact eps: the noise variance of what is sampled falls from step to step."""
    s = Schedule.linear(20, 0.01, 0.5)
    d = Diffusion(s, clip_x0=False)

    def exact(x, t, labels=None):
        ab = s.alpha_bar[t].reshape(-1, 1)
        return x * np.sqrt(1 - ab) / (ab / 4 + 1 - ab)

    variances = [1.0] + [st.x.var() for st in sample_steps(exact, d, (5000, 1), Generator(0))]
    assert variances[-1] == pytest.approx(0.25, rel=0.15)
    assert variances[-1] < variances[10] < variances[0]
    noisier = 1.0 + s.beta[1:].sum()  # what adding noise again would come to
    assert max(variances) < 1.1 < noisier


def test_a_5_2_9_the_mean_has_the_product(rng):
    x0 = rng.standard_normal((1, 3))
    mean = Diffusion(S).q_sample(x0, T, np.zeros((1, 3)))
    assert same(mean, math.sqrt(math.prod(S.alpha[1 : T + 1])) * x0) and not same(mean, math.sqrt(S.alpha[T]) * x0)
