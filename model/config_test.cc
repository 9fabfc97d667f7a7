// Every field of a configuration, right and wrong.
#include "model/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "model/checkpoint_test_models.h"

namespace verbatim::model {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using testing::GgufBuilder;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::TemporaryDirectory;
using testing::TinyConfig;
using testing::TinyGguf;

class ConfigTest : public ::testing::Test {
 protected:
  absl::StatusOr<ModelConfig> Read(const json& config) { return ReadText(config.dump()); }
  absl::StatusOr<ModelConfig> ReadText(const std::string& text) {
    directory_.Write("config.json", text);
    return ReadHuggingFaceConfig(directory_.path());
  }
  absl::StatusOr<ModelConfig> Read(GgufBuilder builder) {
    const auto file = GgufFile::Open(directory_.Write("m.gguf", builder.Build()));
    if (!file.ok()) return file.status();
    return ReadGgufConfig(**file);
  }
  TemporaryDirectory directory_;
};

TEST_F(ConfigTest, EveryHuggingFaceFamilyIsRead) {
  const std::pair<const char*, Family> families[] = {{"llama", Family::kLlama},
                                                     {"mistral", Family::kMistral},
                                                     {"qwen2", Family::kQwen2},
                                                     {"qwen3", Family::kQwen3}};
  for (const auto& [model_type, family] : families) {
    const auto config = Read(TinyConfig(model_type));
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->family, family);
    EXPECT_EQ(config->vocab_size, 40);
    EXPECT_EQ(config->hidden_size, 32);
    EXPECT_EQ(config->intermediate_size, 64);
    EXPECT_EQ(config->num_layers, 1);
    EXPECT_EQ(config->num_heads, 2);
    EXPECT_EQ(config->num_kv_heads, 1);
    EXPECT_EQ(config->head_dim, 16);
    EXPECT_EQ(config->max_position, 128);
    EXPECT_EQ(config->rms_norm_eps, 1e-5);
    EXPECT_EQ(config->rope_theta, 10000.0);
    EXPECT_EQ(config->rope_scaling.kind, RopeScaling::Kind::kNone);
    EXPECT_FALSE(config->rope_interleaved);
    EXPECT_EQ(config->qkv_bias, family == Family::kQwen2);
    EXPECT_EQ(config->qk_norm, family == Family::kQwen3 ? QkNorm::kHead : QkNorm::kNone);
    EXPECT_TRUE(config->tied_embeddings);
    EXPECT_THAT(config->eos_ids, ElementsAre(2));
  }
}

TEST_F(ConfigTest, NumbersOutOfRangeAreNamed) {
  const char* integers[] = {
      "vocab_size",          "hidden_size",         "intermediate_size", "num_hidden_layers",
      "num_attention_heads", "num_key_value_heads", "head_dim",          "max_position_embeddings"};
  const json wrong[] = {-1,   0,   2147483648, 9223372036854775807, 18446744073709551615u,
                        1.5,  "1", true,       json::array({1}),    json::object(),
                        1e300};
  for (const char* field : integers) {
    for (const json& value : wrong) {
      json config = TinyConfig("qwen3");
      config[field] = value;
      const auto read = Read(config);
      EXPECT_TRUE(absl::IsInvalidArgument(read.status())) << field << " = " << value;
      EXPECT_THAT(std::string(read.status().message()), HasSubstr("config.json: ")) << field;
    }
    json config = TinyConfig("qwen3");
    config.erase(field);
    EXPECT_THAT(std::string(Read(config).status().message()),
                HasSubstr(absl::StrCat(field, " is missing")));
  }
  for (const char* field : {"rms_norm_eps", "rope_theta"}) {
    for (const json& value : {json(-1), json(0), json(1e300), json("x"), json(false)}) {
      json config = TinyConfig("llama");
      config[field] = value;
      const auto read = Read(config);
      EXPECT_TRUE(absl::IsInvalidArgument(read.status())) << field << " = " << value;
      EXPECT_THAT(std::string(read.status().message()), HasSubstr(field));
    }
    // Not JSON, though some writers produce it.
    for (const char* value : {"NaN", "Infinity", "-Infinity", "1e999"}) {
      json config = TinyConfig("llama");
      config.erase(field);
      std::string text = config.dump();
      text.insert(1, absl::StrCat("\"", field, "\":", value, ","));
      EXPECT_TRUE(absl::IsInvalidArgument(ReadText(text).status())) << value;
    }
  }
}

TEST_F(ConfigTest, SizesMustFitTogether) {
  json config = TinyConfig("llama");
  config["num_attention_heads"] = 3;
  EXPECT_THAT(std::string(Read(config).status().message()),
              HasSubstr("not a multiple of num_attention_heads 3"));
  config = TinyConfig("llama");
  config["num_attention_heads"] = 4;
  config["num_key_value_heads"] = 3;
  EXPECT_THAT(std::string(Read(config).status().message()),
              HasSubstr("not a multiple of num_kv_heads 3"));
  config = TinyConfig("llama");
  config["head_dim"] = 15;
  EXPECT_THAT(std::string(Read(config).status().message()), HasSubstr("head_dim 15 is odd"));
  config["head_dim"] = 258;
  EXPECT_THAT(std::string(Read(config).status().message()), HasSubstr("head_dim is 258"));
  config["head_dim"] = 64;  // heads * head_dim need not be hidden_size
  EXPECT_EQ(Read(config)->head_dim, 64);
  config = TinyConfig("llama");
  config.erase("num_key_value_heads");
  EXPECT_EQ(Read(config)->num_kv_heads, 2);
  config = TinyConfig("mistral");
  config.erase("num_key_value_heads");
  EXPECT_THAT(std::string(Read(config).status().message()),
              HasSubstr("num_key_value_heads is missing"));
}

struct Refusal {
  const char* model_type;
  const char* field;
  json value;
  const char* error;
};

TEST_F(ConfigTest, OtherComputationsAreRefusedByField) {
  const json llama3 = {{"rope_type", "llama3"},
                       {"factor", 8.0},
                       {"low_freq_factor", 1.0},
                       {"high_freq_factor", 4.0},
                       {"original_max_position_embeddings", 64}};
  const auto changed = [](json object, const char* key, const json& value) {
    object[key] = value;
    return object;
  };
  const Refusal refusals[] = {
      {"llama", "architectures", {"GPT2LMHeadModel"}, "architectures has \"GPT2LMHeadModel\""},
      {"llama", "architectures", json::array(), "architectures is not a list of one"},
      {"llama", "architectures", nullptr, "architectures is not a list of one"},
      {"llama", "architectures", {"A", "B"}, "architectures is not a list of one"},
      {"llama", "model_type", "mistral", "model_type is \"mistral\""},
      {"llama", "hidden_act", "gelu", "hidden_act is \"gelu\""},
      {"llama", "attention_bias", true, "attention_bias is true"},
      {"llama", "attention_bias", 0, "attention_bias is 0, not true or false"},
      {"llama", "mlp_bias", true, "mlp_bias is true"},
      {"llama", "rope_interleaved", true, "rope_interleaved is true"},
      {"llama", "quantization_config", {{"bits", 4}}, "quantization_config is set"},
      {"llama", "partial_rotary_factor", 0.5, "partial_rotary_factor"},
      {"llama", "tie_word_embeddings", "yes", "tie_word_embeddings is \"yes\""},
      {"mistral", "sliding_window", 64, "sliding_window is 64, below"},
      {"mistral", "sliding_window", "x", "sliding_window is \"x\""},
      {"qwen3", "layer_types", {"sliding_attention"}, "layer_types has \"sliding_attention\""},
      {"qwen3", "layer_types", 1, "layer_types is not a list"},
      {"llama", "rope_scaling", 2.0, "rope_scaling is 2.0, not an object"},
      {"llama", "rope_scaling", json::object(), "rope_scaling.rope_type is missing"},
      {"llama",
       "rope_scaling",
       {{"rope_type", "yarn"}, {"factor", 4.0}},
       "rope_scaling.rope_type is \"yarn\""},
      {"llama",
       "rope_scaling",
       {{"type", "dynamic"}, {"factor", 4.0}},
       "rope_scaling.rope_type is \"dynamic\""},
      {"llama",
       "rope_scaling",
       {{"type", "linear"}, {"rope_type", "llama3"}},
       "rope_scaling.type and rope_type differ"},
      {"llama", "rope_scaling", {{"rope_type", "linear"}}, "rope_scaling.factor is missing"},
      {"llama", "rope_scaling", {{"rope_type", "linear"}, {"factor", 0}}, "factor is 0"},
      {"llama", "rope_scaling", changed(llama3, "factor", -1), "factor is -1"},
      {"llama", "rope_scaling", changed(llama3, "low_freq_factor", 4.0),
       "low_freq_factor is not below"},
      {"llama", "rope_scaling", changed(llama3, "low_freq_factor", 0), "low_freq_factor is 0"},
      {"llama", "rope_scaling", changed(llama3, "high_freq_factor", nullptr),
       "rope_scaling.high_freq_factor is missing"},
      {"llama", "rope_scaling", changed(llama3, "original_max_position_embeddings", 0),
       "original_max_position_embeddings is 0"},
      {"llama",
       "rope_parameters",
       {{"rope_theta", 0.5}, {"rope_type", "default"}},
       "rope_theta is 0.5"},
      {"llama",
       "rope_parameters",
       {{"rope_type", "default"}, {"partial_rotary_factor", 0.5}},
       "rope_parameters.partial_rotary_factor"},
      {"llama", "eos_token_id", -1, "eos_token_id has -1"},
      {"llama", "eos_token_id", 40, "eos_token_id is 40"},
      {"llama", "eos_token_id", {2, 4294967296}, "eos_token_id has 4294967296"},
      {"llama", "eos_token_id", "x", "eos_token_id has \"x\""},
  };
  for (const Refusal& refusal : refusals) {
    json config = TinyConfig(refusal.model_type);
    config[refusal.field] = refusal.value;
    const auto read = Read(config);
    EXPECT_TRUE(absl::IsInvalidArgument(read.status()) || absl::IsUnimplemented(read.status()))
        << refusal.field << ": " << read.status();
    EXPECT_THAT(std::string(read.status().message()), HasSubstr(refusal.error)) << refusal.field;
    EXPECT_THAT(std::string(read.status().message()), HasSubstr("config.json: "));
  }
}

TEST_F(ConfigTest, WindowsThatNeverActAreAccepted) {
  json config = TinyConfig("mistral");
  config["sliding_window"] = nullptr;
  EXPECT_TRUE(Read(config).ok());
  config["sliding_window"] = 128;
  EXPECT_TRUE(Read(config).ok());
  config = TinyConfig("qwen2");
  config["sliding_window"] = 64;
  config["use_sliding_window"] = false;
  EXPECT_TRUE(Read(config).ok());
  config["use_sliding_window"] = true;
  EXPECT_TRUE(absl::IsUnimplemented(Read(config).status()));
}

TEST_F(ConfigTest, RopeScalingInBothStyles) {
  json config = TinyConfig("llama");
  config["rope_scaling"] = {{"rope_type", "llama3"},
                            {"factor", 32.0},
                            {"low_freq_factor", 1.0},
                            {"high_freq_factor", 4.0},
                            {"original_max_position_embeddings", 8192}};
  auto read = Read(config);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->rope_scaling.kind, RopeScaling::Kind::kLlama3);
  EXPECT_EQ(read->rope_scaling.factor, 32.0);
  EXPECT_EQ(read->rope_scaling.low_freq_factor, 1.0);
  EXPECT_EQ(read->rope_scaling.high_freq_factor, 4.0);
  EXPECT_EQ(read->rope_scaling.original_max_position, 8192);

  config = TinyConfig("llama");
  config.erase("rope_theta");
  config["rope_parameters"] = {{"rope_type", "linear"}, {"factor", 4.0}, {"rope_theta", 20000.0}};
  read = Read(config);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->rope_scaling.kind, RopeScaling::Kind::kLinear);
  EXPECT_EQ(read->rope_scaling.factor, 4.0);
  EXPECT_EQ(read->rope_theta, 20000.0);
}

TEST_F(ConfigTest, EndOfSequenceIdsComeFromGenerationConfigFirst) {
  json config = TinyConfig("llama");
  config["eos_token_id"] = {3, 4};
  EXPECT_THAT(Read(config)->eos_ids, ElementsAre(3, 4));
  config["eos_token_id"] = nullptr;
  EXPECT_THAT(Read(config)->eos_ids, IsEmpty());
  directory_.Write("generation_config.json", R"({"eos_token_id":[7,8]})");
  EXPECT_THAT(Read(TinyConfig("llama"))->eos_ids, ElementsAre(7, 8));
  directory_.Write("generation_config.json", R"({"temperature":0.6})");
  EXPECT_THAT(Read(TinyConfig("llama"))->eos_ids, ElementsAre(2));
  directory_.Write("generation_config.json", R"({"eos_token_id":40})");
  EXPECT_THAT(std::string(Read(TinyConfig("llama")).status().message()),
              HasSubstr("eos_token_id is 40"));
  for (const char* text : {"{", "[]", "", "{\"eos_token_id\":-2}"}) {
    directory_.Write("generation_config.json", text);
    EXPECT_THAT(std::string(Read(TinyConfig("llama")).status().message()),
                HasSubstr("generation_config.json: "))
        << text;
  }
}

TEST_F(ConfigTest, NoConfigIsNotFound) {
  EXPECT_TRUE(absl::IsNotFound(ReadHuggingFaceConfig(directory_.path()).status()));
}

TEST_F(ConfigTest, EveryGgufArchitectureIsRead) {
  for (const char* architecture : {"llama", "qwen2", "qwen3"}) {
    const auto config = Read(TinyGguf(architecture));
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->rope_interleaved, std::string(architecture) == "llama");
    EXPECT_EQ(config->qkv_bias, std::string(architecture) == "qwen2");
    EXPECT_EQ(config->qk_norm,
              std::string(architecture) == "qwen3" ? QkNorm::kHead : QkNorm::kNone);
    EXPECT_EQ(config->name, "tiny");
    EXPECT_EQ(config->vocab_size, 40);
    EXPECT_EQ(config->head_dim, 16);
    EXPECT_EQ(config->max_position, 128);
    EXPECT_EQ(config->rms_norm_eps, static_cast<double>(1e-5f));
    EXPECT_TRUE(config->tied_embeddings);
    EXPECT_THAT(config->eos_ids, ElementsAre(2));
  }
}

TEST_F(ConfigTest, GgufFieldsAreCheckedOneByOne) {
  const char* integers[] = {"block_count",          "context_length",
                            "embedding_length",     "feed_forward_length",
                            "attention.head_count", "attention.head_count_kv"};
  for (const char* key : integers) {
    const std::string full = absl::StrCat("llama.", key);
    for (const uint32_t value : {0u, 0x7fffffffu, 0xffffffffu}) {
      GgufBuilder builder = TinyGguf("llama");
      builder.RemoveKey(full);
      builder.AddU32(full, value);
      EXPECT_TRUE(absl::IsInvalidArgument(Read(builder).status())) << key << " = " << value;
    }
    GgufBuilder negative = TinyGguf("llama");
    negative.RemoveKey(full);
    negative.Add(full, testing::kI64, testing::Raw<int64_t>(-1));
    EXPECT_TRUE(absl::IsInvalidArgument(Read(negative).status())) << key;
    GgufBuilder text = TinyGguf("llama");
    text.RemoveKey(full);
    text.AddString(full, "1");
    EXPECT_THAT(std::string(Read(text).status().message()), HasSubstr(full + " is not an integer"));
  }
  for (const char* key : {"attention.layer_norm_rms_epsilon", "rope.freq_base"}) {
    const std::string full = absl::StrCat("llama.", key);
    for (const float value : {0.0f, -1.0f, std::nanf(""), std::numeric_limits<float>::infinity()}) {
      GgufBuilder builder = TinyGguf("llama");
      builder.RemoveKey(full);
      builder.AddF32(full, value);
      EXPECT_TRUE(absl::IsInvalidArgument(Read(builder).status())) << key << " = " << value;
    }
  }
  GgufBuilder missing = TinyGguf("llama");
  missing.RemoveKey("llama.block_count");
  EXPECT_THAT(std::string(Read(missing).status().message()), HasSubstr("no llama.block_count"));
}

TEST_F(ConfigTest, GgufOtherComputationsAreRefused) {
  const auto error = [&](const GgufBuilder& builder) {
    return std::string(Read(builder).status().message());
  };
  EXPECT_THAT(error(TinyGguf("gemma3")), HasSubstr("general.architecture is \"gemma3\""));
  EXPECT_THAT(error(TinyGguf("llama").AddU32("llama.expert_count", 8)),
              HasSubstr("llama.expert_used_count"));
  EXPECT_THAT(error(TinyGguf("qwen3").AddU32("qwen3.expert_count", 8)),
              HasSubstr("qwen3.expert_count is not 0"));
  EXPECT_THAT(error(TinyGguf("llama").AddU32("llama.attention.sliding_window", 64)),
              HasSubstr("llama.attention.sliding_window is 64"));
  EXPECT_TRUE(Read(TinyGguf("llama").AddU32("llama.attention.sliding_window", 128)).ok());
  EXPECT_THAT(error(TinyGguf("llama").AddU32("llama.rope.dimension_count", 8)),
              HasSubstr("llama.rope.dimension_count is 8"));
  EXPECT_THAT(error(TinyGguf("llama").AddU32("llama.attention.value_length", 8)),
              HasSubstr("llama.attention.value_length is 8"));
  EXPECT_THAT(error(TinyGguf("llama").AddString("llama.rope.scaling.type", "yarn")),
              HasSubstr("llama.rope.scaling.type is \"yarn\""));
  EXPECT_THAT(error(TinyGguf("llama").AddString("llama.rope.scaling.type", "linear")),
              HasSubstr("llama.rope.scaling.factor"));
  EXPECT_THAT(error(TinyGguf("llama").AddF32("llama.logit_scale", 2.0f)),
              HasSubstr("llama.logit_scale"));
  EXPECT_THAT(error(TinyGguf("llama").AddU32("tokenizer.ggml.eot_token_id", 40)),
              HasSubstr("tokenizer.ggml.eot_token_id is 40"));
  GgufBuilder no_embedding = TinyGguf("llama");
  no_embedding.RemoveTensor("token_embd.weight");
  EXPECT_THAT(error(no_embedding), HasSubstr("token_embd.weight"));
}

TEST_F(ConfigTest, GgufRopeVariants) {
  auto read = Read(TinyGguf("llama")
                       .AddString("llama.rope.scaling.type", "linear")
                       .AddF32("llama.rope.scaling.factor", 4.0f));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->rope_scaling.kind, RopeScaling::Kind::kLinear);
  EXPECT_EQ(read->rope_scaling.factor, 4.0);

  std::string factors;
  for (int i = 0; i < 8; ++i) factors += testing::Raw(1.0f + i);
  read = Read(TinyGguf("llama").AddTensor("rope_freqs.weight", {8}, 0, factors));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_THAT(read->rope_freq_factors, ElementsAre(1, 2, 3, 4, 5, 6, 7, 8));

  EXPECT_THAT(std::string(Read(TinyGguf("llama").AddTensor("rope_freqs.weight", {4}, 0, factors))
                              .status()
                              .message()),
              HasSubstr("rope_freqs.weight is not F32 of shape [8]"));
  std::string with_nan = factors;
  with_nan.replace(4, 4, testing::Raw(std::nanf("")));
  EXPECT_THAT(std::string(Read(TinyGguf("llama").AddTensor("rope_freqs.weight", {8}, 0, with_nan))
                              .status()
                              .message()),
              HasSubstr("rope frequency factor"));
}

TEST_F(ConfigTest, GgufEndOfTurnEndsToo) {
  const auto read = Read(TinyGguf("llama")
                             .AddU32("tokenizer.ggml.eot_token_id", 5)
                             .AddU32("tokenizer.ggml.eom_token_id", 2));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_THAT(read->eos_ids, ElementsAre(2, 5));
}

}  // namespace
}  // namespace verbatim::model
