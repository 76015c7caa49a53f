// What kernels share with Python: the structs below are read from this file by insta_runtime/native/kernels.py, which builds
// the same from tensors. All arrays are dense, row-major, float32 metres in head space unless said otherwise.
//
// A state is a row of floats: [expression (expressions) | eyelids 2 | neck 3 | jaw 3 | left eye 3 | right eye 3 |
// rotation 9 (row-major, head to camera) | translation 3 | fx fy cx cy | motions (PARTS, MOTION) of mouth and eyes apart
// from the head | turn 9 of rays before colours are asked for | code (CODE_WIDTH)]: axis-angle radians, pixels.
#pragma once
#include "platform.cuh"

#define PARTS 2   // of the face that move apart from the head: where the masks of mouth and eyes are
#define MOTION 6  // numbers of a motion: metres along x, y, z, then a turn about them, in metres at a distance of LEVER

#define STATE_LIDS(e) (e)
#define STATE_TURNS(e) ((e) + 2)
#define STATE_ROTATION(e) ((e) + 14)
#define STATE_TRANSLATION(e) ((e) + 23)
#define STATE_CAMERA(e) ((e) + 26)
#define STATE_APART(e) ((e) + 30)
#define STATE_VIEW(e) (STATE_APART(e) + PARTS * MOTION)
#define STATE_CODE(e) (STATE_VIEW(e) + 9)

#define REGION_FACE 1  // of Head.around, as in warp/regions.py; any other number is another part of the head
#define REGION_EYES 2
#define REGION_LIPS 3

// One person: nothing here changes while the program runs.
struct Head {
    const float* rest;              // (vertices, 3)
    const float* joints;            // (5, 3) root, neck, jaw, left eye, right eye
    const float* dirs;              // (directions, vertices * 3) expression, eyelids, then 36 pose correctives if any
    const float* skin;              // (vertices, 5) weights of the joints
    const int* faces;               // (triangles, 3)
    const int* first;               // (vertices + 1) where a vertex's part of `incident` begins
    const int* incident;            // (3 * triangles) triangles around each vertex
    const float* canonical;         // (vertices, 3)
    const float* opened;            // (vertices, 3) from the neutral face to the canonical one, whose mouth is open
    const float* canonical_frames;  // (triangles, 9) columns tangent, bitangent, normal
    const float* canonical_areas;   // (triangles)
    const float* masks;             // (vertices, 2) mouth, eyes
    const int* around;              // (triangles, 4) those beyond the edges, itself where there is none; its region
    const int* members;             // (leaves, leaf_size) triangles in compact groups; the last one is repeated
    int vertices;
    int triangles;
    int expressions;
    int directions;
    int leaves;
    int leaf_size;
    float origin_x;  // lower corner of the cube, posed and canonical
    float origin_y;
    float origin_z;
    float side;      // metres
    int resolution;  // cells a side of the posed grid
    int candidates;  // triangles that a cell offers at most
};

// `frames` posed heads. Cells of the posed grid are flat: (z * resolution + y) * resolution + x.
struct Poses {
    const float* states;   // (frames, state_size)
    float* vertices;       // (frames, vertices, 3)
    float* maps;           // (frames, triangles, 9) linear part of canonical <- posed
    float* triangles;      // (frames, triangles, 12) a, ab, ac, ab.ab, ab.ac, ac.ac
    float* records;        // (frames, vertices, 16) map 9, canonical position 3, masks 2, 0, 0
    float* spheres;        // (frames, leaves, 4) centre and radius of a ball that holds the leaf's triangles
    uint* bits;            // (frames, words) which cells may hold something
    int* row;              // (frames, resolution^3) row of a marked cell in `cell` and `candidates`; else undefined
    int* cell;             // (frames, capacity) the marked cells, in any order
    int* count;            // (frames) marked cells; more than `capacity` is an overflow: the rest is not marked
    int* bounds;           // (frames, 6) lowest x, y, z and highest x, y, z of the marked cells
    uint* candidates;      // (frames, capacity, head.candidates) triangle | fp16 distance to the centre << 16, ascending
    int state_size;
    int frames;
    int words;             // ceil(resolution^3 / 32)
    int capacity;
};

// The canonical occupancy grid: `count` candidate cells of a resolution^3 grid over the cube.
struct Space {
    const int* cells;      // (count) flat
    const int* triangle;   // (count) with which it rides
    const float* masks;    // (count, 2) mouth, eyes
    const int* place;      // (resolution^3) of each cell among these, -1 if it is no candidate
    float* value;          // (count) decayed maximum of a step's opacity
    float* seen;           // (count) pictures that showed the cell
    float* inside;         // (count) ... and had it in their matte
    float* lit;            // (count) 1 when light of a picture last reached the cell, fading since
    byte* occupied;        // (count)
    uint* dense;           // (ceil(resolution^3 / 32)) the occupied cells, a bit each
    int count;
    int resolution;
};

// R rays in head space. A ray that misses has far < near.
struct Rays {
    float* origin;     // (count, 4) x, y, z, near in metres along the ray
    float* direction;  // (count, 4) unit x, y, z, far
    float* offset;     // (count) where in its step a sample lies, [0, 1): samples at (k + offset) * step
    int* frame;        // (count) which pose
    int count;
};

// Pictures to learn from, in slots that never move. A picture fills the upper left corner of a square of `side` pixels.
struct Memories {
    const unsigned long long* pictures;  // (slots) address of (side, side, 4) bytes, premultiplied RGBA
    const int* extent;   // (slots, 2) width and height of the picture
    const float* states; // (slots, state_size), with the picture's own camera
    const unsigned long long* tiles;  // (slots) address of (tiles_across^2) ints: tiles of tile^2 pixels, those of the
                                      // head first, then those around it, y * tiles_across + x
    const int* drawable; // (slots, 2) how many are of the head, and around it
    const int* newest;   // (as many as there may be) slots of the newest pictures, oldest first
    const int* deck;     // (slots) slots of those that are drawn in rounds
    int side;
    int tile;
    int tiles_across;
    int state_size;
};

// Packed samples. First the steps of every ray that lie in marked cells (a ray's steps are consecutive, front to back),
// then those of them that are canonically occupied, as samples in any order.
struct Samples {
    int* first;        // (rays) where a ray's steps begin
    int* steps;        // (rays) how many it has
    int* step_ray;     // (capacity) ray of a step
    float* step_t;     // (capacity) metres along the ray
    int* slot;         // (capacity) the sample of a step, -1 if it is empty space
    float* position;   // (capacity, 3) canonical, in the unit cube
    float* direction;  // (capacity, 3) canonical, unit
    float* masks;      // (capacity, 2)
    int* frame;        // (capacity) which pose, hence which code
    int* totals;       // (4) steps, samples, steps dropped for want of capacity, steps a ray may keep
    int* histogram;    // (max_steps + 1) rays by number of steps
    int capacity;
    int max_steps;     // steps a ray at most; the farthest are dropped
    int max_samples;   // samples a ray at most; the farthest are dropped
};

// The rays of a picture that meet the avatar, in bundles of 32 neighbours, and their samples. A bundle's rays walk side
// by side; in each round every one of them takes a step, and those that come upon something have a sample. A bundle's
// samples are consecutive, round after round, and in a round in the order of the rays.
struct Bundles {
    int* rays;       // (pixels, 4) pixel, first and last step in a marked cell, steps or max_samples if fewer
    int* spans;      // (ceil(pixels / 32), 2) where a bundle's samples and rounds begin, how many samples it has
    uint* rounds;    // (capacity) by round, a bit for each of the bundle's rays that has a sample
    float* samples;  // (capacity, 8) canonical position in the unit cube 3, unit direction 3, mouth, eyes
    int* histogram;  // (max_samples + 1) rays by number of steps; the last are all that have as many or more
    int capacity;
    int max_samples;  // samples a ray at most; the farthest are dropped
};

// Weights of the field as kernels read them. storage_t is fp16 on a GPU, float on a CPU.
struct FieldWeights {
    const storage_t* table;     // (rows, FEATURES)
    const storage_t* networks;  // both networks, in the order of field.cuh
    const float* biases;        // hidden and output biases of both networks
};
