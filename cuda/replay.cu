// Sampling of a training step: draws frames from the replay buffer and pixels in them, and computes the rays and their
// target values.
//
// Every random number is a hash of (seed, step, purpose): no generator state is stored, and a step can be repeated.
#include "march.cuh"
#include "random.cuh"

// Purposes of random numbers within a step, which separate their streams.
enum Purpose { PICK_NEW, PICK_ANY, NOISE, TILE_OF, PIXEL, JITTER, BACKGROUND, PURPOSES = BACKGROUND + 3 };

// The i-th of 0 ... n - 1 in an order shuffled by `key`: a bijection on the next power of two (multiplications by odd
// numbers, exclusive ors, right shifts), iterated until the result is less than n.
DEVICE int shuffled_index(uint i, uint n, uint key) {
    uint mask = n - 1;
    for (uint shift = 1; shift < 32; shift *= 2) mask |= mask >> shift;
    do {
        for (uint round = 0; round < 3; ++round) {
            uint word = hash(key, round);
            i = (i ^ word) & mask;
            i = (i * (word | 1u)) & mask;
            i ^= (i & mask) >> 3;
            i = (i * 0x9e3779b1u + (word >> 7)) & mask;
            i ^= i >> 5;
        }
    } while (i >= n);
    return int(i);
}

// Replay slot of frame `b` of a step: frame 0 is one of the `newest_count` newest images, the others come from shuffled
// rounds through the `deck_size` slots of the deck.
DEVICE int sample_slot(const ReplayFrames& replay, uint seed, int step, int b, int frames, int newest_count,
                       int deck_size) {
    if (b == 0) return replay.newest[newest_count - 1 - uniform_int(hash(seed, step, PICK_NEW), newest_count)];
    uint draw_index = uint(step) * uint(frames - 1) + uint(b - 1), count = uint(deck_size);
    return replay.deck[shuffled_index(draw_index % count, count, hash(seed, draw_index / count, PICK_ANY))];
}

// Samples the frames of a step. `inputs` is {step, stored frames, rays per frame, newest count, deck size}. Writes
// slots (frames), the replay slots, and pose (frames), the indices of their posed heads: the slot itself if `in_place`,
// else the number of the frame, whose state is copied to `posed` (frames, state_size). codes (poses, CODE_WIDTH) are
// the expression codes with Gaussian noise of standard deviation `jitter`, so that the field cannot memorise frames by
// them.
KERNEL(128)
sample_frames(const ReplayFrames replay, const int* inputs, uint seed, int frames, int in_place, float jitter,
              int* slots, int* pose, float* posed, float* codes) {
    EACH(i, frames * replay.state_size) {
        int size = replay.state_size, b = i / size, column = i % size, step = inputs[0];
        int slot = sample_slot(replay, seed, step, b, frames, inputs[3], inputs[4]);
        int at = in_place ? slot : b, code = column - (size - CODE_WIDTH);
        float value = replay.states[slot * size + column];
        if (!in_place) posed[i] = value;
        if (code >= 0) {
            uint word = hash(hash(seed, step, NOISE), i);
            codes[at * CODE_WIDTH + code] = value + jitter * gaussian(word, hash(word));
        }
        if (column == 0) slots[b] = slot, pose[b] = at;
    }
}

// Interpolates the soft regions (vertices, 2) of the head at a point of a triangle.
DEVICE void region_weights(const Head& head, const PoseBuffers& poses, int pose, int triangle, vec3 point,
                           const float* regions, float& face, float& mouth) {
    const float* t = poses.triangles + ((size_t)pose * head.triangles + triangle) * 12;
    vec3 offset = point - load3(t), ab = load3(t + 3), ac = load3(t + 6);
    float along_b = dot(offset, ab), along_c = dot(offset, ac), d = t[9] * t[11] - t[10] * t[10];
    float scale = d > 0.0f ? 1.0f / d : 0.0f;
    float b = fmaxf(0.0f, (t[11] * along_b - t[10] * along_c) * scale);
    float c = fmaxf(0.0f, (t[9] * along_c - t[10] * along_b) * scale);
    float a = fmaxf(0.0f, 1.0f - b - c), total = 1.0f / (a + b + c);
    const int* v = head.faces + triangle * 3;
    face = (a * regions[v[0] * 2] + b * regions[v[1] * 2] + c * regions[v[2] * 2]) * total;
    mouth = (a * regions[v[0] * 2 + 1] + b * regions[v[1] * 2 + 1] + c * regions[v[2] * 2 + 1]) * total;
}

// Samples rays.count / frames rays of each frame and their target values. Of the inputs[2] rays used of each frame, the
// share `focus` goes through tiles on the head and the share `margin` through those around it. Unused rays and those of
// non-finite states miss (far < near) and cost nothing; their targets are zero.
//
//   depth, triangle (poses, side, side): z in metres and triangle index of the posed mesh, infinite and -1 beside it
//   regions (vertices, 2): bare face, mouth
//   rgba (rays, 4) premultiplied; target (rays) metres along the ray to bare skin, 0 without a prior;
//   weight (rays) mouth_weight in the mouth from step `mouth_from` on, else 1; background (rays, 3) random
//
// Rays are clipped to the band of their pose.
KERNEL(128)
sample_rays(const Head head, const PoseBuffers poses, const ReplayFrames replay, const Rays rays, const int* inputs,
            uint seed, int frames, const int* slots, const int* pose, const float* depth, const int* triangle,
            const float* regions, float focus, float margin, float mouth_weight, int mouth_from, float* rgba,
            float* target, float* weight, float* background) {
    EACH(r, rays.count) {
        int each = rays.count / frames, b = r / each, k = r % each, ray_count = inputs[2];
        if (b >= frames) b = frames - 1, k = ray_count;
        int slot = slots[b], at = pose[b], across = replay.tiles_across, side = replay.side;
        int width = replay.size[slot * 2], height = replay.size[slot * 2 + 1];
        int of_head = replay.tile_counts[slot * 2], around = replay.tile_counts[slot * 2 + 1];
        uint key = hash(hash(seed, inputs[0]), r) * PURPOSES, bits = hash(key + PIXEL);
        bool focused = k < int(float(ray_count) * focus + 0.5f);
        bool beside = !focused && k < int(float(ray_count) * (focus + margin) + 0.5f);
        int tiles = focused ? of_head : beside ? around : 0, x, y;
        if (tiles > 0) {
            int place = (beside ? of_head : 0) + uniform_int(hash(key + TILE_OF), tiles);
            int tile = ((const int*)replay.tiles[slot])[place];
            int size = replay.tile, left = tile % across * size, top = tile / across * size;
            x = left + uniform_int(bits, width - left < size ? width - left : size);
            y = top + uniform_int(hash(bits), height - top < size ? height - top : size);
        } else {
            x = uniform_int(bits, width), y = uniform_int(hash(bits), height);
        }

        size_t seen = ((size_t)at * side + y) * side + x;
        const float* state = replay.states + (size_t)slot * replay.state_size;
        float u = float(x) + 0.5f, v = float(y) + 0.5f;
        float far = farthest_around(depth + (size_t)at * side * side, x, y, width, height, side);
        Ray ray = pixel_ray(state, head.expressions, u, v, far);
        float distance = depth[seen] * length(unit_depth_point(state, head.expressions, u, v));
        vec3 point = ray.origin + distance * ray.direction;
        bool valid = k < ray_count && is_finite(ray.origin) && is_finite(ray.direction);
        clip_to_band(ray, head, poses.bounds + at * 6);
        store3(rays.origin + r * 4, ray.origin);
        store3(rays.direction + r * 4, ray.direction);
        rays.origin[r * 4 + 3] = ray.near;
        rays.direction[r * 4 + 3] = valid ? ray.far : -1.0f;
        rays.offset[r] = uniform(hash(key + JITTER));
        rays.frame[r] = at;

        uint pixel = valid ? ((const uint*)replay.images[slot])[y * side + x] : 0u;
        for (int channel = 0; channel < 4; ++channel)
            rgba[r * 4 + channel] = float(pixel >> (8 * channel) & 255u) * (1.0f / 255.0f);
        for (int channel = 0; channel < 3; ++channel)
            background[r * 3 + channel] = uniform(hash(key + BACKGROUND + channel));
        float face = 0.0f, mouth = 0.0f;
        int hit = valid ? triangle[seen] : -1;
        if (hit >= 0) region_weights(head, poses, at, hit, point, regions, face, mouth);
        target[r] = face > 0.5f && rgba[r * 4 + 3] > 0.9f ? distance : 0.0f;
        weight[r] = mouth > 0.3f && inputs[0] >= mouth_from ? mouth_weight : 1.0f;
    }
}

// Sets the bits of all marked cells in which the ray of pose 0 takes a step.
DEVICE void mark_ray_cells(const Head& head, const PoseBuffers& poses, const Ray& ray, float offset, float step,
                           uint* needed) {
    if (!(ray.far > ray.near)) return;
    int k = first_step(ray.near, step);
    Step found;
    while (next_step(head, poses, 0, ray, offset, step, k, found)) set_bit(needed, poses.cell[found.row]);
}

// Sets a bit of `needed` (poses, words) for each cell with listed steps: only these cells need candidates.
// items: capacity of samples.
KERNEL(128)
mark_step_cells(const Head head, const PoseBuffers poses, const Rays rays, const Samples samples, uint* needed) {
    const int steps = samples.totals[0];
    EACH(j, steps) {
        const int i = samples.step_ray[j];
        if (i < 0) continue;
        const vec4 origin = load4(rays.origin + 4 * i), direction = load4(rays.direction + 4 * i);
        const float t = samples.step_t[j];
        const vec3 position = vec3{origin.x, origin.y, origin.z} + t * vec3{direction.x, direction.y, direction.z};
        const vec3 unit = unit_cube(head, position);
        if (in_unit_cube(unit)) set_bit(needed + (size_t)rays.frame[i] * poses.words, flat_cell(unit, head.resolution));
    }
}

// Sets the bits of cells that rays of any pixel of pose 0 enter, with two sample offsets; `depth` is (height * width).
// Less than 1 % of the steps with other offsets lie in cells that are missed. items: the pixels.
KERNEL(128)
mark_view_cells(const Head head, const PoseBuffers poses, const float* depth, int width, int height, float step,
                uint* needed) {
    EACH(i, width * height) {
        const Ray ray = ray_of_pixel(head, poses, i, width, height, depth);
        mark_ray_cells(head, poses, ray, 0.25f, step, needed);
        mark_ray_cells(head, poses, ray, 0.75f, step, needed);
    }
}
