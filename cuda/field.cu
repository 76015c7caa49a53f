// Forward and backward pass of the radiance field over packed samples, for training.
//
// Between the passes, `encoded` holds the hash-grid features and later their gradients, level by level, so that
// neighbouring samples are adjacent in memory: capacity * LEVELS * FEATURES numbers. The layout is private to this file
// and pose_refinement.cu.
#include "field.cuh"

#if ON_GPU
// Address of a lane's feature pair of a sample; null beyond the last level.
DEVICE uint* encoded_address(const storage_t* encoded, int capacity, int sample, int pair) {
    const int level = 4 * (pair / ROW_PAIRS) + (LANE & 3);
    if (level >= LEVELS) return nullptr;
    return (uint*)encoded + (size_t(level) * capacity + sample) * ROW_PAIRS + pair % ROW_PAIRS;
}
#else

// Inputs of a packet's samples. Lanes beyond the last sample are invalid and hold zeros.
struct PacketSamples {
    vec3 unit[LANES], direction[LANES];
    float mouth[LANES], eyes[LANES];
    const float* code[LANES];
    bool valid[LANES];
};
DEVICE void load_samples(const Samples& samples, const float* codes, int code_stride, int first, int count,
                         PacketSamples& packet) {
    for (int l = 0; l < PACKET; ++l) {
        const int i = first + l;
        const bool valid = packet.valid[l] = i < count;
        packet.unit[l] = valid ? load3(samples.position + 3 * i) : vec3{};
        packet.direction[l] = valid ? load3(samples.direction + 3 * i) : vec3{};
        packet.mouth[l] = valid ? samples.masks[2 * i] : 0.0f;
        packet.eyes[l] = valid ? samples.masks[2 * i + 1] : 0.0f;
        packet.code[l] = codes + (valid ? size_t(samples.frame[i]) * code_stride : 0);
    }
}
#endif

// Computes density (capacity) per metre and colour (capacity, 3) of the samples; stores `encoded`, if not null, for
// field_backward. The code of a sample is row samples.frame of `codes`, whose rows are code_stride floats apart. items:
// the capacity.
KERNEL(128) field_samples(const FieldWeights weights, const Samples samples, const float* codes, int code_stride,
                          float* density, float* colour, storage_t* encoded) {
    const int count = samples.totals[1];
#if ON_GPU
    EACH_PACKET(p, (count + PACKET - 1) / PACKET) {
        const int own = p * PACKET + LANE;
        const bool valid[LANES] = {own < count};
        const int i = valid[0] ? own : count - 1;
        const vec3 unit[LANES] = {load3(samples.position + 3 * i)};
        const vec3 direction[LANES] = {load3(samples.direction + 3 * i)};
        const float mouth[LANES] = {samples.masks[2 * i]}, eyes[LANES] = {samples.masks[2 * i + 1]};
        const float* const code[LANES] = {codes + size_t(samples.frame[i]) * code_stride};
        uint x[2 * INPUT_TILES][4], geometry[4][4];
        float own_density[LANES];
        vec3 own_colour[LANES];
        field_inputs(weights, unit, mouth, eyes, code, valid, x);
        if (encoded)
            UNROLL
            for (int s = 0; s < 4; ++s) {
                const int sample = p * PACKET + 8 * s + LANE / 4;
                if (sample >= count) continue;
                UNROLL
                for (int k = 0; k < GRID_PAIRS; ++k)
                    if (uint* place = encoded_address(encoded, samples.capacity, sample, k)) *place = x[k][s];
            }
        field_outputs(weights, x, geometry, own_density);
        field_colours(weights, direction, valid, geometry, own_colour);
        if (valid[0]) density[own] = own_density[0], store3(colour + 3 * own, own_colour[0]);
    }
#else
    EACH_PACKET(p, (count + PACKET - 1) / PACKET) {
        FieldScratch scratch;
        PacketSamples packet;
        load_samples(samples, codes, code_stride, p * PACKET, count, packet);
        float packet_density[LANES];
        vec3 packet_colour[LANES];
        field_forward(weights, scratch, packet.unit, packet.direction, packet.mouth, packet.eyes, packet.code,
                      packet.valid, packet_density, packet_colour);
        const int size = count - p * PACKET < PACKET ? count - p * PACKET : PACKET;
        for (int l = 0; l < size; ++l) {
            density[p * PACKET + l] = packet_density[l];
            store3(colour + 3 * (p * PACKET + l), packet_colour[l]);
        }
        if (encoded)
            for (int k = 0; k < ENCODED; ++k)
                std::memcpy(encoded + size_t(k) * samples.capacity + p * PACKET, scratch.input[k],
                            sizeof(float) * size);
    }
#endif
}

#if ON_GPU
CONSTANT int used_pairs = GRID_PAIRS + CODE_PAIRS;
CONSTANT int first_part = first_part_of(used_pairs), second_part = used_pairs - first_part;
CONSTANT int whole_pairs = second_part > 0 ? first_part : 2 * INPUT_TILES;
CONSTANT int staged_pairs = whole_pairs > HIDDEN_PAIRS ? whole_pairs : HIDDEN_PAIRS;
CONSTANT int staged_inputs = 8 * (staged_pairs > 4 ? staged_pairs : 4) + 8;
CONSTANT int staged_outputs = HIDDEN + 8;
#else
struct FieldGradients {
    LayerGradient<INPUTS, HIDDEN> density_first;
    LayerGradient<HIDDEN, RAW> density_last;
    LayerGradient<COLOUR_INPUTS, HIDDEN> colour_first;
    LayerGradient<HIDDEN, HIDDEN> inner[INNER_LAYERS];
    LayerGradient<HIDDEN, 3> colour_last;
};
// Gradients of the values in FieldScratch.
struct alignas(64) ActivationGradients {
    float input[INPUTS][PACKET];
    float density_hidden[DENSITY_LAYERS][HIDDEN][PACKET];
    float raw[RAW + DIRECTIONS][PACKET];
    float colour_hidden[COLOUR_LAYERS][HIDDEN][PACKET];
    float colour[3][PACKET];
};
DEVICE void networks_backward(const float* networks, FieldScratch& s, ActivationGradients& d, FieldGradients& sums) {
    constexpr int colours = COLOUR_LAYERS, densities = DENSITY_LAYERS;
    layer_weights(s.colour_hidden[colours - 1], d.colour, sums.colour_last);
    layer_inputs<HIDDEN, 3>(networks + colour_weight(colours), d.colour, d.colour_hidden[colours - 1]);
    mask_relu<HIDDEN>(s.colour_hidden[colours - 1], d.colour_hidden[colours - 1]);
#pragma GCC unroll 3
    for (int i = colours - 1; i > 0; --i) {
        layer_weights(s.colour_hidden[i - 1], d.colour_hidden[i], sums.inner[densities - 2 + i]);
        layer_inputs<HIDDEN, HIDDEN>(networks + colour_weight(i), d.colour_hidden[i], d.colour_hidden[i - 1]);
        mask_relu<HIDDEN>(s.colour_hidden[i - 1], d.colour_hidden[i - 1]);
    }
    layer_weights(s.raw + 1, d.colour_hidden[0], sums.colour_first);
    layer_inputs<COLOUR_INPUTS, HIDDEN, GEOMETRY>(networks + colour_weight(0), d.colour_hidden[0], d.raw + 1);
    layer_weights(s.density_hidden[densities - 1], d.raw, sums.density_last);
    layer_inputs<HIDDEN, RAW>(networks + density_weight(densities), d.raw, d.density_hidden[densities - 1]);
    mask_relu<HIDDEN>(s.density_hidden[densities - 1], d.density_hidden[densities - 1]);
#pragma GCC unroll 3
    for (int i = densities - 1; i > 0; --i) {
        layer_weights(s.density_hidden[i - 1], d.density_hidden[i], sums.inner[i - 1]);
        layer_inputs<HIDDEN, HIDDEN>(networks + density_weight(i), d.density_hidden[i], d.density_hidden[i - 1]);
        mask_relu<HIDDEN>(s.density_hidden[i - 1], d.density_hidden[i - 1]);
    }
    layer_weights(s.input, d.density_hidden[0], sums.density_first);
    layer_inputs<INPUTS, HIDDEN, ENCODED>(networks + density_weight(0), d.density_hidden[0], d.input);
}
#endif

#if ON_GPU
// Backward pass of a layer between two hidden layers: adds to the sums of its weight gradients and replaces the
// gradients of its outputs by those of its inputs `x`. All threads of the block call together.
DEVICE void inner_backward(const uint* fragments, storage_t (*inputs)[staged_inputs],
                           storage_t (*outputs)[staged_outputs], const uint (&x)[HIDDEN_PAIRS][2],
                           WeightSums<HIDDEN_TILES, HIDDEN_PAIRS>& sums, uint (&grad)[HIDDEN_PAIRS][2]) {
    uint grad_inputs[HIDDEN_PAIRS][2];
    __syncthreads();
    stage(inputs, x), stage(outputs, grad);
    __syncthreads();
    add_weights(sums, inputs, outputs);
    relu_backward<HIDDEN_TILES, HIDDEN_PAIRS, 1>(fragments, grad, x, grad_inputs);
    UNROLL
    for (int p = 0; p < HIDDEN_PAIRS; ++p) grad[p][0] = grad_inputs[p][0], grad[p][1] = grad_inputs[p][1];
}
#endif

// Backward pass from `gradient` (capacity, 4), of the loss with respect to raw density and raw colour, times
// LOSS_SCALE. Adds to network_gradients (in the order of the flat vector without the table) and sets encoded_gradients.
// Samples at the upper bound of density get no density gradient. items: any multiple of 256; few are better, because
// each block of 256 ends with an atomic sum over all network weights.
KERNEL(256) field_backward(const FieldWeights weights, const Samples samples, const float* codes, int code_stride,
                           const storage_t* encoded, const float* gradient, float* network_gradients,
                           storage_t* encoded_gradients) {
    const int count = samples.totals[1];
#if ON_GPU
    __shared__ __align__(16) storage_t inputs[TILE][staged_inputs];
    __shared__ __align__(16) storage_t outputs[TILE][staged_outputs];
    const int tiles = (count + TILE - 1) / TILE, t = LANE & 3;
    WeightSums<HIDDEN_TILES, first_part> sums_first = {};
    WeightSums<HIDDEN_TILES, second_part> sums_second = {};  // empty if there is no second part
    WeightSums<1, HIDDEN_PAIRS> sums_raw = {};
    WeightSums<HIDDEN_TILES, COLOUR_PAIRS> sums_geometry = {};
    WeightSums<HIDDEN_TILES, HIDDEN_PAIRS> sums_inner[INNER_LAYERS] = {};
    WeightSums<1, HIDDEN_PAIRS> sums_colour = {};
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const uint* networks = within_loop((const uint*)weights.networks);
        // Repeats the forward pass; samples beyond the last one are zeros with zero gradients.
        uint x[2 * INPUT_TILES][2] = {}, density_hidden[DENSITY_LAYERS][HIDDEN_PAIRS][2], geometry[4][2] = {};
        uint colour_hidden[COLOUR_LAYERS][HIDDEN_PAIRS][2], grad_colour[2][2] = {};
        float raw[2], grad_density[2] = {};
        UNROLL
        for (int s = 0; s < 2; ++s) {
            const int i = tile * TILE + int(threadIdx.x) / PACKET * 16 + 8 * s + LANE / 4;
            if (i >= count) continue;
            UNROLL
            for (int k = 0; k < GRID_PAIRS; ++k)
                if (const uint* place = encoded_address(encoded, samples.capacity, i, k)) x[k][s] = load_pair(place);
            const float* code = codes + size_t(samples.frame[i]) * code_stride;
            UNROLL
            for (int k = 0; k < CODE_PAIRS; ++k)
                x[GRID_PAIRS + k][s] = code_pair(code, k, samples.masks[2 * i], samples.masks[2 * i + 1], true);
            const vec3 direction = load3(samples.direction + 3 * i);
            geometry[2][s] = direction_pair(0, direction);
            geometry[3][s] = direction_pair(1, direction);
            const float* grad = gradient + 4 * size_t(i);
            grad_density[s] = grad[0];
            if (t == 0) grad_colour[0][s] = pack_pair(grad[1], grad[2]);
            if (t == 1) grad_colour[0][s] = pack_pair(grad[3], 0.0f);
        }
        density_network<1>(networks, weights.biases, x, density_hidden, geometry, raw);
        relu_layer<2, HIDDEN_PAIRS, 1>(networks + colour_forward(0), weights.biases + packed_colour_bias(0), geometry,
                                       colour_hidden[0]);
        UNROLL
        for (int i = 1; i < COLOUR_LAYERS; ++i)
            relu_layer<HIDDEN_TILES, HIDDEN_PAIRS, 1>(networks + colour_forward(i),
                                                      weights.biases + packed_colour_bias(i), colour_hidden[i - 1],
                                                      colour_hidden[i]);
        // Layers in reverse order. Shared memory is overwritten only after all threads have read it.
        uint grad[HIDDEN_PAIRS][2], grad_raw[2][2];
        stage(inputs, colour_hidden[COLOUR_LAYERS - 1]), stage(outputs, grad_colour);
        __syncthreads();
        add_weights(sums_colour, inputs, outputs);
        relu_backward<1, HIDDEN_PAIRS, 1>(networks + colour_backward(COLOUR_LAYERS), grad_colour,
                                          colour_hidden[COLOUR_LAYERS - 1], grad);
        UNROLL
        for (int i = COLOUR_LAYERS - 1; i > 0; --i)
            inner_backward(networks + colour_backward(i), inputs, outputs, colour_hidden[i - 1],
                           sums_inner[DENSITY_LAYERS - 2 + i], grad);
        __syncthreads();
        stage(inputs, geometry), stage(outputs, grad);
        __syncthreads();
        add_weights(sums_geometry, inputs, outputs);
        layer<HIDDEN_TILES, GEOMETRY_PAIRS, 1>(
            networks + colour_backward(0), nullptr, grad, [&](int p, int, const float (&c)[4]) {
                UNROLL
                for (int s = 0; s < 2; ++s) {
                    const bool unclamped = !(raw[s] + INITIAL_LOG_DENSITY > MAX_LOG_DENSITY);
                    const bool is_density = p == 0 && t == 0;
                    grad_raw[p][s] =
                        pack_pair(is_density ? (unclamped ? grad_density[s] : 0.0f) : c[2 * s], c[2 * s + 1]);
                }
            });
        __syncthreads();
        stage(inputs, density_hidden[DENSITY_LAYERS - 1]), stage(outputs, grad_raw);
        __syncthreads();
        add_weights(sums_raw, inputs, outputs);
        relu_backward<1, HIDDEN_PAIRS, 1>(networks + density_backward(DENSITY_LAYERS), grad_raw,
                                          density_hidden[DENSITY_LAYERS - 1], grad);
        UNROLL
        for (int i = DENSITY_LAYERS - 1; i > 0; --i)
            inner_backward(networks + density_backward(i), inputs, outputs, density_hidden[i - 1], sums_inner[i - 1],
                           grad);
        __syncthreads();
        stage<0, whole_pairs>(inputs, x), stage(outputs, grad);
        __syncthreads();
        add_weights(sums_first, inputs, outputs);
        if constexpr (second_part > 0) {
            __syncthreads();
            stage<first_part, second_part>(inputs, x);
            __syncthreads();
            add_weights(sums_second, inputs, outputs);
        }
        layer<HIDDEN_TILES, GRID_PAIRS, 1>(
            networks + density_backward(0), nullptr, grad, [&](int k, int, const float (&c)[4]) {
                UNROLL
                for (int s = 0; s < 2; ++s) {
                    const int i = tile * TILE + int(threadIdx.x) / PACKET * 16 + 8 * s + LANE / 4;
                    uint* place = i < count ? encoded_address(encoded_gradients, samples.capacity, i, k) : nullptr;
                    if (place) *place = pack_pair(c[2 * s], c[2 * s + 1]);
                }
            });
        __syncthreads();
    }
    if (int(blockIdx.x) >= tiles) return;
    float* g = network_gradients;
    flush_weights<HIDDEN, INPUTS>(sums_first, g + density_weight(0), g + density_bias(0), input_column);
    if constexpr (second_part > 0)
        flush_weights<HIDDEN, INPUTS>(sums_second, g + density_weight(0), nullptr,
                                      [](int pair, int t, int e) { return input_column(first_part + pair, t, e); });
    UNROLL
    for (int i = 1; i < DENSITY_LAYERS; ++i)
        flush_weights<HIDDEN, HIDDEN>(sums_inner[i - 1], g + density_weight(i), g + density_bias(i), plain_column);
    flush_weights<RAW, HIDDEN>(sums_raw, g + density_weight(DENSITY_LAYERS), g + density_bias(DENSITY_LAYERS),
                               plain_column);
    flush_weights<HIDDEN, COLOUR_INPUTS>(sums_geometry, g + colour_weight(0), g + colour_bias(0), colour_column);
    UNROLL
    for (int i = 1; i < COLOUR_LAYERS; ++i)
        flush_weights<HIDDEN, HIDDEN>(sums_inner[DENSITY_LAYERS - 2 + i], g + colour_weight(i), g + colour_bias(i),
                                      plain_column);
    flush_weights<3, HIDDEN>(sums_colour, g + colour_weight(COLOUR_LAYERS), g + colour_bias(COLOUR_LAYERS),
                             plain_column);
#else
    const int packets = (count + PACKET - 1) / PACKET;
#pragma omp parallel
    {
        FieldGradients sums{};
        FieldScratch scratch{};
        ActivationGradients grads{};
        PacketSamples packet;
#pragma omp for schedule(static)
        for (int p = 0; p < packets; ++p) {
            const int first = p * PACKET, size = count - first < PACKET ? count - first : PACKET;
            load_samples(samples, codes, code_stride, first, count, packet);
            for (int k = 0; k < ENCODED; ++k)
                std::memcpy(scratch.input[k], encoded + size_t(k) * samples.capacity + first, sizeof(float) * size);
            fade_codes(scratch, packet.mouth, packet.eyes, packet.code, packet.valid);
            density_network(weights.networks, scratch);
            colour_network(weights.networks, scratch, packet.direction);
            for (int l = 0; l < PACKET; ++l) {
                const float* grad = gradient + 4 * size_t(first + (l < size ? l : 0));
                const bool unclamped = l < size && !(scratch.raw[0][l] + INITIAL_LOG_DENSITY > MAX_LOG_DENSITY);
                grads.raw[0][l] = unclamped ? grad[0] : 0.0f;
                for (int c = 0; c < 3; ++c) grads.colour[c][l] = l < size ? grad[1 + c] : 0.0f;
            }
            networks_backward(weights.networks, scratch, grads, sums);
            for (int k = 0; k < ENCODED; ++k)
                std::memcpy(encoded_gradients + size_t(k) * samples.capacity + first, grads.input[k],
                            sizeof(float) * size);
        }
        // Threads add one after another, so that the same number of threads gives the same sums.
        for (int t = 0; t < omp_get_num_threads(); ++t) {
#pragma omp barrier
            if (t != omp_get_thread_num()) continue;
            float* g = network_gradients;
            add_layer(sums.density_first, g + density_weight(0), g + density_bias(0));
            for (int i = 1; i < DENSITY_LAYERS; ++i)
                add_layer(sums.inner[i - 1], g + density_weight(i), g + density_bias(i));
            add_layer(sums.density_last, g + density_weight(DENSITY_LAYERS), g + density_bias(DENSITY_LAYERS));
            add_layer(sums.colour_first, g + colour_weight(0), g + colour_bias(0));
            for (int i = 1; i < COLOUR_LAYERS; ++i)
                add_layer(sums.inner[DENSITY_LAYERS - 2 + i], g + colour_weight(i), g + colour_bias(i));
            add_layer(sums.colour_last, g + colour_weight(COLOUR_LAYERS), g + colour_bias(COLOUR_LAYERS));
        }
    }
#endif
}

#if ON_GPU
// Packs the networks of the flat vector into tensor-core fragments. items: packed words and biases.
KERNEL(256) pack_networks(const float* networks, storage_t* packed, float* biases) {
    EACH(i, packed_words + packed_biases) {
        const float* n = networks;
        uint* word = (uint*)packed + i;
        if (i >= packed_words) {
            const int b = i - packed_words, of_colour = b - packed_colour_bias(0);
            if (of_colour < 0) {
                const int layer = b < DENSITY_LAYERS * HIDDEN ? b / HIDDEN : DENSITY_LAYERS;
                biases[b] = n[density_bias(layer) + b - packed_density_bias(layer)];
            } else {
                const int layer = of_colour < COLOUR_LAYERS * HIDDEN ? of_colour / HIDDEN : COLOUR_LAYERS;
                const int k = b - packed_colour_bias(layer);
                biases[b] = layer < COLOUR_LAYERS || k < 3 ? n[colour_bias(layer) + k] : 0.0f;
            }
        } else if (i < density_forward(1)) {
            *word = pack_forward<INPUT_TILES>(i, n + density_weight(0), INPUTS, HIDDEN, input_column);
        } else if (i < density_forward(DENSITY_LAYERS)) {
            const int layer = 1 + (i - density_forward(1)) / inner_words;
            *word = pack_forward<HIDDEN_TILES>(i - density_forward(layer), n + density_weight(layer), HIDDEN, HIDDEN,
                                               plain_column);
        } else if (i < colour_forward(0)) {
            *word = pack_forward<HIDDEN_TILES>(i - density_forward(DENSITY_LAYERS), n + density_weight(DENSITY_LAYERS),
                                               HIDDEN, RAW, plain_column);
        } else if (i < colour_forward(1)) {
            *word = pack_forward<2>(i - colour_forward(0), n + colour_weight(0), COLOUR_INPUTS, HIDDEN, colour_column);
        } else if (i < colour_forward(COLOUR_LAYERS)) {
            const int layer = 1 + (i - colour_forward(1)) / inner_words;
            *word = pack_forward<HIDDEN_TILES>(i - colour_forward(layer), n + colour_weight(layer), HIDDEN, HIDDEN,
                                               plain_column);
        } else if (i < forward_words) {
            *word = pack_forward<HIDDEN_TILES>(i - colour_forward(COLOUR_LAYERS), n + colour_weight(COLOUR_LAYERS),
                                               HIDDEN, 3, plain_column);
        } else if (i < density_backward(1)) {
            *word = pack_backward<HIDDEN_TILES>(i - forward_words, n + density_weight(0), INPUTS, HIDDEN, input_column);
        } else if (i < density_backward(DENSITY_LAYERS)) {
            const int layer = 1 + (i - density_backward(1)) / inner_words;
            *word = pack_backward<HIDDEN_TILES>(i - density_backward(layer), n + density_weight(layer), HIDDEN, HIDDEN,
                                                plain_column);
        } else if (i < colour_backward(0)) {
            *word = pack_backward<1>(i - density_backward(DENSITY_LAYERS), n + density_weight(DENSITY_LAYERS), HIDDEN,
                                     RAW, plain_column);
        } else if (i < colour_backward(1)) {
            *word = pack_backward<HIDDEN_TILES>(i - colour_backward(0), n + colour_weight(0), COLOUR_INPUTS, HIDDEN,
                                                colour_column);
        } else if (i < colour_backward(COLOUR_LAYERS)) {
            const int layer = 1 + (i - colour_backward(1)) / inner_words;
            *word = pack_backward<HIDDEN_TILES>(i - colour_backward(layer), n + colour_weight(layer), HIDDEN, HIDDEN,
                                                plain_column);
        } else {
            *word = pack_backward<1>(i - colour_backward(COLOUR_LAYERS), n + colour_weight(COLOUR_LAYERS), HIDDEN, 3,
                                     plain_column);
        }
    }
}
#endif
