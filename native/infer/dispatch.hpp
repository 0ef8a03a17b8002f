// Which kernels multiply: by what the CPU has, unless they are asked for by name.
#pragma once

#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

#include "interface.hpp"

namespace splitquant::infer {

namespace portable {
extern const Kernels kernels;
}
#ifdef SPLITQUANT_X86
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512vbmi {
extern const Kernels kernels;
}
namespace avx512bf16 {
extern const Kernels kernels;
}
#endif

// Those that this build and this CPU have, the best last.
inline std::vector<const Kernels*> available() {
    std::vector<const Kernels*> sets = {&portable::kernels};
#ifdef SPLITQUANT_X86
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return sets;
    sets.push_back(&avx2::kernels);
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512dq") ||
        !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512vbmi")) {
        return sets;
    }
    sets.push_back(&avx512vbmi::kernels);
    if (__builtin_cpu_supports("avx512bf16")) sets.push_back(&avx512bf16::kernels);
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
        if (set->name == name) {
            chosen() = set;
            return;
        }
        names += (names.empty() ? "" : ", ") + std::string(set->name);
    }
    throw std::invalid_argument("no kernels for '" + name + "' on this machine; there are: " + names);
}

}  // namespace splitquant::infer
