// The display path. Twins: render/sampling.py, render/compositing.py; march.cu, field.cu and composite.cu do the same step by
// step. After find_rays (rays.cu): fit_bundles, carry_rays, render_rays.
//
// carry_rays marches and warps, which branches and waits for memory, and so runs many packets at a time. render_rays
// encodes, asks the networks and composites in one pass: a packet takes the samples of a bundle of 32 rays, 32 at a time
// and all lanes in use whichever rays they are of, and hands what they show to the rays, a lane each. A ray's colour
// depends on no other ray: pictures repeat bit for bit.
#include "field.cuh"
#include "fit.cuh"
#include "march.cuh"

#define SAMPLE_SIZE 8

// counters[5] and counters[6] from the histogram. One packet.
KERNEL(32) fit_bundles(const Bundles bundles, int* counters) {
    EACH_PACKET(p, 1) { fit_steps(bundles.histogram, bundles.max_steps, bundles.capacity, counters + 5); }
}

// One ray a lane, on its way through marked cells.
struct Walkers {
    Ray ray[LANES];
    int k[LANES];     // the next step to look at
    int left[LANES];  // steps that it may still take
    int kept[LANES];  // samples so far
};

DEVICE void begin_walk(Walkers& w, const Head& head, const Poses& poses, const Bundles& bundles, int bundle, int count,
                       int limit, float step, int width) {
    for (int l = 0; l < LANES; ++l) {
        const int i = bundle * PACKET + COLUMN(l);
        w.left[l] = w.kept[l] = 0;
        if (i >= count) continue;
        const int* row = bundles.rays + 4 * i;
        const int pixel = row[0];
        w.k[l] = row[1];
        w.left[l] = row[3] < limit ? row[3] : limit;
        w.ray[l] = pixel_ray(poses.states, head.expressions, float(pixel % width) + 0.5f, float(pixel / width) + 0.5f, 0.0f);
        w.ray[l].far = distance_at(row[2] + 1, MIDDLE, step);
    }
}

// The samples of all bundles: spans, rounds, samples. `cells` (words) are the marked cells that have candidates; should a
// point be rounded into another cell than find_rays saw, its step is left out. items: the pixels.
KERNEL(64) carry_rays(const Head head, const Poses all, uint* cells, const Space space, const Bundles bundles,
                      int* counters, float step, int width) {
    Poses poses = all;
    poses.bits = cells;
    const int count = counters[0], limit = counters[6];
    EACH_PACKET(b, (count + PACKET - 1) / PACKET) {
        Walkers w;
        int before[LANES];
        begin_walk(w, head, poses, bundles, b, count, limit, step, width);
        const int base = take_block(counters + 1, sum_before(w.left, before));
        int samples = 0, rounds = 0;
        for (bool more = true; more;) {
            bool walking[LANES], found[LANES];
            int place[LANES];
            Carried carried[LANES];
            for (int l = 0; l < LANES; ++l) {
                found[l] = false;
                Step at;
                walking[l] = w.left[l] > 0 && next_step(head, poses, 0, w.ray[l], MIDDLE, step, w.k[l], at);
                if (!walking[l]) {
                    w.left[l] = 0;
                    continue;
                }
                carried[l] = to_canonical(head, poses, 0, at.row, at.position, w.ray[l].direction);
                carried[l].position = unit_cube(head, carried[l].position);
                found[l] = carried[l].triangle >= 0 && occupied_at(space, carried[l].position);
                w.kept[l] += found[l];
                w.left[l] = w.kept[l] < bundles.max_samples ? w.left[l] - 1 : 0;
            }
            more = any_lane(walking);
            const uint round = bits_of(found);
            samples = count_before(found, samples, place);
            for (int l = 0; l < LANES; ++l) {
                if (COLUMN(l) == 0 && round) bundles.rounds[base + rounds] = round;
                if (!found[l]) continue;
                float* sample = bundles.samples + SAMPLE_SIZE * size_t(base + place[l]);
                const Carried& c = carried[l];
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

// What the rays of a bundle have seen so far, a lane each.
struct Views {
    float passes[LANES];  // transmittance
    float red[LANES], green[LANES], blue[LANES];  // premultiplied
    int samples[LANES];
};

// Draws the pixels of the listed rays into `rgba` (height * width, 4), premultiplied. A ray ends where its transmittance
// falls below `stop`. counters[2] and counters[3] are added to. items: the pixels.
KERNEL(32) render_rays(const Head head, const Poses poses, const FieldWeights weights, const Bundles bundles,
                       int* counters, float step, float stop, float* rgba) {
    const int count = counters[0];
    EACH_PACKET(b, (count + PACKET - 1) / PACKET) {
        SCRATCH(FieldScratch, scratch, 32);
        const int first = bundles.spans[2 * b], end = bundles.spans[2 * b + 1];
        Views views;
        const float* code[LANES];
        bool clear[LANES];
        for (int l = 0; l < LANES; ++l) {
            views.passes[l] = 1.0f;
            views.red[l] = views.green[l] = views.blue[l] = 0.0f;
            views.samples[l] = 0;
            code[l] = poses.states + STATE_CODE(head.expressions);
        }
        int asked = 0;
        const uint* round = bundles.rounds + first;
        int begun = 0;  // the round's first sample
        for (int at = 0; at < end; at += PACKET) {
            vec3 unit[LANES], direction[LANES], colour[LANES];
            float mouth[LANES], eyes[LANES], thickness[LANES];
            bool valid[LANES];
            for (int l = 0; l < LANES; ++l) {
                const int i = at + COLUMN(l);
                valid[l] = i < end;
                const float* sample = bundles.samples + SAMPLE_SIZE * size_t(first + (valid[l] ? i : at));
                const vec4 p = load4(sample), d = load4(sample + 4);
                unit[l] = vec3{p.x, p.y, p.z}, direction[l] = vec3{d.x, d.y, d.z};
                mouth[l] = p.w, eyes[l] = d.w;
            }
            field_forward(weights, scratch, unit, direction, mouth, eyes, code, valid, thickness, colour);
            asked += end - at < PACKET ? end - at : PACKET;

            float passes[LANES], red[LANES], green[LANES], blue[LANES];
            FOR_LANES(l) {
                passes[l] = fast_exp(-thickness[l] * step);
                red[l] = colour[l].x, green[l] = colour[l].y, blue[l] = colour[l].z;
            }
            const int stand = at + PACKET < end ? at + PACKET : end;
            while (begun < stand) {
                const uint set = *round;
                int source[LANES];
                bool meant[LANES];
                float passes_here[LANES], red_here[LANES], green_here[LANES], blue_here[LANES];
                for (int l = 0; l < LANES; ++l) {
                    const int i = begun - at + count_bits(set & ((1u << COLUMN(l)) - 1u));
                    meant[l] = (set >> COLUMN(l) & 1u) && i >= 0 && i < PACKET && views.passes[l] >= stop;
                    source[l] = i & (PACKET - 1);
                }
                take_from(passes, source, passes_here);
                take_from(red, source, red_here);
                take_from(green, source, green_here);
                take_from(blue, source, blue_here);
                FOR_LANES(l) {
                    const float share = meant[l] ? views.passes[l] * (1.0f - passes_here[l]) : 0.0f;
                    views.red[l] += share * red_here[l];
                    views.green[l] += share * green_here[l];
                    views.blue[l] += share * blue_here[l];
                    views.passes[l] = meant[l] ? views.passes[l] * passes_here[l] : views.passes[l];
                    views.samples[l] += meant[l];
                }
                if (begun + count_bits(set) > at + PACKET) break;  // the others come with the next packet
                begun += count_bits(set);
                ++round;
            }
            for (int l = 0; l < LANES; ++l) clear[l] = b * PACKET + COLUMN(l) < count && views.passes[l] >= stop;
            if (!any_lane(clear)) break;
        }
        bool cut[LANES];
        for (int l = 0; l < LANES; ++l) {
            const int i = b * PACKET + COLUMN(l);
            cut[l] = i < count && views.samples[l] >= bundles.max_samples && views.passes[l] >= stop;
            if (i < count)
                store4(rgba + 4 * bundles.rays[4 * i], views.red[l], views.green[l], views.blue[l], 1.0f - views.passes[l]);
        }
        take_block(counters + 2, count_lanes(cut));
        take_block(counters + 3, asked);
    }
}
