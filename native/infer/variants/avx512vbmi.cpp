#define SPLITQUANT_ISA avx512vbmi
#define SPLITQUANT_INFER_NAME "avx512vbmi"
#include "../variant.hpp"
