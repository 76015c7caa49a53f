// Places in a list that many packets append to: one addition in memory a packet. All 32 lanes call together.
#pragma once
#include "lanes.cuh"

#if ON_GPU

// before[l] = the sum of x over the lanes below l; the sum over all lanes is returned.
DEVICE int exclusive_prefix_sum(const int (&x)[LANES], int (&before)[LANES]) {
    int sum = x[0];
    for (int d = 1; d < PACKET; d *= 2) {
        const int below = __shfl_up_sync(0xffffffffu, sum, d);
        if (LANE >= d) sum += below;
    }
    before[0] = sum - x[0];
    return __shfl_sync(0xffffffffu, sum, PACKET - 1);
}

// `count` places at once, for the whole packet.
DEVICE int reserve_block(int* counter, int count) {
    int base = 0;
    if (LANE == 0 && count > 0) base = add_atomic(counter, count);
    return __shfl_sync(0xffffffffu, base, 0);
}

// A bit for each lane.
DEVICE uint lane_mask(const bool (&x)[LANES]) { return __ballot_sync(0xffffffffu, x[0]); }

// What the lane `source` (0 ... 31) holds.
DEVICE void gather_lanes(const float (&x)[LANES], const int (&source)[LANES], float (&taken)[LANES]) {
    taken[0] = __shfl_sync(0xffffffffu, x[0], source[0]);
}

#else

DEVICE int exclusive_prefix_sum(const int (&x)[LANES], int (&before)[LANES]) {
    int sum = 0;
    for (int l = 0; l < PACKET; ++l) before[l] = sum, sum += x[l];
    return sum;
}

DEVICE int reserve_block(int* counter, int count) { return count > 0 ? add_atomic(counter, count) : 0; }

DEVICE uint lane_mask(const bool (&x)[LANES]) {
    uint bits = 0u;
    for (int l = 0; l < PACKET; ++l) bits |= uint(x[l]) << l;
    return bits;
}

DEVICE void gather_lanes(const float (&x)[LANES], const int (&source)[LANES], float (&taken)[LANES]) {
    for (int l = 0; l < PACKET; ++l) taken[l] = x[source[l]];
}

#endif

DEVICE int count_lanes(const bool (&x)[LANES]) {
    int before[LANES];
    return exclusive_prefix_count(x, 0, before);
}

// A place for each lane that wants one; what others get means nothing.
DEVICE void reserve_slots(int* counter, const bool (&needed)[LANES], int (&place)[LANES]) {
    const int base = reserve_block(counter, exclusive_prefix_count(needed, 0, place));
    FOR_LANES(l) { place[l] += base; }
}

// For each lane the first of `count` consecutive places.
DEVICE void reserve_slots(int* counter, const int (&count)[LANES], int (&place)[LANES]) {
    const int base = reserve_block(counter, exclusive_prefix_sum(count, place));
    FOR_LANES(l) { place[l] += base; }
}
