// Attention's products by the processor's tiles (AMX): rows of queries with chunks of keys and values in bfloat16.
//
// Scores are K q^T, with keys where they are in their pages. A weight is two numbers in bfloat16, of which the second
// is what the first leaves out of it: values are multiplied with 16 of its bits.

#pragma once

#include "online_softmax.h"
#include "tile_outputs.h"

namespace {

// Where a row of keys or values is that 16 others follow, a slot apart.
template <typename T>
inline const T *of_page(const T *first, const int64_t *table, int64_t position, const Shape &shape) {
    int64_t page = position / shape.page;
    return first + (table[page] * shape.page + position - page * shape.page) * shape.kv_heads * shape.size;
}

class TileAttention {
   public:
    // Whether tokens of which each sequence has so many go this way. A token that decodes waits for memory alone unless
    // many query heads share a KV head, and tiles wait for it longer. All parts of a prompt go one way, large or small.
    static bool takes(const Shape &shape, int64_t tokens) {
        bool few = tokens == 1 && shape.heads / shape.kv_heads <= SIDE / 2;
        return shape.tiles && !few && shape.size % TILE_INPUTS == 0 && shape.page % SIDE == 0;
    }

    // As `attend`, for q [rows, size] in bfloat16.
    static void attend(const bfloat16 *q, int rows, const bfloat16 *keys, const bfloat16 *values, const int64_t *table,
                       int64_t from, int64_t to, const Bounds &bounds, const Shape &shape, Sums &sums) {
        alignas(64) uint32_t packed[TILE * WIDEST / 2];
        alignas(64) TileAttention own;
        Tiles queries = tiles_of(rows, shape.size, packed);
        for (int64_t i = 0; i < queries.count * queries.pieces; i++) queries.pack(q, shape.size, i);
        begin(queries.each);
        sums.begin(rows, queries.count * queries.each, shape.size);
        memset(own.weights, 0, sizeof(own.weights));
        from = from / SIDE * SIDE;
        if (from < to) read_ahead(keys, table, from, least(to, from + CHUNK), shape);
        for (int64_t start = from; start < to; start += CHUNK) {
            int64_t count = least(CHUNK, to - start), next = least(to, start + 2 * CHUNK);
            read_ahead(values, table, start, start + count, shape);
            read_ahead(keys, table, start + CHUNK, next, shape);
            own.score(queries, keys, table, start, count, shape);
            for (int r = 0; r < rows; r++) {
                int64_t first = bounds.from[r] - start, end = least(bounds.to[r], to) - start;
                weigh(own.scores + r * CHUNK, count, first, end, shape, sums, r);
                own.split(r, count);
            }
            own.pair_values(values, table, start, count, shape);
            own.add_values(queries, count, sums, shape.size);
        }
        TileSums::done();
    }

   private:
    // Tiles 0 and 1 are scores, 2 and 3 sums of values, 4 keys, 5 weights, 6 queries and 7 values.
    WITH_TILES static void begin(int64_t each) {
        int64_t rows[] = {SIDE, SIDE, each, each, SIDE, each, SIDE, SIDE};
        int64_t columns[] = {each, each, SIDE, SIDE, SIDE, SIDE, each, SIDE};
        configure(rows, columns);
    }

    static void read_ahead(const bfloat16 *first, const int64_t *table, int64_t from, int64_t to, const Shape &shape) {
        for (int64_t position = from; position < to; position += SIDE) {
            const bfloat16 *row = of_page(first, table, position, shape);
            for (int64_t i = 0; i < least(SIDE, to - position); i++, row += shape.kv_heads * shape.size)
                for (int64_t d = 0; d < shape.size; d += 32) _mm_prefetch((const char *)(row + d), _MM_HINT_T0);
        }
    }

    // scores [rows, CHUNK] of keys `start` to `start + count`, and of some behind them that are in the same page.
    WITH_TILES void score(const Tiles &queries, const bfloat16 *keys, const int64_t *table, int64_t start,
                          int64_t count, const Shape &shape) {
        const int64_t slot = 2 * shape.kv_heads * shape.size, line = 4 * queries.each;
        const bool two = queries.count > 1;
        alignas(64) float turned[2][SIDE * SIDE];
        for (int64_t k = 0; k < count; k += SIDE) {
            const bfloat16 *key = of_page(keys, table, start + k, shape);
            all_is_written();
            _tile_zero(0);
            _tile_zero(1);
            for (int64_t s = 0; s < queries.pieces; s++) {
                _tile_loadd(4, key + s * TILE_INPUTS, slot);
                _tile_loadd(6, queries.at(0, s), line);
                _tile_dpbf16ps(0, 4, 6);
                if (!two) continue;
                _tile_loadd(6, queries.at(1, s), line);
                _tile_dpbf16ps(1, 4, 6);
            }
            _tile_stored(0, turned[0], 4 * SIDE);
            if (two) _tile_stored(1, turned[1], 4 * SIDE);
            for (int64_t tile = 0; tile < queries.count; tile++) {
                __m512 lanes[SIDE];
                for (int i = 0; i < SIDE; i++)
                    lanes[i] = _mm512_maskz_loadu_ps(first(queries.each), turned[tile] + i * SIDE);
                transpose(lanes);
                float *to = scores + tile * queries.each * CHUNK + k;
                for (int64_t r = 0; r < queries.each; r++) _mm512_storeu_ps(to + r * CHUNK, lanes[r]);
            }
        }
    }

    // Vectors behind the last of `count` weights are 0, as are values there.
    WITH_BFLOAT16 void split(int64_t row, int64_t count) {
        const __m512i upper = _mm512_set1_epi32((int)0xffff0000);
        for (int64_t k = 0; k < count; k += 32) {
            __m512 high[2], low[2];
            for (int i = 0; i < 2; i++) {
                int64_t at = k + 16 * i;
                __m512 weight = at < count ? _mm512_loadu_ps(scores + row * CHUNK + at) : _mm512_setzero_ps();
                high[i] = _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(weight), upper));
                low[i] = _mm512_sub_ps(weight, high[i]);
            }
            _mm512_storeu_si512(weights[0][row] + k, narrowed(high[0], high[1]));
            _mm512_storeu_si512(weights[1][row] + k, narrowed(low[0], low[1]));
        }
    }

    // Values of two neighbouring keys side by side: pairs [steps, size / 16, 16 pairs, 16 features]. Those behind the
    // last key are 0, whatever is there: they have no weight, and would be no numbers where they are none.
    void pair_values(const bfloat16 *values, const int64_t *table, int64_t start, int64_t count, const Shape &shape) {
        const int64_t slot = shape.kv_heads * shape.size, blocks = shape.size / SIDE;
        for (int64_t k = 0; k < count; k += SIDE) {
            const bfloat16 *value = of_page(values, table, start + k, shape);
            for (int64_t i = 0; i < SIDE; i += 2, value += 2 * slot) {
                int64_t pair = (k + i) / 2;
                uint32_t *to = pairs + (pair / SIDE * blocks * SIDE + pair % SIDE) * SIDE;
                __mmask16 is_first = first(k + i < count ? 16 : 0), is_second = first(k + i + 1 < count ? 16 : 0);
                for (int64_t b = 0; b < blocks; b++) {
                    __m512i one = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(is_first, value + b * SIDE));
                    __m512i other = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(is_second, value + slot + b * SIDE));
                    _mm512_store_si512(to + b * SIDE * SIDE, _mm512_or_si512(one, _mm512_slli_epi32(other, 16)));
                }
            }
        }
        if (count % TILE_INPUTS == 0 || count % TILE_INPUTS > SIDE) return;
        for (int64_t b = 0; b < blocks; b++)  // the other half of the last step
            memset(pairs + ((count / TILE_INPUTS * blocks + b) * SIDE + SIDE / 2) * SIDE, 0, SIDE / 2 * SIDE * 4);
    }

    WITH_TILES void add_values(const Tiles &queries, int64_t count, Sums &sums, int64_t size) {
        const int64_t blocks = size / SIDE, row = 4 * size;
        const bool two = queries.count > 1;
        all_is_written();
        for (int64_t b = 0; b < blocks; b++) {
            float *mine = sums.values + b * SIDE, *more = mine + queries.each * size;
            _tile_loadd(2, mine, row);
            if (two) _tile_loadd(3, more, row);
            for (int64_t k = 0; k < count; k += TILE_INPUTS) {
                _tile_loadd(7, pairs + (k / TILE_INPUTS * blocks + b) * SIDE * SIDE, 4 * SIDE);
                for (int half = 0; half < 2; half++) {
                    _tile_loadd(5, weights[half][0] + k, 2 * CHUNK);
                    _tile_dpbf16ps(2, 5, 7);
                    if (!two) continue;
                    _tile_loadd(5, weights[half][queries.each] + k, 2 * CHUNK);
                    _tile_dpbf16ps(3, 5, 7);
                }
            }
            _tile_stored(2, mine, row);
            if (two) _tile_stored(3, more, row);
        }
    }

    float scores[TILE * CHUNK];
    bfloat16 weights[2][TILE][CHUNK];
    uint32_t pairs[CHUNK / 2 * WIDEST];
};

}  // namespace
