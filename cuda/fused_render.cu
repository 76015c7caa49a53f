// The display path in one pass: march, warp, encode, networks, composite. Twins: render/sampling.py,
// render/compositing.py; march.cu, field.cu and composite.cu do the same one after another.
//
// Each lane walks one ray of the list that find_rays made, to its next sample. When most lanes have one, the packet asks
// the field for all of them at once; a lane whose ray has ended takes the next ray of the list. Nothing but the picture
// is written, so no capacity can overflow. A ray's colour depends on no other ray: pictures repeat bit for bit.
#include "field.cuh"
#include "march.cuh"
#include "places.cuh"

#define THREADS 128
#if ON_GPU
#define FULL 26  // lanes with a sample before the field is asked: more would let them wait for the slowest
#else
#define FULL PACKET
#endif

// One ray a lane, and the sample that it stands at.
struct Walkers {
    int pixel[LANES];    // -1: this lane has no ray
    bool ready[LANES];   // it stands at a sample that waits for the field
    int k[LANES];        // the next step to look at
    int samples[LANES];  // so far
    Ray ray[LANES];
    float left[LANES];   // transmittance
    vec3 seen[LANES];    // premultiplied colour
    vec3 unit[LANES];
    vec3 direction[LANES];
    float mouth[LANES], eyes[LANES];
};

DEVICE void finish(Walkers& w, int l, float* rgba) {
    store4(rgba + 4 * w.pixel[l], w.seen[l].x, w.seen[l].y, w.seen[l].z, 1.0f - w.left[l]);
    w.pixel[l] = -1;
}

// Gives rays to lanes that have none; false if the list is at its end.
DEVICE bool refill(Walkers& w, const Head& head, const Poses& poses, const int* hits, int* counters, float step,
                   int width) {
    bool idle[LANES], late[LANES];
    int place[LANES];
    const int count = counters[0];
    for (int l = 0; l < LANES; ++l) idle[l] = w.pixel[l] < 0;
    take_places(counters + 1, idle, place);
    for (int l = 0; l < LANES; ++l) {
        late[l] = idle[l] && place[l] >= count;
        if (!idle[l] || late[l]) continue;
        const int* hit = hits + 4 * place[l];
        w.pixel[l] = hit[0];
        w.k[l] = hit[1];
        w.samples[l] = 0;
        w.ray[l] = pixel_ray(poses.states, head.expressions, float(hit[0] % width) + 0.5f,
                             float(hit[0] / width) + 0.5f, 0.0f);
        w.ray[l].far = distance_at(hit[2] + 1, MIDDLE, step);
        w.left[l] = 1.0f;
        w.seen[l] = vec3{0.0f, 0.0f, 0.0f};
    }
    return !any_lane(late);
}

// Walks every lane that has a ray but no sample on by one step in a marked cell.
DEVICE void advance(Walkers& w, const Head& head, const Poses& poses, const Space& space, float step, float* rgba) {
    for (int l = 0; l < LANES; ++l) {
        if (w.pixel[l] < 0 || w.ready[l]) continue;
        Step found;
        if (!next_step(head, poses, 0, w.ray[l], MIDDLE, step, w.k[l], found)) {
            finish(w, l, rgba);
            continue;
        }
        const Carried carried = to_canonical(head, poses, 0, found.row, found.position, w.ray[l].direction);
        w.unit[l] = unit_cube(head, carried.position);
        w.ready[l] = carried.triangle >= 0 && occupied_at(space, w.unit[l]);
        w.direction[l] = carried.direction;
        w.mouth[l] = carried.mouth;
        w.eyes[l] = carried.eyes;
    }
}

// Draws the pixels that find_rays listed in `hits` into `rgba` (height * width, 4), premultiplied, from the cells that
// it listed in `wanted`, which have candidates. A ray ends where its transmittance falls below `stop`. The counters are
// those of begin_picture. `packets` is how many packets share the work: as many as the machine runs at a time, or more.
KERNEL(THREADS) render_rays(const Head head, const Poses all, const Space space, const FieldWeights weights,
                            const int* hits, int* counters, uint* wanted, float step, float stop, int max_samples,
                            int width, int packets, float* rgba) {
    Poses poses = all;
    poses.bits = wanted;  // should a point be rounded into another cell than find_rays saw, the step is left out
    EACH_PACKET(p, packets) {
        SCRATCH(FieldScratch, scratch, THREADS);
        const float* code[LANES];
        Walkers w = {};
        for (int l = 0; l < LANES; ++l) {
            w.pixel[l] = -1;
            code[l] = poses.states + STATE_CODE(head.expressions);
        }
        int samples = 0, cut_short = 0;
        bool more = true;
        for (;;) {
            for (;;) {
                if (more) more = refill(w, head, poses, hits, counters, step, width);
                advance(w, head, poses, space, step, rgba);
                bool walking[LANES];
                for (int l = 0; l < LANES; ++l) walking[l] = !w.ready[l] && (more || w.pixel[l] >= 0);
                if (count_lanes(w.ready) >= FULL || !any_lane(walking)) break;
            }
            const int ready = count_lanes(w.ready);
            if (ready == 0) break;
            samples += ready;

            float density[LANES];
            vec3 colour[LANES];
            field_forward(weights, scratch, w.unit, w.direction, w.mouth, w.eyes, code, w.ready, density, colour);
            bool cut[LANES];
            for (int l = 0; l < LANES; ++l) {
                cut[l] = false;
                if (!w.ready[l]) continue;
                w.ready[l] = false;
                const float passes = expf(-density[l] * step);
                w.seen[l] = w.seen[l] + (w.left[l] * (1.0f - passes)) * colour[l];
                w.left[l] *= passes;
                w.samples[l] += 1;
                const bool opaque = w.left[l] < stop;
                cut[l] = !opaque && w.samples[l] >= max_samples;
                if (opaque || cut[l]) finish(w, l, rgba);
            }
            cut_short += count_lanes(cut);
        }
        take_block(counters + 2, cut_short);
        take_block(counters + 3, samples);
    }
}
