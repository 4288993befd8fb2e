/* What a decoder's training does between its products of matrices, each in one pass over memory, with its gradients.

   Numbers are float32, or bfloat16 where a `half` says so, and are computed in float32. Sizes are multiples of 16. No
   sum depends on how many threads there are. C with GCC's vector types, for x86 processors with AVX-512. */

#include <omp.h>
#include <stdlib.h>

#include "vectors.h"

#define SHARE 32 /* rows whose part of a sum over all rows is summed up first */

/* Of rows (rows, size) x + added, where there is something added, and y: the sum / its rms * weight (Zhang and Sennrich
   2019); inverse (rows,): 1 / rms. The `kinds` say which are of bfloat16. */

enum { X_HALF = 1, ADDED_HALF = 2, Y_HALF = 4 };

typedef struct {
    int64_t rows, size;
    const void *x, *added; /* added may be null */
    const float *weight;
    float epsilon;
    void *sum, *y; /* sum: of x's kind; not written where nothing is added */
    float *inverse;
} Norm;

/* sum: x where nothing was added; of_sum, of_x: of its kind; of_sum may be null; of_added: of its own. */
typedef struct {
    int64_t rows, size;
    const void *sum;
    const float *weight, *inverse;
    const void *of_sum, *of_y;
    void *of_x, *of_added; /* the second may be null */
    float *of_weight;
} NormGradient;

INLINE void norm_row(const int kinds, const int is_added, const Norm *one, int64_t row) {
    int64_t at = row * one->size;
    const void *from = is_added ? one->sum : one->x;
    Floats squares = {};
    for (int64_t i = 0; i < one->size; i += LANES) {
        Floats value = load_of(one->x, at + i, kinds & X_HALF);
        if (is_added) {
            value += load_of(one->added, at + i, kinds & ADDED_HALF);
            store_of(one->sum, at + i, kinds & X_HALF, value);
        }
        squares += value * value;
    }
    float inverse = 1.0f / sqrtf(total(squares) / (float)one->size + one->epsilon);
    one->inverse[row] = inverse;
    for (int64_t i = 0; i < one->size; i += LANES)
        store_of(one->y, at + i, kinds & Y_HALF,
                 load_of(from, at + i, kinds & X_HALF) * inverse * load(one->weight + i));
}

#define KINDS CASE(0) CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7)

void norm(const Norm *one, int64_t kinds, int64_t threads) {
#pragma omp parallel for num_threads((int)threads)
    for (int64_t row = 0; row < one->rows; row++)
        switch (kinds) {
#define CASE(kinds) case kinds: \
            if (one->added) norm_row(kinds, 1, one, row); \
            else norm_row(kinds, 0, one, row); \
            break;
            KINDS
#undef CASE
        }
}

/* of_x of one row, and what it adds to of_weight. */
INLINE void norm_gradient_row(const int kinds, const NormGradient *one, int64_t row, float *of_weight) {
    int64_t at = row * one->size;
    float inverse = one->inverse[row];
    Floats along = {};
    for (int64_t i = 0; i < one->size; i += LANES) {
        Floats normal = load_of(one->sum, at + i, kinds & X_HALF) * inverse;
        Floats of = load_of(one->of_y, at + i, kinds & Y_HALF);
        along += normal * of * load(one->weight + i);
        store(of_weight + i, load(of_weight + i) + normal * of);
    }
    float mean = total(along) / (float)one->size;
    for (int64_t i = 0; i < one->size; i += LANES) {
        Floats normal = load_of(one->sum, at + i, kinds & X_HALF) * inverse;
        Floats of = load_of(one->of_y, at + i, kinds & Y_HALF);
        Floats found = (of * load(one->weight + i) - normal * mean) * inverse;
        if (one->of_sum) found += load_of(one->of_sum, at + i, kinds & X_HALF);
        store_of(one->of_x, at + i, kinds & X_HALF, found);
        if (one->of_added) store_of(one->of_added, at + i, kinds & ADDED_HALF, found);
    }
}

void norm_gradient(const NormGradient *one, int64_t kinds, int64_t threads) {
    int64_t shares = (one->rows + SHARE - 1) / SHARE;
    float *parts = calloc((size_t)(shares * one->size), sizeof(float));
#pragma omp parallel for num_threads((int)threads)
    for (int64_t share = 0; share < shares; share++)
        for (int64_t row = share * SHARE; row < one->rows && row < (share + 1) * SHARE; row++)
            switch (kinds) {
#define CASE(kinds) case kinds: norm_gradient_row(kinds, one, row, parts + share * one->size); break;
                KINDS
#undef CASE
            }
    for (int64_t i = 0; i < one->size; i += LANES) {
        Floats sum = {};
        for (int64_t share = 0; share < shares; share++) sum += load(parts + share * one->size + i);
        store(one->of_weight + i, sum);
    }
    free(parts);
}

/* silu(gate) * up (Shazeer 2020) of rows with gate and up side by side (rows, 2 * size): (rows, size). */

INLINE void gate_row(const int half, const void *both, int64_t row, int size, void *into) {
    for (int i = 0; i < size; i += LANES) {
        Floats gate = load_of(both, row * 2 * size + i, half), up = load_of(both, (row * 2 + 1) * size + i, half);
        store_of(into, row * size + i, half, gate * sigmoid(gate) * up);
    }
}

void gate(int64_t rows, int64_t size, const void *both, int64_t half, void *into, int64_t threads) {
#pragma omp parallel for num_threads((int)threads)
    for (int64_t row = 0; row < rows; row++) {
        if (half) gate_row(1, both, row, size, into);
        else gate_row(0, both, row, size, into);
    }
}

INLINE void gate_gradient_row(const int half, const void *both, int64_t row, int size, const void *of, void *into) {
    int64_t low = row * 2 * size, high = low + size;
    for (int i = 0; i < size; i += LANES) {
        Floats gate = load_of(both, low + i, half), up = load_of(both, high + i, half);
        Floats slope = load_of(of, row * size + i, half), share = sigmoid(gate);
        store_of(into, high + i, half, slope * gate * share);
        store_of(into, low + i, half, slope * up * share * (1.0f + gate * (1.0f - share)));
    }
}

void gate_gradient(int64_t rows, int64_t size, const void *both, int64_t half, const void *of, void *into,
                   int64_t threads) {
#pragma omp parallel for num_threads((int)threads)
    for (int64_t row = 0; row < rows; row++) {
        if (half) gate_gradient_row(1, both, row, size, of, into);
        else gate_gradient_row(0, both, row, size, of, into);
    }
}

/* Vectors (rows, heads, size), `x_row` apart, turned by angles whose cosine and sine are (rows, size): feature i with
   feature i + size / 2. back: by the negative of the angles. */
INLINE void turn_row(const int half, const void *x, int64_t at, int heads, int size, const void *cosine,
                     const void *sine, int64_t row, float sign, void *into) {
    for (int head = 0; head < heads; head++)
        for (int i = 0; i < size; i += LANES) {
            int64_t from = at + head * size, other = i < size / 2 ? i + size / 2 : i - size / 2;
            Floats turned = load_of(x, from + i, half) * load_of(cosine, row * size + i, half);
            turned += load_of(x, from + other, half) * load_of(sine, row * size + i, half) * sign;
            store_of(into, (row * heads + head) * size + i, half, turned);
        }
}

void turn(int64_t rows, int64_t heads, int64_t size, const void *x, int64_t x_row, const void *cosine, const void *sine,
          int64_t half, int64_t back, void *into, int64_t threads) {
    float sign = back ? -1.0f : 1.0f;
#pragma omp parallel for num_threads((int)threads)
    for (int64_t row = 0; row < rows; row++) {
        if (half) turn_row(1, x, row * x_row, heads, size, cosine, sine, row, sign, into);
        else turn_row(0, x, row * x_row, heads, size, cosine, sine, row, sign, into);
    }
}

/* Cross-entropy of logits (rows, size), of which their gradients take the place: those of
   weight * (loss + z * whole^2), where `whole` is log(sum(exp(logits))). */
INLINE void entropy_row(const int half, void *logits, int64_t at, int size, int64_t target, float weight, float z,
                        float *exponentials, float *loss, float *whole) {
    Floats tops = load_of(logits, at, half), sums = {};
    for (int i = LANES; i < size; i += LANES) tops = larger(tops, load_of(logits, at + i, half));
    float top = largest(tops);
    for (int i = 0; i < size; i += LANES) {
        Floats one = exponential(load_of(logits, at + i, half) - top);
        store(exponentials + i, one);
        sums += one;
    }
    float sum = total(sums);
    float wanted = half ? widened(((uint16_t *)logits)[at + target]) : ((float *)logits)[at + target];
    *whole = top + logf(sum);
    *loss = *whole - wanted;
    float slope = weight * (1.0f + 2.0f * z * *whole) / sum;
    for (int i = 0; i < size; i += LANES) store_of(logits, at + i, half, load(exponentials + i) * slope);
    float there = exponentials[target] * slope - weight;
    if (half) ((uint16_t *)logits)[at + target] = halved(there);
    else ((float *)logits)[at + target] = there;
}

void entropy(int64_t rows, int64_t size, void *logits, int64_t half, const int64_t *targets, const float *weights,
             float z, float *losses, float *wholes, int64_t threads) {
#pragma omp parallel num_threads((int)threads)
    {
        float *room = malloc((size_t)size * sizeof(float));
#pragma omp for
        for (int64_t row = 0; row < rows; row++) {
            float *loss = losses + row, *whole = wholes + row;
            if (half) entropy_row(1, logits, row * size, size, targets[row], weights[row], z, room, loss, whole);
            else entropy_row(0, logits, row * size, size, targets[row], weights[row], z, room, loss, whole);
        }
        free(room);
    }
}
