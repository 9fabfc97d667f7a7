// Parsing of safetensors. Source of the format: the README of the safetensors project: eight bytes
// of header length, a JSON header, then the tensors without holes.
#include "model/safetensors.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "model/strict_json.h"

namespace verbatim::model {
namespace {

using kernels::DType;
using nlohmann::json;

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the limit of the reference implementation
constexpr size_t kMaxDimensions = 8;

std::string Quoted(const std::string& text) {
  constexpr size_t kMaxShown = 120;
  return absl::StrCat("\"", absl::CHexEscape(text.substr(0, kMaxShown)),
                      text.size() > kMaxShown ? "..." : "", "\"");
}

absl::Status TensorError(const std::string& path, const std::string& tensor,
                         const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": tensor ", Quoted(tensor), ": ", what));
}

// A non-negative JSON integer, if it is one.
std::optional<uint64_t> AsUnsigned(const json& value) {
  if (!value.is_number_unsigned()) return std::nullopt;
  return value.get<uint64_t>();
}

// One entry of the header, checked by itself against the size of the data section.
absl::StatusOr<SafetensorsTensor> ParseTensor(const std::string& path, const std::string& name,
                                              const json& entry, const std::byte* data,
                                              uint64_t data_bytes) {
  SafetensorsTensor tensor{};
  tensor.name = name;
  if (!entry.is_object()) return TensorError(path, name, "its entry is not an object");
  const auto dtype = entry.find("dtype");
  if (dtype == entry.end() || !dtype->is_string()) {
    return TensorError(path, name, "dtype is missing or not a string");
  }
  const std::string& dtype_name = dtype->get_ref<const std::string&>();
  if (dtype_name == "F32") {
    tensor.dtype = DType::kF32;
  } else if (dtype_name == "F16") {
    tensor.dtype = DType::kF16;
  } else if (dtype_name == "BF16") {
    tensor.dtype = DType::kBF16;
  } else {
    return absl::UnimplementedError(absl::StrCat(path, ": tensor ", Quoted(name), " has dtype ",
                                                 Quoted(dtype_name),
                                                 ", only F32, F16 and BF16 are supported"));
  }

  const auto shape = entry.find("shape");
  if (shape == entry.end() || !shape->is_array() || shape->size() > kMaxDimensions) {
    return TensorError(path, name,
                       absl::StrCat("shape is not a list of at most ", kMaxDimensions, " sizes"));
  }
  // Below 2^61 elements, so that the size in bytes fits.
  constexpr uint64_t kMaxElements = uint64_t{1} << 61;
  uint64_t elements = 1;
  for (const json& size : *shape) {
    const std::optional<uint64_t> value = AsUnsigned(size);
    if (!value.has_value()) return TensorError(path, name, "shape has a size that is not a count");
    if (*value > kMaxElements || (*value != 0 && elements > kMaxElements / *value)) {
      return TensorError(path, name, "shape is too large");
    }
    elements *= *value;
    tensor.shape.push_back(static_cast<int64_t>(*value));
  }

  const auto offsets = entry.find("data_offsets");
  std::optional<uint64_t> begin, end;
  if (offsets != entry.end() && offsets->is_array() && offsets->size() == 2) {
    begin = AsUnsigned((*offsets)[0]);
    end = AsUnsigned((*offsets)[1]);
  }
  if (!begin.has_value() || !end.has_value()) {
    return TensorError(path, name, "data_offsets is not a list of two offsets");
  }
  if (*begin > *end || *end > data_bytes) {
    return TensorError(path, name,
                       absl::StrCat("data_offsets [", *begin, ", ", *end, "] do not lie in the ",
                                    data_bytes, " bytes of data"));
  }
  const uint64_t size_bytes =
      elements * static_cast<uint64_t>(kernels::InfoOf(tensor.dtype).block_bytes);
  if (*end - *begin != size_bytes) {
    return TensorError(path, name,
                       absl::StrCat("data_offsets [", *begin, ", ", *end, "] hold ", *end - *begin,
                                    " bytes, dtype and shape need ", size_bytes));
  }
  tensor.data = data + *begin;
  tensor.size_bytes = static_cast<int64_t>(size_bytes);
  return tensor;
}

// The tensors must fill the data section, each byte once.
absl::Status CheckCoverage(const std::string& path, const std::byte* data, uint64_t data_bytes,
                           const std::map<std::string, SafetensorsTensor, std::less<>>& tensors) {
  std::vector<const SafetensorsTensor*> by_offset;
  for (const auto& [name, tensor] : tensors) by_offset.push_back(&tensor);
  std::sort(by_offset.begin(), by_offset.end(), [](const auto* a, const auto* b) {
    return std::pair(a->data, a->size_bytes) < std::pair(b->data, b->size_bytes);
  });
  const std::byte* next = data;
  for (const SafetensorsTensor* tensor : by_offset) {
    if (tensor->data < next) return TensorError(path, tensor->name, "overlaps another tensor");
    if (tensor->data > next) {
      return TensorError(path, tensor->name,
                         absl::StrCat("begins at data offset ", tensor->data - data,
                                      ", after a hole of ", tensor->data - next, " bytes"));
    }
    next += tensor->size_bytes;
  }
  const uint64_t covered = static_cast<uint64_t>(next - data);
  if (covered != data_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": the tensors end at data offset ",
                                                   covered, " but the file has ", data_bytes,
                                                   " bytes of data"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  absl::StatusOr<std::unique_ptr<MappedFile>> mapped = MappedFile::Open(path);
  if (!mapped.ok()) return mapped.status();
  std::unique_ptr<SafetensorsFile> result(new SafetensorsFile());
  result->path_ = path;
  result->file_ = *std::move(mapped);
  const uint64_t file_bytes = static_cast<uint64_t>(result->file_->size_bytes());
  if (file_bytes < kLengthBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": offset 0: file of ", file_bytes, " bytes has no header length"));
  }
  uint64_t header_bytes;
  std::memcpy(&header_bytes, result->file_->data(), kLengthBytes);
  if (header_bytes > kMaxHeaderBytes || header_bytes > file_bytes - kLengthBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": offset 0: header of ", header_bytes, " bytes does not fit in a file of ",
        file_bytes, " bytes or is above the limit of ", kMaxHeaderBytes));
  }
  const std::string_view header_text(
      reinterpret_cast<const char*>(result->file_->data() + kLengthBytes), header_bytes);
  if (header_text.empty() || header_text.front() != '{') {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": offset ", kLengthBytes, ": header does not begin with '{'"));
  }
  absl::StatusOr<json> header = ParseStrictJson(header_text, path, kLengthBytes);
  if (!header.ok()) return header.status();

  const std::byte* data = result->file_->data() + kLengthBytes + header_bytes;
  const uint64_t data_bytes = file_bytes - kLengthBytes - header_bytes;
  for (const auto& [name, entry] : header->items()) {
    if (name == "__metadata__") {
      if (!entry.is_object()) {
        return absl::InvalidArgumentError(absl::StrCat(path, ": __metadata__ is not an object"));
      }
      for (const auto& [key, value] : entry.items()) {
        if (!value.is_string()) {
          return absl::InvalidArgumentError(
              absl::StrCat(path, ": __metadata__ ", Quoted(key), " is not a string"));
        }
        result->metadata_[key] = value.get<std::string>();
      }
      continue;
    }
    absl::StatusOr<SafetensorsTensor> tensor = ParseTensor(path, name, entry, data, data_bytes);
    if (!tensor.ok()) return tensor.status();
    result->tensors_.emplace(name, *std::move(tensor));
  }
  if (absl::Status status = CheckCoverage(path, data, data_bytes, result->tensors_); !status.ok()) {
    return status;
  }
  return result;
}

absl::StatusOr<std::map<std::string, std::string>> ReadSafetensorsIndex(const std::string& path) {
  absl::StatusOr<json> index = ReadStrictJsonFile(path);
  if (!index.ok()) return index.status();
  if (!index->is_object() || !index->contains("weight_map") ||
      !(*index)["weight_map"].is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": weight_map is missing or not an object"));
  }
  std::map<std::string, std::string> weight_map;
  for (const auto& [tensor, shard] : (*index)["weight_map"].items()) {
    if (!shard.is_string()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": weight_map ", Quoted(tensor), " is not a file name"));
    }
    const std::string& file = shard.get_ref<const std::string&>();
    constexpr std::string_view kSuffix = ".safetensors";
    if (file.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos ||
        file.size() <= kSuffix.size() || !file.ends_with(kSuffix) || file.front() == '.') {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": weight_map ", Quoted(tensor), ": ", Quoted(file),
                       " is not the plain name of a .safetensors file"));
    }
    weight_map.emplace(tensor, file);
  }
  if (weight_map.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": weight_map is empty"));
  }
  return weight_map;
}

}  // namespace verbatim::model
