// Norms, rotation and activations as calls of their own.

#include "elementwise.h"

namespace {

constexpr int64_t WORTH_THREADS = 1 << 16;  // elements: for fewer, waking another thread costs more than it saves

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
