/* Causal attention of whole rows, and of what a row goes on by: of bfloat16 or float32, without a mask, a copy or
   padding; of whole rows with gradients.

   After FlashAttention 2 (Dao 2023, arXiv 2307.08691), but that all scores of a few queries stay in a core's cache, so
   that the softmax is a plain one. What is above the diagonal is left out in steps of 6 queries and 16 keys. One thread
   has a row and a head of keys with all query heads that share it: no sum depends on how many threads there are.

   C with GCC's vector types, for x86 processors with AVX-512, and its extension for bfloat16 where `half` says so. */

#include <omp.h>
#include <stdlib.h>

#include "vectors.h"

#define ROWS 6   /* whose sums stay in registers, */
#define PANELS 4 /* of so many vectors each */
#define BLOCK 96 /* queries at a time */

/* What Python fills in; the order is that of the class in attention.py. Numbers of a token lie side by side, heads
   `..._head` apart and tokens `..._token`. */
typedef struct {
    int32_t rows, heads, shared, head_size, half;
    float scale;
    int32_t before;                      /* keys of a row before its first query; 0 where there are gradients */
    const int64_t *offsets;              /* (rows + 1,): where each row of queries starts */
    const void *query, *key, *value;     /* (tokens, heads or shared, head_size) */
    int64_t query_token, query_head, key_token, key_head, value_token, value_head;
    void *output;     /* (tokens, heads, head_size), side by side */
    float *sums;      /* (tokens, heads): logarithm of the sum of the exponentials of the scores; may be null */
    const void *of_output;             /* gradients, as the output lies */
    void *of_query, *of_key, *of_value; /* gradients, side by side */
} Packed;

INLINE int up(int count, int multiple) { return (count + multiple - 1) / multiple * multiple; }
INLINE int least(int one, int other) { return one < other ? one : other; }

/* Products. A word has two numbers of bfloat16, or one of float32, that are summed over. */

#define GROUP(half) ((half) ? 2 : 1)

/* The words from a number on, an even one where they are halves. */
INLINE const uint32_t *words_at(const void *from, int64_t number, int half) {
    return (const uint32_t *)from + number / GROUP(half);
}

INLINE Floats summed(const int half, Floats sum, uint32_t one, Floats other) {
#ifdef __AVX512BF16__
    if (half) return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32((int)one), (__m512bh)other);
#endif
    float value;
    memcpy(&value, &one, 4);
    return sum + value * other;
}

/* c (rows, panels * 16) = or += a (rows, words) times b (words, width). sideways: a lies as (words, rows). */
INLINE void block(const int half, const int rows, const int panels, const int sideways, const uint32_t *a,
                  int64_t a_step, const uint32_t *b, int64_t width, int words, float *c, int64_t c_step) {
    Floats sums[ROWS][PANELS];
#pragma GCC unroll 6
    for (int m = 0; m < rows; m++)
#pragma GCC unroll 4
        for (int n = 0; n < panels; n++) sums[m][n] = sideways ? load(c + m * c_step + n * LANES) : (Floats){};
    for (int k = 0; k < words; k++, b += width) {
        Floats part[PANELS];
#pragma GCC unroll 4
        for (int n = 0; n < panels; n++) part[n] = load((const float *)b + n * LANES);
#pragma GCC unroll 6
        for (int m = 0; m < rows; m++) {
            uint32_t one = sideways ? a[k * a_step + m] : a[m * a_step + k];
#pragma GCC unroll 4
            for (int n = 0; n < panels; n++) sums[m][n] = summed(half, sums[m][n], one, part[n]);
        }
    }
#pragma GCC unroll 6
    for (int m = 0; m < rows; m++)
#pragma GCC unroll 4
        for (int n = 0; n < panels; n++) store(c + m * c_step + n * LANES, sums[m][n]);
}

/* Up to 6 rows and 64 columns, a multiple of 16. */
INLINE void some_block(const int half, const int sideways, int rows, int columns, const uint32_t *a, int64_t a_step,
                       const uint32_t *b, int64_t width, int words, float *c, int64_t c_step) {
    switch (rows * PANELS + columns / LANES - 1) {
#define CASE(rows, panels) case rows * PANELS + panels - 1: \
        block(half, rows, panels, sideways, a, a_step, b, width, words, c, c_step); break;
#define CASES(rows) CASE(rows, 1) CASE(rows, 2) CASE(rows, 3) CASE(rows, 4)
        CASES(1) CASES(2) CASES(3) CASES(4) CASES(5) CASES(6)
#undef CASES
#undef CASE
    }
}

/* c = a times b. */
static void product(int half, int rows, int columns, const uint32_t *a, int64_t a_step, const uint32_t *b,
                    int64_t width, int words, float *c, int64_t c_step) {
    if (half) some_block(1, 0, rows, columns, a, a_step, b, width, words, c, c_step);
    else some_block(0, 0, rows, columns, a, a_step, b, width, words, c, c_step);
}

/* c += a times b, where a lies as (words, rows). */
static void product_sideways(int half, int rows, int columns, const uint32_t *a, int64_t a_step, const uint32_t *b,
                             int64_t width, int words, float *c, int64_t c_step) {
    if (half) some_block(1, 1, rows, columns, a, a_step, b, width, words, c, c_step);
    else some_block(0, 1, rows, columns, a, a_step, b, width, words, c, c_step);
}

/* Numbers (count, size) to words (features, width): those of a token in each column; zeros beyond `count`. */
static void turn(int half, const void *from, int64_t step, int count, int size, uint32_t *into, int width) {
    const uint32_t *words = from;
    __m512i places = _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                                        _mm512_set1_epi32((int)(step / GROUP(half))));
    for (int t = 0; t < width; t += LANES) {
        __mmask16 there = t + LANES <= count ? 0xffff : (__mmask16)((1u << (count - t)) - 1);
        for (int k = 0; k < size / GROUP(half); k++)
            _mm512_storeu_si512(into + (int64_t)k * width + t,
                                _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), there, places,
                                                            words + t * step / GROUP(half) + k, 4));
    }
}

/* Numbers (count, size) to words (tokens, size): a feature of two tokens in each where they are halves, of the last one
   with zero if it is alone. */
static void pair_tokens(int half, const void *from, int64_t step, int count, int size, uint32_t *into) {
    const uint16_t *halves = from;
    for (int t = 0; t < count; t += GROUP(half), into += size) {
        if (!half) memcpy(into, (const uint32_t *)from + t * step, (size_t)size * 4);
        else
            for (int i = 0; i < size; i += LANES) {
                Words low = __builtin_convertvector(*(const Halves *)(halves + t * step + i), Words);
                if (t + 1 < count)
                    low |= __builtin_convertvector(*(const Halves *)(halves + (t + 1) * step + i), Words) << 16;
                *(Words *)(into + i) = low;
            }
    }
}

/* Scores of queries (count, size), the first of which is token `first` of its row, with keys, words (features, width):
   into (count, width), as far as a group of 6 queries sees. */
static void score(int half, const void *query, int64_t step, int first, int count, int size, const uint32_t *keys,
                  int width, float *into) {
    for (int key = 0; key < first + count; key += PANELS * LANES)
        for (int m = 0; m < count; m += ROWS) {
            int rows = least(ROWS, count - m), seen = up(first + m + rows, LANES) - key;
            if (seen > 0)
                product(half, rows, least(seen, PANELS * LANES), words_at(query, m * step, half), step / GROUP(half),
                        keys + key, width, size / GROUP(half), into + (int64_t)m * width + key, width);
        }
}

/* Weighted sums of (tokens, size), given as words of `pair_tokens`: weights (count, width) to (count, size). */
static void mix(int half, const void *weights, int width, int first, int count, int size, const uint32_t *tokens,
                float *into) {
    for (int m = 0; m < count; m += ROWS) {
        int rows = least(ROWS, count - m), seen = first + m + rows;
        for (int i = 0; i < size; i += PANELS * LANES)
            product(half, rows, least(size - i, PANELS * LANES), words_at(weights, (int64_t)m * width, half),
                    width / GROUP(half), tokens + i, size, (seen + GROUP(half) - 1) / GROUP(half),
                    into + (int64_t)m * size + i, size);
    }
}

/* For each key that these queries see (.., size) += weights, words (queries, width), times words (queries, size). */
static void gather(int half, const uint32_t *weights, int width, int first, int count, int size,
                   const uint32_t *queries, float *into) {
    int seen = first + count, words = (count + GROUP(half) - 1) / GROUP(half);
    for (int key = 0; key < seen; key += ROWS) {
        int rows = least(ROWS, seen - key), from = key > first ? (key - first) / GROUP(half) : 0;
        for (int i = 0; i < size; i += PANELS * LANES)
            product_sideways(half, rows, least(size - i, PANELS * LANES), weights + (int64_t)from * width + key, width,
                             queries + (int64_t)from * size + i, size, words - from, into + (int64_t)key * size + i,
                             size);
    }
}

INLINE Floats seen_of(int key, int query) {
    const Ints places = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return (Floats)(places + key <= query); /* all bits or none */
}

INLINE Floats only(Floats which, Floats value) { return (Floats)((Ints)which & (Ints)value); }

/* Scores of token `query`'s keys to their exponentials from number `at` of `into` on, zeros up to `stop`; their sum. */
INLINE float soften(const int half, const float *scores, int query, int stop, float scale, void *into, int64_t at,
                    float *logarithm) {
    Floats tops = all(-INFINITY), sums = {};
    for (int t = 0; t <= query; t += LANES)
        tops = larger(tops, either((Ints)seen_of(t, query), load(scores + t), all(-INFINITY)));
    float top = largest(tops);
    int t = 0;
    for (; t <= query; t += LANES) {
        Floats weight = only(seen_of(t, query), exponential((load(scores + t) - top) * scale));
        store_of(into, at + t, half, weight);
        sums += weight;
    }
    for (; t < stop; t += LANES) store_of(into, at + t, half, (Floats){});
    float sum = total(sums);
    *logarithm = top * scale + logf(sum);
    return sum;
}

/* Bytes of so many numbers that products read. */
INLINE size_t bytes(int64_t numbers, int half) { return (size_t)numbers * (half ? 2 : 4); }

INLINE const void *at(const void *from, int64_t number, int half) { return (const char *)from + bytes(number, half); }

INLINE void forward_of(const int half, const Packed *one, int row, int head, char *room) {
    int start = (int)one->offsets[row], length = (int)one->offsets[row + 1] - start, size = one->head_size;
    int stop = one->before + length, width = up(stop, LANES), group = one->heads / one->shared;
    int64_t area = (int64_t)width * size / GROUP(half);
    uint32_t *keys = (uint32_t *)room, *values = keys + area;
    float *scores = (float *)(values + area), *found = scores + (int64_t)BLOCK * width;
    void *weights = found + BLOCK * size;
    turn(half, at(one->key, start * one->key_token + head * one->key_head, half), one->key_token, stop, size, keys,
         width);
    pair_tokens(half, at(one->value, start * one->value_token + head * one->value_head, half), one->value_token, stop,
                size, values);
    for (int g = head * group; g < (head + 1) * group; g++)
        for (int begun = 0; begun < length; begun += BLOCK) {
            int count = least(BLOCK, length - begun), first = one->before + begun;
            int64_t token = start + begun;
            float factors[BLOCK];
            score(half, at(one->query, token * one->query_token + g * one->query_head, half), one->query_token, first,
                  count, size, keys, width, scores);
            for (int m = 0; m < count; m++) {
                int seen = up(first + least(up(m + 1, ROWS), count), LANES);
                float logarithm;
                factors[m] = 1.0f / soften(half, scores + (int64_t)m * width, first + m, seen, one->scale, weights,
                                           (int64_t)m * width, &logarithm);
                if (one->sums) one->sums[(token + m) * one->heads + g] = logarithm;
            }
            mix(half, weights, width, first, count, size, values, found);
            for (int m = 0; m < count; m++)
                for (int i = 0; i < size; i += LANES)
                    store_of(one->output, ((token + m) * one->heads + g) * size + i, half,
                             load(found + m * size + i) * factors[m]);
        }
}

/* Two numbers of bfloat16 in each word. */
INLINE Words paired(Floats low, Floats high) {
    Words one = (Words)low, other = (Words)high;
    one = (one + 0x7fff + ((one >> 16) & 1)) >> 16;
    other = (other + 0x7fff + ((other >> 16) & 1)) & 0xffff0000u;
    return one | other;
}

typedef struct {
    float *scores, *of_weights;       /* (BLOCK, width) */
    void *of_scores;                  /* (BLOCK, width) */
    uint32_t *weights, *of_scores_up; /* words (queries, width), two queries in each where they are halves */
} Scores;

/* Weights of a pair of queries from their scores, and the gradients of the scores from those of the weights. */
INLINE void differentiate(const int half, const Scores *at, int m, int pair, int first, int width, float scale,
                          const float *logarithms, const float *means) {
    int query = first + m, stop = least(up(query + 2 + ROWS, LANES), width);
    for (int t = 0; t < stop; t += LANES) {
        Floats weights[2] = {}, of[2] = {};
        for (int i = 0; i < pair; i++) {
            int64_t place = (int64_t)(m + i) * width + t;
            Floats seen = seen_of(t, query + i), raw = load(at->scores + place) * scale - logarithms[i];
            weights[i] = only(seen, exponential(raw));
            of[i] = only(seen, weights[i] * (load(at->of_weights + place) - means[i]) * scale);
            store_of(at->of_scores, place, half, of[i]);
            if (!half) store((float *)at->weights + place, weights[i]);
        }
        if (half) {
            *(Words *)(at->weights + (int64_t)m / 2 * width + t) = paired(weights[0], weights[1]);
            *(Words *)(at->of_scores_up + (int64_t)m / 2 * width + t) = paired(of[0], of[1]);
        }
    }
}

INLINE void put(const int half, const float *from, int count, int size, void *into, int64_t start, int64_t step) {
    for (int m = 0; m < count; m++)
        for (int i = 0; i < size; i += LANES) store_of(into, start + m * step + i, half, load(from + m * size + i));
}

INLINE void backward_of(const int half, const Packed *one, int row, int head, char *room) {
    int start = (int)one->offsets[row], length = (int)one->offsets[row + 1] - start, size = one->head_size;
    int width = up(length, LANES), group = one->heads / one->shared;
    int64_t area = (int64_t)width * size, step = (int64_t)one->heads * size, narrow = (int64_t)one->shared * size;
    uint32_t *keys = (uint32_t *)room, *values = keys + area / GROUP(half), *key_pairs = values + area / GROUP(half);
    uint32_t *queries = key_pairs + area / GROUP(half), *outputs = queries + BLOCK / GROUP(half) * size;
    float *of_keys = (float *)(outputs + BLOCK / GROUP(half) * size), *of_values = of_keys + area;
    float *of_queries = of_values + area;
    Scores by = {.scores = of_queries + BLOCK * size};
    by.of_weights = by.scores + BLOCK * width;
    by.weights = (uint32_t *)(by.of_weights + BLOCK * width);
    by.of_scores_up = by.weights + BLOCK / GROUP(half) * width;
    by.of_scores = half ? by.of_scores_up + BLOCK / 2 * width : by.of_scores_up;
    const void *key = at(one->key, start * one->key_token + head * one->key_head, half);
    turn(half, key, one->key_token, length, size, keys, width);
    pair_tokens(half, key, one->key_token, length, size, key_pairs);
    turn(half, at(one->value, start * one->value_token + head * one->value_head, half), one->value_token, length, size,
         values, width);
    memset(of_keys, 0, 2 * (size_t)area * sizeof(float));
    for (int g = head * group; g < (head + 1) * group; g++)
        for (int first = 0; first < length; first += BLOCK) {
            int count = least(BLOCK, length - first);
            int64_t token = start + first, place = token * step + g * size;
            const void *query = at(one->query, token * one->query_token + g * one->query_head, half);
            const void *of_output = at(one->of_output, place, half);
            float means[BLOCK], logarithms[BLOCK];
            for (int m = 0; m < count; m++) {
                Floats sums = {};
                for (int64_t i = place + m * step; i < place + m * step + size; i += LANES)
                    sums += load_of(one->output, i, half) * load_of(one->of_output, i, half);
                means[m] = total(sums);
                logarithms[m] = one->sums[(token + m) * one->heads + g];
            }
            score(half, query, one->query_token, first, count, size, keys, width, by.scores);
            score(half, of_output, step, first, count, size, values, width, by.of_weights);
            for (int m = 0; m < count; m += 2)
                differentiate(half, &by, m, least(2, count - m), first, width, one->scale, logarithms + m, means + m);
            mix(half, by.of_scores, width, first, count, size, key_pairs, of_queries);
            put(half, of_queries, count, size, one->of_query, place, step);
            pair_tokens(half, query, one->query_token, count, size, queries);
            pair_tokens(half, of_output, step, count, size, outputs);
            gather(half, by.of_scores_up, width, first, count, size, queries, of_keys);
            gather(half, by.weights, width, first, count, size, outputs, of_values);
        }
    put(half, of_keys, length, size, one->of_key, start * narrow + head * size, narrow);
    put(half, of_values, length, size, one->of_value, start * narrow + head * size, narrow);
}

static void forward_part(const Packed *one, int row, int head, char *room) {
    if (one->half) forward_of(1, one, row, head, room);
    else forward_of(0, one, row, head, room);
}

static void backward_part(const Packed *one, int row, int head, char *room) {
    if (one->half) backward_of(1, one, row, head, room);
    else backward_of(0, one, row, head, room);
}

/* Bytes that a part of so many tokens works in. */
static size_t room_of(int length, int size) {
    size_t width = (size_t)up(length, LANES);
    return 4 * (width * size * 5 + (size_t)BLOCK * size * 3 + (size_t)BLOCK * width * 4) + 64;
}

typedef void (*Part)(const Packed *one, int row, int head, char *room);

static void run(Part part, const Packed *one, int threads) {
    int longest = 0;
    for (int row = 0; row < one->rows; row++) {
        int length = (int)(one->offsets[row + 1] - one->offsets[row]);
        if (length > longest) longest = length;
    }
    size_t needed = room_of(one->before + longest, one->head_size);
#pragma omp parallel num_threads(threads)
    {
        char *room = malloc(needed), *aligned = (char *)(((uintptr_t)room + 63) / 64 * 64);
#pragma omp for schedule(dynamic) collapse(2)
        for (int row = 0; row < one->rows; row++)
            for (int head = 0; head < one->shared; head++) part(one, row, head, aligned);
        free(room);
    }
}

void forward(const Packed *one, int threads) { run(forward_part, one, threads); }
void backward(const Packed *one, int threads) { run(backward_part, one, threads); }
