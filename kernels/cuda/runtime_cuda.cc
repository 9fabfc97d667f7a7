// The runtime over CUDA's.
#include <cuda_runtime_api.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/probe.h"
#include "kernels/cuda/runtime.h"

namespace verbatim::kernels::cuda::runtime {
namespace {

std::string Version(int version) { return absl::StrCat(version / 1000, ".", version % 1000 / 10); }

// Errors after which no call of this process will succeed.
bool IsSticky(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorAssert:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorContained:
    case cudaErrorContextIsDestroyed:
    case cudaErrorUnknown:
      return true;
    default:
      return false;
  }
}

absl::Status StatusOf(const char* operation, cudaError_t error) {
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string text = absl::StrCat("cuda: ", operation, ": ", cudaGetErrorName(error), " (",
                                        cudaGetErrorString(error), ")");
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // not to be reported by the next launch
    return absl::ResourceExhaustedError(text);
  }
  if (IsSticky(error)) {
    return absl::InternalError(
        absl::StrCat(text, "; the device has failed and cannot be used again by this process"));
  }
  cudaGetLastError();  // not to be reported by a later call
  return absl::InternalError(text);
}

// What is wrong with the driver, when that is why nothing works.
absl::Status CheckDriver() {
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  if (driver == 0) {
    return absl::FailedPreconditionError(
        "cuda: no NVIDIA driver is installed, or this process cannot see it");
  }
  if (driver / 1000 < runtime / 1000) {
    return absl::FailedPreconditionError(
        absl::StrCat("cuda: the NVIDIA driver knows CUDA ", Version(driver),
                     ", this program was built with ", Version(runtime)));
  }
  return absl::OkStatus();
}

}  // namespace

struct Event {
  cudaEvent_t event = nullptr;
};
struct Graph {
  cudaGraphExec_t graph = nullptr;
};

absl::StatusOr<DeviceInfo> OpenDevice(int index) {
  if (absl::Status driver = CheckDriver(); !driver.ok()) return driver;
  int devices = 0;
  const cudaError_t counted = cudaGetDeviceCount(&devices);
  if (counted == cudaErrorNoDevice || (counted == cudaSuccess && devices == 0)) {
    return absl::FailedPreconditionError("cuda: this machine has no GPU that the driver can use");
  }
  if (counted != cudaSuccess) {
    return absl::FailedPreconditionError(
        absl::StrCat("cuda: cannot count devices: ", cudaGetErrorName(counted), " (",
                     cudaGetErrorString(counted), ")"));
  }
  if (index < 0 || index >= devices) {
    return absl::FailedPreconditionError(
        absl::StrCat("cuda: no device ", index, "; this machine has ", devices));
  }
  absl::Status status = StatusOf("cudaSetDevice", cudaSetDevice(index));
  if (!status.ok()) return status;
  cudaDeviceProp properties;
  status = StatusOf("cudaGetDeviceProperties", cudaGetDeviceProperties(&properties, index));
  if (!status.ok()) return status;
  DeviceInfo info;
  info.name = properties.name;
  info.major = properties.major;
  info.minor = properties.minor;
  info.multiprocessors = properties.multiProcessorCount;
  info.memory_bytes = properties.totalGlobalMem;
  info.max_shared_bytes = properties.sharedMemPerBlockOptin;
  cudaDriverGetVersion(&info.driver_version);
  CodeVersion code;
  const cudaError_t probed = static_cast<cudaError_t>(ProbeCode(&code));
  if (probed == cudaErrorNoKernelImageForDevice || probed == cudaErrorInvalidDeviceFunction ||
      probed == cudaErrorUnsupportedPtxVersion) {
    return absl::FailedPreconditionError(absl::StrCat(
        "cuda: device ", index, " (", info.name, ") has compute capability ", info.major, ".",
        info.minor, ", for which this program has no kernels; it has ", VERBATIM_CUDA_TARGETS));
  }
  status = StatusOf("looking for kernels", probed);
  if (!status.ok()) return status;
  info.code_tag = VERBATIM_CUDA_CODE_HASH;
  // Machine code that the driver made depends on the driver.
  if (code.binary != info.major * 10 + info.minor) {
    absl::StrAppend(&info.code_tag, "-sm", code.binary, "-driver", Version(info.driver_version));
  }
  return info;
}

absl::Status UseDevice(int index) { return StatusOf("cudaSetDevice", cudaSetDevice(index)); }

absl::StatusOr<int64_t> FreeMemoryBytes() {
  size_t free_bytes = 0, total_bytes = 0;
  absl::Status status = StatusOf("cudaMemGetInfo", cudaMemGetInfo(&free_bytes, &total_bytes));
  if (!status.ok()) return status;
  return static_cast<int64_t>(free_bytes);
}

absl::StatusOr<void*> Allocate(size_t size_bytes) {
  void* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, size_bytes);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    size_t free_bytes = 0, total_bytes = 0;
    cudaMemGetInfo(&free_bytes, &total_bytes);
    return absl::ResourceExhaustedError(absl::StrCat("cuda: cannot allocate ", size_bytes,
                                                     " bytes on the device; ", free_bytes,
                                                     " of its ", total_bytes, " are free"));
  }
  absl::Status status = StatusOf("cudaMalloc", error);
  if (!status.ok()) return status;
  return memory;
}

void Free(void* device) { cudaFree(device); }

absl::StatusOr<void*> AllocatePinned(size_t size_bytes) {
  void* memory = nullptr;
  absl::Status status = StatusOf("cudaMallocHost", cudaMallocHost(&memory, size_bytes));
  if (!status.ok()) return status;
  return memory;
}

void FreePinned(void* host) { cudaFreeHost(host); }

absl::StatusOr<Stream> CreateStream() {
  cudaStream_t stream = nullptr;
  absl::Status status =
      StatusOf("cudaStreamCreate", cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  if (!status.ok()) return status;
  return Stream{stream};
}

void DestroyStream(Stream stream) { cudaStreamDestroy(stream); }

absl::Status CopyToDevice(void* device, const void* host, size_t size_bytes, Stream stream) {
  if (size_bytes == 0) return absl::OkStatus();
  return StatusOf("copy to the device",
                  cudaMemcpyAsync(device, host, size_bytes, cudaMemcpyHostToDevice, stream));
}

absl::Status CopyToHost(void* host, const void* device, size_t size_bytes, Stream stream) {
  if (size_bytes == 0) return absl::OkStatus();
  return StatusOf("copy to the host",
                  cudaMemcpyAsync(host, device, size_bytes, cudaMemcpyDeviceToHost, stream));
}

absl::Status CopyOnDevice(void* to, const void* from, size_t size_bytes, Stream stream) {
  return StatusOf("copy on the device",
                  cudaMemcpyAsync(to, from, size_bytes, cudaMemcpyDeviceToDevice, stream));
}

absl::Status Fill(void* device, int byte, size_t size_bytes, Stream stream) {
  if (size_bytes == 0) return absl::OkStatus();
  return StatusOf("fill", cudaMemsetAsync(device, byte, size_bytes, stream));
}

absl::Status Synchronize(Stream stream) {
  return StatusOf("waiting for the device", cudaStreamSynchronize(stream));
}

absl::StatusOr<Event*> CreateEvent() {
  cudaEvent_t event = nullptr;
  absl::Status status = StatusOf("cudaEventCreate", cudaEventCreate(&event));
  if (!status.ok()) return status;
  return new Event{event};
}

void DestroyEvent(Event* event) {
  cudaEventDestroy(event->event);
  delete event;
}

absl::Status RecordEvent(Event* event, Stream stream) {
  return StatusOf("cudaEventRecord", cudaEventRecord(event->event, stream));
}

absl::Status WaitForEvent(Event* event) {
  return StatusOf("waiting for the device", cudaEventSynchronize(event->event));
}

absl::StatusOr<double> MillisecondsBetween(Event* first, Event* second) {
  float milliseconds = 0;
  absl::Status status = StatusOf("cudaEventElapsedTime",
                                 cudaEventElapsedTime(&milliseconds, first->event, second->event));
  if (!status.ok()) return status;
  return static_cast<double>(milliseconds);
}

absl::Status BeginRecording(Stream stream) {
  return StatusOf("cudaStreamBeginCapture",
                  cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
}

absl::StatusOr<Graph*> EndRecording(Stream stream) {
  cudaGraph_t recorded = nullptr;
  absl::Status status = StatusOf("cudaStreamEndCapture", cudaStreamEndCapture(stream, &recorded));
  if (!status.ok()) return status;
  cudaGraphExec_t graph = nullptr;
  status = StatusOf("cudaGraphInstantiate", cudaGraphInstantiate(&graph, recorded, 0));
  cudaGraphDestroy(recorded);
  if (!status.ok()) return status;
  // Now, so that the first launch does not have to.
  status = StatusOf("cudaGraphUpload", cudaGraphUpload(graph, stream));
  if (!status.ok()) {
    cudaGraphExecDestroy(graph);
    return status;
  }
  return new Graph{graph};
}

absl::Status LaunchGraph(Graph* graph, Stream stream) {
  return StatusOf("cudaGraphLaunch", cudaGraphLaunch(graph->graph, stream));
}

void DestroyGraph(Graph* graph) {
  cudaGraphExecDestroy(graph->graph);
  delete graph;
}

absl::Status AllowSharedBytes(const void* kernel, size_t size_bytes) {
  return StatusOf("cudaFuncSetAttribute",
                  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       static_cast<int>(size_bytes)));
}

absl::Status LaunchStatus(const char* operation, int error) {
  return StatusOf(operation, static_cast<cudaError_t>(error));
}

}  // namespace verbatim::kernels::cuda::runtime
