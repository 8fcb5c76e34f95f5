// Linear layers as calls of their own.

#include <sys/syscall.h>
#include <unistd.h>

#include "int8_tiles.h"
#include "linears.h"

namespace {

constexpr int64_t WORTH_THREADS = 1 << 18;  // products: for fewer, waking another thread costs more than it saves

// Has blocks of rows made ready, one row after the other, and multiplied, by panels of outputs.
template <typename Ready, typename Panel>
void by_blocks(int64_t rows, int64_t inputs, int64_t outputs, int threads, Ready ready, Panel panel) {
    int64_t panels = panels_of(outputs);
    for (int64_t from = 0; from < rows; from += BLOCK) {
        int64_t count = least(BLOCK, rows - from);
        for (int64_t r = 0; r < count; r++) ready(from + r, r);
#pragma omp parallel for num_threads(threads) schedule(static) if (count * inputs * outputs > WORTH_THREADS)
        for (int64_t one = 0; one < panels; one++) panel(from, count, one * PANEL);
    }
}

}  // namespace

extern "C" {

// Bytes that `linear_*` needs room for, at an address that 64 divides.
int64_t linear_room(int64_t rows, int64_t inputs) { return least(rows, BLOCK) * row_bytes(inputs); }

// Inputs that `linear_int8` takes at most.
int64_t linear_int8_most() { return MOST_INPUTS; }

// x [rows, inputs], weights [outputs, inputs], bias [outputs] or null -> y [rows, outputs], all contiguous but the
// weights, of which an output's are `pitch` elements from the next one's.
void linear_bfloat16(const bfloat16 *x, const bfloat16 *weights, int64_t pitch, const bfloat16 *bias, bfloat16 *y,
                     float *room, int64_t rows, int64_t inputs, int64_t outputs, int threads) {
    int64_t stride = stride_of(inputs);
    by_blocks(
        rows, inputs, outputs, threads,
        [&](int64_t from, int64_t to) { widen(x + from * inputs, inputs, room + to * stride); },
        [&](int64_t from, int64_t count, int64_t output) {
            panel(room, stride, {weights, inputs, outputs, pitch}, bias, y + from * outputs, count, output);
        });
}

// Whether the kernel lets this process use the processor's tiles, which it has to be asked for.
int allow_tiles() {
    constexpr int REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return COMPILED_WITH_TILES && syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}

// As `linear_room` and `linear_bfloat16`, by tiles.
int64_t linear_tiles_room(int64_t rows, int64_t inputs) {
    return tiles_of(least(rows, tile_block(inputs)), inputs, nullptr).bytes();
}

void linear_tiles(const bfloat16 *x, const bfloat16 *weights, int64_t pitch, const bfloat16 *bias, bfloat16 *y,
                  void *room, int64_t rows, int64_t inputs, int64_t outputs, int threads) {
    for (int64_t from = 0; from < rows; from += tile_block(inputs)) {
        Tiles tiles = tiles_of(least(tile_block(inputs), rows - from), inputs, room);
        int64_t parts = tiles.count * tiles.pieces;
        TilePanels panels = {weights, 2 * inputs, 2 * pitch, outputs};
#pragma omp parallel num_threads(threads) if (tiles.rows * inputs * outputs > WORTH_THREADS)
        {
#pragma omp for schedule(static)
            for (int64_t i = 0; i < parts; i++)
                tiles.pack(x + from * inputs, inputs, i);
            TileSums sums;
            sums.begin(tiles);
#pragma omp for schedule(static)
            for (int64_t one = 0; one < panels.count(); one++)
                tile_panel(tiles, panels[one], panels.behind(one), bias, y + from * outputs, outputs, sums);
            sums.done();
        }
    }
}

// As `linear_room` and `linear_int8`, by tiles.
int64_t linear_int8_tiles_room(int64_t rows, int64_t inputs) {
    int64_t block = least(rows, DIGIT_BLOCK);
    return block * digits_bytes(inputs) + DigitTiles(nullptr, block, inputs, nullptr).tiles.bytes();
}

void linear_int8_tiles(const bfloat16 *x, const int8_t *weights, const float *scales, const bfloat16 *bias, bfloat16 *y,
                       char *room, int64_t rows, int64_t inputs, int64_t outputs, int threads) {
    int64_t each = digits_bytes(inputs);
    for (int64_t from = 0; from < rows; from += DIGIT_BLOCK) {
        int64_t count = least(DIGIT_BLOCK, rows - from);
        DigitTiles digits(room, count, inputs, room + count * each);
        int64_t parts = digits.tiles.count * digits.tiles.pieces;
        TilePanels panels = {weights, inputs, inputs, outputs};
#pragma omp parallel num_threads(threads) if (count * inputs * outputs > WORTH_THREADS)
        {
#pragma omp for schedule(static)
            for (int64_t r = 0; r < count; r++) to_digits(x + (from + r) * inputs, inputs, (Digits *)(room + r * each));
#pragma omp for schedule(static)
            for (int64_t i = 0; i < parts; i++) digits.pack(i);
            TileSums sums;
            sums.begin(digits.tiles);
#pragma omp for schedule(static)
            for (int64_t one = 0; one < panels.count(); one++) {
                bfloat16 *to = y + from * outputs;
                digit_panel(digits, panels[one], panels.behind(one), scales, bias, to, outputs, sums);
            }
            sums.done();
        }
    }
}

// As above, for weights int8 x scales [outputs].
void linear_int8(const bfloat16 *x, const int8_t *weights, const float *scales, const bfloat16 *bias, bfloat16 *y,
                 char *room, int64_t rows, int64_t inputs, int64_t outputs, int threads) {
    int64_t each = digits_bytes(inputs);
    by_blocks(
        rows, inputs, outputs, threads,
        [&](int64_t from, int64_t to) { to_digits(x + from * inputs, inputs, (Digits *)(room + to * each)); },
        [&](int64_t from, int64_t count, int64_t output) {
            byte_panel(room, weights, scales, bias, y + from * outputs, count, inputs, outputs, output);
        });
}
}
