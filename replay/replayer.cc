// Repeats an answer from its trace.
#include "replay/replayer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/logits_hash.h"
#include "engine/routing_record.h"
#include "engine/version.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/device/open_backend.h"
#include "kernels/numerics/philox.h"
#include "replay/forced_step.h"

namespace verbatim::replay {
namespace {

using kernels::SequenceSpan;

absl::Status Other(const std::string& what, const std::string& recorded, const std::string& here) {
  return absl::FailedPreconditionError(
      absl::StrCat(what, ": the trace was made with '", recorded, "', this is '", here, "'"));
}

kernels::KvCacheConfig CacheOf(const model::ModelConfig& model, const trace::Trace& trace,
                               int64_t pages) {
  return {.num_layers = model.num_layers,
          .num_kv_heads = model.num_kv_heads,
          .head_dim = model.head_dim,
          .page_tokens = trace.configuration.page_tokens,
          .num_pages = pages,
          .dtype = trace.configuration.kv_cache_dtype};
}

}  // namespace

// The pages of one replay and what its steps put into them.
class Replayer::Session {
 public:
  Session(Replayer& replayer, const trace::Trace& trace, const ReplayOptions& options)
      : replayer_(replayer),
        trace_(trace),
        options_(options),
        page_tokens_(trace.configuration.page_tokens),
        tap_(*this) {}

  absl::StatusOr<ReplayResult> Run() {
    if (absl::Status status = MakePages(); !status.ok()) return status;
    const bool has_experts = trace_.mixture.num_experts > 0;
    if (options_.observer != nullptr || !trace_.layers.empty() || has_experts) {
      replayer_.transformer_->set_observer(&tap_);
    }
    absl::Status status;
    for (size_t s = 0; s < trace_.steps.size() && status.ok(); ++s) {
      status = RunStep(static_cast<int32_t>(s));
    }
    replayer_.transformer_->set_observer(nullptr);
    status.Update(observed_);
    if (!status.ok()) return status;
    result_.logits_sha256 = hash_.Hex();
    return std::move(result_);
  }

 private:
  // Hands what the transformer shows to the observer, with the answer's rows named.
  class Tap final : public model::ForwardObserver {
   public:
    explicit Tap(Session& session) : session_(session) {}
    void OnOutput(const model::ObservedRows& output) override {
      session_.WatchLayer(output);
      if (session_.options_.observer == nullptr) return;
      host_.resize(static_cast<size_t>((output.rows - 1) * output.stride + output.cols));
      model::ObservedRows copy = output;
      copy.data = host_.data();
      if (!session_.CopyToHost(output.data, &host_)) return;
      const bool logits = output.operation == model::Operation::kFinalNorm ||
                          output.operation == model::Operation::kLogits;
      session_.options_.observer->OnRows(session_.step_, copy,
                                         logits ? session_.own_logits_ : session_.own_rows_);
    }

    void OnRouting(const model::ObservedRouting& routing) override {
      session_.CheckRouting(routing);
    }

   private:
    Session& session_;
    std::vector<float> host_;
  };

  // Fills `host` from the backend's memory; what goes wrong ends the replay.
  bool CopyToHost(const float* data, std::vector<float>* host) {
    observed_.Update(
        replayer_.backend_->CopyToHost(host->data(), data, host->size() * sizeof(float)));
    return observed_.ok();
  }

  // Compares what the answer's rows want with the trace. What they get is forced.
  void CheckRouting(const model::ObservedRouting& routing) {
    if (!result_.routing_difference.empty()) return;
    const std::vector<int32_t>& layers = trace_.mixture.layers;
    const size_t mixture = static_cast<size_t>(
        std::find(layers.begin(), layers.end(), routing.layer) - layers.begin());
    const trace::LayerRouting& recorded = trace_.steps[step_].routing[mixture];
    for (size_t i = 0; i < own_rows_.size(); ++i) {
      for (int64_t r = 0; r < routing.top_k; ++r) {
        const int32_t here = routing.wanted[own_rows_[i].row * routing.top_k + r];
        const int32_t there =
            recorded.WantedAt(static_cast<int32_t>(static_cast<int64_t>(i) * routing.top_k + r));
        if (here == there) continue;
        result_.routing_difference =
            absl::StrCat("steps[", step_, "]: position ", own_rows_[i].position, " wants expert ",
                         here, " in layer ", routing.layer, ", ", there, " in the trace");
        return;
      }
    }
  }

  // Compares the row that gives the next token with what the trace says of its layers.
  void WatchLayer(const model::ObservedRows& output) {
    const size_t token = result_.rows.size();
    if (output.operation != model::Operation::kDown || trace_.layers.empty() ||
        trace_.steps[step_].logit_index < 0 || different_layer_ >= 0) {
      return;
    }
    const std::vector<numerics::RowFingerprint>& layers = trace_.layers[token];
    layer_row_.resize(static_cast<size_t>(output.cols));
    if (output.layer < static_cast<int64_t>(layers.size()) &&
        CopyToHost(output.data + answer_row_ * output.stride, &layer_row_) &&
        !(numerics::FingerprintRow(layer_row_.data(), output.cols) == layers[output.layer])) {
      different_layer_ = output.layer;
    }
  }

  int64_t PagesFor(int64_t positions) const {
    return (positions + page_tokens_ - 1) / page_tokens_;
  }

  // Each run owns the pages that it computes. Fillers read one common page of zeros and write pages
  // of their own, which the next step uses again.
  absl::Status MakePages() {
    int32_t next = 1;  // page 0 is the common one
    run_pages_.resize(trace_.runs.size());
    // A run whose pages others read has fewer cached pages than they have.
    std::vector<size_t> order(trace_.runs.size());
    for (size_t r = 0; r < order.size(); ++r) order[r] = r;
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
      return trace_.runs[a].prefix.size() < trace_.runs[b].prefix.size();
    });
    for (size_t r : order) {
      const trace::Run& run = trace_.runs[r];
      for (const trace::CachedPage& page : run.prefix) {
        run_pages_[r].push_back(run_pages_[page.run][page.page]);
      }
      const int64_t pages = PagesFor(run.positions);
      while (static_cast<int64_t>(run_pages_[r].size()) < pages) run_pages_[r].push_back(next++);
    }
    first_filler_page_ = next;
    int64_t most_fillers = 0;
    for (const trace::Step& step : trace_.steps) {
      int64_t fillers = 0;
      for (const trace::Span& span : step.spans) fillers += PagesFor(span.rows) + 1;
      most_fillers = std::max(most_fillers, fillers);
    }
    const int64_t pages = next + most_fillers;
    auto cache =
        replayer_.backend_->CreateKvCache(CacheOf(replayer_.transformer_->config(), trace_, pages));
    if (!cache.ok()) return cache.status();
    cache_ = *std::move(cache);
    return absl::OkStatus();
  }

  int32_t FillerToken() {
    const uint32_t word = numerics::PhiloxWord(options_.filler_seed, filler_count_++, 0, 0);
    return static_cast<int32_t>(word %
                                static_cast<uint64_t>(replayer_.transformer_->config().vocab_size));
  }

  // The page table of a span: the run's own pages where it has them, fillers' where it does not.
  void AddSpan(const trace::Span& span, const trace::OwnSpan* own, int32_t* next_filler) {
    const int32_t first_row = static_cast<int32_t>(batch_.tokens.size());
    const int64_t pages = PagesFor(int64_t{span.first_position} + span.rows);
    std::vector<int32_t>& table = tables_.emplace_back();
    const std::vector<int32_t>* of_run = own == nullptr ? nullptr : &run_pages_[own->run];
    for (int64_t p = 0; p < pages; ++p) {
      if (of_run != nullptr && p < static_cast<int64_t>(of_run->size())) {
        table.push_back((*of_run)[p]);
      } else if (p < span.first_position / page_tokens_) {
        table.push_back(0);
      } else {
        table.push_back((*next_filler)++);
      }
    }
    for (int32_t i = 0; i < span.rows; ++i) {
      const int32_t position = span.first_position + i;
      const bool mine = own != nullptr && i < own->rows;
      batch_.tokens.push_back(mine ? trace_.tokens[position] : FillerToken());
      batch_.positions.push_back(position);
      if (mine) own_rows_.push_back({first_row + i, own->run, position, own->span});
    }
    batch_.spans.push_back({.first_row = first_row,
                            .num_rows = span.rows,
                            .first_position = span.first_position,
                            .pages = table.data(),
                            .num_pages = static_cast<int32_t>(table.size())});
  }

  absl::Status RunStep(int32_t index) {
    const trace::Step& step = trace_.steps[index];
    step_ = index;
    batch_.Clear();
    own_rows_.clear();
    tables_.clear();
    tables_.reserve(step.spans.size());
    int32_t next_filler = first_filler_page_;
    size_t next_own = 0;
    OwnRow answer;  // the last row of the answer's span
    for (size_t i = 0; i < step.spans.size(); ++i) {
      const bool mine =
          next_own < step.own.size() && step.own[next_own].span == static_cast<int32_t>(i);
      const trace::OwnSpan* own = mine ? &step.own[next_own++] : nullptr;
      AddSpan(step.spans[i], own, &next_filler);
      if (mine && own->run < trace_.own_runs) {
        answer = own_rows_.back();
      }
    }
    answer_row_ = answer.row;
    different_layer_ = -1;
    if (trace_.mixture.num_experts > 0) {
      forced_ = ForcedRoutingOf(trace_.mixture, step, own_rows_);
      batch_.forced_routing = &forced_;
    }
    absl::Status status = replayer_.transformer_->Forward(batch_, step.mode, *cache_);
    if (!status.ok() || step.logit_index < 0) return status;
    return TakeLogits(step, answer);
  }

  // The slice of logit rows in which the answer's row was computed: its row at its place, some row
  // of the step at the others.
  absl::Status TakeLogits(const trace::Step& step, const OwnRow& answer) {
    const int32_t slice = trace_.configuration.logit_slice_rows;
    const int32_t count = trace::SliceRows(step.logit_rows, step.logit_index, slice);
    const int32_t place = step.logit_index % slice;
    std::vector<int32_t> rows(count);
    for (int32_t i = 0; i < count; ++i) rows[i] = i % static_cast<int32_t>(batch_.rows());
    rows[place] = answer.row;
    own_logits_ = {{place, answer.run, answer.position, answer.span}};
    absl::StatusOr<const float*> logits = replayer_.transformer_->ComputeLogits(rows, step.mode);
    if (!logits.ok()) return logits.status();
    const int64_t vocab = replayer_.transformer_->config().vocab_size;
    kernels::SamplingRow greedy;
    greedy.temperature = 0;
    kernels::SampledRow sampled;
    absl::Status status = replayer_.backend_->Sample({.logits = *logits + place * vocab,
                                                      .stride = vocab,
                                                      .vocab = vocab,
                                                      .rows = absl::MakeConstSpan(&greedy, 1),
                                                      .results = absl::MakeSpan(&sampled, 1)});
    if (!status.ok()) return status;
    const int64_t token = static_cast<int64_t>(result_.rows.size());
    if (!(sampled.fingerprint == trace_.logit_rows[token]) &&
        !result_.first_difference.has_value()) {
      result_.first_difference = token;
      result_.first_different_layer = different_layer_;
    }
    result_.rows.push_back({.fingerprint = sampled.fingerprint,
                            .top_margin = sampled.top_margin,
                            .best = sampled.token,
                            .step = step_});
    hash_.Add(sampled.fingerprint);
    return absl::OkStatus();
  }

  Replayer& replayer_;
  const trace::Trace& trace_;
  const ReplayOptions options_;
  const int64_t page_tokens_;
  Tap tap_;
  absl::Status observed_;         // of copying what the tap showed
  std::vector<float> layer_row_;  // the row that WatchLayer compares
  std::unique_ptr<kernels::KvCache> cache_;
  std::vector<std::vector<int32_t>> run_pages_;  // page tables of the runs
  int32_t first_filler_page_ = 0;
  uint32_t filler_count_ = 0;
  // The step under way.
  int32_t step_ = 0;
  int32_t answer_row_ = 0;
  int64_t different_layer_ = -1;
  model::ForwardBatch batch_;
  model::ForcedRouting forced_;
  std::vector<std::vector<int32_t>> tables_;
  std::vector<OwnRow> own_rows_, own_logits_;
  engine::LogitsHash hash_;
  ReplayResult result_;
};

Replayer::Replayer(std::unique_ptr<kernels::Backend> backend, const model::Checkpoint& checkpoint,
                   std::string weights_sha256)
    : backend_(std::move(backend)),
      checkpoint_(checkpoint),
      weights_sha256_(std::move(weights_sha256)) {}

absl::StatusOr<std::unique_ptr<Replayer>> Replayer::Create(const model::Checkpoint& checkpoint,
                                                           const std::string& weights_sha256,
                                                           const trace::Trace& trace,
                                                           const std::string& device) {
  kernels::BackendOptions options{.device = device};
  const bool on_gpu = absl::StartsWith(trace.identity.backend, "cuda ");
  if (options.device.empty()) options.device = on_gpu ? "cuda" : "cpu";
  options.wgmma = !absl::StrContains(trace.identity.backend, kernels::kWithoutWgmma);
  if (!on_gpu) {
    absl::StatusOr<kernels::cpu::CpuBackendOptions> cpu =
        kernels::cpu::CpuBackend::OptionsOf(trace.identity.backend);
    if (!cpu.ok()) {
      return absl::FailedPreconditionError(
          absl::StrCat("identity.backend: ", std::string(cpu.status().message())));
    }
    options.threads = cpu->threads;
    options.isa = cpu->isa;
  }
  auto backend = kernels::OpenBackend(options);
  if (!backend.ok()) return backend.status();
  return CreateOn(*std::move(backend), checkpoint, weights_sha256, trace);
}

absl::StatusOr<std::unique_ptr<Replayer>> Replayer::CreateOn(
    std::unique_ptr<kernels::Backend> backend, const model::Checkpoint& checkpoint,
    const std::string& weights_sha256, const trace::Trace& trace) {
  auto replayer =
      std::unique_ptr<Replayer>(new Replayer(std::move(backend), checkpoint, weights_sha256));
  if (absl::Status status = replayer->CheckIdentity(trace); !status.ok()) return status;
  if (absl::Status status = replayer->Prepare(trace); !status.ok()) return status;
  return replayer;
}

const model::ModelConfig& Replayer::config() const { return checkpoint_.config(); }

absl::Status Replayer::CheckIdentity(const trace::Trace& trace) const {
  const trace::Identity& id = trace.identity;
  if (id.weights_sha256 != weights_sha256_) {
    return Other("identity.weights_sha256", id.weights_sha256, weights_sha256_);
  }
  if (id.version != engine::kVersion)
    return Other("identity.version", id.version, engine::kVersion);
  if (id.backend != backend_->Describe()) {
    return Other("identity.backend", id.backend, backend_->Describe());
  }
  const std::string numerics =
      backend_->NumericsTag(kernels::Policy::kThroughput).value_or(std::string());
  if (id.numerics != numerics) return Other("identity.numerics", id.numerics, numerics);
  return absl::OkStatus();
}

absl::Status Replayer::Prepare(const trace::Trace& trace) {
  const model::ModelConfig& model = checkpoint_.config();
  if (trace.configuration.max_model_len > model.max_position) {
    return absl::FailedPreconditionError(
        absl::StrCat("configuration.max_model_len: ", trace.configuration.max_model_len,
                     " is more than the model's context of ", model.max_position));
  }
  for (size_t i = 0; i < trace.tokens.size(); ++i) {
    if (trace.tokens[i] >= model.vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat("tokens[", i, "]: ", trace.tokens[i],
                                                     " is not in [0, ", model.vocab_size, ")"));
    }
  }
  if (trace.mixture != engine::MixtureOf(model)) {
    return absl::FailedPreconditionError("mixture: the trace's experts are not those of the model");
  }
  int64_t rows = 1;
  for (const trace::Step& step : trace.steps) rows = std::max(rows, step.rows());
  model::TransformerOptions options = {.max_batch_rows = rows,
                                       .max_logit_rows = trace.configuration.logit_slice_rows,
                                       .max_model_len = trace.configuration.max_model_len};
  if (transformer_ != nullptr) {
    const model::TransformerOptions& have = transformer_->options();
    if (have.max_batch_rows >= options.max_batch_rows &&
        have.max_logit_rows >= options.max_logit_rows &&
        have.max_model_len >= options.max_model_len) {
      return absl::OkStatus();
    }
    options.max_batch_rows = std::max(options.max_batch_rows, have.max_batch_rows);
    options.max_logit_rows = std::max(options.max_logit_rows, have.max_logit_rows);
    options.max_model_len = std::max(options.max_model_len, have.max_model_len);
    transformer_.reset();
  }
  auto loaded = model::Transformer::Load(*backend_, checkpoint_, options);
  if (!loaded.ok()) return loaded.status();
  transformer_ = *std::move(loaded);
  return absl::OkStatus();
}

std::string Replayer::FirstOtherDecision(const trace::Trace& trace) const {
  for (const trace::KernelChoice& choice : trace.kernels) {
    const auto here = choice.experts
                          ? transformer_->ExpertKernels(choice.mode, choice.rows)
                          : transformer_->GemmKernels(choice.mode, choice.rows, choice.logits);
    for (size_t i = 0; i < std::max(here.size(), choice.kernels.size()); ++i) {
      if (i < here.size() && i < choice.kernels.size() && here[i] == choice.kernels[i]) continue;
      const auto name = [&](const auto& list) {
        return i < list.size() ? absl::StrCat(list[i].first, " on ", list[i].second)
                               : std::string("nothing");
      };
      return absl::StrCat("products of ", choice.rows,
                          choice.experts ? " tokens of an expert" : " rows", ": the trace says ",
                          name(choice.kernels), ", this program ", name(here));
    }
  }
  const kernels::KvCacheConfig cache = CacheOf(checkpoint_.config(), trace, 1);
  for (size_t s = 0; s < trace.steps.size(); ++s) {
    const trace::Step& step = trace.steps[s];
    std::vector<SequenceSpan> spans;
    int32_t row = 0;
    for (const trace::Span& span : step.spans) {
      spans.push_back(
          {.first_row = row, .num_rows = span.rows, .first_position = span.first_position});
      row += span.rows;
    }
    const auto here = trace::OwnCuts(
        step, backend_->AttentionCuts(step.mode, cache, checkpoint_.config().num_heads, spans));
    if (here == step.cuts) continue;
    return absl::StrCat("steps[", s, "] (step ", step.number, "): attention cuts ",
                        step.cuts.size(), " stretches of the answer's rows in the trace, ",
                        here.size(), " here, or elsewhere");
  }
  return "";
}

absl::StatusOr<ReplayResult> Replayer::Replay(const trace::Trace& trace,
                                              const ReplayOptions& options) {
  if (!trace.replayable()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the trace cannot be replayed: ", trace.not_replayable));
  }
  if (absl::Status status = CheckIdentity(trace); !status.ok()) return status;
  if (absl::Status status = Prepare(trace); !status.ok()) return status;
  const std::string decision = FirstOtherDecision(trace);
  if (!decision.empty() && !options.ignore_decisions) {
    ReplayResult result;
    result.decision_difference = decision;
    return result;
  }
  absl::StatusOr<ReplayResult> result = Session(*this, trace, options).Run();
  if (!result.ok()) return result;
  result->decision_difference = decision;
  if (!result->first_difference.has_value() && result->logits_sha256 != trace.logits_sha256) {
    return absl::InvalidArgumentError(
        "logits_sha256: does not belong to the trace's logit_row_fingerprints");
  }
  return result;
}

}  // namespace verbatim::replay
