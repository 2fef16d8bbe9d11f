// Layers that share an input X, computed by one launch each way: in the place of a product for each, which would leave most of the
// GPU idle where layers are small, and would read X as often as there are layers where they are large.
//
//     Y_i = X W_i + 1 b_i       X (M, K)         W_i (K, N_i)      Y_i (M, N_i)     layers stand side by side
//     L_W_i = X^T L_Y_i         X (K, M)         L_Y_i (K, N_i)    L_W_i (M, N_i)   the same
//     L_X = sum_i L_Y_i W_i^T   L_Y_i (M, K_i)   W_i (N, K_i)      L_X (M, N)       one sum goes through all layers
//
// tile.cuh tells how a block computes its tile. A tile is of one layer, and a slice of K is of one layer: a layer whose columns are
// no whole tiles leaves a part of its last one empty. All arrays are moved 16 bytes at once.

#include "tinydiff.cuh"
#include "tile.cuh"
#include "layers.cuh"

// Y_i = A B_i + 1 bias_i for all layers. Block x is a tile's place among those of all layers, y its row of tiles, z a part of the
// sum over K.
template <Layout LAYOUT>
__device__ __forceinline__ void side_by_side(
    const float* A, const float* const (&Bs)[LAYERS], const float* const (&biases)[LAYERS], float* const (&Ys)[LAYERS],
    const int (&columns)[LAYERS], float* parts, unsigned* arrived, int M, int K) {
    DYNAMIC_SHARED(float, shared);
    SHARED(Side<float>, sides, [1]);
    const Side<float>& side = sides[0];
    find_side(sides[0], blockIdx.x, TILE_N, Bs, columns);
    const int m0 = blockIdx.y * TILE_M;
    int first, last;
    slices_of_part(K, first, last);
    float sum[8][8] = {};
    multiply<LAYOUT>(
        shared, first, last,
        [&](int slice, float* A_slice, float* B_slice) {
            if (LAYOUT == BY_COLUMNS)
                copy_block<VECTOR_A, TILE_K, TILE_M>(A_slice, COLUMN_A, A, slice * TILE_K, m0, K, M);
            else
                copy_block<VECTOR_A, TILE_M, TILE_K>(A_slice, ROW_A, A, m0, slice * TILE_K, M, K);
            copy_block<VECTOR_B, TILE_K, TILE_N>(B_slice, ROW_B, side.B, slice * TILE_K, side.first, K, side.columns);
        },
        sum);
    if (!add_parts<THREADS>(sum, parts, arrived)) return;
    const int n0 = side.first, N = side.columns;
    float* Y = pick(Ys, side.layer);
    float for_all[8];
    load_row(for_all, pick(biases, side.layer), n0, N);
    write_tile<LAYOUT>(sum, block_index_again().y * TILE_M, M, [&](int m, float(&y)[8]) {
        UNROLL
        for (int j = 0; j < 8; j++) y[j] += for_all[j];
        float* row = Y + static_cast<long long>(m) * N;
        each_group(n0, N, [&](int j, int n) { store_group(row + n, y, j); });
    });
}

// b_i may be null. parts, arrived: for add_parts, null with one part.
KERNEL(joint_forward, TILE_THREADS)
(const float* X, EACH(const float*, W), EACH(const float*, b), EACH(float*, Y), EACH(int, columns), float* parts, unsigned* arrived,
 int M, int K) {
    const float *const Ws[LAYERS] = {ALL(W)}, *const bs[LAYERS] = {ALL(b)};
    float* const Ys[LAYERS] = {ALL(Y)};
    const int all_columns[LAYERS] = {ALL(columns)};
    side_by_side<BY_ROWS>(X, Ws, bs, Ys, all_columns, parts, arrived, M, K);
}

KERNEL(joint_weight_gradient, TILE_THREADS)
(const float* X, EACH(const float*, L_Y), EACH(float*, L_W), EACH(int, columns), float* parts, unsigned* arrived, int M, int K) {
    const float *const L_Ys[LAYERS] = {ALL(L_Y)}, *const none[LAYERS] = {};
    float* const L_Ws[LAYERS] = {ALL(L_W)};
    const int all_columns[LAYERS] = {ALL(columns)};
    side_by_side<BY_COLUMNS>(X, L_Ys, none, L_Ws, all_columns, parts, arrived, M, K);
}

// L_X = sum_i L_Y_i W_i^T + R. columns: those of L_Y_i, which are summed over, in `slices` slices for all layers; 0 after the last
// layer. Block x is a tile, z a part of the sum. R may be null, and may be L_X.
KERNEL(joint_input_gradient, TILE_THREADS)
(EACH(const float*, L_Y), EACH(const float*, W), EACH(int, columns), const float* R, float* L_X, float* parts, unsigned* arrived,
 int M, int N, int slices) {
    DYNAMIC_SHARED(float, shared);
    SHARED(Term<float>, terms, [LAYERS]);
    const float *const L_Ys[LAYERS] = {ALL(L_Y)}, *const Ws[LAYERS] = {ALL(W)};
    const int all_columns[LAYERS] = {ALL(columns)};
    list_terms(terms, L_Ys, Ws, all_columns);
    const int across = (N + TILE_N - 1) / TILE_N;
    const int m0 = blockIdx.x / across * TILE_M, n0 = blockIdx.x % across * TILE_N;
    int first, last;
    slices_of_part(slices * TILE_K, first, last);
    const int2 begin = find_slice(terms, first, TILE_K);
    int term = begin.x, k = begin.y * TILE_K;
    float sum[8][8] = {};
    multiply<BY_ROWS>(
        shared, first, last,
        [&](int, float* A_slice, float* B_slice) {
            if (k >= terms[term].length) term++, k = 0;
            const Term<float> now = terms[term];
            copy_block<VECTOR_A, TILE_M, TILE_K>(A_slice, ROW_A, now.A, m0, k, M, now.length);
            copy_slice_turned(B_slice, now.B, n0, k, N, now.length);
            k += TILE_K;
        },
        sum);
    if (!add_parts<THREADS>(sum, parts, arrived)) return;
    write_tile<BY_ROWS>(sum, m0, M, [&](int m, float(&y)[8]) {
        const long long row = static_cast<long long>(m) * N;
        if (R) each_group(n0, N, [&](int j, int n) { add_group(y, j, R + row + n); });
        each_group(n0, N, [&](int j, int n) { store_group(L_X + row + n, y, j); });
    });
}
