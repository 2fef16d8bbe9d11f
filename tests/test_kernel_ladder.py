"""examples/kernels: every rung computes the right numbers and gradients on the host, compiles for GPUs, and a mistake shows."""

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

import tinydiff as td
from tinydiff.cuda import host, nvrtc

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "kernels"
FILES = sorted(FOLDER.glob("*.cu"))
sys.path.insert(0, str(FOLDER))
ladder = runpy.run_path(str(FOLDER / "ladder.py"))
cost_model = runpy.run_path(str(FOLDER / "cost_model.py"))
sys.path.remove(str(FOLDER))

on_host = pytest.mark.skipif(host.missing() is not None, reason=str(host.missing()))


def test_every_file_is_a_rung_and_in_the_table():
    assert [file.stem for file in FILES] == sorted(ladder["RUNGS"])
    listed = re.findall(r"\]\((\w+)\.cu\)", (FOLDER / "README.md").read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(ladder["RUNGS"])
    for file in FILES:
        head = file.read_text(encoding="utf-8").partition("#include")[0]
        assert head.startswith("//") and "What bounds" in head, file.name


@on_host
@pytest.mark.parametrize("rung", ladder["RUNGS"])
def test_numbers_and_gradients(rung):
    rng = np.random.default_rng(1)
    conv = rung.startswith("convolution")
    layer = (ladder["convolution_layer"] if conv else ladder["product_layer"])(rung)
    for shapes in ([(2, 5, 4, 3), (3, 2, 3, 5)],) if conv else ([(33, 19), (19, 67)], [(36, 20), (20, 68)]):
        arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
        ours = [td.Tensor(a, requires_grad=True) for a in arrays]
        right = [td.Tensor(a.astype(float), requires_grad=True) for a in arrays]
        y = layer.apply(*ours)
        expected = td.ops.conv2d(*right, padding=(1, 0)) if conv else right[0] @ right[1]
        L_Y = rng.normal(size=y.shape).astype(np.float32)
        y.backward(L_Y)
        expected.backward(L_Y.astype(float))
        for a, b in [(y.data, expected.data), *((t.grad, r.grad) for t, r in zip(ours, right, strict=True))]:
            np.testing.assert_allclose(a, b, atol=1e-4)


@on_host
def test_parts_of_the_sum_that_are_uneven_empty_or_one():
    rng = np.random.default_rng(2)
    A, B = rng.normal(size=(5, 50)).astype(np.float32), rng.normal(size=(50, 7)).astype(np.float32)
    for parts in (1, 3, 9):  # of 4 slices
        np.testing.assert_allclose(ladder["product"]("product_5_split_k", A, B, parts), A @ B, atol=1e-4)


@pytest.mark.slow
@on_host
@pytest.mark.parametrize("rung", ladder["RUNGS"])
def test_the_gradient_check_of_the_driver(rung):
    report = ladder["check"](rung)
    assert [verdict.method for verdict in report.verdicts] == ["adjoint test"] * 2


@pytest.mark.slow
@on_host
@pytest.mark.parametrize(
    "rung, right, wrong",
    [
        ("product_2_shared", "        __syncthreads();\n        for", "        for"),
        ("product_3_registers", "m < M && ka < K", "m <= M && ka < K"),
        ("product_4_pipeline", "cp_wait<0>(); ", "cp_wait<1>(); "),
        ("product_6_tensor_cores", "k + 4 * (i / 2 % 2) + t", "k + 4 * (i % 2) + t"),
        ("product_6_tensor_cores", "if (SPLIT) mma_tf32(sum[i][j], rest_a[i], from_b),", "if (SPLIT)"),
        ("convolution_2_implicit", "h >= 0 && h < d.H", "h < d.H"),
    ],
)
def test_a_mistake_is_found(rung, right, wrong, tmp_path, monkeypatch):
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        (tmp_path / file.name).write_text(text.replace(right, wrong), encoding="utf-8")
    assert any(right in file.read_text(encoding="utf-8") for file in FILES)
    monkeypatch.setitem(ladder["product"].__globals__, "HERE", tmp_path)
    with pytest.raises(SystemExit, match=f"^{rung}: ."):
        ladder["main"](rung)


@on_host
def test_a_rung_that_is_not_there(capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        ladder["main"]("product_9")
    assert capsys.readouterr().err.startswith("there is no rung product_9; they are product_1_naive, ")


@pytest.mark.slow
@pytest.mark.skipif(nvrtc.missing() is not None, reason=str(nvrtc.missing()))
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_rungs_compile_for_gpus_without_spills(file):
    variants = [{"VECTOR": 4}, {"VECTOR": 1}] if "VECTOR" in file.read_text(encoding="utf-8") else [{}]
    for architecture in (80, 90) if "mma" in file.read_text(encoding="utf-8") else (75, 90):
        for defines in variants:
            usages = nvrtc.compile_source(str(file), defines, architecture)
            assert usages and not any(u.spills for u in usages)


def test_the_cost_model_says_what_bounds_a_kernel():
    predict, Rung, Card = (cost_model[name] for name in ("predict", "Rung", "Card"))
    card = Card(multiprocessors=10, clock=1e9, memory=1e12, l2=2e12, launch=0.0)
    seconds, bound = predict(Rung((64, 64), 0.1), 640, 640, 1000, card)  # 100 tiles in 10 rounds
    assert bound == "arithmetic" and seconds == pytest.approx(10 * 64 * 64 * 1000 / 32 / 4 / 1e9)
    seconds, bound = predict(Rung((64, 64), 2), 640, 640, 1000, card)
    assert bound == "reads by warps" and seconds == pytest.approx(10 * 64 * 64 * 1000 / 32 * 2 / 1e9)
    slow = Card(multiprocessors=10, clock=1e9, memory=1e9, l2=2e12, launch=0.0)
    seconds, bound = predict(Rung((64, 64), 0.1), 640, 640, 1000, slow)
    assert bound == "bytes from memory" and seconds == pytest.approx(4 * (2 * 640 * 1000 + 640 * 640) / 1e9)
    one, split = (predict(Rung((64, 64), 0.1, parts=parts), 64, 64, 10_000, card)[0] for parts in (1, 10))
    assert split == pytest.approx(one / 10)


def test_the_table_has_what_the_model_predicts():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for rung, about in ladder["RUNGS"].items():
        if rung.startswith("product"):
            row = next(line for line in text.splitlines() if f"({rung}.cu)" in line)
            (square, bound), (tall, _) = (ladder["predict"](about, *sizes) for sizes in ladder["SHAPES"].values())
            assert f"{1e3 * square:.1f} ms, {bound} |" in row and f"| {1e3 * tall:.2f} ms |" in row
