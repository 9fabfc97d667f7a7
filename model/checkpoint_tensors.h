// What every checkpoint format shares: the tensors that a family needs, and a Checkpoint over them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/checkpoint.h"

namespace verbatim::model {

// A tensor that a model has, by its canonical name, with the shape that its configuration implies.
struct ExpectedTensor {
  std::string name;
  std::vector<int64_t> shape;  // [rows, cols] or [size]
};

// Everything a model of this (validated) configuration is made of. "lm_head" only when not tied.
std::vector<ExpectedTensor> ExpectedTensors(const ModelConfig& config);

// A tensor as a file holds it. The bytes need no alignment.
struct StoredTensor {
  kernels::DType dtype;
  std::vector<int64_t> shape;
  const std::byte* data;
  int64_t size_bytes;
};

// Answers everything that does not depend on the file format. A subclass owns the files.
class TensorCheckpoint : public Checkpoint {
 public:
  const ModelConfig& config() const override { return config_; }
  absl::StatusOr<kernels::StoredMatrix> Matrix(std::string_view canonical_name) const override;
  absl::StatusOr<std::vector<float>> Vector(std::string_view canonical_name) const override;
  absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer() const override;
  std::string WeightsFingerprint() const override;
  int64_t weight_bytes() const override { return weight_bytes_; }
  const std::string& path() const override { return path_; }

 protected:
  TensorCheckpoint(const std::string& path, ModelConfig config)
      : path_(path), config_(std::move(config)) {}

  // Takes a tensor of the model; `source` begins an error, `file_name` is the tensor's name there.
  // Fails when its shape is not the expected one.
  absl::Status Add(const ExpectedTensor& expected, const std::string& source,
                   const std::string& file_name, StoredTensor tensor);

  virtual absl::StatusOr<std::unique_ptr<Tokenizer>> ReadTokenizer() const = 0;

 private:
  const StoredTensor* Find(std::string_view canonical_name, size_t dimensions) const;
  std::string ComputeFingerprint() const;

  const std::string path_;
  const ModelConfig config_;
  std::map<std::string, StoredTensor, std::less<>> tensors_;
  int64_t weight_bytes_ = 0;
  mutable std::once_flag fingerprint_once_;
  mutable std::string fingerprint_;
};

// The formats that Checkpoint::Open chooses from. `path` is a file for GGUF, a .safetensors file or
// a directory for the other.
absl::StatusOr<std::unique_ptr<Checkpoint>> OpenGgufCheckpoint(const std::string& path);
absl::StatusOr<std::unique_ptr<Checkpoint>> OpenSafetensorsCheckpoint(const std::string& path);

}  // namespace verbatim::model
