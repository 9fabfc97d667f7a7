// What the emulator's runtime shares with whatever else puts work on an emulated stream.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace verbatim::kernels::cuda {

// Work that a stream was given while it was recorded, in order; an item returns 0, or the code of a
// failed launch.
struct Recording {
  uint64_t number = 0;  // tells recordings of this process apart
  std::vector<std::function<int()>> work;
};
// Where this thread's launches go instead of running; null: they run.
inline thread_local Recording* recording = nullptr;

// Which allocation of device memory holds this place, as a number that no other ever has; 0: none.
uint64_t AllocationOf(const void* device);

}  // namespace verbatim::kernels::cuda
