// All layers of a plain decoder for the tokens of a step, in one call: RMSNorm, attention with keys and values in
// pages, RMSNorm, and an MLP gated by SiLU. Each part does what its own call does, to the last bit.
//
// Called one by one the parts of a small model take the interpreter longer than the processor, and prompts spend as
// long again on threads that are woken for each part and on memory that is new to each.

#include <omp.h>

#include "greatest.h"
#include "layer_linears.h"

namespace {

// A thread of the team.
struct Worker : LayerLinears {
    const int64_t *wanted = nullptr;  // which of the batch are worked on; null for all of them

    // x of the token that is the t-th of those worked on.
    bfloat16 *x_of(int64_t t) const { return batch.x + (wanted ? wanted[t] : t) * decoder.hidden; }

    // The norm of x of token t, to which `more` is added before unless it is null.
    void norm_of(const bfloat16 *more, const bfloat16 *weight, const Matrix &next, int64_t t) {
        const Decoder &d = decoder;
        bfloat16 *x = x_of(t), *to = between.normed + t * d.hidden;
        if (more)
            add_and_norm(x, more + t * d.hidden, weight, to, d.hidden, d.eps, d.offset);
        else
            rms_norm(x, weight, to, d.hidden, d.eps, d.offset);
        make_ready(next, between.normed, t);
    }

    // Token t's query heads that share a KV head, and its key, are turned, and its key and value kept.
    void turn_and_keep(const Layer &layer, int64_t t, int64_t kv_head) {
        const Decoder &d = decoder;
        int64_t group = d.heads / d.kv_heads, slot = (batch.slots[t] * d.kv_heads + kv_head) * d.size;
        bfloat16 *q = between.qkv + t * layer.qkv.outputs;
        bfloat16 *k = q + (d.heads + kv_head) * d.size, *v = k + d.kv_heads * d.size;
        for (int64_t h = 0; h < group; h++) turn(layer.q_norm, q + (kv_head * group + h) * d.size, t);
        turn(layer.k_norm, k, t);
        memcpy(layer.k_cache + slot, k, d.size * sizeof(bfloat16));
        memcpy(layer.v_cache + slot, v, d.size * sizeof(bfloat16));
    }

    void turn(const bfloat16 *norm, bfloat16 *head, int64_t t) {
        if (norm) rms_norm(head, norm, head, decoder.size, decoder.head_eps, decoder.head_offset);
        int64_t row = (batch.turns ? batch.turns[t] : t) * batch.half;
        const bfloat16 *cos = batch.cos + row, *sin = batch.sin + row;
        rotate(head, cos, sin, head, batch.half, decoder.size);
    }

    Batch<bfloat16> attention_of(const Layer &layer, const Span &span) const {
        const Decoder &d = decoder;
        Shape shape = {d.heads, d.kv_heads, d.size, d.page, layer.window, layer.scale, layer.softcap, d.tiles != 0};
        const bfloat16 *q = between.qkv + span.first * layer.qkv.outputs;
        bfloat16 *out = between.attended + span.first * layer.out.inputs;
        return {q,          layer.qkv.outputs, layer.k_cache,  layer.v_cache, out, span.tables, span.stride,
                span.lengths, span.sequences,    span.tokens, shape};
    }

    // Attention, with what comes before and behind it: of a KV head and token at a time where no other needs it.
    void attend(const Layer &layer) {
        const Decoder &d = decoder;
        int64_t features = d.heads / d.kv_heads * d.size, pieces = batch.count * d.kv_heads, last = batch.num_spans - 1;
        int64_t count = between.shares[last].first + between.shares[last].cut.count;
        bool alone = between.apart && count == pieces;
        bool by_parts = alone && come_in_parts(layer.out, features);
        if (!alone) {
            team.share(pieces, [&](int64_t i) { turn_and_keep(layer, i / d.kv_heads, i % d.kv_heads); });
            spend(REST);
        }
        int64_t s = 0;
        team.share(count, [&](int64_t item) {
            while (item < between.shares[s].first) s--;
            while (s < last && item >= between.shares[s + 1].first) s++;
            const Share &share = between.shares[s];
            int64_t t = item / d.kv_heads, kv_head = item % d.kv_heads;
            if (alone) turn_and_keep(layer, t, kv_head);
            Batch<bfloat16> all = attention_of(layer, batch.spans[s]);
            Items<bfloat16>{all, share.cut, share.sums}(item - share.first);
            if (by_parts) make_part_ready(layer.out, between.attended, t, kv_head * features, features);
        });
        for (s = 0; s <= last; s++) {
            const Share &share = between.shares[s];
            if (share.cut.parts == 1) continue;
            Batch<bfloat16> all = attention_of(layer, batch.spans[s]);
            Items<bfloat16> items = {all, share.cut, share.sums};
            team.share(all.sequences * d.heads, [&](int64_t row) { items.join_row(row); });
        }
        spend(ATTENTION);
        if (!by_parts && !packs_rows(layer.out))
            team.share(batch.count, [&](int64_t t) { make_ready(layer.out, between.attended, t); });
    }

    // From here on only tokens that are wanted: what they attended to, from where keys and queries are no more needed.
    const bfloat16 *leave_out_others(const Layer &layer) {
        int64_t size = layer.out.inputs;
        wanted = batch.wanted;
        tokens = batch.num_wanted;
        team.share(tokens, [&](int64_t t) {
            memcpy(between.qkv + t * size, between.attended + wanted[t] * size, size * sizeof(bfloat16));
            make_ready(layer.out, between.qkv, t);
        });
        return between.qkv;
    }

    void work() {
        const bfloat16 *more = nullptr;  // what the layer before adds
        int64_t hidden = decoder.hidden;
        for (int64_t i = 0; i < decoder.num_layers; i++) {
            const Layer &layer = decoder.layers[i];
            team.share(tokens, [&](int64_t t) {
                bfloat16 *x = batch.x + t * hidden;
                if (i == 0 && batch.ids) memcpy(x, batch.embedding + batch.ids[t] * hidden, hidden * sizeof(bfloat16));
                norm_of(more, layer.input_norm, layer.qkv, t);
            });
            spend(REST);
            product(layer.qkv, between.normed, between.qkv, panels(layer.out));
            attend(layer);
            const bfloat16 *attended = between.attended;
            if (batch.num_wanted >= 0 && i == decoder.num_layers - 1) attended = leave_out_others(layer);
            inner_is_packed = stays_packed(decoder, layer, tokens);
            product(layer.out, attended, between.more, gates_of(layer), layer.attention_norm);
            team.share(tokens, [&](int64_t t) { norm_of(between.more, layer.attention_norm, layer.gate_up, t); });
            spend(REST);
            gate(layer);
            bool is_last = i == decoder.num_layers - 1;
            const Layer &next = decoder.layers[is_last ? 0 : i + 1];
            TilePanels after = panels(is_last && batch.logits ? decoder.head : next.qkv);
            product(layer.down, between.inner, between.more, after, is_last ? decoder.norm : next.input_norm);
            more = between.more;
        }
        team.share(tokens, [&](int64_t t) {
            bfloat16 *x = x_of(t);
            if (decoder.norm)
                add_and_norm(x, more + t * hidden, decoder.norm, x, hidden, decoder.eps, decoder.offset);
            else
                add(x, more + t * hidden, hidden);
            if (!batch.logits) return;
            memcpy(between.normed + t * hidden, x, hidden * sizeof(bfloat16));
            make_ready(decoder.head, between.normed, t);
        });
        spend(REST);
        if (batch.logits) make_logits();
    }

    void make_logits() {
        product(decoder.head, between.normed, batch.logits, panels(decoder.layers[0].qkv), nullptr, HEAD);
        team.share(tokens, [&](int64_t t) {
            int64_t size = decoder.head.outputs;
            batch.greatest[t] = first_of_greatest(batch.logits + t * size, size, batch.none);
        });
        spend(REST);
    }
};

}  // namespace

extern "C" {

// Returns the bytes that it needs room for, at an address that 64 divides, and does nothing unless there are `size`.
// Where an id is not of the vocabulary it does nothing either, and returns -1. `spent` are the nanoseconds of linears,
// attention, the head and the rest.
int64_t run_layers(const Decoder *decoder, const Tokens *batch, char *start, int64_t size, int threads,
                   int64_t *spent) {
    for (int64_t t = 0; batch->ids && t < batch->count; t++)
        if (batch->ids[t] < 0 || batch->ids[t] >= batch->vocabulary) return -1;
    Room wanted = {nullptr}, room = {start};
    Between(*decoder, *batch, threads, wanted);
    if (wanted.used > size) return wanted.used;
    Between between(*decoder, *batch, threads, room);
    memset(spent, 0, PARTS_OF_TIME * sizeof(int64_t));
    Team team;
#pragma omp parallel num_threads(least(threads, MOST_THREADS))
    {
#pragma omp single
        team.size = omp_get_num_threads();  // there may be fewer than were asked for
        int thread = omp_get_thread_num();
        Member member(team, thread);
        Worker worker = {{*decoder, *batch, between, member, thread, thread == 0 ? spent : nullptr, nanoseconds()}};
        worker.work();
        if (decoder->tiles) TileSums::done();
    }
    return wanted.used;
}
}
