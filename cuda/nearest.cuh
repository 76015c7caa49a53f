// Search for the triangle nearest to a point, among the candidates of the point's cell (insta_runtime/warp/nearest.py).
//
// A candidate is one word: the triangle index in the lower half; in the upper half its distance from the cell's centre
// as fp16, rounded down. Words are sorted, so the search of a row ends where no later candidate can be nearer: a
// triangle at distance d from the centre is at least d - |p - centre| from p.
#pragma once
#include "layout.cuh"
#include "vec.cuh"

#define NO_CANDIDATE 0xffffffffu  // end marker of a row with fewer than Head.candidates entries
#define TRIANGLE_SIZE 12
#define TINY_AREA 1e-20f  // as in nearest.py; triangles with less area are treated as lines or points

// Positive fp16 bits, shifted, are the bits of a float 2^-112 times as large.
DEVICE uint pack_candidate(int triangle, float distance) {
    uint bits = float_to_bits(fminf(distance, 60000.0f) * 1.925929944387236e-34f) >> 13;
    return bits << 16 | uint(triangle);
}
DEVICE float candidate_distance(uint word) { return bits_to_float((word >> 3) & 0x0fffe000u) * 5.192296858534828e33f; }
DEVICE int candidate_triangle(uint word) { return int(word & 0xffffu); }

// Numbers of a triangle that distances need: corner a, edges ab and ac, and their dot products.
struct Triangle {
    vec3 a, ab, ac;
    float d00, d01, d11;
};

DEVICE Triangle load_triangle(const float* triangle) {
    vec4 r = load4(triangle), s = load4(triangle + 4), t = load4(triangle + 8);
    return Triangle{vec3{r.x, r.y, r.z}, vec3{r.w, s.x, s.y}, vec3{s.z, s.w, t.x}, t.y, t.z, t.w};
}

// Reciprocals of the divisors of `closest_on_triangle`.
struct Inverses {
    float ab, ac, bc, area;
};

DEVICE float determinant_of(const Triangle& t) { return t.d00 * t.d11 - t.d01 * t.d01; }

// Reciprocal, accurate to one or two units in the last place.
DEVICE float reciprocal(float x) {
#if ON_GPU
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return 1.0f / x;
#endif
}

DEVICE Inverses inverses_of(const Triangle& t) {
    return Inverses{reciprocal(fmaxf(t.d00, TINY_AREA)), reciprocal(fmaxf(t.d11, TINY_AREA)),
                    reciprocal(fmaxf(t.d00 + t.d11 - 2.0f * t.d01, TINY_AREA)),
                    reciprocal(fmaxf(determinant_of(t), TINY_AREA))};
}

// Nearest point of a triangle to a + p: it is a + v ab + w ac.
struct OnTriangle {
    float squared;  // |p - (v ab + w ac)|^2, up to rounding errors of |p|^2
    float v, w;
};

// Nearest point: the best of the interior and the three edges; a triangle without area is its longest edge.
DEVICE OnTriangle closest_on_triangle(const Triangle& t, const Inverses& one_over, vec3 p) {
    const float d00 = t.d00, d01 = t.d01, d11 = t.d11;
    const float d20 = dot(p, t.ab), d21 = dot(p, t.ac);
    const float t_ab = clampf(d20 * one_over.ab, 0.0f, 1.0f);
    const float t_ac = clampf(d21 * one_over.ac, 0.0f, 1.0f);
    const float t_bc = clampf((d21 - d20 + d00 - d01) * one_over.bc, 0.0f, 1.0f);
    const float u_bc = 1.0f - t_bc;
    const float on_ab = t_ab * (t_ab * d00 - 2.0f * d20);
    const float on_ac = t_ac * (t_ac * d11 - 2.0f * d21);
    const float on_bc =
        u_bc * (u_bc * d00 + 2.0f * t_bc * d01 - 2.0f * d20) + t_bc * (t_bc * d11 - 2.0f * d21);

    const float v = (d11 * d20 - d01 * d21) * one_over.area;
    const float w = (d00 * d21 - d01 * d20) * one_over.area;
    const float on_face = v * (v * d00 + 2.0f * w * d01 - 2.0f * d20) + w * (w * d11 - 2.0f * d21);

    const bool ab_first = on_ab <= on_ac;
    const float leg = fminf(on_ab, on_ac);
    const bool bc_first = on_bc < leg;
    const float edge = fminf(leg, on_bc);
    // For degenerate triangles (v, w) are rounding errors; then an edge is nearer.
    const bool inside =
        (v >= 0.0f) & (w >= 0.0f) & (v + w <= 1.0f) & (determinant_of(t) > TINY_AREA) & (on_face <= edge);
    OnTriangle found;
    found.squared = fmaxf(dot(p, p) + (inside ? on_face : edge), 0.0f);
    found.v = inside ? v : bc_first ? u_bc : ab_first ? t_ab : 0.0f;
    found.w = inside ? w : bc_first ? t_bc : ab_first ? 0.0f : t_ac;
    return found;
}

struct Nearest {
    int triangle;    // triangle index, -1 if the row has no candidate
    float v, w;      // the nearest point is a + v ab + w ac
    vec3 offset;     // from the nearest point to the query point
    float distance;  // metres
};

// Barycentric weights of the nearest point; rounding may make the first one slightly negative, hence the clamp.
DEVICE void barycentric_weights(const Nearest& nearest, float (&weight)[3]) {
    weight[0] = clampf(1.0f - nearest.v - nearest.w, 0.0f, 1.0f), weight[1] = nearest.v, weight[2] = nearest.w;
}

#if !ON_GPU
#define BLOCK 8

// OnTriangle.squared of a block of candidates: closest_on_triangle without branches, so that compilers vectorise it.
DEVICE void squared_distances(const uint* row, const float* triangles, vec3 point, float (&squared)[BLOCK]) {
    const auto lesser = [](float a, float b) { return a < b ? a : b; };
    const auto greater = [](float a, float b) { return a > b ? a : b; };
    const auto share = [=](float x) { return lesser(greater(x, 0.0f), 1.0f); };
    int first[BLOCK];  // gathers need an index; a conditional pointer would not be vectorised
    for (int j = 0; j < BLOCK; ++j)
        first[j] = row[j] == NO_CANDIDATE ? 0 : TRIANGLE_SIZE * candidate_triangle(row[j]);
#pragma omp simd
    for (int j = 0; j < BLOCK; ++j) {
        const int t = first[j];
        const float d00 = triangles[t + 9], d01 = triangles[t + 10], d11 = triangles[t + 11];
        const float x = point.x - triangles[t], y = point.y - triangles[t + 1], z = point.z - triangles[t + 2];
        const float d20 = x * triangles[t + 3] + y * triangles[t + 4] + z * triangles[t + 5];
        const float d21 = x * triangles[t + 6] + y * triangles[t + 7] + z * triangles[t + 8];
        const float t_ab = share(d20 / greater(d00, TINY_AREA));
        const float t_ac = share(d21 / greater(d11, TINY_AREA));
        const float t_bc = share((d21 - d20 + d00 - d01) / greater(d00 + d11 - 2.0f * d01, TINY_AREA));
        const float u_bc = 1.0f - t_bc;
        const float on_ab = t_ab * (t_ab * d00 - 2.0f * d20);
        const float on_ac = t_ac * (t_ac * d11 - 2.0f * d21);
        const float on_bc =
            u_bc * (u_bc * d00 + 2.0f * t_bc * d01 - 2.0f * d20) + t_bc * (t_bc * d11 - 2.0f * d21);
        const float determinant = d00 * d11 - d01 * d01;
        const float inverse = 1.0f / greater(determinant, TINY_AREA);
        const float v = (d11 * d20 - d01 * d21) * inverse;
        const float w = (d00 * d21 - d01 * d20) * inverse;
        const float on_face = v * (v * d00 + 2.0f * w * d01 - 2.0f * d20) + w * (w * d11 - 2.0f * d21);
        const float edge = lesser(lesser(on_ab, on_ac), on_bc);
        const bool inside = (v >= 0.0f) & (w >= 0.0f) & (v + w <= 1.0f) & (determinant > TINY_AREA) & (on_face <= edge);
        const float found = greater(x * x + y * y + z * z + (inside ? on_face : edge), 0.0f);
        squared[j] = row[j] == NO_CANDIDATE ? 3e38f : found;
    }
}

// Searches whole blocks of a row while they may hold a nearer triangle; returns the best triangle, -1 if there is none.
// Sets `k` to the first remaining candidate and `least` to the squared distance of the best.
DEVICE int nearest_in_blocks(const uint* row, int count, const float* triangles, vec3 p, float reach, int& k,
                             float& least) {
    int best = -1;
    for (; k + BLOCK <= count; k += BLOCK) {
        const float nearest = candidate_distance(row[k]) - reach;
        if (row[k] == NO_CANDIDATE || (nearest > 0.0f && nearest * nearest > least)) return best;
        float squared[BLOCK];
        squared_distances(row + k, triangles, p, squared);
        for (int j = 0; j < BLOCK; ++j)
            if (squared[j] < least) least = squared[j], best = candidate_triangle(row[k + j]);
    }
    return best;
}
#endif

// The nearest of `count` candidates (a multiple of four) to p, which is `reach` metres from the centre of its cell.
DEVICE Nearest nearest_of(const uint* row, int count, const float* triangles, vec3 p, float reach) {
    int best = -1;
    OnTriangle found{3e38f, 0.0f, 0.0f};
    int k = 0;
#if !ON_GPU
    best = nearest_in_blocks(row, count, triangles, p, reach, k, found.squared);
    if (best >= 0) {
        const Triangle t = load_triangle(triangles + TRIANGLE_SIZE * best);
        found = closest_on_triangle(t, inverses_of(t), p - t.a);
    }
#endif
    for (; k < count; ++k) {
        const uint word = row[k];
        if (word == NO_CANDIDATE) break;
        const float least = candidate_distance(word) - reach;
        if (least > 0.0f && least * least > found.squared) break;
        const Triangle t = load_triangle(triangles + TRIANGLE_SIZE * candidate_triangle(word));
        const OnTriangle on = closest_on_triangle(t, inverses_of(t), p - t.a);
        if (on.squared < found.squared) found = on, best = candidate_triangle(word);
    }
    Nearest nearest{best, found.v, found.w, vec3{0.0f, 0.0f, 0.0f}, 3e38f};
    if (best >= 0) {
        const Triangle t = load_triangle(triangles + TRIANGLE_SIZE * best);
        nearest.offset = p - t.a - found.v * t.ab - found.w * t.ac;
        nearest.distance = length(nearest.offset);
    }
    return nearest;
}
