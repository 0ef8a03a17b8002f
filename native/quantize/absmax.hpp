// Largest |x| per group. Without its sign bit a float's pattern grows with its value, so the maximum is one of integers;
// the patterns of infinity and NaN are the largest of all, so they come through.
#pragma once

#include "rows.hpp"

namespace splitquant::SPLITQUANT_ISA {

// Signed integers: SSE2 has no maximum of unsigned 16-bit words, and without a sign bit both mean the same.
template <class Signed>
inline Signed largest_pattern(const Signed* from, size n) {
    constexpr Signed MAGNITUDE = static_cast<Signed>(~(u64{1} << (8 * sizeof(Signed) - 1)));
    Signed most = 0;
    for (size j = 0; j < n; ++j) {
        Signed x = from[j] & MAGNITUDE;
        most = x > most ? x : most;
    }
    return most;
}

template <size GROUP, class Signed>
inline void row_patterns(const Signed* from, size cols, size group, Signed* out) {
    if constexpr (GROUP != 0) group = GROUP;  // a known length unrolls into a few vector operations
    size j = 0;
    for (; j + group <= cols; j += group) *out++ = largest_pattern(from + j, group);
    if (j < cols) *out = largest_pattern(from + j, cols - j);
}

template <class Signed>
inline void row_patterns(const Signed* from, size cols, size group, Signed* out) {
    switch (group) {
        case 32: return row_patterns<32>(from, cols, group, out);
        case 64: return row_patterns<64>(from, cols, group, out);
        case 128: return row_patterns<128>(from, cols, group, out);
        default: return row_patterns<0>(from, cols, group, out);
    }
}

inline float float_of(Kind kind, u32 pattern) {
    if (kind != Kind::fp16) return __builtin_bit_cast(float, kind == Kind::bf16 ? pattern << 16 : pattern);
    u16 words[LANES] = {static_cast<u16>(pattern)};
    return load_fp16(words)[0];
}

template <class Signed>
inline void absmax_rows(Matrix x, size group, float* out) {
    const Signed* from = static_cast<const Signed*>(x.data);
    size groups = (x.cols + group - 1) / group;
    Signed patterns[CHUNK];
    for (size row = 0; row < x.rows; ++row, from += x.cols) {
        for (size g = 0; g < groups; g += CHUNK) {
            size begin = g * group, end = smaller(x.cols, (g + CHUNK) * group);
            row_patterns(from + begin, end - begin, group, patterns);
            size n = smaller(CHUNK, groups - g);
            for (size i = 0; i < n; ++i) *out++ = float_of(x.kind, static_cast<u32>(patterns[i]));
        }
    }
}

inline void absmax(Matrix x, size group, float* out) {
    group = smaller(group, x.cols ? x.cols : 1);  // so that no product overflows
    if (x.kind == Kind::fp32) return absmax_rows<std::int32_t>(x, group, out);
    absmax_rows<std::int16_t>(x, group, out);
}

}  // namespace splitquant::SPLITQUANT_ISA
