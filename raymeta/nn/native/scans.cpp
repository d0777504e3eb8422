// The scans of raymeta/nn/torch_scans.py over whole sequences, compiled at first use by __init__.py.
//
// An episode's examples do not see each other, so a task is one episode's block of examples over all
// time steps: weights and states stay in the cache, and each gate is made, used and stored once.
//
// Shapes: E episodes, T time steps, N examples, H hidden units, G gates; row-major, E first.  Names:
// x_ is the tangent of x; ah, aq, ac are the adjoints of states, products and cell states.  A masked
// step repeats the state before it and has no gates.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "products.h"

namespace {

// C [E, m, n] = A B for E matrices each.  `a_steps` are the distances in A between episodes, rows
// and columns, one of the last two being 1; `b_steps` those in B between episodes and rows.
template <class R>
void multiply(const long* sizes, int threads, const R* a, const long* a_steps, const R* b,
              const long* b_steps, R* c) {
  const long E = sizes[0], m = sizes[1], n = sizes[2], k = sizes[3];
  const long blocks = threads > 1 ? (m + 63) / 64 : 1;
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
  for (long task = 0; task < E * blocks; ++task) {
    const long e = task / blocks, first = task % blocks * 64;
    const long rows = blocks > 1 ? std::min(m - first, 64L) : m;
    const R* right = b + e * b_steps[0];
    R* to = c + (e * m + first) * n;
    std::fill_n(to, rows * n, R(0));
    const R* left = a + e * a_steps[0] + first * a_steps[1];
    // Parts of the inner dimension, so that what is read again and again stays in the cache.
    for (long l = 0; l < k; l += kInner) {
      const long part = std::min(k - l, kInner);
      const R* factor = right + l * b_steps[1];
      if (a_steps[2] == 1)
        multiply_add(rows, n, part, Left<R, false>{left + l, a_steps[1]}, factor, b_steps[1], to);
      else
        multiply_add(rows, n, part, Left<R, true>{left + l * a_steps[2], a_steps[2]}, factor,
                     b_steps[1], to);
    }
  }
}

// ---------------------------------------------------------------- tasks

struct Sizes {
  long episodes, steps, examples, hidden;
};

constexpr long kBlock = 30;  // examples of a task; a multiple of kRows

// Calls task(episode, first example, number of examples) for blocks that cover everything.
template <class Task>
void for_blocks(const Sizes& s, int threads, Task task) {
  const long blocks = (s.examples + kBlock - 1) / kBlock;
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
  for (long i = 0; i < s.episodes * blocks; ++i) {
    const long block = i % blocks, size = s.examples / blocks, rest = s.examples % blocks;
    const long first = block * size + std::min(block, rest);
    task(i / blocks, first, size + (block < rest));
  }
}

// Rows of a tensor [E, T, N, width] at one episode, step and example.
template <class R>
struct Rows {
  R* data;
  long steps, examples, width;
  R* operator()(long e, long t, long n) const {
    return data + ((e * steps + t) * examples + n) * width;
  }
};

// ---------------------------------------------------------------- the layer itself

template <class R>
void run(Cell cell, const Sizes& s, int threads, const R* inputs, const R* weight, const R* bias,
         const std::uint8_t* mask, R* states, R* gates, R* extra) {
  const long H = s.hidden, G = kGates[cell] * H, T = s.steps, N = s.examples;
  const Rows<const R> p{inputs, T, N, G};
  const Rows<const std::uint8_t> valid{mask, T, N, 1};
  const Rows<R> h{states, T + 1, N, H}, g{gates, T, N, G};
  const Rows<R> product{extra, T, N, H}, c{extra, T + 1, N, H};
  for_blocks(s, threads, [&](long e, long first, long count) {
    std::vector<R> scratch(count * G);
    std::fill_n(h(e, 0, first), count * H, R(0));
    if (cell == kLstm) std::fill_n(c(e, 0, first), count * H, R(0));
    for (long t = 0; t < T; ++t) {
      for (long n = 0; n < count; ++n) std::copy_n(bias + e * G, G, scratch.data() + n * G);
      if (cell != kGru) add_row(scratch.data(), p(e, t, first), count * G);
      if (t) multiply_add(count, G, H, h(e, t, first), weight + e * H * G, scratch.data());
      for (long n = 0; n < count; ++n) {
        const R* __restrict__ q = scratch.data() + n * G;
        const R* __restrict__ before = h(e, t, first + n);
        R* __restrict__ after = h(e, t + 1, first + n);
        if (mask && !*valid(e, t, first + n)) {
          std::copy_n(before, H, after);
          if (cell != kRnn) std::fill_n(g(e, t, first + n), G, R(0));
          if (cell == kGru) std::fill_n(product(e, t, first + n), H, R(0));
          if (cell == kLstm) std::copy_n(c(e, t, first + n), H, c(e, t + 1, first + n));
          continue;
        }
        if (cell == kRnn) {
          SIMD for (long j = 0; j < H; ++j) after[j] = tanh_of(q[j]);
        } else if (cell == kGru) {
          const R* __restrict__ x = p(e, t, first + n);
          R* __restrict__ gate = g(e, t, first + n);
          R* __restrict__ kept = product(e, t, first + n);
          SIMD for (long j = 0; j < H; ++j) {
            const R r = sigmoid(x[j] + q[j]), z = sigmoid(x[H + j] + q[H + j]);
            const R w = q[2 * H + j], m = tanh_of(x[2 * H + j] + r * w);
            gate[j] = r, gate[H + j] = z, gate[2 * H + j] = m, kept[j] = w;
            after[j] = m + z * (before[j] - m);
          }
        } else {
          R* __restrict__ gate = g(e, t, first + n);
          const R* __restrict__ c0 = c(e, t, first + n);
          R* __restrict__ c1 = c(e, t + 1, first + n);
          SIMD for (long j = 0; j < H; ++j) {
            const R i = sigmoid(q[j]), f = sigmoid(q[H + j]);
            const R m = tanh_of(q[2 * H + j]), o = sigmoid(q[3 * H + j]);
            gate[j] = i, gate[H + j] = f, gate[2 * H + j] = m, gate[3 * H + j] = o;
            c1[j] = f * c0[j] + i * m;
            after[j] = o * tanh_of(c1[j]);
          }
        }
      }
    }
  });
}

// ---------------------------------------------------------------- its gradient

// Sources of a step: what is added to the adjoints of q, and of a GRU's new-gate inputs (to their
// gradient alone) or an LSTM's cell states.
constexpr long kSources[] = {1, 4, 5};

// adjoint_h comes in as the gradient of the states and goes out as the whole adjoint; `transposed`
// is the weight [E, G H, H]; `sources` may be null; grad_inputs is the GRU's alone, elsewhere it is
// adjoint_q.
template <class R>
void adjoint(Cell cell, const Sizes& s, int threads, const R* transposed, const std::uint8_t* mask,
             const R* states, const R* gates, const R* extra, const R* sources, R* adjoint_h,
             R* adjoint_q, R* adjoint_c, R* grad_inputs) {
  const long H = s.hidden, G = kGates[cell] * H, T = s.steps, N = s.examples;
  const Rows<const std::uint8_t> valid{mask, T, N, 1};
  const Rows<const R> h{states, T + 1, N, H}, g{gates, T, N, G};
  const Rows<const R> product{extra, T, N, H}, c{extra, T + 1, N, H};
  const Rows<const R> source{sources, T, N, kSources[cell] * H};
  const Rows<R> ah{adjoint_h, T, N, H}, aq{adjoint_q, T, N, G}, ac{adjoint_c, T, N, H};
  const Rows<R> ap{grad_inputs, T, N, G};
  const std::vector<R> nothing(kSources[cell] * H, R(0));
  for_blocks(s, threads, [&](long e, long first, long count) {
    std::vector<R> carried(count * H, R(0));  // the adjoint of the cell state
    std::vector<R> unused(H);                 // where that of the state before the first would go
    for (long t = T - 1; t >= 0; --t) {
      for (long n = 0; n < count; ++n) {
        const R* __restrict__ a = ah(e, t, first + n);
        const R* __restrict__ add = sources ? source(e, t, first + n) : nothing.data();
        R* __restrict__ q = aq(e, t, first + n);
        R* __restrict__ cell_adjoint = carried.data() + n * H;
        R* __restrict__ back = t ? ah(e, t - 1, first + n) : unused.data();
        if (mask && !*valid(e, t, first + n)) {
          std::fill_n(q, G, R(0));
          if (cell == kGru) std::fill_n(ap(e, t, first + n), G, R(0));
          if (cell == kLstm) {
            add_row(cell_adjoint, add + G, H);
            std::copy_n(cell_adjoint, H, ac(e, t, first + n));
          }
          add_row(back, a, H);
          continue;
        }
        if (cell == kRnn) {
          const R* __restrict__ y = h(e, t + 1, first + n);
          SIMD for (long j = 0; j < H; ++j) q[j] = a[j] * (1 - y[j] * y[j]) + add[j];
        } else if (cell == kGru) {
          const R* __restrict__ gate = g(e, t, first + n);
          const R* __restrict__ w = product(e, t, first + n);
          const R* __restrict__ before = h(e, t, first + n);
          R* __restrict__ x = ap(e, t, first + n);
          SIMD for (long j = 0; j < H; ++j) {
            const R r = gate[j], z = gate[H + j], m = gate[2 * H + j];
            const R a_n = a[j] * (1 - m * m) * (1 - z);
            q[j] = x[j] = a_n * w[j] * r * (1 - r) + add[j];
            q[H + j] = x[H + j] = a[j] * (before[j] - m) * z * (1 - z) + add[H + j];
            q[2 * H + j] = a_n * r + add[2 * H + j];
            x[2 * H + j] = a_n + add[3 * H + j];
            back[j] += a[j] * z;
          }
        } else {
          const R* __restrict__ gate = g(e, t, first + n);
          const R* __restrict__ c0 = c(e, t, first + n);
          const R* __restrict__ c1 = c(e, t + 1, first + n);
          R* __restrict__ total = ac(e, t, first + n);
          SIMD for (long j = 0; j < H; ++j) {
            const R i = gate[j], f = gate[H + j], m = gate[2 * H + j], o = gate[3 * H + j];
            const R y = tanh_of(c1[j]);
            const R a_c = cell_adjoint[j] + a[j] * o * (1 - y * y) + add[4 * H + j];
            total[j] = a_c;
            q[j] = a_c * m * i * (1 - i) + add[j];
            q[H + j] = a_c * c0[j] * f * (1 - f) + add[H + j];
            q[2 * H + j] = a_c * i * (1 - m * m) + add[2 * H + j];
            q[3 * H + j] = a[j] * y * o * (1 - o) + add[3 * H + j];
            cell_adjoint[j] = a_c * f;
          }
        }
      }
      if (t)
        multiply_add(count, H, G, aq(e, t, first), transposed + e * G * H, ah(e, t - 1, first));
    }
  });
}

// ---------------------------------------------------------------- the gradient's own

// Runs the layer's tangent in direction (u_inputs, u_weight, u_bias), and along with it notes what
// that direction adds to the adjoint scan: to the adjoint of each state, `add_h`, and its `sources`.
// `u_transposed` is u_weight [E, G H, H]; u_bias may be null.
template <class R>
void double_backward(Cell cell, const Sizes& s, int threads, const R* weight,
                     const std::uint8_t* mask, const R* states, const R* gates, const R* extra,
                     const R* adjoint_h, const R* adjoint_q, const R* adjoint_c,
                     const R* u_inputs, const R* u_weight, const R* u_transposed, const R* u_bias,
                     R* states_, R* add_h, R* sources) {
  const long H = s.hidden, G = kGates[cell] * H, T = s.steps, N = s.examples;
  const Rows<const std::uint8_t> valid{mask, T, N, 1};
  const Rows<const R> h{states, T + 1, N, H}, g{gates, T, N, G};
  const Rows<const R> product{extra, T, N, H}, c{extra, T + 1, N, H}, u{u_inputs, T, N, G};
  const Rows<const R> ah{adjoint_h, T, N, H}, aq{adjoint_q, T, N, G}, ac{adjoint_c, T, N, H};
  const Rows<R> h_{states_, T + 1, N, H}, to_h{add_h, T, N, H};
  const Rows<R> source{sources, T, N, kSources[cell] * H};
  for_blocks(s, threads, [&](long e, long first, long count) {
    std::vector<R> scratch(count * G), cells(cell == kLstm ? count * H : 0, R(0));
    std::vector<R> unused(H, R(0));  // where a source before the first step would go
    std::fill_n(h_(e, 0, first), count * H, R(0));
    std::fill_n(to_h(e, T - 1, first), count * H, R(0));
    for (long t = 0; t < T; ++t) {
      for (long n = 0; n < count; ++n)
        if (u_bias)
          std::copy_n(u_bias + e * G, G, scratch.data() + n * G);
        else
          std::fill_n(scratch.data() + n * G, G, R(0));
      if (cell != kGru) add_row(scratch.data(), u(e, t, first), count * G);
      if (t) {
        multiply_add(count, G, H, h_(e, t, first), weight + e * H * G, scratch.data());
        multiply_add(count, G, H, h(e, t, first), u_weight + e * H * G, scratch.data());
        std::fill_n(to_h(e, t - 1, first), count * H, R(0));
        multiply_add(
            count, H, G, aq(e, t, first), u_transposed + e * G * H, to_h(e, t - 1, first));
      }
      for (long n = 0; n < count; ++n) {
        const R* __restrict__ q_ = scratch.data() + n * G;
        const R* __restrict__ a = ah(e, t, first + n);
        const R* __restrict__ before_ = h_(e, t, first + n);
        R* __restrict__ after_ = h_(e, t + 1, first + n);
        R* __restrict__ add = source(e, t, first + n);
        if (mask && !*valid(e, t, first + n)) {
          std::copy_n(before_, H, after_);
          std::fill_n(add, kSources[cell] * H, R(0));
          continue;
        }
        if (cell == kRnn) {
          const R* __restrict__ y = h(e, t + 1, first + n);
          SIMD for (long j = 0; j < H; ++j) {
            const R y_ = q_[j] * (1 - y[j] * y[j]);
            after_[j] = y_;
            add[j] = -2 * a[j] * y[j] * y_;
          }
        } else if (cell == kGru) {
          const R* __restrict__ gate = g(e, t, first + n);
          const R* __restrict__ x_ = u(e, t, first + n);
          const R* __restrict__ before = h(e, t, first + n);
          const R* __restrict__ w = product(e, t, first + n);
          R* __restrict__ back = t ? to_h(e, t - 1, first + n) : unused.data();
          SIMD for (long j = 0; j < H; ++j) {
            const R r = gate[j], z = gate[H + j], m = gate[2 * H + j];
            const R r_ = r * (1 - r) * (x_[j] + q_[j]);
            const R z_ = z * (1 - z) * (x_[H + j] + q_[H + j]);
            const R w_ = q_[2 * H + j], slope = 1 - m * m;
            const R m_ = slope * (x_[2 * H + j] + r_ * w[j] + r * w_);
            const R gap = before[j] - m, gap_ = before_[j] - m_;
            after_[j] = m_ + z * gap_ + z_ * gap;
            const R a_n = a[j] * slope * (1 - z);
            const R a_n_ = -a[j] * (2 * m * m_ * (1 - z) + slope * z_);
            add[j] = (a_n_ * w[j] + a_n * w_) * r * (1 - r) + a_n * w[j] * (1 - 2 * r) * r_;
            add[H + j] = a[j] * (gap_ * z * (1 - z) + gap * (1 - 2 * z) * z_);
            add[2 * H + j] = a_n_ * r + a_n * r_;
            add[3 * H + j] = a_n_;
            back[j] += a[j] * z_;
          }
        } else {
          const R* __restrict__ gate = g(e, t, first + n);
          const R* __restrict__ c0 = c(e, t, first + n);
          const R* __restrict__ c1 = c(e, t + 1, first + n);
          const R* __restrict__ a_c = ac(e, t, first + n);
          R* __restrict__ cell_ = cells.data() + n * H;
          R* __restrict__ back = t ? source(e, t - 1, first + n) + 4 * H : unused.data();
          SIMD for (long j = 0; j < H; ++j) {
            const R i = gate[j], f = gate[H + j], m = gate[2 * H + j], o = gate[3 * H + j];
            const R i_ = i * (1 - i) * q_[j], f_ = f * (1 - f) * q_[H + j];
            const R m_ = (1 - m * m) * q_[2 * H + j], o_ = o * (1 - o) * q_[3 * H + j];
            const R y = tanh_of(c1[j]), slope = 1 - y * y, c0_ = cell_[j];
            const R c1_ = f_ * c0[j] + f * c0_ + i_ * m + i * m_, y_ = slope * c1_;
            add[j] = a_c[j] * (m_ * i * (1 - i) + m * (1 - 2 * i) * i_);
            add[H + j] = a_c[j] * (c0_ * f * (1 - f) + c0[j] * (1 - 2 * f) * f_);
            add[2 * H + j] = a_c[j] * (i_ * (1 - m * m) - 2 * i * m * m_);
            add[3 * H + j] = a[j] * (y_ * o * (1 - o) + y * (1 - 2 * o) * o_);
            add[4 * H + j] = a[j] * (o_ * slope - 2 * o * y * y_);
            back[j] += a_c[j] * f_;
            cell_[j] = c1_;
            after_[j] = o_ * y + o * y_;
          }
        }
      }
    }
  });
}

}  // namespace

// One entry per function and precision: sizes are episodes, steps, examples, hidden units; pointers to
// tensors that a cell does not have are null.
#define RAYMETA_ENTRIES(R, SUFFIX)                                                                 \
  extern "C" void run_##SUFFIX(int cell, int threads, const long* s, const R* inputs,              \
                               const R* weight, const R* bias, const std::uint8_t* mask,           \
                               R* states, R* gates, R* extra) {                                    \
    run<R>(Cell(cell), {s[0], s[1], s[2], s[3]}, threads, inputs, weight, bias, mask, states,      \
           gates, extra);                                                                          \
  }                                                                                                \
  extern "C" void adjoint_##SUFFIX(int cell, int threads, const long* s, const R* transposed,      \
                                   const std::uint8_t* mask, const R* states, const R* gates,      \
                                   const R* extra, const R* sources, R* ah, R* aq, R* ac, R* ap) { \
    adjoint<R>(Cell(cell), {s[0], s[1], s[2], s[3]}, threads, transposed, mask, states, gates,     \
               extra, sources, ah, aq, ac, ap);                                                    \
  }                                                                                                \
  extern "C" void double_backward_##SUFFIX(                                                        \
      int cell, int threads, const long* s, const R* weight, const std::uint8_t* mask,             \
      const R* states, const R* gates, const R* extra, const R* ah, const R* aq, const R* ac,      \
      const R* u_inputs, const R* u_weight, const R* u_transposed, const R* u_bias, R* states_,    \
      R* add_h, R* sources) {                                                                      \
    double_backward<R>(Cell(cell), {s[0], s[1], s[2], s[3]}, threads, weight, mask, states, gates, \
                       extra, ah, aq, ac, u_inputs, u_weight, u_transposed, u_bias, states_,       \
                       add_h, sources);                                                            \
  }                                                                                                \
  extern "C" void multiply_##SUFFIX(int threads, const long* sizes, const R* a,                    \
                                    const long* a_steps, const R* b, const long* b_steps, R* c) {  \
    multiply<R>(sizes, threads, a, a_steps, b, b_steps, c);                                        \
  }

RAYMETA_ENTRIES(float, float32)
RAYMETA_ENTRIES(double, float64)
