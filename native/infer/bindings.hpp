#pragma once

#include <nanobind/nanobind.h>

namespace splitquant::infer {

// Adds the products with packed weights to the Python module.
void bind(nanobind::module_& m);

}  // namespace splitquant::infer
