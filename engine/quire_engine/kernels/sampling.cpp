// The greatest logits, in bfloat16.

#include "greatest.h"

namespace {

constexpr int64_t WORTH_THREADS = 1 << 17;  // elements: for fewer, waking another thread costs more than it saves

}  // namespace

extern "C" {

// The first of the greatest elements of each row of logits [rows, columns], `stride` elements apart -> found [rows].
void greatest_bfloat16(const bfloat16 *logits, int64_t stride, int64_t *found, int64_t rows, int64_t columns,
                       int64_t none, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * columns > WORTH_THREADS)
    for (int64_t r = 0; r < rows; r++) found[r] = first_of_greatest(logits + r * stride, columns, none);
}
}
