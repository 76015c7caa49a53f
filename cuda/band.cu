// Narrow band around the posed head: the cells of the posed grid in which rays are sampled
// (insta_runtime/render/occupancy.py, `posed`). All other cells are skipped as empty.
#include "list_append.cuh"
#include "warp.cuh"

#define SUBCELLS 3  // a canonical cell is forward-warped as 3^3 points: centre, corners, and the points between them
#define MAX_POSED_COPIES 6  // maximum number of positions between that of an attached and that of a detached cell
#define POINTS (SUBCELLS * SUBCELLS * SUBCELLS)

// Resets bits, counts and bounds to an empty band. items: frames * words.
KERNEL(256) clear_band(const Head head, const PoseBuffers poses) {
    EACH(i, poses.frames * poses.words) {
        poses.bits[i] = 0u;
        if (i % poses.words) continue;
        const int frame = i / poses.words;
        poses.count[frame] = 0;
        for (int axis = 0; axis < 3; ++axis) {
            poses.bounds[6 * frame + axis] = head.resolution;
            poses.bounds[6 * frame + 3 + axis] = -1;
        }
    }
}

// Marks every posed cell that the forward warp of an occupied canonical cell reaches. Points outside the cube mark the
// nearest cell at its face. items: frames * occupancy.count.
KERNEL(128) forward_warp_cells(const Head head, const PoseBuffers poses, const OccupancyCells occupancy) {
    EACH(i, poses.frames * occupancy.count) {
        const int frame = i / occupancy.count, candidate = i % occupancy.count;
        if (!occupancy.occupied[candidate]) continue;
        const int triangle = occupancy.triangle[candidate], corner = head.faces[3 * triangle];
        const float* map = poses.maps + ((size_t)frame * head.triangles + triangle) * 9;
        float m[9], squared = 0.0f;
        UNROLL for (int q = 0; q < 9; ++q) m[q] = map[q], squared += m[q] * m[q];
        // The map is a rotation times a scale s, so its inverse is its transpose over s^2. All lengths in cells of the
        // grid.
        const float cells = float(head.resolution) / head.side, inverse = 3.0f / squared * cells;
        const vec3 offset =
            cell_centre(head, occupancy.cells[candidate], occupancy.resolution) - load3(head.canonical + 3 * corner);
        const vec3 start = load3(poses.vertices + ((size_t)frame * head.vertices + corner) * 3) - origin_of(head);
        const vec3 with_surface = cells * start + inverse * transform_transposed(m, offset);
        // Cells above the surface may be attached to it or to the rigid head alone: mark all positions in between.
        const bool above = height_above(head, triangle, offset) > 0.0f;
        const bool detachable = WARP_DETACHMENT_HEIGHT > 0.0f && above && head.masks[2 * corner] < 1.0f;
        const vec3 opened = load3(head.canonical + 3 * corner) + offset - load3(head.open_offset + 3 * corner);
        const vec3 displacement = cells * (opened - origin_of(head)) - with_surface;
        const int copies = detachable ? clampi(int(length(displacement)) + 2, 1, MAX_POSED_COPIES) : 1;
        const float step = inverse * head.side / float(occupancy.resolution) / float(SUBCELLS - 1);
        const vec3 along_x = step * load3(m), along_y = step * load3(m + 3), along_z = step * load3(m + 6);
        const int resolution = head.resolution;
        const float high = float(resolution) - 0.5f;
        uint* bits = poses.bits + (size_t)frame * poses.words;
        for (int copy = 0; copy < copies; ++copy) {
            const vec3 centre = with_surface + (float(copy) / float(copies > 1 ? copies - 1 : 1)) * displacement;
            int cell[POINTS];
            UNROLL SIMD for (int i = 0; i < POINTS; ++i) {
                const float x = float(i % SUBCELLS - 1), y = float(i / SUBCELLS % SUBCELLS - 1);
                const float z = float(i / (SUBCELLS * SUBCELLS) - 1);
                const float px = centre.x + x * along_x.x + y * along_y.x + z * along_z.x;
                const float py = centre.y + x * along_x.y + y * along_y.y + z * along_z.y;
                const float pz = centre.z + x * along_x.z + y * along_y.z + z * along_z.z;
                cell[i] = (int(clampf(pz, 0.0f, high)) * resolution + int(clampf(py, 0.0f, high))) * resolution +
                          int(clampf(px, 0.0f, high));
            }
            UNROLL for (int i = 0; i < POINTS; ++i) {
                if (i && cell[i] == cell[i - 1]) continue;
                set_bit(bits, cell[i]);
            }
        }
    }
}

// Lists the marked cells: row, cell, count and bounds. Cells beyond the capacity get the row -1 and count as not
// marked; `count` includes them. items: 32 * frames * ceil(words / 32).
KERNEL(128) list_cells(const Head head, const PoseBuffers poses) {
    const int packets = (poses.words + PACKET - 1) / PACKET, n = head.resolution;
    EACH_PACKET(p, poses.frames * packets) {
        const int frame = p / packets, first = p % packets * PACKET;
        uint bits[LANES];
        int marked[LANES], start[LANES];
        for (int l = 0; l < LANES; ++l) {
            const int word = first + COLUMN(l);
            bits[l] = word < poses.words ? poses.bits[(size_t)frame * poses.words + word] : 0u;
            marked[l] = count_bits(bits[l]);
        }
        reserve_slots(poses.count + frame, marked, start);
        float low[3][LANES], high[3][LANES];  // `high` holds negated values
        for (int l = 0; l < LANES; ++l) {
            for (int axis = 0; axis < 3; ++axis) low[axis][l] = float(n), high[axis][l] = 1.0f;
            int cell = (first + COLUMN(l)) * 32, row = start[l];
            for (uint left = bits[l]; left; left >>= 1, ++cell) {
                if (!(left & 1u)) continue;
                const bool kept = row < poses.capacity;
                poses.row[(size_t)frame * n * n * n + cell] = kept ? row : -1;
                if (kept) poses.cell[(size_t)frame * poses.capacity + row] = cell;
                ++row;
                const int at[3] = {cell % n, cell / n % n, cell / (n * n)};
                UNROLL for (int axis = 0; axis < 3; ++axis) {
                    low[axis][l] = fminf(low[axis][l], float(at[axis]));
                    high[axis][l] = fminf(high[axis][l], -float(at[axis]));
                }
            }
        }
        int* bounds = poses.bounds + 6 * frame;
        for (int axis = 0; axis < 3; ++axis) {
            const int lowest = int(min_lanes(low[axis])), highest = -int(min_lanes(high[axis]));
            for (int l = 0; l < LANES; ++l) {
                if (COLUMN(l) || highest < 0) continue;
                min_atomic(bounds + axis, lowest);
                max_atomic(bounds + 3 + axis, highest);
            }
        }
    }
}
