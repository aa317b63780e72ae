/* Products of small bfloat16 matrices that lie in the cache, in tiles of 16 x 16 with sums in float32.

   Every tile is 1 KiB without a gap, so that no two of its lines contend for a place in the cache. Matrices lie in panels: 32 columns, all rows of
   them one below the other, then the next 32. A product's right side is packed: for each 16 of its columns, for each 32 of its rows, 16 lines of 16
   pairs, a pair being two numbers of one column, one below the other: what the processor's instructions take. All sides are multiples of 32.  */

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

/* Where in a matrix of so many rows the panel begins of which this is the first column. */
static inline int64_t panel(int64_t column, int64_t rows) { return column * rows; }

/* c (rows x columns, float32, row by row) = or += a (rows x 32 depth) b. Of a the panels, of b the columns' tiles begin `a_step` and `b_step` numbers
   apart: both may be parts of larger ones. */
static void multiply(const H *a, int64_t a_step, const H *b, int64_t b_step, float *c, int64_t c_stride, int64_t rows, int64_t columns,
                     int64_t depth, int add) {
    int64_t line = c_stride * sizeof(float);
    for (int64_t j = 0; j < columns; j += 32)
        for (int64_t i = 0; i < rows; i += 32) {
            const H *left = a + i * 32, *right = b + j / 16 * b_step;
            float *to = c + i * c_stride + j, *below = to + 16 * c_stride;
            if (add) { _tile_loadd(0, to, line); _tile_loadd(1, to + 16, line); _tile_loadd(2, below, line); _tile_loadd(3, below + 16, line); }
            else { _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3); }
            for (int64_t k = 0; k < depth; k++, left += a_step, right += TILE) {
                _tile_loadd(4, left, 64);
                _tile_loadd(6, right, 64);
                _tile_loadd(7, right + b_step, 64);
                _tile_loadd(5, left + TILE, 64);
                _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7); _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
            }
            _tile_stored(0, to, line); _tile_stored(1, to + 16, line); _tile_stored(2, below, line); _tile_stored(3, below + 16, line);
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

/* Pack the transpose of m: a product's right side whose inner side is m's columns. */
static void pack_transposed(const H *m, int64_t rows, int64_t columns, H *to) {
    for (int64_t i = 0; i < rows; i += 16)
        for (int64_t j = 0; j < columns; j += 32, to += TILE) {
            __m512i line[16];
            for (int r = 0; r < 16; r++) line[r] = _mm512_load_si512(m + panel(j, rows) + (i + r) * 32);
            transpose_lines(line);
            for (int r = 0; r < 16; r++) _mm512_store_si512(to + 32 * r, line[r]);
        }
}

/* Numbers of two lines, one below the other, as pairs: of the first 16 columns, and of the last. */
static inline __m512i first_pairs(__m512i upper, __m512i lower) {
    const __m512i zip = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,
                                         39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    return _mm512_permutex2var_epi16(upper, zip, lower);
}
static inline __m512i last_pairs(__m512i upper, __m512i lower) {
    const __m512i zip = _mm512_set_epi16(63, 31, 62, 30, 61, 29, 60, 28, 59, 27, 58, 26, 57, 25, 56, 24,
                                         55, 23, 54, 22, 53, 21, 52, 20, 51, 19, 50, 18, 49, 17, 48, 16);
    return _mm512_permutex2var_epi16(upper, zip, lower);
}
/* Of a left matrix's two lines, one below the other, the two that a right matrix has in their place, `step` numbers apart. */
static inline void put_pairs(H *to, int64_t step, const __m512i line[2]) {
    _mm512_store_si512(to, first_pairs(line[0], line[1]));
    _mm512_store_si512(to + step, last_pairs(line[0], line[1]));
}
static inline __m512i narrow_line(V first, V last) { return (__m512i)_mm512_cvtne2ps_pbh((__m512)last, (__m512)first); }

/* Pack m as it is. */
static void pack(const H *m, int64_t rows, int64_t columns, H *to) {
    for (int64_t j = 0; j < columns; j += 32, to += 2 * rows * 16)
        for (int64_t i = 0; i < rows; i += 2) {
            const H *from = m + panel(j, rows) + i * 32;
            const __m512i line[2] = {_mm512_load_si512(from), _mm512_load_si512(from + 32)};
            put_pairs(to + i * 16, rows * 16, line);
        }
}

/* The transpose of m, in panels too. */
static void transpose(const H *m, int64_t rows, int64_t columns, H *to) {
    for (int64_t i = 0; i < rows; i += 32)
        for (int64_t j = 0; j < columns; j += 32) {
            __m512i first[16], last[16];
            for (int p = 0; p < 16; p++) {
                const H *from = m + panel(j, rows) + (i + 2 * p) * 32;
                __m512i upper = _mm512_load_si512(from), lower = _mm512_load_si512(from + 32);
                first[p] = first_pairs(upper, lower), last[p] = last_pairs(upper, lower);
            }
            transpose_lines(first);
            transpose_lines(last);
            H *there = to + panel(i, columns) + j * 32;
            for (int p = 0; p < 16; p++) _mm512_store_si512(there + p * 32, first[p]), _mm512_store_si512(there + (16 + p) * 32, last[p]);
        }
}

/* The same of float32 numbers, row by row. */
static void transpose_sums(const float *m, int64_t rows, int64_t columns, float *to) {
    for (int64_t i = 0; i < rows; i += 16)
        for (int64_t j = 0; j < columns; j += 16) {
            __m512i line[16];
            for (int p = 0; p < 16; p++) line[p] = _mm512_loadu_si512(m + (i + p) * columns + j);
            transpose_lines(line);
            for (int p = 0; p < 16; p++) _mm512_storeu_si512(to + (j + p) * rows + i, line[p]);
        }
}
