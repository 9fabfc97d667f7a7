// What all ranks of an engine make alike.
#include "engine/model_setup.h"

#include <algorithm>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/version.h"
#include "model/step_announcement.h"

namespace verbatim::engine {
namespace {

int64_t PageBytes(const model::ModelConfig& config, int64_t kv_heads, int64_t page_tokens,
                  kernels::DType dtype) {
  return 2 * config.num_layers * kv_heads * config.head_dim * page_tokens *
         kernels::InfoOf(dtype).block_bytes;
}

// What must be the same on every rank, a line each.
std::string IdentityOf(const kernels::Backend& backend, const model::Checkpoint& checkpoint,
                       const EngineConfig& config) {
  const scheduler::SchedulerConfig& sched = config.scheduler;
  std::string out = absl::StrCat(
      "version ", kVersion, "\nweights ", checkpoint.WeightsFingerprint(), "\nrows of a step ",
      sched.max_num_batched_tokens, ", ", sched.max_num_seqs, "\nmodel length ",
      sched.max_model_len, "\npage size ", sched.page_tokens, "\nKV cache type ",
      std::string(kernels::InfoOf(config.kv_cache_dtype).name), "\nexpert capacity ",
      config.moe_capacity_factor, ", ", static_cast<int>(config.moe_overflow),
      "\ndecode steps are ", backend.RecordsDecode() ? "recorded" : "not recorded");
  for (kernels::Policy policy :
       {kernels::Policy::kThroughput, kernels::Policy::kPinned, kernels::Policy::kPortable}) {
    absl::StrAppend(&out, "\narithmetic of ", std::string(kernels::NameOf(policy)), " ",
                    backend.NumericsTag(policy).value_or("refused"));
  }
  return out;
}

// The first line that differs, or an empty string.
std::string FirstDifference(const std::string& mine, const std::string& theirs) {
  const std::vector<std::string> a = absl::StrSplit(mine, '\n'), b = absl::StrSplit(theirs, '\n');
  for (size_t i = 0; i < std::max(a.size(), b.size()); ++i) {
    const std::string left = i < a.size() ? a[i] : "", right = i < b.size() ? b[i] : "";
    if (left != right) return absl::StrCat("'", right, "', not '", left, "'");
  }
  return "";
}

}  // namespace

absl::StatusOr<std::unique_ptr<model::Transformer>> LoadTransformer(
    const EngineConfig& config, kernels::Backend& backend, const model::Checkpoint& checkpoint) {
  const scheduler::SchedulerConfig& sched = config.scheduler;
  absl::StatusOr<std::unique_ptr<model::Transformer>> transformer = model::Transformer::Load(
      backend, checkpoint,
      {.max_batch_rows = std::max(sched.max_num_batched_tokens, sched.max_num_seqs),
       .max_logit_rows = std::min(sched.max_num_seqs, config.max_logit_rows),
       .max_model_len = sched.max_model_len,
       .communicator = config.communicator,
       .moe_capacity_factor = config.moe_capacity_factor,
       .moe_overflow = config.moe_overflow});
  if (!transformer.ok()) return transformer.status();
  // Weights may still be on their way; what goes wrong with them goes wrong here.
  if (absl::Status status = backend.Synchronize(); !status.ok()) return status;
  return transformer;
}

absl::Status ChoosePages(const model::ModelConfig& model, kernels::Backend& backend,
                         EngineConfig* config) {
  scheduler::SchedulerConfig& sched = config->scheduler;
  if (sched.num_pages != 0) return absl::OkStatus();
  const int ranks = config->communicator == nullptr ? 1 : config->communicator->size();
  const absl::StatusOr<int64_t> kv_heads = model::MostKvHeads(model, ranks);
  if (!kv_heads.ok()) return kv_heads.status();
  const int64_t page_bytes = PageBytes(model, *kv_heads, sched.page_tokens, config->kv_cache_dtype);
  if (config->kv_cache_share > 0) {
    const absl::StatusOr<int64_t> free_bytes = backend.FreeMemoryBytes();
    if (!free_bytes.ok()) return free_bytes.status();
    config->kv_cache_bytes =
        static_cast<int64_t>(config->kv_cache_share * static_cast<double>(*free_bytes));
    sched.num_pages = std::min(config->kv_cache_bytes / page_bytes, scheduler::kMaxPages);
    if (sched.num_pages * sched.page_tokens < sched.max_model_len) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "KV cache: ", config->kv_cache_share, " of the ", *free_bytes,
          " bytes that are free beside the weights hold ", sched.num_pages * sched.page_tokens,
          " positions, fewer than one sequence of max_model_len ", sched.max_model_len));
    }
    return absl::OkStatus();
  }
  sched.num_pages = config->kv_cache_bytes / page_bytes;
  if (sched.num_pages > 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("kv_cache_bytes: ", config->kv_cache_bytes,
                                                 " do not hold one page of ", page_bytes,
                                                 " bytes"));
}

absl::Status AgreeOnSetup(kernels::Backend& backend, const model::Checkpoint& checkpoint,
                          EngineConfig* config) {
  parallel::Communicator* const ranks = config->communicator;
  if (ranks == nullptr || ranks->size() == 1) return absl::OkStatus();
  const std::string mine = IdentityOf(backend, checkpoint, *config);
  int64_t& pages = config->scheduler.num_pages;
  if (ranks->rank() != 0) {
    absl::Status told = ranks->Report(absl::StrCat(pages, "\n", mine));
    if (!told.ok()) return told;
    const absl::StatusOr<std::string> agreed = ranks->NextAnnouncement();
    if (!agreed.ok()) return agreed.status();
    if (absl::SimpleAtoi(*agreed, &pages)) return absl::OkStatus();
    return absl::InternalError("rank 0 announced no number of pages");
  }
  const absl::StatusOr<std::vector<std::string>> reports = ranks->TakeReports();
  if (!reports.ok()) return reports.status();
  for (size_t i = 0; i < reports->size(); ++i) {
    const std::pair<std::string, std::string> report =
        absl::StrSplit((*reports)[i], absl::MaxSplits('\n', 1));
    int64_t theirs = 0;
    const std::string difference = FirstDifference(mine, report.second);
    if (!difference.empty() || !absl::SimpleAtoi(report.first, &theirs)) {
      return absl::FailedPreconditionError(
          absl::StrCat("rank ", i + 1, " does not fit rank 0: ", difference));
    }
    pages = std::min(pages, theirs);
  }
  return ranks->Announce(absl::StrCat(pages));
}

absl::StatusOr<std::unique_ptr<kernels::KvCache>> CreateCache(const EngineConfig& config,
                                                              const model::Transformer& transformer,
                                                              kernels::Backend& backend) {
  return backend.CreateKvCache({.num_layers = transformer.config().num_layers,
                                .num_kv_heads = transformer.num_kv_heads(),
                                .head_dim = transformer.config().head_dim,
                                .page_tokens = config.scheduler.page_tokens,
                                .num_pages = config.scheduler.num_pages,
                                .dtype = config.kv_cache_dtype});
}

absl::Status RunFollower(EngineConfig config, kernels::Backend& backend,
                         const model::Checkpoint& checkpoint) {
  parallel::Communicator& ranks = *config.communicator;
  std::unique_ptr<model::Transformer> transformer;
  std::unique_ptr<kernels::KvCache> cache;
  absl::Status ready = [&]() -> absl::Status {
    auto loaded = LoadTransformer(config, backend, checkpoint);
    if (!loaded.ok()) return loaded.status();
    transformer = *std::move(loaded);
    absl::Status status = ChoosePages(checkpoint.config(), backend, &config);
    if (status.ok()) status = AgreeOnSetup(backend, checkpoint, &config);
    if (!status.ok()) return status;
    auto created = CreateCache(config, *transformer, backend);
    if (!created.ok()) return created.status();
    cache = *std::move(created);
    return ranks.Report("ready");
  }();
  if (ready.ok()) return model::FollowSteps(*transformer, *cache, ranks);
  ranks.Abort(ready);
  return ready;
}

}  // namespace verbatim::engine
