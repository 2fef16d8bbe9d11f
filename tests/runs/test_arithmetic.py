"""tinydiff/runs/arithmetic.py: runs in TF32, on the stand-in for CuPy, and where a device does not offer it."""

import sys
from functools import partial
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest

import tinydiff as td
from tests import cupy_stand_in
from tests.runs.test_replays import cupy, log, state, trainer  # noqa: F401
from tinydiff import backend
from tinydiff.cli import flags, info, main
from tinydiff.cuda import compiling, driver, tensor
from tinydiff.errors import InputError
from tinydiff.evaluation import evaluate
from tinydiff.precision import half, held
from tinydiff.runs import arithmetic, config, replays, resuming
from tinydiff.runs import trainer as training


@pytest.fixture
def launched(monkeypatch):
    """The kernels of products that were launched so far."""
    names, run = [], driver.run

    def noted(name, kernel, *args):
        if "product" in kernel:
            names.append((kernel, dict(args[-1]).get("PRECISION")))
        run(name, kernel, *args)

    monkeypatch.setattr(driver, "run", noted)
    return names


def on_cpu(monkeypatch):
    monkeypatch.setattr(training, "resolve_device", lambda _: "cpu")
    monkeypatch.setattr(backend, "resolve_device", lambda _: "cpu")


def test_a_run_in_tf32_replays_and_resumes_with_its_own_bits(tmp_path, launched, monkeypatch, capsys):
    """Eager, replayed, and stopped in between: the same bits, by kernels for tensor cores, which a float32 run has none of. So
    are samples, at the end and by the command."""
    drawn = []
    monkeypatch.setattr(replays, "EAGER", 1)
    monkeypatch.setattr(td.Trainer, "_finish", lambda self: drawn.append(tensor.chosen()))
    eager = trainer(tmp_path / "eager", precision="tf32", steps=3)
    eager.run(graph=False)
    assert set(launched) == {("tensor_product", "TF32")}
    launched.clear()
    half = trainer(tmp_path / "half", precision="tf32", steps=2)
    half.run()
    again = trainer(tmp_path / "half", precision="auto", steps=3)
    assert again.run(resume=True) == 3 and again.config.precision == "tf32"
    assert set(launched) == {("tensor_product", "TF32")}
    assert half._replays.replaying
    for a, b in zip(state(again)[0], state(eager)[0], strict=True):
        np.testing.assert_array_equal(a, b)
    assert log(again) == log(eager)
    assert config.load(tmp_path / "half/config.toml")["precision"] == "tf32"
    assert "3 saved of 3 planned, batches of 2, in tf32\n" in info.describe(tmp_path / "half")
    assert drawn == ["tf32"] * 3 and tensor.chosen() == "float32"
    for precision, kernel in (("tf32", ("tensor_product", "TF32")), ("float32", ("matrix_product", None))):
        launched.clear()
        words = ["sample", str(tmp_path / "half"), "--n=1", "--steps=1", "--device=cuda", "--precision", precision]
        assert main(words) == 0
        assert set(launched) == {kernel} and ("precision-tf32" in capsys.readouterr().out) == (precision == "tf32")


def test_a_run_in_float32_uses_no_tensor_cores(tmp_path, launched):
    one = trainer(tmp_path, steps=1)
    with tensor.precision("tf32"):  # what is recorded counts
        one.run()
    assert set(launched) == {("matrix_product", None)}


def test_the_fastest_precision_is_recorded(tmp_path, monkeypatch, capsys):
    assert trainer(tmp_path / "new", precision="auto", steps=1).run() == 1
    assert config.load(tmp_path / "new/config.toml")["precision"] == "bf16"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ml_dtypes", None)
        assert arithmetic.best("cuda") == "tf32"
    monkeypatch.setattr(cupy_stand_in.streams.Device, "compute_capability", "75")
    one = trainer(tmp_path / "old", precision="auto", steps=1)
    one.check_start()
    assert one.config.precision == "float32"
    with pytest.raises(
        InputError, match=r'^precision="tf32" needs .* compute capability 7\.5, and that needs 8\.0; use'
    ):
        trainer(tmp_path / "old", precision="tf32").run()
    monkeypatch.setattr(cupy_stand_in.streams.Device, "compute_capability", "80")
    monkeypatch.setenv("TINYDIFF_KERNELS", "0")
    with pytest.raises(InputError, match="TINYDIFF_KERNELS"):
        trainer(tmp_path / "old", precision="tf32").run()
    assert not (tmp_path / "old").exists()


def test_a_run_in_tf32_goes_on_in_float32_on_a_cpu_and_says_so(tmp_path, monkeypatch, launched, capsys):
    trainer(tmp_path, precision="tf32", steps=1).run()
    for capability in ("75", None):
        with monkeypatch.context() as patch:
            if capability is None:
                on_cpu(patch)
            patch.setattr(cupy_stand_in.streams.Device, "compute_capability", capability)
            launched.clear()
            capsys.readouterr()
            one = trainer(tmp_path, precision="auto", steps=2 if capability else 3)
            one.run(resume=True)
            said = capsys.readouterr().err
            assert said.count("the run was made in tf32, and ") == 1 and "float32 here" in said
            assert set(launched) == ({("matrix_product", None)} if capability else set())
            assert resuming.recorded(tmp_path)["precision"] == "tf32"
    launched.clear()
    trainer(tmp_path, precision="auto", steps=4).run(resume=True, graph=False)
    assert set(launched) == {("tensor_product", "TF32")}


def test_bf16_without_its_package_is_refused_with_a_sentence_and_resumed_in_float32(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(InputError, match=r"bf16.* is not possible here: bf16 needs the package ml_dtypes, .*; use "):
        trainer(tmp_path, precision="bf16").run()
    arithmetic.tell("bf16", "cuda")
    assert "goes on in float32 here" in capsys.readouterr().err
    assert arithmetic.used("bf16", "cuda") == "float32" and arithmetic.used("fp16", "cuda") == "fp16"


SMALL = ["--channels=4", "--groups=2", "--mults=1", "--timesteps=4", "--image-size=4", "--batch-size=2", "--device=cpu"]


def refused(capsys, *words):
    assert main([*map(str, words)]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and said.out == "", said
    return said.err


def test_commands_on_a_cpu_refuse_it_with_a_sentence(tmp_path, capsys, monkeypatch):
    np.save(tmp_path / "images.npy", np.zeros((4, 4, 4), np.uint8))
    new = ["--steps=1", *SMALL, "--out", tmp_path / "run", "--data", tmp_path / "images.npy"]
    for command, precision in product(("train", "doctor"), ("tf32", "fp16", "bf16")):
        capsys.readouterr()
        assert main([command, *map(str, new), "--precision", precision]) == 2
        assert (
            f"--precision {precision} needs a GPU with tensor cores: the CPU has no tensor cores; use --precision float32, or "
            "--precision auto, which is float32 here"
        ) in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert "--precision must be one of float32, tf32, fp16, bf16, auto, not fp8" in refused(
        capsys, "train", *new, "--precision", "fp8"
    )
    assert main(["train", *map(str, new), "--precision", "auto"]) == 0
    assert config.load(tmp_path / "run/config.toml")["precision"] == "float32"
    capsys.readouterr()
    sentence = refused(capsys, "train", "--resume", "--out", tmp_path / "run", "--steps=2", "--precision", "tf32")
    assert "--precision tf32 differs from the float32 of the run" in sentence
    wish = flags.read({"resume": True, "out": str(tmp_path / "run"), "steps": "2", "precision": "auto"})
    assert wish.config.precision == "float32"
    for command in (
        ["sample", tmp_path / "run", "--n=1"],
        ["evaluate", tmp_path / "run", "--only=bits", "--training-images"],
    ):
        assert "--precision tf32 needs" in refused(capsys, *command, "--precision=tf32", SMALL[-1])
        assert "--precision bf16 needs" in refused(capsys, *command, "--precision=bf16", SMALL[-1])
        assert "must be one of" in refused(capsys, *command, "--precision=fp8", SMALL[-1])


def test_training_compiles_ahead_what_its_precision_launches(tmp_path, monkeypatch):
    for precision in ("float32", "tf32"):
        found, one = [], trainer(tmp_path, precision=precision)
        monkeypatch.setattr(compiling, "_compile", found.extend)
        for work in (partial(one.try_batch, 2), partial(one.gradients, 1)):
            found.clear()
            compiling.compile_for([work])
            assert any(name == tensor.SOURCE for name, _ in found) == (precision == "tf32")


def test_an_evaluation_is_computed_in_its_precision(tmp_path, monkeypatch):
    unet = trainer(tmp_path).unet
    monkeypatch.setattr(evaluate, "load_subject", lambda *_: SimpleNamespace(unet=unet))
    monkeypatch.setattr(evaluate._Evaluation, "run", lambda self: (self.settings.precision, tensor.chosen(), held()))
    for precision, used in (
        ("tf32", ("tf32", "tf32", None)),
        ("auto", ("bf16", "float32", half("bf16"))),
        ("float32", ("float32", "float32", None)),
    ):
        settings = evaluate.Settings(device="cuda", precision=precision, out=str(tmp_path / precision))
        assert evaluate.evaluate(tmp_path, settings) == used


def test_a_function_of_ones_own_has_a_graph_for_each_precision():
    x, w = (np.random.default_rng(i).normal(size=(8, 8)).astype(np.float32) for i in range(2))
    x, w = td.backend.to_device(x, "cuda"), td.Tensor(td.backend.to_device(w, "cuda"))
    step = td.cuda.graph(lambda x: td.ops.matmul(x, w))
    results = {}
    for _ in range(5):
        for precision in ("float32", "tf32"):
            with arithmetic.computing(precision, "cuda"):
                results.setdefault(precision, step(x).data.get())
                np.testing.assert_array_equal(step(x).data.get(), results[precision])
    assert np.abs(results["tf32"] - results["float32"]).max() > 1e-4
