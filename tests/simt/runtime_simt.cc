// The runtime of kernels/cuda on the emulator: host memory, everything at once, sticky faults.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

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
  int64_t recordings_left = -1;  // the one after these fails; negative: none does
  std::map<uintptr_t, std::pair<size_t, uint64_t>> live;  // allocations: size, number
  uint64_t serial = 0;
  int devices = 1;
  int major = 0;  // of the compute capability
  size_t max_shared_bytes = size_t{227} << 10;
  std::map<const void*, size_t> allowed_shared_bytes;  // by kernel
  int64_t copies_to_host = 0, copies_to_device = 0, waits = 0;

  absl::Status Sticky() {
    std::lock_guard lock(mu);
    return sticky;
  }
  void Count(int64_t State::*of) {
    std::lock_guard lock(mu);
    ++(this->*of);
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

size_t AllowedSharedBytes(const void* kernel) {
  State& state = TheState();
  std::lock_guard lock(state.mu);
  const auto found = state.allowed_shared_bytes.find(kernel);
  return found == state.allowed_shared_bytes.end()
             ? runtime::kSharedBytesUnasked
             : std::min(found->second, state.max_shared_bytes);
}

uint64_t AllocationOf(const void* device) {
  const uintptr_t place = reinterpret_cast<uintptr_t>(device);
  std::lock_guard lock(TheState().mu);
  auto found = TheState().live.upper_bound(place);
  if (found == TheState().live.begin()) return 0;
  --found;
  return place < found->first + found->second.first ? found->second.second : 0;
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
  state.recordings_left = -1;
}
void FailRecordingsAfter(int64_t recordings) {
  std::lock_guard lock(TheState().mu);
  TheState().recordings_left = recordings;
}
void SetDeviceCount(int devices) { TheState().devices = devices; }
void SetComputeCapability(int major) { TheState().major = major; }
void SetMaxSharedBytes(size_t size_bytes) { TheState().max_shared_bytes = size_bytes; }
Transfers TransfersSoFar() {
  std::lock_guard lock(TheState().mu);
  return {TheState().copies_to_device, TheState().copies_to_host, TheState().waits};
}
int64_t Allocations() {
  std::lock_guard lock(TheState().mu);
  return TheState().allocations;
}
}  // namespace simt_faults

namespace runtime {

struct Event {};
struct Graph {
  std::vector<std::function<int()>> work;
};

namespace {
thread_local bool spoiled = false;

// What a device that records refuses.
absl::Status Spoil(const char* what) {
  spoiled = true;
  return absl::InternalError(absl::StrCat("cuda: ", what, " while the stream is recorded"));
}

absl::Status PutOnStream(std::function<int()> work) {
  if (recording != nullptr) {
    recording->work.push_back(std::move(work));
    return TheState().Sticky();
  }
  work();
  return TheState().Operation();
}
}  // namespace

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
  info.max_shared_bytes = TheState().max_shared_bytes;
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
  std::lock_guard lock(TheState().mu);
  TheState().live[reinterpret_cast<uintptr_t>(memory)] = {size_bytes, ++TheState().serial};
  return memory;
}
void Free(void* device) {
  {
    std::lock_guard lock(TheState().mu);
    TheState().live.erase(reinterpret_cast<uintptr_t>(device));
  }
  std::free(device);
}
absl::StatusOr<void*> AllocatePinned(size_t size_bytes) { return Allocate(size_bytes); }
void FreePinned(void* host) { Free(host); }

absl::StatusOr<Stream> CreateStream() { return Stream{nullptr}; }
void DestroyStream(Stream) {}
namespace {
absl::Status Copy(void* to, const void* from, size_t size_bytes) {
  const auto run = [to, from, size_bytes] {
    if (size_bytes > 0) std::memcpy(to, from, size_bytes);
    return 0;
  };
  return PutOnStream(run);
}
}  // namespace
absl::Status CopyToDevice(void* device, const void* host, size_t size_bytes, Stream) {
  TheState().Count(&State::copies_to_device);
  return Copy(device, host, size_bytes);
}
absl::Status CopyToHost(void* host, const void* device, size_t size_bytes, Stream) {
  TheState().Count(&State::copies_to_host);
  return Copy(host, device, size_bytes);
}
absl::Status CopyOnDevice(void* to, const void* from, size_t size_bytes, Stream) {
  return Copy(to, from, size_bytes);
}
absl::Status Fill(void* device, int byte, size_t size_bytes, Stream) {
  return PutOnStream([device, byte, size_bytes] {
    if (size_bytes > 0) std::memset(device, byte, size_bytes);
    return 0;
  });
}
absl::Status Synchronize(Stream) {
  TheState().Count(&State::waits);
  if (recording != nullptr) return Spoil("waiting for the device");
  return TheState().Operation();
}

absl::StatusOr<Event*> CreateEvent() { return new Event(); }
void DestroyEvent(Event* event) { delete event; }
absl::Status RecordEvent(Event*, Stream) { return TheState().Sticky(); }
absl::Status WaitForEvent(Event*) {
  if (recording != nullptr) return Spoil("waiting for the device");
  return TheState().Sticky();
}
absl::StatusOr<double> MillisecondsBetween(Event*, Event*) { return 0.0; }

absl::Status BeginRecording(Stream) {
  if (recording != nullptr) return absl::InternalError("cuda: the stream is being recorded");
  if (absl::Status sticky = TheState().Sticky(); !sticky.ok()) return sticky;
  {
    std::lock_guard lock(TheState().mu);
    if (TheState().recordings_left-- == 0) {
      return absl::InternalError("cuda: the stream cannot be recorded");
    }
  }
  spoiled = false;
  static std::atomic<uint64_t> recordings{0};
  recording = new Recording{.number = ++recordings};
  return absl::OkStatus();
}

absl::StatusOr<Graph*> EndRecording(Stream) {
  std::unique_ptr<Recording> work(std::exchange(recording, nullptr));
  if (work == nullptr) return absl::InternalError("cuda: nothing is being recorded");
  if (spoiled) return absl::InternalError("cuda: the recording was spoiled");
  if (absl::Status sticky = TheState().Sticky(); !sticky.ok()) return sticky;
  return new Graph{std::move(work->work)};
}

absl::Status LaunchGraph(Graph* graph, Stream) {
  if (recording != nullptr) return Spoil("a graph");
  for (const auto& work : graph->work) {
    if (absl::Status status = LaunchStatus("graph", work()); !status.ok()) return status;
  }
  return TheState().Sticky();
}

void DestroyGraph(Graph* graph) { delete graph; }

absl::Status AllowSharedBytes(const void* kernel, size_t size_bytes) {
  State& state = TheState();
  std::lock_guard lock(state.mu);
  if (size_bytes > state.max_shared_bytes) {
    return absl::InternalError(absl::StrCat("cuda: a block cannot have ", size_bytes, " bytes"));
  }
  state.allowed_shared_bytes[kernel] = size_bytes;
  return absl::OkStatus();
}

absl::Status LaunchStatus(const char* operation, int error) {
  State& state = TheState();
  if (error != 0) {
    std::lock_guard lock(state.mu);
    state.sticky = absl::InternalError(absl::StrCat("cuda: ", operation, ": ", state.launch_fault));
  }
  return recording != nullptr ? state.Sticky() : state.Operation();
}

}  // namespace runtime
}  // namespace verbatim::kernels::cuda
