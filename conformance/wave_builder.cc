// Turns the knobs of a variant into requests: subjects, neighbours, and what came before them.
#include "conformance/wave_builder.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace verbatim::conformance {

using kernels::Policy;

Policy OtherPolicy(Policy policy, bool strong) {
  if (strong) return policy == Policy::kPortable ? Policy::kPinned : Policy::kPortable;
  return kernels::IsStrong(policy) ? Policy::kThroughput : Policy::kPortable;
}

std::string WaveBuilder::NewSalt() { return absl::StrCat("wave ", (*salts_)++); }

WaveItem WaveBuilder::Neighbour(const TrafficSetup& traffic, Neighbours kind, size_t subject) {
  const Subject& like = workload_.subjects()[subject];
  std::vector<int32_t> expert_tokens;
  if (kind == Neighbours::kOneExpert) expert_tokens = {experts_.popular()};
  if (kind == Neighbours::kSubjectsExperts) expert_tokens = {experts_.LikeSubject(subject)};
  if (kind == Neighbours::kSpreadExperts) expert_tokens = experts_.spread();
  WaveItem item{.request = workload_.Neighbour(kind, poison_token_, like, *random_, expert_tokens)};
  item.request.policy = policy_;
  item.request.cache_salt = NewSalt();
  if (kind == Neighbours::kCancelled) item.cancel_after_tokens = random_->Below(6);
  if (kind == Neighbours::kCancelled && traffic.neighbours > 1 && random_->Chance(0.3f)) {
    // In the middle of the prompt, when it is long enough to take several steps.
    item.request.prompt = workload_.Neighbour(Neighbours::kVeryLong, -1, like, *random_).prompt;
  }
  return item;
}

std::vector<WaveItem> WaveBuilder::WarmUp(const TrafficSetup& traffic,
                                          const std::vector<size_t>& members,
                                          const std::string& salt) {
  std::vector<WaveItem> out;
  for (const size_t member : members) {
    const Subject& subject = workload_.subjects()[member];
    WaveItem item{.request = subject.request};
    engine::GenerationRequest& request = item.request;
    request.sampling.max_tokens = 1;
    if (traffic.cache == CacheState::kPartlyWarm) {
      request.prompt.resize((request.prompt.size() + 1) / 2);
      request.prompt.push_back(request.prompt.front());
      request.sampling.max_tokens = 3;
    } else if (subject.follows >= 0) {
      // The first turn of the conversation: its answer's pages come from decode steps.
      request = workload_.subjects()[static_cast<size_t>(subject.follows)].request;
    }
    request.policy = traffic.cache == CacheState::kWarmedByOtherPolicy
                         ? OtherPolicy(policy_, traffic.other_is_strong)
                         : policy_;
    request.cache_salt = salt;
    request.sampling.prompt_logprobs = -1;
    out.push_back(std::move(item));
  }
  return out;
}

Waves WaveBuilder::Build(const Variant& variant, const std::vector<size_t>& members) {
  const TrafficSetup& traffic = variant.traffic;
  const bool cold = traffic.cache == CacheState::kCold;
  const std::string salt = NewSalt();
  const size_t first = members.front();
  Waves waves;
  if (!cold) waves.before.push_back(WarmUp(traffic, members, salt));
  if (traffic.cache == CacheState::kEvicted) {
    std::vector<WaveItem> flood;
    for (int i = 0; i < 4; ++i) {
      WaveItem item = Neighbour(traffic, Neighbours::kOrdinary, first);
      const std::vector<int> lengths = workload_.options().prompt_lengths;
      const size_t length = static_cast<size_t>(*std::max_element(lengths.begin(), lengths.end()));
      while (item.request.prompt.size() < length) {
        item.request.prompt.push_back(
            item.request.prompt[random_->Below(static_cast<int64_t>(item.request.prompt.size()))]);
      }
      flood.push_back(std::move(item));
    }
    waves.before.push_back(std::move(flood));
  }

  const auto add_neighbours = [&](int count) {
    for (int i = 0; i < count; ++i) {
      const size_t like =
          ChoosesExperts(traffic.kind) ? members[static_cast<size_t>(i) % members.size()] : first;
      waves.items.push_back(Neighbour(traffic, traffic.kind, like));
      waves.subjects.push_back(-1);
    }
  };
  const int before =
      traffic.place < 0 ? traffic.neighbours / 2 : std::min(traffic.place, traffic.neighbours);
  add_neighbours(before);
  for (const size_t member : members) {
    WaveItem item{.request = workload_.subjects()[member].request};
    engine::GenerationRequest& request = item.request;
    request.policy = policy_;
    request.return_row_fingerprints = true;
    request.cache_salt = cold ? NewSalt() : salt;
    request.sampling.n = traffic.n;
    request.keep_record = traffic.recording == Recording::kReceipt;
    request.trace =
        traffic.recording == Recording::kTrace || traffic.recording == Recording::kTraceOfLayers;
    request.trace_layers = traffic.recording == Recording::kTraceOfLayers;
    // Prompt log-probabilities need every row and so never read the cache.
    if (!cold) request.sampling.prompt_logprobs = -1;
    if (traffic.logprobs.has_value()) {
      request.sampling.logprobs = *traffic.logprobs;
      if (*traffic.logprobs < 0) request.sampling.prompt_logprobs = -1;
    }
    waves.items.push_back(std::move(item));
    waves.subjects.push_back(static_cast<int>(member));
  }
  add_neighbours(traffic.neighbours - before);
  const auto put_anywhere = [&](WaveItem item) {
    const int64_t at = random_->Below(static_cast<int64_t>(waves.items.size()) + 1);
    waves.items.insert(waves.items.begin() + at, std::move(item));
    waves.subjects.insert(waves.subjects.begin() + at, -1);
  };
  for (int i = 0; i < traffic.other_policy; ++i) {
    WaveItem item = Neighbour(traffic, Neighbours::kOrdinary, first);
    item.request.policy = OtherPolicy(policy_, traffic.other_is_strong);
    put_anywhere(std::move(item));
  }
  for (int i = 0; i < traffic.limited; ++i) {
    WaveItem item =
        Neighbour(traffic, traffic.limited_kind, members[static_cast<size_t>(i) % members.size()]);
    item.request.policy = Policy::kThroughput;
    put_anywhere(std::move(item));
  }
  if (traffic.staggered) {
    WaveItem leader = Neighbour(traffic, Neighbours::kOrdinary, first);
    leader.request.sampling.max_tokens = workload_.options().output_tokens;
    waves.items.insert(waves.items.begin(), std::move(leader));
    waves.subjects.insert(waves.subjects.begin(), -1);
    int64_t tokens = 1;
    for (size_t i = 1; i < waves.items.size(); ++i) {
      if (waves.subjects[i] < 0) continue;
      waves.items[i].join_after = 0;
      waves.items[i].join_after_tokens = tokens;
      tokens = 1 + (tokens + 2) % workload_.options().output_tokens;
    }
  }
  return waves;
}

}  // namespace verbatim::conformance
