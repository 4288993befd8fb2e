/* Vectors of 16 numbers in registers: GCC's vector types, for x86 processors with AVX-512. */

#ifndef FASTSERVE_VECTORS
#define FASTSERVE_VECTORS

#include <math.h>
#include <stdint.h>
#include <string.h>
#include <immintrin.h>

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
INLINE Floats larger(Floats one, Floats other) { return either(one > other, one, other); }
INLINE Floats smaller(Floats one, Floats other) { return either(one < other, one, other); }

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
    Words bits = (Words)value;
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    *(Halves *)into = __builtin_convertvector(bits, Halves);
}

INLINE Floats load_halves(const uint16_t *from) {
    return (Floats)(__builtin_convertvector(*(const Halves *)from, Words) << 16);
}

/* To about the last bit, as Cephes has it. */
INLINE Floats exponential(Floats x) {
    x = smaller(larger(x, all(-87.0f)), all(88.0f));
    Floats shifted = x * 1.44269504f + 12582912.0f; /* rounds to whole numbers */
    Floats whole = shifted - 12582912.0f;
    Floats r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    Ints power = ((Ints)shifted - 0x4b400000 + 127) << 23;
    return p * (Floats)power;
}

#endif
