// Copies between NHWC maps: twice the resolution and back, two maps along their channels and back. Rows of a table by index.
// And what becomes of 3x3 filters where the image that they see has doubled pixels.
//
// All of these are bound by memory: a thread moves VECTOR neighbouring channels, 16 bytes where channels come in fours, and
// every number is read once and written once. Consecutive threads have consecutive addresses of the larger array or, for
// upsample, runs of them. `size` counts threads.

#include "tinydiff.cuh"
#include "elements.cuh"

#ifndef VECTOR
#define VECTOR 4
#endif

typedef unsigned long long Index;

__device__ __forceinline__ Index thread_number() { return static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x; }

// The pixel of (rows, 2 width) * 2 at the top left of the four that belong to pixel (row, column) of (rows, width).
__device__ __forceinline__ Index first_of_four(Index row, Index column, int width) {
    return 2 * row * (2 * width) + 2 * column;
}

// Y (2 rows, 2 width, channels): each pixel of X (rows, width, channels) four times. Rows are those of all images.
KERNEL(upsample, 256)(const float* X, float* Y, unsigned long long size, int rows, int width, int channels) {
    const Index i = thread_number();
    if (i >= size) return;
    const Index pixel = i * VECTOR / channels, c = i * VECTOR % channels;
    const Index at = first_of_four(pixel / width, pixel % width, width);
    float x[VECTOR];
    load(x, X + i * VECTOR);
    UNROLL
    for (int k = 0; k < 4; k++) store(Y + (at + k / 2 * (2 * width) + k % 2) * channels + c, x);
}

// L_X (rows, width, channels): the sums of four pixels of L_Y (2 rows, 2 width, channels).
KERNEL(upsample_backward, 256)(const float* L_Y, float* L_X, unsigned long long size, int rows, int width, int channels) {
    const Index i = thread_number();
    if (i >= size) return;
    const Index pixel = i * VECTOR / channels, c = i * VECTOR % channels;
    const Index at = first_of_four(pixel / width, pixel % width, width);
    float sum[VECTOR] = {};
    UNROLL
    for (int k = 0; k < 4; k++) {
        float y[VECTOR];
        load(y, L_Y + (at + k / 2 * (2 * width) + k % 2) * channels + c);
        UNROLL
        for (int l = 0; l < VECTOR; l++) sum[l] += y[l];
    }
    store(L_X + i * VECTOR, sum);
}

// Y (pixels, first_channels + second_channels) from first and second.
KERNEL(concatenate, 256)
(const float* first, const float* second, float* Y, unsigned long long size, int first_channels, int second_channels) {
    const Index i = thread_number();
    if (i >= size) return;
    const int channels = first_channels + second_channels;
    const Index pixel = i * VECTOR / channels;
    const int c = static_cast<int>(i * VECTOR % channels);
    float x[VECTOR];
    if (c < first_channels)
        load(x, first + pixel * first_channels + c);
    else
        load(x, second + pixel * second_channels + c - first_channels);
    store(Y + i * VECTOR, x);
}

// first and second from Y (pixels, first_channels + second_channels).
KERNEL(split, 256)
(const float* Y, float* first, float* second, unsigned long long size, int first_channels, int second_channels) {
    const Index i = thread_number();
    if (i >= size) return;
    const int channels = first_channels + second_channels;
    const Index pixel = i * VECTOR / channels;
    const int c = static_cast<int>(i * VECTOR % channels);
    float y[VECTOR];
    load(y, Y + i * VECTOR);
    if (c < first_channels)
        store(first + pixel * first_channels + c, y);
    else
        store(second + pixel * second_channels + c - first_channels, y);
}

// Y (n, channels): rows of W (rows, channels) by indices (n,). One outside of W gives the first or the last row, and *wrong, if
// it is not null, becomes the number of rows: nothing is read to check an argument, and the host finds it when it next waits.
KERNEL(pick_rows, 256)
(const float* W, const long long* indices, float* Y, int* wrong, unsigned long long size, int channels, int rows) {
    const Index i = thread_number();
    if (i >= size) return;
    const Index n = i * VECTOR / channels, c = i * VECTOR % channels;
    const long long given = indices[n], row = given < 0 ? 0 : given < rows ? given : rows - 1;
    if (given != row && c == 0 && wrong) *wrong = rows;
    float x[VECTOR];
    load(x, W + row * channels + c);
    store(Y + i * VECTOR, x);
}

// What a 3x3 filter is to an image of doubled pixels: two neighbouring taps in a row, or in a column, often see the same pixel.
// Seen from pixel h, its copies are 2 h and 2 h + 1, and tap r of the output in row 2 h - 1 + u, u = 0 .. 3, reads row 2 h - 2 +
// u + r. So the taps with 2 - u <= r <= 3 - u connect the two; likewise columns.
__device__ __forceinline__ int first_tap_to(int u) { return u < 2 ? 2 - u : 0; }
__device__ __forceinline__ int last_tap_to(int u) { return u < 1 ? 2 : 3 - u; }

// V (4, 4, entries) from W (3, 3, entries): V[u, v] is the sum of those taps. by_pixel: as filters (2, 2, 2, 2, entries) instead. The one
// for output pixel (i, j) of 2 x 2 sees 2 x 2 pixels, of which (r, s) is connected with it by V[3 - i - 2 r, 3 - j - 2 s].
KERNEL(doubled_taps, 256)(const float* W, float* V, unsigned long long size, int entries, int by_pixel) {
    const Index i = thread_number();
    if (i >= size) return;
    const int tap = static_cast<int>(i * VECTOR / entries);
    const Index e = i * VECTOR % entries;
    const int u = by_pixel ? 3 - (tap >> 3) - 2 * (tap >> 1 & 1) : tap / 4;
    const int v = by_pixel ? 3 - (tap >> 2 & 1) - 2 * (tap & 1) : tap % 4;
    float sum[VECTOR] = {};
    for (int r = first_tap_to(u); r <= last_tap_to(u); r++) {
        for (int s = first_tap_to(v); s <= last_tap_to(v); s++) {
            float w[VECTOR];
            load(w, W + (3 * r + s) * static_cast<Index>(entries) + e);
            UNROLL
            for (int l = 0; l < VECTOR; l++) sum[l] += w[l];
        }
    }
    store(V + i * VECTOR, sum);
}

// L_W (3, 3, entries): tap (r, s) is in the sums V[2 - r .. 3 - r, 2 - s .. 3 - s].
KERNEL(doubled_taps_backward, 256)(const float* L_V, float* L_W, unsigned long long size, int entries) {
    const Index i = thread_number();
    if (i >= size) return;
    const int tap = static_cast<int>(i * VECTOR / entries), r = tap / 3, s = tap % 3;
    const Index e = i * VECTOR % entries;
    float sum[VECTOR] = {};
    UNROLL
    for (int k = 0; k < 4; k++) {
        float v[VECTOR];
        load(v, L_V + (4 * (2 - r + k / 2) + 2 - s + k % 2) * static_cast<Index>(entries) + e);
        UNROLL
        for (int l = 0; l < VECTOR; l++) sum[l] += v[l];
    }
    store(L_W + i * VECTOR, sum);
}
