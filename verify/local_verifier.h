// Verification without a server: the model and an engine in this process.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "kernels/cpu/isa.h"
#include "model/checkpoint.h"
#include "receipt/canonical.h"
#include "server/receipt_issuer.h"
#include "verbatim/v1/receipt.pb.h"

namespace verbatim::verify {

struct LocalOptions {
  std::string model;
  std::string device = "cpu";  // as for kernels::OpenBackend
  int32_t threads = 0;         // 0: every core
  std::optional<kernels::cpu::Isa> isa;
};

class LocalVerifier {
 public:
  // Loads the model, and makes an engine that holds the longest of `receipts` and keeps keys and
  // values as the first one's numerics id says. Errors of the model file, and FAILED_PRECONDITION
  // for a receipt longer than the model's context.
  static absl::StatusOr<std::unique_ptr<LocalVerifier>> Create(
      const LocalOptions& options, const std::vector<receipt::Parsed>& receipts);

  // Whether the receipt could be of this model, and then the recomputation; adds to `report`.
  // Errors are the engine's: a receipt out of its ranges.
  absl::Status Verify(const receipt::Receipt& receipt, v1::VerifyReceiptResponse* report);

 private:
  std::unique_ptr<model::Checkpoint> checkpoint_;
  std::unique_ptr<model::Tokenizer> tokenizer_;
  server::ReceiptIdentity identity_;
  std::unique_ptr<engine::Engine> engine_;
};

}  // namespace verbatim::verify
