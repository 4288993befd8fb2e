/* Causal attention of whole rows, and of what a row goes on by: bfloat16, without a mask, a copy or padding; of whole
   rows with gradients.

   After FlashAttention 2 (Dao 2023, arXiv 2307.08691), but that all scores of a few queries stay in a core's cache, so
   that the softmax is a plain one. What is above the diagonal is left out in steps of 6 queries and 16 keys. One thread
   has a row and a head of keys with all query heads that share it: no sum depends on how many threads there are.

   C with GCC's vector types, for x86 processors with AVX-512 and its extension for bfloat16. */

#include <omp.h>
#include <stdlib.h>

#include "vectors.h"

#define ROWS 6   /* whose sums stay in registers, */
#define PANELS 4 /* of so many vectors each */
#define BLOCK 96 /* queries at a time */

/* What Python fills in; the order is that of the class in attention.py. Numbers of a token lie side by side, heads
   `..._head` apart and tokens `..._token`. */
typedef struct {
    int32_t rows, heads, shared, head_size;
    float scale;
    int32_t before;                      /* keys of a row before its first query; 0 where there are gradients */
    const int64_t *offsets;              /* (rows + 1,): where each row of queries starts */
    const uint16_t *query, *key, *value; /* (tokens, heads or shared, head_size) */
    int64_t query_token, query_head, key_token, key_head, value_token, value_head;
    uint16_t *output; /* (tokens, heads, head_size), side by side */
    float *sums;      /* (tokens, heads): logarithm of the sum of the exponentials of the scores; may be null */
    const uint16_t *of_output;             /* gradients, as the output lies */
    uint16_t *of_query, *of_key, *of_value; /* gradients, side by side */
} Packed;

INLINE int up(int count, int multiple) { return (count + multiple - 1) / multiple * multiple; }
INLINE int least(int one, int other) { return one < other ? one : other; }

/* Products. A word has two numbers of bfloat16 that are summed over. */

/* c (rows, panels * 16) = or += a (rows, words) times b (words, width). sideways: a lies as (words, rows). */
INLINE void block(const int rows, const int panels, const int sideways, const int add, const uint32_t *a,
                  int64_t a_step, const uint32_t *b, int64_t width, int words, float *c, int64_t c_step) {
#ifdef __AVX512BF16__
    Floats sums[ROWS][PANELS];
#pragma GCC unroll 6
    for (int m = 0; m < rows; m++)
#pragma GCC unroll 4
        for (int n = 0; n < panels; n++) sums[m][n] = add ? load(c + m * c_step + n * LANES) : (Floats){};
    for (int k = 0; k < words; k++, b += width) {
        __m512bh part[PANELS];
#pragma GCC unroll 4
        for (int n = 0; n < panels; n++) part[n] = (__m512bh)_mm512_loadu_si512(b + n * LANES);
#pragma GCC unroll 6
        for (int m = 0; m < rows; m++) {
            __m512bh two = (__m512bh)_mm512_set1_epi32((int)(sideways ? a[k * a_step + m] : a[m * a_step + k]));
#pragma GCC unroll 4
            for (int n = 0; n < panels; n++)
                sums[m][n] = (Floats)_mm512_dpbf16_ps((__m512)sums[m][n], two, part[n]);
        }
    }
#pragma GCC unroll 6
    for (int m = 0; m < rows; m++)
#pragma GCC unroll 4
        for (int n = 0; n < panels; n++) store(c + m * c_step + n * LANES, sums[m][n]);
#else
    (void)rows, (void)panels, (void)sideways, (void)add, (void)a, (void)a_step, (void)b, (void)width, (void)words;
    (void)c, (void)c_step;
#endif
}

/* Up to 6 rows and 64 columns, a multiple of 16. */
INLINE void some_block(const int sideways, const int add, int rows, int columns, const uint32_t *a, int64_t a_step,
                       const uint32_t *b, int64_t width, int words, float *c, int64_t c_step) {
    switch (rows * PANELS + columns / LANES - 1) {
#define CASE(rows, panels) case rows * PANELS + panels - 1: \
        block(rows, panels, sideways, add, a, a_step, b, width, words, c, c_step); break;
#define CASES(rows) CASE(rows, 1) CASE(rows, 2) CASE(rows, 3) CASE(rows, 4)
        CASES(1) CASES(2) CASES(3) CASES(4) CASES(5) CASES(6)
#undef CASES
#undef CASE
    }
}

static void straight(int rows, int columns, const uint32_t *a, int64_t a_step, const uint32_t *b, int64_t width,
                     int words, float *c, int64_t c_step) {
    some_block(0, 0, rows, columns, a, a_step, b, width, words, c, c_step);
}

static void sideways(int rows, int columns, const uint32_t *a, int64_t a_step, const uint32_t *b, int64_t width,
                     int words, float *c, int64_t c_step) {
    some_block(1, 1, rows, columns, a, a_step, b, width, words, c, c_step);
}

/* Numbers (count, size) to words (size / 2, width): two features of a token in each; zeros beyond `count`. */
static void pair_features(const uint16_t *from, int64_t step, int count, int size, uint32_t *into, int width) {
    for (int t = 0; t < width; t += LANES) {
        __mmask16 there = t + LANES <= count ? 0xffff : (__mmask16)((1u << (count - t)) - 1);
        __m512i places = _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                                            _mm512_set1_epi32((int)(2 * step)));
        for (int k = 0; k < size / 2; k++)
            _mm512_storeu_si512(into + (int64_t)k * width + t,
                                _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), there, places,
                                                            from + t * step + 2 * k, 1));
    }
}

/* Numbers (count, size) to words (count / 2, size): a feature of two tokens in each; zero beyond `count`. */
static void pair_tokens(const uint16_t *from, int64_t step, int count, int size, uint32_t *into) {
    for (int t = 0; t < count; t += 2, into += size)
        for (int i = 0; i < size; i += LANES) {
            Words low = __builtin_convertvector(*(const Halves *)(from + t * step + i), Words);
            if (t + 1 < count)
                low |= __builtin_convertvector(*(const Halves *)(from + (t + 1) * step + i), Words) << 16;
            *(Words *)(into + i) = low;
        }
}

/* Scores of queries (count, size), the first of which is token `first` of its row, with keys, words (size / 2, width):
   into (count, width), as far as a group of 6 queries sees. */
static void score(const uint16_t *query, int64_t step, int first, int count, int size, const uint32_t *keys, int width,
                  float *into) {
    for (int key = 0; key < first + count; key += PANELS * LANES)
        for (int m = 0; m < count; m += ROWS) {
            int rows = least(ROWS, count - m), seen = up(first + m + rows, LANES) - key;
            if (seen > 0)
                straight(rows, least(seen, PANELS * LANES), (const uint32_t *)(query + m * step), step / 2, keys + key,
                         width, size / 2, into + (int64_t)m * width + key, width);
        }
}

/* Weighted sums of (tokens, size), given as words of two tokens each: weights (count, width) to (count, size). */
static void mix(const uint16_t *weights, int width, int first, int count, int size, const uint32_t *tokens,
                float *into) {
    for (int m = 0; m < count; m += ROWS) {
        int rows = least(ROWS, count - m), words = (first + m + rows + 1) / 2;
        for (int i = 0; i < size; i += PANELS * LANES)
            straight(rows, least(size - i, PANELS * LANES), (const uint32_t *)(weights + (int64_t)m * width), width / 2,
                     tokens + i, size, words, into + (int64_t)m * size + i, size);
    }
}

/* For each key that these queries see (.., size) +=
   weights, words (queries / 2, width), times words (queries / 2, size). */
static void gather(const uint32_t *weights, int width, int first, int count, int size, const uint32_t *queries,
                   float *into) {
    int seen = first + count;
    for (int key = 0; key < seen; key += ROWS) {
        int rows = least(ROWS, seen - key), from = key > first ? (key - first) / 2 : 0;
        for (int i = 0; i < size; i += PANELS * LANES)
            sideways(rows, least(size - i, PANELS * LANES), weights + (int64_t)from * width + key, width,
                     queries + (int64_t)from * size + i, size, (count + 1) / 2 - from, into + (int64_t)key * size + i,
                     size);
    }
}

INLINE Floats seen_of(int key, int query) {
    const Ints places = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return (Floats)(places + key <= query); /* all bits or none */
}

INLINE Floats only(Floats which, Floats value) { return (Floats)((Ints)which & (Ints)value); }

/* Scores of token `query`'s keys to exponentials of bfloat16, zeros up to `stop`; the sum, and its logarithm. */
static float soften(const float *scores, int query, int stop, float scale, uint16_t *into, float *logarithm) {
    Floats tops = all(-INFINITY), sums = {};
    for (int t = 0; t <= query; t += LANES)
        tops = larger(tops, either((Ints)seen_of(t, query), load(scores + t), all(-INFINITY)));
    float top = largest(tops);
    int t = 0;
    for (; t <= query; t += LANES) {
        Floats weight = only(seen_of(t, query), exponential((load(scores + t) - top) * scale));
        store_halves(into + t, weight);
        sums += weight;
    }
    for (; t < stop; t += LANES) store_halves(into + t, (Floats){});
    float sum = total(sums);
    *logarithm = top * scale + logf(sum);
    return sum;
}

static void forward_part(const Packed *one, int row, int head, char *room) {
    int start = (int)one->offsets[row], length = (int)one->offsets[row + 1] - start, size = one->head_size;
    int stop = one->before + length, width = up(stop, LANES), group = one->heads / one->shared;
    uint32_t *keys = (uint32_t *)room, *values = keys + (int64_t)size / 2 * width;
    float *scores = (float *)(values + (int64_t)(width / 2) * size), *found = scores + (int64_t)BLOCK * width;
    uint16_t *weights = (uint16_t *)(found + BLOCK * size);
    pair_features(one->key + start * one->key_token + head * one->key_head, one->key_token, stop, size, keys, width);
    pair_tokens(one->value + start * one->value_token + head * one->value_head, one->value_token, stop, size, values);
    for (int g = head * group; g < (head + 1) * group; g++)
        for (int at = 0; at < length; at += BLOCK) {
            int count = least(BLOCK, length - at), first = one->before + at;
            int64_t token = start + at;
            float factors[BLOCK];
            score(one->query + token * one->query_token + g * one->query_head, one->query_token, first, count, size,
                  keys, width, scores);
            for (int m = 0; m < count; m++) {
                int seen = up(first + least(up(m + 1, ROWS), count), LANES);
                float logarithm;
                factors[m] = 1.0f / soften(scores + (int64_t)m * width, first + m, seen, one->scale,
                                           weights + (int64_t)m * width, &logarithm);
                if (one->sums) one->sums[(token + m) * one->heads + g] = logarithm;
            }
            mix(weights, width, first, count, size, values, found);
            for (int m = 0; m < count; m++)
                for (int i = 0; i < size; i += LANES)
                    store_halves(one->output + ((token + m) * one->heads + g) * size + i,
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
    float *scores, *of_weights;        /* (BLOCK, width) */
    uint16_t *of_scores;               /* (BLOCK, width) */
    uint32_t *weights, *of_scores_up;  /* (BLOCK / 2, width), two queries in each word */
} Scores;

/* Weights of a pair of queries from their scores, and the gradients of the scores from those of the weights. */
static void differentiate(const Scores *at, int m, int pair, int first, int width, float scale, const float *logarithms,
                          const float *means) {
    int query = first + m, stop = least(up(query + 2 + ROWS, LANES), width);
    const float *scores = at->scores + (int64_t)m * width, *of_weights = at->of_weights + (int64_t)m * width;
    uint16_t *of_scores = at->of_scores + (int64_t)m * width;
    uint32_t *weights_up = at->weights + (int64_t)m / 2 * width;
    uint32_t *of_scores_up = at->of_scores_up + (int64_t)m / 2 * width;
    for (int t = 0; t < stop; t += LANES) {
        Floats weights[2] = {}, of[2] = {};
        for (int i = 0; i < pair; i++) {
            Floats seen = seen_of(t, query + i), raw = load(scores + i * width + t) * scale - logarithms[i];
            weights[i] = only(seen, exponential(raw));
            of[i] = only(seen, weights[i] * (load(of_weights + i * width + t) - means[i]) * scale);
            store_halves(of_scores + i * width + t, of[i]);
        }
        *(Words *)(weights_up + t) = paired(weights[0], weights[1]);
        *(Words *)(of_scores_up + t) = paired(of[0], of[1]);
    }
}

static void put_halves(const float *from, int count, int size, uint16_t *into, int64_t step) {
    for (int m = 0; m < count; m++)
        for (int i = 0; i < size; i += LANES) store_halves(into + m * step + i, load(from + m * size + i));
}

static void backward_part(const Packed *one, int row, int head, char *room) {
    int start = (int)one->offsets[row], length = (int)one->offsets[row + 1] - start, size = one->head_size;
    int width = up(length, LANES), group = one->heads / one->shared;
    int64_t area = (int64_t)width * size, step = (int64_t)one->heads * size, narrow = (int64_t)one->shared * size;
    uint32_t *keys = (uint32_t *)room, *values = keys + area / 2, *key_pairs = values + area / 2;
    uint32_t *queries = key_pairs + area / 2, *outputs = queries + BLOCK / 2 * size;
    float *of_keys = (float *)(outputs + BLOCK / 2 * size), *of_values = of_keys + area, *of_queries = of_values + area;
    Scores at = {.scores = of_queries + BLOCK * size};
    at.of_weights = at.scores + BLOCK * width;
    at.weights = (uint32_t *)(at.of_weights + BLOCK * width);
    at.of_scores_up = at.weights + BLOCK / 2 * width;
    at.of_scores = (uint16_t *)(at.of_scores_up + BLOCK / 2 * width);
    const uint16_t *key = one->key + start * one->key_token + head * one->key_head;
    pair_features(key, one->key_token, length, size, keys, width);
    pair_tokens(key, one->key_token, length, size, key_pairs);
    const uint16_t *value = one->value + start * one->value_token + head * one->value_head;
    pair_features(value, one->value_token, length, size, values, width);
    memset(of_keys, 0, 2 * (size_t)area * sizeof(float));
    for (int g = head * group; g < (head + 1) * group; g++)
        for (int first = 0; first < length; first += BLOCK) {
            int count = least(BLOCK, length - first);
            int64_t token = start + first;
            const uint16_t *query = one->query + token * one->query_token + g * one->query_head;
            const uint16_t *of_output = one->of_output + token * step + g * size;
            const uint16_t *output = one->output + token * step + g * size;
            float means[BLOCK], logarithms[BLOCK];
            for (int m = 0; m < count; m++) {
                Floats sums = {};
                for (int i = 0; i < size; i += LANES)
                    sums += load_halves(output + m * step + i) * load_halves(of_output + m * step + i);
                means[m] = total(sums);
                logarithms[m] = one->sums[(token + m) * one->heads + g];
            }
            score(query, one->query_token, first, count, size, keys, width, at.scores);
            score(of_output, step, first, count, size, values, width, at.of_weights);
            for (int m = 0; m < count; m += 2)
                differentiate(&at, m, least(2, count - m), first, width, one->scale, logarithms + m, means + m);
            mix(at.of_scores, width, first, count, size, key_pairs, of_queries);
            put_halves(of_queries, count, size, one->of_query + token * step + g * size, step);
            pair_tokens(query, one->query_token, count, size, queries);
            pair_tokens(of_output, step, count, size, outputs);
            gather(at.of_scores_up, width, first, count, size, queries, of_keys);
            gather(at.weights, width, first, count, size, outputs, of_values);
        }
    put_halves(of_keys, length, size, one->of_key + start * narrow + head * size, narrow);
    put_halves(of_values, length, size, one->of_value + start * narrow + head * size, narrow);
}

/* Bytes that a part of so many tokens works in. */
static size_t room_of(int length, int size) {
    size_t width = (size_t)up(length, LANES);
    return width * size * 14 + (size_t)BLOCK * size * 8 + (size_t)BLOCK * width * 14 + 64;
}

typedef void (*Part)(const Packed *one, int row, int head, char *room);

static void run(Part part, const Packed *one, int threads) {
    int longest = 0;
    for (int row = 0; row < one->rows; row++) {
        int length = (int)(one->offsets[row + 1] - one->offsets[row]);
        if (length > longest) longest = length;
    }
    size_t bytes = room_of(one->before + longest, one->head_size);
#pragma omp parallel num_threads(threads)
    {
        char *room = malloc(bytes), *aligned = (char *)(((uintptr_t)room + 63) / 64 * 64);
#pragma omp for schedule(dynamic) collapse(2)
        for (int row = 0; row < one->rows; row++)
            for (int head = 0; head < one->shared; head++) part(one, row, head, aligned);
        free(room);
    }
}

void forward(const Packed *one, int threads) { run(forward_part, one, threads); }
void backward(const Packed *one, int threads) { run(backward_part, one, threads); }
