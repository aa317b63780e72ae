/* Loops shared out among as many threads as torch has: the very ones, since torch has loaded GCC's OpenMP for all. Another compiler brings an OpenMP of
   its own, whose threads would wait busily on the cores that torch's need, and the reverse; there everything runs on one thread. */

#if defined(_OPENMP) && defined(__GNUC__) && !defined(__clang__)
#include <omp.h>
#define PRAGMA(text) _Pragma(#text)
#define THREAD omp_get_thread_num()
int has_threads(void) { return 1; }
#else
#define PRAGMA(text)
#define THREAD 0
int has_threads(void) { return 0; }
#endif

#define FEW 32768 /* numbers that are sooner done than shared out */

#define EACH_ROW(r) PRAGMA(omp parallel for num_threads(threads) if (rows * width > FEW)) for (int64_t r = 0; r < rows; r++)

/* Each of `count` things that take unlike times. */
#define EACH_OF(i, count) PRAGMA(omp parallel for schedule(dynamic) num_threads(threads)) for (int64_t i = 0; i < count; i++)

/* What is no kernel of ours, shared out in the same way: inside, torch's own products have one thread. */
void each(int64_t threads, int64_t count, void (*work)(int64_t)) {
    EACH_OF(i, count) work(i);
}
