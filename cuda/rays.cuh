// Camera rays in head space (insta_runtime/render/rays.py). Constants from Python: BEHIND_SURFACE, EDGE.
#pragma once
#include "layout.cuh"
#include "vec.cuh"

#define NEAREST 0.05f  // metres along a ray; nothing nearer is rendered
#define FARTHEST 1e4f  // metres along a ray; nothing farther is rendered, so that step indices stay small

struct Ray {
    vec3 origin;
    vec3 direction;  // unit vector
    float near, far;  // metres along the ray; far < near if it misses
};

DEVICE bool is_finite(vec3 v) { return (fabsf(v.x) < 3e38f) & (fabsf(v.y) < 3e38f) & (fabsf(v.z) < 3e38f); }

// Camera-space point at unit depth on the ray through pixel position (x, y) of a state's camera. Its length is the
// ratio of distance along the ray to depth.
DEVICE vec3 unit_depth_point(const float* state, int expressions, float x, float y) {
    const float* camera = state + STATE_CAMERA(expressions);
    return vec3{(x - camera[2]) / camera[0], (y - camera[3]) / camera[1], 1.0f};
}

// That ray in head space. It ends slightly behind `depth`, the depth (z) of the posed mesh, which is infinite beside
// it.
DEVICE Ray pixel_ray(const float* state, int expressions, float x, float y, float depth) {
    const float* rotation = state + STATE_ROTATION(expressions);
    const vec3 crossing = unit_depth_point(state, expressions, x, y);
    const float slant = length(crossing);
    Ray ray;
    ray.origin = transform_transposed(rotation, -1.0f * load3(state + STATE_TRANSLATION(expressions)));
    ray.direction = transform_transposed(rotation, (1.0f / slant) * crossing);
    ray.near = NEAREST;
    ray.far = depth * slant + BEHIND_SURFACE;
    return ray;
}

DEVICE void clip_axis(Ray& ray, float origin, float direction, float lower, float upper) {
    const float safe = fabsf(direction) < 1e-9f ? 1e-9f : direction;
    const float t0 = (lower - origin) / safe, t1 = (upper - origin) / safe;
    ray.near = fmaxf(ray.near, fminf(t0, t1));
    ray.far = fminf(ray.far, fmaxf(t0, t1));
}

// Largest depth within a radius of one EDGE-th of the width (a pixel or two) around (x, y): the outline of the mesh is
// never exactly that of the subject, so rays beside it must not be cut. Rows are `stride` apart.
DEVICE float farthest_around(const float* depth, int x, int y, int width, int height, int stride) {
    float far = 0.0f;
    const int edge = clampi((width + EDGE / 2) / EDGE, 1, width);
    const int right = clampi(x + edge, 0, width - 1), bottom = clampi(y + edge, 0, height - 1);
    for (int v = clampi(y - edge, 0, height - 1); v <= bottom; ++v)
        for (int u = clampi(x - edge, 0, width - 1); u <= right; ++u) far = fmaxf(far, depth[v * stride + u]);
    return far;
}

// Clips a ray to the bounding box of a pose's marked cells (6 bounds in cells: lowest x, y, z, highest x, y, z). The
// ray misses if no cell is marked, if it does not meet the box, or if any of its numbers is not finite.
DEVICE void clip_to_band(Ray& ray, const Head& head, const int* bounds) {
    const float cell = head.side / float(head.resolution);
    clip_axis(ray, ray.origin.x, ray.direction.x, head.origin_x + cell * float(bounds[0]),
        head.origin_x + cell * (float(bounds[3]) + 1.0f));
    clip_axis(ray, ray.origin.y, ray.direction.y, head.origin_y + cell * float(bounds[1]),
        head.origin_y + cell * (float(bounds[4]) + 1.0f));
    clip_axis(ray, ray.origin.z, ray.direction.z, head.origin_z + cell * float(bounds[2]),
        head.origin_z + cell * (float(bounds[5]) + 1.0f));
    const bool band = bounds[0] <= bounds[3];
    if (!(band && ray.far > ray.near && ray.near < FARTHEST && is_finite(ray.origin) && is_finite(ray.direction))) {
        ray = Ray{vec3{0.0f, 0.0f, 0.0f}, vec3{0.0f, 0.0f, 1.0f}, 1.0f, 0.0f};
    }
}

// Pixels are processed in tiles of 8 x 4, one packet each, so that the lanes of a packet read neighbouring memory.
DEVICE int count_tiles(int width, int height) { return ((width + 7) / 8) * ((height + 3) / 4); }

// The pixel y * width + x of a lane in a tile; -1 outside the image.
DEVICE int tiled_pixel(int tile, int column, int width, int height) {
    const int across = (width + 7) / 8;
    const int x = tile % across * 8 + (column & 7), y = tile / across * 4 + (column >> 3);
    return x < width && y < height ? y * width + x : -1;
}

// The ray through the centre of a pixel of pose 0, clipped to the band.
DEVICE Ray ray_of_pixel(const Head& head, const PoseBuffers& poses, int pixel, int width, int height,
                        const float* depth) {
    const int x = pixel % width, y = pixel / width;
    Ray ray = pixel_ray(poses.states, head.expressions, float(x) + 0.5f, float(y) + 0.5f,
                        farthest_around(depth, x, y, width, height, width));
    clip_to_band(ray, head, poses.bounds);
    return ray;
}
