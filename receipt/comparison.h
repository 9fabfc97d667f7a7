// Why two receipts say different things.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "receipt/receipt.h"

namespace verbatim::receipt {

struct FieldDifference {
  std::string field;  // of the canonical form: "seed", "sampling.top_p", "prompt_token_ids"
  std::string a, b;   // a list shows its first element that differs, with its place
};

struct Comparison {
  // What an answer is a function of. `policy` counts where the numerics ids differ.
  std::vector<FieldDifference> inputs;
  // What came out.
  std::vector<FieldDifference> outputs;
  // First output token, and first logit row, that differ or that only one side has; −1: none.
  int64_t first_token = -1, first_row = -1;

  // One sentence: equal answers; different requests; or a contradiction, since equal inputs under
  // one numerics id have one answer.
  std::string Verdict() const;
};

Comparison Compare(const Receipt& a, const Receipt& b);

}  // namespace verbatim::receipt
