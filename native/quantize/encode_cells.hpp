// As encode.hpp, for grids whose levels are found by borders: a table by the upper half of a value says where to look.
//
// A vector gather would do the search too, and is several times slower on CPUs that guard it against speculation.
#pragma once

#include <stdlib.h>

#include "encode.hpp"
#include "few_cells.hpp"

namespace splitquant::SPLITQUANT_ISA {

struct CellEncoder {
    static constexpr bool HAS_CLUSTERS = true;

    const u16* first;     // [KEYS], the cell of the least value with these upper 16 bits
    const float* border;  // [cells], border[n] is where cell n + 1 begins; the last is NaN, which no value reaches
    const float* levels;
    const i32* stored;  // code | cluster << 8

    F level(F u, Unmoved, I& id, I& code) const {
        float values[N], found[N];
        i32 ids[N], codes[N];
        u32 keys[N];
        store_f32(values, u);
        store_u32(keys, (U)u >> 16);
        for (int i = 0; i < N; ++i) {
            u32 cell = first[keys[i]];
            while (values[i] >= border[cell]) ++cell;  // few keys hold a border: seldom taken
            found[i] = levels[cell];
            codes[i] = stored[cell] & 0xFF;
            ids[i] = stored[cell] >> 8;
        }
        __builtin_memcpy(&id, ids, sizeof id);
        __builtin_memcpy(&code, codes, sizeof code);
        return load_f32(found);
    }
};

inline float value_of(u32 bits) {
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

// The cells in which values with the same upper half begin, in ascending order of value; NaN and infinity begin in cell 0.
inline void first_cells(const float* border, u16* first) {
    constexpr u32 SIGN = KEYS / 2, INFINITE = 0x7F80;
    u16 cell = 0;
    for (u32 key = INFINITE; key < SIGN; ++key) first[key] = first[key | SIGN] = 0;
    for (u32 key = INFINITE; key-- > 0;) {
        float least = value_of((key | SIGN) << 16 | 0xFFFF);
        while (least >= border[cell]) ++cell;
        first[key | SIGN] = cell;
    }
    for (u32 key = 0; key < INFINITE; ++key) {
        float least = value_of(key << 16);
        while (least >= border[cell]) ++cell;
        first[key] = cell;
    }
    first[SIGN] = first[SIGN] < first[0] ? first[SIGN] : first[0];
}

inline bool encode_cells(Matrix x, PerGroup row_scale, PerGroup inverse, Cells cells, Planes out,
                         RowErrors errors) {
#if defined(__AVX512F__)
    if (cells.count <= FEW_CELLS) {
        auto encode = cells.count <= FEW_CELLS / 2 ? encode_few_cells<true> : encode_few_cells<false>;
        encode(x, row_scale, inverse, cells, out, errors);
        return true;
    }
#endif
    u16* first = static_cast<u16*>(malloc(KEYS * sizeof(u16)));
    float* border = static_cast<float*>(malloc(cells.count * sizeof(float)));
    i32* stored = static_cast<i32*>(malloc(cells.count * sizeof(i32)));
    bool held = first && border && stored;
    if (held) {
        for (size n = 0; n < cells.count; ++n) {
            border[n] = n + 1 < cells.count ? cells.border[n] : __builtin_nanf("");
            stored[n] = cells.code[n] | cells.cluster[n] << 8;
        }
        first_cells(border, first);
        const CellEncoder encoder{first, border, cells.level, stored};
        with_kind(x.kind, [&](auto format) {
            encode_rows<decltype(format)>(x, row_scale, inverse, PerGroup{}, encoder, out, errors);
        });
    }
    free(first);
    free(border);
    free(stored);
    return held;
}

}  // namespace splitquant::SPLITQUANT_ISA
