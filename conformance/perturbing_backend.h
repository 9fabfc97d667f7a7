// A backend that computes as another one does, on shuffled and poisoned pages, on command produces
// NaNs or waits, and counts what a mixture's routers did.
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

// What routers did, each layer of each step being one routing. Even: slots / experts.
struct RoutingCounts {
  int64_t crowded = 0;  // routings of 8 rows or more that gave an expert twice the even share
  int64_t spread = 0;   // routings of an even share of 2 or more that gave none 1.75 times as much
  int64_t lost_slots = 0, rerouted_slots = 0;                  // by capacity limits
  int64_t lost_beside_exempt = 0, rerouted_beside_exempt = 0;  // in routings with exempt rows
};

// Hold(), Release(), SetPoisonToken() and TakeRoutingCounts() may be called from any thread.
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

  // Since the last call.
  RoutingCounts TakeRoutingCounts();

  absl::StatusOr<std::unique_ptr<kernels::KvCache>> CreateKvCache(
      const kernels::KvCacheConfig& config) override;
  // A decode step is held, and its pages poisoned, before it runs, so that it can be replayed. Not
  // replayed are steps while a token is poisoned, and every second one of a mixture: its routers'
  // results are counted.
  std::string DecodePlan(const kernels::DecodeStep& step) const override;
  absl::Status RunDecode(const kernels::DecodeStep& step,
                         absl::FunctionRef<absl::Status()> operations) override;
  absl::Status Embedding(const kernels::EmbeddingParams& params) override;
  absl::Status KvWrite(const kernels::KvWriteParams& params) override;
  absl::Status Attention(const kernels::AttentionParams& params) override;
  absl::Status MoeRoute(const kernels::MoeRouteParams& params) override;

 private:
  void WaitWhileHeld();
  // Poisons the pages, of those that the inner cache has for `spans`, whose first position is among
  // them.
  absl::Status PoisonBegun(kernels::KvCache& cache, absl::Span<const kernels::SequenceSpan> spans);
  // `spans` with the pages of the inner cache; valid until the next call.
  absl::Span<const kernels::SequenceSpan> MapSpans(const kernels::KvCache& cache,
                                                   absl::Span<const kernels::SequenceSpan> spans);

  const PageOptions pages_;
  bool in_decode_ = false, recording_ = false;
  int64_t routed_decodes_ = 0;  // decode steps since the first that had a router
  std::vector<kernels::SequenceSpan> spans_;
  std::vector<int32_t> mapped_pages_;
  std::vector<int32_t> host_tokens_, host_experts_, host_wanted_;
  std::vector<uint8_t> host_exempt_;
  std::vector<kernels::MoeStepLimits> limits_;

  std::mutex mu_;
  std::condition_variable changed_;
  bool hold_ = false, held_ = false;
  int32_t poison_token_ = -1;
  RoutingCounts routing_;
};

}  // namespace verbatim::conformance
