// Candidate triangles of the marked grid cells: for each cell, the triangles that may be nearest to a point in it, as
// an acceleration structure for nearest-triangle queries (insta_runtime/warp/nearest.py, CandidateGrid). Triangles are
// grouped into compact leaves with bounding spheres.
//
// A triangle is excluded only if it cannot be nearest to any point of the cell. Let c be the cell's centre, d and u the
// distance and direction from a triangle (or a leaf's sphere) to c, and q a point of another triangle. The distance to
// a convex body is a convex function, so d(c + x) >= d + u . x, whereas the other triangle is at most |c + x - q| away.
// In the search, q is the point nearest to c on the triangles of the nearest leaf; in the final pruning, on all
// triangles. If more triangles remain than a row can hold, each octant of the cell keeps those nearest to its centre.
#include "warp.cuh"

#if !ON_GPU
#include <vector>
#endif

#define THREADS 128
#if ON_GPU
#define POOL_SIZE 256  // a packet processes one cell
#else
#define POOL_SIZE 2048
#define EDGE 2    // blocks of 2^3 cells share a pool of triangles
#define PARENT 4  // blocks of 4^3 cells share a list of leaves
#endif
#define MAX_LEAVES 512  // 2^LEAF_DEPTH of nearest.py
#define LEAF_MASK 511u   // leaf index in the low bits of an approximate distance
#define LANE_MASK 31u
#define POOL_MASK 2047u  // pool index in the low bits of an approximate distance
#define DIAGONAL 1.7320508f  // diagonal of the unit cube
#define NO_LENGTH 1e-18f  // m^2; smaller squared lengths are raised to this value, so that their reciprocal is finite
#define FAR 1e30f
#define NO_KEY 0x7f000000  // larger than any key
#define MIN_SLACK 1e-5f  // metres; the search radius is not reduced below this
#define PICKS_PER_PASS 4            // triangles chosen in one pass over a pool
#define ALREADY_CHOSEN 3e18f        // metres; distance that marks triangles as already chosen
#define SHRINK 0.7f        // reduction of the search radius when more triangles are found than the pool can hold

// Up to 32 triangles, one row for each of the twelve numbers of nearest.cuh and the four reciprocals.
struct Tile {
    float row[TRIANGLE_SIZE + 4][LANES];
    int id[LANES];  // triangle index, -1 for unused lanes
};

struct Pool {
    unsigned short triangle[POOL_SIZE];
    float distance[POOL_SIZE];             // distance from the cell's centre
    float x[POOL_SIZE], y[POOL_SIZE], z[POOL_SIZE];  // offset of the centre from the nearest point of the triangle
#if !ON_GPU
    Tile tile[POOL_SIZE / PACKET];  // gathered once for all cells of a block
#endif
    uint chosen[64];
    unsigned short leaf[MAX_LEAVES];  // leaves to be searched
};

// Iterates over the lanes whose bit is set.
#if ON_GPU
#define FOR_SET(l, bits) for (int l = 0; l < int((bits) >> LANE & 1u); ++l)
#else
#define FOR_SET(l, bits) \
    for (uint left_ = (bits), l = 0; left_ && (l = uint(__builtin_ctz(left_)), true); left_ &= left_ - 1u)
#endif

DEVICE uint mask_of_lanes(const int (&set)[LANES]) {
#if ON_GPU
    return __ballot_sync(0xffffffffu, set[0]);
#else
    uint bits = 0u;
    for (int l = 0; l < PACKET; ++l) bits |= uint(set[l] != 0) << l;
    return bits;
#endif
}

// Number of set bits below a lane.
DEVICE int rank_in_mask(uint bits, int lane) { return count_bits(bits & ((1u << lane) - 1u)); }

// Bits of a positive number, which sort like the number, with the low bits replaced by an index: the minimum identifies
// its index.
DEVICE int indexed_key(float value, uint mask, int index) {
    return int((float_to_bits(value) & ~mask) | (uint(index) & mask));
}

// Index in the smallest key of a packet.
DEVICE int min_key_index(const int (&key)[LANES], uint mask) {
#if ON_GPU && __CUDA_ARCH__ >= 800
    return __reduce_min_sync(0xffffffffu, key[0]) & int(mask);
#elif ON_GPU
    int least = key[0];
    for (int d = 16; d; d >>= 1) least = min(least, __shfl_xor_sync(0xffffffffu, least, d));
    return least & int(mask);
#else
    int least = key[0];
    for (int l = 1; l < LANES; ++l) least = key[l] < least ? key[l] : least;
    return least & int(mask);
#endif
}

// The value of one lane, in all lanes.
DEVICE float broadcast_lane(const float (&x)[LANES], int lane) {
#if ON_GPU
    return __shfl_sync(0xffffffffu, x[0], lane);
#else
    return x[lane];
#endif
}

DEVICE int lesser(int a, int b) { return a < b ? a : b; }

DEVICE Triangle triangle_of(const Tile& tile, int l) {
    return Triangle{vec3{tile.row[0][l], tile.row[1][l], tile.row[2][l]},
                    vec3{tile.row[3][l], tile.row[4][l], tile.row[5][l]},
                    vec3{tile.row[6][l], tile.row[7][l], tile.row[8][l]},
                    tile.row[9][l],
                    tile.row[10][l],
                    tile.row[11][l]};
}


DEVICE void invert_one(Tile& tile, int l) {
    const Triangle t = triangle_of(tile, l);
    const Inverses one_over = inverses_of(t);
    tile.row[12][l] = one_over.ab, tile.row[13][l] = one_over.ac;
    tile.row[14][l] = one_over.bc, tile.row[15][l] = one_over.area;
}

DEVICE void load_tile(Tile& tile, const float* triangles) {
    for (int l = 0; l < LANES; ++l) {
        const float* t = triangles + TRIANGLE_SIZE * (tile.id[l] < 0 ? 0 : tile.id[l]);
        UNROLL for (int q = 0; q < TRIANGLE_SIZE; q += 4) {
            const vec4 part = load4(t + q);
            tile.row[q][l] = part.x, tile.row[q + 1][l] = part.y;
            tile.row[q + 2][l] = part.z, tile.row[q + 3][l] = part.w;
        }
    }
    FOR_LANES(l) invert_one(tile, l);  // inline code in this loop would not be vectorised
}

struct Measured {
    float distance[LANES], x[LANES], y[LANES], z[LANES];
};

// Length from its square; never zero, so that it has a reciprocal.
DEVICE float length_of(float squared) {
    squared = fmaxf(squared, NO_LENGTH);
#if ON_GPU
    return squared * inverse_sqrt(squared);
#else
    return sqrtf(squared);
#endif
}

DEVICE void measure_one(const Tile& tile, vec3 p, int l, Measured& m) {
    const Triangle t = triangle_of(tile, l);
    const Inverses one_over{tile.row[12][l], tile.row[13][l], tile.row[14][l], tile.row[15][l]};
    const vec3 from = p - t.a;
    const OnTriangle on = closest_on_triangle(t, one_over, from);
    const vec3 offset = from - on.v * t.ab - on.w * t.ac;
    m.distance[l] = length_of(dot(offset, offset));
    m.x[l] = offset.x, m.y[l] = offset.y, m.z[l] = offset.z;
}

DEVICE void measure(const Tile& tile, vec3 p, Measured& m) { FOR_LANES(l) measure_one(tile, p, l, m); }

// Upper bounds on the distance to the nearest triangle, from one nearby triangle: at the centre and the corners of a
// cube.
struct NearestBound {
    float d, corner[8];
};

DEVICE NearestBound nearest_bound(float d, vec3 offset, float edge) {
    const float half = 0.5f * edge;
    NearestBound bound;
    bound.d = d;
    UNROLL for (int k = 0; k < 8; ++k) {
        const vec3 at = offset + vec3{k & 1 ? half : -half, k & 2 ? half : -half, k & 4 ? half : -half};
        bound.corner[k] = length_of(dot(at, at));
    }
    return bound;
}

// Whether a body at distance `d` from the centre of a cube, with offset (x, y, z) to it, may be nearer to some point of
// the cube than the bound. The difference of the distances is convex, so it is largest at a corner.
DEVICE bool may_be_nearest(const NearestBound& bound, float d, float inverse, float x, float y, float z, float edge) {
    const float a = 0.5f * edge * inverse, turned = a * z, sum = a * x + a * y, difference = a * x - a * y;
    const float p = sum + turned, q = sum - turned, r = difference + turned, s = difference - turned;
    const float low =
        fmaxf(fmaxf(bound.corner[0] + p, bound.corner[1] - s), fmaxf(bound.corner[2] + r, bound.corner[3] - q));
    const float high =
        fmaxf(fmaxf(bound.corner[4] + q, bound.corner[5] - r), fmaxf(bound.corner[6] + s, bound.corner[7] - p));
    return d <= fmaxf(low, high) + 1e-6f;
}

// A member of a leaf; -1 for the repetitions at the end of a short leaf.
DEVICE int member_of(const Head& head, int leaf, int m) {
    const int* members = head.leaf_members + (size_t)leaf * head.leaf_size;
    return (m > 0) && members[m] == members[m - 1] ? -1 : members[m];
}

// Leaves of one pose that are searched.
struct Leaves {
    const float* triangles;
    int count;
#if ON_GPU
    const float* spheres;  // of all leaves
#else
    const Tile* tiles;  // (head.leaves, parts); a CPU gathers all triangles once
    int parts;
    float x[MAX_LEAVES], y[MAX_LEAVES], z[MAX_LEAVES], radius[MAX_LEAVES];
    int leaf[MAX_LEAVES];
#endif
};

// Offset of a point from the centre of sphere i, and the radius of the sphere.
DEVICE vec4 from_sphere(const Leaves& leaves, int i, vec3 p) {
#if ON_GPU
    const vec4 sphere = load4(leaves.spheres + 4 * i);
    return vec4{p.x - sphere.x, p.y - sphere.y, p.z - sphere.z, sphere.w};
#else
    return vec4{p.x - leaves.x[i], p.y - leaves.y[i], p.z - leaves.z[i], leaves.radius[i]};
#endif
}

// Number of tiles for the triangles of `count` leaves. A GPU fills tiles on demand; a CPU has one tile or more for each
// leaf.
DEVICE int tiles_of(const Head& head, [[maybe_unused]] const Leaves& leaves, int count) {
#if ON_GPU
    return (count * head.leaf_size + PACKET - 1) / PACKET;
#else
    (void)head;
    return count * leaves.parts;
#endif
}

// Measures the triangles in tile t of the `count` listed leaves.
DEVICE void measure_tile(const Head& head, const Leaves& leaves, const unsigned short* listed, int count, int t, vec3 p,
                         int (&id)[LANES], Measured& m) {
#if ON_GPU
    const int place = t * PACKET + LANE, size = head.leaf_size;
    const int i = int((float(place) + 0.5f) * reciprocal(float(size)));  // place / size, exact for such small numbers
    Tile tile;
    tile.id[0] = i < count ? member_of(head, listed[i], place - i * size) : -1;
    load_tile(tile, leaves.triangles);
    id[0] = tile.id[0];
#else
    (void)head, (void)count;
    const Tile& tile = leaves.tiles[leaves.leaf[listed[t / leaves.parts]] * leaves.parts + t % leaves.parts];
    for (int l = 0; l < LANES; ++l) id[l] = tile.id[l];
#endif
    measure(tile, p, m);
}

// Bound from the nearest triangle of the leaf whose centre is nearest to that of the cube.
DEVICE NearestBound nearest_leaf_bound(const Head& head, const Leaves& leaves, unsigned short* listed, vec3 centre,
                                       float edge) {
    const int last = leaves.count - 1;
    int least[LANES];
    for (int l = 0; l < LANES; ++l) least[l] = NO_KEY;
    for (int base = 0; base < leaves.count; base += PACKET) {
        FOR_LANES(l) {
            const int i = lesser(base + COLUMN(l), last);
            const vec4 v = from_sphere(leaves, i, centre);
            least[l] = lesser(least[l], indexed_key(v.x * v.x + v.y * v.y + v.z * v.z, LEAF_MASK, i));
        }
    }
    listed[0] = (unsigned short)min_key_index(least, LEAF_MASK);  // the same value in all lanes
    WARP_SYNC();
    float d[LANES], x[LANES], y[LANES], z[LANES];
    for (int l = 0; l < LANES; ++l) d[l] = FAR, x[l] = y[l] = z[l] = 0.0f;
    const int tiles = tiles_of(head, leaves, 1);
    for (int t = 0; t < tiles; ++t) {
        int id[LANES];
        Measured m;
        measure_tile(head, leaves, listed, 1, t, centre, id, m);
        FOR_LANES(l) {
            const bool nearer = (m.distance[l] < d[l]) & (id[l] >= 0);
            d[l] = nearer ? m.distance[l] : d[l];
            x[l] = nearer ? m.x[l] : x[l], y[l] = nearer ? m.y[l] : y[l], z[l] = nearer ? m.z[l] : z[l];
        }
    }
    int key[LANES];
    FOR_LANES(l) key[l] = indexed_key(d[l], LANE_MASK, COLUMN(l));
    const int best = min_key_index(key, LANE_MASK);
    return nearest_bound(broadcast_lane(d, best),
                         vec3{broadcast_lane(x, best), broadcast_lane(y, best), broadcast_lane(z, best)}, edge);
}

// Mask of those of 32 leaves from `base` on that may contain the triangle nearest to a point of the cube at `centre`.
DEVICE uint cull_leaves(const Leaves& leaves, int base, const NearestBound& bound, float slack, vec3 centre,
                        float edge) {
    int needed[LANES];
    FOR_LANES(l) {
        const int i = base + COLUMN(l);
        const vec4 v = from_sphere(leaves, lesser(i, leaves.count - 1), centre);
        const float d = length_of(v.x * v.x + v.y * v.y + v.z * v.z);
        needed[l] = (i < leaves.count) & (d - v.w <= bound.d + slack) &
                    may_be_nearest(bound, d - v.w, reciprocal(d), v.x, v.y, v.z, edge);
    }
    return mask_of_lanes(needed);
}

// Fills the pool with every triangle that may be nearest to a point of the cube at `centre`; returns their number.
DEVICE int fill_pool(Pool& pool, const Head& head, const Leaves& leaves, vec3 centre, float edge) {
    const NearestBound bound = nearest_leaf_bound(head, leaves, pool.leaf, centre, edge);
    for (float slack = DIAGONAL * edge;; slack *= SHRINK) {
        WARP_SYNC();  // all lanes have read the list
        int listed = 0, count = 0;
        for (int base = 0; base < leaves.count; base += PACKET) {
            const uint needed = cull_leaves(leaves, base, bound, slack, centre, edge);
            FOR_SET(l, needed) pool.leaf[listed + rank_in_mask(needed, COLUMN(l))] = (unsigned short)(base + COLUMN(l));
            listed += count_bits(needed);
        }
        WARP_SYNC();
        const int tiles = tiles_of(head, leaves, listed);
        for (int t = 0; t < tiles; ++t) {
            int id[LANES], valid[LANES];
            Measured m;
            measure_tile(head, leaves, pool.leaf, listed, t, centre, id, m);
            FOR_LANES(l) {
                const float d = m.distance[l];
                valid[l] = (id[l] >= 0) & (d <= bound.d + slack) &
                           may_be_nearest(bound, d, reciprocal(d), m.x[l], m.y[l], m.z[l], edge);
            }
            const uint found = mask_of_lanes(valid);  // computed by all lanes together, outside of the divergent loop
            FOR_SET(l, found) {
                const int place = count + rank_in_mask(found, COLUMN(l));
                if (place >= POOL_SIZE) continue;
                pool.triangle[place] = (unsigned short)id[l];
                pool.distance[place] = m.distance[l];
                pool.x[place] = m.x[l], pool.y[place] = m.y[l], pool.z[place] = m.z[l];
            }
            count += count_bits(found);
        }
        // A dense cluster of triangles may exceed the pool at any search radius; then the first ones are kept.
        if (count <= POOL_SIZE || slack < MIN_SLACK) {
            WARP_SYNC();
            return lesser(count, POOL_SIZE);
        }
    }
}

// Removes triangles from the pool that cannot be nearest to a point of the cube with this edge, and compacts the pool.
// Distances, measured from the cube's centre, are replaced by candidate words. Returns the number of remaining
// triangles.
DEVICE int prune(Pool& pool, int count, int nearest, float edge) {
    const NearestBound bound =
        nearest_bound(pool.distance[nearest], vec3{pool.x[nearest], pool.y[nearest], pool.z[nearest]}, edge);
    int kept = 0;
    WARP_SYNC();
    for (int base = 0; base < count; base += PACKET) {
        int may[LANES];
        float word[LANES], x[LANES], y[LANES], z[LANES];
        FOR_LANES(l) {
            const int i = base + COLUMN(l);
            const float d = pool.distance[i];
            x[l] = pool.x[i], y[l] = pool.y[i], z[l] = pool.z[i];
            word[l] = bits_to_float(pack_candidate(pool.triangle[i], d));
            may[l] = (i < count) & (d <= bound.d + DIAGONAL * edge) &
                     may_be_nearest(bound, d, reciprocal(d), x[l], y[l], z[l], edge);
        }
        const uint left = mask_of_lanes(may);
        WARP_SYNC();  // all lanes have read before entries are overwritten
        FOR_SET(l, left) {
            const int i = kept + rank_in_mask(left, COLUMN(l));
            pool.distance[i] = word[l];
            pool.x[i] = x[l], pool.y[i] = y[l], pool.z[i] = z[l];
        }
        kept += count_bits(left);
        WARP_SYNC();
    }
    return kept;
}

// Moves the `number` words nearest to the point `o` (relative to the centre) from a pool of `count` words to `chosen`.
DEVICE int choose_nearest(Pool& pool, int count, vec3 o, int number, int chosen) {
    int key[PICKS_PER_PASS][LANES];  // the smallest keys of each lane, ascending
    for (int k = 0; k < PICKS_PER_PASS; ++k)
        for (int l = 0; l < LANES; ++l) key[k][l] = NO_KEY;
    for (int base = 0; base < count; base += PACKET) {
        FOR_LANES(l) {
            const int i = base + COLUMN(l);
            const float x = pool.x[i] + o.x, y = pool.y[i] + o.y, z = pool.z[i] + o.z;
            int next = indexed_key(i < count ? fminf(x * x + y * y + z * z, FAR) : FAR, POOL_MASK, i);
            UNROLL for (int k = 0; k < PICKS_PER_PASS; ++k) {
                const int low = lesser(key[k][l], next);
                next = key[k][l] < next ? next : key[k][l];
                key[k][l] = low;
            }
        }
    }
    WARP_SYNC();  // all lanes have read
    for (int pick = 0; pick < number; ++pick) {
        const int best = min_key_index(key[0], POOL_MASK);
        FOR_LANES(l) {
            const bool own = (key[0][l] & int(POOL_MASK)) == best;
            UNROLL for (int k = 0; k + 1 < PICKS_PER_PASS; ++k) key[k][l] = own ? key[k + 1][l] : key[k][l];
            key[PICKS_PER_PASS - 1][l] = own ? NO_KEY : key[PICKS_PER_PASS - 1][l];
        }
        for (int l = 0; l < LANES; ++l)
            if (COLUMN(l) == 0) {
                pool.chosen[chosen + pick] = float_to_bits(pool.distance[best]);
                pool.x[best] = ALREADY_CHOSEN;
            }
    }
    WARP_SYNC();
    return number;
}

// Writes the candidate row of one cell from a pool of `count` triangles; overwrites the pool's distances, not its
// triangles.
DEVICE void write_row(Pool& pool, int count, const Head& head, [[maybe_unused]] vec3 centre, uint* row) {
    const float edge = head.side / float(head.resolution);
    int least[LANES];
    for (int l = 0; l < LANES; ++l) least[l] = NO_KEY;
    for (int base = 0; base < count; base += PACKET) {
#if !ON_GPU
        Measured m;  // distances from this cell's centre: the pool was filled for the whole block
        measure(pool.tile[base / PACKET], centre, m);
        FOR_LANES(l) {
            const int i = base + l;
            pool.distance[i] = m.distance[l];
            pool.x[i] = m.x[l], pool.y[i] = m.y[l], pool.z[i] = m.z[l];
        }
#endif
        FOR_LANES(l) {
            const int i = base + COLUMN(l);
            least[l] = lesser(least[l], indexed_key(i < count ? pool.distance[i] : FAR, POOL_MASK, i));
        }
    }

    const int kept = prune(pool, count, min_key_index(least, POOL_MASK), edge);
    const int capacity = head.candidates < 64 ? head.candidates : 64;
    int chosen = 0;
    if (kept <= capacity) {
        for (int base = 0; base < kept; base += PACKET)
            for (int l = 0; l < LANES; ++l)
                if (base + COLUMN(l) < kept)
                    pool.chosen[base + COLUMN(l)] = float_to_bits(pool.distance[base + COLUMN(l)]);
        chosen = kept;
    } else {
        for (int octant = 0; octant < 8; ++octant) {
            const float quarter = 0.25f * edge;
            const vec3 o{octant & 1 ? quarter : -quarter, octant & 2 ? quarter : -quarter,
                         octant & 4 ? quarter : -quarter};
            const int upto = capacity * (octant + 1) / 8;
            while (chosen < upto)
                chosen += choose_nearest(pool, kept, o, lesser(upto - chosen, PICKS_PER_PASS), chosen);
        }
    }
    WARP_SYNC();
    for (int base = 0; base < head.candidates; base += PACKET) {
        FOR_LANES(l) {
            const int i = base + COLUMN(l);
            const uint word = i < chosen ? pool.chosen[i] : 0u;
            int rank = 0;
            for (int j = 0; j < chosen; ++j) rank += pool.chosen[j] < word;
            if (i < chosen) row[rank] = word;
            else if (i < head.candidates) row[i] = NO_CANDIDATE;
        }
    }
    WARP_SYNC();
}

#if !ON_GPU
// All leaves of every frame, with their triangles gathered into tiles.
DEVICE const std::vector<Leaves>& gather_leaves(const Head& head, const PoseBuffers& poses) {
    static thread_local std::vector<Tile> tiles;  // reused between calls; they only grow
    static thread_local std::vector<Leaves> all;
    const int parts = (head.leaf_size + PACKET - 1) / PACKET, each = head.leaves * parts;
    tiles.resize((size_t)poses.frames * each);
    all.resize(poses.frames);
    for (int frame = 0; frame < poses.frames; ++frame) {
        Leaves& leaves = all[frame];
        leaves.triangles = poses.triangles + (size_t)frame * head.triangles * TRIANGLE_SIZE;
        leaves.count = head.leaves;
        leaves.tiles = tiles.data() + (size_t)frame * each;
        leaves.parts = parts;
        for (int i = 0; i < head.leaves; ++i) {
            const vec4 sphere = load4(poses.spheres + 4 * ((size_t)frame * head.leaves + i));
            leaves.x[i] = sphere.x, leaves.y[i] = sphere.y, leaves.z[i] = sphere.z, leaves.radius[i] = sphere.w;
            leaves.leaf[i] = i;
        }
    }
    Tile* gathered = tiles.data();
    const Leaves* of = all.data();
    EACH_PACKET(p, poses.frames * each) {
        for (int l = 0; l < LANES; ++l) {
            const int m = p % parts * PACKET + l;
            gathered[p].id[l] = m < head.leaf_size ? member_of(head, p % each / parts, m) : -1;
        }
        load_tile(gathered[p], of[p / each].triangles);
    }
    return all;
}

// Collects the leaves that may contain the triangle nearest to a point of the cube at `centre`.
DEVICE void gather_near_leaves(Leaves& near_leaves, const Head& head, const Leaves& all, vec3 centre, float edge) {
    unsigned short one[1];
    const NearestBound bound = nearest_leaf_bound(head, all, one, centre, edge);
    near_leaves.triangles = all.triangles, near_leaves.tiles = all.tiles, near_leaves.parts = all.parts;
    near_leaves.count = 0;
    for (int base = 0; base < all.count; base += PACKET) {
        const uint needed = cull_leaves(all, base, bound, DIAGONAL * edge, centre, edge);
        FOR_SET(l, needed) {
            const int i = base + int(l), to = near_leaves.count++;
            near_leaves.x[to] = all.x[i], near_leaves.y[to] = all.y[i], near_leaves.z[to] = all.z[i],
            near_leaves.radius[to] = all.radius[i];
            near_leaves.leaf[to] = all.leaf[i];
        }
    }
}

// Fills a pool for all cells of a cube, with its triangles gathered.
DEVICE int fill_shared_pool(Pool& pool, const Head& head, const Leaves& leaves, vec3 centre, float edge) {
    int count = fill_pool(pool, head, leaves, centre, edge);
    int nearest = 0;
    for (int i = 1; i < count; ++i) nearest = pool.distance[i] < pool.distance[nearest] ? i : nearest;
    count = prune(pool, count, nearest, edge);
    for (int base = 0; base < count; base += PACKET) {
        Tile& tile = pool.tile[base / PACKET];
        for (int l = 0; l < LANES; ++l) {
            const int i = base + l < count ? base + l : 0;
            tile.id[l] = candidate_triangle(float_to_bits(pool.distance[i]));
            if (base + l < count) pool.triangle[i] = (unsigned short)tile.id[l];
        }
        load_tile(tile, leaves.triangles);
    }
    return count;
}
#endif

// Computes candidates (frames, capacity, head.candidates) of the marked cells from the posed triangles and the leaves'
// spheres; if `needed` (frames, words) is not null, only for cells whose bit is set.
// items: 32 * frames * capacity.
KERNEL(THREADS) choose_candidates(const Head head, const PoseBuffers poses, const uint* needed) {
#if ON_GPU
    EACH_PACKET(p, poses.frames * poses.capacity) {
        SCRATCH(Pool, pool, THREADS);
        const int frame = p / poses.capacity, row = p % poses.capacity;
        if (row >= poses.count[frame]) continue;
        if (needed && !bit_at(needed + (size_t)frame * poses.words, poses.cell[p])) continue;
        const Leaves leaves{poses.triangles + (size_t)frame * head.triangles * TRIANGLE_SIZE, head.leaves,
                            poses.spheres + (size_t)frame * head.leaves * 4};
        const vec3 centre = cell_centre(head, poses.cell[(size_t)p], head.resolution);
        const int count = fill_pool(pool, head, leaves, centre, head.side / float(head.resolution));
        write_row(pool, count, head, centre, poses.candidates + (size_t)p * head.candidates);
    }
#else
    const std::vector<Leaves>& all = gather_leaves(head, poses);
    const int n = head.resolution, parents = (n + PARENT - 1) / PARENT;
    const float size = head.side / float(n);
    const auto middle = [&](const int(&corner)[3], int edge) {
        const float half = 0.5f * float(edge);
        return origin_of(head) + size * vec3{corner[0] + half, corner[1] + half, corner[2] + half};
    };
    EACH_PACKET(p, poses.frames * parents * parents * parents) {
        const int frame = p / (parents * parents * parents), q = p % (parents * parents * parents);
        const int corner[3] = {q % parents * PARENT, q / parents % parents * PARENT, q / (parents * parents) * PARENT};
        const uint* marks = (needed ? needed : poses.bits) + (size_t)frame * poses.words;
        Leaves near_leaves;
        near_leaves.count = 0;
        for (int b = 0; b < PARENT * PARENT * PARENT / (EDGE * EDGE * EDGE); ++b) {
            constexpr int across = PARENT / EDGE;
            const int at[3] = {corner[0] + b % across * EDGE, corner[1] + b / across % across * EDGE,
                               corner[2] + b / (across * across) * EDGE};
            int rows[EDGE * EDGE * EDGE], cells = 0;
            for (int i = 0; i < EDGE * EDGE * EDGE; ++i) {
                const int x = at[0] + i % EDGE, y = at[1] + i / EDGE % EDGE, z = at[2] + i / (EDGE * EDGE);
                if (x >= n || y >= n || z >= n) continue;
                const int cell = (z * n + y) * n + x;
                if (!bit_at(marks, cell)) continue;
                const int row = poses.row[(size_t)frame * n * n * n + cell];
                if (row >= 0) rows[cells++] = row;
            }
            if (cells == 0) continue;
            if (near_leaves.count == 0)
                gather_near_leaves(near_leaves, head, all[frame], middle(corner, PARENT), PARENT * size);
            Pool pool;
            int count = fill_shared_pool(pool, head, near_leaves, middle(at, EDGE), EDGE * size);
            for (int i = 0; i < cells; ++i) {
                const size_t place = (size_t)frame * poses.capacity + rows[i];
                const vec3 centre = cell_centre(head, poses.cell[place], n);
                write_row(pool, count, head, centre, poses.candidates + place * head.candidates);
            }
        }
    }
#endif
}
