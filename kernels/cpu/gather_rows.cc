// Row selection on the CPU.
#include "kernels/cpu/gather_rows.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/parallel.h"

namespace verbatim::kernels::cpu {

absl::Status GatherRows(const CpuContext& context, const GatherRowsParams& params) {
  if (params.rows < 0 || params.cols < 1 || params.num_rows < 0) {
    return absl::InvalidArgumentError(absl::StrCat("GatherRows: rows ", params.rows, ", cols ",
                                                   params.cols, ", num_rows ", params.num_rows));
  }
  if (params.num_rows == 0) return absl::OkStatus();
  if (params.x == nullptr || params.y == nullptr || params.index == nullptr) {
    return absl::InvalidArgumentError("GatherRows: x, y or index is missing");
  }
  for (int64_t i = 0; i < params.num_rows; ++i) {
    if (params.index[i] < 0 || params.index[i] >= params.rows) {
      return absl::InvalidArgumentError(absl::StrCat(
          "GatherRows: index[", i, "] is ", params.index[i], " of ", params.rows, " rows"));
    }
  }
  ParallelRows(context, params.num_rows, params.cols, kMinElementsPerThread,
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i) {
                   memcpy(params.y + i * params.cols, params.x + params.index[i] * params.cols,
                          params.cols * sizeof(float));
                 }
               });
  return absl::OkStatus();
}

}  // namespace verbatim::kernels::cpu
