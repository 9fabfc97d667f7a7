// Opens the backend that a command's --device names.
//
// The one door to backends for commands that compute in their own process. A device that was asked
// for is opened or refused; there is no falling back to another one.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/cpu/isa.h"

namespace verbatim::kernels {

// The help of every command's --device.
inline constexpr char kDeviceHelp[] =
    "what computes: cpu, cuda (the first NVIDIA GPU) or cuda:N; a GPU that cannot be used is an "
    "error";

struct DeviceName {
  bool is_cuda = false;
  int index = 0;  // of a GPU
};

// "cpu", "cuda" or "cuda:N" with N from 0 to 1023. INVALID_ARGUMENT, naming --device, for anything
// else.
absl::StatusOr<DeviceName> ParseDevice(const std::string& text);

struct BackendOptions {
  std::string device = "cpu";
  int threads = 0;              // CPU; 0: every core this process may use
  std::optional<cpu::Isa> isa;  // CPU; unset: the widest of this machine
  // GPU: serve PINNED and THROUGHPUT, for which weights are also kept as bf16.
  bool matrix_units = true;
  // GPU: PINNED products of many tokens by wgmma where the device has it and gives the bits of
  // mma.sync with it. False: Describe contains kWithoutWgmma on a device that has it.
  bool wgmma = true;
  // GPU: launches every operation of a decode step by itself and records none (CUDA graphs).
  bool enforce_eager = false;
};
inline constexpr char kWithoutWgmma[] = "pinned products by mma.sync alone (as asked)";

// As ParseDevice. FAILED_PRECONDITION, naming --device: this program was built without CUDA; no
// driver or one that is too old; no such device, or one of an architecture without kernels.
// RESOURCE_EXHAUSTED: too little memory on the device.
absl::StatusOr<std::unique_ptr<Backend>> OpenBackend(const BackendOptions& options);

// Defined once in a program, by cuda_device.cc where it was built with CUDA, else by
// no_cuda_device.cc. Device `index`, with the GPU's options and room for working memory as the
// defaults of cuda::CudaBackendOptions give it.
absl::StatusOr<std::unique_ptr<Backend>> OpenCudaDevice(int index, const BackendOptions& options);

}  // namespace verbatim::kernels
