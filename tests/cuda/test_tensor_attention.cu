// A kernel for test_tensor_attention.py: where in shared memory the threads write and read slices, and the tile that they hold, in
// bytes.
#include "tensor_attention.cu"

template <class S, bool OF_A> __device__ void show(unsigned*& copied, unsigned*& read) {
    copied[threadIdx.x] = S::place(S::row(), S::chunk());
    const Fragments<S, OF_A> fragments(OF_A ? warp_row() : warp_column());
    for (int i = 0; i < 4; i++) read[THREADS * i + threadIdx.x] = fragments.at[i];
    copied += THREADS, read += 4 * THREADS;
}

// copied (3, THREADS), read (3, 4, THREADS), written (32, THREADS).
KERNEL(addresses, THREADS)(unsigned* copied, unsigned* read, unsigned* written) {
    show<Block, true>(copied, read);
    show<Others, false>(copied, read);
    show<Streaming, false>(copied, read);
    for (int i = 0; i < 32; i++) written[THREADS * i + threadIdx.x] = held_at(row_of(i / 16, i / 8 % 2), column_of(i % 8));
}
