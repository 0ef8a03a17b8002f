// How a row is walked: in chunks whose temporaries stay in the first-level cache, and with one float per group.
#pragma once

#include "simd/simd.hpp"

namespace splitquant::SPLITQUANT_ISA {

constexpr size CHUNK = 512;  // weights; a multiple of 16 and of 8, so that a chunk of a plane starts at a byte

inline size smaller(size a, size b) { return a < b ? a : b; }

// The same float for every weight of a stretch.
template <class Value>
struct Same {
    Value value;
    Value at(size) const { return value; }
};
template <class Value>
Same(Value) -> Same<Value>;

// A float of its own for every weight of a stretch.
struct Each {
    const float* values;
    F at(size j) const { return load_f32(values + j); }
};

// One row of a PerGroup.
struct RowOfGroups {
    static constexpr float ONE = 1.0f, NOTHING = -0.0f;

    const float* values;
    size group;

    // `none` stands for no floats: x * 1 and x + -0 are x, so that needs no code of its own.
    RowOfGroups(PerGroup all, size row, size cols, const float& none = ONE) {
        values = all.data ? all.data + row * all.groups : &none;
        group = all.data && all.groups > 1 ? all.group : cols;
    }

    // Whether a block of 16 weights (counted from the start of the row) lies within one group.
    bool holds_blocks(size cols) const { return group >= cols || group % LANES == 0; }

    void spread(size from, size to, float* out) const {
        size g = from / group, left = group - from % group;
        for (size j = from; j < to; ++j, --left) {
            if (left == 0) ++g, left = group;
            *out++ = values[g];
        }
        for (size j = to; j % LANES; ++j) *out++ = 0.0f;  // the rest of a last block is read too
    }
};

// Calls body(begin, end, floats...) for stretches of [from, to), all but the last a multiple of 16 weights long; each of the
// floats is a Same or an Each, and `from` is a multiple of 16.
template <class Body, class... Rows>
inline void for_stretches(size cols, size from, size to, Body body, Rows... rows) {
    if (!(rows.holds_blocks(cols) && ...)) {
        float each[sizeof...(rows)][CHUNK];
        size i = 0;
        auto spread = [&](const RowOfGroups& row) {
            float* out = each[i++];
            row.spread(from, to, out);
            return Each{out};
        };
        return body(from, to, spread(rows)...);
    }
    for (size begin = from; begin < to;) {
        size end = to;
        ((end = smaller(end, (begin / rows.group + 1) * rows.group)), ...);
        body(begin, end, Same{splat(rows.values[begin / rows.group])}...);
        begin = end;
    }
}

// A last block of fewer than 16 weights, continued by zeros.
template <class Word>
struct Padded {
    Word words[LANES] = {};
    Padded(const Word* from, size n) { __builtin_memcpy(words, from, n * sizeof(Word)); }
};

}  // namespace splitquant::SPLITQUANT_ISA
