// Appending to a list in memory from many packets, with one atomic addition per packet. All 32 lanes of a packet call
// these functions together.
#pragma once
#include "lanes.cuh"

#if ON_GPU

// before[l] = the sum of x over the lanes below l; returns the sum over all lanes.
DEVICE int exclusive_prefix_sum(const int (&x)[LANES], int (&before)[LANES]) {
    int sum = x[0];
    for (int d = 1; d < PACKET; d *= 2) {
        const int below = __shfl_up_sync(0xffffffffu, sum, d);
        if (LANE >= d) sum += below;
    }
    before[0] = sum - x[0];
    return __shfl_sync(0xffffffffu, sum, PACKET - 1);
}

// Reserves `count` consecutive elements for the whole packet; returns the first index.
DEVICE int reserve_block(int* counter, int count) {
    int base = 0;
    if (LANE == 0 && count > 0) base = add_atomic(counter, count);
    return __shfl_sync(0xffffffffu, base, 0);
}

// Bit mask of the set lanes.
DEVICE uint lane_mask(const bool (&x)[LANES]) { return __ballot_sync(0xffffffffu, x[0]); }

// taken[l] = the value of lane source[l] (0 ... 31).
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

// Reserves one element for each needing lane; indices of the other lanes are undefined.
DEVICE void reserve_slots(int* counter, const bool (&needed)[LANES], int (&place)[LANES]) {
    const int base = reserve_block(counter, exclusive_prefix_count(needed, 0, place));
    FOR_LANES(l) { place[l] += base; }
}

// Reserves `count[l]` consecutive elements for each lane; returns the first index of each.
DEVICE void reserve_slots(int* counter, const int (&count)[LANES], int (&place)[LANES]) {
    const int base = reserve_block(counter, exclusive_prefix_sum(count, place));
    FOR_LANES(l) { place[l] += base; }
}
