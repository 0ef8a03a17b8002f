// From bit planes to indices of levels, 128 columns at a time, by byte permutations within registers.
//
// `vpermb` brings the bytes of neighbouring codes into each 8 bytes, `vpmultishiftqb` takes eight fields out of them. What
// lies above a field is left there: the tables are repeated so that it does no harm.
#pragma once

#include "../simd512.hpp"

namespace splitquant::infer::SPLITQUANT_ISA {

using V = __m512i;

inline __mmask64 first_bytes(size n) { return n >= 64 ? ~u64{0} : (u64{1} << n) - 1; }

// How one plane of `bits` bits is taken apart. In order QUARTERS the two index registers of a block are its even and its
// odd columns (bits of at most 4: sixteen fields lie within 8 bytes); in order HALVES its first and its last 64 columns.
struct Fields {
    alignas(64) u8 from[2][64];   // vpermb
    alignas(64) u8 shift[2][64];  // vpmultishiftqb

    // up: how far fields are moved up.
    void set(int bits, bool quarters, bool whole_block_loaded, int up) {
        for (int half = 0; half < 2; ++half) {
            for (int q = 0; q < 8; ++q) {
                for (int t = 0; t < 8; ++t) {
                    int first = quarters ? q * 2 * bits : ((whole_block_loaded ? 8 * half : 0) + q) * bits;
                    int byte = first + t;
                    from[half][8 * q + t] = static_cast<u8>(byte < 64 ? byte : 63);
                    int field = quarters ? 2 * t + half : t;
                    shift[half][8 * q + t] = static_cast<u8>((field * bits - up) & 63);
                }
            }
        }
    }
};

// Four-bit codes, with or without ids: even codes need no instruction, odd ones a shift.
template <bool IDS_>
struct Nibbles {
    static constexpr bool QUARTERS = true, IDS = IDS_;
    V id_from, id_shift0, id_shift1, low;
    __mmask64 whole_codes, whole_ids;

    explicit Nibbles(const Weight& w) {
        low = _mm512_set1_epi8(15);
        whole_codes = ~u64{0};
        if constexpr (IDS) {
            Fields f;
            f.set(w.id_bits, true, true, 4);
            id_from = _mm512_load_si512(f.from[0]);
            id_shift0 = _mm512_load_si512(f.shift[0]);
            id_shift1 = _mm512_load_si512(f.shift[1]);
            whole_ids = first_bytes(16 * static_cast<size>(w.id_bits));
        }
    }

    template <bool WHOLE>
    inline void indices(const u8* codes, const u8* ids, size code_bytes, size id_bytes, V& even, V& odd) const {
        V raw = WHOLE ? _mm512_loadu_si512(codes) : _mm512_maskz_loadu_epi8(first_bytes(code_bytes), codes);
        even = raw;
        odd = _mm512_srli_epi16(raw, 4);
        if constexpr (IDS) {
            V id = _mm512_maskz_loadu_epi8(WHOLE ? whole_ids : first_bytes(id_bytes), ids);
            id = _mm512_permutexvar_epi8(id_from, id);
            even = _mm512_ternarylogic_epi64(low, even, _mm512_multishift_epi64_epi8(id_shift0, id), 0xCA);
            odd = _mm512_ternarylogic_epi64(low, odd, _mm512_multishift_epi64_epi8(id_shift1, id), 0xCA);
        }
    }
};

// Any other width.
template <bool QUARTERS_>
struct AnyBits {
    static constexpr bool QUARTERS = QUARTERS_, IDS = true;  // whether there are ids is asked for each block
    V from, shift0, shift1, id_from0, id_from1, id_shift0, id_shift1, low;
    __mmask64 whole_codes, whole_ids;
    size half_bytes;
    bool ids_there;

    explicit AnyBits(const Weight& w) {
        Fields f;
        f.set(w.bits, QUARTERS, false, 0);
        from = _mm512_load_si512(f.from[0]);
        shift0 = _mm512_load_si512(f.shift[0]);
        shift1 = _mm512_load_si512(f.shift[1]);
        whole_codes = first_bytes((QUARTERS ? 16 : 8) * static_cast<size>(w.bits));
        half_bytes = 8 * static_cast<size>(w.bits);
        low = _mm512_set1_epi8(static_cast<char>((1 << w.bits) - 1));
        ids_there = w.ids != nullptr;
        f.set(ids_there ? w.id_bits : 1, QUARTERS, true, w.bits);
        id_from0 = _mm512_load_si512(f.from[0]);
        id_from1 = _mm512_load_si512(f.from[1]);
        id_shift0 = _mm512_load_si512(f.shift[0]);
        id_shift1 = _mm512_load_si512(f.shift[1]);
        whole_ids = first_bytes(16 * static_cast<size>(w.id_bits));
    }

    template <bool WHOLE>
    inline void indices(const u8* codes, const u8* ids, size code_bytes, size id_bytes, V& first, V& second) const {
        if constexpr (QUARTERS) {
            V raw = _mm512_maskz_loadu_epi8(WHOLE ? whole_codes : first_bytes(code_bytes), codes);
            raw = _mm512_permutexvar_epi8(from, raw);
            first = _mm512_multishift_epi64_epi8(shift0, raw);
            second = _mm512_multishift_epi64_epi8(shift1, raw);
        } else {
            size more = code_bytes > half_bytes ? code_bytes - half_bytes : 0;
            V a = _mm512_maskz_loadu_epi8(WHOLE ? whole_codes : whole_codes & first_bytes(code_bytes), codes);
            V b = _mm512_maskz_loadu_epi8(WHOLE ? whole_codes : first_bytes(more), codes + half_bytes);
            first = _mm512_multishift_epi64_epi8(shift0, _mm512_permutexvar_epi8(from, a));
            second = _mm512_multishift_epi64_epi8(shift0, _mm512_permutexvar_epi8(from, b));
        }
        if (ids_there) {
            V id = _mm512_maskz_loadu_epi8(WHOLE ? whole_ids : first_bytes(id_bytes), ids);
            V id0 = _mm512_permutexvar_epi8(id_from0, id);
            V id1 = QUARTERS ? id0 : _mm512_permutexvar_epi8(id_from1, id);
            first = _mm512_ternarylogic_epi64(low, first, _mm512_multishift_epi64_epi8(id_shift0, id0), 0xCA);
            second = _mm512_ternarylogic_epi64(low, second, _mm512_multishift_epi64_epi8(QUARTERS ? id_shift1 : id_shift0, id1), 0xCA);
        }
    }
};

// Which column of a block word w of vector s holds.
inline size column_of(bool quarters, size s, size w) {
    static constexpr size QUARTER[4] = {0, 2, 1, 3};
    return quarters ? 4 * w + QUARTER[s] : 64 * (s / 2) + 2 * w + s % 2;
}

}  // namespace splitquant::infer::SPLITQUANT_ISA
