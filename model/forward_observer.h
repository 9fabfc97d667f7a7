// What the forward pass shows of itself while it runs.
#pragma once

#include <cstdint>
#include <string_view>

namespace verbatim::model {

// Operations of the forward pass whose outputs an observer sees, in the order in which a layer runs
// them. Without query and key norms kQkNorm does not occur. A layer that is a mixture of experts
// has kRouter instead of kGateUp and kSwiGlu: its experts' rows are not rows of the batch.
enum class Operation : uint8_t {
  kEmbedding,
  kAttnNorm,
  kQkv,
  kQkNorm,
  kRope,
  kAttention,
  kAttnOutput,  // of the attention block: product with o, plus the residual stream
  kFfnNorm,
  kRouter,  // logits over the experts
  kGateUp,
  kSwiGlu,
  kDown,  // of the layer: product with down, or the sum over experts, plus the residual stream
  kFinalNorm,
  kLogits,
};
inline constexpr int kNumOperations = 14;
std::string_view NameOf(Operation operation);  // "attention output gemm"

// One operation's output. Embedding, final norm and logits have layer −1. Rows are those of the
// batch, or of ComputeLogits for the last two.
struct ObservedRows {
  Operation operation = Operation::kEmbedding;
  int64_t layer = -1;
  const float* data = nullptr;  // [rows, cols], row stride `stride` elements; the backend's memory
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;
};

// The experts of every row of the batch in one layer. Host memory, valid during the call.
struct ObservedRouting {
  int64_t layer = 0;
  int64_t tokens = 0;
  int64_t top_k = 0;
  int64_t num_experts = 0;
  const int32_t* experts = nullptr;  // [tokens, top_k] in rank order; −1: the slot is lost
  const int32_t* wanted = nullptr;   // [tokens, top_k]: the experts without capacity limits
  const float* weights = nullptr;    // [tokens, top_k]; +0 for a lost slot
};

class ForwardObserver {
 public:
  virtual ~ForwardObserver() = default;
  // Called after each operation, before the next one runs.
  virtual void OnOutput(const ObservedRows& output) = 0;
  // Called in each layer that is a mixture of experts, between kRouter and kDown.
  virtual void OnRouting(const ObservedRouting& /*routing*/) {}
};

}  // namespace verbatim::model
