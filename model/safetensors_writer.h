// Writer of safetensors files, tensor after tensor, so that a model larger than memory can be
// written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/ops/dtype.h"

namespace verbatim::model {

struct SafetensorsEntry {
  std::string name;
  kernels::DType dtype;        // F32, F16 or BF16
  std::vector<int64_t> shape;  // outermost first
};

// The header is written first, so all tensors are named at the start; their bytes follow in that
// order. The file is a function of the entries, the metadata and the bytes alone. What it holds is
// complete once Finish has returned OK; a file whose writer is destroyed earlier is incomplete.
class SafetensorsWriter {
 public:
  // INVALID_ARGUMENT for a dtype that the format lacks, a negative size, a name that appears twice
  // or is "__metadata__". UNAVAILABLE, naming the file and the system's reason, when it cannot be
  // made.
  static absl::StatusOr<std::unique_ptr<SafetensorsWriter>> Create(
      const std::string& path, std::vector<SafetensorsEntry> entries,
      const std::map<std::string, std::string>& metadata);
  ~SafetensorsWriter();

  // The bytes of the next entry, little-endian, row-major. INVALID_ARGUMENT when name or size are
  // not the next entry's. RESOURCE_EXHAUSTED when the disk is full, otherwise UNAVAILABLE.
  absl::Status Append(const std::string& name, const void* data, int64_t size_bytes);

  // FAILED_PRECONDITION naming the next entry when entries are missing. Flushes to the disk.
  absl::Status Finish();

  // Bytes of the whole file.
  int64_t file_bytes() const { return file_bytes_; }

 private:
  SafetensorsWriter(std::string path, std::FILE* file, std::vector<SafetensorsEntry> entries)
      : path_(std::move(path)), file_(file), entries_(std::move(entries)) {}
  absl::Status Write(const void* data, size_t size_bytes);

  const std::string path_;
  std::FILE* file_;
  const std::vector<SafetensorsEntry> entries_;
  std::vector<int64_t> sizes_;  // bytes of each entry
  size_t next_ = 0;
  int64_t file_bytes_ = 0;
};

}  // namespace verbatim::model
