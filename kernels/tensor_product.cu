// Products of matrices in stacks on tensor cores. tensor.cuh tells how a block computes its tile.
//
//     Y = scale A B + 1 bias + R    Y, R (M, N)    A (M, K), or its transpose (K, M)    B (K, N), or its transpose (N, K)
//
// Rows of all matrices in memory must be whole chunks of 16 bytes, and begin at a multiple of 16 bytes.

#include "tinydiff.cuh"
#include "tensor.cuh"

#ifndef TRANSPOSED_A
#define TRANSPOSED_A 0
#endif
#ifndef TRANSPOSED_B
#define TRANSPOSED_B 0
#endif

// Block x is a tile, y a matrix of the stack, z a part of the sum over K. bias and R may be null; R may be Y.
// apart_A, apart_B: entries from one matrix of a stack to the next, 0 where all share one. parts, arrived: for add_parts, null with one part.
KERNEL(tensor_product, THREADS)
(const Element* A, const Element* B, const float* bias, const Result* R, Result* Y, float* parts, unsigned* arrived, int M, int N,
 int K, unsigned long long apart_A, unsigned long long apart_B, float scale) {
    constexpr Layout LAYOUT_A = TRANSPOSED_A ? ACROSS_K : ALONG_K, LAYOUT_B = TRANSPOSED_B ? ALONG_K : ACROSS_K;
    typedef Slice<LAYOUT_A, TILE_M> A_slice;
    typedef Slice<LAYOUT_B, TILE_N> B_slice;
    DYNAMIC_SHARED(unsigned char, shared);
    const int across = (N + TILE_N - 1) / TILE_N;
    const int m0 = blockIdx.x / across * TILE_M, n0 = blockIdx.x % across * TILE_N;

    int first, last;
    slices_of_part(K, first, last);
    Matrix<A_slice> a(A + blockIdx.y * apart_A, m0, M, K, first);
    Matrix<B_slice> b(B + blockIdx.y * apart_B, n0, N, K, first);
    Sums sum = {};
    multiply<A_slice, B_slice>(
        shared, first, last,
        [&](int, unsigned char* to_a, unsigned char* to_b) {
            a.copy(to_a, K);
            b.copy(to_b, K);
        },
        sum);
    if (!add_parts(sum, parts, arrived)) return;

    write_tile(sum, m0, M, [&](int m, Pairs& y) {
        const long long row = (static_cast<long long>(blockIdx.y) * M + m) * N;
        each_pair(n0, N, [&](int j, int n) {
            const float2 more = bias ? load_pair(bias + n) : make_float2(0.f, 0.f);
            y[j] = make_float2(y[j].x * scale + more.x, y[j].y * scale + more.y);
        });
        if (R) each_pair(n0, N, [&](int j, int n) { add(y[j], load_pair(R + row + n)); });
        each_pair(n0, N, [&](int j, int n) { store_pair(Y + row + n, y[j]); });
    });
}
