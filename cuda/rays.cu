// Rays of every pixel of a picture.
#include "march.cuh"
#include "places.cuh"

// The rays of all pixels of pose 0, for the chain of march.cu. `depth` (height * width) is that of the posed mesh.
KERNEL(128) camera_rays(const Head head, const Poses poses, const float* depth, const Rays rays, int width, int height) {
    EACH(i, width * height) {
        const Ray ray = ray_of_pixel(head, poses, i, width, depth);
        store4(rays.origin + 4 * i, ray.origin.x, ray.origin.y, ray.origin.z, ray.near);
        store4(rays.direction + 4 * i, ray.direction.x, ray.direction.y, ray.direction.z, ray.far);
        rays.offset[i] = MIDDLE;
        rays.frame[i] = 0;
    }
}

// Between posing and find_rays. Counters (6) of a picture: hits, hits taken so far, rays that max_samples cut short,
// samples, marked cells for which there was no room; and steps for which there was none, in the unfused chain.
// `wanted` (words): no cell yet.
KERNEL(128) begin_picture(const Poses poses, int* counters, uint* wanted) {
    EACH(i, poses.words) {
        const int dropped = poses.count[0] - poses.capacity;
        if (i < 6) counters[i] = i == 4 && dropped > 0 ? dropped : 0;
        wanted[i] = 0u;
    }
}

// Lists the pixels whose rays take a step in a marked cell, for fused_render.cu, and makes all others of `rgba`
// (height * width, 4) empty. A row of `hits` (height * width, 4) is pixel, first and last step in marked cells, 0;
// counters[0] counts them.
// `wanted` (words) gets a bit for each marked cell in which a ray takes a step: many are never seen.
KERNEL(128) find_rays(const Head head, const Poses poses, const float* depth, int width, int height, float step,
                      int* hits, int* counters, uint* wanted, float* rgba) {
    EACH_PACKET(tile, count_tiles(width, height)) {
        int pixel[LANES], first[LANES], last[LANES], place[LANES];
        bool hit[LANES];
        for (int l = 0; l < LANES; ++l) {
            pixel[l] = tiled_pixel(tile, COLUMN(l), width, height);
            hit[l] = false;
            if (pixel[l] < 0) continue;
            const Ray ray = ray_of_pixel(head, poses, pixel[l], width, depth);
            int k = first_step(ray.near, step);
            Step found;
            while (next_step(head, poses, 0, ray, MIDDLE, step, k, found)) {
                if (!hit[l]) first[l] = k - 1;
                last[l] = k - 1;
                hit[l] = true;
                const int cell = poses.cell[found.row];
                const uint bit = 1u << (cell & 31);
                if (!(wanted[cell >> 5] & bit)) or_atomic(wanted + (cell >> 5), bit);
            }
            if (!hit[l]) store4(rgba + 4 * pixel[l], 0.0f, 0.0f, 0.0f, 0.0f);
        }
        take_places(counters, hit, place);
        for (int l = 0; l < LANES; ++l) {
            if (!hit[l]) continue;
            int* row = hits + 4 * place[l];
            row[0] = pixel[l], row[1] = first[l], row[2] = last[l], row[3] = 0;
        }
    }
}
