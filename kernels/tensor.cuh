// One tile of a matrix product Y = A B on tensor cores (sm_80 on), as tensor_product.cu and tensor_convolution.cu compute it.
//
// A tensor core multiplies small matrices: `mma` has a warp compute D (16, 8) += A (16, k) B (k, 8), where k entries of an
// operand take 32 bytes. PRECISION says what an operand's entry is (Element): TF32 (float32 in memory, rounded to 11 bits on the
// way), BF16 or FP16; RESULT says what Y's is. Sums are float32 in all of them.
//
// What stays where. A block computes TILE_M x TILE_N entries of Y, and each of its warps WARP_M x WARP_N of them, which it
// holds in registers to the end: 64 x 64 are 128 floats a thread. The inner axis is walked in slices of 64 bytes of K.
//
//     global -> shared       a slice of A and one of B, once for all warps     64 (TILE_M + TILE_N) bytes
//     shared -> registers    for each mma step (32 bytes of K) the warp's part of either
//     registers              WARP_M WARP_N / 128 mma for each step
//
// Why 64 x 64: one step moves 32 (64 + 64) bytes from shared memory into the warp and starts 32 mma. Four warps of a
// multiprocessor then ask for 16 KiB a step, 128 cycles of shared memory, while their 16-bit mma take 128 cycles at least.
// Halving a warp's part to 32 x 32 halves the bytes but quarters the mma, and shared memory decides.
//
// STAGES slices are in shared memory. cp.async fills the place of slice k + STAGES - 1 while slice k is multiplied; there is
// one barrier for each slice.
//
// How operands lie. An operand has an outer axis (m of A, n of B) and k. In memory, and so in a slice, neighbours are
//     ALONG_K      entries of k: a slice has a row for each m or n, 64 bytes long
//     ACROSS_K     entries of the outer axis: a slice has a row for each k
// mma wants pairs of neighbours in k (TF32: single entries), lane (g, t) = (lane / 4, lane % 4) those of row g. ldmatrix hands
// them out from rows ALONG_K, and its transposed form from rows ACROSS_K if an entry has 16 bits. There is no such form for
// 32 bits, so TF32 reads these entries one by one.
//
// Banks. Shared memory serves 128 bytes a cycle from 32 banks: 8 chunks of 16 bytes that are read or written together must
// lie in 8 different eighths of 128 bytes. Rows are not padded; instead chunks of a row are exchanged (`place`):
//     64-byte rows             chunk ^ row / 2 % 4      two rows fill 128 bytes; 8 rows of one chunk meet all eighths
//     longer rows, 16 bits     chunk ^ row % 8          the same
//     longer rows, TF32        chunk ^ 2 (row % 4)      a warp reads rows t = 0 .. 3 of 8 entries g: 4 pairs of chunks
// Copies write whole rows, of which an exchange changes the order only.

#include "split_k.cuh"

#ifndef PRECISION
#define PRECISION TF32
#endif
#include "precision.cuh"

#ifndef TILE_M
#define TILE_M 64
#endif
#ifndef TILE_N
#define TILE_N 64
#endif
#ifndef STAGES
#define STAGES 4
#endif

#define ROLLED _Pragma("unroll 1")

#ifdef WARP_ROWS  // where a source chooses a warp's part
constexpr int WARP_M = WARP_ROWS, WARP_N = WARP_COLUMNS;
#else
constexpr int WARP_M = TILE_M * TILE_N >= 128 * 128 ? 64 : 32, WARP_N = WARP_M;
#endif
constexpr int WARPS_ACROSS = TILE_N / WARP_N, THREADS = TILE_M / WARP_M * WARPS_ACROSS * 32;
constexpr int CHUNK = 16 / sizeof(Element);      // entries that a copy moves at once
constexpr int TILE_K = 4 * CHUNK;                // of a slice
constexpr int STEP_K = 2 * CHUNK;                // of an mma
constexpr int FRAGMENTS_M = WARP_M / 16, FRAGMENTS_N = WARP_N / 8;
static_assert(TILE_M % WARP_M == 0 && TILE_N % WARP_N == 0, "a warp has WARP_M x WARP_N entries");

// The entries of Y that a thread holds. Entry (i, j, 2 h + e) is in row row_of(i, h) and column column_of(j) + e of the tile.
typedef float Sums[FRAGMENTS_M][FRAGMENTS_N][4];

__device__ __forceinline__ int warp_row() { return threadIdx.x / 32 / WARPS_ACROSS * WARP_M; }
__device__ __forceinline__ int warp_column() { return threadIdx.x / 32 % WARPS_ACROSS * WARP_N; }
__device__ __forceinline__ int row_of(int i, int h) { return warp_row() + 16 * i + 8 * h + threadIdx.x % 32 / 4; }
__device__ __forceinline__ int column_of(int j) { return warp_column() + 8 * j + threadIdx.x % 4 * 2; }

enum Layout { ALONG_K, ACROSS_K };

// A slice of an operand with EXTENT entries along its outer axis, and the part of it that a thread copies: chunk `chunk()` of
// rows row(), row() + DOWN, ..
template <Layout LAYOUT_, int EXTENT> struct Slice {
    static constexpr Layout LAYOUT = LAYOUT_;
    static constexpr int BYTES = 64 * EXTENT;
    static constexpr int CHUNKS = LAYOUT == ALONG_K ? 4 : EXTENT / CHUNK;  // of a row
    static constexpr int ROWS = LAYOUT == ALONG_K ? EXTENT : TILE_K;
    static constexpr int ROW = CHUNKS * 16;  // bytes
    static constexpr int DOWN = THREADS / CHUNKS, COPIES = ROWS / DOWN;
    static_assert(THREADS % CHUNKS == 0 && ROWS % DOWN == 0, "every thread copies the same number of times");
    static_assert(DOWN % (LAYOUT == ACROSS_K && sizeof(Element) == 4 ? 4 : 8) == 0, "a thread's rows are exchanged alike");

    static __device__ __forceinline__ int chunk() { return threadIdx.x % CHUNKS; }
    static __device__ __forceinline__ int row() { return threadIdx.x / CHUNKS; }

    // Where a chunk lies, in bytes.
    static __device__ __forceinline__ unsigned place(unsigned row, unsigned chunk) {
        if (LAYOUT == ALONG_K) return row * ROW + (chunk ^ (row / 2 & 3)) * 16;
        return row * ROW + (chunk ^ (sizeof(Element) == 4 ? (row & 3) * 2 : row & 7)) * 16;
    }
};

// Fragments of a warp's part of an operand. OF_A: register i of a fragment belongs to half i / 2 of the step's k and to block
// i % 2 of eight entries. Otherwise four registers are two fragments of B, one for each block: registers 2 block + half, since
// an mma takes neighbouring registers. What depends on the thread alone is computed once.
template <class S, bool OF_A> struct Fragments {
    unsigned at[4];  // where the thread reads, by the step (ALONG_K) or by what the exchange makes of the outer axis

    static __device__ __forceinline__ int block_of(int i) { return OF_A ? i % 2 : i / 2; }
    static __device__ __forceinline__ int half_of(int i) { return OF_A ? i / 2 : i % 2; }

    // first: where the warp's part begins, along the outer axis.
    __device__ __forceinline__ Fragments(unsigned first) {
        const unsigned lane = threadIdx.x % 32, block = block_of(lane / 8), half = half_of(lane / 8);
        UNROLL
        for (int i = 0; i < 4; i++) {
            if (S::LAYOUT == ALONG_K)
                at[i] = first * S::ROW + S::place(8 * block + lane % 8, 2 * (i % 2) + half);
            else if (sizeof(Element) == 2)
                at[i] = S::place(8 * half + lane % 8, first / 8 + 2 * i + block);
            else
                at[i] = S::place(lane % 4, (first + 8 * i + lane / 4) / 4) + lane / 4 % 4 * 4;
            keep(at[i]);
        }
    }

    // r: of entries 16 i .. 16 i + 15 of the warp's part.
    __device__ __forceinline__ void load(unsigned (&r)[4], const unsigned char* slice, int i, int step) const {
        if (S::LAYOUT == ALONG_K) {
            ldmatrix_x4(r, slice + at[step] + 16 * i * S::ROW);
        } else if (sizeof(Element) == 2) {
            ldmatrix_x4_trans(r, slice + at[i] + 16 * step * S::ROW);
        } else {
            UNROLL
            for (int j = 0; j < 4; j++) {  // 32 entries are 128 bytes, which the exchange leaves as they are
                const unsigned char* from = slice + at[i % 2 * 2 + block_of(j)] + i / 2 * 128;
                r[j] = *reinterpret_cast<const unsigned*>(from + (8 * step + 4 * half_of(j)) * S::ROW);
            }
        }
        if (sizeof(Element) == 4) {
            UNROLL
            for (int j = 0; j < 4; j++) r[j] = to_tf32(__uint_as_float(r[j]));
        }
    }
};

__device__ __forceinline__ void multiply_fragments(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if PRECISION == TF32
    mma_tf32(d, a, b);
#elif PRECISION == BF16
    mma_bf16(d, a, b);
#else
    mma_fp16(d, a, b);
#endif
}

// sum += the product of two slices.
template <class A, class B>
__device__ __forceinline__ void multiply_slices(const Fragments<A, true>& of_a, const Fragments<B, false>& of_b,
                                                const unsigned char* slice_a, const unsigned char* slice_b, Sums& sum) {
    UNROLL
    for (int step = 0; step < 2; step++) {
        unsigned a[FRAGMENTS_M][4];
        UNROLL
        for (int i = 0; i < FRAGMENTS_M; i++) of_a.load(a[i], slice_a, i, step);
        UNROLL
        for (int j = 0; j < FRAGMENTS_N; j += 2) {
            unsigned r[4];
            of_b.load(r, slice_b, j / 2, step);
            const unsigned b[2][2] = {{r[0], r[1]}, {r[2], r[3]}};
            UNROLL
            for (int i = 0; i < FRAGMENTS_M; i++) {
                multiply_fragments(sum[i][j], a[i], b[0]);
                multiply_fragments(sum[i][j + 1], a[i], b[1]);
            }
        }
    }
}

// use(k, stage) for slices first .. last - 1, DEPTH of which have a stage of shared memory. copy(k, stage) starts the copies of
// slice k; it is called for one slice after the other. Between its calls for slices k and k + DEPTH - 1, or later ones, lies a
// barrier.
template <int DEPTH, int BYTES, class Copy, class Use>
__device__ __forceinline__ void stream(unsigned char* shared, int first, int last, Copy copy, Use use) {
    UNROLL
    for (int i = 0; i < DEPTH - 1; i++) {
        if (first + i < last) copy(first + i, shared + i * BYTES);
        cp_commit();
    }
    int now = 0, next = DEPTH - 1;  // stages
    for (int k = first; k < last; k++) {
        cp_wait<DEPTH - 2>();   // this thread's copies of slice k have arrived;
        __syncthreads();        // everybody's have, and nobody reads slice k - 1 any more, whose place is filled next
        if (k + DEPTH - 1 < last) copy(k + DEPTH - 1, shared + next * BYTES);
        cp_commit();
        use(k, shared + now * BYTES);
        // The stage of slice k - 1 from now on, either way: with small tiles the compiler spills nothing by the first, with large
        // ones it has shorter loops by the second.
        next = WARP_M <= 32 ? now : next + 1 == DEPTH ? 0 : next + 1;
        now = now + 1 == DEPTH ? 0 : now + 1;
    }
}

// sum += the products of slices first .. last - 1. copy(k, A, B) starts the copies of slice k of either, as `stream` has it.
template <class A, class B, class Copy>
__device__ __forceinline__ void multiply(unsigned char* shared, int first, int last, Copy copy, Sums& sum) {
    const Fragments<A, true> of_a(warp_row());
    const Fragments<B, false> of_b(warp_column());
    stream<STAGES, A::BYTES + B::BYTES>(
        shared, first, last, [&](int k, unsigned char* stage) { copy(k, stage, stage + A::BYTES); },
        [&](int, const unsigned char* stage) { multiply_slices<A, B>(of_a, of_b, stage, stage + A::BYTES, sum); });
}

// This block's part of the slices, first .. last - 1: there are gridDim.z parts where tiles alone would not fill the GPU.
__device__ __forceinline__ void slices_of_part(int length, int& first, int& last) {
    const int slices = (length + TILE_K - 1) / TILE_K;
    first = static_cast<int>(static_cast<long long>(slices) * blockIdx.z / gridDim.z);
    last = static_cast<int>(static_cast<long long>(slices) * (blockIdx.z + 1) / gridDim.z);
}

// An operand that lies in memory as a matrix: (extent, length) ALONG_K, (length, extent) ACROSS_K. The tile begins at `first`
// of the outer axis. Outside of the matrix, zeros are copied. apart: entries from one of its rows to the next, 0 where they
// follow on each other.
template <class S> struct Matrix {
    const Element* from;     // the thread's first chunk of the slice that comes next
    long long down, onward;  // entries from one of its rows to the next, and to its first row in the next slice
    int k, limit;            // of that chunk, and where the thread's rows end
    unsigned to;             // where it goes

    __device__ __forceinline__ Matrix(const Element* matrix, int first, int extent, int length, int slice, long long apart = 0) {
        const int row = S::row(), chunk = S::chunk() * CHUNK;
        if (!apart) apart = S::LAYOUT == ALONG_K ? length : extent;
        to = S::place(row, S::chunk());
        keep(to);
        if (S::LAYOUT == ALONG_K) {
            k = slice * TILE_K + chunk;
            from = matrix + (first + row) * apart + k;
            down = S::DOWN * apart, onward = TILE_K;
            limit = extent - first - row;
        } else {
            k = slice * TILE_K + row;
            from = matrix + k * apart + first + chunk;
            down = S::DOWN * apart, onward = TILE_K * apart;
            limit = first + chunk < extent ? length : 0;
        }
    }

    __device__ __forceinline__ void copy(unsigned char* slice, int length) {
        UNROLL
        for (int i = 0; i < S::COPIES; i++) {
            const bool valid = S::LAYOUT == ALONG_K ? k < length && i * S::DOWN < limit : k + i * S::DOWN < limit;
            cp_async16(slice + to + i * S::DOWN * S::ROW, from + i * down, valid);
        }
        from += onward;
        k += TILE_K;
    }
};

// Whether this block has the whole sum of its tile, see split_k.cuh.
__device__ __forceinline__ bool add_parts(Sums& sum, float* parts, unsigned* arrived) {
    return add_parts<THREADS>(sum, parts, arrived);
}

// Two neighbouring entries of a result in memory.
__device__ __forceinline__ float2 load_pair(const float* p) { return *reinterpret_cast<const float2*>(p); }
__device__ __forceinline__ void store_pair(float* p, float2 y) { *reinterpret_cast<float2*>(p) = y; }
__device__ __forceinline__ float2 load_pair(const unsigned short* p) {
    return widened<RESULT>(*reinterpret_cast<const unsigned*>(p));
}
__device__ __forceinline__ void store_pair(unsigned short* p, float2 y) {
    *reinterpret_cast<unsigned*>(p) = rounded<RESULT>(y.x, y.y);
}

// What becomes of the thread's sums: write(m, y) for each of its rows m < M, with the pairs of neighbouring entries that it has
// there, of which pair j is in columns n and n + 1. The tile begins at row m0.
typedef float2 Pairs[FRAGMENTS_N];

template <class Write> __device__ __forceinline__ void write_tile(const Sums& sum, int m0, int M, Write write) {
    UNROLL
    for (int i = 0; i < FRAGMENTS_M; i++) {
        UNROLL
        for (int h = 0; h < 2; h++) {
            const int m = m0 + row_of(i, h);
            if (m >= M) continue;
            Pairs y;
            UNROLL
            for (int j = 0; j < FRAGMENTS_N; j++) y[j] = make_float2(sum[i][j][2 * h], sum[i][j][2 * h + 1]);
            write(m, y);
        }
    }
}

// pair(j, n) for each pair of a row that lies in columns n < N. The tile begins at column n0.
template <class Pair> __device__ __forceinline__ void each_pair(int n0, int N, Pair pair) {
    UNROLL
    for (int j = 0; j < FRAGMENTS_N; j++) {
        const int n = n0 + column_of(j);
        if (n < N) pair(j, n);
    }
}

__device__ __forceinline__ void add(float2& y, float2 x) { y.x += x.x, y.y += x.y; }
