"""Training by replays of a CUDA graph, on the stand-in for CuPy: the run's files have the bits of eager steps."""

import signal

import numpy as np
import pytest

import tinydiff as td
from tests import cupy_stand_in
from tinydiff import backend
from tinydiff.cuda import clock
from tinydiff.diffusion import Diffusion, Schedule
from tinydiff.errors import RunFailed
from tinydiff.runs import memory
from tinydiff.runs import trainer as training


@pytest.fixture(autouse=True)
def cupy(monkeypatch):
    monkeypatch.delenv("TINYDIFF_GRAPH", raising=False)
    monkeypatch.setattr(clock, "MOST_AHEAD", 3)
    monkeypatch.setattr(training, "READ_EVERY", 3)
    monkeypatch.setattr(td.Trainer, "_finish", lambda self: None)
    monkeypatch.setattr(training, "compile_for", lambda *_: 0)
    monkeypatch.setattr(memory, "require_gpu", lambda *_: None)
    monkeypatch.setattr(td.Trainer, "memory_of_step", lambda self: memory.Estimate(0, 0, 0, 0, 0))
    with cupy_stand_in.put_in_place(monkeypatch) as module:
        yield module


def trainer(out, classes=3, dropout=0.1, kept=0.0, **settings):
    """Of a small network for images of 4 x 4. kept: share of the images that are held out."""
    settings = {
        "steps": 6,
        "batch_size": 2,
        "warmup": 4,
        "seed": 5,
        "clip": 0.5,
        "ema": 0.9,
        "preview_every": 0,
    } | settings
    labelled = {} if classes is None else {"num_classes": classes + 1, "null_label": classes}
    unet = td.UNet(
        4, 1, channels=4, channel_mults=(1,), blocks_per_level=1, attention_resolutions=(), groups=2, dropout=dropout,
        generator=td.random.Generator(1), **labelled,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    labels = None if classes is None else rng.integers(0, classes, 5)
    data = td.data.Dataset(
        rng.integers(0, 256, (5, 4, 4, 1)).astype(np.uint8), labels, name="tiny", source="tiny", flip=True
    )
    data = data.hold_out(kept, td.random.Generator(1)) if kept else data
    config = td.TrainConfig(device="cuda", out=str(out), **settings)
    return td.Trainer(unet, Diffusion(Schedule.cosine(50), predict="v", min_snr=5.0), data, config)


def state(one):
    """Everything that training changes."""
    arrays = [a for p in one.parameters for a in (p.data, p.grad)] + [a for slots in one.optimizer.state for a in slots]
    numbers = one.step, one.optimizer.steps, one.ema.updates, one.optimizer.lr, one.parameters[0]._version.count
    return [backend.to_numpy(a) for a in [*arrays, *one.ema.averages]], numbers


def assert_same(ours, theirs):
    assert ours[1] == theirs[1]
    for a, b in zip(ours[0], theirs[0], strict=True):
        np.testing.assert_array_equal(a, b)


def log(one):
    return [line.rpartition(",")[0] for line in (one.folder.path / "log.csv").read_text().splitlines()]


def test_a_run_has_the_bits_of_eager_steps(tmp_path):
    """Labels, dropout, two parts, clipping, averages, warm-up; with a save on the way, after which all goes on."""
    runs = {}
    for graph in (False, True):
        rates = {"lr_schedule": "cosine", "warmup": 2, "ema_start": 3, "grad_norm_every": 2}
        one = runs[graph] = trainer(tmp_path / str(graph), save_every=4, steps=5, accumulate=2, batch_size=1, **rates)
        assert one.run(graph=graph) == one.config.steps
        assert (one._replays is not None and one._replays.replaying) == graph
    assert_same(state(runs[True]), state(runs[False]))
    assert log(runs[True]) == log(runs[False])
    norms = [(tmp_path / str(graph) / "grad_norms.csv").read_text() for graph in (False, True)]
    assert norms[0] == norms[1] and norms[0].count("\n") == 3


def test_a_replayed_step_is_one_launch(tmp_path, monkeypatch):
    """Nothing is copied, allocated or waited for but when the losses of several steps are read."""
    monkeypatch.setattr(clock, "MOST_AHEAD", 256)
    one = trainer(tmp_path)
    one.run()
    cupy_stand_in.COUNTS.clear()
    one.train_steps(range(7, 9))
    counts = {name: count for name, count in cupy_stand_in.COUNTS.items() if count}
    assert counts == {"launches of graphs": 2, "synchronisations": 1}


def test_nothing_after_a_nan_changes_the_weights(tmp_path, monkeypatch):
    """Though steps after it were given to the GPU. The step is run again, and the operation is named."""
    one = trainer(tmp_path, steps=8)
    states = {}
    original = td.Trainer._next_steps

    def next_steps(self):
        steps = original(self)
        if self.step == 3:
            states["before"] = state(self)
            bias = self.unet.conv_in.bias.data
            bias[...] = np.float32(np.inf)
            states["before"][0][:] = state(self)[0]
        return steps

    monkeypatch.setattr(td.Trainer, "_next_steps", next_steps)
    with pytest.raises(
        RunFailed, match=r"the loss became .* at step 4: the first value that is not finite came from .*conv_in"
    ):
        one.run()
    after, before = state(one), states["before"]
    weights = 2 * len(one.parameters)
    for a, b in zip(
        after[0][0:weights:2] + after[0][weights:], before[0][0:weights:2] + before[0][weights:], strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert one.step == 3 and one.optimizer.steps == before[1][1] and one.ema.updates == before[1][2]


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_saves_what_was_done_and_a_resume_goes_on(number, tmp_path, monkeypatch, request):
    whole = trainer(tmp_path / "whole")
    whole.run(graph=False)
    one, launch = trainer(tmp_path / "one"), cupy_stand_in.streams.Graph.launch
    launches = []

    def counted(self, stream=None):
        launches.append(None)
        if len(launches) == 2:
            signal.raise_signal(number)
        return launch(self, stream)

    monkeypatch.setattr(cupy_stand_in.streams.Graph, "launch", counted)
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, usual)  # a shell may have had it ignored
    request.addfinalizer(lambda: signal.signal(number, before))
    assert one.run() == 4 and one.stopped_by == number and one.saved_step == 4
    again = trainer(tmp_path / "one")
    assert again.run(resume=True) == 6
    ours, theirs = state(again), state(whole)
    for a, b in zip(ours[0], theirs[0], strict=True):
        np.testing.assert_array_equal(a, b)
    assert log(again) == log(whole)


def array_of(x):
    return x.data if isinstance(x, td.Tensor) else x


def test_a_network_that_reads_values_is_trained_without_a_graph(tmp_path, capfd):
    one = trainer(tmp_path, steps=5)
    forward = one.unet.forward
    one.unet.forward = lambda x, t, labels=None: (float(array_of(x).sum()), forward(x, t, labels))[1]
    assert one.run() == 5
    said = capfd.readouterr().err
    assert said.count("without a CUDA graph: it reads a value from the GPU (test_replays.py:") == 1, said


@pytest.mark.slow
def test_saves_and_previews_between_replays_change_nothing(tmp_path, monkeypatch):
    drawn = []
    one, plain = (trainer(tmp_path / str(graph), steps=7, preview_every=3, save_every=5) for graph in (True, False))
    for trained, graph in ((one, True), (plain, False)):

        def preview(step, steps, trained=trained):
            drawn.append((step, state(trained)[0]))

        monkeypatch.setattr(trained.results, "preview", preview)
        assert trained.run(graph=graph) == 7
    assert [step for step, _ in drawn] == [3, 6, 3, 6]
    for (_, ours), (_, theirs) in zip(drawn[:2], drawn[2:], strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)
    assert_same(state(one), state(plain))


@pytest.mark.slow
def test_measures_between_replays_are_those_between_eager_steps(tmp_path):
    def run(out, graph):
        one = trainer(tmp_path / out, kept=0.4, steps=8, holdout_every=4, grad_norm_every=3, warmup=0)
        assert one.run(graph=graph) == 8
        rows = [row.split(",") for row in (tmp_path / out / "log.csv").read_text().splitlines()]
        return one, [row[:4] + row[5:] for row in rows], (tmp_path / out / "grad_norms.csv").read_text()

    (one, rows, norms), (plain, *expected) = run("graph", True), run("plain", False)
    assert [rows, norms] == expected and norms.count("\n") == 3
    assert [row[0] for row in rows[1:] if row[4]] == ["4", "8"]
    assert_same(state(one), state(plain))


@pytest.mark.slow
def test_a_profile_measures_steps_that_are_no_replays(tmp_path):
    one = trainer(tmp_path, steps=4)
    assert one.run(profile=True) == 4 and one._replays is None
    assert "Conv2d" in (tmp_path / "profile.csv").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("lacks", ["graph", "tables"])
def test_too_little_memory_for_the_graph_or_the_tables(lacks, tmp_path, monkeypatch, capfd):
    def full(*_):
        raise MemoryError("out of memory allocating 1,024 bytes")

    if lacks == "graph":
        monkeypatch.setattr(cupy_stand_in.streams.MemoryPool, "take", full)
    else:
        monkeypatch.setattr(clock.Clock, "__init__", full)
    one, plain = trainer(tmp_path / "one", steps=4), trainer(tmp_path / "plain", steps=4)
    assert one.run() == 4
    said = capfd.readouterr().err
    assert said.count("GPU has too little memory") == 1 and "without a CUDA graph" in said
    if lacks == "graph":
        plain.run(graph=False)
        assert_same(state(one), state(plain))
