// The life of one Generate call: check, tokenise, submit, stream, finish.
#include "server/generate_call.h"

#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "grpcpp/server_context.h"
#include "receipt/receipt_message.h"
#include "server/grpc_wire.h"
#include "server/parse_error.h"
#include "server/write_thread.h"

namespace verbatim::server {
namespace {

v1::Determinism ToProto(kernels::Policy policy) { return static_cast<v1::Determinism>(policy); }

int64_t TextBytes(const v1::GenerateRequest& request) {
  if (request.has_text()) return static_cast<int64_t>(request.text().size());
  return request.has_chat() ? static_cast<int64_t>(request.chat().ByteSizeLong()) : 0;
}

}  // namespace

grpc::ServerWriteReactor<grpc::ByteBuffer>* GenerateCall::Start(
    ServiceContext* service, grpc::CallbackServerContext* context,
    const grpc::ByteBuffer& request) {
  std::shared_ptr<GenerateCall> call(new GenerateCall(service, context));
  {
    std::lock_guard lock(call->mutex_);
    call->self_ = call;
  }
  call->Begin(request);
  return call.get();  // alive until OnDone(), which comes after this returns
}

GenerateCall::GenerateCall(ServiceContext* service, grpc::CallbackServerContext* context)
    : service_(service), context_(context), queue_(*service->tokenizer) {}

void GenerateCall::Begin(const grpc::ByteBuffer& request) {
  if (service_->draining) return Fail(absl::UnavailableError("the server is shutting down"));
  const std::string bytes = BytesOf(request);
  if (!request_.ParseFromString(bytes)) {
    return Fail(DescribeParseError(*v1::GenerateRequest::descriptor(), bytes));
  }
  absl::StatusOr<engine::GenerationRequest> converted =
      ConvertGenerateRequest(request_, service_->limits);
  if (!converted.ok()) return Fail(converted.status());
  prepared_ = *std::move(converted);
  if (prepared_.trace) {
    queue_.set_trace_identity(service_->server_info.version(),
                              service_->model_info.weights_sha256());
  }
  if (context_->deadline() != std::chrono::system_clock::time_point::max()) {
    prepared_.deadline = absl::FromChrono(context_->deadline());
  }
  if (request_.has_token_ids()) return Submit();
  if (TextBytes(request_) <= service_->inline_text_bytes) return Tokenize();
  if (!service_->text_workers->TrySchedule([self = self_] { self->Tokenize(); })) {
    Fail(absl::ResourceExhaustedError("too many long prompts wait to be tokenised"));
  }
}

void GenerateCall::Tokenize() {
  bool cancelled;
  {
    std::lock_guard lock(mutex_);
    cancelled = cancelled_;
  }
  if (cancelled) return Fail(absl::CancelledError("cancelled by the client"));
  const bool is_text = request_.has_text();
  absl::StatusOr<std::vector<int32_t>> ids =
      is_text ? TokenizeText(request_.text(),
                             !request_.has_add_special_tokens() || request_.add_special_tokens(),
                             *service_->tokenizer)
              : TokenizeChat(request_.chat(), *service_->chat_template, *service_->tokenizer);
  if (!ids.ok()) return Fail(ids.status());
  prepared_.prompt = *std::move(ids);
  if (absl::Status status =
          ValidatePromptLength(prepared_, is_text ? "text" : "chat.messages", service_->limits);
      !status.ok()) {
    return Fail(status);
  }
  Submit();
}

void GenerateCall::Submit() {
  v1::Accepted accepted;
  accepted.set_request_id(
      request_.request_id().empty()
          ? absl::StrCat(service_->request_id_prefix, service_->next_request_id.fetch_add(1))
          : request_.request_id());
  accepted.set_model(service_->limits.served_model_name);
  accepted.set_determinism(ToProto(prepared_.policy));
  accepted.set_numerics_id(service_->engine->SupportOf(prepared_.policy).numerics_id);
  accepted.set_prompt_tokens(static_cast<int64_t>(prepared_.prompt.size()));
  if (request_.return_prompt_token_ids()) {
    accepted.mutable_prompt_token_ids()->Add(prepared_.prompt.begin(), prepared_.prompt.end());
  }
  if (request_.return_receipt()) AskForReceipts();
  if (request_.return_fragility() && service_->fragility_calibration.has_value()) {
    queue_.set_fragility(FragilityScores(*service_->fragility_calibration, prepared_));
  }
  std::shared_ptr<engine::ResponseSink> sink = shared_from_this();
  if (service_->response_cache != nullptr && AnswerFromCache(accepted, sink)) return;
  request_.Clear();

  uint64_t seed = 0;
  absl::StatusOr<engine::RequestId> id =
      service_->engine->Submit(std::move(prepared_), std::move(sink), &seed);
  if (!id.ok()) return Fail(id.status());
  accepted.set_seed(seed);
  bool cancelled;
  {
    std::lock_guard lock(mutex_);
    engine_id_ = *id;
    queue_.PushFirst(std::move(accepted));
    accepted_ = true;
    cancelled = cancelled_;
  }
  if (cancelled) service_->engine->Cancel(*id);
  Pump();
}

void GenerateCall::AskForReceipts() {
  prepared_.keep_record = true;
  queue_.set_make_receipt([receipts = service_->receipts, request = prepared_,
                           numerics_id = service_->engine->SupportOf(prepared_.policy).numerics_id](
                              const engine::FinishedEvent& event) -> std::optional<v1::Receipt> {
    const absl::StatusOr<receipt::Receipt> receipt = receipts->Issue(request, numerics_id, event);
    if (!receipt.ok()) return std::nullopt;
    return receipt::ToMessage(*receipt);
  });
}

bool GenerateCall::AnswerFromCache(v1::Accepted& accepted,
                                   std::shared_ptr<engine::ResponseSink>& sink) {
  if (!IsCacheable(prepared_)) return false;
  const absl::Time start = absl::Now();
  const ResponseKey key = KeyOf(request_, prepared_, accepted.numerics_id(), service_->model_info);
  const std::shared_ptr<const CachedAnswer> answer = service_->response_cache->Find(key);
  if (answer == nullptr) {
    prepared_.keep_record = true;  // a hit may be asked for a receipt
    sink = std::make_shared<RecordingSink>(std::move(sink), service_->response_cache, key);
    return false;
  }
  accepted.set_seed(answer->seed);
  engine::UsageEvent usage;
  usage.prompt_tokens = answer->usage.prompt_tokens;
  usage.output_tokens = answer->usage.output_tokens;
  usage.time_to_first_token = usage.total_time = absl::Now() - start;
  {
    std::lock_guard lock(mutex_);
    if (!cancelled_) {
      queue_.PushFirst(std::move(accepted));
      for (const CachedAnswer::Event& event : answer->events) {
        std::visit([this](const auto& kept) { queue_.Push(kept); }, event);
      }
      queue_.Push(usage, /*response_cache_hit=*/true);
    }
    terminal_ = cancelled_ ? absl::CancelledError("cancelled by the client") : absl::OkStatus();
    accepted_ = true;
  }
  Pump();
  return true;
}

void GenerateCall::Fail(const absl::Status& status) {
  {
    std::lock_guard lock(mutex_);
    terminal_ = status;
    accepted_ = true;  // nothing will come before the status
  }
  Pump();
}

void GenerateCall::OnPromptLogprobs(std::vector<engine::PositionLogprobs> positions) {
  {
    std::lock_guard lock(mutex_);
    if (cancelled_ || terminal_.has_value()) return;
    queue_.Push(std::move(positions));
  }
  PumpSoon();
}

void GenerateCall::OnDelta(engine::DeltaEvent event) {
  bool too_slow;
  {
    std::lock_guard lock(mutex_);
    if (cancelled_ || terminal_.has_value()) return;
    queue_.Push(std::move(event));
    too_slow = queue_.delta_bytes() > service_->max_pending_bytes;
  }
  if (too_slow) return EndSlowReader();
  PumpSoon();
}

void GenerateCall::OnFinished(engine::FinishedEvent event) {
  {
    std::lock_guard lock(mutex_);
    if (cancelled_ || terminal_.has_value()) return;
    queue_.Push(std::move(event));
  }
  PumpSoon();
}

void GenerateCall::OnDone(absl::Status status, engine::UsageEvent usage) {
  {
    std::lock_guard lock(mutex_);
    if (terminal_.has_value()) return;  // ended as a slow reader
    if (status.ok() && !cancelled_) queue_.Push(usage);
    terminal_ = std::move(status);
  }
  PumpSoon();
}

void GenerateCall::EndSlowReader() {
  std::optional<engine::RequestId> id;
  {
    std::lock_guard lock(mutex_);
    queue_.Clear();
    terminal_ = absl::ResourceExhaustedError(absl::StrCat("the client reads too slowly: more than ",
                                                          service_->max_pending_bytes,
                                                          " bytes of the answer wait to be sent"));
    id = engine_id_;
    cancelled_ = true;  // Submit() cancels when the id is not known yet
  }
  if (id.has_value()) service_->engine->Cancel(*id);
  Pump();
}

void GenerateCall::OnWriteDone(bool ok) {
  {
    std::lock_guard lock(mutex_);
    writing_ = false;
    if (!ok) queue_.Clear();  // the connection is gone; OnCancel comes or has come
  }
  Pump();
}

void GenerateCall::OnCancel() {
  std::optional<engine::RequestId> id;
  {
    std::lock_guard lock(mutex_);
    cancelled_ = true;
    queue_.Clear();
    id = engine_id_;
  }
  if (id.has_value()) service_->engine->Cancel(*id);
}

void GenerateCall::OnDone() {
  // Under the lock like everything else, so that nothing relies on orderings inside gRPC.
  std::shared_ptr<GenerateCall> self;
  std::lock_guard lock(mutex_);
  self.swap(self_);
}

void GenerateCall::PumpSoon() {
  {
    std::lock_guard lock(mutex_);
    // OnWriteDone() pumps after a write in flight; Submit() after it has accepted.
    if (pump_pending_ || writing_ || !accepted_) return;
    pump_pending_ = true;
  }
  service_->write_thread->Add(shared_from_this());
}

void GenerateCall::Pump() {
  bool finish = false;
  bool write = false;
  grpc::Status status;
  {
    std::lock_guard lock(mutex_);
    pump_pending_ = false;
    if (writing_ || finish_called_ || !accepted_) return;
    if (std::optional<v1::GenerateResponse> response = queue_.Pop()) {
      out_ = Serialize(*response);
      writing_ = write = true;
    }
    if (terminal_.has_value() && queue_.empty()) {
      finish_called_ = finish = true;
      status = ToGrpcStatus(*terminal_);
    }
  }
  // Outside the lock: gRPC may call back. No other thread starts a write before OnWriteDone().
  if (write && finish) {
    StartWriteAndFinish(&out_, grpc::WriteOptions(), std::move(status));
  } else if (write) {
    StartWrite(&out_);
  } else if (finish) {
    Finish(std::move(status));
  }
}

}  // namespace verbatim::server
