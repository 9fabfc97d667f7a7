// Matrix products side by side in one run: the tree of the strong policies, oneDNN on prepacked
// fp32 and bf16 weights, and the THROUGHPUT path, on the demo model's shapes and 4096 × 4096.
//
// Weights are read from memory as in a model: each contestant goes round copies of its matrix that
// together exceed the last-level cache (--cache_mib). Contestants take turns within every
// repetition, so that a disturbance hits all of them; a figure is the median over repetitions, with
// the spread between the quartiles.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "bench/gemm_machine.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/onednn_gemm.h"
#include "kernels/cpu/packed_matrix.h"
#include "nlohmann/json.hpp"

ABSL_FLAG(std::string, json, "", "write the results to this file");
ABSL_FLAG(std::vector<std::string>, shapes,
          std::vector<std::string>({"960x576", "576x576", "3072x576", "576x1536", "49152x576",
                                    "4096x4096"}),
          "outputs x inputs");
ABSL_FLAG(std::vector<std::string>, tokens, std::vector<std::string>({"1", "4", "16", "64", "256"}),
          "rows of x");
ABSL_FLAG(std::vector<std::string>, formats,
          std::vector<std::string>({"Q4_1", "Q8_0", "BF16", "F32"}), "stored formats");
ABSL_FLAG(std::vector<std::string>, threads, {}, "thread counts; default: 1 and all cores");
ABSL_FLAG(int, repetitions, 7, "interleaved repetitions");
ABSL_FLAG(double, milliseconds, 4, "least time of one measurement");
ABSL_FLAG(int, cache_mib, 64, "copies of a matrix together are at least as large");
ABSL_FLAG(bool, minimum, false, "compare minima instead of medians: on a machine with other work");
ABSL_FLAG(std::string, isa, "", "avx512, avx2 or scalar; default: the widest");

namespace verbatim {
namespace {

using kernels::ActivationType;
using kernels::DType;
using kernels::DTypeInfo;
using kernels::GemmParams;
using kernels::InfoOf;
using kernels::Policy;
using kernels::StoredMatrix;
using kernels::cpu::CpuContext;
using kernels::cpu::GemmOptions;
using kernels::cpu::Isa;
using kernels::cpu::OnednnWeights;
using kernels::cpu::PackedMatrix;
using kernels::cpu::ThreadPool;

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

DType DTypeNamed(const std::string& name) {
  for (int i = 0; i <= static_cast<int>(DType::kQ6_K); ++i) {
    if (InfoOf(static_cast<DType>(i)).name == name) return static_cast<DType>(i);
  }
  std::fprintf(stderr, "no format is called %s\n", name.c_str());
  std::exit(2);
}

// Random bits with binary16 scales of about 2^-7; plain floats of about 1.
std::vector<std::byte> RandomBytes(const StoredMatrix& shape) {
  std::mt19937 rng(1);
  std::vector<std::byte> bytes(static_cast<size_t>(shape.size_bytes()));
  const DTypeInfo info = InfoOf(shape.dtype);
  for (size_t at = 0; at < bytes.size(); at += static_cast<size_t>(info.block_bytes)) {
    for (int64_t i = 0; i < info.block_bytes; ++i) bytes[at + i] = static_cast<std::byte>(rng());
    std::byte* block = &bytes[at];
    const uint16_t half = static_cast<uint16_t>(8 << 10 | (rng() & 0x83ff));
    const uint16_t bf16 = static_cast<uint16_t>(126 << 7 | (rng() & 0x807f));
    const float value = static_cast<float>(static_cast<int32_t>(rng())) * 0x1p-31f;
    switch (shape.dtype) {
      case DType::kF32:
        std::memcpy(block, &value, 4);
        break;
      case DType::kBF16:
        std::memcpy(block, &bf16, 2);
        break;
      case DType::kF16:
        std::memcpy(block, &half, 2);
        break;
      case DType::kQ6_K:
        std::memcpy(block + 208, &half, 2);
        break;
      default:
        std::memcpy(block, &half, 2);
        if (info.name != "Q8_0") std::memcpy(block + 2, &half, 2);
    }
  }
  return bytes;
}

struct Contestant {
  std::string name;
  std::function<void(int copy)> run;
  int copies = 1;
  int* next_copy = nullptr;  // shared by all that read the same copies: the next is the coldest
  std::vector<double> seconds;
};

double Quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(std::lround(q * static_cast<double>(values.size() - 1)))];
}

void MeasureAll(std::vector<Contestant>& contestants) {
  const double least = absl::GetFlag(FLAGS_milliseconds) / 1e3;
  std::vector<int> calls;
  for (Contestant& c : contestants) {
    for (int copy = 0; copy < c.copies; ++copy) c.run(copy);  // makes primitives and second copies
    const double start = Now();
    c.run(c.copies - 1);
    calls.push_back(std::max(1, static_cast<int>(least / std::max(Now() - start, 1e-7))));
  }
  for (int repetition = 0; repetition < absl::GetFlag(FLAGS_repetitions); ++repetition) {
    for (size_t i = 0; i < contestants.size(); ++i) {
      Contestant& c = contestants[i];
      const double start = Now();
      for (int call = 0; call < calls[i]; ++call) {
        c.run(*c.next_copy);
        *c.next_copy = (*c.next_copy + 1) % c.copies;
      }
      c.seconds.push_back((Now() - start) / calls[i]);
    }
  }
}

int CopiesFor(size_t size_bytes) {
  const size_t wanted = static_cast<size_t>(absl::GetFlag(FLAGS_cache_mib)) << 20;
  return static_cast<int>(std::clamp<size_t>((wanted + size_bytes - 1) / size_bytes, 1, 1024));
}

// All contestants on one shape with one pool.
void RunShape(const CpuContext& context, int64_t rows, int64_t cols, const bench::Machine& machine,
              nlohmann::json& results) {
  const int threads = context.pool->threads();
  struct Format {
    std::string name;
    std::vector<std::byte> bytes;
    std::vector<std::unique_ptr<PackedMatrix>> copies;
  };
  std::vector<Format> formats;
  for (const std::string& name : absl::GetFlag(FLAGS_formats)) {
    Format format;
    format.name = name;
    StoredMatrix stored{DTypeNamed(name), rows, cols, nullptr};
    if (cols % InfoOf(stored.dtype).block_elements != 0) continue;
    format.bytes = RandomBytes(stored);
    stored.data = format.bytes.data();
    const int copies = CopiesFor(format.bytes.size());
    for (int i = 0; i < copies; ++i) {
      auto packed = PackMatrix(context, {stored}, {}, GemmOptions{});
      if (!packed.ok()) {
        std::fprintf(stderr, "%s\n", packed.status().ToString().c_str());
        std::exit(1);
      }
      format.copies.push_back(*std::move(packed));
    }
    formats.push_back(std::move(format));
  }
  std::vector<std::unique_ptr<OnednnWeights>> library[2];
  for (const ActivationType type : {ActivationType::kF32, ActivationType::kBF16}) {
    auto& copies = library[static_cast<int>(type)];
    do {
      auto weights = OnednnWeights::Create(context, {formats[0].copies[0]->parts()[0]}, type);
      if (!weights.ok()) break;
      copies.push_back(*std::move(weights));
    } while (copies.size() < static_cast<size_t>(CopiesFor(copies[0]->size_bytes())));
  }

  for (const std::string& tokens_text : absl::GetFlag(FLAGS_tokens)) {
    int64_t tokens = 0;
    if (!absl::SimpleAtoi(tokens_text, &tokens)) continue;
    std::vector<float> x(static_cast<size_t>(tokens * cols)), y(static_cast<size_t>(tokens * rows));
    std::mt19937 rng(2);
    for (float& v : x) {  // values that bf16 can hold, so that every contestant does the same sum
      uint32_t bits = (rng() & 0x807f0000u) | 126u << 23;
      std::memcpy(&v, &bits, 4);
    }
    GemmParams params;
    params.tokens = tokens;
    params.x = x.data();
    params.x_stride = cols;
    params.y = y.data();
    params.y_stride = rows;
    std::vector<Contestant> contestants;
    std::map<const void*, int> next_copies;
    const auto add = [&](const std::string& name, const auto& copies, auto run) {
      contestants.push_back({name, run, static_cast<int>(copies.size()), &next_copies[&copies]});
    };
    for (const ActivationType type : {ActivationType::kF32, ActivationType::kBF16}) {
      auto& copies = library[static_cast<int>(type)];
      if (copies.empty()) continue;
      add(type == ActivationType::kF32 ? "onednn f32" : "onednn bf16", copies,
          [&context, &copies, params](int copy) {
            if (!copies[copy]->Run(context, params).ok()) std::abort();
          });
    }
    for (Format& format : formats) {
      const auto gemm = [&](const std::string& name, Policy policy, ActivationType type) {
        GemmParams with_mode = params;
        with_mode.mode = {policy, type};
        add(name + format.name, format.copies, [&context, &format, with_mode](int copy) {
          GemmParams call = with_mode;
          call.weight = format.copies[copy].get();
          if (!Gemm(context, call).ok()) std::abort();
        });
      };
      gemm("tree ", Policy::kPortable, ActivationType::kF32);
      gemm("pinned ", Policy::kPinned, ActivationType::kF32);
      gemm("throughput f32 ", Policy::kThroughput, ActivationType::kF32);
      gemm("throughput bf16 ", Policy::kThroughput, ActivationType::kBF16);
    }
    MeasureAll(contestants);

    const double flops =
        2.0 * static_cast<double>(tokens) * static_cast<double>(rows) * static_cast<double>(cols);
    const double peak = machine.fma_gflops * threads;
    double library_seconds = 0;
    std::printf("\n%ld x %ld, M = %ld, %d thread%s\n", rows, cols, tokens, threads,
                threads == 1 ? "" : "s");
    std::printf("  %-22s %10s %7s %9s %7s %8s %9s\n", "", "us", "+-%", "GFLOP/s", "% peak", "GB/s",
                "vs onednn f32");
    for (const Contestant& c : contestants) {
      const double seconds = Quantile(c.seconds, absl::GetFlag(FLAGS_minimum) ? 0.0 : 0.5);
      const double spread = (Quantile(c.seconds, 0.75) - Quantile(c.seconds, 0.25)) / seconds;
      if (c.name == "onednn f32") library_seconds = seconds;
      double weight_bytes = 0;
      for (const Format& format : formats) {
        if (absl::EndsWith(c.name, " " + format.name)) {
          weight_bytes = static_cast<double>(format.bytes.size());
        }
      }
      if (c.name == "onednn f32") weight_bytes = 4.0 * static_cast<double>(rows * cols);
      if (c.name == "onednn bf16") weight_bytes = 2.0 * static_cast<double>(rows * cols);
      std::printf("  %-22s %10.1f %7.1f %9.1f %7.1f %8.1f %9.2f\n", c.name.c_str(), seconds * 1e6,
                  spread * 100, flops / seconds * 1e-9, flops / seconds * 1e-7 / peak,
                  weight_bytes / seconds * 1e-9,
                  library_seconds > 0 ? library_seconds / seconds : 0.0);
      results.push_back(
          {{"name", c.name},
           {"rows", rows},
           {"cols", cols},
           {"tokens", tokens},
           {"threads", threads},
           {"us", seconds * 1e6},
           {"min_us", Quantile(c.seconds, 0) * 1e6},
           {"spread", spread},
           {"gflops", flops / seconds * 1e-9},
           {"fraction_of_fma_peak", flops / seconds * 1e-9 / peak},
           {"weight_gb_per_s", weight_bytes / seconds * 1e-9},
           {"speedup_over_onednn_f32", library_seconds > 0 ? library_seconds / seconds : 0.0}});
    }
    std::fflush(stdout);
  }
}

int Main() {
  Isa isa = kernels::cpu::DetectIsa();
  for (const Isa candidate : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
    if (absl::GetFlag(FLAGS_isa) == kernels::cpu::NameOf(candidate)) isa = candidate;
  }
  std::vector<int> thread_counts;
  for (const std::string& text : absl::GetFlag(FLAGS_threads)) {
    int threads = 0;
    if (absl::SimpleAtoi(text, &threads)) thread_counts.push_back(threads);
  }
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  if (thread_counts.empty()) {
    thread_counts = {1};
    if (cores > 1) thread_counts.push_back(cores);
  }
  const bench::Machine machine = bench::MeasureMachine(cores);
  std::printf(
      "one core: %.1f GFLOP/s fp32 FMA; read bandwidth: %.1f GB/s on one, %.1f GB/s on %d\n",
      machine.fma_gflops, machine.read_gb_per_s_one, machine.read_gb_per_s_all, cores);
  nlohmann::json results = nlohmann::json::array();
  for (const int threads : thread_counts) {
    ThreadPool pool(threads);
    const CpuContext context{&pool, isa};
    for (const std::string& shape : absl::GetFlag(FLAGS_shapes)) {
      const std::vector<std::string> sides = absl::StrSplit(shape, 'x');
      int64_t rows = 0, cols = 0;
      if (sides.size() != 2 || !absl::SimpleAtoi(sides[0], &rows) ||
          !absl::SimpleAtoi(sides[1], &cols)) {
        std::fprintf(stderr, "--shapes: %s is not ROWSxCOLS\n", shape.c_str());
        return 2;
      }
      RunShape(context, rows, cols, machine, results);
    }
  }
  if (const std::string path = absl::GetFlag(FLAGS_json); !path.empty()) {
    const nlohmann::json document = {
        {"benchmark", "gemm"},
        {"isa", std::string(kernels::cpu::NameOf(isa))},
        {"cores", cores},
        {"fma_gflops_per_core", machine.fma_gflops},
        {"read_gb_per_s_one_core", machine.read_gb_per_s_one},
        {"read_gb_per_s_all_cores", machine.read_gb_per_s_all},
        {"statistic", absl::GetFlag(FLAGS_minimum) ? "minimum" : "median"},
        {"cache_mib", absl::GetFlag(FLAGS_cache_mib)},
        {"results", results}};
    std::ofstream file(path);
    file << document.dump(1) << "\n";
    if (!file.flush()) {
      std::fprintf(stderr, "--json: cannot write %s\n", path.c_str());
      return 1;
    }
  }
  return 0;
}

}  // namespace
}  // namespace verbatim

int main(int argc, char** argv) {
  absl::ParseCommandLine(argc, argv);
  return verbatim::Main();
}
