/* The elementwise functions of training in one pass over memory each; see danlu.models.kernels, which calls them.
 *
 * Arrays are fp32, or bf16 where `half` says so; sums and everything between loads and stores are fp32.
 * Rows are divisible by 16 numbers.
 */
#include "vectors.h"

#define BOTH(half, call) /* a call made with `half` as a constant */ \
    do { \
        if (half) { \
            const int h = 1; \
            call; \
        } else { \
            const int h = 0; \
            call; \
        } \
    } while (0)

/* y = x / rms(x) * weight of [rows, size]; scale [rows] = 1 / rms(x) */
void danlu_norm(const void *x, const void *weight, void *y, float *scale, int64_t rows, int64_t size, float eps,
                int64_t half, int64_t threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t r = 0; r < rows; r++) BOTH(half, scale[r] = norm_row(h, x, weight, y, r * size, size, eps));
}

INLINE void norm_back_row(const int h, const void *grad, const void *x, const void *weight, float s, void *to,
                          int64_t at, int64_t size) {
    vec sums = {0};
    for (int64_t i = 0; i < size; i += LANES) sums += get(h, grad, at + i) * get(h, weight, i) * get(h, x, at + i);
    float mean = added(sums) * s / size;
    for (int64_t i = 0; i < size; i += LANES)
        put(h, to, at + i, (get(h, grad, at + i) * get(h, weight, i) - get(h, x, at + i) * (s * mean)) * s);
}

/* the gradient of x */
void danlu_norm_back(const void *grad, const void *x, const void *weight, const float *scale, void *to, int64_t rows,
                     int64_t size, int64_t half, int64_t threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t r = 0; r < rows; r++)
        BOTH(half, norm_back_row(h, grad, x, weight, scale[r], to, r * size, size));
}

INLINE void swiglu_at(const int h, const void *gate, const void *up, void *y, int64_t at) {
    put(h, y, at, silu(get(h, gate, at)) * get(h, up, at));
}

/* y = silu(gate) * up of `size` numbers */
void danlu_swiglu(const void *gate, const void *up, void *y, int64_t size, int64_t half, int64_t threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t at = 0; at < size; at += LANES) BOTH(half, swiglu_at(h, gate, up, y, at));
}

INLINE void swiglu_back_at(const int h, const void *grad, const void *gate, const void *up, void *for_gate, void *for_up,
                           int64_t at) {
    vec d = get(h, grad, at), g = get(h, gate, at), share = 1.0f / (1.0f + exponential(-g)), silu = g * share;
    put(h, for_gate, at, d * get(h, up, at) * (share + silu * (1.0f - share)));
    put(h, for_up, at, d * silu);
}

void danlu_swiglu_back(const void *grad, const void *gate, const void *up, void *for_gate, void *for_up, int64_t size,
                       int64_t half, int64_t threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t at = 0; at < size; at += LANES) BOTH(half, swiglu_back_at(h, grad, gate, up, for_gate, for_up, at));
}

INLINE void rotate_head(const int h, const void *x, const void *cos, const void *sin, void *y, int64_t at, int64_t angle,
                        int64_t side) {
    for (int64_t i = 0; i < side; i += LANES) {
        vec a = get(h, x, at + i), b = get(h, x, at + side + i), c = get(h, cos, angle + i), s = get(h, sin, angle + i);
        put(h, y, at + i, a * c - b * s);
        put(h, y, at + side + i, b * c + a * s);
    }
}

/* x [tokens, heads, 2 * side], turned by cos, sin [tokens, side] */
void danlu_rotate(const void *x, const void *cos, const void *sin, void *y, int64_t tokens, int64_t heads, int64_t side,
                  int64_t half, int64_t threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t head = 0; head < heads; head++)
            BOTH(half, rotate_head(h, x, cos, sin, y, (t * heads + head) * 2 * side, t * side, side));
}

/* ---- log-probs of targets */

#define BLOCK 64 /* vectors that are summed in fp32 before their sum goes into a double */

/* the `left` numbers from `place` on, filled up with -inf */
INLINE vec rest(const int h, const void *from, int64_t place, int64_t left) {
    vec found = (vec){0} - INFINITY;
    for (int64_t j = 0; j < left; j++) {
        uint32_t bits = h ? (uint32_t)((const uint16_t *)from)[place + j] << 16 : ((const uint32_t *)from)[place + j];
        float one;
        memcpy(&one, &bits, sizeof one);
        found[j] = one;
    }
    return found;
}

INLINE vec some(const int h, const void *from, int64_t at, int64_t i, int64_t size) {
    return i + LANES <= size ? get(h, from, at + i) : rest(h, from, at + i, size - i);
}

/* One row of logits [size], divided by the temperature: the log-prob of `target`, the entropy; with `error` the logits
 * become onehot - p. */
INLINE void scores_row(const int h, void *logits, int64_t at, int64_t size, int64_t target, float inverse, float *found,
                       float *entropy, int64_t error) {
    vec most = some(h, logits, at, 0, size);
    for (int64_t i = LANES; i < size; i += LANES) {
        vec one = some(h, logits, at, i, size);
        most = chosen(one > most, one, most);
    }
    float largest = largest_of(most);
    double sum = 0, moment = 0;
    for (int64_t block = 0; block < size; block += BLOCK * LANES) {
        vec sums = {0}, moments = {0};
        int64_t end = block + BLOCK * LANES < size ? block + BLOCK * LANES : size;
        for (int64_t i = block; i < end; i += LANES) {
            vec x = (some(h, logits, at, i, size) - largest) * inverse;
            vec e = exponential(x);
            sums += e;
            moments += e * chosen(x < -87.0f, (vec){0} - 87.0f, x);
        }
        sum += added(sums);
        moment += added(moments);
    }
    float whole = (float)log(sum);
    *found = (rest(h, logits, at + target, 1)[0] - largest) * inverse - whole;
    if (entropy) *entropy = (float)(log(sum) - moment / sum);
    if (!error) return;
    for (int64_t i = 0; i < size; i += LANES) {
        vec p = -exponential((some(h, logits, at, i, size) - largest) * inverse - whole);
        if (target >= i && target < i + LANES) p[target - i] += 1.0f;
        if (i + LANES <= size) {
            put(h, logits, at + i, p);
        } else {
            char last[4 * LANES];
            put(h, last, 0, p);
            memcpy((char *)logits + (at + i) * (h ? 2 : 4), last, (size - i) * (h ? 2 : 4));
        }
    }
}

/* logits [rows, size]; found, entropies (or NULL) fp32 [rows] */
void danlu_scores(void *logits, const int64_t *targets, float inverse, float *found, float *entropies, int64_t rows,
                  int64_t size, int64_t error, int64_t half, int64_t threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t r = 0; r < rows; r++)
        BOTH(half, scores_row(h, logits, r * size, size, targets[r], inverse, found + r,
                              entropies ? entropies + r : 0, error));
}
