// Attention over the pages of a KV cache, which are read where they are.
//
// A row is one query head of one token. Rows that share a KV head are taken together: a tile of them goes over the keys
// in chunks, see online_softmax.h. A token that decodes has its keys cut into parts, which threads share and which are
// put together at the end (Flash-Decoding). Neither tiles of other sequences nor threads change a row's result.

#pragma once

#include "lines_ahead.h"
#include "tile_attention.h"

namespace {

// Scores of R rows and four keys.
template <int R, typename T>
inline void four_scores(const float *q, int64_t size, const T *const *keys, float *scores) {
    __m512 sums[R][4];
    for (int r = 0; r < R; r++)
        for (int k = 0; k < 4; k++) sums[r][k] = _mm512_setzero_ps();
    for (int64_t d = 0; d < size; d += 16) {
        __m512 key[4];
        for (int k = 0; k < 4; k++) key[k] = load(keys[k] + d);
        for (int r = 0; r < R; r++) {
            __m512 query = _mm512_loadu_ps(q + r * size + d);
            for (int k = 0; k < 4; k++) sums[r][k] = _mm512_fmadd_ps(query, key[k], sums[r][k]);
        }
    }
    for (int r = 0; r < R; r++)
        _mm_storeu_ps(scores + r * CHUNK, lane_sums(sums[r][0], sums[r][1], sums[r][2], sums[r][3]));
}

// Adds R rows' weighted values, of V vectors of features each, to their sums.
template <int R, int V, typename T>
inline void add_values(const float *weights, const T *const *values, int64_t offset, int64_t keys, float *sums,
                       int64_t size, LinesAhead &ahead, int64_t lines) {
    __m512 sum[R][V];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) sum[r][v] = _mm512_loadu_ps(sums + r * size + 16 * v);
    for (int64_t k = 0; k < keys; k++) {
        if (k % 4 == 0) ahead.read(lines);
        __m512 value[V];
        for (int v = 0; v < V; v++) value[v] = load(values[k] + offset + 16 * v);
        for (int r = 0; r < R; r++) {
            __m512 weight = _mm512_set1_ps(weights[r * CHUNK + k]);
            for (int v = 0; v < V; v++) sum[r][v] = _mm512_fmadd_ps(weight, value[v], sum[r][v]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) _mm512_storeu_ps(sums + r * size + 16 * v, sum[r][v]);
}

template <int R, typename T>
void chunk_scores(const float *q, int64_t size, const T *const *keys, int64_t count, float *scores, LinesAhead &ahead,
                  int64_t lines) {
    for (int64_t k = 0; k < count; k += 4) {
        ahead.read(lines);
        four_scores<R>(q, size, keys + k, scores + k);
    }
}

template <int R, typename T>
void chunk_values(const float *weights, const T *const *values, int64_t keys, float *sums, int64_t size,
                  LinesAhead &ahead, int64_t lines) {
    int64_t d = 0;
    for (; d + 64 <= size; d += 64) add_values<R, 4>(weights, values, d, keys, sums + d, size, ahead, lines);
    for (; d < size; d += 16) add_values<R, 1>(weights, values, d, keys, sums + d, size, ahead, lines);
}

// Where a chunk's keys and values are. Those past its end are the last one, and not seen.
template <typename T>
struct Chunk {
    const T *key[CHUNK], *value[CHUNK];
    int64_t count;

    void find(const T *keys, const T *values, const int64_t *table, int64_t start, int64_t to, const Shape &shape) {
        int64_t slot = shape.kv_heads * shape.size;
        count = least(CHUNK, to - start);
        int64_t page = start / shape.page, within = start - page * shape.page;
        for (int64_t k = 0; k < CHUNK; k++) {
            int64_t offset = (table[page] * shape.page + within) * slot;
            key[k] = keys + offset;
            value[k] = values + offset;
            if (k + 1 < count && ++within == shape.page) {
                within = 0;
                page++;
            }
        }
    }
};

// The processor does not foresee where pages are by itself.
template <typename T>
inline void read_ahead(const T *const *rows, int64_t count, int64_t size) {
    for (int64_t k = 0; k < count; k++)
        for (int64_t d = 0; d < size; d += 64 / (int64_t)sizeof(T))
            _mm_prefetch((const char *)(rows[k] + d), _MM_HINT_T0);
}

// All of a tile's keys from `from` to `to`. `keys` and `values` are those of its KV head in the first slot. What is
// `ahead` comes from memory meanwhile.
template <typename T>
void attend(const float *q, int rows, const T *keys, const T *values, const int64_t *table, int64_t from, int64_t to,
            const Bounds &bounds, const Shape &shape, Sums &sums, LinesAhead ahead) {
    constexpr int64_t CALLS = 2 * CHUNK / 4;  // a chunk has, at least
    const int64_t lines = ahead.each_of(most(1, (to - from) * CALLS / CHUNK));
    alignas(64) float scores[TILE * CHUNK];
    int64_t size = shape.size;
    Chunk<T> chunks[2];
    sums.begin(rows, rows, size);
    if (from < to) chunks[0].find(keys, values, table, from, to, shape);
    for (int64_t start = from, turn = 0; start < to; start += CHUNK, turn = 1 - turn) {
        const auto &[key, value, count] = chunks[turn];
        read_ahead(value, count, size);
        if (start + CHUNK < to) {
            Chunk<T> &next = chunks[1 - turn];
            next.find(keys, values, table, start + CHUNK, to, shape);
            read_ahead(next.key, next.count, size);
        }
        for (int r = 0; r < rows; r += 4) {
            const float *query = q + r * size;
            float *score = scores + r * CHUNK;
            switch (least(4, rows - r)) {
                case 1: chunk_scores<1>(query, size, key, count, score, ahead, lines); break;
                case 2: chunk_scores<2>(query, size, key, count, score, ahead, lines); break;
                case 3: chunk_scores<3>(query, size, key, count, score, ahead, lines); break;
                default: chunk_scores<4>(query, size, key, count, score, ahead, lines);
            }
        }
        for (int r = 0; r < rows; r++)
            weigh(scores + r * CHUNK, count, bounds.from[r] - start, least(bounds.to[r], to) - start, shape, sums, r);
        for (int r = 0; r < rows; r += 4) {
            const float *weight = scores + r * CHUNK;
            float *sum = sums.values + r * size;
            switch (least(4, rows - r)) {
                case 1: chunk_values<1>(weight, value, count, sum, size, ahead, lines); break;
                case 2: chunk_values<2>(weight, value, count, sum, size, ahead, lines); break;
                case 3: chunk_values<3>(weight, value, count, sum, size, ahead, lines); break;
                default: chunk_values<4>(weight, value, count, sum, size, ahead, lines);
            }
        }
    }
}

// Keys of each part of a sequence of so many.
inline int64_t part_of(int64_t length) {
    return most(PART, (length + PARTS * CHUNK - 1) / (PARTS * CHUNK) * CHUNK);
}

template <typename T>
struct Batch {
    const T *q;
    int64_t q_stride;  // of tokens, in elements
    const T *keys, *values;
    T *out;
    const int64_t *tables;
    int64_t tables_stride;
    const int64_t *lengths;
    int64_t sequences, tokens;  // tokens of each that attend, its last ones
    Shape shape;
};

// One tile of rows of one sequence and KV head, over one part of the keys where a sequence has several.
template <typename T>
void one_tile(const Batch<T> &batch, int64_t sequence, int64_t kv_head, int64_t first_row, int64_t part, int64_t parts,
              float *partial, LinesAhead ahead) {
    const Shape &shape = batch.shape;
    int64_t group = shape.heads / shape.kv_heads, size = shape.size, length = batch.lengths[sequence];
    int rows = (int)least(TILE, batch.tokens * group - first_row);
    alignas(64) float q[TILE * WIDEST];
    alignas(64) T unchanged[TILE * WIDEST];
    const bool by_tiles = sizeof(T) == sizeof(bfloat16) && TileAttention::takes(shape, batch.tokens);
    Sums sums;
    Bounds bounds;
    int64_t from = length, to = 0, places[TILE];
    for (int r = 0; r < rows; r++) {
        int64_t token = (first_row + r) / group, head = kv_head * group + (first_row + r) % group;
        int64_t row = sequence * batch.tokens + token;
        bounds.to[r] = length - batch.tokens + token + 1;
        bounds.from[r] = shape.window ? most(0, bounds.to[r] - shape.window) : 0;
        from = least(from, bounds.from[r]);
        to = most(to, bounds.to[r]);
        places[r] = (row * shape.heads + head) * size;
        const T *query = batch.q + row * batch.q_stride + head * size;
        if (by_tiles) memcpy(unchanged + r * size, query, size * sizeof(T));
        for (int64_t d = 0; d < size && !by_tiles; d += 16) _mm512_storeu_ps(q + r * size + d, load(query + d));
    }
    if (parts > 1) {
        int64_t each = part_of(length);
        from = most(from, part * each);
        to = least(to, (part + 1) * each);
    }
    int64_t offset = kv_head * size;
    const int64_t *table = batch.tables + sequence * batch.tables_stride;
    const T *keys = batch.keys + offset, *values = batch.values + offset;
    if constexpr (sizeof(T) == sizeof(bfloat16)) {
        if (by_tiles) TileAttention::attend(unchanged, rows, keys, values, table, from, to, bounds, shape, sums);
    }
    if (!by_tiles) attend(q, rows, keys, values, table, from, to, bounds, shape, sums, ahead);
    for (int r = 0; r < rows; r++) {
        float *values = sums.values + r * size;
        if (parts > 1) {
            float *to_join = partial + (places[r] / size * parts + part) * (size + 16);
            memcpy(to_join, values, size * sizeof(float));
            to_join[size] = sums.greatest[r];
            to_join[size + 1] = sums.weights[r];
            continue;
        }
        __m512 weights = _mm512_set1_ps(sums.weights[r]);
        for (int64_t d = 0; d < size; d += 16)
            store(batch.out + places[r] + d, _mm512_div_ps(_mm512_loadu_ps(values + d), weights));
    }
}

// Puts the parts of one row together.
template <typename T>
void join(const float *partial, int64_t parts, int64_t size, T *out) {
    float greatest = -__builtin_inff(), weights = 0, less[PARTS];
    for (int64_t p = 0; p < parts; p++) {
        float own = partial[p * (size + 16) + size];
        if (own > greatest) greatest = own;
    }
    if (greatest == -__builtin_inff()) greatest = 0;
    for (int64_t p = 0; p < parts; p++) {
        const float *one = partial + p * (size + 16);
        less[p] = _mm512_cvtss_f32(exponential(_mm512_set1_ps(one[size] - greatest)));
        weights += one[size + 1] * less[p];
    }
    for (int64_t d = 0; d < size; d += 16) {
        __m512 sum = _mm512_setzero_ps();
        for (int64_t p = 0; p < parts; p++)
            sum = _mm512_fmadd_ps(_mm512_set1_ps(less[p]), _mm512_loadu_ps(partial + p * (size + 16) + d), sum);
        store(out + d, _mm512_div_ps(sum, _mm512_set1_ps(weights)));
    }
}

inline int64_t parts_of(const int64_t *lengths, int64_t sequences, int64_t tokens) {
    int64_t parts = 1;
    for (int64_t s = 0; s < sequences && tokens == 1; s++) {
        int64_t each = part_of(lengths[s]);
        parts = most(parts, (lengths[s] + each - 1) / each);
    }
    return parts;
}

// How a batch's work is cut into items that threads share: tiles of rows of a sequence and KV head, over parts of its
// keys.
struct Cut {
    int64_t tiles, parts, count;

    Cut(const int64_t *lengths, int64_t sequences, int64_t tokens, int64_t heads, int64_t kv_heads) {
        tiles = (tokens * (heads / kv_heads) + TILE - 1) / TILE;
        parts = parts_of(lengths, sequences, tokens);
        count = sequences * kv_heads * tiles * parts;
    }

    // Floats for the sums of parts.
    int64_t room(int64_t sequences, int64_t heads, int64_t size) const {
        return parts == 1 ? 0 : sequences * heads * parts * (size + 16);
    }
};

template <typename T>
struct Items {
    const Batch<T> &batch;
    Cut cut;
    float *room;  // for the sums of parts

    void operator()(int64_t item) const {
        int64_t rest = item / cut.parts, tile = rest % cut.tiles, kv_heads = batch.shape.kv_heads;
        int64_t sequence = rest / cut.tiles / kv_heads, kv_head = rest / cut.tiles % kv_heads;
        LinesAhead ahead;
        if (cut.count == batch.sequences * kv_heads) ahead = share_of_next(sequence, kv_head);
        one_tile(batch, sequence, kv_head, tile * TILE, item % cut.parts, cut.parts, room, ahead);
    }

    // The keys and values of the sequence that comes next, of which each KV head of this one has its share read: a
    // head's own would come too late.
    LinesAhead share_of_next(int64_t sequence, int64_t kv_head) const {
        if (++sequence == batch.sequences) return {};
        const Shape &shape = batch.shape;
        int64_t length = batch.lengths[sequence], start = shape.window ? most(0, length - shape.window) : 0;
        int64_t from = start + (length - start) * kv_head / shape.kv_heads;
        int64_t to = start + (length - start) * (kv_head + 1) / shape.kv_heads;
        return {batch.keys, batch.values, batch.tables + sequence * batch.tables_stride, from, to, shape};
    }

    // Puts the parts of one of the [sequences x heads] rows together, where there are parts.
    void join_row(int64_t row) const {
        int64_t size = batch.shape.size;
        join(room + row * cut.parts * (size + 16), cut.parts, size, batch.out + row * size);
    }
};

}  // namespace
