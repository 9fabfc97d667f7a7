// Reading of device names, and the choice between the backends.
#include "kernels/device/open_backend.h"

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "kernels/cpu/cpu_backend.h"

namespace verbatim::kernels {

absl::StatusOr<DeviceName> ParseDevice(const std::string& text) {
  if (text == "cpu") return DeviceName{};
  if (text == "cuda") return DeviceName{.is_cuda = true};
  constexpr char kPrefix[] = "cuda:";
  const std::string number = absl::StartsWith(text, kPrefix) ? text.substr(5) : "";
  int index = 0;
  if (number.empty() || number.find_first_not_of("0123456789") != std::string::npos ||
      !absl::SimpleAtoi(number, &index) || index > 1023) {
    return absl::InvalidArgumentError(
        absl::StrCat("--device: '", text, "' is not cpu, cuda or cuda:N with N from 0 to 1023"));
  }
  return DeviceName{.is_cuda = true, .index = index};
}

absl::StatusOr<std::unique_ptr<Backend>> OpenBackend(const BackendOptions& options) {
  const absl::StatusOr<DeviceName> device = ParseDevice(options.device);
  if (!device.ok()) return device.status();
  if (!device->is_cuda) {
    return cpu::CpuBackend::Create({.threads = options.threads, .isa = options.isa});
  }
  absl::StatusOr<std::unique_ptr<Backend>> backend = OpenCudaDevice(device->index, options);
  if (backend.ok()) return backend;
  return absl::Status(
      backend.status().code(),
      absl::StrCat("--device ", options.device, ": ", std::string(backend.status().message())));
}

}  // namespace verbatim::kernels
