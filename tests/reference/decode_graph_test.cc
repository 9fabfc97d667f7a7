// Decode steps that are replayed as CUDA graphs have the bits of steps whose operations are
// launched one by one, while sequences begin, end, grow past cuts and change their pages.
#include <cctype>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/test_device.h"
#include "model/checkpoint.h"
#include "model/transformer.h"

namespace verbatim::testing {
namespace {

using kernels::NumericMode;
using kernels::Policy;
using kernels::cuda::CudaBackend;
namespace test_device = kernels::cuda::test_device;

constexpr int32_t kPageTokens = 32;
constexpr int32_t kNumPages = 48;

struct Case {
  std::string checkpoint;
  NumericMode mode;
  kernels::DType cache = kernels::DType::kBF16;
  double capacity_factor = 0;
  kernels::CapacityOverflow overflow = kernels::CapacityOverflow::kDrop;
};

enum class Kind { kCpu, kEager, kGraphs, kGraphsAlone };  // kGraphsAlone: a step a sequence

// What came of a decode step: logits of its sequences, and the experts of its rows.
struct Outcome {
  std::vector<std::vector<float>> logits;
  std::vector<int32_t> experts, wanted;
};

class Server {
 public:
  Server(const Case& setup, Kind kind) : mode_(setup.mode), alone_(kind == Kind::kGraphsAlone) {
    if (kind == Kind::kCpu) {
      backend_ = *kernels::cpu::CpuBackend::Create({});
    } else {
      auto backend = CudaBackend::Create({.weight_block_bytes = 0,
                                          .workspace_bytes = size_t{8} << 20,
                                          .table_bytes = 1 << 16,
                                          .staging_slot_bytes = 1 << 16,
                                          .sampling_scratch_bytes = 1 << 16,
                                          .sampling_list_bytes = 1 << 16,
                                          .max_graphs = kind == Kind::kEager ? size_t{0} : 64});
      EXPECT_TRUE(backend.ok()) << backend.status();
      backend_ = *std::move(backend);
    }
    checkpoint_ = *model::Checkpoint::Open("tests/fixtures/reference/" + setup.checkpoint);
    const model::ModelConfig& config = checkpoint_->config();
    auto transformer = model::Transformer::Load(*backend_, *checkpoint_,
                                                {.max_batch_rows = 600,
                                                 .max_logit_rows = 16,
                                                 .max_model_len = 600,
                                                 .moe_capacity_factor = setup.capacity_factor,
                                                 .moe_overflow = setup.overflow});
    EXPECT_TRUE(transformer.ok()) << transformer.status();
    transformer_ = *std::move(transformer);
    cache_ = *backend_->CreateKvCache({.num_layers = config.num_layers,
                                       .num_kv_heads = config.num_kv_heads,
                                       .head_dim = config.head_dim,
                                       .page_tokens = kPageTokens,
                                       .num_pages = kNumPages,
                                       .dtype = setup.cache});
    for (int32_t page = kNumPages; page > 0; --page) free_.push_back(page - 1);
    Must(cache_->Poison(free_));
  }

  // A sequence of that many tokens, on the pages that were freed last: the first gets page 0.
  void Begin(int id, int32_t tokens) {
    Sequence& sequence = sequences_[id];
    sequence.random.seed(static_cast<uint32_t>(id));
    model::ForwardBatch batch;
    Grow(sequence, tokens);
    batch.spans = {SpanOf(sequence, 0, 0, tokens)};
    for (int32_t i = 0; i < tokens; ++i) AddRow(id, sequence, i, batch);
    Must(transformer_->Forward(batch, mode_, *cache_));
    sequence.length = tokens;
  }
  // Its pages are NaN, and the next sequence's.
  void End(int id) {
    Must(cache_->Poison(sequences_[id].pages));
    for (int32_t page : sequences_[id].pages) free_.push_back(page);
    sequences_.erase(id);
  }
  // The same sequence on other pages, computed again.
  void Move(int id) {
    const int32_t length = sequences_[id].length;
    std::vector<int32_t> kept(free_.begin(), free_.begin() + 4);
    free_.erase(free_.begin(), free_.begin() + 4);
    End(id);
    free_.insert(free_.end(), kept.begin(), kept.end());
    Begin(id, length);
  }
  Outcome Decode(const std::vector<int>& ids) {
    if (!alone_) return Step(ids);
    Outcome all;
    for (int id : ids) all.logits.push_back(Step({id}).logits[0]);
    return all;
  }

  kernels::Backend& backend() { return *backend_; }
  model::Transformer& transformer() { return *transformer_; }

 private:
  struct Sequence {
    std::vector<int32_t> tokens, pages;
    std::mt19937 random;
    int32_t length = 0;
  };

  static void Must(const absl::Status& status) { ASSERT_TRUE(status.ok()) << status; }
  void Grow(Sequence& sequence, int32_t length) {
    while (static_cast<int32_t>(sequence.tokens.size()) < length) {
      sequence.tokens.push_back(static_cast<int32_t>(
          sequence.random() % static_cast<uint64_t>(checkpoint_->config().vocab_size)));
    }
    while (static_cast<int32_t>(sequence.pages.size()) * kPageTokens < length) {
      sequence.pages.push_back(free_.back());
      free_.pop_back();
    }
  }
  static kernels::SequenceSpan SpanOf(const Sequence& sequence, int64_t row, int32_t first,
                                      int32_t rows) {
    return {.first_row = static_cast<int32_t>(row),
            .num_rows = rows,
            .first_position = first,
            .pages = sequence.pages.data(),
            .num_pages = static_cast<int32_t>(sequence.pages.size())};
  }
  // Every third sequence is exempt from capacity limits in THROUGHPUT, and all in a strong policy.
  void AddRow(int id, const Sequence& sequence, int32_t position, model::ForwardBatch& batch) {
    batch.tokens.push_back(sequence.tokens[static_cast<size_t>(position)]);
    batch.positions.push_back(position);
    batch.capacity_exempt.push_back(kernels::IsStrong(mode_.policy) || id % 3 == 0 ? 1 : 0);
  }
  Outcome Step(const std::vector<int>& ids) {
    model::ForwardBatch batch;
    std::vector<int32_t> rows;
    for (int id : ids) {
      Sequence& sequence = sequences_.at(id);
      Grow(sequence, sequence.length + 1);
      batch.spans.push_back(SpanOf(sequence, batch.rows(), sequence.length, 1));
      AddRow(id, sequence, sequence.length, batch);
      rows.push_back(static_cast<int32_t>(rows.size()));
      ++sequence.length;
    }
    const test_device::Transfers before = test_device::TransfersSoFar();
    Must(transformer_->Forward(batch, mode_, *cache_));
    // Nobody has asked for anything yet: nothing is fetched, and nothing waited for.
    EXPECT_EQ(test_device::TransfersSoFar().to_host, before.to_host);
    EXPECT_EQ(test_device::TransfersSoFar().waits, before.waits);
    const auto logits = transformer_->ComputeLogits(rows, mode_);
    EXPECT_TRUE(logits.ok()) << logits.status();
    const size_t vocab = static_cast<size_t>(checkpoint_->config().vocab_size);
    Outcome outcome;
    for (size_t i = 0; i < rows.size(); ++i) {
      outcome.logits.emplace_back(vocab);
      Must(backend_->CopyToHost(outcome.logits.back().data(), *logits + i * vocab,
                                vocab * sizeof(float)));
    }
    const auto routing = transformer_->LastRouting();
    EXPECT_TRUE(routing.ok()) << routing.status();
    outcome.experts.assign(routing->experts.begin(), routing->experts.end());
    outcome.wanted.assign(routing->wanted.begin(), routing->wanted.end());
    return outcome;
  }

  const NumericMode mode_;
  const bool alone_;
  std::unique_ptr<kernels::Backend> backend_;
  std::unique_ptr<model::Checkpoint> checkpoint_;
  std::unique_ptr<model::Transformer> transformer_;
  std::unique_ptr<kernels::KvCache> cache_;
  std::vector<int32_t> free_;
  std::map<int, Sequence> sequences_;
};

// Steps of 1, 2, 4, 8 and 16 rows in turns, most with padding; every size comes again after others.
std::vector<Outcome> Serve(Server& server) {
  std::vector<Outcome> outcomes;
  const auto decode = [&](const std::vector<int>& ids) { outcomes.push_back(server.Decode(ids)); };
  server.Begin(1, 7);
  decode({1});
  decode({1});
  server.Begin(2, 31);
  server.Begin(3, 33);
  for (int i = 0; i < 3; ++i) decode({1, 2, 3});  // the second passes the end of a page
  decode({2});
  decode({3, 1, 2});
  server.End(2);
  server.Begin(4, 40);  // on the pages of 2
  decode({4, 3});
  decode({1, 3, 4});
  server.Move(3);
  decode({1, 3, 4});
  for (int id = 5; id < 10; ++id) server.Begin(id, id);
  decode({1, 3, 4, 5, 6, 7});
  decode({9, 8, 1, 3, 4, 5, 6, 7});
  decode({8, 9});
  decode({9, 8, 7, 6, 5});
  server.End(1);
  server.Begin(10, 1);
  decode({3, 4, 5, 6, 7, 8, 9, 10});
  server.Begin(11, 2);
  decode({3, 4, 5, 6, 7, 8, 9, 10, 11});
  decode({11});
  return outcomes;
}

// One history grows past 256 positions and another one past 512, so that a step is launched for one
// cut more, beside rows that do not have it.
std::vector<Outcome> ServeLong(Server& server) {
  std::vector<Outcome> outcomes;
  const auto decode = [&](const std::vector<int>& ids) { outcomes.push_back(server.Decode(ids)); };
  server.Begin(1, 254);
  server.Begin(2, 5);
  for (int i = 0; i < 4; ++i) decode({2, 1});
  server.Begin(3, 511);
  for (int i = 0; i < 3; ++i) decode({3, 2, 1});
  server.End(3);
  for (int i = 0; i < 2; ++i) decode({1, 2});
  return outcomes;
}

void ExpectSame(const std::vector<Outcome>& expected, const std::vector<Outcome>& actual,
                const std::string& what, bool routing = true) {
  ASSERT_EQ(expected.size(), actual.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_EQ(expected[i].logits.size(), actual[i].logits.size()) << what << ", step " << i;
    for (size_t s = 0; s < expected[i].logits.size(); ++s) {
      EXPECT_EQ(std::memcmp(expected[i].logits[s].data(), actual[i].logits[s].data(),
                            expected[i].logits[s].size() * sizeof(float)),
                0)
          << what << ", step " << i << ", row " << s;
    }
    if (!routing) continue;
    EXPECT_EQ(expected[i].experts, actual[i].experts) << what << ", step " << i;
    EXPECT_EQ(expected[i].wanted, actual[i].wanted) << what << ", step " << i;
  }
}

class DecodeGraphTest : public ::testing::TestWithParam<Case> {};
class LongHistoryTest : public ::testing::TestWithParam<Case> {};

TEST_P(DecodeGraphTest, ReplayedStepsHaveTheBitsOfTheOthers) {
  const Case& setup = GetParam();
  Server eager(setup, Kind::kEager), graphs(setup, Kind::kGraphs);
  const std::vector<Outcome> expected = Serve(eager), actual = Serve(graphs);
  ExpectSame(expected, actual, "graphs");
  const auto& backend = dynamic_cast<CudaBackend&>(graphs.backend());
  // Which is five sizes; with limits that spare some steps altogether a few more.
  EXPECT_GE(backend.recorded_steps(), 5);
  EXPECT_GE(backend.replayed_steps(), 10);
  EXPECT_EQ(backend.recorded_steps() + backend.replayed_steps(),
            static_cast<int64_t>(actual.size()) + 1);  // Begin(10, 1) decodes too
  EXPECT_EQ(dynamic_cast<CudaBackend&>(eager.backend()).recorded_steps(), 0);
  if (kernels::IsStrong(setup.mode.policy)) {
    Server alone(setup, Kind::kGraphsAlone);
    ExpectSame(expected, Serve(alone), "alone", /*routing=*/false);
  }
  const auto of_eager = eager.transformer().ExpertStatistics();
  const auto of_graphs = graphs.transformer().ExpertStatistics();
  ASSERT_TRUE(of_eager.ok() && of_graphs.ok());
  ASSERT_EQ(of_eager->size(), of_graphs->size());
  for (size_t i = 0; i < of_eager->size(); ++i) {
    EXPECT_EQ((*of_eager)[i].tokens_per_expert, (*of_graphs)[i].tokens_per_expert);
    EXPECT_EQ((*of_eager)[i].lost_slots, (*of_graphs)[i].lost_slots);
  }
  if (setup.mode.policy != Policy::kPortable) return;
  Server cpu(setup, Kind::kCpu);
  ExpectSame(Serve(cpu), actual, "the CPU");
}

TEST_P(LongHistoryTest, StepsAreLaunchedForOneCutMore) {
  Case setup = GetParam();
  Server eager(setup, Kind::kEager), graphs(setup, Kind::kGraphs);
  const std::vector<Outcome> expected = ServeLong(eager);
  ExpectSame(expected, ServeLong(graphs), "graphs");
  const auto& backend = dynamic_cast<CudaBackend&>(graphs.backend());
  EXPECT_EQ(backend.recorded_steps(), 4);  // (2 rows, 1 cut), (2, 2), (4, 2), (4, 3)
  EXPECT_EQ(backend.replayed_steps(), 5);
  if (setup.mode.policy != Policy::kPortable) return;
  Server cpu(setup, Kind::kCpu);
  ExpectSame(ServeLong(cpu), expected, "the CPU");
}

constexpr NumericMode kPortable{.policy = Policy::kPortable}, kPinned{.policy = Policy::kPinned},
    kThroughput{.policy = Policy::kThroughput},
    kThroughputBf16{.policy = Policy::kThroughput, .activations = kernels::ActivationType::kBF16};

std::string NameOfCase(const ::testing::TestParamInfo<Case>& info) {
  std::string name = info.param.checkpoint + "_" + std::string(NameOf(info.param.mode.policy));
  for (char& c : name) {
    if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
  }
  return name;
}

INSTANTIATE_TEST_SUITE_P(
    Models, DecodeGraphTest,
    ::testing::Values(Case{"gguf_llama_bf16.gguf", kPinned},
                      Case{"gguf_llama_q4_1.gguf", kPortable},
                      Case{"gguf_qwen3_q8_0.gguf", kPortable, kernels::DType::kF32},
                      Case{"gguf_qwen2_q4_1.gguf", kThroughputBf16},
                      Case{"gguf_mixtral_q4_1.gguf", kPinned},
                      Case{"hf_granitemoeshared", kPortable},
                      Case{"gguf_qwen2moe_q8_0.gguf", kThroughput, kernels::DType::kBF16, 0.75},
                      Case{"hf_olmoe", kThroughput, kernels::DType::kBF16, 0.75,
                           kernels::CapacityOverflow::kNext}),
    NameOfCase);
INSTANTIATE_TEST_SUITE_P(Models, LongHistoryTest,
                         ::testing::Values(Case{"gguf_llama_bf16.gguf", kPinned},
                                           Case{"gguf_llama_q4_1.gguf", kPortable,
                                                kernels::DType::kF32},
                                           Case{"gguf_mixtral_q4_1.gguf", kThroughput}),
                         NameOfCase);

}  // namespace
}  // namespace verbatim::testing
