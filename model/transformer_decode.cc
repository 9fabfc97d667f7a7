// Decode steps: what all ranks must do alike about them, and the first one.
#include <string>

#include "absl/strings/str_cat.h"
#include "model/transformer.h"

namespace verbatim::model {

using kernels::NumericMode;

kernels::DecodeStep Transformer::StepOf(const ForwardBatch& batch, const NumericMode& mode,
                                        kernels::KvCache& cache, const DecodeTerms& terms) const {
  return {.owner = this,
          .mode = mode,
          .variant = feed_forward_->VariantOf(batch.rows(), batch.capacity_exempt),
          .cache = &cache,
          .num_heads = local_.num_heads,
          .rows = terms.rows,
          .spans = batch.spans,
          .replayable = terms.replayable};
}

DecodeTerms Transformer::TermsOf(const ForwardBatch& batch, const NumericMode& mode,
                                 kernels::KvCache& cache) const {
  if (!batch.IsDecode()) return {};
  DecodeTerms terms = {.rows = backend_.DecodeRows(batch.rows()),
                       .replayable = observer_ == nullptr && batch.forced_routing == nullptr &&
                                     (!sharded() || RecordsExchanges())};
  if (RecordsExchanges()) terms.plan = backend_.DecodePlan(StepOf(batch, mode, cache, terms));
  return terms;
}

absl::Status Transformer::CheckTerms(const ForwardBatch& batch, const NumericMode& mode,
                                     kernels::KvCache& cache, const DecodeTerms& terms) const {
  if (terms.rows == 0 && !batch.IsDecode()) return absl::OkStatus();
  if (!batch.IsDecode() || terms.rows < batch.rows() ||
      terms.rows > backend_.DecodeRows(options_.max_batch_rows)) {
    return absl::InternalError(
        absl::StrCat("rank 0 announced a decode step of ", terms.rows, " rows for ", batch.rows()));
  }
  std::string plan;
  if (RecordsExchanges()) plan = backend_.DecodePlan(StepOf(batch, mode, cache, terms));
  if (plan == terms.plan) return absl::OkStatus();
  const auto named = [](const std::string& words) {
    return words.empty() ? std::string("records none") : words;
  };
  return absl::InternalError(absl::StrCat("the ranks' recorded decode steps differ: here ",
                                          named(plan), "; rank 0: ", named(terms.plan)));
}

absl::Status Transformer::FollowForward(const ForwardBatch& batch, const NumericMode& mode,
                                        kernels::KvCache& cache, const DecodeTerms& terms) {
  absl::Status status = CheckStep(batch, mode);
  if (status.ok()) status = CheckTerms(batch, mode, cache, terms);
  if (status.ok()) status = ForwardShard(batch, mode, cache, terms);
  return FailEverywhere(status);
}

absl::Status Transformer::TryDecode(const NumericMode& mode, kernels::KvCache& cache) {
  if (sharded() ? !RecordsExchanges() : !backend_.RecordsDecode()) return absl::OkStatus();
  const int32_t page = 0;
  ForwardBatch batch;
  batch.tokens = {0};
  batch.positions = {0};
  batch.spans = {{.first_row = 0, .num_rows = 1, .pages = &page, .num_pages = 1}};
  batch.capacity_exempt = {static_cast<uint8_t>(kernels::IsStrong(mode.policy) ? 1 : 0)};
  absl::Status status;
  for (int i = 0; i < 2 && status.ok(); ++i) {
    status = Forward(batch, mode, cache);
  }
  // The other ranks wait behind their logits for what could go wrong on their devices.
  const int32_t row = 0;
  if (status.ok() && leads()) status = ComputeLogits({&row, 1}, mode).status();
  status.Update(feed_forward_->Forget());
  last_rows_ = 0;
  status.Update(backend_.Synchronize());
  if (leads()) status.Update(options_.communicator->failure());
  return status;
}

}  // namespace verbatim::model
