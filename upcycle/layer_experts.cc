// Choice of neurons, perturbation and rounding.
#include "upcycle/layer_experts.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "kernels/numerics/bf16.h"
#include "kernels/numerics/philox.h"
#include "kernels/ops/block_formats.h"

namespace verbatim::upcycle {
namespace {

using kernels::cpu::ThreadPool;

// Sample indices of the random words, one for each matrix.
constexpr uint32_t kGateStream = 0x67617465, kUpStream = 0x75700000, kDownStream = 0x646F776E;

std::vector<float> DecodeMatrix(const kernels::StoredMatrix& matrix) {
  std::vector<float> values(matrix.rows * matrix.cols);
  for (int64_t r = 0; r < matrix.rows; ++r) {
    kernels::DecodeRow(matrix.dtype, matrix.data + r * matrix.row_bytes(), matrix.cols,
                       values.data() + r * matrix.cols);
  }
  return values;
}

double SumOfSquares(const float* row, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(row[i]) * row[i];
  return sum;
}

std::vector<int32_t> MostImportant(absl::Span<const double> importance, int64_t count) {
  std::vector<int32_t> order(importance.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return importance[a] > importance[b]; });
  order.resize(count);
  std::sort(order.begin(), order.end());
  return order;
}

// One neuron's row with noise, rounded to bf16.
void PerturbRow(const float* row, int64_t hidden, int64_t neuron, const ExpertOptions& options,
                int64_t expert, uint32_t stream, uint16_t* out) {
  const double rms = std::sqrt(SumOfSquares(row, hidden) / static_cast<double>(hidden));
  const double amplitude = options.noise * rms * std::sqrt(3.0);
  const uint32_t place =
      options.layer * static_cast<uint32_t>(options.num_experts) + static_cast<uint32_t>(expert);
  // A row has blocks of its own, so that no block is shared by two rows.
  const int64_t blocks = (hidden + 3) / 4;
  std::array<uint32_t, 4> words = {};
  for (int64_t i = 0; i < hidden; ++i) {
    double value = row[i];
    if (amplitude > 0) {
      if (i % 4 == 0) {
        words = numerics::PhiloxBlock(options.seed, place, stream,
                                      static_cast<uint32_t>(neuron * blocks + i / 4));
      }
      // (word + 1/2) · 2^-31 − 1, exact in double.
      value += amplitude * ((words[i % 4] + 0.5) * 0x1p-31 - 1.0);
    }
    out[i] = numerics::Bf16FromFloat(static_cast<float>(value));
  }
}

}  // namespace

NeuronWeights DecodeNeurons(const kernels::StoredMatrix& gate, const kernels::StoredMatrix& up,
                            const kernels::StoredMatrix& down) {
  NeuronWeights result;
  result.neurons = gate.rows;
  result.hidden = gate.cols;
  result.gate = DecodeMatrix(gate);
  result.up = DecodeMatrix(up);
  const std::vector<float> by_output = DecodeMatrix(down);
  result.down.resize(by_output.size());
  for (int64_t i = 0; i < result.hidden; ++i) {
    for (int64_t j = 0; j < result.neurons; ++j) {
      result.down[j * result.hidden + i] = by_output[i * result.neurons + j];
    }
  }
  return result;
}

void WeighByDownRows(const NeuronWeights& dense, absl::Span<double> importance) {
  for (int64_t j = 0; j < dense.neurons; ++j) {
    const double squares = SumOfSquares(dense.down.data() + j * dense.hidden, dense.hidden);
    for (size_t i = j; i < importance.size(); i += dense.neurons) importance[i] *= squares;
  }
}

std::vector<Expert> MakeExperts(const NeuronWeights& dense, absl::Span<const double> importance,
                                const ExpertOptions& options, ThreadPool& pool) {
  const int64_t hidden = dense.hidden, size = options.intermediate_size;
  std::vector<Expert> experts(options.num_experts);
  pool.Run([&](int thread) {
    const ThreadPool::Range part =
        ThreadPool::PartOf(options.num_experts, 1, thread, pool.threads());
    std::vector<uint16_t> down_row(hidden);
    for (int64_t e = part.begin; e < part.end; ++e) {
      Expert& expert = experts[e];
      expert.kept = MostImportant(importance.subspan(e * dense.neurons, dense.neurons), size);
      expert.gate.resize(size * hidden);
      expert.up.resize(size * hidden);
      expert.down.resize(size * hidden);
      for (int64_t k = 0; k < size; ++k) {
        const int64_t j = expert.kept[k];
        const int64_t at = j * hidden;
        PerturbRow(dense.gate.data() + at, hidden, j, options, e, kGateStream,
                   expert.gate.data() + k * hidden);
        PerturbRow(dense.up.data() + at, hidden, j, options, e, kUpStream,
                   expert.up.data() + k * hidden);
        PerturbRow(dense.down.data() + at, hidden, j, options, e, kDownStream, down_row.data());
        for (int64_t i = 0; i < hidden; ++i) expert.down[i * size + k] = down_row[i];
      }
    }
  });
  return experts;
}

double MeanRelativeDifference(absl::Span<const Expert> experts, int64_t neurons, int64_t hidden) {
  const auto value = [](uint16_t bits) -> double { return numerics::FloatFromBf16(bits); };
  // By expert: the place of each neuron of the parent, or −1.
  std::vector<std::vector<int64_t>> place(experts.size(), std::vector<int64_t>(neurons, -1));
  std::vector<double> squares(experts.size());
  for (size_t e = 0; e < experts.size(); ++e) {
    for (size_t k = 0; k < experts[e].kept.size(); ++k) place[e][experts[e].kept[k]] = k;
    for (const auto* matrix : {&experts[e].gate, &experts[e].up, &experts[e].down}) {
      for (const uint16_t bits : *matrix) squares[e] += value(bits) * value(bits);
    }
  }
  double sum = 0;
  int64_t pairs = 0;
  for (size_t a = 0; a < experts.size(); ++a) {
    for (size_t b = a + 1; b < experts.size(); ++b) {
      // ‖A − B‖² = ‖A‖² + ‖B‖² − 2 A·B, where only neurons of both take part in A·B.
      double product = 0;
      const int64_t size_a = experts[a].kept.size(), size_b = experts[b].kept.size();
      for (int64_t j = 0; j < neurons; ++j) {
        const int64_t ka = place[a][j], kb = place[b][j];
        if (ka < 0 || kb < 0) continue;
        for (int64_t i = 0; i < hidden; ++i) {
          product +=
              value(experts[a].gate[ka * hidden + i]) * value(experts[b].gate[kb * hidden + i]);
          product += value(experts[a].up[ka * hidden + i]) * value(experts[b].up[kb * hidden + i]);
          product +=
              value(experts[a].down[i * size_a + ka]) * value(experts[b].down[i * size_b + kb]);
        }
      }
      const double difference = std::max(0.0, squares[a] + squares[b] - 2 * product);
      const double scale = std::sqrt(std::sqrt(squares[a]) * std::sqrt(squares[b]));
      if (scale > 0) sum += std::sqrt(difference) / scale;
      ++pairs;
    }
  }
  return pairs == 0 ? 0 : sum / static_cast<double>(pairs);
}

}  // namespace verbatim::upcycle
