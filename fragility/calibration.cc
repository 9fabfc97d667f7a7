// The file of a calibration: strict in what it reads.
#include "fragility/calibration.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <iterator>
#include <set>
#include <vector>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace verbatim::fragility {
namespace {

using json = nlohmann::ordered_json;

constexpr char kFormat[] = "verbatim-fragility";
constexpr int64_t kVersion = 1;
constexpr int64_t kMostBytes = 1 << 20;

absl::Status Bad(const std::string& field, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", what));
}

// Reads fields of one object; the first error stays.
class Reader {
 public:
  Reader(const json& object, std::string prefix) : object_(object), prefix_(std::move(prefix)) {}

  std::string String(const char* name) {
    const json* value = Find(name, "text", &json::is_string);
    return value != nullptr ? value->get<std::string>() : std::string();
  }
  int64_t Integer(const char* name) {
    const json* value = Find(name, "an integer", &json::is_number_integer);
    if (value == nullptr) return 0;
    return IntegerOf(name, *value);
  }
  double Number(const char* name) {
    const json* value = Find(name, "a number", &json::is_number);
    const double number = value != nullptr ? value->get<double>() : 0;
    if (!std::isfinite(number)) Fail(name, "is not finite");
    return number;
  }
  const json* Object(const char* name) { return Find(name, "an object", &json::is_object); }
  DriftTable::Counts Counts(const char* name) {
    DriftTable::Counts counts = {};
    const json* value = Find(name, "a list", &json::is_array);
    if (value == nullptr) return counts;
    if (value->size() != counts.size()) {
      Fail(name, absl::StrCat("has ", value->size(), " entries, not ", counts.size()));
      return counts;
    }
    for (size_t i = 0; i < counts.size(); ++i) {
      const std::string entry = absl::StrCat(name, "[", i, "]");
      if (!(*value)[i].is_number_integer()) {
        Fail(entry, "is not an integer");
      } else {
        counts[i] = IntegerOf(entry, (*value)[i]);
      }
    }
    return counts;
  }
  void Fail(const std::string& name, const std::string& what) {
    if (status_.ok()) status_ = Bad(absl::StrCat(prefix_, name), what);
  }
  // OK when every field was read and nothing else is there.
  absl::Status Finish() {
    for (const auto& [key, value] : object_.items()) {
      if (!read_.contains(key)) Fail(key, "is not a field of this format");
    }
    return status_;
  }

 private:
  int64_t IntegerOf(const std::string& name, const json& value) {
    if (value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{INT64_MAX}) {
      Fail(name, "is too large");
      return 0;
    }
    return value.get<int64_t>();
  }
  const json* Find(const char* name, const char* type, bool (json::*is)() const noexcept) {
    read_.insert(name);
    const auto it = object_.find(name);
    if (it == object_.end()) {
      Fail(name, "is missing");
      return nullptr;
    }
    if (!((*it).*is)()) {
      Fail(name, absl::StrCat("is not ", type));
      return nullptr;
    }
    return &*it;
  }

  const json& object_;
  const std::string prefix_;
  std::set<std::string> read_;
  absl::Status status_;
};

absl::StatusOr<json> Parse(std::string_view text) {
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  std::string repeated;
  json value = json::parse(
      text.begin(), text.end(),
      [&](int, json::parse_event_t event, json& parsed) {
        if (event == json::parse_event_t::object_start) keys.emplace_back();
        if (event == json::parse_event_t::object_end) keys.pop_back();
        if (event == json::parse_event_t::key) {
          const std::string key = parsed.get<std::string>();
          if (!keys.back().insert(key).second && repeated.empty()) repeated = key;
        }
        return true;
      },
      /*allow_exceptions=*/false);
  if (value.is_discarded()) return absl::InvalidArgumentError("is not JSON");
  if (!value.is_object()) return absl::InvalidArgumentError("is not a JSON object");
  if (!repeated.empty()) return Bad(repeated, "is given twice");
  return value;
}

bool IsSha256(const std::string& text) {
  return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

absl::Status CheckRanges(const Calibration& c) {
  if (!IsSha256(c.weights_sha256)) return Bad("weights_sha256", "is not 64 hexadecimal digits");
  if (c.configuration.empty()) return Bad("configuration", "is empty");
  if (c.drift.samples() == 0) return Bad("drift.samples", "is 0");
  if (!(c.fragile_margin > 0)) return Bad("fragile_margin", "is not positive");
  if (!(c.rate.value >= 0 && c.rate.value <= kLargestRate)) {
    return Bad("rate.value", absl::StrCat(c.rate.value, " is not in [0, ", kLargestRate, "]"));
  }
  if (!(c.rate.low >= 0 && c.rate.low <= c.rate.value)) {
    return Bad("rate.low", absl::StrCat(c.rate.low, " is not in [0, rate.value]"));
  }
  if (!(c.rate.high >= c.rate.value && c.rate.high <= kLargestRate)) {
    return Bad("rate.high",
               absl::StrCat(c.rate.high, " is not in [rate.value, ", kLargestRate, "]"));
  }
  if (c.prompts < 1) return Bad("prompts", "is not positive");
  if (c.answers < c.prompts) return Bad("answers", "is less than prompts");
  return absl::OkStatus();
}

}  // namespace

std::string Calibration::Describe() const {
  return absl::StrCat(configuration, "; ", prompts, " prompts, ", answers, " answers");
}

std::string ConfigurationName(const std::string& backend, const std::string& activations,
                              const std::string& kv_cache) {
  return absl::StrCat(backend, ", activations ", activations, ", KV cache ", kv_cache,
                      ", throughput");
}

absl::Status CheckFits(const Calibration& calibration, const std::string& weights_sha256,
                       const std::string& configuration) {
  if (calibration.weights_sha256 != weights_sha256) {
    return absl::FailedPreconditionError(absl::StrCat("weights_sha256: made for ",
                                                      calibration.weights_sha256, ", the model is ",
                                                      weights_sha256));
  }
  if (calibration.configuration != configuration) {
    return absl::FailedPreconditionError(absl::StrCat("configuration: made for '",
                                                      calibration.configuration, "', this is '",
                                                      configuration, "'"));
  }
  return absl::OkStatus();
}

std::string ToJson(const Calibration& c) {
  const json out = {{"format", kFormat},
                    {"version", kVersion},
                    {"weights_sha256", c.weights_sha256},
                    {"configuration", c.configuration},
                    {"prompts", c.prompts},
                    {"answers", c.answers},
                    {"fragile_margin", c.fragile_margin},
                    {"rate", {{"value", c.rate.value}, {"low", c.rate.low}, {"high", c.rate.high}}},
                    {"drift",
                     {{"samples", c.drift.samples()},
                      {"drops_at_least", c.drift.drops_at_least()},
                      {"drifts_at_least", c.drift.drifts_at_least()}}}};
  return absl::StrCat(out.dump(1, ' ', false, json::error_handler_t::replace), "\n");
}

absl::StatusOr<Calibration> FromJson(std::string_view text) {
  const absl::StatusOr<json> parsed = Parse(text);
  if (!parsed.ok()) return parsed.status();
  Reader top(*parsed, "");
  // Another version may have other fields: say that before anything else.
  if (top.String("format") != kFormat) top.Fail("format", absl::StrCat("is not '", kFormat, "'"));
  if (const int64_t version = top.Integer("version"); version != kVersion) {
    top.Fail("version",
             absl::StrCat(version, " is not the version this program reads, ", kVersion));
  }
  Calibration c;
  c.weights_sha256 = top.String("weights_sha256");
  c.configuration = top.String("configuration");
  c.prompts = top.Integer("prompts");
  c.answers = top.Integer("answers");
  c.fragile_margin = top.Number("fragile_margin");
  const json* const rate = top.Object("rate");
  const json* const drift = top.Object("drift");
  if (absl::Status status = top.Finish(); !status.ok()) return status;

  Reader in_rate(*rate, "rate.");
  c.rate.value = in_rate.Number("value");
  c.rate.low = in_rate.Number("low");
  c.rate.high = in_rate.Number("high");
  if (absl::Status status = in_rate.Finish(); !status.ok()) return status;

  Reader in_drift(*drift, "drift.");
  const int64_t samples = in_drift.Integer("samples");
  const DriftTable::Counts drops = in_drift.Counts("drops_at_least");
  const DriftTable::Counts drifts = in_drift.Counts("drifts_at_least");
  if (absl::Status status = in_drift.Finish(); !status.ok()) return status;
  absl::StatusOr<DriftTable> table = DriftTable::FromCounts(samples, drops, drifts);
  if (!table.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("drift.", std::string(table.status().message())));
  }
  c.drift = *table;
  if (absl::Status status = CheckRanges(c); !status.ok()) return status;
  return c;
}

absl::StatusOr<Calibration> LoadCalibration(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::error_code ignored;
  if (!file || std::filesystem::is_directory(path, ignored)) {
    return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  }
  std::string text(kMostBytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  if (static_cast<int64_t>(text.size()) > kMostBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": has more than ", kMostBytes, " bytes, which no calibration has"));
  }
  absl::StatusOr<Calibration> calibration = FromJson(text);
  if (!calibration.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", std::string(calibration.status().message())));
  }
  return calibration;
}

}  // namespace verbatim::fragility
