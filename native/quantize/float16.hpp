// fp16 <-> fp32 in integer and float32 operations, exact, on vectors: for CPUs without the instruction.
#pragma once

#include "interface.hpp"

namespace splitquant::SPLITQUANT_ISA {

// U is a vector of the 16-bit patterns in 32-bit lanes.
template <class F, class U>
inline F half_to_float(U half) {
    U sign = (half & 0x8000u) << 16;
    U magnitude = (half & 0x7FFFu) << 13;
    // Read as a float32, the magnitude is 2**-112 of its value (also where fp16 is subnormal): the product is exact.
    U finite = (U)((F)magnitude * 0x1p112f);
    U special = magnitude | 0x7F800000u;
    U is_special = (U)(magnitude >= 0x0F800000u);
    return (F)(sign | (is_special & special) | (~is_special & finite));
}

// Nearest, ties to even; too large becomes infinity, as IEEE 754 has it.
template <class U, class F>
inline U float_to_half(F x) {
    U bits = (U)x;
    U sign = (bits >> 16) & 0x8000u;
    U magnitude = bits & 0x7FFFFFFFu;
    // Subnormal result: adding 0.5 puts the last bit of fp16 at the last bit of the sum, which rounds it.
    U subnormal = (U)((F)magnitude + 0.5f) - 0x3F000000u;
    U normal = (magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
    U is_subnormal = (U)(magnitude < 0x38800000u);
    U result = (is_subnormal & subnormal) | (~is_subnormal & normal);
    U is_large = (U)(magnitude >= 0x477FF000u);  // 65,520, half way to what would come after the largest fp16
    result = (is_large & 0x7C00u) | (~is_large & result);
    U is_nan = (U)(magnitude > 0x7F800000u);
    return sign | result | (is_nan & 0x200u);
}

}  // namespace splitquant::SPLITQUANT_ISA
