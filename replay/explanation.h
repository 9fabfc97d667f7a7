// Why two runs of one prompt differ: the first token, and before it the first step, layer and
// operation whose bits differ, with the shapes that made it so.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/checkpoint.h"
#include "model/tokenizer.h"
#include "replay/replayer.h"
#include "trace/trace.h"

namespace verbatim::replay {

// A row that was kept from an expert it wanted in one run: the expert was full.
struct FullExpert {
  int32_t position = 0;
  int64_t layer = 0;
  int32_t rank = 0;     // among the row's experts
  int32_t expert = 0;   // that it wanted
  int32_t instead = 0;  // −1: the slot was lost
  int32_t tokens = 0;   // that the expert took in that step
};

// One run's part in a difference.
struct Side {
  std::string name;  // "alone", a file name
  std::string logits_sha256;
  std::string completion;    // text of the whole output
  std::string continuation;  // text from the first different token on
  int64_t output_tokens = 0;
  int32_t token = -1;  // at the split; −1: the output had ended
  std::string token_text;
  float top_margin = 0;  // of the two best raw logits there
  // Of the step in which the first difference arose.
  int64_t step_number = 0;
  int64_t step_rows = 0;
  int64_t step_sequences = 0;
  std::string mode;      // "throughput, bf16 activations"
  std::string decision;  // "bf16 kernel for 1 row", "KV axis in 2 pieces (cut at 64)"
  // Where the first difference is which experts a row got: what it did not get in this run.
  std::optional<FullExpert> full_expert;
  // Of the compared rows of a mixture of experts, over its layers.
  int64_t slots = 0, lost_slots = 0, rerouted_slots = 0;
};

// Where the first bits differ: everything that this operation read had equal bits in both runs.
struct Origin {
  int32_t position = 0;  // of the row
  int64_t layer = -1;    // −1: before the first layer
  model::Operation operation = model::Operation::kEmbedding;
};

// Difference of the residual stream after a layer. Of one position: relative means
// sqrt(sum (a − b)² / sum a²). Of a layer: the root mean square of that over the positions, so that
// a position with huge values (often the first) does not hide the others.
struct Drift {
  double max_abs = 0;
  double rms_relative = 0;
};

struct Explanation {
  std::vector<int32_t> tokens;  // prompt and the common output
  int64_t prompt_tokens = 0;
  Side a, b;
  // First output token whose raw logits have different bits; nullopt: all are equal.
  std::optional<int64_t> first_different_logits;
  // First output token that differs (or that only one output has); nullopt: the tokens are equal.
  std::optional<int64_t> first_different_token;
  // Output token up to which rows were compared: the first different one, or the last.
  int64_t compared_token = 0;
  // Of the first difference in hidden states; where these are all equal, of the logits' product.
  std::optional<Origin> origin;  // nullopt: no bits differ up to there
  bool by_capacity = false;      // the origin is that full experts kept the row from what it wanted
  // Set where the row of the first different logits had equal hidden states in both runs, so that
  // only the product that makes logits differed: what each side did there.
  std::string logits_decision_a, logits_decision_b;
  std::string summary;  // one sentence
  // [layers]: over the compared positions.
  std::vector<Drift> drift_by_layer;
  std::vector<int64_t> different_rows_by_layer;
  // [layers][positions]; positions beyond the memory bound are left out.
  std::vector<std::vector<Drift>> drift;
  double logit_drift_max = 0;  // of the logits that gave `compared_token`
  // Root mean square of the same.
  double logit_drift_rms = 0;
};

struct NamedTrace {
  std::string name;
  const trace::Trace* trace = nullptr;
};

// Replays both and compares. INVALID_ARGUMENT when the prompts or models differ;
// FAILED_PRECONDITION when one of them cannot be replayed, or its replay has other bits.
absl::StatusOr<Explanation> Explain(const model::Checkpoint& checkpoint,
                                    const std::string& weights_sha256,
                                    const model::Tokenizer& tokenizer, const NamedTrace& a,
                                    const NamedTrace& b);

// The same with replayers of the caller's (they may be one).
absl::StatusOr<Explanation> ExplainWith(Replayer& replayer_a, Replayer& replayer_b,
                                        const model::Tokenizer& tokenizer, const NamedTrace& a,
                                        const NamedTrace& b);

}  // namespace verbatim::replay
