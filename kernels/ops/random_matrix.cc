// Making of random matrices' bytes.
#include "kernels/ops/random_matrix.h"

namespace verbatim::kernels {

const char* ContentError(const StoredMatrix& matrix) {
  if (!matrix.random.has_value()) return matrix.data == nullptr ? "data is null" : nullptr;
  if (matrix.data != nullptr) return "data of a random matrix is not null";
  return matrix.dtype == DType::kBF16 ? nullptr : "random values are made as BF16 alone";
}

StoredMatrix WithBytes(const StoredMatrix& matrix, std::vector<std::byte>* bytes) {
  if (!matrix.random.has_value()) return matrix;
  bytes->resize(static_cast<size_t>(matrix.size_bytes()));
  numerics::MakeRandomWeights(*matrix.random, 0, matrix.rows * matrix.cols,
                              reinterpret_cast<uint16_t*>(bytes->data()));
  return {matrix.dtype, matrix.rows, matrix.cols, bytes->data()};
}

}  // namespace verbatim::kernels
