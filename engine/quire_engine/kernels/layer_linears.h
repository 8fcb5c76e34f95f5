// Linears and gates of one layer, as one thread of a team does its part of them.

#pragma once

#include <time.h>

#include "elementwise.h"
#include "layers.h"
#include "team.h"

namespace {

enum Part { LINEARS, ATTENTION, HEAD, REST, PARTS_OF_TIME };

inline int64_t nanoseconds() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000 + now.tv_nsec;
}

// What a thread of the team has of a step, and its part of the linears.
struct LayerLinears {
    const Decoder &decoder;
    const Tokens &batch;
    const Between &between;
    Member team;
    int thread;
    int64_t *spent;  // nanoseconds by `Part`, or null
    int64_t since;
    TileSums sums;
    bool inner_is_packed = false;
    int64_t tokens = batch.count;  // that are worked on

    void spend(Part part) {
        if (!spent) return;
        int64_t now = nanoseconds();
        spent[part] += now - since;
        since = now;
    }

    // Whether its rows of x are packed as they are.
    bool packs_rows(const Matrix &matrix) const { return decoder.tiles && !matrix.scales; }

    // Row t of x as the weights of `matrix` meet it. Those that do by tiles take whole rows, and pack them.
    void make_ready(const Matrix &matrix, const bfloat16 *x, int64_t t) {
        if (packs_rows(matrix)) return;
        x += t * matrix.inputs;
        if (matrix.scales)
            to_digits(x, matrix.inputs, (Digits *)(between.ready + t * digits_bytes(matrix.inputs)));
        else
            widen(x, matrix.inputs, (float *)between.ready + t * stride_of(matrix.inputs));
    }

    // Whether weights meet parts of a row of so many features as they would alone.
    bool come_in_parts(const Matrix &matrix, int64_t features) const {
        return !matrix.scales && (decoder.tiles || features % STEP == 0);
    }

    // Features from `from` on of row t of x, which come in parts.
    void make_part_ready(const Matrix &matrix, const bfloat16 *x, int64_t t, int64_t from, int64_t features) {
        if (packs_rows(matrix)) return;
        widen(x + t * matrix.inputs + from, features, (float *)between.ready + t * stride_of(matrix.inputs) + from);
    }

    // y [tokens, outputs] of x, whose rows were made ready. `after` are the weights that are met next. `norm`, unless
    // it is null, are those of the norm behind it: all that passed meanwhile has left no room for them in the caches.
    void product(const Matrix &m, const bfloat16 *x, bfloat16 *y, TilePanels after, const bfloat16 *norm = nullptr,
                 Part part = LINEARS) {
        auto last = [&] {
            for (int64_t d = 0; norm && d < decoder.hidden; d += 32)
                _mm_prefetch((const char *)(norm + d), _MM_HINT_T0);
        };
        if (decoder.tiles) {
            by_tile_panels(m, x, y, panels(m), after, last);
        } else {
            for (int64_t from = 0; from < tokens; from += BLOCK)
                team.share(panels_of(m.outputs), [&](int64_t one) { panel_of(m, y, from, one * PANEL); }, last);
        }
        spend(part);
    }

    // y from row `from` on, a block of rows, and from output `output` on, a panel.
    void panel_of(const Matrix &m, bfloat16 *y, int64_t from, int64_t output) {
        int64_t rows = least(BLOCK, tokens - from);
        y += from * m.outputs;
        if (m.scales) {
            const char *x = between.ready + from * digits_bytes(m.inputs);
            byte_panel(x, (const int8_t *)m.weights, m.scales, m.bias, y, rows, m.inputs, m.outputs, output);
        } else {
            const float *x = (const float *)between.ready + from * stride_of(m.inputs);
            Weights weights = {(const bfloat16 *)m.weights, m.inputs, m.outputs, m.pitch};
            panel(x, stride_of(m.inputs), weights, m.bias, y, rows, output);
        }
    }

    static TilePanels panels(const Matrix &m) {
        int64_t size = m.scales ? 1 : 2;  // of an element
        return {m.weights, m.inputs * size, m.pitch * size, m.outputs};
    }
    TilePanels gates_of(const Layer &layer) const {
        TilePanels all = panels(layer.gate_up);
        if (gates_at_once(decoder, layer)) all.outputs /= 2, all.with_gates = true;
        return all;
    }

    // y [tokens, w.outputs] of x, or of digits that were made ready, by blocks of rows. Before it waits a thread does
    // `last`; by then the weights that it meets next, `after`, come from memory.
    template <typename F>
    void by_tile_panels(const Matrix &m, const bfloat16 *x, bfloat16 *y, TilePanels w, TilePanels after, F last) {
        int64_t block = m.scales ? DIGIT_BLOCK : tile_block(m.inputs);
        for (int64_t from = 0; from < tokens; from += block) {
            int64_t rows = least(block, tokens - from);
            TilePanel start = from + block < tokens ? w[team.first(w.count())] : after[team.first(after.count())];
            auto share = [&](auto &tiles, auto one) {
                auto one_of = [&](int64_t i, int64_t next) { one(tiles, w[i], next < 0 ? start : w[next]); };
                team.share_ahead(w.count(), one_of, last);
            };
            bfloat16 *to = y + from * w.outputs;
            if (m.scales) {
                DigitTiles digits(between.ready + from * digits_bytes(m.inputs), rows, m.inputs, room_to_pack());
                pack(digits.tiles.count * digits.tiles.pieces, [&](int64_t i) { digits.pack(i); });
                sums.begin(digits.tiles);
                share(digits, [&](auto &x, TilePanel panel, TilePanel next) {
                    if (w.with_gates)
                        gated_digit_panel(x, panel, next, m.scales, m.bias, to, w.outputs, sums);
                    else
                        digit_panel(x, panel, next, m.scales, m.bias, to, w.outputs, sums);
                });
            } else {
                Tiles tiles = packed(m, x, from, rows);
                sums.begin(tiles);
                share(tiles, [&](auto &x, TilePanel panel, TilePanel next) {
                    if (!w.with_gates) return tile_panel(x, panel, next, m.bias, to, w.outputs, sums);
                    gated_tile_panel(x, panel, next, m.bias, w.outputs, sums, [&](int64_t tile, const __m512i *pairs) {
                        if (inner_is_packed) return store_packed(pairs, inner(), tile, panel.output);
                        int64_t first = tile * x.each;
                        bfloat16 *y = to + first * w.outputs + panel.output;
                        store_turned(pairs, y, w.outputs, least(x.each, x.rows - first), SIDE);
                    });
                });
            }
        }
    }

    // Rows of x from `from` on as the tiles of `m` take them.
    Tiles packed(const Matrix &m, const bfloat16 *x, int64_t from, int64_t rows) {
        if (inner_is_packed && x == between.inner) return inner();
        Tiles tiles = tiles_of(rows, m.inputs, room_to_pack());
        pack(tiles.count * tiles.pieces, [&](int64_t i) { tiles.pack(x + from * m.inputs, m.inputs, i); });
        return tiles;
    }

    // What passed the gates, where it stays packed.
    Tiles inner() const { return tiles_of(tokens, decoder.layers[0].down.inputs, between.inner); }

    // Few rows are packed by each thread for itself, which takes less time than to wait for others.
    bool packs_alone() const { return batch.count <= SIDE; }
    char *room_to_pack() const { return between.packed + (packs_alone() ? thread * between.each : 0); }

    template <typename F>
    void pack(int64_t parts, F one) {
        if (!packs_alone()) return team.share(parts, one);
        for (int64_t i = 0; i < parts; i++) one(i);
    }

    // silu(gate) * up of x, whose rows were made ready: between.inner.
    void gate(const Layer &layer) {
        const Matrix &m = layer.gate_up;
        int64_t size = layer.down.inputs;
        if (gates_at_once(decoder, layer)) {
            by_tile_panels(m, between.normed, between.inner, gates_of(layer), panels(layer.down), [] {});
            spend(LINEARS);
            if (packs_rows(layer.down)) return;
            team.share(tokens, [&](int64_t t) { make_ready(layer.down, between.inner, t); });
            return spend(REST);
        }
        product(m, between.normed, between.both, panels(layer.down));
        team.share(tokens, [&](int64_t t) {
            const bfloat16 *gate = between.both + 2 * t * size;
            silu_and_mul(gate, gate + size, between.inner + t * size, size);
            make_ready(layer.down, between.inner, t);
        });
        spend(REST);
    }
};

}  // namespace
