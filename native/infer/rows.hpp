// The numbers of a row: its row_scales and zero points as floats.
#pragma once

#include "interface.hpp"

namespace splitquant::infer::SPLITQUANT_ISA {

inline float half_bits_to_float(u32 half) {
    u32 sign = (half & 0x8000u) << 16, magnitude = (half & 0x7FFFu) << 13;
    if (magnitude >= 0x0F800000u) return __builtin_bit_cast(float, sign | magnitude | 0x7F800000u);
    return __builtin_bit_cast(float, sign | __builtin_bit_cast(u32, __builtin_bit_cast(float, magnitude) * 0x1p112f));
}

inline float load_float(const void* from, Kind kind, size at) {
    if (kind == Kind::fp32) return static_cast<const float*>(from)[at];
    u32 bits = static_cast<const u16*>(from)[at];
    return kind == Kind::fp16 ? half_bits_to_float(bits) : __builtin_bit_cast(float, bits << 16);
}

inline float scale_of(const Weight& w, size row, size g) {
    return w.row_scale ? w.scale * load_float(w.row_scale, w.scale_kind, row * w.groups + g) : w.scale;
}

inline float zero_of(const Weight& w, size row, size g) {
    if (!w.zero) return 0.0f;
    size bit = g * static_cast<size>(w.zero_bits), width = plane_width(w.groups, w.zero_bits);
    const u8* plane = w.zero + row * width;
    u32 word = plane[bit / 8];
    if (bit / 8 + 1 < width) word |= u32{plane[bit / 8 + 1]} << 8;
    return static_cast<float>(word >> bit % 8 & ((1u << w.zero_bits) - 1));
}

}  // namespace splitquant::infer::SPLITQUANT_ISA
