// Products of matrices in stacks, and the sums of a matrix's columns.
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

// The sum of `value` over the 8 threads of a column, for the first of them: always in the same order.
__device__ __forceinline__ float sum_down(float value) {
    SHARED(float, values, [8][32]);
    values[threadIdx.y][threadIdx.x] = value;
    __syncthreads();
    float sum = 0.f;
    UNROLL
    for (int i = 0; i < 8; i++) sum += values[i][threadIdx.x];
    return sum;
}

// Y (gridDim.y, columns): the sums of the columns of each matrix of X (gridDim.y, rows, columns). Block x has 32 columns, y a
// matrix, z the rows z * height .. (z + 1) * height - 1. 32 threads side by side take 32 columns, 8 of them down take every eighth
// row. The last block to arrive adds the sums of the others, parts (gridDim.y, gridDim.x, gridDim.z, 32), in the same way; parts is
// null where one block has all rows. total (columns,), which may be null: the sums of Y's columns, by the last of those that write
// Y. arrived: a counter for each matrix and 32 columns, then one for each 32 columns; null where no block waits for others.
KERNEL(column_sums, 256)
(const float* X, float* Y, float* total, float* parts, unsigned* arrived, int rows, int columns, int height) {
    const int column = blockIdx.x * 32 + threadIdx.x, first = blockIdx.z * height, last = min(rows, first + height);
    X += static_cast<long long>(blockIdx.y) * rows * columns;
    float sum = 0.f;
    if (column < columns) {
        UNROLL
        for (int row = first + threadIdx.y; row < last; row += 8) sum += X[static_cast<long long>(row) * columns + column];
    }
    sum = sum_down(sum);
    if (gridDim.z > 1) {
        const int tile = blockIdx.y * gridDim.x + blockIdx.x, count = gridDim.z;
        parts += static_cast<long long>(tile) * count * 32 + threadIdx.x;
        if (threadIdx.y == 0) parts[blockIdx.z * 32] = sum;
        if (!last_to_arrive(arrived + tile, count)) return;
        sum = 0.f;
        UNROLL
        for (int part = threadIdx.y; part < count; part += 8) sum += load_shared_by_blocks(parts + part * 32);
        sum = sum_down(sum);
    }
    const bool writes = threadIdx.y == 0 && column < columns;
    if (writes) Y[static_cast<long long>(blockIdx.y) * columns + column] = sum;
    if (!total || !last_to_arrive(arrived + gridDim.y * gridDim.x + blockIdx.x, gridDim.y)) return;
    sum = 0.f;
    if (column < columns) {
        UNROLL
        for (int matrix = threadIdx.y; matrix < gridDim.y; matrix += 8)
            sum += load_shared_by_blocks(Y + static_cast<long long>(matrix) * columns + column);
    }
    sum = sum_down(sum);
    if (writes) total[column] = sum;
}
