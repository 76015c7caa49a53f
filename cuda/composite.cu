// Volume rendering of packed samples (Max 1995; NeRF, equation 3), the loss of a batch of rays and its gradient. Torch
// reference: render/compositing.py, learn/losses.py.
//
//   w_i = T_i (1 - exp(-tau_i)),  T_i = exp(-sum of tau_j over the j in front of i),  tau_i = density_i step
//
// A packet processes one ray with consecutive steps in its lanes, so that reads of slots and samples are coalesced and
// no ray waits for a longer one. items: 32 * rays.count.
//
// A non-finite sample makes the result of its ray non-finite, and with it the loss, which `adam_step` checks. Other
// rays and their gradients are unaffected.
#include "fastmath.cuh"
#include "lanes.cuh"
#include "layout.cuh"
#include "vec.cuh"

// Transmittance of an optical thickness. NaN is passed on explicitly, because fast_exp(NaN) may be a number.
DEVICE float transmittance(float thickness) { return thickness == thickness ? fast_exp(-thickness) : thickness; }

// Up to 32 consecutive samples of a ray, front to back.
struct RaySegment {
    int slot[LANES];         // slot of the sample, -1 if the lane has none
    float t[LANES];          // metres along the ray
    int kept[LANES];         // the slot, -1 beyond the first max_samples of the ray
    float thickness[LANES];  // optical thickness tau; 0 if not kept, as are the colours
    float thickness_before[LANES];     // optical thickness in front of the sample
    float red[LANES], green[LANES], blue[LANES];
};

// Loads the samples of the next 32 steps (on a CPU: the next 32 samples) from step `at` on, and advances `at`; the
// steps of the ray end at `end`.
DEVICE void load_next_samples(const Samples& samples, int& at, int end, RaySegment& s) {
#if ON_GPU
    const int i = at + LANE;
    s.slot[0] = i < end ? samples.slot[i] : -1;
    s.t[0] = s.slot[0] >= 0 ? samples.step_t[i] : 0.0f;
    at += PACKET;
#else
    const int* slots = samples.slot;
    const float* ts = samples.step_t;
    int n = 0, i = at;
    for (; i < end && n < PACKET; ++i) s.slot[n] = slots[i], s.t[n] = ts[i], n += slots[i] >= 0;
    for (int l = n; l < PACKET; ++l) s.slot[l] = -1, s.t[l] = 0.0f;
    at = i;
#endif
}

// The same backwards, from the step before `at` on; the steps of the ray begin at `begin`.
DEVICE void load_previous_samples(const Samples& samples, int& at, int begin, RaySegment& s) {
    at -= PACKET;
#if ON_GPU
    const int i = at + LANE;
    s.slot[0] = i >= begin ? samples.slot[i] : -1;
    s.t[0] = s.slot[0] >= 0 ? samples.step_t[i] : 0.0f;
#else
    const int* slots = samples.slot;
    const float* ts = samples.step_t;
    int n = PACKET, i = at + PACKET;
    while (i > begin && n > 0) --i, s.slot[n - 1] = slots[i], s.t[n - 1] = ts[i], n -= slots[i] >= 0;
    for (int l = 0; l < n; ++l) s.slot[l] = -1, s.t[l] = 0.0f;
    at = i;
#endif
}

// Loads density and colour of the kept samples.
DEVICE void load_samples(const float* density, const float* colour, float step, RaySegment& s) {
    FOR_LANES(l) {
        const bool kept = s.kept[l] >= 0;
        const int i = kept ? s.kept[l] : 0;  // a valid index, so that a CPU loads without branches
        const float sigma = density[i], red = colour[3 * i], green = colour[3 * i + 1], blue = colour[3 * i + 2];
        s.thickness[l] = kept ? sigma * step : 0.0f;
        s.red[l] = kept ? red : 0.0f;
        s.green[l] = kept ? green : 0.0f;
        s.blue[l] = kept ? blue : 0.0f;
    }
}

// State of a ray during front-to-back compositing.
struct RayAccumulator {
    int found;     // number of samples so far
    float thickness_before;  // optical thickness so far
    float red[LANES], green[LANES], blue[LANES], opacity[LANES],
        distance[LANES];  // sums of w times colour, 1 and distance, by lane
};

DEVICE void begin_march(RayAccumulator& accumulated) {
    accumulated.found = 0, accumulated.thickness_before = 0.0f;
    FOR_LANES(l) {
        accumulated.red[l] = 0.0f, accumulated.green[l] = 0.0f, accumulated.blue[l] = 0.0f;
        accumulated.opacity[l] = 0.0f, accumulated.distance[l] = 0.0f;
    }
}

// Composites the next segment of a ray, from step `at` on.
DEVICE void accumulate_samples(const Samples& samples, const float* density, const float* colour, float step, int& at,
                               int end, RayAccumulator& accumulated, RaySegment& s) {
    bool found[LANES];
    int rank[LANES];
    load_next_samples(samples, at, end, s);
    FOR_LANES(l) { found[l] = s.slot[l] >= 0; }
    accumulated.found = exclusive_prefix_count(found, accumulated.found, rank);
    FOR_LANES(l) { s.kept[l] = rank[l] < samples.max_samples ? s.slot[l] : -1; }
    load_samples(density, colour, step, s);
    accumulated.thickness_before = exclusive_prefix_sum(s.thickness, accumulated.thickness_before, s.thickness_before);
    FOR_LANES(l) {
        const float weight = transmittance(s.thickness_before[l]) * (1.0f - transmittance(s.thickness[l]));
        const float share = s.kept[l] >= 0 ? weight : 0.0f;
        accumulated.red[l] += share * s.red[l];
        accumulated.green[l] += share * s.green[l];
        accumulated.blue[l] += share * s.blue[l];
        accumulated.opacity[l] += share;
        accumulated.distance[l] += share * s.t[l];
    }
}

// Composites rays: rgba (count, 4) premultiplied, distance (count) metres, weighted by opacity but not normalised. A
// ray ends early where its transmittance falls below `stop`; never with stop = 0. Rays without samples become zero.
KERNEL(128) composite_rays(const Rays rays, const Samples samples, const float* density, const float* colour,
                           float step, float stop, float* rgba, float* distance) {
    const float opaque = stop > 0.0f ? -logf(stop) : 3.0e38f;
    EACH_PACKET(r, rays.count) {
        const int begin = samples.first[r], end = begin + samples.steps[r];
        RayAccumulator accumulated;
        RaySegment segment;
        begin_march(accumulated);
        for (int at = begin; at < end;) {
            accumulate_samples(samples, density, colour, step, at, end, accumulated, segment);
            if (accumulated.found >= samples.max_samples || accumulated.thickness_before > opaque) break;
        }
        const float red = sum_lanes(accumulated.red), green = sum_lanes(accumulated.green),
                    blue = sum_lanes(accumulated.blue);
        const float opacity = sum_lanes(accumulated.opacity), far = sum_lanes(accumulated.distance);
        FOR_LANES(l) {
            if (COLUMN(l) == 0) {
                rgba[4 * r] = red, rgba[4 * r + 1] = green, rgba[4 * r + 2] = blue, rgba[4 * r + 3] = opacity;
                distance[r] = far;
            }
        }
    }
}

// Marks the cells of samples whose transmittance is above IN_SIGHT as visible: `OccupancyGrid.mark_visible`.
KERNEL(128)
mark_visible_cells(const Rays rays, const Samples samples, const float* density, const float* colour, float step,
                   const OccupancyCells occupancy) {
    const float dark = -logf(IN_SIGHT);
    EACH_PACKET(r, rays.count) {
        const int begin = samples.first[r], end = begin + samples.steps[r];
        RayAccumulator accumulated;
        RaySegment s;
        begin_march(accumulated);
        for (int at = begin;
             at < end && accumulated.found < samples.max_samples && accumulated.thickness_before < dark;) {
            accumulate_samples(samples, density, colour, step, at, end, accumulated, s);
            FOR_LANES(l) {
                if (s.kept[l] < 0 || !(s.thickness_before[l] < dark)) continue;
                const vec3 unit = load3(samples.position + 3 * (size_t)s.kept[l]);
                const int cell = occupancy.index_of_cell[flat_cell(unit, occupancy.resolution)];
                if (cell >= 0) occupancy.visibility[cell] = 1.0f;  // concurrent writes store the same value
            }
        }
    }
}

// Huber loss of an error in units of its threshold, and its derivative. NaN stays NaN in the loss.
DEVICE float huber_loss(float units) {
    const float size = fabsf(units);
    return size < 1.0f ? 0.5f * size * size : size - 0.5f;
}
DEVICE float huber_slope(float units) { return clampf(units, -1.0f, 1.0f); }

// Loss of a batch of rays, `learn.losses.ray_loss`, and its gradient.
//
//   target_rgba (count, 4) premultiplied; target_depth (count) metres along the ray, 0 without a prior;
//   weight (count) of the photometric term; background (count, 3) that the ray is composited over
//   gradient (capacity, 4): LOSS_SCALE * d loss / d raw density and raw colour (before exp and sigmoid), written for
//     every sample that belongs to a step of a ray; zero beyond the ray's max_samples
//   loss (1): the loss is added to it
//
// d loss / d tau_i = T_{i+1} g_i - sum of w_j g_j over the j behind i, with g_i = d loss / d w_i. The sum is
// accumulated back to front: as a difference of prefix sums it would leave rounding noise on occluded samples, which
// Adam would scale up to full steps. Between the two passes the sample's element of `gradient` holds the optical
// thickness in front of it, or -1 if it is not kept.
KERNEL(128) composite_loss(const Rays rays, const Samples samples, const float* density, const float* colour,
                           float step, const float* target_rgba, const float* target_depth, const float* weight,
                           const float* background, float huber, float mask_weight, float depth_weight,
                           float* gradient, float* loss) {
    const float ray_weight = 1.0f / float(rays.count), scale = LOSS_SCALE * ray_weight;
    const float huber_inverse = 1.0f / huber;
    // Thickness at the upper bound of density, minus the rounding error of exp.
    const float densest = fast_exp(MAX_LOG_DENSITY) * (1.0f - 1.0e-4f) * step;
    EACH_PACKET(r, rays.count) {
        const int begin = samples.first[r], end = begin + samples.steps[r];
        RayAccumulator accumulated;
        RaySegment s;
        begin_march(accumulated);
        for (int at = begin; at < end;) {
            accumulate_samples(samples, density, colour, step, at, end, accumulated, s);
            FOR_LANES(l) {
                if (s.slot[l] >= 0) gradient[4 * s.slot[l]] = s.kept[l] >= 0 ? s.thickness_before[l] : -1.0f;
            }
        }
        WARP_SYNC();  // lanes may process other samples in the backward pass
        const float opacity = sum_lanes(accumulated.opacity), seen_distance = sum_lanes(accumulated.distance);
        const float seen[3] = {sum_lanes(accumulated.red), sum_lanes(accumulated.green), sum_lanes(accumulated.blue)};

        // The loss of this ray, and its derivatives with respect to colour, opacity and distance, times LOSS_SCALE.
        const float* truth = target_rgba + 4 * r;
        const float* backdrop = background + 3 * r;
        const float off = opacity - truth[3];
        float photometric = 0.0f, by_opacity = 2.0f * mask_weight * off * scale, by_colour[3];
        UNROLL for (int c = 0; c < 3; ++c) {
            const float error = (seen[c] - truth[c] - off * backdrop[c]) * huber_inverse;
            photometric += huber * huber_loss(error);
            by_colour[c] = huber_slope(error) * weight[r] * (1.0f / 3.0f) * scale;
            by_opacity -= by_colour[c] * backdrop[c];
        }
        const float wrong = seen_distance - target_depth[r], slack = fabsf(wrong) - DEPTH_SLACK;
        const bool depth_active = target_depth[r] > 0.0f && !(slack < 0.0f);
        const float by_distance = depth_active ? (wrong < 0.0f ? -depth_weight : depth_weight) * scale : 0.0f;
        const float value = photometric * (1.0f / 3.0f) * weight[r] + mask_weight * off * off +
                            (depth_active ? depth_weight * slack : 0.0f);
        FOR_LANES(l) {
            if (COLUMN(l) == 0) add_atomic(loss, value * ray_weight);
        }

        float behind = 0.0f;  // sum of w g over the segments behind
        for (int at = end; at > begin;) {
            float left[LANES], share[LANES], by_weight[LANES], part[LANES], farther[LANES];
            load_previous_samples(samples, at, begin, s);
            FOR_LANES(l) {
                s.thickness_before[l] = s.slot[l] >= 0 ? gradient[4 * s.slot[l]] : -1.0f;
                s.kept[l] = s.thickness_before[l] < 0.0f ? -1 : s.slot[l];
            }
            load_samples(density, colour, step, s);
            FOR_LANES(l) {
                const float transmitted_before = transmittance(s.thickness_before[l]),
                            transmitted = transmittance(s.thickness[l]);
                left[l] = transmitted_before * transmitted;  // transmittance behind the sample
                share[l] = transmitted_before * (1.0f - transmitted);
                by_weight[l] = by_colour[0] * s.red[l] + by_colour[1] * s.green[l] + by_colour[2] * s.blue[l] +
                               by_opacity + by_distance * s.t[l];
                part[l] = s.kept[l] >= 0 ? share[l] * by_weight[l] : 0.0f;
            }
            behind = exclusive_suffix_sum(part, behind, farther);
            FOR_LANES(l) {
                const bool unclamped = s.kept[l] >= 0 && !(s.thickness[l] >= densest);
                left[l] = unclamped ? s.thickness[l] * (left[l] * by_weight[l] - farther[l]) : 0.0f;
                // Samples that are not kept have zero colours, hence zero gradients.
                s.red[l] = share[l] * by_colour[0] * s.red[l] * (1.0f - s.red[l]);
                s.green[l] = share[l] * by_colour[1] * s.green[l] * (1.0f - s.green[l]);
                s.blue[l] = share[l] * by_colour[2] * s.blue[l] * (1.0f - s.blue[l]);
            }
            FOR_LANES(l) {
                if (s.slot[l] >= 0) {
                    float* g = gradient + 4 * s.slot[l];
                    g[0] = left[l], g[1] = s.red[l], g[2] = s.green[l], g[3] = s.blue[l];
                }
            }
        }
    }
}
