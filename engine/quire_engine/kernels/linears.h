// Linear layers: y = x W^T + bias, for weights in bfloat16 and sums in float32. For int8 see int8_linears.h.
//
// Weights stay as the checkpoint has them, [outputs, inputs], but that rows may lie apart: nothing is packed, kept
// twice or waited for. A tile of their rows is multiplied with a tile of rows of x and summed across lanes at its end.
// A tile's weights come from memory once, and from the first-level cache for further rows of x.
//
// Two neighbouring weights are one 32-bit lane: its upper half is the odd one as a float, once the lower is cleared,
// and a shift gives the even one. x is widened to match: of each 32 inputs the 16 even ones first.

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

template <int R>
INLINED void multiply(const float *x, int64_t stride, const __m512i *loaded, __m512 (*sums)[COLUMNS]) {
    for (int half = 0; half < 2; half++) {
        __m512 weights[COLUMNS];
        for (int c = 0; c < COLUMNS; c++) weights[c] = half ? odds(loaded[c]) : evens(loaded[c]);
        for (int r = 0; r < R; r++) {
            __m512 values = _mm512_loadu_ps(x + r * stride + 16 * half);
            for (int c = 0; c < COLUMNS; c++) sums[r][c] = _mm512_fmadd_ps(values, weights[c], sums[r][c]);
        }
    }
}

// What a tile reads ahead of its use, of the weights that come next, `ahead` of its own: the processor does not foresee
// a row's end by itself. The tiles of one panel take turns at it, so that memory is read all the while.
struct Ahead {
    int64_t distance;  // elements
    int64_t turn, turns;
};

// Adds the products of R rows of x and COLUMNS rows of weights, `w[c]`, over `depth` inputs to `y`.
template <int R, bool ALONE>
void tile(const float *x, int64_t stride, const bfloat16 *const *w, int64_t depth, Ahead ahead, float *y) {
    __m512 sums[R][COLUMNS];
    __m512i loaded[COLUMNS];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < COLUMNS; c++) sums[r][c] = _mm512_setzero_ps();
    int64_t k = 0, row = ahead.turn;
    for (; k + STEP <= depth; k += STEP) {
        if (ALONE) {
            for (int c = 0; c < COLUMNS; c++) _mm_prefetch((const char *)(w[c] + k + ahead.distance), _MM_HINT_T0);
        } else {
            for (int twice = 0; twice < 2; twice++)
                if (row < COLUMNS) {
                    _mm_prefetch((const char *)(w[row] + k + ahead.distance), _MM_HINT_T0);
                    row += ahead.turns;
                }
            row -= COLUMNS;
        }
        for (int c = 0; c < COLUMNS; c++) loaded[c] = _mm512_loadu_si512(w[c] + k);
        multiply<R>(x + k, stride, loaded, sums);
    }
    if (k < depth) {
        for (int c = 0; c < COLUMNS; c++) loaded[c] = _mm512_maskz_loadu_epi16(first_of_step(depth - k), w[c] + k);
        multiply<R>(x + k, stride, loaded, sums);
    }
    for (int r = 0; r < R; r++) {
        __m128 more = lane_sums(sums[r][0], sums[r][1], sums[r][2], sums[r][3]);
        _mm_storeu_ps(y + r * PANEL, _mm_add_ps(_mm_loadu_ps(y + r * PANEL), more));
    }
}

template <bool ALONE>
void tile_of(int64_t rows, const float *x, int64_t stride, const bfloat16 *const *w, int64_t depth,
             Ahead ahead, float *y) {
    switch (rows) {
        case 1: return tile<1, ALONE>(x, stride, w, depth, ahead, y);
        case 2: return tile<2, ALONE>(x, stride, w, depth, ahead, y);
        case 3: return tile<3, ALONE>(x, stride, w, depth, ahead, y);
        case 4: return tile<4, ALONE>(x, stride, w, depth, ahead, y);
        case 5: return tile<5, ALONE>(x, stride, w, depth, ahead, y);
        default: return tile<ROWS, ALONE>(x, stride, w, depth, ahead, y);
    }
}

// Weights [outputs, inputs], `pitch` elements apart.
struct Weights {
    const bfloat16 *start;
    int64_t inputs, outputs, pitch;
};

// The outputs of one panel, from `output` on, for `rows` rows, at most BLOCK.
inline void panel(const float *x, int64_t stride, const Weights &weights, const bfloat16 *bias, bfloat16 *y,
                  int64_t rows, int64_t output) {
    const int64_t inputs = weights.inputs, outputs = weights.outputs, pitch = weights.pitch;
    float sums[BLOCK * PANEL];
    memset(sums, 0, rows * PANEL * sizeof(float));
    int64_t width = least(PANEL, outputs - output);
    for (int64_t k = 0; k < inputs; k += DEPTH) {
        int64_t depth = least(DEPTH, inputs - k);
        for (int64_t c = 0; c < width; c += COLUMNS) {
            const bfloat16 *w[COLUMNS];  // those past the last output are read again, and not stored
            for (int one = 0; one < COLUMNS; one++)
                w[one] = weights.start + (output + least(c + one, width - 1)) * pitch + k;
            int64_t tiles = (rows + ROWS - 1) / ROWS;  // of sizes as even as can be: 16 rows are 5, 5 and 6
            Ahead ahead = {COLUMNS * pitch, 0, tiles};
            for (int64_t r = 0; r < rows; ahead.turn++) {
                int64_t size = (rows - r) / (tiles - ahead.turn);
                auto one_tile = tiles == 1 ? tile_of<true> : tile_of<false>;
                one_tile(size, x + r * stride + k, stride, w, depth, ahead, sums + r * PANEL + c);
                r += size;
            }
        }
    }
    __mmask16 which = first(width);
    __m512 added = bias ? widened(_mm256_maskz_loadu_epi16(which, bias + output)) : _mm512_setzero_ps();
    for (int64_t r = 0; r < rows; r++) {
        __m512 row = _mm512_add_ps(_mm512_loadu_ps(sums + r * PANEL), added);
        _mm256_mask_storeu_epi16(y + r * outputs + output, which, narrowed(row));
    }
}

inline int64_t stride_of(int64_t inputs) { return (inputs + STEP - 1) / STEP * STEP; }
inline int64_t panels_of(int64_t outputs) { return (outputs + PANEL - 1) / PANEL; }

// One row of x as tiles meet it, `stride_of(inputs)` floats.
inline void widen(const bfloat16 *x, int64_t inputs, float *to) {
    for (int64_t k = 0; k < inputs; k += STEP) {
        __m512i pairs = _mm512_maskz_loadu_epi16(first_of_step(inputs - k), x + k);
        for (int odd = 0; odd < 2; odd++) _mm512_storeu_ps(to + k + 16 * odd, odd ? odds(pairs) : evens(pairs));
    }
}

}  // namespace
