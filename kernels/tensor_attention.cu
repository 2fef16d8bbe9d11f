// Attention on tensor cores, up to TILE_N keys: P never leaves a multiprocessor. tensor.cuh tells how a block multiplies.
//
//     S = scale Q K^T    P = softmax(S)    Y = P V    z = log sum exp(S) of each row
//
//     Q (queries, D)    K (keys, D)    V (keys, E)    Y (queries, E)    z (queries)    for each matrix of a stack
//
// and back, with P = exp(S - z) computed again (Dao et al., 2022, 3.1):
//
//     L_P = L_Y V^T    d = sum(P L_P) of each row    L_S = P (L_P - d)
//     L_Q = scale L_S K    L_K = scale L_S^T Q    L_V = P^T L_Y
//
// A block has TILE_M = 64 rows and all TILE_N columns of P. So it sees whole rows: the softmax needs no second pass over keys, d is
// the sum of just the P and L_P that L_S is made of, and rows of L_S add up to 0. `keys_gradient` has the same of P^T, 64 keys and
// all queries. So no two blocks add to one number, and there is nothing to order. The price is that both backward kernels compute S
// and L_P: 7 products instead of 5. The gain is that P, L_P and L_S are neither written nor read, 2.0 GB in a step of the CIFAR-10
// network with 128 images in float32.
//
// Every kernel is made of two kinds of products.
//
//     rows_by_rows      S = Q K^T, L_P = L_Y V^T, or transposed: sums of TILE_M x TILE_N entries. Both operands lie along k, which
//                       is D or E, and stream through shared memory in slices.
//     product_of        Y = P V, L_Q, L_K, L_V. P or L_S, which the threads have as such sums, goes to shared memory as slices of
//                       A (`hold`) and stays there, rounded as operands are. The other operand streams, TILE_N columns at once.
//
// What moves where, with 256 keys and 64 bytes for TILE_K entries:
//
//     global -> shared       forward 64 rows of Q, all of K and V. `queries_gradient` 64 rows of Q and L_Y, all of K, V and K
//                            again; `keys_gradient` 64 rows of K and V, all of Q, L_Y, L_Y and Q. What the blocks of a matrix
//                            share comes from the second-level cache for all but the first of them.
//     shared -> registers    a warp has 32 x 64 entries: for each mma step (32 bytes of k) 32 (32 + 64) bytes and 16 mma. 8 warps
//                            ask for 24 KiB a step, 192 cycles of shared memory; the copies that fill it take 80 more. The mma
//                            take 206 at the rate that they reach.
//     registers -> shared    P or L_S once for each product_of: 64 x 256 entries
//     registers -> global    Y and z; d and L_Q; L_K and L_V
//
// A thread has 64 numbers of a tile. Backward it has P and L_P at once, 128 registers. So a warp has no 64 x 64, which would ask
// for fewer bytes. Forward 128 registers are enough for everything, and a multiprocessor has two blocks.
//
// Shared memory. While rows_by_rows streams, STAGES slices of both operands: 4 (64 + 256) 64 bytes = 80 KiB. Later, in the same
// place, 64 x 256 entries that are held and HELD_STAGES slices of 16 KiB: 32 + 4 x 16 KiB with 16 bits, 64 + 2 x 16 KiB with TF32,
// 96 KiB in both cases.
//
// Banks. Slices are copied and read as tensor.cuh has it. `hold` writes pairs of neighbouring columns: 8 rows of a chunk meet all
// eighths of 128 bytes with 16 bits. With TF32 a pair takes 8 bytes, 16 threads write at once, and rows r and r + 2 meet in the
// same eighths: two cycles in place of one, once for each entry of the tile.
//
// A row of sums is spread over 4 lanes in each of WARPS_ACROSS warps: `across_row`.
//
// Keys past the last are zeros in K and V. Their S is 0, so that exp(S - z) is anything up to infinity: their P is set to 0. So are
// those of queries past the last in `keys_gradient`. Rows past the last are computed and not written.

#define TILE_M 64
#ifndef TILE_N
#define TILE_N 256
#endif
#define WARP_ROWS 32
#define WARP_COLUMNS 64
#include "tinydiff.cuh"
#include "tensor.cuh"
#include "softmax.cuh"

constexpr int HELD_STAGES = sizeof(Element) == 4 ? 2 : 4;

typedef Slice<ALONG_K, TILE_M> Block;       // of the block's rows
typedef Slice<ALONG_K, TILE_N> Others;      // of all the rows that they are multiplied by
typedef Slice<ACROSS_K, TILE_N> Streaming;  // of what P is multiplied by
constexpr int HELD_BYTES = TILE_N / TILE_K * Block::BYTES;

// A matrix of a stack: where it begins, and how many entries its rows are apart.
struct Operand {
    const Element* from;
    long long row;

    __device__ __forceinline__ Operand(const Element* stack, int matrix, unsigned long long apart, unsigned long long row)
        : from(stack + matrix * apart), row(row) {}
};

// A number for each row of the thread's sums.
typedef float Rows[FRAGMENTS_M][2];

// f(entry, i, h, n) for each of the thread's sums: entry n of its row (i, h).
template <class F> __device__ __forceinline__ void each(Sums& sum, F f) {
    UNROLL
    for (int j = 0; j < FRAGMENTS_N; j++) {
        UNROLL
        for (int e = 0; e < 2; e++) {
            UNROLL
            for (int i = 0; i < FRAGMENTS_M; i++) {
                f(sum[i][j][e], i, 0, column_of(j) + e);
                f(sum[i][j][2 + e], i, 1, column_of(j) + e);
            }
        }
    }
}

// f(m, i, h) for each of the thread's rows m, of those that the block has.
template <class F> __device__ __forceinline__ void each_row(F f) {
    UNROLL
    for (int i = 0; i < FRAGMENTS_M; i++) {
        f(row_of(i, 0), i, 0);
        f(row_of(i, 1), i, 1);
    }
}

// Combines the numbers that threads have for parts of the same row, always in the same order. of_warps is used once.
template <class F>
__device__ __forceinline__ void across_row(Rows& v, float (&of_warps)[WARPS_ACROSS][TILE_M], F combine) {
    const int warp = threadIdx.x / 32 % WARPS_ACROSS;
    each_row([&](int m, int i, int h) {
        v[i][h] = combine(v[i][h], shuffle_xor(v[i][h], 1));
        v[i][h] = combine(v[i][h], shuffle_xor(v[i][h], 2));
        if (threadIdx.x % 4 == 0) of_warps[warp][m] = v[i][h];
    });
    __syncthreads();
    each_row([&](int m, int i, int h) {
        v[i][h] = of_warps[0][m];
        UNROLL
        for (int w = 1; w < WARPS_ACROSS; w++) v[i][h] = combine(v[i][h], of_warps[w][m]);
    });
}

// sum = A B^T for rows m0 .. of A (M, length) and all of B (N, length).
__device__ __forceinline__ void rows_by_rows(unsigned char* shared, const Operand& A, const Operand& B, int m0, int M, int N,
                                             int length, Sums& sum) {
    Matrix<Block> a(A.from, m0, M, length, 0, A.row);
    Matrix<Others> b(B.from, 0, N, length, 0, B.row);
    UNROLL
    for (int i = 0; i < FRAGMENTS_M * FRAGMENTS_N * 4; i++) sum[i / 4 / FRAGMENTS_N][i / 4 % FRAGMENTS_N][i % 4] = 0.f;
    multiply<Block, Others>(
        shared, 0, (length + TILE_K - 1) / TILE_K,
        [&](int, unsigned char* to_a, unsigned char* to_b) {
            a.copy(to_a, length);
            b.copy(to_b, length);
        },
        sum);
    __syncthreads();  // before the slices' place is used again
}

// Where entry (m, n) of the tile lies among slices of an operand A, in bytes.
__device__ __forceinline__ unsigned held_at(int m, int n) {
    return n / TILE_K * Block::BYTES + Block::place(m, n % TILE_K / CHUNK) + n % CHUNK * sizeof(Element);
}

__device__ __forceinline__ void hold(unsigned char* held, const Sums& sum) {
    UNROLL
    for (int i = 0; i < FRAGMENTS_M; i++) {
        UNROLL
        for (int h = 0; h < 2; h++) {
            UNROLL
            for (int j = 0; j < FRAGMENTS_N; j++) {
                unsigned char* to = held + held_at(row_of(i, h), column_of(j));
                const float2 pair = make_float2(sum[i][j][2 * h], sum[i][j][2 * h + 1]);
#if PRECISION == TF32
                *reinterpret_cast<float2*>(to) = pair;
#else
                *reinterpret_cast<unsigned*>(to) = PRECISION == FP16 ? pack_fp16(pair.x, pair.y) : pack_bf16(pair.x, pair.y);
#endif
            }
        }
    }
}

// Rows m0 .. of Y (M, N) = scale A B, where A (64, length) is `tile`, and B (length, N).
__device__ __forceinline__ void product_of(const Sums& tile, unsigned char* shared, const Operand& B, int length, Result* Y, int m0,
                                           int M, int N, float scale) {
    unsigned char *held = shared, *ring = shared + HELD_BYTES;
    hold(held, tile);  // seen by others after the barrier of the first slice
    const Fragments<Block, true> of_a(warp_row());
    const Fragments<Streaming, false> of_b(warp_column());
    ROLLED
    for (int n0 = 0; n0 < N; n0 += TILE_N) {
        Matrix<Streaming> b(B.from, n0, N, length, 0, B.row);
        Sums sum = {};
        stream<HELD_STAGES, Streaming::BYTES>(
            ring, 0, (length + TILE_K - 1) / TILE_K, [&](int, unsigned char* stage) { b.copy(stage, length); },
            [&](int k, const unsigned char* stage) {
                multiply_slices<Block, Streaming>(of_a, of_b, held + k * Block::BYTES, stage, sum);
            });
        write_tile(sum, m0, M, [&](int m, Pairs& y) {
            Result* row = Y + static_cast<long long>(m) * N;
            each_pair(n0, N, [&](int j, int n) { store_pair(row + n, make_float2(y[j].x * scale, y[j].y * scale)); });
        });
        __syncthreads();  // before the slices' place is used again
    }
}

// Block x is 64 rows of a matrix of the stack; matrices are apart_ entries apart, and rows of them row_ entries.
struct Where {
    int matrix, m0;

    __device__ __forceinline__ Where(int rows) {
        const int tiles = (rows + TILE_M - 1) / TILE_M;
        matrix = blockIdx.x / tiles, m0 = (blockIdx.x - matrix * tiles) * TILE_M;
    }
    template <class T> __device__ __forceinline__ T* of(T* stack, int rows, int columns) const {
        return stack + static_cast<long long>(matrix) * rows * columns;
    }
};

// Two blocks of 256 threads at once. In other variants the compiler makes do with few registers if nothing is asked for (0), and
// spills some otherwise.
KERNEL(attention_forward, THREADS, sizeof(Element) == 2 && TILE_N == 256 ? 2 : 0)
(const Element* Q, const Element* K, const Element* V, Result* Y, float* z, int queries, int keys, int D, int E,
 unsigned long long apart_q, unsigned long long apart_k, unsigned long long apart_v, unsigned long long row_q,
 unsigned long long row_k, unsigned long long row_v, float scale) {
    DYNAMIC_SHARED(unsigned char, shared);
    SHARED(float, of_warps, [2][WARPS_ACROSS][TILE_M]);
    const Where at(queries);
    const Operand q(Q, at.matrix, apart_q, row_q), k(K, at.matrix, apart_k, row_k), v(V, at.matrix, apart_v, row_v);
    Sums P;
    rows_by_rows(shared, q, k, at.m0, queries, keys, D, P);
    Rows top, total = {};
    each_row([&](int, int i, int h) { top[i][h] = -LARGEST; });
    each(P, [&](float& s, int i, int h, int n) {
        s = n < keys ? s * scale : -INFINITY;
        top[i][h] = fmaxf(top[i][h], s);
    });
    across_row(top, of_warps[0], [](float a, float b) { return fmaxf(a, b); });
    each_row([&](int, int i, int h) { top[i][h] = fminf(top[i][h], LARGEST); });
    each(P, [&](float& s, int i, int h, int) {
        s = exp_(s - top[i][h]);
        total[i][h] += s;
    });
    across_row(total, of_warps[1], [](float a, float b) { return a + b; });
    z = at.of(z, queries, 1) + at.m0;
    each_row([&](int m, int i, int h) {
        if (at.m0 + m < queries && warp_column() == 0 && threadIdx.x % 4 == 0) z[m] = z_of(top[i][h], total[i][h]);
        total[i][h] = reciprocal_of_sum(total[i][h]);
    });
    each(P, [&](float& p, int i, int h, int) { p *= total[i][h]; });
    product_of(P, shared, v, keys, at.of(Y, queries, E), at.m0, queries, E, 1.f);
}

// d, and L_Q unless it is null. L_Y (queries, E).
KERNEL(attention_queries_gradient, THREADS)
(const Element* Q, const Element* K, const Element* V, const Element* L_Y, const float* z, float* d, Result* L_Q, int queries,
 int keys, int D, int E, unsigned long long apart_q, unsigned long long apart_k, unsigned long long apart_v,
 unsigned long long row_q, unsigned long long row_k, unsigned long long row_v, float scale) {
    DYNAMIC_SHARED(unsigned char, shared);
    SHARED(float, of_warps, [WARPS_ACROSS][TILE_M]);
    const Where at(queries);
    const Operand q(Q, at.matrix, apart_q, row_q), k(K, at.matrix, apart_k, row_k), v(V, at.matrix, apart_v, row_v);
    const Operand l_y(at.of(L_Y, queries, E), 0, 0, E);
    z = at.of(z, queries, 1) + at.m0, d = at.of(d, queries, 1) + at.m0;
    Sums P, L_S;
    rows_by_rows(shared, q, k, at.m0, queries, keys, D, P);
    Rows sum = {};
    each_row([&](int m, int i, int h) { sum[i][h] = at.m0 + m < queries ? z[m] : 0.f; });
    each(P, [&](float& p, int i, int h, int n) { p = n < keys ? exp_(p * scale - sum[i][h]) : 0.f; });
    rows_by_rows(shared, l_y, v, at.m0, queries, keys, E, L_S);
    UNROLL
    for (int i = 0; i < FRAGMENTS_M * 2; i++) sum[i / 2][i % 2] = 0.f;
    UNROLL
    for (int i = 0; i < FRAGMENTS_M; i++) {
        UNROLL
        for (int j = 0; j < FRAGMENTS_N; j++) {
            UNROLL
            for (int e = 0; e < 4; e++) sum[i][e / 2] += P[i][j][e] * L_S[i][j][e];
        }
    }
    across_row(sum, of_warps, [](float a, float b) { return a + b; });
    each_row([&](int m, int i, int h) {
        if (at.m0 + m < queries && warp_column() == 0 && threadIdx.x % 4 == 0) d[m] = sum[i][h];
    });
    if (!L_Q) return;
    UNROLL
    for (int i = 0; i < FRAGMENTS_M; i++) {
        UNROLL
        for (int j = 0; j < FRAGMENTS_N; j++) {
            UNROLL
            for (int e = 0; e < 4; e++) L_S[i][j][e] = P[i][j][e] * (L_S[i][j][e] - sum[i][e / 2]);
        }
    }
    product_of(L_S, shared, k, keys, at.of(L_Q, queries, D), at.m0, queries, D, scale);
}

// L_K and L_V, unless they are null; up to TILE_N queries. Rows are keys here, columns queries. d is not read for L_V.
KERNEL(attention_keys_gradient, THREADS)
(const Element* Q, const Element* K, const Element* V, const Element* L_Y, const float* z, const float* d, Result* L_K,
 Result* L_V, int queries, int keys, int D, int E, unsigned long long apart_q, unsigned long long apart_k,
 unsigned long long apart_v, unsigned long long row_q, unsigned long long row_k, unsigned long long row_v, float scale) {
    DYNAMIC_SHARED(unsigned char, shared);
    const Where at(keys);
    const Operand q(Q, at.matrix, apart_q, row_q), k(K, at.matrix, apart_k, row_k), v(V, at.matrix, apart_v, row_v);
    const Operand l_y(at.of(L_Y, queries, E), 0, 0, E);
    z = at.of(z, queries, 1), d = at.of(d, queries, 1);
    Sums P, L_S;
    rows_by_rows(shared, k, q, at.m0, keys, queries, D, P);
    each(P, [&](float& p, int, int, int n) { p = n < queries ? exp_(p * scale - z[n]) : 0.f; });
    if (L_K) {
        rows_by_rows(shared, v, l_y, at.m0, keys, queries, E, L_S);
        UNROLL
        for (int j = 0; j < FRAGMENTS_N; j++) {
            UNROLL
            for (int e = 0; e < 2; e++) {
                const int n = column_of(j) + e;
                const float of_query = n < queries ? d[n] : 0.f;
                UNROLL
                for (int i = 0; i < FRAGMENTS_M * 2; i++) {
                    const float p = P[i / 2][j][i % 2 * 2 + e];
                    float& l = L_S[i / 2][j][i % 2 * 2 + e];
                    l = p * (l - of_query);
                }
            }
        }
    }
    if (L_V) product_of(P, shared, l_y, queries, at.of(L_V, keys, E), at.m0, keys, E, 1.f);
    if (L_K) product_of(L_S, shared, q, queries, at.of(L_K, keys, D), at.m0, keys, D, scale);
}
