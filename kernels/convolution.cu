// Convolutions of NHWC images as products of matrices of which the left one is never stored ("implicit GEMM").
//
//     P = patches(X)    Y = P W + 1 b    L_X = patches^T(L_Y W^T)    L_W = P^T L_Y        (tinydiff/ops/convolution.py)
//
// P would have R S times the entries of X; the kernels take them from X as they need them. Row m of P is output pixel
// m = (n, p, q), and its entry (r, s, c) is X[n, p stride + r dilation - top, q stride + s dilation - left, c], or 0
// outside of the image. Neighbouring channels are neighbours in memory, so copies move 4 floats at once where C is a multiple
// of 4. tile.cuh tells how a block computes its tile. Each number of X and W travels from global memory once for every tile
// that needs it, mostly out of the second-level cache: neighbouring blocks share rows of P.
//
// L_X is a convolution of L_Y with the filters turned by 180 degrees and C and K exchanged (conv_turn). With a stride, the
// pixels of X fall into stride_h stride_w classes by the taps that reach them, and each class is a convolution of its own,
// with its part of the filter; the output mapping below scatters it.

#include "tinydiff.cuh"
#include "tile.cuh"

// Where the patch of an output pixel begins: the index of its first pixel among all of X (the pixel may lie outside of its
// image), and that pixel's row and column in the image, row 2^16 + column. Rows past the last of P begin so far outside that
// nothing is read. Rows and columns, with what is added to them, are from -2^15 to 2^15 - 1.
struct alignas(8) Corner {
    int pixel;
    unsigned at;
};

__device__ __forceinline__ unsigned both(int row, int column) { return (static_cast<unsigned>(row) << 16) + column; }

__device__ __forceinline__ Corner corner_of(
    int m, int M, int height, int width, int Ho, int Wo, int stride_h, int stride_w, int top, int left) {
    const int q = m % Wo, p = m / Wo % Ho, n = m / Wo / Ho;
    const int row = p * stride_h - top, column = q * stride_w - left;
    if (m >= M) return {0, both(-32768, -32768)};
    return {(n * height + row) * width + column, both(row, column)};
}

// Whether a pixel lies in an image: `from_corner` away from a corner, both(down, right), where `last` is the last pixel's row and
// column. A row or column below 0 has its sign bit set in `at`, one past the last in `last - at`. What the lower half borrows
// from the upper does not matter: it has a sign bit itself then. NOWHERE lies outside for all corners.
constexpr unsigned NOWHERE = 1u << 31;  // 2^15 rows up
__device__ __forceinline__ bool inside(const Corner& corner, unsigned from_corner, unsigned last) {
    const unsigned at = corner.at + from_corner;
    return ((at | (last - at)) & 0x80008000u) == 0;
}

// Y and what is added to the product: b (K,), E (N, K), residual (like Y), each may be null. Y (N, out_height, out_width, K)
// may have more pixels than the product: those are start, start + step, .. along either axis.
struct Output {
    const float *b, *E, *residual;
    float* Y;
    int K, Ho, Wo, out_height, out_width, step_h, step_w, start_h, start_w;

    // Where row m of the product goes: its image, and its pixel among all of Y.
    struct Place {
        int image, pixel;
    };
    __device__ __forceinline__ Place place(int m) const {
        const int rows = m / Wo, q = m - rows * Wo, n = rows / Ho, p = rows - n * Ho;
        if (Ho * Wo == out_height * out_width) return {n, m};
        return {n, (n * out_height + p * step_h + start_h) * out_width + q * step_w + start_w};
    }
    __device__ __forceinline__ long long of_image(const Place& to) const { return static_cast<long long>(to.image) * K; }
    __device__ __forceinline__ long long of_pixel(const Place& to) const { return static_cast<long long>(to.pixel) * K; }

    // The eight entries of a thread in one row.
    __device__ __forceinline__ void write(const Place& to, int n, float (&y)[8]) const {
        const float *e = E + of_image(to), *r = residual + of_pixel(to);
        if (b) each_group(n, K, [&](int j, int k) { add_group(y, j, b + k); });
        if (E) each_group(n, K, [&](int j, int k) { add_group(y, j, e + k); });
        if (residual) each_group(n, K, [&](int j, int k) { add_group(y, j, r + k); });
        float* row = Y + of_pixel(to);
        each_group(n, K, [&](int j, int k) { store_group(row + k, y, j); });
    }
};

// Y = P W + 1 b + E + residual. Rows of the product are output pixels, columns are filters; the sum runs over (r, s, c).
//
// Shared memory: STAGES slices of P and W, and for each row its corner in X and its place in Y, so that the divisions that find
// them are done once. A thread copies the same columns (r, s, c) of several rows, and steps from slice to slice without dividing.
// parts, arrived: for add_parts, null with one part.
KERNEL(conv_forward, TILE_THREADS)
(const float* X, const float* W, const float* b, const float* E, const float* residual, float* Y, float* parts, unsigned* arrived,
 int N, int height, int width, int C, int K, int R, int S, int Ho, int Wo, int stride_h, int stride_w, int dilation_h,
 int dilation_w, int top, int left, int out_height, int out_width, int step_h, int step_w, int start_h, int start_w) {
    DYNAMIC_SHARED(float, shared);
    SHARED(Corner, corners, [TILE_M]);
    SHARED(Output::Place, places, [TILE_M]);
    const int M = N * Ho * Wo, length = R * S * C, across = (K + TILE_N - 1) / TILE_N;
    const int m0 = blockIdx.x / across * TILE_M, n0 = blockIdx.x % across * TILE_N;
    const Output out = {b, E, residual, Y, K, Ho, Wo, out_height, out_width, step_h, step_w, start_h, start_w};
    for (int i = threadIdx.x; i < TILE_M; i += THREADS) {
        corners[i] = corner_of(m0 + i, M, height, width, Ho, Wo, stride_h, stride_w, top, left);
        places[i] = out.place(min(m0 + i, M - 1));
    }
    __syncthreads();

    int first, last;
    slices_of_part(length, first, last);
    constexpr int ACROSS = TILE_K / VECTOR_A, DOWN = THREADS / ACROSS;  // threads side by side copy a row
    static_assert(TILE_M % DOWN == 0, "every thread copies the same number of times");
    const int column = threadIdx.x % ACROSS * VECTOR_A, row = threadIdx.x / ACROSS;
    int c = first * TILE_K + column, s = 0, r = 0;
    if (first < last) {
        s = c / C, c -= s * C;
        r = s / S, s -= r * S;
    }
    float sum[8][8] = {};
    multiply<BY_ROWS>(
        shared, first, last,
        [&](int slice, float* A, float* B) {
            const int down = r < R ? r * dilation_h : 0, right = s * dilation_w;
            const float* x = X + static_cast<long long>(down * width + right) * C + c;
            const unsigned from_corner = r < R ? both(down, right) : NOWHERE, last_pixel = both(height - 1, width - 1);
            UNROLL
            for (int j = 0; j < TILE_M; j += DOWN) {
                const int i = row + j;
                const Corner corner = corners[i];
                const float* from = x + static_cast<long long>(corner.pixel) * C;
                copy<VECTOR_A>(A + i * ROW_A + column, from, inside(corner, from_corner, last_pixel));
            }
            copy_block<VECTOR_B, TILE_K, TILE_N>(B, ROW_B, W, slice * TILE_K, n0, length, K);
            for (c += TILE_K; c >= C; c -= C)
                if (++s == S) s = 0, r++;
        },
        sum);
    if (!add_parts<THREADS>(sum, parts, arrived)) return;
    write_tile<BY_ROWS>(sum, m0, M, [&](int m, float(&y)[8]) { out.write(places[m - m0], n0, y); });
}

// L_W = P^T L_Y. Rows of the product are (r, s, c), columns are filters; the sum runs over output pixels (n, p, q).
// parts, arrived: for add_parts, null with one part.
//
// A slice is 16 output pixels: of P^T, which comes column by column, and of L_Y. A thread's (r, s, c) stay the same, so what
// changes are the corners of the pixels. They are computed ahead by a few threads: while slice k is copied, the corners of
// slice k + STAGES - 1 are written to a ring of 2 STAGES places, which is far enough from those that are being read.
KERNEL(conv_weight_gradient, TILE_THREADS)
(const float* X, const float* L_Y, float* L_W, float* parts, unsigned* arrived, int N, int height, int width, int C, int K, int R,
 int S, int Ho, int Wo, int stride_h, int stride_w, int dilation_h, int dilation_w, int top, int left) {
    DYNAMIC_SHARED(float, shared);
    SHARED(Corner, ring, [2 * STAGES][TILE_K]);
    const int M = N * Ho * Wo, rows = R * S * C, across = (K + TILE_N - 1) / TILE_N;
    const int m0 = blockIdx.x / across * TILE_M, n0 = blockIdx.x % across * TILE_N;
    const auto corner = [&](int m) {
        return corner_of(m, M, height, width, Ho, Wo, stride_h, stride_w, top, left);
    };
    int first, last;
    slices_of_part(M, first, last);
    for (int i = threadIdx.x; i < (STAGES - 1) * TILE_K; i += THREADS)
        ring[i / TILE_K][i % TILE_K] = corner(first * TILE_K + i);
    __syncthreads();

    constexpr int ACROSS = TILE_M / VECTOR_A;  // threads side by side copy a pixel's entries
    const int column = threadIdx.x % ACROSS * VECTOR_A;
    const int tap = (m0 + column) / C, c = m0 + column - tap * C, r = tap / S, s = tap - r * S;
    const int down = r < R ? r * dilation_h : 0, right = s * dilation_w;
    const unsigned from_corner = r < R ? both(down, right) : NOWHERE, last_pixel = both(height - 1, width - 1);
    X += static_cast<long long>(down * width + right) * C + c;
    float sum[8][8] = {};
    multiply<BY_COLUMNS>(
        shared, first, last,
        [&](int slice, float* A, float* B) {
            const int at = slice - first;
            if (threadIdx.x < TILE_K)
                ring[(at + STAGES - 1) % (2 * STAGES)][threadIdx.x] = corner((slice + STAGES - 1) * TILE_K + threadIdx.x);
            ROLLED
            for (int i = threadIdx.x / ACROSS; i < TILE_K; i += THREADS / ACROSS) {
                const Corner corner = ring[at % (2 * STAGES)][i];
                const float* from = X + static_cast<long long>(corner.pixel) * C;
                copy<VECTOR_A>(A + i * COLUMN_A + column, from, inside(corner, from_corner, last_pixel));
            }
            copy_block<VECTOR_B, TILE_K, TILE_N>(B, ROW_B, L_Y, slice * TILE_K, n0, M, K);
        },
        sum);
    if (!add_parts<THREADS>(sum, parts, arrived)) return;
    const int tile = block_index_again().x, n = tile % across * TILE_N;
    write_tile<BY_COLUMNS>(sum, tile / across * TILE_M, rows, [&](int m, float(&y)[8]) {
        float* row = L_W + static_cast<long long>(m) * K;
        each_group(n, K, [&](int j, int k) { store_group(row + k, y, j); });
    });
}

// T (taps_h, taps_w, K, C) from W (R, S, C, K): tap (i, j) of T is tap (last_h - i step_h, last_w - j step_w) of W, transposed.
// A block of 32 x 8 threads takes 32 x 32 entries of a tap through shared memory, so that both arrays are accessed along
// their rows; rows of 33 floats keep the columns in different banks.
KERNEL(conv_turn, 256)
(const float* W, float* T, int S, int C, int K, int taps_w, int last_h, int last_w, int step_h, int step_w) {
    SHARED(float, tile, [32][33]);
    const int i = blockIdx.z / taps_w, j = blockIdx.z % taps_w, c0 = blockIdx.x * 32, k0 = blockIdx.y * 32;
    W += static_cast<long long>((last_h - i * step_h) * S + last_w - j * step_w) * C * K;
    T += static_cast<long long>(blockIdx.z) * C * K;
    for (int c = threadIdx.y; c < 32; c += 8)
        if (c0 + c < C && k0 + threadIdx.x < K) tile[c][threadIdx.x] = W[static_cast<long long>(c0 + c) * K + k0 + threadIdx.x];
    __syncthreads();
    for (int k = threadIdx.y; k < 32; k += 8)
        if (k0 + k < K && c0 + threadIdx.x < C) T[static_cast<long long>(k0 + k) * C + c0 + threadIdx.x] = tile[threadIdx.x][k];
}
