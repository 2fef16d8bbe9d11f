// Convolutions of NHWC images on tensor cores: Y = P W + 1 b + E + residual as the product of a matrix of patches that is never
// stored ("implicit GEMM"), and with BACKWARD the gradient L_X. tensor.cuh tells how a block computes its tile, patches.cuh
// what P is.
//
//     Y    (pixels, K) = P(X) (pixels, taps C)    W (taps C, K)
//     L_X  (pixels, C) = P(L_Y) (pixels, taps K)  W^T of the taps in reverse order (taps K, C)
//
// The inner axis goes tap by tap and, in a tap, channel by channel. The channels of a pixel are a multiple of a slice's TILE_K,
// so a slice belongs to one tap. Then a row of a slice of P is 64 neighbouring bytes of X, four chunks that four threads copy.
//
// A thread copies the same rows m in each slice. It keeps for each where it begins in X and which taps are outside (`Patch`); a
// slice adds the same number of entries to all of them. So a copy takes an addition of 64 bits and a test, no division.
//
// W (R, S, C, K) is read as it lies. Forward, slices of it are neighbouring rows, entries of n side by side (ACROSS_K).
// BACKWARD, n is c, and entries of k are side by side (ALONG_K): row c of a slice is part of W[tap, c, :].
//
// What L_X adds up. Output p reads pixel h of X through tap r where h + top = p stride + r dilation. With stride 1 every pixel is
// reached by all taps, and a later tap belongs to an earlier output: L_X is a convolution of L_Y with the taps in reverse
// order. With a stride the pixels of X fall into classes by the taps that reach them; each class is such a convolution, with each
// stride-th tap of W, and its pixels lie apart in L_X (`Place`).
//
// Several filters at once. With gridDim.y = 4, row y of blocks takes filter y of four for pixel (y / 2, y % 2) of each 2 x 2 pixels
// of Y, and sees X as much further to the bottom and right: a convolution of doubled pixels (doubling.cu).
//
// Bytes: a tile reads TILE_M pixels' patches and TILE_N columns of W, 64 (TILE_M + TILE_N) a slice. Neighbouring taps read the
// same pixels and neighbouring tiles the same of both, so most come from the second-level cache. 128 x 256 at 16 bits: 2 * 128 *
// 256 * 32 FLOP for 24 KiB, 85 FLOP/byte. At some 5 TB/s an H100's cache then allows 430 TFLOP/s, which is about what mma reach:
// tiles are as large as registers allow.

#include "tinydiff.cuh"
#include "tensor.cuh"
#include "patches.cuh"

#ifndef BACKWARD
#define BACKWARD 0
#endif

// Where a row of the product goes: its image, and its pixel among all of Y, which may have more pixels than the product.
struct alignas(8) Place {
    int image, pixel;
};

// W^T as BACKWARD reads it: a thread copies the same rows n of each tap of W (R S, N, K).
struct Turned {
    typedef Slice<ALONG_K, TILE_N> S;
    const Element* from;
    int limit;  // where the thread's rows end
    unsigned to;

    __device__ __forceinline__ Turned(const Element* W, int n0, int N, int K) {
        from = W + static_cast<long long>(n0 + S::row()) * K + S::chunk() * CHUNK;
        limit = N - n0 - S::row();
        to = S::place(S::row(), S::chunk());
        keep(to);
    }
    // entry: the first of W's entries in the slice, for n = 0.
    __device__ __forceinline__ void copy(unsigned char* slice, long long entry, int K) const {
        UNROLL
        for (int i = 0; i < S::COPIES; i++) {
            const Element* row = from + entry + static_cast<long long>(i) * S::DOWN * K;
            cp_async16(slice + to + i * S::DOWN * S::ROW, row, i * S::DOWN < limit);
        }
    }
};

// Block x is a tile, y a filter where there are four, z a part of the sum. X (images, height, width, C) and the product's N
// columns: K and N of W, or with BACKWARD N and K. b (N,), E (images, N), residual (like Y) may be null. parts, arrived: for
// add_parts, null with one part.
// Tap (r, s) of the product is tap first_tap - r down - s across of W, forward (r, s).
// Y (images, out_height, out_width, N); the product has its pixels start, start + step, .. along either axis.
KERNEL(tensor_convolution, THREADS)
(const Element* X, const Element* W, const float* b, const float* E, const Result* residual, Result* Y, float* parts,
 unsigned* arrived, int images, int height, int width, int C, int N, int R, int S, int Ho, int Wo, int stride_h, int stride_w,
 int dilation_h, int dilation_w, int top, int left, int first_tap, int down, int across, int out_height, int out_width, int step_h,
 int step_w, int start_h, int start_w) {
    typedef Slice<ALONG_K, TILE_M> A;
    typedef Slice<BACKWARD ? ALONG_K : ACROSS_K, TILE_N> B;
    DYNAMIC_SHARED(unsigned char, shared);
    SHARED(Place, places, [TILE_M]);
    const int M = images * Ho * Wo, length = R * S * C, columns = (N + TILE_N - 1) / TILE_N;
    const int m0 = blockIdx.x / columns * TILE_M, n0 = blockIdx.x % columns * TILE_N;
    const int below = blockIdx.y / 2, right = blockIdx.y % 2;
    W += static_cast<long long>(blockIdx.y) * length * N;
    top -= below, left -= right, start_h += below, start_w += right;
    const Window window = {height, width, C, R, S, Ho, Wo, stride_h, stride_w, dilation_h, dilation_w, top, left};
    for (int i = threadIdx.x; i < TILE_M; i += THREADS) {
        const Pixel at = pixel_of(m0 + i, window);
        const int row = at.p * step_h + start_h, column = at.q * step_w + start_w;
        places[i] = {at.n, (at.n * out_height + row) * out_width + column};
    }
    __syncthreads();

    int offset[A::COPIES];  // of the thread's rows in X
    unsigned outside[A::COPIES];
    UNROLL
    for (int i = 0; i < A::COPIES; i++) {
        const Patch patch = patch_of(pixel_of(m0 + A::row() + i * A::DOWN, window), images, window);
        offset[i] = patch.pixel * C + A::chunk() * CHUNK, outside[i] = patch.outside;
    }
    unsigned to = A::place(A::row(), A::chunk());
    keep(to);

    int first, last;
    slices_of_part(length, first, last);
    const int tap = first * TILE_K / C;
    int c = first * TILE_K - tap * C, r = tap / max(S, 1), s = tap - r * S;  // of the slice that comes next, if there is one
#if BACKWARD
    const Turned w(W, n0, N, C);
#else
    Matrix<B> w(W, n0, N, length, first);
#endif
    Sums sum = {};
    multiply<A, B>(
        shared, first, last,
        [&](int, unsigned char* to_a, unsigned char* to_b) {
            const Element* x = X + static_cast<long long>(window.pixels_to(r, s)) * C + c;
            const unsigned bits = bits_of_tap(r, s);
            UNROLL
            for (int i = 0; i < A::COPIES; i++)
                cp_async16(to_a + to + i * A::DOWN * A::ROW, x + offset[i], !(outside[i] & bits));
#if BACKWARD
            w.copy(to_b, static_cast<long long>(first_tap - r * down - s * across) * N * C + c, C);
#else
            w.copy(to_b, length);
#endif
            c += TILE_K;
            if (c == C) {
                c = 0;
                if (++s == S) s = 0, r++;
            }
        },
        sum);
    if (!add_parts(sum, parts, arrived)) return;

    write_tile(sum, m0, M, [&](int m, Pairs& y) {
        const Place place = places[m - m0];
        const long long row = static_cast<long long>(place.pixel) * N;
        const float* e = E + static_cast<long long>(place.image) * N;
        const Result* r = residual + row;
        if (b) each_pair(n0, N, [&](int j, int n) { add(y[j], load_pair(b + n)); });
        if (E) each_pair(n0, N, [&](int j, int n) { add(y[j], load_pair(e + n)); });
        if (residual) each_pair(n0, N, [&](int j, int n) { add(y[j], load_pair(r + n)); });
        each_pair(n0, N, [&](int j, int n) { store_pair(Y + row + n, y[j]); });
    });
}
