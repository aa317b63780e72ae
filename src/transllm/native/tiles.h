/* Products of small bfloat16 matrices that lie in the cache, in tiles of 16 x 16 with sums in float32.

   The left matrix lies row by row. The right one is packed: for each 16 of its columns, for each 32 of its rows, 16 lines of 16 pairs, a pair being
   two numbers of one column, one below the other: what the processor's instructions take. Sizes are multiples of 16 (rows, columns) and 32 (the
   inner side).  */

typedef uint16_t H; /* a bfloat16 */

#define TILE 512 /* numbers of a packed tile, 32 x 16 */

static inline int64_t up_to(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

static void *memory(void **next, int64_t bytes) {
    void *here = *next;
    *next = (char *)here + up_to(bytes, 64);
    return here;
}

#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
/* Linux lends a process the tiles when it asks. */
static int tiles_allowed(void) { return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XTILEDATA */) == 0; }
#else
static int tiles_allowed(void) { return 0; }
#endif

static void tiles_begin(void) {
    struct { uint8_t palette, start, rest[14]; uint16_t bytes[16]; uint8_t rows[16]; } config = {.palette = 1};
    for (int i = 0; i < 8; i++) config.bytes[i] = 64, config.rows[i] = 16;
    _tile_loadconfig(&config);
}
static void tiles_end(void) { _tile_release(); }

/* c (rows x columns) = or += a (rows x 32 depth) b. Strides count numbers. */
static void multiply(const H *a, int64_t a_stride, const H *b, float *c, int64_t c_stride, int64_t rows, int64_t columns, int64_t depth, int add) {
    for (int64_t j = 0; j < columns; j += 32)
        for (int64_t i = 0; i < rows; i += 32) {
            int two_rows = i + 16 < rows, two_columns = j + 16 < columns;
            const H *a0 = a + i * a_stride, *a1 = a0 + 16 * a_stride, *b0 = b + j / 16 * depth * TILE, *b1 = b0 + depth * TILE;
            float *to = c + i * c_stride + j, *below = to + 16 * c_stride;
            int64_t line = c_stride * 4;
            if (two_rows && two_columns) {
                if (add) { _tile_loadd(0, to, line); _tile_loadd(1, to + 16, line); _tile_loadd(2, below, line); _tile_loadd(3, below + 16, line); }
                else { _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3); }
                for (int64_t k = 0; k < depth; k++) {
                    _tile_loadd(4, a0 + k * 32, a_stride * 2);
                    _tile_loadd(6, b0 + k * TILE, 64);
                    _tile_loadd(7, b1 + k * TILE, 64);
                    _tile_loadd(5, a1 + k * 32, a_stride * 2);
                    _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7); _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
                }
                _tile_stored(0, to, line); _tile_stored(1, to + 16, line); _tile_stored(2, below, line); _tile_stored(3, below + 16, line);
                continue;
            }
            for (int r = 0; r <= two_rows; r++)
                for (int s = 0; s <= two_columns; s++) {
                    float *one = (r ? below : to) + 16 * s;
                    if (add) _tile_loadd(0, one, line); else _tile_zero(0);
                    for (int64_t k = 0; k < depth; k++) {
                        _tile_loadd(4, (r ? a1 : a0) + k * 32, a_stride * 2);
                        _tile_loadd(6, (s ? b1 : b0) + k * TILE, 64);
                        _tile_dpbf16ps(0, 4, 6);
                    }
                    _tile_stored(0, one, line);
                }
        }
}

/* Sixteen lines of sixteen 32-bit numbers, transposed: within fours of lines, then among the fours. */
static inline void transpose_lines(__m512i line[16]) {
    __m512i four[16];
    for (int i = 0; i < 16; i += 4) {
        __m512i a = _mm512_unpacklo_epi32(line[i], line[i + 1]), b = _mm512_unpackhi_epi32(line[i], line[i + 1]);
        __m512i c = _mm512_unpacklo_epi32(line[i + 2], line[i + 3]), d = _mm512_unpackhi_epi32(line[i + 2], line[i + 3]);
        four[i] = _mm512_unpacklo_epi64(a, c), four[i + 1] = _mm512_unpackhi_epi64(a, c);
        four[i + 2] = _mm512_unpacklo_epi64(b, d), four[i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    for (int i = 0; i < 4; i++) {
        __m512i a = _mm512_shuffle_i32x4(four[i], four[i + 4], 0x88), b = _mm512_shuffle_i32x4(four[i + 8], four[i + 12], 0x88);
        __m512i c = _mm512_shuffle_i32x4(four[i], four[i + 4], 0xdd), d = _mm512_shuffle_i32x4(four[i + 8], four[i + 12], 0xdd);
        line[i] = _mm512_shuffle_i32x4(a, b, 0x88), line[i + 8] = _mm512_shuffle_i32x4(a, b, 0xdd);
        line[i + 4] = _mm512_shuffle_i32x4(c, d, 0x88), line[i + 12] = _mm512_shuffle_i32x4(c, d, 0xdd);
    }
}

/* Pack the transpose of m (rows x columns, rows a multiple of 16): a product's right side whose inner side is m's columns. */
static void pack_transposed(const H *m, int64_t stride, int64_t rows, int64_t columns, H *to) {
    for (int64_t i = 0; i < rows; i += 16)
        for (int64_t k = 0; k < columns; k += 32, to += TILE) {
            __m512i line[16];
            for (int r = 0; r < 16; r++) line[r] = _mm512_loadu_si512(m + (i + r) * stride + k);
            transpose_lines(line);
            for (int r = 0; r < 16; r++) _mm512_storeu_si512(to + 32 * r, line[r]);
        }
}

/* Two lines of numbers, one below the other, as a line of pairs. */
static inline __m512i pairs(__m512i upper_and_lower) {
    const __m512i zip = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                         23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(zip, upper_and_lower);
}
static inline void put_pairs(H *to, __m512i upper_and_lower) { _mm512_storeu_si512(to, pairs(upper_and_lower)); }
static inline void put_lines(H *upper, H *lower, __m512i both) {
    _mm256_storeu_si256((__m256i *)upper, _mm512_castsi512_si256(both));
    _mm256_storeu_si256((__m256i *)lower, _mm512_extracti64x4_epi64(both, 1));
}
static inline __m512i narrow_both(V upper, V lower) { return (__m512i)_mm512_cvtne2ps_pbh((__m512)lower, (__m512)upper); }

static inline __m512i line_and_next(const H *upper, int64_t stride) {
    __m256i lower = _mm256_loadu_si256((const __m256i *)(upper + stride));
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)upper)), lower, 1);
}

/* Pack m (rows x columns, rows a multiple of 32) as it is. */
static void pack(const H *m, int64_t stride, int64_t rows, int64_t columns, H *to) {
    for (int64_t j = 0; j < columns; j += 16)
        for (int64_t k = 0; k < rows; k += 2, to += 32) put_pairs(to, line_and_next(m + k * stride + j, stride));
}

/* The transpose of m (rows x columns, rows a multiple of 32, columns of 16; dense), line by line. */
static void transpose(const H *m, int64_t rows, int64_t columns, H *to) {
    for (int64_t i = 0; i < rows; i += 32)
        for (int64_t j = 0; j < columns; j += 16) {
            __m512i line[16];
            for (int p = 0; p < 16; p++) line[p] = pairs(line_and_next(m + (i + 2 * p) * columns + j, columns));
            transpose_lines(line);
            for (int p = 0; p < 16; p++) _mm512_storeu_si512(to + (j + p) * rows + i, line[p]);
        }
}

/* The same of float32 numbers, both sides multiples of 16. */
static void transpose_sums(const float *m, int64_t rows, int64_t columns, float *to) {
    for (int64_t i = 0; i < rows; i += 16)
        for (int64_t j = 0; j < columns; j += 16) {
            __m512i line[16];
            for (int p = 0; p < 16; p++) line[p] = _mm512_loadu_si512(m + (i + p) * columns + j);
            transpose_lines(line);
            for (int p = 0; p < 16; p++) _mm512_storeu_si512(to + (j + p) * rows + i, line[p]);
        }
}
