// AVX-512 (F, BW, DQ, VL): 16 lanes.
#pragma once

#include <immintrin.h>

namespace splitquant::SPLITQUANT_ISA {

constexpr int N = 16;
typedef float F __attribute__((vector_size(64)));
typedef std::int32_t I __attribute__((vector_size(64)));
typedef u32 U __attribute__((vector_size(64)));

inline F splat(float x) { return (F)_mm512_set1_ps(x); }
inline F load_f32(const float* from) { return (F)_mm512_loadu_ps(from); }
inline void store_f32(float* to, F x) { _mm512_storeu_ps(to, (__m512)x); }
inline void store_u32(u32* to, U x) { _mm512_storeu_si512(to, (__m512i)x); }
inline U load_u16(const u16* from) { return (U)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)); }
inline I load_u8(const u8* from) { return (I)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from)); }
inline F load_fp16(const u16* from) { return (F)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from)); }
inline void store_fp16(u16* to, F x) {
    _mm256_storeu_si256((__m256i*)to, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline void store_u16(u16* to, const U (&x)[1]) {
    _mm256_storeu_si256((__m256i*)to, _mm512_cvtepi32_epi16((__m512i)x[0]));
}
// The low byte of every lane.
inline void store_bytes(u8* to, const I (&x)[1]) {
    _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8((__m512i)x[0]));
}

// Where an operand is NaN, both give the second.
inline F least(F a, F b) { return (F)_mm512_min_ps((__m512)a, (__m512)b); }
inline F greatest(F a, F b) { return (F)_mm512_max_ps((__m512)a, (__m512)b); }

// The larger of most and |x|; `most` is not negative.
inline F greatest_magnitude(F most, F x) {
    return (F)_mm512_range_ps((__m512)most, (__m512)x, 0b1011);  // of the magnitudes the maximum, sign cleared
}

// Lanes of `id` grow by one where u >= border.
inline I count_reached(I id, F u, F border) {
    return (I)_mm512_mask_add_epi32((__m512i)id, _mm512_cmp_ps_mask((__m512)u, (__m512)border, _CMP_GE_OQ), (__m512i)id,
                                    _mm512_set1_epi32(1));
}

// Eight floats, looked up by lane.
struct Table8 {
    __m512 values;
    explicit Table8(const float* from) : values(_mm512_castps256_ps512(_mm256_loadu_ps(from))) {}
    F operator[](I index) const { return (F)_mm512_permutexvar_ps((__m512i)index, values); }
};

// 16-bit integers: a product in units of 2**-15, rounded, and the sums of neighbouring products.
constexpr int SHORTS = 2 * N;
typedef std::int16_t S __attribute__((vector_size(64)));
inline S load_i16(const std::int16_t* from) { return (S)_mm512_loadu_si512(from); }
inline S multiply_high(S a, S b) { return (S)_mm512_mulhrs_epi16((__m512i)a, (__m512i)b); }
inline I add_products(S a, S b) { return (I)_mm512_madd_epi16((__m512i)a, (__m512i)b); }
inline S within(S x, S low, S high) {
    return (S)_mm512_min_epi16(_mm512_max_epi16((__m512i)x, (__m512i)low), (__m512i)high);
}
// The sums of all lanes of a, and of b.
inline void sums_of(I a, I b, i32 (&sums)[2]) {
    I both = (I)_mm512_unpacklo_epi32((__m512i)a, (__m512i)b) + (I)_mm512_unpackhi_epi32((__m512i)a, (__m512i)b);
    __m256i eight = _mm256_add_epi32(_mm512_castsi512_si256((__m512i)both), _mm512_extracti64x4_epi64((__m512i)both, 1));
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    _mm_storel_epi64((__m128i*)sums, _mm_add_epi32(four, _mm_unpackhi_epi64(four, four)));
}

// float64 sums of squares of N lanes. A float32 squared is exact in float64, so a fused multiply-add rounds just as
// a product and a sum do.
struct SquareSums {
    __m512d low = _mm512_setzero_pd(), high = _mm512_setzero_pd();
    void add(F x) {
        __m512d a = _mm512_cvtps_pd(_mm512_castps512_ps256((__m512)x));
        __m512d b = _mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)x, 1));
        low = _mm512_fmadd_pd(a, a, low);
        high = _mm512_fmadd_pd(b, b, high);
    }
    void store(double* to) const {
        _mm512_storeu_pd(to, low);
        _mm512_storeu_pd(to + 8, high);
    }
};

}  // namespace splitquant::SPLITQUANT_ISA
