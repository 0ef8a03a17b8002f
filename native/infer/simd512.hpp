// Conversions between the kinds of floats, 16 at a time.
#pragma once

#include <immintrin.h>

#include "interface.hpp"

namespace splitquant::infer::SPLITQUANT_ISA {

using F = __m512;

// body(0), body(1), ... body(N - 1) without a loop: arrays indexed so are split into registers before anything else is
// decided (in loops, even of fixed length, GCC keeps arrays of accumulators in memory).
template <size I>
struct Index {
    static constexpr size value = I;
    constexpr operator size() const { return I; }
};
template <size N, class Body>
__attribute__((always_inline)) inline void times(Body body) {
    if constexpr (N > 0) {
        times<N - 1>(body);
        body(Index<N - 1>{});
    }
}
#define SPLITQUANT_INLINE __attribute__((always_inline))

inline __mmask16 first_floats(size n) { return static_cast<__mmask16>(n >= 16 ? 0xFFFF : (1u << n) - 1); }

// n floats of a kind, continued by zeros.
inline F load_floats(const void* from, Kind kind, size at, size n) {
    __mmask16 mask = first_floats(n);
    if (kind == Kind::fp32) return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(from) + at);
    __m256i words = _mm256_maskz_loadu_epi16(mask, static_cast<const u16*>(from) + at);
    if (kind == Kind::fp16) return _mm512_cvtph_ps(words);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16));
}

inline __m256i to_bf16(F x) {
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}

inline void store_floats(void* to, Kind kind, size at, size n, F x) {
    __mmask16 mask = first_floats(n);
    if (kind == Kind::fp32) return _mm512_mask_storeu_ps(static_cast<float*>(to) + at, mask, x);
    __m256i words = kind == Kind::fp16 ? _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT) : to_bf16(x);
    _mm256_mask_storeu_epi16(static_cast<u16*>(to) + at, mask, words);
}

}  // namespace splitquant::infer::SPLITQUANT_ISA
