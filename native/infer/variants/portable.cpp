#define SPLITQUANT_ISA portable
#define SPLITQUANT_INFER_NAME "portable"
#include "../variant.hpp"
