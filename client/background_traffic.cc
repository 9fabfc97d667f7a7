// Poisson arrivals of throw-away requests on a thread of their own.
#include "client/background_traffic.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"

namespace verbatim::client {
namespace {

constexpr const char* kWords[] = {
    "river",  "quickly", "the",    "of",      "under", "bright",  "engine", "paper",  "and",
    "seven",  "listen",  "market", "because", "stone", "never",   "garden", "to",     "slowly",
    "window", "carries", "with",   "music",   "an",    "orange",  "city",   "before", "number",
    "winter", "is",      "found",  "letter",  "green", "between", "horse",  "a",      "question",
};

}  // namespace

v1::GenerateRequest BackgroundRequest(const BackgroundShape& shape, std::mt19937_64* random) {
  const auto pick = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(*random);
  };
  v1::GenerateRequest request;
  std::string text;
  if (shape.prompts.empty()) {
    for (int64_t i = pick(5, 120); i > 0; --i) {
      absl::StrAppend(&text, kWords[pick(0, static_cast<int64_t>(std::size(kWords)) - 1)], " ");
    }
  } else {
    text =
        shape.prompts[static_cast<size_t>(pick(0, static_cast<int64_t>(shape.prompts.size()) - 1))];
  }
  request.set_text(text);
  request.set_determinism(shape.determinism);
  v1::SamplingParams* sampling = request.mutable_sampling();
  sampling->set_temperature(0.8F);
  sampling->set_seed((*random)());
  sampling->set_ignore_eos(true);
  sampling->set_max_tokens(pick(std::min<int64_t>(8, shape.max_tokens), shape.max_tokens));
  return request;
}

absl::StatusOr<std::vector<std::string>> ReadPrompts(const std::string& path) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  std::vector<std::string> prompts;
  for (std::string line; std::getline(file, line);) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (!line.empty()) prompts.push_back(line);
  }
  if (prompts.empty()) return absl::InvalidArgumentError(absl::StrCat(path, ": has no prompt"));
  return prompts;
}

BackgroundTraffic::BackgroundTraffic(Client* client, const Options& options)
    : client_(client), options_(options), random_(options.seed) {
  if (options_.rate_per_second > 0) thread_ = std::thread([this] { Run(); });
}

void BackgroundTraffic::Run() {
  std::exponential_distribution<double> interval(options_.rate_per_second);
  TimePoint next = start_;
  std::unique_lock lock(mutex_);
  while (true) {
    next += std::chrono::duration_cast<Clock::duration>(
        std::chrono::duration<double>(interval(random_)));
    if (changed_.wait_until(lock, next, [this] { return stopping_; })) return;
    ++figures_.arrivals;
    changed_.notify_all();
    // Drawn in any case: what is sent at an arrival does not depend on the ones left out.
    v1::GenerateRequest request = BackgroundRequest(options_.shape, &random_);
    if (static_cast<int64_t>(in_flight_.size()) >= options_.max_concurrency) {
      ++figures_.left_out;
      continue;
    }
    const int64_t id = figures_.arrivals;
    in_flight_[id] = nullptr;
    lock.unlock();  // the call may end, and report, before Start returns
    std::shared_ptr<Call> call = client_->Start(
        request, next, nullptr, [this, id](const CallRecord& record) { Ended(id, record); });
    lock.lock();
    if (const auto it = in_flight_.find(id); it != in_flight_.end()) it->second = std::move(call);
  }
}

void BackgroundTraffic::Ended(int64_t id, const CallRecord& record) {
  const std::lock_guard lock(mutex_);
  in_flight_.erase(id);
  figures_.output_tokens += record.output_tokens();
  if (record.status.ok()) {
    ++figures_.completed;
  } else if (!(stopping_ && record.status.code() == absl::StatusCode::kCancelled)) {
    ++figures_.failed;
    if (figures_.first_error.empty()) figures_.first_error = Describe(record.status);
  }
  changed_.notify_all();
}

void BackgroundTraffic::WaitForArrivals(int64_t count, absl::Duration at_most) {
  if (!thread_.joinable()) return;
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, absl::ToChronoNanoseconds(at_most),
                    [&] { return figures_.arrivals >= count; });
}

BackgroundFigures BackgroundTraffic::Stop() {
  std::unique_lock lock(mutex_);
  if (!stopping_) figures_.seconds = SecondsBetween(start_, Clock::now());
  stopping_ = true;
  changed_.notify_all();
  lock.unlock();
  if (thread_.joinable()) thread_.join();
  lock.lock();
  const std::map<int64_t, std::shared_ptr<Call>> calls = in_flight_;
  lock.unlock();
  for (const auto& [id, call] : calls) call->Cancel();
  lock.lock();
  changed_.wait(lock, [this] { return in_flight_.empty(); });
  return figures_;
}

}  // namespace verbatim::client
