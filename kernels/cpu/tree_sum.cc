// The sum of parts by the reduction tree, on the CPU. Elements are independent, so blocks of them
// are summed part by part in loops that the compiler vectorises.
#include "kernels/cpu/tree_sum.h"

#include <algorithm>

#include "kernels/cpu/parallel.h"
#include "kernels/numerics/bf16.h"
#include "kernels/numerics/reduction_tree.h"
#include "kernels/ops/checks.h"

namespace verbatim::kernels::cpu {
namespace {

constexpr int64_t kBlock = 256;

// The node over parts [0, count), elements [at, at + length), to `out`.
void SumNode(const float* const* parts, int64_t count, int64_t at, int64_t length, float* out) {
  if (count == 1) {
    std::copy_n(parts[0] + at, length, out);
    return;
  }
  const int64_t left = numerics::LeftCount(count);
  SumNode(parts, left, at, length, out);
  float right[kBlock];
  const float* addend = right;
  if (count - left == 1) {
    addend = parts[left] + at;
  } else {
    SumNode(parts + left, count - left, at, length, right);
  }
  for (int64_t i = 0; i < length; ++i) out[i] = out[i] + addend[i];
}

}  // namespace

absl::Status TreeSum(const CpuContext& context, const TreeSumParams& params) {
  if (absl::Status status = CheckTreeSum(params); !status.ok()) return status;
  if (params.count == 0) return absl::OkStatus();
  const bool round = params.round_output && !IsStrong(params.mode.policy) &&
                     params.mode.activations == ActivationType::kBF16;
  const int64_t parts = static_cast<int64_t>(params.parts.size());
  const int64_t blocks = (params.count + kBlock - 1) / kBlock;
  ParallelRows(context, blocks, kBlock * parts, kMinElementsPerThread,
               [&](int64_t begin, int64_t end) {
                 for (int64_t block = begin; block < end; ++block) {
                   const int64_t at = block * kBlock;
                   const int64_t length = std::min(kBlock, params.count - at);
                   float sum[kBlock];
                   SumNode(params.parts.data(), parts, at, length, sum);
                   if (params.residual != nullptr) {
                     for (int64_t i = 0; i < length; ++i) sum[i] = params.residual[at + i] + sum[i];
                   }
                   if (round) {
                     for (int64_t i = 0; i < length; ++i) sum[i] = numerics::RoundToBf16(sum[i]);
                   }
                   std::copy_n(sum, length, params.y + at);
                 }
               });
  return absl::OkStatus();
}

}  // namespace verbatim::kernels::cpu
