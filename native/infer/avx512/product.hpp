// Rows of a weight times inputs. A row's sum is made of two sums, one for each half of a block's vectors, whatever the number
// of tokens, so that a token's result has the same bits in every batch.
#pragma once

#include "../rows.hpp"
#include "dot.hpp"

namespace splitquant::infer::SPLITQUANT_ISA {

enum Scaling { BY_ROW, BY_GROUP, BY_GROUP_WITH_ZEROS };

constexpr size TILE_ROWS = 4;
constexpr size TILE_TOKENS = 6;
constexpr size FEW = 4;  // tokens up to which every decoded register is used at once

// Whether the vectors of a block lie side by side in packed inputs and decoded rows, else those of each of the two sums do.
inline bool by_blocks(const Product& p) { return p.weight.groups > 1 || p.tokens <= FEW; }

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

// The row_scales and zero points of a row as floats, 16 groups at a time; what lies behind the last group is 0.
struct RowNumbers {
    V from, shift, low;

    explicit RowNumbers(const Weight& w) {
        alignas(64) u8 bytes[64];
        alignas(64) u32 shifts[16];
        const u32 bits = static_cast<u32>(w.zero_bits);
        for (u32 j = 0; j < 16; ++j) {
            for (u32 t = 0; t < 4; ++t) bytes[4 * j + t] = static_cast<u8>(t < 2 ? j * bits / 8 + t : 63);
            shifts[j] = j * bits % 8;
        }
        from = _mm512_load_si512(bytes);
        shift = _mm512_load_si512(shifts);
        low = _mm512_set1_epi32((1 << w.zero_bits) - 1);
    }

    void scales(const Weight& w, size row, float* out) const {
        const F scale = _mm512_set1_ps(w.scale);
        for (size g = 0; g < w.groups; g += 16) {
            F found = w.row_scale ? load_floats(w.row_scale, w.scale_kind, row * w.groups + g, w.groups - g) : _mm512_set1_ps(1.0f);
            _mm512_store_ps(out + g, _mm512_mul_ps(found, scale));
        }
    }

    void zeros(const Weight& w, size row, float* out) const {
        const size width = plane_width(w.groups, w.zero_bits), step = 2 * static_cast<size>(w.zero_bits);
        const u8* plane = w.zero + row * width;
        for (size g = 0, byte = 0; g < w.groups; g += 16, byte += step) {
            V bytes = _mm512_maskz_loadu_epi8(first_bytes(width - byte < step ? width - byte : step), plane + byte);
            V two = _mm512_srlv_epi32(_mm512_permutexvar_epi8(from, bytes), shift);
            _mm512_store_ps(out + g, _mm512_cvtepi32_ps(_mm512_and_si512(two, low)));
        }
    }
};

// Memory of a thread.
struct Scratch {
    float* sums;    // [TILE_TOKENS, UNIT, 16]
    float* scales;  // [UNIT, groups + 16]
    float* zeros;   // the same
    void* words;    // [UNIT, blocks * BLOCK]
    size stride;    // of scales and zeros

    static size bytes(const Weight& w, size input) {
        size numbers = (w.groups + 31) / 16 * 16;
        return sizeof(float) * (TILE_TOKENS * UNIT * 16 + 2 * UNIT * numbers) +
               input * UNIT * w.blocks() * BLOCK;
    }

    Scratch(const Weight& w, u8* memory) : stride((w.groups + 31) / 16 * 16) {
        sums = reinterpret_cast<float*>(memory);
        scales = sums + TILE_TOKENS * UNIT * 16;
        zeros = scales + UNIT * stride;
        words = zeros + UNIT * stride;
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

// What is done with decoded rows; it does not depend on how they were decoded.
template <class Dot, Scaling SCALING, bool QUARTERS>
struct Tiles {
    static constexpr bool GROUPED = SCALING != BY_ROW;
    static constexpr size ROWS_OF_GROUPS = QUARTERS && Dot::VECTORS == 1 ? 2 : 1;  // for more there are too few registers
    static constexpr bool ZEROS = SCALING == BY_GROUP_WITH_ZEROS;
    using Input = typename Dot::Input;
    using Words = typename Dot::Words;

    const Product& p;
    const Weight& w;
    const u8* packed;
    Layout<Dot> layout;
    LaneScales lanes;
    RowNumbers numbers;
    Scratch scratch;
    float per_factor = 1.0f;  // 1 / the factor of the levels

    Tiles(const Product& product, const u8* inputs, u8* memory)
        : p(product), w(product.weight), packed(inputs), layout{w.blocks(), by_blocks(product)}, lanes(w, QUARTERS), numbers(w),
          scratch(w, memory) {
        if constexpr (GROUPED) {  // numbers behind the last group meet inputs of zero, and must be finite
            for (float* at = scratch.scales; at < scratch.scales + 2 * UNIT * scratch.stride; ++at) *at = 0.0f;
        }
    }

    const Input* inputs(size token) const { return reinterpret_cast<const Input*>(packed + token * layout.token_bytes()); }
    const float* lane_sums(size token) const {
        return reinterpret_cast<const float*>(packed + token * layout.token_bytes() + layout.vectors_bytes());
    }
    Input* decoded_row(size slot) const { return static_cast<Input*>(scratch.words) + slot * layout.blocks * BLOCK; }

    void load_numbers(size row, size slot) const {
        if constexpr (GROUPED) numbers.scales(w, row, scratch.scales + slot * scratch.stride);
        if constexpr (ZEROS) numbers.zeros(w, row, scratch.zeros + slot * scratch.stride);
    }

    // The row_scales and zero points of a block of a row.
    struct Numbers {
        F scale[2], zero[2];

        inline Numbers(const Tiles& m, size block, size slot) {
            m.lanes.of_block(m.scratch.scales + slot * m.scratch.stride, block, scale[0], scale[1]);
            if constexpr (ZEROS) m.lanes.of_block(m.scratch.zeros + slot * m.scratch.stride, block, zero[0], zero[1]);
        }
    };

    // Adds a block whose columns have scales of their own. step(s, sum) adds the products of vector s; lanes hold the same
    // columns in all vectors where these are quarters, else in the first two and in the last two.
    template <class Step>
    SPLITQUANT_INLINE inline F closed(const Numbers& n, size token, size b, F sum, Step step) const {
        const float* of_lanes = lane_sums(token) + 32 * b;
        F first = step(Index<1>{}, step(Index<0>{}, _mm512_setzero_ps()));
        if constexpr (QUARTERS) {
            first = step(Index<3>{}, step(Index<2>{}, first));
            if constexpr (ZEROS) first = _mm512_fnmadd_ps(n.zero[0], _mm512_load_ps(of_lanes), first);
            return _mm512_fmadd_ps(n.scale[0], first, sum);
        } else {
            F second = step(Index<3>{}, step(Index<2>{}, _mm512_setzero_ps()));
            if constexpr (ZEROS) {
                first = _mm512_fnmadd_ps(n.zero[0], _mm512_load_ps(of_lanes), first);
                second = _mm512_fnmadd_ps(n.zero[1], _mm512_load_ps(of_lanes + 16), second);
            }
            return _mm512_fmadd_ps(n.scale[1], second, _mm512_fmadd_ps(n.scale[0], first, sum));
        }
    }

    // Four decoded rows times T tokens.
    template <size T>
    __attribute__((noinline)) void tile(size token, size slot) const {
        constexpr size R = TILE_ROWS;
        const size stride = layout.blocks * BLOCK, token_stride = layout.token_bytes() / sizeof(Input);
        const Input* rows = decoded_row(slot);
        const Input* x = inputs(token);
        float* sums = scratch.sums + slot * 16;
        for (size half = 0; half < 2; ++half) {
            F sum[R * T];
            times<R * T>([&](auto i) SPLITQUANT_INLINE { sum[i] = _mm512_setzero_ps(); });
            const size begin = layout.vector(2 * half, 0), end = begin + 64 * layout.blocks;
            // 24 sums, 6 inputs and a word: as many registers as there are.
            for (size at = begin; at < end; at += 32 / Dot::VECTORS) {
                V inputs[T];
                times<T>([&](auto t) SPLITQUANT_INLINE { inputs[t] = _mm512_load_si512(x + t * token_stride + at); });
                times<R>([&](auto r) SPLITQUANT_INLINE {
                    V word = _mm512_load_si512(rows + r * stride + at);
                    times<T>([&](auto t) SPLITQUANT_INLINE { sum[r * T + t] = Dot::step(sum[r * T + t], word, inputs[t]); });
                });
            }
            times<R * T>([&](auto i) SPLITQUANT_INLINE {
                constexpr size r = i.value / T, t = i.value % T;
                float* all = sums + (t * UNIT + r) * 16;
                _mm512_store_ps(all, half ? _mm512_add_ps(_mm512_load_ps(all), sum[i]) : sum[i]);
            });
        }
    }

    // Decoded rows, whose groups of columns have scales of their own, times T tokens.
    template <size T>
    __attribute__((noinline)) void rows_of_groups(size token, size slot) const {
        constexpr size R = ROWS_OF_GROUPS;
        F sum[R * T];
        times<R * T>([&](auto i) SPLITQUANT_INLINE { sum[i] = _mm512_setzero_ps(); });
        for (size b = 0; b < layout.blocks; ++b) {
            Words loaded[4 * R];
            times<4 * R>([&](auto i) SPLITQUANT_INLINE {
                loaded[i] = load_words<Dot>(decoded_row(slot + i.value / 4) + b * BLOCK + i.value % 4 * 32);
            });
            const Numbers of_block(*this, b, slot), of_next(*this, b, slot + R - 1);
            times<T>([&](auto t) SPLITQUANT_INLINE {
                const Input* from = inputs(token + t) + b * BLOCK;
                Words x[4];
                times<4>([&](auto s) SPLITQUANT_INLINE { x[s] = load_words<Dot>(from + s * 32); });
                times<R>([&](auto r) SPLITQUANT_INLINE {
                    F& all = sum[r * T + t];
                    all = closed(r.value ? of_next : of_block, token + t, b, all, [&](auto s, F part) SPLITQUANT_INLINE {
                        times<Dot::VECTORS>([&](auto v) SPLITQUANT_INLINE {
                            part = Dot::step(part, loaded[4 * r + s].v[v], x[s].v[v]);
                        });
                        return part;
                    });
                });
            });
        }
        times<R * T>([&](auto i) SPLITQUANT_INLINE {
            constexpr size r = i.value / T, t = i.value % T;
            _mm512_store_ps(scratch.sums + (t * UNIT + slot + r) * 16, sum[i]);
        });
    }

    template <size T>
    void decoded_by_tokens(size token, size rows) const {
        if constexpr (GROUPED) {
            for (size slot = 0; slot < rows; slot += ROWS_OF_GROUPS) rows_of_groups<T>(token, slot);
        } else {
            for (size slot = 0; slot < rows; slot += TILE_ROWS) tile<T>(token, slot);
        }
    }

    // The results of some tokens for rows that were decoded.
    void decoded(size row, size rows) const {
        // Tiles of about the same size: eight tokens are 4 + 4, not 6 + 2.
        const size count = (p.tokens + TILE_TOKENS - 1) / TILE_TOKENS;
        for (size n = 0, token = 0; n < count; ++n) {
            const size t = (p.tokens - token + count - n - 1) / (count - n);
            switch (t) {
                case 1: decoded_by_tokens<1>(token, rows); break;
                case 2: decoded_by_tokens<2>(token, rows); break;
                case 3: decoded_by_tokens<3>(token, rows); break;
                case 4: decoded_by_tokens<4>(token, rows); break;
                case 5: decoded_by_tokens<5>(token, rows); break;
                default: decoded_by_tokens<6>(token, rows); break;
            }
            finish(token, t, row, rows);
            token += t;
        }
    }

    // The results of a unit of rows for some tokens, from their vectors of sums.
    void finish(size token, size count, size row, size rows) const {
        F scale = _mm512_set1_ps(GROUPED ? per_factor : w.scale * per_factor), zero = _mm512_setzero_ps();
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
            store_floats(p.out, p.kind, (token + t) * w.rows + row, rows, _mm512_fmadd_ps(sum, scale, bias));
        }
    }
};

template <class Source, class Table, class Dot, Scaling SCALING>
struct Multiply : Tiles<Dot, SCALING, Source::QUARTERS> {
    using Base = Tiles<Dot, SCALING, Source::QUARTERS>;
    using typename Base::Input;
    using typename Base::Words;
    using Levels = typename Dot::template Levels<Table>;
    using Base::p, Base::w, Base::layout, Base::scratch;

    Source source;
    Levels table;

    Multiply(const Product& product, const u8* inputs, u8* memory)
        : Base(product, inputs, memory), source(product.weight), table(product.weight.levels) {
        this->per_factor = 1.0f / table.factor;
    }

    // Calls body(block, words) for every block of a row, with its levels.
    template <class Body>
    SPLITQUANT_INLINE inline void walk(size row, Body body) const {
        // Copies in local variables stay in registers: what bodies store could be these members.
        const Source from = source;
        const Levels to = table;
        const size code_step = 16 * static_cast<size>(w.bits), id_step = 16 * static_cast<size>(w.id_bits);
        const u8* codes = w.codes + row * w.codes_width();
        const u8* ids = w.ids ? w.ids + row * w.ids_width() : codes;
        const size whole = w.cols / BLOCK;
        V first, second;
        Words words[4];
        for (size b = 0; b < whole; ++b) {
            // Into the second-level cache: the first is for the inputs.
            _mm_prefetch(reinterpret_cast<const char*>(codes) + 4096, _MM_HINT_T1);
            if (Source::IDS) _mm_prefetch(reinterpret_cast<const char*>(ids) + 2048, _MM_HINT_T1);
            from.template indices<true>(codes, ids, 64, 64, first, second);
            to.find(first, words[0], words[1]);
            to.find(second, words[2], words[3]);
            body(b, words);
            codes += code_step;
            ids += id_step;
        }
        if (size left = w.cols % BLOCK) {
            from.template indices<false>(codes, ids, plane_width(left, w.bits), plane_width(left, w.id_bits), first, second);
            to.find(first, words[0], words[1]);
            to.find(second, words[2], words[3]);
            body(whole, words);
        }
    }

    // One row times T tokens, at most FEW, into the row's vectors of sums.
    template <size T>
    __attribute__((noinline)) void row_by_tokens(size row, size slot) const {
        float* const sums = scratch.sums + slot * 16;
        if constexpr (Base::GROUPED) {
            this->load_numbers(row, slot);
            F sum[T];
            times<T>([&](auto t) SPLITQUANT_INLINE { sum[t] = _mm512_setzero_ps(); });
            walk(row, [&](size b, const Words (&words)[4]) SPLITQUANT_INLINE {
                const typename Base::Numbers of_block(*this, b, slot);
                times<T>([&](auto t) SPLITQUANT_INLINE {
                    const Input* x = this->inputs(t) + b * BLOCK;
                    sum[t] = this->closed(of_block, t, b, sum[t], [&](auto s, F part) SPLITQUANT_INLINE {
                        return Dot::step(part, words[s], x + s * 32);
                    });
                });
            });
            times<T>([&](auto t) SPLITQUANT_INLINE { _mm512_store_ps(sums + t * UNIT * 16, sum[t]); });
        } else {
            const Input* x[T];
            times<T>([&](auto t) SPLITQUANT_INLINE { x[t] = this->inputs(t); });
            F sum[2 * T];
            times<2 * T>([&](auto i) SPLITQUANT_INLINE { sum[i] = _mm512_setzero_ps(); });
            walk(row, [&](size b, const Words (&words)[4]) SPLITQUANT_INLINE {
                times<T>([&](auto t) SPLITQUANT_INLINE {
                    times<4>([&](auto s) SPLITQUANT_INLINE {
                        constexpr size half = s.value / 2;
                        sum[2 * t + half] = Dot::step(sum[2 * t + half], words[s], x[t] + b * BLOCK + s * 32);
                    });
                });
            });
            times<T>([&](auto t) SPLITQUANT_INLINE {
                _mm512_store_ps(sums + t * UNIT * 16, _mm512_add_ps(sum[2 * t], sum[2 * t + 1]));
            });
        }
    }

    __attribute__((noinline)) void decode(size row, size slot) const {
        Input* out = this->decoded_row(slot);
        this->load_numbers(row, slot);
        walk(row, [&](size b, const Words (&words)[4]) SPLITQUANT_INLINE {
            times<4>([&](auto s) SPLITQUANT_INLINE { store_words<Dot>(out + layout.vector(s, b), words[s]); });
        });
    }

    void units(size from, size to) const {
        for (size unit = from; unit < to; ++unit) {
            const size row = unit * UNIT, rows = row + UNIT < w.rows ? UNIT : w.rows - row;
            if (p.tokens <= FEW) {
                for (size i = 0; i < rows; ++i) {
                    if (p.tokens == 1) row_by_tokens<1>(row + i, i);
                    if (p.tokens == 2) row_by_tokens<2>(row + i, i);
                    if (p.tokens == 3) row_by_tokens<3>(row + i, i);
                    if (p.tokens == 4) row_by_tokens<4>(row + i, i);
                }
                this->finish(0, p.tokens, row, rows);
            } else {
                for (size i = 0; i < rows; ++i) decode(row + i, i);
                this->decoded(row, rows);
            }
        }
    }
};

}  // namespace splitquant::infer::SPLITQUANT_ISA
