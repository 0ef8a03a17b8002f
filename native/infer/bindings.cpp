// The Python side of the products. Memory comes as addresses, since a call must cost little beside a product of one
// token; splitquant.torch.products checks dtypes, shapes and devices before.
#include "bindings.hpp"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdlib>
#include <memory>
#include <new>

#include "dispatch.hpp"
#include "levels.hpp"
#include "threads.hpp"

namespace nb = nanobind;

namespace splitquant::infer {

namespace {

constexpr size LINE = 64;

struct Free {
    void operator()(void* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<u8, Free>;

Memory allocate(size bytes) {
    void* memory = std::aligned_alloc(LINE, (bytes + LINE - 1) / LINE * LINE + LINE);
    if (!memory) throw std::bad_alloc();
    return Memory(static_cast<u8*>(memory));
}

template <class T>
T* at(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

void require(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
}

// codes, clusters, scale, offset, levels, row_scale, zero_point, as (address or 0); the numbers of the spec and the shape.
struct Packed {
    Weight weight;
    Grids grids;

    Packed(size rows, size cols, int bits, size clusters, bool additive, int id_bits, int scale_kind, size groups, size group) {
        require(bits >= 1 && clusters >= 1 && clusters <= 8, "bits or clusters are out of range");
        const int code_bits = additive ? bits * static_cast<int>(clusters) : bits;
        require(code_bits + id_bits <= 8 && (clusters == 1 || additive || id_bits > 0), "a code and its id have more than 8 bits");
        require(scale_kind >= 0 && scale_kind <= 2, "kind is not 0, 1 or 2");
        require(groups >= 1 && (groups == 1 || (group > 0 && (cols - 1) / group + 1 == groups)), "groups do not fit the columns");
        weight = {rows, cols, nullptr, code_bits, nullptr, id_bits, nullptr, 1.0f, nullptr, static_cast<Kind>(scale_kind),
                  groups, groups == 1 ? cols : group, nullptr, bits};
        grids = {clusters, bits, additive, nullptr, nullptr, nullptr};
    }
};

// The addresses of a weight's planes, 0 where there is none.
struct Addresses {
    std::uintptr_t codes, clusters, scale, offset, levels, row_scale, zero_point;
};

// The weight that the planes stand for; `table` has 256 floats.
Weight weight_of(const Packed& packed, const Addresses& planes, float* table) {
    Weight w = packed.weight;
    Grids g = packed.grids;
    w.codes = at<const u8>(planes.codes);
    w.ids = w.id_bits ? at<const u8>(planes.clusters) : nullptr;
    require(w.codes && (!w.id_bits || w.ids), "there are no planes");
    w.row_scale = at<const void>(planes.row_scale);
    w.zero = at<const u8>(planes.zero_point);
    g.scale = at<const float>(planes.scale);
    g.offset = at<const float>(planes.offset);
    g.levels = at<const float>(planes.levels);
    require(g.levels || (g.scale && g.offset) || w.zero, "there are no levels");
    fill_levels(g, w, table);
    return w;
}

void decode_rows(const Packed& packed, std::uintptr_t codes, std::uintptr_t clusters, std::uintptr_t scale,
                 std::uintptr_t offset, std::uintptr_t levels, std::uintptr_t row_scale, std::uintptr_t zero_point,
                 size first, size count, std::uintptr_t out, size threads) {
    alignas(LINE) float table[256];
    const Weight w = weight_of(packed, {codes, clusters, scale, offset, levels, row_scale, zero_point}, table);
    require(first + count <= w.rows, "there are fewer rows");
    nb::gil_scoped_release unlocked;
    const Kernels& kernels = *chosen().load();
    on_threads(count, 16, threads, [&](size from, size to) {
        kernels.decode(w, first + from, first + to, at<float>(out) + from * w.cols);
    });
}

void linear(const Packed& packed, std::uintptr_t codes, std::uintptr_t clusters, std::uintptr_t scale, std::uintptr_t offset,
            std::uintptr_t levels, std::uintptr_t row_scale, std::uintptr_t zero_point, std::uintptr_t x, int kind, size tokens,
            std::uintptr_t bias, std::uintptr_t out, size threads) {
    require(kind >= 0 && kind <= 2, "kind is not 0, 1 or 2");
    alignas(LINE) float table[256];
    const Weight w = weight_of(packed, {codes, clusters, scale, offset, levels, row_scale, zero_point}, table);
    nb::gil_scoped_release unlocked;
    const Product product = {w, tokens, static_cast<Kind>(kind), at<const void>(x), at<const void>(bias), at<void>(out)};
    const Kernels& kernels = *chosen().load();
    Memory inputs = allocate(tokens * kernels.packed_bytes(product));
    on_threads(tokens, 4, tokens * w.cols < 65536 ? 1 : threads,
               [&](size from, size to) { kernels.pack(product, inputs.get(), from, to); });
    // Small products are not worth waking others for.
    const size units = w.units(), work = tokens * w.rows * w.cols;
    if (work < 131072) threads = 1;
    const size grain = units / (8 * threads) + 1;
    const size scratch_bytes = kernels.scratch_bytes(product);
    std::atomic<bool> failed{false};
    on_threads(units, grain, threads, [&](size from, size to) {
        thread_local Memory scratch;
        thread_local size held = 0;
        if (held < scratch_bytes) {
            scratch.reset(static_cast<u8*>(std::aligned_alloc(LINE, (scratch_bytes + LINE - 1) / LINE * LINE + LINE)));
            held = scratch ? scratch_bytes : 0;
        }
        if (!scratch) {
            failed = true;
            return;
        }
        kernels.multiply(product, inputs.get(), from, to, scratch.get());
    });
    if (failed) throw std::bad_alloc();
}

}  // namespace

void bind(nb::module_& m) {
    nb::set_leak_warnings(false);  // Python keeps the numbers of weights until it ends, which is no leak
    nb::class_<Packed>(m, "Packed", "The numbers of a packed weight that products need beside its planes.")
        .def(nb::init<size, size, int, size, bool, int, int, size, size>());
    m.def("linear", &linear, "Inputs times a packed weight; see splitquant.torch.products.");
    m.def("decode_rows", &decode_rows, "Some rows of a packed weight in float32.");
    m.def("product_kernels", [] {
        std::vector<std::string> names;
        for (const Kernels* set : available()) names.emplace_back(set->name);
        return names;
    }, "The kernels of products that this build and this machine have, the best last.");
    m.def("product_kernel", [] { return std::string(chosen().load()->name); }, "The kernels of products in use.");
    m.def("set_product_kernel", &choose, "Choose by name; ValueError if there are none of that name.");
}

}  // namespace splitquant::infer
