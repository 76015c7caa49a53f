// Pose refinement: corrections of tracked head poses, learned from the same rays as the field.
//
// Each training frame has small rigid motions in head space: of the head, the mouth and the eyes, each relative to its
// tracked pose. A point moves with the mouth or the eyes where their mask is one, and with the head where both masks
// are zero. Torch reference: learn/pose_refinement.py.
#include "hashgrid.cuh"
#include "layout.cuh"
#include "rotation.cuh"

#define MOTIONS ((1 + PARTS) * MOTION)  // motion numbers of a frame

// Writes the corrected poses of the drawn frames into their rows of `states` (slots, state_size) and, unless it is
// null, of `posed` (frames, state_size); resets motion_gradients (frames, MOTIONS) to zero.
//
// tracked (slots, 12): tracked rotation 9 and translation 3. motions (slots, MOTIONS). items: frames.
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
            for (int c = 0; c < 3; ++c)
                placed[3 * r + c] = row[0] * rotation[c] + row[1] * rotation[3 + c] + row[2] * rotation[6 + c];
            placed[9 + r] = head[9 + r] + row[0] * finite_or_zero(motion[0]) + row[1] * finite_or_zero(motion[1]) +
                            row[2] * finite_or_zero(motion[2]);
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

// A feature of a row of the table, and the gradient of a sample's feature.
DEVICE float table_feature(const storage_t* table, uint row, int f) { return load(table + row * size_t(FEATURES) + f); }
DEVICE float feature_gradient(const storage_t* gradients, int capacity, int level, int sample, int f) {
#if ON_GPU
    return load(gradients + ((size_t(level) * capacity + sample) * FEATURES + f));
#else
    return gradients[(size_t(level) * FEATURES + f) * capacity + sample];
#endif
}

// Gradient with respect to a point of the unit cube, from the gradients of one level's features: derivatives of the
// trilinear interpolation.
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

// Adds to motion_gradients (frames, MOTIONS) the gradient of the loss, times LOSS_SCALE, with respect to the motions of
// each frame's head, mouth and eyes, from the results of field_backward. When the head moves, the samples of a fixed
// ray move the opposite way in head space; samples of mouth and eyes do so with their own motions, weighted by their
// masks. The inverse warp is taken as the identity, which is accurate except for jaw and eyelids.
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
        // Neighbouring steps mostly belong to the same frame.
        const float lowest = min_lanes(frame), highest = -min_lanes(none);
        if (lowest > highest) continue;
        UNROLL for (int part = 0; part <= PARTS; ++part) {
            if (part > 0 && sum_lanes(share[part]) == 0.0f) continue;  // most packets contain only samples of the head
            for (float b = lowest; b <= highest; b += 1.0f)
                for (int k = 0; k < MOTION; ++k) {
                    float own[LANES];
                    for (int l = 0; l < LANES; ++l) own[l] = frame[l] == b ? share[part][l] * grad[k][l] : 0.0f;
                    const float sum = sum_lanes(own);
                    for (int l = 0; l < LANES; ++l)
                        if (COLUMN(l) == 0 && sum != 0.0f)
                            add_atomic(motion_gradients + MOTIONS * int(b) + MOTION * part + k, sum);
                }
        }
    }
}

// One Adam step on the motions of the drawn frames, which also decay towards their predictions.
// predicted (slots, MOTIONS). moments (slots, 2, MOTIONS): first and second. ages (slots, MOTIONS): number of steps;
// negative for motions that are not learned. control: see adam.cu; control[6] is the rate in metres. fades: decay per
// step. items: MOTIONS.
KERNEL(32) pose_adam_step(int frames, const int* slots, const float* motion_gradients, const float* control,
                         const float* predicted, float fades, float* motions, float* moments, float* ages) {
    const float rate = control[6];
    const bool learns = fabsf(control[5]) < 3.0e38f && rate > 0.0f;
    EACH(k, learns ? MOTIONS : 0) {
        for (int b = 0; b < frames; ++b) {  // a frame may have been drawn twice
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
