// What `run_layers` is given, and the room that it needs between the parts of a layer.

#pragma once

#include "attention.h"
#include "int8_tiles.h"
#include "linears.h"

namespace {

// A linear: weights [outputs, inputs], `pitch` elements apart, in bfloat16, or in int8 and contiguous where there are
// scales [outputs]; bias may be null.
struct Matrix {
    const void *weights;
    const float *scales;
    const bfloat16 *bias;
    int64_t inputs, outputs, pitch;
};

struct Layer {
    const bfloat16 *input_norm, *attention_norm, *q_norm, *k_norm;  // weights; the last two may be null
    Matrix qkv, out, gate_up, down;
    bfloat16 *k_cache, *v_cache;
    int64_t window;
    float scale, softcap;
};

struct Decoder {
    const Layer *layers;
    const bfloat16 *norm;  // weights of the one behind the last layer; may be null
    int64_t num_layers, hidden, heads, kv_heads, size, page;
    float eps, head_eps;
    int offset, head_offset;  // whether norms' weights are 1 + weight
    int tiles;                // whether bfloat16 is multiplied by tiles
    Matrix head;              // whose outputs are logits; without weights where there is none
};

// Sequences of which the last `tokens` tokens attend, rows of x from `first` on.
struct Span {
    int64_t first, sequences, tokens;
    const int64_t *tables;  // [sequences, ...], rows `stride` apart
    int64_t stride;
    const int64_t *lengths;
};

// What a step computes. x [tokens, hidden] is changed in place, and begins with rows of the embedding where there are
// ids.
struct Tokens {
    bfloat16 *x;
    const bfloat16 *embedding;  // [vocabulary, hidden]
    int64_t vocabulary;
    const int64_t *ids;         // may be null
    const bfloat16 *cos, *sin;  // [..., half]
    const int64_t *turns;       // the row of these that each token has; null where that is its own
    int64_t half;
    const int64_t *slots;
    int64_t count;
    const Span *spans;  // which together have all tokens
    int64_t num_spans;
    const int64_t *wanted;  // different tokens whose x is all that is read in the end
    int64_t num_wanted;     // -1 for all tokens
    bfloat16 *logits;       // of the tokens that are wanted [..., vocabulary], behind the norm; null for none
    int64_t *greatest;      // of each row of these
    int64_t none;           // instead, where there is no such thing
};

// Where results between the parts lie. A null room only counts bytes.
struct Room {
    char *start;
    int64_t used = 0;

    template <typename T>
    T *take(int64_t count) {
        T *found = (T *)(start + used);
        used += (count * sizeof(T) + 63) / 64 * 64;
        return found;
    }
};

// A span's part of attention.
struct Share {
    Cut cut;
    int64_t first;  // item
    float *sums;    // of parts
};

// Whether all tokens decode, each of a sequence of its own, and none reads a page that another fills in this step: a
// full page is shared from then on, at the same place of both sequences' tables.
inline bool decode_apart(const Decoder &decoder, const Tokens &batch) {
    const Span &span = batch.spans[0];
    if (batch.num_spans != 1 || span.tokens != 1) return false;
    for (int64_t t = 0; t < span.sequences; t++) {
        if ((batch.slots[t] + 1) % decoder.page) continue;
        int64_t filled = batch.slots[t] / decoder.page, place = (span.lengths[t] - 1) / decoder.page;
        for (int64_t other = 0; other < span.sequences; other++)
            if (span.lengths[other] - 1 > place * decoder.page && other != t &&
                span.tables[other * span.stride + place] == filled)
                return false;
    }
    return true;
}

// Bytes of a block of rows that this matrix meets, packed for tiles.
inline int64_t bytes_packed(const Decoder &decoder, const Matrix &m, int64_t rows) {
    if (!decoder.tiles) return 0;
    if (m.scales) return DigitTiles(nullptr, least(rows, DIGIT_BLOCK), m.inputs, nullptr).tiles.bytes();
    return tiles_of(least(rows, tile_block(m.inputs)), m.inputs, nullptr).bytes();
}

// Whether gates are applied to tiles of sums.
inline bool gates_at_once(const Decoder &decoder, const Layer &layer) {
    return decoder.tiles && layer.down.inputs % SIDE == 0;
}

// Whether what passed the gates of all rows is kept as tiles of the next linear take it.
inline bool stays_packed(const Decoder &decoder, const Layer &layer, int64_t rows) {
    const Matrix &gates = layer.gate_up, &down = layer.down;
    bool at_once = rows <= least(tile_block(gates.inputs), tile_block(down.inputs));
    return gates_at_once(decoder, layer) && !gates.scales && !down.scales && at_once && down.inputs % TILE_INPUTS == 0;
}

struct Between {
    char *ready;     // a linear's inputs as its weights meet them, or as they are packed: floats or digits
    char *packed;    // what tiles meet, of each thread where it packs for itself
    int64_t each;    // bytes of that
    bool apart;      // whether no sequence reads what another writes
    Share *shares;   // of each span
    bfloat16 *normed, *qkv, *attended, *both, *inner, *more;

    Between(const Decoder &decoder, const Tokens &batch, int threads, Room &room) {
        const Layer &one = decoder.layers[0];
        int64_t tokens = batch.count, most_ready = 0;
        each = 0;
        auto meets = [&](const Matrix &m) {
            each = most(each, bytes_packed(decoder, m, tokens));
            if (m.scales || !decoder.tiles) most_ready = most(most_ready, row_bytes(m.inputs));
        };
        for (int64_t i = 0; i < decoder.num_layers; i++) {
            const Layer &layer = decoder.layers[i];
            const Matrix *matrices[] = {&layer.qkv, &layer.out, &layer.gate_up, &layer.down};
            for (const Matrix *m : matrices) meets(*m);
        }
        if (batch.logits) meets(decoder.head);
        apart = batch.num_wanted < 0 && decode_apart(decoder, batch);
        ready = room.take<char>(tokens * most_ready);
        packed = room.take<char>(decoder.tiles && tokens <= SIDE ? threads * each : each);
        shares = room.take<Share>(batch.num_spans);
        for (int64_t s = 0, count = 0; s < batch.num_spans; s++) {
            const Span &span = batch.spans[s];
            Cut cut(span.lengths, span.sequences, span.tokens, decoder.heads, decoder.kv_heads);
            float *sums = room.take<float>(cut.room(span.sequences, decoder.heads, decoder.size));
            if (room.start) shares[s] = {cut, count, sums};
            count += cut.count;
        }
        normed = room.take<bfloat16>(tokens * decoder.hidden);
        qkv = room.take<bfloat16>(tokens * one.qkv.outputs);
        attended = room.take<bfloat16>(tokens * one.out.inputs);
        both = room.take<bfloat16>(gates_at_once(decoder, one) ? 0 : tokens * one.gate_up.outputs);
        inner = room.take<bfloat16>((tokens + SIDE) * one.down.inputs);  // tiles may have rows past the last one
        more = room.take<bfloat16>(tokens * decoder.hidden);
    }
};

}  // namespace
