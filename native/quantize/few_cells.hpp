// Up to 64 cells live in registers: an AVX-512 permutation looks 32 of them up at once, in a search without branches.
#pragma once

#include "encode.hpp"

#if defined(__AVX512F__)

namespace splitquant::SPLITQUANT_ISA {

constexpr size FEW_CELLS = 64;

// Up to 64 words by index; with HALF up to 32.
template <bool HALF>
struct WordTable {
    __m512i words[4];

    explicit WordTable(const void* from) {
        for (int i = 0; i < 4; ++i) words[i] = _mm512_loadu_si512(static_cast<const u32*>(from) + 16 * i);
    }

    __m512i operator[](__m512i index) const {
        __m512i lower = _mm512_permutex2var_epi32(words[0], index, words[1]);
        if constexpr (HALF) return lower;
        __m512i upper = _mm512_permutex2var_epi32(words[2], index, words[3]);
        return _mm512_mask_mov_epi32(lower, _mm512_test_epi32_mask(index, _mm512_set1_epi32(32)), upper);
    }
};

// border[n] is where cell n begins (that of cell 0 is not used); behind the last cell NaN, which no value reaches.
template <bool HALF>
struct FewCellEncoder {
    static constexpr bool HAS_CLUSTERS = true;

    WordTable<HALF> border, levels, stored;  // stored: code | cluster << 8

    F level(F u, Unmoved, I& id, I& code) const {
        __m512i cell = _mm512_setzero_si512();
        for (int step = HALF ? 16 : 32; step > 0; step /= 2) {
            __m512i next = _mm512_add_epi32(cell, _mm512_set1_epi32(step));
            __m512 begin = _mm512_castsi512_ps(border[next]);
            cell = _mm512_mask_mov_epi32(cell, _mm512_cmp_ps_mask((__m512)u, begin, _CMP_GE_OQ), next);
        }
        I found = (I)stored[cell];
        code = found & 0xFF;
        id = found >> 8;
        return (F)levels[cell];
    }
};

template <bool HALF>
inline void encode_few_cells(Matrix x, PerGroup row_scale, PerGroup inverse, Cells cells, Planes out,
                             RowErrors errors) {
    float border[FEW_CELLS], level[FEW_CELLS] = {};
    i32 stored[FEW_CELLS] = {};
    for (size n = 0; n < FEW_CELLS; ++n) border[n] = n > 0 && n < cells.count ? cells.border[n - 1] : __builtin_nanf("");
    for (size n = 0; n < cells.count; ++n) {
        level[n] = cells.level[n];
        stored[n] = cells.code[n] | cells.cluster[n] << 8;
    }
    const FewCellEncoder<HALF> encoder{WordTable<HALF>(border), WordTable<HALF>(level), WordTable<HALF>(stored)};
    with_kind(x.kind, [&](auto format) {
        encode_rows<decltype(format)>(x, row_scale, inverse, PerGroup{}, encoder, out, errors);
    });
}

}  // namespace splitquant::SPLITQUANT_ISA

#endif
