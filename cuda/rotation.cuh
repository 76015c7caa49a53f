// Rotations as axis-angle vectors and row-major matrices.
#pragma once
#include "vec.cuh"

#define LARGEST_INPUT 1e4f  // largest plausible weight, angle or length of a head state

// NaN, infinities and implausibly large numbers become zero, so that one bad number does not spoil the frame.
DEVICE float finite_or_zero(float x) { return fabsf(x) <= LARGEST_INPUT ? x : 0.0f; }

// Axis-angle to a row-major matrix (Rodrigues), smooth at zero.
DEVICE void rotation_matrix(const float* axis_angle, float* m) {
    const float x = finite_or_zero(axis_angle[0]), y = finite_or_zero(axis_angle[1]), z = finite_or_zero(axis_angle[2]);
    const float angle = sqrtf(x * x + y * y + z * z + 1e-20f);
    const float half = sinf(0.5f * angle) / (0.5f * angle);
    const float s = sinf(angle) / angle, c = 0.5f * half * half;
    m[0] = 1.0f - c * (y * y + z * z), m[1] = c * x * y - s * z, m[2] = c * x * z + s * y;
    m[3] = c * x * y + s * z, m[4] = 1.0f - c * (x * x + z * z), m[5] = c * y * z - s * x;
    m[6] = c * x * z - s * y, m[7] = c * y * z + s * x, m[8] = 1.0f - c * (x * x + y * y);
}
