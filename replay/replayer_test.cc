// Tests that a recorded answer is repeated bit by bit, whatever happened around it.
#include "replay/replayer.h"

#include <gtest/gtest.h>

#include "engine/engine_test_support.h"
#include "engine/version.h"

namespace verbatim::replay {
namespace {

using engine::CollectingSink;
using engine::EngineConfig;
using engine::GenerationRequest;
using engine::GreedyRequest;
using engine::RandomPrompt;
using engine::Send;
using kernels::ActivationType;
using kernels::Policy;

constexpr char kWeights[] = "the weights";

struct Circumstance {
  std::string name;
  EngineConfig config = engine::TinyConfig();
  int threads = 2;
  int neighbours = 12;
  int strong_every = 0;  // every so many neighbours ask for strong bits; 0: none
  bool shared_prefix = false;
  int prompt_tokens = 45;
  int n = 1;
  bool trace_neighbours = false;
  int longer = 0;  // output tokens that neighbours get besides
};

GenerationRequest Throughput(std::vector<int32_t> prompt, int max_tokens) {
  GenerationRequest request = GreedyRequest(std::move(prompt), max_tokens);
  request.policy = Policy::kThroughput;
  return request;
}

// The traces of some answers that were given while neighbours came and went.
std::vector<std::shared_ptr<trace::Trace>> Record(const Circumstance& c) {
  EngineConfig config = c.config;
  config.allow_traces = true;
  std::unique_ptr<engine::Engine> engine = engine::StartEngine(config, c.threads);
  const std::vector<int32_t> prefix = RandomPrompt(99, c.shared_prefix ? 70 : 0);
  const auto prompt = [&](uint32_t seed, int length) {
    std::vector<int32_t> tokens = prefix;
    const std::vector<int32_t> own = RandomPrompt(seed, length);
    tokens.insert(tokens.end(), own.begin(), own.end());
    return tokens;
  };
  struct Entry {
    GenerationRequest request;
    std::shared_ptr<CollectingSink> sink = std::make_shared<CollectingSink>();
  };
  std::vector<Entry> entries;
  for (int i = 0; i < c.neighbours; ++i) {
    GenerationRequest request =
        Throughput(prompt(1000 + i, 5 + 23 * (i % 5)), 8 + 9 * (i % 4) + c.longer);
    request.trace = c.trace_neighbours;
    if (c.strong_every > 0 && i % c.strong_every == 0)
      request.policy = i % 2 == 0 ? Policy::kPortable : Policy::kPinned;
    entries.push_back({std::move(request)});
    if (i % 4 != 1) continue;
    GenerationRequest own = Throughput(prompt(i, c.prompt_tokens), 20);
    own.trace = true;
    own.trace_layers = i % 8 == 1;
    own.sampling.n = c.n;
    if (i % 8 == 5) own.sampling.temperature = 0.9f;
    entries.push_back({std::move(own)});
  }
  // Every second token of anybody brings the next request, on the engine's thread: who shares a
  // step with whom does not depend on how busy this machine is.
  size_t next = 0;
  int deltas = 0;
  const auto submit_next = [&] {
    const size_t i = next++;
    ASSERT_TRUE(engine->Submit(entries[i].request, entries[i].sink).ok());
  };
  for (Entry& entry : entries) {
    entry.sink->on_delta = [&](int) {
      if (++deltas % 2 == 0 && next < entries.size()) submit_next();
    };
  }
  submit_next();
  std::vector<std::shared_ptr<trace::Trace>> traces;
  for (const auto& [request, sink] : entries) {
    EXPECT_TRUE(sink->Wait().ok()) << sink->final_status;
    if (!request.trace) continue;
    for (const CollectingSink::Sample& sample : sink->samples) {
      EXPECT_NE(sample.finished.trace, nullptr);
      if (sample.finished.trace == nullptr) continue;
      trace::Trace& trace = *sample.finished.trace;
      EXPECT_EQ(trace.logits_sha256, sample.finished.logits_sha256);
      EXPECT_EQ(trace.output_tokens(), static_cast<int64_t>(sample.tokens.size()));
      trace.identity.version = engine::kVersion;
      trace.identity.weights_sha256 = kWeights;
      traces.push_back(sample.finished.trace);
    }
  }
  return traces;
}

std::vector<Circumstance> Circumstances() {
  std::vector<Circumstance> all(11);
  all[0].name = "alone";
  all[0].neighbours = 2;
  all[1].name = "batched";
  all[2].name = "bf16 activations";
  all[2].config.throughput_activations = ActivationType::kBF16;
  all[3].name = "small chunks";
  all[3].config.scheduler.max_num_batched_tokens = 17;
  all[4].name = "one thread";
  all[4].threads = 1;
  all[5].name = "three threads, bf16 pages";
  all[5].threads = 3;
  all[5].config.kv_cache_dtype = kernels::DType::kBF16;
  all[6].name = "preemption";
  all[6].config.scheduler.num_pages = 24;
  all[6].trace_neighbours = true;
  all[6].longer = 50;
  all[7].name = "prefix hits";
  all[7].shared_prefix = true;
  all[8].name = "prefix hits and preemption";
  all[8].shared_prefix = true;
  all[8].config.scheduler.num_pages = 26;
  all[8].trace_neighbours = true;
  all[8].longer = 50;
  all[8].config.scheduler.max_num_batched_tokens = 40;
  all[9].name = "strong neighbours";
  all[9].strong_every = 3;
  all[9].shared_prefix = true;
  all[9].config.throughput_activations = ActivationType::kBF16;
  all[10].name = "several samples, fixed batches";
  all[10].n = 3;
  all[10].config.scheduler.policy = scheduler::BatchingPolicy::kDynamic;
  return all;
}

class ReplayTest : public testing::TestWithParam<int> {};

TEST_P(ReplayTest, ReproducesEveryBit) {
  const Circumstance c = Circumstances()[GetParam()];
  SCOPED_TRACE(c.name);
  int cached = 0, preempted = 0, shared_steps = 0;
  for (const auto& recorded : Record(c)) {
    ASSERT_TRUE(recorded->replayable()) << recorded->not_replayable;
    // Through JSON, as a user would.
    const std::string json = trace::ToJson(*recorded);
    const auto trace = trace::Parse(json, "trace");
    ASSERT_TRUE(trace.ok()) << trace.status();
    EXPECT_EQ(trace::ToJson(*trace), json);
    auto replayer = Replayer::CreateOn(engine::TinyBackend(c.threads),
                                       *engine::TinyModel().checkpoint, kWeights, *trace);
    ASSERT_TRUE(replayer.ok()) << replayer.status();
    for (uint64_t seed : {1, 2}) {
      const auto result = (*replayer)->Replay(*trace, {.filler_seed = seed});
      ASSERT_TRUE(result.ok()) << result.status();
      EXPECT_TRUE(result->reproduced())
          << "token " << result->first_difference.value_or(-1) << " of " << trace->output_tokens()
          << "; " << result->decision_difference;
      EXPECT_EQ(result->logits_sha256, trace->logits_sha256);
    }
    cached += trace->cached_tokens;
    preempted += trace->preemptions;
    for (const trace::Step& step : trace->steps) shared_steps += step.spans.size() > 1;
  }
  // The circumstance really was what its name says.
  if (c.shared_prefix) {
    EXPECT_GT(cached, 0);
  }
  if (c.config.scheduler.num_pages < 30) {
    EXPECT_GT(preempted, 0);
  }
  if (c.neighbours > 2) {
    EXPECT_GT(shared_steps, 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Circumstances, ReplayTest,
                         testing::Range(0, static_cast<int>(Circumstances().size())));

// One answer of an otherwise idle engine: steps of one row after its prompt.
trace::Trace Alone(EngineConfig config = engine::TinyConfig(), int threads = 1) {
  config.allow_traces = true;
  std::unique_ptr<engine::Engine> engine = engine::StartEngine(config, threads);
  GenerationRequest request = Throughput(RandomPrompt(5, 30), 8);
  request.trace = request.trace_layers = true;
  std::shared_ptr<CollectingSink> sink = Send(*engine, request);
  EXPECT_TRUE(sink->Wait().ok()) << sink->final_status;
  trace::Trace trace = *sink->samples.at(0).finished.trace;
  trace.identity.version = engine::kVersion;
  trace.identity.weights_sha256 = kWeights;
  return trace;
}

std::unique_ptr<Replayer> ReplayerOf(const trace::Trace& trace, int threads = 1) {
  return *Replayer::CreateOn(engine::TinyBackend(threads), *engine::TinyModel().checkpoint,
                             kWeights, trace);
}

TEST(TamperedTraceTest, AChangedCountIsNoticed) {
  const trace::Trace honest = Alone();
  auto replayer = ReplayerOf(honest);
  ASSERT_TRUE(replayer->Replay(honest, {})->reproduced());

  // A neighbour of nine rows in one step of decoding: another kernel.
  trace::Trace changed = honest;
  trace::Step& step = changed.steps[3];
  ASSERT_EQ(step.rows(), 1);
  step.spans.push_back({.rows = 9, .first_position = 0});
  // Nothing is said about the kernels of ten rows.
  EXPECT_TRUE(absl::IsInvalidArgument(trace::CheckConsistency(changed)));

  // With the kernels that one row had: this program decides otherwise.
  trace::KernelChoice choice;
  for (const trace::KernelChoice& known : changed.kernels) {
    if (!known.logits && known.rows == 1) choice = known;
  }
  choice.rows = 10;
  changed.kernels.push_back(choice);
  ASSERT_TRUE(trace::CheckConsistency(changed).ok());
  auto result = replayer->Replay(changed, {});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_FALSE(result->reproduced());
  EXPECT_NE(result->decision_difference.find("10 rows"), std::string::npos)
      << result->decision_difference;
  EXPECT_TRUE(result->rows.empty());

  // With the right kernels, or where decisions are ignored: other bits, from that step on. The
  // trace has layers, so the first that differs is named.
  result = replayer->Replay(changed, {.ignore_decisions = true});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->first_difference, 3);
  EXPECT_EQ(result->first_different_layer, 0);
  EXPECT_NE(result->logits_sha256, honest.logits_sha256);
}

TEST(TamperedTraceTest, AChangedTokenIsNoticed) {
  trace::Trace changed = Alone();
  auto replayer = ReplayerOf(changed);
  changed.tokens[changed.prompt_tokens + 2] ^= 1;
  const auto result = replayer->Replay(changed, {});
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->first_difference, 3);  // the token is the input of the next row
}

TEST(TamperedTraceTest, AChangedCutIsNoticed) {
  trace::Trace changed = Alone();
  auto replayer = ReplayerOf(changed);
  changed.steps[2].cuts.push_back({.span = 0, .positions = {64}});
  ASSERT_TRUE(trace::CheckConsistency(changed).ok());
  const auto result = replayer->Replay(changed, {});
  ASSERT_TRUE(result.ok());
  EXPECT_NE(result->decision_difference.find("steps[2]"), std::string::npos);
}

TEST(TamperedTraceTest, AHashOfSomethingElseIsRefused) {
  trace::Trace changed = Alone();
  changed.logits_sha256 = std::string(64, '0');
  EXPECT_TRUE(absl::IsInvalidArgument(ReplayerOf(changed)->Replay(changed, {}).status()));
}

TEST(OtherIdentityTest, IsRefusedByName) {
  const trace::Trace trace = Alone();
  auto replayer = ReplayerOf(trace);
  const auto refused = [&](const std::function<void(trace::Trace&)>& change,
                           const std::string& field) {
    trace::Trace other = trace;
    change(other);
    const absl::Status status = replayer->Replay(other, {}).status();
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
    EXPECT_NE(status.message().find(field), absl::string_view::npos) << status;
  };
  refused([](auto& t) { t.identity.weights_sha256 = "others"; }, "weights_sha256");
  refused([](auto& t) { t.identity.version = "9.9.9"; }, "version");
  refused([](auto& t) { t.identity.backend = "cpu avx512, 77 threads"; }, "backend");
  refused([](auto& t) { t.identity.numerics = "v2"; }, "numerics");
  refused([](auto& t) { t.configuration.max_model_len = 1 << 20; }, "max_model_len");
  refused([](auto& t) { t.DropSteps("lost"); }, "lost");
  trace::Trace other = trace;
  other.identity.backend = "tpu v9";
  EXPECT_TRUE(absl::IsFailedPrecondition(
      Replayer::Create(*engine::TinyModel().checkpoint, kWeights, other).status()));
  other = trace;
  other.tokens[0] = 1 << 30;
  EXPECT_TRUE(absl::IsInvalidArgument(replayer->Replay(other, {}).status()));
}

TEST(TraceRequestTest, IsRefusedWithoutPermission) {
  std::unique_ptr<engine::Engine> engine = engine::StartEngine(engine::TinyConfig(), 1);
  GenerationRequest request = Throughput(RandomPrompt(5, 30), 8);
  request.trace = true;
  const absl::Status status = engine->Validate(request);
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_NE(status.message().find("trace:"), absl::string_view::npos) << status;
}

// Every operation of every layer is seen, in order, with the answer's rows named.
TEST(ReplayObserverTest, SeesOperationsInOrder) {
  class Recorder final : public ReplayObserver {
   public:
    void OnRows(int32_t step, const model::ObservedRows& output,
                absl::Span<const OwnRow> own) override {
      if (step != 1) return;  // the first step of one row
      EXPECT_EQ(own.size(), 1u);
      EXPECT_EQ(own[0].position, 30);
      EXPECT_EQ(output.rows, 1);
      seen.emplace_back(output.layer, output.operation);
    }
    std::vector<std::pair<int64_t, model::Operation>> seen;
  } recorder;
  const trace::Trace trace = Alone();
  ASSERT_TRUE(ReplayerOf(trace)->Replay(trace, {.observer = &recorder})->reproduced());
  using model::Operation;
  std::vector<std::pair<int64_t, Operation>> expected = {{-1, Operation::kEmbedding}};
  for (int64_t layer = 0; layer < engine::TinyModel().checkpoint->config().num_layers; ++layer) {
    for (Operation operation : {Operation::kAttnNorm, Operation::kQkv, Operation::kRope,
                                Operation::kAttention, Operation::kAttnOutput, Operation::kFfnNorm,
                                Operation::kGateUp, Operation::kSwiGlu, Operation::kDown}) {
      expected.emplace_back(layer, operation);
    }
  }
  expected.emplace_back(-1, Operation::kFinalNorm);
  expected.emplace_back(-1, Operation::kLogits);
  EXPECT_EQ(recorder.seen, expected);
}

}  // namespace
}  // namespace verbatim::replay
