// Reads the float64 references under tests/fixtures/reference (made by
// scripts/make_reference_fixtures.py, described in docs/testing.md).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace verbatim::testing {

// Logits after every listed position of one prompt. All vectors of vectors are [positions][…].
struct PromptReference {
  std::string name;
  std::string text;  // of chat prompts: the rendered template; else empty
  std::vector<int32_t> ids;
  std::vector<int32_t> positions;
  std::vector<int32_t> columns;  // vocabulary ids of `logits`, the same at all positions
  std::vector<std::vector<double>> logits;
  std::vector<std::vector<int32_t>> top_ids;  // by descending logit
  std::vector<std::vector<double>> top_logits;
  std::vector<double> log_sum_exp;  // over the whole row
  // Standard deviation of a logit's fp32 rounding error, [positions].
  std::vector<double> sigma_tree;   // sums shaped as the contract's tree
  std::vector<double> sigma_fold;   // sums in any order
  double bf16_activations_rms = 0;  // error of a bf16 run; informative
};

// A greedy continuation, end-of-text tokens included; vectors are [steps].
struct GreedyReference {
  int64_t prompt = 0;  // index into ReferenceFixture::prompts
  std::vector<int32_t> tokens;
  std::vector<int32_t> runner_up;
  std::vector<double> margins;  // logit of tokens[i] minus logit of runner_up[i]
  std::vector<double> sigma_tree, sigma_fold;
};

struct ReferenceFixture {
  std::string name;
  std::string checkpoint;  // path that can be opened from the source tree
  int64_t vocab_size = 0;
  std::vector<PromptReference> prompts;
  std::vector<GreedyReference> greedy;
};

struct ReferenceManifest {
  double tolerance_factor = 0;        // tolerance of a logit = factor · sigma of its row
  std::vector<std::string> fixtures;  // file names for LoadReferenceFixture
};

// Errors name the file and what is wrong with it.
absl::StatusOr<ReferenceManifest> LoadReferenceManifest(const std::string& folder);
absl::StatusOr<ReferenceFixture> LoadReferenceFixture(const std::string& folder,
                                                      const std::string& file);

}  // namespace verbatim::testing
