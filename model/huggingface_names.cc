// Where the transformers library's checkpoints keep each tensor. Source of the names: its model
// classes, and the conversions that it applies to the experts of older files.
#include "model/huggingface_names.h"

#include <map>

#include "absl/strings/str_cat.h"

namespace verbatim::model {
namespace {

// What a mixture of experts is called, below "model.layers.3.".
struct MoeNames {
  std::vector<std::string> routers;
  std::string expert;                // prefix of an expert's own tensors; empty: it has none
  std::string gate, up, down;        // below it
  std::vector<std::string> gate_up;  // merged over the experts
  std::vector<std::string> downs;    // merged over the experts
};

MoeNames NamesOf(Family family) {
  if (family == Family::kMixtral) {
    return {.routers = {"block_sparse_moe.gate.weight", "mlp.gate.weight"},
            .expert = "block_sparse_moe.experts.",
            .gate = ".w1.weight",
            .up = ".w3.weight",
            .down = ".w2.weight",
            .gate_up = {"mlp.experts.gate_up_proj"},
            .downs = {"mlp.experts.down_proj"}};
  }
  if (family == Family::kGraniteMoe) {
    return {
        .routers = {"block_sparse_moe.router.layer.weight", "block_sparse_moe.router.weight"},
        .gate_up = {"block_sparse_moe.input_linear.weight",
                    "block_sparse_moe.experts.gate_up_proj"},
        .downs = {"block_sparse_moe.output_linear.weight", "block_sparse_moe.experts.down_proj"}};
  }
  return {.routers = {"mlp.gate.weight"},
          .expert = "mlp.experts.",
          .gate = ".gate_proj.weight",
          .up = ".up_proj.weight",
          .down = ".down_proj.weight",
          .gate_up = {"mlp.experts.gate_up_proj"},
          .downs = {"mlp.experts.down_proj"}};
}

std::vector<TensorPlace> ExpertPlaces(const LayerTensorName& name, const std::string& layer,
                                      const ModelConfig& config) {
  const MoeNames names = NamesOf(config.family);
  const bool is_down = name.rest == "down";
  std::vector<TensorPlace> places;
  if (!names.expert.empty()) {
    const std::string& own = is_down ? names.down : name.rest == "up" ? names.up : names.gate;
    places.push_back({absl::StrCat(layer, names.expert, name.expert, own)});
  }
  for (const std::string& merged : is_down ? names.downs : names.gate_up) {
    places.push_back({.file_name = layer + merged,
                      .experts = config.moe.num_experts,
                      .expert = name.expert,
                      .parts = is_down ? 1 : 2,
                      .part = name.rest == "up" ? 1 : 0});
  }
  return places;
}

}  // namespace

std::vector<TensorPlace> HuggingFacePlaces(const std::string& canonical,
                                           const ModelConfig& config) {
  static const auto& kModelNames =
      *new std::map<std::string, std::string>{{"embed", "model.embed_tokens.weight"},
                                              {"final_norm", "model.norm.weight"},
                                              {"lm_head", "lm_head.weight"}};
  static const auto& kLayerNames =
      *new std::map<std::string, std::string>{{"attn_norm", "input_layernorm.weight"},
                                              {"q", "self_attn.q_proj.weight"},
                                              {"k", "self_attn.k_proj.weight"},
                                              {"v", "self_attn.v_proj.weight"},
                                              {"o", "self_attn.o_proj.weight"},
                                              {"ffn_norm", "post_attention_layernorm.weight"},
                                              {"gate", "mlp.gate_proj.weight"},
                                              {"up", "mlp.up_proj.weight"},
                                              {"down", "mlp.down_proj.weight"},
                                              {"q.bias", "self_attn.q_proj.bias"},
                                              {"k.bias", "self_attn.k_proj.bias"},
                                              {"v.bias", "self_attn.v_proj.bias"},
                                              {"q_norm", "self_attn.q_norm.weight"},
                                              {"k_norm", "self_attn.k_norm.weight"},
                                              {"shared.gate", "mlp.shared_expert.gate_proj.weight"},
                                              {"shared.up", "mlp.shared_expert.up_proj.weight"},
                                              {"shared.down", "mlp.shared_expert.down_proj.weight"},
                                              {"shared_gate", "mlp.shared_expert_gate.weight"}};
  if (const auto it = kModelNames.find(canonical); it != kModelNames.end()) return {{it->second}};
  const LayerTensorName name = SplitLayerName(canonical);
  const std::string layer = absl::StrCat("model.layers.", name.layer, ".");
  if (name.expert >= 0) return ExpertPlaces(name, layer, config);
  if (name.rest == "router") {
    std::vector<TensorPlace> places;
    for (const std::string& router : NamesOf(config.family).routers) {
      places.push_back({layer + router});
    }
    return places;
  }
  if (config.family == Family::kGraniteMoe && name.rest.starts_with("shared.")) {
    if (name.rest == "shared.down") return {{layer + "shared_mlp.output_linear.weight"}};
    return {{.file_name = layer + "shared_mlp.input_linear.weight",
             .parts = 2,
             .part = name.rest == "shared.up" ? 1 : 0}};
  }
  return {{layer + kLayerNames.at(name.rest)}};
}

}  // namespace verbatim::model
