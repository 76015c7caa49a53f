// The field over packed samples: what learning runs forward and backward.
//
// Between the passes lie the hash grid's features, `encoded`, and then their gradients: level by level, so that samples
// side by side lie side by side. The layout is this file's own matter: capacity * LEVELS * FEATURES numbers.
#include "field.cuh"

#if ON_GPU
// Where a lane's pair of a sample lies; null beyond the last level.
DEVICE uint* encoded_place(const storage_t* encoded, int capacity, int sample, int pair) {
    const int level = 4 * (pair / ROW_PAIRS) + (LANE & 3);
    if (level >= LEVELS) return nullptr;
    return (uint*)encoded + (size_t(level) * capacity + sample) * ROW_PAIRS + pair % ROW_PAIRS;
}
#else

// What a packet needs of its samples. Lanes beyond the last sample are not valid and hold zeros.
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

// Density (capacity) per metre and colour (capacity, 3) of the samples; `encoded` (or null) is kept for field_backward.
// A sample's code is the row samples.frame of `codes`, which lie code_stride floats apart. Items: the capacity.
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
                    if (uint* place = encoded_place(encoded, samples.capacity, sample, k)) *place = x[k][s];
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
                std::memcpy(encoded + size_t(k) * samples.capacity + p * PACKET, scratch.input[k], sizeof(float) * size);
    }
#endif
}

#if ON_GPU
CONSTANT int staged_pairs = 2 * INPUT_TILES > HIDDEN_PAIRS ? 2 * INPUT_TILES : HIDDEN_PAIRS;
CONSTANT int staged_inputs = 8 * (staged_pairs > 4 ? staged_pairs : 4) + 8;
CONSTANT int staged_outputs = HIDDEN + 8;
#else
struct FieldGradients {
    LayerGradient<INPUTS, HIDDEN> layer_1;
    LayerGradient<HIDDEN, RAW> layer_2;
    LayerGradient<COLOUR_INPUTS, HIDDEN> layer_3;
    LayerGradient<HIDDEN, HIDDEN> layer_4;
    LayerGradient<HIDDEN, 3> layer_5;
};
// The gradients of what FieldScratch holds.
struct alignas(64) FieldPulls {
    float input[INPUTS][PACKET];
    float hidden[HIDDEN][PACKET];
    float raw[RAW + 4][PACKET];
    float hidden_1[HIDDEN][PACKET];
    float hidden_2[HIDDEN][PACKET];
    float colour[3][PACKET];
};
DEVICE void networks_backward(const float* networks, FieldScratch& s, FieldPulls& d, FieldGradients& sums) {
    layer_weights(s.hidden_2, d.colour, sums.layer_5);
    layer_inputs<HIDDEN, 3>(networks + weight_5, d.colour, d.hidden_2);
    mask_relu<HIDDEN>(s.hidden_2, d.hidden_2);
    layer_weights(s.hidden_1, d.hidden_2, sums.layer_4);
    layer_inputs<HIDDEN, HIDDEN>(networks + weight_4, d.hidden_2, d.hidden_1);
    mask_relu<HIDDEN>(s.hidden_1, d.hidden_1);
    layer_weights(s.raw + 1, d.hidden_1, sums.layer_3);
    layer_inputs<COLOUR_INPUTS, HIDDEN, GEOMETRY>(networks + weight_3, d.hidden_1, d.raw + 1);
    layer_weights(s.hidden, d.raw, sums.layer_2);
    layer_inputs<HIDDEN, RAW>(networks + weight_2, d.raw, d.hidden);
    mask_relu<HIDDEN>(s.hidden, d.hidden);
    layer_weights(s.input, d.hidden, sums.layer_1);
    layer_inputs<INPUTS, HIDDEN, ENCODED>(networks + weight_1, d.hidden, d.input);
}
#endif

// From `gradient` (capacity, 4), of the loss with respect to the logarithm of density and to colour before its
// sigmoid, times LOSS_SCALE: adds to network_gradients (in the order of the flat vector, without the table) and sets
// encoded_gradients. Where density is at its limit, its gradient is taken for zero. Items: any multiple of 256; few
// are better, as each block of 256 ends with an atomic sum of all networks.
KERNEL(256) field_backward(const FieldWeights weights, const Samples samples, const float* codes, int code_stride,
                           const storage_t* encoded, const float* gradient, float* network_gradients,
                           storage_t* encoded_gradients) {
    const int count = samples.totals[1];
#if ON_GPU
    __shared__ __align__(16) storage_t inputs[TILE][staged_inputs];
    __shared__ __align__(16) storage_t outputs[TILE][staged_outputs];
    const int tiles = (count + TILE - 1) / TILE, t = LANE & 3;
    WeightSums<HIDDEN_TILES, GRID_PAIRS + CODE_PAIRS> sums_1 = {};
    WeightSums<1, HIDDEN_PAIRS> sums_2 = {};
    WeightSums<HIDDEN_TILES, 3> sums_3 = {};
    WeightSums<HIDDEN_TILES, HIDDEN_PAIRS> sums_4 = {};
    WeightSums<1, HIDDEN_PAIRS> sums_5 = {};
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const uint* networks = within_loop((const uint*)weights.networks);
        // The forward pass again; samples beyond the last one are zeros and pull at nothing.
        uint x[2 * INPUT_TILES][2] = {}, hidden[HIDDEN_PAIRS][2], geometry[4][2] = {};
        uint hidden_1[HIDDEN_PAIRS][2], hidden_2[HIDDEN_PAIRS][2], pull_colour[2][2] = {};
        float raw[2], pull_density[2] = {};
        UNROLL
        for (int s = 0; s < 2; ++s) {
            const int i = tile * TILE + int(threadIdx.x) / PACKET * 16 + 8 * s + LANE / 4;
            if (i >= count) continue;
            UNROLL
            for (int k = 0; k < GRID_PAIRS; ++k)
                if (const uint* place = encoded_place(encoded, samples.capacity, i, k)) x[k][s] = load_pair(place);
            const float* code = codes + size_t(samples.frame[i]) * code_stride;
            UNROLL
            for (int k = 0; k < CODE_PAIRS; ++k)
                x[GRID_PAIRS + k][s] = code_pair(code, k, samples.masks[2 * i], samples.masks[2 * i + 1], true);
            geometry[2][s] = direction_pair(load3(samples.direction + 3 * i));
            const float* pull = gradient + 4 * size_t(i);
            pull_density[s] = pull[0];
            if (t == 0) pull_colour[0][s] = pack_pair(pull[1], pull[2]);
            if (t == 1) pull_colour[0][s] = pack_pair(pull[3], 0.0f);
        }
        density_network<1>(networks, weights.biases, x, hidden, geometry, raw);
        relu_layer<2, HIDDEN_PAIRS, 1>(networks + forward_3, weights.biases + packed_bias_3, geometry, hidden_1);
        relu_layer<HIDDEN_TILES, HIDDEN_PAIRS, 1>(networks + forward_4, weights.biases + packed_bias_4, hidden_1,
                                                  hidden_2);
        // Layer by layer back. Who writes to shared memory waits until all have read what was there.
        stage(inputs, hidden_2), stage(outputs, pull_colour);
        __syncthreads();
        add_weights(sums_5, inputs, outputs);
        uint pull_2[HIDDEN_PAIRS][2], pull_1[HIDDEN_PAIRS][2], pull_hidden[HIDDEN_PAIRS][2], pull_raw[2][2];
        relu_backward<1, HIDDEN_PAIRS, 1>(networks + backward_5, pull_colour, hidden_2, pull_2);
        __syncthreads();
        stage(inputs, hidden_1), stage(outputs, pull_2);
        __syncthreads();
        add_weights(sums_4, inputs, outputs);
        relu_backward<HIDDEN_TILES, HIDDEN_PAIRS, 1>(networks + backward_4, pull_2, hidden_1, pull_1);
        __syncthreads();
        stage(inputs, geometry), stage(outputs, pull_1);
        __syncthreads();
        add_weights(sums_3, inputs, outputs);
        layer<HIDDEN_TILES, 2, 1>(networks + backward_3, nullptr, pull_1, [&](int p, int, const float (&c)[4]) {
            UNROLL
            for (int s = 0; s < 2; ++s) {
                const bool free = !(raw[s] + INITIAL_LOG_DENSITY > MAX_LOG_DENSITY);
                const bool is_density = p == 0 && t == 0;
                pull_raw[p][s] = pack_pair(is_density ? (free ? pull_density[s] : 0.0f) : c[2 * s], c[2 * s + 1]);
            }
        });
        __syncthreads();
        stage(inputs, hidden), stage(outputs, pull_raw);
        __syncthreads();
        add_weights(sums_2, inputs, outputs);
        relu_backward<1, HIDDEN_PAIRS, 1>(networks + backward_2, pull_raw, hidden, pull_hidden);
        __syncthreads();
        stage(inputs, x), stage(outputs, pull_hidden);
        __syncthreads();
        add_weights(sums_1, inputs, outputs);
        layer<HIDDEN_TILES, GRID_PAIRS, 1>(
            networks + backward_1, nullptr, pull_hidden, [&](int k, int, const float (&c)[4]) {
                UNROLL
                for (int s = 0; s < 2; ++s) {
                    const int i = tile * TILE + int(threadIdx.x) / PACKET * 16 + 8 * s + LANE / 4;
                    uint* place = i < count ? encoded_place(encoded_gradients, samples.capacity, i, k) : nullptr;
                    if (place) *place = pack_pair(c[2 * s], c[2 * s + 1]);
                }
            });
        __syncthreads();
    }
    if (int(blockIdx.x) >= tiles) return;
    float* g = network_gradients;
    flush_weights<HIDDEN, INPUTS>(sums_1, g + weight_1, g + bias_1, input_column);
    flush_weights<RAW, HIDDEN>(sums_2, g + weight_2, g + bias_2, plain_column);
    flush_weights<HIDDEN, COLOUR_INPUTS>(sums_3, g + weight_3, g + bias_3, colour_column);
    flush_weights<HIDDEN, HIDDEN>(sums_4, g + weight_4, g + bias_4, plain_column);
    flush_weights<3, HIDDEN>(sums_5, g + weight_5, g + bias_5, plain_column);
#else
    const int packets = (count + PACKET - 1) / PACKET;
#pragma omp parallel
    {
        FieldGradients sums{};
        FieldScratch scratch{};
        FieldPulls pulls{};
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
                const float* pull = gradient + 4 * size_t(first + (l < size ? l : 0));
                const bool free = l < size && !(scratch.raw[0][l] + INITIAL_LOG_DENSITY > MAX_LOG_DENSITY);
                pulls.raw[0][l] = free ? pull[0] : 0.0f;
                for (int c = 0; c < 3; ++c) pulls.colour[c][l] = l < size ? pull[1 + c] : 0.0f;
            }
            networks_backward(weights.networks, scratch, pulls, sums);
            for (int k = 0; k < ENCODED; ++k)
                std::memcpy(encoded_gradients + size_t(k) * samples.capacity + first, pulls.input[k],
                            sizeof(float) * size);
        }
        // One thread after another, so that the same number of threads gives the same sums.
        for (int t = 0; t < omp_get_num_threads(); ++t) {
#pragma omp barrier
            if (t != omp_get_thread_num()) continue;
            add_layer(sums.layer_1, network_gradients + weight_1, network_gradients + bias_1);
            add_layer(sums.layer_2, network_gradients + weight_2, network_gradients + bias_2);
            add_layer(sums.layer_3, network_gradients + weight_3, network_gradients + bias_3);
            add_layer(sums.layer_4, network_gradients + weight_4, network_gradients + bias_4);
            add_layer(sums.layer_5, network_gradients + weight_5, network_gradients + bias_5);
        }
    }
#endif
}

#if ON_GPU
// The networks, in the order of the flat vector, as tensor cores take them. Items: packed words and biases.
KERNEL(256) pack_networks(const float* networks, storage_t* packed, float* biases) {
    EACH(i, packed_words + packed_biases) {
        const float* n = networks;
        uint* word = (uint*)packed + i;
        if (i < forward_2) {
            *word = pack_forward<INPUT_TILES>(i - forward_1, n + weight_1, INPUTS, HIDDEN, input_column);
        } else if (i < forward_3) {
            *word = pack_forward<HIDDEN_TILES>(i - forward_2, n + weight_2, HIDDEN, RAW, plain_column);
        } else if (i < forward_4) {
            *word = pack_forward<2>(i - forward_3, n + weight_3, COLOUR_INPUTS, HIDDEN, colour_column);
        } else if (i < forward_5) {
            *word = pack_forward<HIDDEN_TILES>(i - forward_4, n + weight_4, HIDDEN, HIDDEN, plain_column);
        } else if (i < backward_5) {
            *word = pack_forward<HIDDEN_TILES>(i - forward_5, n + weight_5, HIDDEN, 3, plain_column);
        } else if (i < backward_4) {
            *word = pack_backward<1>(i - backward_5, n + weight_5, HIDDEN, 3, plain_column);
        } else if (i < backward_3) {
            *word = pack_backward<HIDDEN_TILES>(i - backward_4, n + weight_4, HIDDEN, HIDDEN, plain_column);
        } else if (i < backward_2) {
            *word = pack_backward<HIDDEN_TILES>(i - backward_3, n + weight_3, COLOUR_INPUTS, HIDDEN, colour_column);
        } else if (i < backward_1) {
            *word = pack_backward<1>(i - backward_2, n + weight_2, HIDDEN, RAW, plain_column);
        } else if (i < packed_words) {
            *word = pack_backward<HIDDEN_TILES>(i - backward_1, n + weight_1, INPUTS, HIDDEN, input_column);
        } else {
            const int b = i - packed_words;
            biases[b] = b < packed_bias_2   ? n[bias_1 + b - packed_bias_1]
                        : b < packed_bias_3 ? n[bias_2 + b - packed_bias_2]
                        : b < packed_bias_4 ? n[bias_3 + b - packed_bias_3]
                        : b < packed_bias_5 ? n[bias_4 + b - packed_bias_4]
                        : b < packed_bias_5 + 3 ? n[bias_5 + b - packed_bias_5]
                                                : 0.0f;
        }
    }
}
#endif
