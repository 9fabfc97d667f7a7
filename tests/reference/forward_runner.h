// Runs a checkpoint's forward pass on the CPU backend for tests: prompts in, rows of logits out.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "model/checkpoint.h"
#include "model/transformer.h"

namespace verbatim::testing {

using LogitRow = std::vector<float>;  // [vocab]

// One sequence to run: logits are returned after each of `positions` (ascending).
struct ForwardSequence {
  std::vector<int32_t> ids;
  std::vector<int32_t> positions;
};

class ForwardRunner {
 public:
  // Sequences of up to `max_tokens` positions, up to `max_sequences` of them at once. Pages are
  // handed out in an order that is not ascending, and start poisoned.
  static absl::StatusOr<std::unique_ptr<ForwardRunner>> Create(const std::string& checkpoint_path,
                                                               int64_t max_tokens,
                                                               int64_t max_sequences);

  // The same on another backend than the CPU's.
  static absl::StatusOr<std::unique_ptr<ForwardRunner>> CreateOn(
      std::unique_ptr<kernels::Backend> backend, const std::string& checkpoint_path,
      int64_t max_tokens, int64_t max_sequences, kernels::DType cache_dtype = kernels::DType::kF32);

  // The same with a changed configuration: for tests that show that a mistake is seen.
  static absl::StatusOr<std::unique_ptr<ForwardRunner>> CreateAltered(
      const std::string& checkpoint_path, int64_t max_tokens, int64_t max_sequences,
      const std::function<void(model::ModelConfig&)>& alter);

  // The same under capacity limits of the experts (model::TransformerOptions).
  static absl::StatusOr<std::unique_ptr<ForwardRunner>> CreateLimited(
      const std::string& checkpoint_path, int64_t max_tokens, int64_t max_sequences,
      double moe_capacity_factor, kernels::CapacityOverflow moe_overflow);
  // Whether the rows of each sequence are exempt from them; by default none is.
  void set_exempt(std::vector<bool> sequences) { exempt_ = std::move(sequences); }
  // Instead: the batch's capacity_exempt as it stands, right or wrong.
  void set_exempt_rows(std::vector<uint8_t> rows) { exempt_rows_ = std::move(rows); }

  // Prefills every sequence from position 0; rows[s][p] belongs to sequences[s].positions[p].
  // chunk_tokens is the most tokens a sequence gets in one step (0: all of them); every step
  // holds one chunk of every sequence that has tokens left.
  absl::StatusOr<std::vector<std::vector<LogitRow>>> Prefill(
      const std::vector<ForwardSequence>& sequences, const kernels::NumericMode& mode,
      int64_t chunk_tokens);

  // One decode step of sequence 0 of the last Prefill.
  absl::StatusOr<LogitRow> Decode(int32_t token, int32_t position,
                                  const kernels::NumericMode& mode);

  // Whether this mode rounds the inputs of matrix products to bf16 on this machine.
  bool RoundsInputs(const kernels::NumericMode& mode) const;

  const model::ModelConfig& config() const { return transformer_->config(); }
  model::Transformer& transformer() { return *transformer_; }
  const model::Checkpoint& checkpoint() const { return *checkpoint_; }

 private:
  ForwardRunner() = default;
  static absl::StatusOr<std::unique_ptr<ForwardRunner>> OnCpu(
      std::unique_ptr<ForwardRunner> runner, const std::string& checkpoint_path, int64_t max_tokens,
      int64_t max_sequences, const std::function<void(model::ModelConfig&)>& alter);
  // Everything but the checkpoint and the backend.
  absl::Status Prepare(int64_t max_tokens, int64_t max_sequences);
  absl::Status Step(const model::ForwardBatch& batch, const kernels::NumericMode& mode,
                    const std::vector<int32_t>& rows, std::vector<LogitRow>& out);
  void AppendSpan(model::ForwardBatch& batch, int64_t sequence, int32_t first_position,
                  const int32_t* tokens, int32_t count) const;

  std::unique_ptr<model::Checkpoint> checkpoint_;
  std::unique_ptr<kernels::Backend> backend_;
  std::unique_ptr<model::Transformer> transformer_;
  std::unique_ptr<kernels::KvCache> cache_;
  kernels::DType cache_dtype_ = kernels::DType::kF32;
  double moe_capacity_factor_ = 0;
  kernels::CapacityOverflow moe_overflow_ = kernels::CapacityOverflow::kDrop;
  std::vector<bool> exempt_;
  std::vector<uint8_t> exempt_rows_;
  std::vector<std::vector<int32_t>> pages_;  // [max_sequences][pages of max_tokens]
};

}  // namespace verbatim::testing
