// The runtime of kernels/cuda on the emulator: host memory, everything at once, sticky faults.
#include <cstdlib>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/runtime.h"
#include "simt/device.h"
#include "simt/faults.h"

namespace verbatim::kernels::cuda {
namespace {

struct State {
  std::string launch_fault;
  absl::Status sticky;
  int64_t allocations = 0;
  int devices = 1;
};
State& TheState() {
  static State state;
  return state;
}

}  // namespace

void SetLaunchFault(const std::string& message) { TheState().launch_fault = message; }

namespace simt_faults {
void FailDevice(const absl::Status& status) { TheState().sticky = status; }
void Heal() {
  TheState().sticky = absl::OkStatus();
  TheState().launch_fault.clear();
}
void SetDeviceCount(int devices) { TheState().devices = devices; }
int64_t Allocations() { return TheState().allocations; }
}  // namespace simt_faults

namespace runtime {

struct Event {};

absl::StatusOr<DeviceInfo> OpenDevice(int index) {
  if (index < 0 || index >= TheState().devices) {
    return absl::FailedPreconditionError(
        absl::StrCat("cuda: no device ", index, "; this machine has ", TheState().devices));
  }
  if (!TheState().sticky.ok()) return TheState().sticky;
  DeviceInfo info;
  info.name = "emulator";
  info.multiprocessors = 4;
  info.memory_bytes = size_t{1} << 32;
  info.max_shared_bytes = 227 << 10;
  info.code_tag = "emulated";
  return info;
}

absl::Status UseDevice(int) { return TheState().sticky; }

absl::StatusOr<void*> Allocate(size_t size_bytes) {
  if (!TheState().sticky.ok()) return TheState().sticky;
  if (size_bytes > size_t{1} << 32) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cuda: cannot allocate ", size_bytes, " bytes on the device"));
  }
  void* memory = nullptr;
  if (posix_memalign(&memory, 256, size_bytes) != 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cuda: cannot allocate ", size_bytes, " bytes on the device"));
  }
  ++TheState().allocations;
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
  return TheState().sticky;
}
absl::Status CopyToHost(void* host, const void* device, size_t size_bytes, Stream) {
  if (size_bytes > 0) std::memcpy(host, device, size_bytes);
  return TheState().sticky;
}
absl::Status CopyOnDevice(void* to, const void* from, size_t size_bytes, Stream) {
  if (size_bytes > 0) std::memcpy(to, from, size_bytes);
  return TheState().sticky;
}
absl::Status Fill(void* device, int byte, size_t size_bytes, Stream) {
  if (size_bytes > 0) std::memset(device, byte, size_bytes);
  return TheState().sticky;
}
absl::Status Synchronize(Stream) { return TheState().sticky; }

absl::StatusOr<Event*> CreateEvent() { return new Event(); }
void DestroyEvent(Event* event) { delete event; }
absl::Status RecordEvent(Event*, Stream) { return TheState().sticky; }
absl::Status WaitForEvent(Event*) { return TheState().sticky; }
absl::StatusOr<double> MillisecondsBetween(Event*, Event*) { return 0.0; }

absl::Status LaunchStatus(const char* operation, int error) {
  State& state = TheState();
  if (error != 0) {
    state.sticky = absl::InternalError(absl::StrCat("cuda: ", operation, ": ", state.launch_fault));
  }
  return state.sticky;
}

}  // namespace runtime
}  // namespace verbatim::kernels::cuda
