// Two watched passes over the windows.
#include "upcycle/calibration.h"

#include "absl/cleanup/cleanup.h"

namespace verbatim::upcycle {
namespace {

using kernels::cpu::ThreadPool;

constexpr kernels::NumericMode kMode{.policy = kernels::Policy::kPortable};

// Runs all windows while `observer` watches.
absl::Status Watch(evaluate::WindowRunner& runner, Windows windows,
                   model::ForwardObserver& observer, const Progress& progress) {
  runner.transformer().set_observer(&observer);
  const absl::Cleanup stop = [&runner] { runner.transformer().set_observer(nullptr); };
  const int64_t total = static_cast<int64_t>(windows.size());
  return runner.Run(windows, kMode, [&](int64_t first, int64_t count) {
    if (progress) progress(first + count, total);
    return absl::OkStatus();
  });
}

class InputCollector final : public model::ForwardObserver {
 public:
  InputCollector(int64_t layers, int64_t values) : inputs_(layers) {
    for (std::vector<float>& layer : inputs_) layer.reserve(values);
  }
  void OnOutput(const model::ObservedRows& output) override {
    if (output.operation != model::Operation::kFfnNorm) return;
    std::vector<float>& layer = inputs_[output.layer];
    for (int64_t r = 0; r < output.rows; ++r) {
      const float* const row = output.data + r * output.stride;
      layer.insert(layer.end(), row, row + output.cols);
    }
  }
  std::vector<std::vector<float>> Take() { return std::move(inputs_); }

 private:
  std::vector<std::vector<float>> inputs_;
};

class ActivationMeter final : public model::ForwardObserver {
 public:
  // `rows` is the number of rows in all, those of `routing`.
  ActivationMeter(absl::Span<const Routing> routing, int64_t rows, int64_t num_experts,
                  int64_t neurons, ThreadPool& pool)
      : routing_(routing),
        rows_(rows),
        pool_(pool),
        sums_(routing.size(), std::vector<double>(num_experts * neurons)),
        next_row_(routing.size()) {}

  void OnOutput(const model::ObservedRows& output) override {
    if (output.operation != model::Operation::kSwiGlu) return;
    const Routing& routing = routing_[output.layer];
    std::vector<double>& sums = sums_[output.layer];
    const int64_t first = next_row_[output.layer];
    next_row_[output.layer] += output.rows;
    const int64_t top_k = static_cast<int64_t>(routing.experts.size()) / rows_;
    // A thread has neurons of its own: each sum runs in the order of the rows.
    pool_.Run([&](int thread) {
      const ThreadPool::Range part = ThreadPool::PartOf(output.cols, 8, thread, pool_.threads());
      for (int64_t r = 0; r < output.rows; ++r) {
        const float* const row = output.data + r * output.stride;
        for (int64_t k = 0; k < top_k; ++k) {
          const int64_t slot = (first + r) * top_k + k;
          double* const sum = sums.data() + routing.experts[slot] * output.cols;
          const double weight = routing.weights[slot];
          for (int64_t j = part.begin; j < part.end; ++j) {
            sum[j] += weight * (static_cast<double>(row[j]) * static_cast<double>(row[j]));
          }
        }
      }
    });
  }
  std::vector<std::vector<double>> Take() { return std::move(sums_); }

 private:
  const absl::Span<const Routing> routing_;
  const int64_t rows_;
  ThreadPool& pool_;
  std::vector<std::vector<double>> sums_;
  std::vector<int64_t> next_row_;
};

int64_t RowsIn(Windows windows) {
  int64_t rows = 0;
  for (const std::vector<int32_t>& window : windows) rows += static_cast<int64_t>(window.size());
  return rows;
}

}  // namespace

absl::StatusOr<std::vector<std::vector<float>>> CollectInputs(evaluate::WindowRunner& runner,
                                                              Windows windows,
                                                              const Progress& progress) {
  const model::ModelConfig& config = runner.transformer().config();
  InputCollector collector(config.num_layers, RowsIn(windows) * config.hidden_size);
  absl::Status status = Watch(runner, windows, collector, progress);
  if (!status.ok()) return status;
  return collector.Take();
}

absl::StatusOr<std::vector<std::vector<double>>> MeasureActivations(
    evaluate::WindowRunner& runner, Windows windows, absl::Span<const Routing> routing,
    int64_t num_experts, ThreadPool& pool, const Progress& progress) {
  ActivationMeter meter(routing, RowsIn(windows), num_experts,
                        runner.transformer().config().intermediate_size, pool);
  absl::Status status = Watch(runner, windows, meter, progress);
  if (!status.ok()) return status;
  return meter.Take();
}

}  // namespace verbatim::upcycle
