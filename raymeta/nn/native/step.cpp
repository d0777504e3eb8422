// One time step of adapted networks, from a user's numbers to the answer, in one call; see step.py.
//
// Shapes: N streams, C channels, H hidden units, G gates, O outputs, K classes; row-major.

#include <algorithm>
#include <cmath>
#include <vector>

#include "products.h"

namespace {

enum Pooling { kLast = 0, kMean = 1, kAttention = 2 };
enum Status { kDone = 0, kUnfitInput = 1, kUnfitAnswer = 2 };

}  // namespace

// The fields of `_Plan` in step.py, in its order.  `params` holds each layer's w_ih [D, G H],
// b_ih [G H], w_hh [H, G H], b_hh [G H], and the attention's weights [H].  A state holds the hidden
// units of each layer [N, H], an LSTM's cells likewise, and of the pooling the sum [N, H], the
// weights' sum [N] and the highest score [N].
struct Plan {
  long cell, layers, streams, channels, hidden, outputs, classes, pooling, has_unit_length;
  long num_steps, current;
  double temperature;
  const double *x, *mean, *deviation, *head_weight, *head_bias;
  const void* params;
  void *states[2], *scratch;
  double *features, *out;
};

namespace {

// h and c become those after the step; `given` and `kept` are [N, G H], for the products.
template <class R>
void layer_step(Cell cell, long N, long D, long H, const R* x, const R* params, const R* h,
                const R* c, R* h_after, R* c_after, R* given, R* kept) {
  const long G = kGates[cell] * H;
  const R *w_ih = params, *b_ih = w_ih + D * G, *w_hh = b_ih + G, *b_hh = w_hh + H * G;
  for (long n = 0; n < N; ++n) {
    std::copy_n(b_ih, G, given + n * G);
    std::copy_n(b_hh, G, kept + n * G);
  }
  multiply_add(N, G, D, x, w_ih, given);
  multiply_add(N, G, H, h, w_hh, kept);
  for (long n = 0; n < N; ++n) {
    const R* __restrict__ p = given + n * G;
    const R* __restrict__ q = kept + n * G;
    const R* __restrict__ before = h + n * H;
    R* __restrict__ after = h_after + n * H;
    if (cell == kRnn) {
      SIMD for (long j = 0; j < H; ++j) after[j] = tanh_of(p[j] + q[j]);
    } else if (cell == kGru) {
      SIMD for (long j = 0; j < H; ++j) {
        const R r = sigmoid(p[j] + q[j]), z = sigmoid(p[H + j] + q[H + j]);
        const R m = tanh_of(p[2 * H + j] + r * q[2 * H + j]);
        after[j] = m + z * (before[j] - m);
      }
    } else {
      const R* __restrict__ c0 = c + n * H;
      R* __restrict__ c1 = c_after + n * H;
      SIMD for (long j = 0; j < H; ++j) {
        const R i = sigmoid(p[j] + q[j]), f = sigmoid(p[H + j] + q[H + j]);
        const R m = tanh_of(p[2 * H + j] + q[2 * H + j]), o = sigmoid(p[3 * H + j] + q[3 * H + j]);
        c1[j] = f * c0[j] + i * m;
        after[j] = o * tanh_of(c1[j]);
      }
    }
  }
}

// The features of a stream from its last state; `pool` is where the state of the pooling begins.
template <class R>
void pool(const Plan& s, long n, const R* state, const R* attention, const R* before, R* after,
          double* features) {
  const long N = s.streams, H = s.hidden;
  if (s.pooling == kLast) {
    std::copy_n(state, H, features);
    return;
  }
  const R* total = before + n * H;
  R* total_after = after + n * H;
  if (s.pooling == kMean) {
    for (long j = 0; j < H; ++j) {
      total_after[j] = total[j] + state[j];
      features[j] = total_after[j] / R(s.num_steps + 1);
    }
    return;
  }
  const R *weight = before + N * H, *highest = weight + N;
  R *weight_after = after + N * H, *highest_after = weight_after + N;
  R score = 0;
  for (long j = 0; j < H; ++j) score += state[j] * attention[j];
  const R most = std::max(highest[n], score);
  const R shrunk = std::exp(highest[n] - most), own = std::exp(score - most);
  highest_after[n] = most;
  weight_after[n] = shrunk * weight[n] + own;
  for (long j = 0; j < H; ++j) {
    total_after[j] = shrunk * total[j] + own * state[j];
    features[j] = total_after[j] / weight_after[n];
  }
}

// Adds a share of the network's answer to `out`: probabilities, or values.
void answer(const Plan& s, double* features, double share, double* logits, double* out) {
  const long H = s.hidden, O = s.outputs, K = s.classes ? s.classes : O;
  if (s.has_unit_length) {
    double square = 0;
    for (long j = 0; j < H; ++j) square += features[j] * features[j];
    const double length = std::max(std::sqrt(square), 1e-12);  // as torch's `normalize`
    for (long j = 0; j < H; ++j) features[j] /= length;
  }
  std::copy_n(s.head_bias, K, logits);
  for (long j = 0; j < H; ++j)
    for (long k = 0; k < K; ++k) logits[k] += features[j] * s.head_weight[j * O + k];
  if (!s.classes) {
    for (long k = 0; k < K; ++k) out[k] += share * logits[k] / s.temperature;
    return;
  }
  double most = logits[0], sum = 0;
  for (long k = 1; k < K; ++k) most = std::max(most, logits[k]);
  for (long k = 0; k < K; ++k) sum += logits[k] = std::exp((logits[k] - most) / s.temperature);
  for (long k = 0; k < K; ++k) out[k] += share * logits[k] / sum;
}

template <class R>
int advance(Plan* plans, long count) {
  const long N = plans[0].streams, K = plans[0].classes ? plans[0].classes : plans[0].outputs;
  double* out = plans[0].out;
  std::fill_n(out, N * K, 0.0);
  for (long network = 0; network < count; ++network) {
    Plan& s = plans[network];
    const long H = s.hidden, C = s.channels, G = kGates[s.cell] * H, L = s.layers;
    R *given = static_cast<R*>(s.scratch), *kept = given + N * G, *x = kept + N * G;
    for (long n = 0; n < N; ++n)
      for (long c = 0; c < C; ++c) {
        // float32 as the preparation of whole sequences has it, whatever the network computes in
        const float value = float((s.x[n * C + c] - s.mean[c]) / s.deviation[c]);
        if (!std::isfinite(value)) return kUnfitInput;
        x[n * C + c] = value;
      }
    const R* before = static_cast<const R*>(s.states[s.current]);
    R* after = static_cast<R*>(s.states[1 - s.current]);
    const R *params = static_cast<const R*>(s.params), *input = x;
    const bool is_lstm = s.cell == kLstm;
    const long units = L * N * H, pooling = is_lstm ? 2 * units : units;
    for (long layer = 0; layer < L; ++layer) {
      const long at = layer * N * H, D = layer ? H : C;
      layer_step(Cell(s.cell), N, D, H, input, params, before + at,
                 is_lstm ? before + units + at : nullptr, after + at,
                 is_lstm ? after + units + at : nullptr, given, kept);
      params += (D + H + 2) * G;
      input = after + at;
    }
    for (long n = 0; n < N; ++n) {
      pool(s, n, input + n * H, params, before + pooling, after + pooling, s.features);
      answer(s, s.features, 1.0 / count, s.features + H, out + n * K);
    }
  }
  for (long i = 0; i < N * K; ++i)
    if (!std::isfinite(out[i])) return kUnfitAnswer;
  for (long network = 0; network < count; ++network) {
    plans[network].current = 1 - plans[network].current;
    ++plans[network].num_steps;
  }
  return kDone;
}

}  // namespace

extern "C" int step_float32(Plan* plans, long count) { return advance<float>(plans, count); }
extern "C" int step_float64(Plan* plans, long count) { return advance<double>(plans, count); }
