// Mixtures of experts on disk: merged and separate tensors, incomplete, misshapen and damaged.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "kernels/ops/block_formats.h"
#include "model/checkpoint.h"
#include "model/checkpoint_tensors.h"
#include "model/checkpoint_test_moe_models.h"
#include "model/gguf.h"

namespace verbatim::model {
namespace {

using nlohmann::json;
using testing::GgufBuilder;
using ::testing::HasSubstr;
using testing::NamedShape;
using testing::PatternBytes;
using testing::TemporaryDirectory;
using testing::TinyMoeConfig;
using testing::TinyMoeGguf;
using testing::TinyMoeTensors;
using testing::TinySafetensors;

constexpr const char* kModelTypes[] = {"mixtral", "qwen2_moe",  "qwen3_moe",
                                       "olmoe",   "granitemoe", "granitemoeshared"};
constexpr const char* kArchitectures[] = {"llama", "qwen2moe", "qwen3moe", "olmoe", "granitemoe"};

class MoeCheckpointTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<Checkpoint>> Open(GgufBuilder builder) {
    return Checkpoint::Open(directory_.Write("m.gguf", builder.Build()));
  }
  absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const json& config,
                                                   const std::vector<NamedShape>& tensors) {
    directory_.Write("config.json", config.dump());
    directory_.Write("model.safetensors", TinySafetensors(tensors));
    return Checkpoint::Open(directory_.path());
  }
  template <typename... Args>
  std::string ErrorOf(const Args&... args) {
    const auto checkpoint = Open(args...);
    EXPECT_TRUE(absl::IsInvalidArgument(checkpoint.status()) ||
                absl::IsUnimplemented(checkpoint.status()))
        << checkpoint.status();
    return std::string(checkpoint.status().message());
  }
  TemporaryDirectory directory_;
};

// The bytes of every tensor, by canonical name.
std::map<std::string, std::string> BytesOf(const Checkpoint& checkpoint) {
  std::map<std::string, std::string> bytes;
  for (const ExpectedTensor& expected : ExpectedTensors(checkpoint.config())) {
    if (expected.shape.size() != 2) continue;
    const auto matrix = checkpoint.Matrix(expected.name);
    EXPECT_TRUE(matrix.ok()) << matrix.status();
    EXPECT_EQ(matrix->rows, expected.shape[0]) << expected.name;
    EXPECT_EQ(matrix->cols, expected.shape[1]) << expected.name;
    bytes[expected.name] =
        std::string(reinterpret_cast<const char*>(matrix->data), matrix->size_bytes());
  }
  return bytes;
}

TEST_F(MoeCheckpointTest, EveryFamilyAndLayoutOpens) {
  for (const char* model_type : kModelTypes) {
    for (const bool merged : {false, true}) {
      SCOPED_TRACE(absl::StrCat(model_type, merged ? " merged" : ""));
      const auto checkpoint = Open(TinyMoeConfig(model_type), TinyMoeTensors(model_type, merged));
      ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
      int64_t bytes = 0;
      for (const auto& [name, data] : BytesOf(**checkpoint)) bytes += data.size();
      EXPECT_GE((*checkpoint)->weight_bytes(), bytes);
      EXPECT_TRUE(absl::IsNotFound((*checkpoint)->Matrix("layers.0.gate").status()));
      EXPECT_TRUE(absl::IsNotFound((*checkpoint)->Matrix("layers.0.experts.4.up").status()));
    }
  }
  for (const char* architecture : kArchitectures) {
    SCOPED_TRACE(architecture);
    const auto checkpoint = Open(TinyMoeGguf(architecture));
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    BytesOf(**checkpoint);
  }
}

// A slice of a merged tensor is the expert's rows: gate first, then up.
TEST_F(MoeCheckpointTest, SlicesAreTheExpertsRows) {
  std::vector<NamedShape> tensors = TinyMoeTensors("granitemoe");
  const auto checkpoint = Open(TinyMoeConfig("granitemoe"), tensors);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const auto first = (*checkpoint)->Matrix("layers.0.experts.0.gate");
  for (int e = 0; e < 4; ++e) {
    const std::string expert = absl::StrCat("layers.0.experts.", e, ".");
    EXPECT_EQ((*checkpoint)->Matrix(expert + "gate")->data - first->data, (2 * e) * 32 * 32 * 2);
    EXPECT_EQ((*checkpoint)->Matrix(expert + "up")->data - first->data, (2 * e + 1) * 32 * 32 * 2);
  }
}

// What a file calls its tensors and how it groups them is no part of the model.
TEST_F(MoeCheckpointTest, LayoutsOfOneModelAreEqual) {
  for (const char* architecture : {"llama", "qwen2moe"}) {
    const auto merged = Open(TinyMoeGguf(architecture));
    ASSERT_TRUE(merged.ok()) << merged.status();
    const std::map<std::string, std::string> expected = BytesOf(**merged);
    const std::string fingerprint = (*merged)->WeightsFingerprint();
    const auto separate = Open(TinyMoeGguf(architecture, /*separate=*/true));
    ASSERT_TRUE(separate.ok()) << separate.status();
    EXPECT_EQ(BytesOf(**separate), expected);
    EXPECT_EQ((*separate)->WeightsFingerprint(), fingerprint);
  }
}

TEST_F(MoeCheckpointTest, FingerprintCoversTheMixture) {
  std::set<std::string> fingerprints;
  const auto add = [&](const json& config) {
    const auto checkpoint = Open(config, TinyMoeTensors("qwen3_moe"));
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    EXPECT_TRUE(fingerprints.insert((*checkpoint)->WeightsFingerprint()).second) << config;
  };
  json config = TinyMoeConfig("qwen3_moe");
  add(config);
  config["norm_topk_prob"] = false;
  add(config);
  config["num_experts_per_tok"] = 3;
  add(config);
}

TEST_F(MoeCheckpointTest, MissingMisshapenAndForeignTensorsAreNamed) {
  for (const char* model_type : kModelTypes) {
    for (const bool merged : {false, true}) {
      const std::vector<NamedShape> tensors = TinyMoeTensors(model_type, merged);
      for (size_t i = 0; i < tensors.size(); ++i) {
        std::vector<NamedShape> changed = tensors;
        changed.erase(changed.begin() + static_cast<int64_t>(i));
        EXPECT_THAT(ErrorOf(TinyMoeConfig(model_type), changed),
                    HasSubstr(absl::StrCat(tensors[i].name, " is missing")));
        for (size_t d = 0; d < tensors[i].shape.size(); ++d) {
          changed = tensors;
          changed[i].shape[d] += 1;
          EXPECT_THAT(ErrorOf(TinyMoeConfig(model_type), changed),
                      HasSubstr(absl::StrCat("tensor ", tensors[i].name, " has shape ")));
        }
      }
    }
    std::vector<NamedShape> foreign = TinyMoeTensors(model_type);
    foreign.push_back({"model.layers.0.mlp.experts.4.gate_proj.weight", {32, 32}});
    EXPECT_THAT(ErrorOf(TinyMoeConfig(model_type), foreign),
                HasSubstr("experts.4.gate_proj.weight does not belong"));
  }
  for (const char* architecture : kArchitectures) {
    for (const char* part : {"gate", "up", "down"}) {
      const std::string name = absl::StrCat("blk.0.ffn_", part, "_exps.weight");
      GgufBuilder builder = TinyMoeGguf(architecture);
      builder.RemoveTensor(name);
      EXPECT_THAT(ErrorOf(builder), HasSubstr(absl::StrCat("tensor ", name, " is missing")));
      builder.AddTensor(name, {3, 32, 32}, 8, PatternBytes(3 * 32 * 34, 7));
      EXPECT_THAT(ErrorOf(builder),
                  HasSubstr(absl::StrCat(name,
                                         " has shape [3, 32, 32], the configuration says "
                                         "[4, 32, 32]")));
    }
  }
  // Both layouts at once: one of them would be passed over without a word.
  GgufBuilder both = TinyMoeGguf("llama");
  both.AddTensor("blk.0.ffn_up.0.weight", {32, 32}, 8, PatternBytes(32 * 34, 7));
  EXPECT_THAT(ErrorOf(both), HasSubstr("blk.0.ffn_up.0.weight does not belong"));
}

TEST_F(MoeCheckpointTest, RouterWeightsMustBeFinite) {
  for (const float value : {std::nanf(""), std::numeric_limits<float>::infinity(),
                            -std::numeric_limits<float>::infinity()}) {
    GgufBuilder builder = TinyMoeGguf("qwen2moe");
    std::string router = PatternBytes(4 * 32 * 4, 9);
    router.replace((2 * 32 + 5) * 4, 4, testing::Raw(value));
    builder.RemoveTensor("blk.0.ffn_gate_inp.weight");
    builder.AddTensor("blk.0.ffn_gate_inp.weight", {4, 32}, 0, router);
    const std::string error = ErrorOf(builder);
    EXPECT_THAT(error, HasSubstr("tensor blk.0.ffn_gate_inp.weight has "));
    EXPECT_THAT(error, HasSubstr("at [2, 5]"));
  }
  GgufBuilder builder = TinyMoeGguf("qwen2moe");
  std::string gate = PatternBytes(32 * 4, 9);
  gate.replace(31 * 4, 4, testing::Raw(std::nanf("")));
  builder.RemoveTensor("blk.0.ffn_gate_inp_shexp.weight");
  builder.AddTensor("blk.0.ffn_gate_inp_shexp.weight", {32}, 0, gate);
  EXPECT_THAT(ErrorOf(builder), HasSubstr("blk.0.ffn_gate_inp_shexp.weight has nan at [0, 31]"));
}

TEST_F(MoeCheckpointTest, DenseLayersKeepTheirNetwork) {
  json config = TinyMoeConfig("qwen3_moe");
  config["mlp_only_layers"] = {0};
  std::vector<NamedShape> tensors = testing::TinyTensors("qwen3");
  const auto checkpoint = Open(config, tensors);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->Matrix("layers.0.gate")->rows, 64);
  EXPECT_TRUE(absl::IsNotFound((*checkpoint)->Matrix("layers.0.router").status()));
  EXPECT_THAT(ErrorOf(config, TinyMoeTensors("qwen3_moe")), HasSubstr("mlp.gate_proj.weight is"));
}

TEST_F(MoeCheckpointTest, EveryHeaderIntegerMayLie) {
  GgufBuilder builder = TinyMoeGguf("qwen2moe");
  const std::string whole = builder.Build();
  for (const GgufBuilder::Field& field : builder.fields()) {
    for (const uint64_t value : testing::HostileIntegers()) {
      const auto checkpoint = Checkpoint::Open(directory_.Write(
          "m.gguf", testing::WithInteger(whole, field.offset, field.bytes, value)));
      if (checkpoint.ok()) {
        BytesOf(**checkpoint);
      } else {
        EXPECT_FALSE(checkpoint.status().message().empty());
      }
    }
  }
}

TEST_F(MoeCheckpointTest, RandomDamageOfTheConfigurationNeverCrashes) {
  const std::string config = TinyMoeConfig("qwen2_moe").dump();
  directory_.Write("model.safetensors", TinySafetensors(TinyMoeTensors("qwen2_moe")));
  std::mt19937_64 random(20240613);
  int opened = 0;
  for (int round = 0; round < 1000; ++round) {
    std::string damaged = config;
    damaged[random() % damaged.size()] = "0123456789-[]{},:\"eE."[random() % 21];
    directory_.Write("config.json", damaged);
    const auto checkpoint = Checkpoint::Open(directory_.path());
    if (checkpoint.ok()) {
      ++opened;
      BytesOf(**checkpoint);
    } else {
      EXPECT_FALSE(checkpoint.status().message().empty());
    }
  }
  EXPECT_GT(opened, 0);
  EXPECT_LT(opened, 1000);
}

}  // namespace
}  // namespace verbatim::model
