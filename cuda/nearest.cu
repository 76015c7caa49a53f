// Nearest surface points and inverse warp of arbitrary points, as separate kernels for tests and measurements.
#include "warp.cuh"

// Nearest surface points of `points` (n, 3) in pose `frame`: triangle (n), barycentrics (n, 3), distance (n) in metres.
// Points outside the marked cells get triangle -1, zeros and an infinite distance.
KERNEL(128)
nearest_query(const Head head, const PoseBuffers poses, int frame, const float* points, int n, int* triangle,
              float* barycentrics, float* distance) {
    EACH(i, n) {
        const vec3 p = load3(points + 3 * i);
        Nearest nearest{-1, 0.0f, 0.0f, vec3{0.0f, 0.0f, 0.0f}, 0.0f};
        int row = 0;
        if (is_marked(head, poses, frame, p, &row)) nearest = nearest_to(head, poses, frame, row, p);
        const bool found = nearest.triangle >= 0;
        triangle[i] = nearest.triangle;
        barycentrics[3 * i] = found ? clampf(1.0f - nearest.v - nearest.w, 0.0f, 1.0f) : 0.0f;
        barycentrics[3 * i + 1] = nearest.v;
        barycentrics[3 * i + 2] = nearest.w;
        distance[i] = found ? nearest.distance : bits_to_float(0x7f800000u);
    }
}

// Inverse warp of points and directions (n, 3): position (n, 3) metres, turned (n, 3), masks (n, 2). Points outside the
// marked cells are returned unchanged, with zero masks.
KERNEL(128)
inverse_warp_points(const Head head, const PoseBuffers poses, int frame, const float* points, const float* directions,
                    int n, float* position, float* turned, float* masks) {
    EACH(i, n) {
        const vec3 p = load3(points + 3 * i), d = load3(directions + 3 * i);
        WarpedPoint warped{p, d, 0.0f, 0.0f, 0.0f, -1};
        int row = 0;
        if (is_marked(head, poses, frame, p, &row)) warped = inverse_warp(head, poses, frame, row, p, d);
        store3(position + 3 * i, warped.position);
        store3(turned + 3 * i, warped.direction);
        masks[2 * i] = warped.mouth;
        masks[2 * i + 1] = warped.eyes;
    }
}
