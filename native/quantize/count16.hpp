// How often each 16-bit pattern occurs.
#pragma once

#include <stdlib.h>

#include "rows.hpp"

namespace splitquant::SPLITQUANT_ISA {

// 32-bit counters keep the counters of common patterns within the first-level cache.
inline void count16_block(const u16* keys, size n, u32* even, u32* odd) {
    size j = 0;
    for (; j + 4 <= n; j += 4) {
        u64 four;  // one load of four keys: loads are what bounds this loop
        __builtin_memcpy(&four, keys + j, sizeof four);
        // Two tables: a key that repeats would otherwise wait for its counter to be stored.
        ++even[four & 0xFFFF];
        ++odd[(four >> 16) & 0xFFFF];
        ++even[(four >> 32) & 0xFFFF];
        ++odd[four >> 48];
    }
    for (; j < n; ++j) ++even[keys[j]];
}

inline bool count16(const u16* keys, size n, i64* count) {
    constexpr size BLOCK = size{1} << 31;  // a 32-bit counter cannot overflow within it
    u32* tables = static_cast<u32*>(malloc(2 * KEYS * sizeof(u32)));
    if (!tables) return false;
    for (size key = 0; key < KEYS; ++key) count[key] = 0;
    for (size from = 0; from < n; from += BLOCK) {
        __builtin_memset(tables, 0, 2 * KEYS * sizeof(u32));
        count16_block(keys + from, smaller(BLOCK, n - from), tables, tables + KEYS);
        for (size key = 0; key < KEYS; ++key) count[key] += i64{tables[key]} + i64{tables[KEYS + key]};
    }
    free(tables);
    count[0] += count[KEYS / 2];  // -0.0 counts as 0.0
    count[KEYS / 2] = 0;
    return true;
}

}  // namespace splitquant::SPLITQUANT_ISA
