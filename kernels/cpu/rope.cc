// Rotary position embedding on the CPU: checks and work split.
#include "kernels/cpu/rope.h"

#include "absl/strings/str_cat.h"
#include "kernels/cpu/parallel.h"

namespace verbatim::kernels::cpu {
namespace isa_scalar {
void RopeRows(const RopeParams& params, int64_t begin, int64_t end);
}
namespace isa_avx2 {
void RopeRows(const RopeParams& params, int64_t begin, int64_t end);
}
namespace isa_avx512 {
void RopeRows(const RopeParams& params, int64_t begin, int64_t end);
}

absl::Status Rope(const CpuContext& context, const RopeParams& params) {
  if (params.tokens < 0 || params.num_heads < 0 || params.num_kv_heads < 0 || params.head_dim < 2 ||
      params.head_dim % 2 != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "Rope: tokens ", params.tokens, ", num_heads ", params.num_heads, ", num_kv_heads ",
        params.num_kv_heads, ", head_dim ", params.head_dim, " (must be even)"));
  }
  if (params.tokens == 0) return absl::OkStatus();
  const int64_t row_elements = (params.num_heads + params.num_kv_heads) * params.head_dim;
  if (params.qkv == nullptr || params.positions == nullptr || params.cos_table == nullptr ||
      params.sin_table == nullptr || params.row_stride < row_elements) {
    return absl::InvalidArgumentError(
        absl::StrCat("Rope: row_stride ", params.row_stride, " is below the ", row_elements,
                     " elements of query and key heads, or an array is missing"));
  }
  for (int64_t t = 0; t < params.tokens; ++t) {
    if (params.positions[t] < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("Rope: positions[", t, "] is ", params.positions[t]));
    }
  }
  auto* rows = &isa_scalar::RopeRows;
#if defined(__x86_64__)
  if (context.isa == Isa::kAvx512) rows = &isa_avx512::RopeRows;
  if (context.isa == Isa::kAvx2) rows = &isa_avx2::RopeRows;
#endif
  ParallelRows(context, params.tokens, row_elements, kMinElementsPerThread,
               [&](int64_t begin, int64_t end) { rows(params, begin, end); });
  return absl::OkStatus();
}

}  // namespace verbatim::kernels::cpu
