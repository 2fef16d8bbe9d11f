// The loss scale of a training step in fp16, moved where it lies, so that the host need not wait for a step to know the next.

#include "tinydiff.cuh"

// state: the scale, and how many steps in a row were good with it. `factor` is what clip_scale (optimizer.cu) made of the
// gradients of this step: NaN where they, or the loss, are not finite; then adam changes nothing. That is an overflow, and
// the scale is halved, or, where it is `least` already, a failure: its step goes to `failed`, and from then on nothing
// changes. After `patience` good steps the scale is doubled, up to `most`. One thread does it all.
KERNEL(move_loss_scale, 32)(float* state, float* factor, const unsigned* clock, unsigned* failed, float least, float most,
                            int patience) {
    if (threadIdx.x) return;
    const bool good = factor[0] == factor[0];
    if (failed[0]) {
        factor[0] = INFINITY - INFINITY;
    } else if (good) {
        state[1] += 1.f;
        if (state[1] < patience) return;
        state[0] = fminf(2.f * state[0], most);
        state[1] = 0.f;
    } else if (state[0] > least) {
        state[0] = fmaxf(state[0] / 2.f, least);
        state[1] = 0.f;
    } else {
        failed[0] = clock[0];
    }
}
