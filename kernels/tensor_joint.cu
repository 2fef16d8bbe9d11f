// Layers that share an input X, computed by one launch each way on tensor cores: joint.cu has the formulas and the shapes,
// tensor.cuh how a block computes its tile. Rows of all matrices must be whole chunks of 16 bytes, and begin at a multiple of 16 bytes.

#include "tinydiff.cuh"
#include "tensor.cuh"
#include "layers.cuh"

// Y_i = A B_i + 1 bias_i for all layers. Block x is a tile's place among those of all layers, y its row of tiles, z a part of the
// sum over K.
template <Layout LAYOUT, class To>
__device__ __forceinline__ void side_by_side(
    const Element* A, const Element* const (&Bs)[LAYERS], const float* const (&biases)[LAYERS], To* const (&Ys)[LAYERS],
    const int (&columns)[LAYERS], float* parts, unsigned* arrived, int M, int K) {
    typedef Slice<LAYOUT, TILE_M> A_slice;
    typedef Slice<ACROSS_K, TILE_N> B_slice;
    DYNAMIC_SHARED(unsigned char, shared);
    SHARED(Side<Element>, sides, [1]);
    const Side<Element>& side = sides[0];
    find_side(sides[0], blockIdx.x, TILE_N, Bs, columns);
    int first, last;
    slices_of_part(K, first, last);
    Matrix<A_slice> a(A, blockIdx.y * TILE_M, M, K, first);
    Matrix<B_slice> b(side.B, side.first, side.columns, K, first);
    Sums sum = {};
    multiply<A_slice, B_slice>(
        shared, first, last,
        [&](int, unsigned char* to_a, unsigned char* to_b) {
            a.copy(to_a, K);
            b.copy(to_b, K);
        },
        sum);
    if (!add_parts(sum, parts, arrived)) return;
    const int n0 = side.first, N = side.columns;
    To* Y = pick(Ys, side.layer);
    const float* bias = pick(biases, side.layer);
    write_tile(sum, block_index_again().y * TILE_M, M, [&](int m, Pairs& y) {
        To* row = Y + static_cast<long long>(m) * N;
        if (bias) each_pair(n0, N, [&](int j, int n) { add(y[j], load_pair(bias + n)); });
        each_pair(n0, N, [&](int j, int n) { store_pair(row + n, y[j]); });
    });
}

// b_i may be null. parts, arrived: for add_parts, null with one part.
KERNEL(tensor_joint_forward, THREADS)
(const Element* X, EACH(const Element*, W), EACH(const float*, b), EACH(Result*, Y), EACH(int, columns), float* parts,
 unsigned* arrived, int M, int K) {
    const Element* const Ws[LAYERS] = {ALL(W)};
    const float* const bs[LAYERS] = {ALL(b)};
    Result* const Ys[LAYERS] = {ALL(Y)};
    const int all_columns[LAYERS] = {ALL(columns)};
    side_by_side<ALONG_K>(X, Ws, bs, Ys, all_columns, parts, arrived, M, K);
}

KERNEL(tensor_joint_weight_gradient, THREADS)
(const Element* X, EACH(const Element*, L_Y), EACH(float*, L_W), EACH(int, columns), float* parts, unsigned* arrived, int M,
 int K) {
    const Element* const L_Ys[LAYERS] = {ALL(L_Y)};
    const float* const none[LAYERS] = {};
    float* const L_Ws[LAYERS] = {ALL(L_W)};
    const int all_columns[LAYERS] = {ALL(columns)};
    side_by_side<ACROSS_K>(X, L_Ys, none, L_Ws, all_columns, parts, arrived, M, K);
}

// L_X = sum_i L_Y_i W_i^T + R. columns: those of L_Y_i, which are summed over, in `slices` slices for all layers; 0 after the last
// layer. Block x is a tile, z a part of the sum. R may be null, and may be L_X.
KERNEL(tensor_joint_input_gradient, THREADS)
(EACH(const Element*, L_Y), EACH(const Element*, W), EACH(int, columns), const Result* R, Result* L_X, float* parts,
 unsigned* arrived, int M, int N, int slices) {
    typedef Slice<ALONG_K, TILE_M> A_slice;
    typedef Slice<ALONG_K, TILE_N> B_slice;
    DYNAMIC_SHARED(unsigned char, shared);
    SHARED(Term<Element>, terms, [LAYERS]);
    const Element *const L_Ys[LAYERS] = {ALL(L_Y)}, *const Ws[LAYERS] = {ALL(W)};
    const int all_columns[LAYERS] = {ALL(columns)};
    list_terms(terms, L_Ys, Ws, all_columns);
    const int across = (N + TILE_N - 1) / TILE_N;
    const int m0 = blockIdx.x / across * TILE_M, n0 = blockIdx.x % across * TILE_N;
    int first, last;
    slices_of_part(slices * TILE_K, first, last);
    const int2 begin = find_slice(terms, first, TILE_K);
    int term = begin.x, length = terms[term].length, left = (length + TILE_K - 1) / TILE_K - begin.y;  // slices of the term
    Matrix<A_slice> a(terms[term].A, m0, M, length, begin.y);
    Matrix<B_slice> b(terms[term].B, n0, N, length, begin.y);
    Sums sum = {};
    multiply<A_slice, B_slice>(
        shared, first, last,
        [&](int, unsigned char* to_a, unsigned char* to_b) {
            if (left == 0) {
                const Term<Element> next = terms[++term];
                length = next.length, left = (length + TILE_K - 1) / TILE_K;
                a = Matrix<A_slice>(next.A, m0, M, length, 0);
                b = Matrix<B_slice>(next.B, n0, N, length, 0);
            }
            a.copy(to_a, length);
            b.copy(to_b, length);
            left--;
        },
        sum);
    if (!add_parts(sum, parts, arrived)) return;
    write_tile(sum, m0, M, [&](int m, Pairs& y) {
        const long long row = static_cast<long long>(m) * N;
        if (R) each_pair(n0, N, [&](int j, int n) { add(y[j], load_pair(R + row + n)); });
        each_pair(n0, N, [&](int j, int n) { store_pair(L_X + row + n, y[j]); });
    });
}
