// Strict reading of one JSON object.
#pragma once

#include <cstdint>
#include <limits>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace verbatim::trace {

inline constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();
inline constexpr size_t kMaxString = 4096;

// Reads the members of one object; every member must be asked for by the end.
class Reader {
 public:
  Reader(const nlohmann::json& object, std::string path) : object_(object), path_(std::move(path)) {
    if (!object.is_object()) Fail("", "is not an object");
  }

  bool ok() const { return status_.ok(); }
  const absl::Status& status() const { return status_; }
  std::string Path(const std::string& key) const {
    return path_.empty() ? key : absl::StrCat(path_, ".", key);
  }
  void Fail(const std::string& key, const std::string& what) {
    status_.Update(absl::InvalidArgumentError(absl::StrCat(Path(key), ": ", what)));
  }

  // Whether an optional member is there.
  bool Has(const std::string& key) const { return object_.is_object() && object_.contains(key); }
  const nlohmann::json* Member(const std::string& key) {
    if (!ok()) return nullptr;
    known_.insert(key);
    const auto it = object_.find(key);
    if (it != object_.end()) return &*it;
    Fail(key, "is missing");
    return nullptr;
  }
  const nlohmann::json* Array(const std::string& key, int64_t max_size) {
    const nlohmann::json* value = Member(key);
    if (value == nullptr) return nullptr;
    if (!value->is_array()) {
      Fail(key, "is not an array");
      return nullptr;
    }
    if (static_cast<int64_t>(value->size()) > max_size) {
      Fail(key, absl::StrCat(value->size(), " entries, at most ", max_size));
      return nullptr;
    }
    return value;
  }
  int64_t Int(const std::string& key, int64_t low, int64_t high) {
    const nlohmann::json* value = Member(key);
    return value == nullptr ? low : IntOf(*value, key, low, high);
  }
  int64_t IntOf(const nlohmann::json& value, const std::string& key, int64_t low, int64_t high) {
    // Large unsigned numbers do not fit int64 and are out of every range here.
    if (!value.is_number_integer() ||
        (value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{1} << 62)) {
      Fail(key, "is not an integer in range");
      return low;
    }
    const int64_t number = value.get<int64_t>();
    if (number >= low && number <= high) return number;
    Fail(key, absl::StrCat(number, " is not in [", low, ", ", high, "]"));
    return low;
  }
  bool Bool(const std::string& key) {
    const nlohmann::json* value = Member(key);
    if (value == nullptr) return false;
    if (!value->is_boolean()) Fail(key, "is not true or false");
    return ok() && value->get<bool>();
  }
  std::string String(const std::string& key) {
    const nlohmann::json* value = Member(key);
    return value == nullptr ? std::string() : StringOf(*value, key);
  }
  std::string StringOf(const nlohmann::json& value, const std::string& key) {
    if (!value.is_string()) {
      Fail(key, "is not a string");
      return std::string();
    }
    const std::string& text = value.get_ref<const std::string&>();
    if (text.size() > kMaxString) Fail(key, absl::StrCat("longer than ", kMaxString, " bytes"));
    return text;
  }
  // An array of integers, each at least `low`, of known or minimal length.
  std::vector<int32_t> Ints(const nlohmann::json& value, const std::string& key, size_t min_size,
                            size_t max_size, int64_t low = 0) {
    std::vector<int32_t> out;
    if (!ok()) return out;
    if (!value.is_array() || value.size() < min_size || value.size() > max_size) {
      Fail(key,
           absl::StrCat("is not an array of ", min_size,
                        min_size == max_size ? "" : absl::StrCat(" to ", max_size), " integers"));
      return std::vector<int32_t>(min_size);
    }
    for (const nlohmann::json& entry : value) {
      out.push_back(static_cast<int32_t>(IntOf(entry, key, low, kMaxInt)));
    }
    return out;
  }
  absl::Status Finish() {
    if (!ok()) return status_;
    for (const auto& [key, value] : object_.items()) {
      if (!known_.contains(key)) Fail(absl::CHexEscape(key), "is not a known field");
    }
    return status_;
  }

 private:
  const nlohmann::json& object_;
  const std::string path_;
  std::set<std::string> known_;
  absl::Status status_;
};

}  // namespace verbatim::trace
