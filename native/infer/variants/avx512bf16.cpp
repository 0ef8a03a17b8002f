#define SPLITQUANT_ISA avx512bf16
#define SPLITQUANT_INFER_NAME "avx512bf16"
#include "../variant.hpp"
