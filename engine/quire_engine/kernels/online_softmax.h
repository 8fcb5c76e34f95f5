// What attention keeps of a tile of rows while it goes over their keys, chunk by chunk: the greatest score, the sum of
// weights and the weighted values (Milakov and Gimelshein, "Online normalizer calculation for softmax").

#pragma once

#include "lanes.h"

namespace {

constexpr int TILE = 32;                    // rows
constexpr int CHUNK = 64;                   // keys
constexpr int64_t WIDEST = 256;             // features of a head
constexpr int64_t PARTS = 8;                // of the keys of one token, at most
constexpr int64_t PART = 512;               // keys, at least

struct Shape {
    int64_t heads, kv_heads, size, page;  // features of a head; tokens of a page
    int64_t window;                       // latest positions that a token sees; 0 for all
    float scale, softcap;                 // softcap 0 for none
    bool tiles;                           // whether bfloat16 is multiplied by tiles
};

// What a tile of rows has summed up so far.
struct Sums {
    alignas(64) float values[TILE * WIDEST];
    float greatest[TILE], weights[TILE];

    // Of `rows` rows, with room for `most_rows` of `size` features.
    void begin(int64_t rows, int64_t most_rows, int64_t size) {
        for (int64_t r = 0; r < rows; r++) greatest[r] = -__builtin_inff(), weights[r] = 0;
        memset(values, 0, most_rows * size * sizeof(float));
    }
};

struct Bounds {
    int64_t from[TILE], to[TILE];  // the keys that each row sees
};

inline __m512 capped(__m512 scores, float softcap) {  // softcap * tanh(scores / softcap)
    __m512 twice = exponential(_mm512_mul_ps(scores, _mm512_set1_ps(2.0f / softcap)));
    __m512 one = _mm512_set1_ps(1.0f);
    __m512 rest = _mm512_div_ps(_mm512_set1_ps(2.0f), _mm512_add_ps(twice, one));
    return _mm512_mul_ps(_mm512_sub_ps(one, rest), _mm512_set1_ps(softcap));
}

// Scores of one row and 16 keys a vector become weights, of which those of keys outside `from` .. `to` are 0; the row's
// sums follow.
template <int VECTORS>
void weigh(float *scores, int64_t from, int64_t to, const Shape &shape, Sums &sums, int r) {
    const __m512 nothing = _mm512_set1_ps(-__builtin_inff());
    __m512 score[VECTORS], greatest = nothing;
    __mmask16 seen[VECTORS];
    for (int v = 0; v < VECTORS; v++) {
        seen[v] = first(most(0, to - 16 * v)) & ~first(most(0, from - 16 * v));
        score[v] = _mm512_mul_ps(_mm512_loadu_ps(scores + 16 * v), _mm512_set1_ps(shape.scale));
        if (shape.softcap > 0) score[v] = capped(score[v], shape.softcap);
        greatest = _mm512_mask_max_ps(greatest, seen[v], greatest, score[v]);
    }
    float before = sums.greatest[r], now = _mm512_reduce_max_ps(greatest);
    if (!(now > before)) now = before;
    // Scores that are all -inf so far have no weight; less by -inf they would be no numbers.
    __m512 total = _mm512_setzero_ps(), base = _mm512_set1_ps(now == -__builtin_inff() ? 0 : now);
    for (int v = 0; v < VECTORS; v++) {
        __m512 weight = _mm512_maskz_mov_ps(seen[v], exponential(_mm512_sub_ps(score[v], base)));
        total = _mm512_add_ps(total, weight);
        _mm512_storeu_ps(scores + 16 * v, weight);
    }
    if (now != before && before != -__builtin_inff()) {  // else there is nothing yet
        __m512 less = exponential(_mm512_set1_ps(before - now));
        sums.weights[r] *= _mm512_cvtss_f32(less);
        float *values = sums.values + r * shape.size;
        for (int64_t d = 0; d < shape.size; d += 16)
            _mm512_storeu_ps(values + d, _mm512_mul_ps(_mm512_loadu_ps(values + d), less));
    }
    sums.weights[r] += _mm512_reduce_add_ps(total);
    sums.greatest[r] = now;
}

// The same for the first `count` keys of a chunk. What is behind them in their vector is not seen.
inline void weigh(float *scores, int64_t count, int64_t from, int64_t to, const Shape &shape, Sums &sums, int r) {
    switch ((count + 15) / 16) {
        case 1: return weigh<1>(scores, from, to, shape, sums, r);
        case 2: return weigh<2>(scores, from, to, shape, sums, r);
        case 3: return weigh<3>(scores, from, to, shape, sums, r);
        default: return weigh<4>(scores, from, to, shape, sums, r);
    }
}

}  // namespace
