// Reading tokenizer.json field by field, where a field that is not understood is an error.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "model/tokenizer_spec.h"
#include "nlohmann/json.hpp"

namespace verbatim::model {

// A place in a JSON document. The first failure at any place of a document sticks in the document's
// status; what is read after it are zeros and empty strings, so that a caller checks the status
// only where it acts on what it read.
class JsonField {
 public:
  // Both must outlive the field and all that come from it.
  JsonField(const nlohmann::json& value, std::string path, absl::Status* status)
      : value_(&value), path_(std::move(path)), status_(status) {}

  const nlohmann::json& value() const { return *value_; }
  const std::string& path() const { return path_; }
  bool ok() const { return status_->ok(); }

  void Fail(const std::string& what) const;

  // Fails unless this is an object, and for each key that is not listed.
  void AllowKeys(std::initializer_list<std::string_view> keys) const;
  // Present and not null.
  bool Has(const char* key) const;
  // Fails where the key is missing.
  JsonField operator[](const char* key) const;
  JsonField at(size_t index) const;

  std::string String() const;
  bool Bool() const;
  int32_t Id() const;        // 0 to 2^31 - 1
  size_t ArraySize() const;  // fails for anything but an array

  std::string StringOr(const char* key, const std::string& missing) const;
  bool BoolOr(const char* key, bool missing) const;

 private:
  const nlohmann::json* value_;
  std::string path_;
  absl::Status* status_;
};

// The parts of tokenizer.json that are pipelines. Each may be JSON null.
void ReadNormalizer(const JsonField& field, TokenizerSpec* spec);
// Sets spec->byte_level where the pipeline ends in ByteLevel.
void ReadPreTokenizer(const JsonField& field, TokenizerSpec* spec);
void ReadPostProcessor(const JsonField& field, TokenizerSpec* spec);
// After the pre-tokenizer.
void ReadDecoder(const JsonField& field, TokenizerSpec* spec);

}  // namespace verbatim::model
