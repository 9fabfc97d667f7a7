// CPU clocks of the process and of single threads.
#include "server/cpu_time.h"

#include <time.h>

#include <charconv>
#include <filesystem>
#include <string>
#include <system_error>

namespace verbatim::server {
namespace {

double SecondsOf(clockid_t clock) {
  timespec now;
  if (clock_gettime(clock, &now) != 0) return 0;  // the thread has ended
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// The kernel's encoding of "CPU clock of thread tid" (linux/posix-timers.h: inverted id, then
// CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED), which pthread_getcpuclockid also returns.
clockid_t ClockOfThread(pid_t tid) {
  return static_cast<clockid_t>((~static_cast<unsigned>(tid) << 3) | 6u);
}

}  // namespace

FrontEndCpuTime::FrontEndCpuTime() {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task", error)) {
    const std::string name = entry.path().filename().string();
    pid_t tid = 0;
    if (std::from_chars(name.data(), name.data() + name.size(), tid).ec == std::errc()) {
      others_.push_back(tid);
    }
  }
  process_at_start_ = SecondsOf(CLOCK_PROCESS_CPUTIME_ID);
  others_at_start_ = OfOthers();
}

double FrontEndCpuTime::Seconds() const {
  const double process = SecondsOf(CLOCK_PROCESS_CPUTIME_ID) - process_at_start_;
  const double rest = process - (OfOthers() - others_at_start_);
  return rest > 0 ? rest : 0;
}

double FrontEndCpuTime::OfOthers() const {
  double sum = 0;
  for (pid_t tid : others_) sum += SecondsOf(ClockOfThread(tid));
  return sum;
}

}  // namespace verbatim::server
