// What changed: 16 bytes are moved at once, and the next slice is on its way while this one is being multiplied.
//
// Why: one read of 16 bytes is one instruction instead of four. Of A a thread reads four neighbours in each of its rows, of B
// four neighbours in a row. And cp.async copies from global to shared memory without passing through registers: a block
// starts the copies of slice k + 1, multiplies slice k, and only then waits. With two places for slices one barrier is enough.
//
//     reads, by every thread 8 of 16 bytes for each 64 multiplications; a warp's take 12 cycles, the multiplications 16
//     from L2, by a block    as before: 16 FLOP/byte
//
// What bounds it: the arithmetic, for large matrices. VECTOR is 1 where K or N is no multiple of 4, since rows then do not begin
// at multiples of 16 bytes. Rows of a are 20 floats apart: 16-byte aligned, and rows that are read together lie in different banks.

#include "tinydiff.cuh"

#ifndef VECTOR
#define VECTOR 4
#endif

__device__ __forceinline__ void copy(float* shared, const float* global, bool valid) {
    if (VECTOR == 4)
        cp_async16(shared, global, valid);
    else
        cp_async4(shared, global, valid);
}

__device__ __forceinline__ float4 four(const float* p) { return *reinterpret_cast<const float4*>(p); }

// The block's 64 x 64 entries of Y, of the sum from column `first` of A up to `last`; first is a multiple of 16.
__device__ __forceinline__ void tile_of_product(
    const float* A, const float* B, float* Y, int M, int N, int K, int first, int last) {
    SHARED(float, a, [2][64][20]);
    SHARED(float, b, [2][16][64]);
    const int x = threadIdx.x % 16, y = threadIdx.x / 16, m0 = blockIdx.y * 64, n0 = blockIdx.x * 64;
    const auto start_copy = [&](int place, int k0) {
        for (int i = threadIdx.x * VECTOR; i < 64 * 16; i += 256 * VECTOR) {
            const int m = m0 + i / 16, ka = k0 + i % 16, kb = k0 + i / 64, n = n0 + i % 64;
            copy(&a[place][i / 16][i % 16], A + m * K + ka, m < M && ka < last);
            copy(&b[place][i / 64][i % 64], B + kb * N + n, kb < last && n < N);
        }
        cp_commit();
    };
    float sum[4][4] = {};
    int place = 0;
    if (first < last) start_copy(0, first);
    for (int k0 = first; k0 < last; k0 += 16, place ^= 1) {
        cp_wait<0>();     // this thread's copies have arrived;
        __syncthreads();  // everybody's have, and nobody reads the other place any more
        if (k0 + 16 < last) start_copy(place ^ 1, k0 + 16);
        UNROLL
        for (int k = 0; k < 16; k += 4) {
            float from_a[4][4];
            UNROLL
            for (int i = 0; i < 4; i++) {
                const float4 v = four(&a[place][y + 16 * i][k]);
                from_a[i][0] = v.x, from_a[i][1] = v.y, from_a[i][2] = v.z, from_a[i][3] = v.w;
            }
            UNROLL
            for (int l = 0; l < 4; l++) {
                const float4 v = four(&b[place][k + l][4 * x]);
                UNROLL
                for (int i = 0; i < 4; i++) {
                    sum[i][0] += from_a[i][l] * v.x;
                    sum[i][1] += from_a[i][l] * v.y;
                    sum[i][2] += from_a[i][l] * v.z;
                    sum[i][3] += from_a[i][l] * v.w;
                }
            }
        }
    }
    UNROLL
    for (int i = 0; i < 4; i++) {
        const int m = m0 + y + 16 * i, n = n0 + 4 * x;
        if (m >= M) continue;
        float* row = Y + m * N + n;
        if (VECTOR == 4) {
            if (n < N) *reinterpret_cast<float4*>(row) = make_float4(sum[i][0], sum[i][1], sum[i][2], sum[i][3]);
        } else {
            for (int j = 0; j < 4; j++)
                if (n + j < N) row[j] = sum[i][j];
        }
    }
}

KERNEL(product, 256)(const float* A, const float* B, float* Y, int M, int N, int K) {
    tile_of_product(A, B, Y, M, N, K, 0, K);
}
