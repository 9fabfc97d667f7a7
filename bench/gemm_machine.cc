// Measures FMA peak and read bandwidth with loops of nothing else.
#include "bench/gemm_machine.h"

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#include "kernels/cpu/isa.h"

namespace verbatim::bench {
namespace {

using kernels::cpu::Isa;

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

constexpr int64_t kIterations = 4'000'000;
constexpr int kChains = 12;

// Twelve independent chains cover a latency of up to six cycles on two units.
#define VERBATIM_TWELVE(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

double FmaFlops(Isa isa) {
  int64_t count = kIterations;
  if (isa == Isa::kAvx512) {
#define VERBATIM_FMA(i) "vfmadd231ps %%zmm14, %%zmm15, %%zmm" #i "\n"
    __asm__ volatile("1:\n" VERBATIM_TWELVE(VERBATIM_FMA) "dec %0\n jnz 1b\n"
                     : "+r"(count)::"xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7",
                       "xmm8", "xmm9", "xmm10", "xmm11", "cc");
#undef VERBATIM_FMA
    return 32.0 * kChains * kIterations;
  }
#define VERBATIM_FMA(i) "vfmadd231ps %%ymm14, %%ymm15, %%ymm" #i "\n"
  __asm__ volatile("1:\n" VERBATIM_TWELVE(VERBATIM_FMA) "dec %0\n jnz 1b\n"
                   : "+r"(count)::"xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7",
                     "xmm8", "xmm9", "xmm10", "xmm11", "cc");
#undef VERBATIM_FMA
  return 16.0 * kChains * kIterations;
}

double ReadGbPerS(int threads) {
  constexpr size_t kWords = size_t{32} << 20;  // 256 MiB a thread
  std::vector<std::vector<uint64_t>> memory(threads, std::vector<uint64_t>(kWords, 1));
  double best = 0;
  for (int repetition = 0; repetition < 5; ++repetition) {
    std::atomic<uint64_t> sink{0};
    std::vector<std::thread> team;
    const double start = Now();
    for (int t = 0; t < threads; ++t) {
      team.emplace_back([&, t] {
        __m128i sums[8] = {};
        const uint64_t* words = memory[t].data();
        for (size_t i = 0; i < kWords; i += 16) {
          for (int j = 0; j < 8; ++j) {
            sums[j] = _mm_add_epi64(
                sums[j], _mm_loadu_si128(reinterpret_cast<const __m128i*>(words + i + 2 * j)));
          }
        }
        uint64_t total = 0;
        for (const __m128i sum : sums) total += static_cast<uint64_t>(_mm_cvtsi128_si64(sum));
        sink += total;
      });
    }
    for (std::thread& thread : team) thread.join();
    best = std::max(best, static_cast<double>(threads * kWords * 8) / (Now() - start) * 1e-9);
  }
  return best;
}

}  // namespace

Machine MeasureMachine(int threads) {
  Machine machine;
  const Isa isa = kernels::cpu::DetectIsa();
  for (int repetition = 0; repetition < 10 && isa != Isa::kScalar; ++repetition) {
    const double start = Now();
    const double flops = FmaFlops(isa);
    machine.fma_gflops = std::max(machine.fma_gflops, flops / (Now() - start) * 1e-9);
  }
  machine.read_gb_per_s_one = ReadGbPerS(1);
  machine.read_gb_per_s_all = ReadGbPerS(threads);
  return machine;
}

}  // namespace verbatim::bench
