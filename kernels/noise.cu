// Noise that is made where it is needed (philox.cuh): draws, x_t, the training loss and the steps back of sampling.
//
// A thread takes elements 4 i .. 4 i + 3, which is one block of Philox, so an element's noise does not depend on how a kernel
// is launched, and q_sample and mse_loss of one step see the same eps although it is never stored. Arrays hold images of
// `size` elements each, one after the other; what differs from image to image is given per image.

#include "tinydiff.cuh"
#include "philox.cuh"
#include "elements.cuh"

#define THREADS 256

enum Target { EPS, X0, V };  // what mse_loss compares a prediction with

// The first of this thread's four elements.
__device__ __forceinline__ int first_element() { return 4 * (blockIdx.x * THREADS + threadIdx.x); }

// The image in which an element is; `next` goes to the element after it without a division.
struct Place {
    int image, inside, size;
    __device__ Place(int element, int size) : image(element / size), inside(element % size), size(size) {}
    __device__ void next() {
        if (++inside == size) {
            inside = 0;
            image++;
        }
    }
};

// --- Draws. Writes 4 bytes an element and reads nothing.

KERNEL(random_words, THREADS)(unsigned* words, int n, unsigned long long seed, unsigned stream, unsigned step,
                              unsigned long long offset, const unsigned* advance) {
    const int i = first_element();
    if (i >= n) return;
    unsigned word[4];
    philox(word, i / 4, draw_at(seed, stream, step, offset, advance));
    UNROLL
    for (int k = 0; k < 4; k++)
        if (k < n - i) words[i + k] = word[k];
}

KERNEL(random_uniform, THREADS)(float* x, int n, unsigned long long seed, unsigned stream, unsigned step,
                                unsigned long long offset, const unsigned* advance) {
    const int i = first_element();
    if (i >= n) return;
    unsigned word[4];
    philox(word, i / 4, draw_at(seed, stream, step, offset, advance));
    const float u[4] = {uniform(word[0]), uniform(word[1]), uniform(word[2]), uniform(word[3])};
    store_up_to(x, i, n, u);
}

KERNEL(random_normal, THREADS)(float* x, int n, unsigned long long seed, unsigned stream, unsigned step,
                               unsigned long long offset, const unsigned* advance) {
    const int i = first_element();
    if (i >= n) return;
    float eps[4];
    normals(eps, i / 4, draw_at(seed, stream, step, offset, advance));
    store_up_to(x, i, n, eps);
}

// --- x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps (Ho et al., 2020, eq. 4): 8 bytes an element.

KERNEL(q_sample, THREADS)(const float* x0, const float* sqrt_alpha_bar, const float* sqrt_one_minus, float* xt, int n,
                          int size, unsigned long long seed, unsigned stream, unsigned step, unsigned long long offset,
                          const unsigned* advance) {
    const int i = first_element();
    if (i >= n) return;
    float x[4], eps[4];
    load_up_to(x, x0, i, n);
    normals(eps, i / 4, draw_at(seed, stream, step, offset, advance));
    Place at(i, size);
    UNROLL
    for (int k = 0; k < 4; k++) {
        if (k < n - i) x[k] = sqrt_alpha_bar[at.image] * x[k] + sqrt_one_minus[at.image] * eps[k];
        at.next();
    }
    store_up_to(xt, i, n, x);
}

// --- The loss: mean over elements of weight (P - target)^2, with the target eps, x_0 or
// v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0 (Salimans and Ho, 2022), and its derivative
//
//     L_P = 2 weight (P - target) / n
//
// in one pass: 8 bytes an element, 12 where the target takes x_0. A null `weight` is 1. The sum has two stages, both in a
// fixed order: a sum for each block, and their sum (sum_blocks), so that the loss has the same bits each time.

KERNEL(mse_loss, THREADS)(const float* P, const float* x0, const float* sqrt_alpha_bar, const float* sqrt_one_minus,
                          const float* weight, float* L_P, float* block_sums, int target, int n, int size,
                          unsigned long long seed, unsigned stream, unsigned step, unsigned long long offset,
                          const unsigned* advance) {
    const int i = first_element();
    float sum = 0.f;
    if (i < n) {
        float p[4], x[4] = {}, eps[4] = {};
        load_up_to(p, P, i, n);
        if (target != EPS) load_up_to(x, x0, i, n);
        if (target != X0) normals(eps, i / 4, draw_at(seed, stream, step, offset, advance));
        Place at(i, size);
        UNROLL
        for (int k = 0; k < 4; k++) {
            if (k < n - i) {
                float aim = target == EPS ? eps[k] : x[k];
                if (target == V) aim = sqrt_alpha_bar[at.image] * eps[k] - sqrt_one_minus[at.image] * x[k];
                const float difference = p[k] - aim, w = weight ? weight[at.image] : 1.f;
                sum += w * difference * difference;
                p[k] = 2.f / n * w * difference;
            }
            at.next();
        }
        store_up_to(L_P, i, n, p);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) block_sums[blockIdx.x] = sum;
}

KERNEL(sum_blocks, THREADS)(const float* block_sums, int blocks, float factor, float* total) {
    float sum = 0.f;
    for (int i = threadIdx.x; i < blocks; i += THREADS) sum += block_sums[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) total[0] = factor * sum;
}

// --- A step back, for every sampler: with the model's output o for x_t,
//
//     x_0 = c[0] x_t + c[1] o                      what the output stands for, whether it is eps, x_0 or v; clipped or not
//     D = x_0 + c[7] (x_0 - x_0 of the step before)                                       DPM-Solver++(2M); otherwise x_0
//     x_{t-1} = c[2] D + c[3] x_t + sigma z        z fresh noise
//
// sigma is c[4]; where the variance is learned, the model returns images of twice the channels, and with v from the second
// half sigma = c[4] exp((c[5] + c[6] (v + 1)) / 2). No noise is made where c[4] is 0. The coefficients are read from the
// device, so that a captured CUDA graph serves all steps. 12 bytes an element, 4 more for each of the two optional arrays.

KERNEL(reverse_step, THREADS)(const float* output, const float* xt, const float* x0_before, const float* c, float* x_next,
                              float* x0, int n, int channels, int learned, int clip, unsigned long long seed,
                              unsigned stream, unsigned step, unsigned long long offset, const unsigned* advance) {
    const int i = first_element();
    if (i >= n) return;
    float o[4], v[4] = {}, x[4], before[4] = {}, z[4] = {};
    load_up_to(x, xt, i, n);
    if (learned) {
        Place at(i, channels);  // here a pixel takes the part of the image
        UNROLL
        for (int k = 0; k < 4; k++) {
            const size_t j = static_cast<size_t>(at.image) * 2 * channels + at.inside;
            o[k] = k < n - i ? output[j] : 0.f;
            v[k] = k < n - i ? output[j + channels] : 0.f;
            at.next();
        }
    } else {
        load_up_to(o, output, i, n);
    }
    if (x0_before) load_up_to(before, x0_before, i, n);
    if (c[4] != 0.f) normals(z, i / 4, draw_at(seed, stream, step, offset, advance));
    UNROLL
    for (int k = 0; k < 4; k++) {
        float image = c[0] * x[k] + c[1] * o[k];
        if (clip) image = image < -1.f ? -1.f : image > 1.f ? 1.f : image;  // NaN stays NaN, which fminf would hide
        const float D = x0_before ? image + c[7] * (image - before[k]) : image;
        const float sigma = learned ? c[4] * exp_((c[5] + c[6] * (v[k] + 1.f)) / 2.f) : c[4];
        x[k] = c[2] * D + c[3] * x[k] + sigma * z[k];
        o[k] = image;
    }
    store_up_to(x_next, i, n, x);
    if (x0) store_up_to(x0, i, n, o);
}
