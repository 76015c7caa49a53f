// Volume rendering of packed samples (Max 1995; NeRF, equation 3), the loss of a batch of rays and its gradient.
// Twins: render/compositing.py, learn/losses.py.
//
//   w_i = T_i (1 - exp(-tau_i)),  T_i = exp(-sum of tau_j over the j in front of i),  tau_i = density_i step
//
// A packet is one ray: its lanes take 32 consecutive steps, front to back, so that reads of slots and samples are
// coalesced and no ray waits for a longer one. Launch with items = 32 * rays.count.
//
// A sample that is not finite makes its ray's result so, and with it the loss, which `adam_step` then heeds; other rays
// and their gradients are as if it were not there.
#include "fastmath.cuh"
#include "lanes.cuh"
#include "layout.cuh"
#include "vec.cuh"

// The part of light that passes an optical thickness. (fast_exp of what is not a number may be one.)
DEVICE float transmittance(float thickness) { return thickness == thickness ? fast_exp(-thickness) : thickness; }

// A step through empty space has slot -1 and no optical thickness, like a sample beyond the ray's max_samples.
struct Stretch {
    int slot[LANES];         // the sample of a step
    bool kept[LANES];        // it is among the ray's first max_samples
    float thickness[LANES];  // tau
    float passed[LANES];     // optical thickness in front of it
    float weight[LANES];     // w
};

// Front-to-back state of a ray.
struct Walk {
    int found;     // samples so far
    float passed;  // optical thickness so far
    float red[LANES], green[LANES], blue[LANES], opacity[LANES], distance[LANES];  // sums of w times ..., by lane
};

DEVICE void begin_walk(Walk& walk) {
    walk.found = 0, walk.passed = 0.0f;
    FOR_LANES(l) {
        walk.red[l] = 0.0f, walk.green[l] = 0.0f, walk.blue[l] = 0.0f;
        walk.opacity[l] = 0.0f, walk.distance[l] = 0.0f;
    }
}

// The next 32 steps, of which the first is number `step_index` of all rays' steps and `left` belong to this ray.
DEVICE void walk_on(const Samples& samples, const float* density, const float* colour, float step, int step_index,
                    int left, Walk& walk, Stretch& s) {
    bool found[LANES];
    int rank[LANES];
    FOR_LANES(l) {
        s.slot[l] = COLUMN(l) < left ? samples.slot[step_index + COLUMN(l)] : -1;
        found[l] = s.slot[l] >= 0;
    }
    walk.found = count_before(found, walk.found, rank);
    FOR_LANES(l) {
        s.kept[l] = found[l] && rank[l] < samples.max_samples;
        s.thickness[l] = s.kept[l] ? density[s.slot[l]] * step : 0.0f;
    }
    walk.passed = sum_before(s.thickness, walk.passed, s.passed);
    FOR_LANES(l) { s.weight[l] = transmittance(s.passed[l]) * (1.0f - transmittance(s.thickness[l])); }
    FOR_LANES(l) {
        if (s.kept[l]) {
            const float* c = colour + 3 * s.slot[l];
            walk.red[l] += s.weight[l] * c[0];
            walk.green[l] += s.weight[l] * c[1];
            walk.blue[l] += s.weight[l] * c[2];
            walk.opacity[l] += s.weight[l];
            walk.distance[l] += s.weight[l] * samples.step_t[step_index + COLUMN(l)];
        }
    }
}

// What rays see: rgba (count, 4) premultiplied, distance (count) metres, weighted by opacity and not divided by it.
// A ray may end where less than `stop` of what lies behind shines through; with 0 it never ends early.
// A ray without samples gets zeros.
KERNEL(128) composite_rays(const Rays rays, const Samples samples, const float* density, const float* colour,
                           float step, float stop, float* rgba, float* distance) {
    const float opaque = stop > 0.0f ? -logf(stop) : 3.0e38f;
    EACH_PACKET(r, rays.count) {
        const int first = samples.first[r], steps = samples.steps[r];
        Walk walk;
        Stretch stretch;
        begin_walk(walk);
        for (int begin = 0; begin < steps; begin += PACKET) {
            walk_on(samples, density, colour, step, first + begin, steps - begin, walk, stretch);
            if (walk.found >= samples.max_samples || walk.passed > opaque) break;
        }
        const float red = sum_lanes(walk.red), green = sum_lanes(walk.green), blue = sum_lanes(walk.blue);
        const float opacity = sum_lanes(walk.opacity), far = sum_lanes(walk.distance);
        FOR_LANES(l) {
            if (COLUMN(l) == 0) {
                rgba[4 * r] = red, rgba[4 * r + 1] = green, rgba[4 * r + 2] = blue, rgba[4 * r + 3] = opacity;
                distance[r] = far;
            }
        }
    }
}

// Whether a density stands at its upper bound, whichever exp it came through.
DEVICE bool clamped(float density) { return density >= fast_exp(MAX_LOG_DENSITY) * (1.0f - 1.0e-4f); }

// Huber's loss of an error in units of its width, and the derivative by the error. NaN stays NaN in the loss.
DEVICE float huber_loss(float units) {
    const float size = fabsf(units);
    return size < 1.0f ? 0.5f * size * size : size - 0.5f;
}
DEVICE float huber_slope(float units) { return clampf(units, -1.0f, 1.0f); }

// The loss of what rays see, `learn.losses.ray_loss`, and its gradient.
//
//   target_rgba (count, 4) premultiplied; target_depth (count) metres along the ray, 0 without a prior;
//   weight (count) of the photometric term; background (count, 3) that the ray is composited over
//   gradient (capacity, 4): LOSS_SCALE * d loss / d raw density and raw colour, raw being before exp and sigmoid. It is
//     written for every sample that belongs to a step of a ray; zero beyond the ray's max_samples.
//   loss (1): the loss is added to it.
//
// d loss / d tau_i = T_{i+1} g_i - sum of w_j g_j over the j behind i, with g_i = d loss / d w_i. The sum is taken back
// to front: as a difference of sums it would leave rounding noise on samples that nothing reaches, which Adam would
// scale to full steps. In between, a sample's place in `gradient` keeps the thickness in front of it, -1 if not kept.
KERNEL(128) composite_loss(const Rays rays, const Samples samples, const float* density, const float* colour,
                           float step, const float* target_rgba, const float* target_depth, const float* weight,
                           const float* background, float huber, float mask_weight, float depth_weight,
                           float* gradient, float* loss) {
    const float share_of_ray = 1.0f / float(rays.count), scale = LOSS_SCALE * share_of_ray;
    const float huber_inverse = 1.0f / huber;
    EACH_PACKET(r, rays.count) {
        const int first = samples.first[r], steps = samples.steps[r];
        Walk walk;
        Stretch stretch;
        begin_walk(walk);
        for (int begin = 0; begin < steps; begin += PACKET) {
            walk_on(samples, density, colour, step, first + begin, steps - begin, walk, stretch);
            FOR_LANES(l) {
                if (stretch.slot[l] >= 0) gradient[4 * stretch.slot[l]] = stretch.kept[l] ? stretch.passed[l] : -1.0f;
            }
        }
        const float opacity = sum_lanes(walk.opacity), seen_distance = sum_lanes(walk.distance);
        const float seen[3] = {sum_lanes(walk.red), sum_lanes(walk.green), sum_lanes(walk.blue)};

        // The loss of this ray, and its derivatives by colour, opacity and distance, times LOSS_SCALE.
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
        const bool pulls = target_depth[r] > 0.0f && !(slack < 0.0f);
        const float by_distance = pulls ? (wrong < 0.0f ? -depth_weight : depth_weight) * scale : 0.0f;
        const float value =
            photometric * (1.0f / 3.0f) * weight[r] + mask_weight * off * off + (pulls ? depth_weight * slack : 0.0f);
        FOR_LANES(l) {
            if (COLUMN(l) == 0) add_atomic(loss, value * share_of_ray);
        }

        float behind = 0.0f;  // sum of w g over the stretches behind
        for (int begin = (steps - 1) / PACKET * PACKET; begin >= 0 && steps > 0; begin -= PACKET) {
            int slot[LANES];
            bool kept[LANES];
            float thickness[LANES], left[LANES], share[LANES], pull[LANES], part[LANES], farther[LANES];
            FOR_LANES(l) {
                const int i = begin + COLUMN(l);
                slot[l] = i < steps ? samples.slot[first + i] : -1;
                const float passed = slot[l] >= 0 ? gradient[4 * slot[l]] : -1.0f;
                kept[l] = !(passed < 0.0f);
                thickness[l] = kept[l] ? density[slot[l]] * step : 0.0f;
                left[l] = kept[l] ? passed : 0.0f;
            }
            FOR_LANES(l) {
                const float before = transmittance(left[l]), through = transmittance(thickness[l]);
                left[l] = before * through;  // T behind the sample
                share[l] = before * (1.0f - through);
            }
            FOR_LANES(l) {
                part[l] = 0.0f, pull[l] = 0.0f;
                if (kept[l]) {
                    const float* c = colour + 3 * slot[l];
                    pull[l] = by_colour[0] * c[0] + by_colour[1] * c[1] + by_colour[2] * c[2] + by_opacity +
                              by_distance * samples.step_t[first + begin + COLUMN(l)];
                    part[l] = share[l] * pull[l];
                }
            }
            behind = sum_behind(part, behind, farther);
            FOR_LANES(l) {
                if (slot[l] >= 0) {
                    float* g = gradient + 4 * slot[l];
                    const float* c = colour + 3 * slot[l];
                    const bool free = kept[l] && !clamped(density[slot[l]]);
                    g[0] = free ? thickness[l] * (left[l] * pull[l] - farther[l]) : 0.0f;
                    g[1] = kept[l] ? share[l] * by_colour[0] * c[0] * (1.0f - c[0]) : 0.0f;
                    g[2] = kept[l] ? share[l] * by_colour[1] * c[1] * (1.0f - c[1]) : 0.0f;
                    g[3] = kept[l] ? share[l] * by_colour[2] * c[2] * (1.0f - c[2]) : 0.0f;
                }
            }
        }
    }
}
