// Typed access to the fields of a JSON object that is a configuration.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace verbatim::model {

// The value as an error shows it.
inline std::string Shown(const nlohmann::json& value) {
  const std::string text = value.dump();
  return text.size() > 80 ? text.substr(0, 77) + "..." : text;
}

// Typed access to the fields of one JSON object; the first error sticks.
class JsonFields {
 public:
  JsonFields(const std::string& path, const std::string& prefix, const nlohmann::json& object)
      : path_(path), prefix_(prefix), object_(object) {}

  const absl::Status& status() const { return status_; }
  bool ok() const { return status_.ok(); }

  void Fail(const char* field, const std::string& what) {
    if (ok()) {
      status_ = absl::InvalidArgumentError(absl::StrCat(path_, ": ", prefix_, field, " ", what));
    }
  }
  void Unsupported(const char* field, const std::string& what) {
    if (ok()) {
      status_ = absl::UnimplementedError(absl::StrCat(path_, ": ", prefix_, field, " ", what));
    }
  }

  // The value, or nullptr if the field is absent or null.
  const nlohmann::json* Find(const char* field) const {
    const auto it = object_.find(field);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }

  int64_t Int(const char* field, std::optional<int64_t> otherwise = std::nullopt) {
    const nlohmann::json* value = Find(field);
    if (value == nullptr) return Default<int64_t>(field, otherwise, 0);
    if (!value->is_number_integer() ||
        (value->is_number_unsigned() &&
         value->get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))) {
      Fail(field, absl::StrCat("is ", Shown(*value), ", not an integer in range"));
      return 0;
    }
    return value->get<int64_t>();
  }

  double Float(const char* field, std::optional<double> otherwise = std::nullopt) {
    const nlohmann::json* value = Find(field);
    if (value == nullptr) return Default<double>(field, otherwise, 0.0);
    if (!value->is_number()) {
      Fail(field, absl::StrCat("is ", Shown(*value), ", not a number"));
      return 0.0;
    }
    return value->get<double>();
  }

  bool Bool(const char* field, bool otherwise) {
    const nlohmann::json* value = Find(field);
    if (value == nullptr) return otherwise;
    if (!value->is_boolean()) {
      Fail(field, absl::StrCat("is ", Shown(*value), ", not true or false"));
      return otherwise;
    }
    return value->get<bool>();
  }

  std::string String(const char* field, const std::string& otherwise) {
    const nlohmann::json* value = Find(field);
    if (value == nullptr) return otherwise;
    if (!value->is_string()) {
      Fail(field, absl::StrCat("is ", Shown(*value), ", not a string"));
      return otherwise;
    }
    return value->get<std::string>();
  }

 private:
  template <typename T>
  T Default(const char* field, std::optional<T> otherwise, T failed) {
    if (otherwise.has_value()) return *otherwise;
    Fail(field, "is missing");
    return failed;
  }

  const std::string& path_;
  const std::string prefix_;
  const nlohmann::json& object_;
  absl::Status status_;
};

}  // namespace verbatim::model
