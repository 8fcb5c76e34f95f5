// The greatest of a row of numbers in bfloat16.

#pragma once

#include "lanes.h"

namespace {

constexpr int INFINITE = 0x7f80;            // the bits of infinity, which those of NaN are above

// As integers in the order of the numbers, where -0 is 0.
inline __m512i in_order(__m512i bits) {
    bits = _mm512_maskz_mov_epi16(~_mm512_cmpeq_epi16_mask(bits, _mm512_set1_epi16((short)0x8000)), bits);
    __m512i negative = _mm512_and_si512(_mm512_srai_epi16(bits, 15), _mm512_set1_epi16(0x7fff));
    return _mm512_xor_si512(bits, negative);
}

// Where the first of the greatest is: `none` for a row that holds NaN or infinity, or -infinity alone.
inline int64_t first_of_greatest(const bfloat16 *row, int64_t columns, int64_t none) {
    const __m512i magnitude = _mm512_set1_epi16(0x7fff);
    __m512i greatest = _mm512_set1_epi16((short)0x8000), largest = _mm512_setzero_si512();
    for (int64_t k = 0; k < columns; k += 32) {
        __mmask32 which = columns - k >= 32 ? 0xffffffff : (1u << (columns - k)) - 1;
        __m512i bits = _mm512_maskz_loadu_epi16(which, row + k);
        greatest = _mm512_mask_max_epi16(greatest, which, greatest, in_order(bits));
        largest = _mm512_max_epu16(largest, _mm512_and_si512(bits, magnitude));
    }
    int16_t lanes[32], best = -0x8000;
    _mm512_storeu_si512(lanes, greatest);
    for (int16_t lane : lanes) best = lane > best ? lane : best;
    bool has_nan = _mm512_cmpgt_epu16_mask(largest, _mm512_set1_epi16(INFINITE));
    if (has_nan || best >= INFINITE || best <= ~INFINITE) return none;
    for (int64_t k = 0; k < columns; k += 32) {
        __mmask32 which = columns - k >= 32 ? 0xffffffff : (1u << (columns - k)) - 1;
        __m512i bits = in_order(_mm512_maskz_loadu_epi16(which, row + k));
        __mmask32 found = _mm512_mask_cmpeq_epi16_mask(which, bits, _mm512_set1_epi16(best));
        if (found) return k + __builtin_ctz(found);
    }
    return none;  // of no columns
}

}  // namespace
