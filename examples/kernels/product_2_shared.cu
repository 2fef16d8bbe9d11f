// What changed: a block copies 32 x 32 squares of A and B to shared memory, and its threads read them there.
//
// Why: each number that comes from far away then serves 32 threads for certain, whatever the caches do.
//
//     from L2, by a block    4 K (32 + 32) bytes for 32 x 32 entries: 8 FLOP/byte
//     reads, by every thread 2 K numbers as before, now from shared memory
//
// What bounds it: shared memory also serves one warp's read a cycle. So there is no gain where caches did well, and this rung
// is worth its place for what stands on it. The two barriers: nobody may read a square before all of it is there, and nobody
// may overwrite it while others still read.

#include "tinydiff.cuh"

constexpr int T = 32;

KERNEL(product, T* T)(const float* A, const float* B, float* Y, int M, int N, int K) {
    SHARED(float, a, [T][T]);
    SHARED(float, b, [T][T]);
    const int x = threadIdx.x % T, y = threadIdx.x / T, n = blockIdx.x * T + x, m = blockIdx.y * T + y;
    float sum = 0.f;
    for (int k0 = 0; k0 < K; k0 += T) {
        a[y][x] = m < M && k0 + x < K ? A[m * K + k0 + x] : 0.f;
        b[y][x] = k0 + y < K && n < N ? B[(k0 + y) * N + n] : 0.f;
        __syncthreads();
        for (int k = 0; k < T; k++) sum += a[y][k] * b[k][x];
        __syncthreads();
    }
    if (m < M && n < N) Y[m * N + n] = sum;
}
