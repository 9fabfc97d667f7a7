// Reading of the model configuration in GGUF metadata. Source of the keys: the GGUF specification.
#include <algorithm>
#include <iterator>
#include <optional>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/ops/block_formats.h"
#include "model/config.h"

namespace verbatim::model {
namespace {

// Typed access to the keys "ARCHITECTURE.*"; the first error sticks.
class Keys {
 public:
  Keys(const GgufFile& file, const std::string& architecture)
      : file_(file), prefix_(absl::StrCat(architecture, ".")) {}

  const absl::Status& status() const { return status_; }
  bool ok() const { return status_.ok(); }
  bool Has(const std::string& key) const { return file_.metadata().contains(prefix_ + key); }

  int64_t Int(const std::string& key) { return Get(file_.GetInt(prefix_ + key)); }
  int64_t Int(const std::string& key, int64_t otherwise) { return Has(key) ? Int(key) : otherwise; }
  double Float(const std::string& key) { return Get(file_.GetFloat(prefix_ + key)); }
  double Float(const std::string& key, double otherwise) {
    return Has(key) ? Float(key) : otherwise;
  }
  bool Bool(const std::string& key, bool otherwise) {
    return Has(key) ? Get(file_.GetBool(prefix_ + key)) : otherwise;
  }
  std::string String(const std::string& key, const std::string& otherwise) {
    return Has(key) ? Get(file_.GetString(prefix_ + key)) : otherwise;
  }

  void Fail(const std::string& key, const std::string& what) {
    if (!ok()) return;
    status_ = absl::InvalidArgumentError(
        absl::StrCat(file_.path(), ": metadata ", prefix_, key, " ", what));
  }
  void Unsupported(const std::string& key, const std::string& what) {
    if (!ok()) return;
    status_ = absl::UnimplementedError(
        absl::StrCat(file_.path(), ": metadata ", prefix_, key, " ", what));
  }

 private:
  // A missing key is the file's fault here, not an answer.
  template <typename T>
  T Get(absl::StatusOr<T> value) {
    if (value.ok()) return *std::move(value);
    if (ok()) status_ = absl::InvalidArgumentError(value.status().message());
    return T{};
  }

  const GgufFile& file_;
  const std::string prefix_;
  absl::Status status_;
};

// GGUF architectures and what each says without a key of its own; llama is Mixtral where it has
// experts. `normalise` is fixed by the architecture, since files do not hold it.
struct Architecture {
  const char* name;
  Family family;
  bool rope_interleaved = false;
  bool qkv_bias = false;
  QkNorm qk_norm = QkNorm::kNone;
  bool normalise = true;
};
constexpr Architecture kArchitectures[] = {
    {"llama", Family::kLlama, /*rope_interleaved=*/true},
    {"qwen2", Family::kQwen2, false, /*qkv_bias=*/true},
    {"qwen3", Family::kQwen3, false, false, QkNorm::kHead},
    {"qwen2moe", Family::kQwen2Moe, false, true, QkNorm::kNone, /*normalise=*/false},
    {"qwen3moe", Family::kQwen3Moe, false, false, QkNorm::kHead},
    {"olmoe", Family::kOlmoe, false, false, QkNorm::kAll, /*normalise=*/false},
    {"granitemoe", Family::kGraniteMoe, true},
};

// The experts of a mixture, and Granite's multipliers.
void ReadMoe(Keys& keys, const Architecture& architecture, ModelConfig& config) {
  const int64_t experts = keys.Int("expert_count", 0);
  if (config.family == Family::kLlama && experts != 0) config.family = Family::kMixtral;
  if (!IsMoeFamily(config.family)) {
    for (const char* key : {"expert_count", "expert_used_count"}) {
      if (keys.Int(key, 0) != 0) {
        keys.Unsupported(key, "is not 0, this architecture has no experts");
      }
    }
    return;
  }
  MoeConfig& moe = config.moe;
  moe.num_experts = experts;
  moe.experts_per_token = keys.Int("expert_used_count");
  if (experts < 1) keys.Fail("expert_count", absl::StrCat("is ", experts, ", not at least 1"));
  if (moe.experts_per_token < 1 || moe.experts_per_token > experts) {
    keys.Fail("expert_used_count", absl::StrCat("is ", moe.experts_per_token, ", not from 1 to ",
                                                "expert_count ", experts));
  }
  if (!keys.ok()) return;
  moe.normalise = architecture.normalise;
  moe.intermediate_size = config.intermediate_size;
  if (config.family == Family::kQwen2Moe) {  // without the key, all chosen experts together
    moe.intermediate_size = config.intermediate_size / moe.experts_per_token;
    moe.shared_intermediate_size =
        keys.Int("expert_shared_feed_forward_length", config.intermediate_size);
    moe.shared_gate = true;
  } else if (config.family == Family::kGraniteMoe) {
    moe.shared_intermediate_size = keys.Int("expert_shared_feed_forward_length", 0);
    config.embedding_multiplier = keys.Float("embedding_scale", 1.0);
    config.attention_multiplier = keys.Float("attention.scale", 0.0);
    config.residual_multiplier = keys.Float("residual_scale", 1.0);
    config.logits_scaling = keys.Float("logit_scale");
    if (!keys.Bool("rope.scaling.finetuned", true)) {
      keys.Unsupported("rope.scaling.finetuned", "is false: positions without rotary embedding");
    }
  }
  moe.intermediate_size = keys.Int("expert_feed_forward_length", moe.intermediate_size);
  moe.scale = keys.Float("expert_weights_scale", 1.0);
  if (moe.scale == 0.0) moe.scale = 1.0;  // how writers say that there is none
  if (keys.Has("expert_weights_norm") &&
      keys.Bool("expert_weights_norm", moe.normalise) != moe.normalise) {
    keys.Unsupported("expert_weights_norm", "is not what the architecture does");
  }
  if (const int64_t function = keys.Int("expert_gating_func", 1); function > 1) {
    keys.Unsupported("expert_gating_func",
                     absl::StrCat("is ", function, ", only 1 (softmax) is supported"));
  }
  for (const char* key : {"expert_group_count", "expert_group_used_count",
                          "leading_dense_block_count", "interleave_moe_layer_step"}) {
    if (keys.Int(key, 0) > 1) keys.Unsupported(key, "is set, which is not supported");
  }
}

void RefuseOtherComputations(Keys& keys, const ModelConfig& config) {
  const int64_t window = keys.Int("attention.sliding_window", 0);
  if (window != 0 && window < config.max_position) {
    keys.Unsupported("attention.sliding_window",
                     absl::StrCat("is ", window, ", below context_length ", config.max_position,
                                  "; window attention is not supported"));
  }
  for (const char* key : {"rope.dimension_count", "attention.value_length"}) {
    const int64_t value = keys.Int(key, config.head_dim);
    if (keys.ok() && value != config.head_dim) {
      keys.Unsupported(key, absl::StrCat("is ", value, ", not the head size ", config.head_dim));
    }
  }
  for (const char* key : {"attention.max_alibi_bias", "attention.clamp_kqv"}) {
    if (keys.Has(key)) keys.Unsupported(key, "is set, which is not supported");
  }
  if (config.family == Family::kGraniteMoe) return;
  for (const char* key : {"attention.scale", "residual_scale", "embedding_scale", "logit_scale"}) {
    if (keys.Has(key)) keys.Unsupported(key, "is set, which is not supported");
  }
}

void ReadRope(Keys& keys, ModelConfig& config) {
  config.rope_theta = keys.Float("rope.freq_base", 10000.0);
  const std::string type = keys.String("rope.scaling.type", "none");
  // The older key has no type beside it.
  const double older_factor = keys.Float("rope.scale_linear", 1.0);
  if (type == "linear") {
    config.rope_scaling.kind = RopeScaling::Kind::kLinear;
    config.rope_scaling.factor = keys.Float("rope.scaling.factor");
  } else if (type != "none") {
    keys.Unsupported("rope.scaling.type", absl::StrCat("is \"", absl::CHexEscape(type),
                                                       "\"; supported are none and linear"));
  } else if (older_factor != 1.0) {
    config.rope_scaling.kind = RopeScaling::Kind::kLinear;
    config.rope_scaling.factor = older_factor;
  }
}

absl::Status ReadTokenizerFields(const GgufFile& file, ModelConfig& config) {
  // End of sequence, end of turn, end of message: whichever the file names.
  for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                          "tokenizer.ggml.eom_token_id"}) {
    absl::StatusOr<int64_t> id = file.GetInt(key);
    if (absl::IsNotFound(id.status())) continue;
    if (!id.ok()) return id.status();
    if (*id < 0 || *id >= config.vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat(file.path(), ": metadata ", key, " is ", *id,
                                                     ", outside the vocabulary of ",
                                                     config.vocab_size));
    }
    const int32_t eos = static_cast<int32_t>(*id);
    bool known = false;
    for (const int32_t other : config.eos_ids) known = known || other == eos;
    if (!known) config.eos_ids.push_back(eos);
  }
  return absl::OkStatus();
}

// The divisors of the rotary frequencies, where the file brings them.
absl::Status ReadRopeFactors(const GgufFile& file, ModelConfig& config) {
  const auto it = file.tensors().find("rope_freqs.weight");
  if (it == file.tensors().end()) return absl::OkStatus();
  const GgufTensor& tensor = it->second;
  if (tensor.shape != std::vector<int64_t>{config.head_dim / 2} ||
      tensor.dtype != kernels::DType::kF32) {
    return absl::InvalidArgumentError(absl::StrCat(
        file.path(), ": tensor rope_freqs.weight is not F32 of shape [", config.head_dim / 2, "]"));
  }
  if (config.rope_scaling.kind != RopeScaling::Kind::kNone) {
    return absl::UnimplementedError(absl::StrCat(
        file.path(), ": tensor rope_freqs.weight together with rope scaling is not supported"));
  }
  config.rope_freq_factors.resize(static_cast<size_t>(config.head_dim / 2));
  kernels::DecodeRow(tensor.dtype, tensor.data, config.head_dim / 2,
                     config.rope_freq_factors.data());
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ModelConfig> ReadGgufConfig(const GgufFile& file) {
  absl::StatusOr<std::string> architecture = file.GetString("general.architecture");
  if (!architecture.ok()) return absl::InvalidArgumentError(architecture.status().message());
  ModelConfig config;
  const auto* found =
      std::find_if(std::begin(kArchitectures), std::end(kArchitectures),
                   [&](const Architecture& candidate) { return *architecture == candidate.name; });
  if (found == std::end(kArchitectures)) {
    return absl::UnimplementedError(absl::StrCat(
        file.path(), ": metadata general.architecture is \"", absl::CHexEscape(*architecture),
        "\"; supported are ",
        absl::StrJoin(kArchitectures, ", ", [](std::string* out, const Architecture& candidate) {
          absl::StrAppend(out, candidate.name);
        })));
  }
  config.family = found->family;
  config.rope_interleaved = found->rope_interleaved;
  config.qkv_bias = found->qkv_bias;
  config.qk_norm = found->qk_norm;
  if (absl::StatusOr<std::string> name = file.GetString("general.name"); name.ok()) {
    config.name = *std::move(name);
  }

  Keys keys(file, *architecture);
  config.hidden_size = keys.Int("embedding_length");
  config.intermediate_size = keys.Int("feed_forward_length");
  config.num_layers = keys.Int("block_count");
  config.num_heads = keys.Int("attention.head_count");
  config.num_kv_heads = keys.Int("attention.head_count_kv", config.num_heads);
  config.max_position = keys.Int("context_length");
  config.rms_norm_eps = keys.Float("attention.layer_norm_rms_epsilon");
  if (!keys.ok()) return keys.status();
  if (keys.Has("attention.key_length")) {
    config.head_dim = keys.Int("attention.key_length");
  } else if (config.num_heads < 1 || config.hidden_size % config.num_heads != 0) {
    keys.Fail(
        "embedding_length",
        absl::StrCat(config.hidden_size, " is not a multiple of head_count ", config.num_heads));
  } else {
    config.head_dim = config.hidden_size / config.num_heads;
  }
  ReadMoe(keys, *found, config);
  RefuseOtherComputations(keys, config);
  ReadRope(keys, config);

  const auto embedding = file.tensors().find("token_embd.weight");
  if (embedding == file.tensors().end() || embedding->second.shape.size() != 2) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.path(), ": tensor token_embd.weight is missing or not a matrix"));
  }
  config.vocab_size = keys.Int("vocab_size", embedding->second.shape[0]);
  if (!keys.ok()) return keys.status();
  config.tied_embeddings = !file.tensors().contains("output.weight");
  if (absl::Status status = ReadTokenizerFields(file, config); !status.ok()) return status;
  if (absl::Status status = ReadRopeFactors(file, config); !status.ok()) return status;
  if (absl::Status status = ValidateConfig(config, file.path()); !status.ok()) return status;
  return config;
}

}  // namespace verbatim::model
