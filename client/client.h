// A connection to one server: unary calls, and streaming calls that record what happened when.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "verbatim/v1/verbatim.pb.h"

namespace verbatim::client {

using Clock = std::chrono::steady_clock;
using TimePoint = Clock::time_point;

inline double SecondsBetween(TimePoint from, TimePoint to) {
  return std::chrono::duration<double>(to - from).count();
}

// One message of new tokens.
struct DeltaRecord {
  TimePoint time;
  int32_t index = 0;  // sample
  int32_t tokens = 0;
};

// One sample of a request.
struct SampleRecord {
  std::string text;
  std::vector<int32_t> token_ids;
  std::vector<float> top_margins;  // one per token when asked for
  std::optional<v1::Finished> finished;
};

// What happened to one Generate call.
struct CallRecord {
  TimePoint scheduled;  // when it should have started: latencies count from here
  TimePoint started;
  TimePoint ended;
  absl::Status status = absl::UnknownError("not started");
  v1::Accepted accepted;
  std::vector<DeltaRecord> deltas;
  std::vector<SampleRecord> samples;  // by index
  std::optional<v1::Usage> usage;

  int64_t output_tokens() const;  // received, whether the call ended well or not
  // Seconds from `scheduled`; nullopt when no token came.
  std::optional<double> time_to_first_token() const;
  double end_to_end_latency() const { return SecondsBetween(scheduled, ended); }
  // Gaps between consecutive messages with tokens of the first sample, in seconds.
  std::vector<double> inter_token_latencies() const;
};

// A Generate call under way.
class Call {
 public:
  virtual ~Call() = default;
  virtual void Cancel() = 0;  // any time, also after the end
};

// Thread-safe. Must outlive its calls.
class Client {
 public:
  using OnResponse = std::function<void(const v1::GenerateResponse&)>;
  using OnDone = std::function<void(CallRecord)>;

  // Waits until the server answers GetServerInfo. `keep_waiting` is asked several times a second
  // and ends the wait with its error. DEADLINE_EXCEEDED naming the target otherwise.
  static absl::StatusOr<std::unique_ptr<Client>> Connect(
      const std::string& target, absl::Duration timeout,
      const std::function<absl::Status()>& keep_waiting = nullptr);
  virtual ~Client() = default;

  virtual absl::StatusOr<v1::GetServerInfoResponse> GetServerInfo() = 0;
  virtual absl::StatusOr<v1::GetModelInfoResponse> GetModelInfo() = 0;
  virtual absl::StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request) = 0;
  virtual absl::StatusOr<v1::DetokenizeResponse> Detokenize(
      const v1::DetokenizeRequest& request) = 0;

  // Waits as long as it takes, until `interrupted` (may be empty) says so.
  virtual absl::StatusOr<v1::VerifyReceiptResponse> VerifyReceipt(
      const v1::VerifyReceiptRequest& request,
      const std::function<bool()>& interrupted = nullptr) = 0;

  // Starts a call and returns at once. `on_response` (may be empty) sees every message, `on_done`
  // the record, both on a thread of gRPC; they must not block for long. `deadline` counts from now.
  virtual std::shared_ptr<Call> Start(const v1::GenerateRequest& request, TimePoint scheduled,
                                      OnResponse on_response, OnDone on_done,
                                      absl::Duration deadline = absl::InfiniteDuration()) = 0;

  // Start() and wait. Cancels the call when `interrupted` (may be empty) says so.
  CallRecord Generate(const v1::GenerateRequest& request, OnResponse on_response = nullptr,
                      const std::function<bool()>& interrupted = nullptr);
};

// "throughput", "pinned" or "portable" and back. INVALID_ARGUMENT for other names.
absl::StatusOr<v1::Determinism> ParseDeterminism(const std::string& name);
std::string DeterminismName(v1::Determinism determinism);

// "UNAVAILABLE: connection refused".
std::string Describe(const absl::Status& status);

}  // namespace verbatim::client
