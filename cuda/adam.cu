// Adam (Kingma and Ba 2015) as torch.optim.Adam computes it, the running average of the weights that is shown, and the
// copy of the table in storage precision that the field reads. Twin: learn/trainer.py.
//
// Bound by memory: a parameter that moves costs 42 bytes (20 read and 20 written for itself, its gradient, moments and
// average, 2 for the copy); one at rest costs the 8 that tell so.
#include "platform.cuh"

// What a step is to do, in device memory, so that a captured graph can be replayed:
// {rate of the table, rate of the rest, 1 - beta1^t, sqrt(1 - beta2^t), decay of the average, loss, 0, 0}
#define RATE_TABLE 0
#define RATE_NETWORKS 1
#define BIAS_FIRST 2
#define BIAS_SECOND 3
#define AVERAGE_DECAY 4
#define LOSS 5

// Parameters that one item steps: what one load instruction carries.
#if ON_GPU
#define CHUNK_SIZE 4
#else
#define CHUNK_SIZE 16
#endif

// Beyond this a gradient counts as not finite: its square would be.
CONSTANT float LARGEST = 1.0e18f;
// Below these a first moment moves a parameter by less than 1e-15 of its rate, and a second moment vanishes beside
// EPSILON. The first is then forgotten. The second is held, so that a CPU meets no subnormal numbers, and forgotten once
// the average has met the parameter too, which is then at rest until its next gradient.
CONSTANT float SMALLEST_FIRST = 1.0e-30f;
CONSTANT float SMALLEST_SECOND = 1.2e-38f;
CONSTANT float AVERAGE_TOLERANCE = 1.0e-5f;  // of the parameter; storage in fp16 rounds by fifty times that

#if ON_GPU
DEVICE bool aligned(const void* p, unsigned long long bytes) { return ((unsigned long long)p & (bytes - 1)) == 0; }
#endif

// CHUNK_SIZE floats from `p`, of which `left` are there; zeros for the rest.
DEVICE void load_chunk(const float* p, int left, float (&x)[CHUNK_SIZE]) {
#if ON_GPU
    if (left >= CHUNK_SIZE && aligned(p, 16)) {
        const float4 q = *reinterpret_cast<const float4*>(p);
        x[0] = q.x, x[1] = q.y, x[2] = q.z, x[3] = q.w;
        return;
    }
#endif
    SIMD for (int k = 0; k < CHUNK_SIZE; ++k) x[k] = k < left ? p[k] : 0.0f;
}

DEVICE void store_chunk(float* p, int left, const float (&x)[CHUNK_SIZE]) {
#if ON_GPU
    if (left >= CHUNK_SIZE && aligned(p, 16)) {
        *reinterpret_cast<float4*>(p) = make_float4(x[0], x[1], x[2], x[3]);
        return;
    }
#endif
    SIMD for (int k = 0; k < CHUNK_SIZE; ++k) if (k < left) p[k] = x[k];
}

DEVICE void store_table(storage_t* p, int left, const float (&x)[CHUNK_SIZE]) {
#if ON_GPU
    if (left >= CHUNK_SIZE && aligned(p, 8)) {
        *reinterpret_cast<ushort4*>(p) =
            make_ushort4(float_to_half(x[0]), float_to_half(x[1]), float_to_half(x[2]), float_to_half(x[3]));
        return;
    }
#endif
    for (int k = 0; k < CHUNK_SIZE; ++k) if (k < left) store(p + k, x[k]);
}

// One step. All vectors are (size); the first `table_size` parameters are the table, the rest the networks.
//
//   gradients: times LOSS_SCALE; zeros afterwards, whatever happened. One that is not finite counts as zero.
//   table: (table_size) the copy of the table, or null where the field reads the parameters themselves
//   control: as above. If its loss is not finite, nothing but the gradients changes.
//
// NETWORK_DECAY is an L2 penalty on the networks, of what has ever moved.
//
// A parameter whose gradient and second moment are zero is at rest: it never moved, or not for long, and its average must
// equal it from the start. It is left as it is. Results repeat bit for bit.
// Items: parameters; launch with items = size / 4.
KERNEL(256) adam_step(float* parameters, float* gradients, float* first, float* second, float* averaged,
                      storage_t* table, int table_size, int size, const float* control) {
    const float loss = control[LOSS];
    const bool loss_is_finite = fabsf(loss) < 3.0e38f;  // false for NaN too
    const float rate_table = control[RATE_TABLE] / control[BIAS_FIRST];
    const float rate_networks = control[RATE_NETWORKS] / control[BIAS_FIRST];
    const float bias = 1.0f / control[BIAS_SECOND], average_step = 1.0f - control[AVERAGE_DECAY];
    EACH(chunk, (size + CHUNK_SIZE - 1) / CHUNK_SIZE) {
        const int i = chunk * CHUNK_SIZE, left = size - i;
        float g[CHUNK_SIZE], v[CHUNK_SIZE], m[CHUNK_SIZE], p[CHUNK_SIZE], a[CHUNK_SIZE];
        load_chunk(gradients + i, left, g);
        load_chunk(second + i, left, v);
        int active = 0;
        SIMD for (int k = 0; k < CHUNK_SIZE; ++k) active |= !(g[k] == 0.0f) | !(v[k] == 0.0f);
        if (!active) continue;
        load_chunk(first + i, left, m);
        load_chunk(parameters + i, left, p);
        load_chunk(averaged + i, left, a);
        float zeros[CHUNK_SIZE] = {};
        store_chunk(gradients + i, left, zeros);
        if (!loss_is_finite) continue;
        SIMD for (int k = 0; k < CHUNK_SIZE; ++k) {
            const float scaled = g[k] * (1.0f / LOSS_SCALE);
            float gradient = fabsf(scaled) < LARGEST ? scaled : 0.0f;
            if constexpr (NETWORK_DECAY > 0.0f) gradient += i + k < table_size ? 0.0f : NETWORK_DECAY * p[k];
            m[k] += (1.0f - BETA1) * (gradient - m[k]);
            v[k] = BETA2 * v[k] + (1.0f - BETA2) * gradient * gradient;
            m[k] = fabsf(m[k]) < SMALLEST_FIRST ? 0.0f : m[k];
            const float rate = i + k < table_size ? rate_table : rate_networks;
            p[k] -= rate * m[k] / (sqrtf(v[k]) * bias + EPSILON);
            a[k] += average_step * (p[k] - a[k]);
            const bool at_rest = m[k] == 0.0f && fabsf(p[k] - a[k]) <= AVERAGE_TOLERANCE * fabsf(p[k]);
            v[k] = v[k] >= SMALLEST_SECOND ? v[k] : at_rest ? 0.0f : SMALLEST_SECOND;
        }
        store_chunk(first + i, left, m);
        store_chunk(second + i, left, v);
        store_chunk(parameters + i, left, p);
        store_chunk(averaged + i, left, a);
        if (table && i < table_size) store_table(table + i, table_size - i, p);
    }
}
