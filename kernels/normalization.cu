// Group normalisation and what follows it in the network, in one pass: Y = M silu(U), U = Z w + b, Z = (X - u) / s.
//
// X is (N, P, C): N images of P pixels with C channels; u and s^2 - eps are mean and variance of one image's group of D
// neighbouring channels, m = P D elements. M is dropout's mask: 0 with probability p, else 1 / (1 - p); it is made again in
// the backward pass (philox.cuh) instead of being stored, and so is Z, from X, u and 1 / s. With L_Y the derivative of the
// loss with respect to Y, and sigma the logistic function, silu(U) = U sigma(U):
//
//     L_U = L_Y M sigma(U) (1 + U (1 - sigma(U)))
//     L_b = sum(L_U),  L_w = sum(L_U Z)                                over all images and pixels
//     L_X = (L_U w - mean(L_U w) - Z mean(L_U w Z)) / s                means over the group; what waits at X may be added
//
// The second term of L_X comes through the mean, the third through the variance (Wu and He, 2018). w does not vary over
// pixels, so both means follow from sums over pixels, A = sum(L_U) and B = sum(L_U Z) of each channel, and these are also an
// image's share of L_b and L_w.
//
// A block takes a slab: all pixels of one image in `slab` neighbouring channels, a whole number of groups, wide enough that
// a pixel's part fills whole sectors of memory. Thread (row, column) goes through pixels row, row + rows, ... and always has
// the same VECTOR channels, so its sums are in registers, one for each channel. They are added over the lanes of a warp that
// have the same channels, over warps, and last over the channels of a group, always in the same order: no atomics.
//
// PRECISION says what X, Y, L_Y and L_X are in memory (precision.cuh); all else is float32, and so is all arithmetic. Bytes that
// move between memory and a block for an element of X, of which there are 2 in 16 bits:
//
//                  read       written     in float32    in 16 bits
//     forward      X          Y            8             4
//     backward     X, L_Y     L_X         12             6
//
// What was read stays in shared memory as it is where it fits (`tiled`); otherwise it is read again for the second half. A
// thread reads back only what it put there itself. It asks for four vectors of 16 bytes at once before it uses the first: memory
// answers after some 600 cycles, in which a multiprocessor of an H100 could take 16 KiB; 16 warps have 32 KiB on their way.
//
// In 16 bits a multiprocessor has some 50 instructions for an element of the backward pass before memory waits for it. sigma is
// therefore made of approximations of exp and 1 / x there, which are still thousands of times finer than what is stored.

#include "tinydiff.cuh"
#include "philox.cuh"
#include "elements.cuh"

#ifndef VECTOR
#define VECTOR 4  // channels of a thread: 16 bytes of X where C is a multiple of so many, else 1
#endif
#define THREADS 256

typedef PieceOf<Element, VECTOR>::type Piece;

// What this thread does in its block. Columns of threads are a power of two, so that a warp's rows are found by exchanging
// bits of the lane; those beyond the slab are idle.
struct Slab {
    int slabs, image, channel, width;  // slabs of an image; the block's image, first channel and channels
    int row, rows, column, columns;
    bool active;
    __device__ Slab(int C, int slab, int columns_)
        : slabs((C + slab - 1) / slab), image(blockIdx.x / slabs), channel(blockIdx.x % slabs * slab),
          width(min(slab, C - channel)), row(threadIdx.x / columns_), rows(blockDim.x / columns_),
          column(threadIdx.x % columns_), columns(columns_), active(column * VECTOR < width) {}
    __device__ int partials() const { return columns < 32 ? blockDim.x / 32 : rows; }  // see sum_over_pixels
};

// total[c], c = 0 .. width - 1: a value that each thread has for its channels, summed over the block's rows.
__device__ __forceinline__ void sum_over_pixels(const float (&value)[VECTOR], float* partial, float* total, const Slab& s) {
    float sum[VECTOR];
    UNROLL
    for (int i = 0; i < VECTOR; i++) sum[i] = value[i];
    for (int mask = s.columns; mask < 32; mask <<= 1) {
        UNROLL
        for (int i = 0; i < VECTOR; i++) sum[i] += shuffle_xor(sum[i], mask);
    }
    const int line = s.columns < 32 ? threadIdx.x / 32 : s.row;  // one line of partial sums for each warp or row
    if (s.active && (s.columns >= 32 || threadIdx.x % 32 < s.columns))
        store(partial + line * s.width + s.column * VECTOR, sum);
    __syncthreads();
    for (int c = threadIdx.x; c < s.width; c += blockDim.x) {
        float whole = 0.f;
        for (int l = 0; l < s.partials(); l++) whole += partial[l * s.width + c];
        total[c] = whole;
    }
    __syncthreads();
}

// group[k], for each group of the slab: the sum of total[c] w[c] over its D channels; w may be null. A warp for a group.
__device__ __forceinline__ void sum_over_channels(const float* total, const float* w, float* group, int D, const Slab& s) {
    for (int k = threadIdx.x / 32; k < s.width / D; k += blockDim.x / 32) {
        float sum = 0.f;
        for (int c = k * D + threadIdx.x % 32; c < (k + 1) * D; c += 32) sum += w ? total[c] * w[s.channel + c] : total[c];
        sum = warp_sum(sum);
        if (threadIdx.x % 32 == 0) group[k] = sum;
    }
    __syncthreads();
}

// The thread's entries of an array with one entry for each channel, or `otherwise` where it is null.
__device__ __forceinline__ void load_channels(float (&v)[VECTOR], const float* x, float otherwise, const Slab& s) {
    UNROLL
    for (int i = 0; i < VECTOR; i++) v[i] = x && s.active ? x[s.channel + s.column * VECTOR + i] : otherwise;
}

// The same for an array with one entry for each group, given from the slab's first group on.
__device__ __forceinline__ void load_groups(float (&v)[VECTOR], const float* group, int D, const Slab& s) {
    UNROLL
    for (int i = 0; i < VECTOR; i++) v[i] = s.active ? group[(s.column * VECTOR + i) / D] : 0.f;
}

// x[j], j = 0, 1, ...: the thread's channels at its next pixels, `stride` entries apart, as far as there are `left`. All are
// asked for before the first is used.
template <int AHEAD>
__device__ __forceinline__ void load_ahead(Piece (&x)[AHEAD], const Element* from, size_t stride, int left) {
    UNROLL
    for (int j = 0; j < AHEAD; j++)
        if (j < left) x[j] = piece_at<VECTOR>(from + j * stride);
}

__device__ __forceinline__ float sigmoid(float x) {
    return sizeof(Element) == 2 ? about_reciprocal(1.f + about_exp(-x)) : 1.f / (1.f + exp_(-x));
}

// Zeros where dropout's mask has them, for the elements from `element` of the whole array on. What is left grows afterwards.
__device__ __forceinline__ void drop(float (&y)[VECTOR], unsigned long long element, float p, const Draw& draw) {
    unsigned word[VECTOR];
    words_of(word, element, draw);
    UNROLL
    for (int i = 0; i < VECTOR; i++) y[i] = uniform(word[i]) >= p ? y[i] : 0.f;
}
__device__ __forceinline__ void multiply(float (&y)[VECTOR], float grown) {
    UNROLL
    for (int i = 0; i < VECTOR; i++) y[i] *= grown;
}

// Where sums begin in shared memory, behind `entries` of a tile.
__device__ __forceinline__ float* behind(Element* tile, int entries) {
    constexpr int WHOLE = 16 / sizeof(Element);
    return reinterpret_cast<float*>(tile + (entries + WHOLE - 1) / WHOLE * WHOLE);
}

// Mean and variance take one pass over the data and are still safe where the mean is large: a thread sums d = x - k and d^2,
// where k is the first value that it sees of a channel, so with n values it has their sum n k + sum(d) and the sum of their
// squared distances from their own mean, sum(d^2) - sum(d)^2 / n. Once the mean u of the group is known, each adds
// n (own mean - u)^2 to the latter and their sum is m times the variance.
KERNEL(group_norm_forward, THREADS)(const Element* X, const float* w, const float* b, Element* Y, float* mean, float* scale,
                                    int P, int C, int D, int slab, int columns, int tiled, float eps, int silu, float p,
                                    float grown, unsigned long long seed, unsigned stream, unsigned step,
                                    unsigned long long offset, const unsigned* advance) {
    DYNAMIC_SHARED(Element, tile);
    const Slab s(C, slab, columns);
    float* partial = behind(tile, tiled ? P * slab : 0);
    float* total = partial + s.partials() * slab;
    float* group = total + slab;
    const size_t start = static_cast<size_t>(s.image) * P * C + s.channel + s.column * VECTOR;  // of the thread's channels
    tile += s.column * VECTOR;
    const float m = max(P * D, 1);

    const int AHEAD = 4;  // pixels
    float first[VECTOR] = {}, sum[VECTOR] = {}, squares[VECTOR] = {}, x[VECTOR];
    Piece ahead[AHEAD];
    const int count = s.active && s.row < P ? (P - s.row - 1) / s.rows + 1 : 0;  // pixels of this thread
    if (count) load(first, X + start + static_cast<size_t>(s.row) * C);
    for (int k = 0, pixel = s.row; k < count; k += AHEAD, pixel += AHEAD * s.rows) {
        load_ahead(ahead, X + start + static_cast<size_t>(pixel) * C, static_cast<size_t>(s.rows) * C, count - k);
        UNROLL
        for (int j = 0; j < AHEAD; j++) {
            if (k + j >= count) break;
            if (tiled) put<VECTOR>(tile + (pixel + j * s.rows) * slab, ahead[j]);
            widen(x, ahead[j]);
            UNROLL
            for (int i = 0; i < VECTOR; i++) {
                const float d = x[i] - first[i];
                sum[i] += d;
                squares[i] += d * d;
            }
        }
    }

    float value[VECTOR], u[VECTOR], factor[VECTOR], weight[VECTOR], bias[VECTOR];
    UNROLL
    for (int i = 0; i < VECTOR; i++) value[i] = count * first[i] + sum[i];
    sum_over_pixels(value, partial, total, s);
    sum_over_channels(total, nullptr, group, D, s);
    const int groups = s.width / D, first_group = s.image * (C / D) + s.channel / D;
    for (int k = threadIdx.x; k < groups; k += blockDim.x) mean[first_group + k] = group[k] / m;
    load_groups(u, group, D, s);
    UNROLL
    for (int i = 0; i < VECTOR; i++) {
        u[i] /= m;
        const float own = count ? sum[i] / count : 0.f, distance = first[i] - u[i] + own;
        value[i] = squares[i] - own * sum[i] + count * distance * distance;
    }
    sum_over_pixels(value, partial, total, s);
    sum_over_channels(total, nullptr, group, D, s);
    for (int k = threadIdx.x; k < groups; k += blockDim.x) scale[first_group + k] = rsqrt_(group[k] / m + eps);
    load_groups(factor, group, D, s);
    UNROLL
    for (int i = 0; i < VECTOR; i++) factor[i] = rsqrt_(factor[i] / m + eps);

    load_channels(weight, w, 1.f, s);
    load_channels(bias, b, 0.f, s);
    for (int k = 0, pixel = s.row; k < count; k += AHEAD, pixel += AHEAD * s.rows) {
        size_t at = start + static_cast<size_t>(pixel) * C;
        if (tiled) load_ahead(ahead, tile + pixel * slab, static_cast<size_t>(s.rows) * slab, count - k);
        else load_ahead(ahead, X + at, static_cast<size_t>(s.rows) * C, count - k);
        UNROLL
        for (int j = 0; j < AHEAD; j++, at += static_cast<size_t>(s.rows) * C) {
            if (k + j >= count) break;
            widen(x, ahead[j]);
            UNROLL
            for (int i = 0; i < VECTOR; i++) {
                x[i] = (x[i] - u[i]) * factor[i] * weight[i] + bias[i];
                if (silu) x[i] *= sigmoid(x[i]);
            }
            if (p > 0.f) {
                drop(x, at, p, draw_at(seed, stream, step, offset, advance));
                multiply(x, grown);
            }
            store(Y + at, x);
        }
    }
}

// Z and L_U of a thread's channels at one pixel: in `z` goes X, in `l` goes L_Y M.
struct Rule {
    float mean[VECTOR], scale[VECTOR], weight[VECTOR], bias[VECTOR];
    int silu;
    __device__ __forceinline__ void apply(float (&z)[VECTOR], float (&l)[VECTOR]) const {
        UNROLL
        for (int i = 0; i < VECTOR; i++) {
            z[i] = (z[i] - mean[i]) * scale[i];
            if (silu) {
                const float U = z[i] * weight[i] + bias[i], sigma = sigmoid(U);
                l[i] *= sigma * (1.f + U * (1.f - sigma));
            }
        }
    }
};

// sums (2, N, C) receives B and A of each image and channel, L_w and L_b before the sum over images. there, like L_X, is added to
// it. there, L_X and sums may be null.
KERNEL(group_norm_backward, THREADS)(const Element* L_Y, const Element* X, const float* mean, const float* scale,
                                     const float* w, const float* b, const Element* there, Element* L_X, float* sums, int P,
                                     int C, int D, int slab, int columns, int tiled, int silu, float p, float grown,
                                     unsigned long long seed, unsigned stream, unsigned step, unsigned long long offset,
                                     const unsigned* advance) {
    DYNAMIC_SHARED(Element, tile);
    const Slab s(C, slab, columns);
    float* partial = behind(tile, tiled ? 2 * P * slab : 0);
    float* total_A = partial + s.partials() * slab;
    float* total_B = total_A + slab;
    float* group_A = total_B + slab;
    float* group_B = group_A + slab / D;
    const size_t start = static_cast<size_t>(s.image) * P * C + s.channel + s.column * VECTOR;
    tile += s.column * VECTOR;
    Element* const tile_of_l = tile + P * slab;

    const int first_group = s.image * (C / D) + s.channel / D;
    Rule rule;
    load_groups(rule.mean, mean + first_group, D, s);
    load_groups(rule.scale, scale + first_group, D, s);
    load_channels(rule.weight, w, 1.f, s);
    load_channels(rule.bias, b, 0.f, s);
    rule.silu = silu;

    const int AHEAD = 2;  // pixels of two arrays
    float A[VECTOR] = {}, B[VECTOR] = {}, z[VECTOR], l[VECTOR];
    Piece ahead[AHEAD], ahead_of_l[AHEAD];
    const int count = s.active && s.row < P ? (P - s.row - 1) / s.rows + 1 : 0;
    const size_t apart = static_cast<size_t>(s.rows) * C;
    for (int k = 0, pixel = s.row; k < count; k += AHEAD, pixel += AHEAD * s.rows) {
        size_t at = start + static_cast<size_t>(pixel) * C;
        load_ahead(ahead, X + at, apart, count - k);
        load_ahead(ahead_of_l, L_Y + at, apart, count - k);
        UNROLL
        for (int j = 0; j < AHEAD; j++, at += apart) {
            if (k + j >= count) break;
            widen(z, ahead[j]);
            widen(l, ahead_of_l[j]);
            if (p > 0.f) drop(l, at, p, draw_at(seed, stream, step, offset, advance));
            if (tiled) {
                put<VECTOR>(tile + (pixel + j * s.rows) * slab, ahead[j]);
                store(tile_of_l + (pixel + j * s.rows) * slab, l);  // as it was read, or 0
            }
            multiply(l, grown);
            rule.apply(z, l);
            UNROLL
            for (int i = 0; i < VECTOR; i++) {
                A[i] += l[i];
                B[i] += l[i] * z[i];
            }
        }
    }
    sum_over_pixels(A, partial, total_A, s);
    sum_over_pixels(B, partial, total_B, s);
    if (sums) {
        float* const here = sums + static_cast<size_t>(s.image) * C + s.channel;
        for (int c = threadIdx.x; c < s.width; c += blockDim.x) {
            here[c] = total_B[c];
            here[static_cast<size_t>(gridDim.x / s.slabs) * C + c] = total_A[c];
        }
    }
    if (!L_X) return;

    sum_over_channels(total_A, w, group_A, D, s);
    sum_over_channels(total_B, w, group_B, D, s);
    load_groups(A, group_A, D, s);
    load_groups(B, group_B, D, s);
    UNROLL
    for (int i = 0; i < VECTOR; i++) {  // the means over the group; m > 0 where there is a pixel
        A[i] /= P * D;
        B[i] /= P * D;
    }
    for (int k = 0, pixel = s.row; k < count; k += AHEAD, pixel += AHEAD * s.rows) {
        size_t at = start + static_cast<size_t>(pixel) * C;
        if (tiled) {
            load_ahead(ahead, tile + pixel * slab, static_cast<size_t>(s.rows) * slab, count - k);
            load_ahead(ahead_of_l, tile_of_l + pixel * slab, static_cast<size_t>(s.rows) * slab, count - k);
        } else {
            load_ahead(ahead, X + at, apart, count - k);
            load_ahead(ahead_of_l, L_Y + at, apart, count - k);
        }
        UNROLL
        for (int j = 0; j < AHEAD; j++, at += apart) {
            if (k + j >= count) break;
            widen(z, ahead[j]);
            widen(l, ahead_of_l[j]);
            if (p > 0.f && !tiled) drop(l, at, p, draw_at(seed, stream, step, offset, advance));
            multiply(l, grown);
            rule.apply(z, l);
            UNROLL
            for (int i = 0; i < VECTOR; i++)
                z[i] = (l[i] * rule.weight[i] - A[i] - z[i] * B[i]) * rule.scale[i];
            if (there) {
                load(l, there + at);
                UNROLL
                for (int i = 0; i < VECTOR; i++) z[i] += l[i];
            }
            store(L_X + at, z);
        }
    }
}

// L_w[c] and L_b[c], of which either may be null: the sums over n of x[0, n, c] and x[1, n, c], x (2, N, C). 32 channels a
// block; its 8 warps take images in turn.
KERNEL(sum_over_images, 256)(const float* x, float* L_w, float* L_b, int N, int C) {
    SHARED(float, partial, [8][32]);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, c = blockIdx.x * 32 + lane;
    x += static_cast<size_t>(blockIdx.y) * N * C;
    float* y = blockIdx.y ? L_b : L_w;
    if (!y) return;
    float sum = 0.f;
    if (c < C)
        for (int n = warp; n < N; n += 8) sum += x[static_cast<size_t>(n) * C + c];
    partial[warp][lane] = sum;
    __syncthreads();
    if (warp || c >= C) return;
    for (int k = 1; k < 8; k++) sum += partial[k][lane];
    y[c] = sum;
}

// --- SiLU alone: Y = X sigma(X), L_X = L_Y sigma(X) (1 + X (1 - sigma(X))).

#define FLAT 100.f  // beyond it sigma is 0 or 1: X is cut there, as infinity times 0 would be NaN

#define EACH (16 / static_cast<int>(sizeof(Element)))  // elements of a thread

KERNEL(silu_forward, THREADS)(const Element* X, Element* Y, int n) {
    const int i = EACH * (blockIdx.x * THREADS + threadIdx.x);
    if (i >= n) return;
    float x[EACH];
    load_up_to(x, X, i, n);
    UNROLL
    for (int k = 0; k < EACH; k++) x[k] = fmaxf(x[k], -FLAT) * sigmoid(x[k]);
    store_up_to(Y, i, n, x);
}

KERNEL(silu_backward, THREADS)(const Element* L_Y, const Element* X, Element* L_X, int n) {
    const int i = EACH * (blockIdx.x * THREADS + threadIdx.x);
    if (i >= n) return;
    float x[EACH], l[EACH];
    load_up_to(x, X, i, n);
    load_up_to(l, L_Y, i, n);
    UNROLL
    for (int k = 0; k < EACH; k++) {
        const float sigma = sigmoid(x[k]);
        l[k] *= sigma * (1.f + fminf(fmaxf(x[k], -FLAT), FLAT) * (1.f - sigma));
    }
    store_up_to(L_X, i, n, l);
}
