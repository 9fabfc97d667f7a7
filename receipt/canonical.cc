// Writing the canonical form. Its parser is in canonical_parse.cc.
#include "receipt/canonical.h"

#include <openssl/sha.h>

#include <algorithm>
#include <array>
#include <bit>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "receipt/canonical_json.h"

namespace verbatim::receipt {
namespace {

using nlohmann::json;

constexpr std::string_view kFieldDomain = "verbatim receipt field v1\n";
constexpr std::string_view kSignatureDomain = "verbatim receipt signature v1\n";

std::string FloatBits(float value) {
  return absl::StrCat(absl::Hex(std::bit_cast<uint32_t>(value), absl::kZeroPad8));
}

json SamplingJson(const Sampling& s) {
  json bias = json::array();
  for (const auto& [token, value] : s.logit_bias) {
    bias.push_back(json::array({token, FloatBits(value)}));
  }
  return {
      {"frequency_penalty", FloatBits(s.frequency_penalty)},
      {"ignore_eos", s.ignore_eos},
      {"include_stop_str_in_output", s.include_stop_str_in_output},
      {"logit_bias", std::move(bias)},
      {"max_tokens", s.max_tokens},
      {"min_p", FloatBits(s.min_p)},
      {"min_tokens", s.min_tokens},
      {"n", s.n},
      {"presence_penalty", FloatBits(s.presence_penalty)},
      {"repetition_penalty", FloatBits(s.repetition_penalty)},
      {"skip_special_tokens", s.skip_special_tokens},
      {"stop", s.stop},
      {"stop_token_ids", s.stop_token_ids},
      {"temperature", FloatBits(s.temperature)},
      {"top_k", s.top_k},
      {"top_p", FloatBits(s.top_p)},
  };
}

// Everything but checksums and signature.
json Fields(const Receipt& r) {
  json rows = json::array();
  for (const numerics::RowFingerprint& row : r.row_fingerprints) rows.push_back(RowHex(row));
  return {
      {"contract_version", r.contract_version},
      {"finish_reason", r.finish_reason},
      {"logits_sha256", r.logits_sha256},
      {"model", r.model},
      {"numerics_id", r.numerics_id},
      {"output_token_ids", r.output_token_ids},
      {"policy", r.policy},
      {"prompt_token_ids", r.prompt_token_ids},
      {"receipt_version", r.receipt_version},
      {"row_fingerprints", std::move(rows)},
      {"sample_index", r.sample_index},
      {"sampling", SamplingJson(r.sampling)},
      {"seed", absl::StrCat(r.seed)},
      {"server_version", r.server_version},
      {"stop_reason", r.stop_reason},
      {"tokenizer_sha256", r.tokenizer_sha256},
      {"weights_sha256", r.weights_sha256},
  };
}

std::string Dump(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

std::string Checksum(const std::string& name, const json& value) {
  const std::string text = absl::StrCat(std::string(kFieldDomain), name, "\n", Dump(value));
  std::array<uint8_t, SHA256_DIGEST_LENGTH> digest;
  SHA256(reinterpret_cast<const uint8_t*>(text.data()), text.size(), digest.data());
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<char*>(digest.data()), 8));
}

json WholeJson(const Receipt& receipt, bool with_signature_value) {
  json whole = Fields(receipt);
  whole["checksums"] = Checksums(whole);
  if (!receipt.signature.empty()) {
    whole["signature"] = {{"algorithm", kSignatureAlgorithm}, {"key_id", receipt.signature.key_id}};
    if (with_signature_value) whole["signature"]["value"] = receipt.signature.value;
  }
  return whole;
}

}  // namespace

std::string RowHex(const numerics::RowFingerprint& row) {
  return absl::StrCat(absl::Hex(row.a, absl::kZeroPad16), absl::Hex(row.b, absl::kZeroPad16));
}

json Checksums(const json& receipt) {
  json sums = json::object();
  for (const auto& [key, value] : receipt.items()) {
    if (key == "checksums" || key == "signature") continue;
    if (key != "sampling") {
      sums[key] = Checksum(key, value);
      continue;
    }
    for (const auto& [name, parameter] : value.items()) {
      const std::string path = absl::StrCat(key, ".", name);
      sums[path] = Checksum(path, parameter);
    }
  }
  return sums;
}

std::string ToCanonicalJson(const Receipt& receipt) {
  return Dump(WholeJson(receipt, /*with_signature_value=*/true));
}

std::string SignedBytes(const Receipt& receipt) {
  return absl::StrCat(std::string(kSignatureDomain),
                      Dump(WholeJson(receipt, /*with_signature_value=*/false)));
}

std::vector<std::string> SplitReceipts(std::string_view file) {
  std::vector<std::string> lines;
  bool all_objects = true;
  for (size_t begin = 0; begin < file.size();) {
    const size_t end = std::min(file.find('\n', begin), file.size());
    std::string_view line = file.substr(begin, end - begin);
    begin = end + 1;
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.remove_suffix(1);
    if (line.empty()) continue;
    all_objects = all_objects && line.front() == '{' && line.back() == '}';
    lines.emplace_back(line);
  }
  if (all_objects && !lines.empty()) return lines;
  return {std::string(file)};
}

}  // namespace verbatim::receipt
