// Fused kernels that render a frame for display. march.cu, field.cu and composite.cu compute the same in more passes;
// the Torch reference is render/sampling.py and render/compositing.py. Launch list_rays (rays.cu),
// limit_bundle_samples, inverse_warp_rays and render_rays in this order.
//
// inverse_warp_rays marches along the rays and warps the samples; it is limited by branches and memory latency, so many
// packets are resident at a time. render_rays encodes the samples, evaluates the networks and composites in one pass: a
// packet processes the samples of a bundle of 32 rays, 32 samples at a time, so that all lanes are used; for
// compositing, each lane belongs to one ray. The colour of a ray does not depend on other rays, so that rendering a
// frame again gives the same result bit for bit.
#include "field.cuh"
#include "step_limit.cuh"
#include "march.cuh"

#define SAMPLE_SIZE 8
#define BUNDLES_PER_PROCESSOR (LEVELS * FEATURES > 64 ? 8 : 16)  // many features need all registers of a lane

// Computes counters[5] and counters[6] from the histogram. One packet.
KERNEL(32) limit_bundle_samples(const RayBundles bundles, int* counters) {
    EACH_PACKET(p, 1) { find_step_limit(bundles.histogram, bundles.max_samples, bundles.capacity, counters + 5); }
}

// State of 32 rays during marching, one ray a lane.
struct MarchState {
    Ray ray[LANES];
    float offset[LANES];
    int k[LANES];     // index of the next step
    int samples_left[LANES];  // number of samples the ray may still take
};

DEVICE void begin_march(MarchState& marchers, const Head& head, const PoseBuffers& poses, const RayBundles& bundles,
                        int bundle, int count, int limit, float step, int width) {
    for (int l = 0; l < LANES; ++l) {
        const int i = bundle * PACKET + COLUMN(l);
        marchers.samples_left[l] = 0;
        if (i >= count) continue;
        const int* row = bundles.rays + 4 * i;
        const int pixel = row[0];
        marchers.k[l] = row[1];
        marchers.samples_left[l] = row[3] < limit ? row[3] : limit;
        marchers.ray[l] = pixel_ray(poses.states, head.expressions, float(pixel % width) + 0.5f,
                             float(pixel / width) + 0.5f, 0.0f);
        marchers.offset[l] = anchored_offset(marchers.ray[l].origin, step);
        marchers.ray[l].far = distance_at(row[2] + 1, marchers.offset[l], step);
    }
}

// Computes the samples of all bundles: spans, rounds, samples. `cells` (words) are the marked cells that have
// candidates; a step is skipped if rounding puts it into another cell than in list_rays. items: the pixels.
KERNEL(64)
inverse_warp_rays(const Head head, const PoseBuffers all, uint* cells, const OccupancyCells occupancy,
                  const RayBundles bundles, int* counters, float step, int width) {
    PoseBuffers poses = all;
    poses.bits = cells;
    const int count = counters[0], limit = counters[6];
    EACH_PACKET(b, (count + PACKET - 1) / PACKET) {
        MarchState marchers;
        int before[LANES];
        begin_march(marchers, head, poses, bundles, b, count, limit, step, width);
        const int base = reserve_block(counters + 1, exclusive_prefix_sum(marchers.samples_left, before));
        int samples = 0, rounds = 0;
        for (bool more = true; more;) {
            bool active[LANES], found[LANES];
            int place[LANES];
            WarpedPoint warped[LANES];
            for (int l = 0; l < LANES; ++l) {
                found[l] = false;
                Step at;
                active[l] = marchers.samples_left[l] > 0 &&
                            next_step(head, poses, 0, marchers.ray[l], marchers.offset[l], step, marchers.k[l], at);
                if (!active[l]) continue;
                warped[l] = inverse_warp(head, poses, 0, at.row, at.position,
                                         view_direction(head, poses, 0, marchers.ray[l].direction));
                warped[l].position = unit_cube(head, warped[l].position);
                found[l] = warped[l].triangle >= 0 && occupied_at(occupancy, warped[l].position);
                marchers.samples_left[l] -= found[l];
            }
            more = any_lane(active);
            const uint round = lane_mask(found);
            samples = exclusive_prefix_count(found, samples, place);
            for (int l = 0; l < LANES; ++l) {
                if (COLUMN(l) == 0 && round) bundles.rounds[base + rounds] = round;
                if (!found[l]) continue;
                float* sample = bundles.samples + SAMPLE_SIZE * size_t(base + place[l]);
                const WarpedPoint& c = warped[l];
                store4(sample, c.position.x, c.position.y, c.position.z, c.mouth);
                store4(sample + 4, c.direction.x, c.direction.y, c.direction.z, c.eyes);
            }
            rounds += round != 0u;
        }
        for (int l = 0; l < LANES; ++l) {
            if (COLUMN(l) != 0) continue;
            bundles.spans[2 * b] = base;
            bundles.spans[2 * b + 1] = samples;
        }
    }
}

// Composited colours of a bundle's rays. In shared memory, because the field needs all registers.
struct RayColours {
    FieldScratch field;
    float transmittance[PACKET];                            // transmittance
    float red[PACKET], green[PACKET], blue[PACKET];  // premultiplied colours
    int samples[PACKET];
};

// Transmittance and colour of 32 consecutive samples of a bundle.
struct SampleColours {
    float transmittance[LANES], red[LANES], green[LANES], blue[LANES];
};

// Evaluates the field at the samples from `first` on, before `end`.
DEVICE void shade_samples(const FieldWeights& weights, FieldScratch& scratch, const RayBundles& bundles, int first,
                          int end, const float* state_code, float step, SampleColours& sample_colours) {
    vec3 unit[LANES], direction[LANES], colour[LANES];
    float mouth[LANES], eyes[LANES], density[LANES];
    const float* code[LANES];
    bool valid[LANES];
    for (int l = 0; l < LANES; ++l) {
        valid[l] = first + COLUMN(l) < end;
        const float* sample = bundles.samples + SAMPLE_SIZE * size_t(valid[l] ? first + COLUMN(l) : first);
        const vec4 p = load4(sample), d = load4(sample + 4);
        unit[l] = vec3{p.x, p.y, p.z}, direction[l] = vec3{d.x, d.y, d.z};
        mouth[l] = p.w, eyes[l] = d.w;
        code[l] = state_code;
    }
    field_forward(weights, scratch, unit, direction, mouth, eyes, code, valid, density, colour);
    FOR_LANES(l) {
        sample_colours.transmittance[l] = fast_exp(-density[l] * step);
        sample_colours.red[l] = colour[l].x, sample_colours.green[l] = colour[l].y,
        sample_colours.blue[l] = colour[l].z;
    }
}

// Composites one round: each ray of the mask `round` takes the next sample, counted from `first`. Only those of the
// present 32 samples (0 ... 31) are composited.
DEVICE void composite_round(const SampleColours& sample_colours, uint round, int first, float stop,
                            RayColours& ray_colours) {
    int source[LANES];
    bool contributes[LANES];
    SampleColours own;
    for (int l = 0; l < LANES; ++l) {
        const int ray = COLUMN(l), i = first + count_bits(round & ((1u << ray) - 1u));
        contributes[l] = (round >> ray & 1u) && i >= 0 && i < PACKET && ray_colours.transmittance[ray] >= stop;
        source[l] = i & (PACKET - 1);
    }
    gather_lanes(sample_colours.transmittance, source, own.transmittance);
    gather_lanes(sample_colours.red, source, own.red);
    gather_lanes(sample_colours.green, source, own.green);
    gather_lanes(sample_colours.blue, source, own.blue);
    FOR_LANES(l) {
        const int ray = COLUMN(l);
        const float transmittance = contributes[l] ? own.transmittance[l] : 1.0f,
                    share = ray_colours.transmittance[ray] * (1.0f - transmittance);
        ray_colours.red[ray] += share * own.red[l];
        ray_colours.green[ray] += share * own.green[l];
        ray_colours.blue[ray] += share * own.blue[l];
        ray_colours.transmittance[ray] *= transmittance;
        ray_colours.samples[ray] += contributes[l];
    }
}

// Renders the pixels of the listed rays into `rgba` (height * width, 4), premultiplied. A ray ends when its
// transmittance falls below `stop`, a bundle with its last ray. Adds to counters[2] and counters[3]. items: the pixels.
KERNEL(32, BUNDLES_PER_PROCESSOR)
render_rays(const Head head, const PoseBuffers poses, const FieldWeights weights, const RayBundles bundles,
            int* counters, float step, float stop, float* rgba) {
    const int count = counters[0];
    EACH_PACKET(b, (count + PACKET - 1) / PACKET) {
        SCRATCH(RayColours, ray_colours, 32);
        const int size = count - b * PACKET < PACKET ? count - b * PACKET : PACKET;
        const int base = bundles.spans[2 * b], end = base + bundles.spans[2 * b + 1];
        for (int l = 0; l < LANES; ++l) {
            const int ray = COLUMN(l);
            ray_colours.transmittance[ray] = 1.0f;
            ray_colours.red[ray] = ray_colours.green[ray] = ray_colours.blue[ray] = 0.0f;
            ray_colours.samples[ray] = 0;
        }
        const uint* round = bundles.rounds + base;
        bool clear[LANES], clip_axis[LANES];
        int at = base, begun = base;  // first sample of the packet, and of the round
        for (bool more = at < end; more;) {
            SampleColours sample_colours;
            shade_samples(weights, ray_colours.field, bundles, at, end, poses.states + STATE_CODE(head.expressions),
                          step, sample_colours);
            const int next = at + PACKET < end ? at + PACKET : end;
            while (begun < next) {
                composite_round(sample_colours, *round, begun - at, stop, ray_colours);
                const int after = begun + count_bits(*round);
                if (after > next) break;  // its remaining samples are in the next packet
                begun = after;
                ++round;
            }
            at = next;
            for (int l = 0; l < LANES; ++l) clear[l] = COLUMN(l) < size && ray_colours.transmittance[COLUMN(l)] >= stop;
            const bool any = any_lane(clear);
            more = any && at < end;
        }
        for (int l = 0; l < LANES; ++l) {
            const int ray = COLUMN(l);
            const float transmittance = ray_colours.transmittance[ray];
            clip_axis[l] = ray < size && ray_colours.samples[ray] >= bundles.max_samples && transmittance >= stop;
            if (ray >= size) continue;
            float* pixel = rgba + 4 * bundles.rays[4 * (b * PACKET + ray)];
            store4(pixel, ray_colours.red[ray], ray_colours.green[ray], ray_colours.blue[ray], 1.0f - transmittance);
        }
        reserve_block(counters + 2, count_lanes(clip_axis));
        reserve_block(counters + 3, at - base);
    }
}
