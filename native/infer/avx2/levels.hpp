// Levels of a row, 32 columns at a time, by byte permutations in registers of 32 bytes.
//
// Fields: `vpshufb` brings the two bytes that hold a field into 16 bits, a product shifts it to where the upper byte begins.
// Levels: the four bytes of a float32 are looked up one by one in tables of 16, so that they are exact.
#pragma once

#include <immintrin.h>

#include "../interface.hpp"

namespace splitquant::infer::SPLITQUANT_ISA {

using Y = __m256i;

// How 16 fields of a plane come into 16-bit lanes, at bit 8 + up.
struct Lanes16 {
    alignas(32) u8 from[32];
    alignas(32) u16 factor[16];

    Lanes16(int bits, int up) {
        for (int j = 0; j < 16; ++j) {
            const int byte = j * bits / 8, offset = j * bits % 8;
            from[16 * (j / 8) + 2 * (j % 8)] = static_cast<u8>(byte);
            from[16 * (j / 8) + 2 * (j % 8) + 1] = static_cast<u8>(byte < 15 ? byte + 1 : 0x80);
            factor[j] = static_cast<u16>(1u << (8 - offset + up));
        }
    }

    Y operator()(__m128i bytes) const {
        Y two = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes), _mm256_load_si256(reinterpret_cast<const Y*>(from)));
        return _mm256_mullo_epi16(two, _mm256_load_si256(reinterpret_cast<const Y*>(factor)));
    }
};

inline __m128i bytes_until(const u8* at, const u8* end) {
    if (end - at >= 16) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
    alignas(16) u8 copy[16] = {};
    for (int i = 0; at + i < end; ++i) copy[i] = at[i];
    return _mm_load_si128(reinterpret_cast<const __m128i*>(copy));
}

// Whether levels are the index plus a number, as those of one plain grid are.
inline bool are_linear(const Weight& w) {
    if (w.id_bits) return false;
    for (int i = 1; i < 1 << w.bits; ++i) {
        if (w.levels[i] != w.levels[0] + static_cast<float>(i)) return false;
    }
    return true;
}

inline bool levels_fit_registers(const Weight& w) { return w.bits + w.id_bits <= 6 || are_linear(w); }

struct LinearLevels {
    __m256 first;
    explicit LinearLevels(const Weight& w) : first(_mm256_set1_ps(w.levels[0])) {}

    void operator()(Y a, Y b, float* out) const {
        store(_mm256_castsi256_si128(a), out);
        store(_mm256_extracti128_si256(a, 1), out + 8);
        store(_mm256_castsi256_si128(b), out + 16);
        store(_mm256_extracti128_si256(b, 1), out + 24);
    }
    void store(__m128i index, float* out) const {
        _mm256_storeu_ps(out, _mm256_add_ps(_mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(index)), first));
    }
};

// N tables of 16 levels.
template <int N>
struct TableLevels {
    Y table[4][N];

    explicit TableLevels(const Weight& w) {
        for (int byte = 0; byte < 4; ++byte) {
            for (int n = 0; n < N; ++n) {
                alignas(16) u8 bytes[16];
                for (int i = 0; i < 16; ++i) {
                    bytes[i] = static_cast<u8>(__builtin_bit_cast(u32, w.levels[16 * n + i]) >> (8 * byte));
                }
                table[byte][n] = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes)));
            }
        }
    }

    void operator()(Y a, Y b, float* out) const {
        const Y index = _mm256_packus_epi16(a, b), low = _mm256_and_si256(index, _mm256_set1_epi8(15));
        // Bit 4 and bit 5 of the index, where a blend looks for them.
        const Y bit4 = _mm256_slli_epi16(index, 3), bit5 = _mm256_slli_epi16(index, 2);
        Y bytes[4];
        for (int byte = 0; byte < 4; ++byte) {
            Y found = _mm256_shuffle_epi8(table[byte][0], low);
            if constexpr (N >= 2) found = _mm256_blendv_epi8(found, _mm256_shuffle_epi8(table[byte][1], low), bit4);
            if constexpr (N == 4) {
                Y upper = _mm256_blendv_epi8(_mm256_shuffle_epi8(table[byte][2], low), _mm256_shuffle_epi8(table[byte][3], low), bit4);
                found = _mm256_blendv_epi8(found, upper, bit5);
            }
            bytes[byte] = found;
        }
        store(_mm256_unpacklo_epi8(bytes[0], bytes[1]), _mm256_unpacklo_epi8(bytes[2], bytes[3]), out);
        store(_mm256_unpackhi_epi8(bytes[0], bytes[1]), _mm256_unpackhi_epi8(bytes[2], bytes[3]), out + 16);
    }
    static void store(Y lower, Y upper, float* out) {
        const Y first = _mm256_unpacklo_epi16(lower, upper), second = _mm256_unpackhi_epi16(lower, upper);
        _mm256_storeu_si256(reinterpret_cast<Y*>(out), _mm256_permute2x128_si256(first, second, 0x20));
        _mm256_storeu_si256(reinterpret_cast<Y*>(out + 8), _mm256_permute2x128_si256(first, second, 0x31));
    }
};

template <class Levels>
inline void levels_by(const Levels& levels, const Weight& w, size row, float* out) {
    const Lanes16 of_codes(w.bits, 0), of_ids(w.ids ? w.id_bits : 1, w.ids ? w.bits : 0);
    const Y code_mask = _mm256_set1_epi16(static_cast<short>(((1 << w.bits) - 1) << 8));
    const Y id_mask = _mm256_set1_epi16(static_cast<short>(((1 << w.id_bits) - 1) << (8 + w.bits)));
    const u8* codes = w.codes + row * w.codes_width();
    const u8* ids = w.ids ? w.ids + row * w.ids_width() : nullptr;
    const u8* codes_end = w.codes + w.rows * w.codes_width();
    const u8* ids_end = w.ids ? w.ids + w.rows * w.ids_width() : nullptr;
    const size code_step = 2 * static_cast<size>(w.bits), id_step = 2 * static_cast<size>(w.id_bits);
    auto sixteen = [&]() __attribute__((always_inline)) {
        Y index = _mm256_and_si256(of_codes(bytes_until(codes, codes_end)), code_mask);
        codes += code_step;
        if (ids) {
            index = _mm256_or_si256(index, _mm256_and_si256(of_ids(bytes_until(ids, ids_end)), id_mask));
            ids += id_step;
        }
        return _mm256_srli_epi16(index, 8);
    };
    size j = 0;
    for (; j + 32 <= w.cols; j += 32) {
        _mm_prefetch(reinterpret_cast<const char*>(codes) + 2048, _MM_HINT_T1);
        const Y a = sixteen(), b = sixteen();
        levels(a, b, out + j);
    }
    if (j == w.cols) return;
    float last[32];
    const Y a = sixteen(), b = w.cols - j > 16 ? sixteen() : a;
    levels(a, b, last);
    __builtin_memcpy(out + j, last, (w.cols - j) * sizeof(float));
}

inline void levels_in_registers(const Weight& w, size row, float* out) {
    const int total = w.bits + w.id_bits;
    if (are_linear(w)) return levels_by(LinearLevels(w), w, row, out);
    if (total <= 4) return levels_by(TableLevels<1>(w), w, row, out);
    if (total == 5) return levels_by(TableLevels<2>(w), w, row, out);
    levels_by(TableLevels<4>(w), w, row, out);
}

}  // namespace splitquant::infer::SPLITQUANT_ISA
