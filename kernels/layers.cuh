// Matrices of several layers as parameters of one kernel: of up to LAYERS.
//
//     EACH(const float*, W)                         declares the parameters W0, W1, ..; null, or 0, for layers that are absent
//     const float* const Ws[LAYERS] = {ALL(W)};     names them all
//
// Such an array must only be indexed by what the compiler knows, as in a loop that is unrolled: then it stays where parameters are,
// and takes no memory.

constexpr int LAYERS = 24;

#define EACH(type, name)                                                                                                          \
    type name##0, type name##1, type name##2, type name##3, type name##4, type name##5, type name##6, type name##7,               \
    type name##8, type name##9, type name##10, type name##11, type name##12, type name##13, type name##14, type name##15,         \
    type name##16, type name##17, type name##18, type name##19, type name##20, type name##21, type name##22, type name##23
#define ALL(name)                                                                                                                 \
    name##0, name##1, name##2, name##3, name##4, name##5, name##6, name##7, name##8, name##9, name##10, name##11, name##12,       \
    name##13, name##14, name##15, name##16, name##17, name##18, name##19, name##20, name##21, name##22, name##23

// What layer `layer` has.
template <class T> __device__ __forceinline__ T pick(const T (&all)[LAYERS], int layer) {
    T found = all[0];
    UNROLL
    for (int i = 1; i < LAYERS; i++)
        if (i == layer) found = all[i];
    return found;
}

// The tile of a block whose layers stand side by side: its layer's matrix, of how many columns, which layer that is, and the tile's
// first column. In shared memory, since loops of products have no registers to spare.
template <class T> struct Side {
    const T* B;
    int columns, layer, first;
};

// The tiles of all layers are counted on, layer by layer; they are `width` columns wide, the last of a layer may be less. All
// threads must come.
template <class T>
__device__ __forceinline__ void find_side(Side<T>& side, int tile, int width, const T* const (&Bs)[LAYERS],
                                          const int (&columns)[LAYERS]) {
    if ((threadIdx.x | threadIdx.y) == 0) {
        UNROLL
        for (int i = 0; i < LAYERS; i++) {
            const int tiles = (columns[i] + width - 1) / width;
            if (tile >= 0 && tile < tiles) side = {Bs[i], columns[i], i, tile * width};
            tile -= tiles;
        }
    }
    __syncthreads();
}

// The products of a sum over layers, A_i B_i, in shared memory, where they can be looked up: all threads must come.
template <class T> struct Term {
    const T *A, *B;
    int length;  // of the axis that is summed over
};

template <class T>
__device__ __forceinline__ void list_terms(Term<T> (&terms)[LAYERS], const T* const (&As)[LAYERS], const T* const (&Bs)[LAYERS],
                                           const int (&lengths)[LAYERS]) {
    const int i = threadIdx.x;
    if (i < LAYERS) terms[i] = {pick(As, i), pick(Bs, i), pick(lengths, i)};
    __syncthreads();
}

// Where slice `slice` of the axes of all terms lies, which are walked along one after the other in whole slices of `depth` entries:
// the term, and which slice of its axis.
template <class T> __device__ __forceinline__ int2 find_slice(const Term<T> (&terms)[LAYERS], int slice, int depth) {
    int term = 0, slices;
    while (slice >= (slices = (terms[term].length + depth - 1) / depth)) slice -= slices, term++;
    return make_int2(term, slice);
}
