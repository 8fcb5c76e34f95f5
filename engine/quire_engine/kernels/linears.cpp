// Linear layers: y = x W^T + bias, for weights in bfloat16 and sums in float32.
//
// Weights stay as the checkpoint has them, [outputs, inputs]: nothing is packed, kept twice or waited for. A tile of
// their rows is multiplied with a tile of rows of x and summed across lanes at its end. A tile's weights come from
// memory once, and from the first-level cache for further rows of x.
//
// Two neighbouring weights are one 32-bit lane: its upper half is the odd one as a float, once the lower is cleared, and
// a shift gives the even one. x is widened to match: of each 32 inputs the 16 even ones first.

#include "lanes.h"

namespace {

constexpr int COLUMNS = 4;      // outputs of a tile
constexpr int ROWS = 6;         // of x, in a tile: more sums than these 24 would leave the registers
constexpr int PANEL = 16;       // outputs that are stored at once
constexpr int64_t STEP = 32;    // inputs at a time
constexpr int64_t DEPTH = 1024; // inputs of a tile: those of its rows stay in the first-level cache
constexpr int64_t BLOCK = 96;   // rows of x that stay in the second-level cache while all weights pass

constexpr int64_t WORTH_THREADS = 1 << 18;  // products: for fewer, waking another thread costs more than it saves

// The even and the odd ones of 32 inputs; what `which` leaves out is 0.
inline void widen(const bfloat16 *from, float *to, __mmask32 which) {
    __m512i pairs = _mm512_maskz_loadu_epi16(which, from);
    _mm512_storeu_ps(to, _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)));
    _mm512_storeu_ps(to + 16, _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000))));
}

inline __mmask32 first_pairs(int64_t count) { return count >= STEP ? 0xffffffff : (1u << count) - 1; }

template <int R>
inline void multiply(const float *x, int64_t stride, const __m512i *pairs, __m512 (*sums)[COLUMNS]) {
    for (int odd = 0; odd < 2; odd++) {
        __m512 weights[COLUMNS];
        for (int c = 0; c < COLUMNS; c++)
            weights[c] = _mm512_castsi512_ps(odd ? _mm512_and_si512(pairs[c], _mm512_set1_epi32((int)0xffff0000))
                                                 : _mm512_slli_epi32(pairs[c], 16));
        for (int r = 0; r < R; r++) {
            __m512 values = _mm512_loadu_ps(x + r * stride + 16 * odd);
            for (int c = 0; c < COLUMNS; c++) sums[r][c] = _mm512_fmadd_ps(values, weights[c], sums[r][c]);
        }
    }
}

// Adds the products of R rows of x and COLUMNS rows of weights, `w[c]`, over `depth` inputs to `y`. The weights of the
// tile that comes next are `ahead` of these: the processor does not foresee a row's end by itself.
template <int R>
void tile(const float *x, int64_t stride, const bfloat16 *const *w, int64_t depth, int64_t ahead, float *y) {
    __m512 sums[R][COLUMNS];
    __m512i pairs[COLUMNS];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < COLUMNS; c++) sums[r][c] = _mm512_setzero_ps();
    int64_t k = 0;
    for (; k + STEP <= depth; k += STEP) {
        for (int c = 0; c < COLUMNS; c++) {
            _mm_prefetch((const char *)(w[c] + k + ahead), _MM_HINT_T0);
            pairs[c] = _mm512_loadu_si512(w[c] + k);
        }
        multiply<R>(x + k, stride, pairs, sums);
    }
    if (k < depth) {
        for (int c = 0; c < COLUMNS; c++) pairs[c] = _mm512_maskz_loadu_epi16(first_pairs(depth - k), w[c] + k);
        multiply<R>(x + k, stride, pairs, sums);
    }
    for (int r = 0; r < R; r++) {
        __m128 more = lane_sums(sums[r][0], sums[r][1], sums[r][2], sums[r][3]);
        _mm_storeu_ps(y + r * PANEL, _mm_add_ps(_mm_loadu_ps(y + r * PANEL), more));
    }
}

typedef void (*Tile)(const float *, int64_t, const bfloat16 *const *, int64_t, int64_t, float *);
constexpr Tile TILES[ROWS + 1] = {nullptr, tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<6>};

// The outputs of one panel, from `output` on, for `rows` rows, at most BLOCK.
void panel(const float *x, int64_t stride, const bfloat16 *weights, const bfloat16 *bias, bfloat16 *y, int64_t rows,
           int64_t inputs, int64_t outputs, int64_t output) {
    float sums[BLOCK * PANEL];
    memset(sums, 0, rows * PANEL * sizeof(float));
    int64_t width = least(PANEL, outputs - output);
    for (int64_t k = 0; k < inputs; k += DEPTH) {
        int64_t depth = least(DEPTH, inputs - k);
        for (int64_t c = 0; c < width; c += COLUMNS) {
            const bfloat16 *w[COLUMNS];  // those past the last output are read again, and not stored
            for (int one = 0; one < COLUMNS; one++) w[one] = weights + (output + least(c + one, width - 1)) * inputs + k;
            int64_t tiles = (rows + ROWS - 1) / ROWS;  // of sizes as even as can be: 16 rows are 5, 5 and 6
            for (int64_t r = 0; r < rows; tiles--) {
                int64_t size = (rows - r) / tiles;
                int64_t ahead = r == 0 ? COLUMNS * inputs : 0;
                TILES[size](x + r * stride + k, stride, w, depth, ahead, sums + r * PANEL + c);
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

}  // namespace

extern "C" {

// Floats that `linear_bfloat16` needs room for.
int64_t linear_room(int64_t rows, int64_t inputs) { return least(rows, BLOCK) * ((inputs + STEP - 1) / STEP * STEP); }

// x [rows, inputs], weights [outputs, inputs], bias [outputs] or null -> y [rows, outputs], all contiguous.
void linear_bfloat16(const bfloat16 *x, const bfloat16 *weights, const bfloat16 *bias, bfloat16 *y, float *room,
                     int64_t rows, int64_t inputs, int64_t outputs, int threads) {
    int64_t stride = (inputs + STEP - 1) / STEP * STEP, panels = (outputs + PANEL - 1) / PANEL;
    for (int64_t from = 0; from < rows; from += BLOCK) {
        int64_t count = least(BLOCK, rows - from);
        for (int64_t r = 0; r < count; r++)
            for (int64_t k = 0; k < inputs; k += STEP)
                widen(x + (from + r) * inputs + k, room + r * stride + k, first_pairs(inputs - k));
#pragma omp parallel for num_threads(threads) schedule(static) if (count * inputs * outputs > WORTH_THREADS)
        for (int64_t one = 0; one < panels; one++)
            panel(room, stride, weights, bias, y + from * outputs, count, inputs, outputs, one * PANEL);
    }
}

}
