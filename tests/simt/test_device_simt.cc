// Tests of kernels on the emulator: forward, reversed and two seeded orders.
#include "kernels/cuda/test_device.h"
#include "simt/emulator.h"
#include "simt/faults.h"

namespace verbatim::kernels::cuda::test_device {

int Schedules() { return Slow() ? 2 : 4; }

std::string UseSchedule(int schedule) {
  if (Slow() && schedule > 0) schedule = 2;
  switch (schedule) {
    case 0:
      simt::SetSchedule({simt::Order::kForward});
      return "forward";
    case 1:
      simt::SetSchedule({simt::Order::kReversed});
      return "reversed";
    default:
      simt::SetSchedule({simt::Order::kSeeded, static_cast<uint64_t>(schedule)});
      return "seeded " + std::to_string(schedule);
  }
}

bool Emulated() { return true; }

bool Slow() {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  return true;
#else
  return false;
#endif
}

Transfers TransfersSoFar() {
  const simt_faults::Transfers all = simt_faults::TransfersSoFar();
  return {.to_host = all.to_host, .waits = all.waits};
}

}  // namespace verbatim::kernels::cuda::test_device
