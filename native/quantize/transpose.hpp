// The transpose of a matrix of 1-, 2- or 4-byte words, in tiles whose lines fit the nearest cache.
#pragma once

#include "rows.hpp"

namespace splitquant::SPLITQUANT_ISA {

constexpr size TILE = 64;

// 16 bytes of a row.
template <class Word>
struct Words {
    typedef Word Vector __attribute__((vector_size(16)));
    static constexpr size SIDE = 16 / sizeof(Word);

    // The words of two vectors in turn: those of their lower halves, or of their upper ones.
    template <bool UPPER>
    static Vector in_turn(Vector a, Vector b) {
        constexpr int S = SIDE, U = UPPER ? S / 2 : 0;
        if constexpr (SIDE == 4) {
            return __builtin_shufflevector(a, b, U, U + S, U + 1, U + 1 + S);
        } else if constexpr (SIDE == 8) {
            return __builtin_shufflevector(a, b, U, U + S, U + 1, U + 1 + S, U + 2, U + 2 + S, U + 3, U + 3 + S);
        } else {
            return __builtin_shufflevector(a, b, U, U + S, U + 1, U + 1 + S, U + 2, U + 2 + S, U + 3, U + 3 + S, U + 4,
                                           U + 4 + S, U + 5, U + 5 + S, U + 6, U + 6 + S, U + 7, U + 7 + S);
        }
    }
};

// A square of SIDE x SIDE words: after log2(SIDE) rounds of the perfect shuffle rows are columns.
template <class Word, size ROUND = 1>
inline void transpose_square(const typename Words<Word>::Vector (&rows)[Words<Word>::SIDE], Word* to, size stride) {
    using W = Words<Word>;
    if constexpr (ROUND == W::SIDE) {
        for (size i = 0; i < W::SIDE; ++i) __builtin_memcpy(to + i * stride, &rows[i], 16);
    } else {
        typename W::Vector next[W::SIDE];
        for (size i = 0; i < W::SIDE / 2; ++i) {
            next[2 * i] = W::template in_turn<false>(rows[i], rows[i + W::SIDE / 2]);
            next[2 * i + 1] = W::template in_turn<true>(rows[i], rows[i + W::SIDE / 2]);
        }
        transpose_square<Word, 2 * ROUND>(next, to, stride);
    }
}

template <class Word>
inline void transpose_square(const Word* from, size from_stride, Word* to, size to_stride) {
    typename Words<Word>::Vector rows[Words<Word>::SIDE];
    for (size i = 0; i < Words<Word>::SIDE; ++i) __builtin_memcpy(&rows[i], from + i * from_stride, 16);
    transpose_square<Word>(rows, to, to_stride);
}

template <class Word>
inline void transpose_words(const Word* x, size stride, size rows, size cols, Word* out) {
    constexpr size SIDE = Words<Word>::SIDE;
    auto one_by_one = [&](size top, size bottom, size left, size right) {
        for (size j = left; j < right; ++j) {
            for (size i = top; i < bottom; ++i) out[j * rows + i] = x[i * stride + j];
        }
    };
    for (size top = 0; top < rows; top += TILE) {
        for (size left = 0; left < cols; left += TILE) {
            size bottom = smaller(top + TILE, rows), right = smaller(left + TILE, cols), j = left;
            for (; j + SIDE <= right; j += SIDE) {
                size i = top;
                for (; i + SIDE <= bottom; i += SIDE) {
                    transpose_square(x + i * stride + j, stride, out + j * rows + i, rows);
                }
                one_by_one(i, bottom, j, j + SIDE);
            }
            one_by_one(top, bottom, j, right);
        }
    }
}

// `stride`: words from a row of x to the next.
inline void transpose(const void* x, size word, size stride, size rows, size cols, void* out) {
    auto as = [&](auto zero) {
        using Word = decltype(zero);
        transpose_words(static_cast<const Word*>(x), stride, rows, cols, static_cast<Word*>(out));
    };
    if (word == 1) return as(u8{});
    if (word == 2) return as(u16{});
    as(u32{});
}

}  // namespace splitquant::SPLITQUANT_ISA
