// A first pass over the events of the text checks it, a second one builds the value.
#include "model/strict_json.h"

#include <algorithm>
#include <set>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "model/mapped_file.h"

namespace verbatim::model {
namespace {

using nlohmann::json;

constexpr size_t kMaxDepth = 64;
constexpr int64_t kMaxFileBytes = 64 << 20;

// Returning false from an event stops the parser.
class Checker : public nlohmann::json_sax<json> {
 public:
  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }

  bool start_object(size_t) override { return Enter(); }
  bool start_array(size_t) override { return Enter(); }
  bool end_object() override { return Leave(); }
  bool end_array() override { return Leave(); }

  bool key(string_t& key) override {
    if (levels_.back().insert(key).second) return true;
    what_ = absl::StrCat("key \"", absl::CHexEscape(key), "\" occurs twice in one object");
    return false;
  }

  bool parse_error(size_t position, const std::string&,
                   const nlohmann::json::exception& error) override {
    position_ = static_cast<int64_t>(position);
    what_ = error.id == 406 ? "number is out of range" : "malformed JSON";
    return false;
  }

  const std::string& what() const { return what_; }
  // Byte after which the parser stopped, where it knows.
  int64_t position() const { return position_; }

 private:
  bool Enter() {
    levels_.emplace_back();
    if (levels_.size() <= kMaxDepth) return true;
    what_ = absl::StrCat("JSON is nested more than ", kMaxDepth, " levels deep");
    return false;
  }
  bool Leave() {
    levels_.pop_back();
    return true;
  }

  std::vector<std::set<std::string>> levels_;
  std::string what_;
  int64_t position_ = 0;
};

}  // namespace

absl::StatusOr<json> ParseStrictJson(std::string_view text, const std::string& path,
                                     int64_t offset) {
  Checker checker;
  if (!json::sax_parse(text.begin(), text.end(), &checker)) {
    // The parser counts the byte it stopped at from one.
    const int64_t at = std::max<int64_t>(checker.position() - 1, 0);
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": offset ", offset + at, ": ", checker.what()));
  }
  json value = json::parse(text.begin(), text.end(), /*cb=*/nullptr, /*allow_exceptions=*/false);
  if (value.is_discarded()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": offset ", offset, ": malformed JSON"));
  }
  return value;
}

absl::StatusOr<json> ReadStrictJsonFile(const std::string& path) {
  absl::StatusOr<std::unique_ptr<MappedFile>> file = MappedFile::Open(path);
  if (!file.ok()) return file.status();
  if ((*file)->size_bytes() > kMaxFileBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": ", (*file)->size_bytes(), " bytes are too many, the limit is ", kMaxFileBytes));
  }
  return ParseStrictJson(
      std::string_view(reinterpret_cast<const char*>((*file)->data()), (*file)->size_bytes()), path,
      /*offset=*/0);
}

}  // namespace verbatim::model
