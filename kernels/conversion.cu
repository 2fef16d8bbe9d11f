// Arrays of float32 as 16 bits, and back: where a network's maps of 16 bits begin and end (precision.cuh tells of the types).
//
// Bound by memory: 6 bytes an element, read once and written once. A thread has eight elements, which are 16 bytes of 16 bits and
// twice 16 of float32.

#include "tinydiff.cuh"
#include "elements.cuh"

#define THREADS 256

// half (n,) = x (n,), rounded to nearest even.
KERNEL(to_half, THREADS)(const float* x, Element* half, unsigned long long n) {
    const unsigned long long i = 8 * (static_cast<unsigned long long>(blockIdx.x) * THREADS + threadIdx.x);
    if (i >= n) return;
    const int left = static_cast<int>(min(n - i, 8ull));
    float v[2][4], all[8];
    load_up_to(v[0], x + i, 0, left);
    load_up_to(v[1], x + i, 4, left);
    UNROLL
    for (int k = 0; k < 8; k++) all[k] = v[k / 4][k % 4];
    store_up_to(half + i, 0, left, all);
}

// x (n,) = half (n,).
KERNEL(from_half, THREADS)(const Element* half, float* x, unsigned long long n) {
    const unsigned long long i = 8 * (static_cast<unsigned long long>(blockIdx.x) * THREADS + threadIdx.x);
    if (i >= n) return;
    const int left = static_cast<int>(min(n - i, 8ull));
    float all[8], v[2][4];
    load_up_to(all, half + i, 0, left);
    UNROLL
    for (int k = 0; k < 8; k++) v[k / 4][k % 4] = all[k];
    store_up_to(x + i, 0, left, v[0]);
    store_up_to(x + i, 4, left, v[1]);
}
