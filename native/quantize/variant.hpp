// All kernels, compiled for one instruction set. A source file of variants/ defines SPLITQUANT_ISA, the name of the set,
// includes this file, and is compiled with the flags of that set.
//
// Why everything lives in an inner namespace named after the set and no C++ standard header with inline functions is
// included: were two files to emit the same inline function, the linker would keep one of them, and a plain CPU could
// be handed the copy compiled for a wide one.
#pragma once

#include "absmax.hpp"
#include "count16.hpp"
#include "count32.hpp"
#include "crc32.hpp"
#include "dequantize.hpp"
#include "encode.hpp"
#include "encode_cells.hpp"
#include "own.hpp"
#include "pack.hpp"
#include "part_planes.hpp"
#include "partition.hpp"
#include "polish.hpp"
#include "transpose.hpp"

#define SPLITQUANT_STRING_(x) #x
#define SPLITQUANT_STRING(x) SPLITQUANT_STRING_(x)

namespace splitquant::SPLITQUANT_ISA {

extern const Kernels kernels;
const Kernels kernels = {
    SPLITQUANT_STRING(SPLITQUANT_ISA), absmax, own_grids, count16, count32, partition, polish, encode, encode_cells, pack_rows, unpack_rows, dequantize, part_planes, transpose,
    crc32_fold,
};

}  // namespace splitquant::SPLITQUANT_ISA
