// Finds the tokens of which prompts are made that crowd a mixture's experts, or spread over them.
#include "conformance/expert_tokens.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <set>
#include <utility>

#include "kernels/cpu/cpu_backend.h"
#include "model/transformer.h"

namespace verbatim::conformance {
namespace {

constexpr int64_t kMaxCandidates = 192;
constexpr int64_t kRows = 256;  // of one Forward
constexpr int64_t kPageTokens = 16;
constexpr int64_t kLastRows = 8;  // of a subject's prompt
constexpr size_t kSpreadTokens = 48;

// How many slots of some rows each expert of each layer got: [layers · experts].
using Load = std::vector<int64_t>;

// Loads of rows of one forward pass, by row.
class RoutingWatch final : public model::ForwardObserver {
 public:
  RoutingWatch(int64_t layers, int64_t rows) : layers_(layers), loads_(rows) {}

  void OnOutput(const model::ObservedRows&) override {}
  void OnRouting(const model::ObservedRouting& routing) override {
    for (int64_t row = 0; row < routing.tokens; ++row) {
      Load& load = loads_[row];
      load.resize(layers_ * routing.num_experts);
      for (int64_t rank = 0; rank < routing.top_k; ++rank) {
        const int32_t expert = routing.experts[row * routing.top_k + rank];
        ++load[routing.layer * routing.num_experts + expert];
      }
    }
  }
  const std::vector<Load>& loads() const { return loads_; }

 private:
  const int64_t layers_;
  std::vector<Load> loads_;
};

// A model of its own, without an engine.
class Router {
 public:
  static absl::StatusOr<std::unique_ptr<Router>> Create(const LoadedModel& model, int64_t longest) {
    auto router = std::make_unique<Router>();
    auto backend = kernels::cpu::CpuBackend::Create({.threads = 2});
    if (!backend.ok()) return backend.status();
    router->backend_ = *std::move(backend);
    const int64_t rows = std::max(kRows, longest);
    auto transformer = model::Transformer::Load(
        *router->backend_, *model.checkpoint,
        {.max_batch_rows = rows, .max_logit_rows = 1, .max_model_len = longest});
    if (!transformer.ok()) return transformer.status();
    router->transformer_ = *std::move(transformer);
    const model::ModelConfig& config = router->transformer_->config();
    router->pages_.resize(static_cast<size_t>(std::max(kRows, longest / kPageTokens + 1)));
    std::iota(router->pages_.begin(), router->pages_.end(), 0);
    auto cache =
        router->backend_->CreateKvCache({.num_layers = config.num_layers,
                                         .num_kv_heads = config.num_kv_heads,
                                         .head_dim = config.head_dim,
                                         .page_tokens = kPageTokens,
                                         .num_pages = static_cast<int64_t>(router->pages_.size())});
    if (!cache.ok()) return cache.status();
    router->cache_ = *std::move(cache);
    return router;
  }

  // Of each token alone.
  absl::StatusOr<std::vector<Load>> Tokens(const std::vector<int32_t>& tokens) {
    model::ForwardBatch batch;
    batch.tokens = tokens;
    batch.positions.assign(tokens.size(), 0);
    for (size_t i = 0; i < tokens.size(); ++i) {
      batch.spans.push_back({.first_row = static_cast<int32_t>(i),
                             .num_rows = 1,
                             .first_position = 0,
                             .pages = &pages_[i],
                             .num_pages = 1});
    }
    return Run(batch);
  }
  // Of every row of a prompt.
  absl::StatusOr<std::vector<Load>> Prompt(const std::vector<int32_t>& prompt) {
    model::ForwardBatch batch;
    batch.tokens = prompt;
    batch.positions.resize(prompt.size());
    std::iota(batch.positions.begin(), batch.positions.end(), 0);
    batch.spans.push_back({.first_row = 0,
                           .num_rows = static_cast<int32_t>(prompt.size()),
                           .first_position = 0,
                           .pages = pages_.data(),
                           .num_pages = static_cast<int32_t>(pages_.size())});
    return Run(batch);
  }

 private:
  absl::StatusOr<std::vector<Load>> Run(const model::ForwardBatch& batch) {
    RoutingWatch watch(transformer_->config().num_layers, batch.rows());
    transformer_->set_observer(&watch);
    absl::Status status =
        transformer_->Forward(batch, {.policy = kernels::Policy::kPortable}, *cache_);
    transformer_->set_observer(nullptr);
    if (!status.ok()) return status;
    return watch.loads();
  }

  std::unique_ptr<kernels::Backend> backend_;
  std::unique_ptr<model::Transformer> transformer_;
  std::unique_ptr<kernels::KvCache> cache_;
  std::vector<int32_t> pages_;
};

int64_t Overlap(const Load& x, const Load& y) {
  return std::inner_product(x.begin(), x.end(), y.begin(), int64_t{0});
}

void Add(const Load& load, Load* sum) {
  sum->resize(load.size());
  for (size_t i = 0; i < load.size(); ++i) (*sum)[i] += load[i];
}

// The candidate whose load overlaps most with `load`; the first of equals.
size_t MostLike(const std::vector<Load>& candidates, const Load& load) {
  size_t best = 0;
  for (size_t i = 1; i < candidates.size(); ++i) {
    if (Overlap(candidates[i], load) > Overlap(candidates[best], load)) best = i;
  }
  return best;
}

}  // namespace

absl::StatusOr<ExpertTokens> ExpertTokens::Probe(const LoadedModel& model,
                                                 const Workload& workload) {
  ExpertTokens out;
  if (model.checkpoint->config().moe.num_experts == 0) return out;
  std::set<int32_t> distinct;
  for (const int32_t token : workload.tokens()) {
    if (distinct.size() < kMaxCandidates) distinct.insert(token);
  }
  const std::vector<int32_t> tokens(distinct.begin(), distinct.end());
  int64_t longest = kPageTokens;
  for (const Subject& subject : workload.subjects()) {
    longest = std::max(longest, static_cast<int64_t>(subject.request.prompt.size()));
  }
  absl::StatusOr<std::unique_ptr<Router>> router = Router::Create(model, longest);
  if (!router.ok()) return router.status();
  const absl::StatusOr<std::vector<Load>> candidates = (*router)->Tokens(tokens);
  if (!candidates.ok()) return candidates.status();

  Load all;
  for (const Load& load : *candidates) Add(load, &all);
  out.popular_ = tokens[MostLike(*candidates, all)];
  for (const Subject& subject : workload.subjects()) {
    const absl::StatusOr<std::vector<Load>> rows = (*router)->Prompt(subject.request.prompt);
    if (!rows.ok()) return rows.status();
    Load last;
    const size_t count = std::min(rows->size(), static_cast<size_t>(kLastRows));
    for (size_t i = rows->size() - count; i < rows->size(); ++i) Add((*rows)[i], &last);
    out.like_subject_.push_back(tokens[MostLike(*candidates, last)]);
  }
  // One after the other, the candidate that overlaps least with those before it.
  Load sum(all.size());
  for (size_t n = 0; n < kSpreadTokens; ++n) {
    size_t best = 0;
    for (size_t i = 1; i < candidates->size(); ++i) {
      if (Overlap((*candidates)[i], sum) < Overlap((*candidates)[best], sum)) best = i;
    }
    Add((*candidates)[best], &sum);
    out.spread_.push_back(tokens[best]);
  }
  return out;
}

}  // namespace verbatim::conformance
