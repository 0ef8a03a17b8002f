// AVX2 with F16C and FMA: 8 lanes.
#pragma once

#include <immintrin.h>

namespace splitquant::SPLITQUANT_ISA {

constexpr int N = 8;
typedef float F __attribute__((vector_size(32)));
typedef std::int32_t I __attribute__((vector_size(32)));
typedef u32 U __attribute__((vector_size(32)));

inline F splat(float x) { return (F)_mm256_set1_ps(x); }
inline F load_f32(const float* from) { return (F)_mm256_loadu_ps(from); }
inline void store_f32(float* to, F x) { _mm256_storeu_ps(to, (__m256)x); }
inline void store_u32(u32* to, U x) { _mm256_storeu_si256((__m256i*)to, (__m256i)x); }
inline U load_u16(const u16* from) { return (U)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from)); }
inline I load_u8(const u8* from) { return (I)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from)); }
inline F load_fp16(const u16* from) { return (F)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from)); }
inline void store_fp16(u16* to, F x) {
    _mm_storeu_si128((__m128i*)to, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
// 16 lanes of at most 65,535 as 16-bit words (packing works within 128-bit halves: the permutation undoes that).
inline __m256i words_of(__m256i a, __m256i b) {
    return _mm256_permute4x64_epi64(_mm256_packus_epi32(a, b), _MM_SHUFFLE(3, 1, 2, 0));
}
inline void store_u16(u16* to, const U (&x)[2]) {
    _mm256_storeu_si256((__m256i*)to, words_of((__m256i)x[0], (__m256i)x[1]));
}
// The low byte of every lane.
inline void store_bytes(u8* to, const I (&x)[2]) {
    __m256i words = words_of((__m256i)(x[0] & 0xFF), (__m256i)(x[1] & 0xFF));
    _mm_storeu_si128((__m128i*)to,
                     _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}

// Where an operand is NaN, both give the second.
inline F least(F a, F b) { return (F)_mm256_min_ps((__m256)a, (__m256)b); }
inline F greatest(F a, F b) { return (F)_mm256_max_ps((__m256)a, (__m256)b); }

// The larger of most and |x|; `most` is not negative.
inline F greatest_magnitude(F most, F x) { return greatest(most, (F)((U)x & 0x7FFFFFFFu)); }

// Lanes of `id` grow by one where u >= border (a comparison that holds is -1).
inline I count_reached(I id, F u, F border) { return id - (I)_mm256_cmp_ps((__m256)u, (__m256)border, _CMP_GE_OQ); }

// Eight floats, looked up by lane.
struct Table8 {
    __m256 values;
    explicit Table8(const float* from) : values(_mm256_loadu_ps(from)) {}
    F operator[](I index) const { return (F)_mm256_permutevar8x32_ps(values, (__m256i)index); }
};

// 16-bit integers: a product in units of 2**-15, rounded, and the sums of neighbouring products.
constexpr int SHORTS = 2 * N;
typedef std::int16_t S __attribute__((vector_size(32)));
inline S load_i16(const std::int16_t* from) { return (S)_mm256_loadu_si256((const __m256i*)from); }
inline S multiply_high(S a, S b) { return (S)_mm256_mulhrs_epi16((__m256i)a, (__m256i)b); }
inline I add_products(S a, S b) { return (I)_mm256_madd_epi16((__m256i)a, (__m256i)b); }
inline S within(S x, S low, S high) {
    return (S)_mm256_min_epi16(_mm256_max_epi16((__m256i)x, (__m256i)low), (__m256i)high);
}
// The sums of all lanes of a, and of b.
inline void sums_of(I a, I b, i32 (&sums)[2]) {
    I both = (I)_mm256_unpacklo_epi32((__m256i)a, (__m256i)b) + (I)_mm256_unpackhi_epi32((__m256i)a, (__m256i)b);
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128((__m256i)both), _mm256_extracti128_si256((__m256i)both, 1));
    _mm_storel_epi64((__m128i*)sums, _mm_add_epi32(four, _mm_unpackhi_epi64(four, four)));
}

// float64 sums of squares of N lanes. A float32 squared is exact in float64, so a fused multiply-add rounds just as
// a product and a sum do.
struct SquareSums {
    __m256d low = _mm256_setzero_pd(), high = _mm256_setzero_pd();
    void add(F x) {
        __m256d a = _mm256_cvtps_pd(_mm256_castps256_ps128((__m256)x));
        __m256d b = _mm256_cvtps_pd(_mm256_extractf128_ps((__m256)x, 1));
        low = _mm256_fmadd_pd(a, a, low);
        high = _mm256_fmadd_pd(b, b, high);
    }
    void store(double* to) const {
        _mm256_storeu_pd(to, low);
        _mm256_storeu_pd(to + 4, high);
    }
};

}  // namespace splitquant::SPLITQUANT_ISA
