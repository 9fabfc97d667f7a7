// Runs a model over windows of tokens in this process, without engine or server.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/backend.h"
#include "model/checkpoint.h"
#include "model/transformer.h"

namespace verbatim::evaluate {

struct WindowRunnerOptions {
  std::string device = "cpu";    // as for kernels::OpenBackend
  int threads = 0;               // 0: every core this process may use
  int64_t window_tokens = 512;   // positions of a window
  int64_t max_batch_rows = 512;  // of one forward pass; at least window_tokens
  // Of mixtures of experts (model::TransformerOptions): all rows of a pass compete. 0: no limit.
  double moe_capacity_factor = 0;
  kernels::CapacityOverflow moe_overflow = kernels::CapacityOverflow::kDrop;
};

// One window after the other, each from position 0 in one pass, several in a pass where they fit.
// How they are batched is fixed by the options, so that a throughput run repeats itself as well as
// it can.
class WindowRunner {
 public:
  // The checkpoint must outlive the runner. INVALID_ARGUMENT for a window longer than the model's
  // positions.
  static absl::StatusOr<std::unique_ptr<WindowRunner>> Create(const model::Checkpoint& checkpoint,
                                                              const WindowRunnerOptions& options);

  // The windows that one pass held, first to last.
  using BatchDone = absl::FunctionRef<absl::Status(int64_t first_window, int64_t num_windows)>;

  // Calls `done` after each pass, when Logits may be asked for rows of it. All windows must have
  // window_tokens ids. Whoever watches the transformer sees rows in the order of the windows.
  absl::Status Run(absl::Span<const std::vector<int32_t>> windows, const kernels::NumericMode& mode,
                   BatchDone done);

  // Logits of rows [first, first + count) of the last pass, in slices: `take` gets the first row
  // of a slice and its rows [n, vocab].
  using TakeLogits = absl::FunctionRef<void(int64_t first_row, int64_t rows, const float* logits)>;
  absl::Status Logits(int64_t first, int64_t count, const kernels::NumericMode& mode,
                      TakeLogits take);

  model::Transformer& transformer() { return *transformer_; }
  const kernels::Backend& backend() const { return *backend_; }

 private:
  WindowRunner() = default;

  WindowRunnerOptions options_;
  std::unique_ptr<kernels::Backend> backend_;
  std::unique_ptr<model::Transformer> transformer_;
  std::unique_ptr<kernels::KvCache> cache_;
  std::vector<std::vector<int32_t>> pages_;  // by window of a pass
  std::vector<float> host_logits_;
};

}  // namespace verbatim::evaluate
