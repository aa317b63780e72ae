/* Causal attention inside each document of a packed row, for processors that multiply bfloat16: forward and backward in blocks that stay in the
   cache, so that no weights are ever in memory.

   Everything is computed the other way round, keys by queries: softmax then runs along vectors (a lane a query, no sums across lanes), and the
   weights are in the form that the next product takes.

   Shapes: T tokens in the row, H query heads on K key heads of d numbers (a multiple of 32); rows are (T, H d) and (T, K d), dense.
   A document is `length` places of the row, of which its own, that ask, begin at `own`.  */

#define BLOCK 256 /* queries, one row of squares after the other: what a chunk is read for stays in the second cache */
#define CHUNK 256 /* keys */
#define SQUARE 32 /* keys by queries whose scores are turned into weights before they leave the first cache; two vectors wide */
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

/* The same where each document has whole squares. */
static int64_t begin_in_squares(const Row *row, int64_t document) {
    int64_t begin = 0;
    for (int64_t i = 0; i < document; i++) begin += up_to(row->lengths[i], SQUARE);
    return begin;
}

/* How the work is shared out: each thing is a document and so many of its query heads that have one key head. Where there is enough to do for all threads these
   are all of a key head, which gather its keys once; otherwise one, and of the last things, which would leave threads waiting, each is cut in pieces. A piece has
   every so many of the blocks of queries: a like share of early ones and of late ones, which see more keys. */
typedef struct { int64_t heads, things, whole, pieces; } Shares;
static Shares shares_of(const Row *row, int64_t threads) {
    int64_t things = row->documents * row->key_heads;
    if (threads == 1 || things >= 8 * threads) return (Shares){row->heads / row->key_heads, things, things, 1};
    things = row->documents * row->heads;
    int64_t left = things % threads, most = up_to(longest_of(row), BLOCK) / BLOCK, pieces = 1;
    while (pieces < 8 && pieces < most && left * pieces % threads) pieces++;
    return (Shares){1, things, things - left, pieces};
}

/* One thing, or a piece of one: its query heads are those from `begin` to `end`, its blocks the one at `first` and each `step` further. */
typedef struct { int64_t thing, piece, document, begin, end, first, step; } Part;
static int64_t parts_of(Shares shares) { return shares.whole + (shares.things - shares.whole) * shares.pieces; }
static Part part_of(const Row *row, Shares shares, int64_t i) {
    int64_t pieces = i < shares.whole ? 1 : shares.pieces, piece = i < shares.whole ? 0 : (i - shares.whole) % pieces;
    int64_t thing = i < shares.whole ? i : shares.whole + (i - shares.whole) / pieces;
    int64_t document = thing * shares.heads / row->heads, head = thing * shares.heads % row->heads;
    return (Part){thing, piece, document, head, head + shares.heads, row->owns[document] + piece * BLOCK, pieces * BLOCK};
}

/* Rows of a document's places, one head of them, in panels; zeros up to `padded`. */
static void gather(const H *rows, int64_t width, int64_t column, int64_t size, const int64_t *places, int64_t count, int64_t padded, H *to) {
    for (int64_t j = 0; j < size; j += 32, to += 32 * padded) {
        for (int64_t i = 0; i < count; i++) memcpy(to + 32 * i, rows + places[i] * width + column + j, 32 * sizeof(H));
        memset(to + 32 * count, 0, 32 * (padded - count) * sizeof(H));
    }
}

/* The first key that a square's queries from `place` see, or one a little before it. */
static int64_t first_key(int64_t place, int64_t window) {
    return place >= window ? (place - window + 1) / SQUARE * SQUARE : 0;
}

/* Of the keys from `first` to `end` those that are worth a product for a square's queries from `place`: squares of which one of them sees a key. They are
   `count`, from `skipped` on. */
typedef struct { int64_t skipped, count; } Seen;
static Seen keys_for(int64_t place, int64_t first, int64_t end, int64_t window) {
    int64_t begin = first_key(place, window), stop = place + SQUARE < end ? place + SQUARE : end;
    Seen seen = {begin > first ? begin - first : 0, 0};
    if (stop > first + seen.skipped) seen.count = up_to(stop - first, SQUARE) - seen.skipped;
    return seen;
}

/* Scores (keys, SQUARE) of which the first query is `back` places behind the first key: what a query must not see becomes HIDDEN. */
static void hide(float *scores, int64_t back, int64_t keys, int64_t window) {
    if (back >= keys - 1 && back + SQUARE <= window) return;
    VI query;
    for (int i = 0; i < LANES; i++) query[i] = i;
    for (int64_t k = 0; k < keys; k++)
        for (int64_t i = 0; i < SQUARE; i += LANES) {
            VI behind = query + (int32_t)(back + i - k), hidden = (behind < 0) | (behind >= (int32_t)window);
            V one = get_float32(scores + k * SQUARE + i, LANES), none = all(HIDDEN);
            put_float32(scores + k * SQUARE + i, (V)((hidden & (VI)none) | (~hidden & (VI)one)), LANES);
        }
}

/* Scores (n, SQUARE) to weights, packed: 2 to the (score less the most so far) times `by`. The most and the total of each query go on;
   returns whether a most grew, and in `kept` what remains of that which was summed before. */
static int weigh_scores(const float *scores, int64_t n, float by, float *most_of, float *total_of, H *weights, V kept[2]) {
    V before[2], most[2], odd[2], shift[2], sum[2] = {0};
    for (int i = 0; i < 2; i++) before[i] = most[i] = odd[i] = get_float32(most_of + i * LANES, LANES);
    for (int64_t k = 0; k < n; k += 2) /* in two chains: each comparison waits for the one before */
        for (int i = 0; i < 2; i++) {
            most[i] = larger(get_float32(scores + k * SQUARE + i * LANES, LANES), most[i]);
            odd[i] = larger(get_float32(scores + (k + 1) * SQUARE + i * LANES, LANES), odd[i]);
        }
    for (int i = 0; i < 2; i++) most[i] = larger(most[i], odd[i]), shift[i] = -most[i] * by;
    for (int64_t k = 0; k < n; k += 2) {
        __m512i line[2];
        for (int two = 0; two < 2; two++) {
            V weight[2];
            for (int i = 0; i < 2; i++) {
                weight[i] = exp2_up_to_127(get_float32(scores + (k + two) * SQUARE + i * LANES, LANES) * by + shift[i]);
                sum[i] += weight[i];
            }
            line[two] = narrow_line(weight[0], weight[1]);
        }
        put_pairs(weights + k * 16, n * 16, line);
    }
    int grew = 0;
    for (int i = 0; i < 2; i++) {
        kept[i] = exp2_up_to_127((before[i] - most[i]) * by);
        put_float32(total_of + i * LANES, get_float32(total_of + i * LANES, LANES) * kept[i] + sum[i], LANES);
        put_float32(most_of + i * LANES, most[i], LANES);
        grew |= _mm512_cmpneq_ps_mask((__m512)before[i], (__m512)most[i]);
    }
    return grew;
}

/* `block`: this thread's memory. */
static void attend(const Row *row, Part part, const H *query, const H *key, const H *value, H *out, float *log_sums, int64_t most, void *block) {
    int64_t d = row->size, of = part.begin / (row->heads / row->key_heads);
    void *next = block;
    H *keys = memory(&next, most * d * sizeof(H)), *values = memory(&next, most * d * sizeof(H)), *values_t = memory(&next, most * d * sizeof(H));
    H *asks = memory(&next, BLOCK * d * sizeof(H)), *packed = memory(&next, BLOCK * d * sizeof(H)), *weights = memory(&next, CHUNK * SQUARE * sizeof(H));
    float *scores = memory(&next, CHUNK * SQUARE * sizeof(float)), *sums = memory(&next, d * BLOCK * sizeof(float));
    float *sums_t = memory(&next, d * SQUARE * sizeof(float));
    float *most_of = memory(&next, BLOCK * sizeof(float)), *total_of = memory(&next, BLOCK * sizeof(float));
    const int64_t *places = row->places + begin_of(row, part.document);
    int64_t length = row->lengths[part.document], padded = up_to(length, SQUARE);
    float by = row->scale * LOG2_E;
    gather(key, row->key_heads * d, of * d, d, places, length, padded, keys);
    gather(value, row->key_heads * d, of * d, d, places, length, padded, values);
    transpose(values, padded, d, values_t);
    for (int64_t head = part.begin; head < part.end; head++)
        for (int64_t start = part.first; start < length; start += part.step) {
            int64_t count = length - start < BLOCK ? length - start : BLOCK, stop = start + count, queries = up_to(count, SQUARE);
            gather(query, row->heads * d, head * d, d, places + start, count, queries, asks);
            pack_transposed(asks, queries, d, packed);
            /* More than HIDDEN: of keys that are all hidden from a query, which a window can bring first, the weights are nothing too. */
            for (int64_t i = 0; i < queries; i++) most_of[i] = HIDDEN / 2, total_of[i] = 0;
            for (int64_t first = first_key(start, row->window); first < stop; first += CHUNK)
                for (int64_t q = 0; q < queries; q += SQUARE) {
                    Seen seen = keys_for(start + q, first, first + CHUNK < padded ? first + CHUNK : padded, row->window);
                    int64_t n = seen.count, from = first + seen.skipped;
                    if (!n) continue;
                    int add = from > first_key(start + q, row->window);
                    multiply(keys + from * 32, panel(32, padded), packed + q * d, d / 32 * TILE, scores, SQUARE, n, SQUARE, d / 32, 0);
                    hide(scores, start + q - from, n, row->window);
                    V kept[2];
                    if (weigh_scores(scores, n, by, most_of + q, total_of + q, weights, kept) && add)
                        for (int64_t k = 0; k < d; k++)
                            for (int i = 0; i < 2; i++) {
                                float *sum = sums + q * d + k * SQUARE + i * LANES;
                                put_float32(sum, get_float32(sum, LANES) * kept[i], LANES);
                            }
                    multiply(values_t + panel(from, d), panel(32, d), weights, n / 32 * TILE, sums + q * d, SQUARE, d, SQUARE, n / 32, add);
                }
            for (int64_t i = 0; i < count; i++) {
                if (i % SQUARE == 0) transpose_sums(sums + i * d, d, SQUARE, sums_t);
                H *to = out + places[start + i] * row->heads * d + head * d;
                float part = 1.0f / total_of[i];
                EACH(k, n, d) put_bfloat16(to + k, get_float32(sums_t + i % SQUARE * d + k, n) * part, n);
                log_sums[places[start + i] * row->heads + head] = most_of[i] * row->scale + logf(total_of[i]);
            }
        }
}

/* Returns 0, or 1 where there is no memory. log_sums (T, H): of each query the logarithm of the sum of the exponentials of its scores. */
int attention(int64_t threads, const Row *row, const H *query, const H *key, const H *value, H *out, float *log_sums) {
    int64_t d = row->size, most = up_to(longest_of(row), SQUARE);
    Shares shares = shares_of(row, threads);
    int64_t halves = 3 * most * d + 2 * BLOCK * d + CHUNK * SQUARE, floats = CHUNK * SQUARE + d * BLOCK + d * SQUARE + 2 * BLOCK;
    int64_t bytes = up_to(halves * sizeof(H) + floats * sizeof(float), 64) + 16 * 64; /* of a thread */
    char *blocks = aligned_alloc(64, threads * bytes);
    if (!blocks) return 1;
    EACH_OF(i, parts_of(shares)) {
        tiles_begin();
        attend(row, part_of(row, shares, i), query, key, value, out, log_sums, most, blocks + THREAD * bytes);
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

/* A square's scores to weights, and with the gradients of those to the slopes of the scores: both line by line, the slopes packed as well. */
static void slope_scores(const float *scores, const float *gradients, float by, float scale, const float *log_sum, const float *along,
                         H *weights, H *slopes, H *packed, int64_t step) {
    V shift[2], less[2];
    for (int i = 0; i < 2; i++) shift[i] = -get_float32(log_sum + i * LANES, LANES), less[i] = get_float32(along + i * LANES, LANES);
    for (int64_t k = 0; k < SQUARE; k += 2) {
        __m512i line[2];
        for (int two = 0; two < 2; two++) {
            V weight[2], slope[2];
            int64_t at = (k + two) * SQUARE;
            for (int i = 0; i < 2; i++) {
                weight[i] = exp2_up_to_127(get_float32(scores + at + i * LANES, LANES) * by + shift[i]);
                slope[i] = weight[i] * (get_float32(gradients + at + i * LANES, LANES) - less[i]) * scale;
            }
            _mm512_store_si512(weights + at, narrow_line(weight[0], weight[1]));
            _mm512_store_si512(slopes + at, line[two] = narrow_line(slope[0], slope[1]));
        }
        put_pairs(packed + k * 16, step, line);
    }
}

/* The gradients of a part's queries, and what they give to that of its key head, key_sums and value_sums (length up to SQUARE, d). */
static void attend_back(const Row *row, Part part, const Back *back, float *key_sums, float *value_sums, int64_t most, void *block) {
    int64_t d = row->size, width = row->heads * d, of = part.begin / (row->heads / row->key_heads);
    void *next = block;
    H *keys = memory(&next, most * d * sizeof(H)), *values = memory(&next, most * d * sizeof(H)), *keys_t = memory(&next, most * d * sizeof(H));
    H *asks = memory(&next, BLOCK * d * sizeof(H)), *asks_t = memory(&next, BLOCK * d * sizeof(H)), *asks_p = memory(&next, BLOCK * d * sizeof(H));
    H *grads = memory(&next, BLOCK * d * sizeof(H)), *grads_t = memory(&next, BLOCK * d * sizeof(H)), *grads_p = memory(&next, BLOCK * d * sizeof(H));
    H *weights = memory(&next, CHUNK * BLOCK * sizeof(H)), *slopes = memory(&next, CHUNK * BLOCK * sizeof(H));
    H *slopes_p = memory(&next, CHUNK * SQUARE * sizeof(H));
    float *scores = memory(&next, SQUARE * SQUARE * sizeof(float)), *slope_of = memory(&next, SQUARE * SQUARE * sizeof(float));
    float *query_sums = memory(&next, d * BLOCK * sizeof(float)), *query_sums_t = memory(&next, d * SQUARE * sizeof(float));
    float *log_sum = memory(&next, BLOCK * sizeof(float)), *along = memory(&next, BLOCK * sizeof(float));
    const int64_t *places = row->places + begin_of(row, part.document);
    int64_t length = row->lengths[part.document], padded = up_to(length, SQUARE);
    float by = row->scale * LOG2_E;
    gather(back->key, row->key_heads * d, of * d, d, places, length, padded, keys);
    gather(back->value, row->key_heads * d, of * d, d, places, length, padded, values);
    transpose(keys, padded, d, keys_t);
    memset(key_sums, 0, padded * d * sizeof(float));
    memset(value_sums, 0, padded * d * sizeof(float));
    for (int64_t head = part.begin; head < part.end; head++)
        for (int64_t start = part.first; start < length; start += part.step) {
            int64_t count = length - start < BLOCK ? length - start : BLOCK, stop = start + count, queries = up_to(count, SQUARE);
            gather(back->query, width, head * d, d, places + start, count, queries, asks);
            gather(back->gradient, width, head * d, d, places + start, count, queries, grads);
            pack_transposed(asks, queries, d, asks_t);
            pack_transposed(grads, queries, d, grads_t);
            pack(asks, queries, d, asks_p);
            pack(grads, queries, d, grads_p);
            for (int64_t i = 0; i < queries; i++) {
                V sum = {0};
                if (i < count) {
                    int64_t at = places[start + i] * width + head * d;
                    EACH(k, n, d) sum += get_bfloat16(back->out + at + k, n) * get_bfloat16(back->gradient + at + k, n);
                }
                along[i] = sum_of(sum);
                log_sum[i] = i < count ? back->log_sums[places[start + i] * row->heads + head] * LOG2_E : 0;
            }
            for (int64_t first = first_key(start, row->window); first < stop; first += CHUNK) {
                int64_t keys_here = up_to(stop - first < CHUNK ? stop - first : CHUNK, SQUARE), unseen = 0;
                for (int64_t q = 0; q < queries; q += SQUARE) {
                    Seen seen = keys_for(start + q, first, first + keys_here, row->window);
                    int64_t n = seen.count, from = first + seen.skipped;
                    if (!n && q == unseen) unseen += SQUARE; /* of the first queries, none of whom sees the chunk */
                    H *weight_of = weights + panel(q, keys_here), *slopes_of = slopes + panel(q, keys_here);
                    if (n < keys_here) {
                        memset(weight_of, 0, panel(32, keys_here) * sizeof(H));
                        memset(slopes_of, 0, panel(32, keys_here) * sizeof(H));
                    }
                    for (int64_t k = 0; k < n; k += SQUARE) {
                        int64_t at = (from + k) * 32, to = (seen.skipped + k) * 32;
                        multiply(keys + at, panel(32, padded), asks_t + q * d, d / 32 * TILE, scores, SQUARE, SQUARE, SQUARE, d / 32, 0);
                        multiply(values + at, panel(32, padded), grads_t + q * d, d / 32 * TILE, slope_of, SQUARE, SQUARE, SQUARE, d / 32, 0);
                        hide(scores, start + q - from - k, SQUARE, row->window);
                        slope_scores(scores, slope_of, by, row->scale, log_sum + q, along + q, weight_of + to, slopes_of + to,
                                     slopes_p + k * 16, n * 16);
                    }
                    if (n) multiply(keys_t + panel(from, d), panel(32, d), slopes_p, n / 32 * TILE, query_sums + q * d, SQUARE, d, SQUARE, n / 32,
                                    from > first_key(start + q, row->window));
                }
                int64_t left = panel(unseen, keys_here), right = unseen / 32 * TILE, step = queries / 32 * TILE, depth = (queries - unseen) / 32;
                multiply(weights + left, panel(32, keys_here), grads_p + right, step, value_sums + first * d, d, keys_here, d, depth, 1);
                multiply(slopes + left, panel(32, keys_here), asks_p + right, step, key_sums + first * d, d, keys_here, d, depth, 1);
            }
            for (int64_t i = 0; i < count; i++) {
                if (i % SQUARE == 0) transpose_sums(query_sums + i * d, d, SQUARE, query_sums_t);
                H *to = back->to_query + places[start + i] * width + head * d;
                EACH(k, n, d) put_bfloat16(to + k, get_float32(query_sums_t + i % SQUARE * d + k, n), n);
            }
        }
}

/* The gradients of a key head's keys and values in one document, from `count` sums that add up to them; those for the values are `apart` numbers behind. */
static void put_back(const Row *row, int64_t document, int64_t of, const Back *back, int64_t count, const float *const *sums, int64_t apart) {
    int64_t d = row->size;
    const int64_t *places = row->places + begin_of(row, document);
    for (int64_t i = 0; i < row->lengths[document]; i++)
        EACH(k, n, d) {
            int64_t at = (places[i] * row->key_heads + of) * d + k;
            V of_key = {0}, of_value = {0};
            for (int64_t one = 0; one < count; one++) {
                of_key += get_float32(sums[one] + i * d + k, n);
                of_value += get_float32(sums[one] + apart + i * d + k, n);
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

/* Where a part's sums begin: document by document those of whole things and of first pieces, then those of further pieces. */
static int64_t sums_of(const Row *row, Shares shares, int64_t thing, int64_t piece) {
    int64_t of_document = row->heads / shares.heads, document = thing / of_document, most = up_to(longest_of(row), SQUARE);
    int64_t lines = piece ? begin_in_squares(row, row->documents) * of_document + ((thing - shares.whole) * (shares.pieces - 1) + piece - 1) * most
                          : begin_in_squares(row, document) * of_document + thing % of_document * up_to(row->lengths[document], SQUARE);
    return lines * row->size;
}

/* Gradients. Returns 0, or 1 where there is no memory. With several threads what each part gives to keys and values is held and put where it belongs at the end,
   in order: documents that share places write to the same ones. */
int attention_back(int64_t threads, const Row *row, const H *query, const H *key, const H *value, const H *out, const float *log_sums, const H *gradient,
                   H *to_query, H *to_key, H *to_value, float *sum_key, float *sum_value) {
    const Back back = {query, key, value, out, log_sums, gradient, to_query, to_key, to_value, sum_key, sum_value};
    int64_t d = row->size, most = up_to(longest_of(row), SQUARE);
    Shares shares = shares_of(row, threads);
    int64_t halves = 3 * most * d + 6 * BLOCK * d + 2 * CHUNK * BLOCK + CHUNK * SQUARE;
    int64_t floats = 2 * SQUARE * SQUARE + d * BLOCK + d * SQUARE + 2 * BLOCK;
    int64_t bytes = up_to(halves * sizeof(H) + floats * sizeof(float), 64) + 24 * 64; /* of a thread */
    /* Further pieces have sums behind all others: where those of the first that there is not would begin. */
    int64_t of_key = row->heads / shares.heads / row->key_heads, sums = threads == 1 ? most * d : sums_of(row, shares, shares.things, 1);
    char *blocks = aligned_alloc(64, threads * bytes + up_to(2 * sums * sizeof(float), 64));
    if (!blocks) return 1;
    float *held = (float *)(blocks + threads * bytes);
    EACH_OF(i, parts_of(shares)) {
        Part part = part_of(row, shares, i);
        float *key_sums = held + (threads == 1 ? 0 : sums_of(row, shares, part.thing, part.piece));
        const float *const all[] = {key_sums};
        tiles_begin();
        attend_back(row, part, &back, key_sums, key_sums + sums, most, blocks + THREAD * bytes);
        tiles_end();
        if (threads == 1) put_back(row, part.document, part.begin / (row->heads / row->key_heads), &back, 1, all, sums);
    }
    if (threads > 1)
        EACH_OF(of, row->key_heads)
            for (int64_t document = 0; document < row->documents; document++) {
                const float *all[of_key * shares.pieces];
                int64_t count = 0, first = (document * row->key_heads + of) * of_key;
                for (int64_t thing = first; thing < first + of_key; thing++)
                    for (int64_t piece = 0; piece < (thing < shares.whole ? 1 : shares.pieces); piece++)
                        all[count++] = held + sums_of(row, shares, thing, piece);
                put_back(row, document, of, &back, count, all, sums);
            }
    free(blocks);
    return 0;
}
