// Multiresolution hash grid (field/hashgrid.py): corners around a point, and trilinear interpolation of their features.
#pragma once
#include "mma.cuh"
#include "platform.cuh"
#include "vec.cuh"

#define ENCODED (LEVELS * FEATURES)

CONSTANT int level_resolution[LEVELS] = RESOLUTION;  // cells across the unit cube
CONSTANT int level_offset[LEVELS] = OFFSET;          // first row in the table
CONSTANT uint prime_y = 2654435761u;
CONSTANT uint prime_z = 805459861u;

// Strides of y and z in the index of a dense level, or their hash factors; x has the factor one in both.
DEVICE constexpr uint stride_y(int level) {
    return level < DENSE_LEVELS ? uint(level_resolution[level] + 2) : prime_y;
}
DEVICE constexpr uint stride_z(int level) {
    return level < DENSE_LEVELS ? uint((level_resolution[level] + 2) * (level_resolution[level] + 2)) : prime_z;
}

// Clamps to [0, 1]; NaN becomes 0, so that no point reads outside the table.
DEVICE float clamp_unit(float x) {
    x = x > 0.0f ? x : 0.0f;
    return x < 1.0f ? x : 1.0f;
}

// Row of the table for a corner of a cell, from the per-axis terms of its coordinates: x, y * stride_y, z * stride_z.
DEVICE uint corner_row(uint offset, bool dense, uint x, uint y, uint z) {
    return offset + (dense ? x + y + z : (x ^ y ^ z) & uint(ENTRIES - 1));
}

#if ON_GPU

// Lane (g, t) = (lane / 4, lane % 4) holds the features of points g, g + 8, .. at levels t, t + 4, .., as pairs of fp16
// in the register layout of tensor cores (mma.cuh). It loads them together with its neighbour lane: each loads one end
// along x of the cells of both levels. The two ends are adjacent in memory, seven times out of eight in one sector.
#define GROUPS ((LEVELS + 3) / 4)
#define ROW_PAIRS (FEATURES / 2)
#define GRID_PAIRS (GROUPS * ROW_PAIRS)

// Feature index of a lane's pair number `pair`, -1 beyond the last level; `e` is 0 or 1.
DEVICE int grid_column(int pair, int t, int e) {
    const int level = 4 * (pair / ROW_PAIRS) + t;
    return level < LEVELS ? level * FEATURES + pair % ROW_PAIRS * 2 + e : -1;
}

struct LevelShape {
    float resolution;
    uint offset, stride_y, stride_z;
    bool dense, exists;
};
DEVICE LevelShape level_shape(int level) {
    const int known = level < LEVELS ? level : LEVELS - 1;
    return LevelShape{float(level_resolution[known]), uint(level_offset[known]), stride_y(known), stride_z(known),
                      known < DENSE_LEVELS, level < LEVELS};
}
DEVICE LevelShape choose(bool second, LevelShape a, LevelShape b) {
    return LevelShape{second ? b.resolution : a.resolution, second ? b.offset : a.offset,
                      second ? b.stride_y : a.stride_y,     second ? b.stride_z : a.stride_z,
                      second ? b.dense : a.dense,           second ? b.exists : a.exists};
}
// Table rows and weights of the four corners at one end (0 or 1) along x of a point's cell. The point is in the unit
// cube.
DEVICE void half_corners(const LevelShape& shape, const float (&point)[3], bool end, uint (&row)[4],
                         float (&weight)[4]) {
    const float x = point[0] * shape.resolution, y = point[1] * shape.resolution, z = point[2] * shape.resolution;
    const int ix = int(x), iy = int(y), iz = int(z);
    const float fx = x - float(ix), fy = y - float(iy), fz = z - float(iz);
    const float wx = end ? fx : 1.0f - fx, near_z = wx * (1.0f - fz), far_z = wx * fz;
    const uint x0 = uint(ix) + (end ? 1u : 0u), y0 = uint(iy) * shape.stride_y, z0 = uint(iz) * shape.stride_z;
    UNROLL
    for (int c = 0; c < 4; ++c) {
        const uint b = c & 1 ? y0 + shape.stride_y : y0, d = c & 2 ? z0 + shape.stride_z : z0;
        row[c] = corner_row(shape.offset, shape.dense, x0, b, d);
        weight[c] = (c & 1 ? fy : 1.0f - fy) * (c & 2 ? far_z : near_z);
    }
}
DEVICE void load_row(const storage_t* table, uint row, uint (&pairs)[ROW_PAIRS]) {
    const uint* p = (const uint*)table + row * size_t(ROW_PAIRS);
    if constexpr (ROW_PAIRS % 2 == 0) {
        UNROLL
        for (int j = 0; j < ROW_PAIRS; j += 2) {
            const Pairs2 two = load_pairs(p + j);
            pairs[j] = two.x, pairs[j + 1] = two.y;
        }
    } else {
        UNROLL
        for (int j = 0; j < ROW_PAIRS; ++j) pairs[j] = load_pair(p + j);
    }
}
// Feature pairs of the lane's four points (in the unit cube); zero for invalid points. Validity is the same within a
// quad.
DEVICE void encode(const storage_t* table, const float (&point)[4][3], const bool (&valid)[4],
                   uint (&pairs)[GRID_PAIRS][4]) {
    const bool odd = LANE & 1, upper = LANE & 2;
    UNROLL
    for (int group = 0; group < GROUPS; ++group) {
        const LevelShape shape[2] = {choose(upper, level_shape(4 * group), level_shape(4 * group + 2)),
                                     choose(upper, level_shape(4 * group + 1), level_shape(4 * group + 3))};
        UNROLL
        for (int first = 0; first < 4; first += 2) {  // two points: sixteen loads in flight
            uint rows[2][2][4][ROW_PAIRS] = {};
            float weight[2][2][4];
            UNROLL
            for (int s = 0; s < 2; ++s)
                UNROLL
                for (int i = 0; i < 2; ++i) {
                    uint row[4];
                    half_corners(shape[i], point[first + s], odd, row, weight[s][i]);
                    UNROLL
                    for (int c = 0; c < 4; ++c)
                        if (valid[first + s] && shape[i].exists) load_row(table, row[c], rows[s][i][c]);
                }
            UNROLL
            for (int s = 0; s < 2; ++s)
                UNROLL
                for (int j = 0; j < ROW_PAIRS; ++j) {
                    float low[2] = {}, high[2] = {};
                    UNROLL
                    for (int i = 0; i < 2; ++i)
                        UNROLL
                        for (int c = 0; c < 4; ++c) {
                            low[i] += weight[s][i][c] * low_of(rows[s][i][c][j]);
                            high[i] += weight[s][i][c] * high_of(rows[s][i][c][j]);
                        }
                    const float sent_low = __shfl_xor_sync(0xffffffffu, odd ? low[0] : low[1], 1);
                    const float sent_high = __shfl_xor_sync(0xffffffffu, odd ? high[0] : high[1], 1);
                    pairs[group * ROW_PAIRS + j][first + s] =
                        pack_pair((odd ? low[1] : low[0]) + sent_low, (odd ? high[1] : high[0]) + sent_high);
                }
        }
    }
}

// row += weight * grad, by atomic additions without a result.
DEVICE void add_row(float* table_gradients, uint row, float weight, const float (&grad)[FEATURES]) {
    float* p = table_gradients + row * size_t(FEATURES);
#if __CUDA_ARCH__ >= 900
    constexpr int wide = FEATURES % 4 == 0 ? 4 : 2;
    UNROLL
    for (int f = 0; f < FEATURES; f += wide)
        if constexpr (wide == 4)
            asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(p + f), "f"(weight * grad[f]),
                         "f"(weight * grad[f + 1]), "f"(weight * grad[f + 2]), "f"(weight * grad[f + 3])
                         : "memory");
        else
            asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(p + f), "f"(weight * grad[f]),
                         "f"(weight * grad[f + 1])
                         : "memory");
#else
    UNROLL
    for (int f = 0; f < FEATURES; ++f) atomicAdd(p + f, weight * grad[f]);
#endif
}

#else

// Table rows and trilinear weights of the eight corners around each of 32 points.
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
            corners.row[c][l] = corner_row(offset, dense, a, b, d);
            corners.weight[c][l] = wx[c & 1] * (wy[c >> 1 & 1] * wz[c >> 2]);
        }
    }
}

// Number of features in one vector register: four or two.
constexpr int CHUNK = FEATURES % 4 == 0 ? 4 : 2;
typedef float chunk_t __attribute__((vector_size(4 * CHUNK), aligned(4), may_alias));

DEVICE void set_points(const vec3 (&unit)[LANES], float (&point)[3][PACKET]) {
    FOR_LANES(l) {
        point[0][l] = clamp_unit(unit[l].x);
        point[1][l] = clamp_unit(unit[l].y);
        point[2][l] = clamp_unit(unit[l].z);
    }
}

// Features of 32 points, [feature][point]; zero for invalid points.
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

// Adds the gradients of one level's features at 32 points, [feature][stride], to the gradients of the table.
DEVICE void encode_backward(int level, const float (&point)[3][PACKET], const float* gradient, size_t stride, int count,
                            float* table_gradients) {
    Corners corners;
    find_corners(level, point, corners);
    for (int l = 0; l < count; ++l)
        for (int first = 0; first < FEATURES; first += CHUNK) {
            chunk_t grad;
            for (int f = 0; f < CHUNK; ++f) grad[f] = gradient[(first + f) * stride + l];
            for (int c = 0; c < 8; ++c) {
                float* row = table_gradients + size_t(corners.row[c][l]) * FEATURES + first;
                *(chunk_t*)row += corners.weight[c][l] * grad;
            }
        }
}

#endif
