// The prompts, and a maker of background requests.
#include "lab/demo_prompts.h"

#include <algorithm>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace verbatim::lab {
namespace {

constexpr const char* kPrompts[] = {
    "Continue the sentence. The sentence: The weather was...",
    "Why is the sky blue?",
    "What is the capital of Australia?",
    "List five things to pack for a day in the mountains.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "Write a SQL query that counts the orders of each customer.",
    "What is 17 times 24? Show your steps.",
    "A train travels 180 km in 2.5 hours. What is its average speed?",
    "Tell a short story about a lighthouse keeper and a lost dog.",
    "Write a haiku about the first snow of the year.",
    "Explain to a child how a refrigerator works.",
    "Translate into French: The library opens at nine in the morning.",
    "Summarise in one sentence why the Roman Republic became an empire.",
    "Give advice to someone who starts learning the piano at forty.",
    "Invent a name and a slogan for a bakery on the moon.",
    "What would happen if the Earth had two moons?",
};

constexpr const char* kWords[] = {
    "river",  "quickly", "the",    "of",      "under", "bright",  "engine", "paper",  "and",
    "seven",  "listen",  "market", "because", "stone", "never",   "garden", "to",     "slowly",
    "window", "carries", "with",   "music",   "an",    "orange",  "city",   "before", "number",
    "winter", "is",      "found",  "letter",  "green", "between", "horse",  "a",      "question",
};

}  // namespace

std::vector<std::string> DemoPrompts() { return {std::begin(kPrompts), std::end(kPrompts)}; }

absl::StatusOr<std::vector<std::string>> ReadPrompts(const std::string& path) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  std::vector<std::string> prompts;
  for (std::string line; std::getline(file, line);) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (!line.empty()) prompts.push_back(line);
  }
  if (prompts.empty()) return absl::InvalidArgumentError(absl::StrCat(path, ": has no prompt"));
  return prompts;
}

v1::GenerateRequest BackgroundRequest(int64_t max_tokens, v1::Determinism determinism,
                                      std::mt19937_64* random) {
  const auto pick = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(*random);
  };
  v1::GenerateRequest request;
  std::string text;
  for (int64_t i = pick(5, 120); i > 0; --i) {
    absl::StrAppend(&text, kWords[pick(0, static_cast<int64_t>(std::size(kWords)) - 1)], " ");
  }
  request.set_text(text);
  request.set_determinism(determinism);
  v1::SamplingParams* sampling = request.mutable_sampling();
  sampling->set_temperature(0.8F);
  sampling->set_seed((*random)());
  sampling->set_ignore_eos(true);
  sampling->set_max_tokens(pick(std::min<int64_t>(8, max_tokens), max_tokens));
  return request;
}

}  // namespace verbatim::lab
