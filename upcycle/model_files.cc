// Source of the fields of config.json: the MixtralConfig class of the transformers library.
#include "upcycle/model_files.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace verbatim::upcycle {
namespace {

using nlohmann::ordered_json;

std::vector<int32_t> EosIds(const model::ModelConfig& parent, const model::Tokenizer& tokenizer) {
  if (!parent.eos_ids.empty()) return parent.eos_ids;
  return {tokenizer.eos_ids().begin(), tokenizer.eos_ids().end()};
}

void SetSpecialIds(const model::ModelConfig& parent, const model::Tokenizer& tokenizer,
                   ordered_json& json) {
  const std::vector<int32_t> eos = EosIds(parent, tokenizer);
  json["bos_token_id"] = nullptr;
  if (tokenizer.bos_id().has_value()) json["bos_token_id"] = *tokenizer.bos_id();
  json["eos_token_id"] = nullptr;
  if (eos.size() == 1) json["eos_token_id"] = eos.front();
  if (eos.size() > 1) json["eos_token_id"] = eos;
}

absl::StatusOr<ordered_json> RopeParameters(const model::ModelConfig& parent) {
  ordered_json rope = {{"rope_theta", parent.rope_theta}};
  const model::RopeScaling& scaling = parent.rope_scaling;
  if (std::any_of(parent.rope_freq_factors.begin(), parent.rope_freq_factors.end(),
                  [](float factor) { return factor != 1.0f; })) {
    return absl::UnimplementedError(
        "the parent's rope_freqs.weight divides rotary frequencies one by one, which config.json "
        "cannot say");
  }
  switch (scaling.kind) {
    case model::RopeScaling::Kind::kNone:
      rope["rope_type"] = "default";
      break;
    case model::RopeScaling::Kind::kLinear:
      rope["rope_type"] = "linear";
      rope["factor"] = scaling.factor;
      break;
    case model::RopeScaling::Kind::kLlama3:
      rope["rope_type"] = "llama3";
      rope["factor"] = scaling.factor;
      rope["low_freq_factor"] = scaling.low_freq_factor;
      rope["high_freq_factor"] = scaling.high_freq_factor;
      rope["original_max_position_embeddings"] = scaling.original_max_position;
      break;
  }
  return rope;
}

// Shortest text that reads back as the same number.
std::string Number(double value) { return nlohmann::json(value).dump(); }

std::string Command(const Provenance& p) {
  std::string command = absl::StrFormat(
      "verbatim upcycle --model %s --output DIR --experts %d --experts-per-token %d \\\n"
      "    --keep %s --noise %s --first-share %s --seed %u \\\n"
      "    --calibration-tokens %d --window %d --calibration-text",
      p.parent_file_name, p.num_experts, p.experts_per_token, Number(p.keep), Number(p.noise),
      Number(p.first_share), p.seed, p.calibration_tokens, p.window_tokens);
  for (const Provenance::Text& text : p.calibration) absl::StrAppend(&command, " ", text.file_name);
  return command;
}

}  // namespace

absl::StatusOr<ordered_json> MixtralConfig(const model::ModelConfig& parent,
                                           const model::Tokenizer& tokenizer,
                                           const Provenance& provenance) {
  absl::StatusOr<ordered_json> rope = RopeParameters(parent);
  if (!rope.ok()) return rope.status();
  ordered_json config = {{"architectures", {"MixtralForCausalLM"}},
                         {"model_type", "mixtral"},
                         {"_name_or_path", absl::StrCat(provenance.parent_name, " upcycled to ",
                                                        provenance.num_experts, " experts")},
                         {"vocab_size", parent.vocab_size},
                         {"hidden_size", parent.hidden_size},
                         {"intermediate_size", provenance.intermediate_size},
                         {"num_hidden_layers", parent.num_layers},
                         {"num_attention_heads", parent.num_heads},
                         {"num_key_value_heads", parent.num_kv_heads},
                         {"head_dim", parent.head_dim},
                         {"num_local_experts", provenance.num_experts},
                         {"num_experts_per_tok", provenance.experts_per_token},
                         {"hidden_act", "silu"},
                         {"max_position_embeddings", parent.max_position},
                         {"rms_norm_eps", parent.rms_norm_eps},
                         {"rope_theta", parent.rope_theta},
                         {"rope_parameters", *std::move(rope)},
                         {"sliding_window", nullptr},
                         {"tie_word_embeddings", parent.tied_embeddings},
                         {"attention_dropout", 0.0},
                         {"output_router_logits", false},
                         {"router_jitter_noise", 0.0},
                         {"use_cache", true},
                         {"torch_dtype", "bfloat16"}};
  SetSpecialIds(parent, tokenizer, config);
  return config;
}

ordered_json GenerationConfig(const model::ModelConfig& parent, const model::Tokenizer& tokenizer) {
  ordered_json config = {{"_from_model_config", true}};
  SetSpecialIds(parent, tokenizer, config);
  return config;
}

ordered_json ProvenanceJson(const Provenance& p) {
  ordered_json texts = ordered_json::array();
  for (const Provenance::Text& text : p.calibration) {
    texts.push_back({{"file", text.file_name}, {"sha256", text.sha256}});
  }
  return {{"derived_not_trained", true},
          {"method",
           "sparse upcycling: perturbed parts of the dense feed-forward layers, and a "
           "router fitted on activations by spherical k-means"},
          {"parent",
           {{"name", p.parent_name},
            {"file", p.parent_file_name},
            {"weights_sha256", p.parent_weights_sha256},
            {"tokenizer_sha256", p.parent_tokenizer_sha256},
            {"license", p.parent_license},
            {"intermediate_size", p.parent_intermediate_size}}},
          {"method_version", kMethodVersion},
          {"num_experts", p.num_experts},
          {"experts_per_token", p.experts_per_token},
          {"intermediate_size", p.intermediate_size},
          {"keep", p.keep},
          {"noise", p.noise},
          {"first_share", p.first_share},
          {"seed", p.seed},
          {"calibration_tokens", p.calibration_tokens},
          {"window_tokens", p.window_tokens},
          {"calibration_texts", std::move(texts)},
          {"mean_relative_difference_between_experts", p.mean_relative_difference},
          {"calibration_rows_by_first_expert", p.assigned}};
}

std::string ReadmeText(const Provenance& p) {
  const std::string license =
      p.parent_license.empty()
          ? "The parent's files do not name a licence; whatever holds for them holds for this "
            "model."
          : absl::StrCat("The parent's file names its licence: ", p.parent_license,
                         ". It holds for this model too.");
  std::string readme = absl::StrFormat(
      "# %s, upcycled to %d experts\n\n"
      "**This model was derived, not trained.** No gradient step was taken. It was computed from "
      "the "
      "dense model %s by\n`verbatim upcycle` so that there is a small mixture of experts to run; "
      "it "
      "is not a better model than its parent, and\nno claim is made about its quality beyond what "
      "docs/upcycling.md of Verbatim measures.\n\n"
      "- Every layer has %d experts, of which %d serve a token. An expert keeps %d of the parent's "
      "%d "
      "feed-forward neurons,\n  those that matter most to the tokens it gets, with noise of %s of "
      "each neuron's root mean square added. The mean\n  relative difference between two experts "
      "of "
      "a layer is %.3f.\n"
      "- The router is fitted on the parent's activations over %d tokens of calibration text.\n"
      "- Attention, norms and embeddings are the parent's, rounded to bf16.\n"
      "- Layout: Hugging Face, MixtralForCausalLM.\n\n"
      "## Made by\n\n```\n%s\n```\n\n"
      "The bytes of every file follow from the parent, these flags and the calibration texts.\n\n"
      "| | |\n| --- | --- |\n"
      "| parent's weights, SHA-256 | `%s` |\n"
      "| parent's tokenizer, SHA-256 | `%s` |\n"
      "| seed | %u |\n"
      "| version of the method | %d |\n",
      p.parent_name, p.num_experts, p.parent_name, p.num_experts, p.experts_per_token,
      p.intermediate_size, p.parent_intermediate_size, Number(p.noise), p.mean_relative_difference,
      p.calibration_tokens, Command(p), p.parent_weights_sha256, p.parent_tokenizer_sha256, p.seed,
      kMethodVersion);
  for (const Provenance::Text& text : p.calibration) {
    absl::StrAppend(&readme, "| calibration text ", text.file_name, ", SHA-256 | `", text.sha256,
                    "` |\n");
  }
  absl::StrAppend(&readme, "\n## Licence\n\n", license, "\n");
  return readme;
}

}  // namespace verbatim::upcycle
