// Forward passes of several ranks, each a thread with a backend of its own.
#include "tests/reference/ranks_runner.h"

#include <algorithm>
#include <random>
#include <thread>
#include <utility>

#include "model/step_announcement.h"
#include "parallel/thread_communicator.h"

namespace verbatim::model {
namespace {

constexpr int64_t kPageTokens = 16, kLogitRows = 8;

}  // namespace

absl::StatusOr<Rank> MakeRank(const RankPlace& place, const Checkpoint& checkpoint,
                              parallel::Communicator* communicator) {
  Rank rank;
  rank.backend = place.make_backend(communicator == nullptr ? 0 : communicator->rank());
  if (communicator != nullptr && place.on_device) {
    rank.device = place.on_device(*communicator, *rank.backend);
    communicator = rank.device.get();
  }
  auto transformer = Transformer::Load(*rank.backend, checkpoint,
                                       {.max_batch_rows = 256,
                                        .max_logit_rows = kLogitRows,
                                        .max_model_len = 256,
                                        .communicator = communicator});
  if (!transformer.ok()) return transformer.status();
  rank.transformer = *std::move(transformer);
  auto cache = rank.backend->CreateKvCache({.num_layers = checkpoint.config().num_layers,
                                            .num_kv_heads = rank.transformer->num_kv_heads(),
                                            .head_dim = checkpoint.config().head_dim,
                                            .page_tokens = kPageTokens,
                                            .num_pages = place.num_pages});
  if (!cache.ok()) return cache.status();
  rank.cache = *std::move(cache);
  std::vector<int32_t> all(place.num_pages);
  for (int32_t i = 0; i < place.num_pages; ++i) all[i] = i;
  absl::Status poisoned = rank.cache->Poison(all);
  if (!poisoned.ok()) return poisoned;
  if (place.before) {
    place.before(communicator == nullptr ? 0 : communicator->rank(), *rank.transformer);
  }
  return rank;
}

absl::StatusOr<LogitRows> Generate(Rank& rank, const kernels::NumericMode& mode,
                                   const RankWork& work) {
  std::mt19937 rng(3);
  const int64_t vocab = rank.transformer->config().vocab_size;
  const int32_t sequences = static_cast<int32_t>(work.prompts.size());
  std::vector<std::vector<int32_t>> pages(sequences), tokens(sequences);
  const int32_t num_pages = static_cast<int32_t>(rank.cache->config().num_pages);
  for (int32_t i = 0; i < num_pages; ++i) pages[i % sequences].push_back((i * 7 + 3) % num_pages);
  for (int32_t s = 0; s < sequences; ++s) {
    int64_t length = work.prompts[s];
    for (int32_t first : work.decode) length += s < first;
    for (int64_t i = 0; i < length; ++i) {
      tokens[s].push_back(static_cast<int32_t>(rng() % vocab));
    }
  }
  std::vector<int32_t> done(sequences);
  LogitRows out;
  for (size_t decoded = 0; decoded < work.decode.size();) {
    ForwardBatch batch;
    std::vector<int32_t> last;
    bool prefilled = true;
    for (int32_t s = 0; s < sequences; ++s) prefilled = prefilled && done[s] >= work.prompts[s];
    for (int32_t s = 0; s < sequences; ++s) {
      if (prefilled ? s >= work.decode[decoded] : done[s] >= work.prompts[s]) continue;
      const int32_t count = prefilled ? 1 : std::min(work.chunk, work.prompts[s] - done[s]);
      batch.spans.push_back({.first_row = static_cast<int32_t>(batch.rows()),
                             .num_rows = count,
                             .first_position = done[s],
                             .pages = pages[s].data(),
                             .num_pages = static_cast<int32_t>(pages[s].size())});
      for (int32_t i = 0; i < count; ++i) {
        batch.tokens.push_back(tokens[s][done[s]]);
        batch.positions.push_back(done[s]++);
      }
      last.push_back(static_cast<int32_t>(batch.rows()) - 1);
    }
    decoded += prefilled ? 1 : 0;
    absl::Status status = rank.transformer->Forward(batch, mode, *rank.cache);
    for (size_t begin = 0; begin < last.size() && status.ok(); begin += kLogitRows) {
      const auto slice = absl::MakeSpan(last).subspan(begin, kLogitRows);
      auto logits = rank.transformer->ComputeLogits(slice, mode);
      if (!logits.ok()) return logits.status();
      std::vector<float> rows(slice.size() * static_cast<size_t>(vocab));
      status = rank.backend->CopyToHost(rows.data(), *logits, rows.size() * sizeof(float));
      for (size_t i = 0; i < slice.size(); ++i) {
        out.emplace_back(rows.begin() + static_cast<int64_t>(i) * vocab,
                         rows.begin() + static_cast<int64_t>(i + 1) * vocab);
      }
    }
    // What a step computed that was cut short is worth nothing.
    if (status.ok() && rank.device != nullptr) status = rank.device->failure();
    if (!status.ok()) return status;
  }
  return out;
}

absl::StatusOr<LogitRows> GenerateAlone(const RankPlace& place, const Checkpoint& checkpoint,
                                        const kernels::NumericMode& mode, const RankWork& work) {
  auto rank = MakeRank(place, checkpoint, nullptr);
  if (!rank.ok()) return rank.status();
  auto rows = Generate(*rank, mode, work);
  if (place.at_end) place.at_end(0, *rank->backend);
  return rows;
}

absl::StatusOr<LogitRows> GenerateOnRanks(const RankPlace& place, const Checkpoint& checkpoint,
                                          int degree, const kernels::NumericMode& mode,
                                          const RankWork& work) {
  auto communicators = parallel::MakeThreadCommunicators(degree);
  std::vector<std::thread> followers;
  for (int r = 1; r < degree; ++r) {
    followers.emplace_back([&, r] {
      auto rank = MakeRank(place, checkpoint, communicators[r].get());
      if (!rank.ok()) return communicators[r]->Abort(rank.status());
      parallel::Communicator& own = rank->device ? *rank->device : *communicators[r];
      FollowSteps(*rank->transformer, *rank->cache, own).IgnoreError();
      if (place.at_end) place.at_end(r, *rank->backend);
      rank->transformer.reset();
      rank->device.reset();
    });
  }
  absl::StatusOr<LogitRows> rows = [&]() -> absl::StatusOr<LogitRows> {
    auto rank = MakeRank(place, checkpoint, communicators[0].get());
    if (!rank.ok()) return rank.status();
    auto generated = Generate(*rank, mode, work);
    if (place.at_end) place.at_end(0, *rank->backend);
    if (rank->device) rank->device->Close();
    return generated;
  }();
  communicators[0]->Close();
  for (std::thread& follower : followers) follower.join();
  return rows;
}

}  // namespace verbatim::model
