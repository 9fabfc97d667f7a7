// The weights of an upcycled model: one safetensors file under the names of transformers'
// MixtralForCausalLM.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/checkpoint.h"
#include "model/safetensors_writer.h"
#include "upcycle/layer_experts.h"
#include "upcycle/model_files.h"

namespace verbatim::upcycle {

// Everything is BF16. What is not an expert or a router is the parent's, rounded to nearest even;
// query and key rows of a parent that rotates neighbouring pairs are put in the order of Hugging
// Face's layout, which rotates (i, i + head_dim / 2).
class MixtralWriter {
 public:
  // The parent must outlive the writer.
  static absl::StatusOr<std::unique_ptr<MixtralWriter>> Create(const std::string& path,
                                                               const model::Checkpoint& parent,
                                                               const Provenance& provenance);

  // In this order: Begin, each layer once from 0, Finish.
  absl::Status Begin();
  // `router` [experts, hidden] of values that bf16 can hold.
  absl::Status Layer(int64_t layer, absl::Span<const float> router,
                     absl::Span<const Expert> experts);
  absl::Status Finish();

  int64_t file_bytes() const { return file_->file_bytes(); }

 private:
  MixtralWriter(const model::Checkpoint& parent, std::unique_ptr<model::SafetensorsWriter> file)
      : parent_(parent), file_(std::move(file)) {}
  absl::Status Bits(const std::string& name, const std::vector<uint16_t>& values);
  absl::Status Matrix(const std::string& name, const std::string& canonical_name,
                      int64_t rotated_heads);
  absl::Status Vector(const std::string& name, const std::string& canonical_name);

  const model::Checkpoint& parent_;
  std::unique_ptr<model::SafetensorsWriter> file_;
};

}  // namespace verbatim::upcycle
