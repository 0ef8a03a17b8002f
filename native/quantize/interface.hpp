// What a set of kernels offers; one set is compiled per instruction set, see variant.hpp and dispatch.hpp.
#pragma once

#include <cstddef>
#include <cstdint>

namespace splitquant {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using i32 = std::int32_t;
using i64 = std::int64_t;
using size = std::size_t;

constexpr size KEYS = 1 << 16;
constexpr size MAX_CLUSTERS = 8;
constexpr size LANES = 16;  // row errors are summed in 16 interleaved lanes, whatever the width of a register

enum class Kind : int { bf16 = 0, fp16 = 1, fp32 = 2 };

// A C-contiguous matrix of weights.
struct Matrix {
    const void* data;
    Kind kind;
    size rows;
    size cols;
};

// One float per group of `group` neighbouring weights, [rows, groups]; null stands for ones.
struct PerGroup {
    const float* data;
    size groups;
    size group;
};

struct Grid {
    size clusters;
    int code_min;
    int code_max;
    const float* lower;
    const float* scale;
    const float* offset;
    const float* inverse_scale;
};

// A step function: the value of cell n is that of the n-th of the ascending borders at most, see splitquant.core.affine.
struct Cells {
    size count;
    const float* border;  // [count - 1]
    const float* level;
    const u8* code;
    const u8* cluster;
};

// Ascending values, how many weights have them, and the sum of these weights.
struct SortedValues {
    size n;
    const double* mean;
    const double* count;
    const double* sum;
};

// Per key: how many values, sums and extremes of their low 16 bits, and the sum of their weights.
struct Counts32 {
    i64* count;
    u64* low_sum;
    u64* low_sum_sq;
    u16* low_min;
    u16* low_max;
    i64* weight;
};

struct RowErrors {
    double* signal;
    double* noise;
    float* max_error;
};

// Bit planes of codes and cluster ids: every row starts at a byte, value j at bit j * bits of its row.
struct Planes {
    size rows;
    size cols;
    int bits;
    u8* codes;
    size codes_width;
    u8* clusters;  // null: there is none
    size clusters_width;
    int cluster_bits;
};

// The packed codes of every part, [count, rows, plane_width(cols, bits)]: a code moved from zero to base where the cluster
// id is that of the part, its base elsewhere and in columns that the codes do not have.
struct Parts {
    u8* planes;
    size count;
    int bits;
    size cols;
    const u8* zero;
    const u8* base;
};

struct Kernels {
    const char* isa;
    void (*absmax)(Matrix x, size group, float* out);
    // The row_scale, in the numbers that `stored` holds, and the zero_point of every group. false: out of memory
    bool (*own_grids)(Matrix x, size group, int bits, Kind stored, bool fit, float* row_scale, u8* zero);
    bool (*count16)(const u16* keys, size n, i64* count);  // false: out of memory
    // weight: one per group of `inverse`, or null for ones. false: out of memory
    bool (*count32)(Matrix x, PerGroup inverse, const u32* weight, Counts32 out);
    bool (*partition)(const double* count, const double* total, const double* low, const double* high, size n,
                      size clusters, bool kmeans, i64* borders);  // false: out of memory
    // Fits k affine pieces to the values, in place.
    void (*polish)(SortedValues values, size clusters, int bits, int most_steps, double least_gain, float* lower,
                   float* scale, float* offset);
    // shift: added to the levels of a group; null stands for none.
    void (*encode)(Matrix x, PerGroup row_scale, PerGroup inverse, PerGroup shift, Grid grid, Planes out, RowErrors errors);
    bool (*encode_cells)(Matrix x, PerGroup row_scale, PerGroup inverse, Cells cells, Planes out,
                         RowErrors errors);  // false: out of memory
    void (*pack)(const u8* values, size rows, size cols, int bits, u8* plane);
    void (*unpack)(const u8* plane, size rows, size cols, int bits, u8* values);
    void (*dequantize)(Planes in, size clusters, const float* levels, PerGroup row_scale, PerGroup shift, Kind kind, void* out);
    void (*part_planes)(Planes in, Parts out);
    void (*transpose)(const void* x, size word, size stride, size rows, size cols, void* out);
    bool (*crc32_fold)(const u8* data, size n, u8* folded);  // false: this set has no instruction for it
};

// Static: every file that includes this must keep its own copy, see variant.hpp.
[[maybe_unused]] static size plane_width(size cols, int bits) { return (cols * static_cast<size>(bits) + 7) / 8; }

}  // namespace splitquant
