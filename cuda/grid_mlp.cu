// Benchmark network: hash grid and an MLP of two hidden layers without biases, 16 outputs, the usual shape for
// comparisons (Mueller et al. 2022). Built from the same functions as the radiance field; used only by the benchmark
// and tests.
//
// Networks in memory: weights (HIDDEN, ENCODED), (HIDDEN, HIDDEN), (16, HIDDEN). `encoded` has n * ENCODED numbers,
// level by level as in field.cu; on a CPU feature by feature.
#include "hashgrid.cuh"
#include "layout.cuh"
#include "mlp.cuh"

#define OUTPUTS 16

CONSTANT int weight_1 = 0, weight_2 = HIDDEN * ENCODED, weight_3 = weight_2 + HIDDEN * HIDDEN;

#if ON_GPU

#define INPUT_TILES ((GRID_PAIRS + 1) / 2)
#define HIDDEN_TILES (HIDDEN / 16)
#define HIDDEN_PAIRS (HIDDEN / 8)

CONSTANT int forward_1 = 0, forward_2 = forward_1 + FRAGMENT * INPUT_TILES * HIDDEN_PAIRS;
CONSTANT int forward_3 = forward_2 + FRAGMENT * HIDDEN_TILES * HIDDEN_PAIRS;
CONSTANT int backward_3 = forward_3 + FRAGMENT * HIDDEN_TILES * 2, backward_2 = backward_3 + FRAGMENT * HIDDEN_PAIRS;
CONSTANT int backward_1 = backward_2 + FRAGMENT * HIDDEN_TILES * HIDDEN_PAIRS;
CONSTANT int packed_words = backward_1 + FRAGMENT * HIDDEN_TILES * GRID_PAIRS;
static_assert(2 * packed_words == GRID_MLP_PACKED_SIZE, "field/packed.py makes room for the packed network");

DEVICE uint* encoded_address(const storage_t* encoded, int n, int i, int pair) {
    const int level = 4 * (pair / ROW_PAIRS) + (LANE & 3);
    if (level >= LEVELS) return nullptr;
    return (uint*)encoded + (size_t(level) * n + i) * ROW_PAIRS + pair % ROW_PAIRS;
}

// Packs the networks into tensor-core fragments. items: the packed words.
KERNEL(256) pack_grid_mlp(const float* networks, storage_t* packed) {
    EACH(i, packed_words) {
        const float* n = networks;
        uint* word = (uint*)packed + i;
        if (i < forward_2) {
            *word = pack_forward<INPUT_TILES>(i - forward_1, n + weight_1, ENCODED, HIDDEN, grid_column);
        } else if (i < forward_3) {
            *word = pack_forward<HIDDEN_TILES>(i - forward_2, n + weight_2, HIDDEN, HIDDEN, plain_column);
        } else if (i < backward_3) {
            *word = pack_forward<HIDDEN_TILES>(i - forward_3, n + weight_3, HIDDEN, OUTPUTS, plain_column);
        } else if (i < backward_2) {
            *word = pack_backward<1>(i - backward_3, n + weight_3, HIDDEN, OUTPUTS, plain_column);
        } else if (i < backward_1) {
            *word = pack_backward<HIDDEN_TILES>(i - backward_2, n + weight_2, HIDDEN, HIDDEN, plain_column);
        } else {
            *word = pack_backward<HIDDEN_TILES>(i - backward_1, n + weight_1, ENCODED, HIDDEN, grid_column);
        }
    }
}

DEVICE void write_outputs(const uint* networks, const uint (&x)[2 * INPUT_TILES][4], storage_t* out, int first, int n) {
    uint hidden_1[HIDDEN_PAIRS][4], hidden_2[HIDDEN_PAIRS][4];
    relu_layer<INPUT_TILES, HIDDEN_PAIRS, 2>(networks + forward_1, nullptr, x, hidden_1);
    relu_layer<HIDDEN_TILES, HIDDEN_PAIRS, 2>(networks + forward_2, nullptr, hidden_1, hidden_2);
    layer<HIDDEN_TILES, 2, 2>(networks + forward_3, nullptr, hidden_2, [&](int p, int m, const float (&c)[4]) {
        UNROLL
        for (int h = 0; h < 2; ++h) {
            const int i = first + 16 * m + 8 * h + LANE / 4;
            if (i < n) *(uint*)(out + size_t(i) * OUTPUTS + 8 * p + 2 * (LANE & 3)) = pack_pair(c[2 * h], c[2 * h + 1]);
        }
    });
}

// Encodes all points, one level after another; two lanes share two points. items: n / 2.
KERNEL(256) grid_encode(const FieldWeights weights, const float* points, storage_t* encoded, int n) {
    const bool odd = LANE & 1;
    for (int level = 0; level < LEVELS; ++level) {
        const LevelShape shape = level_shape(level);
        uint* target = (uint*)encoded + size_t(level) * n * ROW_PAIRS;
        EACH_PACKET(p, (n + 63) / 64) {
            uint rows[2][2][4][ROW_PAIRS];
            float weight[2][2][4];
            UNROLL
            for (int s = 0; s < 2; ++s) {
                const int own = p * 64 + 32 * s + LANE, i = own < n ? own : n - 1;
                float point[3], other[3];
                UNROLL
                for (int a = 0; a < 3; ++a) {
                    point[a] = clamp_unit(points[3 * i + a]);
                    other[a] = __shfl_xor_sync(0xffffffffu, point[a], 1);
                }
                UNROLL
                for (int k = 0; k < 2; ++k) {  // the lane's own point, then that of its neighbour
                    uint row[4];
                    half_corners(shape, k ? other : point, odd, row, weight[s][k]);
                    UNROLL
                    for (int c = 0; c < 4; ++c) load_row(weights.table, row[c], rows[s][k][c]);
                }
            }
            UNROLL
            for (int s = 0; s < 2; ++s)
                UNROLL
                for (int j = 0; j < ROW_PAIRS; ++j) {
                    float low[2] = {}, high[2] = {};
                    UNROLL
                    for (int k = 0; k < 2; ++k)
                        UNROLL
                        for (int c = 0; c < 4; ++c) {
                            low[k] += weight[s][k][c] * low_of(rows[s][k][c][j]);
                            high[k] += weight[s][k][c] * high_of(rows[s][k][c][j]);
                        }
                    const uint pair = pack_pair(low[0] + __shfl_xor_sync(0xffffffffu, low[1], 1),
                                                high[0] + __shfl_xor_sync(0xffffffffu, high[1], 1));
                    const int i = p * 64 + 32 * s + LANE;
                    if (i < n) target[size_t(i) * ROW_PAIRS + j] = pair;
                }
        }
    }
}

#else

CONSTANT float no_bias[HIDDEN] = {};

// Activations, [neuron][sample].
struct alignas(64) Activations {
    float input[ENCODED][PACKET];
    float hidden_1[HIDDEN][PACKET];
    float hidden_2[HIDDEN][PACKET];
    float out[OUTPUTS][PACKET];
};
DEVICE void run_network(const float* networks, Activations& a) {
    layer<ENCODED, HIDDEN, true>(networks + weight_1, no_bias, a.input, a.hidden_1);
    layer<HIDDEN, HIDDEN, true>(networks + weight_2, no_bias, a.hidden_1, a.hidden_2);
    layer<HIDDEN, OUTPUTS, false>(networks + weight_3, no_bias, a.hidden_2, a.out);
}

#endif

// Computes out (n, 16) at `points` (n, 3) of the unit cube; stores `encoded`, if not null, for grid_mlp_backward.
// items: n.
KERNEL(128) grid_mlp_forward(const FieldWeights weights, const float* points, storage_t* encoded, storage_t* out,
                             int n) {
#if ON_GPU
    EACH_PACKET(packet, (n + PACKET - 1) / PACKET) {
        float point[4][3];
        bool valid[4];
        UNROLL
        for (int s = 0; s < 4; ++s) {
            const int i = packet * PACKET + 8 * s + LANE / 4;
            valid[s] = i < n;
            UNROLL
            for (int a = 0; a < 3; ++a) point[s][a] = valid[s] ? clamp_unit(points[3 * i + a]) : 0.0f;
        }
        uint features[GRID_PAIRS][4], x[2 * INPUT_TILES][4] = {};
        encode(weights.table, point, valid, features);
        UNROLL
        for (int k = 0; k < GRID_PAIRS; ++k)
            UNROLL
            for (int s = 0; s < 4; ++s) {
                x[k][s] = features[k][s];
                const int i = packet * PACKET + 8 * s + LANE / 4;
                if (!encoded || !valid[s]) continue;
                if (uint* place = encoded_address(encoded, n, i, k)) *place = x[k][s];
            }
        write_outputs((const uint*)weights.networks, x, out, packet * PACKET, n);
    }
#else
    EACH_PACKET(p, (n + PACKET - 1) / PACKET) {
        const int first = p * PACKET, size = n - first < PACKET ? n - first : PACKET;
        alignas(64) float point[3][PACKET] = {};
        bool valid[LANES];
        for (int l = 0; l < PACKET; ++l) {
            valid[l] = l < size;
            for (int a = 0; a < 3; ++a) point[a][l] = valid[l] ? clamp_unit(points[3 * (first + l) + a]) : 0.0f;
        }
        Activations values;
        encode(weights.table, point, valid, values.input);
        run_network(weights.networks, values);
        for (int l = 0; l < size; ++l)
            for (int k = 0; k < OUTPUTS; ++k) out[size_t(first + l) * OUTPUTS + k] = values.out[k][l];
        if (encoded)
            for (int k = 0; k < ENCODED; ++k)
                std::memcpy(encoded + size_t(k) * n + first, values.input[k], sizeof(float) * size);
    }
#endif
}

#if ON_GPU
// Evaluates the network on the results of grid_encode. items: n.
KERNEL(128) grid_mlp_outputs(const FieldWeights weights, const storage_t* encoded, storage_t* out, int n) {
    EACH_PACKET(packet, (n + PACKET - 1) / PACKET) {
        uint x[2 * INPUT_TILES][4] = {};
        UNROLL
        for (int s = 0; s < 4; ++s) {
            const int i = packet * PACKET + 8 * s + LANE / 4;
            if (i >= n) continue;
            UNROLL
            for (int k = 0; k < GRID_PAIRS; ++k)
                if (const uint* place = encoded_address(encoded, n, i, k)) x[k][s] = load_pair(place);
        }
        write_outputs((const uint*)weights.networks, x, out, packet * PACKET, n);
    }
}

CONSTANT int first_part = first_part_of(GRID_PAIRS), second_part = GRID_PAIRS - first_part;
CONSTANT int whole_pairs = second_part > 0 ? first_part : 2 * INPUT_TILES;
CONSTANT int staged_pairs = whole_pairs > HIDDEN_PAIRS ? whole_pairs : HIDDEN_PAIRS;
#endif

// Backward pass from the gradients (n, 16) of the outputs: adds to network_gradients and sets encoded_gradients, for
// grid_backward; both are scaled by LOSS_SCALE.
// items: any multiple of 256; few are better.
KERNEL(256, 2) grid_mlp_backward(const FieldWeights weights, const storage_t* encoded, const float* gradient,
                              float* network_gradients, storage_t* encoded_gradients, int n) {
#if ON_GPU
    __shared__ __align__(16) storage_t inputs[TILE][8 * staged_pairs + 8];
    __shared__ __align__(16) storage_t outputs[TILE][HIDDEN + 8];
    const int tiles = (n + TILE - 1) / TILE;
    WeightSums<HIDDEN_TILES, first_part> sums_1 = {};
    WeightSums<HIDDEN_TILES, second_part> sums_second = {};  // empty if there is no second part
    WeightSums<HIDDEN_TILES, HIDDEN_PAIRS> sums_2 = {};
    WeightSums<1, HIDDEN_PAIRS> sums_3 = {};
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const uint* networks = within_loop((const uint*)weights.networks);
        const int first = tile * TILE + int(threadIdx.x) / PACKET * 16 + LANE / 4;
        uint x[2 * INPUT_TILES][2] = {}, hidden_1[HIDDEN_PAIRS][2], hidden_2[HIDDEN_PAIRS][2], grad_out[2][2] = {};
        UNROLL
        for (int s = 0; s < 2; ++s) {
            const int i = first + 8 * s;
            if (i >= n) continue;
            UNROLL
            for (int k = 0; k < GRID_PAIRS; ++k)
                if (const uint* place = encoded_address(encoded, n, i, k)) x[k][s] = load_pair(place);
            UNROLL
            for (int p = 0; p < 2; ++p) {
                const float* grad = gradient + size_t(i) * OUTPUTS + 8 * p + 2 * (LANE & 3);
                grad_out[p][s] = pack_pair(LOSS_SCALE * grad[0], LOSS_SCALE * grad[1]);
            }
        }
        relu_layer<INPUT_TILES, HIDDEN_PAIRS, 1>(networks + forward_1, nullptr, x, hidden_1);
        relu_layer<HIDDEN_TILES, HIDDEN_PAIRS, 1>(networks + forward_2, nullptr, hidden_1, hidden_2);
        stage(inputs, hidden_2), stage(outputs, grad_out);
        __syncthreads();
        add_weights(sums_3, inputs, outputs);
        uint grad_2[HIDDEN_PAIRS][2], grad_1[HIDDEN_PAIRS][2];
        relu_backward<1, HIDDEN_PAIRS, 1>(networks + backward_3, grad_out, hidden_2, grad_2);
        __syncthreads();
        stage(inputs, hidden_1), stage(outputs, grad_2);
        __syncthreads();
        add_weights(sums_2, inputs, outputs);
        relu_backward<HIDDEN_TILES, HIDDEN_PAIRS, 1>(networks + backward_2, grad_2, hidden_1, grad_1);
        __syncthreads();
        stage<0, whole_pairs>(inputs, x), stage(outputs, grad_1);
        __syncthreads();
        add_weights(sums_1, inputs, outputs);
        if constexpr (second_part > 0) {
            __syncthreads();
            stage<first_part, second_part>(inputs, x);
            __syncthreads();
            add_weights(sums_second, inputs, outputs);
        }
        layer<HIDDEN_TILES, GRID_PAIRS, 1>(networks + backward_1, nullptr, grad_1,
                                           [&](int k, int, const float (&c)[4]) {
                                               UNROLL
                                               for (int s = 0; s < 2; ++s) {
                                                   const int i = first + 8 * s;
                                                   if (i >= n) continue;
                                                   if (uint* place = encoded_address(encoded_gradients, n, i, k))
                                                       *place = pack_pair(c[2 * s], c[2 * s + 1]);
                                               }
                                           });
        __syncthreads();
    }
    if (int(blockIdx.x) >= tiles) return;
    flush_weights<HIDDEN, ENCODED>(sums_1, network_gradients + weight_1, nullptr, grid_column);
    if constexpr (second_part > 0)
        flush_weights<HIDDEN, ENCODED>(sums_second, network_gradients + weight_1, nullptr,
                                       [](int pair, int t, int e) { return grid_column(first_part + pair, t, e); });
    flush_weights<HIDDEN, HIDDEN>(sums_2, network_gradients + weight_2, nullptr, plain_column);
    flush_weights<OUTPUTS, HIDDEN>(sums_3, network_gradients + weight_3, nullptr, plain_column);
#else
    LayerGradient<ENCODED, HIDDEN> sums_1{};
    LayerGradient<HIDDEN, HIDDEN> sums_2{};
    LayerGradient<HIDDEN, OUTPUTS> sums_3{};
    Activations values{}, grads{};
    for (int first = 0; first < n; first += PACKET) {
        const int size = n - first < PACKET ? n - first : PACKET;
        for (int k = 0; k < ENCODED; ++k)
            std::memcpy(values.input[k], encoded + size_t(k) * n + first, sizeof(float) * size);
        for (int k = 0; k < OUTPUTS; ++k)
            for (int l = 0; l < PACKET; ++l)
                grads.out[k][l] = l < size ? LOSS_SCALE * gradient[size_t(first + l) * OUTPUTS + k] : 0.0f;
        run_network(weights.networks, values);
        layer_weights(values.hidden_2, grads.out, sums_3);
        layer_inputs<HIDDEN, OUTPUTS>(weights.networks + weight_3, grads.out, grads.hidden_2);
        mask_relu<HIDDEN>(values.hidden_2, grads.hidden_2);
        layer_weights(values.hidden_1, grads.hidden_2, sums_2);
        layer_inputs<HIDDEN, HIDDEN>(weights.networks + weight_2, grads.hidden_2, grads.hidden_1);
        mask_relu<HIDDEN>(values.hidden_1, grads.hidden_1);
        layer_weights(values.input, grads.hidden_1, sums_1);
        layer_inputs<ENCODED, HIDDEN>(weights.networks + weight_1, grads.hidden_1, grads.input);
        for (int k = 0; k < ENCODED; ++k)
            std::memcpy(encoded_gradients + size_t(k) * n + first, grads.input[k], sizeof(float) * size);
    }
    float no_biases[HIDDEN] = {};
    add_layer(sums_1, network_gradients + weight_1, no_biases);
    add_layer(sums_2, network_gradients + weight_2, no_biases);
    add_layer(sums_3, network_gradients + weight_3, no_biases);
#endif
}
