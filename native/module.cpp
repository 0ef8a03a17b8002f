// The Python module splitquant._native: arrays in, plain pointers to the kernels, without the interpreter's lock.
//
// Shapes are checked here once more where a wrong one would mean an access out of bounds; the messages for people are
// those of splitquant.core.native.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <new>
#include <optional>

#include "infer/bindings.hpp"
#include "quantize/dispatch.hpp"

namespace nb = nanobind;
using namespace splitquant;

namespace {

template <class T, int DIMS>
using In = nb::ndarray<const T, nb::ndim<DIMS>, nb::c_contig, nb::device::cpu>;
template <class T, int DIMS>
using Out = nb::ndarray<T, nb::ndim<DIMS>, nb::c_contig, nb::device::cpu>;
using AnyMatrix = nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void require(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
}

Kind kind_from(int kind) {
    require(kind >= 0 && kind <= 2, "kind is not 0, 1 or 2");
    return static_cast<Kind>(kind);
}

// fp16 comes as the uint16 bits of its floats, so that the kind, not the dtype, says what 16 bits mean.
Matrix matrix_from(const AnyMatrix& x, int kind) {
    bool single = x.dtype() == nb::dtype<float>();
    require(single || x.dtype() == nb::dtype<u16>(), "weights are neither uint16 nor float32");
    require((kind_from(kind) == Kind::fp32) == single, "kind does not fit the dtype of the weights");
    return {x.data(), kind_from(kind), x.shape(0), x.shape(1)};
}

PerGroup per_group(const std::optional<In<float, 2>>& values, size rows, size cols, size group) {
    if (!values) return {nullptr, 0, 0};
    size groups = values->shape(1);
    require(values->shape(0) == rows, "per-group floats have another number of rows");
    require(groups == 1 || cols == 0 || (group > 0 && groups == (cols - 1) / group + 1),
            "per-group floats have another number of groups");
    require(groups > 0 || cols == 0, "per-group floats have no group");
    return {values->data(), groups, group};
}

void check_plane(size rows, size width, size plane_rows, size plane_columns) {
    require(plane_rows == rows && plane_columns == width, "a plane has another shape");
}

void check_bits(int bits) { require(bits >= 1 && bits <= 8, "bits is not 1 to 8"); }

// Encoding writes into planes; all else only reads them.
template <class Plane>
Planes planes_of(size rows, size cols, const Plane& codes, int bits, const std::optional<Plane>& clusters,
                 int cluster_bits) {
    check_bits(bits);
    check_plane(rows, plane_width(cols, bits), codes.shape(0), codes.shape(1));
    if (!clusters) return {rows, cols, bits, const_cast<u8*>(codes.data()), codes.shape(1), nullptr, 0, 0};
    check_bits(cluster_bits);
    check_plane(rows, plane_width(cols, cluster_bits), clusters->shape(0), clusters->shape(1));
    return {rows, cols, bits, const_cast<u8*>(codes.data()), codes.shape(1), const_cast<u8*>(clusters->data()),
            clusters->shape(1), cluster_bits};
}

RowErrors errors_of(size rows, const Out<double, 1>& signal, const Out<double, 1>& noise, const Out<float, 1>& most) {
    require(signal.shape(0) == rows && noise.shape(0) == rows && most.shape(0) == rows, "errors have another length");
    return {signal.data(), noise.data(), most.data()};
}

void absmax(AnyMatrix x, int kind, size group, Out<float, 2> out) {
    Matrix matrix = matrix_from(x, kind);
    require(group > 0, "group is 0");
    size groups = matrix.cols == 0 ? 0 : (matrix.cols - 1) / group + 1;
    require(out.shape(0) == matrix.rows && out.shape(1) == groups, "out has another shape");
    nb::gil_scoped_release unlocked;
    chosen().load()->absmax(matrix, group, out.data());
}

void own_grids(AnyMatrix x, int kind, size group, int bits, int stored, bool fit, Out<float, 2> row_scale,
               Out<u8, 2> zero) {
    Matrix matrix = matrix_from(x, kind);
    require(group > 0, "group is 0");
    require(bits >= 2 && bits <= 8, "bits is not 2 to 8");
    size groups = matrix.cols == 0 ? 0 : (matrix.cols - 1) / group + 1;
    require(row_scale.shape(0) == matrix.rows && row_scale.shape(1) == groups, "row_scale has another shape");
    require(zero.shape(0) == matrix.rows && zero.shape(1) == groups, "zero has another shape");
    Kind kind_stored = kind_from(stored);
    nb::gil_scoped_release unlocked;
    if (!chosen().load()->own_grids(matrix, group, bits, kind_stored, fit, row_scale.data(), zero.data())) {
        throw std::bad_alloc();
    }
}

void count16(In<u16, 1> keys, Out<i64, 1> count) {
    require(count.shape(0) == KEYS, "count has another shape");
    nb::gil_scoped_release unlocked;
    if (!chosen().load()->count16(keys.data(), keys.shape(0), count.data())) throw std::bad_alloc();
}

void count32(AnyMatrix x, int kind, std::optional<In<float, 2>> inverse, size group, std::optional<In<u32, 2>> weight,
             Out<i64, 1> count, Out<u64, 1> low_sum, Out<u64, 1> low_sum_sq, Out<u16, 1> low_min, Out<u16, 1> low_max,
             Out<i64, 1> weights) {
    Matrix matrix = matrix_from(x, kind);
    PerGroup scales = per_group(inverse, matrix.rows, matrix.cols, group);
    require(count.shape(0) == KEYS && low_sum.shape(0) == KEYS && low_sum_sq.shape(0) == KEYS &&
                low_min.shape(0) == KEYS && low_max.shape(0) == KEYS && weights.shape(0) == KEYS,
            "a table has another shape");
    require(!weight || (inverse && weight->shape(0) == inverse->shape(0) && weight->shape(1) == inverse->shape(1)),
            "weights have another shape than the row scales");
    Counts32 out = {count.data(), low_sum.data(), low_sum_sq.data(), low_min.data(), low_max.data(), weights.data()};
    nb::gil_scoped_release unlocked;
    if (!chosen().load()->count32(matrix, scales, weight ? weight->data() : nullptr, out)) throw std::bad_alloc();
}

void partition(In<double, 1> count, In<double, 1> total, In<double, 1> low, In<double, 1> high, size clusters,
               bool kmeans, Out<i64, 1> borders) {
    size n = low.shape(0);
    require(high.shape(0) == n && count.shape(0) == n + 1 && total.shape(0) == n + 1, "bins have different lengths");
    require(clusters >= 1 && clusters <= n, "there are fewer bins than clusters");
    require(borders.shape(0) == clusters + 1, "borders has another shape");
    nb::gil_scoped_release unlocked;
    if (!chosen().load()->partition(count.data(), total.data(), low.data(), high.data(), n, clusters, kmeans,
                                    borders.data())) {
        throw std::bad_alloc();
    }
}

void polish(In<double, 1> mean, In<double, 1> count, In<double, 1> sum, int bits, int most_steps, double least_gain,
            Out<float, 1> lower, Out<float, 1> scale, Out<float, 1> offset) {
    size n = mean.shape(0), k = lower.shape(0);
    require(count.shape(0) == n && sum.shape(0) == n, "sums have different lengths");
    require(k >= 1 && k <= MAX_CLUSTERS && scale.shape(0) == k && offset.shape(0) == k, "there are no 1 to 8 clusters");
    check_bits(bits);
    SortedValues values = {n, mean.data(), count.data(), sum.data()};
    nb::gil_scoped_release unlocked;
    chosen().load()->polish(values, k, bits, most_steps, least_gain, lower.data(), scale.data(), offset.data());
}

void encode(AnyMatrix x, int kind, std::optional<In<float, 2>> row_scale, std::optional<In<float, 2>> inverse,
            std::optional<In<float, 2>> shift, size group, int code_min, int code_max, In<float, 1> lower, In<float, 1> scale, In<float, 1> offset,
            In<float, 1> inverse_scale, Out<u8, 2> codes, int bits, std::optional<Out<u8, 2>> clusters,
            int cluster_bits, Out<double, 1> signal, Out<double, 1> noise, Out<float, 1> max_error) {
    Matrix matrix = matrix_from(x, kind);
    Planes planes = planes_of(matrix.rows, matrix.cols, codes, bits, clusters, cluster_bits);
    size k = lower.shape(0);
    require(k >= 1 && k <= MAX_CLUSTERS && scale.shape(0) == k && offset.shape(0) == k && inverse_scale.shape(0) == k,
            "the grid has no 1 to 8 clusters");
    require(0 <= code_min && code_min <= code_max && code_max < (1 << bits), "codes do not fit their bits");
    PerGroup row_scales = per_group(row_scale, matrix.rows, matrix.cols, group);
    PerGroup inverses = per_group(inverse, matrix.rows, matrix.cols, group);
    PerGroup shifts = per_group(shift, matrix.rows, matrix.cols, group);
    Grid grid = {k, code_min, code_max, lower.data(), scale.data(), offset.data(), inverse_scale.data()};
    RowErrors errors = errors_of(matrix.rows, signal, noise, max_error);
    nb::gil_scoped_release unlocked;
    chosen().load()->encode(matrix, row_scales, inverses, shifts, grid, planes, errors);
}

void encode_cells(AnyMatrix x, int kind, std::optional<In<float, 2>> row_scale, std::optional<In<float, 2>> inverse,
                  size group, In<float, 1> border, In<float, 1> level, In<u8, 1> code, In<u8, 1> cluster,
                  Out<u8, 2> codes, int bits, std::optional<Out<u8, 2>> clusters, int cluster_bits,
                  Out<double, 1> signal, Out<double, 1> noise, Out<float, 1> max_error) {
    Matrix matrix = matrix_from(x, kind);
    Planes planes = planes_of(matrix.rows, matrix.cols, codes, bits, clusters, cluster_bits);
    size count = level.shape(0);
    require(count >= 1 && count <= KEYS && border.shape(0) == count - 1 && code.shape(0) == count &&
                cluster.shape(0) == count,
            "cells have different lengths");
    PerGroup row_scales = per_group(row_scale, matrix.rows, matrix.cols, group);
    PerGroup inverses = per_group(inverse, matrix.rows, matrix.cols, group);
    Cells cells = {count, border.data(), level.data(), code.data(), cluster.data()};
    RowErrors errors = errors_of(matrix.rows, signal, noise, max_error);
    nb::gil_scoped_release unlocked;
    if (!chosen().load()->encode_cells(matrix, row_scales, inverses, cells, planes, errors)) throw std::bad_alloc();
}

void pack(In<u8, 2> values, int bits, Out<u8, 2> plane) {
    check_bits(bits);
    check_plane(values.shape(0), plane_width(values.shape(1), bits), plane.shape(0), plane.shape(1));
    nb::gil_scoped_release unlocked;
    chosen().load()->pack(values.data(), values.shape(0), values.shape(1), bits, plane.data());
}

void unpack(In<u8, 2> plane, int bits, Out<u8, 2> values) {
    check_bits(bits);
    check_plane(values.shape(0), plane_width(values.shape(1), bits), plane.shape(0), plane.shape(1));
    nb::gil_scoped_release unlocked;
    chosen().load()->unpack(plane.data(), values.shape(0), values.shape(1), bits, values.data());
}

void dequantize(In<u8, 2> codes, int bits, std::optional<In<u8, 2>> clusters, int cluster_bits, In<float, 2> levels,
                std::optional<In<float, 2>> row_scale, std::optional<In<float, 2>> shift, size group, int kind,
                nb::ndarray<nb::ndim<2>, nb::c_contig, nb::device::cpu> out) {
    size rows = out.shape(0), cols = out.shape(1), k = levels.shape(0);
    bool single = out.dtype() == nb::dtype<float>();
    require(single || out.dtype() == nb::dtype<u16>(), "out is neither uint16 nor float32");
    require((kind_from(kind) == Kind::fp32) == single, "kind does not fit the dtype of out");
    Planes planes = planes_of(rows, cols, codes, bits, clusters, cluster_bits);
    require(k >= 1 && k <= MAX_CLUSTERS && levels.shape(1) == size{1} << bits, "levels has another shape");
    PerGroup row_scales = per_group(row_scale, rows, cols, group), shifts = per_group(shift, rows, cols, group);
    nb::gil_scoped_release unlocked;
    chosen().load()->dequantize(planes, k, levels.data(), row_scales, shifts, kind_from(kind), out.data());
}

void part_planes(In<u8, 2> codes, int bits, std::optional<In<u8, 2>> clusters, int cluster_bits, size cols,
                 In<u8, 1> zero, In<u8, 1> base, int out_bits, size out_cols, Out<u8, 3> out) {
    size rows = codes.shape(0), parts = zero.shape(0);
    Planes planes = planes_of(rows, cols, codes, bits, clusters, cluster_bits);
    check_bits(out_bits);
    require(base.shape(0) == parts && out_cols >= cols, "base or out_cols does not fit");
    require(out.shape(0) == parts && out.shape(1) == rows && out.shape(2) == plane_width(out_cols, out_bits),
            "out has another shape");
    Parts made = {out.data(), parts, out_bits, out_cols, zero.data(), base.data()};
    nb::gil_scoped_release unlocked;
    chosen().load()->part_planes(planes, made);
}

// x may be a slice of the columns of a larger matrix.
void transpose(nb::ndarray<nb::ro, nb::ndim<2>, nb::device::cpu> x,
               nb::ndarray<nb::ndim<2>, nb::c_contig, nb::device::cpu> out) {
    size word = x.itemsize(), rows = x.shape(0), cols = x.shape(1);
    require(word == 1 || word == 2 || word == 4, "words are not 1, 2 or 4 bytes long");
    require(out.dtype() == x.dtype() && out.shape(0) == cols && out.shape(1) == rows, "out has another dtype or shape");
    if (rows == 0 || cols == 0) return;
    require(cols == 1 || x.stride(1) == 1, "the words of a row are not neighbours");
    require(rows == 1 || x.stride(0) >= 0, "rows run backwards");
    nb::gil_scoped_release unlocked;
    chosen().load()->transpose(x.data(), word, static_cast<size>(x.stride(0)), rows, cols, out.data());
}

bool crc32_fold(In<u8, 1> data, Out<u8, 1> folded) {
    require(data.shape(0) >= 64 && data.shape(0) % 64 == 0, "data is no multiple of 64 bytes");
    require(folded.shape(0) == 64, "folded is not 64 bytes long");
    nb::gil_scoped_release unlocked;
    return chosen().load()->crc32_fold(data.data(), data.shape(0), folded.data());
}

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "Compiled kernels; see splitquant.core.interface for what they do and splitquant.core.native for their use.";
    m.def("isa", [] { return std::string(chosen().load()->isa); }, "The instruction set in use.");
    m.def("isas", [] {
        std::vector<std::string> names;
        for (const Kernels* set : available()) names.emplace_back(set->isa);
        return names;
    }, "The instruction sets that this build and this machine have, narrowest first.");
    m.def("set_isa", &choose, nb::arg("name"), "Choose an instruction set; ValueError if there is none of that name.");
    m.def("absmax", &absmax);
    m.def("own_grids", &own_grids);
    m.def("count16", &count16);
    m.def("count32", &count32);
    m.def("partition", &partition);
    m.def("polish", &polish);
    m.def("encode", &encode);
    m.def("encode_cells", &encode_cells);
    m.def("pack", &pack);
    m.def("unpack", &unpack);
    m.def("dequantize", &dequantize);
    m.def("part_planes", &part_planes);
    m.def("transpose", &transpose);
    m.def("crc32_fold", &crc32_fold);
    infer::bind(m);
}
