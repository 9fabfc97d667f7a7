// The mixture-of-experts fields of Hugging Face config.json. Source of the names and defaults: the
// configuration classes of the transformers library.
#include <vector>

#include "absl/strings/str_cat.h"
#include "model/config.h"
#include "model/config_fields.h"

namespace verbatim::model {
namespace {

// Which layers are dense: all but every decoder_sparse_step-th one, and those of mlp_only_layers.
void ReadDenseLayers(JsonFields& fields, ModelConfig& config) {
  const int64_t step = fields.Int("decoder_sparse_step", 1);
  if (step < 1) fields.Fail("decoder_sparse_step", absl::StrCat("is ", step, ", not at least 1"));
  if (!fields.ok() || config.num_layers < 1 || config.num_layers > 1024) return;
  std::vector<bool> dense(static_cast<size_t>(config.num_layers));
  bool any = false;
  for (int64_t i = 0; i < config.num_layers; ++i) {
    dense[i] = (i + 1) % step != 0;
    any = any || dense[i];
  }
  if (const nlohmann::json* layers = fields.Find("mlp_only_layers"); layers != nullptr) {
    if (!layers->is_array()) return fields.Fail("mlp_only_layers", "is not a list");
    for (const nlohmann::json& layer : *layers) {
      if (!layer.is_number_integer() || layer < 0 || layer >= config.num_layers) {
        return fields.Fail("mlp_only_layers",
                           absl::StrCat("has ", Shown(layer), ", which is not a layer"));
      }
      dense[layer.get<size_t>()] = true;
      any = true;
    }
  }
  if (any) config.moe.dense_layers = std::move(dense);
}

}  // namespace

void ReadHuggingFaceMoe(JsonFields& fields, ModelConfig& config) {
  if (!IsMoeFamily(config.family)) return;
  const bool is_qwen = config.family == Family::kQwen2Moe || config.family == Family::kQwen3Moe;
  const bool is_local = config.family == Family::kMixtral || config.family == Family::kGraniteMoe;
  // The two names are aliases of one another in the library; each family writes its own.
  const char* const usual = is_local ? "num_local_experts" : "num_experts";
  const char* const other = is_local ? "num_experts" : "num_local_experts";
  const char* const count =
      fields.Find(usual) == nullptr && fields.Find(other) != nullptr ? other : usual;
  MoeConfig& moe = config.moe;
  moe.num_experts = fields.Int(count);
  moe.experts_per_token = fields.Int("num_experts_per_tok");
  if (moe.num_experts < 1) {
    fields.Fail(count, absl::StrCat("is ", moe.num_experts, ", not at least 1"));
  }
  if (moe.experts_per_token < 1 || moe.experts_per_token > moe.num_experts) {
    fields.Fail("num_experts_per_tok",
                absl::StrCat("is ", moe.experts_per_token, ", not from 1 to ", count, " ",
                             moe.num_experts));
  }
  moe.intermediate_size = is_qwen ? fields.Int("moe_intermediate_size") : config.intermediate_size;
  // Mixtral divides by the sum of the chosen experts; Granite's softmax after the choice is the
  // same. The others say.
  moe.normalise = is_local || fields.Bool("norm_topk_prob", false);
  if (is_qwen) ReadDenseLayers(fields, config);
  if (config.family == Family::kQwen2Moe) {
    moe.shared_intermediate_size = fields.Int("shared_expert_intermediate_size");
    if (moe.shared_intermediate_size < 1) {
      fields.Fail("shared_expert_intermediate_size",
                  absl::StrCat("is ", moe.shared_intermediate_size, ", not at least 1"));
    }
    moe.shared_gate = true;
  }
  if (config.family == Family::kOlmoe && fields.Find("clip_qkv") != nullptr) {
    fields.Unsupported("clip_qkv", "is set, which is not supported");
  }
  if (config.family == Family::kGraniteMoe) {
    moe.shared_intermediate_size = fields.Int("shared_intermediate_size", 0);
    config.embedding_multiplier = fields.Float("embedding_multiplier", 1.0);
    config.attention_multiplier = fields.Float("attention_multiplier", 1.0);
    config.residual_multiplier = fields.Float("residual_multiplier", 1.0);
    config.logits_scaling = fields.Float("logits_scaling", 1.0);
    if (config.attention_multiplier == 0.0) {
      fields.Fail("attention_multiplier", "is 0, which makes every position count alike");
    }
  }
}

}  // namespace verbatim::model
