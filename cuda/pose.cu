// Posed vertices of the head mesh for head states: blendshapes, pose correctives, linear blend skinning
// (insta_runtime/head/rig.py).
#include "layout.cuh"
#include "rotation.cuh"

#define JOINTS 5
#define ROTATING_JOINTS 4          // neck, jaw, left eye, right eye: joints 1 to 4

// Joint rotations and joint transforms of one frame.
struct Skeleton {
    float rotation[ROTATING_JOINTS][9];
    float joint[JOINTS][12];  // 3 x 4, row-major: rest to posed
};

// A rotation about `centre`, followed by the parent's affine map: a 3 x 4 matrix.
DEVICE void rotate_about(const float* parent, const float* rotation, vec3 centre, float* m) {
    const vec3 about = centre - transform(rotation, centre);
    for (int r = 0; r < 3; ++r) {
        const float* p = parent + 4 * r;
        for (int c = 0; c < 3; ++c) m[4 * r + c] = p[0] * rotation[c] + p[1] * rotation[3 + c] + p[2] * rotation[6 + c];
        m[4 * r + 3] = p[0] * about.x + p[1] * about.y + p[2] * about.z + p[3];
    }
}

DEVICE void set_identity(float* m) {
    for (int i = 0; i < 12; ++i) m[i] = i % 5 ? 0.0f : 1.0f;
}

// Computes vertices (frames, vertices, 3) from the states. Non-finite numbers of a state count as zero.
// items: 32 * frames * ceil(vertices / 32).
KERNEL(128) pose_vertices(const Head head, const PoseBuffers poses) {
    const int packets = (head.vertices + PACKET - 1) / PACKET;
    EACH_PACKET(p, poses.frames * packets) {
        SCRATCH(Skeleton, skeleton, 128);
        const int frame = p / packets, first = p % packets * PACKET;
        const float* state = poses.states + (size_t)frame * poses.state_size;
        const float* joints = head.joints;

        WARP_SYNC();  // all lanes have read the skeleton of the previous packet
        for (int l = 0; l < LANES; ++l) {
            const int rotation = COLUMN(l);
            if (rotation < ROTATING_JOINTS)
                rotation_matrix(state + STATE_JOINT_ROTATIONS(head.expressions) + 3 * rotation,
                                skeleton.rotation[rotation]);
        }
        WARP_SYNC();
        for (int l = 0; l < LANES; ++l) {
            const int joint = COLUMN(l);
            if (joint >= JOINTS) continue;
            float root[12], neck[12];
            set_identity(root);
            rotate_about(root, skeleton.rotation[0], load3(joints + 3), neck);
            if (joint > 1)
                rotate_about(neck, skeleton.rotation[joint - 1], load3(joints + 3 * joint), skeleton.joint[joint]);
            if (joint <= 1)
                for (int i = 0; i < 12; ++i) skeleton.joint[joint][i] = joint ? neck[i] : root[i];
        }
        WARP_SYNC();

        // The vertex of this lane; on a CPU 32 vertices, coordinate by coordinate along contiguous memory.
        const int own = first + COLUMN(0);
        if (own >= head.vertices) continue;
        const int numbers = LANES == 1 ? 3 : 3 * (head.vertices - own < LANES ? head.vertices - own : LANES);
        const size_t row = 3 * (size_t)head.vertices;
        const int blendshapes = head.expressions + 2;
        float shaped[3 * LANES];
        SIMD for (int j = 0; j < numbers; ++j) shaped[j] = head.rest[3 * own + j];
#pragma unroll 8
        for (int k = 0; k < head.directions; ++k) {
            const int corrective = k - blendshapes;
            const float weight = corrective < 0 ? finite_or_zero(state[k])
                                                : skeleton.rotation[corrective / 9][corrective % 9] -
                                                      (corrective % 9 % 4 ? 0.0f : 1.0f);
            if (!ON_GPU && weight == 0.0f) continue;  // on a CPU, skip blendshapes with zero weight: most are
            const float* direction = head.motion_dirs + k * row + 3 * own;
            SIMD for (int j = 0; j < numbers; ++j) shaped[j] += weight * direction[j];
        }

        float* out = poses.vertices + (size_t)frame * row;
        for (int l = 0; l < numbers / 3; ++l) {
            const float* weights = head.skin + (size_t)(own + l) * JOINTS;
            float blended[12] = {};
            UNROLL for (int joint = 0; joint < JOINTS; ++joint)
                UNROLL for (int i = 0; i < 12; ++i) blended[i] += weights[joint] * skeleton.joint[joint][i];
            const vec3 v = load3(shaped + 3 * l);
            UNROLL for (int r = 0; r < 3; ++r) {
                const float* m = blended + 4 * r;
                out[3 * (own + l) + r] = m[0] * v.x + m[1] * v.y + m[2] * v.z + m[3];
            }
        }
    }
}
