// The place that the emulator's Launch reports faults to, where there is no runtime.
#include "simt/kernel_runs.h"

#include "simt/device.h"

namespace verbatim::kernels::cuda {

std::string& LastFault() {
  static std::string fault;
  return fault;
}
size_t AllowedSharedBytes(const void*) { return size_t{227} << 10; }
void SetLaunchFault(const std::string& message) { LastFault() = message; }

}  // namespace verbatim::kernels::cuda
