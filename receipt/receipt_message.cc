// Conversion between a receipt and its message.
#include "receipt/receipt_message.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace verbatim::receipt {
namespace {

constexpr size_t kRowBytes = 16;

void AppendLittleEndian(uint64_t value, std::string* out) {
  for (int i = 0; i < 8; ++i) out->push_back(static_cast<char>(value >> (8 * i)));
}

uint64_t ReadLittleEndian(const char* bytes) {
  uint64_t value = 0;
  for (int i = 7; i >= 0; --i) value = value << 8 | static_cast<uint8_t>(bytes[i]);
  return value;
}

}  // namespace

v1::Receipt ToMessage(const Receipt& r) {
  v1::Receipt out;
  out.set_receipt_version(r.receipt_version);
  out.set_contract_version(r.contract_version);
  out.set_server_version(r.server_version);
  out.set_model(r.model);
  out.set_weights_sha256(r.weights_sha256);
  out.set_tokenizer_sha256(r.tokenizer_sha256);
  out.set_policy(r.policy);
  out.set_numerics_id(r.numerics_id);
  out.mutable_prompt_token_ids()->Add(r.prompt_token_ids.begin(), r.prompt_token_ids.end());
  const Sampling& s = r.sampling;
  v1::ReceiptSampling* sampling = out.mutable_sampling();
  sampling->set_temperature(s.temperature);
  sampling->set_top_k(s.top_k);
  sampling->set_top_p(s.top_p);
  sampling->set_min_p(s.min_p);
  sampling->set_presence_penalty(s.presence_penalty);
  sampling->set_frequency_penalty(s.frequency_penalty);
  sampling->set_repetition_penalty(s.repetition_penalty);
  for (const auto& [token, bias] : s.logit_bias) (*sampling->mutable_logit_bias())[token] = bias;
  sampling->set_n(s.n);
  for (const std::string& stop : s.stop) sampling->add_stop(stop);
  sampling->mutable_stop_token_ids()->Add(s.stop_token_ids.begin(), s.stop_token_ids.end());
  sampling->set_ignore_eos(s.ignore_eos);
  sampling->set_max_tokens(s.max_tokens);
  sampling->set_min_tokens(s.min_tokens);
  sampling->set_skip_special_tokens(s.skip_special_tokens);
  sampling->set_include_stop_str_in_output(s.include_stop_str_in_output);
  out.set_seed(r.seed);
  out.set_sample_index(r.sample_index);
  out.mutable_output_token_ids()->Add(r.output_token_ids.begin(), r.output_token_ids.end());
  out.set_finish_reason(r.finish_reason);
  out.set_stop_reason(r.stop_reason);
  std::string* rows = out.mutable_row_fingerprints();
  rows->reserve(kRowBytes * r.row_fingerprints.size());
  for (const numerics::RowFingerprint& row : r.row_fingerprints) {
    AppendLittleEndian(row.a, rows);
    AppendLittleEndian(row.b, rows);
  }
  out.set_logits_sha256(r.logits_sha256);
  if (!r.signature.empty()) {
    out.mutable_signature()->set_key_id(r.signature.key_id);
    out.mutable_signature()->set_value(absl::HexStringToBytes(r.signature.value));
  }
  return out;
}

absl::StatusOr<Receipt> FromMessage(const v1::Receipt& m) {
  if (static_cast<int64_t>(m.row_fingerprints().size()) > kMaxTokens * int64_t{kRowBytes} ||
      m.row_fingerprints().size() % kRowBytes != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("receipt: row_fingerprints: ", m.row_fingerprints().size(),
                     " bytes; 16 a token, at most ", kMaxTokens));
  }
  if (m.prompt_token_ids_size() > kMaxTokens || m.output_token_ids_size() > kMaxTokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("receipt: more than ", kMaxTokens, " token ids"));
  }
  Receipt r;
  r.receipt_version = m.receipt_version();
  r.contract_version = m.contract_version();
  r.server_version = m.server_version();
  r.model = m.model();
  r.weights_sha256 = m.weights_sha256();
  r.tokenizer_sha256 = m.tokenizer_sha256();
  r.policy = m.policy();
  r.numerics_id = m.numerics_id();
  r.prompt_token_ids.assign(m.prompt_token_ids().begin(), m.prompt_token_ids().end());
  const v1::ReceiptSampling& s = m.sampling();
  r.sampling.temperature = s.temperature();
  r.sampling.top_k = s.top_k();
  r.sampling.top_p = s.top_p();
  r.sampling.min_p = s.min_p();
  r.sampling.presence_penalty = s.presence_penalty();
  r.sampling.frequency_penalty = s.frequency_penalty();
  r.sampling.repetition_penalty = s.repetition_penalty();
  r.sampling.logit_bias.assign(s.logit_bias().begin(), s.logit_bias().end());
  std::sort(r.sampling.logit_bias.begin(), r.sampling.logit_bias.end(),
            [](const auto& a, const auto& b) { return a.first < b.first; });
  r.sampling.n = s.n();
  r.sampling.stop.assign(s.stop().begin(), s.stop().end());
  r.sampling.stop_token_ids.assign(s.stop_token_ids().begin(), s.stop_token_ids().end());
  r.sampling.ignore_eos = s.ignore_eos();
  r.sampling.max_tokens = s.max_tokens();
  r.sampling.min_tokens = s.min_tokens();
  r.sampling.skip_special_tokens = s.skip_special_tokens();
  r.sampling.include_stop_str_in_output = s.include_stop_str_in_output();
  r.seed = m.seed();
  r.sample_index = m.sample_index();
  r.output_token_ids.assign(m.output_token_ids().begin(), m.output_token_ids().end());
  r.finish_reason = m.finish_reason();
  r.stop_reason = m.stop_reason();
  for (size_t at = 0; at < m.row_fingerprints().size(); at += kRowBytes) {
    const char* bytes = m.row_fingerprints().data() + at;
    r.row_fingerprints.push_back({ReadLittleEndian(bytes), ReadLittleEndian(bytes + 8)});
  }
  r.logits_sha256 = m.logits_sha256();
  if (m.has_signature()) {
    r.signature.key_id = m.signature().key_id();
    r.signature.value =
        std::string(absl::BytesToHexString(absl::string_view(m.signature().value())));
  }
  // One set of rules: those of the canonical form.
  absl::StatusOr<Parsed> parsed = ParseReceipt(ToCanonicalJson(r));
  if (!parsed.ok()) return parsed.status();
  return std::move(parsed->receipt);
}

}  // namespace verbatim::receipt
