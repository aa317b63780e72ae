/* Causal attention inside each document of a packed row, for processors that multiply bfloat16: forward and backward in blocks that stay in the
   cache, so that no weights are ever in memory.

   Everything is computed the other way round, keys by queries: softmax then runs along vectors (a lane a query, no sums across lanes), and the
   weights are in the form that the next product takes.

   Shapes: T tokens in the row, H query heads on K key heads of d numbers (a multiple of 32); rows are (T, H d) and (T, K d), dense.
   A document is `length` places of the row, of which its own, that ask, begin at `own`.  */

#define BLOCK 64  /* queries */
#define CHUNK 64  /* keys */
#define HIDDEN -1e30f

typedef struct {
    int64_t documents;
    const int64_t *lengths, *owns, *places;
    int64_t heads, key_heads, size;
    float scale;
    int64_t window; /* a query sees so many keys, itself among them */
} Row;

static int64_t longest_of(const Row *row) {
    int64_t longest = 0;
    for (int64_t i = 0; i < row->documents; i++) longest = row->lengths[i] > longest ? row->lengths[i] : longest;
    return longest;
}

/* Where the tokens of a document are found among those of all. */
static int64_t begin_of(const Row *row, int64_t document) {
    int64_t begin = 0;
    for (int64_t i = 0; i < document; i++) begin += row->lengths[i];
    return begin;
}

/* The same where each document has whole chunks. */
static int64_t begin_in_chunks(const Row *row, int64_t document) {
    int64_t begin = 0;
    for (int64_t i = 0; i < document; i++) begin += up_to(row->lengths[i], CHUNK);
    return begin;
}

/* How many query heads of one key head a thread does one after the other: all, which gather its keys once; one where threads would have nothing to do. */
static int64_t heads_at_once(const Row *row, int64_t threads) {
    return threads == 1 || row->documents * row->key_heads >= 8 * threads ? row->heads / row->key_heads : 1;
}

/* Rows of a document's places, one head of them; zeros up to `padded`. */
static void gather(const H *rows, int64_t width, int64_t column, int64_t size, const int64_t *places, int64_t count, int64_t padded, H *to) {
    for (int64_t i = 0; i < count; i++) memcpy(to + i * size, rows + places[i] * width + column, size * sizeof(H));
    memset(to + count * size, 0, (padded - count) * size * sizeof(H));
}

/* Which keys of a chunk from `first` the queries from `start` must not see: scores of those are HIDDEN. */
static void hide(float *scores, int64_t first, int64_t keys, int64_t start, int64_t window) {
    VI query;
    for (int i = 0; i < LANES; i++) query[i] = i;
    for (int64_t k = 0; k < keys; k++)
        for (int64_t i = 0; i < BLOCK; i += LANES) {
            VI back = query + (int32_t)(start + i - first - k), hidden = (back < 0) | (back >= (int32_t)window);
            V one = get_float32(scores + k * BLOCK + i, LANES), none = all(HIDDEN);
            put_float32(scores + k * BLOCK + i, (V)((hidden & (VI)none) | (~hidden & (VI)one)), LANES);
        }
}

static int64_t first_chunk(int64_t start, int64_t window) {
    return start >= window ? (start - window + 1) / CHUNK * CHUNK : 0;
}

/* Of one document and the query heads from `begin` to `end`, which have one key head. `block`: this thread's memory. */
static void attend(const Row *row, int64_t document, int64_t begin_head, int64_t end_head, const H *query, const H *key, const H *value, H *out,
                   float *log_sums, int64_t most, void *block) {
    int64_t d = row->size, of = begin_head / (row->heads / row->key_heads);
    void *next = block;
    H *keys = memory(&next, most * d * sizeof(H)), *values = memory(&next, most * d * sizeof(H)), *values_t = memory(&next, most * d * sizeof(H));
    H *asks = memory(&next, BLOCK * d * sizeof(H)), *packed = memory(&next, BLOCK * d * sizeof(H)), *weights = memory(&next, CHUNK * BLOCK * sizeof(H));
    float *scores = memory(&next, CHUNK * BLOCK * sizeof(float)), *sums = memory(&next, d * BLOCK * sizeof(float));
    float *sums_t = memory(&next, d * BLOCK * sizeof(float));
    float *most_of = memory(&next, BLOCK * sizeof(float)), *total_of = memory(&next, BLOCK * sizeof(float));
    const int64_t *places = row->places + begin_of(row, document);
    int64_t length = row->lengths[document], own = row->owns[document], padded = up_to(length, CHUNK);
    gather(key, row->key_heads * d, of * d, d, places, length, padded, keys);
    gather(value, row->key_heads * d, of * d, d, places, length, padded, values);
    transpose(values, padded, d, values_t);
    for (int64_t head = begin_head; head < end_head; head++)
        for (int64_t start = own; start < length; start += BLOCK) {
            int64_t count = length - start < BLOCK ? length - start : BLOCK, stop = start + count;
            gather(query, row->heads * d, head * d, d, places + start, count, BLOCK, asks);
            pack_transposed(asks, d, BLOCK, d, packed);
            for (int64_t i = 0; i < BLOCK; i++) most_of[i] = HIDDEN, total_of[i] = 0;
            int64_t begin = first_chunk(start, row->window);
            for (int64_t first = begin; first < stop; first += CHUNK) {
                int64_t n = up_to(stop - first < CHUNK ? stop - first : CHUNK, 32);
                multiply(keys + first * d, d, packed, scores, BLOCK, n, BLOCK, d / 32, 0);
                if (first + n > start + 1 || stop - first > row->window) hide(scores, first, n, start, row->window);
                for (int64_t i = 0; i < BLOCK; i += LANES) {
                    V before = get_float32(most_of + i, LANES), most_now = before, sum = {0};
                    for (int64_t k = 0; k < n; k++) most_now = larger(get_float32(scores + k * BLOCK + i, LANES), most_now);
                    V shift = -most_now * row->scale;
                    H *to = weights + i / 16 * (n / 32) * TILE;
                    for (int64_t k = 0; k < n; k += 2, to += 32) {
                        V upper = exp_up_to_88(get_float32(scores + k * BLOCK + i, LANES) * row->scale + shift);
                        V lower = exp_up_to_88(get_float32(scores + (k + 1) * BLOCK + i, LANES) * row->scale + shift);
                        sum += upper + lower;
                        put_pairs(to, narrow_both(upper, lower));
                    }
                    V kept = exp_of(before * row->scale + shift);
                    put_float32(total_of + i, get_float32(total_of + i, LANES) * kept + sum, LANES);
                    put_float32(most_of + i, most_now, LANES);
                    if (first > begin)
                        for (int64_t k = 0; k < d; k++) put_float32(sums + k * BLOCK + i, get_float32(sums + k * BLOCK + i, LANES) * kept, LANES);
                }
                multiply(values_t + first, padded, weights, sums, BLOCK, d, BLOCK, n / 32, first > begin);
            }
            transpose_sums(sums, d, BLOCK, sums_t);
            for (int64_t i = 0; i < count; i++) {
                H *to = out + places[start + i] * row->heads * d + head * d;
                float by = 1.0f / total_of[i];
                EACH(k, n, d) put_bfloat16(to + k, get_float32(sums_t + i * d + k, n) * by, n);
                log_sums[places[start + i] * row->heads + head] = most_of[i] * row->scale + logf(total_of[i]);
            }
        }
}

/* Returns 0, or 1 where there is no memory. log_sums (T, H): of each query the logarithm of the sum of the exponentials of its scores. */
int attention(int64_t threads, const Row *row, const H *query, const H *key, const H *value, H *out, float *log_sums) {
    int64_t d = row->size, most = up_to(longest_of(row), CHUNK), at_once = heads_at_once(row, threads), parts = row->heads / at_once;
    int64_t halves = 3 * most * d + 2 * BLOCK * d + CHUNK * BLOCK, floats = CHUNK * BLOCK + 2 * d * BLOCK + 2 * BLOCK;
    int64_t bytes = up_to(halves * sizeof(H) + floats * sizeof(float), 64) + 16 * 64; /* of a thread */
    char *blocks = aligned_alloc(64, threads * bytes);
    if (!blocks) return 1;
    EACH_OF(i, row->documents * parts) {
        int64_t head = i % parts * at_once;
        tiles_begin();
        attend(row, i / parts, head, head + at_once, query, key, value, out, log_sums, most, blocks + THREAD * bytes);
        tiles_end();
    }
    free(blocks);
    return 0;
}

/* What the way back reads and writes. Where documents share places, the gradients of keys and values are summed in float32: added to what is in
   `sum_key` and `sum_value`, and `to_key` and `to_value` stay as they are. */
typedef struct {
    const H *query, *key, *value, *out;
    const float *log_sums;
    const H *gradient;
    H *to_query, *to_key, *to_value;
    float *sum_key, *sum_value;
} Back;

/* Of one document and the query heads from `begin` to `end`, which have one key head: the gradients of the queries, and what they give to that of the key
   head, key_sums and value_sums (length up to CHUNK, d). */
static void attend_back(const Row *row, int64_t document, int64_t begin_head, int64_t end_head, const Back *back, float *key_sums, float *value_sums,
                        int64_t most, void *block) {
    int64_t d = row->size, width = row->heads * d, of = begin_head / (row->heads / row->key_heads);
    void *next = block;
    H *keys = memory(&next, most * d * sizeof(H)), *values = memory(&next, most * d * sizeof(H)), *keys_t = memory(&next, most * d * sizeof(H));
    H *asks = memory(&next, BLOCK * d * sizeof(H)), *asks_t = memory(&next, BLOCK * d * sizeof(H)), *asks_p = memory(&next, BLOCK * d * sizeof(H));
    H *grads = memory(&next, BLOCK * d * sizeof(H)), *grads_t = memory(&next, BLOCK * d * sizeof(H)), *grads_p = memory(&next, BLOCK * d * sizeof(H));
    H *weights = memory(&next, CHUNK * BLOCK * sizeof(H));
    H *slopes = memory(&next, CHUNK * BLOCK * sizeof(H)), *slopes_p = memory(&next, CHUNK * BLOCK * sizeof(H));
    float *scores = memory(&next, CHUNK * BLOCK * sizeof(float)), *slope_of = memory(&next, CHUNK * BLOCK * sizeof(float));
    float *query_sums = memory(&next, d * BLOCK * sizeof(float)), *query_sums_t = memory(&next, d * BLOCK * sizeof(float));
    float *log_sum = memory(&next, BLOCK * sizeof(float)), *along = memory(&next, BLOCK * sizeof(float));
    const int64_t *places = row->places + begin_of(row, document);
    int64_t length = row->lengths[document], own = row->owns[document], padded = up_to(length, CHUNK);
    gather(back->key, row->key_heads * d, of * d, d, places, length, padded, keys);
    gather(back->value, row->key_heads * d, of * d, d, places, length, padded, values);
    transpose(keys, padded, d, keys_t);
    memset(key_sums, 0, padded * d * sizeof(float));
    memset(value_sums, 0, padded * d * sizeof(float));
    for (int64_t head = begin_head; head < end_head; head++)
        for (int64_t start = own; start < length; start += BLOCK) {
            int64_t count = length - start < BLOCK ? length - start : BLOCK, stop = start + count;
            gather(back->query, width, head * d, d, places + start, count, BLOCK, asks);
            gather(back->gradient, width, head * d, d, places + start, count, BLOCK, grads);
            pack_transposed(asks, d, BLOCK, d, asks_t);
            pack_transposed(grads, d, BLOCK, d, grads_t);
            pack(asks, d, BLOCK, d, asks_p);
            pack(grads, d, BLOCK, d, grads_p);
            for (int64_t i = 0; i < BLOCK; i++) {
                V sum = {0};
                if (i < count) {
                    const H *from = back->out + places[start + i] * width + head * d;
                    EACH(k, n, d) sum += get_bfloat16(from + k, n) * get_bfloat16(grads + i * d + k, n);
                }
                along[i] = sum_of(sum);
                log_sum[i] = i < count ? back->log_sums[places[start + i] * row->heads + head] : 0;
            }
            int64_t begin = first_chunk(start, row->window);
            for (int64_t first = begin; first < stop; first += CHUNK) {
                int64_t n = up_to(stop - first < CHUNK ? stop - first : CHUNK, 32);
                multiply(keys + first * d, d, asks_t, scores, BLOCK, n, BLOCK, d / 32, 0);
                multiply(values + first * d, d, grads_t, slope_of, BLOCK, n, BLOCK, d / 32, 0);
                if (first + n > start + 1 || stop - first > row->window) hide(scores, first, n, start, row->window);
                for (int64_t i = 0; i < BLOCK; i += LANES) {
                    V shift = -get_float32(log_sum + i, LANES), less = get_float32(along + i, LANES);
                    H *to = slopes_p + i / 16 * (n / 32) * TILE;
                    for (int64_t k = 0; k < n; k += 2, to += 32) {
                        V weight[2], slope[2];
                        int64_t at = k * BLOCK + i;
                        for (int two = 0; two < 2; two++) {
                            int64_t from = at + two * BLOCK;
                            weight[two] = exp_up_to_88(get_float32(scores + from, LANES) * row->scale + shift);
                            slope[two] = weight[two] * (get_float32(slope_of + from, LANES) - less);
                        }
                        put_lines(weights + at, weights + at + BLOCK, narrow_both(weight[0], weight[1]));
                        __m512i both = narrow_both(slope[0] * row->scale, slope[1] * row->scale);
                        put_lines(slopes + at, slopes + at + BLOCK, both);
                        put_pairs(to, both);
                    }
                }
                multiply(weights, BLOCK, grads_p, value_sums + first * d, d, n, d, BLOCK / 32, 1);
                multiply(slopes, BLOCK, asks_p, key_sums + first * d, d, n, d, BLOCK / 32, 1);
                multiply(keys_t + first, padded, slopes_p, query_sums, BLOCK, d, BLOCK, n / 32, first > begin);
            }
            transpose_sums(query_sums, d, BLOCK, query_sums_t);
            for (int64_t i = 0; i < count; i++) {
                H *to = back->to_query + places[start + i] * width + head * d;
                EACH(k, n, d) put_bfloat16(to + k, get_float32(query_sums_t + i * d + k, n), n);
            }
        }
}

/* The gradients of a key head's keys and values in one document, from `parts` that add up to them, `stride` numbers apart. */
static void put_back(const Row *row, int64_t document, int64_t of, const Back *back, const float *key_sums, const float *value_sums,
                     int64_t parts, int64_t stride) {
    int64_t d = row->size;
    const int64_t *places = row->places + begin_of(row, document);
    for (int64_t i = 0; i < row->lengths[document]; i++)
        EACH(k, n, d) {
            int64_t at = (places[i] * row->key_heads + of) * d + k;
            V of_key = get_float32(key_sums + i * d + k, n), of_value = get_float32(value_sums + i * d + k, n);
            for (int64_t part = 1; part < parts; part++) {
                of_key += get_float32(key_sums + part * stride + i * d + k, n);
                of_value += get_float32(value_sums + part * stride + i * d + k, n);
            }
            if (back->sum_key) {
                put_float32(back->sum_key + at, get_float32(back->sum_key + at, n) + of_key, n);
                put_float32(back->sum_value + at, get_float32(back->sum_value + at, n) + of_value, n);
            } else {
                put_bfloat16(back->to_key + at, of_key, n);
                put_bfloat16(back->to_value + at, of_value, n);
            }
        }
}

/* Gradients. Returns 0, or 1 where there is no memory. With several threads the sums of all heads are held and put where they belong at the end, in
   order: documents that share places write to the same ones. */
int attention_back(int64_t threads, const Row *row, const H *query, const H *key, const H *value, const H *out, const float *log_sums, const H *gradient,
                   H *to_query, H *to_key, H *to_value, float *sum_key, float *sum_value) {
    const Back back = {query, key, value, out, log_sums, gradient, to_query, to_key, to_value, sum_key, sum_value};
    int64_t d = row->size, most = up_to(longest_of(row), CHUNK), at_once = heads_at_once(row, threads), parts = row->heads / at_once;
    int64_t halves = 3 * most * d + 6 * BLOCK * d + 3 * CHUNK * BLOCK, floats = 2 * CHUNK * BLOCK + 2 * d * BLOCK + 2 * BLOCK;
    int64_t bytes = up_to(halves * sizeof(H) + floats * sizeof(float), 64) + 24 * 64;
    int64_t stride = (threads == 1 ? most : begin_in_chunks(row, row->documents)) * d, sums = (threads == 1 ? 1 : parts) * stride;
    char *blocks = aligned_alloc(64, threads * bytes + up_to(2 * sums * sizeof(float), 64));
    if (!blocks) return 1;
    float *key_sums = (float *)(blocks + threads * bytes), *value_sums = key_sums + sums;
    EACH_OF(i, row->documents * parts) {
        int64_t document = i / parts, part = i % parts, head = part * at_once;
        int64_t at = threads == 1 ? 0 : part * stride + begin_in_chunks(row, document) * d;
        tiles_begin();
        attend_back(row, document, head, head + at_once, &back, key_sums + at, value_sums + at, most, blocks + THREAD * bytes);
        tiles_end();
        if (threads == 1) put_back(row, document, part, &back, key_sums, value_sums, 1, 0);
    }
    if (threads > 1)
        EACH_OF(of, row->key_heads) {
            int64_t of_key = parts / row->key_heads;
            for (int64_t document = 0; document < row->documents; document++) {
                int64_t at = of * of_key * stride + begin_in_chunks(row, document) * d;
                put_back(row, document, of, &back, key_sums + at, value_sums + at, of_key, stride);
            }
        }
    free(blocks);
    return 0;
}
