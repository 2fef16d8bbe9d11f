// The gradient of a convolution's filters on tensor cores: L_W = P^T L_Y, of which P, the matrix of patches, is never stored.
// tensor.cuh tells how a block computes its tile, patches.cuh what P is.
//
//     L_W (R S C, K) = P^T (R S C, pixels)    L_Y (pixels, K)
//
// The inner axis is that of output pixels: a slice has 16 (TF32) or 32 of them. Neighbours in memory are entries of the outer axes,
// channels of a tap and filters, so both operands lie ACROSS_K: a row of a slice is a pixel. The channels are a multiple
// of CHUNK, so a chunk belongs to one tap.
//
// A thread copies the same chunk of several rows, so its tap stays the same and what changes from slice to slice are the pixels.
// Where their patches begin is found once for all threads and ahead: while slice k is copied, some threads find the patches of
// slice k + STAGES - 1 and write them to a ring of 2 STAGES places, far enough from those that are being read. A copy then
// takes a load of 8 bytes, a test and a multiplication into an address.
//
// L_W is small and the sum is long: gridDim.z parts of it are computed by as many blocks, and the last one to arrive adds them.

#include "tinydiff.cuh"
#include "tensor.cuh"
#include "patches.cuh"

// Block x is a tile, z a part of the sum. X (images, height, width, C), L_Y (images, Ho, Wo, K), L_W (R, S, C, K). parts, arrived:
// for add_parts, null with one part.
KERNEL(tensor_weight_gradient, THREADS)
(const Element* X, const Element* L_Y, float* L_W, float* parts, unsigned* arrived, int images, int height, int width, int C, int K,
 int R, int S, int Ho, int Wo, int stride_h, int stride_w, int dilation_h, int dilation_w, int top, int left) {
    typedef Slice<ACROSS_K, TILE_M> A;
    typedef Slice<ACROSS_K, TILE_N> B;
    constexpr int PLACES = 2 * STAGES;
    DYNAMIC_SHARED(unsigned char, shared);
    SHARED(Patch, ring, [PLACES][TILE_K]);
    const int pixels = images * Ho * Wo, rows = R * S * C, columns = (K + TILE_N - 1) / TILE_N;
    const int m0 = blockIdx.x / columns * TILE_M, n0 = blockIdx.x % columns * TILE_N;
    const Window window = {height, width, C, R, S, Ho, Wo, stride_h, stride_w, dilation_h, dilation_w, top, left};
    int first, last;
    slices_of_part(pixels, first, last);
    Pixel next = pixel_of(first * TILE_K + threadIdx.x, window);
    const Pixel apart = pixel_of(TILE_K, window);
    const auto find = [&](int at) {
        if (threadIdx.x >= TILE_K) return;
        ring[at % PLACES][threadIdx.x] = patch_of(next, images, window);
        next.q += apart.q, next.p += apart.p, next.n += apart.n;
        if (next.q >= Wo) next.q -= Wo, next.p++;
        if (next.p >= Ho) next.p -= Ho, next.n++;
    };
    ROLLED
    for (int i = 0; i < STAGES - 1; i++) find(i);
    __syncthreads();

    const int entry = m0 + A::chunk() * CHUNK, tap = entry / C, c = entry - tap * C, r = tap / S, s = tap - r * S;
    const unsigned bits = entry < rows ? bits_of_tap(r, s) : NOWHERE;
    const Element* x = X + static_cast<long long>(window.pixels_to(r, s)) * C + c;
    unsigned to = A::place(A::row(), A::chunk());
    keep(to);
    Matrix<B> l_y(L_Y, n0, K, pixels, first);
    Sums sum = {};
    multiply<A, B>(
        shared, first, last,
        [&](int slice, unsigned char* to_a, unsigned char* to_b) {
            find(slice - first + STAGES - 1);
            UNROLL
            for (int i = 0; i < A::COPIES; i++) {
                const Patch patch = ring[(slice - first) % PLACES][A::row() + i * A::DOWN];
                const Element* from = x + static_cast<long long>(patch.pixel) * C;
                cp_async16(to_a + to + i * A::DOWN * A::ROW, from, !(patch.outside & bits));
            }
            l_y.copy(to_b, pixels);
        },
        sum);
    if (!add_parts(sum, parts, arrived)) return;

    write_tile(sum, m0, rows, [&](int m, Pairs& y) {
        float* row = L_W + static_cast<long long>(m) * K;
        each_pair(n0, K, [&](int j, int n) { store_pair(row + n, y[j]); });
    });
}
