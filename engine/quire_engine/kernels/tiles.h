// Linear layers by the processor's products of tiles (AMX): weights in bfloat16 with sums in float32, and bytes with
// sums in int32, of which int8_tiles.h makes linears.
//
// y^T = W x^T: a tile of weights, 16 outputs by 32 inputs, is read where the checkpoint has it. Tiles of x are packed
// for it, 32 inputs by up to 16 rows: two neighbouring inputs of a row are one lane, and rows are neighbours. A row's
// sums are taken in the order of its inputs, whatever other rows there are; bfloat16's denormals count as 0. Only
// processors that have these products may call what is `WITH_TILES`, and only once the kernel allows it, see
// `allow_tiles`.

#pragma once

#include "elementwise.h"

#if defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11
#define WITH_TILES __attribute__((target("amx-tile,amx-bf16,amx-int8")))
#define WITH_BFLOAT16 __attribute__((target("avx512bf16")))  // which all processors with tiles have
constexpr bool COMPILED_WITH_TILES = true;
#else  // a compiler that does not know them: `allow_tiles` says no, and nothing below is called
#define WITH_TILES
#define WITH_BFLOAT16
#define _mm512_cvtne2ps_pbh(high, low) _mm512_setzero_si512()
#define _tile_loadconfig(shapes) (void)(shapes)
#define _tile_release()
#define _tile_zero(tile)
#define _tile_loadd(tile, from, pitch) (void)(from), (void)(pitch)
#define _tile_stored(tile, to, pitch) (void)(to), (void)(pitch)
#define _tile_dpbf16ps(sums, one, other)
#define _tile_dpbssd(sums, one, other)
constexpr bool COMPILED_WITH_TILES = false;
#endif

namespace {

constexpr int64_t SIDE = 16;               // rows of a tile, and its columns of 32 bits
constexpr int64_t PIECE = 64;              // bytes of a row of a tile
constexpr int64_t TILE_INPUTS = 2 * SIDE;  // in bfloat16, of a piece
constexpr int64_t TILE_PANEL = 2 * SIDE;   // outputs that are multiplied at once
constexpr int64_t TILE_BLOCK = 512;        // rows of x that weights pass at once, at most
constexpr int64_t TILE_DEPTH = 8;          // pieces of a panel that stay in the first-level cache while many rows pass

INLINED void transpose(__m512 *rows) {  // 16 x 16
    __m512 pairs[16];
    for (int i = 0; i < 16; i += 4) {
        __m512d low[2], high[2];
        for (int j = 0; j < 2; j++) {
            low[j] = _mm512_castps_pd(_mm512_unpacklo_ps(rows[i + 2 * j], rows[i + 2 * j + 1]));
            high[j] = _mm512_castps_pd(_mm512_unpackhi_ps(rows[i + 2 * j], rows[i + 2 * j + 1]));
        }
        pairs[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(low[0], low[1]));
        pairs[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low[0], low[1]));
        pairs[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high[0], high[1]));
        pairs[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high[0], high[1]));
    }
    constexpr int EVEN = 0x88, ODD = 0xdd;  // of the four lanes of 128 bits
    for (int i = 0; i < 4; i++) {
        __m512 *from = pairs + i;
        __m512 a = _mm512_shuffle_f32x4(from[0], from[4], EVEN), b = _mm512_shuffle_f32x4(from[0], from[4], ODD);
        __m512 c = _mm512_shuffle_f32x4(from[8], from[12], EVEN), d = _mm512_shuffle_f32x4(from[8], from[12], ODD);
        rows[i] = _mm512_shuffle_f32x4(a, c, EVEN);
        rows[4 + i] = _mm512_shuffle_f32x4(b, d, EVEN);
        rows[8 + i] = _mm512_shuffle_f32x4(a, c, ODD);
        rows[12 + i] = _mm512_shuffle_f32x4(b, d, ODD);
    }
}

// The compiler does not know what memory the instructions for tiles read.
inline void all_is_written() { __asm__ volatile("" ::: "memory"); }

// Shapes of the processor's eight tiles, with columns of 32 bits.
WITH_TILES inline void configure(const int64_t *rows, const int64_t *columns) {
    struct {
        uint8_t palette = 1, start = 0, unused[14] = {};
        uint16_t bytes[16] = {};
        uint8_t rows[16] = {};
    } shapes;
    for (int t = 0; t < 8; t++) {
        shapes.bytes[t] = 4 * columns[t];
        shapes.rows[t] = rows[t];
    }
    all_is_written();
    _tile_loadconfig(&shapes);
}

// 64 bytes, of which those past `count` are 0.
inline __m512i piece(const char *from, int64_t count) {
    return _mm512_maskz_loadu_epi8(count >= PIECE ? ~0ull : (1ull << count) - 1, from);
}

// Rows of x that weights pass at once: as many as stay in the second-level cache meanwhile, but no few for which all
// weights would be read anew.
inline int64_t tile_block(int64_t inputs) {
    constexpr int64_t STAY = 1 << 20, FEW = 128;  // bytes; rows
    return least(TILE_BLOCK, most(FEW, STAY / (2 * inputs) / SIDE * SIDE));
}

// Rows of x in pieces of 64 bytes, packed: [tiles, pieces, 16 lanes, rows of a tile], in lanes of 32 bits.
struct Tiles {
    int64_t rows, pieces;
    uint32_t *start;
    int64_t count = most(1, (rows + SIDE - 1) / SIDE), each = (rows + count - 1) / count;  // tiles, and rows of each

    int64_t bytes() const { return count * pieces * SIDE * each * sizeof(uint32_t); }
    uint32_t *at(int64_t tile, int64_t one) const { return start + (tile * pieces + one) * SIDE * each; }

    // One piece of the rows of one tile, where found(row, one) is that of a row.
    template <typename F>
    void pack(int64_t tile, int64_t one, F found) const {
        uint32_t *to = at(tile, one);
        __m512 lanes[SIDE];
        for (int64_t r = 0; r < SIDE; r++) {
            bool is_row = r < each && tile * each + r < rows;
            lanes[r] = _mm512_castsi512_ps(is_row ? found(tile * each + r, one) : _mm512_setzero_si512());
        }
        if (each == 1) return _mm512_storeu_ps(to, lanes[0]);
        transpose(lanes);
        for (int64_t lane = 0; lane < SIDE; lane++) _mm512_mask_storeu_ps(to + lane * each, first(each), lanes[lane]);
    }

    // All of which there are `count * pieces`, of x [rows, inputs].
    void pack(const bfloat16 *x, int64_t inputs, int64_t i) const {
        pack(i / pieces, i % pieces, [=](int64_t row, int64_t one) {
            return piece((const char *)(x + row * inputs) + one * PIECE, 2 * inputs - one * PIECE);
        });
    }
};

inline int64_t pieces_of(int64_t bytes) { return (bytes + PIECE - 1) / PIECE; }

// Rows of bfloat16.
inline Tiles tiles_of(int64_t rows, int64_t inputs, void *start) {
    return {rows, pieces_of(2 * inputs), (uint32_t *)start};
}

// What is multiplied at once: two tiles' outputs, which need not be neighbours.
struct TilePanel {
    const char *half[2];
    int64_t width[2];    // outputs of each, at most SIDE
    int64_t row, pitch;  // bytes of an output's weights, and from these to the next output's
    int64_t output;      // the first

    bool is_whole() const { return width[0] == SIDE && width[1] == SIDE && row % PIECE == 0; }

    // `count` pieces from `one` on, [pieces, 2, 16 outputs]: zeros past the last output and the last input.
    void copy(int64_t one, int64_t count, char *to) const {
        for (int64_t k = one * PIECE; count > 0; count--, k += PIECE)
            for (int h = 0; h < 2; h++)
                for (int64_t o = 0; o < SIDE; o++, to += PIECE) {
                    const char *from = half[h] + o * pitch + k;
                    _mm512_store_si512(to, o < width[h] ? piece(from, row - k) : _mm512_setzero_si512());
                }
    }
};

// Weights [outputs, row bytes], `pitch` bytes apart, by panels. With gates, which are the first half of them, a panel
// has SIDE gates and as many outputs that they are for, and `outputs` counts these alone.
struct TilePanels {
    const void *weights;
    int64_t row, pitch, outputs;
    bool with_gates = false;

    int64_t each() const { return with_gates ? SIDE : TILE_PANEL; }
    int64_t count() const { return (outputs + each() - 1) / each(); }

    TilePanel operator[](int64_t i) const {
        int64_t output = i * each(), width = least(each(), outputs - output);
        const char *from = (const char *)weights + output * pitch;
        if (with_gates) return {{from, from + outputs * pitch}, {width, width}, row, pitch, output};
        return {{from, from + SIDE * pitch}, {least(SIDE, width), most(0, width - SIDE)}, row, pitch, output};
    }

    // The one behind it, or the last again.
    TilePanel behind(int64_t i) const { return (*this)[least(i + 1, count() - 1)]; }
};

// What is read ahead of its use: the weights that come next, from several places at once, at each line after line. The
// processor's own reading ahead then follows each of them and is far enough in front, together, of what waits for
// memory, which few lines can at a time. Lines asked for where tiles will want them, here and there, would be such.
class AheadOfTiles {
   public:
    static constexpr int64_t PARTS = 4;            // of the places, read one after the other between products
    static constexpr int64_t PLACES = 4;           // of each half
    static constexpr int64_t EACH = SIDE / PLACES;  // outputs, and lines while a piece is multiplied with all rows

    explicit AheadOfTiles(const TilePanel &next) {
        for (int h = 0; h < 2; h++)
            for (int64_t p = 0; p < PLACES; p++) places[h * PLACES + p] = next.half[h] + p * EACH * next.pitch;
    }

    void read(int64_t part, int64_t lines) {
        for (int64_t p = part * COUNT / PARTS; p < (part + 1) * COUNT / PARTS; p++)
            for (int64_t i = 0; i < lines; i++, places[p] += 64) _mm_prefetch(places[p], _MM_HINT_T2);
    }

   private:
    static constexpr int64_t COUNT = 2 * PLACES;
    const char *places[COUNT];
};

// Products of a panel with rows of x, of one thread.
class TileSums {
   public:
    // To be called on each thread before others are, for the x that all of them are for; `done` after.
    WITH_TILES static void begin(const Tiles &x) {
        int64_t rows[] = {SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, SIDE};
        int64_t columns[] = {x.each, x.each, x.each, x.each, SIDE, SIDE, x.each, x.each};
        configure(rows, columns);
    }
    WITH_TILES static void done() { _tile_release(); }

    // With BYTES pieces are of int8, and sums are int32. `next` is the panel that is read ahead meanwhile.
    template <bool BYTES = false>
    void multiply(const Tiles &x, const TilePanel &w, const TilePanel &next) {
        bool in_place = w.is_whole();
        int64_t depth = in_place && x.count <= 2 ? x.pieces : TILE_DEPTH;
        AheadOfTiles ahead(next);
        for (int64_t one = 0; one < x.pieces; one += depth) {
            int64_t count = least(depth, x.pieces - one);
            if (!in_place) w.copy(one, count, copied);
            for (int64_t tile = 0; tile < x.count; tile += 2) {
                bool two = tile + 1 < x.count;
                auto add_two = in_place ? &TileSums::add<true, true, BYTES> : &TileSums::add<true, false, BYTES>;
                auto add_one = in_place ? &TileSums::add<false, true, BYTES> : &TileSums::add<false, false, BYTES>;
                (this->*(two ? add_two : add_one))(x, tile, w, one, count, ahead);
            }
        }
    }

    // Of one half of the panel and one tile of x: for each output the sums of 16 rows of x.
    const float *of(int64_t tile, int half) const { return sums[tile][half]; }

   private:
    // Adds the products of a tile of x, or of two. The processor's tiles 0 to 3 are sums, 4 and 5 weights, 6 and 7 x.
    template <bool TWO, bool IN_PLACE, bool BYTES>
    WITH_TILES void add(const Tiles &x, int64_t tile, const TilePanel &w, int64_t from, int64_t count,
                        AheadOfTiles &ahead) {
#define ADD_PRODUCT(sums, weights, x)   \
    if (BYTES)                          \
        _tile_dpbssd(sums, weights, x); \
    else                                \
        _tile_dpbf16ps(sums, weights, x)
        const int64_t line = 4 * x.each, pitch = IN_PLACE ? w.pitch : PIECE;
        auto &mine = sums[tile], &more = sums[tile + TWO];
        all_is_written();
        if (from == 0) {
            _tile_zero(0);
            _tile_zero(1);
            if (TWO) _tile_zero(2);
            if (TWO) _tile_zero(3);
        } else {
            _tile_loadd(0, mine[0], 4 * SIDE);
            _tile_loadd(1, mine[1], 4 * SIDE);
            if (TWO) _tile_loadd(2, more[0], 4 * SIDE);
            if (TWO) _tile_loadd(3, more[1], 4 * SIDE);
        }
        int64_t turns = (x.count + 1) / 2, turn = tile / 2;  // all pairs of tiles take part in reading ahead
        int64_t lines = ahead.EACH * (turn + 1) / turns - ahead.EACH * turn / turns;
        for (int64_t one = from; one < from + count; one++) {
            const char *near = copied + (one - from) * TILE_PANEL * PIECE;
            const uint32_t *rows = x.at(tile, one);
            ahead.read(0, lines);
            _tile_loadd(4, IN_PLACE ? w.half[0] + one * PIECE : near, pitch);
            _tile_loadd(6, rows, line);
            ADD_PRODUCT(0, 4, 6);
            ahead.read(1, lines);
            _tile_loadd(5, IN_PLACE ? w.half[1] + one * PIECE : near + SIDE * PIECE, pitch);
            ADD_PRODUCT(1, 5, 6);
            ahead.read(2, lines);
            if (TWO) {
                _tile_loadd(7, rows + x.pieces * SIDE * x.each, line);
                ADD_PRODUCT(2, 4, 7);
            }
            ahead.read(3, lines);
            if (TWO) {
                ADD_PRODUCT(3, 5, 7);
            }
        }
#undef ADD_PRODUCT
        _tile_stored(0, mine[0], 4 * SIDE);
        _tile_stored(1, mine[1], 4 * SIDE);
        if (TWO) _tile_stored(2, more[0], 4 * SIDE);
        if (TWO) _tile_stored(3, more[1], 4 * SIDE);
    }

    alignas(64) float sums[TILE_BLOCK / SIDE][2][SIDE * SIDE];  // of each tile of x: [outputs, rows]; of BYTES int32
    alignas(64) char copied[TILE_DEPTH * TILE_PANEL * PIECE];
};

}  // namespace
