// An engine under test, and waves of requests whose arrival is under control.
#include "conformance/trial_engine.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <utility>

#include "engine/model_setup.h"
#include "kernels/device/open_backend.h"
#include "parallel/thread_communicator.h"

namespace verbatim::conformance {
namespace {

// One wave under way. Callbacks run on the engine thread; they submit and cancel, which the engine
// allows from any thread.
class Wave {
 public:
  Wave(engine::Engine& engine, const std::vector<WaveItem>& items)
      : engine_(engine), items_(items), answers_(items.size()), ids_(items.size()) {
    remaining_ = items.size();
  }

  void SubmitFirst() {
    for (size_t i = 0; i < items_.size(); ++i) {
      if (items_[i].join_after < 0) Submit(i);
    }
  }

  std::vector<Answer> Wait() {
    std::unique_lock lock(mu_);
    over_.wait(lock, [this] { return remaining_ == 0; });
    return std::move(answers_);
  }

 private:
  void Submit(size_t i) {
    auto sink = std::make_shared<RecordingSink>(
        &answers_[i], [this, i](int64_t tokens) { OnToken(i, tokens); }, [this, i] { OnDone(i); });
    const absl::StatusOr<engine::RequestId> id = engine_.Submit(items_[i].request, sink);
    if (!id.ok()) {
      sink->OnDone(id.status(), {});
      return;
    }
    ids_[i].store(*id);
    if (items_[i].cancel_after_tokens == 0) engine_.Cancel(*id);
  }

  void OnToken(size_t i, int64_t tokens) {
    if (items_[i].cancel_after_tokens > 0 && tokens >= items_[i].cancel_after_tokens &&
        ids_[i].load() != 0) {
      engine_.Cancel(ids_[i].load());
    }
    for (size_t j = 0; j < items_.size(); ++j) {
      if (items_[j].join_after == static_cast<int>(i) && items_[j].join_after_tokens == tokens) {
        Submit(j);
      }
    }
  }

  void OnDone(size_t i) {
    int64_t tokens = 0;
    for (const SampleAnswer& sample : answers_[i].samples) {
      tokens += static_cast<int64_t>(sample.tokens.size());
    }
    for (size_t j = 0; j < items_.size(); ++j) {
      if (items_[j].join_after == static_cast<int>(i) && items_[j].join_after_tokens > tokens) {
        Submit(j);
      }
    }
    std::lock_guard lock(mu_);
    if (--remaining_ == 0) over_.notify_all();
  }

  engine::Engine& engine_;
  const std::vector<WaveItem>& items_;
  std::vector<Answer> answers_;
  std::vector<std::atomic<engine::RequestId>> ids_;
  std::mutex mu_;
  std::condition_variable over_;
  size_t remaining_ = 0;
};

}  // namespace

TrialEngine::~TrialEngine() {
  engine_.reset();  // closes the ranks
  for (std::thread& follower : followers_) follower.join();
}

absl::StatusOr<std::unique_ptr<TrialEngine>> TrialEngine::Create(const LoadedModel& model,
                                                                 const EngineSetup& setup,
                                                                 int64_t pool_tokens,
                                                                 int64_t max_model_len) {
  auto inner =
      kernels::OpenBackend({.device = setup.device, .threads = setup.threads, .isa = setup.isa});
  if (!inner.ok()) return inner.status();
  auto backend = std::make_unique<PerturbingBackend>(*std::move(inner), setup.pages);
  std::unique_ptr<TrialEngine> out(new TrialEngine);
  out->backend_ = backend.get();
  engine::EngineConfig config;
  config.scheduler.policy = setup.batching;
  config.scheduler.max_num_seqs = std::min(setup.max_num_seqs, setup.max_num_batched_tokens);
  config.scheduler.max_num_batched_tokens = setup.max_num_batched_tokens;
  config.scheduler.max_model_len = max_model_len;
  config.scheduler.page_tokens = setup.page_tokens;
  config.scheduler.num_pages = (pool_tokens + setup.page_tokens - 1) / setup.page_tokens;
  config.scheduler.enable_prefix_caching = setup.prefix_caching;
  config.scheduler.max_batch_delay = absl::Milliseconds(1);
  config.scheduler.flush_timeout = absl::Milliseconds(2);
  config.kv_cache_dtype = setup.kv_cache_dtype;
  config.throughput_activations = setup.activations;
  config.moe_capacity_factor = setup.capacity_factor;
  config.moe_overflow = setup.overflow;
  config.allow_traces = true;
  if (setup.tensor_parallel > 1) {
    out->ranks_ = parallel::MakeThreadCommunicators(setup.tensor_parallel);
    for (int rank = 1; rank < setup.tensor_parallel; ++rank) {
      config.communicator = out->ranks_[rank].get();
      out->followers_.emplace_back([config, &checkpoint = *model.checkpoint, isa = setup.isa] {
        auto own = kernels::OpenBackend({.threads = 1, .isa = isa});
        if (!own.ok()) return config.communicator->Abort(own.status());
        engine::RunFollower(config, **own, checkpoint).IgnoreError();  // rank 0 is told
      });
    }
    config.communicator = out->ranks_[0].get();
  }
  auto engine =
      engine::Engine::Create(config, std::move(backend), *model.checkpoint, *model.tokenizer);
  if (!engine.ok()) return engine.status();
  out->engine_ = *std::move(engine);
  return out;
}

std::vector<Answer> TrialEngine::RunWave(const std::vector<WaveItem>& items) {
  engine::GenerationRequest gate;
  gate.prompt = {items.front().request.prompt.front()};
  gate.policy = items.front().request.policy;
  gate.read_prefix_cache = false;
  gate.sampling.temperature = 0;
  gate.sampling.max_tokens = 1;
  if (absl::Status refused = engine_->Validate(gate); !refused.ok()) {
    Answer answer;
    answer.status = refused;
    return std::vector<Answer>(items.size(), answer);
  }
  const std::vector<WaveItem> gate_items = {{.request = gate}};
  Wave gate_wave(*engine_, gate_items);
  backend_->Hold();
  gate_wave.SubmitFirst();
  backend_->WaitUntilHeld();
  Wave wave(*engine_, items);
  wave.SubmitFirst();
  backend_->Release();
  gate_wave.Wait();
  return wave.Wait();
}

}  // namespace verbatim::conformance
