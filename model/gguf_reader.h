// Sequential, bounds-checked reading of the values in a GGUF file's header.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "model/gguf.h"
#include "model/mapped_file.h"

namespace verbatim::model {

// Reads the file from front to back. The first failure sticks: every later read gives a zero or
// empty value, so that a caller checks ok() only where it uses what it read. Errors are "FILE:
// offset N: ...".
class GgufReader {
 public:
  static constexpr uint64_t kNoLimit = std::numeric_limits<uint64_t>::max();

  // Both must outlive the reader.
  GgufReader(const std::string& path, const MappedFile& file)
      : path_(path), data_(file.data()), size_(static_cast<uint64_t>(file.size_bytes())) {}

  uint64_t offset() const { return offset_; }
  uint64_t remaining() const { return size_ - offset_; }
  bool ok() const { return status_.ok(); }
  const absl::Status& status() const { return status_; }

  void Fail(uint64_t offset, const std::string& what);
  void FailUnimplemented(uint64_t offset, const std::string& what);

  // `what` names the value in the error for a file that ends inside it.
  template <typename T>
  T Read(const char* what) {
    T value{};
    if (!ok()) return value;
    if (remaining() < sizeof(T)) {
      Fail(offset_, std::string("file ends inside ") + what);
      return value;
    }
    std::memcpy(&value, data_ + offset_, sizeof(T));
    offset_ += sizeof(T);
    return value;
  }

  // The view points into the file.
  std::string_view ReadString(const char* what, uint64_t max_bytes);
  // A metadata value: its type and what follows.
  GgufValue ReadValue();

 private:
  bool ReadBool();
  int64_t ReadInteger(uint32_t type);
  std::shared_ptr<const GgufArray> ReadArray();

  const std::string& path_;
  const std::byte* data_;
  const uint64_t size_;
  uint64_t offset_ = 0;
  absl::Status status_;
};

}  // namespace verbatim::model
