// The radiance field of field/radiance.py over packets of 32 samples: hash grid, density network, colour network. All
// 32 lanes call these functions together. Invalid lanes get arbitrary finite values, and nothing is read for them.
#pragma once
#include "fastmath.cuh"
#include "hashgrid.cuh"
#include "layout.cuh"
#include "mlp.cuh"

#define INPUTS (ENCODED + CODE_WIDTH)
#define RAW (1 + GEOMETRY)              // outputs of the density network: log density, then geometry features
#define DIRECTIONS (DIRECTION_BANDS * DIRECTION_BANDS)  // spherical harmonics of the direction, band by band
#define COLOUR_INPUTS (GEOMETRY + DIRECTIONS)           // geometry features, then the harmonics of the direction
static_assert(DIRECTION_BANDS >= 1 && DIRECTION_BANDS <= 4, "harmonics fill two pairs at most");
static_assert(DENSITY_LAYERS >= 1 && (COLOUR_LAYERS == 2 || COLOUR_LAYERS == 3), "layers that code below reckons with");

// Number of layers between two hidden layers, of both networks; those of the density network come first.
#define INNER_LAYERS (DENSITY_LAYERS + COLOUR_LAYERS - 2)

// Offsets of weights and biases in the flat parameter vector, relative to the first network weight. Layer 0 has the
// network inputs, layer DENSITY_LAYERS or COLOUR_LAYERS gives the outputs.
DEVICE constexpr int density_weight(int layer) {
    return layer == 0 ? 0 : HIDDEN * (INPUTS + 1) + (layer - 1) * HIDDEN * (HIDDEN + 1);
}
DEVICE constexpr int density_bias(int layer) {
    return density_weight(layer) + HIDDEN * (layer == 0 ? INPUTS : layer == DENSITY_LAYERS ? RAW : HIDDEN);
}
DEVICE constexpr int colour_weight(int layer) {
    return density_bias(DENSITY_LAYERS) + RAW +
           (layer == 0 ? 0 : HIDDEN * (COLOUR_INPUTS + 1) + (layer - 1) * HIDDEN * (HIDDEN + 1));
}
DEVICE constexpr int colour_bias(int layer) {
    return colour_weight(layer) + HIDDEN * (layer == 0 ? COLOUR_INPUTS : layer == COLOUR_LAYERS ? 3 : HIDDEN);
}
CONSTANT int NETWORK_SIZE = colour_bias(COLOUR_LAYERS) + 3;

// Real spherical harmonics of a unit vector, each band scaled (Schmidt normalisation) so that its squares add up to
// one.
DEVICE float harmonic(int k, vec3 d) {
    switch (k) {
        case 0: return 1.0f;
        case 1: return d.x;
        case 2: return d.y;
        case 3: return d.z;
        case 4: return 1.7320508f * d.x * d.y;
        case 5: return 1.7320508f * d.y * d.z;
        case 6: return 1.5f * d.z * d.z - 0.5f;
        case 7: return 1.7320508f * d.x * d.z;
        case 8: return 0.8660254f * (d.x * d.x - d.y * d.y);
        case 9: return 0.7905694f * d.y * (3.0f * d.x * d.x - d.y * d.y);
        case 10: return 3.8729833f * d.x * d.y * d.z;
        case 11: return 0.6123724f * d.y * (5.0f * d.z * d.z - 1.0f);
        case 12: return d.z * (2.5f * d.z * d.z - 1.5f);
        case 13: return 0.6123724f * d.x * (5.0f * d.z * d.z - 1.0f);
        case 14: return 1.9364917f * d.z * (d.x * d.x - d.y * d.y);
        default: return 0.7905694f * d.x * (d.x * d.x - 3.0f * d.y * d.y);
    }
}

// Element k of the expression code at a sample with these masks of mouth and eyes: it fades to zero, or to CODE_OUTSIDE.
// Elements from REGION_WIDTH on are the same everywhere.
DEVICE float masked_code(float code, int k, float mouth, float eyes) {
    const float share = k < MOUTH_WIDTH ? mouth : k < REGION_WIDTH ? eyes : 1.0f;
    if constexpr (CODE_OUTSIDE == 0) return code * share;
    else return share * code + (1.0f - share) * float(CODE_OUTSIDE);
}

DEVICE float log_density(float raw) {
    raw += INITIAL_LOG_DENSITY;
    return raw < MAX_LOG_DENSITY ? raw : MAX_LOG_DENSITY;
}

#if ON_GPU

struct FieldScratch {};  // everything is in registers

#define CODE_PAIRS ((CODE_WIDTH + 7) / 8)
#define INPUT_TILES ((GRID_PAIRS + CODE_PAIRS + 1) / 2)
#define HIDDEN_TILES (HIDDEN / 16)
#define HIDDEN_PAIRS (HIDDEN / 8)
static_assert(HIDDEN % 16 == 0, "layers come in tiles of 16");
static_assert(RAW == 16, "the density network gives two pairs");

#define GEOMETRY_PAIRS 2                                      // outputs of the density network
#define COLOUR_PAIRS (GEOMETRY_PAIRS + (DIRECTIONS + 7) / 8)  // inputs of the colour network without padding

// Offsets of the packed networks in words of two fp16: all forward layers, then all backward layers.
CONSTANT int inner_words = FRAGMENT * HIDDEN_TILES * HIDDEN_PAIRS;
DEVICE constexpr int density_forward(int layer) {
    return layer == 0 ? 0 : FRAGMENT * INPUT_TILES * HIDDEN_PAIRS + (layer - 1) * inner_words;
}
DEVICE constexpr int colour_forward(int layer) {
    return density_forward(DENSITY_LAYERS) + FRAGMENT * HIDDEN_TILES * GEOMETRY_PAIRS +
           (layer == 0 ? 0 : FRAGMENT * 2 * HIDDEN_PAIRS + (layer - 1) * inner_words);
}
CONSTANT int forward_words = colour_forward(COLOUR_LAYERS) + FRAGMENT * HIDDEN_TILES;
DEVICE constexpr int density_backward(int layer) {
    return forward_words + (layer == 0 ? 0 : FRAGMENT * HIDDEN_TILES * GRID_PAIRS + (layer - 1) * inner_words);
}
DEVICE constexpr int colour_backward(int layer) {
    return density_backward(DENSITY_LAYERS) + FRAGMENT * HIDDEN_PAIRS +
           (layer == 0 ? 0 : FRAGMENT * HIDDEN_TILES * GEOMETRY_PAIRS + (layer - 1) * inner_words);
}
CONSTANT int packed_words = colour_backward(COLOUR_LAYERS) + FRAGMENT * HIDDEN_PAIRS;
static_assert(2 * packed_words == PACKED_SIZE, "field/packed.py makes room for the packed networks");
// Offsets of the packed biases, padded to whole pairs: for each network hidden layers, then outputs.
DEVICE constexpr int packed_density_bias(int layer) { return layer * HIDDEN; }
DEVICE constexpr int packed_colour_bias(int layer) { return DENSITY_LAYERS * HIDDEN + RAW + layer * HIDDEN; }
CONSTANT int packed_biases = packed_colour_bias(COLOUR_LAYERS) + 8;

// Input of the density or colour network that a lane's pair holds, -1 for padding. The colour network takes the outputs
// of the density network as they are; the first one, the raw density, has no weight there.
DEVICE int input_column(int pair, int t, int e) {
    if (pair < GRID_PAIRS) return grid_column(pair, t, e);
    const int k = 8 * (pair - GRID_PAIRS) + 2 * t + e;
    return k < CODE_WIDTH ? ENCODED + k : -1;
}
DEVICE int colour_column(int pair, int t, int e) {
    const int k = 8 * pair + 2 * t + e - 1;
    return k < COLOUR_INPUTS ? k : -1;
}

// Pair of the masked code of one sample; `code` is not read if the sample is invalid.
DEVICE uint code_pair(const float* code, int pair, float mouth, float eyes, bool valid) {
    float value[2];
    UNROLL
    for (int e = 0; e < 2; ++e) {
        const int k = 8 * pair + 2 * (LANE & 3) + e;
        value[e] = valid && k < CODE_WIDTH ? masked_code(code[k], k, mouth, eyes) : 0.0f;
    }
    return pack_pair(value[0], value[1]);
}
// Pair 0 or 1 of the harmonics of the direction.
DEVICE uint direction_pair(int pair, vec3 direction) {
    const int t = LANE & 3, first = 8 * pair;
    const auto harmonics = [&](int k) {
        if (k >= DIRECTIONS) return 0u;
        return pack_pair(harmonic(k, direction), k + 1 < DIRECTIONS ? harmonic(k + 1, direction) : 0.0f);
    };
    if (first >= DIRECTIONS) return 0u;
    if (first + 4 >= DIRECTIONS) return t == 0 ? harmonics(first) : t == 1 ? harmonics(first + 2) : 0u;
    const uint low = t == 0 ? harmonics(first) : harmonics(first + 2);
    const uint high = t == 2 ? harmonics(first + 4) : harmonics(first + 6);
    return t < 2 ? low : high;
}

// Density network: writes its outputs as inputs of the colour network (except the two pairs of the direction), and its
// first output, in lanes with t = 0.
template <int M>
DEVICE void density_network(const uint* networks, const float* biases, const uint (&x)[2 * INPUT_TILES][2 * M],
                            uint (&hidden)[DENSITY_LAYERS][HIDDEN_PAIRS][2 * M], uint (&geometry)[4][2 * M],
                            float (&raw)[2 * M]) {
    const bool first = (LANE & 3) == 0;
    relu_layer<INPUT_TILES, HIDDEN_PAIRS, M>(networks + density_forward(0), biases + packed_density_bias(0), x,
                                             hidden[0]);
    UNROLL
    for (int i = 1; i < DENSITY_LAYERS; ++i)
        relu_layer<HIDDEN_TILES, HIDDEN_PAIRS, M>(networks + density_forward(i), biases + packed_density_bias(i),
                                                  hidden[i - 1], hidden[i]);
    layer<HIDDEN_TILES, GEOMETRY_PAIRS, M>(
        networks + density_forward(DENSITY_LAYERS), biases + packed_density_bias(DENSITY_LAYERS),
        hidden[DENSITY_LAYERS - 1], [&](int p, int m, const float (&c)[4]) {
            if (p == 0) raw[2 * m] = c[0], raw[2 * m + 1] = c[2];
            const bool skip = p == 0 && first;
            geometry[p][2 * m] = pack_pair(skip ? 0.0f : c[0], c[1]);
            geometry[p][2 * m + 1] = pack_pair(skip ? 0.0f : c[2], c[3]);
        });
}

// Transposes `value`, held by lanes (g, t) for samples g + 8 s, to one sample per lane.
DEVICE float to_own_lane(const float (&value)[4], int t) {
    float own = 0.0f;
    UNROLL
    for (int s = 0; s < 4; ++s) {
        const float v = __shfl_sync(0xffffffffu, value[s], (LANE & 7) * 4 + t);
        if (LANE >> 3 == s) own = v;
    }
    return own;
}

// Inputs of the density network, from lanes with one sample each.
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
    uint hidden[DENSITY_LAYERS][HIDDEN_PAIRS][4];
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
        const vec3 seen = {__shfl_sync(all, own.x, source), __shfl_sync(all, own.y, source),
                           __shfl_sync(all, own.z, source)};
        geometry[2][s] = direction_pair(0, seen);
        geometry[3][s] = direction_pair(1, seen);
    }
    uint one[HIDDEN_PAIRS][4], other[HIDDEN_PAIRS][4];  // hidden layers, alternating
    relu_layer<2, HIDDEN_PAIRS, 2>(networks + colour_forward(0), weights.biases + packed_colour_bias(0), geometry, one);
    relu_layer<HIDDEN_TILES, HIDDEN_PAIRS, 2>(networks + colour_forward(1), weights.biases + packed_colour_bias(1), one,
                                              other);
    if constexpr (COLOUR_LAYERS == 3)
        relu_layer<HIDDEN_TILES, HIDDEN_PAIRS, 2>(networks + colour_forward(2), weights.biases + packed_colour_bias(2),
                                                  other, one);
    float even[4], odd[4];
    layer<HIDDEN_TILES, 1, 2>(networks + colour_forward(COLOUR_LAYERS),
                              weights.biases + packed_colour_bias(COLOUR_LAYERS), COLOUR_LAYERS == 3 ? one : other,
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

// Activations, [neuron][sample]. Rows 1.. of `raw` are the inputs of the colour network.
struct alignas(64) FieldScratch {
    float point[3][PACKET];
    float input[INPUTS][PACKET];
    float density_hidden[DENSITY_LAYERS][HIDDEN][PACKET];
    float raw[RAW + DIRECTIONS][PACKET];
    float colour_hidden[COLOUR_LAYERS][HIDDEN][PACKET];
    float colour[3][PACKET];
};

DEVICE void fade_codes(FieldScratch& scratch, const float (&mouth)[LANES], const float (&eyes)[LANES],
                       const float* const (&code)[LANES], const bool (&valid)[LANES]) {
    for (int l = 0; l < PACKET; ++l)
        for (int k = 0; k < CODE_WIDTH; ++k)
            scratch.input[ENCODED + k][l] = valid[l] ? masked_code(code[l][k], k, mouth[l], eyes[l]) : 0.0f;
}
DEVICE void density_network(const float* networks, FieldScratch& s) {
    constexpr int last = DENSITY_LAYERS;
    layer<INPUTS, HIDDEN, true>(networks + density_weight(0), networks + density_bias(0), s.input, s.density_hidden[0]);
    for (int i = 1; i < last; ++i)
        layer<HIDDEN, HIDDEN, true>(networks + density_weight(i), networks + density_bias(i), s.density_hidden[i - 1],
                                    s.density_hidden[i]);
    layer<HIDDEN, RAW, false>(networks + density_weight(last), networks + density_bias(last),
                              s.density_hidden[last - 1], s.raw);
}
DEVICE void colour_network(const float* networks, FieldScratch& s, const vec3 (&direction)[LANES]) {
    constexpr int last = COLOUR_LAYERS;
#pragma GCC unroll 16
    for (int k = 0; k < DIRECTIONS; ++k) FOR_LANES(l) s.raw[RAW + k][l] = harmonic(k, direction[l]);
    layer<COLOUR_INPUTS, HIDDEN, true>(networks + colour_weight(0), networks + colour_bias(0), s.raw + 1,
                                       s.colour_hidden[0]);
    for (int i = 1; i < last; ++i)
        layer<HIDDEN, HIDDEN, true>(networks + colour_weight(i), networks + colour_bias(i), s.colour_hidden[i - 1],
                                    s.colour_hidden[i]);
    layer<HIDDEN, 3, false>(networks + colour_weight(last), networks + colour_bias(last), s.colour_hidden[last - 1],
                            s.colour);
}

// Density per metre at points of the unit cube. `code` is each lane's (CODE_WIDTH) unmasked expression code.
DEVICE void field_density(const FieldWeights& weights, FieldScratch& scratch, const vec3 (&unit)[LANES],
                          const float (&mouth)[LANES], const float (&eyes)[LANES], const float* const (&code)[LANES],
                          const bool (&valid)[LANES], float (&density)[LANES]) {
    set_points(unit, scratch.point);
    encode(weights.table, scratch.point, valid, scratch.input);
    fade_codes(scratch, mouth, eyes, code, valid);
    density_network(weights.networks, scratch);
    FOR_LANES(l) density[l] = fast_exp(log_density(scratch.raw[0][l]));
}

// Density, and colour, sRGB in [0, 1], for a unit canonical view direction.
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
