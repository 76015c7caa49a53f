// Layers of a small network over a packet of 32 samples.
#pragma once
#include "platform.cuh"

#if ON_GPU
#else

// Values are [neuron][sample]; weights lie as torch has them, (outputs, inputs). Vectors of 16 are spelled out because
// compilers prefer shorter ones; where the machine has none as long, each becomes two or four.
typedef float v16 __attribute__((vector_size(64), aligned(64), may_alias));
typedef float (*Neurons)[PACKET];
typedef const float (*ConstNeurons)[PACKET];

// B outputs at once: 2 B sums stay in registers.
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

// y = W x + b, then max(0, y) if RELU.
template <int INPUTS, int OUTPUTS, bool RELU>
static inline void layer(const float* weight, const float* bias, ConstNeurons x, Neurons y) {
    constexpr int BLOCK = 8, REST = OUTPUTS % BLOCK;
    for (int o = 0; o + BLOCK <= OUTPUTS; o += BLOCK)
        layer_block<INPUTS, BLOCK, RELU>(weight + o * INPUTS, bias + o, x, y + o);
    constexpr int o = OUTPUTS - REST;
    if constexpr (REST > 0) layer_block<INPUTS, REST, RELU>(weight + o * INPUTS, bias + o, x, y + o);
}

// x's gradient: W^T y'.
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
// The first COUNT of `INPUTS` inputs.
template <int INPUTS, int OUTPUTS, int COUNT = INPUTS>
static inline void layer_inputs(const float* weight, ConstNeurons dy, Neurons dx) {
    constexpr int BLOCK = 8, REST = COUNT % BLOCK;
    for (int k = 0; k + BLOCK <= COUNT; k += BLOCK) inputs_block<INPUTS, OUTPUTS, BLOCK>(weight + k, dy, dx + k);
    constexpr int k = COUNT - REST;
    if constexpr (REST > 0) inputs_block<INPUTS, OUTPUTS, REST>(weight + k, dy, dx + k);
}
// Gradients of what passed max(0, .) and came out as `y`.
template <int N>
static inline void mask_relu(ConstNeurons y, Neurons dy) {
    for (int n = 0; n < N; ++n) SIMD for (int l = 0; l < PACKET; ++l) dy[n][l] = y[n][l] > 0.0f ? dy[n][l] : 0.0f;
}

// Sums of a layer's gradients while packets go by: rows padded to whole vectors, biases still spread over 16 samples.
template <int INPUTS_, int OUTPUTS_>
struct alignas(64) LayerGradient {
    static constexpr int INPUT_COUNT = INPUTS_, OUTPUT_COUNT = OUTPUTS_, VECTORS = (INPUTS_ + 15) / 16;
    v16 weight[OUTPUTS_][VECTORS];
    v16 bias[OUTPUTS_];
};

// B outputs and V vectors of inputs at once, from inputs turned to [sample][neuron].
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
