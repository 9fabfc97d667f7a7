// Capturing fingerprints and residual rows during a replay.
#include "replay/capture.h"

#include <algorithm>

namespace verbatim::replay {

using model::Operation;

Capture::Capture(const trace::Trace& trace, const model::ModelConfig& config, int64_t token)
    : trace_(trace), config_(config) {
  int64_t sampled = 0;
  for (size_t s = 0; s < trace.steps.size() && last_step_ < 0; ++s) {
    const trace::Step& step = trace.steps[s];
    if (step.logit_index < 0 || sampled++ != token) continue;
    last_step_ = static_cast<int32_t>(s);
    for (const trace::OwnSpan& own : step.own) {
      if (own.run < trace.own_runs) last_run_ = own.run;
    }
  }
  rows_.resize(static_cast<size_t>(trace.prompt_tokens + token));
  const int64_t row_bytes =
      config.num_layers * config.hidden_size * static_cast<int64_t>(sizeof(float));
  residual_positions_ = kMaxResidualBytes / row_bytes;
}

int32_t Capture::RunOf(int32_t position) const {
  const std::vector<trace::CachedPage>& prefix = trace_.runs[last_run_].prefix;
  const size_t page = static_cast<size_t>(position / trace_.configuration.page_tokens);
  return page < prefix.size() ? prefix[page].run : last_run_;
}

void Capture::OnRows(int32_t step, const model::ObservedRows& output,
                     absl::Span<const OwnRow> own) {
  if (output.operation == Operation::kLogits) {
    if (step == last_step_) {
      const float* row = output.data + own[0].row * output.stride;
      logits_.assign(row, row + output.cols);
    }
    return;
  }
  if (output.operation == Operation::kFinalNorm) return;
  for (size_t i = 0; i < own.size(); ++i) {
    const OwnRow& mine = own[i];
    if (mine.position >= static_cast<int32_t>(rows_.size()) || mine.run != RunOf(mine.position)) {
      continue;
    }
    CapturedRow& row = rows_[mine.position];
    row.step = step;
    row.span = mine.span;
    row.own_row = static_cast<int32_t>(i);
    const size_t index = OutputIndex(output.layer, output.operation);
    row.outputs.resize(
        std::max(row.outputs.size(), OutputIndex(config_.num_layers, Operation::kEmbedding)));
    const float* data = output.data + mine.row * output.stride;
    row.outputs[index] = numerics::FingerprintRow(data, output.cols);
    if (output.operation == Operation::kDown && mine.position < residual_positions_) {
      row.residual.insert(row.residual.end(), data, data + output.cols);
    }
  }
}

}  // namespace verbatim::replay
