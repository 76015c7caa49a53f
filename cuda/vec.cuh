// Vectors of three or four floats and 3 x 3 matrices, their arithmetic, loads and stores. Matrices are row-major.
#pragma once
#include "platform.cuh"

struct vec3 {
    float x, y, z;
};

DEVICE vec3 make_vec(float x, float y, float z) { return vec3{x, y, z}; }
DEVICE vec3 load3(const float* p) { return vec3{p[0], p[1], p[2]}; }
DEVICE void store3(float* p, vec3 v) { p[0] = v.x, p[1] = v.y, p[2] = v.z; }
DEVICE vec3 operator+(vec3 a, vec3 b) { return vec3{a.x + b.x, a.y + b.y, a.z + b.z}; }
DEVICE vec3 operator-(vec3 a, vec3 b) { return vec3{a.x - b.x, a.y - b.y, a.z - b.z}; }
DEVICE vec3 operator*(float s, vec3 a) { return vec3{s * a.x, s * a.y, s * a.z}; }
DEVICE float dot(vec3 a, vec3 b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
DEVICE vec3 cross(vec3 a, vec3 b) {
    return vec3{a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}
DEVICE float length(vec3 a) { return sqrtf(dot(a, a)); }

// m v and m^T v of a row-major 3 x 3 matrix in memory.
DEVICE vec3 transform(const float* m, vec3 v) {
    return vec3{m[0] * v.x + m[1] * v.y + m[2] * v.z, m[3] * v.x + m[4] * v.y + m[5] * v.z,
                m[6] * v.x + m[7] * v.y + m[8] * v.z};
}
DEVICE vec3 transform_transposed(const float* m, vec3 v) {
    return vec3{m[0] * v.x + m[3] * v.y + m[6] * v.z, m[1] * v.x + m[4] * v.y + m[7] * v.z,
                m[2] * v.x + m[5] * v.y + m[8] * v.z};
}

// Four floats in one load or store, at an address divisible by 16.
struct alignas(16) vec4 {
    float x, y, z, w;
};

DEVICE vec4 load4(const float* p) { return *reinterpret_cast<const vec4*>(p); }
DEVICE void store4(float* p, float x, float y, float z, float w) { *reinterpret_cast<vec4*>(p) = vec4{x, y, z, w}; }

DEVICE float clampf(float x, float low, float high) { return fminf(fmaxf(x, low), high); }
DEVICE int clampi(int x, int low, int high) { return x < low ? low : x > high ? high : x; }

// Cell index along one axis, clamped into the grid; rounds towards zero, so that slightly negative numbers give cell
// zero.
DEVICE int cell_along(float unit, int resolution) {
    return int(clampf(unit * float(resolution), 0.0f, float(resolution) - 0.5f));
}
DEVICE int flat_cell(vec3 unit, int resolution) {
    return (cell_along(unit.z, resolution) * resolution + cell_along(unit.y, resolution)) * resolution +
           cell_along(unit.x, resolution);
}
