// Counter-based random numbers: hashes of their purpose (PCG; Jarzynski and Olano 2020, "Hash Functions for GPU
// Rendering"). Equal counters give equal numbers on every machine.
#pragma once
#include "platform.cuh"

DEVICE uint hash(uint x) {
    uint state = x * 747796405u + 2891336453u;
    uint word = ((state >> ((state >> 28) + 4u)) ^ state) * 277803737u;
    return (word >> 22) ^ word;
}
DEVICE uint hash(uint a, uint b) { return hash(a + hash(b)); }
DEVICE uint hash(uint a, uint b, uint c) { return hash(a + hash(b + hash(c))); }

// Uniform in [0, 1), from the upper 24 bits.
DEVICE float uniform(uint bits) { return float(bits >> 8) * (1.0f / 16777216.0f); }
// Uniform in [0, n).
DEVICE int uniform_int(uint bits, int n) { return int((unsigned long long)bits * (uint)n >> 32); }
// Approximately N(0, 1) (Box and Muller).
DEVICE float gaussian(uint a, uint b) {
    return sqrtf(-2.0f * logf(1.0f - uniform(a))) * cosf(6.2831853f * uniform(b));
}
