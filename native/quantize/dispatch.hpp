// Which set of kernels runs: the widest one that was compiled and that this CPU has, unless one is asked for.
#pragma once

#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

#include "interface.hpp"

namespace splitquant {

namespace baseline {
extern const Kernels kernels;
}
#ifdef SPLITQUANT_X86
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

// Narrowest first.
inline std::vector<const Kernels*> available() {
    std::vector<const Kernels*> sets = {&baseline::kernels};
#ifdef SPLITQUANT_X86
    __builtin_cpu_init();
    // Every CPU that has AVX2 and FMA has F16C, which not every compiler can ask for.
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("pclmul")) return sets;
    sets.push_back(&avx2::kernels);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
        sets.push_back(&avx512::kernels);
    }
#endif
    return sets;
}

inline std::atomic<const Kernels*>& chosen() {
    static std::atomic<const Kernels*> set = available().back();
    return set;
}

inline void choose(const std::string& name) {
    std::string names;
    for (const Kernels* set : available()) {
        if (set->isa == name) {
            chosen() = set;
            return;
        }
        names += (names.empty() ? "" : ", ") + std::string(set->isa);
    }
    throw std::invalid_argument("no kernels for '" + name + "' on this machine; there are: " + names);
}

}  // namespace splitquant
