// The vector operations that the kernels are written in: N float32 lanes, with N the width of a register.
//
// F, I and U are GCC/Clang vector types, so + - * & | ^ << >> work on them; what the operators cannot say is a function
// of the header of the instruction set. 16 lanes, a block, are 16 / N registers.
#pragma once

#include "../interface.hpp"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "avx512.hpp"
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "avx2.hpp"
#else
#include "portable.hpp"
#endif

namespace splitquant::SPLITQUANT_ISA {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "planes and floats are read as little-endian words");

constexpr int PARTS = LANES / N;  // registers of a block

struct Bf16 {
    using Word = u16;
    static F load(const Word* from) { return (F)(load_u16(from) << 16); }
    static void store(Word* to, const F (&values)[PARTS]) {
        U words[PARTS];
        for (int p = 0; p < PARTS; ++p) {
            U bits = (U)values[p];
            words[p] = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;  // nearest, ties to even
        }
        store_u16(to, words);
    }
};

struct Fp16 {
    using Word = u16;
    static F load(const Word* from) { return load_fp16(from); }
    static void store(Word* to, const F (&values)[PARTS]) {
        for (int p = 0; p < PARTS; ++p) store_fp16(to + p * N, values[p]);
    }
};

struct Fp32 {
    using Word = float;
    static F load(const Word* from) { return load_f32(from); }
    static void store(Word* to, const F (&values)[PARTS]) {
        for (int p = 0; p < PARTS; ++p) store_f32(to + p * N, values[p]);
    }
};

// Calls body with the type that reads and writes weights of `kind`.
template <class Body>
inline void with_kind(Kind kind, Body body) {
    switch (kind) {
        case Kind::bf16: return body(Bf16{});
        case Kind::fp16: return body(Fp16{});
        case Kind::fp32: return body(Fp32{});
    }
}

}  // namespace splitquant::SPLITQUANT_ISA
