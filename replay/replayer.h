// Repeats an answer from its trace: every step in its shape, the answer's rows at their places,
// fillers for everybody else.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "model/checkpoint.h"
#include "model/transformer.h"
#include "trace/trace.h"

namespace verbatim::replay {

// A row of the answer inside a step that is being replayed.
struct OwnRow {
  int32_t row = 0;  // of the batch, or among the logit rows computed now
  int32_t run = 0;  // of the trace
  int32_t position = 0;
  int32_t span = 0;  // of the step
};

// Sees what every operation gave the answer's rows.
class ReplayObserver {
 public:
  virtual ~ReplayObserver() = default;
  // `step` indexes Trace::steps. `output` is a copy in the host's memory. For the final norm and
  // the logits `own` holds the answer's row among those of `output`.
  virtual void OnRows(int32_t step, const model::ObservedRows& output,
                      absl::Span<const OwnRow> own) = 0;
};

struct ReplayOptions {
  uint64_t filler_seed = 1;  // of the neighbours' token ids
  // Go on where this program decides otherwise than the trace says; the first such decision is
  // reported either way.
  bool ignore_decisions = false;
  ReplayObserver* observer = nullptr;
};

// One output token.
struct ReplayedRow {
  numerics::RowFingerprint fingerprint;
  float top_margin = 0;  // of the two best raw logits
  int32_t best = -1;     // token of the best raw logit
  int32_t step = 0;      // index into Trace::steps
};

struct ReplayResult {
  std::vector<ReplayedRow> rows;  // one per output token
  std::string logits_sha256;      // of the replay
  // First output token whose logit row has other bits than recorded.
  std::optional<int64_t> first_difference;
  // The first layer whose output differed in that row, where the trace has layers; −1: none did, or
  // it has none.
  int64_t first_different_layer = -1;
  // "steps[3]: qkv of 17 rows: the trace says bf16, this program onednn"; empty: all agree.
  std::string decision_difference;
  // "steps[3]: position 31 wants expert 4 in layer 1, 5 in the trace": the first of the answer's
  // rows whose router chose otherwise than recorded; empty: all agree.
  std::string routing_difference;

  bool reproduced() const {
    return !first_difference.has_value() && decision_difference.empty() &&
           routing_difference.empty();
  }
};

// A model ready to replay traces that were made with it. Not thread-safe.
class Replayer {
 public:
  // `trace` is any of those to be replayed: backend, context and the like are taken from it.
  // `weights_sha256` is that of the checkpoint. FAILED_PRECONDITION naming what is different
  // (version, weights, backend, instruction set) where this program cannot repeat it. `device` as
  // for kernels::OpenBackend; empty: the processor, or the first GPU, whichever made the trace.
  static absl::StatusOr<std::unique_ptr<Replayer>> Create(const model::Checkpoint& checkpoint,
                                                          const std::string& weights_sha256,
                                                          const trace::Trace& trace,
                                                          const std::string& device = "");

  // The same with a backend of the caller's.
  static absl::StatusOr<std::unique_ptr<Replayer>> CreateOn(
      std::unique_ptr<kernels::Backend> backend, const model::Checkpoint& checkpoint,
      const std::string& weights_sha256, const trace::Trace& trace);

  // FAILED_PRECONDITION for a trace that is not replayable, or not with this model and backend.
  absl::StatusOr<ReplayResult> Replay(const trace::Trace& trace, const ReplayOptions& options);

  const model::ModelConfig& config() const;

 private:
  class Session;

  Replayer(std::unique_ptr<kernels::Backend> backend, const model::Checkpoint& checkpoint,
           std::string weights_sha256);

  absl::Status CheckIdentity(const trace::Trace& trace) const;
  // Makes the transformer large enough for the trace.
  absl::Status Prepare(const trace::Trace& trace);
  std::string FirstOtherDecision(const trace::Trace& trace) const;

  const std::unique_ptr<kernels::Backend> backend_;
  const model::Checkpoint& checkpoint_;
  const std::string weights_sha256_;
  std::unique_ptr<model::Transformer> transformer_;
};

}  // namespace verbatim::replay
