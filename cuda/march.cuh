// Ray marching (insta_runtime/render/sampling.py): samples lie at distances t = (k + offset) * step from the camera,
// with integer k, so that those of neighbouring rays are equally far away. Offsets are random in training; for a
// rendered frame the offset is chosen relative to the head's origin.
#pragma once
#include "rays.cuh"
#include "warp.cuh"

DEVICE float distance_at(int k, float offset, float step) { return (float(k) + offset) * step; }
// Sample offset of rendered frames: one sample lies half a step before the head's origin, so that samples move with the
// head and a still head gives a still frame. `eye` is the origin of the rays.
DEVICE float anchored_offset(vec3 eye, float step) {
    const float steps = length(eye) / step + 0.5f;
    return steps - floorf(steps);
}
DEVICE int first_step(float near, float step) { return int(floorf(near / step)); }

// One step of a ray in a marked cell.
struct Step {
    float t;  // metres along the ray
    vec3 position;
    int row;  // row of the marked cell
};

// Finds the first step of index >= k with t < far in a marked cell, and sets k to the index after it. False if there is
// none.
DEVICE bool next_step(const Head& head, const PoseBuffers& poses, int frame, const Ray& ray, float offset, float step,
                      int& k, Step& found) {
    for (;;) {
        found.t = distance_at(k, offset, step);
        if (!(found.t < ray.far)) return false;
        ++k;
        found.position = ray.origin + found.t * ray.direction;
        if (is_marked(head, poses, frame, found.position, &found.row)) return true;
    }
}
