// Memory-mapped reader of GGUF v2 and v3 files; every size and offset is checked against the file
// before use.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/ops/dtype.h"
#include "model/mapped_file.h"

namespace verbatim::model {

struct GgufArray;
// Integers are widened to 64 bits, floats to double.
using GgufValue =
    std::variant<bool, int64_t, uint64_t, double, std::string, std::shared_ptr<const GgufArray>>;
struct GgufArray {
  // Exactly one of these is filled, by element type; nested arrays are refused at parsing.
  std::vector<int64_t> ints;  // also bool and unsigned (values above int64 are refused)
  std::vector<double> floats;
  std::vector<std::string> strings;
};

struct GgufTensor {
  std::string name;
  kernels::DType dtype;
  std::vector<int64_t>
      shape;  // outermost first, as PyTorch prints it: [rows, cols] (GGUF stores the reverse)
  const std::byte* data;
  int64_t size_bytes;
};

class GgufFile {
 public:
  // Errors: NOT_FOUND; INVALID_ARGUMENT "FILE: offset N: what is wrong" for anything truncated,
  // overlapping, overflowing or inconsistent; UNIMPLEMENTED for a tensor type that is not
  // supported, naming tensor and type.
  static absl::StatusOr<std::unique_ptr<GgufFile>> Open(const std::string& path);

  const std::map<std::string, GgufValue, std::less<>>& metadata() const { return metadata_; }
  const std::map<std::string, GgufTensor, std::less<>>& tensors() const { return tensors_; }

  // Typed look-ups. NOT_FOUND if the key is absent, INVALID_ARGUMENT if it has another type or is
  // out of range.
  absl::StatusOr<int64_t> GetInt(std::string_view key) const;
  absl::StatusOr<double> GetFloat(std::string_view key) const;
  absl::StatusOr<bool> GetBool(std::string_view key) const;
  absl::StatusOr<std::string> GetString(std::string_view key) const;
  absl::StatusOr<std::shared_ptr<const GgufArray>> GetArray(std::string_view key) const;

  const std::string& path() const { return path_; }

 private:
  GgufFile() = default;
  std::string path_;
  std::unique_ptr<MappedFile> file_;
  std::map<std::string, GgufValue, std::less<>> metadata_;
  std::map<std::string, GgufTensor, std::less<>> tensors_;
};

}  // namespace verbatim::model
