// Linear layers with weights in int8 by the processor's products of tiles (AMX). Rows of x are three digits, as in
// int8_linears.h; here no side has to be without signs.

#pragma once

#include "int8_linears.h"
#include "tiles.h"

namespace {

constexpr int64_t DIGIT_BLOCK = 128;  // rows of x whose digits stay in the second-level cache while weights pass

// Digits of rows of x, `ready` as `to_digits` leaves them, of which each 64 inputs are a piece a digit.
struct DigitTiles {
    const char *ready;
    int64_t inputs;
    Tiles tiles;

    DigitTiles(const char *ready, int64_t rows, int64_t inputs, void *start)
        : ready(ready), inputs(inputs), tiles{rows, digits_stride(inputs) / PIECE * DIGITS, (uint32_t *)start} {}

    void pack(int64_t i) const {
        const char *digits = ready + sizeof(Digits);
        tiles.pack(digits, digits_bytes(inputs), tiles.pieces * PIECE, i / tiles.pieces, i % tiles.pieces);
    }

    // What each row's sums are numbers of.
    __m512 units(int64_t tile) const {
        float units[SIDE] = {};
        for (int64_t r = 0; r < tiles.each && tile * tiles.each + r < tiles.rows; r++)
            units[r] = ((const Digits *)(ready + (tile * tiles.each + r) * digits_bytes(inputs)))->unit;
        return _mm512_loadu_ps(units);
    }
};

// Products of a panel with one tile of rows, of one thread.
class DigitSums {
   public:
    // To be called on each thread before `multiply`, for the rows that it is for.
    WITH_TILES static void begin(const Tiles &x) {
        int64_t rows[] = {SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, SIDE};
        int64_t columns[] = {x.each, x.each, x.each, x.each, x.each, x.each, SIDE, x.each};
        configure(rows, columns);
    }

    // The processor's tiles 0 to 5 are sums of each half and digit, 6 weights and 7 x.
    WITH_TILES void multiply(const Tiles &x, int64_t tile, const TilePanel &w, AheadOfTiles &ahead) {
        const bool in_place = w.is_whole();
        const int64_t line = 4 * x.each, row = in_place ? w.row : PIECE, pieces = x.pieces / DIGITS;
        const int64_t lines = SIDE * (tile + 1) / x.count - SIDE * tile / x.count;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        _tile_zero(4);
        _tile_zero(5);
        for (int64_t one = 0; one < pieces; one++) {
            const int64_t place = one % TILE_DEPTH;
            if (!in_place && place == 0) w.copy(one, least(TILE_DEPTH, pieces - one), copied);
            all_is_written();
            const char *near = copied + place * TILE_PANEL * PIECE;
            const uint32_t *high = x.at(tile, one * DIGITS), *middle = x.at(tile, one * DIGITS + 1), *low = x.at(tile, one * DIGITS + 2);
            ahead.read(lines);
            _tile_loadd(6, in_place ? w.half[0] + one * PIECE : near, row);
            _tile_loadd(7, high, line);
            _tile_dpbssd(0, 6, 7);
            _tile_loadd(7, middle, line);
            _tile_dpbssd(1, 6, 7);
            _tile_loadd(7, low, line);
            _tile_dpbssd(2, 6, 7);
            _tile_loadd(6, in_place ? w.half[1] + one * PIECE : near + SIDE * PIECE, row);
            _tile_dpbssd(5, 6, 7);
            _tile_loadd(7, high, line);
            _tile_dpbssd(3, 6, 7);
            _tile_loadd(7, middle, line);
            _tile_dpbssd(4, 6, 7);
        }
        _tile_stored(0, sums[0][0], 4 * SIDE);
        _tile_stored(1, sums[0][1], 4 * SIDE);
        _tile_stored(2, sums[0][2], 4 * SIDE);
        _tile_stored(3, sums[1][0], 4 * SIDE);
        _tile_stored(4, sums[1][1], 4 * SIDE);
        _tile_stored(5, sums[1][2], 4 * SIDE);
    }

    // Output `i` of one half of the panel, of 16 rows: sums times units times its scale, and its bias, which may be null.
    __m512 of(int half, int64_t i, __m512 units, const float *scales, const bfloat16 *bias) const {
        __m512 base = _mm512_set1_ps(256.0f), all = number(half, 0, i);
        all = _mm512_fmadd_ps(all, base, number(half, 1, i));
        all = _mm512_fmadd_ps(all, base, number(half, 2, i));
        __m512 added = bias ? widened(_mm256_set1_epi16(bias[i])) : _mm512_setzero_ps();
        return _mm512_fmadd_ps(_mm512_mul_ps(all, units), _mm512_set1_ps(scales[i]), added);
    }

   private:
    __m512 number(int half, int digit, int64_t i) const {
        return _mm512_cvtepi32_ps(_mm512_loadu_si512(sums[half][digit] + i * SIDE));
    }

    alignas(64) int32_t sums[2][DIGITS][SIDE * SIDE];
    alignas(64) char copied[TILE_DEPTH * TILE_PANEL * PIECE];
};

// As `tile_panel`.
inline void digit_panel(const DigitTiles &x, const int8_t *weights, const float *scales, const bfloat16 *bias,
                        bfloat16 *y, int64_t outputs, int64_t output, DigitSums &sums) {
    TilePanel panel = TilePanel::of(weights, x.inputs, outputs, output);
    AheadOfTiles ahead(panel);
    for (int64_t tile = 0, from = 0; tile < x.tiles.count; tile++, from += x.tiles.each) {
        sums.multiply(x.tiles, tile, panel, ahead);
        __m512 units = x.units(tile), turned[SIDE];
        for (int h = 0; h < 2 && panel.width[h]; h++) {
            int64_t at = output + h * SIDE;
            for (int64_t i = 0; i < SIDE; i++) {
                bool is_output = i < panel.width[h];
                turned[i] = is_output ? sums.of(h, i, units, scales + at, bias ? bias + at : nullptr) : _mm512_setzero_ps();
            }
            store_turned(turned, y + from * outputs + at, outputs, least(x.tiles.each, x.tiles.rows - from), panel.width[h]);
        }
    }
}

// As `gated_tile_panel`.
inline void gated_digit_panel(const DigitTiles &x, const int8_t *weights, const float *scales, const bfloat16 *bias,
                              bfloat16 *y, int64_t size, int64_t output, DigitSums &sums) {
    TilePanel panel = TilePanel::gated(weights, x.inputs, size, output);
    AheadOfTiles ahead(panel);
    const bfloat16 *added[] = {bias ? bias + output : nullptr, bias ? bias + size + output : nullptr};
    for (int64_t tile = 0, from = 0; tile < x.tiles.count; tile++, from += x.tiles.each) {
        sums.multiply(x.tiles, tile, panel, ahead);
        __m512 units = x.units(tile), turned[SIDE];
        for (int64_t i = 0; i < SIDE; i++) {
            __m512 gate = rounded(y, sums.of(0, i, units, scales + output, added[0]));
            turned[i] = gated(y, gate, rounded(y, sums.of(1, i, units, scales + size + output, added[1])));
        }
        store_turned(turned, y + from * size + output, size, least(x.tiles.each, x.tiles.rows - from), SIDE);
    }
}

}  // namespace
