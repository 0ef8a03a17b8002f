// From indices to words of 16 bits, those of the even and of the odd bytes of an index register. `words` has 256.
#pragma once

#include "source.hpp"

namespace splitquant::infer::SPLITQUANT_ISA {

// Up to 64 levels are two registers of words; `vpermi2w` ignores what lies above six bits.
struct Words64 {
    static constexpr size COUNT = 64;
    V low, high;

    explicit Words64(const u16* words) {
        low = _mm512_load_si512(words);
        high = _mm512_load_si512(words + 32);
    }

    inline void levels(V index, V& even, V& odd) const {
        even = _mm512_permutex2var_epi16(low, index, high);
        odd = _mm512_permutex2var_epi16(low, _mm512_srli_epi16(index, 8), high);
    }
};

// Up to 32 are one.
struct Words32 {
    static constexpr size COUNT = 32;
    V words;

    explicit Words32(const u16* found) : words(_mm512_load_si512(found)) {}

    inline void levels(V index, V& even, V& odd) const {
        even = _mm512_permutexvar_epi16(index, words);
        odd = _mm512_permutexvar_epi16(_mm512_srli_epi16(index, 8), words);
    }
};

// Up to 256: the low and the high bytes of words, 128 of them in two registers.
template <size COUNT_>
struct Bytes {
    static constexpr size COUNT = COUNT_;
    static constexpr size N = COUNT / 64;
    V low[N], high[N], low_byte;

    explicit Bytes(const u16* words) {
        alignas(64) u8 bytes[2][256];
        for (size i = 0; i < COUNT; ++i) {
            bytes[0][i] = static_cast<u8>(words[i]);
            bytes[1][i] = static_cast<u8>(words[i] >> 8);
        }
        for (size i = 0; i < N; ++i) {
            low[i] = _mm512_load_si512(bytes[0] + 64 * i);
            high[i] = _mm512_load_si512(bytes[1] + 64 * i);
        }
        low_byte = _mm512_set1_epi16(0xFF);
    }

    inline void levels(V index, V& even, V& odd) const {
        V l = _mm512_permutex2var_epi8(low[0], index, low[1]);
        V h = _mm512_permutex2var_epi8(high[0], index, high[1]);
        if constexpr (N == 4) {
            __mmask64 upper = _mm512_movepi8_mask(index);
            l = _mm512_mask_mov_epi8(l, upper, _mm512_permutex2var_epi8(low[2], index, low[3]));
            h = _mm512_mask_mov_epi8(h, upper, _mm512_permutex2var_epi8(high[2], index, high[3]));
        }
        even = _mm512_ternarylogic_epi64(low_byte, l, _mm512_slli_epi16(h, 8), 0xCA);
        odd = _mm512_ternarylogic_epi64(low_byte, _mm512_srli_epi16(l, 8), h, 0xCA);
    }
};

}  // namespace splitquant::infer::SPLITQUANT_ISA
