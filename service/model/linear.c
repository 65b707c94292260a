// Linear layers over packed weights: y = x W' + bias, x and y bfloat16, W in bfloat16, 8 or 4 bits.
//
// A weight is cut into panels of 16 outputs, one for each lane of a vector; within a panel it lies in the order in which it is used
// (service/model/panels.py packs it and is the reference). The 8- and 4-bit formats have groups of 32 inputs: value = scale * code
// + minimum. For them each group of a row of x is rounded to 8 bits as well, so that sums within a group are of integers, exact.
//
// Batch invariance (docs/decisions/0002): an output is summed by the same instructions in the same order however many rows there
// are: over the inputs from the first to the last, in one thread. Rows and panels only decide who shares what is loaded.
#include <stdint.h>
#include <string.h>
#include <immintrin.h>
#include "parallel.h"

#define LANES 16
#define GROUP 32           // inputs with one scale
#define ROWS 8             // rows of x whose sums live in registers at once
#define FEW_ROWS 4         // with which memory, asked for by the processor's own prefetchers, takes longer than arithmetic
#define QUANTIZED_ROWS 8   // rows of x that a thread rounds at a time
#define INLINE static inline __attribute__((always_inline))

enum format { BFLOAT16 = 0, INT8 = 1, INT4 = 2 };

struct product {
    const uint16_t *x;     // [rows, inputs]
    uint16_t *y;           // [rows, outputs]
    const char *panels;    // [ceil(outputs / 16)] panels
    const uint16_t *bias;  // [outputs], or NULL
    int8_t *codes;         // what the 8- and 4-bit formats make of x: [rows, inputs],
    float *scales;         // [rows, groups],
    float *sums;           // and [rows, groups]: the sum of a group's codes
    int64_t rows, inputs, outputs;
    int64_t share;         // panels that a thread takes at a time, one behind the other in memory
    int format;
};

// Of one panel: [inputs / 2][16 lanes][2] bfloat16, or for each group [16] scales (float16), for INT4 [16] minima, then the codes:
// INT8 [8][16 lanes][4], each 128 too large; INT4 [4][16 lanes][4], in the upper halves of the bytes those of the 4 inputs after.
INLINE int64_t panel_bytes(int64_t inputs, int format) {
    return format == BFLOAT16 ? inputs * 32 : inputs / GROUP * (format == INT8 ? 544 : 320);
}

INLINE __m512i splat4(const void *four_bytes) {
    int32_t bits;
    memcpy(&bits, four_bytes, sizeof bits);
    return _mm512_set1_epi32(bits);
}

INLINE __m512 widen(__m256i bfloat16) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bfloat16), 16)); }

INLINE __m512 load_half(const char *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }

INLINE void put(const struct product *a, int64_t panel, int64_t row, __m512 sum) {
    const int64_t column = panel * LANES, left = a->outputs - column;
    const __mmask16 there = left < LANES ? (1 << left) - 1 : 0xffff;
    if (a->bias) sum = _mm512_add_ps(sum, widen(_mm256_maskz_loadu_epi16(there, a->bias + column)));
    _mm256_mask_storeu_epi16(a->y + row * a->outputs + column, there, (__m256i)_mm512_cvtneps_pbh(sum));
}

// Ask for a line of the next panel while there is arithmetic to do.
INLINE void prefetch_next(const struct product *a, const char *w, int n, int format) {
    if (n > FEW_ROWS) _mm_prefetch(w + panel_bytes(a->inputs, format), _MM_HINT_T0);
}

// n rows of one panel.
INLINE void bfloat16_tile(const struct product *a, int64_t panel, int64_t row, int n) {
    const char *w = a->panels + panel * panel_bytes(a->inputs, BFLOAT16);
    const uint16_t *x = a->x + row * a->inputs;
    __m512 sum[ROWS];
    for (int r = 0; r < n; r++) sum[r] = _mm512_setzero_ps();
    for (int64_t i = 0; i < a->inputs; i += 2, w += 64) {
        __m512i pairs = _mm512_loadu_si512(w);
        prefetch_next(a, w, n, BFLOAT16);
        for (int r = 0; r < n; r++)
            sum[r] = _mm512_dpbf16_ps(sum[r], (__m512bh)pairs, (__m512bh)splat4(x + r * a->inputs + i));
    }
    for (int r = 0; r < n; r++) put(a, panel, row + r, sum[r]);
}

INLINE void integer_tile(const struct product *a, int64_t panel, int64_t row, int n, int format) {
    const char *w = a->panels + panel * panel_bytes(a->inputs, format);
    const int64_t groups = a->inputs / GROUP;
    const __m512i low_half = _mm512_set1_epi8(15);
    __m512 sum[ROWS];
    for (int r = 0; r < n; r++) sum[r] = _mm512_setzero_ps();
    for (int64_t g = 0; g < groups; g++) {
        const int8_t *x = a->codes + row * a->inputs + g * GROUP;
        const int64_t of_group = row * groups + g;
        __m512i dot[ROWS];
        const __m512 scale = load_half(w);
        const __m512 minimum = format == INT4 ? load_half(w + 32) : _mm512_mul_ps(scale, _mm512_set1_ps(-128));
        w += format == INT4 ? 64 : 32;
        for (int r = 0; r < n; r++) dot[r] = _mm512_setzero_si512();
        for (int i = 0; i < GROUP; w += 64) {
            __m512i codes = _mm512_loadu_si512(w);
            prefetch_next(a, w, n, format);
            for (int half = 0; half < (format == INT4 ? 2 : 1); half++, i += 4) {
                __m512i four = codes;
                if (format == INT4) four = _mm512_and_si512(half ? _mm512_srli_epi16(codes, 4) : codes, low_half);
                for (int r = 0; r < n; r++) dot[r] = _mm512_dpbusd_epi32(dot[r], four, splat4(x + r * a->inputs + i));
            }
        }
        for (int r = 0; r < n; r++) {
            __m512 part = _mm512_mul_ps(_mm512_cvtepi32_ps(dot[r]), scale);
            part = _mm512_fmadd_ps(minimum, _mm512_set1_ps(a->sums[of_group + r * groups]), part);
            sum[r] = _mm512_fmadd_ps(part, _mm512_set1_ps(a->scales[of_group + r * groups]), sum[r]);
        }
    }
    for (int r = 0; r < n; r++) put(a, panel, row + r, sum[r]);
}

// A constant number of rows lets the compiler keep the sums in registers.
#define FOR_ROW_COUNT(n, CALL) \
    switch (n) {               \
        case 1: CALL(1); break; case 2: CALL(2); break; case 3: CALL(3); break; case 4: CALL(4); break; \
        case 5: CALL(5); break; case 6: CALL(6); break; case 7: CALL(7); break; default: CALL(8); }

// A panel stays in the cache for all rows, which are cut evenly.
INLINE void multiply(const struct product *a, int64_t item, int format) {
    const int64_t panels = (a->outputs + LANES - 1) / LANES, first = item * a->share;
    const int64_t last = first + a->share < panels ? first + a->share : panels, tiles = (a->rows + ROWS - 1) / ROWS;
    for (int64_t panel = first; panel < last; panel++) {
        for (int64_t t = 0; t < tiles; t++) {
            const int64_t row = a->rows * t / tiles;
            const int n = a->rows * (t + 1) / tiles - row;
#define CALL(N) format == BFLOAT16 ? bfloat16_tile(a, panel, row, N) : integer_tile(a, panel, row, N, format)
            FOR_ROW_COUNT(n, CALL)
#undef CALL
        }
    }
}

static void multiply_bfloat16(void *args, int64_t item) { multiply(args, item, BFLOAT16); }
static void multiply_int8(void *args, int64_t item) { multiply(args, item, INT8); }
static void multiply_int4(void *args, int64_t item) { multiply(args, item, INT4); }

// x = scale * code, the largest of a group being 127; rounded to nearest even.
INLINE void quantize_group(const struct product *a, int64_t row, int64_t g) {
    const int64_t of_group = row * (a->inputs / GROUP) + g, at = row * a->inputs + g * GROUP;
    __m512 x[2];
    for (int h = 0; h < 2; h++) x[h] = widen(_mm256_loadu_si256((const __m256i *)(a->x + at + h * LANES)));
    // As integers, of which NaN is the largest: it must reach the scale.
    __m512i largest = _mm512_max_epi32(_mm512_castps_si512(_mm512_abs_ps(x[0])), _mm512_castps_si512(_mm512_abs_ps(x[1])));
    const float peak = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(_mm512_reduce_max_epi32(largest))));
    const __m512 inverse = _mm512_set1_ps(peak > 0 ? 127 / peak : 0);
    __m512i codes[2];
    for (int h = 0; h < 2; h++) {
        codes[h] = _mm512_cvtps_epi32(_mm512_mul_ps(x[h], inverse));
        _mm_storeu_si128((__m128i *)(a->codes + at + h * LANES), _mm512_cvtsepi32_epi8(codes[h]));
    }
    a->scales[of_group] = peak / 127;
    a->sums[of_group] = (float)_mm512_reduce_add_epi32(_mm512_add_epi32(codes[0], codes[1]));
}

static void quantize_rows(void *args, int64_t item) {
    const struct product *a = args;
    const int64_t first = item * QUANTIZED_ROWS, end = first + QUANTIZED_ROWS, last = end < a->rows ? end : a->rows;
    for (int64_t row = first; row < last; row++)
        for (int64_t g = 0; g < a->inputs / GROUP; g++) quantize_group(a, row, g);
}

void headcount_linear(struct product *a, int64_t num_items) {
    if (a->format != BFLOAT16)
        parallel_for((a->rows + QUANTIZED_ROWS - 1) / QUANTIZED_ROWS, a, quantize_rows, a->rows >= 4 * QUANTIZED_ROWS);
    parallel_for(num_items, a, a->format == BFLOAT16 ? multiply_bfloat16 : a->format == INT8 ? multiply_int8 : multiply_int4, 1);
}
