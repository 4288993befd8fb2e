/* One step of a decoder in which each of a few texts goes on by one token: all layers in one call.

   A step's time is that of reading the weights once, if nothing else is in the way: so all that lies between two
   products of matrices is done on the way from one to the other, by the same threads, without a call in between.
   C with GCC's vector types, for x86 processors with AVX-512; bfloat16 and 8-bit products need its extensions for them,
   and whoever calls has looked.

   Weights (out, in) are laid out in pairs of panels of 16 outputs each, inputs in groups of one (float32), two
   (bfloat16) or four (int8): [out / 32][in / group][32][group]. Of a layer that gates, one panel of a pair is of the
   gate and one of what is gated. Weights of 4 bits, 0 to 15 for -8 to 7, lie as those of 8, two groups in one: the
   first in the low bits; each 32 inputs of an output have a scale. */

#define _GNU_SOURCE
#include <math.h>
#include <omp.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#include "vectors.h"

#define PAIR (2 * LANES)
#define SPAN 32 /* inputs of 4-bit weights that have one scale */
#define MOST_ROWS 12 /* of a block whose sums stay in registers: 12 rows of two panels */

enum Kind { FLOAT32, BFLOAT16, INT8, INT4 };
enum Then { STORE, ADD, GATE };

/* What Python fills in; the order is that of the classes in panels.py and step.py. */
typedef struct {
    int32_t kind, inputs, padded, outputs; /* padded: inputs up to a multiple of 32; outputs: those of whole pairs */
    int32_t kept;                          /* numbers of a result: outputs without padding, half as many where gated */
    const void *weight;
    const float *bias, *scales; /* (outputs,), bias may be null; scales are of int8, of int4 (pairs, spans, 32) */
    const int32_t *sums;        /* of int8: 128 times the sum of an output's weights */
} Linear;

typedef struct {
    Linear qkv, output, gate_up, down;
    const float *before, *between, *query_norm, *key_norm; /* the last two may be null */
    float scale;
    int32_t window; /* 0: none */
} Layer;

typedef struct {
    int32_t layers, dim, heads, shared, head_size, feed, half_table, half_cache;
    float epsilon, head_epsilon, amplitude;
    const void *table;
    const float *norm, *frequencies; /* (head_size / 2,) */
    const Layer *blocks;
} Model;

typedef struct {
    int32_t rows, longest; /* longest: tokens of the longest row, up to a multiple of 16 */
    const int64_t *ids, *positions;
    void *const *keys, *const *values; /* of each layer (rows, shared, capacity, head_size) */
    int64_t row_stride, head_stride;   /* of both, in numbers */
    float *hidden;                     /* (rows, dim): the result */
    float *tokens, *wide, *angles, *scores, *input_scales; /* room; scores: (threads, heads / shared, longest) */
    void *input;
} Step;

/* Threads are OpenMP's, whose library torch has loaded: a pool of our own would be in the way of its pool. */

#define EAGER 4000 /* looks at others' progress before a thread lets others have its core */

typedef void (*Job)(const void *what, int rank);
static struct {
    pthread_mutex_t call;
    int count;
    _Alignas(64) atomic_int arrived;
    _Alignas(64) atomic_int turn;
    _Alignas(64) atomic_int next[2];
} team = {.call = PTHREAD_MUTEX_INITIALIZER};

/* Until all threads are here; what they are to share out next starts at 0. */
static void meet(void) {
    int turn = atomic_load(&team.turn), looks = 0;
    if (atomic_fetch_add(&team.arrived, 1) + 1 == team.count) {
        atomic_store(&team.arrived, 0);
        atomic_store(&team.next[(turn + 1) & 1], 0);
        atomic_store(&team.turn, turn + 1);
        return;
    }
    while (atomic_load_explicit(&team.turn, memory_order_acquire) == turn) {
        if (++looks > EAGER) sched_yield();
        else _mm_pause();
    }
}

/* The first of so many items that the threads share out between two meetings. */
INLINE int take(int many) {
    return atomic_fetch_add(&team.next[atomic_load_explicit(&team.turn, memory_order_relaxed) & 1], many);
}

static void together(Job job, const void *what, int threads) {
    pthread_mutex_lock(&team.call);
#pragma omp parallel num_threads(threads)
    {
#pragma omp single
        {
            team.count = omp_get_num_threads();
            atomic_store(&team.arrived, 0);
            atomic_store(&team.next[0], 0), atomic_store(&team.next[1], 0);
        }
        job(what, omp_get_thread_num());
    }
    pthread_mutex_unlock(&team.call);
}

/* Inputs of a product. Each word has one number of float32, two of bfloat16 or four of 8 bits, and the words of a block
   of rows lie side by side, as the products read them: [padded / group][rows of a block]. For weights of 4 bits, which
   are taken to be 8 too large, as many times 8 as is in the inputs of each span follows: [padded / 32][rows]. */

typedef struct {
    int rows, each; /* each: rows of a block, but for the last one */
    uint32_t *words;
    float *scales; /* (rows,), of int8 and int4 */
} Input;

INLINE int is_whole(const Linear *linear) { return linear->kind == INT8 || linear->kind == INT4; }
INLINE int group_of(int kind) { return kind == FLOAT32 ? 1 : kind == BFLOAT16 ? 2 : 4; }

static Input input_of(int rows, void *words, float *scales) {
    int blocks = (rows + MOST_ROWS - 1) / MOST_ROWS;
    return (Input){rows, (rows + blocks - 1) / blocks, words, scales};
}

INLINE int blocks_of(const Input *input) { return (input->rows + input->each - 1) / input->each; }

INLINE int words_of(const Linear *linear) { return linear->padded / group_of(linear->kind); }

/* With what follows them. */
INLINE int row_words_of(const Linear *linear) {
    return words_of(linear) + (linear->kind == INT4 ? linear->padded / SPAN : 0);
}

INLINE uint32_t *block_of(const Input *input, const Linear *linear, int block) {
    return input->words + (int64_t)block * input->each * row_words_of(linear);
}

/* Numbers of 8 bits about `middle`, the largest of them 127 from it; what 1 of them is. */
static float set_bytes(uint8_t *into, const float *from, int count, int middle) {
    Floats most = {};
    float top = 1e-12f;
    int i = 0;
    for (; i + LANES <= count; i += LANES) most = larger(most, larger(load(from + i), -load(from + i)));
    for (; i < count; i++) top = fmaxf(top, fabsf(from[i]));
    top = fmaxf(top, largest(most));
    float factor = 127.0f / top;
    for (i = 0; i < count; i++) into[i] = (uint8_t)((int)(from[i] * factor + 128.5f) - 128 + middle);
    return top / 127.0f;
}

/* from: numbers of float32, or of bfloat16 if `half`, as row number `row` of the input. */
static void set_row(const Input *input, const Linear *linear, int row, const void *from, int half) {
    int count = linear->inputs, each = input->each, words = words_of(linear);
    uint32_t *into = block_of(input, linear, row / each) + row % each, own[row_words_of(linear)];
    float floats[half && linear->kind != BFLOAT16 ? count : 1];
    const float *numbers = from;
    if (half && linear->kind != BFLOAT16) {
        for (int i = 0; i < count; i++) floats[i] = widened(((const uint16_t *)from)[i]);
        numbers = floats;
    }
    if (linear->kind == FLOAT32) {
        memset(own, 0, 4 * (size_t)words);
        memcpy(own, numbers, 4 * (size_t)count);
    } else if (is_whole(linear)) {
        memset(own + count / 4, 0, 4 * (size_t)(words - count / 4));
        input->scales[row] = set_bytes((uint8_t *)own, numbers, count, linear->kind == INT8 ? 128 : 0);
        for (int span = 0; span < row_words_of(linear) - words; span++) {
            int sum = 0;
            for (int i = 0; i < SPAN; i++) sum += ((const int8_t *)own)[span * SPAN + i];
            own[words + span] = (uint32_t)(8 * sum);
        }
    } else {
        int i = 0;
        uint16_t *halves = (uint16_t *)own;
        memset(own + count / 2, 0, 4 * (size_t)(words - count / 2));
        if (half) memcpy(halves, from, 2 * (size_t)count), i = count;
        for (; i + LANES <= count; i += LANES) store_halves(halves + i, load(numbers + i));
        for (; i < count; i++) halves[i] = halved(numbers[i]);
    }
    for (int i = 0; i < row_words_of(linear); i++) into[(int64_t)i * each] = own[i];
}

/* Products: `rows` inputs with a pair of panels. All loops over rows are unrolled, so that sums stay in registers. */

INLINE void float_block(const int rows, const uint32_t *x, int each, const float *w, int words, Floats (*sums)[2]) {
    Floats low_sums[MOST_ROWS], high_sums[MOST_ROWS];
#pragma GCC unroll 12
    for (int m = 0; m < rows; m++) low_sums[m] = high_sums[m] = (Floats){};
    for (int k = 0; k < words; k++, w += PAIR, x += each) {
        Floats low = load(w), high = load(w + LANES);
#pragma GCC unroll 12
        for (int m = 0; m < rows; m++) {
            float value;
            memcpy(&value, x + m, 4);
            low_sums[m] += value * low, high_sums[m] += value * high;
        }
    }
#pragma GCC unroll 12
    for (int m = 0; m < rows; m++) sums[m][0] = low_sums[m], sums[m][1] = high_sums[m];
}

INLINE void half_block(const int rows, const uint32_t *x, int each, const uint16_t *w, int words, Floats (*sums)[2]) {
#ifdef __AVX512BF16__
    Floats low_sums[MOST_ROWS], high_sums[MOST_ROWS];
#pragma GCC unroll 12
    for (int m = 0; m < rows; m++) low_sums[m] = high_sums[m] = (Floats){};
    for (int k = 0; k < words; k++, w += 2 * PAIR, x += each) {
        Words low = *(const Words *)w, high = *(const Words *)(w + PAIR);
#pragma GCC unroll 12
        for (int m = 0; m < rows; m++) {
            __m512bh two = (__m512bh)_mm512_set1_epi32((int)x[m]);
            low_sums[m] = (Floats)_mm512_dpbf16_ps((__m512)low_sums[m], two, (__m512bh)low);
            high_sums[m] = (Floats)_mm512_dpbf16_ps((__m512)high_sums[m], two, (__m512bh)high);
        }
    }
#pragma GCC unroll 12
    for (int m = 0; m < rows; m++) sums[m][0] = low_sums[m], sums[m][1] = high_sums[m];
#else
    (void)rows, (void)x, (void)each, (void)w, (void)words, (void)sums;
#endif
}

/* Sums of 32 bits in the place of floats. */
INLINE void byte_block(const int rows, const uint32_t *x, int each, const int8_t *w, int words, Floats (*sums)[2]) {
#ifdef __AVX512VNNI__
    __m512i low_sums[MOST_ROWS], high_sums[MOST_ROWS];
#pragma GCC unroll 12
    for (int m = 0; m < rows; m++) low_sums[m] = high_sums[m] = _mm512_setzero_si512();
    for (int k = 0; k < words; k++, w += 4 * PAIR, x += each) {
        __m512i low = _mm512_loadu_si512(w), high = _mm512_loadu_si512(w + 4 * LANES);
#pragma GCC unroll 12
        for (int m = 0; m < rows; m++) {
            __m512i four = _mm512_set1_epi32((int)x[m]);
            low_sums[m] = _mm512_dpbusd_epi32(low_sums[m], four, low);
            high_sums[m] = _mm512_dpbusd_epi32(high_sums[m], four, high);
        }
    }
#pragma GCC unroll 12
    for (int m = 0; m < rows; m++) sums[m][0] = (Floats)low_sums[m], sums[m][1] = (Floats)high_sums[m];
#else
    (void)rows, (void)x, (void)each, (void)w, (void)words, (void)sums;
#endif
}

/* Sums of floats already, of 6 rows at most. Inputs have signs here and weights none, 8 too many: which is taken off. */
INLINE void nibble_block(const int rows, const uint32_t *x, int each, const uint8_t *w, int words, const float *scales,
                         Floats (*sums)[2]) {
#ifdef __AVX512VNNI__
    const uint32_t *eights = x + (int64_t)words * each;
    const __m512i four_bits = _mm512_set1_epi8(15);
    Floats low_sums[MOST_ROWS], high_sums[MOST_ROWS];
#pragma GCC unroll 6
    for (int m = 0; m < rows; m++) low_sums[m] = high_sums[m] = (Floats){};
    for (int k = 0; k < words; k += SPAN / 4, scales += PAIR, eights += each) {
        __m512i low_whole[MOST_ROWS], high_whole[MOST_ROWS];
#pragma GCC unroll 6
        for (int m = 0; m < rows; m++) low_whole[m] = high_whole[m] = _mm512_set1_epi32(-(int)eights[m]);
#pragma GCC unroll 4
        for (int i = 0; i < SPAN / 8; i++, w += 4 * PAIR, x += 2 * each) {
            __m512i low = _mm512_loadu_si512(w), high = _mm512_loadu_si512(w + 4 * LANES);
            __m512i low_first = _mm512_and_si512(low, four_bits), high_first = _mm512_and_si512(high, four_bits);
            __m512i low_then = _mm512_and_si512(_mm512_srli_epi16(low, 4), four_bits);
            __m512i high_then = _mm512_and_si512(_mm512_srli_epi16(high, 4), four_bits);
#pragma GCC unroll 6
            for (int m = 0; m < rows; m++) {
                __m512i first = _mm512_set1_epi32((int)x[m]), then = _mm512_set1_epi32((int)x[each + m]);
                low_whole[m] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(low_whole[m], low_first, first), low_then, then);
                high_whole[m] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(high_whole[m], high_first, first), high_then, then);
            }
        }
        Floats low_scale = load(scales), high_scale = load(scales + LANES);
#pragma GCC unroll 6
        for (int m = 0; m < rows; m++) {
            low_sums[m] += (Floats)_mm512_cvtepi32_ps(low_whole[m]) * low_scale;
            high_sums[m] += (Floats)_mm512_cvtepi32_ps(high_whole[m]) * high_scale;
        }
    }
#pragma GCC unroll 6
    for (int m = 0; m < rows; m++) sums[m][0] = low_sums[m], sums[m][1] = high_sums[m];
#else
    (void)rows, (void)x, (void)each, (void)w, (void)words, (void)scales, (void)sums;
#endif
}

INLINE void block(const Linear *linear, const int rows, const uint32_t *x, int each, int pair, Floats (*sums)[2]) {
    int words = words_of(linear);
    int64_t at = (int64_t)pair * PAIR * words * 4;
    const char *weight = linear->weight;
    if (linear->kind == FLOAT32) float_block(rows, x, each, (const float *)(weight + at), words, sums);
    else if (linear->kind == BFLOAT16) half_block(rows, x, each, (const uint16_t *)(weight + at), words, sums);
    else if (linear->kind == INT8) byte_block(rows, x, each, (const int8_t *)(weight + at), words, sums);
    else nibble_block(rows, x, each, (const uint8_t *)(weight + at / 2), words,
                      linear->scales + (int64_t)pair * PAIR * (linear->padded / SPAN), sums);
}

static void any_block(const Linear *linear, int rows, const uint32_t *x, int each, int pair, Floats (*sums)[2]) {
    if (linear->kind == INT4 && rows > MOST_ROWS / 2) { /* which have twice as many sums */
        any_block(linear, rows / 2, x, each, pair, sums);
        any_block(linear, rows - rows / 2, x + rows / 2, each, pair, sums + rows / 2);
        return;
    }
    switch (rows) {
#define CASE(n) case n: block(linear, n, x, each, pair, sums); break;
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#undef CASE
    }
}

INLINE Floats scaled(const Linear *linear, Floats sum, int output, float input_scale) {
    if (linear->kind == INT8) {
        Ints whole = (Ints)sum - *(const Ints *)(linear->sums + output);
        sum = __builtin_convertvector(whole, Floats) * load(linear->scales + output) * input_scale;
    } else if (linear->kind == INT4) sum *= input_scale;
    return linear->bias ? sum + load(linear->bias + output) : sum;
}

/* Where the numbers that are kept go: rows of float32, or of bfloat16 where they are only stored. */
typedef struct {
    enum Then then;
    void *into;
    int64_t stride;
    int half;
} Target;

/* Numbers `at` to `at + LANES` of a row, as far as there are so many. */
INLINE void put(const Target *target, int row, int at, int kept, Floats value) {
    char *into = (char *)target->into + (row * target->stride + at) * (target->half ? 2 : 4);
    int count = kept - at;
    if (count >= LANES && target->half) store_halves((uint16_t *)into, value);
    else if (count >= LANES) store((float *)into, target->then == ADD ? value + load((float *)into) : value);
    else
        for (int i = 0; i < count; i++) {
            if (target->half) ((uint16_t *)into)[i] = halved(value[i]);
            else ((float *)into)[i] = target->then == ADD ? ((float *)into)[i] + value[i] : value[i];
        }
}

INLINE void finish(const Linear *linear, const Target *target, int row, int pair, Floats *sums, float input_scale) {
    int output = pair * PAIR;
    Floats low = scaled(linear, sums[0], output, input_scale);
    Floats high = scaled(linear, sums[1], output + LANES, input_scale);
    if (target->then == GATE) {
        put(target, row, pair * LANES, linear->kept, low * sigmoid(low) * high);
    } else {
        put(target, row, output, linear->kept, low);
        put(target, row, output + LANES, linear->kept, high);
    }
}

/* Rows of inputs times the weights, shared out between the threads by pairs of panels. */
static void multiply(const Linear *linear, const Input *input, const Target *target) {
    int pairs = linear->outputs / PAIR, each = input->each;
    int many = pairs / (8 * team.count) < 1 ? 1 : pairs / (8 * team.count);
    Floats sums[MOST_ROWS][2];
    for (int first = take(many); first < pairs; first = take(many)) {
        int last = first + many < pairs ? first + many : pairs;
        for (int pair = first; pair < last; pair++) {
            for (int number = 0; number < blocks_of(input); number++) {
                int row = number * each, count = input->rows - row < each ? input->rows - row : each;
                any_block(linear, count, block_of(input, linear, number), each, pair, sums);
                for (int m = 0; m < count; m++)
                    finish(linear, target, row + m, pair, sums[m], is_whole(linear) ? input->scales[row + m] : 0);
            }
        }
    }
}

/* Layers */

static void normalize(const float *from, const float *weight, int count, float epsilon, float *into) {
    Floats squares = {};
    float rest_squares = 0;
    int i = 0;
    for (; i + LANES <= count; i += LANES) squares += load(from + i) * load(from + i);
    for (; i < count; i++) rest_squares += from[i] * from[i];
    float inverse = 1.0f / sqrtf((total(squares) + rest_squares) / (float)count + epsilon);
    for (i = 0; i + LANES <= count; i += LANES) store(into + i, load(from + i) * inverse * load(weight + i));
    for (; i < count; i++) into[i] = from[i] * inverse * weight[i];
}

/* The rows' tokens, normal, as inputs of a product; a block of rows is of one thread. */
static void normal_inputs(const Model *model, const Step *step, const float *weight, const Linear *linear,
                          const Input *input) {
    for (int block = take(1); block < blocks_of(input); block = take(1))
        for (int row = block * input->each; row < step->rows && row < (block + 1) * input->each; row++) {
            float *own = step->wide + (int64_t)row * model->dim;
            normalize(step->tokens + (int64_t)row * model->dim, weight, model->dim, model->epsilon, own);
            set_row(input, linear, row, own, 0);
        }
}

/* Rows of so many numbers as inputs. */
static void inputs(const float *from, int64_t stride, const Linear *linear, const Input *input) {
    for (int block = take(1); block < blocks_of(input); block = take(1))
        for (int row = block * input->each; row < input->rows && row < (block + 1) * input->each; row++)
            set_row(input, linear, row, from + row * stride, 0);
}

static void rotate(float *head, const float *cosine, const float *sine, int size) {
    int half = size / 2;
    for (int i = 0; i < half; i++) {
        float low = head[i], high = head[i + half];
        head[i] = low * cosine[i] - high * sine[i];
        head[i + half] = high * cosine[i] + low * sine[i];
    }
}

INLINE void keep(float *from, void *cache, int64_t at, int half_cache, int size) {
    for (int i = 0; i < size; i += LANES) store_of(cache, at + i, half_cache, load(from + i));
}

/* Four sums. */
INLINE __m128 totals(Floats a, Floats b, Floats c, Floats d) {
    __m256 parts[4];
    Floats sums[4] = {a, b, c, d};
    for (int i = 0; i < 4; i++)
        parts[i] = _mm256_add_ps(_mm512_castps512_ps256((__m512)sums[i]), _mm512_extractf32x8_ps((__m512)sums[i], 1));
    __m256 found = _mm256_hadd_ps(_mm256_hadd_ps(parts[0], parts[1]), _mm256_hadd_ps(parts[2], parts[3]));
    return _mm_add_ps(_mm256_castps256_ps128(found), _mm256_extractf128_ps(found, 1));
}

/* Scores of `count` tokens, for a few queries (heads, size): products with the keys (count, size) from `at` on. */
INLINE void score(const int heads, const int half, const float *query, const void *keys, int64_t at, int count, int size,
                  float *scores, int stride) {
    int t = 0;
    for (; t + 4 <= count; t += 4) {
        Floats sums[4][4];
#pragma GCC unroll 4
        for (int g = 0; g < heads; g++) sums[g][0] = sums[g][1] = sums[g][2] = sums[g][3] = (Floats){};
        for (int i = 0; i < size; i += LANES) {
            Floats key[4];
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) key[j] = load_of(keys, at + (int64_t)(t + j) * size + i, half);
#pragma GCC unroll 4
            for (int g = 0; g < heads; g++) {
                Floats part = load(query + g * size + i);
#pragma GCC unroll 4
                for (int j = 0; j < 4; j++) sums[g][j] += part * key[j];
            }
        }
#pragma GCC unroll 4
        for (int g = 0; g < heads; g++)
            _mm_storeu_ps(scores + g * stride + t, totals(sums[g][0], sums[g][1], sums[g][2], sums[g][3]));
    }
    for (; t < count; t++)
        for (int g = 0; g < heads; g++) {
            Floats sum = {};
            for (int i = 0; i < size; i += LANES)
                sum += load(query + g * size + i) * load_of(keys, at + (int64_t)t * size + i, half);
            scores[g * stride + t] = total(sum);
        }
}

/* Means of the values (count, size) from `at` on, by the weights of a few heads, into (heads, size). */
INLINE void mix(const int heads, const int wide, const int half, const float *weights, int stride, const void *values,
                int64_t at, int count, int size, float *into) {
    for (int i = 0; i < size; i += wide * LANES) {
        Floats sums[4][4];
#pragma GCC unroll 4
        for (int g = 0; g < heads; g++)
#pragma GCC unroll 4
            for (int j = 0; j < wide; j++) sums[g][j] = (Floats){};
        for (int t = 0; t < count; t++) {
#pragma GCC unroll 4
            for (int j = 0; j < wide; j++) {
                Floats value = load_of(values, at + (int64_t)t * size + i + j * LANES, half);
#pragma GCC unroll 4
                for (int g = 0; g < heads; g++) sums[g][j] += weights[g * stride + t] * value;
            }
        }
#pragma GCC unroll 4
        for (int g = 0; g < heads; g++)
#pragma GCC unroll 4
            for (int j = 0; j < wide; j++) store(into + g * size + i + j * LANES, sums[g][j]);
    }
}

/* Weights of the scores (count,) that sum up to 1. */
static void soften(float *scores, int count) {
    int padded = (count + LANES - 1) / LANES * LANES;
    for (int t = count; t < padded; t++) scores[t] = -INFINITY;
    Floats tops = load(scores), sums = {};
    for (int t = LANES; t < padded; t += LANES) tops = larger(tops, load(scores + t));
    float most = largest(tops);
    for (int t = 0; t < padded; t += LANES) {
        Floats weight = exponential(load(scores + t) - most);
        store(scores + t, weight);
        sums += weight;
    }
    float inverse = 1.0f / total(sums);
    for (int t = 0; t < padded; t += LANES) store(scores + t, load(scores + t) * inverse);
}

/* One row and one head of keys with the query heads that share it. */
static void attend(const Model *model, const Layer *layer, const Step *step, int number, int unit, float *scores) {
    int row = unit / model->shared, head = unit % model->shared, size = model->head_size;
    int group = model->heads / model->shared, half = model->half_cache;
    int64_t width = layer->qkv.kept;
    float *query = step->wide + row * width + (int64_t)head * group * size;
    float *key = step->wide + row * width + (int64_t)(model->heads + head) * size;
    float *value = key + (int64_t)model->shared * size;
    const float *cosine = step->angles + (int64_t)row * size, *sine = cosine + size / 2;
    for (int g = 0; g < group; g++) {
        if (layer->query_norm)
            normalize(query + g * size, layer->query_norm, size, model->head_epsilon, query + g * size);
        rotate(query + g * size, cosine, sine, size);
        for (int i = 0; i < size; i += LANES) store(query + g * size + i, load(query + g * size + i) * layer->scale);
    }
    if (layer->key_norm) normalize(key, layer->key_norm, size, model->head_epsilon, key);
    rotate(key, cosine, sine, size);

    int64_t base = row * step->row_stride + head * step->head_stride, last = step->positions[row];
    keep(key, step->keys[number], base + last * size, half, size);
    keep(value, step->values[number], base + last * size, half, size);
    int64_t low = layer->window && last + 1 > layer->window ? last + 1 - layer->window : 0;
    int count = (int)(last + 1 - low), stride = step->longest;
    int64_t at = base + low * size;
    for (int g = 0; g < group; g += 4) {
        const float *some = query + g * size;
        switch ((group - g > 4 ? 4 : group - g) * 2 + half) {
#define CASE(heads, half) case heads * 2 + half: \
            score(heads, half, some, step->keys[number], at, count, size, scores + g * stride, stride); break;
            CASE(1, 0) CASE(2, 0) CASE(3, 0) CASE(4, 0) CASE(1, 1) CASE(2, 1) CASE(3, 1) CASE(4, 1)
#undef CASE
        }
    }
    for (int g = 0; g < group; g++) soften(scores + g * stride, count);
    for (int g = 0; g < group; g += 4) {
        float *into = query + g * size; /* which is not needed any more */
        switch (((group - g > 4 ? 4 : group - g) * 2 + half) * 2 + (size % (4 * LANES) == 0)) {
#define CASE(heads, half, four) case (heads * 2 + half) * 2 + four: \
            mix(heads, four ? 4 : 1, half, scores + g * stride, stride, step->values[number], at, count, size, into); break;
#define CASES(heads) CASE(heads, 0, 0) CASE(heads, 0, 1) CASE(heads, 1, 0) CASE(heads, 1, 1)
            CASES(1) CASES(2) CASES(3) CASES(4)
#undef CASES
#undef CASE
        }
    }
}

static void begin(const Model *model, const Step *step) {
    int half = model->head_size / 2;
    for (int row = take(1); row < step->rows; row = take(1)) {
        float *into = step->tokens + (int64_t)row * model->dim, *angles = step->angles + (int64_t)row * model->head_size;
        int64_t at = step->ids[row] * model->dim;
        for (int i = 0; i < model->dim; i++) {
            if (model->half_table) into[i] = widened(((const uint16_t *)model->table)[at + i]);
            else into[i] = ((const float *)model->table)[at + i];
        }
        for (int i = 0; i < half; i++) {
            float angle = (float)step->positions[row] * model->frequencies[i];
            angles[i] = cosf(angle) * model->amplitude, angles[half + i] = sinf(angle) * model->amplitude;
        }
    }
}

typedef struct {
    const Model *model;
    const Step *step;
} Decoding;

static void decode_part(const void *what, int rank) {
    const Model *model = ((const Decoding *)what)->model;
    const Step *step = ((const Decoding *)what)->step;
    int rows = step->rows, group = model->heads / model->shared;
    Input input = input_of(rows, step->input, step->input_scales);
    float *scores = step->scores + (int64_t)rank * group * step->longest;
    begin(model, step);
    meet();
    for (int number = 0; number < model->layers; number++) {
        const Layer *layer = model->blocks + number;
        int64_t width = layer->qkv.kept;
        Target to_wide = {STORE, step->wide, width, 0}, to_tokens = {ADD, step->tokens, model->dim, 0};
        Target to_gated = {GATE, step->wide, model->feed, 0};
        normal_inputs(model, step, layer->before, &layer->qkv, &input);
        meet();
        multiply(&layer->qkv, &input, &to_wide);
        meet();
        for (int unit = take(1); unit < rows * model->shared; unit = take(1))
            attend(model, layer, step, number, unit, scores);
        meet();
        inputs(step->wide, width, &layer->output, &input);
        meet();
        multiply(&layer->output, &input, &to_tokens);
        meet();
        normal_inputs(model, step, layer->between, &layer->gate_up, &input);
        meet();
        multiply(&layer->gate_up, &input, &to_gated);
        meet();
        inputs(step->wide, model->feed, &layer->down, &input);
        meet();
        multiply(&layer->down, &input, &to_tokens);
        meet();
    }
    for (int row = take(1); row < rows; row = take(1))
        normalize(step->tokens + (int64_t)row * model->dim, model->norm, model->dim, model->epsilon,
                  step->hidden + (int64_t)row * model->dim);
    meet();
}

void decode(const Model *model, const Step *step, int threads) {
    Decoding both = {model, step};
    together(decode_part, &both, threads);
}

typedef struct {
    const Linear *linear;
    Input input;
    const void *from;
    Target target;
} Multiplication;

static void multiply_part(const void *what, int rank) {
    const Multiplication *one = what;
    const Input *input = &one->input;
    int half = one->target.half;
    int64_t bytes = (int64_t)one->linear->inputs * (half ? 2 : 4);
    (void)rank;
    for (int block = take(1); block < blocks_of(input); block = take(1))
        for (int row = block * input->each; row < input->rows && row < (block + 1) * input->each; row++)
            set_row(input, one->linear, row, (const char *)one->from + row * bytes, half);
    meet();
    multiply(one->linear, input, &one->target);
    meet();
}

/* from (rows, inputs) to into (rows, kept), both of bfloat16 if `half`; gated: what the first of each pair lets through
   of the second. Room: words, scales (rows,). */
void linear(const Linear *by, int rows, const void *from, void *words, float *scales, void *into, int half, int gated,
            int threads) {
    Target target = {gated ? GATE : STORE, into, by->kept, half};
    Multiplication one = {by, input_of(rows, words, scales), from, target};
    together(multiply_part, &one, threads);
}

/* Weights of 8 bits (outputs, padded) as they are laid out, -8 to 7, to those of 4 in half as many bytes. */
void halve(const int8_t *from, int pairs, int padded, uint8_t *into) {
    for (int64_t word = 0; word < (int64_t)pairs * padded / 8; word++, from += 8 * PAIR, into += 4 * PAIR)
        for (int i = 0; i < 4 * PAIR; i++) into[i] = (uint8_t)((from[i] + 8) | (from[4 * PAIR + i] + 8) << 4);
}

/* weight (outputs, inputs) of the type, laid out into (outputs, padded). source: of each laid-out output the row that it
   has, or -1: zeros. */
void lay_out(const void *weight, const int32_t *source, int outputs, int inputs, int padded, int size, char *into) {
    int group = 4 / size;
    for (int pair = 0; pair < outputs / PAIR; pair++)
        for (int k = 0; k < padded / group; k++)
            for (int i = 0; i < PAIR; i++)
                for (int j = 0; j < group; j++, into += size) {
                    int row = source[pair * PAIR + i], column = k * group + j;
                    if (row < 0 || column >= inputs) memset(into, 0, (size_t)size);
                    else memcpy(into, (const char *)weight + ((int64_t)row * inputs + column) * size, (size_t)size);
                }
}
