// Products of inputs with packed weights: what a set of kernels offers. One set is compiled per CPU feature set, see
// variant.hpp and dispatch.hpp.
//
// Apart from native/quantize, whose results are bit for bit those of NumPy: here contraction is allowed, and what holds
// is a bound on the error (docs/inference.md) and that a token's result does not depend on its batch or on threads.
#pragma once

#include "../quantize/interface.hpp"

namespace splitquant::infer {

constexpr size UNIT = 16;    // rows of a weight whose results are finished together; the grain of threads
constexpr size BLOCK = 128;  // columns that are decoded at once; inputs are continued by zeros to whole blocks

// A packed matrix: weight[i, j] = row_scale[i, g] * (levels[id << bits | code] - zero[i, g]) with g = j / group.
struct Weight {
    size rows;
    size cols;
    const u8* codes;
    int bits;
    const u8* ids;  // null: there are none
    int id_bits;
    const float* levels;  // [256], repeated where there are fewer, so that any byte finds one
    float scale;          // what row_scale is multiplied with
    const void* row_scale;  // [rows, groups] of scale_kind; null: ones
    Kind scale_kind;
    size groups;  // at least 1
    size group;
    const u8* zero;  // plane of integers, [rows, groups], zero_bits each; null: none
    int zero_bits;

    size codes_width() const { return plane_width(cols, bits); }
    size ids_width() const { return plane_width(cols, id_bits); }
    size blocks() const { return (cols + BLOCK - 1) / BLOCK; }
    size units() const { return (rows + UNIT - 1) / UNIT; }
};

// out[t, i] = sum of x[t, j] * weight[i, j] over j, plus bias[i]; x, bias and out are of one kind.
struct Product {
    Weight weight;
    size tokens;
    Kind kind;
    const void* x;
    const void* bias;  // null: none
    void* out;
};

struct Kernels {
    const char* name;
    // How many bytes the inputs of one token take, and the memory that a thread works in.
    size (*packed_bytes)(const Product& product);
    size (*scratch_bytes)(const Product& product);
    // The inputs of some tokens in the order in which weights are decoded; `packed` has room for all tokens.
    void (*pack)(const Product& product, u8* packed, size from, size to);
    // The results of some units of rows, for all tokens.
    void (*multiply)(const Product& product, const u8* packed, size from, size to, u8* scratch);
    // Rows in float32, [to - from, cols].
    void (*decode)(const Weight& weight, size from, size to, float* out);
};

}  // namespace splitquant::infer
