// Ranks on emulated GPUs: one, two and four give the same bits under both strong policies, with
// decode steps replayed as graphs and without, and PORTABLE the CPU's.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

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
using kernels::cuda::CudaBackend;
using testing::HasSubstr;

const RankPlace& Cpu() {
  static const RankPlace place = {
      .make_backend = [](int) { return *kernels::cpu::CpuBackend::Create({.threads = 1}); }};
  return place;
}

std::unique_ptr<kernels::Backend> Gpu(size_t max_graphs) {
  return *CudaBackend::Create({.weight_block_bytes = 0,
                               .workspace_bytes = size_t{4} << 20,
                               .table_bytes = size_t{1} << 20,
                               .expert_table_bytes = size_t{1} << 16,
                               .staging_slot_bytes = size_t{1} << 20,
                               .sampling_scratch_bytes = size_t{4} << 20,
                               .sampling_list_bytes = size_t{1} << 20,
                               .max_graphs = max_graphs});
}

// Steps that every rank recorded and replayed.
struct Steps {
  std::mutex mu;
  std::map<int, std::pair<int64_t, int64_t>> of_rank;
};

RankPlace Gpus(size_t max_graphs, Steps* steps = nullptr) {
  RankPlace place = {.make_backend = [max_graphs](int) { return Gpu(max_graphs); },
                     .on_device =
                         [](parallel::Communicator& host, kernels::Backend& backend) {
                           return parallel::MakeDeviceCommunicator(
                               host, backend, std::make_unique<parallel::HostLink>(host));
                         }};
  if (steps == nullptr) return place;
  place.at_end = [steps](int rank, kernels::Backend& backend) {
    const auto& cuda = dynamic_cast<const CudaBackend&>(backend);
    std::lock_guard lock(steps->mu);
    steps->of_rank[rank] = {cuda.recorded_steps(), cuda.replayed_steps()};
  };
  return place;
}

constexpr size_t kEager = 0, kGraphs = 64;

struct Case {
  const char* name;
  std::function<absl::StatusOr<std::unique_ptr<Checkpoint>>()> open;
  int max_degree;
};

class SimtTensorParallelTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    auto opened = GetParam().open();
    ASSERT_TRUE(opened.ok()) << opened.status();
    checkpoint_ = *std::move(opened);
  }
  LogitRows OnRanks(const RankPlace& place, int degree, const kernels::NumericMode& mode,
                    const RankWork& work) {
    const auto rows = degree == 1 ? GenerateAlone(place, *checkpoint_, mode, work)
                                  : GenerateOnRanks(place, *checkpoint_, degree, mode, work);
    EXPECT_TRUE(rows.ok()) << rows.status();
    return rows.value_or(LogitRows{});
  }

  std::unique_ptr<Checkpoint> checkpoint_;
};

TEST_P(SimtTensorParallelTest, EveryDegreeHasTheBitsOfOneRank) {
  // Few rows in chunks; then, with four ranks, as many as sums go in slices from.
  for (const RankWork& work :
       {RankWork{.prompts = {9, 3}, .decode = {2, 2}, .chunk = 4},
        RankWork{.prompts = {GetParam().max_degree > 2 ? 25 : 21, 5}, .decode = {2}}}) {
    for (Policy policy : {Policy::kPortable, Policy::kPinned}) {
      const LogitRows expected = OnRanks(Gpus(kGraphs), 1, {.policy = policy}, work);
      for (int degree = 2; degree <= GetParam().max_degree; degree *= 2) {
        SCOPED_TRACE(testing::Message() << NameOf(policy) << ", " << degree << " ranks");
        const int64_t launches = simt::LaunchCount();
        EXPECT_EQ(OnRanks(Gpus(kGraphs), degree, {.policy = policy}, work), expected);
        EXPECT_GT(simt::LaunchCount(), launches);
      }
      if (policy != Policy::kPortable) continue;
      EXPECT_EQ(OnRanks(Cpu(), 2, {.policy = policy}, work), expected);
    }
  }
}

// Sequences come and go, so that steps have 1, 2, 4, 8 and 16 rows, with padding and without, each
// size recorded once and replayed with other sequences; the prompts, a token each, are a decode
// step too. 16 rows of four ranks' experts go in slices.
TEST_P(SimtTensorParallelTest, ReplayedStepsHaveTheBitsOfOneRankEager) {
  const int most = GetParam().max_degree;
  const RankWork work = {.prompts = std::vector<int32_t>(9, 1), .decode = {1, 2, 3, 5, 2, 9, 7, 1}};
  constexpr std::pair<int64_t, int64_t> kRecordedAndReplayed = {5, 4};
  for (Policy policy : {Policy::kPortable, Policy::kPinned}) {
    SCOPED_TRACE(NameOf(policy));
    const LogitRows expected = OnRanks(Gpus(kEager), 1, {.policy = policy}, work);
    Steps steps;
    EXPECT_EQ(OnRanks(Gpus(kGraphs, &steps), most, {.policy = policy}, work), expected);
    EXPECT_EQ(steps.of_rank.size(), static_cast<size_t>(most));
    for (const auto& [rank, counts] : steps.of_rank) EXPECT_EQ(counts, kRecordedAndReplayed);
    if (most > 2) continue;  // saves time
    EXPECT_EQ(OnRanks(Gpus(kEager, &steps), most, {.policy = policy}, work), expected);
    for (const auto& [rank, counts] : steps.of_rank) EXPECT_EQ(counts.first, 0);
  }
}

// Minutes.
TEST_P(SimtTensorParallelTest, AllSizesOfSteps) {
  if (std::getenv("VERBATIM_EXHAUSTIVE") == nullptr || GetParam().max_degree != 2) {
    GTEST_SKIP() << "only with VERBATIM_EXHAUSTIVE=1, and two ranks";
  }
  RankWork work = {.prompts = std::vector<int32_t>(256, 1), .decode = {}};
  for (int32_t size = 8; size < 256; size += 8) work.decode.push_back(size - size % 3);
  for (int32_t size : {3, 2, 1, 1, 2, 4, 250}) work.decode.push_back(size);
  for (const kernels::NumericMode mode :
       {kernels::NumericMode{Policy::kPortable}, {Policy::kPinned}, {Policy::kThroughput}}) {
    SCOPED_TRACE(NameOf(mode.policy));
    RankPlace eager = Gpus(kEager), graphs = Gpus(kGraphs);
    eager.num_pages = graphs.num_pages = 1024;
    const int degree = kernels::IsStrong(mode.policy) ? 1 : 2;
    const LogitRows expected = OnRanks(eager, degree, mode, work);
    EXPECT_TRUE(OnRanks(graphs, 2, mode, work) == expected);
  }
}

TEST_P(SimtTensorParallelTest, ThroughputHasTheSameBitsWithGraphsAndWithout) {
  const RankWork work = {.prompts = {9, 3, 2}, .decode = {3, 3, 2, 1}};
  const kernels::NumericMode mode = {Policy::kThroughput, kernels::ActivationType::kBF16};
  Steps steps;
  const int degree = GetParam().max_degree;
  EXPECT_EQ(OnRanks(Gpus(kGraphs, &steps), degree, mode, work),
            OnRanks(Gpus(kEager), degree, mode, work));
  EXPECT_EQ(steps.of_rank[degree - 1].second, 1);
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

// NCCL would wait for ever.
TEST(SimtRecordedRanksTest, RanksThatWouldNotDoTheSameEndBeforeTheStep) {
  const auto checkpoint = Checkpoint::Open("tests/fixtures/reference/gguf_qwen3_q8_0.gguf");
  ASSERT_TRUE(checkpoint.ok());
  RankPlace place = Gpus(kGraphs);
  for (const int eager : {0, 1}) {
    place.make_backend = [eager](int rank) { return Gpu(rank == eager ? kEager : kGraphs); };
    const auto rows = GenerateOnRanks(place, **checkpoint, 2, {}, {.prompts = {2}, .decode = {1}});
    EXPECT_EQ(rows.status().code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(rows.status().message()),
                HasSubstr(eager == 0 ? "recorded decode steps differ: here 1 rows, one operation "
                                       "after the other; rank 0: records none"
                                     : "recorded decode steps differ: here records none; "
                                       "rank 0: 1 rows of 1 cuts, recorded as graph 1"));
  }
}

// Of rank 0: the others do without graphs too.
TEST(SimtRecordedRanksTest, StepsThatSomebodyLooksAtAreNotReplayed) {
  class Looker final : public ForwardObserver {
   public:
    void OnOutput(const ObservedRows&) override { ++outputs; }
    int outputs = 0;
  } looker;
  const auto checkpoint = Checkpoint::Open("tests/fixtures/reference/gguf_qwen3_q8_0.gguf");
  ASSERT_TRUE(checkpoint.ok());
  const RankWork work = {.prompts = {2}, .decode = {1, 1, 1}};
  Steps steps;
  RankPlace place = Gpus(kGraphs, &steps);
  place.before = [&looker](int rank, Transformer& transformer) {
    if (rank == 0) transformer.set_observer(&looker);
  };
  const auto watched = GenerateOnRanks(place, **checkpoint, 2, {}, work);
  ASSERT_TRUE(watched.ok()) << watched.status();
  EXPECT_GT(looker.outputs, 0);
  for (const auto& [rank, counts] : steps.of_rank) EXPECT_EQ(counts.first + counts.second, 0);
  const auto plain = GenerateOnRanks(Gpus(kGraphs), **checkpoint, 2, {}, work);
  ASSERT_TRUE(plain.ok());
  EXPECT_EQ(*watched, *plain);
}

}  // namespace
}  // namespace verbatim::model
