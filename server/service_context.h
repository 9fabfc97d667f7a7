// What every call of the service works with.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/time/time.h"
#include "engine/engine.h"
#include "fragility/calibration.h"
#include "model/chat_template.h"
#include "model/tokenizer.h"
#include "server/receipt_issuer.h"
#include "server/request_validation.h"
#include "server/response_cache.h"
#include "server/text_workers.h"
#include "verbatim/v1/verbatim.pb.h"

namespace verbatim::server {

class WriteThread;

struct ServiceContext {
  engine::Engine* engine = nullptr;             // outlives the service
  const model::Tokenizer* tokenizer = nullptr;  // outlives the service
  const model::ChatTemplate* chat_template = nullptr;
  TextWorkers* text_workers = nullptr;
  WriteThread* write_thread = nullptr;
  const ReceiptIssuer* receipts = nullptr;  // null: neither issued nor verified
  ResponseCache* response_cache = nullptr;  // null: off
  RequestLimits limits;

  v1::GetModelInfoResponse model_info;    // the answer
  v1::GetServerInfoResponse server_info;  // the part that does not change
  absl::Time start_time;
  std::function<double()> front_end_cpu_seconds;  // may be empty
  std::optional<fragility::Calibration> fragility_calibration;

  // Texts up to this size are tokenised on the thread that brings the request.
  int64_t inline_text_bytes = 4 << 10;
  // A stream whose reader lags this far behind is ended.
  int64_t max_pending_bytes = 16 << 20;

  // Set before health answers NOT_SERVING: whoever has seen that finds Generate refused.
  std::atomic<bool> draining{false};

  std::string request_id_prefix;
  std::atomic<uint64_t> next_request_id{1};
};

}  // namespace verbatim::server
