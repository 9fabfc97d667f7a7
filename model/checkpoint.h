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

enum class Family {
  kLlama,
  kMistral,
  kQwen2,
  kQwen3,
  kMixtral,
  kQwen2Moe,
  kQwen3Moe,
  kOlmoe,
  kGraniteMoe,
};

// How a layer's feed-forward part is a mixture of experts. num_experts 0: it is dense.
struct MoeConfig {
  int64_t num_experts = 0;
  int64_t experts_per_token = 0;
  int64_t intermediate_size = 0;         // of an expert
  int64_t shared_intermediate_size = 0;  // of the shared expert; 0: there is none
  bool shared_gate = false;              // the shared expert's output is gated (Qwen2-MoE)
  bool normalise = true;                 // weights sum to `scale` (norm_topk_prob)
  double scale = 1.0;
  std::vector<bool> dense_layers;  // [num_layers]: layers that are dense all the same; may be empty

  bool IsMoe(int64_t layer) const {
    return num_experts > 0 && (dense_layers.empty() || !dense_layers[layer]);
  }
};

// Over what RMSNorm is taken of queries and keys: nothing, each head (Qwen3), or all heads at once
// (OLMoE).
enum class QkNorm { kNone, kHead, kAll };

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
  QkNorm qk_norm = QkNorm::kNone;
  bool tied_embeddings = false;
  MoeConfig moe;
  // Granite: rows of the embedding are multiplied by the first, attention scores by the second (0:
  // 1 / sqrt(head_dim)), what a block adds to the residual stream by the third, and logits are
  // divided by the fourth.
  double embedding_multiplier = 1.0;
  double attention_multiplier = 0.0;
  double residual_multiplier = 1.0;
  double logits_scaling = 1.0;
  std::vector<int32_t> eos_ids;  // from generation_config.json / config.json, may be empty
};

// Canonical tensor names: "embed", "final_norm", "lm_head" (absent when tied), and per layer i
// "layers.i.{attn_norm,q,k,v,o,ffn_norm,gate,up,down}", "layers.i.{q,k,v}.bias",
// "layers.i.{q_norm,k_norm}". A mixture of experts has, instead of gate, up and down,
// "layers.i.router" [num_experts, hidden], "layers.i.experts.e.{gate,up,down}", and with a shared
// expert "layers.i.shared.{gate,up,down}" and "layers.i.shared_gate" [1, hidden].
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
