// Fast exp and logistic function: a polynomial on a CPU (calls of libm are not vectorised), hardware instructions on a
// GPU. Relative error below 2e-6 (GPU) and 3e-7 (CPU).
#pragma once
#include "platform.cuh"

#if ON_GPU

DEVICE float fast_exp(float x) { return __expf(x); }
DEVICE float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

#else

// 2^n * e^r with |r| <= ln 2 / 2; e^r is a Taylor series with fitted last coefficients (Cephes, expf).
DEVICE float fast_exp(float x) {
    x = x < 88.0f ? x : 88.0f;  // a comparison compiles to one instruction per vector, unlike fminf
    x = x > -87.0f ? x : -87.0f;
    float n = floorf(x * 1.44269504f + 0.5f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return (p * r * r + r + 1.0f) * bits_to_float(uint(int(n) + 127) << 23);
}
DEVICE float sigmoid(float x) { return 1.0f / (1.0f + fast_exp(-x)); }

#endif
