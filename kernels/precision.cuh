// What the entries of an array are in memory. A source that takes several kinds is compiled for each: two macros say which, and
// launch() in tinydiff/cuda holds arrays against them.
//
//     PRECISION    Element, of what is read, and written where a kernel has no Result
//     RESULT       Result
//
//     FLOAT32, TF32    float; that TF32 is rounded to 11 bits on its way to a tensor core concerns tensor.cuh alone
//     BF16, FP16       unsigned short, the bits of one
//
// Arithmetic is float32. 16 bits are widened where they are used, and a result is rounded once, to nearest even, where it is
// stored. NaN stays NaN, and what is too large for fp16 becomes infinite.

#define FLOAT32 0
#define TF32 1
#define BF16 2
#define FP16 3

#ifndef PRECISION
#define PRECISION FLOAT32
#endif
#ifndef RESULT
#define RESULT FLOAT32
#endif

#if PRECISION >= BF16
typedef unsigned short Element;
#else
typedef float Element;
#endif
#if RESULT >= BF16
typedef unsigned short Result;
#else
typedef float Result;
#endif

// A pair of neighbours of 16 bits, the first in the low half. KIND: BF16 or FP16.
template <int KIND> __device__ __forceinline__ float2 widened(unsigned pair) {
    return KIND == FP16 ? make_float2(low_fp16(pair), high_fp16(pair)) : make_float2(low_bf16(pair), high_bf16(pair));
}
template <int KIND> __device__ __forceinline__ unsigned rounded(float first, float second) {
    return KIND == FP16 ? pack_fp16(first, second) : pack_bf16(first, second);
}
