// Attention written straight from the contracts, for tests: one float at a time in the strong
// policies' order, and in double precision.
#pragma once

#include <cstdint>
#include <vector>

namespace verbatim::kernels::cpu {

// One query row against the K and V of the positions it sees.
struct ReferenceRow {
  const float* q = nullptr;  // [head_dim]
  const float* k = nullptr;  // [positions, head_dim], as the pages hold it
  const float* v = nullptr;  // [positions, head_dim]
  int64_t positions = 0;
  int64_t stride = 0;  // elements between positions of k and of v
  int64_t head_dim = 0;
  float scale = 1.0f;
};

// Every bit as kernels/ops/attention.h orders it.
std::vector<float> StrongReference(const ReferenceRow& row);

// The exact result, and a bound on the error of any order of fp32 operations, per element.
struct ExactRow {
  std::vector<double> y;
  std::vector<double> tolerance;
};
ExactRow ExactReference(const ReferenceRow& row);

}  // namespace verbatim::kernels::cpu
