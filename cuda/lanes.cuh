// Prefix and suffix sums over the 32 lanes of a packet. All lanes call these functions together.
#pragma once
#include "platform.cuh"

#if ON_GPU

// before[l] = start + the sum of x over the lanes below l; returns start + the sum over all lanes.
DEVICE float exclusive_prefix_sum(const float (&x)[LANES], float start, float (&before)[LANES]) {
    float sum = x[0];
    for (int d = 1; d < PACKET; d *= 2) {
        float below = __shfl_up_sync(0xffffffffu, sum, d);
        if (LANE >= d) sum += below;
    }
    float below = __shfl_up_sync(0xffffffffu, sum, 1);
    before[0] = start + (LANE == 0 ? 0.0f : below);
    return start + __shfl_sync(0xffffffffu, sum, PACKET - 1);
}

// behind[l] = start + the sum of x over the lanes above l; returns start + the sum over all lanes.
DEVICE float exclusive_suffix_sum(const float (&x)[LANES], float start, float (&behind)[LANES]) {
    float sum = x[0];
    for (int d = 1; d < PACKET; d *= 2) {
        float above = __shfl_down_sync(0xffffffffu, sum, d);
        if (LANE + d < PACKET) sum += above;
    }
    float above = __shfl_down_sync(0xffffffffu, sum, 1);
    behind[0] = start + (LANE == PACKET - 1 ? 0.0f : above);
    return start + __shfl_sync(0xffffffffu, sum, 0);
}

// before[l] = start + the number of set lanes below l; returns start + the number of all set lanes.
DEVICE int exclusive_prefix_count(const bool (&x)[LANES], int start, int (&before)[LANES]) {
    uint set = __ballot_sync(0xffffffffu, x[0]);
    before[0] = start + count_bits(set & ((1u << LANE) - 1u));
    return start + count_bits(set);
}

#else

DEVICE float exclusive_prefix_sum(const float (&x)[LANES], float start, float (&before)[LANES]) {
    for (int l = 0; l < PACKET; ++l) before[l] = start, start += x[l];
    return start;
}

DEVICE float exclusive_suffix_sum(const float (&x)[LANES], float start, float (&behind)[LANES]) {
    for (int l = PACKET - 1; l >= 0; --l) behind[l] = start, start += x[l];
    return start;
}

DEVICE int exclusive_prefix_count(const bool (&x)[LANES], int start, int (&before)[LANES]) {
    for (int l = 0; l < PACKET; ++l) before[l] = start, start += x[l];
    return start;
}

#endif
