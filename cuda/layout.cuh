// Structs that Python fills in for the kernels. insta_runtime/native/kernels.py parses them from this file and builds
// the same layout from tensors. Arrays are dense and row-major; lengths are float32 metres in head space unless noted.
//
// A head state is one row of floats: [expression (expressions) | eyelids 2 | neck 3 | jaw 3 | left eye 3 | right eye 3
// | rotation 9 (row-major, head to camera) | translation 3 | fx fy cx cy | motions (PARTS, MOTION) of mouth and eyes
// relative to the head | view rotation 9, applied to ray directions before the colour network | code (CODE_WIDTH)].
// Joint rotations are axis-angle in radians; camera intrinsics are in pixels.
#pragma once
#include "platform.cuh"

#define PARTS 2   // face parts with a motion relative to the head: mouth and eyes, weighted by their masks
#define MOTION 6  // numbers of a rigid motion: translation in metres, then rotation in metres at radius TURN_RADIUS

#define STATE_EYELIDS(e) (e)
#define STATE_JOINT_ROTATIONS(e) ((e) + 2)
#define STATE_ROTATION(e) ((e) + 14)
#define STATE_TRANSLATION(e) ((e) + 23)
#define STATE_CAMERA(e) ((e) + 26)
#define STATE_PART_MOTIONS(e) ((e) + 30)
#define STATE_VIEW_ROTATION(e) (STATE_PART_MOTIONS(e) + PARTS * MOTION)
#define STATE_CODE(e) (STATE_VIEW_ROTATION(e) + 9)

#define REGION_FACE 1  // values of Head.neighbours[3], as in warp/regions.py; other values are other parts of the head
#define REGION_EYES 2
#define REGION_LIPS 3

// Head model of one subject. Constant while the program runs.
struct Head {
    const float* rest;              // (vertices, 3) rest pose
    const float* joints;            // (5, 3) root, neck, jaw, left eye, right eye
    const float* motion_dirs;       // (directions, vertices * 3) expression, eyelids, then 36 pose correctives if any
    const float* skin;              // (vertices, 5) skinning weights of the joints
    const int* faces;               // (triangles, 3) vertex indices
    const int* incident_first;      // (vertices + 1) start of each vertex's range in `incident`
    const int* incident;            // (3 * triangles) triangles around each vertex
    const float* canonical;         // (vertices, 3) canonical pose, mouth open
    const float* open_offset;       // (vertices, 3) canonical vertices minus those of the neutral face
    const float* canonical_frames;  // (triangles, 9) columns tangent, bitangent, normal
    const float* canonical_areas;   // (triangles) m^2
    const float* masks;             // (vertices, 2) mouth, eyes, in [0, 1]
    const int* neighbours;    // (triangles, 4) triangles across the three edges (itself at a border), then the region
    const int* leaf_members;  // (leaves, leaf_size) triangles of compact groups; short groups repeat their last one
    int vertices;
    int triangles;
    int expressions;
    int directions;
    int leaves;
    int leaf_size;
    float origin_x;  // lower corner of the cube that contains the head, posed and canonical
    float origin_y;
    float origin_z;
    float side;      // edge of the cube, metres
    int resolution;  // cells along an edge of the posed grid
    int candidates;  // maximum number of candidate triangles of a posed cell
};

// `frames` posed heads with their narrow bands. Posed cells have flat indices (z * resolution + y) * resolution + x.
struct PoseBuffers {
    const float* states;   // (frames, state_size) head states
    float* vertices;       // (frames, vertices, 3) posed vertices
    float* maps;           // (frames, triangles, 9) linear part of the inverse warp (posed to canonical)
    float* triangles;      // (frames, triangles, 12) corner a, edges ab and ac, then ab.ab, ab.ac, ac.ac
    float* records;        // (frames, vertices, 16) inverse-warp map 9, canonical position 3, masks 2, 0, 0
    float* spheres;        // (frames, leaves, 4) centre and radius of each leaf's bounding sphere
    uint* bits;            // (frames, words) one bit a posed cell: set if the cell is in the band
    int* row;  // (frames, resolution^3) row of a marked cell in `cell` and `candidates`; otherwise undefined
    int* cell;             // (frames, capacity) flat indices of the marked cells, unordered
    int* count;            // (frames) marked cells; values above `capacity` mean that the surplus cells were dropped
    int* bounds;           // (frames, 6) lowest x, y, z and highest x, y, z of the marked cells
    uint* candidates;  // (frames, capacity, head.candidates) triangle | fp16 distance to the centre << 16, ascending
    int state_size;
    int frames;
    int words;             // ceil(resolution^3 / 32)
    int capacity;          // maximum number of marked cells of a frame
};

// The canonical occupancy grid: `count` candidate cells of a resolution^3 grid over the head's cube.
struct OccupancyCells {
    const int* cells;          // (count) flat indices, ascending
    const int* triangle;       // (count) triangle whose forward warp moves the cell
    const float* masks;        // (count, 2) mouth, eyes
    const int* index_of_cell;  // (resolution^3) index of each cell in `cells`, -1 for cells that are no candidates
    float* value;              // (count) decayed maximum of the opacity of one step
    float* view_count;         // (count) number of training images in which the cell was visible
    float* matte_count;        // (count) number of those images whose matte contains the cell
    float* visibility;         // (count) 1 when a training ray last reached the cell with light left, then decaying
    byte* occupied;            // (count) 1 if rays must sample the cell
    uint* dense;               // (ceil(resolution^3 / 32)) one bit a cell of the grid: set if occupied
    int count;
    int resolution;
};

// R rays in head space. A ray that misses has far < near.
struct Rays {
    float* origin;     // (count, 4) x, y, z, near in metres along the ray
    float* direction;  // (count, 4) unit x, y, z, far
    float* offset;     // (count) offset of the samples within a step, [0, 1): samples at (k + offset) * step
    int* frame;        // (count) index of the pose
    int count;
};

// Training images of the replay, in slots whose addresses never change. An image fills the upper left corner of a
// square of `side` pixels.
struct ReplayFrames {
    const unsigned long long* images;    // (slots) address of (side, side, 4) bytes, premultiplied RGBA
    const int* size;         // (slots, 2) width and height of the image
    const float* states;     // (slots, state_size) head states, with the camera of the image
    const unsigned long long* tiles;  // (slots) address of (tiles_across^2) ints: tiles of tile^2 pixels as
                                      // y * tiles_across + x, those on the head first, then those around it
    const int* tile_counts;  // (slots, 2) number of tiles on the head, and around it
    const int* newest;       // (newest count) slots of the newest images, oldest first
    const int* deck;         // (deck size) slots that are drawn in shuffled rounds
    int side;
    int tile;
    int tiles_across;
    int state_size;
};

// Packed samples of rays: first the steps of every ray that lie in marked posed cells (those of one ray consecutive,
// front to back), then those steps whose canonical cell is occupied, as samples in any order.
struct Samples {
    int* first;        // (rays) index of a ray's first step
    int* steps;        // (rays) number of steps of a ray
    int* step_ray;     // (capacity) ray of a step
    float* step_t;     // (capacity) metres along the ray
    int* slot;         // (capacity) sample of a step, -1 in empty space
    float* position;   // (capacity, 3) canonical, in the unit cube
    float* direction;  // (capacity, 3) canonical, unit
    float* masks;      // (capacity, 2) mouth, eyes
    int* frame;        // (capacity) index of the pose, and so of the expression code
    int* totals;       // (4) steps, samples, steps dropped for lack of capacity, maximum steps of a ray
    int* histogram;    // (max_steps + 1) number of rays by number of steps
    int capacity;
    int max_steps;     // maximum steps of a ray; the farthest are dropped
    int max_samples;   // maximum samples of a ray; the farthest are dropped
};

// The rays of an image that meet the band, in bundles of 32 neighbours, and their samples. The rays of a bundle advance
// in rounds: each takes one step a round, and those in occupied cells get a sample. Samples of a bundle are
// consecutive, by round, and within a round by ray.
struct RayBundles {
    int* rays;       // (pixels, 4) pixel, first and last step in a marked cell, steps (at most max_samples)
    int* spans;      // (ceil(pixels / 32), 2) index of a bundle's first sample and round, number of its samples
    uint* rounds;    // (capacity) by round: one bit for each ray of the bundle that has a sample
    float* samples;  // (capacity, 8) canonical position in the unit cube 3, mouth, unit direction 3, eyes
    int* histogram;  // (max_samples + 1) number of rays by number of steps; the last entry counts all above
    int capacity;
    int max_samples;  // maximum samples of a ray; the farthest are dropped
};

// Weights of the radiance field in kernel layout. storage_t is fp16 on a GPU, float on a CPU.
struct FieldWeights {
    const storage_t* table;     // (rows, FEATURES) hash grid
    const storage_t* networks;  // both networks, in the order of field.cuh
    const float* biases;        // hidden and output biases of both networks
};
