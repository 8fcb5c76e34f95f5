// Linear layers as calls of their own.

#include "linears.h"

namespace {

constexpr int64_t WORTH_THREADS = 1 << 18;  // products: for fewer, waking another thread costs more than it saves

template <typename W>
void linear(const bfloat16 *x, const typename W::Weight *weights, const float *scales, const bfloat16 *bias, bfloat16 *y,
            float *room, int64_t rows, int64_t inputs, int64_t outputs, int threads) {
    int64_t stride = stride_of(inputs), panels = panels_of(outputs);
    for (int64_t from = 0; from < rows; from += BLOCK) {
        int64_t count = least(BLOCK, rows - from);
        for (int64_t r = 0; r < count; r++) widen<W>(x + (from + r) * inputs, inputs, room + r * stride);
#pragma omp parallel for num_threads(threads) schedule(static) if (count * inputs * outputs > WORTH_THREADS)
        for (int64_t one = 0; one < panels; one++)
            panel<W>(room, stride, weights, scales, bias, y + from * outputs, count, inputs, outputs, one * PANEL);
    }
}

}  // namespace

extern "C" {

// Floats that `linear_*` needs room for.
int64_t linear_room(int64_t rows, int64_t inputs) { return least(rows, BLOCK) * stride_of(inputs); }

// x [rows, inputs], weights [outputs, inputs], bias [outputs] or null -> y [rows, outputs], all contiguous.
void linear_bfloat16(const bfloat16 *x, const bfloat16 *weights, const bfloat16 *bias, bfloat16 *y, float *room,
                     int64_t rows, int64_t inputs, int64_t outputs, int threads) {
    linear<Bfloat16>(x, weights, nullptr, bias, y, room, rows, inputs, outputs, threads);
}

// As above, for weights int8 x scales [outputs].
void linear_int8(const bfloat16 *x, const int8_t *weights, const float *scales, const bfloat16 *bias, bfloat16 *y,
                 float *room, int64_t rows, int64_t inputs, int64_t outputs, int threads) {
    linear<Int8>(x, weights, scales, bias, y, room, rows, inputs, outputs, threads);
}
}
