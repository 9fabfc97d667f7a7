// Checks of a receipt, from the cheapest to the recomputation.
#include "server/receipt_check.h"

#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "engine/logits_hash.h"

namespace verbatim::server {
namespace {

void Add(v1::VerifyReceiptResponse* report, std::string name, v1::CheckOutcome outcome,
         std::string detail) {
  v1::ReceiptCheck* check = report->add_checks();
  check->set_name(std::move(name));
  check->set_outcome(outcome);
  check->set_detail(std::move(detail));
}

bool Pass(v1::VerifyReceiptResponse* report, std::string name, std::string detail = "") {
  Add(report, std::move(name), v1::CHECK_OUTCOME_PASSED, std::move(detail));
  return true;
}

bool Fail(v1::VerifyReceiptResponse* report, std::string name, std::string field,
          std::string expected, std::string actual, std::string detail) {
  Add(report, std::move(name), v1::CHECK_OUTCOME_FAILED, std::move(detail));
  report->set_verified(false);
  report->set_mismatch_field(std::move(field));
  report->set_expected(std::move(expected));
  report->set_actual(std::move(actual));
  return false;
}

bool CheckEqual(const std::string& field, const std::string& expected, const std::string& actual,
                const std::string& what, v1::VerifyReceiptResponse* report) {
  if (expected == actual) return Pass(report, field, actual);
  return Fail(report, field, field, expected, actual,
              absl::StrCat(what, ": the receipt says ", expected, ", here it is ", actual));
}

bool CheckSignature(const receipt::Receipt& receipt, const receipt::PublicKey* key,
                    bool optional_key, v1::VerifyReceiptResponse* report) {
  const std::string& signer = receipt.signature.key_id;
  if (key == nullptr || (optional_key && signer != key->id())) {
    Add(report, "signature", v1::CHECK_OUTCOME_SKIPPED,
        receipt.signature.empty()
            ? "not signed"
            : absl::StrCat("signed by the key ", signer, ", which was not given to check it"));
    return true;
  }
  const absl::Status status = key->Check(receipt);
  if (status.ok()) return Pass(report, "signature", absl::StrCat("by the key ", key->id()));
  return Fail(report, "signature", "signature", receipt.signature.empty() ? "none" : signer,
              key->id(), std::string(status.message()));
}

}  // namespace

bool CheckItself(const receipt::Parsed& parsed, const receipt::PublicKey* key, bool optional_key,
                 v1::VerifyReceiptResponse* report) {
  const receipt::Receipt& receipt = parsed.receipt;
  if (parsed.altered_field.has_value()) {
    return Fail(report, "checksums", *parsed.altered_field, "its checksum", "another one",
                absl::StrCat(*parsed.altered_field,
                             " or its checksum was changed after the receipt was issued"));
  }
  Pass(report, "checksums");
  engine::LogitsHash chain;
  for (const numerics::RowFingerprint& row : receipt.row_fingerprints) chain.Add(row);
  if (chain.Hex() != receipt.logits_sha256) {
    return Fail(report, "chain", "logits_sha256", receipt.logits_sha256, chain.Hex(),
                "logits_sha256 is not the chain of the row fingerprints");
  }
  Pass(report, "chain", absl::StrCat(receipt.row_fingerprints.size(), " rows"));
  return CheckSignature(receipt, key, optional_key, report);
}

bool CheckIdentity(const receipt::Receipt& receipt, const ReceiptIdentity& identity,
                   const engine::Engine& engine, v1::VerifyReceiptResponse* report) {
  if (!CheckEqual("contract_version", absl::StrCat(receipt.contract_version),
                  absl::StrCat(receipt::kContractVersion), "another arithmetic contract", report) ||
      !CheckEqual("weights_sha256", receipt.weights_sha256, identity.weights_sha256,
                  "another model", report) ||
      !CheckEqual("tokenizer_sha256", receipt.tokenizer_sha256, identity.tokenizer_sha256,
                  "another tokenizer", report)) {
    return false;
  }
  const engine::PolicySupport support = engine.SupportOf(
      receipt.policy == "pinned" ? kernels::Policy::kPinned : kernels::Policy::kPortable);
  if (!support.honoured) {
    return Fail(report, "policy", "policy", receipt.policy, "not honoured",
                absl::StrCat(receipt.policy, " cannot be honoured here: ", support.refusal));
  }
  Pass(report, "policy", receipt.policy);
  return CheckEqual("numerics_id", receipt.numerics_id, support.numerics_id,
                    "another arithmetic or another device", report);
}

engine::GenerationRequest ToRequest(const receipt::Receipt& receipt) {
  engine::GenerationRequest out;
  out.policy = receipt.policy == "pinned" ? kernels::Policy::kPinned : kernels::Policy::kPortable;
  out.prompt.assign(receipt.prompt_token_ids.begin(), receipt.prompt_token_ids.end());
  const receipt::Sampling& s = receipt.sampling;
  engine::SamplingOptions& sampling = out.sampling;
  sampling.temperature = s.temperature;
  sampling.top_k = static_cast<int32_t>(s.top_k);
  sampling.top_p = s.top_p;
  sampling.min_p = s.min_p;
  sampling.presence_penalty = s.presence_penalty;
  sampling.frequency_penalty = s.frequency_penalty;
  sampling.repetition_penalty = s.repetition_penalty;
  sampling.logit_bias.assign(s.logit_bias.begin(), s.logit_bias.end());
  sampling.seed = receipt.seed;
  sampling.stop = s.stop;
  sampling.stop_token_ids.assign(s.stop_token_ids.begin(), s.stop_token_ids.end());
  sampling.ignore_eos = s.ignore_eos;
  sampling.max_tokens = s.max_tokens;
  sampling.min_tokens = s.min_tokens;
  sampling.skip_special_tokens = s.skip_special_tokens;
  sampling.include_stop_str_in_output = s.include_stop_str_in_output;
  auto claim = std::make_shared<engine::AnswerClaim>();
  claim->sample_index = static_cast<int32_t>(receipt.sample_index);
  claim->output.assign(receipt.output_token_ids.begin(), receipt.output_token_ids.end());
  claim->rows = receipt.row_fingerprints;
  claim->reason = receipt.finish_reason == "length" ? engine::FinishReason::kLength
                                                    : engine::FinishReason::kStop;
  claim->stop_reason = receipt.stop_reason;
  out.claim = std::move(claim);
  return out;
}

bool Conclude(const engine::VerificationEvent& event, const engine::UsageEvent& usage,
              v1::VerifyReceiptResponse* report) {
  report->set_output_tokens_checked(event.rows_checked);
  report->set_queue_seconds(absl::ToDoubleSeconds(usage.queue_time));
  report->set_seconds(absl::ToDoubleSeconds(usage.total_time));
  if (!event.difference.has_value()) {
    report->set_verified(true);
    return Pass(report, "recomputation", absl::StrCat(event.rows_checked, " output tokens"));
  }
  const engine::ClaimDifference& difference = *event.difference;
  report->set_mismatch_token_index(difference.token_index);
  return Fail(report, "recomputation", difference.field, difference.expected, difference.actual,
              absl::StrCat(difference.field, " at output token ", difference.token_index,
                           ": the receipt says ", difference.expected, ", the recomputation ",
                           difference.actual));
}

}  // namespace verbatim::server
