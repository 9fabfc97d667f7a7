// Joins the ranks' parts of matrix products.
#include "parallel/partial_sums.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace verbatim::parallel {
namespace {

// Slices begin at whole cache lines.
constexpr int64_t kSliceUnit = 16;

struct Slice {
  int64_t begin = 0;
  int64_t count = 0;
};

Slice SliceOf(int64_t count, int ranks, int rank) {
  const int64_t units = (count + kSliceUnit - 1) / kSliceUnit;
  const int64_t begin = std::min(units * rank / ranks * kSliceUnit, count);
  const int64_t end = std::min(units * (rank + 1) / ranks * kSliceUnit, count);
  return {begin, end - begin};
}

}  // namespace

absl::StatusOr<std::unique_ptr<PartialSums>> PartialSums::Create(kernels::Backend& backend,
                                                                 Communicator& communicator,
                                                                 int64_t max_count) {
  auto sums = std::unique_ptr<PartialSums>(new PartialSums(backend, communicator, max_count));
  const int64_t ranks = communicator.size();
  // Whole sums of the others, or a slice from each.
  const int64_t whole = ranks == 2 ? max_count : std::min(max_count, kSlicedCount);
  const int64_t slice = (max_count + ranks - 1) / ranks + kSliceUnit;
  absl::StatusOr<std::unique_ptr<kernels::Buffer>> received =
      backend.Allocate((ranks - 1) * std::max(whole, slice) * sizeof(float));
  if (!received.ok()) return received.status();
  sums->received_ = *std::move(received);
  return sums;
}

absl::Status PartialSums::Join(const kernels::NumericMode& mode, float* partial, int64_t count,
                               const float* residual, float* y, bool round) {
  if (count < 0 || count > max_count_) {
    return absl::InvalidArgumentError(
        absl::StrCat("partial sums: ", count, " elements; at most ", max_count_));
  }
  if (count == 0) return absl::OkStatus();
  if (!kernels::IsStrong(mode.policy)) {
    absl::Status status = communicator_.AllReduceSum(partial, count);
    if (!status.ok()) return status;
    const float* const sum[] = {partial};
    return backend_.TreeSum({.mode = mode,
                             .parts = sum,
                             .count = count,
                             .residual = residual,
                             .y = y,
                             .round_output = round});
  }
  if (communicator_.size() == 2 || count < kSlicedCount) {
    return JoinWhole(mode, partial, count, residual, y, round);
  }
  return JoinSlices(mode, partial, count, residual, y, round);
}

absl::Status PartialSums::JoinWhole(const kernels::NumericMode& mode, float* partial, int64_t count,
                                    const float* residual, float* y, bool round) {
  std::vector<Block> sends, receives;
  std::vector<const float*> parts;
  float* at = static_cast<float*>(received_->data());
  for (int r = 0; r < communicator_.size(); ++r) {
    if (r == communicator_.rank()) {
      parts.push_back(partial);
      continue;
    }
    sends.push_back({.peer = r, .data = partial, .cols = count});
    receives.push_back({.peer = r, .data = at, .cols = count});
    parts.push_back(at);
    at += count;
  }
  absl::Status status = communicator_.Exchange(sends, receives);
  if (!status.ok()) return status;
  return backend_.TreeSum({.mode = mode,
                           .parts = parts,
                           .count = count,
                           .residual = residual,
                           .y = y,
                           .round_output = round});
}

absl::Status PartialSums::JoinSlices(const kernels::NumericMode& mode, float* partial,
                                     int64_t count, const float* residual, float* y, bool round) {
  const int ranks = communicator_.size();
  const Slice mine = SliceOf(count, ranks, communicator_.rank());
  std::vector<Block> sends, receives;
  std::vector<const float*> parts;
  float* at = static_cast<float*>(received_->data());
  for (int r = 0; r < ranks; ++r) {
    if (r == communicator_.rank()) {
      parts.push_back(partial + mine.begin);
      continue;
    }
    const Slice theirs = SliceOf(count, ranks, r);
    sends.push_back({.peer = r, .data = partial + theirs.begin, .cols = theirs.count});
    receives.push_back({.peer = r, .data = at, .cols = mine.count});
    parts.push_back(at);
    at += mine.count;
  }
  absl::Status status = communicator_.Exchange(sends, receives);
  if (!status.ok()) return status;
  status = backend_.TreeSum({.mode = mode,
                             .parts = parts,
                             .count = mine.count,
                             .residual = residual == nullptr ? nullptr : residual + mine.begin,
                             .y = y + mine.begin,
                             .round_output = round});
  if (!status.ok()) return status;
  sends.clear();
  receives.clear();
  for (int r = 0; r < ranks; ++r) {
    if (r == communicator_.rank()) continue;
    const Slice theirs = SliceOf(count, ranks, r);
    sends.push_back({.peer = r, .data = y + mine.begin, .cols = mine.count});
    receives.push_back({.peer = r, .data = y + theirs.begin, .cols = theirs.count});
  }
  return communicator_.Exchange(sends, receives);
}

}  // namespace verbatim::parallel
