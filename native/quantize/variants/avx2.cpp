#define SPLITQUANT_ISA avx2
#include "../variant.hpp"
