// Counts of normalised weights by the top 16 bits of their float32, with sums and extremes of the low 16 bits, and the
// sum of what their groups weigh.
#pragma once

#include <stdlib.h>

#include "rows.hpp"

namespace splitquant::SPLITQUANT_ISA {

// All that is kept of a key, within one cache line. All zeros is an empty key.
struct alignas(32) KeyEntry {
    u64 count_and_sum;  // count << 40 | sum of low halves: one addition for both
    u64 sum_sq;
    u16 inverted_min;  // 65,535 - min: then both extremes are maxima, and empty is zero
    u16 max;
    u16 unused[2];
    u64 weight;
};
static_assert(sizeof(KeyEntry) == 32);
constexpr int COUNT_SHIFT = 40;
constexpr size ENTRY_LIMIT = (size{1} << 24) - 1;  // so many values fit a count of 24 bits and a sum of 40

// What the vector half of the work hands to the scattering half.
struct KeyChunk {
    u32 offsets[CHUNK];  // of the key's entry, in bytes
    u32 lows[CHUNK];
};

template <class Format, class Scale>
inline void keys_of(const typename Format::Word* x, size n, Scale scale, KeyChunk& out, size at) {
    for (size j = 0; j < n; j += N) {
        F u = Format::load(x + j) * scale.at(j) + 0.0f;  // + 0 turns -0.0 into 0.0
        store_u32(out.offsets + at + j, ((U)u >> 16) * u32{sizeof(KeyEntry)});
        store_u32(out.lows + at + j, (U)u & 0xFFFFu);
    }
}

inline KeyEntry* entry_at(KeyEntry* table, u32 offset) {
    return reinterpret_cast<KeyEntry*>(reinterpret_cast<char*>(table) + offset);
}

#if defined(__AVX2__)
// 64-bit lanes 0, 1 and 3 are sums, 16-bit words 8 and 9 (lane 2) are maxima.
inline __m256i joined(__m256i old, __m256i news) {
    __m256i sums = _mm256_add_epi64(old, news);
#if defined(__AVX512F__)
    return _mm256_mask_max_epu16(sums, 0b11 << 8, old, news);
#else
    return _mm256_blend_epi32(sums, _mm256_max_epu16(old, news), 0b110000);
#endif
}

// An entry is one register. Values [from, to) of the chunk, which all weigh the same.
inline void scatter(const KeyChunk& chunk, size from, size to, u32 weight, KeyEntry* table) {
    const __m256i factors = _mm256_setr_epi64x(1, 0, 0x10001, 0);
    const __m256i flips = _mm256_setr_epi64x(i64{1} << COUNT_SHIFT, 0, 0xFFFF, weight);
#pragma GCC unroll 4
    for (size j = from; j < to; ++j) {
        __m256i* entry = reinterpret_cast<__m256i*>(entry_at(table, chunk.offsets[j]));
        __m256i low = _mm256_set1_epi32(static_cast<int>(chunk.lows[j]));
        // 64-bit lanes: 1 << 40 | low, low * low, low << 16 | ~low, the weight
        __m256i news = _mm256_xor_si256(_mm256_mul_epu32(low, _mm256_blend_epi32(factors, low, 0b1100)), flips);
        _mm256_store_si256(entry, joined(_mm256_load_si256(entry), news));
    }
}
#else
inline void scatter(const KeyChunk& chunk, size from, size to, u32 weight, KeyEntry* table) {
    for (size j = from; j < to; ++j) {
        KeyEntry& entry = *entry_at(table, chunk.offsets[j]);
        u32 low = chunk.lows[j];
        u16 inverted = static_cast<u16>(~low);
        entry.count_and_sum += u64{1} << COUNT_SHIFT | low;
        entry.sum_sq += low * low;  // below 2**32
        entry.inverted_min = inverted > entry.inverted_min ? inverted : entry.inverted_min;
        entry.max = low > entry.max ? static_cast<u16>(low) : entry.max;
        entry.weight += weight;
    }
}
#endif

// Adds the table to `out` and empties it.
inline void flush(KeyEntry* table, Counts32 out) {
    for (size key = 0; key < KEYS; ++key) {
        KeyEntry& entry = table[key];
        if (entry.count_and_sum == 0) continue;
        u16 least = static_cast<u16>(~entry.inverted_min);
        out.count[key] += static_cast<i64>(entry.count_and_sum >> COUNT_SHIFT);
        out.low_sum[key] += entry.count_and_sum & ((u64{1} << COUNT_SHIFT) - 1);
        out.low_sum_sq[key] += entry.sum_sq;
        out.weight[key] += static_cast<i64>(entry.weight);
        out.low_min[key] = least < out.low_min[key] ? least : out.low_min[key];
        out.low_max[key] = entry.max > out.low_max[key] ? entry.max : out.low_max[key];
        entry = KeyEntry{};
    }
}

template <class Format>
inline void count32_rows(Matrix x, PerGroup inverse, const u32* weight, KeyEntry* table, Counts32 out) {
    using Word = typename Format::Word;
    KeyChunk chunk;
    size held = 0;  // values in the table
    for (size row = 0; row < x.rows; ++row) {
        const Word* weights = static_cast<const Word*>(x.data) + row * x.cols;
        RowOfGroups scales(inverse, row, x.cols);
        for (size from = 0; from < x.cols; from += CHUNK) {
            size to = smaller(from + CHUNK, x.cols);
            auto keys_of_stretch = [&](size begin, size end, auto scale) {
                size whole = (end - begin) / LANES * LANES;
                keys_of<Format>(weights + begin, whole, scale, chunk, begin - from);
                if (begin + whole == end) return;
                Padded<Word> last(weights + begin + whole, end - begin - whole);
                if constexpr (__is_same(decltype(scale), Each)) scale.values += whole;
                keys_of<Format>(last.words, LANES, scale, chunk, begin - from + whole);
            };
            for_stretches(x.cols, from, to, keys_of_stretch, scales);
            if (held + CHUNK > ENTRY_LIMIT) flush(table, out), held = 0;
            held += to - from;
            if (!weight) {
                scatter(chunk, 0, to - from, 1, table);
                continue;
            }
            for (size begin = from; begin < to;) {
                size g = begin / scales.group, end = smaller(to, (g + 1) * scales.group);
                scatter(chunk, begin - from, end - from, weight[row * inverse.groups + g], table);
                begin = end;
            }
        }
    }
    flush(table, out);
}

// An empty table that no call is using, or null. Keeping one spares small windows 2 MiB of fresh, zeroed pages.
inline KeyEntry* spare_table = nullptr;

inline KeyEntry* take_table() {
    if (KeyEntry* spare = __atomic_exchange_n(&spare_table, nullptr, __ATOMIC_ACQ_REL)) return spare;
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, KEYS * sizeof(KeyEntry)) != 0) return nullptr;
    __builtin_memset(memory, 0, KEYS * sizeof(KeyEntry));
    return static_cast<KeyEntry*>(memory);
}

inline bool count32(Matrix x, PerGroup inverse, const u32* weight, Counts32 out) {
    KeyEntry* table = take_table();
    if (!table) return false;
    with_kind(x.kind, [&](auto format) { count32_rows<decltype(format)>(x, inverse, weight, table, out); });
    free(__atomic_exchange_n(&spare_table, table, __ATOMIC_ACQ_REL));  // the last flush emptied it
    return true;
}

}  // namespace splitquant::SPLITQUANT_ISA
