// A model of random weights in the shape of a real one: what its speed depends on, without a file.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "model/checkpoint.h"

namespace verbatim::bench {

// Shapes by name: "llama-3.1-8b" and "qwen3-30b-a3b", from the config.json that their authors
// published, and "tiny" and "tiny-moe" for tests. NOT_FOUND naming the shapes that there are.
absl::StatusOr<model::ModelConfig> RandomModelConfig(std::string_view shape);

// BF16 matrices, norms of 1. A matrix's values follow from the seed and its name, and backends make
// them themselves: every run and every device has the same weights, and the host holds none.
class RandomCheckpoint final : public model::Checkpoint {
 public:
  RandomCheckpoint(const model::ModelConfig& config, uint64_t seed)
      : config_(config), seed_(seed) {}

  const model::ModelConfig& config() const override { return config_; }
  absl::StatusOr<kernels::StoredMatrix> Matrix(std::string_view name) const override;
  absl::StatusOr<std::vector<float>> Vector(std::string_view name) const override;
  // UNIMPLEMENTED: random weights have no tokenizer.
  absl::StatusOr<std::unique_ptr<model::Tokenizer>> LoadTokenizer() const override;
  std::string WeightsFingerprint() const override { return "random"; }
  int64_t weight_bytes() const override;
  const std::string& path() const override { return config_.name; }

  // Bytes of the matrices that every token's forward pass reads: all but the embedding and the
  // experts; and of one expert's matrices in one layer.
  int64_t dense_bytes() const;
  int64_t expert_bytes() const;

 private:
  // Rows and columns; 0 rows for a name that the model does not have.
  std::pair<int64_t, int64_t> ShapeOf(std::string_view name) const;

  const model::ModelConfig config_;
  const uint64_t seed_;
};

}  // namespace verbatim::bench
