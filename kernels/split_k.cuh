// Sums that several blocks compute in parts: the last block to arrive adds them, so no second kernel does.
//
// gridDim.z blocks have a part of the same tile each, where tiles alone would not fill the GPU. A block writes its part to its slot
// in global memory and counts itself (tinydiff.cuh: fence, count). The one that was last reads the slots, in order: the same
// numbers are added in the same order whichever block that is.
//
// It adds in groups of 8 neighbouring parts, since one block reads no more than some 100 GB/s: the last block of a group adds the
// 8, writes their sum to the slot of the first, and counts itself among the groups, and so on until one is left.

constexpr int GROUP = 8;

// Whether this block is the last of `members` that count themselves by a counter, 0 before and after. It then sees what the others
// have written. All threads of a block must come.
__device__ __forceinline__ bool last_to_arrive(unsigned* counter, int members) {
    SHARED(unsigned, before, [1]);
    const bool first = (threadIdx.x | threadIdx.y) == 0;
    fence();
    __syncthreads();
    if (first) before[0] = count(counter);
    __syncthreads();
    if (before[0] < members - 1) return false;
    fence();
    if (first) *counter = 0;  // for the next launch, which may be a replay of this one
    return true;
}

// Adds up the parts of this block's tile in `sums`, an array of floats that each of THREADS threads has: whether this block now has
// the whole sum, which is the case for one block of each tile; the others have no more to do.
// parts: a slot for each part of each tile, in the order of threads: the same ones read it. Four bytes at once: pieces of 16 would
// have the sums lie in fours of registers, of which the loops before have none to spare. Of more than 64 sums, 64 after the other
// 64: loads that are on their way together need a register each.
// arrived: for each tile, counters of its groups, then of groups of groups, and so on.
template <int THREADS, class Sums> __device__ __forceinline__ bool add_parts(Sums& sums, float* parts, unsigned* arrived) {
    if (gridDim.z == 1) return true;
    constexpr int FLOATS = sizeof(Sums) / 4, SLOT = FLOATS * THREADS;
    constexpr int AT_ONCE = FLOATS < 64 ? FLOATS : 64;
    static_assert(FLOATS % AT_ONCE == 0, "whole pieces");
    float(&sum)[FLOATS] = reinterpret_cast<float(&)[FLOATS]>(sums);
    const uint3 block = block_index_again();
    const long long tile = static_cast<long long>(block.y) * gridDim.x + block.x;
    int index = block.z, left = gridDim.z, counters = 0;  // left: sums that are added next
    for (int n = left; n > 1; counters += n) n = (n + GROUP - 1) / GROUP;
    parts += tile * left * SLOT;
    arrived += tile * counters;
    for (int apart = 1; left > 1; apart *= GROUP) {  // apart: of those sums, in slots
        float* to = parts + static_cast<long long>(index) * apart * SLOT + threadIdx.x;
        UNROLL
        for (int i = 0; i < FLOATS; i++) to[i * THREADS] = sum[i];
        const int group = index / GROUP, members = min(GROUP, left - group * GROUP);
        if (!last_to_arrive(arrived + group, members)) return false;
        UNROLL
        for (int i = 0; i < FLOATS; i++) sum[i] = 0.f;
        UNROLL
        for (int first = 0; first < FLOATS; first += AT_ONCE) {
            _Pragma("unroll 1")
            for (int i = 0; i < members; i++) {
                const long long slot = static_cast<long long>(group * GROUP + i) * apart;
                const float* from = parts + slot * SLOT + threadIdx.x;
                UNROLL
                for (int j = first; j < first + AT_ONCE; j++) sum[j] += load_shared_by_blocks(from + j * THREADS);
            }
        }
        index = group, left = (left + GROUP - 1) / GROUP;
        arrived += left;
    }
    return true;
}
