// For tests: builds small GGUF and safetensors files in memory, and writes and damages them.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/ops/dtype.h"

namespace verbatim::model::testing {

// Values of the GGUF specification's gguf_metadata_value_type.
enum GgufType : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64
};

template <typename T>
std::string Raw(T value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof(value));
}

inline std::string GgufString(std::string_view text) {
  return Raw<uint64_t>(text.size()) + std::string(text);
}

// Collects entries, then lays the file out. Every integer of the header is remembered, so that a
// test can damage each of them.
class GgufBuilder {
 public:
  struct Field {
    size_t offset;
    size_t bytes;
  };

  uint32_t version = 3;
  uint64_t alignment = 32;

  // `payload` is the value as the file holds it, without its type.
  GgufBuilder& Add(std::string_view key, uint32_t type, const std::string& payload) {
    metadata_.push_back({std::string(key), type, payload});
    return *this;
  }
  GgufBuilder& AddU32(std::string_view key, uint32_t value) { return Add(key, kU32, Raw(value)); }
  GgufBuilder& AddF32(std::string_view key, float value) { return Add(key, kF32, Raw(value)); }
  GgufBuilder& AddString(std::string_view key, std::string_view value) {
    return Add(key, kString, GgufString(value));
  }
  GgufBuilder& AddArray(std::string_view key, uint32_t type, uint64_t length,
                        const std::string& elements) {
    return Add(key, kArray, Raw(type) + Raw(length) + elements);
  }
  // `shape` is outermost first; ggml_type is the file's number of the type.
  GgufBuilder& AddTensor(std::string_view name, const std::vector<uint64_t>& shape,
                         uint32_t ggml_type, const std::string& data) {
    tensors_.push_back({std::string(name), shape, ggml_type, data});
    return *this;
  }
  void RemoveKey(std::string_view key) {
    std::erase_if(metadata_, [&](const Metadata& entry) { return entry.key == key; });
  }
  void RemoveTensor(std::string_view name) {
    std::erase_if(tensors_, [&](const Tensor& tensor) { return tensor.name == name; });
  }

  std::string Build() {
    fields_.clear();
    std::string file = "GGUF";
    const auto put = [&](const auto value) {
      fields_.push_back({file.size(), sizeof(value)});
      file += Raw(value);
    };
    const auto put_string = [&](const std::string& text) {
      put(static_cast<uint64_t>(text.size()));
      file += text;
    };
    put(version);
    put(static_cast<uint64_t>(tensors_.size()));
    put(static_cast<uint64_t>(metadata_.size()));
    for (const Metadata& entry : metadata_) {
      put_string(entry.key);
      put(entry.type);
      if (entry.type == kArray) {
        fields_.push_back({file.size(), 4});
        fields_.push_back({file.size() + 4, 8});
      } else if (entry.type != kF32 && entry.type != kF64) {
        fields_.push_back({file.size(), entry.type == kString ? 8 : entry.payload.size()});
      }
      file += entry.payload;
    }
    uint64_t data_offset = 0;
    for (const Tensor& tensor : tensors_) {
      put_string(tensor.name);
      put(static_cast<uint32_t>(tensor.shape.size()));
      for (auto it = tensor.shape.rbegin(); it != tensor.shape.rend(); ++it) put(*it);
      put(tensor.ggml_type);
      put(data_offset);
      data_offset += (tensor.data.size() + alignment - 1) / alignment * alignment;
    }
    for (const Tensor& tensor : tensors_) {
      file.resize((file.size() + alignment - 1) / alignment * alignment);
      file += tensor.data;
    }
    return file;
  }
  // Of the last Build().
  const std::vector<Field>& fields() const { return fields_; }

 private:
  struct Metadata {
    std::string key;
    uint32_t type;
    std::string payload;
  };
  struct Tensor {
    std::string name;
    std::vector<uint64_t> shape;
    uint32_t ggml_type;
    std::string data;
  };
  std::vector<Metadata> metadata_;
  std::vector<Tensor> tensors_;
  std::vector<Field> fields_;
};

// `bytes` of a repeatable pattern without any float that is NaN or huge.
inline std::string PatternBytes(size_t bytes, uint32_t seed) {
  std::string data(bytes, '\0');
  for (char& c : data) {
    seed = seed * 1664525u + 1013904223u;
    c = static_cast<char>(seed >> 24 & 0x3f);
  }
  return data;
}

// Bytes of a safetensors file with this header and data.
inline std::string SafetensorsBytes(const std::string& header, const std::string& data) {
  return Raw<uint64_t>(header.size()) + header + data;
}

// A directory of its own for one test, removed at its end; in memory where the system has such a
// place, since the tests write thousands of files.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    const bool in_memory = access("/dev/shm", W_OK) == 0;
    std::string pattern =
        (in_memory ? std::string("/dev/shm") : ::testing::TempDir()) + "/checkpoint_test_XXXXXX";
    path_ = mkdtemp(pattern.data());
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  const std::string& path() const { return path_; }
  // Writes (or overwrites) a file and returns its path.
  std::string Write(const std::string& name, std::string_view content) const {
    std::string path = path_ + "/" + name;
    std::ofstream(path, std::ios::binary | std::ios::trunc)
        .write(content.data(), static_cast<std::streamsize>(content.size()));
    return path;
  }

 private:
  std::string path_;
};

// The file with `bytes` at `offset` replaced by the low bytes of `value`.
inline std::string WithInteger(std::string file, size_t offset, size_t bytes, uint64_t value) {
  std::memcpy(file.data() + offset, &value, bytes);
  return file;
}

// What a lying header is likely to contain.
inline const std::vector<uint64_t>& HostileIntegers() {
  static const auto& kValues = *new std::vector<uint64_t>{0,
                                                          1,
                                                          2,
                                                          3,
                                                          7,
                                                          31,
                                                          33,
                                                          255,
                                                          0x7fff,
                                                          0x7fffffff,
                                                          0x80000000,
                                                          0xffffffff,
                                                          uint64_t{1} << 32,
                                                          uint64_t{1} << 59,
                                                          uint64_t{1} << 61,
                                                          uint64_t{1} << 62,
                                                          0x7fffffffffffffff,
                                                          uint64_t{1} << 63,
                                                          ~uint64_t{0} - 31,
                                                          ~uint64_t{0} - 7,
                                                          ~uint64_t{0}};
  return kValues;
}

}  // namespace verbatim::model::testing
