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
#include "tests/reference/ranks_runner.h"

namespace verbatim::model {
namespace {

using kernels::NumericMode;
using kernels::Policy;

const RankPlace& Cpu() {
  static const RankPlace place = {
      .make_backend = [](int) { return *kernels::cpu::CpuBackend::Create({.threads = 1}); }};
  return place;
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
  LogitRows Alone(const NumericMode& mode) {
    auto rows = GenerateAlone(Cpu(), *checkpoint_, mode, {});
    EXPECT_TRUE(rows.ok()) << rows.status();
    return rows.value_or(LogitRows{});
  }
  std::unique_ptr<Checkpoint> checkpoint_;
};

TEST_P(TensorParallelTest, EveryDegreeHasTheBitsOfOneRank) {
  const auto shared = kernels::cpu::CpuBackend::Create({.threads = 1});
  const bool same_code =
      *(*shared)->NumericsTag(Policy::kPinned) == *(*shared)->NumericsTag(Policy::kPortable);
  for (Policy policy : {Policy::kPortable, Policy::kPinned}) {
    const LogitRows expected = Alone({.policy = policy});
    for (int degree = 2; degree <= GetParam().max_degree; degree *= 2) {
      for (int32_t chunk : {256, 37}) {
        SCOPED_TRACE(testing::Message() << NameOf(policy) << ", " << degree << " ranks, " << chunk);
        const auto rows =
            GenerateOnRanks(Cpu(), *checkpoint_, degree, {.policy = policy}, {.chunk = chunk});
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
        GenerateOnRanks(Cpu(), *checkpoint_, 2 * GetParam().max_degree, {.policy = policy}, {});
    EXPECT_THAT(std::string(beyond.status().message()), testing::HasSubstr("tensor_parallel_size"));
  }
}

TEST_P(TensorParallelTest, ThroughputComesNear) {
  for (const kernels::ActivationType type :
       {kernels::ActivationType::kF32, kernels::ActivationType::kBF16}) {
    const NumericMode mode = {Policy::kThroughput, type};
    const LogitRows expected = Alone(mode);
    const auto rows = GenerateOnRanks(Cpu(), *checkpoint_, GetParam().max_degree, mode, {});
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
  const auto rows = GenerateOnRanks(Cpu(), **olmoe, 2, {}, {});
  EXPECT_THAT(std::string(rows.status().message()), testing::HasSubstr("OLMoE"));
}

TEST(TensorParallelFailureTest, ARankThatGoesEndsTheStep) {
  const auto checkpoint = conformance::MakeSyntheticModel();
  auto communicators = parallel::MakeThreadCommunicators(2);
  std::thread follower([&] {
    auto rank = MakeRank(Cpu(), *checkpoint, communicators[1].get());
    ASSERT_TRUE(rank.ok());
    // Hears of the step and is gone.
    ASSERT_TRUE(communicators[1]->NextAnnouncement().ok());
    communicators[1].reset();
  });
  auto rank = MakeRank(Cpu(), *checkpoint, communicators[0].get());
  ASSERT_TRUE(rank.ok()) << rank.status();
  const auto rows = Generate(*rank, {}, {});
  follower.join();
  EXPECT_EQ(rows.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(rows.status().message()), testing::HasSubstr("rank 1 has ended"));
}

}  // namespace
}  // namespace verbatim::model
