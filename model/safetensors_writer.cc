// Writing of safetensors. Source of the format: the README of the safetensors project.
#include "model/safetensors_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <set>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace verbatim::model {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

using kernels::DType;

// The tensors begin at a multiple of this, as the reference implementation has it.
constexpr size_t kAlignmentBytes = 8;

absl::Status SystemError(const std::string& path, const char* what) {
  const int error = errno;
  const std::string message = absl::StrCat(path, ": ", what, ": ", std::strerror(error));
  return error == ENOSPC || error == EDQUOT ? absl::ResourceExhaustedError(message)
                                            : absl::UnavailableError(message);
}

absl::StatusOr<int64_t> SizeOf(const SafetensorsEntry& entry) {
  const std::string name = absl::StrCat("tensor \"", absl::CHexEscape(entry.name), "\": ");
  if (entry.dtype != DType::kF32 && entry.dtype != DType::kF16 && entry.dtype != DType::kBF16) {
    return absl::InvalidArgumentError(absl::StrCat(name, "the format has no dtype ",
                                                   std::string(kernels::InfoOf(entry.dtype).name)));
  }
  int64_t size = kernels::InfoOf(entry.dtype).block_bytes;
  for (const int64_t extent : entry.shape) {
    if (extent < 0 || (extent > 0 && size > std::numeric_limits<int64_t>::max() / extent)) {
      return absl::InvalidArgumentError(absl::StrCat(name, "impossible size ", extent));
    }
    size *= extent;
  }
  return size;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SafetensorsWriter>> SafetensorsWriter::Create(
    const std::string& path, std::vector<SafetensorsEntry> entries,
    const std::map<std::string, std::string>& metadata) {
  // Keeps the order of the entries, as readers that show a file in its order expect.
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::vector<int64_t> sizes;
  std::set<std::string> names = {"__metadata__"};
  int64_t offset = 0;
  for (const SafetensorsEntry& entry : entries) {
    absl::StatusOr<int64_t> size = SizeOf(entry);
    if (!size.ok()) return size.status();
    if (!names.insert(entry.name).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor \"", absl::CHexEscape(entry.name), "\": the name is taken already"));
    }
    header[entry.name] = {{"dtype", std::string(kernels::InfoOf(entry.dtype).name)},
                          {"shape", entry.shape},
                          {"data_offsets", {offset, offset + *size}}};
    offset += *size;
    sizes.push_back(*size);
  }
  std::string text = header.dump();
  text.resize((text.size() + kAlignmentBytes - 1) / kAlignmentBytes * kAlignmentBytes, ' ');

  std::FILE* const file = std::fopen(path.c_str(), "wbe");
  if (file == nullptr) return SystemError(path, "cannot be created");
  auto writer =
      std::unique_ptr<SafetensorsWriter>(new SafetensorsWriter(path, file, std::move(entries)));
  writer->sizes_ = std::move(sizes);
  const uint64_t header_bytes = text.size();
  writer->file_bytes_ = static_cast<int64_t>(sizeof(header_bytes) + header_bytes) + offset;
  absl::Status status = writer->Write(&header_bytes, sizeof(header_bytes));
  status.Update(writer->Write(text.data(), text.size()));
  if (!status.ok()) return status;
  return writer;
}

SafetensorsWriter::~SafetensorsWriter() {
  if (file_ != nullptr) std::fclose(file_);
}

absl::Status SafetensorsWriter::Write(const void* data, size_t size_bytes) {
  if (size_bytes > 0 && std::fwrite(data, 1, size_bytes, file_) != size_bytes) {
    return SystemError(path_, "cannot be written");
  }
  return absl::OkStatus();
}

absl::Status SafetensorsWriter::Append(const std::string& name, const void* data,
                                       int64_t size_bytes) {
  if (next_ == entries_.size() || entries_[next_].name != name || sizes_[next_] != size_bytes) {
    const std::string expected =
        next_ == entries_.size()
            ? "no further tensor"
            : absl::StrCat("\"", entries_[next_].name, "\" with ", sizes_[next_], " bytes");
    return absl::InvalidArgumentError(absl::StrCat(path_, ": tensor \"", absl::CHexEscape(name),
                                                   "\" with ", size_bytes, " bytes comes where ",
                                                   expected, " is expected"));
  }
  ++next_;
  return Write(data, static_cast<size_t>(size_bytes));
}

absl::Status SafetensorsWriter::Finish() {
  if (next_ != entries_.size()) {
    return absl::FailedPreconditionError(
        absl::StrCat(path_, ": tensor \"", entries_[next_].name, "\" is missing"));
  }
  if (std::fflush(file_) != 0 || fsync(fileno(file_)) != 0) {
    return SystemError(path_, "cannot be written");
  }
  const int closed = std::fclose(file_);
  file_ = nullptr;
  return closed == 0 ? absl::OkStatus() : SystemError(path_, "cannot be closed");
}

}  // namespace verbatim::model
