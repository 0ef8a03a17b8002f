#define SPLITQUANT_ISA baseline
#include "../variant.hpp"
