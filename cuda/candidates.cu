// Which triangles a marked cell offers to the points in it (insta_runtime/warp/nearest.py, CandidateGrid).
//
// A triangle is left out only if it cannot be the nearest to any point of the cell. With c the cell's centre, d and u
// the distance and the direction from triangle to c, and m the triangle nearest to c: distance to a triangle is a convex
// function, so d(c + x) >= d(c) + u . x, while m's is at most |c + x - q| <= d_m + u_m . x + |x|^2 / (2 d_m). Where more
// are left than a row can hold, each octant of the cell picks those nearest to its middle.
#include "lanes.cuh"
#include "warp.cuh"

#if !ON_GPU
#include <vector>
#endif

#define THREADS 128
#if ON_GPU
#define EDGE 1  // a packet does one cell ...
#define POOL 512
#else
#define EDGE 2  // ... or a block of 2^3, whose cells share a pool
#define POOL 2048
#endif
#define LEAF_MASK 1023u  // a leaf's index fits into the last bits of a rough distance
#define POOL_MASK 2047u  // and so does a place in the pool
#define FAR 1e30f
#define NO_KEY 0x7f000000  // more than any
#define LEAST_SLACK 1e-5f  // metres: a search is not made narrower than this
#define SHRINK 0.7f      // of the search when it finds more triangles than the pool holds

// Up to 32 triangles, a row a number of nearest.cuh's twelve and of their inverses.
struct Tile {
    float row[TRIANGLE_SIZE + 4][LANES];
};

struct Pool {
    unsigned short triangle[POOL];
    float distance[POOL];             // from the cell's centre
    float x[POOL], y[POOL], z[POOL];  // the centre, seen from the triangle's nearest point
#if !ON_GPU
    Tile tile[POOL / PACKET];  // gathered once for all cells of a block
#endif
    uint chosen[64];
};

DEVICE int lowest_bit(uint bits) {
#if ON_GPU
    return __ffs(int(bits)) - 1;
#else
    return __builtin_ctz(bits);
#endif
}

// The lanes whose bit is set.
#if ON_GPU
#define FOR_SET(l, bits) for (int l = 0; l < int((bits) >> LANE & 1u); ++l)
#else
#define FOR_SET(l, bits) for (uint left_ = (bits), l = 0; left_ && (l = uint(__builtin_ctz(left_)), true); left_ &= left_ - 1u)
#endif

DEVICE uint bits_of_lanes(const bool (&x)[LANES]) {
#if ON_GPU
    return __ballot_sync(0xffffffffu, x[0]);
#else
    uint bits = 0u;
    for (int l = 0; l < PACKET; ++l) bits |= uint(x[l]) << l;
    return bits;
#endif
}

// The bits of a positive number, which order like the number, the last ones replaced by an index: the least of many
// says which one it is.
DEVICE int keyed(float value, uint mask, int index) { return int((float_to_bits(value) & ~mask) | (uint(index) & mask)); }

// The index that the least key of a packet holds.
DEVICE int least_of(const int (&key)[LANES], uint mask) {
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
    const Inverses one_over = inverses_of(triangle_of(tile, l));
    tile.row[12][l] = one_over.ab, tile.row[13][l] = one_over.ac;
    tile.row[14][l] = one_over.bc, tile.row[15][l] = one_over.area;
}

DEVICE void load_tile(Tile& tile, const float* triangles, const int (&id)[LANES]) {
    for (int l = 0; l < LANES; ++l) {
        const float* t = triangles + TRIANGLE_SIZE * id[l];
        UNROLL for (int q = 0; q < TRIANGLE_SIZE; q += 4) {
            const vec4 part = load4(t + q);
            tile.row[q][l] = part.x, tile.row[q + 1][l] = part.y;
            tile.row[q + 2][l] = part.z, tile.row[q + 3][l] = part.w;
        }
    }
    FOR_LANES(l) invert_one(tile, l);  // a struct within this loop would keep a compiler from vectorising it
}

struct Measured {
    float distance[LANES], x[LANES], y[LANES], z[LANES];
};

DEVICE void measure_one(const Tile& tile, vec3 p, int l, Measured& m) {
    const Triangle t = triangle_of(tile, l);
    const Inverses one_over{tile.row[12][l], tile.row[13][l], tile.row[14][l], tile.row[15][l]};
    const vec3 from = p - t.a;
    const OnTriangle on = closest_on_triangle(t, one_over, from);
    const vec3 offset = from - on.v * t.ab - on.w * t.ac;
    m.distance[l] = length(offset);
    m.x[l] = offset.x, m.y[l] = offset.y, m.z[l] = offset.z;
}

DEVICE void measure(const Tile& tile, vec3 p, Measured& m) { FOR_LANES(l) measure_one(tile, p, l, m); }

// How far the middle of a leaf's sphere is, and how near its triangles may be.
DEVICE float to_middle(const float* spheres, int leaf, vec3 p) { return length(p - load3(spheres + 4 * leaf)); }
DEVICE float to_sphere(const float* spheres, int leaf, vec3 p) { return to_middle(spheres, leaf, p) - spheres[4 * leaf + 3]; }

// The members `first` ... of a leaf; the last one of a short leaf is repeated and valid only once.
DEVICE void members_of(const Head& head, int leaf, int first, int (&id)[LANES], bool (&valid)[LANES]) {
    const int* members = head.members + (size_t)leaf * head.leaf_size;
    const int last = head.leaf_size - 1;
    FOR_LANES(l) {
        const int m = first + COLUMN(l);
        id[l] = members[lesser(m, last)];
        valid[l] = (m <= last) & ((m == 0) | (id[l] != members[lesser(m > 0 ? m - 1 : 0, last)]));
    }
}

// The leaves of one pose: a GPU gathers their triangles as it needs them, a CPU has done so for all beforehand.
struct Leaves {
    const float* triangles;
    const float* spheres;
    const Tile* tiles;  // (leaves, ceil(leaf_size / 32)), on a CPU
};

// Distances of the members `first` ... of a leaf.
DEVICE void measure_leaf(const Head& head, const Leaves& leaves, int leaf, int first, vec3 p, int (&id)[LANES],
                         bool (&valid)[LANES], Measured& m) {
    members_of(head, leaf, first, id, valid);
#if ON_GPU
    Tile tile;
    load_tile(tile, leaves.triangles, id);
    measure(tile, p, m);
#else
    measure(leaves.tiles[leaf * ((head.leaf_size + PACKET - 1) / PACKET) + first / PACKET], p, m);
#endif
}

// Fills the pool with every triangle that may be nearest to a point within `half` metres of `centre`: how many.
DEVICE int fill_pool(Pool& pool, const Head& head, const Leaves& all, vec3 centre, float half) {
    const float* spheres = all.spheres;
    // The leaf whose middle is nearest bounds the distance.
    const int leaves = head.leaves;
    int least[LANES];
    for (int l = 0; l < LANES; ++l) least[l] = NO_KEY;
    for (int base = 0; base < leaves; base += PACKET) {
        FOR_LANES(l) {
            const int leaf = base + COLUMN(l) < leaves ? base + COLUMN(l) : leaves - 1;
            least[l] = lesser(least[l], keyed(to_middle(spheres, leaf, centre), LEAF_MASK, leaf));
        }
    }
    const int seed = least_of(least, LEAF_MASK);
    float bound[LANES];  // distances seen; every one bounds the least distance from above
    for (int l = 0; l < LANES; ++l) bound[l] = FAR;
    for (int first = 0; first < head.leaf_size; first += PACKET) {
        int id[LANES];
        bool valid[LANES];
        Measured m;
        measure_leaf(head, all, seed, first, centre, id, valid, m);
        FOR_LANES(l) bound[l] = fminf(bound[l], m.distance[l]);
    }

    for (float slack = 2.0f * half;; slack *= SHRINK) {
        const float start = min_lanes(bound);
        for (int l = 0; l < LANES; ++l) bound[l] = start;
        int count = 0;
        for (int base = 0; base < leaves; base += PACKET) {
            bool wanted[LANES];
            FOR_LANES(l) {
                const int leaf = base + COLUMN(l);
                wanted[l] = (to_sphere(spheres, leaf < leaves ? leaf : leaves - 1, centre) <= start + slack) & (leaf < leaves);
            }
            for (uint left = bits_of_lanes(wanted); left; left &= left - 1u) {
                for (int first = 0; first < head.leaf_size; first += PACKET) {
                    int id[LANES], place[LANES];
                    bool valid[LANES];
                    Measured m;
                    measure_leaf(head, all, base + lowest_bit(left), first, centre, id, valid, m);
                    FOR_LANES(l) {
                        bound[l] = fminf(bound[l], m.distance[l]);
                        valid[l] = valid[l] & (m.distance[l] <= bound[l] + slack);
                    }
                    count = count_before(valid, count, place);
                    const uint found = bits_of_lanes(valid);  // once, by all lanes: the loop's end is looked at by some
                    FOR_SET(l, found) {
                        if (place[l] >= POOL) continue;
                        pool.triangle[place[l]] = (unsigned short)id[l];
                        pool.distance[place[l]] = m.distance[l];
                        pool.x[place[l]] = m.x[l], pool.y[place[l]] = m.y[l], pool.z[place[l]] = m.z[l];
                    }
                }
            }
        }
        // Of a heap of triangles in one place no search finds fewer: then the first ones stand for all.
        if (count <= POOL || slack < LEAST_SLACK) {
            WARP_SYNC();
            return lesser(count, POOL);
        }
    }
}

// Leaves out of a pool, whose distances are those from the centre of a cube of this edge, what cannot be nearest to a
// point of the cube, and closes the ranks; in place of distances there are words then. How many are left.
DEVICE int prune(Pool& pool, int count, int nearest, float edge) {
    const float half = 0.8660254f * edge;
    const float d_m = pool.distance[nearest], inverse = 1.0f / fmaxf(d_m, 1e-9f);
    const vec3 u_m{inverse * pool.x[nearest], inverse * pool.y[nearest], inverse * pool.z[nearest]};
    const float curved = 0.5f * half * half * inverse;
    int kept = 0;
    WARP_SYNC();
    for (int base = 0; base < count; base += PACKET) {
        bool may[LANES];
        int place[LANES];
        float d[LANES], x[LANES], y[LANES], z[LANES];
        FOR_LANES(l) {
            const int i = base + COLUMN(l);
            d[l] = pool.distance[i], x[l] = pool.x[i], y[l] = pool.y[i], z[l] = pool.z[i];
            const float inverse = 1.0f / fmaxf(d[l], 1e-9f);
            const float turn = fabsf(inverse * x[l] - u_m.x) + fabsf(inverse * y[l] - u_m.y) + fabsf(inverse * z[l] - u_m.z);
            may[l] = (i < count) & (d[l] <= d_m + 2.0f * half) & (d[l] - d_m - curved <= 0.5f * edge * turn + 1e-6f);
        }
        const uint left = bits_of_lanes(may);
        kept = count_before(may, kept, place);
        WARP_SYNC();  // all have read before the ranks close
        FOR_SET(l, left) {
            const int i = place[l];
            pool.distance[i] = bits_to_float(pack_candidate(pool.triangle[base + COLUMN(l)], d[l]));
            pool.x[i] = x[l], pool.y[i] = y[l], pool.z[i] = z[l];
        }
        WARP_SYNC();
    }
    return kept;
}

// The row of one cell from a pool of `count` triangles; changes the pool's distances, not its triangles.
DEVICE void write_row(Pool& pool, int count, const Head& head, [[maybe_unused]] vec3 centre, uint* row) {
    const float edge = head.side / float(head.resolution);
    int least[LANES];
    for (int l = 0; l < LANES; ++l) least[l] = NO_KEY;
    for (int base = 0; base < count; base += PACKET) {
#if !ON_GPU
        Measured m;  // the pool was filled for a whole block
        measure(pool.tile[base / PACKET], centre, m);
        FOR_LANES(l) {
            const int i = base + l;
            pool.distance[i] = m.distance[l];
            pool.x[i] = m.x[l], pool.y[i] = m.y[l], pool.z[i] = m.z[l];
        }
#endif
        FOR_LANES(l) {
            const int i = base + COLUMN(l);
            least[l] = lesser(least[l], keyed(i < count ? pool.distance[i] : FAR, POOL_MASK, i));
        }
    }

    const int kept = prune(pool, count, least_of(least, POOL_MASK), edge);
    const int capacity = head.candidates < 64 ? head.candidates : 64;
    int chosen = 0;
    if (kept <= capacity) {
        for (int base = 0; base < kept; base += PACKET)
            for (int l = 0; l < LANES; ++l)
                if (base + COLUMN(l) < kept) pool.chosen[base + COLUMN(l)] = float_to_bits(pool.distance[base + COLUMN(l)]);
        chosen = kept;
    } else {
        for (int octant = 0; octant < 8; ++octant) {
            const float quarter = 0.25f * edge;
            const vec3 o{octant & 1 ? quarter : -quarter, octant & 2 ? quarter : -quarter, octant & 4 ? quarter : -quarter};
            for (const int upto = capacity * (octant + 1) / 8; chosen < upto; ++chosen) {
                for (int l = 0; l < LANES; ++l) least[l] = NO_KEY;
                for (int base = 0; base < kept; base += PACKET) {
                    FOR_LANES(l) {
                        const int i = base + COLUMN(l);
                        const float x = pool.x[i] + o.x, y = pool.y[i] + o.y, z = pool.z[i] + o.z;
                        const float squared = i < kept ? fminf(x * x + y * y + z * z, FAR) : FAR;
                        least[l] = lesser(least[l], keyed(squared, POOL_MASK, i));
                    }
                }
                const int best = least_of(least, POOL_MASK);
                WARP_SYNC();
                for (int l = 0; l < LANES; ++l)
                    if (COLUMN(l) == 0) {
                        pool.chosen[chosen] = float_to_bits(pool.distance[best]);
                        pool.x[best] = 3e18f;  // taken
                    }
                WARP_SYNC();
            }
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

// candidates (frames, capacity, head.candidates) of the marked cells, from the posed triangles and the leaves' spheres;
// only of those whose bit is set in `wanted` (frames, words), unless it is null.
// items: 32 * frames * capacity.
KERNEL(THREADS) choose_candidates(const Head head, const Poses poses, const uint* wanted) {
#if ON_GPU
    EACH_PACKET(p, poses.frames * poses.capacity) {
        SCRATCH(Pool, pool, THREADS);
        const int frame = p / poses.capacity, row = p % poses.capacity;
        if (row >= poses.count[frame]) continue;
        if (wanted && !bit_at(wanted + (size_t)frame * poses.words, poses.cell[p])) continue;
        const Leaves leaves{poses.triangles + (size_t)frame * head.triangles * TRIANGLE_SIZE,
                            poses.spheres + (size_t)frame * head.leaves * 4, nullptr};
        const vec3 centre = cell_centre(head, poses.cell[(size_t)p], head.resolution);
        const float half = 0.8660254f * head.side / float(head.resolution);
        const int count = fill_pool(pool, head, leaves, centre, half);
        write_row(pool, count, head, centre, poses.candidates + (size_t)p * head.candidates);
    }
#else
    const int parts = (head.leaf_size + PACKET - 1) / PACKET, each = head.leaves * parts;
    static thread_local std::vector<Tile> gathered;  // grows once
    gathered.resize((size_t)poses.frames * each);
    Tile* tiles = gathered.data();
    EACH_PACKET(p, poses.frames * each) {
        int id[LANES];
        bool valid[LANES];
        members_of(head, p % each / parts, p % parts * PACKET, id, valid);
        load_tile(tiles[p], poses.triangles + (size_t)(p / each) * head.triangles * TRIANGLE_SIZE, id);
    }
    const int n = head.resolution, blocks = (n + EDGE - 1) / EDGE;
    EACH_PACKET(p, poses.frames * blocks * blocks * blocks) {
        const int frame = p / (blocks * blocks * blocks), block = p % (blocks * blocks * blocks);
        const int at[3] = {block % blocks * EDGE, block / blocks % blocks * EDGE, block / (blocks * blocks) * EDGE};
        int rows[EDGE * EDGE * EDGE], cells = 0;
        for (int i = 0; i < EDGE * EDGE * EDGE; ++i) {
            const int x = at[0] + i % EDGE, y = at[1] + i / EDGE % EDGE, z = at[2] + i / (EDGE * EDGE);
            if (x >= n || y >= n || z >= n) continue;
            const int cell = (z * n + y) * n + x;
            if (!bit_at((wanted ? wanted : poses.bits) + (size_t)frame * poses.words, cell)) continue;
            const int row = poses.row[(size_t)frame * n * n * n + cell];
            if (row >= 0) rows[cells++] = row;
        }
        if (cells == 0) continue;
        Pool pool;
        const Leaves leaves{poses.triangles + (size_t)frame * head.triangles * TRIANGLE_SIZE,
                            poses.spheres + (size_t)frame * head.leaves * 4, tiles + (size_t)frame * each};
        const float size = head.side / float(n);
        const vec3 middle = origin_of(head) + size * vec3{at[0] + 0.5f * EDGE, at[1] + 0.5f * EDGE, at[2] + 0.5f * EDGE};
        int count = fill_pool(pool, head, leaves, middle, 0.8660254f * EDGE * size);
        int nearest = 0;
        for (int i = 1; i < count; ++i) nearest = pool.distance[i] < pool.distance[nearest] ? i : nearest;
        count = prune(pool, count, nearest, EDGE * size);
        for (int i = 0; i < count; ++i)
            pool.triangle[i] = (unsigned short)candidate_triangle(float_to_bits(pool.distance[i]));
        for (int base = 0; base < count; base += PACKET) {
            int id[LANES];
            for (int l = 0; l < LANES; ++l) id[l] = pool.triangle[base + l < count ? base + l : 0];
            load_tile(pool.tile[base / PACKET], leaves.triangles, id);
        }
        for (int i = 0; i < cells; ++i) {
            const size_t place = (size_t)frame * poses.capacity + rows[i];
            const vec3 centre = cell_centre(head, poses.cell[place], n);
            write_row(pool, count, head, centre, poses.candidates + place * head.candidates);
        }
    }
#endif
}
