// All kernels, compiled for one set of CPU features. A source file of variants/ defines SPLITQUANT_ISA and is compiled
// with the flags of that set; why nothing else may be included is said in native/quantize/variant.hpp.
#pragma once

#include "portable.hpp"
#if defined(__AVX512VBMI__)
#include "avx512/choose.hpp"
#endif


namespace splitquant::infer::SPLITQUANT_ISA {

#if defined(__AVX512VBMI__)
static bool fast(const Product& p) { return LaneScales::possible(p.weight); }
#else
static bool fast(const Product&) { return false; }
static size fast_packed_bytes(const Product&) { return 0; }
static void fast_pack(const Product&, u8*, size, size) {}
static void fast_multiply(const Product&, const u8*, size, size, u8*) {}
static size fast_scratch_bytes(const Product&) { return 0; }
#endif

static size packed_bytes(const Product& p) { return fast(p) ? fast_packed_bytes(p) : portable_packed_bytes(p); }
static size scratch_bytes(const Product& p) { return fast(p) ? fast_scratch_bytes(p) : portable_scratch_bytes(p); }
static void pack(const Product& p, u8* packed, size from, size to) {
    fast(p) ? fast_pack(p, packed, from, to) : portable_pack(p, packed, from, to);
}
static void multiply(const Product& p, const u8* packed, size from, size to, u8* scratch) {
    fast(p) ? fast_multiply(p, packed, from, to, scratch) : portable_multiply(p, packed, from, to, scratch);
}

static void decode(const Weight& w, size from, size to, float* out) {
    for (size row = from; row < to; ++row) decode_floats(w, row, out + (row - from) * w.cols);
}

extern const Kernels kernels;
const Kernels kernels = {SPLITQUANT_INFER_NAME, packed_bytes, scratch_bytes, pack, multiply, decode};

}  // namespace splitquant::infer::SPLITQUANT_ISA
