#define SPLITQUANT_ISA avx512
#include "../variant.hpp"
