"""tests/benchmarks/gpu_model.py: it sees what a step launches, and what it predicts follows sizes, variants and the GPU."""

from contextlib import contextmanager

import pytest

from tests import cupy_stand_in
from tests.benchmarks import gpu_model
from tests.benchmarks.gpu_model import FIGURES, Launch, floor, seconds
from tests.test_gpu_first import TINY
from tinydiff.cuda import driver, joint, sums, tensor, tensor_attention

H100, RTX4090 = (FIGURES["gpus"][name] for name in ("H100", "RTX 4090"))


def product(M, N, K, precision="tf32", kernel="tensor_product"):
    p = tensor.plan(M, N, K, 1, 4 if precision == "tf32" else 2)
    defines = {"TILE_M": p.m, "TILE_N": p.n, "PRECISION": precision.upper()}
    grid = (p.tiles(M, N), 1, p.parts)
    return Launch(kernel, 4 * (M * K + K * N + M * N), "", grid, defines, {"M": M, "N": N, "K": K})


@pytest.fixture(scope="module")
def steps():
    return {precision: gpu_model.recorded(TINY, 2, precision) for precision in gpu_model.PRECISIONS}


def test_a_hollow_step_launches_what_a_step_launches(steps, monkeypatch):
    """Kernels, grids, variants, sizes and bytes, in order."""
    run, found = driver.run, []
    monkeypatch.setattr(gpu_model, "hollow", lambda: computed(run, found))
    seen = gpu_model.recorded(TINY, 2, "tf32")
    assert seen == [launch for launch in steps["tf32"] if launch.kernel != "CuPy"] and len(seen) > 50


@contextmanager
def computed(run, found):
    """Stands in for `hollow`: kernels are run."""

    def noted(*call):
        found.append(gpu_model.described(call))
        run(*call)

    with pytest.MonkeyPatch.context() as patch, cupy_stand_in.put_in_place(patch):
        patch.setattr(driver, "run", noted)
        yield found


def test_no_launch_is_faster_than_its_floor_and_tensor_cores_take_the_products(steps):
    for precision, launches in steps.items():
        for gpu in (H100, RTX4090):
            assert all(seconds(x, gpu) >= floor(x, gpu) for x in launches)
            assert gpu_model.total(launches, gpu).ms > 1e-3 * (2 + FIGURES["gap, us"]) * len(launches) * 0.99
        kernels = {x.kernel for x in launches}
        assert ("tensor_product" in kernels, "matrix_product" in kernels) == (
            precision == "tf32",
            precision == "float32",
        )
        convolutions = [x for x in launches if x.kernel == "conv_forward"]
        assert any(x.flops == 2 * 2 * 16 * 4 * 9 for x in convolutions)  # conv_in: two images, 1 -> 4 channels


def test_large_products_take_what_tensor_cores_need():
    """Of an H100 about the share that `mma.sync` reaches; a GeForce multiplies TF32 no faster than float32."""
    large = product(32768, 4096, 4096)
    assert large.flops / seconds(large, H100) / 1e12 == pytest.approx(494.7 * 0.62 * 0.9 * 1.755 / 1.83, rel=0.05)
    assert seconds(product(32768, 4096, 8192), H100) == pytest.approx(2 * seconds(large, H100), rel=0.01)
    assert seconds(product(32768, 4096, 4096, "bf16"), H100) == pytest.approx(seconds(large, H100) / 2, rel=0.02)
    assert large.flops / seconds(large, RTX4090) / 1e12 == pytest.approx(82.6 * 0.9 * 0.9, rel=0.05)
    split = product(64, 64, 1 << 17)
    assert split.grid[2] > 8 and seconds(split, H100) < seconds(split._replace(grid=(1, 1, 1)), H100) / 4


def test_in_float32_large_products_take_multipliers_and_the_rest_takes_its_bytes():
    grid, numbers = (32768 // 128 * 32, 1, 1), {"M": 32768, "N": 4096, "K": 4096}
    large = Launch("matrix_product", 1 << 20, "", grid, {"TILE_M": 128, "TILE_N": 128}, numbers)
    for gpu, share in ((H100, 0.8), (RTX4090, 0.8 * 2 / 2.7)):  # there shared memory has room for half as many warps
        peak = share * 2 * 128 * gpu["multiprocessors"] * gpu["GHz"] / 1e3
        assert large.flops / seconds(large, gpu) / 1e12 == pytest.approx(peak, rel=0.05)
    normalised = Launch("group_norm_forward", 300 << 20, "", (4096, 1, 1))
    assert seconds(normalised, H100) == pytest.approx((300 << 20) / (0.75 * 3e12))
    assert seconds(normalised._replace(grid=(4, 1, 1)), H100) == pytest.approx(4 * seconds(normalised, H100))
    assert seconds(normalised._replace(bytes=4), H100) == 2e-6


def test_a_convolution_on_tensor_cores_is_taken_for_what_it_is():
    numbers = {"images": 128, "height": 16, "width": 16, "C": 256, "N": 256, "R": 3, "S": 3, "Ho": 16, "Wo": 16}
    defines = {"TILE_M": 128, "TILE_N": 256, "PRECISION": "BF16"}
    forward = Launch("some_convolution", 40 << 20, "", (256, 1, 1), defines, numbers)
    assert forward.product == (128 * 256, 256, 2304, 1) and forward.variant == "some_convolution 128x256 bf16"
    assert 300 < forward.flops / seconds(forward, H100) / 1e12 < 989 * 0.62
    gradient = {name: n for name, n in numbers.items() if name != "N"} | {"K": 256}
    weights = Launch("some_weight_gradient", 40 << 20, "", (18, 1, 7), defines, gradient)
    assert weights.product == (2304, 256, 128 * 256, 1) and weights.flops == forward.flops


def test_layers_that_share_an_input_take_a_launch_each_way(steps, monkeypatch):
    """Query, key and value of an attention, and the time's projections for five residual blocks: the same products, fewer bytes. So
    do the sums for their biases."""
    monkeypatch.setattr(joint, "_taken", lambda *args: None)
    monkeypatch.setattr(sums, "sum_columns_of_each", lambda L_Ys: None)
    for precision, launches in steps.items():
        together = [x for x in launches if "joint" in x.kernel and "sums" not in x.kernel]
        apart = gpu_model.recorded(TINY, 2, precision)
        assert len(together) == 3 * 2 and len(apart) - len(launches) == (3 + 1) * (2 + 4)
        assert all(x.kernel.startswith("tensor") == (precision == "tf32") and x.flops > 0 for x in together)
        assert sum(x.flops for x in apart) == sum(x.flops for x in launches)
        assert sum(x.bytes for x in apart) > sum(x.bytes for x in launches)


def test_attention_in_one_kernel_each_way_saves_launches_and_bytes(steps, monkeypatch):
    """Three launches instead of nine, and P, L_P and L_S are not written. One of a CIFAR-10 step, and what it computes."""
    whole = steps["tf32"]
    monkeypatch.setattr(tensor_attention, "takes", lambda *args: False)
    apart = gpu_model.recorded(TINY, 2, "tf32")
    layers = sum(x.kernel == "attention_forward" for x in whole)
    assert layers and not any(x.kernel.startswith("attention") for x in apart)
    assert len(apart) - len(whole) == (9 - 3) * layers
    assert sum(x.bytes for x in whole) < sum(x.bytes for x in apart)
    numbers, defines = dict.fromkeys(("queries", "keys", "D", "E"), 256), {"PRECISION": "TF32", "TILE_N": 256}
    for kernel, count in (("forward", 2), ("queries_gradient", 3), ("keys_gradient", 4)):
        launch = Launch(f"attention_{kernel}", 168 << 20, "", (512, 1, 1), defines, numbers)
        assert launch.flops == count * 2 * 128 * 256**3 and launch.variant == f"attention_{kernel} 64x256 tf32"
        assert 0.2 < floor(launch, H100) / seconds(launch, H100) < 1
        assert seconds(launch._replace(defines=defines | {"PRECISION": "BF16"}, bytes=0), H100) < seconds(launch, H100)


def test_the_table(monkeypatch, steps, capsys):
    monkeypatch.setattr(gpu_model, "recorded", lambda network, batch, precision: steps[precision])
    assert gpu_model.main(["--networks", "glyphs", "--rows", "2"]) == 0
    said = capsys.readouterr().out
    assert said.count("predicted, not measured") == 5 and "| glyphs, 32 images, tf32, RTX 4090" in said
    assert said.count("%") == 4 + 4 * 2
