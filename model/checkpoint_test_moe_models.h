// For tests: tiny mixtures of experts of every family, as GGUF and as Hugging Face directories.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "model/checkpoint_test_models.h"

namespace verbatim::model::testing {

inline constexpr int kTinyExperts = 4;
inline constexpr int kTinyInner = 32;   // of an expert
inline constexpr int kTinyShared = 64;  // of a shared expert

// The dense models of checkpoint_test_models.h with a mixture of 4 experts, 2 a token, and for the
// families that have one a shared expert. `model_type` is mixtral, qwen2_moe, qwen3_moe, olmoe,
// granitemoe or granitemoeshared.
inline nlohmann::json TinyMoeConfig(const std::string& model_type) {
  nlohmann::json config = TinyConfig("llama");
  const bool local = model_type == "mixtral" || model_type.starts_with("granite");
  const bool granite = model_type.starts_with("granite");
  config["model_type"] = model_type;
  config["architectures"] = {model_type == "mixtral"      ? "MixtralForCausalLM"
                             : model_type == "qwen2_moe"  ? "Qwen2MoeForCausalLM"
                             : model_type == "qwen3_moe"  ? "Qwen3MoeForCausalLM"
                             : model_type == "olmoe"      ? "OlmoeForCausalLM"
                             : model_type == "granitemoe" ? "GraniteMoeForCausalLM"
                                                          : "GraniteMoeSharedForCausalLM"};
  config[local ? "num_local_experts" : "num_experts"] = kTinyExperts;
  config["num_experts_per_tok"] = 2;
  if (model_type.starts_with("qwen")) {
    config["moe_intermediate_size"] = kTinyInner;
    config["norm_topk_prob"] = model_type == "qwen3_moe";
  } else {
    config["intermediate_size"] = kTinyInner;
  }
  if (model_type == "qwen2_moe") config["shared_expert_intermediate_size"] = kTinyShared;
  if (model_type == "granitemoeshared") config["shared_intermediate_size"] = kTinyShared;
  if (granite) {
    config["embedding_multiplier"] = 12.0;
    config["attention_multiplier"] = 0.0625;
    config["residual_multiplier"] = 0.25;
    config["logits_scaling"] = 6.0;
  }
  return config;
}

inline std::vector<NamedShape> TinyMoeTensors(const std::string& model_type, bool merged = false) {
  std::vector<NamedShape> tensors = TinyTensors(model_type == "qwen2_moe"   ? "qwen2"
                                                : model_type == "qwen3_moe" ? "qwen3"
                                                                            : "llama");
  std::erase_if(tensors, [](const NamedShape& t) { return t.name.find(".mlp.") != t.name.npos; });
  const std::string layer = "model.layers.0.";
  const bool granite = model_type.starts_with("granite");
  const std::string block =
      layer + ((model_type == "mixtral" && !merged) || granite ? "block_sparse_moe." : "mlp.");
  const int64_t e = kTinyExperts, i = kTinyInner, s = kTinyShared;
  if (model_type == "olmoe") {
    tensors.push_back({layer + "self_attn.q_norm.weight", {32}});
    tensors.push_back({layer + "self_attn.k_norm.weight", {16}});
  }
  if (granite) {
    const bool shared = model_type == "granitemoeshared";
    tensors.push_back(
        {block + (merged ? "router.weight" : "router.layer.weight"), {kTinyExperts, 32}});
    tensors.push_back(
        {block + (merged ? "experts.gate_up_proj" : "input_linear.weight"), {e, 2 * i, 32}});
    tensors.push_back(
        {block + (merged ? "experts.down_proj" : "output_linear.weight"), {e, 32, i}});
    if (shared) tensors.push_back({layer + "shared_mlp.input_linear.weight", {2 * s, 32}});
    if (shared) tensors.push_back({layer + "shared_mlp.output_linear.weight", {32, s}});
    return tensors;
  }
  tensors.push_back({block + "gate.weight", {e, 32}});
  if (merged) {
    tensors.push_back({block + "experts.gate_up_proj", {e, 2 * i, 32}});
    tensors.push_back({block + "experts.down_proj", {e, 32, i}});
  }
  for (int x = 0; x < kTinyExperts && !merged; ++x) {
    const std::string expert = absl::StrCat(block, "experts.", x, ".");
    const bool w = model_type == "mixtral";
    tensors.push_back({expert + (w ? "w1.weight" : "gate_proj.weight"), {i, 32}});
    tensors.push_back({expert + (w ? "w3.weight" : "up_proj.weight"), {i, 32}});
    tensors.push_back({expert + (w ? "w2.weight" : "down_proj.weight"), {32, i}});
  }
  if (model_type == "qwen2_moe") {
    tensors.push_back({block + "shared_expert.gate_proj.weight", {s, 32}});
    tensors.push_back({block + "shared_expert.up_proj.weight", {s, 32}});
    tensors.push_back({block + "shared_expert.down_proj.weight", {32, s}});
    tensors.push_back({block + "shared_expert_gate.weight", {1, 32}});
  }
  return tensors;
}

// `architecture` is llama (a Mixtral), qwen2moe, qwen3moe, olmoe or granitemoe. With `separate` the
// experts lie in tensors of their own, as older files have them.
inline GgufBuilder TinyMoeGguf(const std::string& architecture, bool separate = false) {
  const std::string& a = architecture;
  GgufBuilder builder = TinyGguf(a);
  builder.AddU32(a + ".expert_count", kTinyExperts)
      .AddU32(a + ".expert_used_count", 2)
      .AddU32(a + ".expert_feed_forward_length", kTinyInner);
  for (const char* name : {"gate", "up", "down"}) {
    builder.RemoveTensor(absl::StrCat("blk.0.ffn_", name, ".weight"));
  }
  uint32_t seed = 50;
  const auto vector = [&](const std::string& name, uint64_t size) {
    builder.AddTensor(name, {size}, 0, PatternBytes(size * 4, seed++));
  };
  if (a == "qwen2moe") {
    vector("blk.0.attn_q.bias", 32);
    vector("blk.0.attn_k.bias", 16);
    vector("blk.0.attn_v.bias", 16);
  }
  if (a == "qwen3moe" || a == "olmoe") {
    vector("blk.0.attn_q_norm.weight", a == "olmoe" ? 32 : 16);
    vector("blk.0.attn_k_norm.weight", 16);
  }
  if (a == "granitemoe") {
    builder.AddF32(a + ".embedding_scale", 12.0f)
        .AddF32(a + ".attention.scale", 0.0625f)
        .AddF32(a + ".residual_scale", 0.25f)
        .AddF32(a + ".logit_scale", 6.0f);
  }
  builder.AddTensor("blk.0.ffn_gate_inp.weight", {kTinyExperts, 32}, 0,
                    PatternBytes(kTinyExperts * 32 * 4, seed++));
  const size_t expert_bytes = kTinyInner * 34;  // 32 x 32 either way, Q8_0
  for (const char* name : {"gate", "up", "down"}) {
    const std::string data = PatternBytes(kTinyExperts * expert_bytes, seed++);
    if (!separate) {
      builder.AddTensor(absl::StrCat("blk.0.ffn_", name, "_exps.weight"),
                        {kTinyExperts, kTinyInner, 32}, 8, data);
    }
    for (int e = 0; e < kTinyExperts && separate; ++e) {
      builder.AddTensor(absl::StrCat("blk.0.ffn_", name, ".", e, ".weight"), {kTinyInner, 32}, 8,
                        data.substr(e * expert_bytes, expert_bytes));
    }
  }
  if (a == "qwen2moe") {
    builder.AddU32(a + ".expert_shared_feed_forward_length", kTinyShared);
    vector("blk.0.ffn_gate_inp_shexp.weight", 32);
    for (const char* name : {"gate", "up"}) {
      builder.AddTensor(absl::StrCat("blk.0.ffn_", name, "_shexp.weight"), {kTinyShared, 32}, 8,
                        PatternBytes(kTinyShared * 34, seed++));
    }
    builder.AddTensor("blk.0.ffn_down_shexp.weight", {32, kTinyShared}, 8,
                      PatternBytes(kTinyShared * 34, seed++));
  }
  return builder;
}

}  // namespace verbatim::model::testing
