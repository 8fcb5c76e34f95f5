// Attention as a call of its own.

#include "attention.h"

namespace {

constexpr int64_t WORTH_THREADS = 1 << 15;  // elements of keys: for fewer, waking another thread costs more

template <typename T>
void attend_all(const Batch<T> &batch, float *room, int threads) {
    const Shape &shape = batch.shape;
    Cut cut(batch.lengths, batch.sequences, batch.tokens, shape.heads, shape.kv_heads);
    Items<T> items = {batch, cut, room};
    int64_t elements = 0;
    for (int64_t s = 0; s < batch.sequences; s++)
        elements += batch.lengths[s] * shape.kv_heads * shape.size * cut.tiles;
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (elements > WORTH_THREADS)
    for (int64_t item = 0; item < cut.count; item++) items(item);
    if (cut.parts == 1) return;
    for (int64_t row = 0; row < batch.sequences * shape.heads; row++) items.join_row(row);
}

}  // namespace

extern "C" {

// Floats that `attention_*` needs room for.
int64_t attention_room(const int64_t *lengths, int64_t sequences, int64_t tokens, int64_t heads, int64_t size) {
    return Cut(lengths, sequences, tokens, heads, heads).room(sequences, heads, size);
}

// The last `tokens` tokens of each of `sequences` see their own and those before them.
//
// q [sequences * tokens, heads, size], rows `q_stride` elements apart; keys and values [pages, page, kv_heads, size];
// tables [sequences, ...] of pages, rows `tables_stride` apart; lengths [sequences] -> out, as q, contiguous.
// `size` is a multiple of 16, at most 256; `tiles` says whether bfloat16 is multiplied by tiles.
#define ATTENTION(T)                                                                                                  \
    void attention_##T(const T *q, int64_t q_stride, const T *keys, const T *values, T *out, const int64_t *tables,   \
                       int64_t tables_stride, const int64_t *lengths, int64_t sequences, int64_t tokens,              \
                       int64_t heads, int64_t kv_heads, int64_t size, int64_t page, int64_t window, float scale,      \
                       float softcap, int tiles, float *room, int threads) {                                          \
        Shape shape = {heads, kv_heads, size, page, window, scale, softcap, tiles != 0};                              \
        attend_all(Batch<T>{q, q_stride, keys, values, out, tables, tables_stride, lengths, sequences, tokens, shape}, \
                   room, threads);                                                                                    \
    }
ATTENTION(bfloat16)
ATTENTION(float32)
}
