// What every checkpoint format shares: the tensors that a family needs, and a Checkpoint over them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
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
  // A NaN or infinity in it is refused: it would decide which experts a token gets.
  bool must_be_finite = false;
};

// Where a file format may keep a tensor: as a tensor of its own, or as some rows of a merged one of
// shape [experts, parts · rows, cols], or [parts · rows, cols] where `experts` is 0.
struct TensorPlace {
  std::string file_name;
  int64_t experts = 0;
  int64_t expert = 0;
  int64_t parts = 1;
  int64_t part = 0;
};

// Everything a model of this (validated) configuration is made of. "lm_head" only when not tied.
std::vector<ExpectedTensor> ExpectedTensors(const ModelConfig& config);

// The parts of a canonical name "layers.3.q.bias" or "layers.3.experts.5.up".
struct LayerTensorName {
  int64_t layer = 0;
  int64_t expert = -1;  // −1: not an expert's
  std::string rest;     // "q.bias", "up"
};
LayerTensorName SplitLayerName(const std::string& canonical);

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

  // A tensor of a file, and the file's path.
  struct FileTensor {
    StoredTensor tensor;
    std::string path;
  };

  // Takes every tensor of the model from the first of its places that the files have; rows of
  // merged tensors are not copied. INVALID_ARGUMENT naming the tensor when it is missing, has
  // another shape than the configuration says, or must be finite and is not.
  absl::Status AddTensors();
  // Whether AddTensors took the tensor, or rows of it.
  bool IsUsed(const std::string& file_name) const { return used_.contains(file_name); }

  // Null where the files have no tensor of this name.
  virtual std::optional<FileTensor> InFiles(const std::string& file_name) const = 0;
  // At least one.
  virtual std::vector<TensorPlace> PlacesOf(const std::string& canonical_name) const = 0;
  virtual absl::StatusOr<std::unique_ptr<Tokenizer>> ReadTokenizer() const = 0;

 private:
  absl::Status Add(const ExpectedTensor& expected, const TensorPlace& place,
                   const FileTensor& found);
  const StoredTensor* Find(std::string_view canonical_name, size_t dimensions) const;
  std::string ComputeFingerprint() const;

  const std::string path_;
  const ModelConfig config_;
  std::map<std::string, StoredTensor, std::less<>> tensors_;
  std::set<std::string> used_;  // names in the files
  int64_t weight_bytes_ = 0;
  mutable std::once_flag fingerprint_once_;
  mutable std::string fingerprint_;
};

// The formats that Checkpoint::Open chooses from. `path` is a file for GGUF, a .safetensors file or
// a directory for the other.
absl::StatusOr<std::unique_ptr<Checkpoint>> OpenGgufCheckpoint(const std::string& path);
absl::StatusOr<std::unique_ptr<Checkpoint>> OpenSafetensorsCheckpoint(const std::string& path);

}  // namespace verbatim::model
