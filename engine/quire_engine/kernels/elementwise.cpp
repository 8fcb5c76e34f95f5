// What is done to each token alone between the linears: norms, rotation, activations, and keys and values kept.

#include "lanes.h"

namespace {

constexpr int64_t WORTH_THREADS = 1 << 16;  // elements: for fewer, waking another thread costs more than it saves

// x / rms(x) * weight. With `offset` the weight is 1 + weight, and the product is rounded once, as Gemma has it.
template <typename T>
void rms_norm(const T *x, const T *weight, T *out, int64_t size, float eps, bool offset) {
    __m512 squares = _mm512_setzero_ps();
    for (int64_t d = 0; d < size; d += 16) {
        __m512 values = load(x + d, first(size - d));
        squares = _mm512_fmadd_ps(values, values, squares);
    }
    float mean = _mm512_reduce_add_ps(squares) / (float)size;
    __m512 factor = _mm512_set1_ps(1.0f / __builtin_sqrtf(mean + eps));
    for (int64_t d = 0; d < size; d += 16) {
        __mmask16 which = first(size - d);
        __m512 values = _mm512_mul_ps(load(x + d, which), factor), factors = load(weight + d, which);
        if (offset)
            factors = _mm512_add_ps(factors, _mm512_set1_ps(1.0f));
        else
            values = rounded(x, values);
        store(out + d, _mm512_mul_ps(values, factors), which);
    }
}

// silu(gate) * up
template <typename T>
void silu_and_mul(const T *gate, const T *up, T *out, int64_t size) {
    const __m512 one = _mm512_set1_ps(1.0f);
    for (int64_t d = 0; d < size; d += 16) {
        __mmask16 which = first(size - d);
        __m512 x = load(gate + d, which);
        __m512 below = _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), x)));
        store(out + d, _mm512_mul_ps(rounded(gate, _mm512_div_ps(x, below)), load(up + d, which)), which);
    }
}

// The pairs (i, i + half) of one head, where the features past 2 * half stay.
template <typename T>
void rotate(const T *x, const T *cos, const T *sin, T *out, int64_t half, int64_t size) {
    for (int64_t d = 0; d < half; d += 16) {
        __mmask16 which = first(half - d);
        __m512 left = load(x + d, which), right = load(x + half + d, which);
        __m512 c = load(cos + d, which), s = load(sin + d, which);
        store(out + d, _mm512_fmsub_ps(left, c, _mm512_mul_ps(right, s)), which);
        store(out + half + d, _mm512_fmadd_ps(right, c, _mm512_mul_ps(left, s)), which);
    }
    memcpy(out + 2 * half, x + 2 * half, (size - 2 * half) * sizeof(T));
}

template <typename F>
void for_each_token(int64_t tokens, int64_t elements, int threads, F one) {
#pragma omp parallel for num_threads(threads) schedule(static) if (tokens * elements > WORTH_THREADS)
    for (int64_t t = 0; t < tokens; t++) one(t);
}

}  // namespace

extern "C" {

#define ELEMENTWISE(T)                                                                                                \
    /* x [tokens, size], rows `stride` elements apart, weight [size] -> out [tokens, size] */                         \
    void rms_norm_##T(const T *x, int64_t stride, const T *weight, T *out, int64_t tokens, int64_t size, float eps,   \
                      int offset, int threads) {                                                                      \
        for_each_token(tokens, size, threads,                                                                         \
                       [=](int64_t t) { rms_norm(x + t * stride, weight, out + t * size, size, eps, offset); });      \
    }                                                                                                                 \
    /* x [tokens, 2 * size], contiguous -> out [tokens, size] */                                                      \
    void silu_and_mul_##T(const T *x, T *out, int64_t tokens, int64_t size, int threads) {                            \
        for_each_token(tokens, 4 * size, threads, [=](int64_t t) {                                                    \
            silu_and_mul(x + 2 * t * size, x + (2 * t + 1) * size, out + t * size, size);                             \
        });                                                                                                           \
    }                                                                                                                 \
    /* x [tokens, heads, size], tokens `stride` apart, cos and sin [tokens, half] -> out [tokens, heads, size] */     \
    void rotate_##T(const T *x, int64_t stride, const T *cos, const T *sin, T *out, int64_t tokens, int64_t heads,    \
                    int64_t half, int64_t size, int threads) {                                                        \
        for_each_token(tokens, heads * size, threads, [=](int64_t t) {                                                \
            for (int64_t h = 0; h < heads; h++)                                                                       \
                rotate(x + t * stride + h * size, cos + t * half, sin + t * half, out + (t * heads + h) * size, half, \
                       size);                                                                                         \
        });                                                                                                           \
    }

ELEMENTWISE(bfloat16)
ELEMENTWISE(float32)

// Rows of `width` bytes of keys and values, `k_stride` and `v_stride` bytes apart, to their slots of the caches.
void keep(const char *k, int64_t k_stride, const char *v, int64_t v_stride, char *k_cache, char *v_cache,
          const int64_t *slots, int64_t tokens, int64_t width) {
    for (int64_t t = 0; t < tokens; t++) {
        memcpy(k_cache + slots[t] * width, k + t * k_stride, width);
        memcpy(v_cache + slots[t] * width, v + t * v_stride, width);
    }
}
}
