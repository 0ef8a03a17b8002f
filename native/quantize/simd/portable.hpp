// Any CPU with 128-bit vectors (SSE2, NEON): 4 lanes, in GCC/Clang vector types only.
#pragma once

#include "../float16.hpp"

namespace splitquant::SPLITQUANT_ISA {

constexpr int N = 4;
typedef float F __attribute__((vector_size(16)));
typedef std::int32_t I __attribute__((vector_size(16)));
typedef u32 U __attribute__((vector_size(16)));
typedef double D __attribute__((vector_size(16)));

inline F splat(float x) { return F{x, x, x, x}; }
inline F load_f32(const float* from) {
    F x;
    __builtin_memcpy(&x, from, sizeof x);
    return x;
}
inline void store_f32(float* to, F x) { __builtin_memcpy(to, &x, sizeof x); }
inline void store_u32(u32* to, U x) { __builtin_memcpy(to, &x, sizeof x); }
inline U load_u16(const u16* from) { return U{from[0], from[1], from[2], from[3]}; }
inline I load_u8(const u8* from) { return I{from[0], from[1], from[2], from[3]}; }
inline F load_fp16(const u16* from) { return half_to_float<F>(load_u16(from)); }
inline void store_fp16(u16* to, F x) {
    U words = float_to_half<U>(x);
    for (int i = 0; i < 4; ++i) to[i] = static_cast<u16>(words[i]);
}
inline void store_u16(u16* to, const U (&x)[4]) {
    for (int i = 0; i < 16; ++i) to[i] = static_cast<u16>(x[i / 4][i % 4]);
}
// The low byte of every lane.
inline void store_bytes(u8* to, const I (&x)[4]) {
    for (int i = 0; i < 16; ++i) to[i] = static_cast<u8>(x[i / 4][i % 4]);
}

// Where an operand is NaN, both give the second.
inline F least(F a, F b) { return a < b ? a : b; }
inline F greatest(F a, F b) { return a > b ? a : b; }

// The larger of most and |x|; `most` is not negative.
inline F greatest_magnitude(F most, F x) { return greatest(most, (F)((U)x & 0x7FFFFFFFu)); }

// Lanes of `id` grow by one where u >= border (a comparison that holds is -1).
inline I count_reached(I id, F u, F border) { return id - (I)(u >= border); }

// Eight floats, looked up by lane.
struct Table8 {
    float values[8];
    explicit Table8(const float* from) { __builtin_memcpy(values, from, sizeof values); }
    F operator[](I index) const {
        return F{values[index[0]], values[index[1]], values[index[2]], values[index[3]]};
    }
};

// 16-bit integers: a product in units of 2**-15, rounded, and the sums of neighbouring products.
constexpr int SHORTS = 2 * N;
typedef std::int16_t S __attribute__((vector_size(16)));
inline S load_i16(const std::int16_t* from) {
    S x;
    __builtin_memcpy(&x, from, sizeof x);
    return x;
}
inline S multiply_high(S a, S b) {
    typedef std::int32_t Wide __attribute__((vector_size(32)));
    Wide product = __builtin_convertvector(a, Wide) * __builtin_convertvector(b, Wide);
    return __builtin_convertvector(((product >> 14) + 1) >> 1, S);
}
inline I add_products(S a, S b) {
    I even_a = (I)a << 16 >> 16, even_b = (I)b << 16 >> 16;
    return even_a * even_b + ((I)a >> 16) * ((I)b >> 16);
}
inline S within(S x, S low, S high) {
    x = x < low ? low : x;
    return x > high ? high : x;
}
// The sums of all lanes of a, and of b.
inline void sums_of(I a, I b, i32 (&sums)[2]) {
    sums[0] = a[0] + a[1] + a[2] + a[3];
    sums[1] = b[0] + b[1] + b[2] + b[3];
}

// float64 sums of squares of N lanes.
struct SquareSums {
    D low{}, high{};
    void add(F x) {
        D a = {x[0], x[1]}, b = {x[2], x[3]};
        low += a * a;
        high += b * b;
    }
    void store(double* to) const {
        __builtin_memcpy(to, &low, sizeof low);
        __builtin_memcpy(to + 2, &high, sizeof high);
    }
};

}  // namespace splitquant::SPLITQUANT_ISA
