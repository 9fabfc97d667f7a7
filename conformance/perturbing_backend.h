// A backend that computes as another one does, on shuffled and poisoned pages, and on command
// produces NaNs or waits.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "kernels/forwarding_backend.h"

namespace verbatim::conformance {

struct PageOptions {
  // Page ids are mapped to a random permutation of a cache that is a quarter larger than asked for.
  bool shuffle = false;
  // Every page is NaN until it is written, and again when its first position is written anew, so
  // that nothing left by an earlier owner can be read unnoticed.
  bool poison = false;
  uint64_t seed = 1;
};

// Hold(), Release() and SetPoisonToken() may be called from any thread.
class PerturbingBackend final : public kernels::ForwardingBackend {
 public:
  PerturbingBackend(std::unique_ptr<kernels::Backend> inner, const PageOptions& pages)
      : ForwardingBackend(std::move(inner)), pages_(pages) {}

  // The next step stops at its beginning until Release(). With requests submitted in between, the
  // composition of the following steps does not depend on timing.
  void Hold();
  void WaitUntilHeld();
  void Release();

  // From now on the embedding of this token is NaN; -1: of none.
  void SetPoisonToken(int32_t token);

  absl::StatusOr<std::unique_ptr<kernels::KvCache>> CreateKvCache(
      const kernels::KvCacheConfig& config) override;
  absl::Status Embedding(const kernels::EmbeddingParams& params) override;
  absl::Status KvWrite(const kernels::KvWriteParams& params) override;
  absl::Status Attention(const kernels::AttentionParams& params) override;

 private:
  // `spans` with the pages of the inner cache; valid until the next call.
  absl::Span<const kernels::SequenceSpan> MapSpans(const kernels::KvCache& cache,
                                                   absl::Span<const kernels::SequenceSpan> spans);

  const PageOptions pages_;
  std::vector<kernels::SequenceSpan> spans_;
  std::vector<int32_t> mapped_pages_;

  std::mutex mu_;
  std::condition_variable changed_;
  bool hold_ = false, held_ = false;
  int32_t poison_token_ = -1;
};

}  // namespace verbatim::conformance
