// Softmax of rows, for attention (the products around it are in matrix.cu).
//
//     p_i = exp(x_i - top) / sum_j exp(x_j - top)      with top = max x, so that exponentials do not overflow
//
// From dp_i / dx_j = p_i (delta_ij - p_j):   L_X = P (L_P - sum(L_P P)). A row of -inf alone gives zeros.
//
// With z = top + log sum_j exp(x_j - top), of which the forward kernels write one for each row if asked to, P is exp(X - z):
// attention keeps z and not P, and its backward pass has P computed again on the way (Dao et al., 2022, 3.1).
//
// Up to 32 PER_LANE columns, a warp takes a row and holds it in registers: lane l has columns l, l + 32, ..., which reads and
// writes whole 128-byte lines. Memory is read once and written once, 8 bytes an element (backward 12). Longer rows take a
// block each and are read twice: the first time with a running maximum, by which the running sum is scaled whenever it
// rises (Milakov and Gimelshein, 2018, "Online normalizer calculation for softmax").
// All kernels may write over their input.

#include "tinydiff.cuh"
#include "elements.cuh"
#include "softmax.cuh"

#ifndef PER_LANE
#define PER_LANE 8
#endif
#define WARPS 8  // of a block

KERNEL(softmax_short, 32 * WARPS)(const float* X, float* P, float* z, int rows, int columns) {
    const int row = blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;  // a whole warp
    X += static_cast<size_t>(row) * columns;
    P += static_cast<size_t>(row) * columns;
    float x[PER_LANE], top = -LARGEST, sum = 0.f;
    UNROLL
    for (int k = 0; k < PER_LANE; k++) {
        x[k] = lane + 32 * k < columns ? X[lane + 32 * k] : -INFINITY;
        top = fmaxf(top, x[k]);
    }
    top = fminf(warp_max(top), LARGEST);
    UNROLL
    for (int k = 0; k < PER_LANE; k++) {
        x[k] = exp_(x[k] - top);
        sum += x[k];
    }
    sum = warp_sum(sum);
    if (z && lane == 0) z[row] = z_of(top, sum);
    const float share = reciprocal_of_sum(sum);
    UNROLL
    for (int k = 0; k < PER_LANE; k++)
        if (lane + 32 * k < columns) P[lane + 32 * k] = x[k] * share;
}

// X is P, or where z is given the logits; then P, unless null, receives P.
KERNEL(softmax_short_backward, 32 * WARPS)(const float* X, const float* z, const float* L_P, float* P, float* L_X, int rows,
                                           int columns) {
    const int row = blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    const size_t start = static_cast<size_t>(row) * columns;
    float p[PER_LANE], l[PER_LANE], sum = 0.f;
    UNROLL
    for (int k = 0; k < PER_LANE; k++) {
        const bool inside = lane + 32 * k < columns;
        p[k] = inside ? X[start + lane + 32 * k] : 0.f;
        if (z && inside) p[k] = exp_(p[k] - z[row]);
        l[k] = inside ? L_P[start + lane + 32 * k] : 0.f;
        sum += l[k] * p[k];
    }
    sum = warp_sum(sum);
    UNROLL
    for (int k = 0; k < PER_LANE; k++)
        if (lane + 32 * k < columns) {
            L_X[start + lane + 32 * k] = p[k] * (l[k] - sum);
            if (P) P[start + lane + 32 * k] = p[k];
        }
}

// A maximum and a sum of exponentials relative to it; two of them make one.
struct Total {
    float top, sum;
};

__device__ __forceinline__ Total combine(Total a, Total b) {
    const float top = fmaxf(a.top, b.top);
    return {top, a.sum * exp_(a.top - top) + b.sum * exp_(b.top - top)};
}

__device__ __forceinline__ Total warp_total(Total t) {
    UNROLL
    for (int mask = 16; mask; mask >>= 1) t = combine(t, {shuffle_xor(t.top, mask), shuffle_xor(t.sum, mask)});
    return t;
}

KERNEL(softmax_long, 32 * WARPS)(const float* X, float* P, float* z, int columns) {
    SHARED(Total, of_warp, [WARPS]);
    X += static_cast<size_t>(blockIdx.x) * columns;
    P += static_cast<size_t>(blockIdx.x) * columns;
    Total total = {-LARGEST, 0.f};
    for (int j = threadIdx.x; j < columns; j += blockDim.x) {
        const float x = X[j], top = fminf(fmaxf(total.top, x), LARGEST);
        total.sum = total.sum * exp_(total.top - top) + exp_(x - top);
        total.top = top;
    }
    total = warp_total(total);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = total;
    __syncthreads();
    total = of_warp[0];
    for (int w = 1; w < WARPS; w++) total = combine(total, of_warp[w]);
    if (z && threadIdx.x == 0) z[blockIdx.x] = z_of(total.top, total.sum);
    const float share = reciprocal_of_sum(total.sum);
    for (int j = threadIdx.x; j < columns; j += blockDim.x) P[j] = exp_(X[j] - total.top) * share;
}

KERNEL(softmax_long_backward, 32 * WARPS)(const float* X, const float* z, const float* L_P, float* P, float* L_X,
                                          int columns) {
    SHARED(float, row_sum, [1]);
    const size_t start = static_cast<size_t>(blockIdx.x) * columns;
    float sum = 0.f;
    for (int j = threadIdx.x; j < columns; j += blockDim.x) {
        const float p = z ? exp_(X[start + j] - z[blockIdx.x]) : X[start + j];
        sum += L_P[start + j] * p;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) row_sum[0] = sum;
    __syncthreads();
    for (int j = threadIdx.x; j < columns; j += blockDim.x) {
        const float p = z ? exp_(X[start + j] - z[blockIdx.x]) : X[start + j];
        L_X[start + j] = p * (L_P[start + j] - row_sum[0]);
        if (P) P[start + j] = p;
    }
}
