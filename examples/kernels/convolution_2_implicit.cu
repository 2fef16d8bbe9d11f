// What changed: the convolution is the product Y = P W of product_3_registers.cu, and its weight gradient the product
// L_W = P^T L_Y. P, the matrix of patches, is not written anywhere: its entries are looked up in X when a tile is copied to
// shared memory.
//
// Why: a tile serves 64 filters with each pixel that it reads. Writing P would take R S times the memory of X, and the time to
// write and to read it.
//
//     reads, by every thread 8 for each 16 multiplications
//     from L2, by a block    4 R S C (64 + 64) bytes for 64 pixels of 64 filters: 16 FLOP/byte
//
// What bounds it: shared memory as in product_3_registers.cu, and the divisions that find a pixel. The kernels of
// kernels/convolution.cu find it once for each row of a tile. The steps of product_4 and product_5 apply as they are: the weight
// gradient, a small matrix with a sum over all pixels, needs the parts of product_5 most of all.

#include "product_3_registers.cu"

struct Image { int H, V, C, R, S, I, J, pad_h, pad_w; };

// Entry (pixel, tap) of P: pixel counts n, i, j; tap counts r, s, c.
__device__ __forceinline__ float patch(const float* X, const Image& d, int pixel, int tap) {
    const int c = tap % d.C, s = tap / d.C % d.S, r = tap / d.C / d.S;
    const int h = pixel / d.J % d.I + r - d.pad_h, v = pixel % d.J + s - d.pad_w, n = pixel / d.J / d.I;
    return h >= 0 && h < d.H && v >= 0 && v < d.V ? X[((n * d.H + h) * d.V + v) * d.C + c] : 0.f;
}

KERNEL(convolution, 256)(
    const float* X, const float* W, float* Y, int N, int H, int V, int C, int R, int S, int K, int pad_h, int pad_w) {
    const Image d = {H, V, C, R, S, H + 2 * pad_h - R + 1, V + 2 * pad_w - S + 1, pad_h, pad_w};
    product_of([&](int m, int k) { return patch(X, d, m, k); }, W, Y, N * d.I * d.J, K, R * S * C);
}

KERNEL(weight_gradient, 256)(
    const float* X, const float* L_Y, float* L_W, int N, int H, int V, int C, int R, int S, int K, int pad_h, int pad_w) {
    const Image d = {H, V, C, R, S, H + 2 * pad_h - R + 1, V + 2 * pad_w - S + 1, pad_h, pad_w};
    product_of([&](int m, int k) { return patch(X, d, k, m); }, L_Y, L_W, R * S * C, K, N * d.I * d.J);
}
