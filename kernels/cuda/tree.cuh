// The fold of a warp's 32 lanes, with which row reductions end.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/tree_nodes.h"

namespace verbatim::kernels::cuda {

// The sum of a warp's lanes by halving (16, 8, 4, 2, 1), in every lane. Adding the partner's value
// to one's own gives both the same bits, because addition commutes.
__device__ __forceinline__ float FoldLanes(float lane) {
  for (int half = 16; half > 0; half /= 2) lane = lane + ShuffleXor(lane, half);
  return lane;
}

}  // namespace verbatim::kernels::cuda
