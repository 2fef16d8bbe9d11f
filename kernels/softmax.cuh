// What softmax kernels share: how a row begins and ends.

// The largest float bounds the maximum, on both sides as in NumPy's path: a row of -inf alone then has top = -LARGEST and
// sum 0; one with +inf has sum inf, which makes it NaN there and 0 elsewhere.
#define LARGEST 3.40282347e38f

__device__ __forceinline__ float reciprocal_of_sum(float sum) { return sum == 0.f ? 1.f : 1.f / sum; }
__device__ __forceinline__ float z_of(float top, float sum) { return sum == 0.f ? INFINITY : top + log_(sum); }
