// What a training step learns from: pictures of the replay, pixels of them, rays, and what the rays should see.
//
// Every choice is a hash of (seed, step, what it is for): nothing is stored, and a step can be repeated.
#include "march.cuh"
#include "random.cuh"

// What a draw is for: the streams of random numbers within a step.
enum Purpose { PICK_NEW, PICK_ANY, NOISE, TILE_OF, PIXEL, JITTER, BACKGROUND, PURPOSES = BACKGROUND + 3 };

// The i-th of 0 ... n - 1 in an order that `key` shuffles: a bijection of the next power of two (multiplications by odd
// numbers, exclusive ors, shifts to the right), walked until it falls below n.
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

// The slot of the memory that the frame `b` of `frames` shows in this step: the first one of the `recent` newest, the
// others from shuffled rounds through the `dealt` memories of the deck.
DEVICE int sample_slot(const ReplayFrames& replay, uint seed, int step, int b, int frames, int newest_count, int deck_size) {
    if (b == 0) return replay.newest[newest_count - 1 - uniform_int(hash(seed, step, PICK_NEW), newest_count)];
    uint draw_index = uint(step) * uint(frames - 1) + uint(b - 1), count = uint(deck_size);
    return replay.deck[shuffled_index(draw_index % count, count, hash(seed, draw_index / count, PICK_ANY))];
}

// Draws the step's frames. `inputs` is {step, memories, rays of a frame to draw, newest, dealt}. slots (frames) and pose (frames) say
// which memory a frame is and where its posed head lies: at the memory's own slot if `in_place`, else at the frame's
// number, where `posed` (frames, state_size) takes its state. codes (poses, CODE_WIDTH) are the expression codes with
// Gaussian noise of `jitter`, so that the field does not memorise frames by them.
KERNEL(128) sample_frames(const ReplayFrames replay, const int* inputs, uint seed, int frames, int in_place, float jitter,
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

// Soft regions (vertices, 2) of the head, at a point of a triangle.
DEVICE void region_weights(const Head& head, const PoseBuffers& poses, int pose, int triangle, vec3 point, const float* regions,
                      float& face, float& mouth) {
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

// Draws rays.count / frames rays of each frame and what they should see. Of the inputs[2] rays that are wanted of a
// frame the part `focus` goes through tiles of the head, the part `margin` through those around it; those that are not
// wanted, and those of a state that is not finite, miss (far < near) and cost nothing: their targets are zero, as is
// what they will see over their background.
//
// depth, triangle (poses, side, side): z in metres and triangle of the posed mesh as each picture's camera sees it,
// infinite and -1 where it does not. regions (vertices, 2): bare face, mouth. Rays are cut to the pose's band.
// rgba (rays, 4) premultiplied, target (rays) metres along the ray to bare skin or 0 where there is no prior, weight
// (rays) mouth_weight in the mouth from step `mouth_from` on, else 1, background (rays, 3) at random.
KERNEL(128) sample_rays(const Head head, const PoseBuffers poses, const ReplayFrames replay, const Rays rays, const int* inputs,
                      uint seed, int frames, const int* slots, const int* pose, const float* depth,
                      const int* triangle, const float* regions, float focus, float margin,
                      float mouth_weight, int mouth_from, float* rgba, float* target, float* weight, float* background) {
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
        for (int channel = 0; channel < 3; ++channel) background[r * 3 + channel] = uniform(hash(key + BACKGROUND + channel));
        float face = 0.0f, mouth = 0.0f;
        int hit = valid ? triangle[seen] : -1;
        if (hit >= 0) region_weights(head, poses, at, hit, point, regions, face, mouth);
        target[r] = face > 0.5f && rgba[r * 4 + 3] > 0.9f ? distance : 0.0f;
        weight[r] = mouth > 0.3f && inputs[0] >= mouth_from ? mouth_weight : 1.0f;
    }
}

// Sets the bit of a cell. Most are set already; a stale look only costs the atomic.
DEVICE void mark_cell(int cell, uint* words) {
    uint* word = words + (cell >> 5);
    const uint bit = 1u << (cell & 31);
    if (!(*(volatile const uint*)word & bit)) or_atomic(word, bit);
}

// The same for each marked cell in which the ray of pose 0 takes a step.
DEVICE void mark_ray_cells(const Head& head, const PoseBuffers& poses, const Ray& ray, float offset, float step, uint* needed) {
    if (!(ray.far > ray.near)) return;
    int k = first_step(ray.near, step);
    Step found;
    while (next_step(head, poses, 0, ray, offset, step, k, found)) mark_cell(poses.cell[found.row], needed);
}

// Sets a bit of `wanted` (poses, words) for each cell in which listed steps lie: only these need candidates.
// items: capacity of samples.
KERNEL(128) mark_step_cells(const Head head, const PoseBuffers poses, const Rays rays, const Samples samples, uint* needed) {
    const int steps = samples.totals[0];
    EACH(j, steps) {
        const int i = samples.step_ray[j];
        if (i < 0) continue;
        const vec4 origin = load4(rays.origin + 4 * i), direction = load4(rays.direction + 4 * i);
        const float t = samples.step_t[j];
        const vec3 position = vec3{origin.x, origin.y, origin.z} + t * vec3{direction.x, direction.y, direction.z};
        const vec3 unit = unit_cube(head, position);
        if (in_unit_cube(unit)) mark_cell(flat_cell(unit, head.resolution), needed + (size_t)rays.frame[i] * poses.words);
    }
}

// Of all rays that may be drawn of pose 0, whose camera's picture has the depth (height * width): each pixel's, with
// two offsets. Less than 1 % of the steps with other offsets lie in cells that are missed so.
KERNEL(128) mark_view_cells(const Head head, const PoseBuffers poses, const float* depth, int width, int height, float step,
                      uint* needed) {
    EACH(i, width * height) {
        const Ray ray = ray_of_pixel(head, poses, i, width, height, depth);
        mark_ray_cells(head, poses, ray, 0.25f, step, needed);
        mark_ray_cells(head, poses, ray, 0.75f, step, needed);
    }
}
