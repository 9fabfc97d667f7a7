// Which kernel a trace names for a matrix.
#include "replay/kernel_choice.h"

#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"

namespace verbatim::replay {
namespace {

// "onednn*2+bf16*28": the kernel of one layer.
std::string OfLayer(const std::string& runs, int64_t layer) {
  for (absl::string_view run : absl::StrSplit(runs, '+')) {
    const std::vector<std::string> parts = absl::StrSplit(run, '*');
    int64_t length = 0;
    if (parts.size() != 2 || !absl::SimpleAtoi(parts[1], &length)) return parts[0];
    if (layer < length) return parts[0];
    layer -= length;
  }
  return runs;
}

}  // namespace

std::string KernelOf(const trace::Trace& trace, const kernels::NumericMode& mode, int64_t rows,
                     Product product, std::string_view matrix, int64_t layer) {
  const bool strong = kernels::IsStrong(mode.policy);
  for (const trace::KernelChoice& choice : trace.kernels) {
    if (choice.mode.policy != mode.policy || choice.rows != rows ||
        (!strong && choice.mode.activations != mode.activations) ||
        choice.logits != (product == Product::kLogits) ||
        choice.experts != (product == Product::kExperts)) {
      continue;
    }
    for (const auto& [name, kernel] : choice.kernels) {
      if (name == matrix) return OfLayer(kernel, layer);
    }
  }
  return "";
}

}  // namespace verbatim::replay
