// The whole of upcycling on tiny checkpoints.
#include "upcycle/upcycle.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>

#include "evaluate/perplexity.h"
#include "evaluate/token_windows.h"
#include "kernels/numerics/bf16.h"
#include "kernels/ops/block_formats.h"
#include "model/checkpoint_test_files.h"
#include "model/safetensors.h"
#include "model/safetensors_writer.h"
#include "model/tokenizer.h"

namespace verbatim::upcycle {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

const char kGguf[] = "tests/fixtures/reference/gguf_llama_q4_1.gguf";
const char kDirectory[] = "tests/fixtures/reference/hf_llama_mha";
constexpr int64_t kHidden = 64, kNeurons = 160, kLayers = 2;  // of kGguf

class UpcycleTest : public ::testing::Test {
 protected:
  std::string Path(const std::string& name) const { return folder_.path() + "/" + name; }

  UpcycleOptions Options(const std::string& name) const {
    UpcycleOptions options;
    options.model = kGguf;
    options.output = Path(name);
    options.calibration_texts = {"LICENSE"};
    options.calibration_tokens = 512;
    options.window_tokens = 32;
    options.keep = 0.8;
    options.threads = 1;
    return options;
  }
  static void Make(const UpcycleOptions& options) {
    const auto result = Upcycle(options);
    ASSERT_TRUE(result.ok()) << result.status();
  }
  static std::map<std::string, std::string> FilesOf(const std::string& directory) {
    std::map<std::string, std::string> files;
    for (const auto& entry : fs::directory_iterator(directory)) {
      files[entry.path().filename().string()] = *evaluate::ReadText(entry.path().string());
    }
    return files;
  }
  static nlohmann::json Json(const std::string& path) {
    return nlohmann::json::parse(*evaluate::ReadText(path));
  }

  model::testing::TemporaryDirectory folder_;
};

TEST_F(UpcycleTest, WritesAMixtralModel) {
  Make(Options("moe"));
  const nlohmann::json config = Json(Path("moe/config.json"));
  EXPECT_EQ(config["architectures"][0], "MixtralForCausalLM");
  EXPECT_EQ(config["num_local_experts"], 4);
  EXPECT_EQ(config["num_experts_per_tok"], 2);
  EXPECT_EQ(config["hidden_size"], kHidden);
  EXPECT_EQ(config["intermediate_size"], 128);
  EXPECT_EQ(config["num_hidden_layers"], kLayers);
  EXPECT_EQ(config["tie_word_embeddings"], true);
  const auto file = model::SafetensorsFile::Open(Path("moe/model.safetensors"));
  ASSERT_TRUE(file.ok()) << file.status();
  const auto shape = [&](const std::string& name) {
    const auto it = (*file)->tensors().find(name);
    if (it == (*file)->tensors().end()) return std::vector<int64_t>{-1};
    EXPECT_EQ(it->second.dtype, kernels::DType::kBF16) << name;
    return it->second.shape;
  };
  for (const std::string layer : {"model.layers.0.", "model.layers.1."}) {
    EXPECT_THAT(shape(layer + "block_sparse_moe.gate.weight"), ElementsAre(4, kHidden));
    for (int e = 0; e < 4; ++e) {
      const std::string expert = layer + "block_sparse_moe.experts." + std::to_string(e);
      EXPECT_THAT(shape(expert + ".w1.weight"), ElementsAre(128, kHidden));
      EXPECT_THAT(shape(expert + ".w2.weight"), ElementsAre(kHidden, 128));
      EXPECT_THAT(shape(expert + ".w3.weight"), ElementsAre(128, kHidden));
    }
    EXPECT_THAT(shape(layer + "self_attn.q_proj.weight"), ElementsAre(64, kHidden));
    EXPECT_THAT(shape(layer + "self_attn.k_proj.weight"), ElementsAre(32, kHidden));
    EXPECT_THAT(shape(layer + "post_attention_layernorm.weight"), ElementsAre(kHidden));
  }
  // Embedding and final norm, and for each layer 6 dense tensors, the router and 4 experts of 3.
  EXPECT_EQ((*file)->tensors().size(), 2u + kLayers * (6 + 1 + 12));
}

TEST_F(UpcycleTest, SaysWhatItIsAndWhereItComesFrom) {
  Make(Options("moe"));
  const auto parent = model::Checkpoint::Open(kGguf);
  ASSERT_TRUE(parent.ok());
  const std::string fingerprint = (*parent)->WeightsFingerprint();
  const std::string readme = *evaluate::ReadText(Path("moe/README.md"));
  EXPECT_THAT(readme, HasSubstr("derived, not trained"));
  EXPECT_THAT(readme, HasSubstr(fingerprint));
  EXPECT_THAT(readme, HasSubstr("--seed 1"));
  const nlohmann::json record = Json(Path("moe/upcycle.json"));
  EXPECT_EQ(record["derived_not_trained"], true);
  EXPECT_EQ(record["parent"]["weights_sha256"], fingerprint);
  EXPECT_EQ(record["calibration_tokens"], 512);
  for (const nlohmann::json& layer : record["calibration_rows_by_first_expert"]) {
    int64_t rows = 0;
    for (const nlohmann::json& count : layer) rows += count.get<int64_t>();
    EXPECT_EQ(rows, 512);
  }
  EXPECT_GT(record["mean_relative_difference_between_experts"], 0.1);
  const auto file = model::SafetensorsFile::Open(Path("moe/model.safetensors"));
  ASSERT_TRUE(file.ok());
  EXPECT_EQ((*file)->metadata().at("upcycled_from_sha256"), fingerprint);
  // No folder of this machine.
  for (const auto& [name, content] : FilesOf(Path("moe"))) {
    EXPECT_EQ(content.find(folder_.path()), std::string::npos) << name;
    EXPECT_EQ(content.find("tests/fixtures"), std::string::npos) << name;
  }
}

TEST_F(UpcycleTest, TheBytesFollowFromParentAndOptions) {
  Make(Options("first"));
  UpcycleOptions threads = Options("second");
  threads.threads = 3;
  Make(threads);
  const auto first = FilesOf(Path("first"));
  ASSERT_EQ(first.size(), 7u);
  EXPECT_TRUE(first == FilesOf(Path("second")));

  for (const char* what : {"seed", "noise", "keep", "first-share", "text"}) {
    UpcycleOptions other = Options(what);
    if (what == std::string("seed")) other.seed = 2;
    if (what == std::string("noise")) other.noise = 0.05;
    if (what == std::string("keep")) other.keep = 0.6;
    if (what == std::string("first-share")) other.first_share = 0.7;
    if (what == std::string("text")) other.calibration_texts = {"CMakeLists.txt"};
    Make(other);
    EXPECT_FALSE(FilesOf(other.output)["model.safetensors"] == first.at("model.safetensors"))
        << what;
  }
}

TEST_F(UpcycleTest, ExactCopiesAreTheParentInBf16) {
  UpcycleOptions options = Options("copy");
  options.keep = 1;
  options.noise = 0;
  Make(options);
  const auto parent = model::Checkpoint::Open(kGguf);
  const auto file = model::SafetensorsFile::Open(Path("copy/model.safetensors"));
  ASSERT_TRUE(parent.ok() && file.ok());
  const std::map<std::string, std::string> names = {{"w1", "gate"}, {"w2", "down"}, {"w3", "up"}};
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    for (const auto& [mixtral, canonical] : names) {
      const auto matrix = (*parent)->Matrix("layers." + std::to_string(layer) + "." + canonical);
      ASSERT_TRUE(matrix.ok());
      ASSERT_EQ(matrix->rows * matrix->cols, kNeurons * kHidden);
      for (int e = 0; e < 4; ++e) {
        const model::SafetensorsTensor& tensor = (*file)->tensors().at(
            "model.layers." + std::to_string(layer) + ".block_sparse_moe.experts." +
            std::to_string(e) + "." + mixtral + ".weight");
        std::vector<float> row(matrix->cols);
        for (int64_t r = 0; r < matrix->rows; ++r) {
          kernels::DecodeRow(matrix->dtype, matrix->data + r * matrix->row_bytes(), matrix->cols,
                             row.data());
          for (int64_t c = 0; c < matrix->cols; ++c) {
            uint16_t bits;
            std::memcpy(&bits, tensor.data + 2 * (r * matrix->cols + c), 2);
            ASSERT_EQ(bits, numerics::Bf16FromFloat(row[c])) << mixtral << " " << r << "," << c;
          }
        }
      }
    }
  }
  EXPECT_EQ(Json(Path("copy/upcycle.json"))["mean_relative_difference_between_experts"], 0.0);
}

// One expert of an exact copy, put back into a dense model, predicts as the parent does: the names,
// the norms and the order of the rotated rows are right.
TEST_F(UpcycleTest, APartOfAnExactCopyIsTheParent) {
  for (const char* parent_path : {"tests/fixtures/reference/gguf_llama_bf16.gguf", kDirectory}) {
    UpcycleOptions options = Options("copy");
    options.model = parent_path;
    options.keep = 1;
    options.noise = 0;
    options.overwrite = true;
    Make(options);
    const auto file = model::SafetensorsFile::Open(Path("copy/model.safetensors"));
    ASSERT_TRUE(file.ok());
    std::vector<model::SafetensorsEntry> entries;
    std::vector<const model::SafetensorsTensor*> tensors;
    for (const auto& [name, tensor] : (*file)->tensors()) {
      std::string dense = name;
      const size_t moe = name.find("block_sparse_moe.");
      if (moe != std::string::npos) {
        const std::string part = name.substr(moe + std::strlen("block_sparse_moe."));
        if (part == "experts.2.w1.weight") dense = name.substr(0, moe) + "mlp.gate_proj.weight";
        if (part == "experts.2.w2.weight") dense = name.substr(0, moe) + "mlp.down_proj.weight";
        if (part == "experts.2.w3.weight") dense = name.substr(0, moe) + "mlp.up_proj.weight";
        if (dense == name) continue;
      }
      entries.push_back({dense, tensor.dtype, tensor.shape});
      tensors.push_back(&tensor);
    }
    fs::create_directory(Path("dense"));
    auto writer = model::SafetensorsWriter::Create(Path("dense/model.safetensors"), entries, {});
    ASSERT_TRUE(writer.ok()) << writer.status();
    for (size_t i = 0; i < entries.size(); ++i) {
      ASSERT_TRUE(
          (*writer)->Append(entries[i].name, tensors[i]->data, tensors[i]->size_bytes).ok());
    }
    ASSERT_TRUE((*writer)->Finish().ok());
    nlohmann::json config = Json(Path("copy/config.json"));
    config["architectures"] = {"LlamaForCausalLM"};
    config["model_type"] = "llama";
    std::ofstream(Path("dense/config.json")) << config.dump();

    const auto parent = model::Checkpoint::Open(parent_path);
    const auto dense = model::Checkpoint::Open(Path("dense"));
    ASSERT_TRUE(parent.ok() && dense.ok()) << dense.status();
    EXPECT_EQ((*dense)->config().eos_ids.empty(), false);
    std::vector<std::vector<int32_t>> windows(4);
    for (size_t i = 0; i < windows.size() * 32; ++i) {
      windows[i / 32].push_back(static_cast<int32_t>((i * i * 7 + 3 * i) % 280));
    }
    evaluate::PerplexityOptions measure;
    measure.window_tokens = 32;
    const auto of_parent = evaluate::MeasurePerplexity(**parent, windows, measure);
    const auto of_copy = evaluate::MeasurePerplexity(**dense, windows, measure);
    ASSERT_TRUE(of_parent.ok() && of_copy.ok());
    for (size_t w = 0; w < windows.size(); ++w) {
      // bf16 rounds a weight by at most 2^-9 of it. Wrong rows move this by 0.2 and more.
      EXPECT_NEAR(of_copy->window_nll[w], of_parent->window_nll[w], 0.03) << parent_path;
    }
    fs::remove_all(Path("dense"));
  }
}

// Experts that are copies, whose weights sum to 1, compute what the dense model computes.
TEST_F(UpcycleTest, AMixtureOfExactCopiesPredictsAsItsParent) {
  UpcycleOptions options = Options("copy");
  options.keep = 1;
  options.noise = 0;
  Make(options);
  const auto parent = model::Checkpoint::Open(kGguf), copy = model::Checkpoint::Open(Path("copy"));
  ASSERT_TRUE(parent.ok() && copy.ok()) << copy.status();
  EXPECT_EQ((*copy)->config().moe.num_experts, 4);
  EXPECT_EQ((*copy)->config().moe.experts_per_token, 2);
  std::vector<std::vector<int32_t>> windows(4);
  for (size_t i = 0; i < windows.size() * 32; ++i) {
    windows[i / 32].push_back(static_cast<int32_t>((i * i * 7 + 3 * i) % 280));
  }
  evaluate::PerplexityOptions measure;
  measure.window_tokens = 32;
  const auto of_parent = evaluate::MeasurePerplexity(**parent, windows, measure);
  const auto of_copy = evaluate::MeasurePerplexity(**copy, windows, measure);
  ASSERT_TRUE(of_parent.ok() && of_copy.ok()) << of_copy.status();
  for (size_t w = 0; w < windows.size(); ++w) {
    // bf16 rounds a weight by at most 2^-9 of it.
    EXPECT_NEAR(of_copy->window_nll[w], of_parent->window_nll[w], 0.03);
  }
}

TEST_F(UpcycleTest, TheTokenizerIsTheParents) {
  Make(Options("moe"));
  const auto tokenizer = model::Tokenizer::FromJsonFile(Path("moe/tokenizer.json"));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto parent = model::Checkpoint::Open(kGguf);
  const auto original = (*parent)->LoadTokenizer();
  ASSERT_TRUE(original.ok());
  EXPECT_EQ((*tokenizer)->fingerprint(), (*original)->fingerprint());
  EXPECT_EQ((*tokenizer)->chat_template(), (*original)->chat_template());

  UpcycleOptions options = Options("directory");
  options.model = kDirectory;
  Make(options);
  for (const char* name : {"/tokenizer.json", "/tokenizer_config.json"}) {
    EXPECT_EQ(*evaluate::ReadText(options.output + name),
              *evaluate::ReadText(kDirectory + std::string(name)));
  }
}

TEST_F(UpcycleTest, OptionsAreRefusedByName) {
  const auto refusal = [&](const std::function<void(UpcycleOptions&)>& change) {
    UpcycleOptions options = Options("never");
    change(options);
    const absl::Status status = Upcycle(options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_FALSE(fs::exists(Path("never")));
    EXPECT_FALSE(fs::exists(Path("never.partial")));
    return std::string(status.message());
  };
  using O = UpcycleOptions;
  EXPECT_THAT(refusal([](O& o) { o.num_experts = 1; }), HasSubstr("--experts: 1"));
  EXPECT_THAT(refusal([](O& o) { o.num_experts = 65; }), HasSubstr("--experts: 65"));
  EXPECT_THAT(refusal([](O& o) { o.experts_per_token = 5; }), HasSubstr("--experts-per-token: 5"));
  EXPECT_THAT(refusal([](O& o) { o.experts_per_token = 0; }), HasSubstr("--experts-per-token: 0"));
  EXPECT_THAT(refusal([](O& o) { o.keep = 0; }), HasSubstr("--keep"));
  EXPECT_THAT(refusal([](O& o) { o.keep = std::nan(""); }), HasSubstr("--keep"));
  EXPECT_THAT(refusal([](O& o) { o.noise = -1; }), HasSubstr("--noise"));
  EXPECT_THAT(refusal([](O& o) { o.first_share = 1; }), HasSubstr("--first-share"));
  EXPECT_THAT(refusal([](O& o) { o.calibration_texts = {}; }), HasSubstr("--calibration-text"));
  EXPECT_THAT(refusal([](O& o) { o.calibration_tokens = 31; }), HasSubstr("--calibration-tokens"));
  EXPECT_THAT(refusal([](O& o) { o.window_tokens = 1; }), HasSubstr("--window"));
  EXPECT_THAT(refusal([](O& o) { o.threads = -1; }), HasSubstr("--threads"));
  // Windows longer than the model's positions.
  EXPECT_THAT(refusal([](O& o) { o.window_tokens = o.calibration_tokens = 4096; }),
              HasSubstr("4096"));
}

TEST_F(UpcycleTest, ParentsAndPlacesAreRefusedByName) {
  UpcycleOptions options = Options("moe");
  options.model = "tests/fixtures/reference/gguf_qwen2_q4_1.gguf";
  EXPECT_EQ(Upcycle(options).status().code(), absl::StatusCode::kUnimplemented);
  options.model = "tests/fixtures/reference/gguf_llama3_rope_freqs.gguf";
  EXPECT_THAT(std::string(Upcycle(options).status().message()), HasSubstr("rope_freqs"));
  options.model = "no/such.gguf";
  EXPECT_EQ(Upcycle(options).status().code(), absl::StatusCode::kNotFound);
  options = Options("moe");
  options.calibration_texts = {"no/such.txt"};
  EXPECT_EQ(Upcycle(options).status().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(fs::is_empty(folder_.path()));

  Make(Options("moe"));
  EXPECT_EQ(Upcycle(Options("moe")).status().code(), absl::StatusCode::kAlreadyExists);
  options = Options("moe");
  options.overwrite = true;
  options.seed = 9;
  Make(options);
  EXPECT_EQ(Json(Path("moe/upcycle.json"))["seed"], 9);
  // A mixture of experts is no parent.
  options = Options("again");
  options.model = Path("moe");
  EXPECT_EQ(Upcycle(options).status().code(), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace verbatim::upcycle
