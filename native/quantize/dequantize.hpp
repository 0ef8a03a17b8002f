// From packed codes and cluster ids back to weights.
#pragma once

#include "pack.hpp"

namespace splitquant::SPLITQUANT_ISA {

// Levels by cluster << bits | code.
struct Lookup {
    const float* levels;
    size entries;
    int bits;
    u32 last;  // an id beyond the last cluster (a damaged plane) must not read past the levels

    void operator()(const u8* codes, const u8* clusters, size n, float* out) const {
#if defined(__AVX512F__)
        if (entries <= 64) return in_registers(codes, clusters, n, out);
#endif
        for (size j = 0; j < n; ++j) {
            u32 index = u32{clusters[j]} << bits | codes[j];
            out[j] = levels[index < last ? index : last];
        }
    }

#if defined(__AVX512F__)
    // Up to 64 levels are four registers; two-register permutations look up 32 of them at once.
    void in_registers(const u8* codes, const u8* clusters, size n, float* out) const {
        float padded[64] = {};
        __builtin_memcpy(padded, levels, entries * sizeof(float));
        __m512 t[4];
        for (int i = 0; i < 4; ++i) t[i] = _mm512_loadu_ps(padded + 16 * i);
        for (size j = 0; j < n; j += LANES) {  // the arrays are whole chunks: what lies behind n may be written
            __m512i index = (__m512i)(load_u8(clusters + j) << bits | load_u8(codes + j));
            __m512 level = _mm512_permutex2var_ps(t[0], index, t[1]);
            if (entries > 32) {
                __mmask16 upper = _mm512_test_epi32_mask(index, _mm512_set1_epi32(32));
                level = _mm512_mask_mov_ps(level, upper, _mm512_permutex2var_ps(t[2], index, t[3]));
            }
            _mm512_storeu_ps(out + j, level);
        }
    }
#endif
};

// (values + shift) * scale, rounded into the dtype.
template <class Format, class Scale>
inline void scale_block(const float* values, Scale scale, Scale shift, size j, typename Format::Word* out) {
    F scaled[PARTS];
    for (int p = 0; p < PARTS; ++p) scaled[p] = (load_f32(values + p * N) + shift.at(j + p * N)) * scale.at(j + p * N);
    Format::store(out, scaled);
}

template <class Format>
inline void dequantize_rows(Planes in, const Lookup& lookup, PerGroup row_scale, PerGroup shift,
                            typename Format::Word* out) {
    using Word = typename Format::Word;
    const size cols = in.cols;
    const PackFunction unpack_codes = unpacker(in.bits);
    const PackFunction unpack_clusters = in.clusters ? unpacker(in.cluster_bits) : nullptr;
    u8 codes[CHUNK] = {}, clusters[CHUNK] = {};
    float values[CHUNK] = {};
    for (size row = 0; row < in.rows; ++row, out += cols) {
        RowOfGroups scales(row_scale, row, cols), shifts(shift, row, cols, RowOfGroups::NOTHING);
        for (size from = 0; from < cols; from += CHUNK) {
            size to = smaller(from + CHUNK, cols);
            unpack_codes(in.codes + row * in.codes_width + from / 8 * in.bits, to - from, codes);
            if (unpack_clusters) {
                unpack_clusters(in.clusters + row * in.clusters_width + from / 8 * in.cluster_bits, to - from, clusters);
            }
            lookup(codes, clusters, to - from, values);
            auto scale_stretch = [&](size begin, size end, auto scale, auto moved) {
                size j = begin;
                for (; j + LANES <= end; j += LANES) scale_block<Format>(values + (j - from), scale, moved, j - begin, out + j);
                if (j == end) return;
                Word last[LANES];
                scale_block<Format>(values + (j - from), scale, moved, j - begin, last);
                __builtin_memcpy(out + j, last, (end - j) * sizeof(Word));
            };
            for_stretches(cols, from, to, scale_stretch, scales, shifts);
        }
    }
}

inline void dequantize(Planes in, size clusters, const float* levels, PerGroup row_scale, PerGroup shift, Kind kind,
                       void* out) {
    size entries = clusters << in.bits;
    Lookup lookup{levels, entries, in.bits, static_cast<u32>(entries - 1)};
    with_kind(kind, [&](auto format) {
        using Format = decltype(format);
        dequantize_rows<Format>(in, lookup, row_scale, shift, static_cast<typename Format::Word*>(out));
    });
}

}  // namespace splitquant::SPLITQUANT_ISA
