// A model of random weights in the shape of a real one.
#include "bench/random_checkpoint.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "kernels/numerics/random_weights.h"

namespace verbatim::bench {
namespace {

using kernels::DType;
using kernels::StoredMatrix;
using model::ModelConfig;

ModelConfig Llama31() {
  ModelConfig config;
  config.name = "llama-3.1-8b, random";
  config.vocab_size = 128256;
  config.hidden_size = 4096;
  config.intermediate_size = 14336;
  config.num_layers = 32;
  config.num_heads = 32;
  config.num_kv_heads = 8;
  config.head_dim = 128;
  config.max_position = 131072;
  config.rope_theta = 500000;
  config.rope_scaling = {.kind = model::RopeScaling::Kind::kLlama3,
                         .factor = 8,
                         .low_freq_factor = 1,
                         .high_freq_factor = 4,
                         .original_max_position = 8192};
  return config;
}

ModelConfig Qwen3Moe() {
  ModelConfig config;
  config.family = model::Family::kQwen3Moe;
  config.name = "qwen3-30b-a3b, random";
  config.vocab_size = 151936;
  config.hidden_size = 2048;
  config.intermediate_size = 6144;
  config.num_layers = 48;
  config.num_heads = 32;
  config.num_kv_heads = 4;
  config.head_dim = 128;
  config.max_position = 40960;
  config.rms_norm_eps = 1e-6;
  config.rope_theta = 1000000;
  config.qk_norm = model::QkNorm::kHead;
  config.moe.num_experts = 128;
  config.moe.experts_per_token = 8;
  config.moe.intermediate_size = 768;
  return config;
}

ModelConfig Tiny() {
  ModelConfig config;
  config.name = "tiny, random";
  config.vocab_size = 300;
  config.hidden_size = 128;
  config.intermediate_size = 256;
  config.num_layers = 2;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 32;
  config.max_position = 1024;
  return config;
}

ModelConfig TinyMoe() {
  ModelConfig config = Tiny();
  config.family = model::Family::kQwen3Moe;
  config.name = "tiny-moe, random";
  config.qk_norm = model::QkNorm::kHead;
  config.moe.num_experts = 8;
  config.moe.experts_per_token = 2;
  config.moe.intermediate_size = 64;
  return config;
}

constexpr std::pair<std::string_view, ModelConfig (*)()> kShapes[] = {
    {"llama-3.1-8b", Llama31}, {"qwen3-30b-a3b", Qwen3Moe}, {"tiny", Tiny}, {"tiny-moe", TinyMoe}};

// FNV-1a: the same on every machine.
uint64_t HashOf(std::string_view name) {
  uint64_t hash = 14695981039346656037u;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
  return hash;
}

}  // namespace

absl::StatusOr<ModelConfig> RandomModelConfig(std::string_view shape) {
  std::string names;
  for (const auto& [name, make] : kShapes) {
    if (name == shape) return make();
    absl::StrAppend(&names, " ", std::string(name));
  }
  return absl::NotFoundError(
      absl::StrCat("no shape '", std::string(shape), "'; there are:", names));
}

std::pair<int64_t, int64_t> RandomCheckpoint::ShapeOf(std::string_view name) const {
  const int64_t hidden = config_.hidden_size;
  if (name == "embed" || name == "lm_head") return {config_.vocab_size, hidden};
  const std::vector<std::string> words = absl::StrSplit(std::string(name), '.');
  int64_t layer = -1;
  if (words.size() < 3 || words[0] != "layers" || !absl::SimpleAtoi(words[1], &layer) ||
      layer < 0 || layer >= config_.num_layers) {
    return {0, 0};
  }
  const int64_t heads = config_.num_heads * config_.head_dim;
  const int64_t kv = config_.num_kv_heads * config_.head_dim;
  const bool moe = config_.moe.IsMoe(layer);
  const bool expert = words.size() == 5 && words[2] == "experts";
  if (words.size() == 3) {
    if (words[2] == "q") return {heads, hidden};
    if (words[2] == "k" || words[2] == "v") return {kv, hidden};
    if (words[2] == "o") return {hidden, heads};
    if (words[2] == "router" && moe) return {config_.moe.num_experts, hidden};
  }
  if (moe != expert) return {0, 0};
  const int64_t inner = moe ? config_.moe.intermediate_size : config_.intermediate_size;
  if (words.back() == "gate" || words.back() == "up") return {inner, hidden};
  if (words.back() == "down") return {hidden, inner};
  return {0, 0};
}

absl::StatusOr<StoredMatrix> RandomCheckpoint::Matrix(std::string_view name) const {
  const auto [rows, cols] = ShapeOf(name);
  if (rows == 0) {
    return absl::NotFoundError(absl::StrCat("random weights: no matrix ", std::string(name)));
  }
  return StoredMatrix{.dtype = DType::kBF16,
                      .rows = rows,
                      .cols = cols,
                      .random = numerics::RandomWeights{.seed = seed_, .matrix = HashOf(name)}};
}

absl::StatusOr<std::vector<float>> RandomCheckpoint::Vector(std::string_view name) const {
  const bool head = absl::StrContains(std::string(name), "q_norm") ||
                    absl::StrContains(std::string(name), "k_norm");
  return std::vector<float>(static_cast<size_t>(head ? config_.head_dim : config_.hidden_size),
                            1.0f);
}

absl::StatusOr<std::unique_ptr<model::Tokenizer>> RandomCheckpoint::LoadTokenizer() const {
  return absl::UnimplementedError("random weights have no tokenizer");
}

int64_t RandomCheckpoint::dense_bytes() const {
  const int64_t hidden = config_.hidden_size;
  const int64_t attention =
      2 * (config_.num_heads + config_.num_kv_heads) * config_.head_dim * hidden;
  const int64_t rest = config_.moe.num_experts > 0 ? config_.moe.num_experts * hidden
                                                   : 3 * config_.intermediate_size * hidden;
  return 2 * (config_.num_layers * (attention + rest) + config_.vocab_size * hidden);
}

int64_t RandomCheckpoint::expert_bytes() const {
  return 2 * 3 * config_.moe.intermediate_size * config_.hidden_size;
}

int64_t RandomCheckpoint::weight_bytes() const {
  const int64_t embedding = 2 * config_.vocab_size * config_.hidden_size;
  return embedding + dense_bytes() + config_.num_layers * config_.moe.num_experts * expert_bytes();
}

}  // namespace verbatim::bench
