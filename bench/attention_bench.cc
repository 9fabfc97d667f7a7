// Measures attention and the small operations of a step: strong against throughput kernels side by
// side, KV bytes per second against what the memory gives, and the price of waking the pool.
//
//   attention_bench [--threads=N] [--isa=scalar|avx2|avx512] [--quick] [--json=FILE]
//
// Shapes are SmolLM2-135M's: 9 query heads, 3 KV heads of 64. Layers are cycled through so that
// pages come from where a step would find them. Times are lower deciles of alternating repetitions.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/kv_cache.h"
#include "kernels/cpu/rms_norm.h"
#include "kernels/cpu/rope.h"
#include "kernels/cpu/swiglu.h"
#include "kernels/cpu/thread_pool.h"

namespace verbatim::kernels::cpu {
namespace {

constexpr int64_t kHeads = 9, kKvHeads = 3, kHeadDim = 64, kHidden = 576, kFfn = 1536;
constexpr int64_t kQkvRow = (kHeads + 2 * kKvHeads) * kHeadDim;
constexpr NumericMode kStrong{Policy::kPortable, ActivationType::kF32};
constexpr NumericMode kThroughput{Policy::kThroughput, ActivationType::kF32};
constexpr NumericMode kThroughputBf16{Policy::kThroughput, ActivationType::kBF16};

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The lower decile: what the code takes when the machine's other work leaves it alone.
double Decile(std::vector<double> x) {
  std::sort(x.begin(), x.end());
  return x[x.size() / 10];
}

// Lower decile of the seconds of each function, called alternately for about `budget` seconds.
std::vector<double> Alternate(const std::vector<std::function<void()>>& functions, double budget) {
  std::vector<std::vector<double>> times(functions.size());
  for (const auto& f : functions) f();
  const double stop = Seconds() + budget;
  do {
    for (size_t i = 0; i < functions.size(); ++i) {
      const double start = Seconds();
      functions[i]();
      times[i].push_back(Seconds() - start);
    }
  } while (Seconds() < stop || times[0].size() < 10);
  std::vector<double> seconds;
  for (const auto& t : times) seconds.push_back(Decile(t));
  return seconds;
}

void Check(const absl::Status& status) {
  if (!status.ok()) fprintf(stderr, "%s\n", status.ToString().c_str());
}

struct Options {
  int threads = 0;
  Isa isa = DetectIsa();
  bool quick = false;
  std::string json;
};

class Bench {
 public:
  explicit Bench(const Options& options)
      : budget_(options.quick ? 0.1 : 0.5),
        pool_(options.threads),
        context_{.pool = &pool_, .isa = options.isa} {}

  void Run() {
    printf("%s, %d threads\n", std::string(NameOf(context_.isa)).c_str(), pool_.threads());
    ReadBandwidth();
    printf("\n%-34s %10s %10s %8s %10s %8s\n", "attention, one layer", "strong us", "through us",
           "ratio", "KV GB/s", "of read");
    for (DType dtype : {DType::kF32, DType::kBF16}) {
      for (int64_t sequences : {1, 16, 64}) {
        for (int64_t context : {256, 1024, 4096}) Attend(dtype, sequences, context, 1);
      }
      Attend(dtype, 1, 512, 512);
      Attend(dtype, 1, 2048, 512);
      Attend(dtype, 8, 256, 64);
    }
    printf("\n%-34s %10s %10s %8s %10s\n", "small operations", "strong us", "through us", "ratio",
           "bf16 us");
    for (int64_t rows : {1, 4, 16, 64, 256}) SmallOperations(rows);
    Wake();
  }

  void WriteJson(const std::string& path) const {
    std::ofstream out(path);
    out << "{\"isa\": \"" << NameOf(context_.isa) << "\", \"threads\": " << pool_.threads()
        << ", \"read_gb_per_s\": " << read_gb_per_s_ << ", \"rows\": [\n";
    for (size_t i = 0; i < json_.size(); ++i) {
      out << "  " << json_[i] << (i + 1 < json_.size() ? ",\n" : "\n");
    }
    out << "]}\n";
  }

 private:
  // Plain summing of an array far larger than the caches.
  void ReadBandwidth() {
    std::vector<uint64_t> data(size_t{64} << 20, 1);
    std::vector<uint64_t> sums(pool_.threads() * 8);
    const double s = Alternate({[&] {
                                 pool_.Run([&](int thread) {
                                   const auto range =
                                       ThreadPool::PartOf(data.size(), 64, thread, pool_.threads());
                                   uint64_t a[8] = {};
                                   for (int64_t i = range.begin; i < range.end; i += 8) {
                                     for (int j = 0; j < 8; ++j) a[j] += data[i + j];
                                   }
                                   sums[thread * 8] = std::accumulate(a, a + 8, uint64_t{0});
                                 });
                               }},
                               1.0)[0];
    read_gb_per_s_ = data.size() * 8 / s * 1e-9;
    printf("read bandwidth %.1f GB/s (checksum %llu)\n", read_gb_per_s_,
           static_cast<unsigned long long>(sums[0]));
  }

  void Report(const std::string& name, double strong, double throughput, double bytes) {
    const double gb_per_s = bytes / strong * 1e-9;
    printf("%-34s %10.1f %10.1f %8.3f %10.1f %7.0f%%\n", name.c_str(), strong * 1e6,
           throughput * 1e6, throughput / strong, gb_per_s, 100 * gb_per_s / read_gb_per_s_);
    fflush(stdout);
    char line[256];
    snprintf(line, sizeof(line),
             "{\"name\": \"%s\", \"strong_us\": %.3f, \"throughput_us\": %.3f, "
             "\"strong_over_throughput_speed\": %.4f, \"kv_gb_per_s\": %.3f}",
             name.c_str(), strong * 1e6, throughput * 1e6, throughput / strong, gb_per_s);
    json_.push_back(line);
  }

  // `sequences` spans of `rows` rows that end at position `length`.
  void Attend(DType dtype, int64_t sequences, int64_t length, int64_t rows) {
    constexpr int64_t kPageTokens = 32;
    const int64_t element = dtype == DType::kF32 ? 4 : 2;
    const int64_t kv_bytes = sequences * length * 2 * kKvHeads * kHeadDim * element;
    const int64_t layers = std::clamp<int64_t>((int64_t{256} << 20) / kv_bytes, 1, 60);
    const int64_t table = (length + kPageTokens - 1) / kPageTokens;
    auto cache = CpuKvCache::Create({.num_layers = layers,
                                     .num_kv_heads = kKvHeads,
                                     .head_dim = kHeadDim,
                                     .page_tokens = kPageTokens,
                                     .num_pages = sequences * table,
                                     .dtype = dtype});
    Check(cache.status());
    std::vector<int32_t> pages(sequences * table);
    std::iota(pages.begin(), pages.end(), 0);
    std::shuffle(pages.begin(), pages.end(), std::mt19937(1));
    std::mt19937 random(2);
    std::normal_distribution<float> normal;
    std::vector<float> qkv(std::max(sequences * rows, length) * kQkvRow);
    for (float& x : qkv) x = normal(random);
    std::vector<SequenceSpan> fill, spans;
    for (int64_t s = 0; s < sequences; ++s) {
      SequenceSpan span{.num_rows = static_cast<int32_t>(length),
                        .pages = pages.data() + s * table,
                        .num_pages = static_cast<int32_t>(table)};
      fill.push_back(span);
      span.first_row = static_cast<int32_t>(s * rows);
      span.num_rows = static_cast<int32_t>(rows);
      span.first_position = static_cast<int32_t>(length - rows);
      spans.push_back(span);
    }
    for (int64_t layer = 0; layer < layers; ++layer) {
      Check(KvWrite(context_, {.cache = cache->get(),
                               .layer = layer,
                               .k = qkv.data() + kHeads * kHeadDim,
                               .v = qkv.data() + (kHeads + kKvHeads) * kHeadDim,
                               .row_stride = kQkvRow,
                               .spans = fill}));
    }
    std::vector<float> y(sequences * rows * kHidden);
    int64_t layer = 0;
    const auto attend = [&](NumericMode mode) {
      layer = (layer + 1) % layers;
      Check(Attention(context_, {.mode = mode,
                                 .cache = cache->get(),
                                 .layer = layer,
                                 .q = qkv.data(),
                                 .q_stride = kQkvRow,
                                 .y = y.data(),
                                 .y_stride = kHidden,
                                 .num_heads = kHeads,
                                 .scale = 0.125f,
                                 .spans = spans}));
    };
    const std::vector<double> s =
        Alternate({[&] { attend(kStrong); }, [&] { attend(kThroughput); }}, budget_);
    Report(std::string(dtype == DType::kF32 ? "f32 " : "bf16 ") +
               (rows == 1 ? "decode " : "prefill ") + std::to_string(sequences) + " x " +
               std::to_string(rows) + " rows, " + std::to_string(length) + " positions",
           s[0], s[1], kv_bytes);
  }

  void ReportSmall(const std::string& name, const std::function<void(NumericMode)>& run) {
    const std::vector<double> s =
        Alternate({[&] { run(kStrong); }, [&] { run(kThroughput); }, [&] { run(kThroughputBf16); }},
                  budget_ / 5);
    printf("%-34s %10.2f %10.2f %8.3f %10.2f\n", name.c_str(), s[0] * 1e6, s[1] * 1e6, s[1] / s[0],
           s[2] * 1e6);
    char line[256];
    snprintf(line, sizeof(line),
             "{\"name\": \"%s\", \"strong_us\": %.3f, \"throughput_us\": %.3f, "
             "\"throughput_bf16_us\": %.3f}",
             name.c_str(), s[0] * 1e6, s[1] * 1e6, s[2] * 1e6);
    json_.push_back(line);
  }

  void SmallOperations(int64_t rows) {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    std::vector<float> x(rows * 2 * kFfn), y(rows * kFfn), weight(kHidden, 1.0f);
    for (float& v : x) v = normal(random);
    std::vector<float> table(1024 * kHeadDim / 2, 0.7f);
    std::vector<int32_t> positions(rows);
    for (int64_t i = 0; i < rows; ++i) positions[i] = static_cast<int32_t>(random() % 1024);
    const std::string suffix = " " + std::to_string(rows) + " rows";
    ReportSmall("rms_norm" + suffix, [&](NumericMode mode) {
      Check(RmsNorm(context_, {.mode = mode,
                               .x = x.data(),
                               .x_stride = kHidden,
                               .y = y.data(),
                               .y_stride = kHidden,
                               .weight = weight.data(),
                               .rows = rows,
                               .cols = kHidden,
                               .eps = 1e-5f}));
    });
    ReportSmall("swiglu" + suffix, [&](NumericMode mode) {
      Check(
          SwiGlu(context_,
                 {.mode = mode, .gate_up = x.data(), .y = y.data(), .tokens = rows, .cols = kFfn}));
    });
    for (bool interleaved : {false, true}) {
      std::vector<float> qkv(rows * kQkvRow);
      for (float& v : qkv) v = normal(random);
      ReportSmall((interleaved ? "rope pairs" : "rope halves") + suffix, [&](NumericMode mode) {
        Check(Rope(context_, {.mode = mode,
                              .qkv = qkv.data(),
                              .row_stride = kQkvRow,
                              .tokens = rows,
                              .num_heads = kHeads,
                              .num_kv_heads = kKvHeads,
                              .head_dim = kHeadDim,
                              .interleaved = interleaved,
                              .positions = positions.data(),
                              .cos_table = table.data(),
                              .sin_table = table.data()}));
      });
    }
    // Writing one new position for each of `rows` sequences.
    auto cache = CpuKvCache::Create({.num_layers = 30,
                                     .num_kv_heads = kKvHeads,
                                     .head_dim = kHeadDim,
                                     .page_tokens = 32,
                                     .num_pages = rows});
    std::vector<int32_t> pages(rows);
    std::iota(pages.begin(), pages.end(), 0);
    std::vector<SequenceSpan> spans;
    for (int64_t i = 0; i < rows; ++i) {
      spans.push_back({.first_row = static_cast<int32_t>(i),
                       .num_rows = 1,
                       .first_position = static_cast<int32_t>(i % 32),
                       .pages = pages.data() + i,
                       .num_pages = 1});
    }
    int64_t layer = 0;
    ReportSmall("kv_write" + suffix, [&](NumericMode mode) {
      layer = (layer + 1) % 30;
      Check(KvWrite(context_, {.mode = mode,
                               .cache = cache->get(),
                               .layer = layer,
                               .k = x.data(),
                               .v = x.data() + kKvHeads * kHeadDim,
                               .row_stride = 2 * kKvHeads * kHeadDim,
                               .spans = spans}));
    });
  }

  void Wake() {
    const double spinning = Alternate({[&] { pool_.Run([](int) {}); }}, 0.1)[0];
    printf("\nwaking a spinning pool: %.2f us\n", spinning * 1e6);
    json_.push_back("{\"name\": \"wake spinning pool\", \"us\": " + std::to_string(spinning * 1e6) +
                    "}");
  }

  double budget_;
  ThreadPool pool_;
  CpuContext context_;
  double read_gb_per_s_ = 0;
  std::vector<std::string> json_;
};

int Main(int argc, char** argv) {
  Options options;
  options.threads = static_cast<int>(std::thread::hardware_concurrency());
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    if (arg.rfind("--threads=", 0) == 0) {
      options.threads = std::max(1, atoi(arg.c_str() + 10));
    } else if (arg.rfind("--json=", 0) == 0) {
      options.json = arg.substr(7);
    } else if (arg == "--quick") {
      options.quick = true;
    } else if (arg == "--isa=scalar") {
      options.isa = Isa::kScalar;
    } else if (arg == "--isa=avx2" && DetectIsa() >= Isa::kAvx2) {
      options.isa = Isa::kAvx2;
    } else if (arg == "--isa=avx512" && DetectIsa() >= Isa::kAvx512) {
      options.isa = Isa::kAvx512;
    } else {
      fprintf(stderr, "unknown or unsupported option %s\n", argv[i]);
      return 2;
    }
  }
  Bench bench(options);
  bench.Run();
  if (!options.json.empty()) bench.WriteJson(options.json);
  return 0;
}

}  // namespace
}  // namespace verbatim::kernels::cpu

int main(int argc, char** argv) { return verbatim::kernels::cpu::Main(argc, argv); }
