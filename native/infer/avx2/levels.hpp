// Levels of a row by byte permutations in registers of 32 bytes.
#pragma once

#include <immintrin.h>

#include "../interface.hpp"

namespace splitquant::infer::SPLITQUANT_ISA {

inline bool levels_fit_registers(const Weight&) { return false; }
inline void levels_in_registers(const Weight&, size, float*) {}

}  // namespace splitquant::infer::SPLITQUANT_ISA
