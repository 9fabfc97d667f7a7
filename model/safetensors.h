// Memory-mapped reader of safetensors files and of the index that joins several of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/ops/dtype.h"
#include "model/mapped_file.h"

namespace verbatim::model {

struct SafetensorsTensor {
  std::string name;
  kernels::DType dtype;
  std::vector<int64_t> shape;  // outermost first; empty for a scalar
  const std::byte* data;       // with no alignment: the format promises none
  int64_t size_bytes;
};

class SafetensorsFile {
 public:
  // Errors: NOT_FOUND; INVALID_ARGUMENT "FILE: offset N: ..." or "FILE: tensor "NAME": ..." for a
  // file that is truncated, overlapping, has holes or is otherwise inconsistent; UNIMPLEMENTED for
  // a dtype other than F32, F16 and BF16, naming tensor and dtype.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);

  const std::map<std::string, SafetensorsTensor, std::less<>>& tensors() const { return tensors_; }
  const std::map<std::string, std::string, std::less<>>& metadata() const { return metadata_; }
  const std::string& path() const { return path_; }

 private:
  SafetensorsFile() = default;
  std::string path_;
  std::unique_ptr<MappedFile> file_;
  std::map<std::string, SafetensorsTensor, std::less<>> tensors_;
  std::map<std::string, std::string, std::less<>> metadata_;
};

// The "weight_map" of a model.safetensors.index.json: tensor name to the name of a file in the same
// directory. Names that could lead out of that directory are refused.
absl::StatusOr<std::map<std::string, std::string>> ReadSafetensorsIndex(const std::string& path);

}  // namespace verbatim::model
