"""How fast on a GPU: our own CUDA kernels (kernels/*.cu). `dispatch` calls these files.

A file with the name of one in `ops` (or of `random`, `optim`, `diffusion/noise`) computes its functions by kernels,
with the same names and signatures. The others support these:

    launch.py      one launch, with its arguments checked; on the GPU or on the host
    driver.py      compiles and launches through CuPy
    host.py        runs the same source on the host, by a stand-in for CUDA
    source.py      the texts of kernels/*.cu and the parameters of each kernel
    nvrtc.py       compiles every kernel for every architecture, without a GPU
    products.py    products of matrices, and how they are cut into tiles
    split_k.py     sums that blocks compute in parts and the last of them adds
    tensor.py      products of matrices on tensor cores, in TF32 and with operands of 16 bits
    tensor_convolution.py  convolutions on tensor cores, which convolution.py asks for
    tensor_attention.py  attention on tensor cores, which attending.py asks for
    doubling.py    filters of convolutions of doubled pixels, as they act on the image itself
    taps.py        where the taps of a convolution read and write
    flat.py        one piece of memory for many arrays
    updates.py     launches of the kernels in optimizer.cu
    capture.py     a CUDA graph of what a function launches, and its replays
    graphs.py      `td.cuda.graph`, for loops of the user's own
"""

from tinydiff.cuda.graphs import graph

__all__ = ["graph"]
