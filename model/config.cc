// The limits of every number in a model's configuration.
#include "model/config.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "kernels/ops/moe.h"

namespace verbatim::model {
namespace {

class Checks {
 public:
  explicit Checks(const std::string& source) : source_(source) {}

  void Fail(const std::string& what) {
    if (status_.ok()) status_ = absl::InvalidArgumentError(absl::StrCat(source_, ": ", what));
  }
  void IntIn(const char* field, int64_t value, int64_t low, int64_t high) {
    if (value < low || value > high) {
      Fail(absl::StrCat(field, " is ", value, ", not from ", low, " to ", high));
    }
  }
  // False for NaN too.
  void FloatIn(const char* field, double value, double low, double high) {
    if (!(value >= low && value <= high)) {
      Fail(absl::StrCat(field, " is ", value, ", not from ", low, " to ", high));
    }
  }
  const absl::Status& status() const { return status_; }

 private:
  const std::string& source_;
  absl::Status status_;
};

void CheckExperts(const ModelConfig& config, Checks& checks) {
  const MoeConfig& moe = config.moe;
  checks.IntIn("the number of experts", moe.num_experts, 1, kernels::kMaxExperts);
  checks.IntIn("the number of experts over all layers", moe.num_experts * config.num_layers, 1,
               1 << 16);
  checks.IntIn("the number of experts per token", moe.experts_per_token, 1,
               std::min(moe.num_experts, kernels::kMaxExpertsPerToken));
  checks.IntIn("the intermediate size of experts", moe.intermediate_size, 1, 1 << 20);
  checks.IntIn("the intermediate size of the shared expert", moe.shared_intermediate_size, 0,
               1 << 20);
  checks.FloatIn("the scale of expert weights", moe.scale, 1e-6, 1e6);
  checks.FloatIn("embedding_multiplier", config.embedding_multiplier, 1e-6, 1e6);
  checks.FloatIn("attention_multiplier", config.attention_multiplier, 0, 1e6);
  checks.FloatIn("residual_multiplier", config.residual_multiplier, 1e-6, 1e6);
  checks.FloatIn("logits_scaling", config.logits_scaling, 1e-6, 1e6);
}

}  // namespace

bool IsMoeFamily(Family family) {
  switch (family) {
    case Family::kMixtral:
    case Family::kQwen2Moe:
    case Family::kQwen3Moe:
    case Family::kOlmoe:
    case Family::kGraniteMoe:
      return true;
    default:
      return false;
  }
}

absl::Status ValidateConfig(const ModelConfig& config, const std::string& source) {
  Checks checks(source);
  checks.IntIn("vocab_size", config.vocab_size, 1, 1 << 22);
  checks.IntIn("hidden_size", config.hidden_size, 1, 1 << 16);
  checks.IntIn("intermediate_size", config.intermediate_size, 1, 1 << 20);
  checks.IntIn("num_layers", config.num_layers, 1, 1024);
  checks.IntIn("num_heads", config.num_heads, 1, 1024);
  checks.IntIn("num_kv_heads", config.num_kv_heads, 1, 1024);
  checks.IntIn("head_dim", config.head_dim, 2, 256);
  checks.IntIn("max_position", config.max_position, 1, 1 << 24);
  checks.FloatIn("rms_norm_eps", config.rms_norm_eps, 1e-12, 0.1);
  checks.FloatIn("rope_theta", config.rope_theta, 1.0, 1e12);
  if (IsMoeFamily(config.family)) CheckExperts(config, checks);
  if (!checks.status().ok()) return checks.status();

  if (config.num_heads % config.num_kv_heads != 0) {
    checks.Fail(absl::StrCat("num_heads ", config.num_heads, " is not a multiple of num_kv_heads ",
                             config.num_kv_heads));
  }
  if (config.head_dim % 2 != 0) {
    checks.Fail(
        absl::StrCat("head_dim ", config.head_dim, " is odd, rotary embedding needs pairs"));
  }
  const RopeScaling& rope = config.rope_scaling;
  if (rope.kind != RopeScaling::Kind::kNone) {
    checks.FloatIn("rope scaling factor", rope.factor, 1.0, 1e6);
  }
  if (rope.kind == RopeScaling::Kind::kLlama3) {
    checks.FloatIn("rope scaling low_freq_factor", rope.low_freq_factor, 1e-6, 1e6);
    checks.FloatIn("rope scaling high_freq_factor", rope.high_freq_factor, 1e-6, 1e6);
    checks.IntIn("rope scaling original_max_position_embeddings", rope.original_max_position, 1,
                 1 << 24);
    if (!(rope.low_freq_factor < rope.high_freq_factor)) {
      checks.Fail("rope scaling low_freq_factor is not below high_freq_factor");
    }
  }
  const int64_t factors = static_cast<int64_t>(config.rope_freq_factors.size());
  if (factors != 0 && factors != config.head_dim / 2) {
    checks.Fail(absl::StrCat("rope frequency factors are ", factors,
                             " numbers, not head_dim / 2 = ", config.head_dim / 2));
  }
  for (const float factor : config.rope_freq_factors) {
    checks.FloatIn("a rope frequency factor", factor, 1e-6, 1e6);
  }
  for (const int32_t id : config.eos_ids) {
    checks.IntIn("eos_token_id", id, 0, config.vocab_size - 1);
  }
  return checks.status();
}

}  // namespace verbatim::model
