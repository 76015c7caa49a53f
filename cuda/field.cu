// The field over packed samples: what learning runs forward and backward.
//
// Between the passes lie the hash grid's features, `encoded`, and then their gradients: level by level, so that samples
// side by side lie side by side. The layout is this file's own matter: capacity * LEVELS * FEATURES numbers.
#include "field.cuh"

#if ON_GPU
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
#endif
