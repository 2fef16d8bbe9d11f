// A kernel for test_tensor.py: where in shared memory the threads of a tile write and read a slice, in bytes.
#include "tinydiff.cuh"
#include "tensor.cuh"

template <class S, bool OF_A> __device__ void show(unsigned*& copied, unsigned*& read) {
    copied[threadIdx.x] = S::place(S::row(), S::chunk());
    const Fragments<S, OF_A> fragments(OF_A ? warp_row() : warp_column());
    for (int i = 0; i < 4; i++) read[THREADS * i + threadIdx.x] = fragments.at[i];
    copied += THREADS, read += 4 * THREADS;
}

// A and B along k, A and B across it: copied (4, THREADS), read (4, 4, THREADS).
KERNEL(addresses, THREADS)(unsigned* copied, unsigned* read) {
    show<Slice<ALONG_K, TILE_M>, true>(copied, read);
    show<Slice<ALONG_K, TILE_N>, false>(copied, read);
    show<Slice<ACROSS_K, TILE_M>, true>(copied, read);
    show<Slice<ACROSS_K, TILE_N>, false>(copied, read);
}
