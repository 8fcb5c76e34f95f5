// Linear layers: y = x W^T + bias, for weights in bfloat16, or in int8 with a scale for each output, and sums in float32.
//
// Weights stay as the checkpoint has them, [outputs, inputs]: nothing is packed, kept twice or waited for. A tile of
// their rows is multiplied with a tile of rows of x and summed across lanes at its end. A tile's weights come from
// memory once, and from the first-level cache for further rows of x.
//
// Two neighbouring weights are one 32-bit lane: its upper half is the odd one as a float, once the lower is cleared, and
// a shift gives the even one. x is widened to match: of each 32 inputs the 16 even ones first. Of int8 the 32 stay in order.

#pragma once

#include "lanes.h"

namespace {

constexpr int COLUMNS = 4;      // outputs of a tile
constexpr int ROWS = 6;         // of x, in a tile: more sums than these 24 would leave the registers
constexpr int PANEL = 16;       // outputs that are stored at once
constexpr int64_t STEP = 32;    // inputs at a time
constexpr int64_t DEPTH = 1024; // inputs of a tile: those of its rows stay in the first-level cache
constexpr int64_t BLOCK = 96;   // rows of x that stay in the second-level cache while all weights pass

inline __mmask32 first_of_step(int64_t count) { return count >= STEP ? 0xffffffff : (1u << count) - 1; }

// How 32 weights of a row are read, made floats by halves, and met by x. What `which` leaves out is 0.
struct Bfloat16 {
    typedef bfloat16 Weight;
    typedef __m512i Loaded;
    static Loaded read(const Weight *from) { return _mm512_loadu_si512(from); }
    static Loaded read(const Weight *from, __mmask32 which) { return _mm512_maskz_loadu_epi16(which, from); }
    static __m512 half(Loaded pairs, int odd) {
        return _mm512_castsi512_ps(odd ? _mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000))
                                       : _mm512_slli_epi32(pairs, 16));
    }
    static void widen(const bfloat16 *from, float *to, __mmask32 which) {
        Loaded pairs = read(from, which);
        for (int odd = 0; odd < 2; odd++) _mm512_storeu_ps(to + 16 * odd, half(pairs, odd));
    }
};

struct Int8 {
    typedef int8_t Weight;
    typedef __m256i Loaded;
    static Loaded read(const Weight *from) { return _mm256_loadu_si256((const __m256i *)from); }
    static Loaded read(const Weight *from, __mmask32 which) { return _mm256_maskz_loadu_epi8(which, from); }
    static __m512 half(Loaded all, int second) {
        __m128i bytes = second ? _mm256_extracti128_si256(all, 1) : _mm256_castsi256_si128(all);
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
    }
    static void widen(const bfloat16 *from, float *to, __mmask32 which) {
        for (int second = 0; second < 2; second++)
            _mm512_storeu_ps(to + 16 * second, load(from + 16 * second, (__mmask16)(which >> 16 * second)));
    }
};

template <int R, typename W>
inline void multiply(const float *x, int64_t stride, const typename W::Loaded *loaded, __m512 (*sums)[COLUMNS]) {
    for (int half = 0; half < 2; half++) {
        __m512 weights[COLUMNS];
        for (int c = 0; c < COLUMNS; c++) weights[c] = W::half(loaded[c], half);
        for (int r = 0; r < R; r++) {
            __m512 values = _mm512_loadu_ps(x + r * stride + 16 * half);
            for (int c = 0; c < COLUMNS; c++) sums[r][c] = _mm512_fmadd_ps(values, weights[c], sums[r][c]);
        }
    }
}

// What a tile reads ahead of its use, of the weights that come next, `ahead` of its own: the processor does not foresee a
// row's end by itself. The tiles of one panel take turns at it, so that memory is read all the while.
struct Ahead {
    int64_t distance;  // elements
    int64_t turn, turns;
};

// Adds the products of R rows of x and COLUMNS rows of weights, `w[c]`, over `depth` inputs to `y`.
template <int R, typename W, bool ALONE>
void tile(const float *x, int64_t stride, const typename W::Weight *const *w, int64_t depth, Ahead ahead, float *y) {
    __m512 sums[R][COLUMNS];
    typename W::Loaded loaded[COLUMNS];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < COLUMNS; c++) sums[r][c] = _mm512_setzero_ps();
    int64_t k = 0, row = ahead.turn;
    for (; k + STEP <= depth; k += STEP) {
        if (ALONE) {
            if (sizeof(typename W::Weight) > 1 || k % 64 == 0)  // once a line
                for (int c = 0; c < COLUMNS; c++) _mm_prefetch((const char *)(w[c] + k + ahead.distance), _MM_HINT_T0);
        } else {
            for (int twice = 0; twice < 2; twice++)
                if (row < COLUMNS) {
                    _mm_prefetch((const char *)(w[row] + k + ahead.distance), _MM_HINT_T0);
                    row += ahead.turns;
                }
            row -= COLUMNS;
        }
        for (int c = 0; c < COLUMNS; c++) loaded[c] = W::read(w[c] + k);
        multiply<R, W>(x + k, stride, loaded, sums);
    }
    if (k < depth) {
        for (int c = 0; c < COLUMNS; c++) loaded[c] = W::read(w[c] + k, first_of_step(depth - k));
        multiply<R, W>(x + k, stride, loaded, sums);
    }
    for (int r = 0; r < R; r++) {
        __m128 more = lane_sums(sums[r][0], sums[r][1], sums[r][2], sums[r][3]);
        _mm_storeu_ps(y + r * PANEL, _mm_add_ps(_mm_loadu_ps(y + r * PANEL), more));
    }
}

template <typename W, bool ALONE>
void tile_of(int64_t rows, const float *x, int64_t stride, const typename W::Weight *const *w, int64_t depth,
             Ahead ahead, float *y) {
    switch (rows) {
        case 1: return tile<1, W, ALONE>(x, stride, w, depth, ahead, y);
        case 2: return tile<2, W, ALONE>(x, stride, w, depth, ahead, y);
        case 3: return tile<3, W, ALONE>(x, stride, w, depth, ahead, y);
        case 4: return tile<4, W, ALONE>(x, stride, w, depth, ahead, y);
        case 5: return tile<5, W, ALONE>(x, stride, w, depth, ahead, y);
        default: return tile<ROWS, W, ALONE>(x, stride, w, depth, ahead, y);
    }
}

// The outputs of one panel, from `output` on, for `rows` rows, at most BLOCK.
template <typename W>
void panel(const float *x, int64_t stride, const typename W::Weight *weights, const float *scales, const bfloat16 *bias,
           bfloat16 *y, int64_t rows, int64_t inputs, int64_t outputs, int64_t output) {
    float sums[BLOCK * PANEL];
    memset(sums, 0, rows * PANEL * sizeof(float));
    int64_t width = least(PANEL, outputs - output);
    for (int64_t k = 0; k < inputs; k += DEPTH) {
        int64_t depth = least(DEPTH, inputs - k);
        for (int64_t c = 0; c < width; c += COLUMNS) {
            const typename W::Weight *w[COLUMNS];  // those past the last output are read again, and not stored
            for (int one = 0; one < COLUMNS; one++) w[one] = weights + (output + least(c + one, width - 1)) * inputs + k;
            int64_t tiles = (rows + ROWS - 1) / ROWS;  // of sizes as even as can be: 16 rows are 5, 5 and 6
            int64_t next = sizeof(bfloat16) / sizeof(typename W::Weight);  // as many bytes away for both
            Ahead ahead = {next * COLUMNS * inputs, 0, tiles};
            for (int64_t r = 0; r < rows; ahead.turn++) {
                int64_t size = (rows - r) / (tiles - ahead.turn);
                auto one_tile = tiles == 1 ? tile_of<W, true> : tile_of<W, false>;
                one_tile(size, x + r * stride + k, stride, w, depth, ahead, sums + r * PANEL + c);
                r += size;
            }
        }
    }
    __mmask16 which = first(width);
    __m512 added = bias ? widened(_mm256_maskz_loadu_epi16(which, bias + output)) : _mm512_setzero_ps();
    __m512 scale = scales ? load(scales + output, which) : _mm512_set1_ps(1.0f);
    for (int64_t r = 0; r < rows; r++) {
        __m512 row = _mm512_fmadd_ps(_mm512_loadu_ps(sums + r * PANEL), scale, added);
        _mm256_mask_storeu_epi16(y + r * outputs + output, which, narrowed(row));
    }
}

inline int64_t stride_of(int64_t inputs) { return (inputs + STEP - 1) / STEP * STEP; }
inline int64_t panels_of(int64_t outputs) { return (outputs + PANEL - 1) / PANEL; }

// One row of x as tiles meet it, `stride_of(inputs)` floats.
template <typename W>
void widen(const bfloat16 *x, int64_t inputs, float *to) {
    for (int64_t k = 0; k < inputs; k += STEP) W::widen(x + k, to + k, first_of_step(inputs - k));
}

}  // namespace
