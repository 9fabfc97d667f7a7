// Reading of GGUF metadata values. Source of the format: the GGUF specification (docs/gguf.md of
// the ggml project).
#include "model/gguf_reader.h"

#include <bit>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"

namespace verbatim::model {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF numbers are read as they lie");

enum ValueType : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

// Least size of one value of the type in the file; 0 for types that do not exist.
uint64_t MinBytesOf(uint32_t type) {
  constexpr uint64_t kBytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8};
  return type < std::size(kBytes) ? kBytes[type] : 0;
}

}  // namespace

void GgufReader::Fail(uint64_t offset, const std::string& what) {
  if (!ok()) return;
  status_ = absl::InvalidArgumentError(absl::StrCat(path_, ": offset ", offset, ": ", what));
}

void GgufReader::FailUnimplemented(uint64_t offset, const std::string& what) {
  if (!ok()) return;
  status_ = absl::UnimplementedError(absl::StrCat(path_, ": offset ", offset, ": ", what));
}

std::string_view GgufReader::ReadString(const char* what, uint64_t max_bytes) {
  const uint64_t start = offset_;
  const uint64_t length = Read<uint64_t>(what);
  if (!ok()) return {};
  if (length > max_bytes) {
    Fail(start, absl::StrCat(what, " of ", length, " bytes is longer than ", max_bytes));
    return {};
  }
  if (length > remaining()) {
    Fail(start, absl::StrCat(what, " of ", length, " bytes runs past the end of the file, ",
                             remaining(), " bytes are left"));
    return {};
  }
  const std::string_view text(reinterpret_cast<const char*>(data_ + offset_), length);
  offset_ += length;
  return text;
}

bool GgufReader::ReadBool() {
  const uint8_t value = Read<uint8_t>("a bool");
  if (value > 1) Fail(offset_ - 1, absl::StrCat("bool with value ", int{value}));
  return value == 1;
}

// Unsigned values above int64 fail.
int64_t GgufReader::ReadInteger(uint32_t type) {
  switch (type) {
    case kUint8:
      return Read<uint8_t>("a uint8");
    case kInt8:
      return Read<int8_t>("an int8");
    case kUint16:
      return Read<uint16_t>("a uint16");
    case kInt16:
      return Read<int16_t>("an int16");
    case kUint32:
      return Read<uint32_t>("a uint32");
    case kInt32:
      return Read<int32_t>("an int32");
    case kInt64:
      return Read<int64_t>("an int64");
    case kBool:
      return ReadBool() ? 1 : 0;
    default: {
      const uint64_t value = Read<uint64_t>("a uint64");
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        Fail(offset_ - 8, absl::StrCat("array element ", value, " is above 2^63 - 1"));
      }
      return static_cast<int64_t>(value);
    }
  }
}

std::shared_ptr<const GgufArray> GgufReader::ReadArray() {
  auto array = std::make_shared<GgufArray>();
  const uint64_t start = offset_;
  const uint32_t type = Read<uint32_t>("an array's element type");
  const uint64_t length = Read<uint64_t>("an array's length");
  if (!ok()) return array;
  if (type == kArray) {
    Fail(start, "array of arrays");
    return array;
  }
  const uint64_t min_bytes = MinBytesOf(type);
  if (min_bytes == 0) {
    Fail(start, absl::StrCat("array of unknown element type ", type));
    return array;
  }
  if (length > remaining() / min_bytes) {
    Fail(start + 4,
         absl::StrCat("array of ", length, " elements of at least ", min_bytes,
                      " bytes runs past the end of the file, ", remaining(), " bytes are left"));
    return array;
  }
  if (type == kString) {
    array->strings.reserve(length);
  } else if (type == kFloat32 || type == kFloat64) {
    array->floats.reserve(length);
  } else {
    array->ints.reserve(length);
  }
  for (uint64_t i = 0; i < length && ok(); ++i) {
    if (type == kString) {
      array->strings.emplace_back(ReadString("a string in an array", kNoLimit));
    } else if (type == kFloat32) {
      array->floats.push_back(Read<float>("a float32"));
    } else if (type == kFloat64) {
      array->floats.push_back(Read<double>("a float64"));
    } else {
      array->ints.push_back(ReadInteger(type));
    }
  }
  return array;
}

GgufValue GgufReader::ReadValue() {
  const uint64_t start = offset_;
  const uint32_t type = Read<uint32_t>("a value's type");
  switch (type) {
    case kUint8:
    case kUint16:
    case kUint32:
      return GgufValue(std::in_place_type<uint64_t>, ReadInteger(type));
    case kUint64:
      return GgufValue(std::in_place_type<uint64_t>, Read<uint64_t>("a uint64"));
    case kInt8:
    case kInt16:
    case kInt32:
    case kInt64:
      return GgufValue(std::in_place_type<int64_t>, ReadInteger(type));
    case kFloat32:
      return GgufValue(std::in_place_type<double>, Read<float>("a float32"));
    case kFloat64:
      return GgufValue(std::in_place_type<double>, Read<double>("a float64"));
    case kBool:
      return GgufValue(std::in_place_type<bool>, ReadBool());
    case kString:
      return GgufValue(std::in_place_type<std::string>, ReadString("a string value", kNoLimit));
    case kArray:
      return GgufValue(std::in_place_type<std::shared_ptr<const GgufArray>>, ReadArray());
    default:
      Fail(start, absl::StrCat("unknown value type ", type));
      return GgufValue();
  }
}

}  // namespace verbatim::model
