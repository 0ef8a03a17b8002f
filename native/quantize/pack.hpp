// Bit planes: the fewest values that fill whole bytes are a group, and one word holds a group before and after.
#pragma once

#include "rows.hpp"

namespace splitquant::SPLITQUANT_ISA {

// A word whose fields of `width` bits, one every `stride` bits, are all ones.
constexpr u64 fields(int width, int stride) {
    u64 all = 0;
    for (int at = 0; at < 64; at += stride) all |= (width == 64 ? ~u64{0} : (u64{1} << width) - 1) << at;
    return all;
}

// Values of a group and the word with a byte for each of them. Short words keep the loops below short: a vector holds
// more of them, and they need fewer rounds.
template <int BITS>
struct Group {
    using Word = u64;
    static constexpr size VALUES = 8;
};
template <>
struct Group<2> {
    using Word = u32;
    static constexpr size VALUES = 4;
};
template <>
struct Group<4> {
    using Word = u16;
    static constexpr size VALUES = 2;
};
template <>
struct Group<8> {
    using Word = u8;
    static constexpr size VALUES = 1;
};

// The functions below take a Word or a vector of Words.

// One round: in every pair of WIDTH-bit fields, STRIDE bits apart, the upper one moves down to the lower one.
template <int WIDTH, int STRIDE, class Word, class V>
inline V join(V v) {
    if constexpr (2 * STRIDE > 8 * static_cast<int>(sizeof(Word))) {
        return v;
    } else {
        constexpr Word LOWER = static_cast<Word>(fields(WIDTH, 2 * STRIDE));
        constexpr Word UPPER = static_cast<Word>(LOWER << WIDTH);
        return (V)((v & LOWER) | (v >> (STRIDE - WIDTH) & UPPER));
    }
}

// The inverse round.
template <int WIDTH, int STRIDE, class Word, class V>
inline V part(V v) {
    if constexpr (2 * STRIDE > 8 * static_cast<int>(sizeof(Word))) {
        return v;
    } else {
        constexpr Word LOWER = static_cast<Word>(fields(WIDTH, 2 * STRIDE));
        constexpr Word UPPER = static_cast<Word>(LOWER << STRIDE);
        return (V)((v & LOWER) | (v << (STRIDE - WIDTH) & UPPER));
    }
}

// Bytes to fields of BITS bits, in rounds in which neighbours join (no pext: it is slow on many CPUs, and these shifts
// run on all lanes of a vector at once).
template <int BITS, class Word, class V>
inline V squeeze(V v) {
    return join<4 * BITS, 32, Word>(join<2 * BITS, 16, Word>(join<BITS, 8, Word>(v)));
}

// The inverse; what lies above the fields is ignored.
template <int BITS, class Word, class V>
inline V spread_out(V v) {
    return part<BITS, 8, Word>(part<2 * BITS, 16, Word>(part<4 * BITS, 32, Word>(v)));
}

// Where a group is one byte (1, 2 and 4 bits), 64 values are a vector of Words and a vector of their lowest bytes.
template <class Word>
struct Wide {
    typedef Word Words __attribute__((vector_size(64)));
    typedef u8 Bytes __attribute__((vector_size(64 / sizeof(Word))));
};

template <int BITS>
inline void pack_values(const u8* __restrict values, size n, u8* __restrict plane) {
    using Word = typename Group<BITS>::Word;
    constexpr size VALUES = Group<BITS>::VALUES, BYTES = VALUES * BITS / 8;
    size groups = n / VALUES, rest = n % VALUES, i = 0;
    if constexpr (BYTES == 1 && BITS < 8) {
        for (; VALUES * i + 64 <= n; i += 64 / VALUES) {
            typename Wide<Word>::Words v;
            __builtin_memcpy(&v, values + VALUES * i, sizeof v);
            auto bytes = __builtin_convertvector(squeeze<BITS, Word>(v), typename Wide<Word>::Bytes);
            __builtin_memcpy(plane + i, &bytes, sizeof bytes);
        }
    }
    for (; i < groups; ++i) {
        Word v;
        __builtin_memcpy(&v, values + VALUES * i, VALUES);
        v = squeeze<BITS, Word>(v);
        __builtin_memcpy(plane + BYTES * i, &v, BYTES);
    }
    if (rest == 0) return;
    Word v = 0;
    __builtin_memcpy(&v, values + VALUES * groups, rest);
    v = squeeze<BITS, Word>(v);
    __builtin_memcpy(plane + BYTES * groups, &v, plane_width(rest, BITS));
}

template <int BITS>
inline void unpack_values(const u8* __restrict plane, size n, u8* __restrict values) {
    using Word = typename Group<BITS>::Word;
    constexpr size VALUES = Group<BITS>::VALUES, BYTES = VALUES * BITS / 8;
    // A group of 3, 5, 6 or 7 bytes is read as the eight that begin with it, as long as those are in the plane.
    constexpr size READ = VALUES == 8 && BITS > 1 ? sizeof(Word) : BYTES;
    size groups = n / VALUES, end = plane_width(n, BITS), i = 0;
    size quick = end < READ ? 0 : smaller(groups, (end - READ) / BYTES + 1);
    if constexpr (BYTES == 1 && BITS < 8) {
        for (; VALUES * i + 64 <= n; i += 64 / VALUES) {
            typename Wide<Word>::Bytes bytes;
            __builtin_memcpy(&bytes, plane + i, sizeof bytes);
            auto v = spread_out<BITS, Word>(__builtin_convertvector(bytes, typename Wide<Word>::Words));
            __builtin_memcpy(values + VALUES * i, &v, sizeof v);
        }
    }
    for (; i < quick; ++i) {
        Word v = 0;
        __builtin_memcpy(&v, plane + BYTES * i, READ);
        v = spread_out<BITS, Word>(v);
        __builtin_memcpy(values + VALUES * i, &v, VALUES);
    }
    for (; VALUES * i < n; ++i) {
        Word v = 0;
        __builtin_memcpy(&v, plane + BYTES * i, smaller(BYTES, end - BYTES * i));
        v = spread_out<BITS, Word>(v);
        __builtin_memcpy(values + VALUES * i, &v, smaller(VALUES, n - VALUES * i));
    }
}

using PackFunction = void (*)(const u8*, size, u8*);

inline PackFunction packer(int bits) {
    static constexpr PackFunction ALL[] = {pack_values<1>, pack_values<2>, pack_values<3>, pack_values<4>,
                                           pack_values<5>, pack_values<6>, pack_values<7>, pack_values<8>};
    return ALL[bits - 1];
}

inline PackFunction unpacker(int bits) {
    static constexpr PackFunction ALL[] = {unpack_values<1>, unpack_values<2>, unpack_values<3>, unpack_values<4>,
                                           unpack_values<5>, unpack_values<6>, unpack_values<7>, unpack_values<8>};
    return ALL[bits - 1];
}

inline void pack_rows(const u8* values, size rows, size cols, int bits, u8* plane) {
    PackFunction pack = packer(bits);
    for (size row = 0; row < rows; ++row) pack(values + row * cols, cols, plane + row * plane_width(cols, bits));
}

inline void unpack_rows(const u8* plane, size rows, size cols, int bits, u8* values) {
    PackFunction unpack = unpacker(bits);
    for (size row = 0; row < rows; ++row) unpack(plane + row * plane_width(cols, bits), cols, values + row * cols);
}

}  // namespace splitquant::SPLITQUANT_ISA
