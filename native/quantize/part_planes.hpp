// From the planes of a split tensor to the packed codes of each of its parts, in one pass over each row.
#pragma once

#include "pack.hpp"

namespace splitquant::SPLITQUANT_ISA {

// Bytes wrap: a code minus the zero_point, kept or cleared, plus the base is one instruction each for a whole vector.
inline void part_of(const u8* __restrict code, const u8* __restrict cluster, size n, u8 id, u8 zero, u8 base, u8 mask,
                    u8* __restrict part) {
    for (size j = 0; j < n; ++j) {
        const u8 held = static_cast<u8>(-static_cast<u8>(cluster[j] == id)), moved = static_cast<u8>(code[j] - zero);
        part[j] = static_cast<u8>((held & moved) + base) & mask;
    }
}

inline void part_planes(Planes in, Parts out) {
    const PackFunction unpack_codes = unpacker(in.bits), pack = packer(out.bits);
    const PackFunction unpack_clusters = in.clusters ? unpacker(in.cluster_bits) : nullptr;
    const size width = plane_width(out.cols, out.bits);
    const u8 mask = static_cast<u8>((1 << out.bits) - 1);
    u8 codes[CHUNK], clusters[CHUNK] = {}, part[CHUNK];
    for (size row = 0; row < in.rows; ++row) {
        for (size from = 0; from < out.cols; from += CHUNK) {
            const size n = smaller(CHUNK, out.cols - from), given = from < in.cols ? smaller(n, in.cols - from) : 0;
            if (given > 0) unpack_codes(in.codes + row * in.codes_width + from / 8 * in.bits, given, codes);
            if (given > 0 && unpack_clusters) {
                unpack_clusters(in.clusters + row * in.clusters_width + from / 8 * in.cluster_bits, given, clusters);
            }
            for (size c = 0; c < out.count; ++c) {
                part_of(codes, clusters, given, static_cast<u8>(c), out.zero[c], out.base[c], mask, part);
                __builtin_memset(part + given, out.base[c] & mask, n - given);
                pack(part, n, out.planes + (c * in.rows + row) * width + from / 8 * out.bits);
            }
        }
    }
}

}  // namespace splitquant::SPLITQUANT_ISA
