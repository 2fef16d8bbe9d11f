// A convolution, one thread for each number of Y; and its weight gradient, one thread for each number of L_W.
//
//     Y[n, i, j, k] = sum over r, s, c of X[n, i + r - pad_h, j + s - pad_w, c] W[r, s, c, k]
//     L_W[r, s, c, k] = sum over n, i, j of X[n, i + r - pad_h, j + s - pad_w, c] L_Y[n, i, j, k]
//
// X (N, H, V, C) is 0 outside. W (R, S, C, K). Y, L_Y (N, I, J, K) with I = H + 2 pad_h - R + 1 and J = V + 2 pad_w - S + 1.
// L_X needs no kernel: it is the convolution of L_Y with the filter turned by half a turn and C and K exchanged, padded by
// R - 1 - pad_h and S - 1 - pad_w.
//
//     FLOPs                  2 N I J K R S C, in each of the three
//     reads, by every thread two numbers for each multiplication, as in product_1_naive.cu
//
// What bounds the weight gradient: it has only R S C K threads. For 3 x 3 filters from 3 to 64 channels that is 1,728, of the
// 270,336 that an H100 can have at once.

#include "tinydiff.cuh"

KERNEL(convolution, 256)(
    const float* X, const float* W, float* Y, int N, int H, int V, int C, int R, int S, int K, int pad_h, int pad_w) {
    const int I = H + 2 * pad_h - R + 1, J = V + 2 * pad_w - S + 1, at = blockIdx.x * 256 + threadIdx.x;
    if (at >= N * I * J * K) return;
    const int k = at % K, j = at / K % J, i = at / K / J % I, n = at / K / J / I;
    float sum = 0.f;
    for (int r = 0; r < R; r++) {
        for (int s = 0; s < S; s++) {
            const int h = i + r - pad_h, v = j + s - pad_w;
            if (h < 0 || h >= H || v < 0 || v >= V) continue;
            for (int c = 0; c < C; c++) sum += X[((n * H + h) * V + v) * C + c] * W[((r * S + s) * C + c) * K + k];
        }
    }
    Y[at] = sum;
}

KERNEL(weight_gradient, 256)(
    const float* X, const float* L_Y, float* L_W, int N, int H, int V, int C, int R, int S, int K, int pad_h, int pad_w) {
    const int I = H + 2 * pad_h - R + 1, J = V + 2 * pad_w - S + 1, at = blockIdx.x * 256 + threadIdx.x;
    if (at >= R * S * C * K) return;
    const int k = at % K, c = at / K % C, s = at / K / C % S, r = at / K / C / S;
    float sum = 0.f;
    for (int n = 0; n < N; n++) {
        for (int i = 0; i < I; i++) {
            for (int j = 0; j < J; j++) {
                const int h = i + r - pad_h, v = j + s - pad_w;
                if (h < 0 || h >= H || v < 0 || v >= V) continue;
                sum += X[((n * H + h) * V + v) * C + c] * L_Y[((n * I + i) * J + j) * K + k];
            }
        }
    }
    L_W[at] = sum;
}
