// Grids of groups of their own, see splitquant.core.own: the row_scale and zero_point of least squared error.
//
// The search runs on weights in 16-bit fixed point, where every sum is an exact integer: the loops are plain, and the
// compiler may add in any order.
#pragma once

#include <stdlib.h>

#include "encode.hpp"

namespace splitquant::SPLITQUANT_ISA {

using i16 = std::int16_t;

constexpr float LARGEST_FIXED = 32767.0f;
constexpr double MOST_INVERSE = 30000.0, CLEARLY = 0.85, PER_WEIGHT = 256.0;
constexpr float SMALLEST_SCALE = 0x1p-126f, SMALLEST_HALF = 0x1p-24f;
constexpr size EXACT = 100;  // so many sums of two products of 16-bit weights and 8-bit codes add up within 32 bits
constexpr size STRIDE = 32;  // weights of a group in fixed point, rounded up to whole registers of any width
constexpr size LONG = 1024;  // a group that keeps the processor busy alone
constexpr double SHARES[7][4] = {
    {0.5, 0.25, 0.125, -0.0625},         {0.5, 0.25, 0.125, -0.0625},        {0.3125, 0.15625, 0.0625, -0.046875},
    {0.25, 0.125, 0.046875, -0.046875},  {0.1875, 0.09375, 0.03125, -0.03125}, {0.1875, 0.0625, 0.015625, -0.015625},
    {0.1875, 0.046875, 0.015625, -0.015625},
};

inline S short_splat(i16 x) { return S{} + x; }

inline double clipped(double x, double most) { return x < 0.0 ? 0.0 : x > most ? most : x; }

// The nearest row_scale that a kind can hold, not 0.
inline float stored_row_scale(double scale, Kind kind) {
    float near = static_cast<float>(scale);
    if (kind == Kind::bf16) {
        u32 bits = __builtin_bit_cast(u32, near);
        near = __builtin_bit_cast(float, (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000u);
    } else if (kind == Kind::fp16) {
        float lanes[N] = {near};
        u16 words[LANES] = {};
        store_fp16(words, load_f32(lanes));
        near = load_fp16(words)[0];
    }
    float least = kind == Kind::fp16 ? SMALLEST_HALF : SMALLEST_SCALE;
    return near > least ? near : least;
}

struct OwnGrid {
    float row_scale;
    double zero;
};

// Groups that are searched side by side: each step of a search waits for the one before, those of other groups do not.
constexpr size BATCH = 8;

struct Batch {
    size groups, n, stride;  // of the weights in fixed point, [groups, stride], zero behind the first n
    const i16* fixed;
    double squares[BATCH], unit[BATCH], low[BATCH], high[BATCH];
    OwnGrid textbook[BATCH], found[BATCH];
    bool clear[BATCH];  // whether what was found is clearly better than the textbook
};

// Sums of weight times code and of code squared, where codes are counted from the zero_point.
struct CodeSums {
    double product[BATCH], count[BATCH];
};

inline void add_codes(const i16* w, size n, i16 factor, int fraction, i16 low, i16 high, i64& product, i64& count) {
    const S factors = short_splat(factor), lows = short_splat(low), highs = short_splat(high);
    const S half = short_splat(static_cast<i16>(1 << (fraction - 1)));
    for (size from = 0; from < n; from += EXACT * SHORTS) {
        I some{}, squares{};
        i32 sums[2];
        for (size j = from; j < smaller(n, from + EXACT * SHORTS); j += SHORTS) {
            S weight = load_i16(w + j);
            S code = within((multiply_high(weight, factors) + half) >> fraction, lows, highs);
            some += add_products(weight, code);
            squares += add_products(code, code);
        }
        sums_of(some, squares, sums);
        product += sums[0];
        count += sums[1];
    }
}

struct OwnSearch {
    int bits;
    Kind kind;
    double codes, half, unit;
    int fraction;
    i32 most;

    OwnSearch(int bits, Kind kind)
        : bits(bits),
          kind(kind),
          codes(static_cast<double>((1 << bits) - 1)),
          half(static_cast<double>(1 << (bits - 1))),
          unit(1.0 / half),
          fraction(14 - bits < 9 ? 14 - bits : 9),
          most((1 << bits) - 1) {}

    double zero_point(double low, double step) const { return clipped(__builtin_rint(-low / step), codes); }

    OwnGrid textbook(double low, double high) const {
        float row_scale = stored_row_scale((high - low) / codes * half, kind);
        return {row_scale, zero_point(low, static_cast<double>(row_scale) * unit)};
    }

    void sums(const Batch& x, const double (&step)[BATCH], const double (&zero)[BATCH], CodeSums& out) const {
        const double one = static_cast<double>(1 << (15 + fraction));
        double factor[BATCH];
        for (size g = 0; g < BATCH; ++g) {
            double inverse = __builtin_rint(one / step[g]);
            factor[g] = step[g] > 0.0 && inverse <= MOST_INVERSE ? inverse : 0.0;  // 0: there is no such grid
        }
        i64 product[BATCH] = {}, count[BATCH] = {};
        for (size g = 0; g < x.groups; ++g) {
            const i16 point = static_cast<i16>(zero[g]);
            add_codes(x.fixed + g * x.stride, x.stride, static_cast<i16>(factor[g]), fraction, static_cast<i16>(-point),
                      static_cast<i16>(most - point), product[g], count[g]);
        }
        for (size g = 0; g < BATCH; ++g) {
            out.product[g] = static_cast<double>(product[g]);
            out.count[g] = static_cast<double>(count[g]);
        }
    }

    void errors(const Batch& x, const OwnGrid (&grid)[BATCH], double (&out)[BATCH]) const {
        double step[BATCH] = {}, zero[BATCH] = {};
        for (size g = 0; g < x.groups; ++g) {
            step[g] = static_cast<double>(grid[g].row_scale) * unit * x.unit[g];
            zero[g] = grid[g].zero;
        }
        CodeSums s;
        sums(x, step, zero, s);
        for (size g = 0; g < x.groups; ++g) {
            out[g] = s.count[g] > 0.0 ? x.squares[g] - 2.0 * step[g] * s.product[g] + step[g] * step[g] * s.count[g]
                                      : x.squares[g];
        }
    }

    // Of every group the best so far. gain: what its codes explain of the squares; step: the least-squares one.
    struct Best {
        double gain[BATCH], step[BATCH], zero[BATCH];
    };

    void attempt(const Batch& x, Best& best, const double (&step)[BATCH], const double (&zero)[BATCH],
                 i64 (&better)[BATCH]) const {
        CodeSums s = {};
        sums(x, step, zero, s);
        for (size g = 0; g < BATCH; ++g) {
            double count = s.count[g] > 0.0 ? s.count[g] : 1.0;
            double gain = s.product[g] * s.product[g] / count, ideal = s.product[g] / count;
            bool take = (s.product[g] > 0.0) & (gain > best.gain[g]);
            better[g] = take ? -1 : 0;
            best.gain[g] = take ? gain : best.gain[g];
            best.step[g] = take ? ideal : best.step[g];
            best.zero[g] = take ? zero[g] : best.zero[g];
        }
    }

    void fit(Batch& x) const {
        Best best;
        double first[BATCH], last[BATCH], from[BATCH], to[BATCH], step[BATCH], zero[BATCH];
        i64 better[BATCH];
        for (size g = 0; g < BATCH; ++g) {
            step[g] = static_cast<double>(x.textbook[g].row_scale) * unit * x.unit[g];
            zero[g] = x.textbook[g].zero;
            best.gain[g] = -1.0, best.step[g] = step[g], best.zero[g] = zero[g];
            first[g] = x.low[g] * x.unit[g], last[g] = x.high[g] * x.unit[g];
        }
        attempt(x, best, step, zero, better);
        for (double share : SHARES[bits - 2]) {
            for (int ends = 1; ends <= 3; ++ends) {
                const double low_share = share * ((ends & 1) ? 1.0 : 0.0), high_share = share * ((ends & 2) ? 1.0 : 0.0);
                for (size g = 0; g < BATCH; ++g) {
                    from[g] = first[g] - first[g] * low_share;
                    to[g] = last[g] - last[g] * high_share;
                    step[g] = (to[g] - from[g]) / codes;
                    zero[g] = zero_point(from[g], step[g] > 0.0 ? step[g] : 1.0);
                }
                attempt(x, best, step, zero, better);
                for (size g = 0; g < BATCH; ++g) {
                    first[g] = better[g] ? from[g] : first[g];
                    last[g] = better[g] ? to[g] : last[g];
                }
            }
        }
        constexpr double SHIFTS[] = {0.0, -1.0, 1.0};
        for (double shift : SHIFTS) {
            for (size g = 0; g < BATCH; ++g) step[g] = best.step[g], zero[g] = clipped(best.zero[g] + shift, codes);
            attempt(x, best, step, zero, better);
        }
        settle(x, best);
    }

    // Row_scales as they are stored: the nearest, or its neighbour on the other side.
    void settle(Batch& x, const Best& best) const {
        OwnGrid across[BATCH];
        double least[BATCH], second[BATCH], theirs[BATCH];
        for (size g = 0; g < x.groups; ++g) {
            double wanted = best.step[g] * half / x.unit[g];
            x.found[g] = {stored_row_scale(wanted, kind), best.zero[g]};
            double other = 2.0 * wanted - static_cast<double>(x.found[g].row_scale);
            across[g] = {stored_row_scale(other > 0.0 ? other : 0.0, kind), best.zero[g]};
        }
        errors(x, x.found, least);
        errors(x, across, second);
        errors(x, x.textbook, theirs);
        for (size g = 0; g < x.groups; ++g) {
            if (second[g] < least[g]) x.found[g] = across[g], least[g] = second[g];
            x.clear[g] = least[g] <= CLEARLY * theirs[g] && theirs[g] >= PER_WEIGHT * static_cast<double>(x.n);
        }
    }
};

template <class Format>
inline F loaded(const typename Format::Word* from, size n) {
    if (n >= static_cast<size>(N)) return Format::load(from);
    typename Format::Word words[LANES] = {};
    __builtin_memcpy(words, from, n * sizeof(typename Format::Word));
    return Format::load(words);
}

// The range of a group, and 0.
template <class Format>
inline void range_of(const typename Format::Word* x, size n, float& low, float& high) {
    F lows = splat(0.0f), highs = splat(0.0f);
    for (size j = 0; j < n; j += N) {
        F w = loaded<Format>(x + j, n - j);
        lows = least(w, lows);
        highs = greatest(w, highs);
    }
    low = high = 0.0f;
    for (int i = 0; i < N; ++i) low = lows[i] < low ? lows[i] : low, high = highs[i] > high ? highs[i] : high;
}

// Weights in fixed point, and zeros behind them; returns the sum of their squares.
template <class Format>
inline double to_fixed(const typename Format::Word* x, size n, float inverse, i16* fixed, size stride) {
    F by = splat(inverse), largest = splat(LARGEST_FIXED), rounder = splat(ROUNDER);
    for (size j = 0; j < stride; j += LANES) {
        U words[PARTS];
        for (int p = 0; p < PARTS; ++p) {
            size at = j + static_cast<size>(p * N);
            F w = at < n ? loaded<Format>(x + at, n - at) : splat(0.0f);
            words[p] = (U)(w * by * largest + rounder) & 0xFFFF;
        }
        u16 block[LANES];
        store_u16(block, words);
        __builtin_memcpy(fixed + j, block, sizeof block);
    }
    i64 squares = 0;
    for (size j = 0; j < n; ++j) squares += fixed[j] * fixed[j];
    return static_cast<double>(squares);
}

// A grid as encode uses it.
struct OwnCoder {
    F scale, inverse, shift, units, half, most;

    OwnCoder(OwnGrid grid, int bits)
        : scale(splat(grid.row_scale)),
          inverse(splat(1.0f / grid.row_scale)),
          shift(splat(static_cast<float>(grid.zero) * -unit_of(bits))),
          units(splat(unit_of(bits))),
          half(splat(static_cast<float>(1 << (bits - 1)))),
          most(splat(static_cast<float>((1 << bits) - 1))) {}

    static float unit_of(int bits) { return 1.0f / static_cast<float>(1 << (bits - 1)); }

    F miss(F w) const {
        F steps = (w * inverse - shift) * half;
        F code = least(greatest(steps, F{}), most) + ROUNDER - ROUNDER;
        return w - (code * units + shift) * scale;
    }
};

// Whether the squared error of the first grid is smaller, as encode makes both. The zeros behind a group are no error.
template <class Format>
inline bool is_better(const typename Format::Word* x, size n, OwnGrid first, OwnGrid second, int bits) {
    const OwnCoder ours(first, bits), theirs(second, bits);
    SquareSums our_sums[PARTS], their_sums[PARTS];
    for (size j = 0; j < n; j += LANES) {
        for (int p = 0; p < PARTS; ++p) {
            size at = j + static_cast<size>(p * N);
            F w = at < n ? loaded<Format>(x + at, n - at) : F{};
            our_sums[p].add(ours.miss(w));
            their_sums[p].add(theirs.miss(w));
        }
    }
    return ErrorSums::in_order(our_sums) < ErrorSums::in_order(their_sums);
}

template <class Format>
inline void own_grids_of(Matrix x, size group, const OwnSearch& search, bool fit, i16* fixed, float* row_scale, u8* zero) {
    using Word = typename Format::Word;
    const size most = group > LONG ? 1 : BATCH, groups = x.cols ? (x.cols - 1) / group + 1 : 0;
    Batch batch = {};
    const Word* from[BATCH];
    // Groups of one length, side by side; the last of a row may be shorter.
    auto finish = [&] {
        if (fit && batch.groups) search.fit(batch);
        for (size g = 0; g < batch.groups; ++g) {
            OwnGrid usual = batch.textbook[g], found = batch.found[g];
            bool better = fit && batch.high[g] > batch.low[g];
            if (better && !batch.clear[g]) {
                better = is_better<Format>(from[g], batch.n, found, usual, search.bits);
            }
            OwnGrid taken = better ? found : usual;
            *row_scale++ = batch.high[g] > batch.low[g] ? taken.row_scale : 0.0f;
            *zero++ = batch.high[g] > batch.low[g] ? static_cast<u8>(taken.zero) : 0;
        }
        batch.groups = 0;
    };
    for (size i = 0; i < x.rows; ++i) {
        const Word* row = static_cast<const Word*>(x.data) + i * x.cols;
        for (size k = 0; k < groups; ++k) {
            const size n = smaller(group, x.cols - k * group);
            if (batch.groups == most || n != batch.n) finish();
            batch.n = n;
            batch.stride = (n + STRIDE - 1) / STRIDE * STRIDE;
            batch.fixed = fixed;
            const size g = batch.groups++;
            float low, high;
            from[g] = row + k * group;
            range_of<Format>(from[g], n, low, high);
            batch.low[g] = low, batch.high[g] = high;
            batch.textbook[g] = search.textbook(low, high);
            if (!fit) continue;
            float largest = -low > high ? -low : high;
            largest = largest > SMALLEST_SCALE ? largest : SMALLEST_SCALE;
            batch.unit[g] = static_cast<double>(LARGEST_FIXED) / static_cast<double>(largest);
            batch.squares[g] =
                to_fixed<Format>(from[g], n, 1.0f / largest, fixed + g * batch.stride, batch.stride);
        }
    }
    finish();
}

inline bool own_grids(Matrix x, size group, int bits, Kind stored, bool fit, float* row_scale, u8* zero) {
    group = smaller(group, x.cols ? x.cols : 1);
    const size room = (group + STRIDE) * (group > LONG ? 1 : BATCH);
    i16* fixed = static_cast<i16*>(malloc(room * sizeof(i16)));
    if (!fixed) return false;
    const OwnSearch search(bits, stored);
    with_kind(x.kind, [&](auto format) {
        own_grids_of<decltype(format)>(x, group, search, fit, fixed, row_scale, zero);
    });
    free(fixed);
    return true;
}

}  // namespace splitquant::SPLITQUANT_ISA
