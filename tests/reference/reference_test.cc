// Compares the forward pass with float64 references from Hugging Face transformers: logits within a
// derived tolerance, greedy continuations token for token.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/reference/forward_runner.h"
#include "tests/reference/reference_fixture.h"

namespace verbatim::testing {
namespace {

using kernels::ActivationType;
using kernels::NumericMode;
using kernels::Policy;

constexpr char kFolder[] = "tests/fixtures/reference";

// How the prompts of a fixture meet the model; answers must not depend on it beyond rounding.
struct RunSetup {
  const char* name;
  NumericMode mode;
  int64_t chunk_tokens;  // 0: a prompt in one step
  bool together;         // all prompts in the same batch
};

const RunSetup kSetups[] = {
    {"portable", {.policy = Policy::kPortable}, 0, false},
    {"pinned, chunks of 37", {.policy = Policy::kPinned}, 37, true},
    {"throughput fp32, one batch", {.policy = Policy::kThroughput}, 0, true},
    {"throughput fp32, chunks of 64", {.policy = Policy::kThroughput}, 64, false},
};

ReferenceManifest Manifest() {
  absl::StatusOr<ReferenceManifest> manifest = LoadReferenceManifest(kFolder);
  return manifest.ok() ? *manifest : ReferenceManifest{};
}

bool Exists(const std::string& path) { return std::ifstream(path).good(); }

double LogSumExp(const LogitRow& row) {
  const double max = *std::max_element(row.begin(), row.end());
  double sum = 0;
  for (float x : row) sum += std::exp(x - max);
  return max + std::log(sum);
}

int32_t ArgMax(const LogitRow& row) {
  return static_cast<int32_t>(std::max_element(row.begin(), row.end()) - row.begin());
}

struct Figures {
  double max_over_tolerance = 0;
  double max_error = 0;
  double sum_of_squares = 0;
  int64_t values = 0;
  double rms() const { return std::sqrt(sum_of_squares / std::max<int64_t>(values, 1)); }
};

class ReferenceTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    manifest_ = Manifest();
    absl::StatusOr<ReferenceFixture> fixture = LoadReferenceFixture(kFolder, GetParam());
    ASSERT_TRUE(fixture.ok()) << fixture.status();
    fixture_ = *fixture;
    if (fixture_.checkpoint.rfind(kFolder, 0) != 0 && !Exists(fixture_.checkpoint)) {
      GTEST_SKIP() << fixture_.checkpoint << " is not there; scripts/setup.sh fetches it";
    }
    int64_t longest = 0;
    for (const PromptReference& p : fixture_.prompts) {
      longest = std::max<int64_t>(longest, p.ids.size());
    }
    for (const GreedyReference& g : fixture_.greedy) {
      longest = std::max<int64_t>(longest, fixture_.prompts[g.prompt].ids.size() + g.tokens.size());
    }
    absl::StatusOr<std::unique_ptr<ForwardRunner>> runner =
        ForwardRunner::Create(fixture_.checkpoint, longest, fixture_.prompts.size());
    ASSERT_TRUE(runner.ok()) << runner.status();
    runner_ = *std::move(runner);
    ASSERT_EQ(runner_->config().vocab_size, fixture_.vocab_size);
  }

  // A logit's tolerance is manifest_.tolerance_factor times this.
  static const std::vector<double>& Sigma(const auto& reference, const NumericMode& mode) {
    return kernels::IsStrong(mode.policy) ? reference.sigma_tree : reference.sigma_fold;
  }

  // rows[s] belongs to fixture_.prompts[s].
  absl::StatusOr<std::vector<std::vector<LogitRow>>> RunPrompts(const RunSetup& run) {
    std::vector<ForwardSequence> sequences;
    for (const PromptReference& p : fixture_.prompts) sequences.push_back({p.ids, p.positions});
    if (run.together) return runner_->Prefill(sequences, run.mode, run.chunk_tokens);
    std::vector<std::vector<LogitRow>> rows;
    for (const ForwardSequence& s : sequences) {
      absl::StatusOr<std::vector<std::vector<LogitRow>>> one =
          runner_->Prefill({s}, run.mode, run.chunk_tokens);
      if (!one.ok()) return one.status();
      rows.push_back(std::move(one->at(0)));
    }
    return rows;
  }

  ReferenceManifest manifest_;
  ReferenceFixture fixture_;
  std::unique_ptr<ForwardRunner> runner_;
};

// Adds a difference to the figures; returns false when it is outside the tolerance.
bool Count(double actual, double expected, double tolerance, Figures& figures) {
  const double error = std::abs(actual - expected);
  figures.max_error = std::max(figures.max_error, error);
  figures.max_over_tolerance = std::max(figures.max_over_tolerance, error / tolerance);
  figures.sum_of_squares += error * error;
  ++figures.values;
  return error <= tolerance;  // false for NaN
}

TEST_P(ReferenceTest, LogitsAreWithinTheDerivedTolerance) {
  for (const RunSetup& run : kSetups) {
    if (runner_->RoundsInputs(run.mode)) continue;
    SCOPED_TRACE(run.name);
    absl::StatusOr<std::vector<std::vector<LogitRow>>> rows = RunPrompts(run);
    ASSERT_TRUE(rows.ok()) << rows.status();
    Figures figures;
    for (size_t s = 0; s < fixture_.prompts.size(); ++s) {
      const PromptReference& p = fixture_.prompts[s];
      ASSERT_EQ((*rows)[s].size(), p.positions.size());
      for (size_t i = 0; i < p.positions.size(); ++i) {
        const LogitRow& row = (*rows)[s][i];
        const double tolerance = manifest_.tolerance_factor * Sigma(p, run.mode)[i];
        const auto where = [&](int32_t column) {
          return p.name + ", position " + std::to_string(p.positions[i]) + ", column " +
                 std::to_string(column);
        };
        for (size_t c = 0; c < p.columns.size(); ++c) {
          const int32_t column = p.columns[c];
          ASSERT_TRUE(Count(row[column], p.logits[i][c], tolerance, figures))
              << where(column) << ": " << row[column] << ", reference " << p.logits[i][c]
              << ", tolerance " << tolerance;
        }
        for (size_t t = 0; t < p.top_ids[i].size(); ++t) {
          const int32_t column = p.top_ids[i][t];
          ASSERT_TRUE(Count(row[column], p.top_logits[i][t], tolerance, figures))
              << where(column) << ": " << row[column] << ", reference " << p.top_logits[i][t]
              << ", tolerance " << tolerance;
        }
        // Touches every column: it cannot move by more than the largest error of a logit.
        ASSERT_NEAR(LogSumExp(row), p.log_sum_exp[i], tolerance) << where(-1);
      }
    }
    std::printf(
        "%s, %s: error at most %.3f of the tolerance, max %.3g, rms %.3g over %lld values\n",
        fixture_.name.c_str(), run.name, figures.max_over_tolerance, figures.max_error,
        figures.rms(), static_cast<long long>(figures.values));
  }
}

TEST_P(ReferenceTest, GreedyContinuationsAreEqual) {
  for (const RunSetup& run : {kSetups[0], kSetups[2]}) {
    SCOPED_TRACE(run.name);
    int64_t near_ties = 0, tokens = 0;
    for (const GreedyReference& g : fixture_.greedy) {
      const std::vector<int32_t>& ids = fixture_.prompts[g.prompt].ids;
      const int32_t last = static_cast<int32_t>(ids.size()) - 1;
      absl::StatusOr<std::vector<std::vector<LogitRow>>> prefilled =
          runner_->Prefill({{ids, {last}}}, run.mode, run.chunk_tokens);
      ASSERT_TRUE(prefilled.ok()) << prefilled.status();
      LogitRow row = prefilled->at(0).at(0);
      for (size_t step = 0; step < g.tokens.size(); ++step, ++tokens) {
        const int32_t token = ArgMax(row);
        if (token != g.tokens[step]) {
          // Two logits, each within the tolerance, may change places only if they were this close.
          const double closest = 2 * manifest_.tolerance_factor * Sigma(g, run.mode)[step];
          ASSERT_LE(g.margins[step], closest)
              << "prompt " << g.prompt << ", step " << step << ": token " << token << ", reference "
              << g.tokens[step];
          std::printf("%s, %s: near tie at prompt %lld, step %zu: %d for %d, margin %.3g\n",
                      fixture_.name.c_str(), run.name, static_cast<long long>(g.prompt), step,
                      token, g.tokens[step], g.margins[step]);
          ++near_ties;
        }
        if (step + 1 == g.tokens.size()) break;
        // Goes on with the reference's token, so that later steps stay comparable.
        absl::StatusOr<LogitRow> next =
            runner_->Decode(g.tokens[step], last + 1 + static_cast<int32_t>(step), run.mode);
        ASSERT_TRUE(next.ok()) << next.status();
        row = *std::move(next);
      }
    }
    std::printf("%s, %s: %lld tokens, %lld near ties\n", fixture_.name.c_str(), run.name,
                static_cast<long long>(tokens), static_cast<long long>(near_ties));
  }
}

// Inputs rounded to bf16 have no derived tolerance; the error must be of the size that the
// reference saw when it rounded the same values. PINNED keeps the residual stream in fp32 and errs
// less.
TEST_P(ReferenceTest, Bf16InputsErrAsMuchAsExpected) {
  const RunSetup setups[] = {
      {"pinned, chunks of 37", {.policy = Policy::kPinned}, 37, true},
      {"throughput bf16",
       {.policy = Policy::kThroughput, .activations = ActivationType::kBF16},
       0,
       true},
  };
  for (const RunSetup& run : setups) {
    if (!runner_->RoundsInputs(run.mode)) continue;
    SCOPED_TRACE(run.name);
    absl::StatusOr<std::vector<std::vector<LogitRow>>> rows = RunPrompts(run);
    ASSERT_TRUE(rows.ok()) << rows.status();
    Figures figures;
    // A prompt in which the reference's rounding changed an expert errs far more than the others.
    double expected = 0, least = std::numeric_limits<double>::infinity();
    for (size_t s = 0; s < fixture_.prompts.size(); ++s) {
      const PromptReference& p = fixture_.prompts[s];
      expected = std::max(expected, p.bf16_activations_rms);
      least = std::min(least, p.bf16_activations_rms);
      for (size_t i = 0; i < p.positions.size(); ++i) {
        for (size_t c = 0; c < p.columns.size(); ++c) {
          Count((*rows)[s][i][p.columns[c]], p.logits[i][c], 1.0, figures);
        }
      }
    }
    std::printf("%s, %s: rms error %.3g, reference saw up to %.3g\n", fixture_.name.c_str(),
                run.name, figures.rms(), expected);
    EXPECT_LE(figures.rms(), run.mode.policy == Policy::kPinned ? expected : 3 * expected);
    // Weights kept as F32 or F16 are multiplied in fp32 by PINNED.
    if (run.mode.policy == Policy::kThroughput) {
      EXPECT_GE(figures.rms(), least / 30) << "activations are not rounded";
    }
  }
}

std::string TestName(const ::testing::TestParamInfo<std::string>& info) {
  return info.param.substr(0, info.param.find('.'));
}

INSTANTIATE_TEST_SUITE_P(Fixtures, ReferenceTest, ::testing::ValuesIn(Manifest().fixtures),
                         TestName);

// The files beside the weights load too: prompts have the ids that Hugging Face tokenizers gave.
TEST_P(ReferenceTest, TokenizerGivesThePromptsIds) {
  absl::StatusOr<std::unique_ptr<model::Tokenizer>> tokenizer =
      runner_->checkpoint().LoadTokenizer();
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->vocab_size(), fixture_.vocab_size);
  for (const PromptReference& p : fixture_.prompts) {
    if (p.text.empty()) continue;
    absl::StatusOr<std::vector<int32_t>> ids = (*tokenizer)->Encode(p.text, {});
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, p.ids) << p.name;
  }
}

// The tolerance is narrow enough to see small mistakes in the arithmetic.
struct Mistake {
  const char* name;
  const char* fixture;
  void (*alter)(model::ModelConfig&);
};

class MistakeTest : public ::testing::TestWithParam<Mistake> {};

TEST_P(MistakeTest, IsOutsideTheTolerance) {
  absl::StatusOr<ReferenceFixture> fixture = LoadReferenceFixture(kFolder, GetParam().fixture);
  ASSERT_TRUE(fixture.ok()) << fixture.status();
  absl::StatusOr<std::unique_ptr<ForwardRunner>> runner =
      ForwardRunner::CreateAltered(fixture->checkpoint, 300, 1, GetParam().alter);
  ASSERT_TRUE(runner.ok()) << runner.status();
  Figures figures;
  for (const PromptReference& p : fixture->prompts) {
    absl::StatusOr<std::vector<std::vector<LogitRow>>> rows =
        (*runner)->Prefill({{p.ids, p.positions}}, kSetups[0].mode, 0);
    ASSERT_TRUE(rows.ok()) << rows.status();
    for (size_t i = 0; i < p.positions.size(); ++i) {
      for (size_t c = 0; c < p.columns.size(); ++c) {
        Count(rows->at(0)[i][p.columns[c]], p.logits[i][c],
              Manifest().tolerance_factor * p.sigma_tree[i], figures);
      }
    }
  }
  std::printf("%s: error %.3g of the tolerance\n", GetParam().name, figures.max_over_tolerance);
  EXPECT_GT(figures.max_over_tolerance, 1);
}

const Mistake kMistakes[] = {
    {"epsilon_larger_by_a_fifth", "hf_llama_linear.ref.json",
     [](model::ModelConfig& c) { c.rms_norm_eps *= 1.2; }},
    {"epsilon_1e_5_for_1e_6", "hf_qwen3.ref.json",
     [](model::ModelConfig& c) { c.rms_norm_eps = 1e-5; }},
    {"theta_larger_by_a_hundred_thousandth", "hf_llama_mha.ref.json",
     [](model::ModelConfig& c) { c.rope_theta *= 1.00001; }},
    {"no_linear_scaling", "hf_llama_linear.ref.json",
     [](model::ModelConfig& c) { c.rope_scaling.kind = model::RopeScaling::Kind::kNone; }},
    {"no_llama3_scaling", "hf_llama3.ref.json",
     [](model::ModelConfig& c) { c.rope_scaling.kind = model::RopeScaling::Kind::kNone; }},
    {"llama3_high_frequency_factor", "hf_llama3.ref.json",
     [](model::ModelConfig& c) { c.rope_scaling.high_freq_factor *= 1.001; }},
    {"no_frequency_factors", "gguf_llama3_rope_freqs.ref.json",
     [](model::ModelConfig& c) { c.rope_freq_factors.clear(); }},
    {"wrong_rotary_pairs", "gguf_llama_q4_1.ref.json",
     [](model::ModelConfig& c) { c.rope_interleaved = !c.rope_interleaved; }},
    {"no_bias", "hf_qwen2.ref.json", [](model::ModelConfig& c) { c.qkv_bias = false; }},
    {"no_query_and_key_norm", "hf_qwen3.ref.json",
     [](model::ModelConfig& c) { c.qk_norm = model::QkNorm::kNone; }},
    {"mixtral_weights_over_all_experts", "hf_mixtral.ref.json",
     [](model::ModelConfig& c) { c.moe.normalise = false; }},
    {"olmoe_weights_over_chosen_experts", "hf_olmoe.ref.json",
     [](model::ModelConfig& c) { c.moe.normalise = true; }},
    {"qwen2moe_weights_over_chosen_experts", "hf_qwen2moe.ref.json",
     [](model::ModelConfig& c) { c.moe.normalise = true; }},
    {"one_expert_less", "gguf_mixtral_q4_1.ref.json",
     [](model::ModelConfig& c) { --c.moe.experts_per_token; }},
    {"one_expert_more", "hf_qwen3moe.ref.json",
     [](model::ModelConfig& c) { ++c.moe.experts_per_token; }},
    {"expert_weights_larger_by_a_ten_thousandth", "hf_mixtral.ref.json",
     [](model::ModelConfig& c) { c.moe.scale = 1.0001; }},
    {"shared_expert_without_its_gate", "gguf_qwen2moe_q8_0.ref.json",
     [](model::ModelConfig& c) { c.moe.shared_gate = false; }},
    {"no_shared_expert", "hf_granitemoeshared.ref.json",
     [](model::ModelConfig& c) { c.moe.shared_intermediate_size = 0; }},
    {"norm_over_each_head_for_all_heads", "hf_olmoe.ref.json",
     [](model::ModelConfig& c) { c.qk_norm = model::QkNorm::kHead; }},
    {"granite_embedding_multiplier", "hf_granitemoe.ref.json",
     [](model::ModelConfig& c) { c.embedding_multiplier *= 1.0001; }},
    {"granite_attention_multiplier", "hf_granitemoe.ref.json",
     [](model::ModelConfig& c) { c.attention_multiplier *= 1.0001; }},
    {"granite_residual_multiplier", "hf_granitemoe.ref.json",
     [](model::ModelConfig& c) { c.residual_multiplier *= 1.0001; }},
    {"granite_logits_scaling", "hf_granitemoe.ref.json",
     [](model::ModelConfig& c) { c.logits_scaling *= 1.0001; }},
};

INSTANTIATE_TEST_SUITE_P(Mistakes, MistakeTest, ::testing::ValuesIn(kMistakes),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(ReferenceManifestTest, ListsFixtures) {
  absl::StatusOr<ReferenceManifest> manifest = LoadReferenceManifest(kFolder);
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  EXPECT_GT(manifest->tolerance_factor, 0);
  EXPECT_GE(manifest->fixtures.size(), 28u);
  EXPECT_FALSE(LoadReferenceFixture(kFolder, "absent.ref.json").ok());
}

}  // namespace
}  // namespace verbatim::testing
