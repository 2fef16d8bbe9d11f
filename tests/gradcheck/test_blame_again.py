"""Lines of backward passes that tinydiff/gradcheck/blame.py names or leaves: indices, copies, complex numbers, constants."""

import inspect

import numpy as np
import pytest

from tinydiff.gradcheck import GradientError, gradcheck

RNG = np.random.default_rng(0)


def n(*shape):
    return RNG.normal(size=shape)


def max_pool(x):
    out, places = np.zeros((3, 2)), np.zeros((3, 2, 2), int)
    for i in range(3):
        for j in range(2):
            window = x[2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            places[i, j] = np.unravel_index(window.argmax(), (2, 2))
            out[i, j] = window.max()
    return out, places


def pool_unpacked(dout, cache):
    dx = np.zeros((6, 4))
    for i in range(3):
        for j in range(2):
            b, a = cache[i, j]  # wrong
            dx[2 * i + a, 2 * j + b] += dout[i, j]
    return dx


def pool_exchanged(dout, cache):
    dx = np.zeros((6, 4))
    for i in range(3):
        for j in range(2):
            place = cache[i, j]
            a, b = place[0], place[1]
            dx[2 * i + b, 2 * j + a] += dout[i, j]  # wrong
    return dx


def gate(x, h, U):
    hn = h @ U
    r = 1 / (1 + np.exp(-x))
    an = x + r * hn
    return np.tanh(an), (h, r, hn, np.tanh(an), U)


def gate_copied(dout, cache):
    h, r, hn, y, U = cache
    dan = dout * (1 - y**2)
    dhn = dan  # wrong
    dx = dan + dan * hn * r * (1 - r)
    return dx, dhn @ U.T, h.T @ dhn


def centred(x, gamma):
    xhat = (x - x.mean(0)) / np.sqrt(x.var(0))
    return xhat * gamma, (xhat, gamma, np.sqrt(x.var(0)))


def centred_upstream(dout, cache):
    xhat, gamma, std = cache
    dxhat = dout * gamma
    dx = (dxhat - dxhat.mean(0) - xhat * (dout * xhat).mean(0)) / std  # wrong
    return dx, (dout * xhat).sum(0)


def power(x):
    X = np.fft.rfft(x)
    return X.real**2 + X.imag**2, (X, x.shape[-1])


def power_real(g, cache):
    X, length = cache
    dX = 2 * g * X
    return np.fft.irfft(dX, length) * length  # wrong


def power_conjugated(g, cache):
    X, length = cache
    dX = 2 * g * X.conj()
    return np.fft.irfft(dX, length) * length  # wrong


def turn(x, c, s):
    y = np.empty_like(x)
    y[:, ::2] = x[:, ::2] * c - x[:, 1::2] * s
    y[:, 1::2] = x[:, ::2] * s + x[:, 1::2] * c
    return y, (c, s)


def turn_sign(g, cache):
    c, s = cache
    dx = np.empty_like(g)
    dx[:, ::2] = g[:, ::2] * c + g[:, 1::2] * s
    dx[:, 1::2] = g[:, ::2] * s + g[:, 1::2] * c  # wrong
    return dx


def gelu(x):
    t = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
    return 0.5 * x * (1 + t), (x, t)


def gelu_constant(g, cache):
    x, t = cache
    du = 1 + 3 * 0.044715 * x**2  # wrong
    return g * (0.5 * (1 + t) + 0.5 * x * (1 - t**2) * du)


def gelu_three(g, cache):
    x, t = cache
    du = np.sqrt(2 / np.pi) * (1 + 0.044715 * x**2)  # wrong
    return g * (0.5 * (1 + t) + 0.5 * x * (1 - t**2) * du)


ANGLES = np.outer(np.arange(1.0, 4), [1, 0.1])
NAMED = {
    pool_unpacked: (max_pool, [n(6, 4)]),
    pool_exchanged: (max_pool, [n(6, 4)]),
    gate_copied: (gate, [n(3, 2), n(3, 4), n(4, 2)]),
    centred_upstream: (centred, [n(6, 3), n(3)]),
    power_real: (power, [n(3, 8)]),
    power_conjugated: (power, [n(3, 8)]),
    turn_sign: (turn, [n(3, 4), np.cos(ANGLES), np.sin(ANGLES)]),
    gelu_constant: (gelu, [n(4, 5)]),
    gelu_three: (gelu, [n(4, 5)]),
}


@pytest.mark.parametrize("backward", NAMED, ids=lambda f: f.__name__)
def test_the_line_is_named(backward):
    forward, inputs = NAMED[backward]
    with pytest.raises(GradientError) as caught:
        gradcheck(forward, inputs, backward=backward, cache=True, wrt=["x"] if forward is turn else None)
    blame = next(finding.blame for finding in caught.value.report.findings if finding.blame)
    source, first = inspect.getsourcelines(backward)
    line = next(i for i, text in enumerate(source, first) if text.endswith("# wrong\n"))
    assert line in {blame.line, *blame.others}


def test_two_wrong_lines_accuse_no_right_one():
    def both(g, cache):
        c, s = cache
        dx = np.empty_like(g)
        dx[:, ::2] = g[:, ::2] * c - g[:, 1::2] * s  # wrong
        dx[:, 1::2] = g[:, ::2] * s + g[:, 1::2] * c  # wrong
        return dx

    with pytest.raises(GradientError) as caught:
        gradcheck(turn, [n(3, 4), np.cos(ANGLES), np.sin(ANGLES)], backward=both, cache=True, wrt=["x"])
    wrong = {both.__code__.co_firstlineno + i for i in (3, 4)}
    assert {f.blame.line for f in caught.value.report.findings if f.blame} <= wrong
