// Layers of a small multilayer perceptron (MLP), forward and backward, evaluated for a packet of 32 samples.
#pragma once
#include "mma.cuh"
#include "platform.cuh"

#if ON_GPU

// A warp holds 16 M samples: lane (g, t) has, of samples g, g + 8, .., neurons 8 p + 2 t and the next one as pair
// [p][sample] (mma.cuh). The outputs of a layer have the same form, so that activations never leave registers. Weights
// are fragments of 32 lanes times two pairs, ordered first by inputs, then by outputs.
#define FRAGMENT 64

// Computes a layer: calls emit(p, m, c) with the sums c of outputs 8 p + .. of samples 16 m + ... `bias` may be null.
template <int INPUT_TILES_, int OUTPUT_PAIRS, int M, typename Emit>
DEVICE void layer(const uint* fragments, const float* bias, const uint (&x)[2 * INPUT_TILES_][2 * M], Emit emit) {
    UNROLL
    for (int p = 0; p < OUTPUT_PAIRS; ++p) {
        float c[M][4];
        const float b0 = bias ? bias[8 * p + 2 * (LANE & 3)] : 0.0f,
                    b1 = bias ? bias[8 * p + 2 * (LANE & 3) + 1] : 0.0f;
        UNROLL
        for (int m = 0; m < M; ++m) c[m][0] = c[m][2] = b0, c[m][1] = c[m][3] = b1;
        UNROLL
        for (int k = 0; k < INPUT_TILES_; ++k) {
            const Pairs2 b = load_pairs(fragments + (p * INPUT_TILES_ + k) * FRAGMENT + 2 * LANE);
            UNROLL
            for (int m = 0; m < M; ++m)
                multiply_add(c[m], x[2 * k][2 * m], x[2 * k][2 * m + 1], x[2 * k + 1][2 * m], x[2 * k + 1][2 * m + 1],
                             b.x, b.y);
        }
        UNROLL
        for (int m = 0; m < M; ++m) emit(p, m, c[m]);
    }
}
// A layer followed by ReLU.
template <int INPUT_TILES_, int OUTPUT_PAIRS, int M>
DEVICE void relu_layer(const uint* fragments, const float* bias, const uint (&x)[2 * INPUT_TILES_][2 * M],
                       uint (&y)[OUTPUT_PAIRS][2 * M]) {
    layer<INPUT_TILES_, OUTPUT_PAIRS, M>(fragments, bias, x, [&](int p, int m, const float (&c)[4]) {
        y[p][2 * m] = pack_pair(fmaxf(c[0], 0.0f), fmaxf(c[1], 0.0f));
        y[p][2 * m + 1] = pack_pair(fmaxf(c[2], 0.0f), fmaxf(c[3], 0.0f));
    });
}
// Backward pass of a layer: gradients of its inputs `x`, which are outputs of a ReLU, from those of its outputs.
template <int OUTPUT_TILES, int INPUT_PAIRS, int M>
DEVICE void relu_backward(const uint* fragments, const uint (&dy)[2 * OUTPUT_TILES][2 * M],
                          const uint (&x)[INPUT_PAIRS][2 * M], uint (&dx)[INPUT_PAIRS][2 * M]) {
    layer<OUTPUT_TILES, INPUT_PAIRS, M>(fragments, nullptr, dy, [&](int p, int m, const float (&c)[4]) {
        UNROLL
        for (int h = 0; h < 2; ++h) {
            const uint on = x[p][2 * m + h];
            dx[p][2 * m + h] =
                pack_pair(on & 0x00007fffu ? c[2 * h] : 0.0f, on & 0x7fff0000u ? c[2 * h + 1] : 0.0f);
        }
    });
}

// Weight gradients: a block of 8 warps with 16 samples each stages the inputs of a layer and the gradients of its
// outputs in shared memory; then each warp sums some 16 x 8 pieces of their product over all 128 samples.
#define TILE 128
#define TILE_WARPS 8

// Many inputs are staged in two parts, so that 48 KB suffice; this is the size of the first one of `pairs`.
DEVICE constexpr int first_part_of(int pairs) { return pairs > 12 ? (pairs + 1) / 2 : pairs; }

// Rows have `STRIDE` fp16: 16 bytes more than a multiple of 32, so that eight rows lie in different banks.
template <int FIRST, int COUNT, int PAIRS, int STRIDE>
DEVICE void stage(storage_t (*tile)[STRIDE], const uint (&x)[PAIRS][2]) {
    static_assert(FIRST + COUNT <= PAIRS && 8 * COUNT < STRIDE, "so many pairs there are, and room for them");
    const int row = int(threadIdx.x) / PACKET * 16 + LANE / 4;
    UNROLL
    for (int p = 0; p < COUNT; ++p) {
        *(uint*)&tile[row][8 * p + 2 * (LANE & 3)] = x[FIRST + p][0];
        *(uint*)&tile[row + 8][8 * p + 2 * (LANE & 3)] = x[FIRST + p][1];
    }
}
template <int PAIRS, int STRIDE>
DEVICE void stage(storage_t (*tile)[STRIDE], const uint (&x)[PAIRS][2]) {
    stage<0, PAIRS>(tile, x);
}
// Pieces of a warp: piece w + 8 j has outputs 16 (piece / (PAIRS + 1)) + .. and inputs 8 (piece % (PAIRS + 1)) + ..;
// the column after the last input is one, which gives the bias gradients.
template <int OUTPUT_TILES, int PAIRS>
struct WeightSums {
    static constexpr int PIECES = OUTPUT_TILES * (PAIRS + 1), OWN = (PIECES + TILE_WARPS - 1) / TILE_WARPS;
    float sum[OWN][4];
};
template <int OUTPUT_TILES, int PAIRS, int XS, int YS>
DEVICE void add_weights(WeightSums<OUTPUT_TILES, PAIRS>& sums, const storage_t (*x)[XS], const storage_t (*dy)[YS]) {
    typedef WeightSums<OUTPUT_TILES, PAIRS> Sums;
    UNROLL
    for (int j = 0; j < Sums::OWN; ++j) {
        const int piece = int(threadIdx.x) / PACKET + TILE_WARPS * j;
        if (piece >= Sums::PIECES) continue;  // uniform within the warp
        const int o = piece / (PAIRS + 1), p = piece % (PAIRS + 1);
        UNROLL
        for (int k = 0; k < TILE; k += 16) {
            uint a[4], b[2] = {0x3c003c00u, 0x3c003c00u};  // fp16 ones
            load_transposed(&dy[k + (LANE >> 4) * 8 + (LANE & 7)][16 * o + (LANE >> 3 & 1) * 8], a);
            if (p < PAIRS) load_transposed(&x[k + (LANE & 15)][8 * p], b);
            multiply_add(sums.sum[j], a[0], a[1], a[2], a[3], b[0], b[1]);
        }
    }
}
// Adds the sums to the gradients of a torch layer. `column(pair, t, e)` is the input that a lane's pair holds, -1 for
// padding. `bias` may be null.
template <int OUTPUTS, int INPUTS_, int OUTPUT_TILES, int PAIRS, typename Column>
DEVICE void flush_weights(const WeightSums<OUTPUT_TILES, PAIRS>& sums, float* weight, float* bias, Column column) {
    typedef WeightSums<OUTPUT_TILES, PAIRS> Sums;
    UNROLL
    for (int j = 0; j < Sums::OWN; ++j) {
        const int piece = int(threadIdx.x) / PACKET + TILE_WARPS * j;
        if (piece >= Sums::PIECES) continue;
        const int p = piece % (PAIRS + 1), t = LANE & 3;
        UNROLL
        for (int i = 0; i < 4; ++i) {
            const int o = piece / (PAIRS + 1) * 16 + LANE / 4 + (i >> 1) * 8;
            if (o >= OUTPUTS) continue;
            if (p < PAIRS) {
                const int k = column(p, t, i & 1);
                if (k >= 0) add_atomic(weight + o * INPUTS_ + k, sums.sum[j][i]);
            } else if (bias && t == 0 && (i & 1) == 0) {
                add_atomic(bias + o, sums.sum[j][i]);
            }
        }
    }
}

// One word of packed weights, a pair of fp16, from the weights of a torch layer. Forward: samples times W^T.
template <int INPUT_TILES_, typename Column>
DEVICE uint pack_forward(int word, const float* weight, int inputs, int outputs, Column column) {
    const int fragment = word / FRAGMENT, lane = word % FRAGMENT / 2, o = fragment / INPUT_TILES_ * 8 + lane / 4;
    float value[2];
    UNROLL
    for (int e = 0; e < 2; ++e) {
        const int k = column(fragment % INPUT_TILES_ * 2 + word % 2, lane % 4, e);
        value[e] = o < outputs && k >= 0 ? weight[o * inputs + k] : 0.0f;
    }
    return pack_pair(value[0], value[1]);
}
// The same for the backward pass: gradients times W.
template <int OUTPUT_TILES, typename Column>
DEVICE uint pack_backward(int word, const float* weight, int inputs, int outputs, Column column) {
    const int fragment = word / FRAGMENT, lane = word % FRAGMENT / 2;
    const int k = column(fragment / OUTPUT_TILES, lane / 4 >> 1, lane / 4 & 1);
    float value[2];
    UNROLL
    for (int e = 0; e < 2; ++e) {
        const int o = 8 * (fragment % OUTPUT_TILES * 2 + word % 2) + 2 * (lane % 4) + e;
        value[e] = o < outputs && k >= 0 ? weight[o * inputs + k] : 0.0f;
    }
    return pack_pair(value[0], value[1]);
}
DEVICE int plain_column(int pair, int t, int e) { return 8 * pair + 2 * t + e; }

#else

// Activations are [neuron][sample]; weights are (outputs, inputs), as in torch. Vectors of 16 are explicit because
// compilers prefer shorter ones; on machines with shorter registers each becomes two or four.
typedef float v16 __attribute__((vector_size(64), aligned(64), may_alias));
typedef float (*Neurons)[PACKET];
typedef const float (*ConstNeurons)[PACKET];

// B outputs at a time: 2 B sums stay in registers.
template <int INPUTS, int B, bool RELU>
static inline void layer_block(const float* weight, const float* bias, ConstNeurons x, Neurons y) {
    v16 sum[B][2];
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b) sum[b][0] = sum[b][1] = v16{} + bias[b];
    for (int k = 0; k < INPUTS; ++k) {
        const v16 x0 = *(const v16*)&x[k][0], x1 = *(const v16*)&x[k][16];
#pragma GCC unroll 8
        for (int b = 0; b < B; ++b) {
            sum[b][0] += weight[b * INPUTS + k] * x0;
            sum[b][1] += weight[b * INPUTS + k] * x1;
        }
    }
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b)
        for (int h = 0; h < 2; ++h) {
            const v16 s = sum[b][h];
            *(v16*)&y[b][16 * h] = RELU ? (s > 0.0f ? s : v16{}) : s;
        }
}

// y = W x + b, followed by ReLU if RELU.
template <int INPUTS, int OUTPUTS, bool RELU>
static inline void layer(const float* weight, const float* bias, ConstNeurons x, Neurons y) {
    constexpr int BLOCK = 8, REST = OUTPUTS % BLOCK;
    for (int o = 0; o + BLOCK <= OUTPUTS; o += BLOCK)
        layer_block<INPUTS, BLOCK, RELU>(weight + o * INPUTS, bias + o, x, y + o);
    constexpr int o = OUTPUTS - REST;
    if constexpr (REST > 0) layer_block<INPUTS, REST, RELU>(weight + o * INPUTS, bias + o, x, y + o);
}

// Gradients of the inputs, W^T dy, for a block of inputs.
template <int INPUTS, int OUTPUTS, int B>
static inline void inputs_block(const float* weight, ConstNeurons dy, Neurons dx) {
    v16 sum[B][2] = {};
    for (int o = 0; o < OUTPUTS; ++o) {
        const v16 y0 = *(const v16*)&dy[o][0], y1 = *(const v16*)&dy[o][16];
#pragma GCC unroll 8
        for (int b = 0; b < B; ++b) {
            sum[b][0] += weight[o * INPUTS + b] * y0;
            sum[b][1] += weight[o * INPUTS + b] * y1;
        }
    }
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b) *(v16*)&dx[b][0] = sum[b][0], *(v16*)&dx[b][16] = sum[b][1];
}
// Gradients of the first COUNT of `INPUTS` inputs.
template <int INPUTS, int OUTPUTS, int COUNT = INPUTS>
static inline void layer_inputs(const float* weight, ConstNeurons dy, Neurons dx) {
    constexpr int BLOCK = 8, REST = COUNT % BLOCK;
    for (int k = 0; k + BLOCK <= COUNT; k += BLOCK) inputs_block<INPUTS, OUTPUTS, BLOCK>(weight + k, dy, dx + k);
    constexpr int k = COUNT - REST;
    if constexpr (REST > 0) inputs_block<INPUTS, OUTPUTS, REST>(weight + k, dy, dx + k);
}
// Backward pass of a ReLU with output `y`.
template <int N>
static inline void mask_relu(ConstNeurons y, Neurons dy) {
    for (int n = 0; n < N; ++n) SIMD for (int l = 0; l < PACKET; ++l) dy[n][l] = y[n][l] > 0.0f ? dy[n][l] : 0.0f;
}

// Sums of a layer's gradients over packets: rows padded to whole vectors, biases spread over 16 samples.
template <int INPUTS_, int OUTPUTS_>
struct alignas(64) LayerGradient {
    static constexpr int INPUT_COUNT = INPUTS_, OUTPUT_COUNT = OUTPUTS_, VECTORS = (INPUTS_ + 15) / 16;
    v16 weight[OUTPUTS_][VECTORS];
    v16 bias[OUTPUTS_];
};

// B outputs and V input vectors at a time, from inputs transposed to [sample][neuron].
template <int V, int B, int STRIDE>
static inline void weights_block(const v16* x, ConstNeurons dy, v16* weight) {
    v16 sum[B][V] = {};
    for (int l = 0; l < PACKET; ++l)
#pragma GCC unroll 8
        for (int b = 0; b < B; ++b)
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) sum[b][v] += dy[b][l] * x[l * STRIDE + v];
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) weight[b * STRIDE + v] += sum[b][v];
}
template <typename Gradient>
static inline void layer_weights(ConstNeurons x, ConstNeurons dy, Gradient& gradient) {
    constexpr int K = Gradient::INPUT_COUNT, N = Gradient::OUTPUT_COUNT, V = Gradient::VECTORS;
    constexpr int WIDE = 4, B = 4, REST_V = V % WIDE, REST_B = N % B;
    alignas(64) float turned[PACKET][16 * V] = {};
    for (int k = 0; k < K; ++k)
        for (int l = 0; l < PACKET; ++l) turned[l][k] = x[k][l];
    const v16* rows = (const v16*)turned;
    for (int v = 0; v + WIDE <= V; v += WIDE) {
        for (int o = 0; o + B <= N; o += B) weights_block<WIDE, B, V>(rows + v, dy + o, &gradient.weight[o][v]);
        if constexpr (REST_B > 0)
            weights_block<WIDE, REST_B, V>(rows + v, dy + N - REST_B, &gradient.weight[N - REST_B][v]);
    }
    if constexpr (REST_V > 0) {
        constexpr int v = V - REST_V;
        for (int o = 0; o + B <= N; o += B) weights_block<REST_V, B, V>(rows + v, dy + o, &gradient.weight[o][v]);
        if constexpr (REST_B > 0)
            weights_block<REST_V, REST_B, V>(rows + v, dy + N - REST_B, &gradient.weight[N - REST_B][v]);
    }
    for (int o = 0; o < N; ++o) gradient.bias[o] += *(const v16*)&dy[o][0] + *(const v16*)&dy[o][16];
}
template <typename Gradient>
static inline void add_layer(const Gradient& gradient, float* weight, float* bias) {
    constexpr int K = Gradient::INPUT_COUNT;
    for (int o = 0; o < Gradient::OUTPUT_COUNT; ++o) {
        for (int k = 0; k < K; ++k) weight[o * K + k] += gradient.weight[o][k / 16][k % 16];
        for (int i = 0; i < 16; ++i) bias[o] += gradient.bias[o][i];
    }
}

#endif
