// What becomes of a finished sum of a matrix product.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/numerics/bf16.h"

namespace verbatim::kernels::cuda {

struct Epilogue {
  float* y;
  int64_t y_stride;
  const float* bias;      // of the whole matrix, or null
  const float* residual;  // with y_stride, or null
  bool round;

  __device__ __forceinline__ void Store(int64_t token, int64_t column, float sum) const {
    if (bias != nullptr) sum = sum + bias[column];
    if (residual != nullptr) sum = residual[token * y_stride + column] + sum;
    y[token * y_stride + column] = round ? numerics::RoundToBf16(sum) : sum;
  }
};

}  // namespace verbatim::kernels::cuda
