// Camera rays of all pixels of a frame, and the list of those that cross the narrow band around the head.
#include "march.cuh"
#include "list_append.cuh"

// Rays of all pixels of pose 0, for the chain of march.cu. `depth` (height * width) is that of the posed mesh.
KERNEL(128) camera_rays(const Head head, const PoseBuffers poses, const float* depth, const Rays rays, float step,
                         int width, int height) {
    EACH(i, width * height) {
        const Ray ray = ray_of_pixel(head, poses, i, width, height, depth);
        store4(rays.origin + 4 * i, ray.origin.x, ray.origin.y, ray.origin.z, ray.near);
        store4(rays.direction + 4 * i, ray.direction.x, ray.direction.y, ray.direction.z, ray.far);
        rays.offset[i] = anchored_offset(ray.origin, step);
        rays.frame[i] = 0;
    }
}

// Resets counters, needed cells and histogram of a frame, between posing and list_rays. Counters (7): rays that meet
// the band; samples reserved; rays cut by max_samples; samples; marked cells dropped for lack of capacity; samples
// dropped for lack of capacity; maximum samples of a ray (step_limit.cuh). items: words.
KERNEL(128) reset_frame(const PoseBuffers poses, const RayBundles bundles, int* counters, uint* needed) {
    EACH(i, poses.words > bundles.max_samples ? poses.words : bundles.max_samples + 1) {
        const int dropped = poses.count[0] - poses.capacity;
        if (i < 7) counters[i] = i == 4 && dropped > 0 ? dropped : 0;
        if (i < poses.words) needed[i] = 0u;
        if (i <= bundles.max_samples) bundles.histogram[i] = 0;
    }
}

// A ray in units of posed cells, shifted so that rounding to the nearest integer gives the cell index.
struct GridRay {
    vec3 start, along;
    int resolution;
};

DEVICE GridRay grid_ray(const Head& head, const Ray& ray) {
    const float cells = float(head.resolution) / head.side;
    const vec3 half = {0.5f, 0.5f, 0.5f};
    return GridRay{cells * (ray.origin - origin_of(head)) - half, cells * ray.direction, head.resolution};
}

// Integer nearest to a small x. A GPU adds four times as fast as it converts: a float of this magnitude has an integer
// in its last bits. (A CPU compiler might reassociate the additions.)
DEVICE int round_to_int(float x) {
#if ON_GPU
    const float large = 12582912.0f;
    return int(float_to_bits(x + large)) - int(float_to_bits(large));
#else
    return int(floorf(x + 0.5f));
#endif
}

// Cell at distance t along the ray; -1 outside the grid.
DEVICE int cell_at_distance(const GridRay& grid, float t) {
    const int n = grid.resolution;
    const int x = round_to_int(grid.start.x + t * grid.along.x), y = round_to_int(grid.start.y + t * grid.along.y);
    const int z = round_to_int(grid.start.z + t * grid.along.z);
    const bool inside = (uint(x) < uint(n)) & (uint(y) < uint(n)) & (uint(z) < uint(n));
    return inside ? (z * n + y) * n + x : -1;
}

#define STEPS_IN_FLIGHT 4  // steps whose memory reads are issued together

// Lists the pixels whose rays take a step in a marked cell in bundles.rays (counters[0] of them), counts rays by number
// of steps, and clears all other pixels of `rgba` (height * width, 4). `needed` (words) gets a bit for each marked cell
// that a ray enters; many cells are never entered.
KERNEL(128) list_rays(const Head head, const PoseBuffers poses, const float* depth, int width, int height, float step,
                      const RayBundles bundles, int* counters, uint* needed, float* rgba) {
    EACH_PACKET(tile, count_tiles(width, height)) {
        int pixel[LANES], first[LANES], last[LANES], steps[LANES], place[LANES];
        bool hit[LANES];
        for (int l = 0; l < LANES; ++l) {
            pixel[l] = tiled_pixel(tile, COLUMN(l), width, height);
            hit[l] = false;
            if (pixel[l] < 0) continue;
            const Ray ray = ray_of_pixel(head, poses, pixel[l], width, height, depth);
            const float offset = anchored_offset(ray.origin, step);
            const GridRay grid = grid_ray(head, ray);
            first[l] = last[l] = steps[l] = 0;
            for (int k = first_step(ray.near, step); distance_at(k, offset, step) < ray.far; k += STEPS_IN_FLIGHT) {
                int cell[STEPS_IN_FLIGHT];
                bool marked[STEPS_IN_FLIGHT];
                UNROLL for (int j = 0; j < STEPS_IN_FLIGHT; ++j) {
                    const float t = distance_at(k + j, offset, step);
                    cell[j] = t < ray.far ? cell_at_distance(grid, t) : -1;
                    marked[j] = cell[j] >= 0 && bit_at(poses.bits, cell[j]);
                }
                UNROLL for (int j = 0; j < STEPS_IN_FLIGHT; ++j) {
                    if (!marked[j]) continue;
                    if (steps[l] == 0) first[l] = k + j;
                    last[l] = k + j;
                    ++steps[l];
                    uint* word = needed + (cell[j] >> 5);
                    const uint bit = 1u << (cell[j] & 31);
                    if (!(*word & bit)) or_atomic(word, bit);
                }
            }
            hit[l] = steps[l] > 0;
            if (steps[l] > bundles.max_samples) steps[l] = bundles.max_samples;
            if (hit[l]) add_atomic(bundles.histogram + steps[l], 1);
            else store4(rgba + 4 * pixel[l], 0.0f, 0.0f, 0.0f, 0.0f);
        }
        reserve_slots(counters, hit, place);
        for (int l = 0; l < LANES; ++l) {
            if (!hit[l]) continue;
            int* row = bundles.rays + 4 * place[l];
            row[0] = pixel[l], row[1] = first[l], row[2] = last[l], row[3] = steps[l];
        }
    }
}
