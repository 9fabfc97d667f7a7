// Runs requests alone and under every perturbation, and counts whose bits moved.
#include "conformance/suite.h"

#include <openssl/sha.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <numeric>
#include <set>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "conformance/expert_tokens.h"
#include "conformance/wave_builder.h"

namespace verbatim::conformance {
namespace {

constexpr int32_t kReservedTokens = 16;

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

int64_t PromptTokens(const engine::GenerationRequest& request) {
  return static_cast<int64_t>(request.prompt.size());
}

// All cells of one policy.
class PolicyRun {
 public:
  PolicyRun(const SuiteOptions& options, const LoadedModel& model, const PolicyUnderTest& policy)
      : options_(options),
        model_(model),
        policy_(policy),
        workload_(options.workload, *model.tokenizer, options.random_ids) {}

  absl::Status ComputeReferences();
  absl::StatusOr<Cell> Run(const Perturbation& perturbation);

 private:
  EngineSetup Adapt(EngineSetup setup) const {
    if (!policy_.strong()) setup.activations = policy_.activations;
    setup.kv_cache_dtype = policy_.kv_cache_dtype;
    // On a GPU the instruction sets are a second device, with the same bits where the numerics id
    // is the same.
    setup.device = setup.isa.has_value() ? "cpu" : options_.device;
    return setup;
  }
  absl::StatusOr<std::unique_ptr<TrialEngine>> MakeEngine(const LoadedModel& model,
                                                          const Variant& variant) const;
  absl::StatusOr<TrialEngine*> EngineFor(const Variant& variant);
  absl::Status RunVariant(const Variant& variant, Cell& cell);
  absl::Status ComputeSampleReferences(Cell& cell);
  void WitnessRouting(const RoutingCounts& counts, Cell& cell) const;
  void Compare(const Variant& variant, size_t subject, const Answer& answer, Cell& cell) const;
  std::vector<size_t> SubjectsOf(const Variant& variant) const;
  // The token whose embedding becomes NaN: in no prompt and no reference answer.
  int32_t ChoosePoisonToken() const;

  const SuiteOptions& options_;
  const LoadedModel& model_;
  const PolicyUnderTest policy_;
  Workload workload_;
  ExpertTokens experts_;
  std::vector<Answer> references_;         // by subject
  std::vector<Answer> sample_references_;  // by subject; of one call with many samples
  int64_t salts_ = 0;
  int32_t poison_token_ = -1;
  std::string base_numerics_id_, reference_digest_;
  std::unique_ptr<TrialEngine> base_;
  LoadedModel second_reading_;            // of a replica
  std::unique_ptr<TrialEngine> current_;  // of the variant before; its key:
  decltype(EngineSetup().Key()) current_key_{};
};

absl::StatusOr<std::unique_ptr<TrialEngine>> PolicyRun::MakeEngine(const LoadedModel& model,
                                                                   const Variant& variant) const {
  int64_t largest = 0, sum = 0;
  for (const Subject& subject : workload_.subjects()) {
    const int64_t tokens =
        PromptTokens(subject.request) + *subject.request.sampling.max_tokens + kReservedTokens;
    largest = std::max(largest, tokens);
    sum += tokens;
  }
  const WorkloadOptions& load = options_.workload;
  const int64_t very_long = load.very_long_prompt + load.output_tokens + 2;
  const bool has_very_long =
      variant.traffic.kind == Neighbours::kVeryLong && variant.traffic.neighbours > 0;
  const int64_t unit = has_very_long ? std::max(largest, very_long) : largest;
  int64_t pool_tokens;
  if (variant.engine.pool > 0) {
    // Whole pages of each: a pool of one subject always holds that subject.
    const int64_t page = variant.engine.page_tokens;
    const int64_t whole = (unit + page - 1) / page * page;
    pool_tokens = static_cast<int64_t>(variant.engine.pool * static_cast<double>(whole));
  } else {
    const int64_t mean = sum / static_cast<int64_t>(workload_.subjects().size());
    pool_tokens = 90 * (mean + variant.engine.page_tokens) + 6 * very_long;
  }
  EngineSetup setup = variant.engine;
  return TrialEngine::Create(model, Adapt(setup), pool_tokens, load.max_model_len);
}

absl::StatusOr<TrialEngine*> PolicyRun::EngineFor(const Variant& variant) {
  if (variant.instance == Variant::Instance::kReplica) {
    absl::StatusOr<LoadedModel> again = options_.open();
    if (!again.ok()) return again.status();
    current_.reset();
    second_reading_ = *std::move(again);
    auto made = MakeEngine(second_reading_, variant);
    if (!made.ok()) return made.status();
    current_ = *std::move(made);
    current_key_ = {};
    return current_.get();
  }
  // A restart replaces the base engine, which has served before.
  if (variant.instance == Variant::Instance::kRestart) base_.reset();
  if (variant.engine.Key() == EngineSetup().Key() && variant.engine.pool == 0) {
    if (base_ == nullptr) {
      auto made = MakeEngine(model_, variant);
      if (!made.ok()) return made.status();
      base_ = *std::move(made);
    }
    return base_.get();
  }
  if (current_ == nullptr || current_key_ != variant.engine.Key() || variant.engine.pool > 0) {
    current_.reset();
    auto made = MakeEngine(model_, variant);
    if (!made.ok()) return made.status();
    current_ = *std::move(made);
    current_key_ = variant.engine.Key();
  }
  return current_.get();
}

absl::Status PolicyRun::ComputeReferences() {
  absl::StatusOr<TrialEngine*> base = EngineFor(Variant());
  if (!base.ok()) return base.status();
  base_numerics_id_ = (*base)->engine().SupportOf(policy_.policy).numerics_id;
  const auto alone = [&](const Subject& subject) -> absl::Status {
    WaveItem item{.request = subject.request};
    item.request.policy = policy_.policy;
    item.request.return_row_fingerprints = true;
    item.request.cache_salt = absl::StrCat("reference ", salts_++);
    references_.push_back((*base)->RunWave({item}).front());
    if (references_.back().status.ok()) return absl::OkStatus();
    return absl::Status(references_.back().status.code(),
                        absl::StrCat("reference of ", subject.name, ": ",
                                     std::string(references_.back().status.message())));
  };
  const size_t first = workload_.subjects().size();
  for (size_t i = 0; i < first; ++i) {
    if (absl::Status status = alone(workload_.subjects()[i]); !status.ok()) return status;
  }
  for (const size_t i : {first / 2, first - 1}) {
    workload_.AddFollowUp(i, references_[i].samples[0].tokens);
    if (absl::Status status = alone(workload_.subjects().back()); !status.ok()) return status;
  }
  poison_token_ = ChoosePoisonToken();
  absl::StatusOr<ExpertTokens> experts = ExpertTokens::Probe(model_, workload_);
  if (!experts.ok()) return experts.status();
  experts_ = *std::move(experts);
  std::string chains;
  for (const Answer& answer : references_) chains += answer.samples[0].logits_sha256;
  std::array<uint8_t, SHA256_DIGEST_LENGTH> digest;
  SHA256(reinterpret_cast<const uint8_t*>(chains.data()), chains.size(), digest.data());
  reference_digest_ = absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(digest.data()), digest.size()));
  return absl::OkStatus();
}

int32_t PolicyRun::ChoosePoisonToken() const {
  std::set<int32_t> used;
  for (const Answer& answer : references_) {
    for (const SampleAnswer& sample : answer.samples) {
      used.insert(sample.tokens.begin(), sample.tokens.end());
    }
  }
  for (const Subject& subject : workload_.subjects()) {
    used.insert(subject.request.prompt.begin(), subject.request.prompt.end());
  }
  int32_t token = model_.tokenizer->vocab_size() - 1;
  while (used.contains(token)) --token;
  return token;
}

std::vector<size_t> PolicyRun::SubjectsOf(const Variant& variant) const {
  std::vector<size_t> out(workload_.subjects().size());
  std::iota(out.begin(), out.end(), size_t{0});
  if (variant.max_subjects == 0) return out;
  std::stable_sort(out.begin(), out.end(), [&](size_t x, size_t y) {
    return PromptTokens(workload_.subjects()[x].request) <
           PromptTokens(workload_.subjects()[y].request);
  });
  out.resize(std::min(out.size(), static_cast<size_t>(variant.max_subjects)));
  return out;
}

// Sample i of n has the noise of sample index i, whatever n is; sample 0 is that of a single call.
absl::Status PolicyRun::ComputeSampleReferences(Cell& cell) {
  if (!sample_references_.empty()) return absl::OkStatus();
  absl::StatusOr<TrialEngine*> base = EngineFor(Variant());
  if (!base.ok()) return base.status();
  const std::vector<int>& counts = options_.scale.sample_counts;
  for (size_t i = 0; i < workload_.subjects().size(); ++i) {
    WaveItem item{.request = workload_.subjects()[i].request};
    item.request.policy = policy_.policy;
    item.request.return_row_fingerprints = true;
    item.request.cache_salt = absl::StrCat("reference ", salts_++);
    item.request.sampling.n = 1 + *std::max_element(counts.begin(), counts.end());
    sample_references_.push_back((*base)->RunWave({item}).front());
    Comparison single = CompareAnswers(references_[i], 0, sample_references_.back(), 0);
    if (single.first.has_value()) {
      single.first->variant = absl::StrCat("n=", item.request.sampling.n);
      single.first->request = workload_.subjects()[i].name;
    }
    cell.result.Add(single);
  }
  return absl::OkStatus();
}

void PolicyRun::Compare(const Variant& variant, size_t subject, const Answer& answer,
                        Cell& cell) const {
  const bool greedy = workload_.subjects()[subject].request.sampling.temperature == 0;
  for (int i = 0; i < variant.traffic.n; ++i) {
    Comparison one;
    if (variant.traffic.n == 1) {
      one = CompareAnswers(references_[subject], 0, answer, 0);
    } else if (greedy) {
      one = CompareAnswers(references_[subject], 0, answer, i);
    } else {
      one = CompareAnswers(sample_references_[subject], i, answer, i);
    }
    if (one.first.has_value()) {
      one.first->variant = variant.label;
      one.first->request = workload_.subjects()[subject].name;
    }
    cell.result.Add(one);
  }
}

absl::Status PolicyRun::RunVariant(const Variant& variant, Cell& cell) {
  if (variant.traffic.n > 1) {
    if (absl::Status status = ComputeSampleReferences(cell); !status.ok()) return status;
  }
  const bool ranks = variant.engine.tensor_parallel > 1;
  if (ranks && options_.device != "cpu") {
    cell.not_promised.push_back(variant.label + ": not between GPUs in one process");
    return absl::OkStatus();
  }
  absl::StatusOr<TrialEngine*> engine = EngineFor(variant);
  if (ranks && absl::IsInvalidArgument(engine.status())) {
    cell.not_promised.push_back(
        absl::StrCat(variant.label, ": refused: ", std::string(engine.status().message())));
    return absl::OkStatus();
  }
  if (!engine.ok()) return engine.status();
  const engine::PolicySupport support = (*engine)->engine().SupportOf(policy_.policy);
  if (policy_.strong() && support.numerics_id != base_numerics_id_) {
    cell.not_promised.push_back(absl::StrCat(variant.label, ": ",
                                             support.honoured
                                                 ? absl::StrCat("numerics id ", support.numerics_id)
                                                 : absl::StrCat("refused: ", support.refusal)));
    return absl::OkStatus();
  }
  const std::vector<size_t> subjects = SubjectsOf(variant);
  const size_t batch = static_cast<size_t>(variant.traffic.batch);
  Random random(std::hash<std::string>()(variant.label));
  WaveBuilder builder(workload_, experts_, policy_.policy, poison_token_, &salts_, &random);
  for (size_t begin = 0; begin < subjects.size(); begin += batch) {
    std::vector<size_t> members;
    for (size_t i = 0; i < batch; ++i) members.push_back(subjects[(begin + i) % subjects.size()]);
    const Waves waves = builder.Build(variant, members);
    if (variant.traffic.kind == Neighbours::kNan) (*engine)->SetPoisonToken(poison_token_);
    for (const std::vector<WaveItem>& before : waves.before) {
      for (const Answer& answer : (*engine)->RunWave(before)) {
        if (answer.status.ok() && variant.traffic.cache == CacheState::kWarmedByOtherPolicy) {
          ++cell.witnessed[static_cast<size_t>(Witness::kOtherPolicyRows)];
        }
      }
    }
    (*engine)->TakeRoutingCounts();
    const std::vector<Answer> answers = (*engine)->RunWave(waves.items);
    (*engine)->SetPoisonToken(-1);
    WitnessRouting((*engine)->TakeRoutingCounts(), cell);
    for (size_t i = 0; i < answers.size(); ++i) {
      if (waves.subjects[i] >= 0) {
        const size_t subject = static_cast<size_t>(waves.subjects[i]);
        Compare(variant, subject, answers[i], cell);
        cell.witnessed[static_cast<size_t>(Witness::kPreemptions)] += answers[i].usage.preemptions;
        const int64_t page = variant.engine.page_tokens;
        const int64_t cached = answers[i].usage.cached_prompt_tokens;
        const int64_t cacheable =
            (PromptTokens(workload_.subjects()[subject].request) - 1) / page * page;
        cell.witnessed[static_cast<size_t>(Witness::kCachedTokens)] += cached;
        if (variant.traffic.cache == CacheState::kEvicted) {
          cell.witnessed[static_cast<size_t>(Witness::kEvictions)] += cacheable - cached;
        }
      } else if (answers[i].status.code() == absl::StatusCode::kInternal) {
        ++cell.witnessed[static_cast<size_t>(Witness::kNanRequests)];
      } else if (answers[i].status.code() == absl::StatusCode::kCancelled) {
        ++cell.witnessed[static_cast<size_t>(Witness::kCancelled)];
      } else if (answers[i].status.ok() && waves.items[i].request.policy != policy_.policy) {
        ++cell.witnessed[static_cast<size_t>(Witness::kOtherPolicyRows)];
      }
    }
  }
  return absl::OkStatus();
}

void PolicyRun::WitnessRouting(const RoutingCounts& counts, Cell& cell) const {
  const auto add = [&](Witness witness, int64_t count) {
    cell.witnessed[static_cast<size_t>(witness)] += count;
  };
  add(Witness::kCrowdedRoutings, counts.crowded);
  add(Witness::kSpreadRoutings, counts.spread);
  // What others lose far from any exempt row cannot reach one.
  const bool strong = policy_.strong();
  add(Witness::kLostSlots, strong ? counts.lost_beside_exempt : counts.lost_slots);
  add(Witness::kReroutedSlots, strong ? counts.rerouted_beside_exempt : counts.rerouted_slots);
}

absl::StatusOr<Cell> PolicyRun::Run(const Perturbation& perturbation) {
  const auto start = std::chrono::steady_clock::now();
  Cell cell;
  cell.model = options_.model_name;
  cell.policy = policy_.name();
  cell.perturbation = perturbation.name;
  cell.what = perturbation.what;
  cell.numerics_id = base_numerics_id_;
  cell.reference_digest = reference_digest_;
  cell.promised = policy_.strong();
  for (const Variant& variant : perturbation.variants) {
    if (variant.compound && !policy_.strong()) continue;
    if (absl::Status status = RunVariant(variant, cell); !status.ok()) {
      return absl::Status(status.code(), absl::StrCat(perturbation.name, ", ", variant.label, ": ",
                                                      std::string(status.message())));
    }
  }
  cell.exercised =
      cell.result.requests > 0 && (perturbation.witness == Witness::kNone ||
                                   cell.witnessed[static_cast<size_t>(perturbation.witness)] > 0);
  // Where every variant is outside the promise, there is nothing to try.
  if (cell.result.requests == 0 && !cell.not_promised.empty()) cell.exercised = true;
  cell.seconds = SecondsSince(start);
  return cell;
}

}  // namespace

std::string PolicyUnderTest::name() const {
  std::string out(NameOf(policy));
  if (activations == kernels::ActivationType::kBF16) out += ", bf16";
  if (kv_cache_dtype == kernels::DType::kBF16) out += ", bf16 pages";
  return out;
}

absl::StatusOr<std::vector<Cell>> RunSuite(const SuiteOptions& options) {
  absl::StatusOr<LoadedModel> model = options.open();
  if (!model.ok()) return model.status();
  const std::vector<Perturbation> perturbations =
      MakePerturbations(options.scale, options.workload.max_model_len,
                        model->checkpoint->config().moe.num_experts > 0);
  std::vector<Cell> cells;
  for (const PolicyUnderTest& policy : options.policies) {
    PolicyRun run(options, *model, policy);
    if (absl::Status status = run.ComputeReferences(); !status.ok()) return status;
    for (const Perturbation& perturbation : perturbations) {
      if (options.wanted && !options.wanted(perturbation)) continue;
      absl::StatusOr<Cell> cell = run.Run(perturbation);
      if (!cell.ok()) return cell.status();
      if (options.progress) {
        options.progress(absl::StrFormat("%s, %s: %d rows, %d moved, %.1f s", cell->policy,
                                         cell->perturbation, cell->result.rows_compared,
                                         cell->result.rows_differing, cell->seconds));
      }
      cells.push_back(*std::move(cell));
    }
  }
  return cells;
}

}  // namespace verbatim::conformance
