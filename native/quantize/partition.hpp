// Optimal borders of clusters: the dynamic programme of splitquant.core.partition, divide and conquer.
#pragma once

#include <stdlib.h>

#include "interface.hpp"

namespace splitquant::SPLITQUANT_ISA {

// The costs of a segment [start, end) of bins; the order of their float64 operations is that of the reference.
struct KmeansCost {
    const double *count, *total;
    struct End {
        const double *count, *total;
        double count_end, total_end;
        double operator()(size start) const {
            double spread = total_end - total[start];
            return -(spread * spread) / (count_end - count[start]);
        }
    };
    End at(size end) const { return {count, total, count[end], total[end]}; }
};

struct RangeCost {
    const double *count, *low, *high;
    struct End {
        const double *count, *low;
        double count_end, high_end;
        double operator()(size start) const {
            double reach = high_end - low[start];
            return (count_end - count[start]) * (reach * reach);
        }
    };
    End at(size end) const { return {count, low, count[end], high[end - 1]}; }
};

// One layer: the best start of the last of c segments, for every end in [first, last]. The start never moves left as
// the end moves right, so the one of the middle bounds those of both halves.
template <class Cost>
struct Layer {
    Cost cost;
    const double* previous;
    double* best;
    u32* starts;

    size middle_start(size end, size from, size to) {
        typename Cost::End at_end = cost.at(end);
        double least = previous[from] + at_end(from);
        size start = from, limit = to < end - 1 ? to : end - 1;
        for (size s = from + 1; s <= limit; ++s) {
            double value = previous[s] + at_end(s);
            if (value < least) least = value, start = s;  // the leftmost of equals
        }
        best[end] = least;
        starts[end] = static_cast<u32>(start);
        return start;
    }

    void solve(size first, size last, size from, size to) {
        while (first <= last) {  // recursion to the left, iteration to the right: its depth is log2(n)
            size middle = (first + last) / 2;
            size start = middle_start(middle, from, to);
            solve(first, middle - 1, from, start);
            first = middle + 1;
            from = start;
        }
    }

    // Only what leads to `last`, the same path: all that is needed of the final layer.
    void solve_last(size first, size last, size from, size to) {
        while (first <= last) {
            size middle = (first + last) / 2;
            from = middle_start(middle, from, to);
            first = middle + 1;
        }
    }
};

template <class Cost>
inline void solve_layers(Cost cost, size n, size clusters, double* best, u32* starts, i64* borders) {
    double *previous = best, *current = best + n + 1;
    for (size end = 1; end <= n; ++end) previous[end] = cost.at(end)(0);
    for (size c = 2; c <= clusters; ++c) {
        Layer<Cost> layer{cost, previous, current, starts + c * (n + 1)};
        if (c < clusters) {
            layer.solve(c, n, c - 1, n - 1);
        } else {
            layer.solve_last(c, n, c - 1, n - 1);
        }
        double* swap = previous;
        previous = current;
        current = swap;
    }
    borders[clusters] = static_cast<i64>(n);
    borders[0] = 0;
    for (size c = clusters; c > 1; --c) borders[c - 1] = starts[c * (n + 1) + static_cast<size>(borders[c])];
}

inline bool partition(const double* count, const double* total, const double* low, const double* high, size n,
                      size clusters, bool kmeans, i64* borders) {
    double* best = static_cast<double*>(malloc(2 * (n + 1) * sizeof(double)));
    u32* starts = static_cast<u32*>(malloc((clusters + 1) * (n + 1) * sizeof(u32)));
    bool held = best && starts;
    if (held && kmeans) solve_layers(KmeansCost{count, total}, n, clusters, best, starts, borders);
    if (held && !kmeans) solve_layers(RangeCost{count, low, high}, n, clusters, best, starts, borders);
    free(best);
    free(starts);
    return held;
}

}  // namespace splitquant::SPLITQUANT_ISA
