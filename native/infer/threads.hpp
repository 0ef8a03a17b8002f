// A loop on several threads: those of the OpenMP team that PyTorch has started, where its runtime is loaded, else new ones.
#pragma once

#include <atomic>
#include <thread>
#include <vector>
#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#endif

#include "interface.hpp"

namespace splitquant::infer {

// Calls body(from, to) until all of [0, count) was handed out, `grain` at a time.
template <class Body>
struct Loop {
    Body& body;
    size count, grain;
    std::atomic<size> next{0};

    void work() {
        for (size from = next.fetch_add(grain); from < count; from = next.fetch_add(grain)) {
            body(from, from + grain < count ? from + grain : count);
        }
    }
    static void enter(void* loop) { static_cast<Loop*>(loop)->work(); }
};

using Team = void (*)(void (*)(void*), void*, unsigned, unsigned);

// GOMP_parallel of libgomp or of LLVM's libomp; found at run time, so that nothing is linked.
inline Team team() {
#if defined(__unix__) || defined(__APPLE__)
    static const Team found = reinterpret_cast<Team>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    return found;
#else
    return nullptr;
#endif
}

template <class Body>
void on_threads(size count, size grain, size threads, Body body) {
    Loop<Body> loop{body, count, grain};
    const size useful = (count + grain - 1) / grain;
    if (threads > useful) threads = useful;
    if (threads <= 1) return loop.work();
    if (Team run = team()) return run(&Loop<Body>::enter, &loop, static_cast<unsigned>(threads), 0);
    std::vector<std::thread> others;
    for (size i = 1; i < threads; ++i) others.emplace_back([&] { loop.work(); });
    loop.work();
    for (std::thread& other : others) other.join();
}

}  // namespace splitquant::infer
