// Merging of pending deltas, and conversion of engine events to messages.
#include "server/response_queue.h"

#include <iterator>
#include <string>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "model/utf8.h"

namespace verbatim::server {
namespace {

// Clients refuse messages above 4 MiB by default.
constexpr int64_t kMaxTraceMessageBytes = int64_t{7} << 19;

// About what a log-probability with its token text takes on the wire.
constexpr int64_t kLogprobBytes = 32;

int64_t BytesOf(const engine::PositionLogprobs& position) {
  return kLogprobBytes * (1 + static_cast<int64_t>(position.top.size()));
}

int64_t BytesOf(const engine::DeltaEvent& event) {
  int64_t bytes = static_cast<int64_t>(event.text.size()) + 16;
  bytes += 4 * static_cast<int64_t>(event.tokens.size() + event.top_margins.size());
  for (const engine::PositionLogprobs& position : event.logprobs) bytes += BytesOf(position);
  return bytes;
}

std::string ValidUtf8(std::string_view bytes) {
  std::string text;
  model::AppendUtf8(bytes, /*final=*/true, &text);
  return text;
}

template <typename T>
void MoveAppend(std::vector<T>& from, std::vector<T>* to) {
  to->insert(to->end(), std::make_move_iterator(from.begin()), std::make_move_iterator(from.end()));
}

v1::FinishReason ToProto(engine::FinishReason reason) {
  switch (reason) {
    case engine::FinishReason::kStop:
      return v1::FINISH_REASON_STOP;
    case engine::FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

}  // namespace

void ResponseQueue::PushFirst(v1::Accepted accepted) {
  v1::GenerateResponse response;
  *response.mutable_accepted() = std::move(accepted);
  events_.emplace_front(std::move(response));
}

void ResponseQueue::Push(std::vector<engine::PositionLogprobs> prompt_logprobs) {
  std::vector<engine::PositionLogprobs> part;
  int64_t bytes = 0;
  for (engine::PositionLogprobs& position : prompt_logprobs) {
    const int64_t more = BytesOf(position);
    if (!part.empty() && bytes + more > kMessageBytes) {
      events_.emplace_back(std::exchange(part, {}));
      bytes = 0;
    }
    bytes += more;
    part.push_back(std::move(position));
  }
  if (!part.empty()) events_.emplace_back(std::move(part));
}

void ResponseQueue::Push(engine::DeltaEvent event) {
  if (fragility_.has_value()) fragility_->Add(event.index, event.top_margins);
  const int64_t bytes = BytesOf(event);
  delta_bytes_ += bytes;
  // A sample's deltas are followed by its end, so the last delta of this sample is the one to join.
  for (auto it = events_.rbegin(); it != events_.rend(); ++it) {
    Delta* last = std::get_if<Delta>(&*it);
    if (last == nullptr || last->event.index != event.index) continue;
    if (last->bytes + bytes > kMessageBytes) break;
    last->event.text += event.text;
    MoveAppend(event.tokens, &last->event.tokens);
    MoveAppend(event.logprobs, &last->event.logprobs);
    MoveAppend(event.top_margins, &last->event.top_margins);
    last->bytes += bytes;
    return;
  }
  events_.emplace_back(Delta{std::move(event), bytes});
}

void ResponseQueue::Push(engine::FinishedEvent event) { events_.emplace_back(std::move(event)); }

void ResponseQueue::Push(const engine::UsageEvent& event, bool response_cache_hit) {
  v1::GenerateResponse response;
  v1::Usage* usage = response.mutable_usage();
  usage->set_prompt_tokens(event.prompt_tokens);
  usage->set_cached_prompt_tokens(event.cached_prompt_tokens);
  usage->set_output_tokens(event.output_tokens);
  usage->set_queue_seconds(absl::ToDoubleSeconds(event.queue_time));
  usage->set_time_to_first_token_seconds(absl::ToDoubleSeconds(event.time_to_first_token));
  usage->set_total_seconds(absl::ToDoubleSeconds(event.total_time));
  usage->set_preemptions(event.preemptions);
  usage->set_response_cache_hit(response_cache_hit);
  events_.emplace_back(std::move(response));
}

std::optional<v1::GenerateResponse> ResponseQueue::Pop() {
  if (events_.empty()) return std::nullopt;
  Event event = std::move(events_.front());
  events_.pop_front();
  if (auto* response = std::get_if<v1::GenerateResponse>(&event)) return std::move(*response);
  v1::GenerateResponse response;
  if (auto* positions = std::get_if<std::vector<engine::PositionLogprobs>>(&event)) {
    v1::PromptLogprobs* out = response.mutable_prompt_logprobs();
    for (const engine::PositionLogprobs& position : *positions) {
      ToProto(position, out->add_positions());
    }
    return response;
  }
  if (auto* finished = std::get_if<engine::FinishedEvent>(&event)) {
    v1::Finished* out = response.mutable_finished();
    ToProto(*finished, out);
    if (fragility_.has_value()) *out->mutable_fragility() = fragility_->Take(finished->index);
    return response;
  }
  Delta& delta = std::get<Delta>(event);
  delta_bytes_ -= delta.bytes;
  v1::Delta* out = response.mutable_delta();
  out->set_index(delta.event.index);
  out->set_text(std::move(delta.event.text));
  out->mutable_token_ids()->Add(delta.event.tokens.begin(), delta.event.tokens.end());
  for (const engine::PositionLogprobs& position : delta.event.logprobs) {
    ToProto(position, out->add_logprobs());
  }
  out->mutable_top_margins()->Add(delta.event.top_margins.begin(), delta.event.top_margins.end());
  return response;
}

void ResponseQueue::Clear() {
  events_.clear();
  delta_bytes_ = 0;
}

void ResponseQueue::ToProto(const engine::FinishedEvent& in, v1::Finished* out) const {
  out->set_index(in.index);
  out->set_reason(server::ToProto(in.reason));
  out->set_stop_reason(ValidUtf8(in.stop_reason));
  out->set_output_tokens(in.output_tokens);
  out->set_logits_sha256(in.logits_sha256);
  out->set_min_top_margin(in.min_top_margin);
  if (in.trace != nullptr) ToProto(*in.trace, out->mutable_trace());
  if (!make_receipt_ || in.record == nullptr) return;
  if (std::optional<v1::Receipt> receipt = make_receipt_(in)) {
    *out->mutable_receipt() = *std::move(receipt);
  }
}

void ResponseQueue::ToProto(trace::Trace& in, v1::DecisionTrace* out) const {
  in.identity.version = trace_version_;
  in.identity.weights_sha256 = trace_weights_sha256_;
  std::string json = trace::ToJson(in);
  if (static_cast<int64_t>(json.size()) > kMaxTraceMessageBytes) {
    in.DropSteps(absl::StrCat("its steps take ", json.size(), " bytes, a message at most ",
                              kMaxTraceMessageBytes));
    json = trace::ToJson(in);
  }
  out->set_not_replayable(in.not_replayable);
  out->set_json(std::move(json));
}

void ResponseQueue::ToProto(const engine::PositionLogprobs& in, v1::PositionLogprobs* out) const {
  if (in.chosen.token < 0) return;  // the first prompt token has no value
  ToProto(in.chosen, out->mutable_chosen());
  for (const kernels::TokenLogprob& entry : in.top) ToProto(entry, out->add_top());
}

void ResponseQueue::ToProto(const kernels::TokenLogprob& in, v1::TokenLogprob* out) const {
  out->set_token(in.token);
  out->set_logprob(in.logprob);
  out->set_rank(in.rank);
  out->set_text(ValidUtf8(tokenizer_.TokenBytes(in.token)));
}

}  // namespace verbatim::server
