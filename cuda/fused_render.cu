// The display path. Twins: render/sampling.py, render/compositing.py; march.cu, field.cu and composite.cu do the same
// in more passes. Launch find_rays (rays.cu), fit_bundles, carry_rays, render_rays.
//
// carry_rays marches and warps, which branches and waits for memory, and so runs many packets at a time. render_rays
// encodes, asks the networks and composites in one pass: a packet takes the samples of a bundle of 32 rays, 32 at a
// time, so that all lanes are in use whichever rays they are of, and hands what they show to the rays, a lane each. A
// ray's colour depends on no other ray: pictures repeat bit for bit.
#include "field.cuh"
#include "fit.cuh"
#include "march.cuh"

#define SAMPLE_SIZE 8
#define BUNDLES_AT_ONCE (LEVELS * FEATURES > 64 ? 8 : 16)  // many features need all registers that a lane may have

// counters[5] and counters[6] from the histogram. One packet.
KERNEL(32) fit_bundles(const Bundles bundles, int* counters) {
    EACH_PACKET(p, 1) { fit_steps(bundles.histogram, bundles.max_samples, bundles.capacity, counters + 5); }
}

// One ray a lane, on its way through marked cells.
struct Walkers {
    Ray ray[LANES];
    float offset[LANES];
    int k[LANES];     // the next step to look at
    int room[LANES];  // for how many samples
};

DEVICE void begin_walk(Walkers& w, const Head& head, const Poses& poses, const Bundles& bundles, int bundle, int count,
                       int limit, float step, int width) {
    for (int l = 0; l < LANES; ++l) {
        const int i = bundle * PACKET + COLUMN(l);
        w.room[l] = 0;
        if (i >= count) continue;
        const int* row = bundles.rays + 4 * i;
        const int pixel = row[0];
        w.k[l] = row[1];
        w.room[l] = row[3] < limit ? row[3] : limit;
        w.ray[l] = pixel_ray(poses.states, head.expressions, float(pixel % width) + 0.5f,
                             float(pixel / width) + 0.5f, 0.0f);
        w.offset[l] = anchored_offset(w.ray[l].origin, step);
        w.ray[l].far = distance_at(row[2] + 1, w.offset[l], step);
    }
}

// The samples of all bundles: spans, rounds, samples. `cells` (words) are the marked cells that have candidates; should
// a point be rounded into another cell than find_rays saw, its step is left out. items: the pixels.
KERNEL(64) carry_rays(const Head head, const Poses all, uint* cells, const Space space, const Bundles bundles,
                      int* counters, float step, int width) {
    Poses poses = all;
    poses.bits = cells;
    const int count = counters[0], limit = counters[6];
    EACH_PACKET(b, (count + PACKET - 1) / PACKET) {
        Walkers w;
        int before[LANES];
        begin_walk(w, head, poses, bundles, b, count, limit, step, width);
        const int base = take_block(counters + 1, sum_before(w.room, before));
        int samples = 0, rounds = 0;
        for (bool more = true; more;) {
            bool walking[LANES], found[LANES];
            int place[LANES];
            Carried carried[LANES];
            for (int l = 0; l < LANES; ++l) {
                found[l] = false;
                Step at;
                walking[l] = w.room[l] > 0 && next_step(head, poses, 0, w.ray[l], w.offset[l], step, w.k[l], at);
                if (!walking[l]) continue;
                carried[l] = to_canonical(head, poses, 0, at.row, at.position, viewed(head, poses, 0, w.ray[l].direction));
                carried[l].position = unit_cube(head, carried[l].position);
                found[l] = carried[l].triangle >= 0 && occupied_at(space, carried[l].position);
                w.room[l] -= found[l];
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

// What the rays of a bundle have seen so far. Not in registers: the field needs them all.
struct Views {
    FieldScratch field;
    float passes[PACKET];                            // transmittance
    float red[PACKET], green[PACKET], blue[PACKET];  // premultiplied
    int samples[PACKET];
};

// 32 consecutive samples of a bundle: how much of the light passes each one, and its colour.
struct Shades {
    float passes[LANES], red[LANES], green[LANES], blue[LANES];
};

// The field at the samples first ... of those before `end`.
DEVICE void shade(const FieldWeights& weights, FieldScratch& scratch, const Bundles& bundles, int first, int end,
                  const float* state_code, float step, Shades& shades) {
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
        shades.passes[l] = fast_exp(-density[l] * step);
        shades.red[l] = colour[l].x, shades.green[l] = colour[l].y, shades.blue[l] = colour[l].z;
    }
}

// Each ray of `round` takes the next of the samples from `first` on, the others none; of these samples the ones at
// hand, 0 ... 31, are shown to their rays.
DEVICE void show(const Shades& shades, uint round, int first, float stop, Views& views) {
    int source[LANES];
    bool sees[LANES];
    Shades own;
    for (int l = 0; l < LANES; ++l) {
        const int ray = COLUMN(l), i = first + count_bits(round & ((1u << ray) - 1u));
        sees[l] = (round >> ray & 1u) && i >= 0 && i < PACKET && views.passes[ray] >= stop;
        source[l] = i & (PACKET - 1);
    }
    take_from(shades.passes, source, own.passes);
    take_from(shades.red, source, own.red);
    take_from(shades.green, source, own.green);
    take_from(shades.blue, source, own.blue);
    FOR_LANES(l) {
        const int ray = COLUMN(l);
        const float passes = sees[l] ? own.passes[l] : 1.0f, share = views.passes[ray] * (1.0f - passes);
        views.red[ray] += share * own.red[l];
        views.green[ray] += share * own.green[l];
        views.blue[ray] += share * own.blue[l];
        views.passes[ray] *= passes;
        views.samples[ray] += sees[l];
    }
}

// Draws the pixels of the listed rays into `rgba` (height * width, 4), premultiplied. A ray ends where its
// transmittance falls below `stop`, a bundle with its last ray. Adds to counters[2] and counters[3]. items: the pixels.
KERNEL(32, BUNDLES_AT_ONCE)
render_rays(const Head head, const Poses poses, const FieldWeights weights, const Bundles bundles, int* counters,
            float step, float stop, float* rgba) {
    const int count = counters[0];
    EACH_PACKET(b, (count + PACKET - 1) / PACKET) {
        SCRATCH(Views, views, 32);
        const int size = count - b * PACKET < PACKET ? count - b * PACKET : PACKET;
        const int base = bundles.spans[2 * b], end = base + bundles.spans[2 * b + 1];
        for (int l = 0; l < LANES; ++l) {
            const int ray = COLUMN(l);
            views.passes[ray] = 1.0f;
            views.red[ray] = views.green[ray] = views.blue[ray] = 0.0f;
            views.samples[ray] = 0;
        }
        const uint* round = bundles.rounds + base;
        bool clear[LANES], cut[LANES];
        int at = base, begun = base;  // the packet's first sample, the round's
        for (bool more = at < end; more;) {
            Shades shades;
            shade(weights, views.field, bundles, at, end, poses.states + STATE_CODE(head.expressions), step, shades);
            const int next = at + PACKET < end ? at + PACKET : end;
            while (begun < next) {
                show(shades, *round, begun - at, stop, views);
                const int after = begun + count_bits(*round);
                if (after > next) break;  // its last samples come with the next packet
                begun = after;
                ++round;
            }
            at = next;
            for (int l = 0; l < LANES; ++l) clear[l] = COLUMN(l) < size && views.passes[COLUMN(l)] >= stop;
            const bool any = any_lane(clear);
            more = any && at < end;
        }
        for (int l = 0; l < LANES; ++l) {
            const int ray = COLUMN(l);
            const float passes = views.passes[ray];
            cut[l] = ray < size && views.samples[ray] >= bundles.max_samples && passes >= stop;
            if (ray >= size) continue;
            float* pixel = rgba + 4 * bundles.rays[4 * (b * PACKET + ray)];
            store4(pixel, views.red[ray], views.green[ray], views.blue[ray], 1.0f - passes);
        }
        take_block(counters + 2, count_lanes(cut));
        take_block(counters + 3, at - base);
    }
}
