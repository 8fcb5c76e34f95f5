// What becomes of a panel's sums: rounded, through the gates, and turned back, or packed for the linear behind them.

#pragma once

#include "tiles.h"

namespace {

// Thirty-two numbers in bfloat16, to nearest, ties to even: those of `low` come first. Denormals become 0.
WITH_BFLOAT16 INLINED __m512i narrowed(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

// Where to find each of 32 numbers.
struct Order {
    alignas(64) uint16_t from[32] = {};

    INLINED __m512i operator()(__m512i numbers) const {
        return _mm512_permutexvar_epi16(_mm512_load_si512(from), numbers);
    }
};

constexpr Order two_by_two() {  // what has its first and its second half beside each other
    Order order;
    for (int i = 0; i < 32; i++) order.from[i] = 16 * (i % 2) + i / 2;
    return order;
}

constexpr Order evens_first() {  // as `narrowed(evens, odds)` leaves them
    Order order;
    for (int i = 0; i < 32; i++) order.from[i] = 2 * (i % 16) + i / 16;
    return order;
}

constexpr Order two_by_two_again() {  // the same as `two_by_two`, of what was put `evens_first` twice
    Order order;
    for (int i = 0; i < 32; i++) {
        int at = 16 * (i % 2) + i / 2;
        for (int turn = 0; turn < 2; turn++) at = at / 2 + 16 * (at % 2);
        order.from[i] = at;
    }
    return order;
}

constexpr Order TWO_BY_TWO = two_by_two(), EVENS_FIRST = evens_first(), TWO_BY_TWO_AGAIN = two_by_two_again();

// Of two neighbouring outputs, each with 16 rows of x, a lane of both in bfloat16 for each row.
WITH_BFLOAT16 INLINED __m512i paired(__m512 first, __m512 second) { return TWO_BY_TWO(narrowed(first, second)); }

// silu(gate) * up of two neighbouring outputs, paired: as `silu_and_mul`, to the last bit.
WITH_BFLOAT16 INLINED __m512i gated_pair(const __m512 *gates, const __m512 *ups) {
    __m512i gate = narrowed(gates[0], gates[1]), up = EVENS_FIRST(narrowed(ups[0], ups[1]));
    __m512i factor = narrowed(silu(evens(gate)), silu(odds(gate)));
    __m512 even = _mm512_mul_ps(evens(factor), evens(up)), odd = _mm512_mul_ps(odds(factor), odds(up));
    return TWO_BY_TWO_AGAIN(narrowed(even, odd));
}

// Writes `width` of 16 outputs, paired, each with `rows` rows of x, to the rows of y, `stride` elements apart.
INLINED void store_turned(const __m512i *pairs, bfloat16 *y, int64_t stride, int64_t rows, int64_t width) {
    __m512i fours[8], all[8];
    for (int i = 0; i < 8; i += 2) {
        fours[i] = _mm512_unpacklo_epi32(pairs[i], pairs[i + 1]);
        fours[i + 1] = _mm512_unpackhi_epi32(pairs[i], pairs[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            all[i + 2 * j] = _mm512_unpacklo_epi64(fours[i + j], fours[i + 2 + j]);
            all[i + 2 * j + 1] = _mm512_unpackhi_epi64(fours[i + j], fours[i + 2 + j]);
        }
    __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    __mmask16 which = first(width);
    for (int64_t j = 0; j < 4; j++) {  // rows j, 4 + j, 8 + j and 12 + j
        for (int64_t i = 0; i < 2; i++) {
            __m512i two = _mm512_permutex2var_epi64(all[j], i ? high : low, all[4 + j]);
            int64_t row = 8 * i + j;
            bfloat16 *to = y + row * stride;
            if (row < rows) _mm256_mask_storeu_epi16(to, which, _mm512_castsi512_si256(two));
            if (row + 4 < rows) _mm256_mask_storeu_epi16(to + 4 * stride, which, _mm512_extracti64x4_epi64(two, 1));
        }
    }
}

// Writes 16 outputs from `from` on, paired, each with the rows of a tile, as inputs of what is multiplied next: nothing
// is turned.
INLINED void store_packed(const __m512i *pairs, const Tiles &to, int64_t tile, int64_t from) {
    uint32_t *lane = to.at(tile, from / TILE_INPUTS) + from % TILE_INPUTS / 2 * to.each;
    for (int i = 0; i < 8; i++, lane += to.each) _mm512_mask_storeu_epi32(lane, first(to.each), pairs[i]);
}

// Output `i`, with its bias [outputs], which may be null.
inline __m512 with_bias(const float *sums, const bfloat16 *bias, int64_t i) {
    __m512 sum = _mm512_loadu_ps(sums + i * SIDE);
    return bias ? _mm512_add_ps(sum, widened(_mm256_set1_epi16(bias[i]))) : sum;
}

// y [rows, outputs], the outputs of a panel, of x [rows, inputs]. `bias` [outputs] may be null.
WITH_BFLOAT16 inline void tile_panel(const Tiles &x, const TilePanel &w, const TilePanel &next, const bfloat16 *bias,
                                     bfloat16 *y, int64_t outputs, TileSums &sums) {
    sums.multiply(x, w, next);
    for (int64_t tile = 0, from = 0; tile < x.count; tile++, from += x.each)
        for (int h = 0; h < 2 && w.width[h]; h++) {
            int64_t at = w.output + h * SIDE;
            auto one = [&](int64_t i) {
                return with_bias(sums.of(tile, h), bias && i < w.width[h] ? bias + at : nullptr, i);
            };
            __m512i pairs[SIDE / 2];
            for (int64_t i = 0; i < SIDE; i += 2) pairs[i / 2] = paired(one(i), one(i + 1));
            store_turned(pairs, y + from * outputs + at, outputs, least(x.each, x.rows - from), w.width[h]);
        }
}

// silu(gate) * up of a panel with gates, of which there are `size` in all, for each tile of x: keep(tile, pairs) has
// 16 outputs, paired, each with 16 rows. As `tile_panel` and `silu_and_mul` behind it, to the last bit.
template <typename F>
WITH_BFLOAT16 inline void gated_tile_panel(const Tiles &x, const TilePanel &w, const TilePanel &next,
                                           const bfloat16 *bias, int64_t size, TileSums &sums, F keep) {
    sums.multiply(x, w, next);
    const bfloat16 *added[] = {bias ? bias + w.output : nullptr, bias ? bias + size + w.output : nullptr};
    for (int64_t tile = 0; tile < x.count; tile++) {
        __m512i pairs[SIDE / 2];
        for (int64_t i = 0; i < SIDE; i += 2) {
            __m512 both[2][2];
            for (int h = 0; h < 2; h++)
                for (int64_t j = 0; j < 2; j++) both[h][j] = with_bias(sums.of(tile, h), added[h], i + j);
            pairs[i / 2] = gated_pair(both[0], both[1]);
        }
        keep(tile, pairs);
    }
}

}  // namespace
