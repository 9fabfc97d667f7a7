// Parsing of GGUF. Source of the format: the GGUF specification (docs/gguf.md of the ggml project).
//
// Nothing read from the file is used as a size, count or offset before it was compared with the
// bytes that are left, and no sum or product of such numbers is formed that could wrap around.
#include "model/gguf.h"

#include <algorithm>
#include <bit>
#include <iterator>
#include <limits>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "model/gguf_reader.h"

namespace verbatim::model {
namespace {

using kernels::DType;
using kernels::InfoOf;

constexpr uint64_t kMaxKeyBytes = 65535;      // by the specification
constexpr uint64_t kMaxTensorNameBytes = 64;  // by the specification
constexpr uint64_t kMaxAlignment = 1 << 20;
constexpr uint64_t kMinMetadataEntryBytes = 8 + 1 + 4 + 1;        // key length, key, type, value
constexpr uint64_t kMinTensorEntryBytes = 8 + 1 + 4 + 8 + 4 + 8;  // name, dimensions, type, offset

// Numbers and names of ggml's tensor types.
constexpr std::string_view kTensorTypeNames[] = {
    "F32",     "F16",    "Q4_0",    "Q4_1",  "Q4_2",   "Q4_3",  "Q5_0",  "Q5_1",
    "Q8_0",    "Q8_1",   "Q2_K",    "Q3_K",  "Q4_K",   "Q5_K",  "Q6_K",  "Q8_K",
    "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS",
    "I8",      "I16",    "I32",     "I64",   "F64",    "IQ1_M", "BF16"};

std::string TensorTypeName(uint32_t type) {
  return type < std::size(kTensorTypeNames) ? std::string(kTensorTypeNames[type])
                                            : absl::StrCat("number ", type);
}

std::optional<DType> SupportedTensorType(uint32_t type) {
  constexpr DType kSupported[] = {DType::kF32,  DType::kF16,  DType::kBF16, DType::kQ8_0,
                                  DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1,
                                  DType::kQ4_K, DType::kQ6_K};
  for (const DType dtype : kSupported) {
    if (InfoOf(dtype).name == TensorTypeName(type)) return dtype;
  }
  return std::nullopt;
}

std::string Quoted(std::string_view text) {
  constexpr size_t kMaxShown = 80;
  return absl::StrCat("\"", absl::CHexEscape(std::string(text.substr(0, kMaxShown))),
                      text.size() > kMaxShown ? "…" : "", "\"");
}

struct Header {
  uint64_t tensor_count = 0;
  uint64_t metadata_count = 0;
};

Header ReadHeader(GgufReader& reader) {
  Header header;
  const uint32_t magic = reader.Read<uint32_t>("the magic number");
  const uint32_t version = reader.Read<uint32_t>("the version");
  if (!reader.ok()) return header;
  if (magic == 0x47475546u || (magic == 0x46554747u && version != 0 && (version & 0xffffu) == 0)) {
    reader.Fail(0, "big-endian GGUF files are not supported");
  } else if (magic != 0x46554747u) {
    reader.Fail(0, "not a GGUF file (it does not begin with \"GGUF\")");
  } else if (version != 2 && version != 3) {
    reader.Fail(4, absl::StrCat("GGUF version ", version, " is not supported, only 2 and 3"));
  }
  header.tensor_count = reader.Read<uint64_t>("the number of tensors");
  header.metadata_count = reader.Read<uint64_t>("the number of metadata entries");
  if (header.tensor_count > reader.remaining() / kMinTensorEntryBytes) {
    reader.Fail(8, absl::StrCat(header.tensor_count, " tensors do not fit in the file"));
  }
  if (header.metadata_count > reader.remaining() / kMinMetadataEntryBytes) {
    reader.Fail(16,
                absl::StrCat(header.metadata_count, " metadata entries do not fit in the file"));
  }
  return header;
}

// A tensor's entry in the header, with the file offsets of the fields that errors name.
struct TensorEntry {
  GgufTensor tensor{};
  uint64_t data_offset = 0;  // from the beginning of the data section
  uint64_t entry_at = 0;
  uint64_t data_offset_at = 0;
};

TensorEntry ReadTensorEntry(GgufReader& reader) {
  TensorEntry entry;
  entry.entry_at = reader.offset();
  entry.tensor.name = std::string(reader.ReadString("a tensor's name", kMaxTensorNameBytes));
  if (reader.ok() && entry.tensor.name.empty())
    reader.Fail(entry.entry_at, "tensor without a name");
  const std::string tensor = absl::StrCat("tensor ", Quoted(entry.tensor.name));
  const uint64_t dimensions_at = reader.offset();
  const uint32_t dimensions = reader.Read<uint32_t>("a tensor's number of dimensions");
  if (reader.ok() && (dimensions < 1 || dimensions > 4)) {
    reader.Fail(dimensions_at,
                absl::StrCat(tensor, " has ", dimensions, " dimensions, not 1 to 4"));
  }
  // The product of the dimensions stays below 2^62, so that its size in bytes stays below 2^64.
  uint64_t elements = 1;
  for (uint32_t i = 0; i < dimensions && reader.ok(); ++i) {
    const uint64_t at = reader.offset();
    const uint64_t size = reader.Read<uint64_t>("a tensor's dimension");
    if (!reader.ok()) break;
    if (size == 0 || size > (uint64_t{1} << 62) / elements) {
      reader.Fail(at, absl::StrCat(tensor, ": dimension ", i, " of ", size,
                                   size == 0 ? " is empty" : " makes the tensor too large"));
      break;
    }
    elements *= size;
    entry.tensor.shape.insert(entry.tensor.shape.begin(), static_cast<int64_t>(size));
  }
  const uint64_t type_at = reader.offset();
  const uint32_t type = reader.Read<uint32_t>("a tensor's type");
  entry.data_offset_at = reader.offset();
  entry.data_offset = reader.Read<uint64_t>("a tensor's offset");
  if (!reader.ok()) return entry;
  const std::optional<DType> dtype = SupportedTensorType(type);
  if (!dtype.has_value()) {
    reader.FailUnimplemented(type_at, absl::StrCat(tensor, " has type ", TensorTypeName(type),
                                                   ", which is not supported"));
    return entry;
  }
  entry.tensor.dtype = *dtype;
  const kernels::DTypeInfo info = InfoOf(*dtype);
  if (entry.tensor.shape.back() % info.block_elements != 0) {
    reader.Fail(dimensions_at + 4,
                absl::StrCat(tensor, ": rows of ", entry.tensor.shape.back(),
                             " elements are not whole blocks of ", info.block_elements, " (",
                             std::string(info.name), ")"));
    return entry;
  }
  const uint64_t blocks = elements / static_cast<uint64_t>(info.block_elements);
  // At most 2^62 elements of at most 4 bytes: compare before multiplying.
  if (blocks > reader.remaining() / static_cast<uint64_t>(info.block_bytes)) {
    reader.Fail(dimensions_at + 4, absl::StrCat(tensor, " is larger than the rest of the file"));
    return entry;
  }
  entry.tensor.size_bytes = static_cast<int64_t>(blocks) * info.block_bytes;
  return entry;
}

// Sets every tensor's data pointer; fails for data outside the file, unaligned or overlapping.
void PlaceTensors(GgufReader& reader, const MappedFile& file, uint64_t alignment,
                  std::vector<TensorEntry>& entries) {
  const uint64_t file_bytes = static_cast<uint64_t>(file.size_bytes());
  const uint64_t data_start = (reader.offset() + alignment - 1) / alignment * alignment;
  for (TensorEntry& entry : entries) {
    const std::string tensor = absl::StrCat("tensor ", Quoted(entry.tensor.name));
    if (entry.data_offset % alignment != 0) {
      reader.Fail(entry.data_offset_at, absl::StrCat(tensor, ": data offset ", entry.data_offset,
                                                     " is not a multiple of ", alignment));
      return;
    }
    const uint64_t size = static_cast<uint64_t>(entry.tensor.size_bytes);
    if (data_start > file_bytes || size > file_bytes - data_start ||
        entry.data_offset > file_bytes - data_start - size) {
      reader.Fail(entry.data_offset_at,
                  absl::StrCat(tensor, ": ", size, " bytes at data offset ", entry.data_offset,
                               " (data begins at ", data_start,
                               ") run past the end of the file of ", file_bytes, " bytes"));
      return;
    }
    entry.tensor.data = file.data() + data_start + entry.data_offset;
  }
  std::vector<const TensorEntry*> by_offset;
  for (const TensorEntry& entry : entries) by_offset.push_back(&entry);
  std::sort(by_offset.begin(), by_offset.end(), [](const TensorEntry* a, const TensorEntry* b) {
    return a->data_offset < b->data_offset;
  });
  for (size_t i = 1; i < by_offset.size(); ++i) {
    const TensorEntry& before = *by_offset[i - 1];
    const TensorEntry& after = *by_offset[i];
    if (after.data_offset - before.data_offset < static_cast<uint64_t>(before.tensor.size_bytes)) {
      reader.Fail(after.data_offset_at,
                  absl::StrCat("tensor ", Quoted(after.tensor.name), " overlaps tensor ",
                               Quoted(before.tensor.name)));
      return;
    }
  }
}

template <typename T>
absl::StatusOr<T> Get(const GgufFile& file, std::string_view key, const char* type) {
  const auto it = file.metadata().find(key);
  if (it == file.metadata().end()) {
    return absl::NotFoundError(absl::StrCat(file.path(), ": metadata has no ", std::string(key)));
  }
  if (const T* value = std::get_if<T>(&it->second)) return *value;
  return absl::InvalidArgumentError(
      absl::StrCat(file.path(), ": metadata ", std::string(key), " is not ", type));
}

}  // namespace

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::Open(const std::string& path) {
  absl::StatusOr<std::unique_ptr<MappedFile>> mapped = MappedFile::Open(path);
  if (!mapped.ok()) return mapped.status();
  std::unique_ptr<GgufFile> gguf(new GgufFile());
  gguf->path_ = path;
  gguf->file_ = *std::move(mapped);

  GgufReader reader(gguf->path_, *gguf->file_);
  const Header header = ReadHeader(reader);
  uint64_t alignment = 32;
  for (uint64_t i = 0; i < header.metadata_count && reader.ok(); ++i) {
    const uint64_t at = reader.offset();
    std::string key(reader.ReadString("a metadata key", kMaxKeyBytes));
    if (reader.ok() && key.empty()) reader.Fail(at, "metadata entry without a key");
    const uint64_t value_at = reader.offset();
    GgufValue value = reader.ReadValue();
    if (!reader.ok()) break;
    if (key == "general.alignment") {
      const uint64_t* number = std::get_if<uint64_t>(&value);
      if (number == nullptr || *number < 8 || *number > kMaxAlignment ||
          !std::has_single_bit(*number)) {
        reader.Fail(value_at, absl::StrCat("general.alignment is not a power of two from 8 to ",
                                           kMaxAlignment));
        break;
      }
      alignment = *number;
    }
    if (gguf->metadata_.contains(key)) {
      reader.Fail(at, absl::StrCat("metadata key ", Quoted(key), " occurs twice"));
      break;
    }
    gguf->metadata_.emplace(std::move(key), std::move(value));
  }
  std::vector<TensorEntry> entries;
  for (uint64_t i = 0; i < header.tensor_count && reader.ok(); ++i) {
    entries.push_back(ReadTensorEntry(reader));
  }
  if (reader.ok()) PlaceTensors(reader, *gguf->file_, alignment, entries);
  for (size_t i = 0; i < entries.size() && reader.ok(); ++i) {
    const TensorEntry& entry = entries[i];
    if (!gguf->tensors_.emplace(entry.tensor.name, entry.tensor).second) {
      reader.Fail(entry.entry_at,
                  absl::StrCat("tensor ", Quoted(entry.tensor.name), " occurs twice"));
    }
  }
  if (!reader.ok()) return reader.status();
  return gguf;
}

absl::StatusOr<int64_t> GgufFile::GetInt(std::string_view key) const {
  const auto it = metadata_.find(key);
  if (it != metadata_.end()) {
    if (const uint64_t* value = std::get_if<uint64_t>(&it->second)) {
      if (*value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        return absl::InvalidArgumentError(absl::StrCat(path_, ": metadata ", std::string(key),
                                                       " is ", *value, ", above 2^63 - 1"));
      }
      return static_cast<int64_t>(*value);
    }
  }
  return Get<int64_t>(*this, key, "an integer");
}

absl::StatusOr<double> GgufFile::GetFloat(std::string_view key) const {
  return Get<double>(*this, key, "a floating-point number");
}

absl::StatusOr<bool> GgufFile::GetBool(std::string_view key) const {
  return Get<bool>(*this, key, "a bool");
}

absl::StatusOr<std::string> GgufFile::GetString(std::string_view key) const {
  return Get<std::string>(*this, key, "a string");
}

absl::StatusOr<std::shared_ptr<const GgufArray>> GgufFile::GetArray(std::string_view key) const {
  return Get<std::shared_ptr<const GgufArray>>(*this, key, "an array");
}

}  // namespace verbatim::model
