// The fit of splitquant.core.refit for clusters that lie side by side, the order of its float64 operations included.
#pragma once

#include "interface.hpp"

namespace splitquant::SPLITQUANT_ISA {

// k affine pieces in float32, as they will be stored.
struct Pieces {
    float lower[MAX_CLUSTERS], scale[MAX_CLUSTERS], offset[MAX_CLUSTERS];

    double level(size c, size code) const { return scale[c] * static_cast<float>(code) + offset[c]; }
};

// The sums that a least-squares line through (code, value) takes, per cluster.
struct LineSums {
    double n = 0, n1 = 0, n2 = 0, s = 0, s1 = 0;
};

struct Fit {
    LineSums line[MAX_CLUSTERS];
    double error;
};

inline size first_reaching(const double* mean, size n, double border) {
    size low = 0, high = n;
    while (low < high) {
        size middle = (low + high) / 2;
        if (mean[middle] < border) low = middle + 1;
        else high = middle;
    }
    return low;
}

inline Fit fit_of(const Pieces& pieces, size clusters, size codes, const SortedValues& values) {
    Fit fit{};
    size from = 0;
    for (size c = 0; c < clusters; ++c) {
        double lower = pieces.lower[c], upper = c + 1 < clusters ? pieces.lower[c + 1] : __builtin_huge_val();
        LineSums& line = fit.line[c];
        double level = pieces.level(c, 0);
        for (size q = 0; q < codes; ++q) {
            double next = q + 1 < codes ? pieces.level(c, q + 1) : level;
            double border = upper;
            if (q + 1 < codes) {
                border = (next + level) / 2;
                border = border < lower ? lower : border;
                border = border > upper ? upper : border;
            }
            size to = c + 1 == clusters && q + 1 == codes ? values.n : first_reaching(values.mean, values.n, border);
            double count = 0, sum = 0, code = static_cast<double>(q);
            for (size i = from; i < to; ++i) {
                double miss = values.mean[i] - level;
                fit.error += values.count[i] * (miss * miss);
                count += values.count[i];
                sum += values.sum[i];
            }
            line.n += count;
            line.s += sum;
            line.n1 += count * code;
            line.n2 += count * code * code;
            line.s1 += sum * code;
            level = next;
            from = to;
        }
    }
    return fit;
}

// See round_scale of splitquant.core.affine.
inline double rounded_scale(double scale) {
    constexpr int SCALE_BITS = 16;
    int exponent;
    double mantissa = __builtin_frexp(scale, &exponent);
    double rounded = __builtin_ldexp(__builtin_rint(__builtin_ldexp(mantissa, SCALE_BITS)), exponent - SCALE_BITS);
    return rounded > 0x1p-126 ? rounded : 0x1p-126;
}

inline Pieces refitted(const Pieces& old, size clusters, size codes, const Fit& fit) {
    Pieces found = old;
    for (size c = 0; c < clusters; ++c) {
        const LineSums& line = fit.line[c];
        double spread = line.n2 * line.n - line.n1 * line.n1;
        if (!(old.scale[c] > 0) || !(spread > 1e-9 * line.n2 * line.n)) continue;
        double scale = (line.s1 * line.n - line.n1 * line.s) / spread;
        scale = scale > 0 ? rounded_scale(scale) : old.scale[c];
        found.scale[c] = static_cast<float>(scale);
        found.offset[c] = static_cast<float>((line.s - scale * line.n1) / line.n);
    }
    Pieces moved = found;
    bool ascending = true;
    for (size c = 1; c < clusters && moved.lower[c] < __builtin_huge_valf(); ++c) {
        double top = found.level(c - 1, codes - 1), bottom = found.level(c, 0);
        if (top < bottom) moved.lower[c] = static_cast<float>((top + bottom) / 2);
        ascending = ascending && (c == 1 || moved.lower[c] > moved.lower[c - 1]);
    }
    return ascending ? moved : found;
}

// Polishes in place; see Kernels::polish.
inline void polish(SortedValues values, size clusters, int bits, int most_steps, double least_gain, float* lower,
                   float* scale, float* offset) {
    size codes = size{1} << bits;
    Pieces pieces;
    for (size c = 0; c < clusters; ++c) {
        pieces.lower[c] = lower[c], pieces.scale[c] = scale[c], pieces.offset[c] = offset[c];
    }
    Fit fit = fit_of(pieces, clusters, codes, values);
    for (int step = 0; step < most_steps && fit.error > 0.0; ++step) {
        Pieces trial = refitted(pieces, clusters, codes, fit);
        Fit found = fit_of(trial, clusters, codes, values);
        if (!(found.error < fit.error)) break;
        double gain = (fit.error - found.error) / fit.error;
        pieces = trial, fit = found;
        if (gain < least_gain) break;
    }
    for (size c = 0; c < clusters; ++c) {
        lower[c] = pieces.lower[c], scale[c] = pieces.scale[c], offset[c] = pieces.offset[c];
    }
}

}  // namespace splitquant::SPLITQUANT_ISA
