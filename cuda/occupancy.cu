// Canonical occupancy grid, which marks the cells that are not empty; updated from the field's densities and from the
// silhouettes (mattes) of frames. Torch reference: render/occupancy.py.
#include "field.cuh"
#include "random.cuh"
#include "warp.cuh"

#define THREADS 128

// Updates up to `updates` cells from the field's density at one random point of each, with a random expression code:
// value = max(value * decay, opacity of one step); visibility decays by VISIBILITY_DECAY. If there are more cells than
// `updates`, one cell of each of `updates` equal ranges of the list is drawn, so that no cell is drawn twice and
// results repeat bit for bit.
//
//   codes (progress[1], code_stride): rows that begin with an expression code; without rows, nothing changes
//   progress: {training steps so far, which seed the draw; number of codes}, in device memory
//
// items: min(updates, cells), rounded up to packets.
KERNEL(THREADS)
update_occupancy(const OccupancyCells occupancy, const FieldWeights weights, const float* codes, int code_stride,
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
            const int from = int((long long)occupancy.count * j / drawn),
                      to = int((long long)occupancy.count * (j + 1) / drawn);
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

// Index of the first of the ascending `cells` (count) that is not less than `flat`.
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

// Computes OccupancyCells.occupied and dense from value, view_count and matte_count: `OccupancyGrid.occupied`. A cell
// is occupied if the opacity of a step exceeds `threshold` and silhouettes do not exclude it. Each item writes one word
// of `dense`, so that words without candidate cells are cleared, too; OccupancyCells.cells must ascend. items:
// ceil(resolution^3 / 32).
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

// Forward warp of a canonical point with its `triangle` to pose `frame`: `PosedHead.forward_warp_centres`.
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

// Space carving with one training image: counts for each candidate cell whether it is visible and whether the matte
// contains it (`OccupancyGrid.carve`).
//
//   frame: index of the pose, whose state has the camera of an image of width x height
//   alpha (height, width): the matte, 255 is opaque; depth (height, width): of the posed mesh, infinite beside it
//
// Cells outside the image, behind the camera, or farther behind the mesh than rays reach are not counted; with NaN in a
// state, no cell is. items: cells.
KERNEL(128)
carve_cells(const Head head, const PoseBuffers poses, const OccupancyCells occupancy, int frame, const byte* alpha,
            const float* depth, int width, int height) {
    const float* state = poses.states + (long long)frame * poses.state_size;
    const float* rotation = state + STATE_ROTATION(head.expressions);
    const float* translation = state + STATE_TRANSLATION(head.expressions);
    const float* camera = state + STATE_CAMERA(head.expressions);
    // A cell is larger than a pixel: use the largest matte value within its projected radius.
    const float half = 0.5f * head.side / float(occupancy.resolution);
    const float reach = half * camera[0] / fmaxf(translation[2], HULL_NEAR);
    const int radius = int(clampf(rintf(reach), 1.0f, float(width)));
    EACH(i, occupancy.count) {
        const vec3 centre = cell_centre(head, occupancy.cells[i], occupancy.resolution);
        const vec3 p =
            transform(rotation, forward_warp(head, poses, frame, occupancy.triangle[i], centre)) + load3(translation);
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
