// Backward pass of the hash grid: distributes the gradients of features to the table rows they were interpolated from.
#include "hashgrid.cuh"
#include "layout.cuh"

// Adds the results of field_backward to table_gradients (rows, FEATURES). items: 2 * capacity. On a CPU each level
// belongs to one thread, so that sums repeat bit for bit; on a GPU sums are atomic and do not.
KERNEL(256) grid_backward(const Samples samples, const storage_t* encoded_gradients, float* table_gradients) {
    const int count = samples.totals[1];
#if ON_GPU
    // One level after another, so that only a few megabytes are accessed at a time; two lanes share a sample, as in
    // encode.
    for (int level = 0; level < LEVELS; ++level) {
        const LevelShape shape = level_shape(level);
        const uint* gradients = (const uint*)encoded_gradients + size_t(level) * samples.capacity * ROW_PAIRS;
        EACH(i, 2 * count) {
            const int sample = i / 2;
            float grad[FEATURES];
            bool any = false;
            UNROLL
            for (int j = 0; j < ROW_PAIRS; ++j) {
                const uint pair = load_pair(gradients + size_t(sample) * ROW_PAIRS + j);
                grad[2 * j] = low_of(pair), grad[2 * j + 1] = high_of(pair);
                any = any || (pair & 0x7fff7fffu);
            }
            if (!any) continue;
            const float* position = samples.position + 3 * size_t(sample);
            const float point[3] = {clamp_unit(position[0]), clamp_unit(position[1]), clamp_unit(position[2])};
            uint row[4];
            float weight[4];
            half_corners(shape, point, i & 1, row, weight);
            UNROLL
            for (int c = 0; c < 4; ++c) add_row(table_gradients, row[c], weight[c], grad);
        }
    }
#else
#pragma omp parallel for schedule(dynamic, 1)
    for (int back = 0; back < LEVELS; ++back) {
        const int level = LEVELS - 1 - back;  // finest level first: it takes longest
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
