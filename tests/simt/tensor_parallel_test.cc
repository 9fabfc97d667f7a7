// Ranks on emulated GPUs: one, two and four give the same bits under both strong policies, and
// PORTABLE the CPU's.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>

#include "conformance/synthetic_model.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cuda/cuda_backend.h"
#include "model/checkpoint.h"
#include "parallel/device_communicator.h"
#include "simt/emulator.h"
#include "simt/host_link.h"
#include "tests/reference/ranks_runner.h"

namespace verbatim::model {
namespace {

using kernels::Policy;

const RankPlace& Cpu() {
  static const RankPlace place = {
      .make_backend = [] { return *kernels::cpu::CpuBackend::Create({.threads = 1}); }};
  return place;
}

const RankPlace& Gpus() {
  static const RankPlace place = {
      .make_backend =
          [] {
            return *kernels::cuda::CudaBackend::Create({.weight_block_bytes = 0,
                                                        .workspace_bytes = size_t{4} << 20,
                                                        .table_bytes = size_t{1} << 20,
                                                        .expert_table_bytes = size_t{1} << 16,
                                                        .staging_slot_bytes = size_t{1} << 20,
                                                        .sampling_scratch_bytes = size_t{4} << 20,
                                                        .sampling_list_bytes = size_t{1} << 20});
          },
      .on_device =
          [](parallel::Communicator& host, kernels::Backend& backend) {
            return parallel::MakeDeviceCommunicator(host, backend,
                                                    std::make_unique<parallel::HostLink>(host));
          }};
  return place;
}

struct Case {
  const char* name;
  std::function<absl::StatusOr<std::unique_ptr<Checkpoint>>()> open;
  int max_degree;
};

class SimtTensorParallelTest : public testing::TestWithParam<Case> {};

TEST_P(SimtTensorParallelTest, EveryDegreeHasTheBitsOfOneRank) {
  auto opened = GetParam().open();
  ASSERT_TRUE(opened.ok()) << opened.status();
  const Checkpoint& checkpoint = **opened;
  // Few rows in chunks; then, with four ranks, as many as experts' sums go in slices from.
  for (const RankWork& work :
       {RankWork{.prompts = {9, 3}, .decode_steps = 2, .chunk = 4},
        RankWork{.prompts = {GetParam().max_degree > 2 ? 61 : 21, 5}, .decode_steps = 1}}) {
    for (Policy policy : {Policy::kPortable, Policy::kPinned}) {
      const auto expected = GenerateAlone(Gpus(), checkpoint, {.policy = policy}, work);
      ASSERT_TRUE(expected.ok()) << expected.status();
      for (int degree = 2; degree <= GetParam().max_degree; degree *= 2) {
        SCOPED_TRACE(testing::Message() << NameOf(policy) << ", " << degree << " ranks");
        const int64_t launches = simt::LaunchCount();
        const auto rows = GenerateOnRanks(Gpus(), checkpoint, degree, {.policy = policy}, work);
        ASSERT_TRUE(rows.ok()) << rows.status();
        EXPECT_EQ(*rows, *expected);
        EXPECT_GT(simt::LaunchCount(), launches);
      }
      if (policy != Policy::kPortable) continue;
      const auto cpu = GenerateOnRanks(Cpu(), checkpoint, 2, {.policy = policy}, work);
      ASSERT_TRUE(cpu.ok()) << cpu.status();
      EXPECT_EQ(*cpu, *expected);
    }
  }
  const auto plain =
      GenerateOnRanks(Gpus(), checkpoint, GetParam().max_degree,
                      {Policy::kThroughput, kernels::ActivationType::kBF16}, {.prompts = {9, 3}});
  EXPECT_TRUE(plain.ok()) << plain.status();
}

INSTANTIATE_TEST_SUITE_P(
    Models, SimtTensorParallelTest,
    testing::Values(
        Case{"qwen3_safetensors",
             [] { return Checkpoint::Open("tests/fixtures/reference/hf_qwen3"); }, 2},
        Case{"qwen3_gguf_q8_0",
             [] { return Checkpoint::Open("tests/fixtures/reference/gguf_qwen3_q8_0.gguf"); }, 2},
        Case{"four_ranks", [] { return conformance::MakeSyntheticForFourRanks(); }, 4}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace verbatim::model
