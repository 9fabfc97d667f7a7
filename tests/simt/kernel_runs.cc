// The place that the emulator's Launch reports faults to, where there is no runtime.
#include "simt/kernel_runs.h"

#include "simt/device.h"

namespace verbatim::kernels::cuda {

std::string& LastFault() {
  static std::string fault;
  return fault;
}
void SetLaunchFault(const std::string& message) { LastFault() = message; }

}  // namespace verbatim::kernels::cuda
