// Logits of one, two and four ranks, each a thread with a backend of its own: the same bits under
// both strong policies, for prompts in chunks and for decode steps.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "conformance/synthetic_model.h"
#include "kernels/cpu/cpu_backend.h"
#include "model/checkpoint.h"
#include "model/step_announcement.h"
#include "model/transformer.h"
#include "parallel/thread_communicator.h"

namespace verbatim::model {
namespace {

using kernels::NumericMode;
using kernels::Policy;
using Rows = std::vector<std::vector<float>>;

constexpr int64_t kPageTokens = 16, kPages = 32;

// A rank's backend, weights and cache.
struct Rank {
  std::unique_ptr<kernels::Backend> backend;
  std::unique_ptr<Transformer> transformer;
  std::unique_ptr<kernels::KvCache> cache;
};

absl::StatusOr<Rank> MakeRank(const Checkpoint& checkpoint, parallel::Communicator* communicator) {
  Rank rank;
  rank.backend = *kernels::cpu::CpuBackend::Create({.threads = 1});
  auto transformer = Transformer::Load(*rank.backend, checkpoint,
                                       {.max_batch_rows = 256,
                                        .max_logit_rows = 8,
                                        .max_model_len = 256,
                                        .communicator = communicator});
  if (!transformer.ok()) return transformer.status();
  rank.transformer = *std::move(transformer);
  auto cache = rank.backend->CreateKvCache({.num_layers = checkpoint.config().num_layers,
                                            .num_kv_heads = rank.transformer->num_kv_heads(),
                                            .head_dim = checkpoint.config().head_dim,
                                            .page_tokens = kPageTokens,
                                            .num_pages = kPages});
  if (!cache.ok()) return cache.status();
  rank.cache = *std::move(cache);
  std::vector<int32_t> all(kPages);
  for (int32_t i = 0; i < kPages; ++i) all[i] = i;
  absl::Status poisoned = rank.cache->Poison(all);
  if (!poisoned.ok()) return poisoned;
  return rank;
}

// Prompts of 150 and 7 tokens in chunks of `chunk`, then three decode steps of both together; the
// logits of each step's last rows.
absl::StatusOr<Rows> Generate(Rank& rank, const NumericMode& mode, int32_t chunk) {
  std::mt19937 rng(3);
  const int64_t vocab = rank.transformer->config().vocab_size;
  std::vector<std::vector<int32_t>> pages(2);
  for (int32_t i = 0; i < kPages; ++i) pages[i % 2].push_back((i * 7 + 3) % kPages);
  std::vector<std::vector<int32_t>> tokens(2);
  for (int i = 0; i < 153; ++i) tokens[0].push_back(static_cast<int32_t>(rng() % vocab));
  for (int i = 0; i < 10; ++i) tokens[1].push_back(static_cast<int32_t>(rng() % vocab));
  const int32_t prompts[] = {150, 7};
  int32_t done[] = {0, 0};
  Rows out;
  while (done[0] < 153 || done[1] < 10) {
    ForwardBatch batch;
    std::vector<int32_t> last;
    const bool prefilled = done[0] >= prompts[0] && done[1] >= prompts[1];
    for (int s = 0; s < 2; ++s) {
      const int32_t left = static_cast<int32_t>(tokens[s].size()) - done[s];
      const bool decoding = done[s] >= prompts[s];
      if (left == 0 || (decoding && !prefilled)) continue;
      const int32_t count = decoding ? 1 : std::min(chunk, prompts[s] - done[s]);
      batch.spans.push_back({.first_row = static_cast<int32_t>(batch.rows()),
                             .num_rows = count,
                             .first_position = done[s],
                             .pages = pages[s].data(),
                             .num_pages = static_cast<int32_t>(pages[s].size())});
      for (int32_t i = 0; i < count; ++i) {
        batch.tokens.push_back(tokens[s][done[s]]);
        batch.positions.push_back(done[s]++);
      }
      last.push_back(static_cast<int32_t>(batch.rows()) - 1);
    }
    absl::Status status = rank.transformer->Forward(batch, mode, *rank.cache);
    if (!status.ok()) return status;
    auto logits = rank.transformer->ComputeLogits(last, mode);
    if (!logits.ok()) return logits.status();
    for (size_t i = 0; i < last.size(); ++i) {
      out.emplace_back(*logits + i * vocab, *logits + (i + 1) * vocab);
    }
  }
  return out;
}

// The same by several ranks.
absl::StatusOr<Rows> GenerateOnRanks(const Checkpoint& checkpoint, int degree,
                                     const NumericMode& mode, int32_t chunk) {
  auto communicators = parallel::MakeThreadCommunicators(degree);
  std::vector<std::thread> followers;
  for (int r = 1; r < degree; ++r) {
    followers.emplace_back([&, r] {
      auto rank = MakeRank(checkpoint, communicators[r].get());
      if (!rank.ok()) return communicators[r]->Abort(rank.status());
      FollowSteps(*rank->transformer, *rank->cache, *communicators[r]).IgnoreError();
    });
  }
  absl::StatusOr<Rows> rows = [&]() -> absl::StatusOr<Rows> {
    auto rank = MakeRank(checkpoint, communicators[0].get());
    if (!rank.ok()) return rank.status();
    return Generate(*rank, mode, chunk);
  }();
  communicators[0]->Close();
  for (std::thread& follower : followers) follower.join();
  return rows;
}

struct Case {
  const char* name;
  std::function<absl::StatusOr<std::unique_ptr<Checkpoint>>()> open;
  int max_degree;
  bool pinned = true;  // some rank's cut lies within blocks of a format
};

auto Fixture(const char* name) {
  return [name] { return Checkpoint::Open(std::string("tests/fixtures/reference/") + name); };
}

class TensorParallelTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    auto opened = GetParam().open();
    ASSERT_TRUE(opened.ok()) << opened.status();
    checkpoint_ = *std::move(opened);
  }
  Rows Alone(const NumericMode& mode) {
    auto rank = MakeRank(*checkpoint_, nullptr);
    EXPECT_TRUE(rank.ok()) << rank.status();
    auto rows = Generate(*rank, mode, 256);
    EXPECT_TRUE(rows.ok()) << rows.status();
    return rows.value_or(Rows{});
  }
  std::unique_ptr<Checkpoint> checkpoint_;
};

TEST_P(TensorParallelTest, EveryDegreeHasTheBitsOfOneRank) {
  const auto shared = kernels::cpu::CpuBackend::Create({.threads = 1});
  const bool same_code =
      *(*shared)->NumericsTag(Policy::kPinned) == *(*shared)->NumericsTag(Policy::kPortable);
  for (Policy policy : {Policy::kPortable, Policy::kPinned}) {
    const Rows expected = Alone({.policy = policy});
    for (int degree = 2; degree <= GetParam().max_degree; degree *= 2) {
      for (int32_t chunk : {256, 37}) {
        SCOPED_TRACE(testing::Message() << NameOf(policy) << ", " << degree << " ranks, " << chunk);
        const auto rows = GenerateOnRanks(*checkpoint_, degree, {.policy = policy}, chunk);
        if (policy == Policy::kPinned && !GetParam().pinned && !same_code) {
          EXPECT_EQ(rows.status().code(), absl::StatusCode::kFailedPrecondition);
          EXPECT_THAT(std::string(rows.status().message()),
                      testing::HasSubstr("ranks would cut blocks of layers.0."));
          continue;
        }
        ASSERT_TRUE(rows.ok()) << rows.status();
        // Steps differ with the chunks; the last three of each sequence do not.
        for (size_t i = 0; i < 6; ++i) {
          const std::vector<float>& a = expected[expected.size() - 1 - i];
          const std::vector<float>& b = (*rows)[rows->size() - 1 - i];
          EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)), 0) << "row " << i;
        }
        if (chunk == 256) {
          EXPECT_EQ(*rows, expected);
        }
      }
    }
    const auto beyond =
        GenerateOnRanks(*checkpoint_, 2 * GetParam().max_degree, {.policy = policy}, 256);
    EXPECT_THAT(std::string(beyond.status().message()), testing::HasSubstr("tensor_parallel_size"));
  }
}

TEST_P(TensorParallelTest, ThroughputComesNear) {
  for (const kernels::ActivationType type :
       {kernels::ActivationType::kF32, kernels::ActivationType::kBF16}) {
    const NumericMode mode = {Policy::kThroughput, type};
    const Rows expected = Alone(mode);
    const auto rows = GenerateOnRanks(*checkpoint_, GetParam().max_degree, mode, 256);
    ASSERT_TRUE(rows.ok()) << rows.status();
    ASSERT_EQ(rows->size(), expected.size());
    // The decode steps, which see no other choice of kernels than the prompt's.
    double error = 0, size = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      for (size_t j = 0; j < expected[i].size(); ++j) {
        error += std::pow((*rows)[i][j] - expected[i][j], 2);
        size += std::pow(expected[i][j], 2);
      }
    }
    EXPECT_LT(std::sqrt(error / size), type == kernels::ActivationType::kF32 ? 1e-4 : 0.3);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Models, TensorParallelTest,
    testing::Values(Case{"qwen3_gguf_q8_0", Fixture("gguf_qwen3_q8_0.gguf"), 2},
                    Case{"llama_gguf_q4_k", Fixture("gguf_llama_q4_k.gguf"), 2, /*pinned=*/false},
                    Case{"qwen3_safetensors", Fixture("hf_qwen3"), 2},
                    Case{"dense", [] { return conformance::MakeSyntheticModel(); }, 2},
                    Case{"mixture", [] { return conformance::MakeSyntheticMixture(false); }, 2},
                    Case{"mixture_with_shared_expert",
                         [] { return conformance::MakeSyntheticMixture(true); }, 2},
                    Case{"four_ranks", [] { return conformance::MakeSyntheticForFourRanks(); }, 4}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(TensorParallelFailureTest, ARankThatCannotLoadIsNamed) {
  const auto olmoe = Checkpoint::Open("tests/fixtures/reference/hf_olmoe");
  ASSERT_TRUE(olmoe.ok()) << olmoe.status();
  const auto rows = GenerateOnRanks(**olmoe, 2, {}, 256);
  EXPECT_THAT(std::string(rows.status().message()), testing::HasSubstr("OLMoE"));
}

TEST(TensorParallelFailureTest, ARankThatGoesEndsTheStep) {
  const auto checkpoint = conformance::MakeSyntheticModel();
  auto communicators = parallel::MakeThreadCommunicators(2);
  std::thread follower([&] {
    auto rank = MakeRank(*checkpoint, communicators[1].get());
    ASSERT_TRUE(rank.ok());
    // Hears of the step and is gone.
    ASSERT_TRUE(communicators[1]->NextAnnouncement().ok());
    communicators[1].reset();
  });
  auto rank = MakeRank(*checkpoint, communicators[0].get());
  ASSERT_TRUE(rank.ok()) << rank.status();
  const auto rows = Generate(*rank, {}, 256);
  follower.join();
  EXPECT_EQ(rows.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(rows.status().message()), testing::HasSubstr("rank 1 has ended"));
}

}  // namespace
}  // namespace verbatim::model
