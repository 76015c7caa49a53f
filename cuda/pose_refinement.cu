// Where heads really are: corrections of tracked poses, learned from the same pixels as the field.
//
// A picture has small motions in the head's own space: the head's, the mouth's and the eyes', each from where it was
// tracked. Mouth and eyes move as they do where their mask is one, and with the head where both are zero.
// Twin: learn/registration.py.
#include "hashgrid.cuh"
#include "layout.cuh"
#include "rotation.cuh"

#define MOTIONS ((1 + PARTS) * MOTION)  // numbers of a picture

// The poses of the drawn pictures with their corrections, into their rows of `states` (slots, state_size) and, unless
// it is null, of `posed` (frames, state_size); pulls (frames, MOTIONS) becomes zero.
//
// tracked (slots, 12): rotation 9 and translation 3 as the tracker has them. motions (slots, MOTIONS). items: frames.
KERNEL(32) apply_pose_corrections(int expressions, int state_size, int frames, const int* slots, const float* tracked,
                          const float* motions, float* states, float* posed, float* motion_gradients) {
    EACH(b, frames) {
        const int slot = slots[b];
        const float* head = tracked + 12 * (size_t)slot;
        const float* motion = motions + MOTIONS * (size_t)slot;
        const float angles[3] = {motion[3] / TURN_RADIUS, motion[4] / TURN_RADIUS, motion[5] / TURN_RADIUS};
        float rotation[9], placed[12];
        rotation_matrix(angles, rotation);
        for (int r = 0; r < 3; ++r) {
            const float* row = head + 3 * r;
            for (int c = 0; c < 3; ++c) placed[3 * r + c] = row[0] * rotation[c] + row[1] * rotation[3 + c] + row[2] * rotation[6 + c];
            placed[9 + r] = head[9 + r] + row[0] * finite_or_zero(motion[0]) + row[1] * finite_or_zero(motion[1]) + row[2] * finite_or_zero(motion[2]);
        }
        for (int i = 0; i < 12; ++i) {
            const int column = STATE_ROTATION(expressions) + i;
            states[(size_t)slot * state_size + column] = placed[i];
            if (posed) posed[(size_t)b * state_size + column] = placed[i];
        }
        for (int k = 0; k < PARTS * MOTION; ++k) {
            const int column = STATE_PART_MOTIONS(expressions) + k;
            const float apart = finite_or_zero(motion[k % MOTION]) - finite_or_zero(motion[MOTION + k]);
            states[(size_t)slot * state_size + column] = apart;
            if (posed) posed[(size_t)b * state_size + column] = apart;
        }
        for (int k = 0; k < MOTIONS; ++k) motion_gradients[MOTIONS * b + k] = 0.0f;
    }
}

// A feature of a row, and of what a sample pulls at.
DEVICE float table_feature(const storage_t* table, uint row, int f) { return load(table + row * size_t(FEATURES) + f); }
DEVICE float feature_gradient(const storage_t* gradients, int capacity, int level, int sample, int f) {
#if ON_GPU
    return load(gradients + ((size_t(level) * capacity + sample) * FEATURES + f));
#else
    return gradients[(size_t(level) * FEATURES + f) * capacity + sample];
#endif
}

// The gradient with respect to a point of the unit cube, of what one level's features pull: slopes of the trilinear
// interpolation between its rows.
DEVICE vec3 level_gradient(const storage_t* table, int level, vec3 point, const float (&grad)[FEATURES]) {
    const float resolution = float(level_resolution[level]);
    const float x = point.x * resolution, y = point.y * resolution, z = point.z * resolution;
    const int ix = int(x), iy = int(y), iz = int(z);
    const float fx = x - float(ix), fy = y - float(iy), fz = z - float(iz);
    const float gx = 1.0f - fx, gy = 1.0f - fy, gz = 1.0f - fz;
    float value[8];
    UNROLL
    for (int c = 0; c < 8; ++c) {
        const uint a = uint(ix) + (c & 1), b = (uint(iy) + (c >> 1 & 1)) * stride_y(level),
                   d = (uint(iz) + (c >> 2)) * stride_z(level);
        const uint row = corner_row(uint(level_offset[level]), level < DENSE_LEVELS, a, b, d);
        value[c] = 0.0f;
        UNROLL
        for (int f = 0; f < FEATURES; ++f) value[c] += grad[f] * table_feature(table, row, f);
    }
    return resolution * vec3{gz * (gy * (value[1] - value[0]) + fy * (value[3] - value[2])) +
                                 fz * (gy * (value[5] - value[4]) + fy * (value[7] - value[6])),
                             gz * (gx * (value[2] - value[0]) + fx * (value[3] - value[1])) +
                                 fz * (gx * (value[6] - value[4]) + fx * (value[7] - value[5])),
                             gy * (gx * (value[4] - value[0]) + fx * (value[5] - value[1])) +
                                 fy * (gx * (value[6] - value[2]) + fx * (value[7] - value[3]))};
}

// Adds to pulls (frames, MOTIONS) the gradient of the loss, times LOSS_SCALE, with respect to the motions of each frame's
// head, mouth and eyes, from what field_backward left. As the head moves one way, a fixed ray's samples move the other
// way in its space; those of mouth and eyes do so with their own motions, as far as their masks go. That canonical space
// follows posed space as it is, neither turned nor stretched, holds but for jaw and lids, and is taken for granted.
// items: capacity of samples.
KERNEL(128) pose_gradients(const Rays rays, const Samples samples, const FieldWeights weights,
                       const storage_t* encoded_gradients, float side, int frames, float* motion_gradients) {
    const int steps = samples.totals[0], each = rays.count / frames;
    EACH_PACKET(p, (steps + PACKET - 1) / PACKET) {
        float grad[MOTION][LANES], share[1 + PARTS][LANES], frame[LANES], none[LANES];
        for (int l = 0; l < LANES; ++l) {
            const int j = p * PACKET + COLUMN(l), ray = j < steps ? samples.step_ray[j] : -1;
            const int sample = ray >= 0 ? samples.slot[j] : -1;
            for (int k = 0; k < MOTION; ++k) grad[k][l] = 0.0f;
            for (int part = 0; part <= PARTS; ++part) share[part][l] = 0.0f;
            frame[l] = 1e9f, none[l] = 1e9f;
            if (sample < 0) continue;
            const vec3 unit = load3(samples.position + 3 * (size_t)sample);
            const vec3 point = {clamp_unit(unit.x), clamp_unit(unit.y), clamp_unit(unit.z)};
            vec3 position_gradient = {};
            for (int level = 0; level < LEVELS; ++level) {
                float features[FEATURES];
                bool any = false;
                UNROLL
                for (int f = 0; f < FEATURES; ++f) {
                    features[f] = feature_gradient(encoded_gradients, samples.capacity, level, sample, f);
                    any = any || features[f] != 0.0f;
                }
                if (any) position_gradient = position_gradient + level_gradient(weights.table, level, point, features);
            }
            const vec4 origin = load4(rays.origin + 4 * ray), direction = load4(rays.direction + 4 * ray);
            const float t = samples.step_t[j];
            const vec3 at = vec3{origin.x, origin.y, origin.z} + t * vec3{direction.x, direction.y, direction.z};
            const vec3 force = (-1.0f / side) * position_gradient, moment = cross(at, force);
            share[1][l] = samples.masks[2 * (size_t)sample], share[2][l] = samples.masks[2 * (size_t)sample + 1];
            share[0][l] = 1.0f - share[1][l] - share[2][l];
            frame[l] = float(ray / each), none[l] = -frame[l];
            grad[0][l] = force.x, grad[1][l] = force.y, grad[2][l] = force.z;
            grad[3][l] = (1.0f / TURN_RADIUS) * moment.x, grad[4][l] = (1.0f / TURN_RADIUS) * moment.y;
            grad[5][l] = (1.0f / TURN_RADIUS) * moment.z;
        }
        // Steps side by side are mostly of one frame.
        const float lowest = min_lanes(frame), highest = -min_lanes(none);
        if (lowest > highest) continue;
        UNROLL for (int part = 0; part <= PARTS; ++part) {
            if (part > 0 && sum_lanes(share[part]) == 0.0f) continue;  // most are of the head alone
            for (float b = lowest; b <= highest; b += 1.0f)
                for (int k = 0; k < MOTION; ++k) {
                    float own[LANES];
                    for (int l = 0; l < LANES; ++l) own[l] = frame[l] == b ? share[part][l] * grad[k][l] : 0.0f;
                    const float sum = sum_lanes(own);
                    for (int l = 0; l < LANES; ++l)
                        if (COLUMN(l) == 0 && sum != 0.0f) add_atomic(motion_gradients + MOTIONS * int(b) + MOTION * part + k, sum);
                }
        }
    }
}

// One step of Adam on the motions of the drawn pictures, which also fade towards what their states predict.
// predicted (slots, MOTIONS). moments (slots, 2, MOTIONS): first and second. ages (slots, MOTIONS): steps a number has
// had; where it is below zero the motion is not learned.
// control: as in adam.cu, and control[6] the rate, metres. fades: of the way, a step. items: MOTIONS.
KERNEL(32) pose_adam_step(int frames, const int* slots, const float* motion_gradients, const float* control,
                         const float* predicted, float fades, float* motions, float* moments, float* ages) {
    const float rate = control[6];
    const bool learns = fabsf(control[5]) < 3.0e38f && rate > 0.0f;
    EACH(k, learns ? MOTIONS : 0) {
        for (int b = 0; b < frames; ++b) {  // a picture may have been drawn twice
            const size_t own = MOTIONS * (size_t)slots[b] + k;
            const float gradient = motion_gradients[MOTIONS * b + k] * (1.0f / LOSS_SCALE);
            if (!(fabsf(gradient) < 1e18f) || ages[own] < 0.0f) continue;
            float& first = moments[own + MOTIONS * (size_t)slots[b]];
            float& second = moments[own + MOTIONS * ((size_t)slots[b] + 1)];
            const float age = ages[own] += 1.0f;
            first += (1.0f - BETA1) * (gradient - first);
            second = BETA2 * second + (1.0f - BETA2) * gradient * gradient;
            const float mean = first / (1.0f - powf(BETA1, age)), square = second / (1.0f - powf(BETA2, age));
            motions[own] += fades * (predicted[own] - motions[own]) - rate * mean / (sqrtf(square) + 1e-20f);
        }
    }
}
