"""Source A: B. Karaca, "AI Manifesto: Appreciation of Mathematics Underlying Machine Learning Concepts" (2024)."""

import math

import numpy as np
import pytest

import tinydiff as td
from tests.sources.chains import joint_of_chain
from tinydiff import ops
from tinydiff.diffusion import Schedule, gaussian

S = Schedule.linear(30, 0.01, 0.5)


def quadratic(X, A, b, c):
    """q(x) = x^T A x + x^T b + c (2.9.1) of each row of X."""
    return ops.sum(X * (X @ A), axis=1) + X @ b + c


def gradient_at(f, x):
    """The gradient of a function of rows (N, d) at each row of x, by tinydiff's tape."""
    X = td.Tensor(np.atleast_2d(x), requires_grad=True)
    f(X).sum().backward()
    return X.grad.reshape(np.shape(x))


def symmetric(eigenvalues, rng):
    P = np.linalg.qr(rng.standard_normal((len(eigenvalues),) * 2))[0]
    return P @ np.diag(eigenvalues) @ P.T, P


# --- 2: linear algebra ---


def test_a_2_1_1_p_norm(rng):
    a, b = rng.standard_normal((2, 7))
    for p in (1, 1.5, 2, 3):
        norm, of_b, of_sum = ((ops.abs(x) ** p).sum().item() ** (1 / p) for x in (td.Tensor(v) for v in (a, b, a + b)))
        assert norm == pytest.approx(np.linalg.norm(a, p))
        assert of_sum <= norm + of_b


def test_a_2_2_18_cosine_law(rng):
    alpha, beta, a = rng.uniform(0.1, 1.4, (3, 50))
    b = a * np.cos(alpha) / np.cos(beta)  # both are |CD| over a cosine (2.2.5)
    c = a * np.sin(alpha) + b * np.sin(beta)
    np.testing.assert_allclose(c**2, a**2 + b**2 - 2 * a * b * np.cos(alpha + beta), rtol=1e-12)


def test_a_2_3_6_dot_product_and_cosine(rng):
    a, b = rng.standard_normal((2, 3))
    angle = 2 * math.atan2(*(np.linalg.norm(a / np.linalg.norm(a) + s * b / np.linalg.norm(b)) for s in (-1, 1)))
    assert ops.matmul(a, b).item() == pytest.approx(np.linalg.norm(a) * np.linalg.norm(b) * math.cos(angle))


def test_a_2_3_9_hyperplane(rng):
    a, p = rng.standard_normal((2, 4))
    across = rng.standard_normal((20, 4))
    across -= np.outer(across @ a, a) / (a @ a)
    np.testing.assert_allclose(ops.linear(p + across, a[:, None], np.array([-a @ p])).data, 0, atol=1e-12)
    assert abs(ops.linear((p + a)[None], a[:, None], np.array([-a @ p])).item() - a @ a) < 1e-12


@pytest.mark.parametrize("f", [ops.exp, lambda x: x * x, ops.abs, lambda x: -1.0 * ops.log(x + 10.0)])
def test_a_2_4_18_jensen(f, rng):
    c = rng.dirichlet(np.ones(5), 200)
    x = rng.uniform(-3, 3, (200, 5))
    of_mean, mean_of = f((c * x).sum(1)), (c * f(td.Tensor(x))).sum(axis=1)
    assert np.all(of_mean.data <= mean_of.data + 1e-12)


def test_a_2_5_1_gram_matrix_is_positive_semi_definite(rng):
    X, z = rng.standard_normal((3, 5)), rng.standard_normal((100, 5))
    A = ops.matmul(X.T, X).data
    np.testing.assert_allclose(quadratic(td.Tensor(z), A, np.zeros(5), 0.0).data, ((z @ X.T) ** 2).sum(1), atol=1e-12)
    assert np.linalg.eigvalsh(A).min() > -1e-12
    with pytest.raises(ValueError, match="not positive definite"):  # of rank 3 in 5 dimensions: no density
        gaussian.entropy(A)


def test_a_2_6_11_orthonormal_eigenbasis(rng):
    A, _ = symmetric([3.0, 1.0, 1.0, -2.0], rng)
    values, P = np.linalg.eigh(A)
    np.testing.assert_allclose(P.T @ P, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(ops.einsum("ij,j,kj->ik", P, values, P).data, A, atol=1e-12)


def test_a_2_7_definiteness_is_the_sign_of_the_eigenvalues(rng):
    for values in ([1.0, 2.0, 0.5], [-1.0, -2.0, -0.5], [1.0, -2.0, 0.5]):
        A, P = symmetric(values, rng)
        z = np.concatenate([rng.standard_normal((50, 3)), P.T])
        forms = quadratic(td.Tensor(z), A, np.zeros(3), 0.0).data
        np.testing.assert_allclose(forms, (z @ P) ** 2 @ np.array(values), atol=1e-12)  # (2.7.3)
        np.testing.assert_allclose(np.linalg.norm(z @ P, axis=1), np.linalg.norm(z, axis=1))
        assert set(np.sign(forms)) == set(np.sign(values))


def test_a_2_8_4_determinant_is_the_product_of_eigenvalues(covariance):
    C = covariance(4)
    log_det = np.log(np.linalg.eigvalsh(C)).sum()
    assert 2 * gaussian.entropy(C) - 4 * (1 + math.log(2 * math.pi)) == pytest.approx(log_det)


def test_a_2_9_3_gradient_of_a_quadratic(rng):
    A, _ = symmetric([2.0, -1.0, 0.3], rng)
    b, x = rng.standard_normal((2, 3))
    np.testing.assert_allclose(gradient_at(lambda X: quadratic(X, A, b, 0.7), x), 2 * A @ x + b, rtol=1e-12)
    B = rng.standard_normal((3, 3))  # any square matrix: (2.9.2)
    np.testing.assert_allclose(gradient_at(lambda X: quadratic(X, B, b, 0.7), x), (B + B.T) @ x + b, rtol=1e-12)


@pytest.mark.parametrize("values", [[2.0, 0.5], [-2.0, -0.5], [2.0, -0.5]])
def test_a_2_9_5_minimum_maximum_saddle_by_the_eigenvalues(values, rng):
    A, P = symmetric(values, rng)
    b = rng.standard_normal(2)
    critical = -np.linalg.solve(A, b) / 2
    np.testing.assert_allclose(gradient_at(lambda X: quadratic(X, A, b, 0.0), critical), 0, atol=1e-12)
    steps = np.concatenate([P.T, rng.standard_normal((50, 2))])
    q = quadratic(td.Tensor(np.concatenate([[critical], critical + steps])), A, b, 0.0).data
    np.testing.assert_allclose(q[1:] - q[0], ((steps @ A) * steps).sum(1), atol=1e-12)
    assert set(np.sign(q[1:] - q[0])) == set(np.sign(values))


def test_a_2_9_16_gradient_norm_contours_are_ellipsoids(rng):
    """Semi-axes c / (2 |lambda_i|) along v_i, for indefinite A too."""
    values, c = np.array([2.0, -0.5, 0.8]), 1.7
    A, P = symmetric(values, rng)
    b, u = rng.standard_normal(3), rng.standard_normal((100, 3))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    critical = -np.linalg.solve(A, b) / 2
    on_ellipsoid = critical + (u * c / (2 * np.abs(values))) @ P.T
    gradients = gradient_at(lambda X: quadratic(X, A, b, 0.0), on_ellipsoid)
    np.testing.assert_allclose(np.linalg.norm(gradients, axis=1), c, rtol=1e-12)
    tips = critical + (c / (2 * values))[:, None] * P.T
    np.testing.assert_allclose(gradient_at(lambda X: quadratic(X, A, b, 0.0), tips), c * P.T, atol=1e-12)  # (2.9.17)


def test_a_2_9_19_critical_points_of_exp_of_a_quadratic(rng):
    A, _ = symmetric([-2.0, -0.5], rng)
    b, x = rng.standard_normal((2, 2))

    def g(X):
        return 3.0 * ops.exp(quadratic(X, A, b, 0.1))

    critical = -np.linalg.solve(A, b) / 2
    np.testing.assert_allclose(gradient_at(g, critical), 0, atol=1e-12)
    of_q = gradient_at(lambda X: quadratic(X, A, b, 0.1), x)
    np.testing.assert_allclose(gradient_at(g, x), of_q * g(td.Tensor(x[None])).item(), rtol=1e-12)
    d = rng.standard_normal((20, 2))
    np.testing.assert_allclose(  # (2.9.22)
        g(td.Tensor(critical + d)).data, np.exp(((d @ A) * d).sum(1)) * g(td.Tensor(critical[None])).data, rtol=1e-12
    )


def test_a_2_9_2_a_gaussian_is_the_negative_definite_case(rng, covariance):
    """A = -C^-1 / 2, b = -2 A mu, c = mu^T A mu, h = 1 / sqrt((2 pi)^n det C); level sets with semi-axes along v_i."""
    C, mu, x = covariance(3), rng.standard_normal(3), rng.standard_normal((20, 3))
    A = -np.linalg.inv(C) / 2
    log_h = -(3 * math.log(2 * math.pi) + np.linalg.slogdet(C)[1]) / 2
    q = quadratic(td.Tensor(x), A, -2 * A @ mu, mu @ A @ mu).data
    np.testing.assert_allclose(log_h + q, gaussian.log_prob(x, mu, C), rtol=1e-9)
    values, P = np.linalg.eigh(C)
    u = rng.standard_normal((50, 3))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    level = gaussian.log_prob(mu + (u * np.sqrt(values)) @ P.T, mu, C)
    np.testing.assert_allclose(level, log_h - 0.5, rtol=1e-9)


# --- 3: probability ---


def test_a_3_1_mean_variance_covariance(rng, covariance, agrees):
    C, mu = covariance(2), rng.standard_normal(2)
    x = mu + rng.standard_normal((40000, 2)) @ np.linalg.cholesky(C).T
    agrees(x, mu)
    agrees((x - mu)[:, :, None] * (x - mu)[:, None, :], C)
    grid, dx = np.linspace(-30, 30, 4001, retstep=True)
    p = np.exp(gaussian.log_prob(grid[:, None], mu[:1], C[:1, :1]))
    assert (p * grid).sum() * dx == pytest.approx(mu[0])
    assert (p * (grid - mu[0]) ** 2).sum() * dx == pytest.approx(C[0, 0])


def test_a_3_1_4_to_3_1_6_entropy_cross_entropy_and_kl(rng, covariance, agrees):
    m1, m2, C1, C2 = *rng.standard_normal((2, 3)), covariance(3), covariance(3)
    x = m1 + rng.standard_normal((40000, 3)) @ np.linalg.cholesky(C1).T
    log_p, log_q = gaussian.log_prob(x, m1, C1), gaussian.log_prob(x, m2, C2)
    agrees(-log_p, gaussian.entropy(C1))
    agrees(log_p - log_q, gaussian.kl(m1, C1, m2, C2))
    agrees(-log_q, gaussian.entropy(C1) + gaussian.kl(m1, C1, m2, C2))  # H(p, q) = H(p) + KL(p || q)


def test_a_3_2_independent_is_uncorrelated_but_not_the_other_way(rng, agrees):
    x, y = rng.standard_normal((2, 40000))
    agrees(x * y, 0)
    agrees(x * (x * x - 1), 0)  # uncorrelated with x, and yet a function of it
    assert np.abs(np.mean(x**2 * (x**2 - 1)) - np.mean(x**2) * np.mean(x**2 - 1)) > 1


def test_a_3_2_4_conditional_independence_factorises(rng):
    p_c, p_a, p_b = rng.dirichlet(np.ones(3)), rng.dirichlet(np.ones(2), 3), rng.dirichlet(np.ones(4), 3)
    joint = np.einsum("c,ca,cb->abc", p_c, p_a, p_b)
    a_given_bc = joint / joint.sum(0)
    np.testing.assert_allclose(a_given_bc, np.broadcast_to(p_a.T[:, None], a_given_bc.shape))  # (3.2.1)
    np.testing.assert_allclose(joint / joint.sum((0, 1)), np.einsum("ca,cb->abc", p_a, p_b))  # (3.2.4)


def test_a_3_2_6_labels_factorise_over_their_inputs(rng):
    """y_i and y_j independent given x, y_i independent of the other inputs given x_i; the inputs may depend."""
    p_x, p1, p2 = rng.dirichlet(np.ones(4)).reshape(2, 2), *rng.dirichlet(np.ones(3), (2, 2))
    joint = np.einsum("ab,ay,bz->abyz", p_x, p1, p2)
    given_x = joint / joint.sum((2, 3), keepdims=True)
    y1 = joint.sum((1, 3)) / joint.sum((1, 2, 3))[:, None]
    y2 = joint.sum((0, 2)) / joint.sum((0, 2, 3))[:, None]
    np.testing.assert_allclose(given_x, np.einsum("ay,bz->abyz", y1, y2))


def test_a_3_3_maximum_likelihood_is_least_cross_entropy_is_least_kl(rng):
    labels = rng.choice(4, 500, p=[0.1, 0.2, 0.3, 0.4])
    data = np.bincount(labels, minlength=4) / 500
    candidates = np.concatenate([[data], rng.dirichlet(np.ones(4), 200)])
    losses = [ops.cross_entropy(np.tile(np.log(p), (500, 1)), labels).item() for p in candidates]
    likelihood = [np.log(p)[labels].sum() for p in candidates]
    kl = (data * np.log(data / candidates)).sum(1)
    np.testing.assert_allclose(losses, -np.array(likelihood) / 500, rtol=1e-12)
    np.testing.assert_allclose(losses, kl - (data * np.log(data)).sum(), rtol=1e-9)  # (3.3.11)
    assert np.argmax(likelihood) == np.argmin(losses) == np.argmin(kl) == 0


def test_a_3_3_gradient_of_cross_entropy_is_p_minus_y(rng):
    logits, labels = td.Tensor(rng.standard_normal((6, 4)), requires_grad=True), rng.integers(0, 4, 6)
    ops.cross_entropy(logits, labels).backward()
    p = np.exp(logits.data) / np.exp(logits.data).sum(1, keepdims=True)
    np.testing.assert_allclose(logits.grad, (p - np.eye(4)[labels]) / 6, rtol=1e-12)


def test_a_3_4_6_kl_is_not_negative(rng, covariance):
    for _ in range(50):
        m1, m2, C1, C2 = *rng.standard_normal((2, 3)), covariance(3), covariance(3)
        assert gaussian.kl(m1, C1, m2, C2) > 0
    assert gaussian.kl(m1, C1, m1, C1) == pytest.approx(0, abs=1e-12)
    p, q = rng.dirichlet(np.ones(5), (2, 300))
    kl = (td.Tensor(p) * (ops.log(p) - ops.log(q))).sum(axis=1).data
    assert kl.min() > 0


def test_a_3_5_6_maximum_likelihood_with_unit_noise_is_least_squares(rng):
    X, y = rng.standard_normal((50, 3)), rng.standard_normal((50, 1))
    fit = np.linalg.lstsq(X, y, rcond=None)[0]
    theta = np.concatenate([fit[None], rng.standard_normal((100, 3, 1))])
    mse = np.array([ops.mse_loss(ops.linear(X, w), y).item() for w in theta])
    likelihood = np.array([gaussian.log_prob(y, X @ w, variance=1.0).sum() for w in theta])
    np.testing.assert_allclose(likelihood, -50 / 2 * (math.log(2 * math.pi) + mse), rtol=1e-12)
    assert np.argmax(likelihood) == np.argmin(mse) == 0
    w = td.Tensor(fit, requires_grad=True)
    ops.mse_loss(ops.linear(X, w), y).backward()
    np.testing.assert_allclose(w.grad, 0, atol=1e-14)


def test_a_3_6_16_covariance_is_bilinear(rng):
    X, Y = rng.standard_normal((3, 50)), rng.standard_normal((4, 50))
    a, b = rng.standard_normal(3), rng.standard_normal(4)

    def cov(u, v):
        return np.mean((u - u.mean(-1, keepdims=True))[..., :, None, :] * (v - v.mean(-1, keepdims=True)), -1)

    assert cov((a @ X)[None], (b @ Y)[None]).item() == pytest.approx(a @ cov(X, Y) @ b)
    np.testing.assert_allclose((a @ X).mean(), a @ X.mean(1))  # (3.6.5)


def test_a_3_6_28_standard_error_of_a_mean(rng, agrees):
    for n in (4, 100):
        means = ops.mean(rng.standard_normal((5000, n)) * 3, axis=1).data
        agrees(means**2, 9 / n)  # their variance; the mean is 0


def test_a_3_6_29_a_mean_loss_does_not_depend_on_the_batch_size(rng):
    """The same rows twice: the same gradient for the mean, twice the gradient for the sum."""
    X, y = rng.standard_normal((5, 3)), rng.standard_normal((5, 1))
    for reduction, factor in (("mean", 1), ("sum", 2)):
        grads = []
        for copies in (1, 2):
            w = td.Tensor(np.ones((3, 1)), requires_grad=True)
            loss = ops.mse_loss(ops.linear(np.tile(X, (copies, 1)), w), np.tile(y, (copies, 1)), reduction=reduction)
            loss.backward()
            grads.append(w.grad)
        np.testing.assert_allclose(grads[1], factor * grads[0], rtol=1e-12)


def test_a_3_7_5_markov_factorisation_of_the_forward_chain(rng):
    s, x = S.truncated(6), rng.standard_normal((20, 7))
    C = joint_of_chain(s, 0.5)
    factors = gaussian.log_prob(x[:, :1], [0.0], variance=0.5)
    for t in range(1, 7):
        factors = factors + gaussian.log_prob(
            x[:, t : t + 1], np.sqrt(s.alpha[t]) * x[:, t - 1 : t], variance=s.beta[t]
        )
    np.testing.assert_allclose(gaussian.log_prob(x, np.zeros(7), C), factors, rtol=1e-9)
    np.testing.assert_allclose(np.triu(np.linalg.inv(C), 2), 0, atol=1e-9)  # x_t needs x_{t-1} only
