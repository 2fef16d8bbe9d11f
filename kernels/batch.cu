// What a step of training begins with: the step's row of what was computed ahead, and its batch of images.
//
// A loop whose steps differ in a few numbers alone (which images, which times, how long a step of Adam is) can be launched
// again and again without a word from the host, as a CUDA graph, if the kernels find these numbers on the device. The host
// writes the rows of many steps at once into a ring; `tick` counts the steps and lays the row of the present one where all
// other kernels look for it, at an address that never changes.

#include "tinydiff.cuh"
#include "elements.cuh"

#define THREADS 256

// clock[0], the number of the step, goes on by one, and `now` becomes row clock[0] % rows of `ring` (rows, words). One block:
// all of its threads have read the clock before one of them changes it. clock[1] is for draws (philox.cuh) and stays.
KERNEL(tick, THREADS)(unsigned* clock, const unsigned* ring, unsigned* now, int words, int rows) {
    const unsigned step = clock[0] + 1;
    __syncthreads();
    if (threadIdx.x == 0) clock[0] = step;
    ring += static_cast<size_t>(step % rows) * words;
    for (int i = threadIdx.x; i < words; i += THREADS) now[i] = ring[i];
}

// X (n / (height width channels), height, width, channels): image n of X is image indices[n] of a data set of bytes k, as
// k / 127.5 - 1, from right to left where `mirrored` (null: nowhere) says so. Written as (2 k - 255) / 255, the division is
// the only rounding, as in tinydiff/data/pixels.py. A thread has four neighbours in X, which it writes at once; the bytes
// are a quarter of the traffic and are read one by one. 5 bytes an element.
KERNEL(gather_batch, THREADS)(const unsigned char* images, const long long* indices, const unsigned char* mirrored, float* X,
                              int n, int height, int width, int channels) {
    const int i = 4 * (blockIdx.x * THREADS + threadIdx.x), size = height * width * channels;
    if (i >= n) return;
    float x[4] = {};
    UNROLL
    for (int k = 0; k < 4; k++) {
        const int image = (i + k) / size, at = (i + k) % size;
        if (k >= n - i) break;
        const int pixel = at / channels, column = pixel % width;
        const int to_other_side = mirrored && mirrored[image] ? (width - 1 - 2 * column) * channels : 0;
        x[k] = (2.f * images[indices[image] * size + at + to_other_side] - 255.f) / 255.f;
    }
    store_up_to(X, i, n, x);
}
