// Ray marching for training: counts the steps of all rays in marked cells, limits their number to the memory, lists
// them, and inverse-warps them to packed samples (insta_runtime/render/sampling.py).
//
// Launch clear_samples, count_steps, limit_steps, list_steps, warp_samples in this order. The order of rays in the
// lists differs from run to run; the steps of one ray are always consecutive and front to back.
#include "step_limit.cuh"
#include "march.cuh"

KERNEL(128) clear_samples(const Samples samples) {
    EACH(i, samples.max_steps + 1 > 4 ? samples.max_steps + 1 : 4) {
        if (i < 4) samples.totals[i] = 0;
        if (i <= samples.max_steps) samples.histogram[i] = 0;
    }
}

DEVICE Ray stored_ray(const Rays& rays, int i) {
    const vec4 origin = load4(rays.origin + 4 * i), direction = load4(rays.direction + 4 * i);
    return Ray{{origin.x, origin.y, origin.z}, {direction.x, direction.y, direction.z}, origin.w, direction.w};
}

// Counts the steps of each ray in marked cells, up to max_steps, into samples.steps and the histogram.
KERNEL(128) count_steps(const Head head, const PoseBuffers poses, const Rays rays, float step, const Samples samples) {
    EACH(i, rays.count) {
        const Ray ray = stored_ray(rays, i);
        int count = 0;
        if (ray.far > ray.near) {
            int k = first_step(ray.near, step);
            Step found;
            while (count < samples.max_steps &&
                   next_step(head, poses, rays.frame[i], ray, rays.offset[i], step, k, found))
                ++count;
        }
        samples.steps[i] = count;
        if (count > 0) add_atomic(samples.histogram + count, 1);
    }
}

// Computes totals[2] and totals[3]: the number of dropped steps, and the maximum steps of a ray such that all fit. One
// packet.
KERNEL(32) limit_steps(const Samples samples) {
    EACH_PACKET(p, 1) { find_step_limit(samples.histogram, samples.max_steps, samples.capacity, samples.totals + 2); }
}

// Lists the steps: totals[0], first, steps (reduced to the limit), step_ray and step_t.
KERNEL(128) list_steps(const Head head, const PoseBuffers poses, const Rays rays, float step, const Samples samples) {
    const int limit = samples.totals[3];
    EACH_PACKET(p, (rays.count + PACKET - 1) / PACKET) {
        int count[LANES], first[LANES];
        for (int l = 0; l < LANES; ++l) {
            const int i = p * PACKET + COLUMN(l);
            count[l] = i < rays.count ? samples.steps[i] : 0;
            if (count[l] > limit) count[l] = limit;
        }
        reserve_slots(samples.totals, count, first);
        for (int l = 0; l < LANES; ++l) {
            const int i = p * PACKET + COLUMN(l);
            if (i >= rays.count) continue;
            int taken = 0;
            if (count[l] > 0) {
                const Ray ray = stored_ray(rays, i);
                int k = first_step(ray.near, step);
                Step found;
                while (taken < count[l] &&
                       next_step(head, poses, rays.frame[i], ray, rays.offset[i], step, k, found)) {
                    samples.step_ray[first[l] + taken] = i;
                    samples.step_t[first[l] + taken] = found.t;
                    ++taken;
                }
            }
            // Two kernels may round the same point differently; entries that are left over belong to no ray.
            for (int rest = taken; rest < count[l]; ++rest) samples.step_ray[first[l] + rest] = -1;
            samples.first[i] = first[l];
            samples.steps[i] = taken;
        }
    }
}

// Inverse-warps every step, and makes a sample of those in occupied canonical cells: totals[1], slot, and all fields of
// samples.
KERNEL(128)
warp_samples(const Head head, const PoseBuffers poses, const OccupancyCells occupancy, const Rays rays,
             const Samples samples) {
    const int steps = samples.totals[0];
    EACH_PACKET(p, (steps + PACKET - 1) / PACKET) {
        bool kept[LANES];
        int slot[LANES];
        vec3 unit[LANES];
        WarpedPoint warped[LANES];
        for (int l = 0; l < LANES; ++l) {
            const int j = p * PACKET + COLUMN(l);
            const int i = j < steps ? samples.step_ray[j] : -1;
            kept[l] = false;
            if (i < 0) continue;
            const Ray ray = stored_ray(rays, i);
            const vec3 position = ray.origin + samples.step_t[j] * ray.direction;
            int row;
            if (!is_marked(head, poses, rays.frame[i], position, &row)) continue;
            warped[l] = inverse_warp(head, poses, rays.frame[i], row, position,
                                      view_direction(head, poses, rays.frame[i], ray.direction));
            unit[l] = unit_cube(head, warped[l].position);
            kept[l] = warped[l].triangle >= 0 && occupied_at(occupancy, unit[l]);
        }
        reserve_slots(samples.totals + 1, kept, slot);
        for (int l = 0; l < LANES; ++l) {
            const int j = p * PACKET + COLUMN(l);
            if (j >= steps) continue;
            samples.slot[j] = kept[l] ? slot[l] : -1;
            if (!kept[l]) continue;
            store3(samples.position + 3 * slot[l], unit[l]);
            store3(samples.direction + 3 * slot[l], warped[l].direction);
            samples.masks[2 * slot[l]] = warped[l].mouth;
            samples.masks[2 * slot[l] + 1] = warped[l].eyes;
            samples.frame[slot[l]] = rays.frame[samples.step_ray[j]];
        }
    }
}
