// Small matrix products on tensor cores: fp16 inputs, fp32 sums (PTX ISA, "mma.m16n8k16"). GPU only.
//
// A lane is (g, t) = (lane / 4, lane % 4). A pair is two fp16 in 32 bits, the lower column first.
//   A, 16 x 16: pairs at (row g, column 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8)
//   B, 16 x 8:  pairs at (rows 2t and 2t + 1, column g), (rows 2t + 8 and 2t + 9, column g)
//   C, 16 x 8:  floats at (row g, columns 2t and 2t + 1), (row g + 8, columns 2t and 2t + 1)
// Two neighbouring C, packed to fp16, therefore form an A.
#pragma once
#include "platform.cuh"

#if ON_GPU

struct Pairs2 {
    uint x, y;
};

DEVICE uint pack_pair(float low, float high) {
    uint pair;
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#else
    asm("mov.b32 %0, {%1, %2};" : "=r"(pair) : "h"(float_to_half(low)), "h"(float_to_half(high)));
#endif
    return pair;
}
DEVICE float low_of(uint pair) { return half_to_float(storage_t(pair & 0xffffu)); }
DEVICE float high_of(uint pair) { return half_to_float(storage_t(pair >> 16)); }

// c += A B.
DEVICE void multiply_add(float (&c)[4], uint a0, uint a1, uint a2, uint a3, uint b0, uint b1) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(b0));
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a2), "r"(a3), "r"(b1));
#endif
}

DEVICE uint shared_address(const void* p) {
    uint address;
    asm("{ .reg .u64 a; cvta.to.shared.u64 a, %1; cvt.u32.u64 %0, a; }" : "=r"(address) : "l"(p));
    return address;
}
// Loads transposed 8 x 8 blocks of shared memory; lanes 8 i .. 8 i + 7 point at the rows of block i.
DEVICE void load_transposed(const storage_t* row, uint (&block)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(block[0]), "=r"(block[1]), "=r"(block[2]), "=r"(block[3])
                 : "r"(shared_address(row))
                 : "memory");
}
DEVICE void load_transposed(const storage_t* row, uint (&block)[2]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(block[0]), "=r"(block[1])
                 : "r"(shared_address(row))
                 : "memory");
}
// Load from read-only memory, through L1.
DEVICE Pairs2 load_pairs(const uint* p) {
    Pairs2 v;
    asm("ld.global.nc.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
    return v;
}
// Hides the origin of `p` from the compiler, so that its contents are not loaded before a loop and kept in registers.
DEVICE const uint* within_loop(const uint* p) {
    asm volatile("" : "+l"(p));
    return p;
}
DEVICE uint load_pair(const uint* p) {
    uint v;
    asm("ld.global.nc.u32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}

#endif
