// The table of levels from the planes that describe it.
#pragma once

#include "interface.hpp"

namespace splitquant::infer {

// What a weight's levels are made of; exactly one of `levels` and the pair of scale and offset is there, or none of them
// (plain codes from 0 on, which rows have zero points and scales for).
struct Grids {
    size clusters;
    int bits;              // of one part's code
    bool additive;         // codes hold those of all parts, and a level is the sum
    const float* scale;    // [clusters]
    const float* offset;   // [clusters]
    const float* levels;   // [clusters, 1 << bits]
};

// Fills w.levels and w.scale; `table` has 256 floats.
inline void fill_levels(const Grids& g, Weight& w, float* table) {
    const size codes = size{1} << g.bits, used = (g.additive ? size{1} << w.bits : g.clusters * codes);
    const size whole = size{1} << (w.bits + w.id_bits);
    // Where rows have their own grids, a code's step is 2**(1 - bits) row_scales.
    w.scale = g.scale || g.levels ? 1.0f : 2.0f / static_cast<float>(codes);
    for (size i = 0; i < used; ++i) {
        const size c = i / codes, q = i % codes;
        if (g.levels) {
            table[i] = g.levels[i];
        } else if (!g.scale) {
            table[i] = static_cast<float>(q);
        } else if (g.additive) {
            float sum = g.scale[0] * static_cast<float>(q) + g.offset[0];
            for (size part = 1; part < g.clusters; ++part) {
                size code = i >> (part * static_cast<size>(g.bits)) & (codes - 1);
                sum = (g.scale[part] * static_cast<float>(code) + g.offset[part]) + sum;
            }
            table[i] = sum;
        } else {
            table[i] = g.scale[c] * static_cast<float>(q) + g.offset[c];
        }
    }
    // One grid that holds zero is integers times its scale, and integers up to 256 are exact in bf16.
    if (g.scale && !g.additive && g.clusters == 1 && g.scale[0] > 0.0f) {
        const float zero = -g.offset[0] / g.scale[0];
        if (zero >= 0.0f && zero < static_cast<float>(codes) && zero == static_cast<float>(static_cast<int>(zero))) {
            for (size q = 0; q < codes; ++q) table[q] = static_cast<float>(q) - zero;
            w.scale = g.scale[0];
        }
    }
    for (size i = used; i < whole; ++i) table[i] = table[used - 1];  // an id beyond the last cluster: a damaged plane
    for (size i = whole; i < 256; ++i) table[i] = table[i - whole];
    w.levels = table;
}

}  // namespace splitquant::infer
