// Whole models of every family and format, complete, incomplete, misshapen and damaged.
#include "model/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <random>
#include <set>

#include "kernels/ops/block_formats.h"
#include "model/checkpoint_tensors.h"
#include "model/checkpoint_test_models.h"
#include "model/gguf.h"

namespace verbatim::model {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using testing::GgufBuilder;
using ::testing::HasSubstr;
using testing::NamedShape;
using testing::PatternBytes;
using testing::TemporaryDirectory;
using testing::TinyConfig;
using testing::TinyGguf;
using testing::TinySafetensors;
using testing::TinyTensors;
using testing::WithInteger;

constexpr char kDemoModel[] = "models/SmolLM2-135M-Instruct.Q4_1.gguf";

class CheckpointTest : public ::testing::Test {
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
    EXPECT_FALSE(checkpoint.ok());
    return std::string(checkpoint.status().message());
  }

  TemporaryDirectory directory_;
};

// Everything the configuration promises can be read, and nothing else exists.
void ReadEverything(const Checkpoint& checkpoint) {
  int64_t bytes = 0;
  for (const ExpectedTensor& expected : ExpectedTensors(checkpoint.config())) {
    if (expected.shape.size() == 2) {
      const auto matrix = checkpoint.Matrix(expected.name);
      ASSERT_TRUE(matrix.ok()) << matrix.status();
      ASSERT_EQ(matrix->rows, expected.shape[0]) << expected.name;
      ASSERT_EQ(matrix->cols, expected.shape[1]) << expected.name;
      std::vector<float> row(static_cast<size_t>(matrix->cols));
      for (int64_t r = 0; r < matrix->rows; ++r) {
        kernels::DecodeRow(matrix->dtype, matrix->data + r * matrix->row_bytes(), matrix->cols,
                           row.data());
      }
      bytes += matrix->size_bytes();
      EXPECT_TRUE(absl::IsNotFound(checkpoint.Vector(expected.name).status()));
    } else {
      const auto vector = checkpoint.Vector(expected.name);
      ASSERT_TRUE(vector.ok()) << vector.status();
      ASSERT_EQ(static_cast<int64_t>(vector->size()), expected.shape[0]) << expected.name;
      EXPECT_TRUE(absl::IsNotFound(checkpoint.Matrix(expected.name).status()));
    }
  }
  EXPECT_GE(checkpoint.weight_bytes(), bytes);
  for (const char* name :
       {"", "layers.99.q", "layers.0.", "layers.0.norm", "blk.0.attn_q.weight"}) {
    EXPECT_TRUE(absl::IsNotFound(checkpoint.Matrix(name).status())) << name;
    EXPECT_TRUE(absl::IsNotFound(checkpoint.Vector(name).status())) << name;
  }
  EXPECT_EQ(checkpoint.WeightsFingerprint().size(), 64u);
}

TEST_F(CheckpointTest, EveryGgufFamilyOpens) {
  for (const char* architecture : {"llama", "qwen2", "qwen3"}) {
    const auto checkpoint = Open(TinyGguf(architecture));
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    ReadEverything(**checkpoint);
    EXPECT_TRUE(absl::IsNotFound((*checkpoint)->Matrix("lm_head").status()));
    const std::string embedding = PatternBytes(40 * 34, 1);
    const auto embed = (*checkpoint)->Matrix("embed");
    EXPECT_EQ(std::memcmp(embed->data, embedding.data(), embedding.size()), 0);
  }
}

TEST_F(CheckpointTest, EveryHuggingFaceFamilyOpens) {
  for (const char* model_type : {"llama", "mistral", "qwen2", "qwen3"}) {
    const auto checkpoint = Open(TinyConfig(model_type), TinyTensors(model_type));
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    ReadEverything(**checkpoint);
    EXPECT_EQ((*checkpoint)->path(), directory_.path());
    // The file itself is a name for the same model.
    const auto by_file = Checkpoint::Open(directory_.path() + "/model.safetensors");
    ASSERT_TRUE(by_file.ok()) << by_file.status();
    EXPECT_EQ((*by_file)->WeightsFingerprint(), (*checkpoint)->WeightsFingerprint());
  }
}

TEST_F(CheckpointTest, UntiedModelsHaveAHead) {
  const auto gguf =
      Open(TinyGguf("llama").AddTensor("output.weight", {40, 32}, 8, PatternBytes(40 * 34, 99)));
  ASSERT_TRUE(gguf.ok()) << gguf.status();
  EXPECT_FALSE((*gguf)->config().tied_embeddings);
  EXPECT_EQ((*gguf)->Matrix("lm_head")->rows, 40);

  json config = TinyConfig("llama");
  config["tie_word_embeddings"] = false;
  EXPECT_THAT(ErrorOf(config, TinyTensors("llama")), HasSubstr("tensor lm_head.weight is missing"));
  std::vector<NamedShape> tensors = TinyTensors("llama");
  tensors.push_back({"lm_head.weight", {40, 32}});
  EXPECT_TRUE(Open(config, tensors).ok());
  // Saved although tied: the configuration decides.
  const auto tied = Open(TinyConfig("llama"), tensors);
  ASSERT_TRUE(tied.ok()) << tied.status();
  EXPECT_TRUE(absl::IsNotFound((*tied)->Matrix("lm_head").status()));
}

TEST_F(CheckpointTest, MissingMisshapenAndForeignTensorsAreNamed) {
  for (const char* architecture : {"llama", "qwen2", "qwen3"}) {
    std::set<std::string> names;
    {
      const auto file = GgufFile::Open(directory_.Write("m.gguf", TinyGguf(architecture).Build()));
      for (const auto& [name, tensor] : (*file)->tensors()) names.insert(name);
    }
    ASSERT_GE(names.size(), 11u);
    for (const std::string& name : names) {
      GgufBuilder builder = TinyGguf(architecture);
      builder.RemoveTensor(name);
      EXPECT_THAT(ErrorOf(builder), HasSubstr(name)) << architecture;
      builder.AddTensor(name, {96, 24}, 1, PatternBytes(96 * 48, 5));
      EXPECT_THAT(ErrorOf(builder), HasSubstr(name)) << architecture;
    }
  }
  EXPECT_THAT(
      ErrorOf(TinyGguf("llama").AddTensor("blk.0.attn_q.bias", {32}, 0, PatternBytes(128, 5))),
      HasSubstr("tensor blk.0.attn_q.bias does not belong"));
  for (const char* model_type : {"llama", "mistral", "qwen2", "qwen3"}) {
    const std::vector<NamedShape> tensors = TinyTensors(model_type);
    for (size_t i = 0; i < tensors.size(); ++i) {
      std::vector<NamedShape> changed = tensors;
      changed.erase(changed.begin() + static_cast<int64_t>(i));
      EXPECT_THAT(ErrorOf(TinyConfig(model_type), changed),
                  HasSubstr(absl::StrCat("tensor ", tensors[i].name, " is missing")));
      changed = tensors;
      changed[i].shape[0] += 1;
      EXPECT_THAT(ErrorOf(TinyConfig(model_type), changed),
                  HasSubstr(absl::StrCat("tensor ", tensors[i].name, " has shape ")));
    }
  }
  std::vector<NamedShape> with_bias = TinyTensors("llama");
  with_bias.push_back({"model.layers.0.self_attn.q_proj.bias", {32}});
  EXPECT_THAT(ErrorOf(TinyConfig("llama"), with_bias), HasSubstr("q_proj.bias does not belong"));
  with_bias.back() = {"model.layers.0.self_attn.rotary_emb.inv_freq", {8}};
  EXPECT_TRUE(Open(TinyConfig("llama"), with_bias).ok());
}

TEST_F(CheckpointTest, ShardsFollowTheirIndex) {
  std::vector<NamedShape> first = TinyTensors("llama"), second;
  while (first.size() > 4) {
    second.push_back(first.back());
    first.pop_back();
  }
  directory_.Write("config.json", TinyConfig("llama").dump());
  directory_.Write("one.safetensors", TinySafetensors(first));
  directory_.Write("two.safetensors", TinySafetensors(second));
  json weight_map;
  for (const NamedShape& tensor : first) weight_map[tensor.name] = "one.safetensors";
  for (const NamedShape& tensor : second) weight_map[tensor.name] = "two.safetensors";
  const auto open_with = [&](const json& map) {
    directory_.Write("model.safetensors.index.json", json{{"weight_map", map}}.dump());
    return Checkpoint::Open(directory_.path());
  };
  const auto sharded = open_with(weight_map);
  ASSERT_TRUE(sharded.ok()) << sharded.status();
  ReadEverything(**sharded);

  json wrong = weight_map;
  wrong["model.norm.weight"] = "two.safetensors";
  EXPECT_THAT(std::string(open_with(wrong).status().message()),
              HasSubstr("which does not have it"));
  wrong["model.norm.weight"] = "three.safetensors";
  EXPECT_TRUE(absl::IsNotFound(open_with(wrong).status()));
  wrong.erase("model.norm.weight");
  EXPECT_THAT(std::string(open_with(wrong).status().message()),
              HasSubstr("weight_map lacks tensor model.norm.weight"));
  wrong["model.norm.weight"] = "../one.safetensors";
  EXPECT_TRUE(absl::IsInvalidArgument(open_with(wrong).status()));

  // Without an index, all files together, each tensor once.
  std::filesystem::remove(directory_.path() + "/model.safetensors.index.json");
  const auto joined = Checkpoint::Open(directory_.path());
  ASSERT_TRUE(joined.ok()) << joined.status();
  EXPECT_EQ((*joined)->WeightsFingerprint(), (*sharded)->WeightsFingerprint());
  directory_.Write("three.safetensors", TinySafetensors({{"model.norm.weight", {32}}}));
  EXPECT_THAT(std::string(Checkpoint::Open(directory_.path()).status().message()),
              HasSubstr("is also in"));
}

TEST_F(CheckpointTest, FingerprintCoversWeightsAndConfiguration) {
  std::set<std::string> fingerprints;
  const auto add = [&](GgufBuilder builder) {
    const auto checkpoint = Open(std::move(builder));
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    EXPECT_EQ((*checkpoint)->WeightsFingerprint(), (*checkpoint)->WeightsFingerprint());
    EXPECT_TRUE(fingerprints.insert((*checkpoint)->WeightsFingerprint()).second);
  };
  add(TinyGguf("llama"));
  GgufBuilder builder = TinyGguf("llama");
  builder.RemoveTensor("blk.0.ffn_norm.weight");
  std::string values = PatternBytes(128, 4);
  add(builder.AddTensor("blk.0.ffn_norm.weight", {32}, 0, values = PatternBytes(128, 77)));
  builder.RemoveTensor("blk.0.ffn_norm.weight");
  values[127] ^= 1;  // the last bit counts
  add(builder.AddTensor("blk.0.ffn_norm.weight", {32}, 0, values));
  builder = TinyGguf("llama");
  builder.RemoveKey("llama.rope.freq_base");
  add(builder.AddF32("llama.rope.freq_base", 10001.0f));
  builder = TinyGguf("llama");
  builder.RemoveKey("tokenizer.ggml.eos_token_id");
  add(builder);
  // The order of the tensors in the file and the model's name do not count.
  builder = TinyGguf("llama");
  builder.RemoveKey("general.name");
  builder.RemoveTensor("token_embd.weight");
  builder.AddTensor("token_embd.weight", {40, 32}, 8, PatternBytes(40 * 34, 1));
  const auto reordered = Open(builder);
  ASSERT_TRUE(reordered.ok()) << reordered.status();
  EXPECT_TRUE(fingerprints.contains((*reordered)->WeightsFingerprint()));
}

// Receipts name a model by its fingerprint: what is added for other families must not move it.
TEST_F(CheckpointTest, FingerprintsOfDenseModelsStayAsTheyWere) {
  const std::pair<const char*, const char*> fingerprints[] = {
      {"llama", "67624ca1ea201849894023fe512ae7aafd71737dd978c0cbcfb19fdc3d7b7f3a"},
      {"qwen2", "1357e10e2e550d4f7ec06c7ba71996a5b7e2d755cb8e859ca1bfe17656d8ecd9"},
      {"qwen3", "4e08a33956310709fc05906a6056f8829af50b915371b632ffe82fa737e40c84"}};
  for (const auto& [architecture, fingerprint] : fingerprints) {
    EXPECT_EQ((*Open(TinyGguf(architecture)))->WeightsFingerprint(), fingerprint) << architecture;
  }
}

void ExpectClear(const absl::Status& status, const std::string& what) {
  EXPECT_TRUE(absl::IsInvalidArgument(status) || absl::IsUnimplemented(status) ||
              absl::IsNotFound(status))
      << what << ": " << status;
  EXPECT_FALSE(status.message().empty()) << what;
}

TEST_F(CheckpointTest, EveryGgufHeaderIntegerMayLie) {
  GgufBuilder builder = TinyGguf("qwen2");
  const std::string whole = builder.Build();
  for (const GgufBuilder::Field& field : builder.fields()) {
    for (const uint64_t value : testing::HostileIntegers()) {
      const std::string path =
          directory_.Write("m.gguf", WithInteger(whole, field.offset, field.bytes, value));
      const auto checkpoint = Checkpoint::Open(path);
      if (checkpoint.ok()) {
        ReadEverything(**checkpoint);
      } else {
        ExpectClear(checkpoint.status(), absl::StrCat("offset ", field.offset, " set to ", value));
      }
    }
  }
}

TEST_F(CheckpointTest, RandomDamageNeverCrashes) {
  GgufBuilder builder = TinyGguf("qwen3");
  const std::string gguf = builder.Build();
  const size_t header_bytes = builder.fields().back().offset + 8;
  const std::string config = TinyConfig("llama").dump();
  const std::string tensors = TinySafetensors(TinyTensors("llama"));
  const size_t tensors_header_bytes = tensors.find("}}") + 2;
  const std::string alphabet = "0123456789-[]{},:\"eE.\\x";
  std::mt19937_64 random(20240613);
  const auto damage = [&](std::string bytes, size_t limit) {
    const int edits = 1 + static_cast<int>(random() % 3);
    for (int i = 0; i < edits; ++i) {
      char& byte = bytes[random() % limit];
      byte = random() % 2 == 0 ? static_cast<char>(byte ^ 1 << random() % 8)
                               : alphabet[random() % alphabet.size()];
    }
    return bytes;
  };
  int opened = 0;
  const auto check = [&](const absl::StatusOr<std::unique_ptr<Checkpoint>>& checkpoint, int round) {
    if (checkpoint.ok()) {
      ++opened;
      ReadEverything(**checkpoint);
    } else {
      ExpectClear(checkpoint.status(), absl::StrCat("round ", round));
    }
  };
  for (int round = 0; round < 2000; ++round) {
    check(Checkpoint::Open(directory_.Write("m.gguf", damage(gguf, header_bytes))), round);
    directory_.Write("config.json", damage(config, config.size()));
    directory_.Write("model.safetensors", tensors);
    check(Checkpoint::Open(directory_.path()), round);
    directory_.Write("config.json", config);
    directory_.Write("model.safetensors", damage(tensors, tensors_header_bytes));
    check(Checkpoint::Open(directory_.path()), round);
  }
  EXPECT_GT(opened, 0);
  EXPECT_LT(opened, 5000);
}

TEST_F(CheckpointTest, PathsThatAreNoModelAreExplained) {
  EXPECT_TRUE(absl::IsNotFound(Checkpoint::Open(directory_.path() + "/absent.gguf").status()));
  EXPECT_TRUE(absl::IsNotFound(Checkpoint::Open(directory_.path()).status()));
  directory_.Write("config.json", TinyConfig("llama").dump());
  EXPECT_THAT(std::string(Checkpoint::Open(directory_.path()).status().message()),
              HasSubstr("has no .safetensors file"));
  EXPECT_THAT(std::string(Checkpoint::Open(directory_.Write("x.bin", "x")).status().message()),
              HasSubstr("neither a .gguf file"));
  EXPECT_FALSE(Checkpoint::Open("").ok());
  EXPECT_FALSE(Checkpoint::Open(std::string(5000, 'x')).ok());
}

TEST_F(CheckpointTest, DemoModelOpens) {
  if (!std::filesystem::exists(kDemoModel)) GTEST_SKIP() << kDemoModel << " is not there";
  const auto checkpoint = Checkpoint::Open(kDemoModel);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const ModelConfig& config = (*checkpoint)->config();
  EXPECT_EQ(config.family, Family::kLlama);
  EXPECT_EQ(config.num_layers, 30);
  EXPECT_EQ(config.hidden_size, 576);
  EXPECT_EQ(config.intermediate_size, 1536);
  EXPECT_EQ(config.num_heads, 9);
  EXPECT_EQ(config.num_kv_heads, 3);
  EXPECT_EQ(config.head_dim, 64);
  EXPECT_EQ(config.vocab_size, 49152);
  EXPECT_EQ(config.max_position, 8192);
  EXPECT_EQ(config.rope_theta, 100000.0);
  EXPECT_TRUE(config.rope_interleaved);
  EXPECT_TRUE(config.tied_embeddings);
  EXPECT_THAT(config.eos_ids, ElementsAre(2));
  EXPECT_EQ((*checkpoint)->Matrix("embed")->dtype, kernels::DType::kQ8_0);
  EXPECT_EQ((*checkpoint)->Matrix("layers.29.down")->dtype, kernels::DType::kQ4_1);
  ReadEverything(**checkpoint);
  const auto tokenizer = (*checkpoint)->LoadTokenizer();
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->vocab_size(), 49152);
  EXPECT_EQ((*checkpoint)->WeightsFingerprint(),
            "c0eff1746068a4ae34795af49a94cda60f60899471349d2234c324419afaa557");
}

}  // namespace
}  // namespace verbatim::model
