// The little of the CUDA runtime that the backend needs, as functions that return absl::Status.
//
// Two implementations, never linked together: runtime_cuda.cc over the CUDA runtime, and the
// emulator's in tests/simt, with which the whole backend runs without a GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/stream.h"

namespace verbatim::kernels::cuda::runtime {

struct DeviceInfo {
  std::string name;          // "NVIDIA H200"
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;
  size_t memory_bytes = 0;
  size_t max_shared_bytes = 0;  // of a block
  int driver_version = 0;       // newest CUDA that the driver knows; 13000 is 13.0
  // What fixes the bits of code that has no contract of its own order: the hash of the kernels'
  // sources, compiler and flags; and the driver when it compiled them from PTX.
  std::string code_tag;
};

// Makes device `index` the calling thread's. FAILED_PRECONDITION: no driver, a driver that is too
// old, no such device, or one whose architecture these kernels were not built for; the message says
// which.
absl::StatusOr<DeviceInfo> OpenDevice(int index);

// Makes device `index` the calling thread's; threads start with device 0. Cheap.
absl::Status UseDevice(int index);

// Free memory of the calling thread's device.
absl::StatusOr<int64_t> FreeMemoryBytes();
// Device memory; RESOURCE_EXHAUSTED names the size and what is free.
absl::StatusOr<void*> Allocate(size_t size_bytes);
void Free(void* device);
// Page-locked host memory.
absl::StatusOr<void*> AllocatePinned(size_t size_bytes);
void FreePinned(void* host);

absl::StatusOr<Stream> CreateStream();
void DestroyStream(Stream stream);
// In stream order. Host memory is page-locked or not touched until Synchronize.
absl::Status CopyToDevice(void* device, const void* host, size_t size_bytes, Stream stream);
absl::Status CopyToHost(void* host, const void* device, size_t size_bytes, Stream stream);
absl::Status CopyOnDevice(void* to, const void* from, size_t size_bytes, Stream stream);
absl::Status Fill(void* device, int byte, size_t size_bytes, Stream stream);
// Waits for the stream; then anything that went wrong in it.
absl::Status Synchronize(Stream stream);

// A point in a stream.
struct Event;
absl::StatusOr<Event*> CreateEvent();
void DestroyEvent(Event* event);
absl::Status RecordEvent(Event* event, Stream stream);
absl::Status WaitForEvent(Event* event);
// Milliseconds between two recorded and passed events.
absl::StatusOr<double> MillisecondsBetween(Event* first, Event* second);

// Work that was recorded from a stream, to be put on it again as a whole.
struct Graph;
// From here to EndRecording what this thread puts on the stream is recorded and not run. Waiting
// for the stream is an error until then, and spoils the recording.
absl::Status BeginRecording(Stream stream);
// The recorded work, ready to be launched. On an error nothing is left, and the stream runs again
// what is put on it.
absl::StatusOr<Graph*> EndRecording(Stream stream);
// Runs with the arguments that the recorded launches were given, in stream order.
absl::Status LaunchGraph(Graph* graph, Stream stream);
// Not while the graph may be running.
void DestroyGraph(Graph* graph);

// Shared memory that a block may have without asking.
inline constexpr size_t kSharedBytesUnasked = size_t{48} << 10;
// Lets launches of a kernel on the calling thread's device have so many bytes a block.
absl::Status AllowSharedBytes(const void* kernel, size_t size_bytes);

// The status of a launcher's result; INTERNAL names `operation` and the error. An error of the
// device itself is sticky: everything after it fails too, and the process must end.
absl::Status LaunchStatus(const char* operation, int error);

}  // namespace verbatim::kernels::cuda::runtime
