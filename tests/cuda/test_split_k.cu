// A kernel for test_split_k.py: sums of NUMBERS numbers of 32 threads each, in parts. x (gridDim.z, tiles, NUMBERS, 32), Y (tiles, NUMBERS,
// 32).
#include "tinydiff.cuh"
#include "split_k.cuh"

KERNEL(add_up, 32)(const float* x, float* Y, float* parts, unsigned* arrived) {
    const int tile = blockIdx.y * gridDim.x + blockIdx.x, tiles = gridDim.y * gridDim.x;
    float sums[NUMBERS];
    for (int i = 0; i < NUMBERS; i++) sums[i] = x[((blockIdx.z * tiles + tile) * NUMBERS + i) * 32 + threadIdx.x];
    if (!add_parts<32>(sums, parts, arrived)) return;
    for (int i = 0; i < NUMBERS; i++) Y[(tile * NUMBERS + i) * 32 + threadIdx.x] = sums[i];
}
