// Rows of a weight times inputs. A row's sum is made of four sums, one for each vector of a block, whatever the number of
// tokens, so that a token's result has the same bits in every batch.
#pragma once

#include "../rows.hpp"
#include "dot.hpp"

namespace splitquant::infer::SPLITQUANT_ISA {

constexpr size TILE_ROWS = 4;
constexpr size TILE_TOKENS = 6;
constexpr size FEW = 2;  // tokens up to which every decoded register is used at once

// The row_scales of the columns of each lane, half a block at a time.
struct LaneScales {
    V lane_group[2];
    size group, per_block;

    LaneScales(const Weight& w, bool quarters) : group(w.group), per_block(group < BLOCK ? BLOCK / group : 0) {
        alignas(64) i32 at[16];
        for (size half = 0; half < 2; ++half) {
            for (size lane = 0; lane < 16; ++lane) {
                size column = quarters ? 8 * lane : 64 * half + 4 * lane;
                at[lane] = per_block ? static_cast<i32>(column / group) : 0;
            }
            lane_group[half] = _mm512_load_si512(at);
        }
    }

    // Groups that cut a lane's columns, or blocks, are left to the portable kernels.
    static bool possible(const Weight& w) {
        return w.groups == 1 || w.group % BLOCK == 0 || (w.group >= 8 && BLOCK % w.group == 0);
    }

    inline void of_block(const float* numbers, size block, F& first, F& second) const {
        if (!per_block) {
            first = second = _mm512_set1_ps(numbers[block * BLOCK / group]);
            return;
        }
        F all = _mm512_loadu_ps(numbers + block * per_block);
        first = _mm512_permutexvar_ps(lane_group[0], all);
        second = _mm512_permutexvar_ps(lane_group[1], all);
    }
};

// Memory of a thread.
struct Scratch {
    float* sums;    // [TILE_TOKENS, UNIT, 16]
    float* halves;  // [TILE_TOKENS, TILE_ROWS, 16]
    float* scales;  // [UNIT, groups + 16]
    float* zeros;   // the same
    u16* words;     // [UNIT, blocks * BLOCK]
    size stride;    // of scales and zeros

    static size bytes(const Weight& w) {
        size numbers = (w.groups + 31) / 16 * 16;
        return sizeof(float) * (TILE_TOKENS * UNIT * 16 + TILE_TOKENS * TILE_ROWS * 16 + 2 * UNIT * numbers) +
               2 * UNIT * w.blocks() * BLOCK;
    }

    Scratch(const Weight& w, u8* memory) : stride((w.groups + 31) / 16 * 16) {
        sums = reinterpret_cast<float*>(memory);
        halves = sums + TILE_TOKENS * UNIT * 16;
        scales = halves + TILE_TOKENS * TILE_ROWS * 16;
        zeros = scales + UNIT * stride;
        words = reinterpret_cast<u16*>(zeros + UNIT * stride);
    }
};

// The sums of the lanes of 16 vectors.
inline F sum_lanes(const float* v) {
    F pairs[8], quads[4];
    for (int i = 0; i < 8; ++i) {
        F a = _mm512_load_ps(v + 32 * i), b = _mm512_load_ps(v + 32 * i + 16);
        pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    }
    for (int i = 0; i < 4; ++i) {
        __m512d a = _mm512_castps_pd(pairs[2 * i]), b = _mm512_castps_pd(pairs[2 * i + 1]);
        quads[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    F first = _mm512_add_ps(_mm512_shuffle_f32x4(quads[0], quads[1], 0x88), _mm512_shuffle_f32x4(quads[0], quads[1], 0xDD));
    F last = _mm512_add_ps(_mm512_shuffle_f32x4(quads[2], quads[3], 0x88), _mm512_shuffle_f32x4(quads[2], quads[3], 0xDD));
    return _mm512_add_ps(_mm512_shuffle_f32x4(first, last, 0x88), _mm512_shuffle_f32x4(first, last, 0xDD));
}

template <class Source, class Table, class Dot, bool GROUPED>
struct Multiply {
    using Input = typename Dot::Input;

    const Product& p;
    const Weight& w;
    const u8* packed;
    Layout<Dot> layout;
    Source source;
    Table table;
    LaneScales lanes;
    Scratch scratch;

    Multiply(const Product& product, const u8* inputs, u8* memory)
        : p(product), w(product.weight), packed(inputs), layout{w.blocks(), GROUPED}, source(w), table(w.levels),
          lanes(w, Source::QUARTERS), scratch(w, memory) {
        if constexpr (GROUPED) {  // numbers behind the last group meet inputs of zero, and must be finite
            for (float* at = scratch.scales; at < scratch.scales + 2 * UNIT * scratch.stride; ++at) *at = 0.0f;
        }
    }

    const Input* inputs(size token) const { return reinterpret_cast<const Input*>(packed + token * layout.token_bytes()); }
    const float* lane_sums(size token) const {
        return reinterpret_cast<const float*>(packed + token * layout.token_bytes() + layout.vectors_bytes());
    }

    // Calls body(block, words) for every block of a row, with its levels.
    template <class Body>
    inline void walk(size row, Body body) const {
        // Copies in local variables stay in registers: what bodies store could be these members.
        const Source from = source;
        const Table to = table;
        const size code_step = 16 * static_cast<size>(w.bits), id_step = 16 * static_cast<size>(w.id_bits);
        const u8* codes = w.codes + row * w.codes_width();
        const u8* ids = w.ids ? w.ids + row * w.ids_width() : nullptr;
        const size whole = w.cols / BLOCK;
        V first, second, words[4];
        for (size b = 0; b < whole; ++b) {
            _mm_prefetch(reinterpret_cast<const char*>(codes) + 4096, _MM_HINT_T0);
            if (ids) _mm_prefetch(reinterpret_cast<const char*>(ids) + 2048, _MM_HINT_T0);
            from.template indices<true>(codes, ids, 64, 64, first, second);
            to.levels(first, words[0], words[1]);
            to.levels(second, words[2], words[3]);
            body(b, words);
            codes += code_step;
            ids = ids ? ids + id_step : nullptr;
        }
        if (size left = w.cols % BLOCK) {
            from.template indices<false>(codes, ids, plane_width(left, w.bits), plane_width(left, w.id_bits), first, second);
            to.levels(first, words[0], words[1]);
            to.levels(second, words[2], words[3]);
            body(whole, words);
        }
    }

    void load_numbers(size row, size slot) const {
        if constexpr (GROUPED) {
            scales_of(w, row, scratch.scales + slot * scratch.stride);
            if (w.zero) zeros_of(w, row, scratch.zeros + slot * scratch.stride);
        }
    }

    // One row times T tokens, into the row's vectors of sums.
    template <size T>
    void row_by_tokens(size token, size row, size slot) const {
        const Input* x[T];
        for (size t = 0; t < T; ++t) x[t] = inputs(token + t);
        if constexpr (GROUPED) {
            load_numbers(row, slot);
            const float* scales = scratch.scales + slot * scratch.stride;
            const float* zeros = w.zero ? scratch.zeros + slot * scratch.stride : nullptr;
            F sum[T];
            for (size t = 0; t < T; ++t) sum[t] = _mm512_setzero_ps();
            walk(row, [&](size b, const V* words) {
                F s0, s1, z0, z1;
                lanes.of_block(scales, b, s0, s1);
                if (zeros) lanes.of_block(zeros, b, z0, z1);
                for (size t = 0; t < T; ++t) {
                    F a, c;
                    closed(words, x[t] + layout.vector(0, b), a, c);
                    if (zeros) {
                        const float* of_lanes = lane_sums(token + t) + 32 * b;
                        a = _mm512_fnmadd_ps(z0, _mm512_load_ps(of_lanes), a);
                        c = _mm512_fnmadd_ps(z1, _mm512_load_ps(of_lanes + 16), c);
                    }
                    sum[t] = _mm512_fmadd_ps(s1, c, _mm512_fmadd_ps(s0, a, sum[t]));
                }
            });
            for (size t = 0; t < T; ++t) _mm512_store_ps(scratch.sums + (t * UNIT + slot) * 16, sum[t]);
        } else {
            F sum[4][T];
            for (size s = 0; s < 4; ++s) {
                for (size t = 0; t < T; ++t) sum[s][t] = _mm512_setzero_ps();
            }
            walk(row, [&](size b, const V* words) {
                for (size t = 0; t < T; ++t) {
                    for (size s = 0; s < 4; ++s) sum[s][t] = Dot::step(sum[s][t], words[s], x[t] + layout.vector(s, b));
                }
            });
            for (size t = 0; t < T; ++t) {
                F all = _mm512_add_ps(_mm512_add_ps(sum[0][t], sum[1][t]), _mm512_add_ps(sum[2][t], sum[3][t]));
                _mm512_store_ps(scratch.sums + (t * UNIT + slot) * 16, all);
            }
        }
    }

    // The products of a block's two halves.
    static inline void closed(const V* words, const Input* x, F& first, F& second) {
        first = Dot::step(Dot::step(_mm512_setzero_ps(), words[0], x), words[1], x + 32);
        second = Dot::step(Dot::step(_mm512_setzero_ps(), words[2], x + 64), words[3], x + 96);
    }

    void decode(size row, size slot) const {
        u16* out = scratch.words + slot * layout.blocks * BLOCK;
        load_numbers(row, slot);
        walk(row, [&](size b, const V* words) {
            for (size s = 0; s < 4; ++s) _mm512_store_si512(out + layout.vector(s, b), words[s]);
        });
    }

    // Four decoded rows times T tokens.
    template <size T>
    __attribute__((noinline)) void tile(size token, size slot) const {
        const u16* words[TILE_ROWS];
        const Input* x[T];
        for (size r = 0; r < TILE_ROWS; ++r) words[r] = scratch.words + (slot + r) * layout.blocks * BLOCK;
        for (size t = 0; t < T; ++t) x[t] = inputs(token + t);
        float* sums = scratch.sums + slot * 16;
        for (size s = 0; s < 4; ++s) {
            F sum[TILE_ROWS][T];
            for (size r = 0; r < TILE_ROWS; ++r) {
                for (size t = 0; t < T; ++t) sum[r][t] = _mm512_setzero_ps();
            }
            const size begin = layout.vector(s, 0), end = begin + 32 * layout.blocks;
            for (size at = begin; at < end; at += 32) {
                for (size r = 0; r < TILE_ROWS; ++r) {
                    V word = _mm512_load_si512(words[r] + at);
                    for (size t = 0; t < T; ++t) sum[r][t] = Dot::step(sum[r][t], word, x[t] + at);
                }
            }
            for (size r = 0; r < TILE_ROWS; ++r) {
                for (size t = 0; t < T; ++t) {
                    float* all = sums + (t * UNIT + r) * 16;
                    float* half = scratch.halves + (t * TILE_ROWS + r) * 16;
                    if (s == 0) _mm512_store_ps(all, sum[r][t]);
                    if (s == 1) _mm512_store_ps(all, _mm512_add_ps(_mm512_load_ps(all), sum[r][t]));
                    if (s == 2) _mm512_store_ps(half, sum[r][t]);
                    if (s == 3) {
                        F second = _mm512_add_ps(_mm512_load_ps(half), sum[r][t]);
                        _mm512_store_ps(all, _mm512_add_ps(_mm512_load_ps(all), second));
                    }
                }
            }
        }
    }

    // The same where every group of columns has a scale of its own.
    template <size R, size T>
    __attribute__((noinline)) void tile_of_groups(size token, size slot) const {
        F sum[R][T];
        for (size r = 0; r < R; ++r) {
            for (size t = 0; t < T; ++t) sum[r][t] = _mm512_setzero_ps();
        }
        for (size b = 0; b < layout.blocks; ++b) {
            const size at = layout.vector(0, b);
            for (size r = 0; r < R; ++r) {
                const u16* from = scratch.words + (slot + r) * layout.blocks * BLOCK + at;
                V words[4];
                for (size s = 0; s < 4; ++s) words[s] = _mm512_load_si512(from + 32 * s);
                F s0, s1, z0, z1;
                lanes.of_block(scratch.scales + (slot + r) * scratch.stride, b, s0, s1);
                if (w.zero) lanes.of_block(scratch.zeros + (slot + r) * scratch.stride, b, z0, z1);
                for (size t = 0; t < T; ++t) {
                    F a, c;
                    closed(words, inputs(token + t) + at, a, c);
                    if (w.zero) {
                        const float* of_lanes = lane_sums(token + t) + 32 * b;
                        a = _mm512_fnmadd_ps(z0, _mm512_load_ps(of_lanes), a);
                        c = _mm512_fnmadd_ps(z1, _mm512_load_ps(of_lanes + 16), c);
                    }
                    sum[r][t] = _mm512_fmadd_ps(s1, c, _mm512_fmadd_ps(s0, a, sum[r][t]));
                }
            }
        }
        for (size r = 0; r < R; ++r) {
            for (size t = 0; t < T; ++t) _mm512_store_ps(scratch.sums + (t * UNIT + slot + r) * 16, sum[r][t]);
        }
    }

    template <size T>
    void tiles(size token, size rows) const {
        for (size slot = 0; slot < rows; slot += TILE_ROWS) {
            if constexpr (GROUPED) {
                tile_of_groups<TILE_ROWS, T>(token, slot);
            } else {
                tile<T>(token, slot);
            }
        }
    }

    // The results of a unit of rows for T tokens, from their vectors of sums.
    void finish(size token, size count, size row, size rows) const {
        F scale = _mm512_set1_ps(w.scale), zero = _mm512_setzero_ps();
        if (!GROUPED && w.row_scale) scale = _mm512_mul_ps(scale, load_floats(w.row_scale, w.scale_kind, row, rows));
        if (!GROUPED && w.zero) {
            alignas(64) float zeros[UNIT] = {};
            for (size i = 0; i < rows; ++i) zeros[i] = zero_of(w, row + i, 0);
            zero = _mm512_load_ps(zeros);
        }
        F bias = p.bias ? load_floats(p.bias, p.kind, row, rows) : _mm512_setzero_ps();
        for (size t = 0; t < count; ++t) {
            F sum = sum_lanes(scratch.sums + t * UNIT * 16);
            if (!GROUPED && w.zero) {
                sum = _mm512_fnmadd_ps(zero, _mm512_load_ps(lane_sums(token + t) + 32 * layout.blocks), sum);
            }
            if constexpr (!GROUPED) sum = _mm512_mul_ps(sum, scale);
            store_floats(p.out, p.kind, (token + t) * w.rows + row, rows, _mm512_add_ps(sum, bias));
        }
    }

    void units(size from, size to) const {
        for (size unit = from; unit < to; ++unit) {
            const size row = unit * UNIT, rows = row + UNIT < w.rows ? UNIT : w.rows - row;
            if (p.tokens <= FEW) {
                for (size i = 0; i < rows; ++i) {
                    if (p.tokens == 1) row_by_tokens<1>(0, row + i, i);
                    if (p.tokens == 2) row_by_tokens<2>(0, row + i, i);
                }
                finish(0, p.tokens, row, rows);
                continue;
            }
            for (size i = 0; i < rows; ++i) decode(row + i, i);
            // Tiles of about the same size: eight tokens are 4 + 4, not 6 + 2.
            const size count = (p.tokens + TILE_TOKENS - 1) / TILE_TOKENS;
            for (size n = 0, token = 0; n < count; ++n) {
                const size t = (p.tokens - token + count - n - 1) / (count - n);
                switch (t) {
                    case 1: tiles<1>(token, rows); break;
                    case 2: tiles<2>(token, rows); break;
                    case 3: tiles<3>(token, rows); break;
                    case 4: tiles<4>(token, rows); break;
                    case 5: tiles<5>(token, rows); break;
                    default: tiles<6>(token, rows); break;
                }
                finish(token, t, row, rows);
                token += t;
            }
        }
    }
};

}  // namespace splitquant::infer::SPLITQUANT_ISA
