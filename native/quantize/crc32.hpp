// Most of a CRC-32 by carry-less multiplication: a message folded into 64 bytes that have the same remainder.
//
// A CRC is a remainder of polynomials over GF(2), so a block may be multiplied by x**512 modulo the CRC's polynomial and
// added to the block 64 bytes further on. Who calls this finishes with any CRC-32 of the 64 bytes and the rest.
#pragma once

#include "simd/simd.hpp"

namespace splitquant::SPLITQUANT_ISA {

#if defined(__PCLMUL__)
// x**(512 + 32) and x**(512 - 32) modulo the polynomial, bits reversed and shifted by one, as the instruction needs them.
constexpr i64 FOLD_LOW = 0x154442bd4, FOLD_HIGH = 0x1c6e41596;

// Folds the first n bytes (a multiple of 64, not 0) for a register that starts with all ones.
inline bool crc32_fold(const u8* data, size n, u8* folded) {
    const __m128i* from = reinterpret_cast<const __m128i*>(data);
    const __m128i factors = _mm_set_epi64x(FOLD_HIGH, FOLD_LOW);
    __m128i sum[4];
    for (int i = 0; i < 4; ++i) sum[i] = _mm_loadu_si128(from + i);
    sum[0] = _mm_xor_si128(sum[0], _mm_cvtsi32_si128(-1));
    for (size at = 4; at < n / 16; at += 4) {
        for (int i = 0; i < 4; ++i) {
            __m128i low = _mm_clmulepi64_si128(sum[i], factors, 0x00);
            __m128i high = _mm_clmulepi64_si128(sum[i], factors, 0x11);
            sum[i] = _mm_xor_si128(_mm_xor_si128(low, high), _mm_loadu_si128(from + at + i));
        }
    }
    __builtin_memcpy(folded, sum, sizeof sum);
    return true;
}
#else
inline bool crc32_fold(const u8*, size, u8*) { return false; }
#endif

}  // namespace splitquant::SPLITQUANT_ISA
