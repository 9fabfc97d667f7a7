// Tests of kernels on the emulator: forward, reversed and two seeded orders.
#include "kernels/cuda/test_device.h"
#include "simt/emulator.h"

namespace verbatim::kernels::cuda::test_device {

int Schedules() { return 4; }

std::string UseSchedule(int schedule) {
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

}  // namespace verbatim::kernels::cuda::test_device
