// Linear layers with weights in int8 by the processor's products of tiles (AMX). Rows of x are three digits, as in
// int8_linears.h, and each digit a row of a tile; here no side has to be without signs.

#pragma once

#include "int8_linears.h"
#include "tile_outputs.h"

namespace {

constexpr int64_t DIGIT_BLOCK = 128;        // rows of x whose digits stay in the second-level cache while weights pass
constexpr int64_t MOST_IN_TILE = SIDE / DIGITS;  // rows of x

// Rows of x, `ready` as `to_digits` leaves them: of each 64 inputs a digit is a piece.
struct DigitTiles {
    const char *ready;
    int64_t rows, inputs;
    int64_t each;  // rows of a tile
    Tiles tiles;   // whose own rows are digits

    DigitTiles(const char *ready, int64_t rows, int64_t inputs, void *start)
        : ready(ready), rows(rows), inputs(inputs) {
        int64_t count = most(1, (rows + MOST_IN_TILE - 1) / MOST_IN_TILE);
        each = (rows + count - 1) / count;
        tiles = {rows * DIGITS, digits_stride(inputs) / PIECE, (uint32_t *)start, count, each * DIGITS};
    }

    const Digits *row(int64_t r) const { return (const Digits *)(ready + r * digits_bytes(inputs)); }

    void pack(int64_t i) const {
        tiles.pack(i / tiles.pieces, i % tiles.pieces, [this](int64_t digit, int64_t one) {
            return _mm512_load_si512(row(digit / DIGITS)->first() + (one * DIGITS + digit % DIGITS) * PIECE);
        });
    }

    // What the sums of each row of a tile are numbers of.
    __m512 units(int64_t tile) const {
        float units[SIDE] = {};
        for (int64_t r = 0; r < each && tile * each + r < rows; r++) units[r] = row(tile * each + r)->unit;
        return _mm512_loadu_ps(units);
    }
};

// Of an output, its digits' sums of all rows of a tile: of the rows themselves, times units and scale, and its bias,
// which may be null.
inline __m512 of_digits(const float *sums, __m512 units, float scale, const bfloat16 *bias) {
    const __m512i one = _mm512_set1_epi32(1);
    const __m512i highest = _mm512_setr_epi32(0, 3, 6, 9, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    const __m512i middle = _mm512_add_epi32(highest, one), lowest = _mm512_add_epi32(middle, one);
    __m512 base = _mm512_set1_ps(256.0f), digits = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums));
    __m512 all = _mm512_permutexvar_ps(highest, digits);
    all = _mm512_fmadd_ps(all, base, _mm512_permutexvar_ps(middle, digits));
    all = _mm512_fmadd_ps(all, base, _mm512_permutexvar_ps(lowest, digits));
    __m512 added = bias ? widened(_mm256_set1_epi16(*bias)) : _mm512_setzero_ps();
    return _mm512_fmadd_ps(_mm512_mul_ps(all, units), _mm512_set1_ps(scale), added);
}

// As `tile_panel`.
WITH_BFLOAT16 inline void digit_panel(const DigitTiles &x, const TilePanel &w, const TilePanel &next,
                                      const float *scales, const bfloat16 *bias, bfloat16 *y, int64_t outputs,
                                      TileSums &sums) {
    sums.multiply<true>(x.tiles, w, next);
    for (int64_t tile = 0, from = 0; tile < x.tiles.count; tile++, from += x.each) {
        __m512 units = x.units(tile);
        for (int h = 0; h < 2 && w.width[h]; h++) {
            int64_t at = w.output + h * SIDE;
            auto one = [&](int64_t i) {
                int64_t own = at + least(i, w.width[h] - 1);  // those past the last output are not stored
                return of_digits(sums.of(tile, h) + i * SIDE, units, scales[own], bias ? bias + own : nullptr);
            };
            __m512i pairs[SIDE / 2];
            for (int64_t i = 0; i < SIDE; i += 2) pairs[i / 2] = paired(one(i), one(i + 1));
            store_turned(pairs, y + from * outputs + at, outputs, least(x.each, x.rows - from), w.width[h]);
        }
    }
}

// As `gated_tile_panel`.
WITH_BFLOAT16 inline void gated_digit_panel(const DigitTiles &x, const TilePanel &w, const TilePanel &next,
                                            const float *scales, const bfloat16 *bias, bfloat16 *y, int64_t size,
                                            TileSums &sums) {
    sums.multiply<true>(x.tiles, w, next);
    for (int64_t tile = 0, from = 0; tile < x.tiles.count; tile++, from += x.each) {
        __m512 units = x.units(tile);
        __m512i pairs[SIDE / 2];
        for (int64_t i = 0; i < SIDE; i += 2) {
            __m512 both[2][2];
            for (int h = 0; h < 2; h++)
                for (int64_t j = 0; j < 2; j++) {
                    int64_t own = w.output + h * size + i + j;
                    const float *digits = sums.of(tile, h) + (i + j) * SIDE;
                    both[h][j] = of_digits(digits, units, scales[own], bias ? bias + own : nullptr);
                }
            pairs[i / 2] = gated_pair(both[0], both[1]);
        }
        store_turned(pairs, y + from * size + w.output, size, least(x.each, x.rows - from), SIDE);
    }
}

}  // namespace
