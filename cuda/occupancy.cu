// The canonical occupancy grid: what density and silhouettes say of its cells. Twin: render/occupancy.py.
#include "field.cuh"
#include "random.cuh"
#include "warp.cuh"

#define THREADS 128

// Look at the field's density at one random point of each of up to `updates` cells, with a random expression code:
// value = max(value * decay, opacity of one step). Their light fades a little (VISIBILITY_DECAY). With more cells than
// `updates` one is drawn of each of as many equal stretches of the list, so that none is drawn twice and results repeat
// bit for bit.
//
//   codes (progress[1], code_stride): rows that begin with an expression code; without any, nothing changes
//   progress: {training steps so far, which seed the draw; how many codes}, in device memory
//
// Launch with items = min(updates, cells), rounded up to packets.
KERNEL(THREADS) update_occupancy(const OccupancyCells occupancy, const FieldWeights weights, const float* codes, int code_stride,
                                 const int* progress, int seed, int updates, float decay, float step_length) {
    const int drawn = updates < occupancy.count ? updates : occupancy.count;
    const int code_count = progress[1];
    const uint draw = hash(uint(seed), uint(progress[0]));
    const int packets = code_count > 0 ? (drawn + PACKET - 1) / PACKET : 0;
    EACH_PACKET(packet, packets) {
        SCRATCH(FieldScratch, scratch, THREADS);
        int cell[LANES];
        vec3 unit[LANES];
        float mouth[LANES], eyes[LANES], density[LANES];
        const float* code[LANES];
        bool valid[LANES];
        FOR_LANES(l) {
            const int i = packet * PACKET + COLUMN(l);
            valid[l] = i < drawn;
            const int j = valid[l] ? i : drawn - 1;
            const int from = int((long long)occupancy.count * j / drawn), to = int((long long)occupancy.count * (j + 1) / drawn);
            cell[l] = from + uniform_int(hash(draw, uint(j), 0u), to - from);
            const int flat = occupancy.cells[cell[l]], n = occupancy.resolution;
            unit[l].x = (float(flat % n) + uniform(hash(draw, uint(j), 1u))) / float(n);
            unit[l].y = (float(flat / n % n) + uniform(hash(draw, uint(j), 2u))) / float(n);
            unit[l].z = (float(flat / (n * n)) + uniform(hash(draw, uint(j), 3u))) / float(n);
            code[l] = codes + (long long)code_stride * uniform_int(hash(draw, uint(j), 4u), code_count);
            mouth[l] = occupancy.masks[2 * cell[l]];
            eyes[l] = occupancy.masks[2 * cell[l] + 1];
        }
        field_density(weights, scratch, unit, mouth, eyes, code, valid, density);
        FOR_LANES(l) {
            if (valid[l]) {
                const float opacity = 1.0f - fast_exp(-density[l] * step_length);
                const float faded = occupancy.value[cell[l]] * decay;
                occupancy.value[cell[l]] = opacity > faded ? opacity : faded;
                occupancy.visibility[cell[l]] *= VISIBILITY_DECAY;
            }
        }
    }
}

// The first of ascending `cells` (count) that is not below `flat`.
DEVICE int lower_bound(const int* cells, int count, int flat) {
    int low = 0;
    while (count > 0) {
        const int half = count / 2;
        if (cells[low + half] < flat) {
            low += half + 1, count -= half + 1;
        } else {
            count = half;
        }
    }
    return low;
}

// OccupancyCells.occupied and OccupancyCells.dense, of value, seen and inside: `OccupancyGrid.occupied`. A cell is occupied if a step in
// it may be more opaque than `threshold`, and silhouettes do not rule it out. An item is a word of `dense`, so that
// words without candidates are cleared too; OccupancyCells.cells must ascend. Launch with items = resolution^3 / 32, rounded up.
KERNEL(128) threshold_occupancy(const OccupancyCells occupancy, float threshold) {
    const int n = occupancy.resolution, words = (n * n * n + 31) / 32;
    EACH(word, words) {
        uint bits = 0;
        for (int i = lower_bound(occupancy.cells, occupancy.count, 32 * word); i < occupancy.count; ++i) {
            const int bit = occupancy.cells[i] - 32 * word;
            if (bit >= 32) break;
            const float seen = occupancy.view_count[i];
            const bool outside = seen >= float(HULL_VOTES) && occupancy.matte_count[i] < HULL_SHARE * seen;
            const bool occupied = occupancy.value[i] > threshold && !outside;
            occupancy.occupied[i] = byte(occupied);
            bits |= uint(occupied) << bit;
        }
        occupancy.dense[word] = bits;
    }
}

// Where pose `frame` carries a canonical point that rides with `triangle`, as far as that holds it:
// `PosedHead.forward_warp_centres`.
DEVICE vec3 forward_warp(const Head& head, const PoseBuffers& poses, int frame, int triangle, vec3 point) {
    const long long k = (long long)frame * head.triangles + triangle;
    const int corner = head.faces[3 * triangle];
    const float* map = poses.maps + 9 * k;
    // The map is a rotation times a scale s, so its inverse is its transpose over s^2.
    float squares = 0.0f;
    UNROLL for (int i = 0; i < 9; ++i) squares += map[i] * map[i];
    const vec3 offset = point - load3(head.canonical + 3 * corner), turned = transform_transposed(map, offset);
    const vec3 with_surface =
        load3(poses.vertices + 3 * ((long long)frame * head.vertices + corner)) + (3.0f / squares) * turned;
    const float height = height_above(head, triangle, offset);
    if (!(WARP_DETACHMENT_HEIGHT > 0.0f && height > 0.0f)) return with_surface;
    const float attached = attachment(height, head.masks[2 * corner]);
    return attached * with_surface + (1.0f - attached) * (point - load3(head.open_offset + 3 * corner));
}

// Count, for each candidate cell, whether one more picture's matte has it: `OccupancyGrid.carve`.
//
//   frame: which pose; the camera of its state belongs to a picture of width x height
//   alpha (height, width): the matte, 255 is solid; depth (height, width): of the posed mesh, infinite where is none
//
// Cells outside the picture, not before the camera, or so far behind the mesh that no ray comes there are not counted;
// with NaN in a state, none is.
// Launch with items = cells.
KERNEL(128) carve_cells(const Head head, const PoseBuffers poses, const OccupancyCells occupancy, int frame, const byte* alpha,
                        const float* depth, int width, int height) {
    const float* state = poses.states + (long long)frame * poses.state_size;
    const float* rotation = state + STATE_ROTATION(head.expressions);
    const float* translation = state + STATE_TRANSLATION(head.expressions);
    const float* camera = state + STATE_CAMERA(head.expressions);
    // A cell is larger than a pixel: its matte is the largest around its centre, as far as it reaches at the head.
    const float half = 0.5f * head.side / float(occupancy.resolution);
    const float reach = half * camera[0] / fmaxf(translation[2], HULL_NEAR);
    const int radius = int(clampf(rintf(reach), 1.0f, float(width)));
    EACH(i, occupancy.count) {
        const vec3 centre = cell_centre(head, occupancy.cells[i], occupancy.resolution);
        const vec3 p = transform(rotation, forward_warp(head, poses, frame, occupancy.triangle[i], centre)) + load3(translation);
        const float u = floorf(p.x / p.z * camera[0] + camera[2]), v = floorf(p.y / p.z * camera[1] + camera[3]);
        if (!(p.z > HULL_NEAR && u >= 0.0f && v >= 0.0f && u < float(width) && v < float(height))) continue;
        if (!(p.z < depth[int(v) * width + int(u)] + BEHIND_SURFACE + half)) continue;
        const int left = clampi(int(u) - radius, 0, width - 1), right = clampi(int(u) + radius, 0, width - 1);
        const int bottom = clampi(int(v) + radius, 0, height - 1);
        bool found = false;
        for (int y = clampi(int(v) - radius, 0, height - 1); y <= bottom && !found; ++y) {
            for (int x = left; x <= right; ++x) found = found || float(alpha[y * width + x]) > 255.0f * HULL_ALPHA;
        }
        occupancy.view_count[i] += 1.0f;
        occupancy.matte_count[i] += found ? 1.0f : 0.0f;
    }
}
