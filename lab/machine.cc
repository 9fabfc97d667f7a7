// What /proc and uname say, and a read-bandwidth measurement.
#include "lab/machine.h"

#include <sched.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <fstream>
#include <numeric>
#include <sstream>
#include <thread>
#include <vector>

namespace verbatim::lab {
namespace {

std::string CpuInfo(const std::string& key) {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(':');
    if (line.rfind(key, 0) == 0 && colon != std::string::npos) {
      return colon + 2 <= line.size() ? line.substr(colon + 2) : "";
    }
  }
  return "";
}

std::string WidestIsa(const std::string& flags) {
  std::istringstream words(flags);
  bool avx2 = false, avx512 = false;
  for (std::string word; words >> word;) {
    avx2 |= word == "avx2";
    avx512 |= word == "avx512bw";
  }
  return avx512 ? "avx512" : avx2 ? "avx2" : "scalar";
}

int UsableCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return CPU_COUNT(&set);
}

}  // namespace

Machine DescribeMachine() {
  Machine machine;
  machine.cpu = CpuInfo("model name");
  machine.isa = WidestIsa(CpuInfo("flags"));
  machine.cores = UsableCores();
  machine.memory_gib = static_cast<double>(sysconf(_SC_PHYS_PAGES)) *
                       static_cast<double>(sysconf(_SC_PAGESIZE)) / (1 << 30);
  utsname name = {};
  if (uname(&name) == 0) machine.system = std::string(name.sysname) + " " + name.release;
  return machine;
}

double MeasureReadBandwidth(int threads) {
  constexpr size_t kBytes = size_t{256} << 20;
  constexpr int kPasses = 8;
  std::vector<uint64_t> memory(kBytes / sizeof(uint64_t), 1);
  std::atomic<uint64_t> sink{0};
  double best = 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    std::vector<std::thread> readers;
    const size_t share = memory.size() / static_cast<size_t>(threads);
    for (int t = 0; t < threads; ++t) {
      const uint64_t* from = memory.data() + share * static_cast<size_t>(t);
      readers.emplace_back([from, share, &sink] {
        // Eight sums: one chain of additions would be slower than the memory.
        uint64_t sums[8] = {};
        for (size_t i = 0; i + 8 <= share; i += 8) {
          for (size_t j = 0; j < 8; ++j) sums[j] += from[i + j];
        }
        sink += std::accumulate(std::begin(sums), std::end(sums), uint64_t{0});
      });
    }
    for (std::thread& reader : readers) reader.join();
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    best = std::max(best, static_cast<double>(share * static_cast<size_t>(threads) * 8) / seconds);
  }
  return sink.load() == 0 ? 0 : best / 1e9;
}

}  // namespace verbatim::lab
