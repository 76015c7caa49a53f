// Limits the number of ray-marching steps of each ray so that the steps of all rays fit into memory.
#pragma once
#include "list_append.cuh"

// Total number of steps if no ray keeps more than `limit`; histogram (max_steps + 1) counts rays by number of steps.
DEVICE int total_steps(const int* histogram, int max_steps, int limit) {
    int part[LANES], before[LANES];
    for (int l = 0; l < LANES; ++l) {
        part[l] = 0;
        for (int n = 1 + COLUMN(l); n <= max_steps; n += PACKET) part[l] += histogram[n] * (n < limit ? n : limit);
    }
    return exclusive_prefix_sum(part, before);
}

// Sets fit[1] to the largest number of steps a ray may keep such that all fit into the capacity, and fit[0] to the
// number of steps dropped by that: the farthest ones of the longest rays. All 32 lanes call together.
DEVICE void find_step_limit(const int* histogram, int max_steps, int capacity, int* fit) {
    const int all = total_steps(histogram, max_steps, max_steps);
    int low = all <= capacity ? max_steps : 0, high = max_steps;
    while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (total_steps(histogram, max_steps, middle) <= capacity) low = middle;
        else high = middle - 1;
    }
    fit[0] = all - total_steps(histogram, max_steps, low);
    fit[1] = low;
}
