// A step in which every sequence has one row: what a backend is told before its operations, so that
// it can record them once and replay them in later steps.
//
// A step computes at least as many rows as it has sequences (Backend::DecodeRows); those behind are
// padding. Padding changes no bit of a row and nothing outside the step: it is written to no page
// and takes no expert's places. What it holds is left open.
//
// Two steps with the same `owner`, `mode`, `variant`, `cache`, `num_heads` and `rows` call the same
// operations with the same parameters, spans excepted; whatever else differs between them is read
// from the backend's memory, where it was put before the step.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "kernels/ops/kv_cache.h"
#include "kernels/ops/numeric_mode.h"

namespace verbatim::kernels {

struct DecodeStep {
  const void* owner = nullptr;  // whose operations: while its weights live, no other's
  NumericMode mode;
  int64_t variant = 0;  // tells apart steps of an owner whose operations differ otherwise
  KvCache* cache = nullptr;
  int64_t num_heads = 0;                 // of Attention
  int64_t rows = 0;                      // computed; at least spans.size()
  absl::Span<const SequenceSpan> spans;  // span i is row i alone
  // False: somebody looks at what the operations do, so they are called in every step.
  bool replayable = true;
};

}  // namespace verbatim::kernels
