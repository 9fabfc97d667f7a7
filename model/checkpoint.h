// One view of a model on disk, whatever its file format: configuration, and tensors under canonical
// names.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/ops/dtype.h"
#include "model/chat_template.h"
#include "model/tokenizer.h"

namespace verbatim::model {

enum class Family { kLlama, kMistral, kQwen2, kQwen3 };

// Llama 3.1 frequency scaling ("rope_type": "llama3"); linear scaling is `factor` with kLinear.
struct RopeScaling {
  enum class Kind { kNone, kLinear, kLlama3 };
  Kind kind = Kind::kNone;
  double factor = 1.0;
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  int64_t original_max_position = 8192;
};

struct ModelConfig {
  Family family = Family::kLlama;
  std::string name;  // human-readable, from the file, may be empty
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t max_position = 0;  // trained context length, tokens
  double rms_norm_eps = 1e-5;
  double rope_theta = 10000.0;
  RopeScaling rope_scaling;
  // Per-frequency divisors [head_dim / 2] where the file brings them as a tensor (GGUF
  // rope_freqs.weight); else empty.
  std::vector<float> rope_freq_factors;
  // true: rotate pairs (2i, 2i+1) (GGUF llama layout); false: pairs (i, i + head_dim/2) (Hugging
  // Face layout).
  bool rope_interleaved = false;
  bool qkv_bias = false;  // Qwen2
  bool qk_norm = false;   // Qwen3
  bool tied_embeddings = false;
  std::vector<int32_t> eos_ids;  // from generation_config.json / config.json, may be empty
};

// Canonical tensor names: "embed", "final_norm", "lm_head" (absent when tied), and per layer i
// "layers.i.{attn_norm,q,k,v,o,ffn_norm,gate,up,down}", "layers.i.{q,k,v}.bias",
// "layers.i.{q_norm,k_norm}".
class Checkpoint {
 public:
  virtual ~Checkpoint() = default;

  // A .gguf file, a .safetensors file with config.json beside it, or a directory with config.json
  // and one or more .safetensors files (model.safetensors.index.json honoured). Checks that every
  // tensor the family needs is there with the shape that the configuration says; errors name the
  // file and the tensor or field.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& path);

  virtual const ModelConfig& config() const = 0;
  // Matrices: rows = output features. NOT_FOUND for a name the model does not have.
  virtual absl::StatusOr<kernels::StoredMatrix> Matrix(std::string_view canonical_name) const = 0;
  // Vectors (norm weights, biases), decoded to fp32.
  virtual absl::StatusOr<std::vector<float>> Vector(std::string_view canonical_name) const = 0;

  virtual absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer() const = 0;
  // SHA-256 (hex) over the tensors' names, types, shapes and stored bytes in name order, and the
  // configuration.
  virtual std::string WeightsFingerprint() const = 0;
  // Bytes of weights as stored.
  virtual int64_t weight_bytes() const = 0;
  virtual const std::string& path() const = 0;
};

}  // namespace verbatim::model
