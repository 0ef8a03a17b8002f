#define SPLITQUANT_ISA avx2
#define SPLITQUANT_INFER_NAME "avx2"
#include "../variant.hpp"
