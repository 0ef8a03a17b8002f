// How a row is walked: in chunks whose temporaries stay in the first-level cache, and with one float per group.
#pragma once

#include "simd/simd.hpp"

namespace splitquant::SPLITQUANT_ISA {

constexpr size CHUNK = 512;  // weights; a multiple of 16 and of 8, so that a chunk of a plane starts at a byte

inline size smaller(size a, size b) { return a < b ? a : b; }

// The same float for every weight of a stretch.
struct Same {
    F value;
    F at(size) const { return value; }
};

// A float of its own for every weight of a stretch.
struct Each {
    const float* values;
    F at(size j) const { return load_f32(values + j); }
};

// One row of a PerGroup.
struct RowOfGroups {
    const float* values;
    size group;

    RowOfGroups(PerGroup all, size row, size cols) {
        static constexpr float ONE = 1.0f;  // x * 1 is x, so "no scale" needs no code of its own
        values = all.data ? all.data + row * all.groups : &ONE;
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

// Calls body(begin, end, scales...) for stretches of [from, to), all but the last a multiple of 16 weights long; a scale
// is a Same or an Each, and `from` is a multiple of 16.
template <class Body>
inline void for_stretches(RowOfGroups a, size cols, size from, size to, Body body) {
    if (!a.holds_blocks(cols)) {
        float each[CHUNK];
        a.spread(from, to, each);
        return body(from, to, Each{each});
    }
    for (size begin = from; begin < to;) {
        size g = begin / a.group, end = smaller(to, (g + 1) * a.group);
        body(begin, end, Same{splat(a.values[g])});
        begin = end;
    }
}

template <class Body>
inline void for_stretches(RowOfGroups a, RowOfGroups b, size cols, size from, size to, Body body) {
    if (!a.holds_blocks(cols) || !b.holds_blocks(cols)) {
        float each_a[CHUNK], each_b[CHUNK];
        a.spread(from, to, each_a);
        b.spread(from, to, each_b);
        return body(from, to, Each{each_a}, Each{each_b});
    }
    for (size begin = from; begin < to;) {
        size g = begin / a.group, h = begin / b.group;
        size end = smaller(to, smaller((g + 1) * a.group, (h + 1) * b.group));
        body(begin, end, Same{splat(a.values[g])}, Same{splat(b.values[h])});
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
