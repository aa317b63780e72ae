/* What training on a processor computes between its matrix products, in one pass over memory each.

   torch's kernels for processors do one operation each, and in bfloat16 widen and round every number each time: between the products of a
   small model that takes as long as the products. These compute in float32, on bfloat16 or float32 in memory.

   Each runs on as many threads as its first argument says. Python calls without its lock, from as many lanes as it has.  */

#include "vectors.h"
#include "threads.h"

#define T uint16_t
#define NAME(name) name##_bfloat16
#include "rows.h"
#undef T
#undef NAME

#define T float
#define NAME(name) name##_float32
#include "rows.h"
#undef T
#undef NAME

#ifdef __AMX_BF16__
#include <stdlib.h>
#include "tiles.h"
#include "attention.h"
/* Whether attention is here, and may be called. */
int has_attention(void) { return tiles_allowed(); }
#else
int has_attention(void) { return 0; }
#endif
