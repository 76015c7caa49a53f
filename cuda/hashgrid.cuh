// The multiresolution hash grid of field/hashgrid.py: where a point's corners lie, and the features between them.
#pragma once
#include "platform.cuh"
#include "vec.cuh"

#define ENCODED (LEVELS * FEATURES)

CONSTANT int level_resolution[LEVELS] = RESOLUTION;  // cells across the unit cube
CONSTANT int level_offset[LEVELS] = OFFSET;          // first row in the table
CONSTANT uint prime_y = 2654435761u;
CONSTANT uint prime_z = 805459861u;

// What an axis adds to a row's index, or is hashed with: y and z; x counts once in both.
DEVICE constexpr uint stride_y(int level) {
    return level < DENSE_LEVELS ? uint(level_resolution[level] + 2) : prime_y;
}
DEVICE constexpr uint stride_z(int level) {
    return level < DENSE_LEVELS ? uint((level_resolution[level] + 2) * (level_resolution[level] + 2)) : prime_z;
}

// Into the unit cube; NaN goes to 0, so that no point ever reads outside the table.
DEVICE float clamp_unit(float x) {
    x = x > 0.0f ? x : 0.0f;
    return x < 1.0f ? x : 1.0f;
}

#if ON_GPU
#else

// Rows of the table and trilinear weights of the eight corners around each of 32 points.
struct alignas(64) Corners {
    uint row[8][PACKET];
    float weight[8][PACKET];
};

DEVICE void find_corners(int level, const float (&point)[3][PACKET], Corners& corners) {
    const float resolution = float(level_resolution[level]);
    const uint offset = uint(level_offset[level]), step_y = stride_y(level), step_z = stride_z(level);
    const bool dense = level < DENSE_LEVELS;
    SIMD for (int l = 0; l < PACKET; ++l) {
        const float x = point[0][l] * resolution, y = point[1][l] * resolution, z = point[2][l] * resolution;
        const float cell_x = floorf(x), cell_y = floorf(y), cell_z = floorf(z);
        const float fx = x - cell_x, fy = y - cell_y, fz = z - cell_z;
        const uint x0 = uint(int(cell_x)), y0 = uint(int(cell_y)) * step_y, z0 = uint(int(cell_z)) * step_z;
        const uint xs[2] = {x0, x0 + 1}, ys[2] = {y0, y0 + step_y}, zs[2] = {z0, z0 + step_z};
        const float wx[2] = {1.0f - fx, fx}, wy[2] = {1.0f - fy, fy}, wz[2] = {1.0f - fz, fz};
#pragma GCC unroll 8
        for (int c = 0; c < 8; ++c) {
            const uint a = xs[c & 1], b = ys[c >> 1 & 1], d = zs[c >> 2];
            corners.row[c][l] = offset + (dense ? a + b + d : (a ^ b ^ d) & uint(ENTRIES - 1));
            corners.weight[c][l] = wx[c & 1] * (wy[c >> 1 & 1] * wz[c >> 2]);
        }
    }
}

// A piece of a row that one vector register holds: four features, or two.
constexpr int CHUNK = FEATURES % 4 == 0 ? 4 : 2;
typedef float chunk_t __attribute__((vector_size(4 * CHUNK), aligned(4), may_alias));

DEVICE void set_points(const vec3 (&unit)[LANES], float (&point)[3][PACKET]) {
    FOR_LANES(l) {
        point[0][l] = clamp_unit(unit[l].x);
        point[1][l] = clamp_unit(unit[l].y);
        point[2][l] = clamp_unit(unit[l].z);
    }
}

// Features of 32 points, [feature][point]; zero where a point is not valid.
DEVICE void encode(const float* table, const float (&point)[3][PACKET], const bool (&valid)[LANES],
                   float (*features)[PACKET]) {
    Corners corners;
    for (int level = 0; level < LEVELS; ++level) {
        find_corners(level, point, corners);
        for (int l = 0; l < PACKET; ++l)
            for (int first = 0; first < FEATURES; first += CHUNK) {
                chunk_t sum = {};
                if (valid[l])
#pragma GCC unroll 8
                    for (int c = 0; c < 8; ++c) {
                        const float* row = table + size_t(corners.row[c][l]) * FEATURES + first;
                        sum += corners.weight[c][l] * *(const chunk_t*)row;
                    }
                for (int f = 0; f < CHUNK; ++f) features[level * FEATURES + first + f][l] = sum[f];
            }
    }
}

// Adds what 32 points pull at a level's features, [feature][stride], to the table's gradients.
DEVICE void encode_backward(int level, const float (&point)[3][PACKET], const float* gradient, size_t stride, int count,
                            float* table_gradients) {
    Corners corners;
    find_corners(level, point, corners);
    for (int l = 0; l < count; ++l)
        for (int first = 0; first < FEATURES; first += CHUNK) {
            chunk_t pull;
            for (int f = 0; f < CHUNK; ++f) pull[f] = gradient[(first + f) * stride + l];
            for (int c = 0; c < 8; ++c) {
                float* row = table_gradients + size_t(corners.row[c][l]) * FEATURES + first;
                *(chunk_t*)row += corners.weight[c][l] * pull;
            }
        }
}

#endif
