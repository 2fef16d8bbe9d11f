// What changed: tensor cores multiply (compute capability 8.0 on). By one instruction, mma, a warp computes D (16, 8) += A (16, 8)
// B (8, 8), whose entries lie in registers of its threads: with g = lane / 4 and t = lane % 4 a thread holds
//
//     A[g, t], A[g + 8, t], A[g, t + 4], A[g + 8, t + 4]    B[t, g], B[t + 4, g]    D[g, 2t], D[g, 2t + 1], D[g + 8, 2t], ..
//
// Why: a multiprocessor then multiplies 1024 times in a cycle instead of 128; by mma, which waits for registers, a good 600 times.
// The operands are TF32, float32 rounded to 11 bits; sums are float32. A block of 4 warps computes 64 x 64 entries of Y, a warp
// 32 x 32 of them, 2 x 4 results of mma.
//
//     reads, by every thread 16 for 8 mma, 8192 multiplications: an eighth of product_3_registers.cu
//     from L2, by a block    as before: 16 FLOP/byte
//
// What bounds it: bytes from L2. At 5.5 TB/s they allow 88 TFLOP/s, and mma would do 300. Next come the reads, 16 cycles for what
// mma do in 13. kernels/tensor.cuh goes on from here: 128 x 256 entries for a block, 64 x 64 for a warp, four registers by one
// read, four slices on their way, and the parts of product_5_split_k.cu, added by the block that comes last.
//
// With SPLIT each number is taken as the sum of two, its rounded part and the rest, and three of their four products are added:
// as exact as float32, and a third as fast. ladder.py checks gradients with it, since rounding is not differentiable.
//
// Rows of 20 and of 72 floats: what a warp reads at once, 20 g + t and 72 t + g, lies in 32 different banks.

#include "tinydiff.cuh"

#ifndef VECTOR
#define VECTOR 4
#endif
#ifndef SPLIT
#define SPLIT 0
#endif

__device__ __forceinline__ void copy(float* shared, const float* global, bool valid) {
    if (VECTOR == 4)
        cp_async16(shared, global, valid);
    else
        cp_async4(shared, global, valid);
}

__device__ __forceinline__ float rest(float x, unsigned rounded) { return x - __uint_as_float(rounded); }

KERNEL(product, 128)(const float* A, const float* B, float* Y, int M, int N, int K) {
    SHARED(float, a, [2][64][20]);
    SHARED(float, b, [2][16][72]);
    const int m0 = blockIdx.y * 64, n0 = blockIdx.x * 64, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int m = warp / 2 * 32, n = warp % 2 * 32, g = lane / 4, t = lane % 4;  // the warp's part of the block's entries
    const auto start_copy = [&](int place, int k0) {
        for (int i = threadIdx.x * VECTOR; i < 64 * 16; i += 128 * VECTOR) {
            const int ma = m0 + i / 16, ka = k0 + i % 16, kb = k0 + i / 64, nb = n0 + i % 64;
            copy(&a[place][i / 16][i % 16], A + ma * K + ka, ma < M && ka < K);
            copy(&b[place][i / 64][i % 64], B + kb * N + nb, kb < K && nb < N);
        }
        cp_commit();
    };
    float sum[2][4][4] = {};
    int place = 0;
    start_copy(0, 0);
    for (int k0 = 0; k0 < K; k0 += 16, place ^= 1) {
        cp_wait<0>();
        __syncthreads();
        if (k0 + 16 < K) start_copy(place ^ 1, k0 + 16);
        UNROLL
        for (int k = 0; k < 16; k += 8) {
            unsigned from_a[2][4], rest_a[2][4];
            UNROLL
            for (int i = 0; i < 8; i++) {
                const float x = a[place][m + 16 * (i / 4) + 8 * (i % 2) + g][k + 4 * (i / 2 % 2) + t];
                from_a[i / 4][i % 4] = to_tf32(x);
                rest_a[i / 4][i % 4] = to_tf32(rest(x, from_a[i / 4][i % 4]));
            }
            UNROLL
            for (int j = 0; j < 4; j++) {
                unsigned from_b[2], rest_b[2];
                UNROLL
                for (int i = 0; i < 2; i++) {
                    const float x = b[place][k + 4 * i + t][n + 8 * j + g];
                    from_b[i] = to_tf32(x), rest_b[i] = to_tf32(rest(x, from_b[i]));
                }
                UNROLL
                for (int i = 0; i < 2; i++) {
                    if (SPLIT) mma_tf32(sum[i][j], rest_a[i], from_b), mma_tf32(sum[i][j], from_a[i], rest_b);
                    mma_tf32(sum[i][j], from_a[i], from_b);
                }
            }
        }
    }
    UNROLL
    for (int i = 0; i < 32; i++) {
        const int down = i / 16, across = i / 4 % 4, e = i % 4;
        const int row = m0 + m + 16 * down + 8 * (e / 2) + g, column = n0 + n + 8 * across + 2 * t + e % 2;
        if (row < M && column < N) Y[row * N + column] = sum[down][across][e];
    }
}
