// Matrices of random weights for whoever has to have their bytes in host memory.
#pragma once

#include <cstddef>
#include <vector>

#include "kernels/ops/dtype.h"

namespace verbatim::kernels {

// What is wrong with a matrix's bytes: there are none, or it is random in another format than BF16.
// Null: nothing is.
const char* ContentError(const StoredMatrix& matrix);

// The matrix as it is, or where it is random, with its bytes made into `*bytes`. Its ContentError
// is null.
StoredMatrix WithBytes(const StoredMatrix& matrix, std::vector<std::byte>* bytes);

}  // namespace verbatim::kernels
