/* Decoding on a CPU in one call a step: see danlu.generate.native, which calls it.
 *
 * Numbers are fp32; weights may lie as bf16 and are widened as they are read, which loses nothing of a bf16 checkpoint.
 * Matrices lie in panels of WIDTH outputs: [outputs / WIDTH][inputs][WIDTH], the last panel filled up with zeros.
 * Every sum runs in the same order whatever the number of threads or rows of a tile, so that a row's result does not
 * depend on its neighbours (but for one and two rows, whose sums are split to hide the latency of the additions).
 */
#include "vectors.h"

#if LANES == 16
#define TILE 12 /* rows multiplied together: as many sums as there are registers */
#else
#define TILE 6
#endif
#define WIDTH (2 * LANES)
#define MANY (3 * TILE) /* rows from which a bf16 panel is widened once */

typedef float oct __attribute__((vector_size(32), aligned(4), may_alias));

struct matrix {
    const void *weight;
    const float *bias, *low, *high; /* [out]; adapters apart: [in, rank], [rank, out], padded to whole panels */
    int64_t in, out, rank, half;    /* half: weight is bf16 */
};

struct layer {
    struct matrix qkv, out, gate_up, down;
    const float *norm_in, *norm_out, *norm_qk; /* norm_qk [heads + kv_heads, head_dim] or NULL */
};

struct model {
    const struct layer *layers;
    int64_t count, hidden, inner, heads, kv_heads, head_dim;
    float eps;
};

struct step {
    int64_t rows, longest; /* longest: keys that a row sees at most */
    float *x, *hidden;     /* [rows, hidden]: embeddings, overwritten; what comes out */
    const int64_t *positions, *places;
    const float *cos, *sin; /* [tokens, head_dim], the first half of sin negated */
    float *cache;           /* [layers, rows, 2 * kv_heads, length, head_dim] */
    int64_t cache_layer, cache_row, length;
    const float *shared; /* prompts apart, of the same order, or NULL */
    int64_t shared_layer, shared_row, shared_length;
    const int64_t *groups, *prompts; /* group of each row; tokens of each group's prompt */
    const float *norm;
    float *scratch;
    int64_t threads;
};

int64_t danlu_width(void) { return WIDTH; }

/* ---- products */

/* sums[split][row][2] += a[row, :depth] x w[:depth, WIDTH], whose rows are `stride` apart */
INLINE void multiply(const int rows, const int split, const int half, vec sums[][TILE][2], const float *a, int64_t lead,
                     const void *w, int64_t stride, int64_t depth) {
    int64_t k = 0;
    for (; k + split <= depth; k += split) {
        UNROLLED for (int s = 0; s < split; s++) {
            vec left = get(half, w, (k + s) * stride), right = get(half, w, (k + s) * stride + LANES);
            UNROLLED for (int r = 0; r < rows; r++) {
                float x = a[r * lead + k + s];
                sums[s][r][0] += x * left;
                sums[s][r][1] += x * right;
            }
        }
    }
    for (; k < depth; k++) {
        vec left = get(half, w, k * stride), right = get(half, w, k * stride + LANES);
        UNROLLED for (int r = 0; r < rows; r++) {
            float x = a[r * lead + k];
            sums[0][r][0] += x * left;
            sums[0][r][1] += x * right;
        }
    }
}

/* y[rows, WIDTH] (+)= x w + bias (+ low x high) of panel `panel`; low_x [rows, rank] */
INLINE void tile(const int rows, const int split, const int half, const struct matrix *m, int64_t panel, const float *x,
                 int64_t lead, const float *low_x, float *y, int64_t y_lead, int add) {
    vec sums[4][TILE][2];
    UNROLLED for (int s = 0; s < split; s++)
        UNROLLED for (int r = 0; r < rows; r++) sums[s][r][0] = sums[s][r][1] = (vec){0};
    const char *w = (const char *)m->weight + panel * m->in * WIDTH * (half ? 2 : 4);
    multiply(rows, split, half, sums, x, lead, w, WIDTH, m->in);
    if (m->rank) {
        int64_t stride = (m->out + WIDTH - 1) / WIDTH * WIDTH;
        multiply(rows, split, 0, sums, low_x, m->rank, m->high + panel * WIDTH, stride, m->rank);
    }
    int64_t left = m->out - panel * WIDTH;
    UNROLLED for (int r = 0; r < rows; r++) {
        vec found[2] = {sums[0][r][0], sums[0][r][1]};
        UNROLLED for (int s = 1; s < split; s++) {
            found[0] += sums[s][r][0];
            found[1] += sums[s][r][1];
        }
        float *to = y + r * y_lead + panel * WIDTH;
        if (left >= WIDTH) {
            UNROLLED for (int side = 0; side < 2; side++) {
                vec value = found[side];
                if (m->bias) value += load(m->bias + panel * WIDTH + side * LANES);
                if (add) value += load(to + side * LANES);
                store(to + side * LANES, value);
            }
        } else {
            const float *one = (const float *)found;
            for (int64_t j = 0; j < left; j++)
                to[j] = one[j] + (m->bias ? m->bias[panel * WIDTH + j] : 0) + (add ? to[j] : 0);
        }
    }
}

#define CASE(n, split) \
    case n: \
        tile(n, split, half, m, panel, x, lead, low_x, y, y_lead, add); \
        break;

INLINE void some_rows(const int half, int rows, const struct matrix *m, int64_t panel, const float *x, int64_t lead,
                      const float *low_x, float *y, int64_t y_lead, int add) {
    switch (rows) {
        CASE(1, 4) CASE(2, 2) CASE(3, 1) CASE(4, 1) CASE(5, 1) CASE(6, 1)
#if TILE == 12
        CASE(7, 1) CASE(8, 1) CASE(9, 1) CASE(10, 1) CASE(11, 1) CASE(12, 1)
#endif
    }
}

static void rows_fp32(int rows, const struct matrix *m, int64_t panel, const float *x, int64_t lead, const float *low_x,
                      float *y, int64_t y_lead, int add) {
    some_rows(0, rows, m, panel, x, lead, low_x, y, y_lead, add);
}

static void rows_bf16(int rows, const struct matrix *m, int64_t panel, const float *x, int64_t lead, const float *low_x,
                      float *y, int64_t y_lead, int add) {
    some_rows(1, rows, m, panel, x, lead, low_x, y, y_lead, add);
}

/* fp32 numbers of one bf16 panel, in memory of this thread; NULL where there is none */
static float *widened(const struct matrix *m, int64_t panel) {
    static __thread float *kept;
    static __thread int64_t size;
    int64_t needed = m->in * WIDTH;
    if (size < needed) {
        free(kept);
        kept = malloc(needed * sizeof(float));
        size = kept ? needed : 0;
        if (!kept) return 0;
    }
    for (int64_t i = 0; i < needed; i += LANES) store(kept + i, get(1, m->weight, panel * needed + i));
    return kept;
}

/* the part of `thread` of `parts` equal ones */
INLINE void share(int64_t count, int64_t thread, int64_t parts, int64_t *from, int64_t *to) {
    *from = count * thread / parts;
    *to = count * (thread + 1) / parts;
}

/* y [rows, out] (+)= x [rows, in] W^T; called by every thread of a team, ends with a barrier */
static void product(const struct matrix *m, const float *x, int64_t lead, float *low_x, float *y, int64_t y_lead, int add,
                    int64_t rows) {
    int64_t thread = omp_get_thread_num(), team = omp_get_num_threads(), from, to;
    if (m->rank) {
        struct matrix low = {m->low, 0, 0, 0, m->in, m->rank, 0, 0};
        product(&low, x, lead, 0, low_x, m->rank, 0, rows);
    }
    share((m->out + WIDTH - 1) / WIDTH, thread, team, &from, &to);
    for (int64_t panel = from; panel < to; panel++) {
        struct matrix own = *m;
        const float *wide = m->half && rows >= MANY ? widened(m, panel) : 0;
        if (wide) {
            own.weight = wide - panel * m->in * WIDTH;
            own.half = 0;
        }
        for (int64_t r = 0; r < rows; r += TILE) {
            int some = rows - r < TILE ? (int)(rows - r) : TILE;
            (own.half ? rows_bf16 : rows_fp32)(some, &own, panel, x + r * lead, lead, low_x + r * m->rank, y + r * y_lead,
                                               y_lead, add);
        }
    }
#pragma omp barrier
}

/* x [rows, in] -> y [rows, out]; scratch [rows, rank] */
void danlu_product(const struct matrix *m, const float *x, float *y, float *scratch, int64_t rows, int64_t threads) {
#pragma omp parallel num_threads(threads)
    product(m, x, m->in, scratch, y, m->out, 0, rows);
}

/* ---- what lies between products */

static void norms(const float *x, const float *weight, float *to, int64_t rows, int64_t size, float eps) {
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++) norm_row(0, x, weight, to, r * size, size, eps);
}

/* both [rows, 2 * inner] = gate, up: silu(gate) * up into the first half */
static void swiglu(float *both, int64_t rows, int64_t inner) {
#pragma omp for schedule(static)
    for (int64_t place = 0; place < rows * inner / LANES; place++) {
        int64_t r = place * LANES / inner, i = place * LANES % inner;
        float *gate = both + r * 2 * inner + i;
        store(gate, silu(load(gate)) * load(gate + inner));
    }
}

/* ---- attention of the queries of one key head of one row */

/* sums of eight vectors, in order */
INLINE oct eight_sums(const vec v[8]) {
    oct o[8];
    UNROLLED for (int i = 0; i < 8; i++) {
#if LANES == 16
        o[i] = __builtin_shufflevector(v[i], v[i], 0, 1, 2, 3, 4, 5, 6, 7) +
               __builtin_shufflevector(v[i], v[i], 8, 9, 10, 11, 12, 13, 14, 15);
#else
        o[i] = (oct)v[i];
#endif
    }
    UNROLLED for (int i = 0; i < 4; i++)
        o[i] = __builtin_shufflevector(o[2 * i], o[2 * i + 1], 0, 2, 8, 10, 4, 6, 12, 14) +
               __builtin_shufflevector(o[2 * i], o[2 * i + 1], 1, 3, 9, 11, 5, 7, 13, 15);
    UNROLLED for (int i = 0; i < 2; i++)
        o[i] = __builtin_shufflevector(o[2 * i], o[2 * i + 1], 0, 2, 8, 10, 4, 6, 12, 14) +
               __builtin_shufflevector(o[2 * i], o[2 * i + 1], 1, 3, 9, 11, 5, 7, 13, 15);
    return __builtin_shufflevector(o[0], o[1], 0, 1, 2, 3, 8, 9, 10, 11) +
           __builtin_shufflevector(o[0], o[1], 4, 5, 6, 7, 12, 13, 14, 15);
}

/* scores[count] = keys [count, size] x q [size] */
static void scored(const float *q, const float *keys, int64_t count, int64_t size, float *scores) {
    int64_t t = 0;
    for (; t + 8 <= count; t += 8) {
        vec sums[8];
        UNROLLED for (int j = 0; j < 8; j++) sums[j] = (vec){0};
        for (int64_t d = 0; d < size; d += LANES) {
            vec one = load(q + d);
            UNROLLED for (int j = 0; j < 8; j++) sums[j] += one * load(keys + (t + j) * size + d);
        }
        *(oct *)(scores + t) = eight_sums(sums);
    }
    for (; t < count; t++) {
        vec sum = {0};
        for (int64_t d = 0; d < size; d += LANES) sum += load(q + d) * load(keys + t * size + d);
        scores[t] = added(sum);
    }
}

/* out[wide * LANES] += shares[count] x values [count, size] */
INLINE void weighed(const int wide, const float *shares, const float *values, int64_t count, int64_t size, float *out) {
    vec sums[2][8];
    UNROLLED for (int i = 0; i < wide; i++) {
        sums[0][i] = load(out + i * LANES);
        sums[1][i] = (vec){0};
    }
    int64_t t = 0;
    for (; t + 2 <= count; t += 2)
        UNROLLED for (int s = 0; s < 2; s++)
            UNROLLED for (int i = 0; i < wide; i++) sums[s][i] += shares[t + s] * load(values + (t + s) * size + i * LANES);
    for (; t < count; t++)
        UNROLLED for (int i = 0; i < wide; i++) sums[0][i] += shares[t] * load(values + t * size + i * LANES);
    UNROLLED for (int i = 0; i < wide; i++) store(out + i * LANES, sums[0][i] + sums[1][i]);
}

static void summed(const float *shares, const float *values, int64_t count, int64_t size, float *out) {
    int64_t d = 0;
    for (; d + 4 * LANES <= size; d += 4 * LANES) weighed(4, shares, values + d, count, size, out + d);
    for (; d < size; d += LANES) weighed(1, shares, values + d, count, size, out + d);
}

/* scores -> e^(score - largest), their sum; scores has room for whole vectors */
INLINE float shares_of(float *scores, int64_t count) {
    int64_t whole = (count + LANES - 1) / LANES * LANES;
    for (int64_t t = count; t < whole; t++) scores[t] = -INFINITY;
    vec most = load(scores), sums = {0};
    for (int64_t t = LANES; t < whole; t += LANES) {
        vec one = load(scores + t);
        most = chosen(one > most, one, most);
    }
    float largest = largest_of(most);
    for (int64_t t = 0; t < whole; t += LANES) {
        vec one = exponential(load(scores + t) - largest);
        store(scores + t, one);
        if (t + LANES <= count) sums += one;
    }
    float sum = added(sums);
    for (int64_t t = count / LANES * LANES; t < count; t++) sum += scores[t];
    return sum;
}

INLINE void turn(float *x, const float *cos, const float *sin, int64_t size) {
    int64_t half = size / 2;
    for (int64_t d = 0; d < half; d++) {
        float a = x[d], b = x[d + half];
        x[d] = a * cos[d] + b * sin[d];
        x[d + half] = b * cos[d + half] + a * sin[d + half];
    }
}

INLINE void attend(const struct model *m, const struct step *s, const struct layer *layer, int64_t number, float *qkv,
                   int64_t row, int64_t head, float *scores, float *out) {
    int64_t size = m->head_dim, each = m->heads / m->kv_heads, place = s->places[row];
    const float *cos = s->cos + s->positions[row] * size, *sin = s->sin + s->positions[row] * size;
    float *q = qkv + head * each * size, *k = qkv + (m->heads + head) * size, *v = k + m->kv_heads * size;
    float scale = 1 / sqrtf((float)size);
    for (int64_t g = 0; g <= each; g++) { /* the last one is the key */
        float *x = g < each ? q + g * size : k;
        int64_t which = g < each ? head * each + g : m->heads + head;
        if (layer->norm_qk) norm_row(0, x, layer->norm_qk + which * size, x, 0, size, m->eps);
        turn(x, cos, sin, size);
        if (g < each)
            for (int64_t d = 0; d < size; d += LANES) store(x + d, load(x + d) * scale);
    }
    float *keys = s->cache + number * s->cache_layer + row * s->cache_row + head * s->length * size;
    float *values = keys + m->kv_heads * s->length * size;
    memcpy(keys + place * size, k, size * sizeof(float));
    memcpy(values + place * size, v, size * sizeof(float));
    const float *prompt_keys = 0, *prompt_values = 0;
    int64_t before = 0, own = place + 1;
    if (s->shared) {
        int64_t group = s->groups[row];
        before = s->prompts[group];
        prompt_keys = s->shared + number * s->shared_layer + group * s->shared_row + head * s->shared_length * size;
        prompt_values = prompt_keys + m->kv_heads * s->shared_length * size;
    }
    for (int64_t g = 0; g < each; g++) {
        float *to = out + g * size;
        if (before) scored(q + g * size, prompt_keys, before, size, scores);
        scored(q + g * size, keys, own, size, scores + before);
        float sum = shares_of(scores, before + own);
        memset(to, 0, size * sizeof(float));
        if (before) summed(scores, prompt_values, before, size, to);
        summed(scores + before, values, own, size, to);
        for (int64_t d = 0; d < size; d += LANES) store(to + d, load(to + d) / sum);
    }
}

/* ---- a step */

/* floats of scratch that a step needs */
int64_t danlu_scratch(const struct model *m, int64_t rows, int64_t longest, int64_t rank, int64_t threads) {
    int64_t queries = m->heads * m->head_dim, keys = m->kv_heads * m->head_dim;
    return rows * (m->hidden + 2 * queries + 2 * keys + 2 * m->inner + rank) + threads * (longest + 2 * LANES);
}

void danlu_step(const struct model *m, const struct step *s) {
    int64_t rows = s->rows, queries = m->heads * m->head_dim, wide = queries + 2 * m->kv_heads * m->head_dim;
    float *normed = s->scratch, *qkv = normed + rows * m->hidden, *attended = qkv + rows * wide;
    float *both = attended + rows * queries, *scores = both + rows * 2 * m->inner;
    float *low_x = scores + s->threads * (s->longest + 2 * LANES);
#pragma omp parallel num_threads(s->threads)
    {
        int64_t thread = omp_get_thread_num(), from, to;
        float *own = scores + thread * (s->longest + 2 * LANES);
        for (int64_t number = 0; number < m->count; number++) {
            const struct layer *layer = m->layers + number;
            norms(s->x, layer->norm_in, normed, rows, m->hidden, m->eps);
            product(&layer->qkv, normed, m->hidden, low_x, qkv, wide, 0, rows);
            /* rows of a group lie next to each other: its prompt stays in the cache of the processor */
            share(m->kv_heads * rows, thread, omp_get_num_threads(), &from, &to);
            for (int64_t task = from; task < to; task++) {
                int64_t head = task / rows, row = task % rows, each = m->heads / m->kv_heads;
                attend(m, s, layer, number, qkv + row * wide, row, head, own,
                       attended + row * queries + head * each * m->head_dim);
            }
#pragma omp barrier
            product(&layer->out, attended, queries, low_x, s->x, m->hidden, 1, rows);
            norms(s->x, layer->norm_out, normed, rows, m->hidden, m->eps);
            product(&layer->gate_up, normed, m->hidden, low_x, both, 2 * m->inner, 0, rows);
            swiglu(both, rows, m->inner);
            product(&layer->down, both, 2 * m->inner, low_x, s->x, m->hidden, 1, rows);
        }
        norms(s->x, s->norm, s->hidden, rows, m->hidden, m->eps);
    }
}
