// The sums of a matrix's columns: of a stack of matrices, and of those of several layers. They are float32, of float32 or of 16
// bits (precision.cuh), which are widened as they are read.
//
// A block has 32 columns. 32 threads side by side take a column each, 8 of them down take every eighth row. Where columns alone
// would not fill the GPU, blocks share the rows as well (slabs), and the last one to arrive adds what they have, see split_k.cuh:
// always in the same order.

#include "tinydiff.cuh"
#include "elements.cuh"
#include "layers.cuh"
#include "split_k.cuh"

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

// The sum of this block's rows z * height .. (z + 1) * height - 1 in a column of X (rows, columns), for the first thread of it.
__device__ __forceinline__ float sum_slab(const Element* X, int column, int rows, int columns, int height) {
    const int first = blockIdx.z * height, last = min(rows, first + height);
    float sum = 0.f;
    if (column < columns) {
        UNROLL
        for (int row = first + threadIdx.y; row < last; row += 8) {
            float x[1];
            load(x, X + static_cast<long long>(row) * columns + column);
            sum += x[0];
        }
    }
    return sum_down(sum);
}

// The sum of what the `count` blocks that share a tile's rows have, for the first thread of each column. parts: 32 floats of each.
__device__ __forceinline__ float sum_slabs(const float* parts, int count) {
    float sum = 0.f;
    UNROLL
    for (int part = threadIdx.y; part < count; part += 8) sum += load_shared_by_blocks(parts + part * 32 + threadIdx.x);
    return sum_down(sum);
}

// Y (gridDim.y, columns): the sums of the columns of each matrix of X (gridDim.y, rows, columns). Block x has 32 columns, y a
// matrix, z a slab. total (columns,), which may be null: the sums of Y's columns, by the last of those that write Y. parts:
// (gridDim.y, gridDim.x, gridDim.z, 32), null with one slab. arrived: a counter for each matrix and 32 columns, then one for each
// 32 columns; null where no block waits for others.
KERNEL(column_sums, 256)
(const Element* X, float* Y, float* total, float* parts, unsigned* arrived, int rows, int columns, int height) {
    const int column = blockIdx.x * 32 + threadIdx.x;
    float sum = sum_slab(X + static_cast<long long>(blockIdx.y) * rows * columns, column, rows, columns, height);
    if (gridDim.z > 1) {
        const int tile = blockIdx.y * gridDim.x + blockIdx.x;
        parts += static_cast<long long>(tile) * gridDim.z * 32;
        if (threadIdx.y == 0) parts[blockIdx.z * 32 + threadIdx.x] = sum;
        if (!last_to_arrive(arrived + tile, gridDim.z)) return;
        sum = sum_slabs(parts, gridDim.z);
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

// Y_i (columns_i,): the sums of the columns of X_i (rows, columns_i), for all layers. Block x is the place of 32 columns among
// those of all layers, z a slab. parts: (gridDim.x, gridDim.z, 32).
KERNEL(joint_column_sums, 256)
(EACH(const Element*, X), EACH(float*, Y), EACH(int, columns), float* parts, unsigned* arrived, int rows, int height) {
    SHARED(Side<Element>, sides, [1]);
    const Element* const Xs[LAYERS] = {ALL(X)};
    float* const Ys[LAYERS] = {ALL(Y)};
    const int all_columns[LAYERS] = {ALL(columns)};
    find_side(sides[0], blockIdx.x, 32, Xs, all_columns);
    const int layer = sides[0].layer, width = sides[0].columns, column = sides[0].first + threadIdx.x;
    float sum = sum_slab(pick(Xs, layer), column, rows, width, height);
    if (gridDim.z > 1) {
        const int tile = blockIdx.x;
        parts += static_cast<long long>(tile) * gridDim.z * 32;
        if (threadIdx.y == 0) parts[blockIdx.z * 32 + threadIdx.x] = sum;
        if (!last_to_arrive(arrived + tile, gridDim.z)) return;
        sum = sum_slabs(parts, gridDim.z);
    }
    if (threadIdx.y == 0 && column < width) pick(Ys, layer)[column] = sum;
}
