// Walks the wire encoding along the message's descriptor to the first string that is not UTF-8.
#include "server/parse_error.h"

#include <map>

#include "absl/strings/str_cat.h"
#include "google/protobuf/unknown_field_set.h"
#include "model/utf8.h"

namespace verbatim::server {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::UnknownField;
using google::protobuf::UnknownFieldSet;

// Offset of the first malformed part; npos when there is none.
size_t FindInvalidUtf8(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const model::Utf8Unit unit = model::NextUtf8Unit(text.substr(at));
    if (unit.kind != model::Utf8Unit::Kind::kValid) return at;
    at += unit.length;
  }
  return std::string_view::npos;
}

// An empty string: every string field is UTF-8.
std::string FindBadString(const Descriptor& descriptor, const std::string& bytes,
                          const std::string& path, int depth) {
  UnknownFieldSet fields;
  if (depth > 16 || !fields.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return absl::StrCat(path.empty() ? "request" : path, ": not a well-formed ",
                        std::string(descriptor.full_name()));
  }
  std::map<int, int> seen;  // occurrences of repeated fields, for their index
  for (int i = 0; i < fields.field_count(); ++i) {
    const UnknownField& field = fields.field(i);
    const FieldDescriptor* known = descriptor.FindFieldByNumber(field.number());
    if (known == nullptr || field.type() != UnknownField::TYPE_LENGTH_DELIMITED) continue;
    std::string name = absl::StrCat(path, path.empty() ? "" : ".", known->name());
    if (known->is_repeated()) absl::StrAppend(&name, "[", seen[field.number()]++, "]");
    if (known->type() == FieldDescriptor::TYPE_STRING) {
      const size_t at = FindInvalidUtf8(field.length_delimited());
      if (at != std::string_view::npos) return absl::StrCat(name, ": not valid UTF-8 at byte ", at);
    } else if (known->type() == FieldDescriptor::TYPE_MESSAGE) {
      std::string found =
          FindBadString(*known->message_type(), field.length_delimited(), name, depth + 1);
      if (!found.empty()) return found;
    }
  }
  return "";
}

}  // namespace

absl::Status DescribeParseError(const Descriptor& descriptor, const std::string& bytes) {
  std::string found = FindBadString(descriptor, bytes, "", 0);
  if (found.empty()) found = absl::StrCat("request: not a well-formed ", descriptor.full_name());
  return absl::InvalidArgumentError(found);
}

}  // namespace verbatim::server
