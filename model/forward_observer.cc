// The names of observed operations.
#include "model/forward_observer.h"

namespace verbatim::model {

std::string_view NameOf(Operation operation) {
  switch (operation) {
    case Operation::kEmbedding:
      return "embedding";
    case Operation::kAttnNorm:
      return "attention norm";
    case Operation::kQkv:
      return "qkv gemm";
    case Operation::kQkNorm:
      return "query and key norm";
    case Operation::kRope:
      return "rotary embedding";
    case Operation::kAttention:
      return "attention";
    case Operation::kAttnOutput:
      return "attention output gemm";
    case Operation::kFfnNorm:
      return "feed-forward norm";
    case Operation::kRouter:
      return "router gemm";
    case Operation::kGateUp:
      return "gate and up gemm";
    case Operation::kSwiGlu:
      return "SwiGLU";
    case Operation::kDown:
      return "down gemm";
    case Operation::kFinalNorm:
      return "final norm";
    case Operation::kLogits:
      return "logits gemm";
  }
  return "unknown";
}

}  // namespace verbatim::model
