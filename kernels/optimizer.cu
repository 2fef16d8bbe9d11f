// Adam, the moving average of the weights and clipping, over one flat array that holds all weights of a network.
//
// With everything in one array a training step takes three launches, however many weights there are, and what changes from
// step to step is read from the device, so that a captured CUDA graph can be replayed:
//
//     squared_norm     |g|^2, a sum for each block                    4 bytes an element
//     clip_scale       their sum and from it the scale of clipping
//     adam             weights, moments and average                   36 bytes an element (28 without an average)
//
// Where the network's maps have 16 bits, adam also writes the weights as the products take them (PRECISION, precision.cuh): 2
// bytes an element more, where a pass of its own would read 4 and write 2.
//
// Loss scale. Gradients of maps in fp16 are multiplied by a number S, without which the smallest would round to 0 (Micikevicius
// et al., 2018, section 3.2): the backward pass begins with S instead of 1. S is a power of two, so it changes no digit. If one
// becomes infinite on its way, so does |g|^2. This costs no pass over the gradients: clip_scale, which sees |g|^2, divides it
// by S^2, and the scale of clipping by S. It has adam leave out a step whose gradient is not finite, and moves S.

#include "tinydiff.cuh"
#include "elements.cuh"

#define THREADS 256

// Each block adds up a run of elements of its own: first threads, each over its elements, then lanes, then warps.
KERNEL(squared_norm, THREADS)(const float* g, int n, int per_block, float* block_sums) {
    const int start = blockIdx.x * per_block, length = min(per_block, n - start);  // per_block is a multiple of 4
    float sum[4] = {}, x[4];
    for (int i = 4 * threadIdx.x; i < length; i += 4 * THREADS) {
        load_up_to(x, g + start, i, length);
        UNROLL
        for (int k = 0; k < 4; k++) sum[k] += x[k] * x[k];
    }
    const float total = block_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
    if (threadIdx.x == 0) block_sums[blockIdx.x] = total;
}

// loss_scale (2,): S, and how many steps in a row were good with it. S is halved after a step that is not finite, down to `least`,
// and doubled after `patience` good ones, up to `most`.
__device__ __forceinline__ void move(float* loss_scale, bool overflow, float most, int patience) {
    const float S = loss_scale[0], good = overflow ? 0.f : loss_scale[1] + 1.f;
    const bool doubled = good >= patience;
    loss_scale[0] = overflow ? S * 0.5f : doubled ? fminf(2.f * S, most) : S;
    loss_scale[1] = doubled ? 0.f : good;
}

// |g|^2, and by what to multiply g so that its norm is at most max_norm: 1 where it is already, NaN where the norm is not
// finite, for then no length would make it right, and adam shall change nothing. So it is where one of the losses is not
// finite, and where a kernel noted a wrong index in `wrong`. These are copied behind |g|^2, so that the host reads all in one
// piece, and then S where there is a loss scale. `scale` may be null, as may losses, wrong and loss_scale.
//
// Where the norm or a loss is not finite while S is above `least`, that is an overflow: the step is left out, and the next one has a
// smaller S. Otherwise it is a failure.
//
// A loop that does not wait for the host after each step (philox.cuh tells of its clock) finds out later what happened. It
// gives `report` one row for each of the last `rows` steps. The first step that fails leaves its number in `failed`, and as
// long as that is not 0 nothing changes any more: the steps that were already on their way cannot spoil the weights.
KERNEL(clip_scale, THREADS)(const float* block_sums, int blocks, float max_norm, const float* losses, int count,
                            const int* wrong, const unsigned* clock, int rows, unsigned* failed, float* report,
                            float* scale, float* loss_scale, float least, float most, int patience) {
    float sum = 0.f;
    for (int i = threadIdx.x; i < blocks; i += THREADS) sum += block_sums[i];
    sum = block_sum(sum);
    if (threadIdx.x) return;
    const float S = loss_scale ? loss_scale[0] : 1.f;
    if (clock) report += clock[0] % rows * (2 + count + (loss_scale ? 1 : 0));
    sum = sum / S / S;
    report[0] = sum;
    float norm = sqrt_(sum);
    if (losses || loss_scale) report[1] = wrong ? wrong[0] : 0;
    if (wrong && wrong[0]) norm = INFINITY;
    for (int i = 0; i < count; i++) {
        report[2 + i] = losses[i];
        if (!(losses[i] - losses[i] == 0.f)) norm = losses[i] - losses[i];
    }
    const bool overflow = loss_scale && S > least && !(norm < INFINITY) && !(wrong && wrong[0]);
    if (loss_scale) report[2 + count] = S;
    if (failed && !failed[0] && !(norm < INFINITY) && !overflow) failed[0] = clock[0];
    if (failed && failed[0]) norm = INFINITY;
    else if (loss_scale && (norm < INFINITY || overflow)) move(loss_scale, overflow, most, patience);
    if (scale) scale[0] = norm < INFINITY ? (max_norm < norm ? max_norm / norm : 1.f) / S : norm - norm;
}

// Adam (Kingma and Ba, 2015, algorithm 1) with t the number of the update:
//
//     m = beta1 m + (1 - beta1) g,    v = beta2 v + (1 - beta2) g^2
//     p = p - lr (m / c1) / (sqrt(v) / c2 + eps),    c1 = 1 - beta1^t,    c2 = sqrt(1 - beta2^t)
//
// as p - (lr c2 / c1) m / (sqrt(v) + eps c2). g is the gradient times the scale of clipping, plus weight_decay p; decay that
// is decoupled from the gradient (AdamW; Loshchilov and Hutter, 2019, algorithm 2) multiplies p by 1 - lr weight_decay
// instead. Then the average takes its share of the new weights: ema = ema + (1 - d) (p - ema).
//
// scalars, on the device: the scale of clipping; lr c2 / c1; eps c2; what multiplies p; 1 - d. Where the first is NaN nothing
// happens. 1 - beta is given beside beta because in float32 the difference would be rounded. `half` receives p, rounded; it may
// be null, as may ema.
KERNEL(adam, THREADS)(float* p, const float* g, float* m, float* v, float* ema, Element* half, const float* scalars, int n,
                      float beta1, float one_minus_beta1, float beta2, float one_minus_beta2, float weight_decay) {
    const int i = 4 * (blockIdx.x * THREADS + threadIdx.x);
    if (i >= n || scalars[0] != scalars[0]) return;
    const float scale = scalars[0], rate = scalars[1], eps = scalars[2], kept = scalars[3], share = scalars[4];
    float weight[4], gradient[4], first[4], second[4], average[4] = {};
    load_up_to(weight, p, i, n);
    load_up_to(gradient, g, i, n);
    load_up_to(first, m, i, n);
    load_up_to(second, v, i, n);
    if (ema) load_up_to(average, ema, i, n);
    UNROLL
    for (int k = 0; k < 4; k++) {
        const float d = scale * gradient[k] + weight_decay * weight[k];
        first[k] = beta1 * first[k] + one_minus_beta1 * d;
        second[k] = beta2 * second[k] + one_minus_beta2 * (d * d);
        weight[k] = kept * weight[k] - rate * (first[k] / (sqrt_(second[k]) + eps));
        average[k] += share * (weight[k] - average[k]);
    }
    store_up_to(p, i, n, weight);
    store_up_to(m, i, n, first);
    store_up_to(v, i, n, second);
    if (ema) store_up_to(ema, i, n, average);
    if (half) store_up_to(half, i, n, weight);
}
