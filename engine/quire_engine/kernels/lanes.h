// Kernels for processors with AVX-512, and here what they share: sixteen floats at a time, from and to float32 and
// bfloat16. `cpu.py` loads the library, says when it is used, and has torch in its place.
//
// Built without libstdc++ and torch, so that one build serves every version of both. Its OpenMP is the libgomp that
// torch has loaded: one pool of threads.

#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

namespace {

typedef uint16_t bfloat16;
typedef float float32;

// Of what is called for each tile, whose vectors would go by memory: the compiler inlines only so much of a file by
// itself.
#define INLINED [[gnu::always_inline]] inline

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
inline __mmask16 first(int64_t count) { return count >= 16 ? 0xffff : (__mmask16)((1u << count) - 1); }

inline __m512 widened(__m256i halves) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

// Of 32 numbers in bfloat16 those at even places, or at odd ones.
INLINED __m512 evens(__m512i numbers) { return _mm512_castsi512_ps(_mm512_slli_epi32(numbers, 16)); }
INLINED __m512 odds(__m512i numbers) {
    return _mm512_castsi512_ps(_mm512_and_si512(numbers, _mm512_set1_epi32((int)0xffff0000)));
}

// To nearest, ties to even, in the upper half of each lane; NaN stays NaN.
inline __m512i narrow(__m512 values) {
    __m512i bits = _mm512_castps_si512(values);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
    return _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000));
}

inline __m256i narrowed(__m512 values) { return _mm512_cvtepi32_epi16(_mm512_srli_epi32(narrow(values), 16)); }

// What `which` leaves out is read as 0, and not written.
inline __m512 load(const bfloat16 *from, __mmask16 which = 0xffff) {
    return widened(_mm256_maskz_loadu_epi16(which, from));
}
inline __m512 load(const float *from, __mmask16 which = 0xffff) { return _mm512_maskz_loadu_ps(which, from); }
inline void store(bfloat16 *to, __m512 values, __mmask16 which = 0xffff) {
    _mm256_mask_storeu_epi16(to, which, narrowed(values));
}
inline void store(float *to, __m512 values, __mmask16 which = 0xffff) { _mm512_mask_storeu_ps(to, which, values); }

// Of values that an element of T holds as they are.
inline void store_rounded(bfloat16 *to, __m512 values, __mmask16 which = 0xffff) {
    __m256i halves = _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(values), 16));
    _mm256_mask_storeu_epi16(to, which, halves);
}
inline void store_rounded(float *to, __m512 values, __mmask16 which = 0xffff) { store(to, values, which); }

// As one element of T would hold them.
inline __m512 rounded(const bfloat16 *, __m512 values) {
    return _mm512_castsi512_ps(_mm512_and_si512(narrow(values), _mm512_set1_epi32((int)0xffff0000)));
}
inline __m512 rounded(const float *, __m512 values) { return values; }

// The sums of the lanes of four vectors.
inline __m128 lane_sums(__m512 a, __m512 b, __m512 c, __m512 d) {
    __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    __m512 sums = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
    __m256 halves = _mm256_add_ps(_mm512_castps512_ps256(sums), _mm512_extractf32x8_ps(sums, 1));
    return _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
}

// e^x to 2 units in the last place (a Taylor polynomial around the nearest power of 2); NaN stays NaN.
inline __m512 exponential(__m512 x) {
    x = _mm512_min_ps(_mm512_set1_ps(128.0f), _mm512_max_ps(_mm512_set1_ps(-126.0f), x));
    __m512 power = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    __m512 rest = _mm512_fnmadd_ps(power, _mm512_set1_ps(0.693359375f), x);
    rest = _mm512_fnmadd_ps(power, _mm512_set1_ps(-2.12194440e-4f), rest);
    __m512 sum = _mm512_set1_ps(1.0f / 5040);
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.0f / 720));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.0f / 120));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.0f / 24));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.0f / 6));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(0.5f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.0f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(sum, power);
}

}  // namespace
