// CUDA on the host, as far as the kernels use it: what a kernel sees. The machinery behind it is host/runtime.cpp.
//
// A block's threads are fibers that run one at a time, in random order, each until it has to wait for others; so a
// missing barrier shows as a wrong result. Unlike a GPU, the stand-in does not forgive: shared memory starts as NaN,
// arrays end at protected pages, asynchronous copies spoil their target at once and land as late as they may, and threads
// that do not arrive are reported.

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct uint3 { unsigned x, y, z; };
typedef uint3 dim3;
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace td {

struct Place { const char* file; int line; };  // in the source

struct Array {  // shared memory: known to the runtime from the first time that a kernel passes its declaration
    Array(const char* name, size_t bytes, size_t element_bytes);
    void* data;
};

enum Collective { SHUFFLE, LDMATRIX, LDMATRIX_TRANS, MMA_BF16, MMA_FP16, MMA_TF32 };

struct Launch;
extern uint3 thread_index, block_index, block_size, grid_size;  // of the fiber that runs
extern void* dynamic_shared;

void barrier(Place place);
// Deposits this lane's operands; when all 32 lanes of the warp have done so, returns this lane's results.
void collective(Collective kind, Place place, const uint32_t* operands, int count, uint32_t* results, int out);
void copy_async(void* shared, const void* global, unsigned bytes, bool valid, Place place);
void copy_commit();
void copy_wait(int groups);
void fence();
unsigned count(unsigned* counter, Place place);
int run(const Launch* launch, unsigned most_threads, void (*kernel)(void* const* arguments));

inline unsigned lane() {
    return (thread_index.x + block_size.x * (thread_index.y + block_size.y * thread_index.z)) % 32;
}
template <class To, class From> inline To bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "the same number of bits");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
template <class T> inline T shuffle_from(T v, int source_lane, Place place) {
    const uint32_t operands[2] = {bits<uint32_t>(v), static_cast<uint32_t>(source_lane)};
    uint32_t result;
    collective(SHUFFLE, place, operands, 2, &result, 1);
    return bits<T>(result);
}

}  // namespace td

#define threadIdx td::thread_index
#define blockIdx td::block_index
#define blockDim td::block_size
#define gridDim td::grid_size
#define KERNEL(name, threads, ...)                \
    constexpr unsigned name##_threads = (threads); \
    static void name
#define SHARED(type, name, array)                                  \
    typedef type name##_type array;                                \
    static td::Array name##_array(#name, sizeof(name##_type), sizeof(type)); \
    name##_type& name = *static_cast<name##_type*>(name##_array.data)
#define DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(td::dynamic_shared)
#define UNROLL
#define TD_CALLER , td::Place place = {__builtin_FILE(), __builtin_LINE()}
#define TD_PASS_CALLER , place
#define __syncthreads() td::barrier({__FILE__, __LINE__})

inline float exp_(float x) { return expf(x); }
inline float log_(float x) { return logf(x); }
inline float sqrt_(float x) { return sqrtf(x); }
inline float rsqrt_(float x) { return 1.f / sqrtf(x); }
inline float tanh_(float x) { return tanhf(x); }
inline float sin_(float x) { return sinf(x); }
inline float cos_(float x) { return cosf(x); }

inline float about_exp(float x) { return exp2f(1.44269504f * x); }
inline float about_reciprocal(float x) { return 1.f / x; }

inline void keep(unsigned&) {}
inline uint3 block_index_again() { return blockIdx; }

#define TD_MIN_MAX(type)                                          \
    inline type min(type a, type b) { return b < a ? b : a; }     \
    inline type max(type a, type b) { return a < b ? b : a; }
TD_MIN_MAX(int)
TD_MIN_MAX(unsigned)
TD_MIN_MAX(long long)
TD_MIN_MAX(unsigned long long)
TD_MIN_MAX(float)
#undef TD_MIN_MAX

inline unsigned __float_as_uint(float x) { return td::bits<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return td::bits<float>(x); }
inline int __float_as_int(float x) { return td::bits<int>(x); }
inline float __int_as_float(int x) { return td::bits<float>(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32); }
template <class T> inline T __ldg(const T* p) { return *p; }

template <class T> inline T shuffle(T v, int source_lane TD_CALLER) {
    return td::shuffle_from(v, source_lane & 31, place);
}
template <class T> inline T shuffle_xor(T v, int lane_mask TD_CALLER) {
    return td::shuffle_from(v, (td::lane() ^ lane_mask) & 31, place);
}
template <class T> inline T shuffle_down(T v, int distance TD_CALLER) {
    const int lane = td::lane(), source = lane + distance;
    return td::shuffle_from(v, source < 32 ? source : lane, place);
}

inline void cp_async16(void* shared, const void* global, bool valid TD_CALLER) {
    td::copy_async(shared, global, 16, valid, place);
}
inline void cp_async4(void* shared, const void* global, bool valid TD_CALLER) {
    td::copy_async(shared, global, 4, valid, place);
}
inline void cp_commit() { td::copy_commit(); }
template <int N> inline void cp_wait() { td::copy_wait(N); }

namespace td {
inline void load_matrices(Collective kind, unsigned (&r)[4], const void* row, Place place) {
    const uint64_t address = reinterpret_cast<uintptr_t>(row);
    const uint32_t operands[2] = {static_cast<uint32_t>(address), static_cast<uint32_t>(address >> 32)};
    collective(kind, place, operands, 2, r, 4);
}
inline void mma(Collective kind, float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], Place place) {
    const uint32_t operands[10] = {a[0], a[1], a[2], a[3], b[0], b[1], bits<uint32_t>(d[0]), bits<uint32_t>(d[1]),
                                   bits<uint32_t>(d[2]), bits<uint32_t>(d[3])};
    uint32_t results[4];
    collective(kind, place, operands, 10, results, 4);
    for (int i = 0; i < 4; i++) d[i] = bits<float>(results[i]);
}
}  // namespace td
inline void ldmatrix_x4(unsigned (&r)[4], const void* row TD_CALLER) {
    td::load_matrices(td::LDMATRIX, r, row, place);
}
inline void ldmatrix_x4_trans(unsigned (&r)[4], const void* row TD_CALLER) {
    td::load_matrices(td::LDMATRIX_TRANS, r, row, place);
}
inline void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2] TD_CALLER) {
    td::mma(td::MMA_BF16, d, a, b, place);
}
inline void mma_fp16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2] TD_CALLER) {
    td::mma(td::MMA_FP16, d, a, b, place);
}
inline void mma_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2] TD_CALLER) {
    td::mma(td::MMA_TF32, d, a, b, place);
}
inline unsigned pack_bf16(float low, float high) {
    const auto rounded = [](float x) {  // to nearest even; a NaN stays one
        const uint32_t u = td::bits<uint32_t>(x);
        return x != x ? 0x7fffu : (u + 0x7fffu + (u >> 16 & 1)) >> 16;
    };
    return rounded(low) | rounded(high) << 16;
}
inline unsigned pack_fp16(float low, float high) {
    const auto rounded = [](float x) -> unsigned {  // to nearest even; a NaN has all bits but the sign
        const uint32_t u = td::bits<uint32_t>(x), sign = u >> 16 & 0x8000u, size = u & 0x7fffffffu;
        if (x != x) return 0x7fffu;
        if (size < 0x38800000u)  // below 2^-14 fp16 is a multiple of 2^-24, and so is every float32 from 1/2 to 1
            return sign | (td::bits<uint32_t>(td::bits<float>(size) + 0.5f) - 0x3f000000u);
        const uint32_t half = (size + 0xfffu + (size >> 13 & 1) - 0x38000000u) >> 13;
        return sign | (half < 0x7c00u ? half : 0x7c00u);
    };
    return rounded(low) | rounded(high) << 16;
}
inline unsigned to_tf32(float x) {  // ties away from zero
    const uint32_t u = td::bits<uint32_t>(x);
    return x != x ? 0x7fffffffu : (u + 0x1000u) & ~0x1fffu;
}

namespace td {
inline float half_to_float(uint32_t half) {
    const uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, mantissa = half & 0x3ffu;
    if (exponent == 0) return bits<float>(sign | bits<uint32_t>(mantissa * 5.9604645e-8f));  // 2^-24
    return bits<float>(sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | mantissa << 13);
}
}  // namespace td
inline float low_bf16(unsigned pair) { return __uint_as_float(pair << 16); }
inline float high_bf16(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }
inline float low_fp16(unsigned pair) { return td::half_to_float(pair & 0xffffu); }
inline float high_fp16(unsigned pair) { return td::half_to_float(pair >> 16); }

// Blocks run one after another, so a missing fence cannot show in what they read. It is a mistake to count without one.
inline void fence() { td::fence(); }
inline unsigned count(unsigned* counter TD_CALLER) { return td::count(counter, place); }
template <class T> inline T load_shared_by_blocks(const T* p) { return *p; }
