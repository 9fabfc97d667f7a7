// The requests whose bits are compared, and those that share the machine with them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "conformance/random.h"
#include "conformance/setup.h"
#include "engine/generation.h"
#include "model/checkpoint.h"

namespace verbatim::conformance {

struct WorkloadOptions {
  std::vector<int> prompt_lengths;  // one subject each
  int output_tokens = 24;
  int very_long_prompt = 800;
  int max_model_len = 1024;
};

// A request of the workload; the policy and the cache salt are set by whoever sends it.
struct Subject {
  std::string name;
  engine::GenerationRequest request;
  int follows = -1;  // this subject's prompt is the prompt and the answer of that one, and more
};

// Deterministic: equal arguments give equal requests in every process.
class Workload {
 public:
  // Prompts are stretches of an English text in the model's tokens, or random ids where
  // `tokenizer` knows no text (`random_ids`). No prompt holds the ids 0 … 9, which are often
  // special.
  Workload(const WorkloadOptions& options, const model::Tokenizer& tokenizer, bool random_ids);

  // Greedy and sampled, with and without penalties, log-probabilities and prompt
  // log-probabilities; about half of the prompts begin alike.
  const std::vector<Subject>& subjects() const { return subjects_; }
  // Adds a subject that continues `subject`, whose answer was `output`.
  void AddFollowUp(size_t subject, const std::vector<int32_t>& output);

  // Neighbours differ by `random`. Where the kind chooses experts, the prompt repeats
  // `expert_tokens` and the answer keeps to them. For kNan, `poison_token` is put into the prompt;
  // for kSamePrompt the prompt is `like`'s.
  engine::GenerationRequest Neighbour(Neighbours kind, int32_t poison_token, const Subject& like,
                                      Random& random,
                                      absl::Span<const int32_t> expert_tokens = {}) const;

  const WorkloadOptions& options() const { return options_; }
  // What prompts are made of.
  const std::vector<int32_t>& tokens() const { return tokens_; }

 private:
  std::vector<int32_t> Stretch(int64_t begin, int length) const;

  const WorkloadOptions options_;
  std::vector<int32_t> tokens_;
  std::vector<Subject> subjects_;
};

}  // namespace verbatim::conformance
