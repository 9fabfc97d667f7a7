// Attention written straight from the contracts, for tests.
#include "kernels/cpu/attention_reference.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/numerics/elementary.h"

namespace verbatim::kernels::cpu {
namespace {

constexpr int64_t kCut = 256;
constexpr int64_t kBlock = 64;
constexpr int64_t kChunk = 128;

float Score(const ReferenceRow& row, int64_t position) {
  const float* k = row.k + position * row.stride;
  float leaves[2] = {0.0f, 0.0f};
  for (int64_t d = 0; d < row.head_dim; ++d) {
    leaves[d / kChunk] = std::fma(row.q[d], k[d], leaves[d / kChunk]);
  }
  const float dot = row.head_dim > kChunk ? leaves[0] + leaves[1] : leaves[0];
  return dot * row.scale;
}

// 32 lanes, folded by halving.
float RowSum(const std::vector<float>& p) {
  float lanes[32] = {};
  for (size_t i = 0; i < p.size(); ++i) lanes[i % 32] = lanes[i % 32] + p[i];
  for (int half = 16; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) lanes[j] = lanes[j] + lanes[j + half];
  }
  return lanes[0];
}

struct State {
  float m = 0;
  float l = 0;
  std::vector<float> o;
};

State Cut(const ReferenceRow& row, int64_t begin, int64_t end) {
  State state;
  state.o.assign(row.head_dim, 0.0f);
  for (int64_t block = begin; block < end; block += kBlock) {
    const int64_t stop = std::min(block + kBlock, end);
    std::vector<float> p;
    float greatest = -std::numeric_limits<float>::infinity();
    for (int64_t j = block; j < stop; ++j) {
      p.push_back(Score(row, j));
      if (p.back() > greatest) greatest = p.back();
    }
    const bool first = block == begin;
    const float m = first || greatest > state.m ? greatest : state.m;
    for (float& x : p) x = numerics::ExpF(x - m);
    if (first) {
      state.l = RowSum(p);
    } else {
      const float a = numerics::ExpF(state.m - m);
      state.l = state.l * a + RowSum(p);
      for (float& o : state.o) o = o * a;
    }
    state.m = m;
    for (int64_t j = block; j < stop; ++j) {
      for (int64_t d = 0; d < row.head_dim; ++d) {
        state.o[d] = std::fma(p[j - block], row.v[j * row.stride + d], state.o[d]);
      }
    }
  }
  return state;
}

}  // namespace

std::vector<float> StrongReference(const ReferenceRow& row) {
  State total = Cut(row, 0, std::min(kCut, row.positions));
  for (int64_t begin = kCut; begin < row.positions; begin += kCut) {
    const State next = Cut(row, begin, std::min(begin + kCut, row.positions));
    const float m = next.m > total.m ? next.m : total.m;
    const float a = numerics::ExpF(total.m - m);
    const float b = numerics::ExpF(next.m - m);
    total.m = m;
    total.l = total.l * a + next.l * b;
    for (int64_t d = 0; d < row.head_dim; ++d) {
      const float left = total.o[d] * a;
      const float right = next.o[d] * b;
      total.o[d] = left + right;
    }
  }
  std::vector<float> y(row.head_dim);
  for (int64_t d = 0; d < row.head_dim; ++d) y[d] = total.o[d] / total.l;
  return y;
}

ExactRow ExactReference(const ReferenceRow& row) {
  constexpr double kUnit = 0x1p-24;
  const double n = static_cast<double>(row.positions);
  std::vector<double> scores(row.positions);
  double score_error = 0;  // the greatest absolute error of a score computed in fp32
  for (int64_t j = 0; j < row.positions; ++j) {
    double dot = 0, magnitude = 0;
    for (int64_t d = 0; d < row.head_dim; ++d) {
      const double term = static_cast<double>(row.q[d]) * row.k[j * row.stride + d];
      dot += term;
      magnitude += std::abs(term);
    }
    scores[j] = dot * row.scale;
    score_error = std::max(score_error, (row.head_dim + 2) * kUnit * magnitude *
                                            std::abs(static_cast<double>(row.scale)));
  }
  const double m = *std::max_element(scores.begin(), scores.end());
  const double lowest = *std::min_element(scores.begin(), scores.end());
  double l = 0;
  ExactRow exact;
  exact.y.assign(row.head_dim, 0.0);
  std::vector<double> magnitude(row.head_dim, 0.0);
  for (int64_t j = 0; j < row.positions; ++j) {
    const double p = std::exp(scores[j] - m);
    l += p;
    for (int64_t d = 0; d < row.head_dim; ++d) {
      exact.y[d] += p * row.v[j * row.stride + d];
      magnitude[d] += p * std::abs(static_cast<double>(row.v[j * row.stride + d]));
    }
  }
  // Relative error of a weight: its score, the subtraction of the maximum, the exponential, and a
  // rescaling or a join every 64 positions; the same for the sum, and n additions in each. Weights
  // below e^-87 may vanish.
  const double weight = 2 * score_error + kUnit * (m - lowest) + (4 + n / 64 * 6) * kUnit;
  const double relative = 2 * weight + (2 * n + 4) * kUnit;
  for (int64_t d = 0; d < row.head_dim; ++d) {
    exact.y[d] /= l;
    exact.tolerance.push_back(relative * magnitude[d] / l + n * std::exp(-86.0));
  }
  return exact;
}

}  // namespace verbatim::kernels::cpu
