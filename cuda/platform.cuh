// Macros and functions that let one source compile for a GPU and for a CPU.
//
// A GPU runs a kernel as threads in warps of 32; a CPU runs the same body as an OpenMP loop.
//
//   EACH(i, n)          one thread per item             | one iteration of a parallel loop
//   EACH_PACKET(p, n)   one warp per packet of 32 items | one iteration of a parallel loop
//   FOR_LANES(l)        the lane of this thread, once   | all 32 lanes, one after another (or vectorised)
//   COLUMN(l)           index of the lane within its packet, 0 ... 31
//
// Kernels are declared KERNEL(threads per block) or KERNEL(threads, blocks), with the minimum number of resident blocks
// per multiprocessor. Values of each lane are arrays of LANES elements: one register on a GPU, 32 floats on a CPU.
// Structs shared by the lanes of a packet are declared with SCRATCH. A body skips an item with `continue`, never
// `return`.
#pragma once

#define PACKET 32

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)

#define ON_GPU 1
typedef unsigned int uint;
typedef unsigned char byte;
typedef unsigned short storage_t;  // fp16 bits

#define DEVICE static __device__ __forceinline__
#define CONSTANT static __device__ constexpr
#define KERNEL(...) extern "C" __global__ void __launch_bounds__(__VA_ARGS__)
#define EACH(i, n) for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < (n); i += gridDim.x * blockDim.x)
#define EACH_PACKET(p, n) \
    for (int p = (blockIdx.x * blockDim.x + threadIdx.x) / PACKET; p < (n); p += gridDim.x * blockDim.x / PACKET)
#define LANES 1
#define LANE (int(threadIdx.x) & (PACKET - 1))
#define FOR_LANES(l) for (int l = 0; l < 1; ++l)
#define COLUMN(l) LANE
#define SCRATCH(type, name, threads)                 \
    __shared__ type name##_pool[(threads) / PACKET]; \
    type& name = name##_pool[threadIdx.x / PACKET]
#define UNROLL _Pragma("unroll")
#define SIMD
#define WARP_SYNC() __syncwarp()

DEVICE float half_to_float(storage_t h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}
DEVICE storage_t float_to_half(float f) {
    storage_t h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}
DEVICE float load(const storage_t* p) { return half_to_float(*p); }
DEVICE void store(storage_t* p, float value) { *p = float_to_half(value); }

DEVICE void add_atomic(float* p, float value) { atomicAdd(p, value); }
DEVICE int add_atomic(int* p, int value) { return atomicAdd(p, value); }
DEVICE uint or_atomic(uint* p, uint value) { return atomicOr(p, value); }
DEVICE void min_atomic(int* p, int value) { atomicMin(p, value); }
DEVICE void max_atomic(int* p, int value) { atomicMax(p, value); }
DEVICE void min_atomic(unsigned long long* p, unsigned long long value) { atomicMin(p, value); }
DEVICE float bits_to_float(uint bits) { return __uint_as_float(bits); }
DEVICE uint float_to_bits(float value) { return __float_as_uint(value); }
DEVICE int count_bits(uint bits) { return __popc(bits); }
DEVICE float inverse_sqrt(float x) { return rsqrtf(x); }

// Reductions over a packet; every lane gets the result.
DEVICE bool any_lane(const bool (&x)[LANES]) { return __any_sync(0xffffffffu, x[0]); }
DEVICE float min_lanes(const float (&x)[LANES]) {
    float v = x[0];
    for (int d = 16; d; d >>= 1) v = fminf(v, __shfl_xor_sync(0xffffffffu, v, d));
    return v;
}
DEVICE float sum_lanes(const float (&x)[LANES]) {
    float v = x[0];
    for (int d = 16; d; d >>= 1) v += __shfl_xor_sync(0xffffffffu, v, d);
    return v;
}

#else

#include <omp.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#define ON_GPU 0
typedef unsigned int uint;
typedef unsigned char byte;
typedef float storage_t;

#define DEVICE static inline
#define CONSTANT static constexpr
#define KERNEL(...) extern "C" void
#define EACH(i, n) _Pragma("omp parallel for schedule(dynamic, 256)") for (int i = 0; i < (n); ++i)
#define EACH_PACKET(p, n) _Pragma("omp parallel for schedule(dynamic, 4)") for (int p = 0; p < (n); ++p)
#define LANES PACKET
#define FOR_LANES(l) _Pragma("omp simd") for (int l = 0; l < PACKET; ++l)
#define COLUMN(l) (l)
#define SCRATCH(type, name, threads) type name
#define UNROLL
#define SIMD _Pragma("omp simd")
#define WARP_SYNC()

// fminf and fmaxf of the C library prevent vectorisation. If x is NaN these return y, as on a GPU.
DEVICE float lesser_of(float x, float y) { return x < y ? x : y; }
DEVICE float greater_of(float x, float y) { return x > y ? x : y; }
#define fminf lesser_of
#define fmaxf greater_of

DEVICE float load(const storage_t* p) { return *p; }
DEVICE void store(storage_t* p, float value) { *p = value; }

DEVICE void add_atomic(float* p, float value) {
#pragma omp atomic
    *p += value;
}
DEVICE int add_atomic(int* p, int value) { return __atomic_fetch_add(p, value, __ATOMIC_RELAXED); }
DEVICE uint or_atomic(uint* p, uint value) { return __atomic_fetch_or(p, value, __ATOMIC_RELAXED); }
template <typename T, typename Better>
static inline void exchange_if(T* p, T value, Better better) {
    T old = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (better(value, old) &&
           !__atomic_compare_exchange_n(p, &old, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
}
DEVICE void min_atomic(int* p, int value) {
    exchange_if(p, value, [](int a, int b) { return a < b; });
}
DEVICE void max_atomic(int* p, int value) {
    exchange_if(p, value, [](int a, int b) { return a > b; });
}
DEVICE void min_atomic(unsigned long long* p, unsigned long long value) {
    exchange_if(p, value, [](unsigned long long a, unsigned long long b) { return a < b; });
}
DEVICE float bits_to_float(uint bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
DEVICE uint float_to_bits(float value) {
    uint bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
DEVICE int count_bits(uint bits) { return __builtin_popcount(bits); }
DEVICE float inverse_sqrt(float x) { return 1.0f / sqrtf(x); }

DEVICE bool any_lane(const bool (&x)[LANES]) {
    bool any = false;
    for (int l = 0; l < LANES; ++l) any = any || x[l];
    return any;
}
DEVICE float min_lanes(const float (&x)[LANES]) {
    float v = x[0];
    for (int l = 1; l < LANES; ++l) v = fminf(v, x[l]);
    return v;
}
DEVICE float sum_lanes(const float (&x)[LANES]) {
    float v = 0.0f;
    for (int l = 0; l < LANES; ++l) v += x[l];
    return v;
}

#endif
