// What the collectives of a warp compute, from the operands of its 32 lanes to their results, by the fragment layouts of
// the PTX ISA ("Matrix fragments for mma.m16n8k16 / mma.m16n8k8", "ldmatrix").

#include <stdint.h>
#include <string.h>

namespace td {

struct Warp {
    int arrived = 0;
    Collective kind = SHUFFLE;
    Place place = {nullptr, 0};
    uint32_t operands[32][10], results[32][4];
};

inline float as_float(uint32_t u) {
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

inline void shuffle_lanes(Warp& warp) {  // operands: value, source lane
    for (auto& lane : warp.operands) warp.results[&lane - warp.operands][0] = warp.operands[lane[1]][0];
}

inline void load_matrices(Warp& warp) {  // operands: the address of a row, in two halves
    for (int lane = 0; lane < 32; lane++) {
        const int matrix = lane / 8, row = lane % 8;
        const uint64_t address = warp.operands[lane][0] | uint64_t{warp.operands[lane][1]} << 32;
        const char* elements = reinterpret_cast<const char*>(static_cast<uintptr_t>(address));
        for (int t = 0; t < 4; t++) memcpy(&warp.results[4 * row + t][matrix], elements + 4 * t, 4);
    }
}

inline void load_matrices_transposed(Warp& warp) {  // element (r, c) goes to where element (c, r) of the matrix would go
    for (int lane = 0; lane < 32; lane++) {
        const int matrix = lane / 8, r = lane % 8;
        const uint64_t address = warp.operands[lane][0] | uint64_t{warp.operands[lane][1]} << 32;
        const char* elements = reinterpret_cast<const char*>(static_cast<uintptr_t>(address));
        for (int c = 0; c < 8; c++) {
            char* pair = reinterpret_cast<char*>(&warp.results[4 * c + r / 2][matrix]);
            memcpy(pair + 2 * (r % 2), elements + 2 * c, 2);
        }
    }
}

// D = A B + C for fragments of A (16, K), B (K, 8), C (16, 8). With g = lane / 4, t = lane % 4, register i of A holds row
// g + 8 (i % 2), and `packed` elements side by side starting at column packed (t + 4 (i / 2)); B likewise, transposed.
template <int K, int packed, class Element> inline void multiply(Warp& warp, Element element) {
    float A[16][K], B[K][8];
    for (int lane = 0; lane < 32; lane++) {
        const int g = lane / 4, t = lane % 4;
        for (int e = 0; e < packed; e++) {
            for (int i = 0; i < 4; i++)
                A[g + 8 * (i % 2)][packed * (t + 4 * (i / 2)) + e] = element(warp.operands[lane][i], e);
            for (int i = 0; i < 2; i++) B[packed * (t + 4 * i) + e][g] = element(warp.operands[lane][4 + i], e);
        }
    }
    for (int lane = 0; lane < 32; lane++) {
        const int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; i++) {
            const int row = g + 8 * (i / 2), column = 2 * t + i % 2;
            float sum = 0;
            for (int k = 0; k < K; k++) sum += A[row][k] * B[k][column];
            sum += as_float(warp.operands[lane][6 + i]);
            memcpy(&warp.results[lane][i], &sum, 4);
        }
    }
}

inline void compute(Warp& warp) {
    switch (warp.kind) {
        case SHUFFLE: return shuffle_lanes(warp);
        case LDMATRIX: return load_matrices(warp);
        case LDMATRIX_TRANS: return load_matrices_transposed(warp);
        case MMA_BF16: return multiply<16, 2>(warp, [](uint32_t two, int e) { return as_float(two >> 16 * e << 16); });
        case MMA_FP16:
            return multiply<16, 2>(warp, [](uint32_t two, int e) { return half_to_float(two >> 16 * e & 0xffffu); });
        case MMA_TF32: return multiply<8, 1>(warp, [](uint32_t one, int) { return as_float(one & ~0x1fffu); });
    }
}

}  // namespace td
