// Products of matrices in stacks.
//
//     Y = scale A B + 1 bias + R    Y, R (M, N)    A (M, K), or its transpose (K, M)    B (K, N), or its transpose (N, K)
//
// tile.cuh tells how a block computes its tile of Y. Of a transposed A, slices come column by column, 16 bytes at once like
// those of A itself; the slices of a transposed B are turned on their way to shared memory, 4 bytes at once.

#include "tinydiff.cuh"
#include "tile.cuh"

#ifndef TRANSPOSED_A
#define TRANSPOSED_A 0
#endif
#ifndef TRANSPOSED_B
#define TRANSPOSED_B 0
#endif

// Block x is a tile, y a matrix of the stack, z a part of the sum over K. bias and R may be null; R may be Y.
// apart_A, apart_B: entries from one matrix of a stack to the next, 0 where all share one. parts, arrived: for add_parts, null with one part.
KERNEL(matrix_product, TILE_THREADS)
(const float* A, const float* B, const float* bias, const float* R, float* Y, float* parts, unsigned* arrived, int M, int N, int K,
 unsigned long long apart_A, unsigned long long apart_B, float scale) {
    DYNAMIC_SHARED(float, shared);
    const int across = (N + TILE_N - 1) / TILE_N;
    const int m0 = blockIdx.x / across * TILE_M, n0 = blockIdx.x % across * TILE_N;
    A += blockIdx.y * apart_A;
    B += blockIdx.y * apart_B;

    int first, last;
    slices_of_part(K, first, last);
    constexpr Layout LAYOUT = TRANSPOSED_A ? BY_COLUMNS : BY_ROWS;
    float sum[8][8] = {};
    multiply<LAYOUT>(
        shared, first, last,
        [&](int slice, float* A_slice, float* B_slice) {
            if (TRANSPOSED_A)
                copy_block<VECTOR_A, TILE_K, TILE_M>(A_slice, COLUMN_A, A, slice * TILE_K, m0, K, M);
            else
                copy_block<VECTOR_A, TILE_M, TILE_K>(A_slice, ROW_A, A, m0, slice * TILE_K, M, K);
            if (TRANSPOSED_B)
                copy_slice_turned(B_slice, B, n0, slice * TILE_K, N, K);
            else
                copy_block<VECTOR_B, TILE_K, TILE_N>(B_slice, ROW_B, B, slice * TILE_K, n0, K, N);
        },
        sum);
    if (!add_parts<THREADS>(sum, parts, arrived)) return;
    float for_all[8];
    load_row(for_all, bias, n0, N);
    write_tile<LAYOUT>(sum, m0, M, [&](int m, float(&y)[8]) {
        UNROLL
        for (int j = 0; j < 8; j++) y[j] = y[j] * scale + for_all[j];
        const long long row = (static_cast<long long>(block_index_again().y) * M + m) * N;
        if (R) each_group(n0, N, [&](int j, int n) { add_group(y, j, R + row + n); });
        each_group(n0, N, [&](int j, int n) { store_group(Y + row + n, y, j); });
    });
}
