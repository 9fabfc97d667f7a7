// Splits the rows of a cheap operation over the pool, or keeps them on the calling thread.
#pragma once

#include <algorithm>
#include <cstdint>

#include "absl/functional/function_ref.h"
#include "kernels/cpu/context.h"

namespace verbatim::kernels::cpu {

// Work below which a thread is not worth waking, in elements read or written once. Handing work to
// a spinning thread costs about a microsecond, to a sleeping one several
// (bench/attention_bench.cc).
inline constexpr int64_t kMinElementsPerThread = 32768;

// Calls fn(begin, end) for parts that together cover [0, rows), each on one thread and holding at
// least min_elements of row_elements a row.
inline void ParallelRows(const CpuContext& context, int64_t rows, int64_t row_elements,
                         int64_t min_elements, absl::FunctionRef<void(int64_t, int64_t)> fn) {
  const int64_t useful = std::max<int64_t>(rows * row_elements / min_elements, 1);
  const int threads = static_cast<int>(std::min<int64_t>({context.pool->threads(), useful, rows}));
  if (threads <= 1) {
    fn(0, rows);
    return;
  }
  context.pool->Run([&](int thread) {
    if (thread >= threads) return;
    const ThreadPool::Range range = ThreadPool::PartOf(rows, 1, thread, threads);
    if (range.begin < range.end) fn(range.begin, range.end);
  });
}

}  // namespace verbatim::kernels::cpu
