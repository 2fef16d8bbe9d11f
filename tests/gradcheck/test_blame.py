"""tinydiff/gradcheck/blame.py: which line of a backward pass is wrong."""

import importlib.util
import inspect

import numpy as np
import pytest
from homework import layers, losses, sequences
from homework.base import softmax

import tinydiff as td
from tinydiff.errors import InputError
from tinydiff.gradcheck import GradientError, gradcheck

RNG = np.random.default_rng(3)


def n(*shape):
    return RNG.normal(size=shape)


def attention_sum(dO, cache):
    Q, K, V, P = cache
    dV = P.T @ dO
    dP = dO @ V.T
    dS = P * (dP - dP.sum(-1, keepdims=True)) / np.sqrt(Q.shape[-1])  # wrong
    return dS @ K, dS.T @ Q, dV


def attention_axis(dO, cache):
    Q, K, V, P = cache
    dV = P.T @ dO
    dP = dO @ V.T
    dS = P * (dP - (dP * P).sum(0, keepdims=True)) / np.sqrt(Q.shape[-1])  # wrong
    return dS @ K, dS.T @ Q, dV


def attention_turned(dO, cache):
    Q, K, V, P = cache
    dV = P.T @ dO
    dP = dO @ V.T
    dS = P * (dP - (dP * P).sum(-1, keepdims=True)) / np.sqrt(Q.shape[-1])
    dK = dS @ Q  # wrong
    return dS @ K, dK, dV


def rnn_square(dnext_h, cache):
    x, prev_h, Wx, Wh, next_h = cache
    da = dnext_h * (1 - next_h) ** 2  # wrong
    return da @ Wx.T, da @ Wh.T, x.T @ da, prev_h.T @ da, da.sum(axis=0)


def rnn_turned(dnext_h, cache):
    x, prev_h, Wx, Wh, next_h = cache
    da = dnext_h * (1 - next_h**2)
    dprev = da @ Wh  # wrong
    return da @ Wx.T, dprev, x.T @ da, prev_h.T @ da, da.sum(axis=0)


def rnn_through_time(dh, cache):
    N, T, H = dh.shape
    D = cache[0][0].shape[1]
    dx, dprev = np.zeros((N, T, D)), np.zeros((N, H))
    dWx, dWh, db = np.zeros((D, H)), np.zeros((H, H)), np.zeros(H)
    for t in reversed(range(T)):
        dx[:, t], dprev, dwx, dwh, dbt = sequences.rnn_step_backward(dh[:, t] + dprev, cache[t])
        dWx += dwx
        dWh = dwh  # wrong
        db += dbt
    return dx, dprev, dWx, dWh, db


def batchnorm_power(dout, cache):
    x, xhat, mu, std, gamma = cache
    N = x.shape[0]
    dbeta = dout.sum(axis=0)
    dgamma = (dout * xhat).sum(axis=0)
    dxhat = dout * gamma
    dvar = np.sum(dxhat * (x - mu), axis=0) * -0.5 / std**2  # wrong
    dmu = -np.sum(dxhat, axis=0) / std + dvar * np.mean(-2 * (x - mu), axis=0)
    dx = dxhat / std + dvar * 2 * (x - mu) / N + dmu / N
    return dx, dgamma, dbeta


def batchnorm_uncentred(dout, cache):
    x, xhat, mu, std, gamma = cache
    N = x.shape[0]
    dbeta = dout.sum(axis=0)
    dgamma = (dout * xhat).sum(axis=0)
    dxhat = dout * gamma
    dvar = np.sum(dxhat * (x - mu), axis=0) * -0.5 / std**3
    dmu = -np.sum(dxhat, axis=0) / std
    dx = dxhat / std + dvar * 2 * x / N + dmu / N  # wrong
    return dx, dgamma, dbeta


def batchnorm_gamma(dout, cache):
    x, xhat, mu, std, gamma = cache
    N = len(x)
    dbeta = dout.sum(0)
    dgamma = (dout * x).sum(0)  # wrong
    sums = (dout * xhat).sum(0)
    dx = gamma / (N * std) * (N * dout - dbeta - xhat * sums)
    return dx, dgamma, dbeta


def softmax_rows(dout, cache):
    probs, y = cache
    N = len(probs)
    dx = probs.copy()
    dx[:, y] -= 1  # wrong
    return dout * dx / N


_attention = [n(4, 4), n(4, 4), n(4, 4)]
_rnn = [n(3, 4), n(3, 5), n(4, 5), n(5, 5), n(5)]
_norm = [n(5, 4), n(4), n(4)]

WRONG = [
    (sequences.attention_forward, attention_sum, _attention),
    (sequences.attention_forward, attention_axis, _attention),
    (sequences.attention_forward, attention_turned, _attention),
    (sequences.rnn_step_forward, rnn_square, _rnn),
    (sequences.rnn_step_forward, rnn_turned, _rnn),
    (sequences.rnn_forward, rnn_through_time, [n(2, 3, 4), n(2, 5), n(4, 5), n(5, 5), n(5)]),
    (layers.batchnorm_forward, batchnorm_power, _norm),
    (layers.batchnorm_forward, batchnorm_uncentred, _norm),
    (layers.batchnorm_forward, batchnorm_gamma, _norm),
    (losses.softmax_loss, softmax_rows, [n(5, 3), np.array([0, 2, 1, 2, 0])]),
]


def failure(forward, backward, inputs, **options):
    with pytest.raises(GradientError) as caught:
        gradcheck(forward, inputs, backward=backward, **options)
    return caught.value.report


def wrong_line(function):
    lines, first = inspect.getsourcelines(function)
    return first + next(i for i, line in enumerate(lines) if "# wrong" in line)


@pytest.mark.parametrize("forward, backward, inputs", WRONG, ids=lambda a: getattr(a, "__name__", ""))
def test_the_wrong_line_is_named(forward, backward, inputs):
    code = backward.__code__
    for seed in range(2):
        report = failure(forward, backward, inputs, cache=True, seed=seed)
        found = report.findings[0].blame
        assert found is not None and (found.line, found.file.rsplit("/")[-1]) == (wrong_line(backward), "test_blame.py")
        assert f"{found.file}:{found.line}: {found.text}" in str(report)
    assert backward.__code__ is code


def test_the_mended_line_is_shown():
    report = failure(sequences.attention_forward, attention_sum, _attention, cache=True)
    text = "all gradients are right with: dS = P * (dP - (dP * P).sum(-1, keepdims=True)) / np.sqrt(Q.shape[-1])"
    assert text in str(report)


def stepwise(x):
    s = np.sin(x)
    p = softmax(s)
    q = p**2
    return q @ np.arange(3.0)


def stepwise_backward(g, x):
    s = np.sin(x)
    p = softmax(s)
    dq = g[:, None] * np.arange(3.0)
    dp = 2 * p * dq
    ds = np.tanh(p) * dp + np.cos(dp)  # wrong
    return ds * np.cos(x)


def test_without_a_change_that_mends_it_the_first_wrong_value_is_named():
    report = failure(stepwise, stepwise_backward, [n(4, 3)])
    found = report.findings[0].blame
    assert (found.line, found.variable, found.fix) == (wrong_line(stepwise_backward), "ds", None)
    assert found.right == ["dq", "dp"]
    assert "ds is the first wrong value; dq, dp before it are right" in str(report)


def other_scale(q, k):
    s = q @ k.T
    return np.tanh(s / 7)


def other_scale_backward(g, q, k):
    ds = g * (1 - np.tanh(q @ k.T / 7) ** 2) / 7
    ds = ds * 7  # the derivative by s / 7, a convention that forward's s does not have
    return ds @ k / 7, ds.T @ q / 6  # wrong


def test_a_variable_of_another_convention_is_not_accused():
    found = failure(other_scale, other_scale_backward, [n(4, 3), n(5, 3)]).findings[0].blame
    assert found.line == wrong_line(other_scale_backward)


def unalike_backward(g, x):
    s = np.sin(x)
    p = softmax(s)
    after = 2 * p * g[:, None] * np.arange(3.0)
    delta = np.tanh(p) * after + np.cos(after)  # wrong
    return delta * np.cos(x)


def test_names_given_by_hand():
    found = failure(stepwise, unalike_backward, [n(4, 3)], names={"delta": "s", "after": "p"}).findings[0].blame
    assert (found.line, found.variable, found.right) == (wrong_line(unalike_backward), "delta", ["after"])
    assert failure(stepwise, unalike_backward, [n(4, 3)]).findings[0].blame is None
    for names in (["delta"], {"delta": 1}):
        with pytest.raises(InputError, match="names maps variables of backward"):
            gradcheck(stepwise, [n(4, 3)], backward=unalike_backward, names=names)


def cell(x, c):
    next_c = np.tanh(x) * c
    return np.stack([np.sin(next_c), next_c]), (x, c, next_c)


def cell_backward(dout, cache):
    x, c, next_c = cache
    dh, dnext_c = dout
    unused = dh * np.cos(next_c)  # noqa: F841
    dcell = dnext_c  # wrong
    return dcell * c * (1 - np.tanh(x) ** 2), dcell * np.tanh(x)


def cell_backward_in_parts(dout, cache):
    x, c, next_c = cache
    dh, dnext_c = dout
    return dnext_c * c * (1 - np.tanh(x) ** 2), dnext_c * np.tanh(x)


def test_what_only_takes_a_part_of_the_cotangent_is_not_accused():
    """It holds what came in, which is not all of the gradient of forward's variable of that name."""
    found = failure(cell, cell_backward, [n(4, 3), n(4, 3)], cache=True).findings[0].blame
    assert found.line == wrong_line(cell_backward) and found.fix == "dcell = dnext_c + unused"
    assert failure(cell, cell_backward_in_parts, [n(4, 3), n(4, 3)], cache=True).findings[0].blame is None


def log_softmax(x):
    out = x - np.log(np.exp(x).sum(1, keepdims=True))
    return out, out


def log_softmax_backward(dout, p):
    total = dout.sum(1, keepdims=True)
    return dout - p * total  # right, if p were what it is called


def unread_cache(dout, cache):
    p = cache  # wrong
    total = dout.sum(1, keepdims=True)
    return dout - p * total


def test_a_cache_that_holds_something_else():
    found = failure(log_softmax, unread_cache, [n(4, 3)], cache=True).findings[0].blame
    assert (found.line, found.fix) == (wrong_line(unread_cache), "p = np.exp(cache)")
    found = failure(log_softmax, log_softmax_backward, [n(4, 3)], cache=True).findings[0].blame
    assert found.fix == "return dout - np.exp(p) * total"


class Wrong(td.Function):
    def forward(self, X, W):
        self.save(X, W)
        return np.tanh(X @ W)

    def backward(self, L_Y):
        X, W = self.saved
        L_Z = L_Y * (1 - np.tanh(X @ W) ** 2)
        return self.first(L_Z, W), self.second(L_Z, X)

    def first(self, L_Z, W):
        return L_Z @ W.T

    def second(self, L_Z, X):
        return L_Z.T @ X  # wrong


def test_functions_and_their_methods():
    with pytest.raises(GradientError) as caught:
        gradcheck(Wrong, [n(4, 3), n(3, 2)])
    found = caught.value.report.findings[0].blame
    assert found.line == wrong_line(Wrong.second) and "X.T @ L_Z" in found.fix


def test_lambdas():
    report = failure(lambda x, w: x @ w, lambda g, x, w: (g @ w.T, g.T @ x), [n(4, 3), n(3, 2)])
    assert report.findings[0].blame.fix.replace(" ", "") in ("(g@w.T,x.T@g)", "(g@w.T,(g.T@x).T)")


def test_the_line_that_raises():
    def backward(g, x):
        a = g * x
        return a.reshape(-1, 1000, 77)[np.zeros(3, complex)]

    found = failure(np.sin, backward, [n(4, 3)]).findings[0].blame
    assert found.code == "raises" and "reshape" in found.text


def test_without_source_nothing_is_said():
    space = {}
    exec("def backward(g, x):\n    return g * x", space)
    assert failure(np.sin, space["backward"], [n(4, 3)]).findings[0].blame is None


def test_what_students_print_is_printed_by_their_own_passes_alone(capsys):
    def backward(g, x):
        print("here")
        return g * np.sin(x)

    failure(np.sin, backward, [n(4, 3)])
    assert capsys.readouterr().out.count("here") < 50


@pytest.mark.parametrize("folder", ["tinydiff", "homework"])
def test_files_in_a_folder_that_is_called_as_the_package_is(folder, tmp_path):
    """As in a checkout: only the package's own files are left alone."""
    file = tmp_path / folder / "sheet.py"
    file.parent.mkdir()
    file.write_text("def forward(x, w):\n    return x @ w\n\n\ndef backward(g, x, w):\n    return g @ w.T, g.T @ x\n")
    spec = importlib.util.spec_from_file_location(f"sheet_{folder}", file)
    sheet = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sheet)
    found = failure(sheet.forward, sheet.backward, [n(4, 3), n(3, 2)]).findings[0].blame
    assert found is not None and (found.line, found.file.rsplit("/")[-1]) == (6, "sheet.py")


# --- Losses that return their gradients.


def regression_turned(W, b, X, y, penalty):
    scores = X @ W + b
    shifted = scores - scores.max(axis=1, keepdims=True)
    P = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
    rows = np.arange(len(y))
    loss = -np.log(P[rows, y]).mean() + penalty * np.sum(W * W)
    P[rows, y] -= 1
    P /= len(y)
    return loss, (X.T @ P + penalty * W, P.sum(axis=0))  # wrong


def regression_in_place(W, b, X, y, penalty):
    scores = X @ W + b
    P = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    rows = np.arange(len(y))
    loss = -np.log(P[rows, y]).mean() + penalty * np.sum(W * W)
    P[rows, y] += 1  # wrong
    dscores = P / len(y)
    return loss, (X.T @ dscores + 2 * penalty * W, dscores.sum(axis=0))


def recurrent(U, h, steps):
    hs = {-1: h}
    for t in range(steps):
        hs[t] = np.tanh(U @ hs[t - 1])
    loss = 0.5 * np.sum(hs[steps - 1] ** 2)
    dU, dh = np.zeros_like(U), hs[steps - 1]
    for t in reversed(range(steps)):
        da = (1 - hs[t] ** 2) * dh
        dU += np.outer(da, hs[t])  # wrong
        dh = U.T @ da
    return loss, (dU, dh)


_data = [n(4, 3), n(3), n(5, 4), np.array([0, 2, 1, 2, 0]), 0.3]


@pytest.mark.parametrize(
    "loss, inputs", [(regression_turned, _data), (regression_in_place, _data), (recurrent, [n(4, 4), n(4), 3])]
)
def test_the_wrong_line_of_a_loss_is_named(loss, inputs):
    code = loss.__code__
    found = failure(loss, None, inputs).findings[0].blame
    assert found is not None and found.line == wrong_line(loss) and found.fix
    assert loss.__code__ is code


def test_no_change_of_the_loss_itself_is_proposed():
    """Both places lack a factor 2: with another loss its gradient would be right, too."""

    def loss(w):
        s = np.sin(w)
        return 0.5 * np.sum(s**2), 2 * s * np.cos(w)  # wrong

    found = failure(loss, None, [n(4)]).findings[0].blame
    assert (
        found is not None and found.line == wrong_line(loss) and found.fix.startswith("return (0.5 * np.sum(s ** 2),")
    )


def test_a_copy_that_lacks_a_change_in_place_accuses_no_reader():
    def loss(S, W, y):
        Z = S @ W
        P = np.exp(Z) / np.exp(Z).sum(axis=1, keepdims=True)
        value = -np.log(P[np.arange(len(y)), y]).sum()
        dZ = P
        return value, (dZ @ W.T, S.T @ dZ)

    found = failure(loss, None, [n(5, 4), n(4, 3), np.array([0, 2, 1, 2, 0])]).findings[0].blame
    assert found is None or "dZ = P" in found.text
