// The fields of mixtures of experts, right and wrong.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/checkpoint_test_moe_models.h"
#include "model/config.h"

namespace verbatim::model {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using testing::GgufBuilder;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::TemporaryDirectory;
using testing::TinyMoeConfig;
using testing::TinyMoeGguf;

class MoeConfigTest : public ::testing::Test {
 protected:
  absl::StatusOr<ModelConfig> Read(const json& config) {
    directory_.Write("config.json", config.dump());
    return ReadHuggingFaceConfig(directory_.path());
  }
  absl::StatusOr<ModelConfig> Read(GgufBuilder builder) {
    const auto file = GgufFile::Open(directory_.Write("m.gguf", builder.Build()));
    if (!file.ok()) return file.status();
    return ReadGgufConfig(**file);
  }
  template <typename File>
  std::string ErrorOf(const File& file) {
    const auto read = Read(file);
    EXPECT_TRUE(absl::IsInvalidArgument(read.status()) || absl::IsUnimplemented(read.status()))
        << read.status();
    return std::string(read.status().message());
  }
  TemporaryDirectory directory_;
};

struct Expected {
  const char* name;
  Family family;
  bool normalise;
  bool qkv_bias;
  QkNorm qk_norm;
  int shared;
};

void ExpectMixture(const ModelConfig& config, const Expected& expected) {
  SCOPED_TRACE(expected.name);
  EXPECT_EQ(config.family, expected.family);
  EXPECT_EQ(config.moe.num_experts, 4);
  EXPECT_EQ(config.moe.experts_per_token, 2);
  EXPECT_EQ(config.moe.intermediate_size, 32);
  EXPECT_EQ(config.moe.normalise, expected.normalise);
  EXPECT_EQ(config.moe.scale, 1.0);
  EXPECT_EQ(config.moe.shared_intermediate_size, expected.shared);
  EXPECT_EQ(config.moe.shared_gate, expected.family == Family::kQwen2Moe);
  EXPECT_THAT(config.moe.dense_layers, IsEmpty());
  EXPECT_TRUE(config.moe.IsMoe(0));
  EXPECT_EQ(config.qkv_bias, expected.qkv_bias);
  EXPECT_EQ(config.qk_norm, expected.qk_norm);
  const bool granite = expected.family == Family::kGraniteMoe;
  EXPECT_EQ(config.embedding_multiplier, granite ? 12.0 : 1.0);
  EXPECT_EQ(config.attention_multiplier, granite ? 0.0625 : 0.0);
  EXPECT_EQ(config.residual_multiplier, granite ? 0.25 : 1.0);
  EXPECT_EQ(config.logits_scaling, granite ? 6.0 : 1.0);
}

TEST_F(MoeConfigTest, EveryHuggingFaceFamilyIsRead) {
  const Expected families[] = {
      {"mixtral", Family::kMixtral, true, false, QkNorm::kNone, 0},
      {"qwen2_moe", Family::kQwen2Moe, false, true, QkNorm::kNone, 64},
      {"qwen3_moe", Family::kQwen3Moe, true, false, QkNorm::kHead, 0},
      {"olmoe", Family::kOlmoe, false, false, QkNorm::kAll, 0},
      {"granitemoe", Family::kGraniteMoe, true, false, QkNorm::kNone, 0},
      {"granitemoeshared", Family::kGraniteMoe, true, false, QkNorm::kNone, 64}};
  for (const Expected& expected : families) {
    const auto config = Read(TinyMoeConfig(expected.name));
    ASSERT_TRUE(config.ok()) << config.status();
    ExpectMixture(*config, expected);
    EXPECT_FALSE(config->rope_interleaved);
  }
}

TEST_F(MoeConfigTest, EveryGgufArchitectureIsRead) {
  const Expected architectures[] = {
      {"llama", Family::kMixtral, true, false, QkNorm::kNone, 0},
      {"qwen2moe", Family::kQwen2Moe, false, true, QkNorm::kNone, 64},
      {"qwen3moe", Family::kQwen3Moe, true, false, QkNorm::kHead, 0},
      {"olmoe", Family::kOlmoe, false, false, QkNorm::kAll, 0},
      {"granitemoe", Family::kGraniteMoe, true, false, QkNorm::kNone, 0}};
  for (const Expected& expected : architectures) {
    const auto config = Read(TinyMoeGguf(expected.name));
    ASSERT_TRUE(config.ok()) << config.status();
    ExpectMixture(*config, expected);
    EXPECT_EQ(config->rope_interleaved,
              expected.family == Family::kMixtral || expected.family == Family::kGraniteMoe);
  }
}

TEST_F(MoeConfigTest, DenseLayersAreNamedOrCounted) {
  for (const char* family : {"qwen2_moe", "qwen3_moe"}) {
    json config = TinyMoeConfig(family);
    config["num_hidden_layers"] = 4;
    config["mlp_only_layers"] = {2};
    EXPECT_THAT(Read(config)->moe.dense_layers, ElementsAre(false, false, true, false));
    config["decoder_sparse_step"] = 2;
    EXPECT_THAT(Read(config)->moe.dense_layers, ElementsAre(true, false, true, false));
    config["mlp_only_layers"] = {4};
    EXPECT_THAT(ErrorOf(config), HasSubstr("mlp_only_layers has 4, which is not a layer"));
    config["mlp_only_layers"] = {-1};
    EXPECT_THAT(ErrorOf(config), HasSubstr("mlp_only_layers has -1"));
    config["mlp_only_layers"] = 1;
    EXPECT_THAT(ErrorOf(config), HasSubstr("mlp_only_layers is not a list"));
    config["mlp_only_layers"] = nullptr;
    config["decoder_sparse_step"] = 0;
    EXPECT_THAT(ErrorOf(config), HasSubstr("decoder_sparse_step is 0"));
  }
}

TEST_F(MoeConfigTest, DefaultsAreTheLibrarys) {
  json config = TinyMoeConfig("mixtral");
  config.erase("rope_theta");
  EXPECT_EQ(Read(config)->rope_theta, 1000000.0);
  config = TinyMoeConfig("olmoe");
  config.erase("norm_topk_prob");
  config.erase("num_key_value_heads");
  EXPECT_FALSE(Read(config)->moe.normalise);
  EXPECT_EQ(Read(config)->num_kv_heads, 2);
  config = TinyMoeConfig("qwen2_moe");
  config["qkv_bias"] = false;
  EXPECT_FALSE(Read(config)->qkv_bias);
  config = TinyMoeConfig("granitemoe");
  for (const char* field :
       {"embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"}) {
    config.erase(field);
  }
  EXPECT_EQ(Read(config)->attention_multiplier, 1.0);
  EXPECT_EQ(Read(config)->residual_multiplier, 1.0);
  // The library's other name for the same number.
  config = TinyMoeConfig("qwen3_moe");
  config.erase("num_experts");
  config["num_local_experts"] = 4;
  EXPECT_EQ(Read(config)->moe.num_experts, 4);
}

TEST_F(MoeConfigTest, ImpossibleMixturesAreRefusedByField) {
  struct Refusal {
    const char* model_type;
    const char* field;
    json value;
    const char* error;
  };
  const Refusal refusals[] = {
      {"mixtral", "num_local_experts", 0, "num_local_experts is 0"},
      {"mixtral", "num_local_experts", -4, "num_local_experts is -4"},
      {"mixtral", "num_local_experts", nullptr, "num_local_experts is missing"},
      {"mixtral", "num_local_experts", 1025, "the number of experts is 1025"},
      {"mixtral", "num_local_experts", "8", "num_local_experts is \"8\""},
      {"mixtral", "num_experts_per_tok", 5,
       "num_experts_per_tok is 5, not from 1 to num_local_experts 4"},
      {"mixtral", "num_experts_per_tok", 0, "num_experts_per_tok is 0"},
      {"mixtral", "sliding_window", 64, "sliding_window is 64"},
      {"mixtral", "attention_bias", true, "attention_bias is true"},
      {"qwen2_moe", "num_experts", 0, "num_experts is 0"},
      {"qwen2_moe", "moe_intermediate_size", nullptr, "moe_intermediate_size is missing"},
      {"qwen2_moe", "moe_intermediate_size", 0, "the intermediate size of experts is 0"},
      {"qwen2_moe", "shared_expert_intermediate_size", 0, "shared_expert_intermediate_size is 0"},
      {"qwen2_moe", "norm_topk_prob", 1, "norm_topk_prob is 1, not true or false"},
      {"qwen3_moe", "use_sliding_window", "x", "use_sliding_window is \"x\""},
      {"olmoe", "clip_qkv", 8.0, "clip_qkv is set"},
      {"granitemoe", "residual_multiplier", 0, "residual_multiplier is 0"},
      {"granitemoe", "residual_multiplier", -1, "residual_multiplier is -1"},
      {"granitemoe", "attention_multiplier", 0, "attention_multiplier is 0"},
      {"granitemoe", "logits_scaling", 0, "logits_scaling is 0"},
      {"granitemoe", "embedding_multiplier", "12", "embedding_multiplier is \"12\""},
      {"granitemoeshared", "shared_intermediate_size", -1, "shared expert is -1"},
  };
  for (const Refusal& refusal : refusals) {
    json config = TinyMoeConfig(refusal.model_type);
    config[refusal.field] = refusal.value;
    EXPECT_THAT(ErrorOf(config), HasSubstr(refusal.error)) << refusal.field;
  }
  // More experts a token than the operations take.
  json config = TinyMoeConfig("mixtral");
  config["num_local_experts"] = 128;
  config["num_experts_per_tok"] = 65;
  EXPECT_THAT(ErrorOf(config), HasSubstr("the number of experts per token is 65"));
  config["num_local_experts"] = 1024;
  config["num_experts_per_tok"] = 2;
  config["num_hidden_layers"] = 1024;
  EXPECT_THAT(ErrorOf(config), HasSubstr("the number of experts over all layers"));
}

TEST_F(MoeConfigTest, GgufKeysAreRefusedByName) {
  const auto with = [](const char* architecture, const char* key, uint32_t value) {
    GgufBuilder builder = TinyMoeGguf(architecture);
    builder.RemoveKey(absl::StrCat(architecture, ".", key));
    builder.AddU32(absl::StrCat(architecture, ".", key), value);
    return builder;
  };
  EXPECT_THAT(ErrorOf(with("olmoe", "expert_count", 0)), HasSubstr("olmoe.expert_count is 0"));
  EXPECT_THAT(ErrorOf(with("llama", "expert_used_count", 5)),
              HasSubstr("llama.expert_used_count is 5, not from 1 to expert_count 4"));
  EXPECT_THAT(ErrorOf(with("llama", "expert_used_count", 0)),
              HasSubstr("llama.expert_used_count is 0"));
  EXPECT_THAT(ErrorOf(with("qwen3moe", "expert_gating_func", 2)),
              HasSubstr("qwen3moe.expert_gating_func is 2"));
  EXPECT_THAT(ErrorOf(with("qwen3moe", "leading_dense_block_count", 2)),
              HasSubstr("qwen3moe.leading_dense_block_count"));
  EXPECT_TRUE(Read(with("qwen3moe", "expert_gating_func", 1)).ok());
  GgufBuilder without = TinyMoeGguf("qwen2moe");
  without.RemoveKey("qwen2moe.expert_used_count");
  EXPECT_THAT(ErrorOf(without), HasSubstr("qwen2moe.expert_used_count"));
  // A multiplier that only Granite has.
  EXPECT_THAT(ErrorOf(TinyMoeGguf("llama").AddF32("llama.residual_scale", 0.5f)),
              HasSubstr("llama.residual_scale is set"));
  GgufBuilder no_scale = TinyMoeGguf("granitemoe");
  no_scale.RemoveKey("granitemoe.logit_scale");
  EXPECT_THAT(ErrorOf(no_scale), HasSubstr("granitemoe.logit_scale"));
  EXPECT_EQ(Read(TinyMoeGguf("qwen3moe").AddF32("qwen3moe.expert_weights_scale", 2.5f))->moe.scale,
            2.5);
  EXPECT_THAT(
      ErrorOf(TinyMoeGguf("granitemoe")
                  .Add("granitemoe.rope.scaling.finetuned", testing::kBool, std::string(1, '\0'))),
      HasSubstr("granitemoe.rope.scaling.finetuned is false"));
}

}  // namespace
}  // namespace verbatim::model
