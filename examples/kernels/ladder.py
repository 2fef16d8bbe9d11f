"""A ladder of CUDA kernels: a matrix product and a convolution, from the formula to tiles, checked rung by rung.

    python examples/kernels/ladder.py              every rung: its gradients are checked, its time is predicted
    python examples/kernels/ladder.py product_3    one of them

Without a GPU the kernels run on the CPU, compiled by the system's C++ compiler (g++ or clang++) against a stand-in for CUDA. So
numbers are right or wrong there as on a GPU, and missing barriers are found, but times mean nothing: they come from a cost
model. With a GPU and CuPy the times are measured.
"""

import sys
from pathlib import Path

import numpy as np
from cost_model import Card, Rung, predict

import tinydiff as td
from tinydiff import backend
from tinydiff.cuda import host
from tinydiff.cuda.launch import launch
from tinydiff.cuda.source import KernelError
from tinydiff.precision import rounded

HERE = Path(__file__).parent

RUNGS = {  # tile of a block, cycles of reading per multiplication of a warp
    "product_1_naive": Rung((8, 32), 2),
    "product_2_shared": Rung((32, 32), 2),
    "product_3_registers": Rung((64, 64), 8 / 16),
    "product_4_pipeline": Rung((64, 64), 12 / 64),
    "product_5_split_k": Rung((64, 64), 12 / 64, parts=32),
    "product_6_tensor_cores": Rung((64, 64), 1 / 16, tensor_cores=True),
    "convolution_1_naive": Rung((1, 256), 2),
    "convolution_2_implicit": Rung((64, 64), 8 / 16),
}
WRONG = "the kernel computes wrong numbers: an index is wrong, or a barrier is missing"
THREADS = {"product_2_shared": 1024, "product_6_tensor_cores": 128}
SHAPES = {"4096 x 4096 x 4096": (4096, 4096, 4096), "a weight gradient, 128 x 128 x 131072": (128, 128, 131072)}


def empty(like, *shape):
    return backend.array_module(like).empty(shape, "float32")


def contiguous(x):
    return backend.array_module(x).ascontiguousarray(x)


def product(rung, A, B, parts=None, split=True):
    """A (M, K) B (K, N) by a rung's kernel; float32. On tensor cores as exact as that by `split`, else of numbers in TF32."""
    M, K, N = *A.shape, B.shape[1]
    A, B, Y = contiguous(A), contiguous(B), empty(A, M, N)
    sizes = [np.int32(n) for n in (M, N, K)]
    tile, threads = RUNGS[rung].tile, THREADS.get(rung, 256)
    grid = [-(-N // tile[1]), -(-M // tile[0]), 1]
    defines = {"VECTOR": 4 if K % 4 == N % 4 == 0 else 1} if rung[8] in "456" else {}
    if RUNGS[rung].tensor_cores:
        defines["SPLIT"] = int(split)
    file = str(HERE / f"{rung}.cu")
    if rung != "product_5_split_k":
        launch(file, "product", grid, (threads, 1, 1), [A, B, Y, *sizes], defines=defines)
        return Y
    grid[2] = parts or max(1, min(RUNGS[rung].parts, K // 96))  # a part shall have some slices to sum
    some = empty(A, grid[2], M, N)
    launch(file, "product_parts", grid, (threads, 1, 1), [A, B, some, *sizes], defines=defines)
    last = [some, Y, np.int32(grid[2]), np.int32(M * N)]
    launch(file, "sum_parts", (-(-M * N // 256), 1, 1), (256, 1, 1), last, defines=defines)
    return Y


def convolution(rung, kernel, X, other, result, W_shape, padding):
    """`convolution` of X with W (other), or `weight_gradient` of X and L_Y (other), by a rung's kernel."""
    (N, H, V, C), (R, S, _, K) = X.shape, W_shape
    Y = empty(X, *result)
    rows = int(np.prod(result[:-1]))
    grid = (-(-Y.size // 256), 1, 1) if rung == "convolution_1_naive" else (-(-K // 64), -(-rows // 64), 1)
    sizes = [np.int32(n) for n in (N, H, V, C, R, S, K, *padding)]
    launch(str(HERE / f"{rung}.cu"), kernel, grid, (256, 1, 1), [contiguous(X), contiguous(other), Y, *sizes])
    return Y


def product_layer(rung, parts=None):
    """Y = X W as an operation: forward and both gradients are the rung's product."""

    class Product(td.Function):
        def forward(self, X, W):
            self.save(X, W)
            return product(rung, X, W, parts)

        def backward(self, L_Y):
            X, W = self.saved
            return product(rung, L_Y, W.T, parts), product(rung, X.T, L_Y, parts)

    return Product


def convolution_layer(rung, padding=(1, 0)):
    """A convolution as an operation: forward and L_X by the rung's `convolution`, L_W by its `weight_gradient`."""

    class Convolution(td.Function):
        def forward(self, X, W):
            self.save(X, W)
            (N, H, V, _), (R, S, _, K) = X.shape, W.shape
            result = N, H + 2 * padding[0] - R + 1, V + 2 * padding[1] - S + 1, K
            return convolution(rung, "convolution", X, W, result, W.shape, padding)

        def backward(self, L_Y):
            X, W = self.saved
            turned = W[::-1, ::-1].swapaxes(2, 3)
            around = W.shape[0] - 1 - padding[0], W.shape[1] - 1 - padding[1]
            L_X = convolution(rung, "convolution", L_Y, turned, X.shape, turned.shape, around)
            return L_X, convolution(rung, "weight_gradient", X, L_Y, W.shape, W.shape, padding)

    return Convolution


def check(rung, parts=None):
    """The gradient check of a rung, with the numbers compared to NumPy's; raises where something is wrong."""
    rng = np.random.default_rng(0)
    # sizes that no tile divides, and below, ones that allow 16 bytes at once
    if rung.startswith("convolution"):
        layer, shapes = convolution_layer(rung), [(2, 6, 5, 3), (3, 2, 3, 5)]
        reference = td.ops.conv2d
        options = {"padding": (1, 0)}
    else:
        layer, shapes = product_layer(rung, parts), [(36, 20), (20, 68)]
        reference, options = td.ops.matmul, {}
    inputs = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    expected = reference(*[x.astype(float) for x in inputs], **options).data
    assert np.abs(layer.apply(*inputs).data - expected).max() < 1e-4, WRONG
    if not rung.startswith("convolution"):
        odd = [x[:33, :19] if i == 0 else x[:19, :67] for i, x in enumerate(inputs)]
        assert np.abs(layer.apply(*odd).data - odd[0].astype(float) @ odd[1]).max() < 1e-4, WRONG
    if RUNGS[rung].tensor_cores:
        exact = np.matmul(*[rounded(x, "tf32").astype(float) for x in inputs])
        assert np.abs(product(rung, *inputs, split=False) - exact).max() < 1e-4, WRONG
    return td.gradcheck(layer, inputs, dtype=np.float32)


def measure(rung, M, N, K, repeats=10):
    """Seconds on the GPU, the least of some runs."""
    cupy = backend.cupy()
    A, B = (cupy.random.standard_normal(shape, "float32") for shape in ((M, K), (K, N)))
    times = []
    for _ in range(repeats + 1):  # the first compiles
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        product(rung, A, B, split=False)
        end.record()
        end.synchronize()
        times.append(cupy.cuda.get_elapsed_time(start, end) / 1000)
    return min(times[1:])


def main(chosen):
    card, gpu = Card(), backend.cupy() is not None and backend.cupy().is_available()
    if not gpu and (reason := host.missing()):
        sys.exit(reason)
    rungs = [name for name in RUNGS if name.startswith(chosen)]
    if not rungs:
        print(f"there is no rung {chosen}; they are {', '.join(RUNGS)}", file=sys.stderr)
        sys.exit(2)
    for rung in rungs:
        try:
            report = check(rung)
        except (AssertionError, KernelError) as error:
            sys.exit(f"{rung}: {error}")
        print(f"{rung}: {', '.join(f'L_{v.name}' for v in report.verdicts)} right, by the kernel in {rung}.cu")
        for shape, sizes in SHAPES.items() if rung.startswith("product") else ():
            seconds, bound = predict(RUNGS[rung], *sizes, card)
            flops = 2 * np.prod(sizes, dtype=float)
            print(f"    {shape:38} {1e3 * seconds:8.2f} ms on {card.name}, {flops / seconds / 1e12:5.1f} TFLOP/s, bound by"
                  f" {bound} (predicted, not measured)")  # fmt: skip
            if gpu:
                seconds = measure(rung, *sizes)
                print(f"    {'':38} {1e3 * seconds:8.2f} ms here, {flops / seconds / 1e12:5.1f} TFLOP/s (measured)")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
