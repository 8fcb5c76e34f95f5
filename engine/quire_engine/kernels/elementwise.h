// What is done to each token alone between the linears: norms, rotation, activations, and keys and values kept.

#pragma once

#include "lanes.h"

namespace {

// one(d, which) for sixteen of `size` elements at a time, from d on; `which` of them there are.
template <typename F>
inline void by_sixteen(int64_t size, F one) {
    int64_t d = 0;
    for (; d + 16 <= size; d += 16) one(d, (__mmask16)0xffff);
    if (d < size) one(d, first(size - d));
}

// x / rms(x) * weight, where `squares` are the sums of x^2 by lanes. With `offset` the weight is 1 + weight, and the
// product is rounded once, as Gemma has it.
template <typename T>
inline void scale_by_rms(const T *x, __m512 squares, const T *weight, T *out, int64_t size, float eps, bool offset) {
    float mean = _mm512_reduce_add_ps(squares) / (float)size;
    __m512 factor = _mm512_set1_ps(1.0f / __builtin_sqrtf(mean + eps));
    by_sixteen(size, [&](int64_t d, __mmask16 which) {
        __m512 values = _mm512_mul_ps(load(x + d, which), factor), factors = load(weight + d, which);
        if (offset)
            factors = _mm512_add_ps(factors, _mm512_set1_ps(1.0f));
        else
            values = rounded(x, values);
        store(out + d, _mm512_mul_ps(values, factors), which);
    });
}

template <typename T>
void rms_norm(const T *x, const T *weight, T *out, int64_t size, float eps, bool offset) {
    __m512 squares = _mm512_setzero_ps();
    by_sixteen(size, [&](int64_t d, __mmask16 which) {
        __m512 values = load(x + d, which);
        squares = _mm512_fmadd_ps(values, values, squares);
    });
    scale_by_rms(x, squares, weight, out, size, eps, offset);
}

// x + more in place of x, and `rms_norm` of that.
template <typename T>
void add_and_norm(T *x, const T *more, const T *weight, T *out, int64_t size, float eps, bool offset) {
    __m512 squares = _mm512_setzero_ps();
    by_sixteen(size, [&](int64_t d, __mmask16 which) {
        __m512 values = rounded(x, _mm512_add_ps(load(x + d, which), load(more + d, which)));
        store_rounded(x + d, values, which);
        squares = _mm512_fmadd_ps(values, values, squares);
    });
    scale_by_rms(x, squares, weight, out, size, eps, offset);
}

template <typename T>
void add(T *x, const T *more, int64_t size) {
    by_sixteen(size, [&](int64_t d, __mmask16 which) {
        store(x + d, _mm512_add_ps(load(x + d, which), load(more + d, which)), which);
    });
}

// 1 / x to 2 units in the last place, for x from 1 on, in a quarter of a division's time (Newton's method); 0 of
// infinity.
inline __m512 reciprocal(__m512 x) {
    __m512 near = _mm512_rcp14_ps(x), error = _mm512_fnmadd_ps(x, near, _mm512_set1_ps(1.0f));
    __mmask16 finite = _mm512_cmp_ps_mask(x, _mm512_set1_ps(__builtin_inff()), _CMP_NEQ_UQ);
    return _mm512_mask_fmadd_ps(near, finite, error, near);
}

INLINED __m512 silu(__m512 x) {
    __m512 below = _mm512_add_ps(_mm512_set1_ps(1.0f), exponential(_mm512_sub_ps(_mm512_setzero_ps(), x)));
    return _mm512_mul_ps(x, reciprocal(below));
}

template <typename T>
void silu_and_mul(const T *gate, const T *up, T *out, int64_t size) {
    for (int64_t d = 0; d < size; d += 16) {
        __mmask16 which = first(size - d);
        __m512 factor = rounded(gate, silu(load(gate + d, which)));
        store(out + d, _mm512_mul_ps(factor, load(up + d, which)), which);
    }
}

// The pairs (i, i + half) of one head, where the features past 2 * half stay. `out` may be `x`.
template <typename T>
void rotate(const T *x, const T *cos, const T *sin, T *out, int64_t half, int64_t size) {
    for (int64_t d = 0; d < half; d += 16) {
        __mmask16 which = first(half - d);
        __m512 left = load(x + d, which), right = load(x + half + d, which);
        __m512 c = load(cos + d, which), s = load(sin + d, which);
        store(out + d, _mm512_fmsub_ps(left, c, _mm512_mul_ps(right, s)), which);
        store(out + half + d, _mm512_fmadd_ps(right, c, _mm512_mul_ps(left, s)), which);
    }
    if (out != x) memcpy(out + 2 * half, x + 2 * half, (size - 2 * half) * sizeof(T));
}

}  // namespace
