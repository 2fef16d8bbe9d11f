// Copies between NHWC maps: twice the resolution and back, two maps along their channels and back. Rows of a table by index.
//
// All of these are bound by memory: a thread moves VECTOR neighbouring channels, 16 bytes where channels come in so many, and
// every number is read once and written once: 8 bytes in float32, 4 in 16 bits (PRECISION, precision.cuh). What is only moved
// stays as it lies in memory. Consecutive threads have consecutive addresses of the larger array or, for upsample, runs of
// them. `size` counts threads.

#include "tinydiff.cuh"
#include "elements.cuh"

#ifndef VECTOR
#define VECTOR 4
#endif
typedef PieceOf<Element, VECTOR>::type Piece;

typedef unsigned long long Index;

__device__ __forceinline__ Index thread_number() { return static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x; }

// The pixel of (rows, 2 width) * 2 at the top left of the four that belong to pixel (row, column) of (rows, width).
__device__ __forceinline__ Index first_of_four(Index row, Index column, int width) {
    return 2 * row * (2 * width) + 2 * column;
}

// Y (2 rows, 2 width, channels): each pixel of X (rows, width, channels) four times. Rows are those of all images.
KERNEL(upsample, 256)(const Element* X, Element* Y, unsigned long long size, int rows, int width, int channels) {
    const Index i = thread_number();
    if (i >= size) return;
    const Index pixel = i * VECTOR / channels, c = i * VECTOR % channels;
    const Index at = first_of_four(pixel / width, pixel % width, width);
    const Piece x = piece_at<VECTOR>(X + i * VECTOR);
    UNROLL
    for (int k = 0; k < 4; k++) put<VECTOR>(Y + (at + k / 2 * (2 * width) + k % 2) * channels + c, x);
}

// L_X (rows, width, channels): the sums of four pixels of L_Y (2 rows, 2 width, channels).
KERNEL(upsample_backward, 256)(const Element* L_Y, Element* L_X, unsigned long long size, int rows, int width, int channels) {
    const Index i = thread_number();
    if (i >= size) return;
    const Index pixel = i * VECTOR / channels, c = i * VECTOR % channels;
    const Index at = first_of_four(pixel / width, pixel % width, width);
    Piece ahead[4];
    UNROLL
    for (int k = 0; k < 4; k++) ahead[k] = piece_at<VECTOR>(L_Y + (at + k / 2 * (2 * width) + k % 2) * channels + c);
    float sum[VECTOR] = {};
    UNROLL
    for (int k = 0; k < 4; k++) {
        float y[VECTOR];
        widen(y, ahead[k]);
        UNROLL
        for (int l = 0; l < VECTOR; l++) sum[l] += y[l];
    }
    store(L_X + i * VECTOR, sum);
}

// Y (pixels, first_channels + second_channels) from first and second.
KERNEL(concatenate, 256)
(const Element* first, const Element* second, Element* Y, unsigned long long size, int first_channels, int second_channels) {
    const Index i = thread_number();
    if (i >= size) return;
    const int channels = first_channels + second_channels;
    const Index pixel = i * VECTOR / channels;
    const int c = static_cast<int>(i * VECTOR % channels);
    const Element* from = c < first_channels ? first + pixel * first_channels + c
                                             : second + pixel * second_channels + c - first_channels;
    put<VECTOR>(Y + i * VECTOR, piece_at<VECTOR>(from));
}

// first and second from Y (pixels, first_channels + second_channels).
KERNEL(split, 256)
(const Element* Y, Element* first, Element* second, unsigned long long size, int first_channels, int second_channels) {
    const Index i = thread_number();
    if (i >= size) return;
    const int channels = first_channels + second_channels;
    const Index pixel = i * VECTOR / channels;
    const int c = static_cast<int>(i * VECTOR % channels);
    Element* to = c < first_channels ? first + pixel * first_channels + c
                                     : second + pixel * second_channels + c - first_channels;
    put<VECTOR>(to, piece_at<VECTOR>(Y + i * VECTOR));
}

// Y (n, channels): rows of W (rows, channels) by indices (n,). One outside of W gives the first or the last row, and *wrong, if
// it is not null, becomes the number of rows: nothing is read to check an argument, and the host finds it when it next waits.
KERNEL(pick_rows, 256)
(const Element* W, const long long* indices, Element* Y, int* wrong, unsigned long long size, int channels, int rows) {
    const Index i = thread_number();
    if (i >= size) return;
    const Index n = i * VECTOR / channels, c = i * VECTOR % channels;
    const long long given = indices[n], row = given < 0 ? 0 : given < rows ? given : rows - 1;
    if (given != row && c == 0 && wrong) *wrong = rows;
    put<VECTOR>(Y + i * VECTOR, piece_at<VECTOR>(W + row * channels + c));
}
