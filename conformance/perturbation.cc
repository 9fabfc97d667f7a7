// The table of perturbations: everything that a strong policy promises its bits do not depend on.
#include "conformance/perturbation.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "conformance/expert_perturbations.h"
#include "conformance/random.h"
#include "kernels/cpu/isa.h"

namespace verbatim::conformance {
namespace {

using kernels::CapacityOverflow;
using kernels::cpu::Isa;
using scheduler::BatchingPolicy;

std::vector<Isa> AvailableIsas() {
  std::vector<Isa> out = {Isa::kScalar};
  for (const Isa isa : {Isa::kAvx2, Isa::kAvx512}) {
    if (isa <= kernels::cpu::DetectIsa()) out.push_back(isa);
  }
  return out;
}

// What a batch usually looks like.
Variant InBatchOf(int batch, std::string label) {
  Variant variant;
  variant.label = std::move(label);
  variant.traffic.batch = batch;
  return variant;
}

std::vector<Variant> BatchSizes(const Scale& scale) {
  std::vector<Variant> out;
  for (const int size : scale.batch_sizes) out.push_back(InBatchOf(size, absl::StrCat("B=", size)));
  return out;
}

std::vector<Variant> Places(const Scale& scale) {
  std::vector<Variant> out;
  for (const int place : scale.places) {
    Variant variant = InBatchOf(1, absl::StrCat("place ", place, " of 16"));
    variant.traffic.neighbours = 15;
    variant.traffic.place = place;
    out.push_back(variant);
  }
  Variant staggered = InBatchOf(4, "joining a batch that decodes");
  staggered.traffic.neighbours = 3;
  staggered.traffic.staggered = true;
  out.push_back(staggered);
  return out;
}

std::vector<Variant> NeighboursOf(const Scale& scale, Neighbours kind, const std::string& label) {
  std::vector<Variant> out;
  for (const int batch : {1, 4}) {
    Variant variant = InBatchOf(batch, absl::StrCat(label, ", ", batch, " at a time"));
    variant.traffic.neighbours =
        kind == Neighbours::kVeryLong ? std::min(scale.neighbours, 4) : scale.neighbours;
    variant.traffic.kind = kind;
    variant.compound = batch > 1;
    if (kind == Neighbours::kNan) variant.engine.pages = {.shuffle = true, .poison = true};
    out.push_back(variant);
  }
  return out;
}

std::vector<Variant> ChunkSizes(const Scale& scale) {
  std::vector<Variant> out;
  for (const int size : scale.chunk_sizes) {
    for (const int batch : {1, 4}) {
      if (batch > size) continue;
      Variant variant =
          InBatchOf(batch, absl::StrCat(size, " tokens a step, ", batch, " at a time"));
      variant.compound = batch > 1;
      variant.engine.max_num_batched_tokens = size;
      // Thousands of one-row steps: the shortest subjects are enough.
      if (size < 8) variant.max_subjects = 4;
      out.push_back(variant);
    }
  }
  return out;
}

std::vector<Variant> CacheStates(CacheState state, const std::string& label) {
  std::vector<Variant> out;
  for (const int batch : {1, 4}) {
    Variant variant = InBatchOf(batch, absl::StrCat(label, ", ", batch, " at a time"));
    variant.compound = batch > 1;
    variant.traffic.cache = state;
    if (state == CacheState::kEvicted) variant.engine.pool = 2.5;
    if (state == CacheState::kWarmedByOtherPolicy) {
      // bf16 activations make sure that these pages hold other bits.
      variant.engine.activations = kernels::ActivationType::kBF16;
    }
    out.push_back(variant);
  }
  return out;
}

std::vector<Variant> PageSizes(const Scale& scale) {
  std::vector<Variant> out;
  for (const int size : scale.page_sizes) {
    Variant variant = InBatchOf(1, absl::StrCat("pages of ", size));
    variant.engine.page_tokens = size;
    out.push_back(variant);
  }
  return out;
}

std::vector<Variant> ShuffledPages(const Scale& scale) {
  std::vector<Variant> out;
  for (int i = 0; i < scale.shuffles; ++i) {
    Variant variant = InBatchOf(1, absl::StrCat("permutation ", i));
    variant.engine.page_tokens = i % 2 == 0 ? 16 : 64;
    variant.engine.pages = {
        .shuffle = true, .poison = true, .seed = 100 + static_cast<uint64_t>(i)};
    out.push_back(variant);
  }
  return out;
}

// Elders whose answers grow by many pages take them from subjects that compute their prompts
// slowly.
std::vector<Variant> Preemption() {
  std::vector<Variant> out;
  for (const bool caching : {true, false}) {
    Variant variant =
        InBatchOf(4, absl::StrCat("pool of 2 subjects, prefix cache ", caching ? "on" : "off"));
    variant.traffic.neighbours = 8;
    variant.traffic.place = 8;
    variant.traffic.kind = Neighbours::kLongOutput;
    variant.engine.pool = 2.0;
    variant.engine.page_tokens = 16;
    variant.engine.max_num_seqs = 16;
    variant.engine.max_num_batched_tokens = 16;
    variant.engine.prefix_caching = caching;
    variant.engine.pages = {.shuffle = false, .poison = true};
    out.push_back(variant);
  }
  return out;
}

std::vector<Variant> Batching() {
  std::vector<Variant> out;
  for (const auto& [policy, name] : {std::pair{BatchingPolicy::kContinuous, "continuous"},
                                     std::pair{BatchingPolicy::kDynamic, "dynamic"},
                                     std::pair{BatchingPolicy::kFixed, "fixed"}}) {
    Variant variant = InBatchOf(8, absl::StrCat(name, ", at most 4 at once"));
    variant.engine.batching = policy;
    variant.engine.max_num_seqs = 4;
    out.push_back(variant);
  }
  return out;
}

std::vector<Variant> Threads(const Scale& scale) {
  std::vector<Variant> out;
  for (const int threads : scale.threads) {
    Variant variant = InBatchOf(1, absl::StrCat(threads, threads == 1 ? " thread" : " threads"));
    variant.engine.threads = threads;
    // More threads than cores only wait for each other.
    if (threads > 3) variant.max_subjects = 6;
    out.push_back(variant);
  }
  return out;
}

std::vector<Variant> Isas(const Scale& scale) {
  std::vector<Variant> out;
  for (const Isa isa : AvailableIsas()) {
    Variant variant = InBatchOf(1, std::string(NameOf(isa)));
    variant.engine.isa = isa;
    if (isa == Isa::kScalar) variant.max_subjects = scale.scalar_subjects;
    out.push_back(variant);
  }
  return out;
}

std::vector<Variant> Instances(Variant::Instance instance, const std::string& label) {
  Variant variant = InBatchOf(1, label);
  variant.instance = instance;
  return {variant};
}

// Ranks that a model cannot be shared out among refuse to start, and are reported so.
std::vector<Variant> TensorParallel() {
  std::vector<Variant> out;
  for (const int ranks : {2, 4}) {
    Variant alone = InBatchOf(1, absl::StrCat(ranks, " ranks"));
    alone.engine.tensor_parallel = ranks;
    alone.engine.threads = 1;
    Variant beside = InBatchOf(4, absl::StrCat(ranks, " ranks, 4 at a time beside others"));
    beside.engine = alone.engine;
    beside.engine.max_num_batched_tokens = 48;
    beside.traffic.neighbours = 3;
    beside.traffic.staggered = true;
    beside.compound = true;
    out.push_back(alone);
    out.push_back(beside);
  }
  return out;
}

std::vector<Variant> Logprobs() {
  std::vector<Variant> out;
  for (const int count : {-1, 0, 20}) {
    Variant variant =
        InBatchOf(1, count < 0 ? "none asked for" : absl::StrCat(count, " asked for"));
    variant.traffic.logprobs = count;
    out.push_back(variant);
  }
  return out;
}

std::vector<Variant> Recordings() {
  std::vector<Variant> out;
  for (const auto& [recording, label] : {std::pair{Recording::kReceipt, "receipt"},
                                         std::pair{Recording::kTrace, "trace of decisions"},
                                         std::pair{Recording::kTraceOfLayers, "trace of layers"}}) {
    Variant variant = InBatchOf(1, label);
    variant.traffic.recording = recording;
    out.push_back(variant);
  }
  return out;
}

std::vector<Variant> Samples(const Scale& scale) {
  std::vector<Variant> out;
  for (const int n : scale.sample_counts) {
    Variant variant = InBatchOf(1, absl::StrCat("n=", n));
    variant.traffic.n = n;
    out.push_back(variant);
  }
  return out;
}

std::vector<Variant> OtherStrongPolicy() {
  Variant beside = InBatchOf(6, "6 requests of it beside 6");
  beside.traffic.other_policy = 6;
  Variant cached = InBatchOf(1, "the prompt was computed by it");
  cached.traffic.cache = CacheState::kWarmedByOtherPolicy;
  for (Variant* variant : {&beside, &cached}) variant->traffic.other_is_strong = true;
  return {beside, cached};
}

// `per_cent` of the requests that arrive together are of the other policy.
std::vector<Variant> Mixed(int per_cent) {
  Variant variant = InBatchOf(per_cent == 10   ? 9
                              : per_cent == 50 ? 8
                                               : 2,
                              absl::StrCat(per_cent, " % of the requests"));
  variant.traffic.other_policy = per_cent == 10 ? 1 : per_cent == 50 ? 8 : 18;
  return {variant};
}

Variant Combination(const Scale& scale, Random& random, int number) {
  Variant v;
  EngineSetup& e = v.engine;
  TrafficSetup& t = v.traffic;
  e.threads = random.PickFrom<int>({1, 2, 2, 3});
  std::vector<Isa> isas = AvailableIsas();
  if (isas.size() > 1) isas.erase(isas.begin());  // scalar kernels are slow
  if (random.Chance(0.5f)) e.isa = random.PickFrom(isas);
  e.page_tokens = random.PickFrom<int>({16, 32, 64, 128, 256});
  e.max_num_batched_tokens = random.PickFrom<int>({24, 48, 100, 256, 512, 1000});
  e.max_num_seqs = random.PickFrom<int>({3, 8, 24, 64});
  e.batching =
      random.PickFrom<BatchingPolicy>({BatchingPolicy::kContinuous, BatchingPolicy::kContinuous,
                                       BatchingPolicy::kDynamic, BatchingPolicy::kFixed});
  e.prefix_caching = random.Chance(0.8f);
  e.pages = {.shuffle = random.Chance(0.5f), .poison = random.Chance(0.7f), .seed = random.Next()};
  if (random.Chance(0.4f)) e.pool = 2.0 + random.Uniform() * 3.0;
  t.batch = random.PickFrom<int>({1, 2, 5, 9, 16, 33});
  t.neighbours = static_cast<int>(random.Below(scale.neighbours + 1));
  t.kind =
      random.PickFrom<Neighbours>({Neighbours::kOrdinary, Neighbours::kNan, Neighbours::kCancelled,
                                   Neighbours::kSamePrompt, Neighbours::kVeryLong});
  if (t.kind == Neighbours::kVeryLong) t.neighbours = std::min(t.neighbours, 2);
  t.place = static_cast<int>(random.Below(t.neighbours + 1));
  t.other_policy = static_cast<int>(random.Below(5));
  t.other_is_strong = random.Chance(0.3f);
  t.staggered = random.Chance(0.4f);
  t.cache =
      random.PickFrom<CacheState>({CacheState::kCold, CacheState::kWarm, CacheState::kPartlyWarm,
                                   CacheState::kEvicted, CacheState::kWarmedByOtherPolicy});
  if (random.Chance(0.3f)) t.logprobs = random.PickFrom<int>({-1, 3, 20});
  v.label = absl::StrCat(
      "combination ", number, ": threads ", e.threads, ", isa ",
      e.isa.has_value() ? std::string(NameOf(*e.isa)) : "auto", ", page ", e.page_tokens,
      ", tokens a step ", e.max_num_batched_tokens, ", seqs ", e.max_num_seqs, ", batching ",
      static_cast<int>(e.batching), ", prefix cache ", e.prefix_caching, ", pool ", e.pool,
      ", shuffle ", e.pages.shuffle, ", poison ", e.pages.poison, ", batch ", t.batch,
      ", neighbours ", t.neighbours, " of kind ", static_cast<int>(t.kind), ", place ", t.place,
      t.other_is_strong ? ", other strong policy " : ", other policy ", t.other_policy,
      ", staggered ", t.staggered, ", cache ", static_cast<int>(t.cache));
  return v;
}

}  // namespace

std::vector<Perturbation> MakePerturbations(const Scale& scale, int64_t max_model_len,
                                            bool mixture) {
  std::vector<Perturbation> out = {
      {"repetition", "nothing: the same request alone once more", {InBatchOf(1, "alone")}},
      {"batch size", "B requests arrive together instead of one", BatchSizes(scale)},
      {"position in the batch", "the place among 16 requests; joining later", Places(scale)},
      {"neighbours: ordinary", "other requests run beside it",
       NeighboursOf(scale, Neighbours::kOrdinary, "ordinary")},
      {"neighbours: same prompt", "the same prompt, sampled otherwise, beside it",
       NeighboursOf(scale, Neighbours::kSamePrompt, "same prompt")},
      {"neighbours: very long", "prompts of most of the context beside it",
       NeighboursOf(scale, Neighbours::kVeryLong, "very long")},
      {"neighbours: NaN", "requests whose activations become NaN beside it",
       NeighboursOf(scale, Neighbours::kNan, "NaN"), Witness::kNanRequests},
      {"neighbours: cancelled", "requests cancelled in the queue, prompt or output beside it",
       NeighboursOf(scale, Neighbours::kCancelled, "cancelled"), Witness::kCancelled},
      {"prefill chunk size", "tokens of one step", ChunkSizes(scale)},
      {"prefix cache: warm", "the prompt is cached, by prefill or by an earlier answer",
       CacheStates(CacheState::kWarm, "warm"), Witness::kCachedTokens},
      {"prefix cache: partly warm", "half of the prompt is cached",
       CacheStates(CacheState::kPartlyWarm, "partly warm"), Witness::kCachedTokens},
      {"prefix cache: evicted", "the prompt was cached, others have pushed it out",
       CacheStates(CacheState::kEvicted, "evicted"), Witness::kEvictions},
      {"prefix cache: other policy", "the prompt was computed by the other kind of policy",
       CacheStates(CacheState::kWarmedByOtherPolicy, "warmed by the other policy"),
       Witness::kOtherPolicyRows},
      {"page size", "positions of one KV page", PageSizes(scale)},
      {"page table", "shuffled pages, unused ones and stale contents poisoned",
       ShuffledPages(scale)},
      {"preemption", "a pool too small for all: sequences are recomputed", Preemption(),
       Witness::kPreemptions},
      {"batching policy", "continuous, dynamic, fixed", Batching()},
      {"threads", "threads that compute", Threads(scale)},
      {"tensor parallel", "ranks that share the model out among them", TensorParallel()},
      {"instruction set", "scalar, AVX2, AVX-512", Isas(scale)},
      {"restart", "a new engine in place of the old one",
       Instances(Variant::Instance::kRestart, "restarted")},
      {"replica", "a second engine from a second reading of the model",
       Instances(Variant::Instance::kReplica, "replica")},
      {"log-probabilities", "asked for or not", Logprobs()},
      {"receipts and traces", "asked for or not", Recordings()},
      {"n samples", "one call with n samples against single calls and other n", Samples(scale)},
      {"mixed: 10 %", "requests of the other kind of policy beside it", Mixed(10),
       Witness::kOtherPolicyRows},
      {"mixed: 50 %", "requests of the other kind of policy beside it", Mixed(50),
       Witness::kOtherPolicyRows},
      {"mixed: 90 %", "requests of the other kind of policy beside it", Mixed(90),
       Witness::kOtherPolicyRows},
      {"mixed: other strong policy", "PINNED beside PORTABLE, in steps and in the prefix cache",
       OtherStrongPolicy(), Witness::kOtherPolicyRows},
  };
  Perturbation combined{"combined", "random combinations of all of the above", {}};
  if (mixture) {
    out.push_back({"experts: crowded", "tokens of others all go to the same experts",
                   ExpertNeighbours(scale, {Neighbours::kOneExpert, Neighbours::kSubjectsExperts}),
                   Witness::kCrowdedRoutings});
    out.push_back({"experts: spread", "tokens of others go to all experts evenly",
                   ExpertNeighbours(scale, {Neighbours::kSpreadExperts}),
                   Witness::kSpreadRoutings});
    out.push_back({"experts: capacity for others, drop",
                   "experts are full for others, who lose them",
                   ExpertLimits(scale, CapacityOverflow::kDrop), Witness::kLostSlots});
    out.push_back({"experts: capacity for others, next",
                   "experts are full for others, who get the next",
                   ExpertLimits(scale, CapacityOverflow::kNext), Witness::kReroutedSlots});
    combined.witness = Witness::kLostSlots;
  }
  Random random(scale.seed);
  for (int i = 0; i < scale.combinations; ++i) {
    combined.variants.push_back(Combination(scale, random, i));
    // From numbers of its own: a dense model's combinations stay the same.
    Random more(scale.seed + 1000 + static_cast<uint64_t>(i));
    if (mixture) AddExperts(scale, more, i, &combined.variants.back());
  }
  out.push_back(std::move(combined));
  for (Perturbation& perturbation : out) {
    for (Variant& variant : perturbation.variants) {
      if (scale.subject_limit > 0 && perturbation.name != "batch size") {
        variant.max_subjects = variant.max_subjects == 0
                                   ? scale.subject_limit
                                   : std::min(variant.max_subjects, scale.subject_limit);
      }
      // A step of more tokens than a context only costs memory.
      variant.engine.max_num_batched_tokens =
          std::min<int64_t>(variant.engine.max_num_batched_tokens, 2 * max_model_len);
    }
  }
  return out;
}

}  // namespace verbatim::conformance
