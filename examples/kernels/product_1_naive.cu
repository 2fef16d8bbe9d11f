// Y = A B, one thread for each entry of Y.          A (M, K), B (K, N), Y (M, N), each below 2^31 entries
//
// This is the formula. Neighbouring threads take neighbouring columns, so that the 32 threads of a warp read 32 neighbours of a
// row of B in one go of 128 bytes, and one entry of A that all of them share.
//
//     FLOPs                  2 M N K
//     reads, by every thread 2 K numbers, for 2 K FLOPs: one read for each FLOP
//     from L2, by a block    4 K (8 + 32) bytes for 8 x 32 entries, if its rows and columns stay in the L1 cache: 3.2 FLOP/byte
//
// What bounds it: a multiprocessor serves one warp's read a cycle but multiplies for four warps. Two reads for each
// multiplication leave 1/8 of its arithmetic in use.

#include "tinydiff.cuh"

KERNEL(product, 256)(const float* A, const float* B, float* Y, int M, int N, int K) {
    const int n = blockIdx.x * 32 + threadIdx.x % 32, m = blockIdx.y * 8 + threadIdx.x / 32;
    if (m >= M || n >= N) return;
    float sum = 0.f;
    for (int k = 0; k < K; k++) sum += A[m * K + k] * B[k * N + n];
    Y[m * N + n] = sum;
}
