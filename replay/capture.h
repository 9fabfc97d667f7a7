// What every operation gave the rows of one answer: fingerprints of all outputs, and copies of the
// residual stream, so that two runs can be compared.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "kernels/numerics/row_fingerprint.h"
#include "model/checkpoint.h"
#include "replay/replayer.h"
#include "trace/trace.h"

namespace verbatim::replay {

// One position of the answer.
struct CapturedRow {
  int32_t step = -1;  // index into Trace::steps; −1: not computed
  int32_t span = 0;   // of that step
  // By (layer + 1) · kNumOperations + operation; layer −1 holds the embedding.
  std::vector<std::optional<numerics::RowFingerprint>> outputs;
  // Of a mixture of experts: this row's among the own rows of its step.
  int32_t own_row = 0;
  std::vector<float> residual;  // [layers, hidden] after each layer; empty beyond the memory bound
};

inline size_t OutputIndex(int64_t layer, model::Operation operation) {
  return static_cast<size_t>((layer + 1) * model::kNumOperations) + static_cast<size_t>(operation);
}

// Watches a replay. A position may have been computed several times (before and after a
// preemption); captured is the computation whose pages the row of output token `token` read.
class Capture final : public ReplayObserver {
 public:
  // Residual rows of all positions together take at most this.
  static constexpr int64_t kMaxResidualBytes = int64_t{512} << 20;

  // Rows of positions up to the one that gave output token `token` are captured. Both the trace and
  // the configuration must outlive the object.
  Capture(const trace::Trace& trace, const model::ModelConfig& config, int64_t token);

  void OnRows(int32_t step, const model::ObservedRows& output,
              absl::Span<const OwnRow> own) override;

  // By position: 0 to that of the row that gave the token.
  const std::vector<CapturedRow>& rows() const { return rows_; }
  // Raw logits of the row that gave the token.
  const std::vector<float>& logits() const { return logits_; }

 private:
  // The run that computed the position for the token's row.
  int32_t RunOf(int32_t position) const;

  const trace::Trace& trace_;
  const model::ModelConfig& config_;
  int32_t last_run_ = 0;  // the run that gave the token
  int32_t last_step_ = -1;
  std::vector<CapturedRow> rows_;
  int64_t residual_positions_ = 0;
  std::vector<float> logits_;
};

}  // namespace verbatim::replay
