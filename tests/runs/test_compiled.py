"""tinydiff/runs/compiled.py, on the stand-in for CuPy: what sampling launches is compiled before its first step."""

import pytest

import tinydiff as td
from tests import cupy_stand_in
from tinydiff.cuda import compiling, driver, source, tensor
from tinydiff.diffusion import Diffusion, Schedule
from tinydiff.random import Generator
from tinydiff.runs import compiled, sheets


@pytest.fixture(autouse=True)
def cupy(monkeypatch):
    with cupy_stand_in.put_in_place(monkeypatch) as module:
        yield module


def small(**options):
    return td.UNet(4, 1, channels=4, channel_mults=(1,), blocks_per_level=1, attention_resolutions=(4,), groups=2,
                   generator=Generator(1), **options)  # fmt: skip


def test_sampling_launches_what_was_compiled_before(monkeypatch):
    ready, launched, run = set(), [], driver.run
    monkeypatch.setattr(driver, "prepare", lambda name, flags, device: ready.add((name, flags)))

    def noted(name, kernel, grid, block, args, shared, defines):
        launched.append((name, source.flags(defines)))
        assert launched[-1] in ready or (kernel == "random_normal" and not ready)  # x_T
        run(name, kernel, grid, block, args, shared, defines)

    monkeypatch.setattr(driver, "run", noted)
    monkeypatch.setattr(sheets, "PIXELS_AT_ONCE", 32)
    unet = small(num_classes=3, null_label=2).to("cuda")
    passes = []
    unet.register_forward_hook(lambda *_: passes.append(None))
    sheets.draw_sheet(unet, Diffusion(Schedule.cosine(4)), Generator(1), 3, steps=2, progress=False)
    assert launched and len(passes) == 2 + 2 * 2  # batches of 2 images and of 1
    compiled.compile_sampling(unet, [2, 1], [0], 2.0)
    assert len(passes) == 6
    assert not any(name == tensor.SOURCE for name, _ in ready)
    with tensor.precision("tf32"):
        compiled.compile_sampling(unet, [2, 1], [0], 2.0)
    assert len(passes) == 8 and any(name == tensor.SOURCE for name, _ in ready)


def test_nothing_is_done_on_a_cpu_and_for_other_models(monkeypatch):
    monkeypatch.setattr(compiling, "_compile", lambda *_: pytest.fail("compiled"))
    compiled.compile_sampling(small(), [1])
    compiled.compile_sampling(lambda x, t: x, [1])
