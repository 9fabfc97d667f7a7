// Which kernels need more shared memory than a device gives unasked, and asking for it, once.
//
// Devices of compute capability 8.0 give a block 163 KiB, 8.6 and 8.9 run the same code and give
// 99, Hopper gives 227. So what kernels need is compared with the device when the backend starts,
// not when they are launched.
#pragma once

#include <cstddef>
#include <vector>

#include "absl/status/status.h"
#include "kernels/cuda/runtime.h"

namespace verbatim::kernels::cuda {

struct SharedNeed {
  const char* kernel;  // for people
  const void* function;
  size_t bytes;  // of a block, at most
};
using SharedNeeds = std::vector<SharedNeed>;

// The kernels of each file that may need more than runtime::kSharedBytesUnasked.
SharedNeeds AttentionNeeds();
SharedNeeds AttentionMmaSplitNeeds();
SharedNeeds AttentionMmaWalkNeeds();
SharedNeeds GemmPinnedNeeds();
SharedNeeds GemmPortableNeeds();
SharedNeeds GroupedGemmPinnedNeeds();
SharedNeeds GroupedGemmPortableNeeds();
SharedNeeds GemmPinnedWgmmaNeeds();
SharedNeeds GroupedGemmWgmmaNeeds();

// What every backend must be able to launch: all but wgmma.
SharedNeeds CommonNeeds();

// Allows the calling thread's device to launch all of them. FAILED_PRECONDITION, and nothing is
// allowed, where one needs more than the device has: names the kernel and both sizes.
absl::Status AllowSharedMemory(const runtime::DeviceInfo& device, const SharedNeeds& needs);

}  // namespace verbatim::kernels::cuda
