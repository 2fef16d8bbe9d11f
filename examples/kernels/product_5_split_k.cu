// What changed: the sum over K is cut into parts, and each part has its own blocks (gridDim.z of them). A second kernel adds
// the parts.
//
// Why: the gradient of a weight, L_W = X^T L_Y, is a small matrix with a long sum: 128 x 128 entries are four tiles, and 128
// of an H100's 132 multiprocessors would have nothing to do. Cut into 32 parts it is 128 blocks.
//
//     more bytes             8 parts M N: each part is written and read once
//     FLOPs                  (parts - 1) M N more, which is nothing
//
// What bounds it: the arithmetic again; with very many parts, writing and reading them.
//
// The parts are added in their order, so that the same numbers give the same bits. Adding with atomics would save the second
// kernel and give other bits each time.

#include "product_4_pipeline.cu"

KERNEL(product_parts, 256)(const float* A, const float* B, float* parts, int M, int N, int K) {
    const int slices = (K + 15) / 16, z = blockIdx.z;
    const int first = slices * z / static_cast<int>(gridDim.z) * 16;
    const int last = min(K, slices * (z + 1) / static_cast<int>(gridDim.z) * 16);
    tile_of_product(A, B, parts + z * M * N, M, N, K, first, last);
}

KERNEL(sum_parts, 256)(const float* parts, float* Y, int count, int size) {
    const int i = blockIdx.x * 256 + threadIdx.x;
    if (i >= size) return;
    float sum = 0.f;
    for (int part = 0; part < count; part++) sum += parts[part * size + i];
    Y[i] = sum;
}
