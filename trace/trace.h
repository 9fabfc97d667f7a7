// The record of what decided the bits of one answer, and its canonical JSON.
//
// Bits of a row depend on the row's own content and on shapes: how many rows the step had (which
// chooses kernels), how all of its spans lay (which cuts the KV axis of attention), at which place
// the row stood. So a trace holds, for every step that computed a key, a value or a logit row of
// the answer, the shape of the whole step, and never what the neighbours' tokens were. Positions
// taken from the prefix cache were computed by other requests; the steps that wrote them are part
// of the trace. Their tokens are the answer's own, because that is what made them a cache hit.
//
// In a mixture of experts the neighbours' contents decide two things more: how many tokens an
// expert got, which chooses its kernels, and whether it was full. Both are recorded for the experts
// of the answer's rows.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/numerics/row_fingerprint.h"
#include "kernels/ops/attention.h"
#include "kernels/ops/dtype.h"
#include "kernels/ops/numeric_mode.h"

namespace verbatim::trace {

inline constexpr int kTraceVersion = 1;

// Bounds of what Parse accepts and the recorder writes.
inline constexpr int64_t kMaxTraceBytes = int64_t{64} << 20;
inline constexpr int64_t kMaxTokens = 1 << 20;
inline constexpr int64_t kMaxSteps = 1 << 20;
inline constexpr int64_t kMaxStepRows = 1 << 16;
inline constexpr int64_t kMaxSpans = int64_t{1} << 23;  // of all steps together
inline constexpr int64_t kMaxRuns = 1 << 16;

// Consecutive positions of one sequence, whoever it belongs to.
struct Span {
  int32_t rows = 0;
  int32_t first_position = 0;
  bool operator==(const Span&) const = default;
};

// A span that computed positions of the answer.
struct OwnSpan {
  int32_t span = 0;  // of the step
  int32_t run = 0;   // of the trace
  // Leading rows whose tokens are the answer's. A neighbour whose page was reused may have gone on
  // with other tokens in the same span.
  int32_t rows = 0;
  bool operator==(const OwnSpan&) const = default;
};

// What one mixture of experts did with a step's own rows. Slots are (own row, rank): own rows are
// counted over the step's own spans in order, ranks from the router's first choice.
struct LayerRouting {
  std::vector<int32_t> experts;  // [own rows, experts per token]; −1: the slot was lost
  // (slot, expert) where the row would have had another expert without capacity limits; slots
  // ascending.
  std::vector<std::pair<int32_t, int32_t>> wanted;
  // (expert, tokens that it got of the whole step) for every expert in the two above, ascending.
  std::vector<std::pair<int32_t, int32_t>> tokens;
  bool operator==(const LayerRouting&) const = default;

  int32_t WantedAt(int32_t slot) const;
  int32_t TokensOf(int32_t expert) const;  // 0: not among them
};

// One forward pass.
struct Step {
  int64_t number = 0;  // counts the engine's steps; ascending in a trace
  kernels::NumericMode mode;
  std::vector<Span> spans;  // all of the step, in row order
  std::vector<OwnSpan> own;
  int32_t logit_rows = 0;    // of the whole step
  int32_t logit_index = -1;  // among them, the row that gave the answer a token; -1: none
  std::vector<kernels::AttentionCut> cuts;  // those of own spans
  std::vector<LayerRouting> routing;        // [Mixture::layers]

  int64_t rows() const;
  int64_t own_rows() const;
  bool operator==(const Step&) const;
};

// A page of key/value positions that a run took from the prefix cache: page `page` of run `run`.
struct CachedPage {
  int32_t run = 0;
  int32_t page = 0;
  bool operator==(const CachedPage&) const = default;
};

// One uninterrupted life of a sequence's pages: from admission to its end or its preemption. The
// answer's own runs come first, in order of time; runs of others that wrote cached pages follow.
struct Run {
  std::vector<CachedPage> prefix;  // its pages 0, 1, …; the run computed the positions behind them
  int32_t positions = 0;           // known positions, the prefix included
  bool operator==(const Run&) const = default;
};

// The kernels that matrix products of one number of rows ran on.
struct KernelChoice {
  kernels::NumericMode mode;
  bool logits = false;   // the product that makes logits, else those of the layers
  bool experts = false;  // those of one expert that got `rows` tokens
  int32_t rows = 0;
  std::vector<std::pair<std::string, std::string>> kernels;  // matrix, kernel
  bool operator==(const KernelChoice& other) const;
};

// What must be the same for the decisions to mean the same bits.
struct Identity {
  std::string version;         // of Verbatim
  std::string weights_sha256;  // hex
  std::string backend;         // "cpu avx512, 2 threads"
  std::string numerics;        // the backend's tag for THROUGHPUT
  bool operator==(const Identity&) const = default;
};

struct Configuration {
  int32_t page_tokens = 0;
  kernels::DType kv_cache_dtype = kernels::DType::kF32;
  int32_t logit_slice_rows = 0;  // logit rows are computed at most so many at a time
  int32_t max_model_len = 0;
  bool operator==(const Configuration&) const = default;
};

// The model's mixtures of experts; of a dense model there are none.
struct Mixture {
  int32_t num_experts = 0;
  int32_t experts_per_token = 0;
  std::vector<int32_t> layers;  // ascending
  bool operator==(const Mixture&) const = default;
};

struct Trace {
  Identity identity;
  Configuration configuration;
  Mixture mixture;
  kernels::Policy determinism = kernels::Policy::kThroughput;  // that the request asked for
  int32_t prompt_tokens = 0;
  std::vector<int32_t> tokens;  // prompt and output
  int32_t own_runs = 0;         // the first so many runs are the answer's
  std::vector<Run> runs;
  std::vector<Step> steps;
  std::vector<KernelChoice> kernels;
  std::vector<numerics::RowFingerprint> logit_rows;  // one per output token
  std::string logits_sha256;                         // chained over them, hex
  // [output tokens][layers]: of the row that gave the token, after each layer; empty if not asked
  // for.
  std::vector<std::vector<numerics::RowFingerprint>> layers;
  int32_t preemptions = 0;
  int32_t cached_tokens = 0;   // positions that the first run took from the prefix cache
  std::string not_replayable;  // why; empty: it can be replayed

  // Marks the trace as not replayable for this reason and drops what only a replay needs.
  void DropSteps(const std::string& why);
  bool replayable() const { return not_replayable.empty(); }
  int64_t output_tokens() const { return static_cast<int64_t>(tokens.size()) - prompt_tokens; }
};

// Keys in ascending order, no white space: equal traces give equal bytes.
std::string ToJson(const Trace& trace);

// Strict: INVALID_ARGUMENT naming the field for malformed JSON, unknown, missing or doubled keys,
// another format or version, values out of range, and records that contradict each other, so that
// what is returned can be replayed without further checks of shape. `name` stands for the source in
// errors, usually a file name.
absl::StatusOr<Trace> Parse(std::string_view json, const std::string& name);

// Parses a file of at most kMaxTraceBytes. NOT_FOUND if there is none.
absl::StatusOr<Trace> ReadTraceFile(const std::string& path);

// Those of a step's cuts that lie in its own spans.
std::vector<kernels::AttentionCut> OwnCuts(const Step& step,
                                           const std::vector<kernels::AttentionCut>& cuts);

// Logit rows that were computed together with row `index` of `rows`, in slices of `slice`.
int32_t SliceRows(int32_t rows, int32_t index, int32_t slice);

// Whether the records fit together; what Parse ends with.
absl::Status CheckConsistency(const Trace& trace);

}  // namespace verbatim::trace
