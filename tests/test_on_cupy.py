"""Everything that runs on NumPy runs on CuPy: on a stand-in that refuses what CuPy refuses (see cupy_stand_in/).

It does so without cuBLAS, unless a test has the `cublas` fixture: in float32, the products are those of our own kernels."""

import threading
from functools import partial

import numpy as np
import pytest

import tinydiff as td
from tests import cupy_stand_in
from tinydiff import backend, cli, ops, optim
from tinydiff.cuda import driver
from tinydiff.diffusion import Diffusion, Schedule, sample
from tinydiff.diffusion.editing import ddim_invert, inpaint, interpolate
from tinydiff.errors import RunFailed
from tinydiff.random import Generator
from tinydiff.runs import checkpoint
from tinydiff.runs.sheets import draw_sheet


@pytest.fixture(autouse=True)
def cupy(monkeypatch):
    with cupy_stand_in.put_in_place(monkeypatch) as module:
        yield module


@pytest.fixture
def cublas(cupy):
    """cuBLAS is there, as it has to be for what our own kernels do not compute."""
    cupy_stand_in.MISSING.clear()


def kernels_launched():
    """Kernels that were made ready for launching so far."""
    return driver._function.cache_info().misses


def make_unet(**options):
    unet = td.UNet(8, 2, channels=8, channel_mults=(1, 2), blocks_per_level=1, attention_resolutions=(4,), groups=4,
                   generator=Generator(1), **options)  # fmt: skip
    for p in unet.parameters():
        p.data += Generator(2, 1).normal(p.shape) * np.float32(0.1)
    return unet


def train(device, steps=3, given_noise=False, **options):
    """Losses and norms of a few steps of training, the gradients of the first, the averaged weights after the last.

    given_noise: t and eps are drawn before, as for several batches in one step."""
    unet = make_unet(num_classes=4, null_label=3, dropout=0.1, out_channels=options.pop("out_channels", None)).to(
        device
    )
    diffusion = Diffusion(Schedule.cosine(50), **options)
    parameters = list(unet.parameters())
    optimizer, ema = optim.Adam(parameters, 1e-3), optim.EMA(parameters, 0.9)
    x0 = backend.to_device(Generator(3, 0).uniform((6, 8, 8, 2)) * 2 - 1, device)
    figures, gradients = [], []
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        unet.train(Generator(0, 5, step))
        generator = Generator(0, 3, step)
        noise = diffusion.draw(x0, generator) if given_noise else (None, None)
        loss = diffusion.loss(unet, x0, generator, np.arange(6) % 4, *noise)
        loss.backward()
        gradients = gradients or [backend.to_numpy(p.grad).copy() for p in parameters]
        figures.append((loss.item(), optim.clip_grad_norm(parameters, 1.0)))
        optimizer.step(ema)
    with ema.applied():
        return np.array(figures), gradients, [p.numpy() for p in parameters]


@pytest.mark.parametrize(
    "options",
    [
        {}, {"variance": "learned", "out_channels": 4},
        *(pytest.param(options, marks=pytest.mark.slow) for options in (
            {"given_noise": True}, {"predict": "v"}, {"predict": "x0", "variance": "posterior"}, {"min_snr": 5.0}
        )),
    ],
    ids=str,
)  # fmt: skip
def test_training_gives_the_numbers_of_the_cpu(options):
    ours, expected = train("cuda", **options), train("cpu", **options)
    np.testing.assert_allclose(ours[0], expected[0], rtol=1e-4)
    scale = max(np.abs(g).max() for g in expected[1])
    for a, b in zip(ours[1], expected[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * scale)
    for a, b in zip(ours[2], expected[2], strict=True):
        # where a gradient is nothing but rounding, Adam still takes a step of the size of the learning rate
        np.testing.assert_allclose(a, b, rtol=0, atol=3e-3)


def test_training_by_definition_gives_the_same(cublas):
    """Without a kernel of our own: nothing is launched."""
    before = kernels_launched()
    with td.by_definition():
        ours = train("cuda")
    assert kernels_launched() == before
    expected = train("cpu")
    np.testing.assert_allclose(ours[0], expected[0], rtol=1e-4)
    scale = max(np.abs(g).max() for g in expected[1])
    for a, b in zip(ours[1], expected[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++", "ddim with noise"])
@pytest.mark.parametrize(
    "options, guidance",
    [
        ({}, None),
        ({"predict": "v", "variance": "posterior"}, None),
        ({"predict": "x0", "clip_x0": False}, None),
        ({"variance": "learned"}, 2.0),
    ],
    ids=str,
)
def test_sampling_gives_the_images_of_the_cpu(sampler, options, guidance):
    def draw(device):
        channels = 4 if options.get("variance") == "learned" else None
        unet = make_unet(num_classes=4, null_label=3, out_channels=channels).to(device)
        diffusion, generator = Diffusion(Schedule.linear(50, 1e-3, 0.2), **options), Generator(5)
        name, eta = ("ddim", 0.5) if sampler == "ddim with noise" else (sampler, 0.0)
        x = sample(unet, diffusion, (2, 8, 8, 2), generator, sampler=name, steps=3, eta=eta, labels=[0, 1],
                   guidance=guidance, progress=False)  # fmt: skip
        return x, generator.state

    (ours, state), (expected, expected_state) = draw("cuda"), draw("cpu")
    assert backend.device_of(ours) == "cuda" and state == expected_state
    np.testing.assert_allclose(ours.get(), expected, atol=1e-3 * np.abs(expected).max())


def test_a_model_that_returns_float64_has_a_loss_as_on_the_cpu():
    def loss(device):
        x0 = backend.to_device(Generator(3).uniform((2, 8, 8, 2)) * 2 - 1, device)
        return (
            Diffusion(Schedule.cosine(50))
            .loss(lambda x, t, labels=None: x.astype("float64"), x0, Generator(0, 3, 1))
            .item()
        )

    assert loss("cuda") == pytest.approx(loss("cpu"), rel=1e-6)


@pytest.mark.slow
def test_the_bound_is_that_of_the_cpu():
    def bound(device):
        x0 = backend.to_device(np.rint(Generator(3).uniform((3, 8, 8, 2)) * 255) / np.float32(127.5) - 1, device)
        unet = make_unet().to(device)
        return Diffusion(Schedule.cosine(12)).vlb(unet, x0, Generator(0))

    ours, expected = bound("cuda"), bound("cpu")
    for name in ("L_T", "L_t", "L_0", "total"):
        np.testing.assert_allclose(backend.to_numpy(getattr(ours, name)), getattr(expected, name), rtol=1e-4, atol=1e-6)


def test_noise_has_the_same_bits():
    for shape in ((), (5,), (3, 4, 2)):
        ours, theirs = Generator(7, 4, 2), Generator(7, 4, 2)
        np.testing.assert_array_equal(ours.words(11, "cuda").get(), theirs.words(11))
        np.testing.assert_array_equal(ours.uniform(shape, device="cuda").get(), theirs.uniform(shape))
        np.testing.assert_allclose(ours.normal(shape, device="cuda").get(), theirs.normal(shape), rtol=1e-6)


def test_a_checkpoint_moves_between_devices(tmp_path):
    unet, diffusion = make_unet().to("cuda"), Diffusion(Schedule.cosine(50))
    checkpoint.save(tmp_path, unet, diffusion)
    loaded = checkpoint.load(checkpoint.find(tmp_path)).unet
    for a, b in zip(loaded.parameters(), unet.parameters(), strict=True):
        np.testing.assert_array_equal(a.data, b.data.get())


def test_the_commands_train_resume_and_sample(tmp_path, capfd, monkeypatch, cublas):
    monkeypatch.setenv("TINYDIFF_KERNELS", "0")  # the host is too slow for them with as many samples as are drawn here
    run = tmp_path / "run"
    words = ["train", "--channels", "8", "--groups", "4", "--mults", "1,2", "--blocks", "1", "--timesteps", "4"]
    words += ["--image-size", "8", "--batch-size", "4", "--preview-every", "2", "--device", "cuda", "--out", str(run)]
    assert cli.main([*words, "--steps", "2"]) == 0, capfd.readouterr().err
    assert cli.main(["train", "--out", str(run), "--resume", "--steps", "4", "--device", "cpu"]) == 0
    assert cli.main(["sample", str(run), "--n", "2", "--steps", "3", "--device", "cuda"]) == 0, capfd.readouterr().err
    assert cli.main(["info", str(run)]) == 0
    words = ["--images", "2", "--terms", "3", "--samples", "4", "--steps", "2", "--each", "2", "--step-counts", "2"]
    assert cli.main(["evaluate", str(run), *words, "--device", "cuda", "--training-images"]) == 0, (
        capfd.readouterr().err
    )


@pytest.mark.slow
def test_the_commands_need_no_cublas(tmp_path, capfd, monkeypatch):
    """Training with all that a step may have, sampling, evaluation, doctor: by our own kernels, so only a few of each."""
    monkeypatch.setattr("tinydiff.runs.trainer.PREVIEW_STEPS", 1)
    monkeypatch.setattr("tinydiff.runs.results.draw_sheet", partial(draw_sheet, n=1))
    run, device = tmp_path / "run", ["--device", "cuda"]
    small = [
        "--channels=8",
        "--groups=4",
        "--mults=1,2",
        "--timesteps=4",
        "--image-size=8",
        "--batch-size=2",
        "--blocks=1",
    ]
    small += [
        "--steps=1",
        "--preview-every=0",
        "--holdout=0.1",
        "--variance=learned",
        "--accumulate=2",
        "--dropout=0.1",
    ]
    for words in (
        ["train", "--out", run, "--clip", "0.01", "--labels", *small],
        ["sample", run, "--n", "2", "--steps", "2", "--label", "3"],
        ["evaluate", run, "--only", "bits", "--images", "2", "--terms", "3"],
        ["doctor", "--out", tmp_path / "other", *small],
    ):
        assert cli.main([*map(str, words), *device]) == 0, capfd.readouterr().err


SMALL = ["--channels=8", "--groups=4", "--mults=1,2", "--timesteps=4", "--image-size=8", "--batch-size=2", "--blocks=1"]
COMMANDS = {
    "train": ["train", "--steps=1", "--preview-every=0", "--out=RUN/new", *SMALL],
    "doctor": ["doctor", "--steps=1", "--preview-every=0", "--out=RUN/new", *SMALL],
    "sample": ["sample", "RUN", "--n=1", "--steps=1", "--out=RUN/new.png"],
    "evaluate": ["evaluate", "RUN", "--only=bits", "--images=2", "--terms=3"],
    "bench": ["bench", "--quick", "--no-torch", "--only=adam"],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run on the CPU."""
    run = tmp_path_factory.mktemp("trained") / "run"
    words = ["train", "--steps=1", "--preview-every=0", "--holdout=0.1", *SMALL, "--threads=1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tinydiff.runs.results.draw_sheet", partial(draw_sheet, n=1))
        assert cli.main([*words, "--out", str(run), "--device", "cpu"]) == 0
    return run


def command(name, trained, device):
    return [word.replace("RUN", str(trained)) for word in COMMANDS[name]] + ["--device", device]


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("library, what", [("nvrtc", "NVRTC, a library of CUDA"), ("headers", "the headers of CUDA")])
def test_a_command_says_which_library_is_missing(name, library, what, trained, capfd):
    cupy_stand_in.MISSING.add(library)
    assert cli.main(command(name, trained, "cuda")) == 2
    said, error = capfd.readouterr()
    sentence = f"tinydiff: CuPy does not find {what}: install tinydiff[cuda13], which brings "
    assert error.startswith(sentence) and error.count("\n") == 1 and "--device cpu" in error
    assert said == ""


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "bench"])
def test_auto_goes_on_without_the_gpu_and_says_so(name, trained, capfd, monkeypatch):
    cupy_stand_in.MISSING.add("nvrtc")
    backend._say_once.cache_clear()
    monkeypatch.setattr("tinydiff.runs.results.draw_sheet", partial(draw_sheet, n=1))
    assert (
        cli.main(
            [*command(name, trained, "auto"), "--threads=1", *["--force"] * (name in ("train", "doctor", "sample"))]
        )
        == 0
    )
    said, error = capfd.readouterr()
    sentence = "no GPU is used: CuPy does not find NVRTC, a library of CUDA: install tinydiff[cuda13], which brings it"
    assert error.count(sentence) == 1
    assert name != "doctor" or (f"warning: {sentence}\n" in said and "device     CPU" in said)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_needs_a_library_later_fails_with_a_sentence(name, trained, capfd, monkeypatch):
    """By CuPy's own operations all of them need cuBLAS."""
    monkeypatch.setenv("TINYDIFF_KERNELS", "0")
    assert cli.main([*command(name, trained, "cuda"), *["--force"] * (name in ("train", "doctor", "sample"))]) == 1
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.endswith("CuPy does not find cuBLAS, a library of CUDA: install tinydiff[cuda13], which brings it")
    assert error.startswith("tinydiff: ")


def test_gradients_in_float64_are_clipped_without_cublas(cupy):
    p = td.Tensor(cupy.asarray(np.zeros((2, 3))), requires_grad=True)
    p.grad = cupy.asarray(np.arange(6.0).reshape(2, 3))
    assert optim.clip_grad_norm([p], 1.0) == pytest.approx(55**0.5, rel=1e-14)
    np.testing.assert_allclose(p.grad.get(), np.arange(6.0).reshape(2, 3) / 55**0.5, rtol=1e-14)


def test_an_operation_names_the_library_that_it_needs(cupy):
    x, w = (td.Tensor(cupy.ones((2, 2), "float64"), requires_grad=True) for _ in range(2))
    with pytest.raises(
        RunFailed, match=r"^Matmul: CuPy does not find cuBLAS, a library of CUDA: install tinydiff\[cuda13"
    ):
        ops.matmul(x, w)
    cupy_stand_in.MISSING.clear()
    y = ops.matmul(x, w)
    cupy_stand_in.MISSING.add("cublas")
    with pytest.raises(RunFailed, match=r"^the backward pass of Matmul: CuPy does not find cuBLAS"):
        y.backward(cupy.ones((2, 2), "float64"))


@pytest.mark.slow
def test_a_gpu_gets_its_work_from_one_thread(tmp_path, capfd, monkeypatch, cublas):
    monkeypatch.setenv("TINYDIFF_KERNELS", "0")
    wrap, seen = cupy_stand_in.arrays.wrap, set()
    monkeypatch.setattr(
        cupy_stand_in.arrays, "wrap", lambda *args: (seen.add(threading.current_thread()), wrap(*args))[1]
    )
    run, common = tmp_path / "run", ["--device", "cuda", "--threads", "2"]
    small = ["--channels=8", "--groups=4", "--mults=1,2", "--timesteps=4", "--image-size=8", "--batch-size=8"]
    for words in (
        ["train", "--steps", "1", "--preview-every", "0", "--holdout", "0.1", "--out", run, *small],
        ["sample", run, "--n", "300", "--steps", "1"],
        ["evaluate", run, "--only", "bits", "--images", "300", "--terms", "3"],
        ["doctor", "--steps", "1", "--preview-every", "0", "--out", tmp_path / "other", *small],
    ):
        seen.clear()
        assert cli.main([*map(str, words), *common]) == 0, capfd.readouterr().err
        assert seen == {threading.main_thread()}, words[0]


@pytest.mark.slow
def test_editing_gives_the_images_of_the_cpu():
    def edit(device):
        unet, x0 = make_unet().to(device), backend.to_device(Generator(3).uniform((2, 8, 8, 2)) * 2 - 1, device)
        diffusion, mask = Diffusion(Schedule.cosine(50)), backend.to_device(np.eye(8)[:, :, None] > 0, device)
        options = {"steps": 4, "progress": False}
        yield ddim_invert(unet, diffusion, x0, steps=4)
        yield interpolate(unet, diffusion, x0[0], x0[1], 30, [0, 0.3, 1], Generator(4), **options)
        yield inpaint(unet, diffusion, x0, mask, Generator(4), **options)

    for ours, expected in zip(edit("cuda"), edit("cpu"), strict=True):
        np.testing.assert_allclose(backend.to_numpy(ours), expected, atol=1e-3)


OPERATIONS = {
    "conv2d": lambda x: ops.conv2d(x, w(3, 3, 2, 4), stride=2, padding=1),
    "grouped": lambda x: ops.conv2d(x, w(3, 3, 1, 4), padding=1, groups=2),
    "transposed": lambda x: ops.conv_transpose2d(x, w(3, 3, 4, 2), stride=2, padding=1, output_padding=1),
    "layer_norm": lambda x: ops.layer_norm(x, w(2), w(2)),
    "softmax": lambda x: ops.softmax(x, 1) + ops.log_softmax(x, 2) * ops.logsumexp(x, (1, 2), keepdims=True),
    "activations": lambda x: ops.relu(x) + ops.gelu(x) + ops.gelu(x, "tanh") + ops.softplus(x) + ops.erf(x) + ops.tanh(x),
    "arithmetic": lambda x: ops.maximum(x, 0.1) + ops.minimum(x, x * x) + ops.clip(x, -1, 1) + abs(x) + (x * x + 1) ** 0.5,
    "where": lambda x: ops.where(x.data > 0, x, 2 * x) + ops.sin(x) - ops.cos(x) / 3,
    "reductions": lambda x: x.max((1, 2)) + x.min((1, 2)) + x.var((1, 2)) + x.mean((1, 2)) + x.sum((1, 2)),
    "shapes": lambda x: ops.stack([x.transpose(0, 2, 1, 3).reshape(*x.shape), x]).reshape(-1)[4:].split(5)[0],
    "gather": lambda x: x[:, [0, 2, 2]] + x[:, :3],
    "pad": lambda x: ops.pad(x, ((0, 0), (1, 2), (2, 1), (0, 0)), mode="reflect") + 0 * ops.pad(
        x, ((0, 0), (1, 2), (2, 1), (0, 0)), mode="edge"),
    "pools": lambda x: ops.avg_pool2d(x, 2) + ops.max_pool2d(x, 2) + ops.avg_pool2d(ops.upsample_nearest2d(x), 4),
    "matmul": lambda x: ops.matmul(x, w(2, 3)) + ops.matmul(x[0, :1], w(6, 2, 3)) @ w(2, 1, 3, 3),
    "einsum": lambda x: ops.einsum("nhwc,ck->nhwk", x, w(2, 3)),
    "losses": lambda x: ops.mse_loss(x, 0 * x.data) + ops.cross_entropy(x.reshape(-1, 2), np.zeros(96, int)),
    "dropout": lambda x: ops.dropout(x, 0.3, Generator(1)),
    "attention": lambda x: ops.attention(x.reshape(2, 24, 4), x.reshape(2, 24, 4), x.reshape(2, 24, 4)),
    "masked attention": lambda x: ops.attention(
        x.reshape(2, 1, 24, 4), w(3, 5, 4), w(5, 4) @ w(4, 3), mask=x.data.reshape(2, 4, 24)[:, None, :1, :5] > 0),
    "large groups": lambda x: ops.group_norm(x.reshape(1, 2, 48, 2) @ w(2, 2048), 1, w(2048), w(2048)) @ w(2048, 1),
}  # fmt: skip


def w(*shape):
    return td.Tensor(backend.to_device(Generator(9).normal(shape), w.device), requires_grad=True)


BY_CUPY = ("einsum",)  # with cuBLAS


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_and_its_gradient_are_those_of_the_cpu(name):
    if name in BY_CUPY:
        cupy_stand_in.MISSING.clear()

    def run(device):
        w.device = device
        x = td.Tensor(backend.to_device(Generator(4).normal((2, 6, 8, 2)), device), requires_grad=True)
        y = OPERATIONS[name](x)
        y.backward(backend.to_device(Generator(6).normal(y.shape), device))
        return y.data, x.grad

    for ours, expected in zip(run("cuda"), run("cpu"), strict=True):
        assert backend.device_of(ours) == "cuda"
        np.testing.assert_allclose(ours.get(), expected, rtol=1e-4, atol=1e-5)


def test_the_stand_in_refuses_what_cupy_refuses(cupy):
    x = cupy.asarray([1.0, 2.0])
    for wrong in (
        lambda: x + np.ones(2), lambda: np.ones(2) * x, lambda: cupy.exp(np.ones(2)), lambda: np.asarray(x),
        lambda: x.max(initial=0), lambda: cupy.clip(x, 0), lambda: x.__setitem__(0, np.ones(1)),
        lambda: x[np.array([0])], lambda: cupy.concatenate([x, np.ones(2)]), lambda: cupy.add(x, 1, where=x > 0),
    ):  # fmt: skip
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(AttributeError):
        cupy.memmap  # noqa: B018
    assert type(x.sum()) is cupy.ndarray and x.sum().shape == () and float(x.sum()) == 3


def test_edges_are_those_of_the_cpu():
    """Masks, limits that are arrays, half precision and margins, which take NumPy's less usual functions."""
    special = np.array([[-np.inf, -1.0, -0.0, 0.0], [1.0, 2.0, np.inf, np.nan]], np.float32)
    column, image = np.array([[0.5], [1.5]], np.float32), np.arange(32, dtype=np.float32).reshape(1, 4, 4, 2) % 5
    cases = [
        (ops.relu, special), (ops.silu, special), (ops.gelu, special), (ops.abs, special), (ops.erf, special),
        (lambda x: ops.gelu(x, "tanh"), special), (ops.clip, special, -column, column),
        (lambda x: ops.clip(x, 0, 1), special), (lambda x, low: ops.clip(x, low), special, column), (ops.clip, special),
        (ops.maximum, special, column), (lambda x: ops.minimum(x, 1), special), (ops.power, special, column),
        (lambda x: x**2, special), (lambda x: ops.power(2, x), special), (lambda x: ops.max(x, 1), special),
        (ops.min, special), (lambda x: ops.dropout(x, 0.5, Generator(1)), special),
        (lambda x: ops.max_pool2d(x, 3, 2, 1), image), (lambda x, v: ops.pad(x, 1, value=v), column, np.float32(2) * np.ones(())),
        (lambda x: ops.pad(x, 1, value=3), column), (lambda q, s: ops.attention(q, q, q, scale=s), column, np.ones((), np.float32)),
        (lambda x, w: ops.conv_transpose2d(x, w, output_padding=2, dilation=3), image, np.ones((2, 2, 3, 2), np.float32)),
    ]  # fmt: skip
    for dtype in (np.float32, np.float16):
        for fn, *arrays in cases:
            results = []
            for device in ("cuda", "cpu"):
                xs = [td.Tensor(backend.to_device(a.astype(dtype), device), requires_grad=True) for a in arrays]
                with np.errstate(all="ignore"):
                    y = fn(*xs)
                    y.backward(backend.to_device(np.linspace(0.5, 1, y.size, dtype=dtype).reshape(y.shape), device))
                results.append([backend.to_numpy(a) for a in (y.data, *(x.grad for x in xs))])
            for ours, expected in zip(*results, strict=True):
                assert ours.dtype == dtype
                np.testing.assert_allclose(ours, expected, rtol=1e-5 if dtype == np.float32 else 1e-3)


def test_half_precision_is_computed_in_float32():
    h = td.Tensor(backend.to_device(np.ones(70_000, np.float16), "cuda"), requires_grad=True)
    for fn in (ops.mean, ops.max, lambda x: ops.mse_loss(x, x * 0), ops.logsumexp):
        h.zero_grad()
        fn(h).backward()
        assert h.grad.dtype == np.float16
        assert 1e-5 < float(h.grad[0]) < 3e-5
    weight = td.nn.Parameter(backend.to_device(np.ones(5, np.float16), "cuda"))
    weight.grad = backend.to_device(np.full(5, 1e-5, np.float16), "cuda")
    average = optim.EMA([weight])
    optim.Adam([weight], 0.1).step(average)
    np.testing.assert_allclose(weight.numpy(), np.full(5, 0.9, np.float16))


def test_a_trace_has_the_numbers_of_the_cpu():
    def traced(device):
        x = td.Tensor(np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)).to(device)
        w = td.Tensor(np.ones((3, 2), np.float32)).to(device)
        w.requires_grad = True
        with td.trace() as trace:
            h = ops.linear(x, w)
            ops.sum(ops.silu(h) + h).backward()
        return trace

    ours, expected = traced("cuda"), traced("cpu")
    assert [e.kind for e in ours.events] == [e.kind for e in expected.events]
    assert [e.live for e in ours.events] == [e.live for e in expected.events] and ours.events[-1].live == 0
    for op, other in zip(ours.operations, expected.operations, strict=True):
        for L, M in zip(op.L_Xs, other.L_Xs, strict=True):
            assert (L is None) == (M is None)
            if L is not None:
                np.testing.assert_allclose(L.values, M.values, rtol=1e-5, atol=1e-6)
