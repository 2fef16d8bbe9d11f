// One tile of a matrix product Y = A B, as matrix.cu and convolution.cu compute it.
//
// A block of threads computes TILE_M x TILE_N entries of Y. It walks along the axis that is summed over in steps of
// TILE_K: a slice of A (TILE_M x TILE_K) and one of B (TILE_K x TILE_N) are copied from global to shared memory, and every
// thread adds what they contribute to its own 8 x 8 entries, which stay in registers to the end. A number in shared memory
// is read by many threads, and a number that a thread has read serves 8 multiplications.
//
//     bytes from global memory per slice   4 TILE_K (TILE_M + TILE_N)
//     multiplications and additions        2 TILE_K TILE_M TILE_N              128 x 128: 32 FLOP per byte
//
// Copies run while the threads compute: shared memory holds STAGES slices, cp.async fills the place of slice
// k + STAGES - 1 while slice k is being multiplied, and there is one barrier per slice.
//
// Which thread has which entries: a warp has 64 x 32 of them, its 32 lanes stand 8 downwards (r) and 4 across (c). B lies in
// shared memory row by row; a thread takes columns 4 c .. 4 c + 3 and 16 + 4 c .. 16 + 4 c + 3, two reads of 16 bytes. A
// lies there as it comes from global memory, so that copies move 16 bytes at once:
//     BY_ROWS       a thread takes rows r, r + 8, .., r + 56 and reads 4 entries of each at once. Rows are 20 floats apart:
//                   the 8 rows that a warp reads together are in different banks.
//     BY_COLUMNS    a thread takes rows 4 r .. 4 r + 3 and 32 + 4 r .. 32 + 4 r + 3, two reads in each column.
// Bits 1-3 of the lane are r, bits 0 and 4 are c: neighbouring lanes then read few different addresses.

#include "elements.cuh"
#include "split_k.cuh"

#ifndef TILE_M
#define TILE_M 128
#endif
#ifndef TILE_N
#define TILE_N 128
#endif
#ifndef STAGES
#define STAGES 3
#endif
#ifndef VECTOR_A  // floats moved at once from A: 4 where 16 bytes are aligned in all of it, else 1
#define VECTOR_A 4
#endif
#ifndef VECTOR_B  // the same for B, for Y and for what is added to Y
#define VECTOR_B 4
#endif

constexpr int TILE_K = 16;
constexpr int THREADS = TILE_M * TILE_N / 64;
constexpr int WARPS_ACROSS = TILE_N / 32;
constexpr int ROW_A = TILE_K + 4;     // floats from one row of A to the next, BY_ROWS
constexpr int COLUMN_A = TILE_M + 4;  // floats from one column of A to the next, BY_COLUMNS
constexpr int ROW_B = TILE_N + 4;
static_assert(TILE_M % 64 == 0 && TILE_N % 32 == 0, "a warp has 64 x 32 entries");
static_assert(THREADS >= TILE_M / VECTOR_A, "a thread copies parts of one column");

#if !defined(TD_HOST) && __CUDA_ARCH__ >= 800 && VECTOR_A == 4 && VECTOR_B == 4
#define TILE_THREADS THREADS, 512 / THREADS  // at least 512 threads on a multiprocessor: at most 128 registers for each
#elif !defined(TD_HOST) && __CUDA_ARCH__ < 800
#define TILE_THREADS THREADS, 1  // else the compiler aims at more, and spills registers for it
#else
#define TILE_THREADS THREADS
#endif
#define ROLLED _Pragma("unroll 1")  // for loops of copies: unrolled, their addresses would take up the registers

enum Layout { BY_ROWS, BY_COLUMNS };

// Where entry (i, j) of the thread's 8 x 8 is in the tile.
template <Layout A> __device__ __forceinline__ int tile_row(int i) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, r = lane / 2 % 8;
    return warp / WARPS_ACROSS * 64 + (A == BY_ROWS ? r + 8 * i : i / 4 * 32 + 4 * r + i % 4);
}

__device__ __forceinline__ int tile_column(int j) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = lane % 2 + lane / 16 * 2;
    return warp % WARPS_ACROSS * 32 + j / 4 * 16 + 4 * c + j % 4;
}

template <int FLOATS> __device__ __forceinline__ void copy(float* shared, const float* global, bool valid) {
    if (FLOATS == 4)
        cp_async16(shared, global, valid);
    else
        cp_async4(shared, global, valid);
}

// sum += A B for a slice of each in shared memory.
template <Layout LAYOUT>
__device__ __forceinline__ void multiply_slices(const float* A, const float* B, float (&sum)[8][8]) {
    A += tile_row<LAYOUT>(0) * (LAYOUT == BY_ROWS ? ROW_A : 1);
    B += tile_column(0);
    UNROLL
    for (int k4 = 0; k4 < TILE_K; k4 += 4) {
        float rows[8][4];
        if (LAYOUT == BY_ROWS) {
            UNROLL
            for (int i = 0; i < 8; i++) load(rows[i], A + 8 * i * ROW_A + k4);
        }
        UNROLL
        for (int k = 0; k < 4; k++) {
            float a[2][4], b[2][4];
            if (LAYOUT == BY_COLUMNS) {
                load(a[0], A + (k4 + k) * COLUMN_A);
                load(a[1], A + (k4 + k) * COLUMN_A + 32);
            }
            load(b[0], B + (k4 + k) * ROW_B);
            load(b[1], B + (k4 + k) * ROW_B + 16);
            UNROLL
            for (int i = 0; i < 8; i++) {
                UNROLL
                for (int j = 0; j < 8; j++)
                    sum[i][j] += (LAYOUT == BY_ROWS ? rows[i][k] : a[i / 4][i % 4]) * b[j / 4][j % 4];
            }
        }
    }
}

// Floats in shared memory: a slice of A, and a stage, which is a slice of A and one of B.
template <Layout A> constexpr int SLICE_A = A == BY_ROWS ? TILE_M * ROW_A : TILE_K * COLUMN_A;
template <Layout A> constexpr int STAGE = SLICE_A<A> + TILE_K * ROW_B;

// sum += the products of slices first .. last - 1. copy_slice(k, A, B) starts the copies of slice k to shared memory; it is
// called for one slice after the other. Between its calls for slices k and k + STAGES - 1, or later ones, lies a barrier.
template <Layout LAYOUT, class CopySlice>
__device__ __forceinline__ void multiply(float* shared, int first, int last, CopySlice copy_slice, float (&sum)[8][8]) {
    ROLLED
    for (int i = 0; i < STAGES - 1; i++) {
        float* A = shared + i * STAGE<LAYOUT>;
        if (first + i < last) copy_slice(first + i, A, A + SLICE_A<LAYOUT>);
        cp_commit();
    }
    int now = 0, next = STAGES - 1;  // stages
    for (int k = first; k < last; k++) {
        cp_wait<STAGES - 2>();  // this thread's copies of slice k have arrived;
        __syncthreads();        // everybody's have, and nobody reads slice k - 1 any more, whose place is filled next
        float* A = shared + next * STAGE<LAYOUT>;
        if (k + STAGES - 1 < last) copy_slice(k + STAGES - 1, A, A + SLICE_A<LAYOUT>);
        cp_commit();
        A = shared + now * STAGE<LAYOUT>;
        multiply_slices<LAYOUT>(A, A + SLICE_A<LAYOUT>, sum);
        now = now + 1 == STAGES ? 0 : now + 1;
        next = next + 1 == STAGES ? 0 : next + 1;
    }
}

// This block's part of the slices, first .. last - 1: there are gridDim.z parts where tiles alone would not fill the GPU.
__device__ __forceinline__ void slices_of_part(int length, int& first, int& last) {
    const int slices = (length + TILE_K - 1) / TILE_K;
    first = static_cast<int>(static_cast<long long>(slices) * blockIdx.z / gridDim.z);
    last = static_cast<int>(static_cast<long long>(slices) * (blockIdx.z + 1) / gridDim.z);
}

// Copies HEIGHT x WIDTH entries from (row, column) on of a matrix (rows, columns), row by row, `apart` floats from one row to
// the next in shared memory; zeros outside of the matrix.
template <int FLOATS, int HEIGHT, int WIDTH>
__device__ __forceinline__ void copy_block(
    float* shared, int apart, const float* matrix, int row, int column, int rows, int columns) {
    constexpr int ACROSS = WIDTH / FLOATS, DOWN = THREADS / ACROSS;
    static_assert(THREADS % ACROSS == 0 && HEIGHT % DOWN == 0, "every thread copies the same number of times");
    int i = threadIdx.x / ACROSS;
    const int j = threadIdx.x % ACROSS * FLOATS, end = column + j < columns ? rows - row : 0;
    const float* from = matrix + static_cast<long long>(row + i) * columns + column + j;
    shared += i * apart + j;
    ROLLED
    for (; i < HEIGHT; i += DOWN) {
        copy<FLOATS>(shared, from, i < end);
        shared += DOWN * apart;
        from += static_cast<long long>(DOWN) * columns;
    }
}

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

// Calls write(m, y) for each row m of this thread inside of `rows`, with its eight entries y, which may be changed.
//
// What depends on the row alone (where it lies, what is added to all of it) is then found once for eight entries. Code that is
// unrolled 64 times and branches in each would be thousands of instructions, and seconds of the compiler's time.
template <Layout LAYOUT, class Write>
__device__ __forceinline__ void write_tile(float (&sum)[8][8], int m, int rows, Write write) {
    UNROLL
    for (int i = 0; i < 8; i++) {
        const int row = m + tile_row<LAYOUT>(i);
        if (row < rows) write(row, sum[i]);
    }
}

// Calls each(j, column) for the thread's entries j, j + VECTOR_B, .. of a row that lie inside of `columns`: VECTOR_B
// neighbours from that column of the matrix on. n: the tile's first column.
template <class Each> __device__ __forceinline__ void each_group(int n, int columns, Each each) {
    UNROLL
    for (int j = 0; j < 8; j += VECTOR_B) {
        const int column = n + tile_column(j);
        if (column < columns) each(j, column);
    }
}

// y[j ..] += x[0 .. VECTOR_B - 1], and x[0 ..] = y[j ..].
__device__ __forceinline__ void add_group(float (&y)[8], int j, const float* x) {
    float values[VECTOR_B];
    load(values, x);
    UNROLL
    for (int l = 0; l < VECTOR_B; l++) y[j + l] += values[l];
}
__device__ __forceinline__ void store_group(float* x, const float (&y)[8], int j) {
    float values[VECTOR_B];
    UNROLL
    for (int l = 0; l < VECTOR_B; l++) values[l] = y[j + l];
    store(x, values);
}

// The thread's eight entries of a row that is added to every row of the matrix: x (columns,), or zeros where x is null.
__device__ __forceinline__ void load_row(float (&y)[8], const float* x, int n, int columns) {
    UNROLL
    for (int j = 0; j < 8; j++) y[j] = 0.f;
    if (x) each_group(n, columns, [&](int j, int column) { add_group(y, j, x + column); });
}
