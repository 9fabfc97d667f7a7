// Storage formats of tensors and of matrices as checkpoint files hold them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "kernels/numerics/random_weights.h"

namespace verbatim::kernels {

// Names and layouts of the quantised formats are those of GGUF (ggml).
enum class DType : uint8_t { kF32, kF16, kBF16, kQ8_0, kQ4_0, kQ4_1, kQ5_0, kQ5_1, kQ4_K, kQ6_K };

struct DTypeInfo {
  std::string_view name;   // "Q4_1"
  int64_t block_elements;  // consecutive elements of a row that share a block; 1 for plain floats
  int64_t block_bytes;     // stored size of one block
};

constexpr DTypeInfo InfoOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return {"F32", 1, 4};
    case DType::kF16:
      return {"F16", 1, 2};
    case DType::kBF16:
      return {"BF16", 1, 2};
    case DType::kQ8_0:
      return {"Q8_0", 32, 34};
    case DType::kQ4_0:
      return {"Q4_0", 32, 18};
    case DType::kQ4_1:
      return {"Q4_1", 32, 20};
    case DType::kQ5_0:
      return {"Q5_0", 32, 22};
    case DType::kQ5_1:
      return {"Q5_1", 32, 24};
    case DType::kQ4_K:
      return {"Q4_K", 256, 144};
    case DType::kQ6_K:
      return {"Q6_K", 256, 210};
  }
  return {"unknown", 1, 0};
}

// A row-major matrix exactly as its file stores it: `rows` output features, each of `cols` input
// features; cols is a multiple of the format's block. Does not own the bytes. Or a matrix of random
// weights, BF16, which has no bytes until a backend makes them.
struct StoredMatrix {
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  const std::byte* data = nullptr;
  std::optional<numerics::RandomWeights> random = std::nullopt;  // instead of data

  int64_t row_bytes() const {
    return cols / InfoOf(dtype).block_elements * InfoOf(dtype).block_bytes;
  }
  int64_t size_bytes() const { return rows * row_bytes(); }
};

}  // namespace verbatim::kernels
