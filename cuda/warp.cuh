// Inverse warp from posed to canonical space (insta_runtime/warp/warp.py): a sample moves with the nearest point of the
// head's surface. Constants from Python: WARP_BLEND, WARP_DETACHMENT_HEIGHT, and LIPS_ALONE: if it is not zero, the
// mask of the mouth covers the lips alone, and that of the eyes is empty.
#pragma once
#include "fastmath.cuh"
#include "nearest.cuh"

#define FADE 0.02f  // metres from the surface over which the expression code fades
#define FULLY_ATTACHED 0.25f  // share of WARP_DETACHMENT_HEIGHT below which a sample is fully attached to the surface
#define RECORD_SIZE 16
#define BLEND_SURFACE 0  // values of WARP_BLEND: maps of vertices, interpolated over the surface;
#define BLEND_NEIGHBOURS 1  // maps of the nearest triangle and, on the face, of its neighbours;
#define BLEND_TRIANGLE 2    // map of the nearest triangle alone
#define OWN_DECAY 1.0f         // 1 / metre; decay of a triangle's weight with distance
#define NEIGHBOURS_DECAY 4.0f
#define NO_DIRECTION 1e-12f  // shorter directions are not normalised

struct WarpedPoint {
    vec3 position;   // metres, canonical
    vec3 direction;  // unit vector
    float mouth, eyes;
    float distance;  // metres to the posed surface
    int triangle;  // nearest triangle, -1 if there was no candidate; then the point is unchanged and the masks are zero
};

DEVICE vec3 origin_of(const Head& head) { return vec3{head.origin_x, head.origin_y, head.origin_z}; }
DEVICE vec3 unit_cube(const Head& head, vec3 p) { return (1.0f / head.side) * (p - origin_of(head)); }
DEVICE bool in_unit_cube(vec3 u) {
    return (u.x >= 0.0f) & (u.x < 1.0f) & (u.y >= 0.0f) & (u.y < 1.0f) & (u.z >= 0.0f) & (u.z < 1.0f);
}
DEVICE vec3 cell_centre(const Head& head, int cell, int resolution) {
    const float size = head.side / float(resolution);
    const int x = cell % resolution, y = cell / resolution % resolution, z = cell / (resolution * resolution);
    return origin_of(head) + size * vec3{float(x) + 0.5f, float(y) + 0.5f, float(z) + 0.5f};
}
DEVICE bool bit_at(const uint* bits, int i) { return (bits[i >> 5] >> (i & 31)) & 1u; }
// Sets a bit that other threads may set, too. Most bits are set already; a stale read only costs a redundant atomic.
DEVICE void set_bit(uint* bits, int i) {
    uint* word = bits + (i >> 5);
    const uint bit = 1u << (i & 31);
    if (!(*(volatile const uint*)word & bit)) or_atomic(word, bit);
}

// Whether p lies in a marked cell of the posed grid, and the row of its candidates. Points outside the cube and dropped
// cells are not marked.
DEVICE bool is_marked(const Head& head, const PoseBuffers& poses, int frame, vec3 p, int* row) {
    const vec3 unit = unit_cube(head, p);
    if (!in_unit_cube(unit)) return false;
    const int cell = flat_cell(unit, head.resolution);
    if (!bit_at(poses.bits + (size_t)frame * poses.words, cell)) return false;
    *row = poses.row[(size_t)frame * head.resolution * head.resolution * head.resolution + cell];
    return *row >= 0;
}

// The surface point nearest to p, whose cell has the candidates of `row`.
DEVICE Nearest nearest_to(const Head& head, const PoseBuffers& poses, int frame, int row, vec3 p) {
    const size_t place = (size_t)frame * poses.capacity + row;
    const vec3 centre = cell_centre(head, poses.cell[place], head.resolution);
    return nearest_of(poses.candidates + place * head.candidates, head.candidates,
                      poses.triangles + (size_t)frame * head.triangles * TRIANGLE_SIZE, p, length(p - centre));
}

// Adds a triangle's map of p, scaled by `weight`, to `map` and `position`.
DEVICE void add_map(const Head& head, const PoseBuffers& poses, int frame, int triangle, float weight, vec3 p,
                    float (&map)[9], vec3& position) {
    const size_t k = (size_t)frame * head.triangles + triangle;
    const float* own = poses.maps + 9 * k;
    const vec3 offset = p - load3(poses.triangles + TRIANGLE_SIZE * k);
    position = position + weight * (load3(head.canonical + 3 * head.faces[3 * triangle]) + transform(own, offset));
    UNROLL for (int q = 0; q < 9; ++q) map[q] += weight * own[q];
}

DEVICE float neighbour_weight(const Head& head, const PoseBuffers& poses, int frame, int triangle, float decay,
                              vec3 p) {
    const Triangle t = load_triangle(poses.triangles + ((size_t)frame * head.triangles + triangle) * TRIANGLE_SIZE);
    return fast_exp(-decay * length(p - (t.a + (1.0f / 3.0f) * (t.ab + t.ac))));
}

// Canonical position of p (metres) by the maps of its nearest triangle and, on the face, of its neighbours; `map` is
// the linear part.
DEVICE vec3 blend_triangle_maps(const Head& head, const PoseBuffers& poses, int frame, int nearest, vec3 p,
                                float (&map)[9]) {
    vec3 position = {0.0f, 0.0f, 0.0f};
    const int* around = head.neighbours + 4 * nearest;
    if (WARP_BLEND == BLEND_TRIANGLE || around[3] != REGION_FACE) {
        add_map(head, poses, frame, nearest, 1.0f, p, map, position);
        return position;
    }
    float weight[4] = {neighbour_weight(head, poses, frame, nearest, OWN_DECAY, p)}, total = weight[0];
    for (int i = 0; i < 3; ++i) {
        if (around[i] != nearest) weight[1 + i] = neighbour_weight(head, poses, frame, around[i], NEIGHBOURS_DECAY, p);
        total += weight[1 + i];
    }
    add_map(head, poses, frame, nearest, weight[0] / total, p, map, position);
    for (int i = 0; i < 3; ++i)
        if (around[i] != nearest) add_map(head, poses, frame, around[i], weight[1 + i] / total, p, map, position);
    return position;
}

// Masks of mouth and eyes on the surface, before they fade with distance.
DEVICE void surface_masks(const Head& head, const Nearest& nearest, float& mouth, float& eyes) {
    float weight[3];
    barycentric_weights(nearest, weight);
    mouth = eyes = 0.0f;
    UNROLL for (int i = 0; i < 3; ++i) {
        const float* masks = head.masks + 2 * head.faces[3 * nearest.triangle + i];
        mouth += weight[i] * masks[0];
        eyes += weight[i] * masks[1];
    }
}

// Attachment of a point to the surface at a distance (metres) above it, 0 to 1: 1 near the skin, in the mouth and below
// the surface, 0 from WARP_DETACHMENT_HEIGHT on.
DEVICE float attachment(float distance, float mouth) {
    constexpr float reach = WARP_DETACHMENT_HEIGHT > 0.0f ? WARP_DETACHMENT_HEIGHT : 1.0f;
    const float t = clampf((distance * (1.0f / reach) - FULLY_ATTACHED) * (1.0f / (1.0f - FULLY_ATTACHED)), 0.0f, 1.0f);
    return 1.0f - t * t * (3.0f - 2.0f * t) * (1.0f - mouth);
}
DEVICE bool above_surface(const PoseBuffers& poses, const Head& head, int frame, const Nearest& nearest) {
    const Triangle t =
        load_triangle(poses.triangles + ((size_t)frame * head.triangles + nearest.triangle) * TRIANGLE_SIZE);
    return dot(cross(t.ab, t.ac), nearest.offset) > 0.0f;
}

// Height in metres above the plane of a canonical triangle; `offset` is relative to its first corner.
DEVICE float height_above(const Head& head, int triangle, vec3 offset) {
    const float* axes = head.canonical_frames + 9 * triangle;
    return dot(offset, vec3{axes[2], axes[5], axes[8]});
}

// Unit ray direction rotated into the range of views seen in training, for the colour network.
DEVICE vec3 view_direction(const Head& head, const PoseBuffers& poses, int frame, vec3 direction) {
    return transform(poses.states + (size_t)frame * poses.state_size + STATE_VIEW_ROTATION(head.expressions),
                     direction);
}

// Displacement of the canonical position of a point p (metres) by the motions of mouth and eyes relative to the head.
DEVICE vec3 part_displacement(const Head& head, const PoseBuffers& poses, int frame, vec3 p, float mouth, float eyes) {
    const float* apart = poses.states + (size_t)frame * poses.state_size + STATE_PART_MOTIONS(head.expressions);
    return mouth * (load3(apart) + (1.0f / TURN_RADIUS) * cross(load3(apart + 3), p)) +
           eyes * (load3(apart + MOTION) + (1.0f / TURN_RADIUS) * cross(load3(apart + MOTION + 3), p));
}

// Inverse warp of a point p (metres), whose cell has the candidates of `row`, and of a unit direction d.
DEVICE WarpedPoint inverse_warp(const Head& head, const PoseBuffers& poses, int frame, int row, vec3 p, vec3 d) {
    const Nearest nearest = nearest_to(head, poses, frame, row, p);
    if (nearest.triangle < 0) return WarpedPoint{p, d, 0.0f, 0.0f, 3e38f, -1};
    WarpedPoint warped;
    vec3 turned;
    if constexpr (WARP_BLEND == BLEND_SURFACE) {
        float weight[3];
        barycentric_weights(nearest, weight);
        const float* records = poses.records + (size_t)frame * head.vertices * RECORD_SIZE;
        const int* corner = head.faces + 3 * nearest.triangle;
        float blend[RECORD_SIZE] = {};
        UNROLL for (int i = 0; i < 3; ++i) {
            const float* record = records + (size_t)corner[i] * RECORD_SIZE;
            UNROLL for (int q = 0; q < RECORD_SIZE; q += 4) {
                const vec4 part = load4(record + q);
                blend[q] += weight[i] * part.x;
                blend[q + 1] += weight[i] * part.y;
                blend[q + 2] += weight[i] * part.z;
                blend[q + 3] += weight[i] * part.w;
            }
        }
        turned = transform(blend, d);
        warped.position = load3(blend + 9) + transform(blend, nearest.offset);
        warped.mouth = blend[12];
        warped.eyes = blend[13];
        if constexpr (WARP_DETACHMENT_HEIGHT > 0.0f) {
            if (nearest.distance > FULLY_ATTACHED * WARP_DETACHMENT_HEIGHT &&
                above_surface(poses, head, frame, nearest)) {
                vec3 detached = p;
                UNROLL for (int i = 0; i < 3; ++i) detached =
                    detached + weight[i] * load3(head.open_offset + 3 * corner[i]);
                const float attached = attachment(nearest.distance, warped.mouth);
                warped.position = attached * warped.position + (1.0f - attached) * detached;
                turned = attached * turned + (1.0f - attached) * d;
            }
        }
    } else {
        float map[9] = {};
        warped.position = blend_triangle_maps(head, poses, frame, nearest.triangle, p, map);
        turned = transform(map, d);
        surface_masks(head, nearest, warped.mouth, warped.eyes);
    }
    const float faded = clampf(1.0f - nearest.distance * (1.0f / FADE), 0.0f, 1.0f);
    warped.direction = (1.0f / fmaxf(length(turned), NO_DIRECTION)) * turned;
    warped.mouth *= faded;
    warped.eyes *= faded;
    if constexpr (LIPS_ALONE != 0) {
        warped.mouth = head.neighbours[4 * nearest.triangle + 3] == REGION_LIPS ? 1.0f : 0.0f;
        warped.eyes = 0.0f;
    }
    if (warped.mouth + warped.eyes > 0.0f)
        warped.position = warped.position + part_displacement(head, poses, frame, p, warped.mouth, warped.eyes);
    warped.distance = nearest.distance;
    warped.triangle = nearest.triangle;
    return warped;
}

// Whether the canonical cell at `unit` (in the unit cube) is occupied; false outside the cube.
DEVICE bool occupied_at(const OccupancyCells& occupancy, vec3 unit) {
    return in_unit_cube(unit) && bit_at(occupancy.dense, flat_cell(unit, occupancy.resolution));
}
