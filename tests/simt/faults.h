// Faults of the emulated device that tests plant.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"

namespace verbatim::kernels::cuda::simt_faults {

// From now on every call of the runtime fails with this, as after a sticky error.
void FailDevice(const absl::Status& status);
// The same once so many launches, copies, fills and waits have gone well.
void FailDeviceAfter(int64_t operations, const absl::Status& status);
// The allocation after so many more, and every one behind it, finds no memory.
void FailAllocationsAfter(int64_t allocations);
// The recording of a step after so many more fails.
void FailRecordingsAfter(int64_t recordings);
void SetFreeMemory(int64_t bytes);
// As a new process would find the device.
void Heal();
void SetDeviceCount(int devices);
// 0, which has none of the kernels for one kind of device, or 9, which has those for Hopper.
void SetComputeCapability(int major);
// Whether the machine has a library of matrix products, and a number of tokens for which it has
// none. Backends opened before have it still.
void SetLibraryPresent(bool is_present);
void SetLibraryUnknownTokens(int64_t tokens);
// Of a block; backends opened before keep what they were allowed.
void SetMaxSharedBytes(size_t size_bytes);
// Copies and waits for the stream so far.
struct Transfers {
  int64_t to_device = 0, to_host = 0, waits = 0;
};
Transfers TransfersSoFar();
// Allocations so far, of device and page-locked memory.
int64_t Allocations();

}  // namespace verbatim::kernels::cuda::simt_faults
