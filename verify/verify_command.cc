// Flags, checks and output of `verbatim verify`.
#include "verify/verify_command.h"

#include <cstdio>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/client.h"
#include "client/interrupt.h"
#include "flags/flag_set.h"
#include "kernels/device/open_backend.h"
#include "receipt/canonical.h"
#include "receipt/receipt_message.h"
#include "receipt/signature.h"
#include "server/receipt_check.h"
#include "verify/local_verifier.h"

namespace verbatim::verify {
namespace {

constexpr int kRefused = 1, kUsage = 2, kUnchecked = 3;

struct Options {
  std::string target, model, public_key, device = "cpu", cpu_isa = "auto";
  int32_t threads = 0;
  double connect_timeout_s = 10;

  flags::FlagSet Flags();
};

flags::FlagSet Options::Flags() {
  flags::FlagSet flags(
      "verbatim verify [--target HOST:PORT | --model PATH] [--public-key FILE] RECEIPT...",
      "Checks receipts, as `verbatim generate --receipt` writes them: their checksums, their "
      "signature, and by one forward pass over prompt and answer that the model gives exactly "
      "these logits, tokens and end. Exit status: 0 verified, 1 refused, 2 wrong usage, 3 could "
      "not be checked.");
  flags.Group("What recomputes (neither: only what needs no model is checked)");
  flags.Add("target", &target, "HOST:PORT of a running server");
  flags.Add("connect-timeout-s", &connect_timeout_s, "seconds to wait for the server");
  flags.Add("model", &model, "the model itself: a .gguf file, or as for `verbatim serve`");
  flags.Add("device", &device, absl::StrCat("with --model: ", kernels::kDeviceHelp));
  flags.Add("threads", &threads, "with --model: threads that compute; 0: every core");
  flags.Add("cpu-isa", &cpu_isa,
            "with --model: auto, scalar, avx2 or avx512; never changes a verdict");
  flags.Group("Signature");
  flags.Add("public-key", &public_key,
            "PEM file with the Ed25519 key that must have signed every receipt");
  return flags;
}

int Complain(int code, const std::string& message) {
  std::fprintf(stderr, "verbatim verify: %s\n", message.c_str());
  return code;
}

struct Document {
  std::string name;  // "r.json", or "r.json line 2"
  std::string text;
};

absl::StatusOr<std::vector<Document>> ReadDocuments(const std::vector<std::string>& paths) {
  std::vector<Document> documents;
  for (const std::string& path : paths) {
    std::ifstream file(path, std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    if (!file || file.bad()) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
    std::vector<std::string> parts = receipt::SplitReceipts(text);
    for (size_t i = 0; i < parts.size(); ++i) {
      documents.push_back(
          {parts.size() == 1 ? path : absl::StrCat(path, " line ", i + 1), std::move(parts[i])});
    }
  }
  return documents;
}

const char* NameOf(v1::CheckOutcome outcome) {
  switch (outcome) {
    case v1::CHECK_OUTCOME_PASSED:
      return "ok";
    case v1::CHECK_OUTCOME_FAILED:
      return "FAILED";
    default:
      return "skipped";
  }
}

// The last line says it all.
void Print(const std::string& name, const v1::VerifyReceiptResponse& report, bool recomputed) {
  for (const v1::ReceiptCheck& check : report.checks()) {
    std::printf("  %-8s %-17s %s\n", NameOf(check.outcome()), check.name().c_str(),
                check.detail().c_str());
  }
  if (!report.mismatch_field().empty()) {
    std::printf("REFUSED  %s: %s", name.c_str(), report.mismatch_field().c_str());
    if (report.has_mismatch_token_index()) {
      std::printf(" at output token %lld", static_cast<long long>(report.mismatch_token_index()));
    }
    std::printf(": expected %s, found %s\n", report.expected().c_str(), report.actual().c_str());
  } else if (recomputed) {
    std::printf("verified %s: %lld output tokens recomputed in %.3f s\n", name.c_str(),
                static_cast<long long>(report.output_tokens_checked()), report.seconds());
  } else {
    std::printf("consistent %s: nothing was recomputed (see --target and --model)\n", name.c_str());
  }
}

// Where receipts are recomputed; neither: not at all.
struct Verifiers {
  std::unique_ptr<client::Client> client;
  std::unique_ptr<LocalVerifier> local;
};

absl::Status Recompute(const receipt::Receipt& receipt, const Verifiers& verifiers,
                       v1::VerifyReceiptResponse* report) {
  if (verifiers.local != nullptr) return verifiers.local->Verify(receipt, report);
  v1::VerifyReceiptRequest request;
  *request.mutable_receipt() = receipt::ToMessage(receipt);
  auto answer = verifiers.client->VerifyReceipt(request, client::Interrupted);
  if (!answer.ok()) return answer.status();
  // What was checked here already need not be told twice.
  google::protobuf::RepeatedPtrField<v1::ReceiptCheck> checks = report->checks();
  for (const v1::ReceiptCheck& check : answer->checks()) {
    bool is_known = false;
    for (const v1::ReceiptCheck& own : report->checks()) is_known |= own.name() == check.name();
    if (!is_known || check.outcome() == v1::CHECK_OUTCOME_FAILED) *checks.Add() = check;
  }
  *report = *std::move(answer);
  *report->mutable_checks() = std::move(checks);
  return absl::OkStatus();
}

// A receipt with values that no request may have is refused; other errors leave the question open.
bool IsRefusal(const absl::Status& status) { return absl::IsInvalidArgument(status); }

absl::StatusOr<Verifiers> MakeVerifiers(const Options& options,
                                        const std::vector<receipt::Parsed>& receipts) {
  Verifiers verifiers;
  if (!options.target.empty()) {
    auto client =
        client::Client::Connect(options.target, absl::Seconds(options.connect_timeout_s), [] {
          return client::Interrupted() ? absl::CancelledError("interrupted") : absl::OkStatus();
        });
    if (!client.ok()) return client.status();
    verifiers.client = *std::move(client);
  }
  if (!options.model.empty()) {
    LocalOptions local{
        .model = options.model, .device = options.device, .threads = options.threads};
    if (options.cpu_isa == "scalar") local.isa = kernels::cpu::Isa::kScalar;
    if (options.cpu_isa == "avx2") local.isa = kernels::cpu::Isa::kAvx2;
    if (options.cpu_isa == "avx512") local.isa = kernels::cpu::Isa::kAvx512;
    auto created = LocalVerifier::Create(local, receipts);
    if (!created.ok()) return created.status();
    verifiers.local = *std::move(created);
  }
  return verifiers;
}

std::string FlagError(const Options& options) {
  if (!options.target.empty() && !options.model.empty()) {
    return "--target and --model exclude each other";
  }
  if (options.target.empty() && options.model.empty() && options.public_key.empty()) {
    return "needs --target, --model or --public-key (see --help)";
  }
  if (!(options.connect_timeout_s >= 0)) return "--connect-timeout-s: is negative";
  if (const auto device = kernels::ParseDevice(options.device); !device.ok()) {
    return std::string(device.status().message());
  }
  if (options.threads < 0 || options.threads > 1024) {
    return absl::StrCat("--threads: ", options.threads, " is not in [0, 1024]");
  }
  for (const char* isa : {"auto", "scalar", "avx2", "avx512"}) {
    if (options.cpu_isa == isa) return "";
  }
  return absl::StrCat("--cpu-isa: '", options.cpu_isa,
                      "' is not one of auto, scalar, avx2, avx512");
}

}  // namespace

int RunVerify(int argc, char** argv) {
  Options options;
  flags::FlagSet flags = options.Flags();
  const auto paths = flags.Parse(argc, argv);
  if (!paths.ok()) return Complain(kUsage, std::string(paths.status().message()));
  if (flags.help_requested()) {
    std::fputs(flags.Help().c_str(), stdout);
    return 0;
  }
  if (paths->empty()) return Complain(kUsage, "needs a receipt (see --help)");
  if (const std::string error = FlagError(options); !error.empty()) return Complain(kUsage, error);
  std::optional<receipt::PublicKey> key;
  if (!options.public_key.empty()) {
    auto loaded = receipt::PublicKey::Load(options.public_key);
    if (!loaded.ok()) {
      return Complain(kUsage, absl::StrCat("--public-key: ", loaded.status().message()));
    }
    key = *std::move(loaded);
  }
  const auto documents = ReadDocuments(*paths);
  if (!documents.ok()) {
    return Complain(kUnchecked, std::string(documents.status().message()));
  }

  client::CatchInterrupts();
  // What needs no model comes first; only receipts that pass are worth loading one.
  int worst = 0;
  std::vector<receipt::Parsed> receipts;
  std::vector<std::pair<std::string, v1::VerifyReceiptResponse>> reports;
  for (const Document& document : *documents) {
    auto parsed = receipt::ParseReceipt(document.text, document.name);
    if (!parsed.ok()) {
      std::printf("REFUSED  %s\n", std::string(parsed.status().message()).c_str());
      worst = kRefused;
      continue;
    }
    v1::VerifyReceiptResponse report;
    if (!server::CheckItself(*parsed, key.has_value() ? &*key : nullptr, /*optional_key=*/false,
                             &report)) {
      Print(document.name, report, false);
      worst = kRefused;
      continue;
    }
    receipts.push_back(*std::move(parsed));
    reports.emplace_back(document.name, std::move(report));
  }
  const bool recompute = !options.target.empty() || !options.model.empty();
  Verifiers verifiers;
  if (recompute && !receipts.empty()) {
    auto made = MakeVerifiers(options, receipts);
    if (!made.ok()) return Complain(kUnchecked, client::Describe(made.status()));
    verifiers = *std::move(made);
  }
  for (size_t i = 0; i < receipts.size(); ++i) {
    auto& [name, report] = reports[i];
    if (recompute) {
      const absl::Status status = Recompute(receipts[i].receipt, verifiers, &report);
      if (!status.ok() && !IsRefusal(status)) {
        return Complain(kUnchecked, absl::StrCat(name, ": ", client::Describe(status)));
      }
      if (!status.ok()) {
        std::printf("REFUSED  %s: %s\n", name.c_str(), std::string(status.message()).c_str());
        worst = kRefused;
        continue;
      }
      if (!report.verified()) worst = kRefused;
    }
    Print(name, report, recompute);
  }
  return worst;
}

}  // namespace verbatim::verify
