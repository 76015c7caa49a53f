// Geometry of the posed triangles: local coordinate frames (tangent, bitangent, normal), linear maps from posed to
// canonical space for the inverse warp (insta_runtime/warp/frames.py), and bounding spheres of groups of triangles.
#include "layout.cuh"
#include "nearest.cuh"
#include "vec.cuh"

#define NO_EDGE 1e-12f           // metres; shorter edges have no direction
#define DEGENERATE_AREA 1e-12f   // twice the area in m^2; smaller triangles have no frame
#define LEAST_AREA 1e-14f        // m^2; lower bound of a posed area when scales are computed
#define LARGEST_SCALE 2.0f  // upper bound, so that a triangle squashed by the pose does not magnify its surroundings
#define SCALE_LENGTH 0           // values of WARP_SCALE, a constant from Python
#define SCALE_AREA 1
#define RECORD_SIZE 16

// Computes maps (frames, triangles, 9) and triangles (frames, triangles, 12) from the posed vertices. Degenerate
// triangles have the identity as their frame. items: frames * triangles.
KERNEL(128) triangle_frames(const Head head, const PoseBuffers poses) {
    EACH(i, poses.frames * head.triangles) {
        const int frame = i / head.triangles, triangle = i % head.triangles;
        const float* vertices = poses.vertices + (size_t)frame * head.vertices * 3;
        const int* corner = head.faces + 3 * triangle;
        const vec3 a = load3(vertices + 3 * corner[0]);
        const vec3 ab = load3(vertices + 3 * corner[1]) - a, ac = load3(vertices + 3 * corner[2]) - a;
        const float d00 = dot(ab, ab), d01 = dot(ab, ac), d11 = dot(ac, ac);
        float* row = poses.triangles + (size_t)i * TRIANGLE_SIZE;
        store4(row, a.x, a.y, a.z, ab.x);
        store4(row + 4, ab.y, ab.z, ac.x, ac.y);
        store4(row + 8, ac.z, d00, d01, d11);

        vec3 normal = cross(ab, ac);
        const float double_area = length(normal);
        const bool flat = !(double_area >= DEGENERATE_AREA);
        vec3 tangent = (1.0f / fmaxf(sqrtf(d00), NO_EDGE)) * ab;
        normal = (1.0f / fmaxf(double_area, DEGENERATE_AREA)) * normal;
        vec3 bitangent = cross(normal, tangent);
        if (flat) tangent = vec3{1, 0, 0}, bitangent = vec3{0, 1, 0}, normal = vec3{0, 0, 1};

        const float ratio = head.canonical_areas[triangle] / fmaxf(0.5f * double_area, LEAST_AREA);
        float scale = 1.0f;
        if constexpr (WARP_SCALE == SCALE_LENGTH) scale = clampf(sqrtf(ratio), 1.0f / LARGEST_SCALE, LARGEST_SCALE);
        if constexpr (WARP_SCALE == SCALE_AREA)
            if (head.neighbours[4 * triangle + 3] == REGION_EYES)
                scale = clampf(ratio, 1.0f / (LARGEST_SCALE * LARGEST_SCALE), LARGEST_SCALE * LARGEST_SCALE);
        const float* canonical = head.canonical_frames + 9 * triangle;
        float* map = poses.maps + (size_t)i * 9;
        UNROLL for (int r = 0; r < 3; ++r) {
            const vec3 c = scale * load3(canonical + 3 * r);
            map[3 * r] = c.x * tangent.x + c.y * bitangent.x + c.z * normal.x;
            map[3 * r + 1] = c.x * tangent.y + c.y * bitangent.y + c.z * normal.y;
            map[3 * r + 2] = c.x * tangent.z + c.y * bitangent.z + c.z * normal.z;
        }
    }
}

// Computes records (frames, vertices, 16): maps of the triangles around each vertex, averaged by canonical area in a
// fixed order; canonical position; masks. items: frames * vertices.
KERNEL(128) vertex_records(const Head head, const PoseBuffers poses) {
    EACH(i, poses.frames * head.vertices) {
        const int frame = i / head.vertices, vertex = i % head.vertices;
        const float* maps = poses.maps + (size_t)frame * head.triangles * 9;
        float sum[9] = {}, total = 0.0f;
        for (int e = head.incident_first[vertex]; e < head.incident_first[vertex + 1]; ++e) {
            const int triangle = head.incident[e];
            const float area = head.canonical_areas[triangle];
            total += area;
            UNROLL for (int q = 0; q < 9; ++q) sum[q] += area * maps[9 * (size_t)triangle + q];
        }
        const float share = 1.0f / fmaxf(total, 1e-20f);
        UNROLL for (int q = 0; q < 9; ++q) sum[q] *= share;
        const float* canonical = head.canonical + 3 * vertex;
        float* record = poses.records + (size_t)i * RECORD_SIZE;
        store4(record, sum[0], sum[1], sum[2], sum[3]);
        store4(record + 4, sum[4], sum[5], sum[6], sum[7]);
        store4(record + 8, sum[8], canonical[0], canonical[1], canonical[2]);
        store4(record + 12, head.masks[2 * vertex], head.masks[2 * vertex + 1], 0.0f, 0.0f);
    }
}

// Computes spheres (frames, leaves, 4): a bounding sphere of the corners of each leaf. items: 32 * frames * leaves.
KERNEL(128) leaf_spheres(const Head head, const PoseBuffers poses) {
    EACH_PACKET(p, poses.frames * head.leaves) {
        const int frame = p / head.leaves, leaf = p % head.leaves;
        const float* vertices = poses.vertices + (size_t)frame * head.vertices * 3;
        const int* members = head.leaf_members + (size_t)leaf * head.leaf_size;
        float low[3][LANES], high[3][LANES];  // bounds of the corners; `high` holds negated values
        for (int l = 0; l < LANES; ++l) {
            for (int axis = 0; axis < 3; ++axis) low[axis][l] = high[axis][l] = 3e38f;
            for (int m = COLUMN(l); m < head.leaf_size; m += PACKET)
                for (int k = 0; k < 3; ++k) {
                    const float* v = vertices + 3 * head.faces[3 * members[m] + k];
                    UNROLL for (int axis = 0; axis < 3; ++axis) {
                        low[axis][l] = fminf(low[axis][l], v[axis]);
                        high[axis][l] = fminf(high[axis][l], -v[axis]);
                    }
                }
        }
        const vec3 centre = 0.5f * vec3{min_lanes(low[0]) - min_lanes(high[0]), min_lanes(low[1]) - min_lanes(high[1]),
                                        min_lanes(low[2]) - min_lanes(high[2])};
        float farthest[LANES];  // squared distance, negated
        for (int l = 0; l < LANES; ++l) {
            farthest[l] = 0.0f;
            for (int m = COLUMN(l); m < head.leaf_size; m += PACKET)
                for (int k = 0; k < 3; ++k) {
                    const vec3 d = load3(vertices + 3 * head.faces[3 * members[m] + k]) - centre;
                    farthest[l] = fminf(farthest[l], -dot(d, d));
                }
        }
        const float radius =
            sqrtf(-min_lanes(farthest)) * 1.00001f;  // margin, so that rounding leaves no corner outside
        for (int l = 0; l < LANES; ++l)
            if (COLUMN(l) == 0) store4(poses.spheres + 4 * (size_t)p, centre.x, centre.y, centre.z, radius);
    }
}
