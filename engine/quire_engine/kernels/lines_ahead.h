// Keys and values that come from memory while others are attended to.

#pragma once

#include "online_softmax.h"

namespace {

// Positions `from` to `to` of a sequence, whose keys and values are read ahead line by line: the halves of a page's
// keys and of its values at once, so that the processor's own reading ahead follows each of four, as it does of weights
// (see AheadOfTiles). Asked for all at once they would hold up what is computed meanwhile.
class LinesAhead {
   public:
    LinesAhead() = default;

    template <typename T>
    LinesAhead(const T *keys, const T *values, const int64_t *table, int64_t from, int64_t to, const Shape &shape)
        : both{(const char *)keys, (const char *)values}, table(table), at(from), to(to), page(shape.page),
          slot(shape.kv_heads * shape.size * sizeof(T)) {}

    // Lines of each place that each of `calls` calls of `read` has to take, to read all.
    int64_t each_of(int64_t calls) const { return ((to - at) * slot / (64 * HALVES) + calls - 1) / calls; }

    void read(int64_t lines) {
        for (; lines > 0; lines--, left--) {
            if (left == 0 && !next_page()) return;
            for (auto &place : places) {
                _mm_prefetch(place, _MM_HINT_T2);
                place += 64;
            }
        }
    }

   private:
    static constexpr int64_t HALVES = 2;

    bool next_page() {
        if (at >= to) return false;
        int64_t within = at % page, count = least(page - within, to - at);
        int64_t offset = (table[at / page] * page + within) * slot;
        left = most(1, count * slot / (64 * HALVES));
        for (int64_t i = 0; i < 2 * HALVES; i++) places[i] = both[i / HALVES] + offset + i % HALVES * left * 64;
        at += count;
        return true;
    }

    const char *both[2] = {}, *places[2 * HALVES] = {};
    const int64_t *table = nullptr;
    int64_t at = 0, to = 0, page = 1, slot = 0, left = 0;
};

}  // namespace
