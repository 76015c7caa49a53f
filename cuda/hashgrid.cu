// The hash grid's table learns: the gradients of features go to the rows between which they were interpolated.
#include "hashgrid.cuh"
#include "layout.cuh"

// Adds to table_gradients (rows, FEATURES) what field_backward left. Items: LEVELS * 2 * capacity. On a CPU a thread
// owns a level, so nothing is atomic and the sums repeat bit for bit; on a GPU they do not.
KERNEL(256) grid_backward(const Samples samples, const storage_t* encoded_gradients, float* table_gradients) {
    const int count = samples.totals[1];
#if ON_GPU
#else
#pragma omp parallel for schedule(dynamic, 1)
    for (int back = 0; back < LEVELS; ++back) {
        const int level = LEVELS - 1 - back;  // the finest take longest
        for (int first = 0; first < count; first += PACKET) {
            const int size = count - first < PACKET ? count - first : PACKET;
            alignas(64) float point[3][PACKET] = {};
            for (int l = 0; l < size; ++l)
                for (int a = 0; a < 3; ++a) point[a][l] = clamp_unit(samples.position[3 * (first + l) + a]);
            const float* gradient = encoded_gradients + size_t(level) * FEATURES * samples.capacity + first;
            encode_backward(level, point, gradient, size_t(samples.capacity), size, table_gradients);
        }
    }
#endif
}
