// Random numbers by Philox4x32-10 (Salmon et al., 2011), with the same bits as tinydiff.random.Generator: element j of a
// draw is made of word j % 4 of block offset + j / 4, and the block is a function of (seed, stream, step) and its own number
// alone. So any thread can make any element, and a kernel can make noise again where another would have to read it.

struct Draw {
    unsigned long long seed, offset;  // offset counts blocks of four words
    unsigned stream, step;
};

// `advance` (step, offset), null for none, is added to where the draw stands: a captured CUDA graph that is replayed for
// one step after another finds there, on the device, how far it has come.
__device__ __forceinline__ Draw draw_at(unsigned long long seed, unsigned stream, unsigned step, unsigned long long offset,
                                        const unsigned* advance) {
    if (advance) return {seed, offset + advance[1], stream, step + advance[0]};
    return {seed, offset, stream, step};
}

// The four words of block offset + block. A round multiplies two of the words to 64 bits, spreads the halves and mixes the
// key in; ten rounds are about 100 instructions, which a memory-bound kernel has time for.
__device__ __forceinline__ void philox(unsigned (&word)[4], unsigned long long block, const Draw& draw) {
    const unsigned long long counter = draw.offset + block;
    unsigned c0 = static_cast<unsigned>(counter), c1 = static_cast<unsigned>(counter >> 32), c2 = draw.step, c3 = draw.stream;
    unsigned k0 = static_cast<unsigned>(draw.seed), k1 = static_cast<unsigned>(draw.seed >> 32);
    UNROLL
    for (int round = 0; round < 10; round++) {
        const unsigned long long p0 = 0xD2511F53ull * c0, p1 = 0xCD9E8D57ull * c2;
        c0 = static_cast<unsigned>(p1 >> 32) ^ c1 ^ k0;
        c1 = static_cast<unsigned>(p1);
        c2 = static_cast<unsigned>(p0 >> 32) ^ c3 ^ k1;
        c3 = static_cast<unsigned>(p0);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    word[0] = c0;
    word[1] = c1;
    word[2] = c2;
    word[3] = c3;
}

// The words of elements j .. j + 3, where j is a multiple of 4, of eight such elements, or of element j alone.
__device__ __forceinline__ void words_of(unsigned (&word)[4], unsigned long long j, const Draw& draw) {
    philox(word, j / 4, draw);
}
__device__ __forceinline__ void words_of(unsigned (&word)[8], unsigned long long j, const Draw& draw) {
    UNROLL
    for (int k = 0; k < 2; k++) {
        unsigned four[4];
        philox(four, j / 4 + k, draw);
        UNROLL
        for (int i = 0; i < 4; i++) word[4 * k + i] = four[i];
    }
}
__device__ __forceinline__ void words_of(unsigned (&word)[1], unsigned long long j, const Draw& draw) {
    unsigned all[4];
    philox(all, j / 4, draw);
    const unsigned low = j & 1 ? all[1] : all[0], high = j & 1 ? all[3] : all[2];
    word[0] = j & 2 ? high : low;
}

// Uniform on [0, 1): the top 24 bits.
__device__ __forceinline__ float uniform(unsigned word) { return static_cast<float>(word >> 8) * 0x1p-24f; }

// A product that the compiler must not merge with a sum around it: noise that is made twice shall have the same bits twice.
__device__ __forceinline__ float rounded_product(float a, float b) {
#ifdef TD_HOST
    return a * b;
#else
    return __fmul_rn(a, b);
#endif
}

// Standard normals of elements 4 `block` .. 4 `block` + 3 by Box and Muller (1958): neighbouring words w0, w1 give r cos a
// and r sin a with r = sqrt(-2 ln u(w0)), a = 2 pi u(w1), u(w) = (w + 1/2) / 2^32.
__device__ __forceinline__ void normals(float (&eps)[4], unsigned long long block, const Draw& draw) {
    unsigned word[4];
    philox(word, block, draw);
    UNROLL
    for (int k = 0; k < 4; k += 2) {
        const float u0 = static_cast<float>(word[k]) * 0x1p-32f + 0x1p-33f;
        const float u1 = static_cast<float>(word[k + 1]) * 0x1p-32f + 0x1p-33f;
        const float radius = sqrt_(-2.f * log_(u0)), angle = 6.2831853f * u1;
        eps[k] = rounded_product(radius, cos_(angle));
        eps[k + 1] = rounded_product(radius, sin_(angle));
    }
}
