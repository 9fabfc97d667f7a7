// The runtime of kernels/cuda on the emulator: host memory, everything at once, sticky faults.
#include <cstdlib>
#include <cstring>
#include <limits>
#include <mutex>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/runtime.h"
#include "simt/device.h"
#include "simt/faults.h"

namespace verbatim::kernels::cuda {
namespace {

// Shared by the test's thread and the engine's.
struct State {
  std::mutex mu;
  std::string launch_fault;
  absl::Status sticky;
  absl::Status planned;         // becomes `sticky` when `operations_left` have run
  int64_t operations_left = 0;  // launches, copies, fills and waits
  int64_t allocations_left = std::numeric_limits<int64_t>::max();
  int64_t allocations = 0;
  int64_t free_bytes = int64_t{64} << 20;
  int devices = 1;
  int major = 0;  // of the compute capability

  absl::Status Sticky() {
    std::lock_guard lock(mu);
    return sticky;
  }
  // An operation of the device.
  absl::Status Operation() {
    std::lock_guard lock(mu);
    if (!planned.ok() && --operations_left < 0) sticky = std::exchange(planned, absl::OkStatus());
    return sticky;
  }
};
State& TheState() {
  static State state;
  return state;
}

}  // namespace

void SetLaunchFault(const std::string& message) {
  std::lock_guard lock(TheState().mu);
  TheState().launch_fault = message;
}

namespace simt_faults {
void FailDevice(const absl::Status& status) {
  std::lock_guard lock(TheState().mu);
  TheState().sticky = status;
}
void FailDeviceAfter(int64_t operations, const absl::Status& status) {
  std::lock_guard lock(TheState().mu);
  TheState().operations_left = operations;
  TheState().planned = status;
}
void FailAllocationsAfter(int64_t allocations) {
  std::lock_guard lock(TheState().mu);
  TheState().allocations_left = allocations;
}
void SetFreeMemory(int64_t bytes) {
  std::lock_guard lock(TheState().mu);
  TheState().free_bytes = bytes;
}
void Heal() {
  State& state = TheState();
  std::lock_guard lock(state.mu);
  state.sticky = state.planned = absl::OkStatus();
  state.launch_fault.clear();
  state.allocations_left = std::numeric_limits<int64_t>::max();
}
void SetDeviceCount(int devices) { TheState().devices = devices; }
void SetComputeCapability(int major) { TheState().major = major; }
int64_t Allocations() {
  std::lock_guard lock(TheState().mu);
  return TheState().allocations;
}
}  // namespace simt_faults

namespace runtime {

struct Event {};

absl::StatusOr<DeviceInfo> OpenDevice(int index) {
  if (index < 0 || index >= TheState().devices) {
    return absl::FailedPreconditionError(
        absl::StrCat("cuda: no device ", index, "; this machine has ", TheState().devices));
  }
  if (absl::Status sticky = TheState().Sticky(); !sticky.ok()) return sticky;
  DeviceInfo info;
  info.name = "emulator";
  info.major = TheState().major;
  info.multiprocessors = 4;
  info.memory_bytes = size_t{1} << 32;
  info.max_shared_bytes = 227 << 10;
  info.code_tag = "emulated";
  return info;
}

absl::Status UseDevice(int) { return TheState().Sticky(); }

absl::StatusOr<int64_t> FreeMemoryBytes() {
  std::lock_guard lock(TheState().mu);
  return TheState().free_bytes;
}

absl::StatusOr<void*> Allocate(size_t size_bytes) {
  if (absl::Status sticky = TheState().Sticky(); !sticky.ok()) return sticky;
  bool refused;
  {
    std::lock_guard lock(TheState().mu);
    refused = --TheState().allocations_left < 0;
    if (!refused) ++TheState().allocations;
  }
  if (refused || size_bytes > size_t{1} << 32) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cuda: cannot allocate ", size_bytes, " bytes on the device"));
  }
  void* memory = nullptr;
  if (posix_memalign(&memory, 256, size_bytes) != 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cuda: cannot allocate ", size_bytes, " bytes on the device"));
  }
  std::memset(memory, 0xff, size_bytes);  // NaN: nothing may read what nothing wrote
  return memory;
}
void Free(void* device) { std::free(device); }
absl::StatusOr<void*> AllocatePinned(size_t size_bytes) { return Allocate(size_bytes); }
void FreePinned(void* host) { std::free(host); }

absl::StatusOr<Stream> CreateStream() { return Stream{nullptr}; }
void DestroyStream(Stream) {}
absl::Status CopyToDevice(void* device, const void* host, size_t size_bytes, Stream) {
  if (size_bytes > 0) std::memcpy(device, host, size_bytes);
  return TheState().Operation();
}
absl::Status CopyToHost(void* host, const void* device, size_t size_bytes, Stream) {
  if (size_bytes > 0) std::memcpy(host, device, size_bytes);
  return TheState().Operation();
}
absl::Status CopyOnDevice(void* to, const void* from, size_t size_bytes, Stream) {
  if (size_bytes > 0) std::memcpy(to, from, size_bytes);
  return TheState().Operation();
}
absl::Status Fill(void* device, int byte, size_t size_bytes, Stream) {
  if (size_bytes > 0) std::memset(device, byte, size_bytes);
  return TheState().Operation();
}
absl::Status Synchronize(Stream) { return TheState().Operation(); }

absl::StatusOr<Event*> CreateEvent() { return new Event(); }
void DestroyEvent(Event* event) { delete event; }
absl::Status RecordEvent(Event*, Stream) { return TheState().Sticky(); }
absl::Status WaitForEvent(Event*) { return TheState().Sticky(); }
absl::StatusOr<double> MillisecondsBetween(Event*, Event*) { return 0.0; }

absl::Status LaunchStatus(const char* operation, int error) {
  State& state = TheState();
  if (error != 0) {
    std::lock_guard lock(state.mu);
    state.sticky = absl::InternalError(absl::StrCat("cuda: ", operation, ": ", state.launch_fault));
  }
  return state.Operation();
}

}  // namespace runtime
}  // namespace verbatim::kernels::cuda
