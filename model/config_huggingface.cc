// Reading of Hugging Face config.json. Source of the field names and their defaults: the
// configuration classes of the transformers library.
#include <cmath>
#include <limits>
#include <optional>
#include <set>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "model/config.h"
#include "model/strict_json.h"

namespace verbatim::model {
namespace {

using nlohmann::json;

struct Architecture {
  const char* name;
  const char* model_type;
  Family family;
};
constexpr Architecture kArchitectures[] = {
    {"LlamaForCausalLM", "llama", Family::kLlama},
    {"MistralForCausalLM", "mistral", Family::kMistral},
    {"Qwen2ForCausalLM", "qwen2", Family::kQwen2},
    {"Qwen3ForCausalLM", "qwen3", Family::kQwen3},
};

std::string Shown(const json& value) {
  const std::string text = value.dump();
  return text.size() > 80 ? text.substr(0, 77) + "..." : text;
}

// Typed access to the fields of one JSON object; the first error sticks.
class Fields {
 public:
  Fields(const std::string& path, const std::string& prefix, const json& object)
      : path_(path), prefix_(prefix), object_(object) {}

  const absl::Status& status() const { return status_; }
  bool ok() const { return status_.ok(); }

  void Fail(const char* field, const std::string& what) {
    if (ok()) {
      status_ = absl::InvalidArgumentError(absl::StrCat(path_, ": ", prefix_, field, " ", what));
    }
  }
  void Unsupported(const char* field, const std::string& what) {
    if (ok()) {
      status_ = absl::UnimplementedError(absl::StrCat(path_, ": ", prefix_, field, " ", what));
    }
  }

  // The value, or nullptr if the field is absent or null.
  const json* Find(const char* field) const {
    const auto it = object_.find(field);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }

  int64_t Int(const char* field, std::optional<int64_t> otherwise = std::nullopt) {
    const json* value = Find(field);
    if (value == nullptr) return Default<int64_t>(field, otherwise, 0);
    if (!value->is_number_integer() ||
        (value->is_number_unsigned() &&
         value->get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))) {
      Fail(field, absl::StrCat("is ", Shown(*value), ", not an integer in range"));
      return 0;
    }
    return value->get<int64_t>();
  }

  double Float(const char* field, std::optional<double> otherwise = std::nullopt) {
    const json* value = Find(field);
    if (value == nullptr) return Default<double>(field, otherwise, 0.0);
    if (!value->is_number()) {
      Fail(field, absl::StrCat("is ", Shown(*value), ", not a number"));
      return 0.0;
    }
    return value->get<double>();
  }

  bool Bool(const char* field, bool otherwise) {
    const json* value = Find(field);
    if (value == nullptr) return otherwise;
    if (!value->is_boolean()) {
      Fail(field, absl::StrCat("is ", Shown(*value), ", not true or false"));
      return otherwise;
    }
    return value->get<bool>();
  }

  std::string String(const char* field, const std::string& otherwise) {
    const json* value = Find(field);
    if (value == nullptr) return otherwise;
    if (!value->is_string()) {
      Fail(field, absl::StrCat("is ", Shown(*value), ", not a string"));
      return otherwise;
    }
    return value->get<std::string>();
  }

 private:
  template <typename T>
  T Default(const char* field, std::optional<T> otherwise, T failed) {
    if (otherwise.has_value()) return *otherwise;
    Fail(field, "is missing");
    return failed;
  }

  const std::string& path_;
  const std::string prefix_;
  const json& object_;
  absl::Status status_;
};

absl::StatusOr<Family> ReadFamily(Fields& fields, const std::string& path) {
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
    return architecture.family;
  }
  return absl::UnimplementedError(
      absl::StrCat(path, ": architectures has \"", absl::CHexEscape(name),
                   "\"; supported are LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM and "
                   "Qwen3ForCausalLM"));
}

// Fields that, set to these values, would change the computation.
void RefuseOtherComputations(Fields& fields, const ModelConfig& config) {
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
  // Mistral always uses its window; the Qwen families only where use_sliding_window says so.
  const bool window_used =
      config.family == Family::kMistral ? true : fields.Bool("use_sliding_window", false);
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
absl::Status ReadRope(Fields& fields, const std::string& path, ModelConfig& config) {
  config.rope_theta = fields.Float("rope_theta", 10000.0);
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
  Fields scaling(path, absl::StrCat(name, "."), *object);
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
void ReadEosIds(Fields& fields, std::vector<int32_t>& ids) {
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
  Fields fields(path, "", *file);
  ModelConfig config;
  absl::StatusOr<Family> family = ReadFamily(fields, path);
  if (!family.ok()) return family.status();
  config.family = *family;
  config.name = fields.String("_name_or_path", "");
  config.qkv_bias = *family == Family::kQwen2;
  config.qk_norm = *family == Family::kQwen3 ? QkNorm::kHead : QkNorm::kNone;
  config.rope_interleaved = false;
  config.tied_embeddings = fields.Bool("tie_word_embeddings", false);

  config.vocab_size = fields.Int("vocab_size");
  config.hidden_size = fields.Int("hidden_size");
  config.intermediate_size = fields.Int("intermediate_size");
  config.num_layers = fields.Int("num_hidden_layers");
  config.num_heads = fields.Int("num_attention_heads");
  // Only Llama defines the absent field as "as many as heads"; the others have a number of their
  // own.
  config.num_kv_heads = *family == Family::kLlama
                            ? fields.Int("num_key_value_heads", config.num_heads)
                            : fields.Int("num_key_value_heads");
  config.max_position = fields.Int("max_position_embeddings");
  config.rms_norm_eps = fields.Float("rms_norm_eps");
  if (fields.Find("head_dim") != nullptr || *family == Family::kQwen3) {
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
  RefuseOtherComputations(fields, config);
  ReadEosIds(fields, config.eos_ids);
  if (!fields.ok()) return fields.status();
  if (absl::Status status = ReadRope(fields, path, config); !status.ok()) return status;

  const std::string generation_path = absl::StrCat(directory, "/generation_config.json");
  absl::StatusOr<json> generation = ReadStrictJsonFile(generation_path);
  if (generation.ok()) {
    if (!generation->is_object()) {
      return absl::InvalidArgumentError(absl::StrCat(generation_path, ": not a JSON object"));
    }
    Fields generation_fields(generation_path, "", *generation);
    ReadEosIds(generation_fields, config.eos_ids);
    if (!generation_fields.ok()) return generation_fields.status();
  } else if (!absl::IsNotFound(generation.status())) {
    return generation.status();
  }
  if (absl::Status status = ValidateConfig(config, path); !status.ok()) return status;
  return config;
}

}  // namespace verbatim::model
