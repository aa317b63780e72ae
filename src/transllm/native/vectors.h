/* As many numbers at once as the compiler's processor has in a register. */

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#ifdef __AVX512F__
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif
typedef float V __attribute__((vector_size(4 * LANES)));
typedef int32_t VI __attribute__((vector_size(4 * LANES)));
typedef uint32_t VU __attribute__((vector_size(4 * LANES)));
typedef uint16_t VH __attribute__((vector_size(2 * LANES)));

/* `i` goes over the numbers below `width` in steps of LANES, and `n` says how many of them are there. */
#define EACH(i, n, width) for (int64_t i = 0, n; i < (width) && ((n = (width) - i < LANES ? (width) - i : LANES), 1); i += LANES)

static inline V all(float x) { return x - (V){0}; }

static inline V get_float32(const float *from, int64_t n) {
    V v = {0};
    if (n == LANES) memcpy(&v, from, sizeof v);
    else memcpy(&v, from, n * sizeof(float));
    return v;
}
static inline void put_float32(float *to, V v, int64_t n) {
    if (n == LANES) memcpy(to, &v, sizeof v);
    else memcpy(to, &v, n * sizeof(float));
}

/* bfloat16 is the upper half of a float32; rounded to the nearest, ties to even. */
static inline V widen(VH h) { return (V)(__builtin_convertvector(h, VU) << 16); }
static inline VH narrow(V v) {
#ifdef __AVX512BF16__
    return (VH)_mm512_cvtneps_pbh((__m512)v);
#else
    VU u = (VU)v, rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    VU is_nan = (VU)(v != v);
    return __builtin_convertvector((is_nan & 0x7fc0) | (~is_nan & rounded), VH);
#endif
}
static inline V get_bfloat16(const uint16_t *from, int64_t n) {
    VH h = {0};
    if (n == LANES) memcpy(&h, from, sizeof h);
    else memcpy(&h, from, n * sizeof(uint16_t));
    return widen(h);
}
static inline void put_bfloat16(uint16_t *to, V v, int64_t n) {
    VH h = narrow(v);
    if (n == LANES) memcpy(to, &h, sizeof h);
    else memcpy(to, &h, n * sizeof(uint16_t));
}

static inline V larger(V a, V b) { /* b where either is no number */
#ifdef __AVX512F__
    return (V)_mm512_max_ps((__m512)a, (__m512)b);
#else
    VI m = a > b;
    return (V)((m & (VI)a) | (~m & (VI)b));
#endif
}
static inline V smaller(V a, V b) { return -larger(-a, -b); }

static inline float sum_of(V v) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += v[i];
    return sum;
}

#define LOG2_E 1.44269504f

static inline V nearest(V x) { /* whole number, for x up to 2^22 */
#ifdef __AVX512F__
    return (V)_mm512_roundscale_ps((__m512)x, 8);
#else
    return (x + 12582912.0f) - 12582912.0f; /* 1.5 * 2^23: no room for a fraction */
#endif
}
static inline V times_two_to(V n, V x) {
#ifdef __AVX512F__
    return (V)_mm512_scalef_ps((__m512)x, (__m512)n);
#else
    return (V)((VI)x + (__builtin_convertvector(n, VI) << 23));
#endif
}

/* e to the x to 3e-6 of it; above 88 it stays at 2e38, and what is no number stays that. Below -60 it stays at 9e-27: nothing beside 1, and what is multiplied by
   it is no denormal number, which processors compute a hundred times slower. */
static inline V exp_of(V x) {
    x = larger(all(-60.0f), smaller(all(88.0f), x));
    V n = nearest(x * LOG2_E), f = x - n * 0.693147181f;
    V p = all(8.3333333e-3f);
    p = p * f + 4.1666667e-2f;
    p = p * f + 1.6666667e-1f;
    p = p * f + 0.5f;
    p = p * f + 1.0f;
    p = p * f + 1.0f;
    return times_two_to(n, p);
}

/* 2 to the x to 3e-6 of it, for x up to 127, with the same lower end. What multiplies scores anyway can hold the logarithm that makes e of 2. */
static inline V exp2_up_to_127(V x) {
    x = larger(all(-86.0f), x);
    V n = nearest(x), f = x - n;
    V p = all(9.58285e-3f); /* of the least error in -0.5 ... 0.5 with 1 at 0 */
    p = p * f + 5.590643e-2f;
    p = p * f + 2.4024099e-1f;
    p = p * f + 6.9312419e-1f;
    p = p * f + 1.0f;
    return times_two_to(n, p);
}

/* 1 / x, for x of at least 1. */
static inline V inverse_of(V x) {
#ifdef __AVX512F__
    V y = (V)_mm512_rcp14_ps((__m512)x);
    return y * (2.0f - x * y);
#else
    return 1.0f / x;
#endif
}
