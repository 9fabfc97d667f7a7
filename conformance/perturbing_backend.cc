// A backend that computes as another one does, on shuffled and poisoned pages, on command produces
// NaNs or waits, and counts what a mixture's routers did.
#include "conformance/perturbing_backend.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "conformance/random.h"

namespace verbatim::conformance {
namespace {

// A cache whose page i is page pages()[i] of another.
class MappedKvCache final : public kernels::KvCache {
 public:
  MappedKvCache(const kernels::KvCacheConfig& config, std::unique_ptr<kernels::KvCache> inner,
                std::vector<int32_t> pages)
      : config_(config), inner_(std::move(inner)), pages_(std::move(pages)) {}

  const kernels::KvCacheConfig& config() const override { return config_; }
  size_t size_bytes() const override { return inner_->size_bytes(); }
  absl::Status Poison(absl::Span<const int32_t> pages) override {
    std::vector<int32_t> mapped;
    for (const int32_t page : pages) mapped.push_back(pages_[page]);
    return inner_->Poison(mapped);
  }
  kernels::KvCache& inner() const { return *inner_; }
  const std::vector<int32_t>& pages() const { return pages_; }

 private:
  const kernels::KvCacheConfig config_;
  const std::unique_ptr<kernels::KvCache> inner_;
  const std::vector<int32_t> pages_;
};

// Copies `count` elements of the backend's memory; none where `from` is null.
template <class T>
absl::Status ToHost(kernels::Backend& backend, const T* from, int64_t count, std::vector<T>* to) {
  to->resize(from == nullptr ? 0 : static_cast<size_t>(count));
  if (to->empty()) return absl::OkStatus();
  return backend.CopyToHost(to->data(), from, to->size() * sizeof(T));
}

const MappedKvCache& Mapped(const kernels::KvCache& cache) {
  return static_cast<const MappedKvCache&>(cache);  // the only kind this backend makes
}

}  // namespace

void PerturbingBackend::Hold() {
  std::lock_guard lock(mu_);
  hold_ = true;
}

void PerturbingBackend::WaitUntilHeld() {
  std::unique_lock lock(mu_);
  changed_.wait(lock, [this] { return held_; });
}

void PerturbingBackend::Release() {
  std::lock_guard lock(mu_);
  hold_ = false;
  changed_.notify_all();
}

void PerturbingBackend::SetPoisonToken(int32_t token) {
  std::lock_guard lock(mu_);
  poison_token_ = token;
}

absl::StatusOr<std::unique_ptr<kernels::KvCache>> PerturbingBackend::CreateKvCache(
    const kernels::KvCacheConfig& config) {
  kernels::KvCacheConfig larger = config;
  if (pages_.shuffle) larger.num_pages += config.num_pages / 4 + 1;
  absl::StatusOr<std::unique_ptr<kernels::KvCache>> cache = inner().CreateKvCache(larger);
  if (!cache.ok()) return cache.status();
  std::vector<int32_t> pages(larger.num_pages);
  std::iota(pages.begin(), pages.end(), 0);
  if (pages_.poison) {
    if (absl::Status status = (*cache)->Poison(pages); !status.ok()) return status;
  }
  if (pages_.shuffle) {
    Random random(pages_.seed);
    random.Shuffle(pages);
  }
  return std::make_unique<MappedKvCache>(config, *std::move(cache), std::move(pages));
}

void PerturbingBackend::WaitWhileHeld() {
  std::unique_lock lock(mu_);
  if (!hold_) return;
  held_ = true;
  changed_.notify_all();
  changed_.wait(lock, [this] { return !hold_; });
  held_ = false;
}

std::string PerturbingBackend::DecodePlan(const kernels::DecodeStep& step) const {
  kernels::DecodeStep mapped = step;
  mapped.cache = &Mapped(*step.cache).inner();
  return inner().DecodePlan(mapped);
}

absl::Status PerturbingBackend::RunDecode(const kernels::DecodeStep& step,
                                          absl::FunctionRef<absl::Status()> operations) {
  WaitWhileHeld();
  kernels::DecodeStep mapped = step;
  mapped.spans = MapSpans(*step.cache, step.spans);
  mapped.cache = &Mapped(*step.cache).inner();
  if (absl::Status status = PoisonBegun(*mapped.cache, mapped.spans); !status.ok()) return status;
  // The spans must outlive the operations, which map their own.
  const std::vector<kernels::SequenceSpan> spans = std::move(spans_);
  const std::vector<int32_t> pages = std::move(mapped_pages_);
  mapped.spans = spans;
  {
    std::lock_guard lock(mu_);
    if (poison_token_ >= 0) mapped.replayable = false;
  }
  if (routed_decodes_ > 0 && routed_decodes_++ % 2 == 1) mapped.replayable = false;
  int calls = 0;
  in_decode_ = true;
  absl::Status status = inner().RunDecode(mapped, [&] {
    recording_ = calls++ > 0;
    return operations();
  });
  in_decode_ = recording_ = false;
  return status;
}

absl::Status PerturbingBackend::Embedding(const kernels::EmbeddingParams& params) {
  if (!in_decode_) WaitWhileHeld();
  int32_t poison_token;
  {
    std::lock_guard lock(mu_);
    poison_token = recording_ ? -1 : poison_token_;
  }
  absl::Status status = inner().Embedding(params);
  if (poison_token < 0) return status;
  const size_t cols = static_cast<size_t>(params.table->cols());
  status.Update(ToHost(inner(), params.tokens, params.num_tokens, &host_tokens_));
  const std::vector<float> poison(cols, std::numeric_limits<float>::quiet_NaN());
  for (size_t t = 0; t < host_tokens_.size(); ++t) {
    if (host_tokens_[t] != poison_token) continue;
    status.Update(inner().CopyToDevice(params.y + t * cols, poison.data(), cols * sizeof(float)));
  }
  return status;
}

absl::Span<const kernels::SequenceSpan> PerturbingBackend::MapSpans(
    const kernels::KvCache& cache, absl::Span<const kernels::SequenceSpan> spans) {
  const std::vector<int32_t>& map = Mapped(cache).pages();
  size_t total = 0;
  for (const kernels::SequenceSpan& span : spans) total += static_cast<size_t>(span.num_pages);
  mapped_pages_.clear();
  mapped_pages_.reserve(total);  // the spans point into it
  spans_.assign(spans.begin(), spans.end());
  for (kernels::SequenceSpan& span : spans_) {
    const int32_t* first = mapped_pages_.data() + mapped_pages_.size();
    for (int32_t i = 0; i < span.num_pages; ++i) mapped_pages_.push_back(map[span.pages[i]]);
    span.pages = first;
  }
  return spans_;
}

absl::Status PerturbingBackend::PoisonBegun(kernels::KvCache& cache,
                                            absl::Span<const kernels::SequenceSpan> spans) {
  if (!pages_.poison) return absl::OkStatus();
  const int64_t page_tokens = cache.config().page_tokens;
  std::vector<int32_t> begun;
  for (const kernels::SequenceSpan& span : spans) {
    const int64_t end = int64_t{span.first_position} + span.num_rows;
    for (int64_t page = (span.first_position + page_tokens - 1) / page_tokens;
         page * page_tokens < end; ++page) {
      begun.push_back(span.pages[page]);
    }
  }
  return cache.Poison(begun);
}

absl::Status PerturbingBackend::KvWrite(const kernels::KvWriteParams& params) {
  kernels::KvWriteParams mapped = params;
  mapped.spans = MapSpans(*params.cache, params.spans);
  mapped.cache = &Mapped(*params.cache).inner();
  if (!in_decode_ && params.layer == 0) {
    absl::Status status = PoisonBegun(*mapped.cache, mapped.spans);
    if (!status.ok()) return status;
  }
  return inner().KvWrite(mapped);
}

absl::Status PerturbingBackend::Attention(const kernels::AttentionParams& params) {
  kernels::AttentionParams mapped = params;
  mapped.spans = MapSpans(*params.cache, params.spans);
  mapped.cache = &Mapped(*params.cache).inner();
  return inner().Attention(mapped);
}

absl::Status PerturbingBackend::MoeRoute(const kernels::MoeRouteParams& params) {
  if (absl::Status status = inner().MoeRoute(params); !status.ok()) return status;
  if (in_decode_ && routed_decodes_ == 0) routed_decodes_ = 1;
  if (recording_) return absl::OkStatus();
  absl::Status copied = ToHost(inner(), params.limits, params.limits == nullptr ? 0 : 1, &limits_);
  if (!copied.ok()) return copied;
  const int64_t tokens = limits_.empty() ? params.tokens : limits_[0].tokens;
  const int64_t slots = tokens * params.top_k;
  copied.Update(ToHost(inner(), params.experts, slots, &host_experts_));
  copied.Update(ToHost(inner(), params.wanted, slots, &host_wanted_));
  copied.Update(ToHost(inner(), params.exempt, tokens, &host_exempt_));
  if (!copied.ok()) return copied;
  int64_t lost = 0, rerouted = 0;
  std::vector<int64_t> load(static_cast<size_t>(params.num_experts));
  for (size_t slot = 0; slot < host_experts_.size(); ++slot) {
    const int32_t expert = host_experts_[slot];
    if (expert >= 0) ++load[static_cast<size_t>(expert)];
    if (expert < 0) ++lost;
    if (expert >= 0 && !host_wanted_.empty() && host_wanted_[slot] != expert) ++rerouted;
  }
  const double even = static_cast<double>(slots) / static_cast<double>(params.num_experts);
  const double most = static_cast<double>(*std::max_element(load.begin(), load.end()));
  const bool has_exempt =
      std::any_of(host_exempt_.begin(), host_exempt_.end(), [](uint8_t e) { return e != 0; });
  std::lock_guard lock(mu_);
  if (tokens >= 8 && most >= 2 * even) ++routing_.crowded;
  if (even >= 2 && most <= 1.75 * even) ++routing_.spread;
  routing_.lost_slots += lost;
  routing_.rerouted_slots += rerouted;
  if (has_exempt) {
    routing_.lost_beside_exempt += lost;
    routing_.rerouted_beside_exempt += rerouted;
  }
  return absl::OkStatus();
}

RoutingCounts PerturbingBackend::TakeRoutingCounts() {
  std::lock_guard lock(mu_);
  return std::exchange(routing_, {});
}

}  // namespace verbatim::conformance
