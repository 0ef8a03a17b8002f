// Inputs in the order in which weights are decoded, and one step of a product: 32 columns into 16 lanes of float32.
#pragma once

#include "table.hpp"

namespace splitquant::infer::SPLITQUANT_ISA {

// Inputs as they are in float32; a level's word is the upper half of its float.
struct ByFloat {
    using Input = float;

    static inline F step(F sum, V words, const Input* x) {
        sum = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(words, 16)), _mm512_load_ps(x), sum);
        V odd = _mm512_and_si512(words, _mm512_set1_epi32(static_cast<int>(0xFFFF0000)));
        return _mm512_fmadd_ps(_mm512_castsi512_ps(odd), _mm512_load_ps(x + 16), sum);
    }

    // Where word w of a vector of inputs lies.
    static constexpr size place(size w) { return w / 2 + w % 2 * 16; }
    static Input input(float x) { return x; }
};

#ifdef __AVX512BF16__
// bf16 inputs as they are: a product of pairs in one instruction.
struct ByPairs {
    using Input = u16;

    static inline F step(F sum, V words, const Input* x) {
        return _mm512_dpbf16_ps(sum, (__m512bh)words, (__m512bh)_mm512_load_si512(x));
    }

    static constexpr size place(size w) { return w; }
    static Input input(float x) { return static_cast<u16>(__builtin_bit_cast(u32, x) >> 16); }
};
#endif

// Where things lie in the packed inputs of a token: vectors, then (where weights have zero points) the sums of the
// columns of each lane, two vectors a block, and the sum of all.
template <class Dot>
struct Layout {
    size blocks;
    bool grouped;

    size vector(size s, size block) const { return (grouped ? 4 * block + s : s * blocks + block) * 32; }
    size vectors_bytes() const { return blocks * BLOCK * sizeof(typename Dot::Input); }
    size token_bytes() const { return vectors_bytes() + (2 * blocks + 1) * sizeof(F); }
};

template <class Dot>
inline void pack_tokens(const Product& p, bool quarters, bool grouped, u8* packed, size from, size to) {
    using Input = typename Dot::Input;
    const Layout<Dot> layout = {p.weight.blocks(), grouped};
    size place[BLOCK], column[BLOCK];
    for (size s = 0; s < 4; ++s) {
        for (size w = 0; w < 32; ++w) {
            place[32 * s + w] = Dot::place(w);
            column[32 * s + w] = column_of(quarters, s, w);
        }
    }
    for (size t = from; t < to; ++t) {
        u8* token = packed + t * layout.token_bytes();
        Input* vectors = reinterpret_cast<Input*>(token);
        float* lanes = reinterpret_cast<float*>(token + layout.vectors_bytes());
        F total = _mm512_setzero_ps();
        for (size b = 0; b < layout.blocks; ++b) {
            alignas(64) float x[BLOCK];
            for (size j = 0; j < BLOCK; j += 16) {
                size at = b * BLOCK + j, n = at < p.weight.cols ? p.weight.cols - at : 0;
                F part = n ? load_floats(p.x, p.kind, t * p.weight.cols + at, n) : _mm512_setzero_ps();
                total = _mm512_add_ps(total, part);
                _mm512_store_ps(x + j, part);
            }
            for (size s = 0; s < 4; ++s) {
                Input* out = vectors + layout.vector(s, b);
                for (size w = 0; w < 32; ++w) out[place[32 * s + w]] = Dot::input(x[column[32 * s + w]]);
            }
            if (!p.weight.zero) continue;
            for (size half = 0; half < 2; ++half) {
                for (size lane = 0; lane < 16; ++lane) {
                    float sum = 0.0f;
                    for (size s = 2 * half; s < 2 * half + 2; ++s) {
                        sum += x[column[32 * s + 2 * lane]] + x[column[32 * s + 2 * lane + 1]];
                    }
                    lanes[32 * b + 16 * half + lane] = sum;
                }
            }
        }
        _mm512_storeu_ps(lanes + 32 * layout.blocks, _mm512_set1_ps(_mm512_reduce_add_ps(total)));
    }
}

}  // namespace splitquant::infer::SPLITQUANT_ISA
