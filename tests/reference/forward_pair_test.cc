// Whole forward passes on the CUDA backend: the logits of tiny checkpoints have the CPU's bits in
// PORTABLE, and the same bits in every batch and chunking in PINNED.
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/test_device.h"
#include "tests/reference/forward_runner.h"

namespace verbatim::testing {
namespace {

using kernels::NumericMode;
using kernels::Policy;
namespace test_device = kernels::cuda::test_device;

constexpr int64_t kMaxTokens = 160;
constexpr int64_t kSequences = 3;

std::unique_ptr<ForwardRunner> OnCuda(const std::string& path,
                                      kernels::DType cache = kernels::DType::kF32) {
  auto backend = kernels::cuda::CudaBackend::Create({.weight_block_bytes = 0,
                                                     .workspace_bytes = size_t{16} << 20,
                                                     .table_bytes = 1 << 16,
                                                     .staging_slot_bytes = 1 << 16,
                                                     .sampling_scratch_bytes = 1 << 16,
                                                     .sampling_list_bytes = 1 << 16});
  EXPECT_TRUE(backend.ok()) << backend.status();
  if (!backend.ok()) return nullptr;
  auto runner = ForwardRunner::CreateOn(*std::move(backend), path, kMaxTokens, kSequences, cache);
  EXPECT_TRUE(runner.ok()) << runner.status();
  return runner.ok() ? *std::move(runner) : nullptr;
}

// Prompts of several lengths; logits after the first, the last and one between.
std::vector<ForwardSequence> Prompts(int64_t vocab) {
  std::mt19937 rng(5);
  std::vector<ForwardSequence> sequences;
  for (int32_t length : {7, 66, 150}) {
    ForwardSequence s;
    for (int32_t i = 0; i < length; ++i) s.ids.push_back(static_cast<int32_t>(rng() % vocab));
    s.positions = {0, length / 2, length - 1};
    sequences.push_back(s);
  }
  return sequences;
}

using Logits = std::vector<std::vector<LogitRow>>;

Logits PromptLogits(ForwardRunner& runner, const std::vector<ForwardSequence>& prompts,
                    Policy policy, int64_t chunk) {
  auto logits = runner.Prefill(prompts, {.policy = policy}, chunk);
  EXPECT_TRUE(logits.ok()) << logits.status();
  return logits.ok() ? *std::move(logits) : Logits{};
}

void ExpectSameBits(const Logits& expected, const Logits& actual, const std::string& what) {
  ASSERT_EQ(expected.size(), actual.size()) << what;
  for (size_t s = 0; s < expected.size(); ++s) {
    ASSERT_EQ(expected[s].size(), actual[s].size()) << what;
    for (size_t p = 0; p < expected[s].size(); ++p) {
      ASSERT_EQ(expected[s][p].size(), actual[s][p].size()) << what;
      EXPECT_EQ(std::memcmp(expected[s][p].data(), actual[s][p].data(),
                            expected[s][p].size() * sizeof(float)),
                0)
          << what << ", sequence " << s << ", row " << p;
    }
  }
}

class ForwardPairTest : public ::testing::TestWithParam<const char*> {
 protected:
  std::string path() const { return std::string("tests/fixtures/reference/") + GetParam(); }
};

TEST_P(ForwardPairTest, PortableHasTheBitsOfTheCpu) {
  auto cpu = ForwardRunner::Create(path(), kMaxTokens, kSequences);
  ASSERT_TRUE(cpu.ok()) << cpu.status();
  const auto cuda = OnCuda(path());
  ASSERT_NE(cuda, nullptr);
  const std::vector<ForwardSequence> prompts = Prompts((*cpu)->config().vocab_size);
  const Logits expected = PromptLogits(**cpu, prompts, Policy::kPortable, 0);
  ASSERT_EQ(expected.size(), prompts.size());
  ExpectSameBits(expected, PromptLogits(*cuda, prompts, Policy::kPortable, 0), "one step");
  test_device::UseSchedule(test_device::Schedules() - 1);
  ExpectSameBits(expected, PromptLogits(*cuda, prompts, Policy::kPortable, 37), "chunks of 37");
  test_device::UseSchedule(0);
  // A decode step behind the first prompt.
  for (int32_t i = 0; i < 2; ++i) {
    const int32_t position = static_cast<int32_t>(prompts[0].ids.size()) + i;
    auto on_cpu = (*cpu)->Decode(3 + i, position, {.policy = Policy::kPortable});
    auto on_cuda = cuda->Decode(3 + i, position, {.policy = Policy::kPortable});
    ASSERT_TRUE(on_cpu.ok() && on_cuda.ok()) << on_cpu.status() << on_cuda.status();
    ExpectSameBits({{*on_cpu}}, {{*on_cuda}}, "decode");
  }
}

void ExpectOneAnswer(const std::string& path, kernels::DType cache) {
  auto cpu = ForwardRunner::Create(path, kMaxTokens, kSequences);
  ASSERT_TRUE(cpu.ok()) << cpu.status();
  const auto cuda = OnCuda(path, cache);
  ASSERT_NE(cuda, nullptr);
  const std::vector<ForwardSequence> prompts = Prompts(cuda->config().vocab_size);
  const Logits together = PromptLogits(*cuda, prompts, Policy::kPinned, 0);
  ASSERT_EQ(together.size(), prompts.size());
  ExpectSameBits(together, PromptLogits(*cuda, prompts, Policy::kPinned, 29), "chunks of 29");
  for (size_t s = 0; s < prompts.size(); ++s) {
    ExpectSameBits({together[s]}, PromptLogits(*cuda, {prompts[s]}, Policy::kPinned, 64), "alone");
  }
  // Near the fp32 answer: inputs and weights carry 8 bits.
  const Logits exact = PromptLogits(**cpu, prompts, Policy::kPortable, 0);
  double error = 0, size = 0;
  for (size_t s = 0; s < exact.size(); ++s) {
    for (size_t p = 0; p < exact[s].size(); ++p) {
      for (size_t i = 0; i < exact[s][p].size(); ++i) {
        error += std::pow(static_cast<double>(exact[s][p][i]) - together[s][p][i], 2);
        size += std::pow(static_cast<double>(exact[s][p][i]), 2);
      }
    }
  }
  EXPECT_LT(std::sqrt(error / size), 0.05);
  EXPECT_GT(error, 0) << "PINNED must not be PORTABLE under another name";
}

TEST_P(ForwardPairTest, PinnedHasOneAnswerInEveryBatchAndChunking) {
  ExpectOneAnswer(path(), kernels::DType::kF32);
}

// Attention on the matrix units: prefill, and decode steps behind it.
TEST_P(ForwardPairTest, PinnedHasOneAnswerFromBf16Pages) {
  ExpectOneAnswer(path(), kernels::DType::kBF16);
  const auto cuda = OnCuda(path(), kernels::DType::kBF16);
  ASSERT_NE(cuda, nullptr);
  ForwardSequence prompt = Prompts(cuda->config().vocab_size)[1];
  const int32_t length = static_cast<int32_t>(prompt.ids.size());
  prompt.positions = {length - 2, length - 1};
  const NumericMode mode{.policy = Policy::kPinned};
  const Logits whole = PromptLogits(*cuda, {prompt}, Policy::kPinned, 0);
  ForwardSequence shorter = prompt;
  shorter.ids.resize(static_cast<size_t>(length - 2));
  shorter.positions = {0};
  PromptLogits(*cuda, {shorter}, Policy::kPinned, 0);
  for (int32_t i = 0; i < 2; ++i) {
    const int32_t position = length - 2 + i;
    auto step = cuda->Decode(prompt.ids[static_cast<size_t>(position)], position, mode);
    ASSERT_TRUE(step.ok()) << step.status();
    ASSERT_EQ(whole.size(), 1u);
    ExpectSameBits({{whole[0][static_cast<size_t>(i)]}}, {{*step}}, "decode");
  }
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, ForwardPairTest,
                         ::testing::Values("gguf_llama_q4_1.gguf", "gguf_llama_q4_k.gguf",
                                           "gguf_qwen3_q8_0.gguf", "gguf_llama_bf16.gguf",
                                           "gguf_qwen2_q4_1.gguf", "gguf_mixtral_q4_1.gguf",
                                           "gguf_qwen2moe_q8_0.gguf", "hf_granitemoe", "hf_olmoe"),
                         [](const auto& info) {
                           const std::string name = info.param;
                           return name.substr(0, name.find('.'));
                         });

}  // namespace
}  // namespace verbatim::testing
