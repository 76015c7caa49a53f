// Adam optimiser (Kingma and Ba 2015) with the arithmetic of torch.optim.Adam. A step also updates the exponential
// moving average of the weights, which is what is rendered, and the copy of the hash grid in storage precision. Torch
// reference: learn/torch_trainer.py.
//
// The kernel is bound by memory bandwidth: a parameter that changes costs 42 bytes (20 read and 20 written for itself,
// gradient, moments and average, 2 for the copy); one without gradient and second moment is skipped and costs 8.
#include "platform.cuh"

// Inputs of a step, in device memory so that a captured graph can be replayed with other values:
// {rate of the table, rate of the networks, 1 - beta1^t, sqrt(1 - beta2^t), decay of the average, loss, pose rate, 0}
#define RATE_TABLE 0
#define RATE_NETWORKS 1
#define BIAS_FIRST 2
#define BIAS_SECOND 3
#define AVERAGE_DECAY 4
#define LOSS 5

// Parameters per item: those that one vector load carries.
#if ON_GPU
#define CHUNK_SIZE 4
#else
#define CHUNK_SIZE 16
#endif

// Gradients of larger magnitude count as non-finite, because their square would overflow.
CONSTANT float LARGEST = 1.0e18f;
// Below these a first moment moves a parameter by less than 1e-15 of the learning rate, and a second moment is
// negligible beside EPSILON. Such a first moment is set to zero. Such a second moment is kept at this value, so that a
// CPU meets no subnormal numbers, and set to zero once the average has reached the parameter, which then is at rest
// until its next gradient.
CONSTANT float SMALLEST_FIRST = 1.0e-30f;
CONSTANT float SMALLEST_SECOND = 1.2e-38f;
CONSTANT float AVERAGE_TOLERANCE =
    1.0e-5f;  // relative to the parameter; rounding of fp16 storage is fifty times larger

#if ON_GPU
DEVICE bool aligned(const void* p, unsigned long long bytes) { return ((unsigned long long)p & (bytes - 1)) == 0; }
#endif

// Loads CHUNK_SIZE floats from `p`, of which `left` exist; the others become zero.
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

// One Adam step. All vectors have `size` elements: first `table_size` parameters of the hash grid, then the networks.
//
//   gradients: scaled by LOSS_SCALE; set to zero in any case. Non-finite gradients count as zero.
//   table: (table_size) copy of the hash grid, or null if the field reads the parameters themselves
//   control: see above. If its loss is not finite, only the gradients change.
//
// NETWORK_DECAY is an L2 penalty on the network weights that have ever received a gradient.
//
// A parameter whose gradient and second moment are zero is at rest and is skipped: it has never moved, or not recently,
// and its average equals it. Results repeat bit for bit. items: size / 4.
KERNEL(256) adam_step(float* parameters, float* gradients, float* first, float* second, float* averaged,
                      storage_t* table, int table_size, int size, const float* control) {
    const float loss = control[LOSS];
    const bool loss_is_finite = fabsf(loss) < 3.0e38f;  // also false for NaN
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
