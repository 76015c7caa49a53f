// The radiance field of field/radiance.py over packets of 32 samples: hash grid, density network, colour network.
// All 32 lanes call together. Lanes that are not valid get finite nonsense, and nothing is read for them.
#pragma once
#include "fastmath.cuh"
#include "hashgrid.cuh"
#include "layout.cuh"
#include "mlp.cuh"

#define INPUTS (ENCODED + CODE_WIDTH)
#define RAW (1 + GEOMETRY)              // outputs of the density network: log density, then geometry features
#define COLOUR_INPUTS (GEOMETRY + 4)    // geometry features and the direction's spherical harmonics 1, x, y, z

// Where the networks' parts lie in the flat vector of parameters, from the first weight on.
CONSTANT int weight_1 = 0, bias_1 = weight_1 + HIDDEN * INPUTS;
CONSTANT int weight_2 = bias_1 + HIDDEN, bias_2 = weight_2 + RAW * HIDDEN;
CONSTANT int weight_3 = bias_2 + RAW, bias_3 = weight_3 + HIDDEN * COLOUR_INPUTS;
CONSTANT int weight_4 = bias_3 + HIDDEN, bias_4 = weight_4 + HIDDEN * HIDDEN;
CONSTANT int weight_5 = bias_4 + HIDDEN, bias_5 = weight_5 + 3 * HIDDEN;
CONSTANT int NETWORK_SIZE = bias_5 + 3;

DEVICE float log_density(float raw) {
    raw += INITIAL_LOG_DENSITY;
    return raw < MAX_LOG_DENSITY ? raw : MAX_LOG_DENSITY;
}

#if ON_GPU
#else

// What the layers hold, [neuron][sample]. Rows 1.. of `raw` are the colour network's input.
struct alignas(64) FieldScratch {
    float point[3][PACKET];
    float input[INPUTS][PACKET];
    float hidden[HIDDEN][PACKET];
    float raw[RAW + 4][PACKET];
    float hidden_1[HIDDEN][PACKET];
    float hidden_2[HIDDEN][PACKET];
    float colour[3][PACKET];
};

DEVICE void fade_codes(FieldScratch& scratch, const float (&mouth)[LANES], const float (&eyes)[LANES],
                       const float* const (&code)[LANES], const bool (&valid)[LANES]) {
    for (int l = 0; l < PACKET; ++l)
        for (int k = 0; k < CODE_WIDTH; ++k)
            scratch.input[ENCODED + k][l] = valid[l] ? code[l][k] * (k < MOUTH_WIDTH ? mouth[l] : eyes[l]) : 0.0f;
}
DEVICE void density_network(const float* networks, FieldScratch& s) {
    layer<INPUTS, HIDDEN, true>(networks + weight_1, networks + bias_1, s.input, s.hidden);
    layer<HIDDEN, RAW, false>(networks + weight_2, networks + bias_2, s.hidden, s.raw);
}
DEVICE void colour_network(const float* networks, FieldScratch& s, const vec3 (&direction)[LANES]) {
    FOR_LANES(l) {
        s.raw[RAW][l] = 1.0f;
        s.raw[RAW + 1][l] = direction[l].x;
        s.raw[RAW + 2][l] = direction[l].y;
        s.raw[RAW + 3][l] = direction[l].z;
    }
    layer<COLOUR_INPUTS, HIDDEN, true>(networks + weight_3, networks + bias_3, s.raw + 1, s.hidden_1);
    layer<HIDDEN, HIDDEN, true>(networks + weight_4, networks + bias_4, s.hidden_1, s.hidden_2);
    layer<HIDDEN, 3, false>(networks + weight_5, networks + bias_5, s.hidden_2, s.colour);
}

// Density per metre at points of the unit cube. `code` is each lane's (CODE_WIDTH) expression code, not yet faded.
DEVICE void field_density(const FieldWeights& weights, FieldScratch& scratch, const vec3 (&unit)[LANES],
                          const float (&mouth)[LANES], const float (&eyes)[LANES], const float* const (&code)[LANES],
                          const bool (&valid)[LANES], float (&density)[LANES]) {
    set_points(unit, scratch.point);
    encode(weights.table, scratch.point, valid, scratch.input);
    fade_codes(scratch, mouth, eyes, code, valid);
    density_network(weights.networks, scratch);
    FOR_LANES(l) density[l] = fast_exp(log_density(scratch.raw[0][l]));
}

// ... and colour, sRGB in [0, 1], seen along a unit canonical direction.
DEVICE void field_forward(const FieldWeights& weights, FieldScratch& scratch, const vec3 (&unit)[LANES],
                          const vec3 (&direction)[LANES], const float (&mouth)[LANES], const float (&eyes)[LANES],
                          const float* const (&code)[LANES], const bool (&valid)[LANES], float (&density)[LANES],
                          vec3 (&colour)[LANES]) {
    field_density(weights, scratch, unit, mouth, eyes, code, valid, density);
    colour_network(weights.networks, scratch, direction);
    FOR_LANES(l) {
        colour[l].x = sigmoid(scratch.colour[0][l]);
        colour[l].y = sigmoid(scratch.colour[1][l]);
        colour[l].z = sigmoid(scratch.colour[2][l]);
    }
}

#endif
