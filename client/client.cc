// The client on gRPC's callback API: no thread waits for a stream.
#include "client/client.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "verbatim/v1/verbatim.grpc.pb.h"

namespace verbatim::client {
namespace {

constexpr std::chrono::seconds kUnaryDeadline{60};
constexpr std::chrono::milliseconds kPollInterval{100};

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

// One stream. Keeps itself alive until OnDone.
class StreamCall : public grpc::ClientReadReactor<v1::GenerateResponse>, public Call {
 public:
  StreamCall(const v1::GenerateRequest& request, TimePoint scheduled,
             Client::OnResponse on_response, Client::OnDone on_done)
      : request_(request), on_response_(std::move(on_response)), on_done_(std::move(on_done)) {
    record_.scheduled = scheduled;
  }

  void Begin(v1::VerbatimService::Stub* stub, absl::Duration deadline,
             std::shared_ptr<StreamCall> self) {
    self_ = std::move(self);
    if (deadline != absl::InfiniteDuration()) {
      context_->set_deadline(absl::ToChronoTime(absl::Now() + deadline));
    }
    record_.started = Clock::now();
    stub->async()->Generate(context_.get(), &request_, this);
    StartRead(&response_);
    StartCall();
  }

  void Cancel() override {
    std::shared_ptr<grpc::ClientContext> context;
    {
      const std::lock_guard lock(mutex_);
      context = context_;
    }
    if (context != nullptr) context->TryCancel();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    Record(response_);
    if (on_response_) on_response_(response_);
    StartRead(&response_);
  }

  void OnDone(const grpc::Status& status) override {
    record_.ended = Clock::now();
    record_.status = FromGrpc(status);
    if (status.ok() && !record_.usage.has_value()) {
      record_.status = absl::InternalError("the stream ended without a usage message");
    }
    const std::shared_ptr<StreamCall> self = std::move(self_);
    // The context holds the channel, whose destruction waits for the thread that runs this: the
    // client must be its last holder once the caller knows of the end.
    std::shared_ptr<grpc::ClientContext> context;
    {
      const std::lock_guard lock(mutex_);
      context = std::move(context_);
    }
    context.reset();
    on_done_(std::move(record_));
  }

 private:
  SampleRecord& Sample(int32_t index) {
    const auto at = static_cast<size_t>(std::max(index, 0));
    if (record_.samples.size() <= at) record_.samples.resize(at + 1);
    return record_.samples[at];
  }

  void Record(const v1::GenerateResponse& response) {
    switch (response.event_case()) {
      case v1::GenerateResponse::kAccepted:
        record_.accepted = response.accepted();
        break;
      case v1::GenerateResponse::kDelta: {
        const v1::Delta& delta = response.delta();
        record_.deltas.push_back({Clock::now(), delta.index(), delta.token_ids_size()});
        SampleRecord& sample = Sample(delta.index());
        sample.text += delta.text();
        sample.token_ids.insert(sample.token_ids.end(), delta.token_ids().begin(),
                                delta.token_ids().end());
        sample.top_margins.insert(sample.top_margins.end(), delta.top_margins().begin(),
                                  delta.top_margins().end());
        break;
      }
      case v1::GenerateResponse::kFinished:
        Sample(response.finished().index()).finished = response.finished();
        break;
      case v1::GenerateResponse::kUsage:
        record_.usage = response.usage();
        break;
      default:
        break;
    }
  }

  const v1::GenerateRequest request_;
  const Client::OnResponse on_response_;
  const Client::OnDone on_done_;
  std::mutex mutex_;
  std::shared_ptr<grpc::ClientContext> context_ = std::make_shared<grpc::ClientContext>();
  v1::GenerateResponse response_;
  CallRecord record_;
  std::shared_ptr<StreamCall> self_;
};

class GrpcClient : public Client {
 public:
  explicit GrpcClient(std::shared_ptr<grpc::Channel> channel)
      : channel_(std::move(channel)), stub_(v1::VerbatimService::NewStub(channel_)) {}

  absl::StatusOr<v1::GetServerInfoResponse> GetServerInfo() override {
    return Unary(&v1::VerbatimService::Stub::GetServerInfo, v1::GetServerInfoRequest());
  }
  absl::StatusOr<v1::GetModelInfoResponse> GetModelInfo() override {
    return Unary(&v1::VerbatimService::Stub::GetModelInfo, v1::GetModelInfoRequest());
  }
  absl::StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request) override {
    return Unary(&v1::VerbatimService::Stub::Tokenize, request);
  }
  absl::StatusOr<v1::DetokenizeResponse> Detokenize(const v1::DetokenizeRequest& request) override {
    return Unary(&v1::VerbatimService::Stub::Detokenize, request);
  }

  absl::StatusOr<v1::VerifyReceiptResponse> VerifyReceipt(
      const v1::VerifyReceiptRequest& request, const std::function<bool()>& interrupted) override {
    grpc::ClientContext context;
    v1::VerifyReceiptResponse response;
    std::mutex mutex;
    std::condition_variable changed;
    std::optional<grpc::Status> done;
    stub_->async()->VerifyReceipt(&context, &request, &response, [&](grpc::Status status) {
      const std::lock_guard lock(mutex);
      done = std::move(status);
      changed.notify_one();
    });
    std::unique_lock lock(mutex);
    while (!changed.wait_for(lock, kPollInterval, [&] { return done.has_value(); })) {
      if (interrupted && interrupted()) context.TryCancel();
    }
    if (!done->ok()) return FromGrpc(*done);
    return response;
  }

  std::shared_ptr<Call> Start(const v1::GenerateRequest& request, TimePoint scheduled,
                              OnResponse on_response, OnDone on_done,
                              absl::Duration deadline) override {
    auto call = std::make_shared<StreamCall>(request, scheduled, std::move(on_response),
                                             std::move(on_done));
    call->Begin(stub_.get(), deadline, call);
    return call;
  }

 private:
  template <typename Request, typename Response>
  absl::StatusOr<Response> Unary(grpc::Status (v1::VerbatimService::Stub::*method)(
                                     grpc::ClientContext*, const Request&, Response*),
                                 const Request& request) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kUnaryDeadline);
    Response response;
    const grpc::Status status = (stub_.get()->*method)(&context, request, &response);
    if (!status.ok()) return FromGrpc(status);
    return response;
  }

  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::VerbatimService::Stub> stub_;
};

}  // namespace

int64_t CallRecord::output_tokens() const {
  int64_t tokens = 0;
  for (const SampleRecord& sample : samples)
    tokens += static_cast<int64_t>(sample.token_ids.size());
  return tokens;
}

std::optional<double> CallRecord::time_to_first_token() const {
  for (const DeltaRecord& delta : deltas) {
    if (delta.tokens > 0) return SecondsBetween(scheduled, delta.time);
  }
  return std::nullopt;
}

std::vector<double> CallRecord::inter_token_latencies() const {
  std::vector<double> gaps;
  const DeltaRecord* previous = nullptr;
  for (const DeltaRecord& delta : deltas) {
    if (delta.tokens == 0 || delta.index != 0) continue;
    if (previous != nullptr) gaps.push_back(SecondsBetween(previous->time, delta.time));
    previous = &delta;
  }
  return gaps;
}

absl::StatusOr<std::unique_ptr<Client>> Client::Connect(
    const std::string& target, absl::Duration timeout,
    const std::function<absl::Status()>& keep_waiting) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  // A server that is still starting refuses connections for a second or so.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 500);
  // A server whose host has vanished sends no end: silence of half a minute is one.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 20'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  std::shared_ptr<grpc::Channel> channel =
      grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), arguments);
  const absl::Time deadline = absl::Now() + timeout;
  while (!channel->WaitForConnected(std::chrono::system_clock::now() + kPollInterval)) {
    if (keep_waiting) {
      if (absl::Status status = keep_waiting(); !status.ok()) return status;
    }
    if (absl::Now() >= deadline) {
      return absl::DeadlineExceededError(
          absl::StrCat("no server answers at ", target, " within ", absl::FormatDuration(timeout)));
    }
  }
  auto client = std::make_unique<GrpcClient>(std::move(channel));
  const auto info = client->GetServerInfo();
  if (!info.ok()) {
    return absl::Status(info.status().code(), absl::StrCat(target, ": ", info.status().message()));
  }
  return client;
}

CallRecord Client::Generate(const v1::GenerateRequest& request, OnResponse on_response,
                            const std::function<bool()>& interrupted) {
  std::mutex mutex;
  std::condition_variable changed;
  std::optional<CallRecord> record;
  const std::shared_ptr<Call> call =
      Start(request, Clock::now(), std::move(on_response), [&](CallRecord done) {
        const std::lock_guard lock(mutex);
        record = std::move(done);
        changed.notify_one();
      });
  std::unique_lock lock(mutex);
  while (!changed.wait_for(lock, kPollInterval, [&] { return record.has_value(); })) {
    if (interrupted && interrupted()) call->Cancel();
  }
  return *std::move(record);
}

absl::StatusOr<v1::Determinism> ParseDeterminism(const std::string& name) {
  if (name == "throughput") return v1::DETERMINISM_THROUGHPUT;
  if (name == "pinned") return v1::DETERMINISM_PINNED;
  if (name == "portable") return v1::DETERMINISM_PORTABLE;
  return absl::InvalidArgumentError(
      absl::StrCat("'", name, "' is not one of throughput, pinned, portable"));
}

std::string DeterminismName(v1::Determinism determinism) {
  switch (determinism) {
    case v1::DETERMINISM_THROUGHPUT:
      return "throughput";
    case v1::DETERMINISM_PINNED:
      return "pinned";
    case v1::DETERMINISM_PORTABLE:
      return "portable";
    default:
      return "unspecified";
  }
}

std::string Describe(const absl::Status& status) {
  if (status.ok()) return "OK";
  return absl::StrCat(absl::StatusCodeToString(status.code()), ": ", status.message());
}

}  // namespace verbatim::client
