// Products for every packed weight, in vectors of the compiler: rows are decoded to float32 in cache.
#pragma once

#include "rows.hpp"

#if defined(__AVX2__)
#include "avx2/levels.hpp"
#endif

namespace splitquant::infer::SPLITQUANT_ISA {

#if defined(__AVX512F__)
constexpr size LANE_COUNT = 16;
#elif defined(__AVX2__)
constexpr size LANE_COUNT = 8;
#else
constexpr size LANE_COUNT = 4;
#endif
typedef float Lanes __attribute__((vector_size(4 * LANE_COUNT)));

constexpr size ROWS_AT_ONCE = 4;
constexpr size TOKENS_AT_ONCE = 3;

inline u16 float_to_half_bits(float x) {
    u32 bits = __builtin_bit_cast(u32, x), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u) return static_cast<u16>(sign | 0x7E00u);
    if (magnitude >= 0x477FF000u) return static_cast<u16>(sign | 0x7C00u);
    if (magnitude < 0x38800000u) {  // adding 0.5 puts the last bit of fp16 at the last bit of the sum, which rounds it
        return static_cast<u16>(sign | (__builtin_bit_cast(u32, __builtin_bit_cast(float, magnitude) + 0.5f) - 0x3F000000u));
    }
    return static_cast<u16>(sign | ((magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13));
}

inline void store_float(void* to, Kind kind, size at, float x) {
    if (kind == Kind::fp32) {
        static_cast<float*>(to)[at] = x;
    } else if (kind == Kind::fp16) {
        static_cast<u16*>(to)[at] = float_to_half_bits(x);
    } else {
        u32 bits = __builtin_bit_cast(u32, x);
        static_cast<u16*>(to)[at] = static_cast<u16>(x == x ? (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 : bits >> 16 | 0x40);
    }
}

// The fields of 8 columns from column j on, which begin at a byte; no byte behind `end` is read.
inline u64 eight_fields(const u8* row, size j, int bits, const u8* end) {
    const u8* at = row + j / 8 * static_cast<size>(bits);
    u64 word = 0;
    if (end - at >= 8) {
        __builtin_memcpy(&word, at, 8);
    } else {
        for (int i = 0; i < 8 && at + i < end; ++i) word |= u64{at[i]} << (8 * i);
    }
    return word;
}

inline void decode_levels(const Weight& w, size row, float* out) {
    const u8* codes = w.codes + row * w.codes_width();
    const u8* ids = w.ids ? w.ids + row * w.ids_width() : nullptr;
    const u8* codes_end = w.codes + w.rows * w.codes_width();
    const u8* ids_end = w.ids ? w.ids + w.rows * w.ids_width() : nullptr;
    const u64 code_mask = (u64{1} << w.bits) - 1, id_mask = (u64{1} << w.id_bits) - 1;
    for (size j = 0; j < w.cols; j += 8) {
        const int count = w.cols - j < 8 ? static_cast<int>(w.cols - j) : 8;
        u64 code = eight_fields(codes, j, w.bits, codes_end), id = ids ? eight_fields(ids, j, w.id_bits, ids_end) : 0;
        for (int t = 0; t < count; ++t) {
            out[j + t] = w.levels[(id >> (t * w.id_bits) & id_mask) << w.bits | (code >> (t * w.bits) & code_mask)];
        }
    }
}

// A row in float32.
inline void decode_floats(const Weight& w, size row, float* out) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    if (levels_fit_registers(w)) {
        levels_in_registers(w, row, out);
    } else {
        decode_levels(w, row, out);
    }
#else
    decode_levels(w, row, out);
#endif
    for (size g = 0, j = 0; g < w.groups; ++g) {
        const float scale = scale_of(w, row, g), zero = zero_of(w, row, g);
        const size end = g + 1 < w.groups ? j + w.group : w.cols;
        for (; j < end; ++j) out[j] = scale * (out[j] - zero);
    }
}

inline size portable_packed_bytes(const Product& p) { return p.weight.blocks() * BLOCK * sizeof(float); }

inline size portable_scratch_bytes(const Product& p) { return ROWS_AT_ONCE * portable_packed_bytes(p); }

inline void portable_pack(const Product& p, u8* packed, size from, size to) {
    const size cols = p.weight.cols, padded = p.weight.blocks() * BLOCK;
    for (size t = from; t < to; ++t) {
        float* out = reinterpret_cast<float*>(packed) + t * padded;
        for (size j = 0; j < cols; ++j) out[j] = load_float(p.x, p.kind, t * cols + j);
        for (size j = cols; j < padded; ++j) out[j] = 0.0f;
    }
}

// Four decoded rows times T tokens. A row's sum is made of four sums whatever T is.
template <size T>
__attribute__((noinline)) void portable_tile(const Product& p, const float* rows, const float* inputs, size token, size row,
                                             size count) {
    const size padded = p.weight.blocks() * BLOCK;
    Lanes all[ROWS_AT_ONCE][T];
    for (size s = 0; s < 4; ++s) {
        Lanes sum[ROWS_AT_ONCE][T] = {};
        for (size at = s * LANE_COUNT; at < padded; at += 4 * LANE_COUNT) {
            for (size r = 0; r < ROWS_AT_ONCE; ++r) {
                Lanes weights;
                __builtin_memcpy(&weights, rows + r * padded + at, sizeof weights);
                for (size t = 0; t < T; ++t) {
                    Lanes x;
                    __builtin_memcpy(&x, inputs + t * padded + at, sizeof x);
                    sum[r][t] += weights * x;
                }
            }
        }
        for (size r = 0; r < ROWS_AT_ONCE; ++r) {
            for (size t = 0; t < T; ++t) all[r][t] = s == 0 ? sum[r][t] : all[r][t] + sum[r][t];
        }
    }
    for (size r = 0; r < count; ++r) {
        const float bias = p.bias ? load_float(p.bias, p.kind, row + r) : 0.0f;
        for (size t = 0; t < T; ++t) {
            float total = 0.0f;
            for (size lane = 0; lane < LANE_COUNT; ++lane) total += all[r][t][lane];
            store_float(p.out, p.kind, (token + t) * p.weight.rows + row + r, total + bias);
        }
    }
}

inline void portable_multiply(const Product& p, const u8* packed, size from, size to, u8* scratch) {
    const Weight& w = p.weight;
    const size padded = w.blocks() * BLOCK, end = to * UNIT < w.rows ? to * UNIT : w.rows;
    float* rows = reinterpret_cast<float*>(scratch);
    for (size row = from * UNIT; row < end; row += ROWS_AT_ONCE) {
        const size count = row + ROWS_AT_ONCE < end ? ROWS_AT_ONCE : end - row;
        for (size r = 0; r < ROWS_AT_ONCE; ++r) {
            decode_floats(w, row + (r < count ? r : 0), rows + r * padded);
            for (size j = w.cols; j < padded; ++j) rows[r * padded + j] = 0.0f;
        }
        for (size token = 0; token < p.tokens;) {
            const float* inputs = reinterpret_cast<const float*>(packed) + token * padded;
            const size left = p.tokens - token;
            if (left >= 3 && left != 4) {
                portable_tile<3>(p, rows, inputs, token, row, count);
                token += 3;
            } else if (left >= 2) {
                portable_tile<2>(p, rows, inputs, token, row, count);
                token += 2;
            } else {
                portable_tile<1>(p, rows, inputs, token, row, count);
                token += 1;
            }
        }
    }
}

}  // namespace splitquant::infer::SPLITQUANT_ISA
