// What kernels share that go through arrays element by element: reading and writing 16 bytes at a time, and sums over a block.

#include "precision.cuh"

// A vector of N neighbouring entries as it lies in memory, at an address that is a multiple of its size (of 16 bytes at most).
// What is asked for long before it is used waits in this form, which takes the fewest registers.
template <class T, int N> struct PieceOf;
template <> struct PieceOf<float, 1> { typedef float type; };
template <> struct PieceOf<float, 4> { typedef float4 type; };
template <> struct PieceOf<float, 8> {
    struct type { float4 low, high; };
};
template <> struct PieceOf<unsigned short, 1> { typedef unsigned short type; };
template <> struct PieceOf<unsigned short, 4> { typedef uint2 type; };
template <> struct PieceOf<unsigned short, 8> { typedef uint4 type; };

template <int N, class T> __device__ __forceinline__ typename PieceOf<T, N>::type piece_at(const T* p) {
    return *reinterpret_cast<const typename PieceOf<T, N>::type*>(p);
}
template <int N, class T> __device__ __forceinline__ void put(T* p, typename PieceOf<T, N>::type piece) {
    *reinterpret_cast<typename PieceOf<T, N>::type*>(p) = piece;
}

// A vector as float32, and back.
__device__ __forceinline__ void widen(float (&v)[1], float piece) { v[0] = piece; }
__device__ __forceinline__ void narrow(float& piece, const float (&v)[1]) { piece = v[0]; }
__device__ __forceinline__ void widen(float (&v)[4], const float4& piece) {
    v[0] = piece.x, v[1] = piece.y, v[2] = piece.z, v[3] = piece.w;
}
__device__ __forceinline__ void narrow(float4& piece, const float (&v)[4]) { piece = make_float4(v[0], v[1], v[2], v[3]); }
__device__ __forceinline__ void narrow(PieceOf<float, 8>::type& piece, const float (&v)[8]) {
    piece = {make_float4(v[0], v[1], v[2], v[3]), make_float4(v[4], v[5], v[6], v[7])};
}
#if PRECISION >= BF16
__device__ __forceinline__ void widen(float (&v)[1], unsigned short piece) { v[0] = widened<PRECISION>(piece).x; }
__device__ __forceinline__ void narrow(unsigned short& piece, const float (&v)[1]) {
    piece = static_cast<unsigned short>(rounded<PRECISION>(v[0], 0.f));
}
__device__ __forceinline__ void narrow(uint2& piece, const float (&v)[4]) {
    piece = make_uint2(rounded<PRECISION>(v[0], v[1]), rounded<PRECISION>(v[2], v[3]));
}
__device__ __forceinline__ void widen(float (&v)[8], const uint4& piece) {
    const unsigned pairs[4] = {piece.x, piece.y, piece.z, piece.w};
    UNROLL
    for (int k = 0; k < 4; k++) {
        const float2 pair = widened<PRECISION>(pairs[k]);
        v[2 * k] = pair.x, v[2 * k + 1] = pair.y;
    }
}
__device__ __forceinline__ void narrow(uint4& piece, const float (&v)[8]) {
    piece = make_uint4(rounded<PRECISION>(v[0], v[1]), rounded<PRECISION>(v[2], v[3]), rounded<PRECISION>(v[4], v[5]),
                       rounded<PRECISION>(v[6], v[7]));
}
#endif

template <class T, int N> __device__ __forceinline__ void load(float (&v)[N], const T* p) { widen(v, piece_at<N>(p)); }
template <class T, int N> __device__ __forceinline__ void store(T* p, const float (&v)[N]) {
    typename PieceOf<T, N>::type piece;
    narrow(piece, v);
    put<N>(p, piece);
}

__device__ __forceinline__ bool aligned(const void* p) { return reinterpret_cast<size_t>(p) % 16 == 0; }

// Elements i .. i + N - 1 of an array of n, i a multiple of N: in one piece where the array lies for it, otherwise one by one.
// Past the end, zeros are read and nothing is written.
template <class T, int N> __device__ __forceinline__ void load_up_to(float (&v)[N], const T* x, int i, int n) {
    if (aligned(x) && n - i >= N) return load(v, x + i);
    UNROLL
    for (int k = 0; k < N; k++) {
        float one[1] = {};
        if (k < n - i) load(one, x + i + k);
        v[k] = one[0];
    }
}
template <class T, int N> __device__ __forceinline__ void store_up_to(T* x, int i, int n, const float (&v)[N]) {
    if (aligned(x) && n - i >= N) return store(x + i, v);
    UNROLL
    for (int k = 0; k < N; k++) {
        const float one[1] = {v[k]};
        if (k < n - i) store(x + i + k, one);
    }
}

// The sum over a block of up to 1024 threads, whole warps, for thread 0: lanes first, then warps, always in the same order.
// A block can use it once.
__device__ __forceinline__ float block_sum(float v) {
    SHARED(float, warp_sums, [32]);
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = v;
    __syncthreads();
    if (threadIdx.x >= 32) return 0.f;
    return warp_sum(threadIdx.x < blockDim.x / 32 ? warp_sums[threadIdx.x] : 0.f);
}
