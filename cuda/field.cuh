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

struct FieldScratch {};  // all is in registers

#define CODE_PAIRS ((CODE_WIDTH + 7) / 8)
#define INPUT_TILES ((GRID_PAIRS + CODE_PAIRS + 1) / 2)
#define HIDDEN_TILES (HIDDEN / 16)
#define HIDDEN_PAIRS (HIDDEN / 8)
static_assert(HIDDEN % 16 == 0, "layers come in tiles of 16");
static_assert(RAW == 16, "the density network gives two pairs");

// The packed networks in words of two fp16: five layers forward, five backward.
CONSTANT int forward_1 = 0, forward_2 = forward_1 + FRAGMENT * INPUT_TILES * HIDDEN_PAIRS;
CONSTANT int forward_3 = forward_2 + FRAGMENT * HIDDEN_TILES * 2, forward_4 = forward_3 + FRAGMENT * 2 * HIDDEN_PAIRS;
CONSTANT int forward_5 = forward_4 + FRAGMENT * HIDDEN_TILES * HIDDEN_PAIRS;
CONSTANT int backward_5 = forward_5 + FRAGMENT * HIDDEN_TILES, backward_4 = backward_5 + FRAGMENT * HIDDEN_PAIRS;
CONSTANT int backward_3 = backward_4 + FRAGMENT * HIDDEN_TILES * HIDDEN_PAIRS;
CONSTANT int backward_2 = backward_3 + FRAGMENT * HIDDEN_TILES * 2, backward_1 = backward_2 + FRAGMENT * HIDDEN_PAIRS;
CONSTANT int packed_words = backward_1 + FRAGMENT * HIDDEN_TILES * GRID_PAIRS;
static_assert(2 * packed_words == PACKED_SIZE, "field/packed.py makes room for the packed networks");
// ... and their biases, padded to whole pairs.
CONSTANT int packed_bias_1 = 0, packed_bias_2 = HIDDEN, packed_bias_3 = packed_bias_2 + RAW;
CONSTANT int packed_bias_4 = packed_bias_3 + HIDDEN, packed_bias_5 = packed_bias_4 + HIDDEN;
CONSTANT int packed_biases = packed_bias_5 + 8;

// Which input of the density network, and of the colour network, a lane's pair holds; -1: none. The colour network
// takes the density network's outputs as they are; the first one, the density, has no weight there.
DEVICE int input_column(int pair, int t, int e) {
    if (pair < GRID_PAIRS) return grid_column(pair, t, e);
    const int k = 8 * (pair - GRID_PAIRS) + 2 * t + e;
    return k < CODE_WIDTH ? ENCODED + k : -1;
}
DEVICE int colour_column(int pair, int t, int e) {
    const int k = 8 * pair + 2 * t + e - 1;
    return k < COLOUR_INPUTS ? k : -1;
}

// Pairs of a faded code, of one sample; `code` is not read if the sample is not valid.
DEVICE uint code_pair(const float* code, int pair, float mouth, float eyes, bool valid) {
    float value[2];
    UNROLL
    for (int e = 0; e < 2; ++e) {
        const int k = 8 * pair + 2 * (LANE & 3) + e;
        value[e] = valid && k < CODE_WIDTH ? code[k] * (k < MOUTH_WIDTH ? mouth : eyes) : 0.0f;
    }
    return pack_pair(value[0], value[1]);
}
DEVICE uint direction_pair(vec3 direction) {
    const int t = LANE & 3;
    return t == 0 ? pack_pair(1.0f, direction.x) : t == 1 ? pack_pair(direction.y, direction.z) : 0u;
}

// Outputs of the density network as the colour network's inputs (the two pairs of the direction are left alone), and
// its first output, in lanes with t = 0.
template <int M>
DEVICE void density_network(const uint* networks, const float* biases, const uint (&x)[2 * INPUT_TILES][2 * M],
                            uint (&hidden)[HIDDEN_PAIRS][2 * M], uint (&geometry)[4][2 * M], float (&raw)[2 * M]) {
    const bool first = (LANE & 3) == 0;
    relu_layer<INPUT_TILES, HIDDEN_PAIRS, M>(networks + forward_1, biases + packed_bias_1, x, hidden);
    layer<HIDDEN_TILES, 2, M>(networks + forward_2, biases + packed_bias_2, hidden,
                              [&](int p, int m, const float (&c)[4]) {
                                  if (p == 0) raw[2 * m] = c[0], raw[2 * m + 1] = c[2];
                                  const bool skip = p == 0 && first;
                                  geometry[p][2 * m] = pack_pair(skip ? 0.0f : c[0], c[1]);
                                  geometry[p][2 * m + 1] = pack_pair(skip ? 0.0f : c[2], c[3]);
                              });
}

// To lanes with a sample each: `value` of lanes (g, t) of samples g + 8 s.
DEVICE float to_own_lane(const float (&value)[4], int t) {
    float own = 0.0f;
    UNROLL
    for (int s = 0; s < 4; ++s) {
        const float v = __shfl_sync(0xffffffffu, value[s], (LANE & 7) * 4 + t);
        if (LANE >> 3 == s) own = v;
    }
    return own;
}

// The density network's inputs, from lanes with a sample each.
DEVICE void field_inputs(const FieldWeights& weights, const vec3 (&unit)[LANES], const float (&mouth)[LANES],
                         const float (&eyes)[LANES], const float* const (&code)[LANES], const bool (&valid)[LANES],
                         uint (&x)[2 * INPUT_TILES][4]) {
    const uint all = 0xffffffffu, valid_lanes = __ballot_sync(all, valid[0]);
    float point[4][3];
    bool ok[4];
    UNROLL
    for (int s = 0; s < 4; ++s) {
        const int source = 8 * s + LANE / 4;
        ok[s] = valid_lanes >> source & 1;
        point[s][0] = clamp_unit(__shfl_sync(all, unit[0].x, source));
        point[s][1] = clamp_unit(__shfl_sync(all, unit[0].y, source));
        point[s][2] = clamp_unit(__shfl_sync(all, unit[0].z, source));
        const float sample_mouth = __shfl_sync(all, mouth[0], source), sample_eyes = __shfl_sync(all, eyes[0], source);
        const float* sample_code = (const float*)__shfl_sync(all, (unsigned long long)code[0], source);
        UNROLL
        for (int p = 0; p < CODE_PAIRS; ++p)
            x[GRID_PAIRS + p][s] = code_pair(sample_code, p, sample_mouth, sample_eyes, ok[s]);
        if (GRID_PAIRS + CODE_PAIRS < 2 * INPUT_TILES) x[2 * INPUT_TILES - 1][s] = 0u;
    }
    uint features[GRID_PAIRS][4];
    encode(weights.table, point, ok, features);
    UNROLL
    for (int p = 0; p < GRID_PAIRS; ++p)
        UNROLL
        for (int s = 0; s < 4; ++s) x[p][s] = features[p][s];
}
DEVICE void field_outputs(const FieldWeights& weights, uint (&x)[2 * INPUT_TILES][4], uint (&geometry)[4][4],
                          float (&density)[LANES]) {
    uint hidden[HIDDEN_PAIRS][4];
    float raw[4];
    density_network<2>((const uint*)weights.networks, weights.biases, x, hidden, geometry, raw);
    density[0] = fast_exp(log_density(to_own_lane(raw, 0)));
}
DEVICE void field_colours(const FieldWeights& weights, const vec3 (&direction)[LANES], const bool (&valid)[LANES],
                          uint (&geometry)[4][4], vec3 (&colour)[LANES]) {
    const uint* networks = (const uint*)weights.networks;
    const uint all = 0xffffffffu;
    const vec3 own = valid[0] ? direction[0] : vec3{0.0f, 0.0f, 0.0f};
    UNROLL
    for (int s = 0; s < 4; ++s) {
        const int source = 8 * s + LANE / 4;
        geometry[2][s] = direction_pair(vec3{__shfl_sync(all, own.x, source), __shfl_sync(all, own.y, source),
                                             __shfl_sync(all, own.z, source)});
        geometry[3][s] = 0u;
    }
    uint hidden_1[HIDDEN_PAIRS][4], hidden_2[HIDDEN_PAIRS][4];
    relu_layer<2, HIDDEN_PAIRS, 2>(networks + forward_3, weights.biases + packed_bias_3, geometry, hidden_1);
    relu_layer<HIDDEN_TILES, HIDDEN_PAIRS, 2>(networks + forward_4, weights.biases + packed_bias_4, hidden_1, hidden_2);
    float even[4], odd[4];
    layer<HIDDEN_TILES, 1, 2>(networks + forward_5, weights.biases + packed_bias_5, hidden_2,
                              [&](int, int m, const float (&c)[4]) {
                                  even[2 * m] = c[0], even[2 * m + 1] = c[2];
                                  odd[2 * m] = c[1], odd[2 * m + 1] = c[3];
                              });
    colour[0].x = sigmoid(to_own_lane(even, 0));
    colour[0].y = sigmoid(to_own_lane(odd, 0));
    colour[0].z = sigmoid(to_own_lane(even, 1));
}

DEVICE void field_density(const FieldWeights& weights, FieldScratch&, const vec3 (&unit)[LANES],
                          const float (&mouth)[LANES], const float (&eyes)[LANES], const float* const (&code)[LANES],
                          const bool (&valid)[LANES], float (&density)[LANES]) {
    uint x[2 * INPUT_TILES][4], geometry[4][4];
    field_inputs(weights, unit, mouth, eyes, code, valid, x);
    field_outputs(weights, x, geometry, density);
}
DEVICE void field_forward(const FieldWeights& weights, FieldScratch&, const vec3 (&unit)[LANES],
                          const vec3 (&direction)[LANES], const float (&mouth)[LANES], const float (&eyes)[LANES],
                          const float* const (&code)[LANES], const bool (&valid)[LANES], float (&density)[LANES],
                          vec3 (&colour)[LANES]) {
    uint x[2 * INPUT_TILES][4], geometry[4][4];
    field_inputs(weights, unit, mouth, eyes, code, valid, x);
    field_outputs(weights, x, geometry, density);
    field_colours(weights, direction, valid, geometry, colour);
}

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
