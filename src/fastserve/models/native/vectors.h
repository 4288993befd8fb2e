/* Vectors of 16 numbers in registers: GCC's vector types, for x86 processors with AVX-512. */

#ifndef FASTSERVE_VECTORS
#define FASTSERVE_VECTORS

#include <math.h>
#include <stdint.h>
#include <string.h>
#include <immintrin.h>

/* What is asked where the processor has the instructions is to be computed by them, or not at all. */
#if defined(HAS_BF16) && !defined(__AVX512BF16__)
#error "this compiler is too old for the processor's instructions for bfloat16"
#endif
#if defined(HAS_VNNI) && !defined(__AVX512VNNI__)
#error "this compiler is too old for the processor's instructions for products of 8 bits"
#endif

#define LANES 16
#define INLINE static inline __attribute__((always_inline))

typedef float Floats __attribute__((vector_size(64), aligned(4)));
typedef int32_t Ints __attribute__((vector_size(64), aligned(4)));
typedef uint32_t Words __attribute__((vector_size(64), aligned(4)));
typedef uint16_t Halves __attribute__((vector_size(32), aligned(2)));

INLINE Floats load(const float *from) { return *(const Floats *)from; }
INLINE void store(float *into, Floats value) { *(Floats *)into = value; }
INLINE Floats all(float value) { return value - (Floats){}; }

INLINE float total(Floats value) { return _mm512_reduce_add_ps((__m512)value); }
INLINE float largest(Floats value) { return _mm512_reduce_max_ps((__m512)value); }

INLINE Floats either(Ints which, Floats one, Floats other) {
    return (Floats)((which & (Ints)one) | (~which & (Ints)other));
}
/* The second where either is no number. */
INLINE Floats larger(Floats one, Floats other) { return (Floats)_mm512_max_ps((__m512)one, (__m512)other); }

INLINE uint16_t halved(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

INLINE float widened(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

INLINE void store_halves(uint16_t *into, Floats value) {
#ifdef __AVX512BF16__
    _mm256_storeu_si256((__m256i *)into, (__m256i)_mm512_cvtneps_pbh((__m512)value));
#else
    Words bits = (Words)value;
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    *(Halves *)into = __builtin_convertvector(bits, Halves);
#endif
}

INLINE Floats load_halves(const uint16_t *from) {
    return (Floats)(__builtin_convertvector(*(const Halves *)from, Words) << 16);
}

/* Of numbers of bfloat16 if `half`, else of float32. */
INLINE Floats load_of(const void *from, int64_t at, int half) {
    return half ? load_halves((const uint16_t *)from + at) : load((const float *)from + at);
}

INLINE void store_of(void *into, int64_t at, int half, Floats value) {
    if (half) store_halves((uint16_t *)into + at, value);
    else store((float *)into + at, value);
}

/* To about the last bit, as Cephes has it; 0 below -104. */
INLINE Floats exponential(Floats x) {
    x = larger(all(-104.0f), x);
    Floats whole = (Floats)_mm512_roundscale_ps((__m512)(x * 1.44269504f), 0);
    Floats r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return (Floats)_mm512_scalef_ps((__m512)p, (__m512)whole);
}

/* 1 / (1 + exp(-x)) to about the last bit. */
INLINE Floats sigmoid(Floats x) {
    Floats below = 1.0f + exponential(-larger(all(-80.0f), x));
    Floats found = (Floats)_mm512_rcp14_ps((__m512)below);
    return found * (2.0f - below * found);
}

#endif
