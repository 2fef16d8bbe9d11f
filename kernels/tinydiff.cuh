// What every kernel includes. One source serves three compilers: NVRTC at run time (CuPy) and in the compile tests, and,
// with TD_HOST defined, the system's C++ compiler, for which host.h stands in for CUDA.
//
//     KERNEL(name, threads)(const float* X, float* Y, int n) { ... }     a kernel for blocks of at most `threads` threads
//     KERNEL(name, threads, blocks)(...)      the same, with registers for so many blocks at once; 0: the compiler decides
//     SHARED(float, tile, [32][33]);                                    static shared memory, 16-byte aligned
//     DYNAMIC_SHARED(float, ring);                                      a pointer to the dynamic shared memory
//
// Parameters are pointers, int, unsigned, float and unsigned long long; absent arrays are null pointers. Collectives are
// for whole warps: all 32 lanes must arrive, at the same place. No CUDA headers, so that NVRTC needs none.

#ifdef TD_HOST
#include "host.h"
#else

#define KERNEL(name, ...) extern "C" __global__ void __launch_bounds__(__VA_ARGS__) name
#define SHARED(type, name, array) __shared__ __align__(16) type name array
#define DYNAMIC_SHARED(type, name)                                          \
    extern __shared__ __align__(1024) unsigned char td_dynamic_shared[];    \
    type* name = reinterpret_cast<type*>(td_dynamic_shared)
#define UNROLL _Pragma("unroll")
#define TD_CALLER           // on the host: a parameter and an argument that carry the place of a collective in the source,
#define TD_PASS_CALLER      // by which diverged threads are told apart
#define INFINITY __int_as_float(0x7f800000)

__device__ __forceinline__ float exp_(float x) { return expf(x); }
__device__ __forceinline__ float log_(float x) { return logf(x); }
__device__ __forceinline__ float sqrt_(float x) { return sqrtf(x); }
__device__ __forceinline__ float rsqrt_(float x) { return rsqrtf(x); }
__device__ __forceinline__ float tanh_(float x) { return tanhf(x); }
__device__ __forceinline__ float sin_(float x) { return sinf(x); }
__device__ __forceinline__ float cos_(float x) { return cosf(x); }

// e^x and 1 / x to some 2^-20 of them, an instruction or two each instead of ten: for what is rounded to 16 bits afterwards.
__device__ __forceinline__ float about_exp(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(1.44269504f * x));
    return y;
}
__device__ __forceinline__ float about_reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Has a value stay in its register. The compiler would rather compute some again in each turn of a loop.
__device__ __forceinline__ void keep(unsigned& v) { asm volatile("" : "+r"(v)); }

// blockIdx, read again: kept from the beginning of a kernel to its end, it would take up registers in between.
__device__ __forceinline__ uint3 block_index_again() {
    uint3 at;
    asm volatile("mov.u32 %0, %%ctaid.x; mov.u32 %1, %%ctaid.y; mov.u32 %2, %%ctaid.z;" : "=r"(at.x), "=r"(at.y), "=r"(at.z));
    return at;
}

// --- Shuffles: every lane gives a value and takes the value of another lane.

template <class T> __device__ __forceinline__ T shuffle(T v, int source_lane) {
    return __shfl_sync(0xffffffffu, v, source_lane);
}
template <class T> __device__ __forceinline__ T shuffle_xor(T v, int lane_mask) {
    return __shfl_xor_sync(0xffffffffu, v, lane_mask);
}
template <class T> __device__ __forceinline__ T shuffle_down(T v, int distance) {  // lanes past the end keep their own
    return __shfl_down_sync(0xffffffffu, v, distance);
}

// --- Asynchronous copies from global to shared memory (sm_80 on; before that they happen at once).
// A thread's copies since the last cp_commit form a group; cp_wait<N> waits until at most N groups are on their way, for
// the calling thread's copies only: a __syncthreads must follow before others read them. Where `valid` is false, zeros are
// written and the source is not read.

__device__ __forceinline__ unsigned td_shared_address(const void* p) {
    return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ void cp_async16(void* shared, const void* global, bool valid) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(td_shared_address(shared)), "l"(global),
                 "r"(valid ? 16 : 0)
                 : "memory");
#else
    *static_cast<float4*>(shared) = valid ? *static_cast<const float4*>(global) : make_float4(0.f, 0.f, 0.f, 0.f);
#endif
}

__device__ __forceinline__ void cp_async4(void* shared, const void* global, bool valid) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(td_shared_address(shared)), "l"(global),
                 "r"(valid ? 4 : 0)
                 : "memory");
#else
    *static_cast<float*>(shared) = valid ? *static_cast<const float*>(global) : 0.f;
#endif
}

__device__ __forceinline__ void cp_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int N> __device__ __forceinline__ void cp_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// --- Tensor cores.

// Four 8x8 matrices of 16-bit elements from shared memory: lane l gives the address of row l % 8 of matrix l / 8 (16 bytes,
// aligned), and receives in r[i] elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 of matrix i.
__device__ __forceinline__ void ldmatrix_x4(unsigned (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(td_shared_address(row))
                 : "memory");
}

// The same, each matrix transposed: r[i] are elements 2 (l % 4) and 2 (l % 4) + 1 of column l / 4 of matrix i.
__device__ __forceinline__ void ldmatrix_x4_trans(unsigned (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(td_shared_address(row))
                 : "memory");
}

#if __CUDA_ARCH__ >= 800
// D (16, 8) += A (16, 16) B (16, 8), bf16 operands, float32 sums. With g = lane / 4 and t = lane % 4 a thread holds
//     a[0] = A[g, 2t..2t+1]    a[1] = A[g+8, 2t..]    a[2] = A[g, 2t+8..]    a[3] = A[g+8, 2t+8..]
//     b[0] = B[2t..2t+1, g]    b[1] = B[2t+8.., g]    d = D[g, 2t], D[g, 2t+1], D[g+8, 2t], D[g+8, 2t+1]
__device__ __forceinline__ void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same with fp16 operands.
__device__ __forceinline__ void mma_fp16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// D (16, 8) += A (16, 8) B (8, 8), TF32 operands (float32 bits of which the low 13 do not count), float32 sums:
//     a[0] = A[g, t]    a[1] = A[g+8, t]    a[2] = A[g, t+4]    a[3] = A[g+8, t+4]    b[0] = B[t, g]    b[1] = B[t+4, g]
__device__ __forceinline__ void mma_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ unsigned to_tf32(float x) {  // ties away from zero
    unsigned bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return bits;
}
#endif

// Two floats as a pair of bf16 or fp16 (round to nearest even), `low` in the low half.
__device__ __forceinline__ unsigned pack_bf16(float low, float high) {
#if __CUDA_ARCH__ >= 800
    unsigned pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#else
    const auto upper = [](float x) {
        const unsigned u = __float_as_uint(x);
        return x != x ? 0x7fffu : (u + 0x7fffu + (u >> 16 & 1)) >> 16;
    };
    return upper(low) | upper(high) << 16;
#endif
}
__device__ __forceinline__ unsigned pack_fp16(float low, float high) {
    unsigned pair;
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#else
    asm("{ .reg .b16 low, high; cvt.rn.f16.f32 low, %1; cvt.rn.f16.f32 high, %2; mov.b32 %0, {low, high}; }"
        : "=r"(pair)
        : "f"(low), "f"(high));
#endif
    return pair;
}

// The halves of a pair as floats.
__device__ __forceinline__ float low_bf16(unsigned pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_bf16(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }
__device__ __forceinline__ float low_fp16(unsigned pair) {
    float x;
    asm("{ .reg .b16 low, high; mov.b32 {low, high}, %1; cvt.f32.f16 %0, low; }" : "=f"(x) : "r"(pair));
    return x;
}
__device__ __forceinline__ float high_fp16(unsigned pair) { return low_fp16(pair >> 16); }

// --- Between blocks of one launch.
// A block hands on what it wrote to global memory so: every thread calls fence() after its writes, a __syncthreads, and then
// one thread calls count(). The block that finds by the counter that it is the last calls fence() again and reads by
// load_shared_by_blocks, since the first-level cache of its multiprocessor may hold something older.

__device__ __forceinline__ void fence() { __threadfence(); }
__device__ __forceinline__ unsigned count(unsigned* counter) { return atomicAdd(counter, 1u); }  // as it was before
template <class T> __device__ __forceinline__ T load_shared_by_blocks(const T* p) { return __ldcg(p); }

#endif  // TD_HOST

// --- Sums and maxima over the 32 lanes of a warp, the same bits in every lane.

__device__ __forceinline__ float warp_sum(float v TD_CALLER) {
    UNROLL
    for (int mask = 16; mask; mask >>= 1) v += shuffle_xor(v, mask TD_PASS_CALLER);
    return v;
}

__device__ __forceinline__ float warp_max(float v TD_CALLER) {
    UNROLL
    for (int mask = 16; mask; mask >>= 1) v = fmaxf(v, shuffle_xor(v, mask TD_PASS_CALLER));
    return v;
}
