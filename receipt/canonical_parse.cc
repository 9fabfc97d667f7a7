// Strict reading of a receipt: every field once, of its type, in its form, within its bounds.
#include <bit>
#include <cmath>
#include <functional>
#include <limits>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "model/strict_json.h"
#include "nlohmann/json.hpp"
#include "receipt/canonical.h"
#include "receipt/canonical_json.h"

namespace verbatim::receipt {
namespace {

using nlohmann::json;

constexpr int64_t kMaxInteger = int64_t{1} << 53;
constexpr size_t kExcerptBytes = 40;

bool IsLowerHex(std::string_view text, size_t digits) {
  return text.size() == digits &&
         text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

uint64_t FromHex(std::string_view digits) {
  uint64_t value = 0;
  for (char c : digits) value = value << 4 | (c <= '9' ? c - '0' : c - 'a' + 10);
  return value;
}

// Takes the members of one object by name and notes the first error.
class Reader {
 public:
  // `prefix` names the object in errors: "", "sampling.".
  Reader(const json& object, std::string prefix) : object_(object), prefix_(std::move(prefix)) {
    if (!object.is_object()) Fail("", "is not an object");
  }

  void Integer(const char* key, int64_t low, int64_t high, int64_t* out) {
    if (const json* value = Take(key)) {
      if (ToInteger(key, *value, out) && (*out < low || *out > high)) {
        Fail(key, absl::StrCat(*out, " is not in [", low, ", ", high, "]"));
      }
    }
  }
  void Bool(const char* key, bool* out) {
    const json* value = Take(key);
    if (value == nullptr) return;
    if (!value->is_boolean()) return Fail(key, "is not true or false");
    *out = value->get<bool>();
  }
  void Float(const char* key, float* out) {
    if (const json* value = Take(key)) ToFloat(key, *value, out);
  }
  void String(const char* key, int64_t max_bytes, std::string* out) {
    if (const json* value = Take(key)) ToString(key, *value, max_bytes, out);
  }
  void Hex(const char* key, size_t digits, std::string* out) {
    const json* value = Take(key);
    if (value == nullptr || !ToString(key, *value, digits, out)) return;
    if (!IsLowerHex(*out, digits)) {
      Fail(key, absl::StrCat("is not ", digits, " hex digits in lower case"));
    }
  }
  void OneOf(const char* key, std::initializer_list<const char*> choices, std::string* out) {
    const json* value = Take(key);
    if (value == nullptr || !ToString(key, *value, kMaxNameBytes, out)) return;
    for (const char* choice : choices) {
      if (*out == choice) return;
    }
    Fail(key, absl::StrCat("'", out->substr(0, kExcerptBytes), "' is not a value it can have"));
  }
  void Seed(const char* key, uint64_t* out) {
    const json* value = Take(key);
    std::string text;
    if (value == nullptr || !ToString(key, *value, 20, &text)) return;
    if (!absl::SimpleAtoi(text, out) || absl::StrCat(*out) != text) {
      Fail(key, absl::StrCat("'", text, "' is not a 64-bit integer in decimal digits"));
    }
  }
  void Tokens(const char* key, int64_t max_size, std::vector<int64_t>* out) {
    Array(key, max_size, [&](const std::string& at, const json& value) {
      int64_t token = 0;
      if (ToInteger(at, value, &token) && (token < 0 || token > INT32_MAX)) {
        Fail(at, absl::StrCat(token, " is not a token id"));
      }
      out->push_back(token);
    });
  }
  void Array(const char* key, int64_t max_size,
             const std::function<void(const std::string& at, const json& value)>& take) {
    const json* value = Take(key);
    if (value == nullptr) return;
    if (!value->is_array()) return Fail(key, "is not an array");
    if (static_cast<int64_t>(value->size()) > max_size) {
      return Fail(key, absl::StrCat(value->size(), " entries, at most ", max_size));
    }
    for (size_t i = 0; i < value->size() && status_.ok(); ++i) {
      take(absl::StrCat(key, "[", i, "]"), (*value)[i]);
    }
  }

  // The member, which may be absent with `optional`; null then, and after an error.
  const json* Take(const char* key, bool optional = false) {
    if (!status_.ok()) return nullptr;
    const auto it = object_.find(key);
    if (it == object_.end()) {
      if (!optional) Fail(key, "is missing");
      return nullptr;
    }
    ++taken_;
    return &*it;
  }
  bool ToInteger(const std::string& at, const json& value, int64_t* out) {
    // An unsigned number may exceed int64_t.
    const bool fits = value.is_number_unsigned()
                          ? value.get<uint64_t>() <= static_cast<uint64_t>(kMaxInteger)
                          : value.is_number_integer() && value.get<int64_t>() >= -kMaxInteger;
    if (fits) {
      *out = value.get<int64_t>();
    } else {
      Fail(at, "is not an integer of at most 2^53");
    }
    return fits;
  }
  bool ToFloat(const std::string& at, const json& value, float* out) {
    if (!value.is_string() || !IsLowerHex(value.get_ref<const std::string&>(), 8)) {
      Fail(at, "is not the eight hex digits of a float's bits");
      return false;
    }
    *out =
        std::bit_cast<float>(static_cast<uint32_t>(FromHex(value.get_ref<const std::string&>())));
    if (std::isfinite(*out)) return true;
    Fail(at, absl::StrCat(*out, " is not finite"));
    return false;
  }
  bool ToString(const std::string& at, const json& value, int64_t max_bytes, std::string* out) {
    if (!value.is_string()) {
      Fail(at, "is not a string");
      return false;
    }
    *out = value.get<std::string>();
    if (static_cast<int64_t>(out->size()) <= max_bytes) return true;
    Fail(at, absl::StrCat(out->size(), " bytes, at most ", max_bytes));
    return false;
  }
  void Fail(const std::string& at, const std::string& what) {
    status_.Update(
        absl::InvalidArgumentError(absl::StrCat(prefix_, at, at.empty() ? "" : ": ", what)));
  }

  // The first error; a member that nobody took is one.
  absl::Status Finish(std::initializer_list<const char*> known) {
    if (!status_.ok() || taken_ == object_.size()) return status_;
    for (const auto& [key, value] : object_.items()) {
      bool is_known = false;
      for (const char* name : known) is_known = is_known || key == name;
      if (!is_known) {
        Fail(absl::CHexEscape(key.substr(0, kExcerptBytes)), "is not a field of a receipt");
        break;
      }
    }
    return status_;
  }

 private:
  const json& object_;
  const std::string prefix_;
  size_t taken_ = 0;
  absl::Status status_;
};

absl::Status ParseSampling(const json& object, Sampling* s) {
  Reader in(object, "sampling.");
  in.Float("frequency_penalty", &s->frequency_penalty);
  in.Bool("ignore_eos", &s->ignore_eos);
  in.Bool("include_stop_str_in_output", &s->include_stop_str_in_output);
  in.Array("logit_bias", kMaxLogitBiases, [&](const std::string& at, const json& value) {
    int64_t token = 0;
    float bias = 0;
    if (!value.is_array() || value.size() != 2) return in.Fail(at, "is not [token id, float]");
    if (!in.ToInteger(at, value[0], &token) || !in.ToFloat(at, value[1], &bias)) return;
    if (token < 0 || token > INT32_MAX) {
      return in.Fail(at, absl::StrCat(token, " is not a token id"));
    }
    if (!s->logit_bias.empty() && s->logit_bias.back().first >= token) {
      return in.Fail(at, "token ids do not ascend");
    }
    s->logit_bias.emplace_back(token, bias);
  });
  in.Integer("max_tokens", 1, kMaxInteger, &s->max_tokens);
  in.Float("min_p", &s->min_p);
  in.Integer("min_tokens", 0, kMaxInteger, &s->min_tokens);
  in.Integer("n", 1, 1 << 20, &s->n);
  in.Float("presence_penalty", &s->presence_penalty);
  in.Float("repetition_penalty", &s->repetition_penalty);
  in.Bool("skip_special_tokens", &s->skip_special_tokens);
  in.Array("stop", kMaxStops, [&](const std::string& at, const json& value) {
    if (in.ToString(at, value, kMaxStopBytes, &s->stop.emplace_back()) && s->stop.back().empty()) {
      in.Fail(at, "is empty");
    }
  });
  in.Tokens("stop_token_ids", kMaxStops, &s->stop_token_ids);
  in.Float("temperature", &s->temperature);
  in.Integer("top_k", 0, INT32_MAX, &s->top_k);
  in.Float("top_p", &s->top_p);
  return in.Finish({"frequency_penalty", "ignore_eos", "include_stop_str_in_output", "logit_bias",
                    "max_tokens", "min_p", "min_tokens", "n", "presence_penalty",
                    "repetition_penalty", "skip_special_tokens", "stop", "stop_token_ids",
                    "temperature", "top_k", "top_p"});
}

absl::Status ParseSignature(const json& object, Signature* signature) {
  Reader in(object, "signature.");
  std::string algorithm;
  in.OneOf("algorithm", {kSignatureAlgorithm}, &algorithm);
  in.Hex("key_id", 32, &signature->key_id);
  in.Hex("value", 128, &signature->value);
  return in.Finish({"algorithm", "key_id", "value"});
}

absl::Status ParseFields(const json& object, Receipt* r) {
  Reader in(object, "");
  in.Integer("contract_version", 1, kMaxInteger, &r->contract_version);
  in.OneOf("finish_reason", {"stop", "length"}, &r->finish_reason);
  in.Hex("logits_sha256", 64, &r->logits_sha256);
  in.String("model", kMaxNameBytes, &r->model);
  in.String("numerics_id", kMaxNameBytes, &r->numerics_id);
  in.Tokens("output_token_ids", kMaxTokens, &r->output_token_ids);
  in.OneOf("policy", {"pinned", "portable"}, &r->policy);
  in.Tokens("prompt_token_ids", kMaxTokens, &r->prompt_token_ids);
  in.Integer("receipt_version", kReceiptVersion, kReceiptVersion, &r->receipt_version);
  in.Array("row_fingerprints", kMaxTokens, [&](const std::string& at, const json& value) {
    if (!value.is_string() || !IsLowerHex(value.get_ref<const std::string&>(), 32)) {
      return in.Fail(at, "is not 32 hex digits in lower case");
    }
    const std::string_view digits = value.get_ref<const std::string&>();
    r->row_fingerprints.push_back({FromHex(digits.substr(0, 16)), FromHex(digits.substr(16))});
  });
  in.Integer("sample_index", 0, 1 << 20, &r->sample_index);
  if (const json* sampling = in.Take("sampling")) {
    if (absl::Status status = ParseSampling(*sampling, &r->sampling); !status.ok()) return status;
  }
  in.Seed("seed", &r->seed);
  in.String("server_version", kMaxNameBytes, &r->server_version);
  in.String("stop_reason", kMaxStopBytes, &r->stop_reason);
  in.Hex("tokenizer_sha256", 64, &r->tokenizer_sha256);
  in.Hex("weights_sha256", 64, &r->weights_sha256);
  if (const json* signature = in.Take("signature", /*optional=*/true)) {
    if (absl::Status status = ParseSignature(*signature, &r->signature); !status.ok()) {
      return status;
    }
  }
  in.Take("checksums");
  if (r->prompt_token_ids.empty()) in.Fail("prompt_token_ids", "is empty");
  if (r->output_token_ids.empty()) in.Fail("output_token_ids", "is empty");
  if (r->row_fingerprints.size() != r->output_token_ids.size()) {
    in.Fail("row_fingerprints", absl::StrCat(r->row_fingerprints.size(), " entries for ",
                                             r->output_token_ids.size(), " output tokens"));
  }
  if (r->sample_index >= r->sampling.n) {
    in.Fail("sample_index",
            absl::StrCat(r->sample_index, " is not below sampling.n ", r->sampling.n));
  }
  return in.Finish({"checksums", "contract_version", "finish_reason", "logits_sha256", "model",
                    "numerics_id", "output_token_ids", "policy", "prompt_token_ids",
                    "receipt_version", "row_fingerprints", "sample_index", "sampling", "seed",
                    "server_version", "signature", "stop_reason", "tokenizer_sha256",
                    "weights_sha256"});
}

// Compares the checksums that a receipt brings with those of its fields.
absl::Status CompareChecksums(const json& object, std::optional<std::string>* altered) {
  const json& given = object["checksums"];
  const json computed = Checksums(object);
  if (!given.is_object()) return absl::InvalidArgumentError("checksums: is not an object");
  for (const auto& [field, value] : given.items()) {
    if (!computed.contains(field)) {
      return absl::InvalidArgumentError(
          absl::StrCat("checksums.", absl::CHexEscape(field.substr(0, kExcerptBytes)),
                       ": is not a field of a receipt"));
    }
    if (!value.is_string() || !IsLowerHex(value.get_ref<const std::string&>(), 16)) {
      return absl::InvalidArgumentError(
          absl::StrCat("checksums.", field, ": is not 16 hex digits in lower case"));
    }
  }
  for (const auto& [field, value] : computed.items()) {
    const auto it = given.find(field);
    if (it == given.end()) {
      return absl::InvalidArgumentError(absl::StrCat("checksums.", field, ": is missing"));
    }
    if (!altered->has_value() && *it != value) *altered = field;
  }
  return absl::OkStatus();
}

// A later version may have other fields: say so rather than complain of the first of them.
absl::Status CheckVersion(const json& object) {
  if (!object.is_object()) return absl::InvalidArgumentError("is not a JSON object");
  const auto it = object.find("receipt_version");
  if (it == object.end() || !it->is_number_integer() || *it == kReceiptVersion) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      absl::StrCat("receipt_version: ", it->dump(), "; this software knows ", kReceiptVersion));
}

}  // namespace

absl::StatusOr<Parsed> ParseReceipt(std::string_view text, const std::string& name) {
  if (static_cast<int64_t>(text.size()) > kMaxReceiptBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": ", text.size(), " bytes, at most ", kMaxReceiptBytes));
  }
  absl::StatusOr<json> object = model::ParseStrictJson(text, name, /*offset=*/0);
  if (!object.ok()) return object.status();
  Parsed parsed;
  absl::Status status = CheckVersion(*object);
  if (status.ok()) status = ParseFields(*object, &parsed.receipt);
  if (status.ok()) status = CompareChecksums(*object, &parsed.altered_field);
  if (!status.ok()) {
    return absl::Status(status.code(), absl::StrCat(name, ": ", status.message()));
  }
  return parsed;
}

}  // namespace verbatim::receipt
