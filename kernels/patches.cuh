// Rows of the matrix of patches P, of which tensor_convolution.cu and tensor_weight_gradient.cu never store more than a slice.
//
// Row m of P is output pixel m = (n, p, q), and its entry (r, s, c) is X[n, p stride + r dilation - top, q stride + s dilation
// - left, c], or 0 outside of the image. So the pixel of tap (r, s) lies equally far from that of tap (0, 0) in all rows, and
// what a row has of its own is where it begins and which taps lie outside. An image ends at a row and at a column of pixels,
// so a bit for each r and each s tells that.

struct Window {
    int height, width, C, R, S, Ho, Wo, stride_h, stride_w, dilation_h, dilation_w, top, left;

    __device__ __forceinline__ int pixels_to(int r, int s) const { return r * dilation_h * width + s * dilation_w; }
};

struct alignas(8) Patch {
    int pixel;         // of tap (0, 0), among all of X; it may lie outside of its image
    unsigned outside;  // bit r: row r of the taps is outside; bit 16 + s: column s is; bit 15 (R <= 15): always set
};
constexpr unsigned NOWHERE = 1u << 15;

// A tap's bits: it lies outside where `outside` has one of them.
__device__ __forceinline__ unsigned bits_of_tap(int r, int s) { return 1u << r | 1u << (16 + s); }

// Which of `count` pixels, `apart` from each other, lie outside of 0 .. length - 1, as bits from bit `shift` on.
__device__ __forceinline__ unsigned outside_of(int first, int apart, int count, int length, int shift) {
    unsigned bits = 0;
    ROLLED
    for (int i = 0; i < count; i++, first += apart)
        if (static_cast<unsigned>(first) >= static_cast<unsigned>(length)) bits |= 1u << (shift + i);
    return bits;
}

// An output pixel.
struct Pixel {
    int n, p, q;
};
__device__ __forceinline__ Pixel pixel_of(int m, const Window& w) {
    const int rows = m / w.Wo, n = rows / w.Ho;
    return {n, rows - n * w.Ho, m - rows * w.Wo};
}

// The row of P for a pixel; past the last image it is outside altogether.
__device__ __forceinline__ Patch patch_of(const Pixel& at, int images, const Window& w) {
    const int row = at.p * w.stride_h - w.top, column = at.q * w.stride_w - w.left;
    if (at.n >= images) return {0, ~0u};
    return {(at.n * w.height + row) * w.width + column, NOWHERE | outside_of(row, w.dilation_h, w.R, w.height, 0) |
                                                            outside_of(column, w.dilation_w, w.S, w.width, 16)};
}
