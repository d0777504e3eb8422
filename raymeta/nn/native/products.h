// What the compiled scans and steps have in common: gate functions, and products of small matrices.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

// A loop over hidden units with independent iterations, which the compiler cannot know.
#define SIMD _Pragma("omp simd")

namespace {

// ---------------------------------------------------------------- functions that vectorise

// exp by Cody and Waite's reduction and Cephes' polynomial, within 2 units in the last place; NaN
// stays NaN.  Loops over it vectorise, which calls of the C library do not.
inline float exp_of(float x) {
  x = x > 88.0f ? 88.0f : x;
  x = x < -87.0f ? -87.0f : x;
  const float shifted = x * 1.44269504088896341f + 12582912.0f;  // rounds to the nearest integer
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float y = 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * (r * r) + r + 1.0f;
  std::uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits - 0x4B400000u + 127u) << 23;  // 2^n
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return y * scale;
}
inline double exp_of(double x) { return std::exp(x); }

template <class R>
inline R sigmoid(R x) {
  return R(1) / (R(1) + exp_of(-x));
}

inline float tanh_of(float x) {
  const float z = x * x;
  float p = -5.70498872745e-3f;
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  const float near_zero = p * z * x + x;
  const float far = 1.0f - 2.0f / (exp_of(2.0f * x) + 1.0f);
  return z < 0.390625f ? near_zero : far;
}
inline double tanh_of(double x) { return std::tanh(x); }

// ---------------------------------------------------------------- C += A B

#if defined(__AVX512F__)
constexpr int kBytes = 64, kColumns = 4, kRows = 6;
#else
constexpr int kBytes = 32, kColumns = 2, kRows = 6;
#endif
constexpr long kInner = 128;  // of a product of long sums

template <class R>
struct Vector {
  typedef R Type __attribute__((vector_size(kBytes), aligned(alignof(R)), may_alias));
  static constexpr int size = kBytes / sizeof(R);
};

// A matrix whose rows, or whose columns if it is transposed, are dense and `step` apart.
template <class R, bool Turned>
struct Left {
  const R* data;
  long step;
  R operator()(long i, long l) const { return Turned ? data[l * step + i] : data[i * step + l]; }
  Left from(long i) const { return {data + (Turned ? i : i * step), step}; }
};

// M rows and V vectors of columns of C stay in registers over the whole inner dimension.
template <class R, int M, int V, class A>
inline void multiply_block(long k, A a, const R* b, long ldb, R* c, long ldc) {
  using Vec = typename Vector<R>::Type;
  constexpr int W = Vector<R>::size;
  Vec sum[M][V];
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < V; ++j) sum[i][j] = *reinterpret_cast<const Vec*>(c + i * ldc + j * W);
  for (long l = 0; l < k; ++l) {
    Vec row[V];
    for (int j = 0; j < V; ++j) row[j] = *reinterpret_cast<const Vec*>(b + l * ldb + j * W);
    for (int i = 0; i < M; ++i) {
      const R factor = a(i, l);
      for (int j = 0; j < V; ++j) sum[i][j] += factor * row[j];
    }
  }
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < V; ++j) *reinterpret_cast<Vec*>(c + i * ldc + j * W) = sum[i][j];
}

// `tail` holds the columns of B that fill no vector, padded to one.
template <class R, int M, class A>
inline void multiply_rows(long n, long k, A a, const R* b, long ldb, R* c, const R* tail) {
  constexpr int W = Vector<R>::size;
  long j = 0;
  for (; j + kColumns * W <= n; j += kColumns * W)
    multiply_block<R, M, kColumns>(k, a, b + j, ldb, c + j, n);
  for (; j + W <= n; j += W) multiply_block<R, M, 1>(k, a, b + j, ldb, c + j, n);
  if (j == n) return;
  R sums[M * W] = {};
  for (int i = 0; i < M; ++i) std::copy_n(c + i * n + j, n - j, sums + i * W);
  multiply_block<R, M, 1>(k, a, tail, W, sums, W);
  for (int i = 0; i < M; ++i) std::copy_n(sums + i * W, n - j, c + i * n + j);
}

// C [m, n] += A [m, k] B [k, n]; B's rows are `ldb` apart, those of C are dense.
template <class R, class A>
void multiply_add(long m, long n, long k, A a, const R* b, long ldb, R* c) {
  constexpr int W = Vector<R>::size;
  thread_local std::vector<R> tail;
  if (const long rest = n % W) {
    tail.assign(k * W, R(0));
    for (long l = 0; l < k; ++l) std::copy_n(b + l * ldb + n - rest, rest, tail.data() + l * W);
  }
  const long blocks = (m + kRows - 1) / kRows;
  for (long block = 0, row = 0; block < blocks; ++block) {
    const long rows = m / blocks + (block < m % blocks);  // even shares: 25 = 5 × 5, not 4 × 6 + 1
    const A from = a.from(row);
    R* to = c + row * n;
    switch (rows) {
      case 1: multiply_rows<R, 1>(n, k, from, b, ldb, to, tail.data()); break;
      case 2: multiply_rows<R, 2>(n, k, from, b, ldb, to, tail.data()); break;
      case 3: multiply_rows<R, 3>(n, k, from, b, ldb, to, tail.data()); break;
      case 4: multiply_rows<R, 4>(n, k, from, b, ldb, to, tail.data()); break;
      case 5: multiply_rows<R, 5>(n, k, from, b, ldb, to, tail.data()); break;
      default: multiply_rows<R, kRows>(n, k, from, b, ldb, to, tail.data());
    }
    row += rows;
  }
}

// The same for dense matrices, within the scans.
template <class R>
void multiply_add(long m, long n, long k, const R* a, const R* b, R* c) {
  multiply_add(m, n, k, Left<R, false>{a, k}, b, n, c);
}

// ---------------------------------------------------------------- cells

enum Cell { kRnn = 0, kGru = 1, kLstm = 2 };
constexpr long kGates[] = {1, 3, 4};

template <class R>
void add_row(R* __restrict__ to, const R* __restrict__ from, long size) {
  SIMD for (long j = 0; j < size; ++j) to[j] += from[j];
}

}  // namespace
