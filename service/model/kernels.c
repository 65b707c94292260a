// The memory-bound operators of one transformer layer: attention over the paged cache, rotary + cache write, norm, gated activation,
// low-rank adapters.
//
// service/model/ops.py holds the plain PyTorch version of each (the reference and the fallback) and the contract of the arguments.
// For AVX-512; built by service/model/native_build.py with whatever C compiler there is. Nothing here is needed, only faster.
//
// Batch invariance (docs/decisions/0002): each output row is computed by the same instructions in the same order whatever else is
// in the batch. Threads share out rows; no sum is ever split between threads; keys are taken block by block from the first.
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <immintrin.h>
#include "parallel.h"

#define LANES 16         // floats in a vector, and tokens in a KV block
#define MAX_ROWS 64      // query rows (tokens x heads of one KV head) of a work item
#define MAX_HEAD_DIM 256
#define ROW_GROUP 8      // rows whose accumulators live in registers at once
#define MAX_RANKS 768    // hidden values of an adapter for one layer: three fused ones with the largest rank
#define AT_ONCE 3        // of them, or vectors of columns, that share what is loaded for a group of rows
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));
typedef uint16_t hvec __attribute__((vector_size(2 * LANES)));

enum dtype { F32 = 0, BF16 = 1 };

INLINE vec splat(float x) { return x - (vec){0}; }

INLINE vec blend(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }

// a * b + c with one rounding. Spelled out, and the compiler forbidden to contract by itself, so that every caller rounds alike.
INLINE vec fmadd(vec a, vec b, vec c) {
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}

INLINE vec load(const void *p, int64_t i, int dtype) {
    vec v;
    if (dtype == F32) {
        memcpy(&v, (const float *)p + i, sizeof v);
    } else {
        hvec h;
        memcpy(&h, (const uint16_t *)p + i, sizeof h);
        v = (vec)(__builtin_convertvector(h, uvec) << 16);
    }
    return v;
}

INLINE void store(void *p, int64_t i, vec v, int dtype) {
    if (dtype == F32) {
        memcpy((float *)p + i, &v, sizeof v);
    } else {  // round to nearest even; NaN keeps its sign and stays NaN
        uvec bits = (uvec)v;
        uvec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        uvec nan = (uvec)(v != v);
        hvec h = __builtin_convertvector((rounded & ~nan) | (((bits >> 16) | 0x40) & nan), hvec);
        memcpy((uint16_t *)p + i, &h, sizeof h);
    }
}

INLINE float load1(const void *p, int64_t i, int dtype) {
    if (dtype == F32) return ((const float *)p)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)p)[i] << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

INLINE void store1(void *p, int64_t i, float x, int dtype) {
    if (dtype == F32) {
        ((float *)p)[i] = x;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    ((uint16_t *)p)[i] = x != x ? (uint16_t)(bits >> 16 | 0x40) : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

INLINE float sum_lanes(vec v) {
    return _mm512_reduce_add_ps((__m512)v);
}

INLINE float max_lanes(vec v) {
    return _mm512_reduce_max_ps((__m512)v);
}

// Ask for `bytes` bytes ahead of time: blocks lie anywhere in memory, where no hardware prefetcher finds the next one.
INLINE void prefetch(const void *p, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch((const char *)p + i);
}

// e^x for x <= 0 to about 1 ulp of float; exactly 1 at 0 and exactly 0 below -87. NaN gives NaN.
// Polynomial: Cephes expf (Moshier), https://www.netlib.org/cephes.
INLINE vec exp_nonpositive(vec x) {
    vec n = x * 1.44269504f;
    vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding and subtracting rounds to an integer
    n = (n + magic) - magic;
    vec r = fmadd(n, splat(2.12194440e-4f), fmadd(n, splat(-0.693359375f), x));
    vec p = splat(1.9875691500e-4f);
    p = fmadd(p, r, splat(1.3981999507e-3f));
    p = fmadd(p, r, splat(8.3334519073e-3f));
    p = fmadd(p, r, splat(4.1665795894e-2f));
    p = fmadd(p, r, splat(1.6666665459e-1f));
    p = fmadd(p, r, splat(5.0000001201e-1f));
    p = fmadd(p, r * r, r) + 1.0f;
    ivec tiny = x < -87.0f;
    ivec exponent = (__builtin_convertvector(blend(tiny, splat(0), n), ivec) + 127) << 23;
    return blend(tiny, splat(0), p * (vec)exponent);
}

// ---------------------------------------------------------------------------------------------- attention

struct attention {
    const void *query, *keys, *values;
    void *out;
    const int64_t *tiles;   // [num_tiles, 4]: first row, number of tokens, position of the first, start of its block table
    const int64_t *tables;  // block tables, one after the other
    int64_t query_stride;   // elements between two tokens of `query`
    int heads, kv_heads, head_dim, window, dtype;
    float scale;
};

// Scores of n query rows against the 16 keys of a block: out[r] = sum_d q[r][d] * key[d][lane], d in order.
INLINE void score_rows(const float *q, const void *key, int64_t at, int head_dim, int dtype, vec *out, int n) {
    vec acc[ROW_GROUP];
    for (int r = 0; r < n; r++) acc[r] = splat(0);
    for (int d = 0; d < head_dim; d++) {
        vec k = load(key, at + d * LANES, dtype);
        for (int r = 0; r < n; r++) acc[r] = fmadd(splat(q[r * head_dim + d]), k, acc[r]);
    }
    for (int r = 0; r < n; r++) out[r] = acc[r];
}

// out[r][d] = out[r][d] * decay[r] + sum_t weight[r][t] * value[t][d], t in order over the keys that exist: what another
// sequence left in the rest of the block may be NaN, and 0 * NaN is NaN.
INLINE void mix_rows(float *out, const float *decay, const vec *weight, const void *value, int64_t at, int keys, int head_dim,
                     int dtype, int n) {
    for (int d = 0; d < head_dim; d += LANES) {
        vec acc[ROW_GROUP];
        for (int r = 0; r < n; r++) acc[r] = load(out, r * head_dim + d, F32) * decay[r];
        for (int t = 0; t < keys; t++) {
            vec v = load(value, at + t * head_dim + d, dtype);
            for (int r = 0; r < n; r++) acc[r] = fmadd(splat(((const float *)&weight[r])[t]), v, acc[r]);
        }
        for (int r = 0; r < n; r++) store(out, r * head_dim + d, acc[r], F32);
    }
}

// A constant row count lets the compiler keep the accumulators in registers.
#define FOR_ROW_COUNT(n, CALL) \
    switch (n) {               \
        case 1: CALL(1); break; case 2: CALL(2); break; case 3: CALL(3); break; case 4: CALL(4); break; \
        case 5: CALL(5); break; case 6: CALL(6); break; case 7: CALL(7); break; default: CALL(8); }

INLINE void attend(const struct attention *a, int64_t item, int dtype) {
    const int64_t *tile = a->tiles + 4 * (item / a->kv_heads);
    const int kv_head = item % a->kv_heads, group = a->heads / a->kv_heads, dim = a->head_dim;
    const int64_t first_row = tile[0], num_tokens = tile[1], first_at = tile[2];
    const int64_t *table = a->tables + tile[3];
    const int rows = num_tokens * group;
    float q[MAX_ROWS * MAX_HEAD_DIM], o[MAX_ROWS * MAX_HEAD_DIM], peak[MAX_ROWS], total[MAX_ROWS], decay[MAX_ROWS];
    vec weight[MAX_ROWS];

    for (int r = 0; r < rows; r++) {
        int64_t from = (first_row + r / group) * a->query_stride + (int64_t)(kv_head * group + r % group) * dim;
        for (int d = 0; d < dim; d += LANES) store(q, r * dim + d, load(a->query, from + d, dtype) * a->scale, F32);
        peak[r] = -1e30f, total[r] = 0;
    }
    memset(o, 0, sizeof(float) * rows * dim);

    ivec lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    int64_t oldest = a->window && first_at >= a->window ? first_at - a->window + 1 : 0;
    const int64_t last = (first_at + num_tokens - 1) / LANES, size = dtype == F32 ? 4 : 2;
    for (int64_t b = oldest / LANES; b <= last; b++) {
        int64_t at = (table[b] * a->kv_heads + kv_head) * LANES * dim;
        if (b < last) {
            int64_t next = (table[b + 1] * a->kv_heads + kv_head) * LANES * dim * size;
            prefetch((const char *)a->keys + next, LANES * dim * size);
            prefetch((const char *)a->values + next, LANES * dim * size);
        }
        int64_t known = first_at + num_tokens - b * LANES;
        int keys = known < LANES ? known : LANES;
        for (int r = 0; r < rows; r += ROW_GROUP) {
            int n = rows - r < ROW_GROUP ? rows - r : ROW_GROUP;
#define CALL(N) score_rows(q + r * dim, a->keys, at, dim, dtype, weight + r, N)
            FOR_ROW_COUNT(n, CALL)
#undef CALL
        }
        for (int r = 0; r < rows; r++) {
            int64_t query_at = first_at + r / group;
            ivec key_at = lane + (int32_t)(b * LANES);
            ivec seen = key_at <= (int32_t)query_at;
            if (a->window) seen &= key_at > (int32_t)(query_at - a->window);
            vec s = blend(seen, weight[r], splat(-1e30f));
            float new_peak = max_lanes(s);
            new_peak = new_peak > peak[r] ? new_peak : peak[r];
            decay[r] = exp_nonpositive(splat(peak[r] - new_peak))[0];
            peak[r] = new_peak;
            weight[r] = blend(seen, exp_nonpositive(s - new_peak), splat(0));
            total[r] = total[r] * decay[r] + sum_lanes(weight[r]);
        }
        for (int r = 0; r < rows; r += ROW_GROUP) {
            int n = rows - r < ROW_GROUP ? rows - r : ROW_GROUP;
#define CALL(N) mix_rows(o + r * dim, decay + r, weight + r, a->values, at, keys, dim, dtype, N)
            FOR_ROW_COUNT(n, CALL)
#undef CALL
        }
    }
    for (int r = 0; r < rows; r++) {
        int64_t to = ((first_row + r / group) * a->heads + kv_head * group + r % group) * dim;
        for (int d = 0; d < dim; d += LANES) store(a->out, to + d, load(o, r * dim + d, F32) / total[r], dtype);
    }
}

static void attend_f32(void *args, int64_t item) { attend(args, item, F32); }
static void attend_bf16(void *args, int64_t item) { attend(args, item, BF16); }

void headcount_attention(struct attention *a, int64_t num_tiles) {
    parallel_for(num_tiles * a->kv_heads, a, a->dtype == F32 ? attend_f32 : attend_bf16, 1);
}

// ---------------------------------------------------------------------------------------------- rotary and cache write

struct rotary {
    void *qkv;               // [tokens, (heads + 2 kv_heads) * head_dim]; the query part is rotated in place
    const float *cos, *sin;  // [tokens, head_dim / 2], or NULL for learned positions
    const int64_t *slots;    // [tokens]
    void *keys, *values;     // one layer's caches
    int heads, kv_heads, head_dim, dtype;
};

INLINE void rotate(const struct rotary *a, int64_t token, int64_t at, int dtype) {
    const int half = a->head_dim / 2;
    const float *c = a->cos + token * half, *s = a->sin + token * half;
    for (int d = 0; d < half; d++) {
        float x = load1(a->qkv, at + d, dtype), y = load1(a->qkv, at + half + d, dtype);
        store1(a->qkv, at + d, x * c[d] - y * s[d], dtype);
        store1(a->qkv, at + half + d, y * c[d] + x * s[d], dtype);
    }
}

INLINE void write_token(const struct rotary *a, int64_t token, int dtype) {
    const int dim = a->head_dim, size = dtype == F32 ? 4 : 2;
    const int64_t row = token * (a->heads + 2 * a->kv_heads) * dim;
    const int64_t block = a->slots[token] / LANES, offset = a->slots[token] % LANES;
    if (a->cos)
        for (int h = 0; h < a->heads + a->kv_heads; h++) rotate(a, token, row + h * dim, dtype);
    for (int h = 0; h < a->kv_heads; h++) {
        const char *key = (const char *)a->qkv + (row + (a->heads + h) * dim) * size;
        const char *value = key + a->kv_heads * dim * size;
        const int64_t to = (block * a->kv_heads + h) * LANES * dim;
        for (int d = 0; d < dim; d++) memcpy((char *)a->keys + (to + d * LANES + offset) * size, key + d * size, size);
        memcpy((char *)a->values + (to + offset * dim) * size, value, dim * size);
    }
}

static void write_f32(void *args, int64_t token) { write_token(args, token, F32); }
static void write_bf16(void *args, int64_t token) { write_token(args, token, BF16); }

void headcount_rotary(struct rotary *a, int64_t num_tokens) {
    parallel_for(num_tokens, a, a->dtype == F32 ? write_f32 : write_bf16, num_tokens >= 32);
}

// ---------------------------------------------------------------------------------------------- norm and activation

struct norm {
    void *residual;     // [rows, width]: += delta, in place
    const void *delta;  // or NULL
    const void *weight;
    void *out;
    int64_t width;
    float eps;
    int dtype;
};

INLINE void norm_row(const struct norm *a, int64_t row, int dtype) {
    const int64_t at = row * a->width;
    vec squares = splat(0);
    for (int64_t i = 0; i < a->width; i += LANES) {
        vec x = load(a->residual, at + i, dtype);
        if (a->delta) {
            x += load(a->delta, at + i, dtype);
            store(a->residual, at + i, x, dtype);
            x = load(a->residual, at + i, dtype);  // as rounded
        }
        squares = fmadd(x, x, squares);
    }
    float inverse = 1.0f / sqrtf(sum_lanes(squares) / a->width + a->eps);
    for (int64_t i = 0; i < a->width; i += LANES) {
        vec x = load(a->residual, at + i, dtype) * inverse;
        store(a->out, at + i, x, dtype);
        store(a->out, at + i, load(a->out, at + i, dtype) * load(a->weight, i, dtype), dtype);
    }
}

static void norm_f32(void *args, int64_t row) { norm_row(args, row, F32); }
static void norm_bf16(void *args, int64_t row) { norm_row(args, row, BF16); }

void headcount_norm(struct norm *a, int64_t rows) {
    parallel_for(rows, a, a->dtype == F32 ? norm_f32 : norm_bf16, rows >= 64);
}

struct gate {
    const void *gate_up;  // [rows, 2 * width]
    void *out;            // [rows, width]
    int64_t width;
    int dtype;
};

INLINE void gate_row(const struct gate *a, int64_t row, int dtype) {
    for (int64_t i = 0; i < a->width; i += LANES) {
        vec x = load(a->gate_up, row * 2 * a->width + i, dtype), up = load(a->gate_up, (row * 2 + 1) * a->width + i, dtype);
        vec e = exp_nonpositive(blend(x < 0, x, -x));  // e^-|x|, so that nothing overflows
        vec silu = x / (1 + e);
        silu = blend(x < 0, silu * e, silu);
        store(a->out, row * a->width + i, silu, dtype);
        store(a->out, row * a->width + i, load(a->out, row * a->width + i, dtype) * up, dtype);
    }
}

static void gate_f32(void *args, int64_t row) { gate_row(args, row, F32); }
static void gate_bf16(void *args, int64_t row) { gate_row(args, row, BF16); }

void headcount_silu_gate(struct gate *a, int64_t rows) {
    parallel_for(rows, a, a->dtype == F32 ? gate_f32 : gate_bf16, rows >= 16);
}

// ---------------------------------------------------------------------------------------------- low-rank adapters

struct low_rank {
    const void *x;         // [*, inputs]
    void *y;               // [*, outputs]: += x down' up, in `rows`
    const int64_t *rows;   // [num_rows]
    const void *down;      // [ranks, inputs]
    const void *up;        // [rank, columns] of each part, one after the other
    const int64_t *parts;  // [num_parts, 4]: first column, columns, first rank, rank
    int64_t num_rows, inputs, outputs;
    int ranks, num_parts, dtype;
};

// hidden[r][j] = sum_i x[row[r]][i] * down[j][i] for m values of j, lane by lane and then over the lanes.
INLINE void shrink(const struct low_rank *a, const int64_t *row, int j, float *hidden, int dtype, int n, int m) {
    vec acc[AT_ONCE][ROW_GROUP];
    for (int k = 0; k < m; k++)
        for (int r = 0; r < n; r++) acc[k][r] = splat(0);
    for (int64_t i = 0; i < a->inputs; i += LANES) {
        vec w[AT_ONCE];
        for (int k = 0; k < m; k++) w[k] = load(a->down, (j + k) * a->inputs + i, dtype);
        for (int r = 0; r < n; r++) {
            vec x = load(a->x, row[r] * a->inputs + i, dtype);
            for (int k = 0; k < m; k++) acc[k][r] = fmadd(x, w[k], acc[k][r]);
        }
    }
    for (int k = 0; k < m; k++)
        for (int r = 0; r < n; r++) hidden[r * MAX_RANKS + j + k] = sum_lanes(acc[k][r]);
}

// y[row[r]][to + d] += sum_j hidden[r][j] * up[j][d] for m vectors of columns d, j in order; `up` begins at `at`.
INLINE void expand(const struct low_rank *a, const int64_t *row, const float *hidden, const int64_t *part, int64_t at,
                   int64_t d, int dtype, int n, int m) {
    const int64_t columns = part[1], rank = part[3];
    vec acc[AT_ONCE][ROW_GROUP];
    for (int k = 0; k < m; k++)
        for (int r = 0; r < n; r++) acc[k][r] = splat(0);
    for (int64_t j = 0; j < rank; j++) {
        vec w[AT_ONCE];
        for (int k = 0; k < m; k++) w[k] = load(a->up, at + j * columns + d + k * LANES, dtype);
        for (int r = 0; r < n; r++) {
            vec h = splat(hidden[r * MAX_RANKS + part[2] + j]);
            for (int k = 0; k < m; k++) acc[k][r] = fmadd(h, w[k], acc[k][r]);
        }
    }
    for (int k = 0; k < m; k++)
        for (int r = 0; r < n; r++) {
            int64_t to = row[r] * a->outputs + part[0] + d + k * LANES;
            store(a->y, to, load(a->y, to, dtype) + acc[k][r], dtype);
        }
}

INLINE void add_to_rows(const struct low_rank *a, const int64_t *row, int dtype, int n) {
    float hidden[ROW_GROUP * MAX_RANKS];
    int j = 0;
    for (; j + AT_ONCE <= a->ranks; j += AT_ONCE) shrink(a, row, j, hidden, dtype, n, AT_ONCE);
    for (; j < a->ranks; j++) shrink(a, row, j, hidden, dtype, n, 1);
    int64_t at = 0;
    for (const int64_t *part = a->parts; part < a->parts + 4 * a->num_parts; part += 4) {
        int64_t d = 0;
        for (; d + AT_ONCE * LANES <= part[1]; d += AT_ONCE * LANES) expand(a, row, hidden, part, at, d, dtype, n, AT_ONCE);
        for (; d < part[1]; d += LANES) expand(a, row, hidden, part, at, d, dtype, n, 1);
        at += part[1] * part[3];
    }
}

INLINE void add_low_rank(const struct low_rank *a, int64_t item, int dtype) {
    const int64_t left = a->num_rows - item * ROW_GROUP, *row = a->rows + item * ROW_GROUP;
#define CALL(N) add_to_rows(a, row, dtype, N)
    FOR_ROW_COUNT(left, CALL)
#undef CALL
}

static void low_rank_f32(void *args, int64_t item) { add_low_rank(args, item, F32); }
static void low_rank_bf16(void *args, int64_t item) { add_low_rank(args, item, BF16); }

void headcount_low_rank(struct low_rank *a, int64_t num_items) {
    parallel_for(num_items, a, a->dtype == F32 ? low_rank_f32 : low_rank_bf16, 1);
}
