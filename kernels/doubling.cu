// The filters of a 3x3 convolution that sees an image with its pixels doubled, as they act on the image itself.
//
// Pixel u of the doubled image is pixel u / 2 of X. Row 2 p + a of the output reads rows 2 p + a - 1 .. 2 p + a + 1 of the doubled
// image through the rows w0, w1, w2 of a filter. Two of these rows are one row of X, and their weights add up:
//
//     a = 0    rows p - 1, p of X    through w0, w1 + w2
//     a = 1    rows p, p + 1         through w0 + w1, w2
//
// The same holds for columns. So the outputs of each parity (a, b) are a convolution of X with a filter of 2 x 2 taps: 16
// multiplications for 36. Turned around, row p of X is read by rows 2 p - 1 .. 2 p + 2 of the output,
//
//     j = 0, 1, 2, 3    through w2, w1 + w2, w0 + w1, w0
//
// so L_X is a convolution of L_Y with a filter T of 4 x 4 taps and stride 2, whose weight gradient, summed in the same way, is
// L_W. Sums of taps are float32, in the order of the taps. Filters are what PRECISION says (precision.cuh), and a sum of them is
// rounded once; gradients of filters are float32.

#include "tinydiff.cuh"
#include "elements.cuh"

// An entry as a number, and back.
__device__ __forceinline__ float number(Element x) {
    float v[1];
    widen(v, x);
    return v[0];
}
__device__ __forceinline__ Element entry(float x) {
    const float v[1] = {x};
    Element piece;
    narrow(piece, v);
    return piece;
}

// The taps of one filter whose sum is a tap of the other, along one axis: those of 3 for tap j of 4, those of 4 for tap j of 3.
struct Taps {
    int first, last;
};
__device__ __forceinline__ Taps of_four(int j) { return {max(0, 2 - j), min(2, 3 - j)}; }
__device__ __forceinline__ Taps of_three(int j) { return {2 - j, 3 - j}; }

// V (2, 2, 2, 2, size) from W (3, 3, size): V[a, b, i, j] is tap (i, j) of the filter for outputs of parity (a, b). Blocks z are
// (a, b, i, j).
KERNEL(filters_of_parities, 256)(const Element* W, Element* V, int size) {
    const int i = blockIdx.x * 256 + threadIdx.x, z = blockIdx.z;
    if (i >= size) return;
    const Taps down = of_four(3 - z / 8 - z / 2 % 2 * 2), across = of_four(3 - z / 4 % 2 - z % 2 * 2);
    float sum = 0.f;
    for (int r = down.first; r <= down.last; r++)
        for (int s = across.first; s <= across.last; s++) sum += number(W[static_cast<long long>(r * 3 + s) * size + i]);
    V[static_cast<long long>(z) * size + i] = entry(sum);
}

// To (n, n, columns, rows) from From (7 - n, 7 - n, rows, columns): each tap is the sum of its taps, transposed. With n = 4, T
// from W; with n = 3, L_W from the gradient of T. A block of 32 x 8 threads takes 32 x 32 entries of tap z through shared memory,
// so that both arrays are accessed along their rows; rows of 33 floats keep the columns in different banks.
KERNEL(sum_taps_turned, 256)(const Element* From, Element* To, int n, int rows, int columns) {
    SHARED(float, tile, [32][33]);
    const int i = blockIdx.z / n, j = blockIdx.z % n, row0 = blockIdx.y * 32, column0 = blockIdx.x * 32;
    const Taps down = n == 4 ? of_four(i) : of_three(i), across = n == 4 ? of_four(j) : of_three(j);
    for (int row = threadIdx.y; row < 32; row += 8) {
        if (row0 + row >= rows || column0 + threadIdx.x >= columns) continue;
        float sum = 0.f;
        for (int r = down.first; r <= down.last; r++)
            for (int s = across.first; s <= across.last; s++) {
                const long long tap = r * (7 - n) + s;
                sum += number(From[(tap * rows + row0 + row) * columns + column0 + threadIdx.x]);
            }
        tile[row][threadIdx.x] = sum;
    }
    __syncthreads();
    To += static_cast<long long>(blockIdx.z) * rows * columns;
    for (int column = threadIdx.y; column < 32; column += 8)
        if (column0 + column < columns && row0 + threadIdx.x < rows)
            To[static_cast<long long>(column0 + column) * rows + row0 + threadIdx.x] = entry(tile[threadIdx.x][column]);
}
