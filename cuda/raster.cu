// Rasterisation of each posed mesh with the camera of its state: depth buffer and triangle indices, by the same rules
// as insta_runtime/render/raster.py. The nearest fragment of a pixel is kept; of equally near ones, that of the
// triangle with the lowest index. This is a minimum over keys, so the order of drawing does not matter.
#include "layout.cuh"
#include "vec.cuh"

#define NEAR 0.01f       // metres; triangles with a corner nearer than this are dropped
#define EDGE 1e-5f       // in barycentric units; fragments so far outside an edge still count as inside
#define LEAST_AREA 1e-8f  // twice the area in square pixels; smaller triangles are not drawn
#define FARTHEST_W 1e-9f  // lower bound of inverse depth
#define EMPTY_PIXEL 0xffffffffffffffffull

// Threads per triangle.
#if ON_GPU
#define THREADS_PER_TRIANGLE 8
#else
#define THREADS_PER_TRIANGLE 1
#endif

typedef unsigned long long key_t64;

// A projected triangle: the barycentrics at an offset (dx, dy) from corner 0 are (1, 0, 0) + across dx + down dy.
struct ScreenTriangle {
    float x, y;
    vec3 across, down;
    vec3 w;  // inverse depths of the corners
    int left, right, top, bottom;
};

DEVICE int first_pixel(float a, float b, float c, int size) {
    return int(clampf(ceilf(fminf(fminf(a, b), c) - 0.5f - EDGE), 0.0f, float(size)));
}
DEVICE int last_pixel(float a, float b, float c, int size) {
    return int(clampf(floorf(fmaxf(fmaxf(a, b), c) - 0.5f + EDGE), -1.0f, float(size) - 1.0f));
}

// Projects a triangle; returns whether any of it is drawn.
DEVICE bool project(const Head& head, const PoseBuffers& poses, int frame, int triangle, int width, int height,
                    ScreenTriangle& screen) {
    const float* state = poses.states + (size_t)frame * poses.state_size;
    const float* rotation = state + STATE_ROTATION(head.expressions);
    const vec3 translation = load3(state + STATE_TRANSLATION(head.expressions));
    const float* camera = state + STATE_CAMERA(head.expressions);
    const float* vertices = poses.vertices + (size_t)frame * head.vertices * 3;
    const int* corner = head.faces + 3 * triangle;
    float x[3], y[3], w[3];
    bool before = true;
    UNROLL for (int i = 0; i < 3; ++i) {
        const vec3 p = transform(rotation, load3(vertices + 3 * corner[i])) + translation;
        before = before && p.z > NEAR;
        w[i] = 1.0f / fmaxf(p.z, NEAR);
        x[i] = camera[0] * p.x * w[i] + camera[2];
        y[i] = camera[1] * p.y * w[i] + camera[3];
    }
    const float ax = x[1] - x[0], ay = y[1] - y[0], bx = x[2] - x[0], by = y[2] - y[0];
    const float area = ax * by - ay * bx;
    if (!(before && fabsf(area) > LEAST_AREA && fabsf(area) < 1e30f)) return false;
    const float inverse = 1.0f / area;
    screen.x = x[0], screen.y = y[0];
    screen.across = inverse * vec3{ay - by, by, -ay};
    screen.down = inverse * vec3{bx - ax, -bx, ax};
    screen.w = vec3{w[0], w[1], w[2]};
    screen.left = first_pixel(x[0], x[1], x[2], width), screen.right = last_pixel(x[0], x[1], x[2], width);
    screen.top = first_pixel(y[0], y[1], y[2], height), screen.bottom = last_pixel(y[0], y[1], y[2], height);
    return screen.right >= screen.left && screen.bottom >= screen.top;
}

DEVICE vec3 barycentrics_at(const ScreenTriangle& screen, int column, int row) {
    const float dx = float(column) + 0.5f - screen.x, dy = float(row) + 0.5f - screen.y;
    return vec3{1.0f, 0.0f, 0.0f} + dx * screen.across + dy * screen.down;
}

DEVICE void raise_pixel(const ScreenTriangle& screen, int triangle, int column, int row, key_t64* place) {
    const vec3 b = barycentrics_at(screen, column, row);
    if (!(fminf(fminf(b.x, b.y), b.z) >= -EDGE)) return;
    const float w = fmaxf(dot(b, screen.w), FARTHEST_W);
    const key_t64 key = key_t64(0xffffffffu - float_to_bits(w)) << 32 | uint(triangle);  // smaller for nearer fragments
    if (key < *(volatile const key_t64*)place) min_atomic(place, key);
}

// Clears the keys of all pixels. items: n = frames * width * height.
KERNEL(256) clear_pixels(unsigned long long* keys, int n) {
    EACH(i, n) keys[i] = EMPTY_PIXEL;
}

// Draws all triangles into the keys. Several threads share a triangle, as most cover few pixels and some many. items: 8
// * frames * triangles.
KERNEL(128) draw_triangles(const Head head, const PoseBuffers poses, int width, int height, unsigned long long* keys) {
    EACH(i, poses.frames * head.triangles * THREADS_PER_TRIANGLE) {
        const int part = i % THREADS_PER_TRIANGLE, triangle = i / THREADS_PER_TRIANGLE % head.triangles,
                  frame = i / THREADS_PER_TRIANGLE / head.triangles;
        ScreenTriangle screen;
        if (!project(head, poses, frame, triangle, width, height, screen)) continue;
        key_t64* picture = keys + (size_t)frame * width * height;
        const int columns = screen.right - screen.left + 1, rows = screen.bottom - screen.top + 1;
#if ON_GPU
        for (int pixel = part; pixel < columns * rows; pixel += THREADS_PER_TRIANGLE) {
            const int row = screen.top + pixel / columns, column = screen.left + pixel % columns;
            raise_pixel(screen, triangle, column, row, picture + (size_t)row * width + column);
        }
#else
        for (int row = screen.top + part; row < screen.top + rows; ++row)
            for (int column = screen.left; column < screen.left + columns; ++column)
                raise_pixel(screen, triangle, column, row, picture + (size_t)row * width + column);
#endif
    }
}

// Converts keys to depth (frames, height, width): z in metres, infinite in empty pixels; triangle (same shape): -1
// there; barycentrics (frames, height, width, 3), perspective-correct, zero there, or null if not needed.
// items: frames * height * width.
KERNEL(256)
resolve_pixels(const Head head, const PoseBuffers poses, int width, int height, const unsigned long long* keys,
               float* depth, int* triangle, float* barycentrics) {
    EACH(i, poses.frames * height * width) {
        const key_t64 key = keys[i];
        const bool found = key != EMPTY_PIXEL;
        triangle[i] = found ? int(key & 0xffffffffu) : -1;
        depth[i] = found ? 1.0f / bits_to_float(0xffffffffu - uint(key >> 32)) : bits_to_float(0x7f800000u);
        if (!barycentrics) continue;
        const int frame = i / (height * width), pixel = i % (height * width);
        vec3 weights{0.0f, 0.0f, 0.0f};
        ScreenTriangle screen;
        if (found && project(head, poses, frame, triangle[i], width, height, screen)) {
            const vec3 b = barycentrics_at(screen, pixel % width, pixel / width);
            const vec3 flat{fmaxf(b.x, 0.0f), fmaxf(b.y, 0.0f), fmaxf(b.z, 0.0f)};
            weights =
                (1.0f / dot(flat, screen.w)) * vec3{flat.x * screen.w.x, flat.y * screen.w.y, flat.z * screen.w.z};
        }
        store3(barycentrics + 3 * (size_t)i, weights);
    }
}
