// Inputs in the order in which weights are decoded, and one step of a product: 32 columns into 16 lanes of float32.
#pragma once

#include "table.hpp"

namespace splitquant::infer::SPLITQUANT_ISA {

// Everything in float32. A level is put together from the two halves of its bits, so that it is exact.
struct ByFloat {
    using Input = float;
    static constexpr size VECTORS = 2;  // registers of 32 columns
    struct Words {
        V v[VECTORS];  // those of the even, and of the odd words
    };

    template <class Table>
    struct Levels {
        static constexpr float factor = 1.0f;
        Table high, low;
        V low_word;

        static Table half(const float* levels, int shift) {
            alignas(64) u16 words[256];
            for (int i = 0; i < 256; ++i) words[i] = static_cast<u16>(__builtin_bit_cast(u32, levels[i]) >> shift);
            return Table(words);
        }
        explicit Levels(const float* levels)
            : high(half(levels, 16)), low(half(levels, 0)), low_word(_mm512_set1_epi32(0xFFFF)) {}

        SPLITQUANT_INLINE inline void find(V index, Words& even, Words& odd) const {
            V high_even, high_odd, low_even, low_odd;
            high.levels(index, high_even, high_odd);
            low.levels(index, low_even, low_odd);
            even = joined(high_even, low_even);
            odd = joined(high_odd, low_odd);
        }
        SPLITQUANT_INLINE inline Words joined(V upper, V lower) const {
            return {_mm512_ternarylogic_epi64(low_word, lower, _mm512_slli_epi32(upper, 16), 0xCA),
                    _mm512_ternarylogic_epi64(low_word, _mm512_srli_epi32(lower, 16), upper, 0xCA)};
        }
    };

    SPLITQUANT_INLINE static inline F step(F sum, const Words& words, const Input* x) {
        sum = _mm512_fmadd_ps(_mm512_castsi512_ps(words.v[0]), _mm512_load_ps(x), sum);
        return _mm512_fmadd_ps(_mm512_castsi512_ps(words.v[1]), _mm512_load_ps(x + 16), sum);
    }

    // The same in parts, with inputs that are in a register already.
    SPLITQUANT_INLINE static inline F step(F sum, V words, V x) {
        return _mm512_fmadd_ps(_mm512_castsi512_ps(words), _mm512_castsi512_ps(x), sum);
    }

    // Where word w of 32 lies.
    static constexpr size place(size w) { return w / 2 + w % 2 * 16; }
    static Input input(float x) { return x; }
};

#ifdef __AVX512BF16__
// bf16 inputs as they are, levels rounded to bf16: a product of pairs in one instruction.
struct ByPairs {
    using Input = u16;
    static constexpr size VECTORS = 1;
    struct Words {
        V v[VECTORS];
    };

    template <class Table>
    struct Levels {
        float factor;
        Table table;

        static Table rounded(const float* levels, float factor) {
            alignas(64) u16 words[256];
            for (size i = 0; i < 256; i += 16) {
                F scaled = _mm512_mul_ps(_mm512_loadu_ps(levels + i), _mm512_set1_ps(factor));
                _mm256_store_si256(reinterpret_cast<__m256i*>(words + i), to_bf16(scaled));
            }
            return Table(words);
        }

        // Few levels may all be rounded far: the factor of 1 to 2 with the least relative errors.
        static float best_factor(const float* levels) {
            float best = 1.0f, least = __builtin_inff();
            for (int i = 0; i < 16; ++i) {
                const float factor = 1.0f + static_cast<float>(i) / 16.0f;
                F errors = _mm512_setzero_ps();
                for (size j = 0; j < Table::COUNT; j += 16) {
                    F exact = _mm512_mul_ps(_mm512_loadu_ps(levels + j), _mm512_set1_ps(factor));
                    V words = _mm512_slli_epi32(_mm512_cvtepu16_epi32(to_bf16(exact)), 16);
                    __mmask16 there = _mm512_cmp_ps_mask(exact, _mm512_setzero_ps(), _CMP_NEQ_OQ);
                    F error = _mm512_maskz_div_ps(there, _mm512_sub_ps(_mm512_castsi512_ps(words), exact), exact);
                    errors = _mm512_fmadd_ps(error, error, errors);
                }
                const float sum = _mm512_reduce_add_ps(errors);
                if (sum < least) best = factor, least = sum;
            }
            return best;
        }
        // With the factor that rounds best, which sums are divided by.
        explicit Levels(const float* levels) : factor(best_factor(levels)), table(rounded(levels, factor)) {}

        SPLITQUANT_INLINE inline void find(V index, Words& even, Words& odd) const {
            table.levels(index, even.v[0], odd.v[0]);
        }
    };

    SPLITQUANT_INLINE static inline F step(F sum, const Words& words, const Input* x) {
        // As assembly, since GCC 12 loads inputs into registers first, and then has too few of them.
        asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(words.v[0]), "m"(*reinterpret_cast<const V*>(x)));
        return sum;
    }

    SPLITQUANT_INLINE static inline F step(F sum, V words, V x) {
        asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(words), "v"(x));
        return sum;
    }

    static constexpr size place(size w) { return w; }
    static Input input(float x) { return static_cast<u16>(__builtin_bit_cast(u32, x) >> 16); }
};
#endif

template <class Dot>
SPLITQUANT_INLINE inline typename Dot::Words load_words(const typename Dot::Input* from) {
    typename Dot::Words words;
    times<Dot::VECTORS>([&](auto i) SPLITQUANT_INLINE { words.v[i] = _mm512_load_si512(from + i * (32 / Dot::VECTORS)); });
    return words;
}

template <class Dot>
SPLITQUANT_INLINE inline void store_words(typename Dot::Input* to, const typename Dot::Words& words) {
    times<Dot::VECTORS>([&](auto i) SPLITQUANT_INLINE { _mm512_store_si512(to + i * (32 / Dot::VECTORS), words.v[i]); });
}

// Where things lie in the packed inputs of a token: vectors, then (where weights have zero points) the sums of the
// columns of each lane, two vectors a block, and the sum of all.
template <class Dot>
struct Layout {
    size blocks;
    bool by_blocks;

    size vector(size s, size block) const { return (by_blocks ? 4 * block + s : (s / 2 * blocks + block) * 2 + s % 2) * 32; }
    size vectors_bytes() const { return blocks * BLOCK * sizeof(typename Dot::Input); }
    size token_bytes() const { return vectors_bytes() + (2 * blocks + 1) * sizeof(F); }
};

template <class Dot>
inline void pack_tokens(const Product& p, bool quarters, bool by_blocks, u8* packed, size from, size to) {
    using Input = typename Dot::Input;
    const Layout<Dot> layout = {p.weight.blocks(), by_blocks};
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
            const size vectors_of_sum = quarters ? 4 : 2;  // those in which a lane holds the same group of columns
            for (size first = 0; first < 4; first += vectors_of_sum) {
                for (size lane = 0; lane < 16; ++lane) {
                    float sum = 0.0f;
                    for (size s = first; s < first + vectors_of_sum; ++s) {
                        sum += x[column[32 * s + 2 * lane]] + x[column[32 * s + 2 * lane + 1]];
                    }
                    lanes[32 * b + 8 * first + lane] = sum;
                }
            }
        }
        _mm512_storeu_ps(lanes + 32 * layout.blocks, _mm512_set1_ps(_mm512_reduce_add_ps(total)));
    }
}

}  // namespace splitquant::infer::SPLITQUANT_ISA
