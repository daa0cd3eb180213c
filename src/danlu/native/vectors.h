/* Vectors of fp32 numbers by the types of GCC and clang, which exist on every CPU; no intrinsics. */
#ifndef DANLU_VECTORS
#define DANLU_VECTORS

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef LANES /* -DLANES=16 tries the wide code on any CPU */
#if defined(__AVX512F__)
#define LANES 16
#else
#define LANES 8
#endif
#endif
#define INLINE static inline __attribute__((always_inline, unused))
#define UNROLLED _Pragma("GCC unroll 16")

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t words __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

INLINE vec load(const float *from) { return *(const vec *)from; }
INLINE void store(float *to, vec value) { *(vec *)to = value; }
INLINE vec chosen(ints which, vec yes, vec no) { return (vec)(((ints)yes & which) | ((ints)no & ~which)); }

/* numbers of an array that is fp32, or with `half` bf16 */
INLINE vec get(const int half, const void *from, int64_t place) {
    if (half) return (vec)(__builtin_convertvector(*(const halves *)((const uint16_t *)from + place), words) << 16);
    return load((const float *)from + place);
}

INLINE void put(const int half, void *to, int64_t place, vec value) {
    if (half) { /* to the nearest, ties to even; NaN stays NaN */
        words bits = (words)value;
        bits += 0x7fff + ((bits >> 16) & 1);
        bits = (words)chosen(value == value, (vec)bits, (vec)((words){0} + 0x7fc00000));
        *(halves *)((uint16_t *)to + place) = __builtin_convertvector(bits >> 16, halves);
    } else {
        store((float *)to + place, value);
    }
}

INLINE float added(vec value) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += value[i];
    return sum;
}

INLINE float largest_of(vec value) {
    float largest = value[0];
    for (int i = 1; i < LANES; i++) largest = value[i] > largest ? value[i] : largest;
    return largest;
}

/* e^x to about 1e-7, NaN for NaN: 2^n e^r with |r| <= ln 2 / 2, and the Taylor polynomial of e^r */
INLINE vec exponential(vec x) {
    const float magic = 12582912.0f; /* 1.5 x 2^23: adding it rounds to a whole number */
    vec given = x;
    x = chosen(x < -87.0f, (vec){0} - 87.0f, x);
    x = chosen(x > 88.0f, (vec){0} + 88.0f, x);
    vec n = x * 1.44269504f + magic;
    ints power = (ints)n << 23;
    n -= magic;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = r * (1.0f / 5040) + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return chosen(given == given, (vec)((ints)p + power), given);
}

INLINE vec silu(vec x) { return x / (1.0f + exponential(-x)); }

/* root-mean-square norm of the row at `at`, which may be overwritten; gives 1 / rms */
INLINE float norm_row(const int half, const void *x, const void *weight, void *to, int64_t at, int64_t size, float eps) {
    vec squares = {0};
    for (int64_t i = 0; i < size; i += LANES) squares += get(half, x, at + i) * get(half, x, at + i);
    float scale = 1 / sqrtf(added(squares) / size + eps);
    for (int64_t i = 0; i < size; i += LANES) put(half, to, at + i, get(half, x, at + i) * scale * get(half, weight, i));
    return scale;
}

#endif
