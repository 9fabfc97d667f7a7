// Reading of Hugging Face config.json. Source of the field names and their defaults: the
// configuration classes of the transformers library.
#include <cmath>
#include <limits>
#include <optional>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "model/config.h"
#include "model/config_fields.h"
#include "model/strict_json.h"

namespace verbatim::model {
namespace {

using nlohmann::json;

struct Architecture {
  const char* name;
  const char* model_type;
  Family family;
  // What the family's configuration class says where a field is absent.
  bool kv_heads_follow_heads = false;
  double rope_theta = 10000.0;
};
constexpr Architecture kArchitectures[] = {
    {"LlamaForCausalLM", "llama", Family::kLlama, /*kv_heads_follow_heads=*/true},
    {"MistralForCausalLM", "mistral", Family::kMistral},
    {"Qwen2ForCausalLM", "qwen2", Family::kQwen2},
    {"Qwen3ForCausalLM", "qwen3", Family::kQwen3},
    {"MixtralForCausalLM", "mixtral", Family::kMixtral, false, 1000000.0},
    {"Qwen2MoeForCausalLM", "qwen2_moe", Family::kQwen2Moe},
    {"Qwen3MoeForCausalLM", "qwen3_moe", Family::kQwen3Moe},
    {"OlmoeForCausalLM", "olmoe", Family::kOlmoe, true},
    {"GraniteMoeForCausalLM", "granitemoe", Family::kGraniteMoe, true},
    {"GraniteMoeSharedForCausalLM", "granitemoeshared", Family::kGraniteMoe, true},
};

absl::StatusOr<Architecture> ReadArchitecture(JsonFields& fields, const std::string& path) {
  const json* architectures = fields.Find("architectures");
  if (architectures == nullptr || !architectures->is_array() || architectures->size() != 1 ||
      !(*architectures)[0].is_string()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": architectures is not a list of one name"));
  }
  const std::string name = (*architectures)[0].get<std::string>();
  for (const Architecture& architecture : kArchitectures) {
    if (name != architecture.name) continue;
    const std::string model_type = fields.String("model_type", architecture.model_type);
    if (model_type != architecture.model_type) {
      fields.Fail("model_type", absl::StrCat("is \"", absl::CHexEscape(model_type),
                                             "\" but architectures says ", name));
    }
    if (!fields.ok()) return fields.status();
    return architecture;
  }
  return absl::UnimplementedError(absl::StrCat(
      path, ": architectures has \"", absl::CHexEscape(name), "\"; supported are ",
      absl::StrJoin(kArchitectures, ", ", [](std::string* out, const Architecture& architecture) {
        absl::StrAppend(out, architecture.name);
      })));
}

// JsonFields that, set to these values, would change the computation.
void RefuseOtherComputations(JsonFields& fields, const ModelConfig& config) {
  const std::string activation = fields.String("hidden_act", "silu");
  if (activation != "silu") {
    fields.Unsupported("hidden_act", absl::StrCat("is \"", absl::CHexEscape(activation),
                                                  "\", only \"silu\" is supported"));
  }
  for (const char* flag : {"attention_bias", "mlp_bias", "rope_interleaved"}) {
    if (fields.Bool(flag, false)) fields.Unsupported(flag, "is true, which is not supported");
  }
  if (fields.Find("quantization_config") != nullptr) {
    fields.Unsupported("quantization_config", "is set, quantised safetensors are not supported");
  }
  if (fields.Float("partial_rotary_factor", 1.0) != 1.0) {
    fields.Unsupported("partial_rotary_factor", "is not 1, which is not supported");
  }
  // Mistral and Mixtral always use their window; the Qwen families only where use_sliding_window
  // says so.
  const bool always = config.family == Family::kMistral || config.family == Family::kMixtral;
  const bool window_used = always || fields.Bool("use_sliding_window", false);
  if (window_used && fields.Find("sliding_window") != nullptr) {
    const int64_t window = fields.Int("sliding_window");
    if (fields.ok() && window < config.max_position) {
      fields.Unsupported("sliding_window",
                         absl::StrCat("is ", window, ", below max_position_embeddings ",
                                      config.max_position, "; window attention is not supported"));
    }
  }
  if (const json* layers = fields.Find("layer_types"); layers != nullptr) {
    if (!layers->is_array()) fields.Fail("layer_types", "is not a list");
    for (const json& layer : *layers) {
      if (layer != "full_attention") {
        fields.Unsupported("layer_types", absl::StrCat("has ", Shown(layer),
                                                       ", only \"full_attention\" is supported"));
      }
    }
  }
}

// Both styles: "rope_theta" with "rope_scaling", and "rope_parameters" that holds all of it.
absl::Status ReadRope(JsonFields& fields, const std::string& path, double otherwise,
                      ModelConfig& config) {
  config.rope_theta = fields.Float("rope_theta", otherwise);
  const char* name = "rope_scaling";
  const json* object = fields.Find(name);
  if (const json* parameters = fields.Find("rope_parameters"); parameters != nullptr) {
    if (object != nullptr && *object != *parameters) {
      fields.Fail("rope_parameters", "and rope_scaling differ");
    }
    name = "rope_parameters";
    object = parameters;
  }
  if (object == nullptr || !fields.ok()) return fields.status();
  if (!object->is_object()) {
    fields.Fail(name, absl::StrCat("is ", Shown(*object), ", not an object"));
    return fields.status();
  }
  JsonFields scaling(path, absl::StrCat(name, "."), *object);
  config.rope_theta = scaling.Float("rope_theta", config.rope_theta);
  if (scaling.Float("partial_rotary_factor", 1.0) != 1.0) {
    scaling.Unsupported("partial_rotary_factor", "is not 1, which is not supported");
  }
  const std::string older_type = scaling.String("type", "");
  const std::string type = scaling.String("rope_type", older_type);
  if (type.empty()) scaling.Fail("rope_type", "is missing");
  if (!older_type.empty() && older_type != type) scaling.Fail("type", "and rope_type differ");
  RopeScaling& rope = config.rope_scaling;
  if (type == "default") {
    rope.kind = RopeScaling::Kind::kNone;
  } else if (type == "linear") {
    rope.kind = RopeScaling::Kind::kLinear;
    rope.factor = scaling.Float("factor");
  } else if (type == "llama3") {
    rope.kind = RopeScaling::Kind::kLlama3;
    rope.factor = scaling.Float("factor");
    rope.low_freq_factor = scaling.Float("low_freq_factor");
    rope.high_freq_factor = scaling.Float("high_freq_factor");
    rope.original_max_position = scaling.Int("original_max_position_embeddings");
  } else {
    scaling.Unsupported("rope_type", absl::StrCat("is \"", absl::CHexEscape(type),
                                                  "\"; supported are default, linear and llama3"));
  }
  return scaling.status();
}

// An integer, a list of integers, or nothing.
void ReadEosIds(JsonFields& fields, std::vector<int32_t>& ids) {
  const json* value = fields.Find("eos_token_id");
  if (value == nullptr) return;
  const json list = value->is_array() ? *value : json::array({*value});
  ids.clear();
  for (const json& id : list) {
    if (!id.is_number_integer() || id < 0 || id > std::numeric_limits<int32_t>::max()) {
      fields.Fail("eos_token_id", absl::StrCat("has ", Shown(id), ", which is not a token id"));
      return;
    }
    ids.push_back(id.get<int32_t>());
  }
}

}  // namespace

absl::StatusOr<ModelConfig> ReadHuggingFaceConfig(const std::string& directory) {
  const std::string path = absl::StrCat(directory, "/config.json");
  absl::StatusOr<json> file = ReadStrictJsonFile(path);
  if (!file.ok()) return file.status();
  if (!file->is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a JSON object"));
  }
  JsonFields fields(path, "", *file);
  ModelConfig config;
  absl::StatusOr<Architecture> architecture = ReadArchitecture(fields, path);
  if (!architecture.ok()) return architecture.status();
  const Family family = config.family = architecture->family;
  config.name = fields.String("_name_or_path", "");
  config.qkv_bias =
      family == Family::kQwen2 || (family == Family::kQwen2Moe && fields.Bool("qkv_bias", true));
  if (family == Family::kQwen3 || family == Family::kQwen3Moe) config.qk_norm = QkNorm::kHead;
  if (family == Family::kOlmoe) config.qk_norm = QkNorm::kAll;
  config.rope_interleaved = false;
  config.tied_embeddings = fields.Bool("tie_word_embeddings", false);

  config.vocab_size = fields.Int("vocab_size");
  config.hidden_size = fields.Int("hidden_size");
  config.intermediate_size = fields.Int("intermediate_size");
  config.num_layers = fields.Int("num_hidden_layers");
  config.num_heads = fields.Int("num_attention_heads");
  config.num_kv_heads = architecture->kv_heads_follow_heads
                            ? fields.Int("num_key_value_heads", config.num_heads)
                            : fields.Int("num_key_value_heads");
  config.max_position = fields.Int("max_position_embeddings");
  config.rms_norm_eps = fields.Float("rms_norm_eps");
  if (fields.Find("head_dim") != nullptr || family == Family::kQwen3) {
    config.head_dim = fields.Int("head_dim");
  } else if (fields.ok()) {
    if (config.num_heads < 1 || config.hidden_size % config.num_heads != 0) {
      fields.Fail("hidden_size",
                  absl::StrCat(config.hidden_size, " is not a multiple of num_attention_heads ",
                               config.num_heads));
    } else {
      config.head_dim = config.hidden_size / config.num_heads;
    }
  }
  ReadHuggingFaceMoe(fields, config);
  RefuseOtherComputations(fields, config);
  ReadEosIds(fields, config.eos_ids);
  if (!fields.ok()) return fields.status();
  if (absl::Status status = ReadRope(fields, path, architecture->rope_theta, config); !status.ok())
    return status;

  const std::string generation_path = absl::StrCat(directory, "/generation_config.json");
  absl::StatusOr<json> generation = ReadStrictJsonFile(generation_path);
  if (generation.ok()) {
    if (!generation->is_object()) {
      return absl::InvalidArgumentError(absl::StrCat(generation_path, ": not a JSON object"));
    }
    JsonFields generation_fields(generation_path, "", *generation);
    ReadEosIds(generation_fields, config.eos_ids);
    if (!generation_fields.ok()) return generation_fields.status();
  } else if (!absl::IsNotFound(generation.status())) {
    return generation.status();
  }
  if (absl::Status status = ValidateConfig(config, path); !status.ok()) return status;
  return config;
}

}  // namespace verbatim::model
