// What a set of kernels offers; one set is compiled per instruction set, see variant.hpp and dispatch.hpp.
#pragma once

#include <cstddef>
#include <cstdint>

namespace splitquant {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
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
    int bits;
    size clusters;
    int code_min;
    int code_max;
    const float* lower;
    const float* scale;
    const float* offset;
    const float* inverse_scale;
};

// Per key: how many values, and sums and extremes of their low 16 bits.
struct Counts32 {
    i64* count;
    u64* low_sum;
    u64* low_sum_sq;
    u16* low_min;
    u16* low_max;
};

struct RowErrors {
    double* signal;
    double* noise;
    float* max_error;
};

// A bit plane: every row starts at a byte, value j at bit j * bits of its row.
struct Planes {
    u8* codes;
    size codes_width;
    u8* clusters;  // null: there is none
    size clusters_width;
    int cluster_bits;
};

struct Kernels {
    const char* isa;
    void (*absmax)(Matrix x, size group, float* out);
    bool (*count16)(const u16* keys, size n, i64* count);  // false: out of memory
    bool (*count32)(Matrix x, PerGroup inverse, Counts32 out);  // false: out of memory
    bool (*partition)(const double* count, const double* total, const double* low, const double* high, size n,
                      size clusters, bool kmeans, i64* borders);  // false: out of memory
    void (*encode)(Matrix x, PerGroup row_scale, PerGroup inverse, Grid grid, Planes out, RowErrors errors);
    void (*pack)(const u8* values, size rows, size cols, int bits, u8* plane);
    void (*unpack)(const u8* plane, size rows, size cols, int bits, u8* values);
    void (*dequantize)(Planes in, int bits, size clusters, const float* levels, PerGroup row_scale, size rows,
                       size cols, Kind kind, void* out);
    bool (*crc32_fold)(const u8* data, size n, u8* folded);  // false: this set has no instruction for it
};

// Static: every file that includes this must keep its own copy, see variant.hpp.
[[maybe_unused]] static size plane_width(size cols, int bits) { return (cols * static_cast<size>(bits) + 7) / 8; }

}  // namespace splitquant
