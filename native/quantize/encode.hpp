// From weights to packed codes and cluster ids and the errors they make, in one pass over each row.
#pragma once

#include "pack.hpp"

namespace splitquant::SPLITQUANT_ISA {

// 1.5 * 2**23: its sum with a number in [0, 255] has the number, rounded to nearest even, as its last bits.
constexpr float ROUNDER = 12582912.0f;

// Levels that are not moved: as if by -0, without the work.
struct Unmoved {};
inline F moved_down(F x, Unmoved) { return x; }
inline F moved_down(F x, F shift) { return x - shift; }
inline F moved_up(F x, Unmoved) { return x; }
inline F moved_up(F x, F shift) { return x + shift; }

// The grid in registers. Clusters are padded to COUNT by ones that no value reaches (a comparison with NaN is false).
template <int COUNT>
struct Encoder {
    static constexpr bool HAS_CLUSTERS = COUNT > 1;

    F lower[COUNT];
    Table8 scale, offset, inverse_scale;
    F code_min, code_max;

    static Table8 table(const float* from, size k) {
        float padded[MAX_CLUSTERS] = {};
        __builtin_memcpy(padded, from, k * sizeof(float));
        return Table8(padded);
    }

    explicit Encoder(Grid g)
        : scale(table(g.scale, g.clusters)),
          offset(table(g.offset, g.clusters)),
          inverse_scale(table(g.inverse_scale, g.clusters)),
          code_min(splat(static_cast<float>(g.code_min))),
          code_max(splat(static_cast<float>(g.code_max))) {
        for (int c = 0; c < COUNT; ++c) {
            lower[c] = splat(static_cast<size>(c) < g.clusters ? g.lower[c] : __builtin_nanf(""));
        }
    }

    // Returns the level of u, moved by `shift` (an F or Unmoved); its code is the low byte of `code`. No fused multiply-add: the reference rounds twice.
    template <class Shift>
    F level(F u, Shift shift, I& id, I& code) const {
        id = I{};
        for (int c = 1; c < COUNT; ++c) id = count_reached(id, u, lower[c]);
        F start = offset[id];
        F steps = moved_down(u - start, shift) * inverse_scale[id];
        // Clipping before rounding is the same (the bounds are integers), and takes care of NaN and infinity.
        F rounded = least(greatest(steps, code_min), code_max) + ROUNDER;
        code = (I)rounded;
        return moved_up(scale[id] * (rounded - ROUNDER) + start, shift);
    }
};

// The errors of a row, in 16 interleaved lanes.
struct ErrorSums {
    SquareSums signal[PARTS], noise[PARTS];
    F most[PARTS] = {};

    void add(int part, F w, F miss) {
        signal[part].add(w);
        noise[part].add(miss);
        most[part] = greatest_magnitude(most[part], miss);
    }

    static double in_order(const SquareSums (&sums)[PARTS]) {
        double lanes[LANES], total = 0.0;
        for (int p = 0; p < PARTS; ++p) sums[p].store(lanes + p * N);
        for (double lane : lanes) total += lane;
        return total;
    }

    float largest() const {
        float greatest_of_all = 0.0f;
        for (F part : most) {
            for (int i = 0; i < N; ++i) greatest_of_all = part[i] > greatest_of_all ? part[i] : greatest_of_all;
        }
        return greatest_of_all;
    }
};

// Whether all 16 weights of a block count: the lanes that do have all bits set.
struct Whole {
    F keep(int, F x) const { return x; }
};
struct Partial {
    u32 mask[LANES];
    explicit Partial(size n) {
        for (size i = 0; i < LANES; ++i) mask[i] = i < n ? ~u32{0} : 0;
    }
    F keep(int part, F x) const {
        U m;
        __builtin_memcpy(&m, mask + part * N, sizeof m);
        return (F)((U)x & m);
    }
};

struct ByteChunk {
    u8 codes[CHUNK];
    u8 clusters[CHUNK];
};

template <class Format, class Coder, class Scale, class Shift, class Lanes>
inline void encode_block(const Coder& encoder, const typename Format::Word* x, Scale row_scale, Scale inverse,
                         Shift shift, size j, Lanes lanes, ErrorSums& errors, u8* codes, u8* clusters) {
    I id[PARTS], code[PARTS];
    for (int p = 0; p < PARTS; ++p) {
        F w = Format::load(x + p * N);
        F level = encoder.level(w * inverse.at(j + p * N), shift.at(j + p * N), id[p], code[p]);
        errors.add(p, w, lanes.keep(p, w - level * row_scale.at(j + p * N)));
    }
    store_bytes(codes, code);
    if constexpr (Coder::HAS_CLUSTERS) store_bytes(clusters, id);
}

template <class Format, bool MOVED = false, class Coder>
inline void encode_rows(Matrix x, PerGroup row_scale, PerGroup inverse, PerGroup shift, const Coder& encoder, Planes out,
                        RowErrors errors) {
    using Word = typename Format::Word;
    const PackFunction pack_codes = packer(out.bits);
    const PackFunction pack_clusters = out.clusters ? packer(out.cluster_bits) : nullptr;
    ByteChunk chunk;
    for (size row = 0; row < x.rows; ++row) {
        const Word* weights = static_cast<const Word*>(x.data) + row * x.cols;
        RowOfGroups row_scales(row_scale, row, x.cols), inverses(inverse, row, x.cols);
        ErrorSums sums;
        for (size from = 0; from < x.cols; from += CHUNK) {
            size to = smaller(from + CHUNK, x.cols);
            auto encode_stretch = [&](size begin, size end, auto scale, auto inverse_scale, auto moved) {
                size j = begin;
                for (; j + LANES <= end; j += LANES) {
                    encode_block<Format>(encoder, weights + j, scale, inverse_scale, moved, j - begin, Whole{}, sums,
                                         chunk.codes + (j - from), chunk.clusters + (j - from));
                }
                if (j == end) return;
                Padded<Word> last(weights + j, end - j);
                encode_block<Format>(encoder, last.words, scale, inverse_scale, moved, j - begin, Partial(end - j), sums,
                                     chunk.codes + (j - from), chunk.clusters + (j - from));
            };
            if constexpr (MOVED) {
                for_stretches(x.cols, from, to, encode_stretch, row_scales, inverses, RowOfGroups(shift, row, x.cols));
            } else {
                auto unmoved = [&](size begin, size end, auto scale, auto inverse_scale) {
                    encode_stretch(begin, end, scale, inverse_scale, Same{Unmoved{}});
                };
                for_stretches(x.cols, from, to, unmoved, row_scales, inverses);
            }
            pack_codes(chunk.codes, to - from, out.codes + row * out.codes_width + from / 8 * out.bits);
            if (pack_clusters) {
                pack_clusters(chunk.clusters, to - from,
                              out.clusters + row * out.clusters_width + from / 8 * out.cluster_bits);
            }
        }
        errors.signal[row] = ErrorSums::in_order(sums.signal);
        errors.noise[row] = ErrorSums::in_order(sums.noise);
        errors.max_error[row] = sums.largest();
    }
}

inline void encode(Matrix x, PerGroup row_scale, PerGroup inverse, PerGroup shift, Grid grid, Planes out, RowErrors errors) {
    with_kind(x.kind, [&](auto format) {
        using Format = decltype(format);
        switch (grid.clusters) {
            case 1:
                if (shift.data) return encode_rows<Format, true>(x, row_scale, inverse, shift, Encoder<1>(grid), out, errors);
                return encode_rows<Format>(x, row_scale, inverse, shift, Encoder<1>(grid), out, errors);
            case 2: return encode_rows<Format>(x, row_scale, inverse, shift, Encoder<2>(grid), out, errors);
            case 3: return encode_rows<Format>(x, row_scale, inverse, shift, Encoder<3>(grid), out, errors);
            case 4: return encode_rows<Format>(x, row_scale, inverse, shift, Encoder<4>(grid), out, errors);
            default: return encode_rows<Format>(x, row_scale, inverse, shift, Encoder<8>(grid), out, errors);
        }
    });
}

}  // namespace splitquant::SPLITQUANT_ISA
