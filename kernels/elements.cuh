// What kernels share that go through arrays element by element: reading and writing four at a time, and sums over a block.

// One or four neighbouring floats; four of them at an address that is a multiple of 16 bytes.
__device__ __forceinline__ void load(float (&v)[1], const float* p) { v[0] = *p; }
__device__ __forceinline__ void store(float* p, const float (&v)[1]) { *p = v[0]; }
__device__ __forceinline__ void load(float (&v)[4], const float* p) {
    const float4 q = *reinterpret_cast<const float4*>(p);
    v[0] = q.x;
    v[1] = q.y;
    v[2] = q.z;
    v[3] = q.w;
}
__device__ __forceinline__ void store(float* p, const float (&v)[4]) {
    *reinterpret_cast<float4*>(p) = make_float4(v[0], v[1], v[2], v[3]);
}

__device__ __forceinline__ bool aligned(const void* p) { return reinterpret_cast<size_t>(p) % 16 == 0; }

// Elements i .. i + 3 of an array of n, i a multiple of 4: in one piece where the array lies for it, otherwise one by one.
// Past the end, zeros are read and nothing is written.
__device__ __forceinline__ void load4(float (&v)[4], const float* x, int i, int n) {
    if (aligned(x) && n - i >= 4) return load(v, x + i);
    UNROLL
    for (int k = 0; k < 4; k++) v[k] = k < n - i ? x[i + k] : 0.f;
}
__device__ __forceinline__ void store4(float* x, int i, int n, const float (&v)[4]) {
    if (aligned(x) && n - i >= 4) return store(x + i, v);
    UNROLL
    for (int k = 0; k < 4; k++)
        if (k < n - i) x[i + k] = v[k];
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
