// Linear layers with weights in int8 and a scale for each output, by the processor's own products of bytes (VNNI).
//
// A row of x becomes whole numbers of a unit, 2^-21 of its greatest element or less, and these become three digits of
// base 256, each from -128 to 127: bfloat16 has 8 bits, so all but the smallest elements are exact, and so are the
// products. An instruction multiplies 64 digits with 64 weights and sums them; floats would take 16 at a time, and
// turning weights into floats longer than multiplying them. It wants one side without signs: weights are taken as 128
// more than they are, and 128 times the sum of the row is taken off at the end. Only processors that have these
// products may call `byte_panel`.

#pragma once

#include "linears.h"

namespace {

constexpr int BYTE_COLUMNS = 4;    // outputs of a tile, which is of one row of x: more sums were kept outside registers
constexpr int DIGITS = 3;
constexpr int64_t BYTE_STEP = 64;  // inputs at a time
constexpr int64_t MOST_INPUTS = 1 << 16;  // whose sums stay within 32 bits

// A row of x: this, and the digits behind it, of each 64 inputs the highest digits first.
struct alignas(64) Digits {
    float unit;  // NaN where the row holds NaN or infinity
    float less;  // in units
    int8_t *first() { return (int8_t *)(this + 1); }
    const int8_t *first() const { return (const int8_t *)(this + 1); }
};

inline int64_t digits_stride(int64_t inputs) { return (inputs + BYTE_STEP - 1) / BYTE_STEP * BYTE_STEP; }
inline int64_t digits_bytes(int64_t inputs) { return sizeof(Digits) + DIGITS * digits_stride(inputs); }
// What a row of x needs, of either kind.
inline int64_t row_bytes(int64_t inputs) { return most(digits_bytes(inputs), stride_of(inputs) * sizeof(float)); }

inline int64_t whole_sum(__m512i lanes) {
    return _mm512_reduce_add_epi64(_mm512_cvtepi32_epi64(_mm512_castsi512_si256(lanes))) +
           _mm512_reduce_add_epi64(_mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(lanes, 1)));
}

inline void to_digits(const bfloat16 *x, int64_t inputs, Digits *row) {
    int64_t stride = digits_stride(inputs);
    __m512i greatest = _mm512_setzero_si512(), magnitude = _mm512_set1_epi16(0x7fff);
    for (int64_t k = 0; k < inputs; k += 32) {
        __mmask32 which = inputs - k >= 32 ? 0xffffffff : (1u << (inputs - k)) - 1;
        greatest = _mm512_max_epu16(greatest, _mm512_and_si512(_mm512_maskz_loadu_epi16(which, x + k), magnitude));
    }
    uint16_t lanes[32], most_of_all = 0;
    _mm512_storeu_si512(lanes, greatest);
    for (uint16_t lane : lanes) most_of_all = lane > most_of_all ? lane : most_of_all;
    int exponent = (most_of_all >> 7) - 127 - 21;  // of the unit; numbers are less than 2^22
    bool finite = most_of_all < 0x7f80;
    if (exponent < -126) exponent = -126;  // of a row of zeros, and of one close to it
    __m512 scale = _mm512_set1_ps((float)-exponent);
    __m512i halves = _mm512_set1_epi32(0x808080), lanes_of_sum = _mm512_setzero_si512();
    int64_t sum = 0;
    for (int64_t k = 0; k < stride; k += 16) {
        __m512 values = k < inputs && finite ? load(x + k, first(inputs - k)) : _mm512_setzero_ps();
        __m512i numbers = _mm512_cvtps_epi32(_mm512_scalef_ps(values, scale));
        lanes_of_sum = _mm512_add_epi32(lanes_of_sum, numbers);
        if (k % 4096 == 4080 || k + 16 == stride) {  // before sums leave 32 bits
            sum += whole_sum(lanes_of_sum);
            lanes_of_sum = _mm512_setzero_si512();
        }
        // With a half added to each digit none of them borrows, and its highest bit is the other way round.
        __m512i digits = _mm512_xor_si512(_mm512_add_epi32(numbers, halves), halves);
        int8_t *to = row->first() + (k / BYTE_STEP * DIGITS) * BYTE_STEP + k % BYTE_STEP;
        _mm_storeu_si128((__m128i *)to, _mm512_cvtepi32_epi8(_mm512_srli_epi32(digits, 16)));
        _mm_storeu_si128((__m128i *)(to + BYTE_STEP), _mm512_cvtepi32_epi8(_mm512_srli_epi32(digits, 8)));
        _mm_storeu_si128((__m128i *)(to + 2 * BYTE_STEP), _mm512_cvtepi32_epi8(digits));
    }
    row->unit = finite ? _mm512_cvtss_f32(_mm512_scalef_ps(_mm512_set1_ps(1.0f), _mm512_set1_ps((float)exponent)))
                       : __builtin_nanf("");
    row->less = (float)(128 * sum);
}

// Adds the products of BYTE_STEP inputs' digits with weights as they are stored.
__attribute__((target("avx512vnni"), always_inline)) inline void multiply_bytes(const int8_t *digits,
                                                                               const __m512i *loaded,
                                                                               __m512i (*sums)[BYTE_COLUMNS]) {
    const __m512i signs = _mm512_set1_epi8((char)0x80);
    __m512i weights[BYTE_COLUMNS];
    for (int c = 0; c < BYTE_COLUMNS; c++) weights[c] = _mm512_xor_si512(loaded[c], signs);
    for (int d = 0; d < DIGITS; d++) {
        __m512i some = _mm512_load_si512(digits + d * BYTE_STEP);
        for (int c = 0; c < BYTE_COLUMNS; c++) sums[d][c] = _mm512_dpbusd_epi32(sums[d][c], weights[c], some);
    }
}

// Products of a row of digits with BYTE_COLUMNS rows of weights, in units: y [BYTE_COLUMNS]. AHEAD rows of the weights
// that come next, from `turn` on, are read ahead of their use.
template <int AHEAD>
__attribute__((target("avx512vnni"), noinline)) void byte_tile(const Digits *x, const int8_t *const *w, int64_t inputs,
                                                               int turn, float *y) {
    __m512i sums[DIGITS][BYTE_COLUMNS], loaded[BYTE_COLUMNS];
    for (int d = 0; d < DIGITS; d++)
        for (int c = 0; c < BYTE_COLUMNS; c++) sums[d][c] = _mm512_setzero_si512();
    const int8_t *digits = x->first(), *next = w[turn] + BYTE_COLUMNS * inputs;
    int64_t k = 0;
    for (; k + BYTE_STEP <= inputs; k += BYTE_STEP, digits += DIGITS * BYTE_STEP) {
        for (int one = 0; one < AHEAD; one++) _mm_prefetch((const char *)(next + one * inputs + k), _MM_HINT_T0);
        for (int c = 0; c < BYTE_COLUMNS; c++) loaded[c] = _mm512_loadu_si512(w[c] + k);
        multiply_bytes(digits, loaded, sums);
    }
    if (k < inputs) {
        __mmask64 which = (1ull << (inputs - k)) - 1;
        for (int c = 0; c < BYTE_COLUMNS; c++) loaded[c] = _mm512_maskz_loadu_epi8(which, w[c] + k);
        multiply_bytes(digits, loaded, sums);
    }
    const __m512 base = _mm512_set1_ps(256.0f);
    __m512 all[BYTE_COLUMNS];
    for (int c = 0; c < BYTE_COLUMNS; c++) {
        all[c] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[0][c]), base, _mm512_cvtepi32_ps(sums[1][c]));
        all[c] = _mm512_fmadd_ps(all[c], base, _mm512_cvtepi32_ps(sums[2][c]));
    }
    _mm_storeu_ps(y, lane_sums(all[0], all[1], all[2], all[3]));
}

// As `panel` of linears.h, for `x` of rows of digits.
inline void byte_panel(const char *x, const int8_t *weights, const float *scales, const bfloat16 *bias, bfloat16 *y,
                       int64_t rows, int64_t inputs, int64_t outputs, int64_t output) {
    float sums[BLOCK * PANEL];
    int64_t width = least(PANEL, outputs - output), each = digits_bytes(inputs);
    for (int64_t c = 0; c < width; c += BYTE_COLUMNS) {
        const int8_t *w[BYTE_COLUMNS];  // those past the last output are read again, and not stored
        for (int one = 0; one < BYTE_COLUMNS; one++) w[one] = weights + (output + least(c + one, width - 1)) * inputs;
        for (int64_t r = 0; r < rows; r++) {
            const Digits *row = (const Digits *)(x + r * each);
            float *to = sums + r * PANEL + c;
            if (rows == 1)
                byte_tile<BYTE_COLUMNS>(row, w, inputs, 0, to);
            else  // rows take turns, so that memory is read all the while
                byte_tile<1>(row, w, inputs, (int)(r % BYTE_COLUMNS), to);
        }
    }
    __mmask16 which = first(width);
    __m512 added = bias ? widened(_mm256_maskz_loadu_epi16(which, bias + output)) : _mm512_setzero_ps();
    __m512 scale = load(scales + output, which);
    for (int64_t r = 0; r < rows; r++) {
        const Digits *row = (const Digits *)(x + r * each);
        __m512 products = _mm512_sub_ps(_mm512_loadu_ps(sums + r * PANEL), _mm512_set1_ps(row->less));
        products = _mm512_mul_ps(products, _mm512_set1_ps(row->unit));
        _mm256_mask_storeu_epi16(y + r * outputs + output, which, narrowed(_mm512_fmadd_ps(products, scale, added)));
    }
}

}  // namespace
