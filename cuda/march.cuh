// Steps of a ray (insta_runtime/render/sampling.py): samples lie on a lattice around the eye, at t = (k + offset) * step
// for whole k, so that neighbouring rays sample alike.
#pragma once
#include "rays.cuh"
#include "warp.cuh"

#define MIDDLE 0.5f  // the offset of pictures: a still head gives a still one

DEVICE float distance_at(int k, float offset, float step) { return (float(k) + offset) * step; }
DEVICE int first_step(float near, float step) { return int(floorf(near / step)); }

// One step that lies in a marked cell.
struct Step {
    float t;  // metres along the ray
    vec3 position;
    int row;  // of the marked cell
};

// The first step of index >= k with t < far in a marked cell; k becomes the index after it. False if there is none.
DEVICE bool next_step(const Head& head, const Poses& poses, int frame, const Ray& ray, float offset, float step, int& k,
                      Step& found) {
    for (;;) {
        found.t = distance_at(k, offset, step);
        if (!(found.t < ray.far)) return false;
        ++k;
        found.position = ray.origin + found.t * ray.direction;
        if (cell_marked(head, poses, frame, found.position, &found.row)) return true;
    }
}
