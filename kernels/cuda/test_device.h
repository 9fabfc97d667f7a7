// What tests of kernels ask of the place they run on: a GPU, or the emulator (tests/simt).
#pragma once

#include <cstdint>
#include <string>

namespace verbatim::kernels::cuda::test_device {

// Orders in which blocks and threads can be made to run; 1 on a GPU, which has its own.
int Schedules();
// Uses schedule 0 … Schedules() - 1 from now on; its name.
std::string UseSchedule(int schedule);
// Whether kernels run emulated, so that shapes should be small.
bool Emulated();
// Whether a sanitizer slows everything down: fewer shapes will do.
bool Slow();
// Copies to the host and waits for the stream so far; 0 on a GPU, where nobody counts.
struct Transfers {
  int64_t to_host = 0, waits = 0;
};
Transfers TransfersSoFar();

}  // namespace verbatim::kernels::cuda::test_device
