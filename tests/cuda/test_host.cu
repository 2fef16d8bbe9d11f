// Kernels for test_host.py: what the host's stand-in for CUDA must do, and mistakes that it must report.
#include "tinydiff.cuh"
#ifndef WAIT
#define WAIT 0
#endif
#define THREAD (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z))

KERNEL(indices, 64)(int* Y) {
    const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    const int thread = block * blockDim.x * blockDim.y * blockDim.z + THREAD;
    const int values[12] = {(int)threadIdx.x, (int)threadIdx.y, (int)threadIdx.z, (int)blockIdx.x, (int)blockIdx.y,
        (int)blockIdx.z, (int)blockDim.x, (int)blockDim.y, (int)blockDim.z, (int)gridDim.x, (int)gridDim.y, (int)gridDim.z};
    for (int i = 0; i < 12; i++) Y[12 * thread + i] = values[i];
}
KERNEL(values, 1)(float* Y, float a, int b, unsigned c, unsigned long long d, const unsigned char* e, const float* f) {
    Y[0] = a; Y[1] = b; Y[2] = c; Y[3] = d == 0x123456789abcdefull; Y[4] = e[1]; Y[5] = f == nullptr;
}
KERNEL(reverse, 256)(const float* X, float* Y, int n, int barrier) {  // in place through shared memory, again and again
    SHARED(float, tile, [256]);
    float x = X[blockIdx.x * 256 + threadIdx.x];
    for (int i = 0; i < n; i++) {
        tile[threadIdx.x] = x;
        __syncthreads();
        x = tile[255 - threadIdx.x] + 1;
        if (barrier) __syncthreads();
    }
    Y[blockIdx.x * 256 + threadIdx.x] = x;
}
KERNEL(poison, 32)(float* Y, int* Z) {
    SHARED(float, tile, [2][32]);
    SHARED(int, one, );
    DYNAMIC_SHARED(float, dynamic);
    Y[32 * blockIdx.x + threadIdx.x] = tile[1][threadIdx.x] + dynamic[threadIdx.x];
    if (threadIdx.x == 0) Z[blockIdx.x] = one;
    __syncthreads();
    tile[1][threadIdx.x] = dynamic[threadIdx.x] = one = 1;  // must not reach the next block
}
KERNEL(shuffles, 64)(const float* X, float* Y, int* Z, int mask, int distance) {
    const float x = X[threadIdx.x];
    Y[threadIdx.x] = shuffle_xor(x, mask);
    Y[64 + threadIdx.x] = shuffle_down(x, distance);
    Y[128 + threadIdx.x] = shuffle(x, (3 * threadIdx.x + 1) % 32);
    Y[192 + threadIdx.x] = warp_sum(x);
    Y[256 + threadIdx.x] = warp_max(x);
    Z[threadIdx.x] = shuffle_xor((int)threadIdx.x - 100, mask);
}
KERNEL(copies, 32)(const float* X, float* Y, int n) {  // two groups; the second is waited for later
    SHARED(float, a, [32 * 4]);
    SHARED(float, b, [32]);
    const int t = threadIdx.x;
    for (int i = 0; i < 4; i++) a[4 * t + i] = b[t] = 7;
    cp_async16(a + 4 * t, X + 4 * t, 4 * t < n);
    cp_commit();
    cp_async4(b + t, X + t, t < n);
    cp_commit();
    for (int i = 0; i < 4; i++) Y[4 * t + i] = a[4 * t + i];
    cp_wait<1>();
    for (int i = 0; i < 4; i++) Y[128 + 4 * t + i] = a[4 * t + i];
    Y[256 + t] = b[t];
    cp_wait<WAIT>();
    Y[288 + t] = b[t];
}
KERNEL(matrices, 32)(const unsigned short* X, unsigned* Y, int transposed) {
    SHARED(unsigned short, tile, [32][8]);
    for (int i = 0; i < 8; i++) tile[threadIdx.x][i] = X[8 * threadIdx.x + i];
    __syncthreads();
    unsigned r[4];
    if (transposed)
        ldmatrix_x4_trans(r, tile[threadIdx.x]);
    else
        ldmatrix_x4(r, tile[threadIdx.x]);
    for (int i = 0; i < 4; i++) Y[4 * threadIdx.x + i] = r[i];
}
KERNEL(product_16_bits, 32)(const float* A, const float* B, float* D, int fp16) {  // (16, 16) (16, 8) + D
    const int g = threadIdx.x / 4, t = threadIdx.x % 4;
    const auto pack = [&](float low, float high) { return fp16 ? pack_fp16(low, high) : pack_bf16(low, high); };
    unsigned a[4], b[2];
    for (int i = 0; i < 4; i++) {
        const float* row = A + 16 * (g + 8 * (i % 2)) + 2 * t + 8 * (i / 2);
        a[i] = pack(row[0], row[1]);
    }
    for (int i = 0; i < 2; i++) b[i] = pack(B[8 * (2 * t + 8 * i) + g], B[8 * (2 * t + 8 * i + 1) + g]);
    float d[4];
    for (int i = 0; i < 4; i++) d[i] = D[8 * (g + 8 * (i / 2)) + 2 * t + i % 2];
    if (fp16)
        mma_fp16(d, a, b);
    else
        mma_bf16(d, a, b);
    for (int i = 0; i < 4; i++) D[8 * (g + 8 * (i / 2)) + 2 * t + i % 2] = d[i];
}
KERNEL(product_tf32, 32)(const float* A, const float* B, float* D) {  // (16, 8) (8, 8) + D
    const int g = threadIdx.x / 4, t = threadIdx.x % 4;
    unsigned a[4], b[2];
    for (int i = 0; i < 4; i++) a[i] = __float_as_uint(A[8 * (g + 8 * (i % 2)) + t + 4 * (i / 2)]);  // all bits
    for (int i = 0; i < 2; i++) b[i] = to_tf32(B[8 * (t + 4 * i) + g]);
    float d[4];
    for (int i = 0; i < 4; i++) d[i] = D[8 * (g + 8 * (i / 2)) + 2 * t + i % 2];
    mma_tf32(d, a, b);
    for (int i = 0; i < 4; i++) D[8 * (g + 8 * (i / 2)) + 2 * t + i % 2] = d[i];
}
KERNEL(rounding, 32)(const float* X, unsigned* Y, float* Z) {
    const int i = 32 * blockIdx.x + threadIdx.x;
    const float x = X[i];
    const unsigned bf16 = pack_bf16(x, -x), fp16 = pack_fp16(x, -x);
    Y[3 * i] = bf16;
    Y[3 * i + 1] = fp16;
    Y[3 * i + 2] = to_tf32(x);
    const float z[4] = {low_bf16(bf16), high_bf16(bf16), low_fp16(fp16), high_fp16(fp16)};
    for (int k = 0; k < 4; k++) Z[4 * i + k] = z[k];
}
KERNEL(hand_on, 64)(const float* X, float* parts, float* Y, unsigned* counter, int fenced) {  // Y = the sum over all blocks
    SHARED(unsigned, before, [1]);
    parts[64 * blockIdx.x + threadIdx.x] = X[64 * blockIdx.x + threadIdx.x];
    if (threadIdx.x < fenced) fence();
    __syncthreads();
    if (threadIdx.x == 0) before[0] = count(counter);
    __syncthreads();
    if (before[0] < gridDim.x - 1) return;
    fence();
    float sum[4] = {};
    for (int block = 0; block < gridDim.x; block++) {
        const float4 x = load_shared_by_blocks(reinterpret_cast<const float4*>(parts + 64 * block) + threadIdx.x % 16);
        sum[0] += x.x, sum[1] += x.y, sum[2] += x.z, sum[3] += x.w;
    }
    for (int i = 0; i < 4; i++) Y[4 * (threadIdx.x % 16) + i] = sum[i];
}
KERNEL(functions, 32)(const float* X, float* Y) {
    const float x = X[threadIdx.x];
    const float y[7] = {exp_(x), log_(x), sqrt_(x), rsqrt_(x), tanh_(x), sin_(x), cos_(x)};
    for (int i = 0; i < 7; i++) Y[7 * threadIdx.x + i] = y[i];
}

// Mistakes, chosen by `n`; X and Y have 32 elements.
KERNEL(mistakes, 96)(const float* __restrict__ X, float* __restrict__ Y, int n, int which) {
    SHARED(float, tile, [4][33]);
    SHARED(float, line, [32]);
    DYNAMIC_SHARED(float, dynamic);
    const int t = threadIdx.x;
    float v = 0;
    tile[0][t % 32] = line[t % 32] = 0;
    if (which == 0) v = X[t + n];
    if (which == 1) Y[t + n] = 1;
    if (which == 2) const_cast<float*>(X)[t] = 1;
    if (which == 3) tile[1][t + n] = 1;
    if (which == 4) *(&line[0] + t + n) = 1;
    if (which == 5) *(float2*)(Y + n) = make_float2(1, 1);
    if (which == 6) v = 1 / n;
    if (which == 7) v = n * 100000 * 1000000;
    if (which == 8) v = 1 << n;
    if (which == 9) cp_async16(line + 4 * (t % 8), X + n, true);
    if (which == 10) cp_async4(Y + t, X + t, true);
    if (which == 11) { unsigned r[4]; ldmatrix_x4(r, &line[0] + n); }
    if (which == 12) { unsigned r[4]; ldmatrix_x4(r, X); }
    if (which == 13) v = dynamic[t + n];
    if (which == 14) dynamic[t + n] = 1;
    if (which == 16) { unsigned r[4]; ldmatrix_x4_trans(r, &line[0] + n); }
    if (which == 17) { unsigned r[4]; ldmatrix_x4_trans(r, X); }
    if (which == 15) v = *(const float*)((const char*)X + ((long long)n << 46));
    Y[t % 32] = v;
}
KERNEL(large, 32)(float* Y, int n) {
    volatile float big[30000];
    for (int i = 0; i < 30000; i++) big[i] = n;
    Y[threadIdx.x] = big[n];
}
KERNEL(ends_early, 64)(float* Y, int n) {
    if (threadIdx.x < n) return;
    __syncthreads();
    Y[threadIdx.x] = 1;
}
KERNEL(two_barriers, 64)(float* Y, int n) {
    if (threadIdx.x < n) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    Y[threadIdx.x] = 1;
}
KERNEL(two_shuffles, 64)(float* Y, int n) {
    if (threadIdx.x < n) Y[threadIdx.x] = warp_sum(1.f);
    else Y[threadIdx.x] = warp_max(1.f) +
        warp_sum(1.f);
}
KERNEL(shuffle_or_barrier, 64)(float* Y, int n) {
    if (threadIdx.x < n) Y[threadIdx.x] = warp_sum(1.f);
    else __syncthreads();
}
KERNEL(many_barriers, 256)(float* Y, int n) {
    SHARED(float, tile, [256]);
    float sum = 0;
    for (int i = 0; i < n / 2; i++) {
        tile[threadIdx.x] = i;
        __syncthreads();
        sum += tile[threadIdx.x ^ 255];
        __syncthreads();
    }
    if (threadIdx.x == 0) Y[blockIdx.x] = sum;
}
