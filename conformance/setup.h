// The knobs of one trial: how the engine is configured and what shares it with the request.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>

#include "conformance/perturbing_backend.h"
#include "kernels/cpu/isa.h"
#include "kernels/ops/dtype.h"
#include "kernels/ops/moe.h"
#include "kernels/ops/numeric_mode.h"
#include "scheduler/scheduler.h"

namespace verbatim::conformance {

// Defaults are the base configuration, on which references are computed.
struct EngineSetup {
  std::string device = "cpu";  // the suite's; an engine with an instruction set is on the CPU
  int threads = 2;
  std::optional<kernels::cpu::Isa> isa;  // unset: the widest of this machine
  int64_t page_tokens = 32;
  int64_t max_num_batched_tokens = 512;
  int64_t max_num_seqs = 64;
  scheduler::BatchingPolicy batching = scheduler::BatchingPolicy::kContinuous;
  // Pages of the pool, in pages of the largest subject; 0: enough that nobody is preempted and
  // nothing is evicted.
  double pool = 0;
  bool prefix_caching = true;
  PageOptions pages;
  kernels::DType kv_cache_dtype = kernels::DType::kF32;
  kernels::ActivationType activations = kernels::ActivationType::kF32;  // of THROUGHPUT
  int tensor_parallel = 1;  // ranks, each a thread with a backend of its own
  // Limits of a mixture's experts for THROUGHPUT rows; 0: none.
  double capacity_factor = 0;
  kernels::CapacityOverflow overflow = kernels::CapacityOverflow::kDrop;

  auto Key() const {
    return std::make_tuple(threads, isa.has_value() ? static_cast<int>(*isa) : -1, page_tokens,
                           max_num_batched_tokens, max_num_seqs, static_cast<int>(batching), pool,
                           prefix_caching, pages.shuffle, pages.poison, pages.seed,
                           static_cast<int>(kv_cache_dtype), static_cast<int>(activations),
                           capacity_factor, static_cast<int>(overflow), tensor_parallel);
  }
};

enum class Neighbours : uint8_t {
  kOrdinary,
  kNan,         // a NaN appears in the middle or at the end of their prompts
  kVeryLong,    // prompts of most of the context
  kCancelled,   // in the queue, during the prompt or while decoding
  kSamePrompt,  // the subject's own prompt, sampled otherwise
  kLongOutput,  // short prompts, answers of many pages
  // Mixtures of experts only; prompt and answer consist of chosen tokens.
  kOneExpert,        // all of their tokens go to the same experts of each layer
  kSubjectsExperts,  // all go to the experts of a subject's last tokens
  kSpreadExperts,    // to all experts evenly
};
constexpr bool ChoosesExperts(Neighbours kind) { return kind >= Neighbours::kOneExpert; }

// What the prefix cache holds when the subjects arrive.
enum class CacheState : uint8_t {
  kCold,                // nothing of theirs: every request has a salt of its own
  kWarm,                // their prompts, and for follow-ups also the earlier answer
  kPartlyWarm,          // the first half of their prompts
  kEvicted,             // as kWarm, and then what a flood of other prompts left of it
  kWarmedByOtherPolicy  // their prompts, computed by THROUGHPUT (or PORTABLE for THROUGHPUT)
};

// What is recorded beside an answer.
enum class Recording : uint8_t { kNone, kReceipt, kTrace, kTraceOfLayers };

struct TrafficSetup {
  int batch = 1;       // subjects that arrive together
  int neighbours = 0;  // further requests of the subjects' policy
  Neighbours kind = Neighbours::kOrdinary;
  int place = -1;                // neighbours that come before the subjects; -1: half of them
  bool other_is_strong = false;  // "other policy" means the other strong one
  int other_policy = 0;          // further requests of THROUGHPUT (PORTABLE for THROUGHPUT)
  int limited = 0;               // further requests of THROUGHPUT, whatever the subjects' policy
  Neighbours limited_kind = Neighbours::kSubjectsExperts;
  bool staggered = false;  // subjects join a batch that is already decoding
  CacheState cache = CacheState::kCold;
  std::optional<int> logprobs;  // overrides those that the subjects ask for; -1: none
  Recording recording = Recording::kNone;
  int n = 1;  // samples of each subject
};

struct Variant {
  std::string label;
  EngineSetup engine;
  TrafficSetup traffic;
  enum class Instance : uint8_t {
    kShared,   // an engine that may have served other trials
    kRestart,  // a new engine in place of the one before
    kReplica,  // an engine of its own from a second reading of the model, beside the base one
  } instance = Instance::kShared;
  // The perturbation and a second one, a batch: left out where effects are measured one by one.
  bool compound = false;
  int max_subjects = 0;  // 0: all; otherwise the shortest ones
};

}  // namespace verbatim::conformance
