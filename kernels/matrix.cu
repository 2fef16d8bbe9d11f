// Products of matrices in stacks, and the sums of a matrix's columns.
//
//     Y = scale A B + 1 bias        Y (M, N)    A (M, K), or its transpose (K, M)    B (K, N), or its transpose (N, K)
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

// Copies columns k .. k + TILE_K - 1 and rows n .. n + TILE_N - 1 of B (N, K), turned: neighbouring threads read neighbours
// of a row, and write to rows of shared memory which are 4 banks apart.
__device__ __forceinline__ void copy_slice_turned(float* shared, const float* B, int n, int k, int N, int K) {
    ROLLED
    for (unsigned at = threadIdx.x; at < TILE_K * TILE_N; at += THREADS) {
        const int i = at % TILE_K, j = at / TILE_K;
        const float* from = B + static_cast<long long>(n + j) * K + k + i;
        copy<1>(shared + i * ROW_B + j, from, n + j < N && k + i < K);
    }
}

// Block x is a tile, y a matrix of the stack, z a part of the sum over K. apart_A, apart_B: entries from one matrix of a stack
// to the next, 0 where all share one. With several parts, they go to Y + z * stack * M * N for sum_parts, with scale 1.
KERNEL(matrix_product, TILE_THREADS)
(const float* A, const float* B, const float* bias, float* Y, int M, int N, int K, unsigned long long apart_A,
 unsigned long long apart_B, float scale) {
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
    Y += (static_cast<long long>(blockIdx.z) * gridDim.y + blockIdx.y) * M * N;
    float for_all[8];
    load_row(for_all, bias, n0, N);
    write_tile<LAYOUT>(sum, m0, M, [&](int m, float(&y)[8]) {
        UNROLL
        for (int j = 0; j < 8; j++) y[j] = y[j] * scale + for_all[j];
        float* row = Y + static_cast<long long>(m) * N;
        each_group(n0, N, [&](int j, int n) { store_group(row + n, y, j); });
    });
}

// parts (gridDim.y, gridDim.z, columns): part y of matrix z of X (gridDim.z, rows, columns) is the sums of the columns in its
// rows y * height .. (y + 1) * height - 1; sum_parts adds the parts. 32 threads side by side take 32 columns, 8 of them down
// take every eighth row; then the first of them adds the 8 sums.
KERNEL(column_sums, 256)(const float* X, float* parts, int rows, int columns, int height) {
    SHARED(float, sums, [8][32]);
    const int column = blockIdx.x * 32 + threadIdx.x, first = blockIdx.y * height, last = min(rows, first + height);
    X += static_cast<long long>(blockIdx.z) * rows * columns;
    float sum = 0.f;
    if (column < columns) {
        UNROLL
        for (int row = first + threadIdx.y; row < last; row += 8) sum += X[static_cast<long long>(row) * columns + column];
    }
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || column >= columns) return;
    UNROLL
    for (int i = 1; i < 8; i++) sum += sums[i][threadIdx.x];
    parts[(static_cast<long long>(blockIdx.y) * gridDim.z + blockIdx.z) * columns + column] = sum;
}
