// A mixture-of-experts layer against the dense layer of its active width: k experts of width I
// against one of width k · I, so the same multiply-adds a token.
//
// Both are whole feed-forward layers (two products and SwiGLU, the mixture also router, routing,
// permutation and weighted sum), with the stages of the mixture timed one by one. Contestants take
// turns within every repetition; weights are read from memory as in a model, by going round copies
// that together exceed the last-level cache (--cache_mib). A figure is the median over repetitions.
//
// At few tokens the mixture has to read the weights of every expert that got one, up to num_experts
// / k times what the dense layer reads; the JSON says how much each reads, and at what rate.
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/gemm_test_matrices.h"
#include "nlohmann/json.hpp"

ABSL_FLAG(std::string, json, "", "write the results to this file");
ABSL_FLAG(std::vector<std::string>, shapes, std::vector<std::string>({"576x1536", "2048x1024"}),
          "hidden x width of an expert");
ABSL_FLAG(std::vector<std::string>, tokens, std::vector<std::string>({"1", "16", "64", "512"}),
          "tokens of a step");
ABSL_FLAG(std::vector<std::string>, formats, std::vector<std::string>({"BF16", "Q4_1"}),
          "stored formats");
ABSL_FLAG(std::vector<std::string>, modes, std::vector<std::string>({"pinned", "throughput_bf16"}),
          "portable, pinned, throughput_f32, throughput_bf16");
ABSL_FLAG(int, experts, 8, "experts");
ABSL_FLAG(int, top_k, 2, "experts of a token");
ABSL_FLAG(int, threads, 0, "threads; 0: all cores");
ABSL_FLAG(int, repetitions, 7, "interleaved repetitions");
ABSL_FLAG(double, milliseconds, 10, "least time of one measurement");
ABSL_FLAG(bool, minimum, false, "compare minima instead of medians: on a machine with other work");
ABSL_FLAG(bool, processor_time, false,
          "measure the calling thread's processor time: with --threads=1, on a busy machine");
ABSL_FLAG(int, cache_mib, 64, "copies of a layer's weights together are at least as large");

namespace verbatim {
namespace {

using kernels::ActivationType;
using kernels::Backend;
using kernels::DType;
using kernels::InfoOf;
using kernels::NumericMode;
using kernels::Policy;
using kernels::WeightMatrix;

double Now() {
  if (absl::GetFlag(FLAGS_processor_time)) {
    timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void Must(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::exit(1);
}

template <class T>
T Must(absl::StatusOr<T> value) {
  Must(value.status());
  return *std::move(value);
}

NumericMode ModeNamed(const std::string& name) {
  if (name == "portable") return {Policy::kPortable, ActivationType::kF32};
  if (name == "pinned") return {Policy::kPinned, ActivationType::kF32};
  if (name == "throughput_f32") return {Policy::kThroughput, ActivationType::kF32};
  if (name == "throughput_bf16") return {Policy::kThroughput, ActivationType::kBF16};
  std::fprintf(stderr, "--modes: %s is no mode\n", name.c_str());
  std::exit(2);
}

DType DTypeNamed(const std::string& name) {
  for (int i = 0; i <= static_cast<int>(DType::kQ6_K); ++i) {
    if (InfoOf(static_cast<DType>(i)).name == name) return static_cast<DType>(i);
  }
  std::fprintf(stderr, "--formats: no format is called %s\n", name.c_str());
  std::exit(2);
}

struct Shape {
  int64_t hidden, inner, experts, top_k;
};

enum Stage { kRouter, kRoute, kPermute, kGateUp, kSwiGlu, kDown, kCombine, kNumStages };
constexpr const char* kStageNames[] = {"router", "route", "permute", "gate_up",
                                       "swiglu", "down",  "combine"};

// Copies of both layers' weights, and what their matrices were made of.
class Weights {
 public:
  Weights(Backend& backend, const Shape& shape, DType dtype) {
    const int64_t active = shape.top_k * shape.inner;
    router_ = Load(backend, DType::kF32, shape.experts, shape.hidden);
    const size_t wanted = static_cast<size_t>(absl::GetFlag(FLAGS_cache_mib)) << 20;
    size_t size_bytes = 0;
    do {
      dense_gate_up.push_back(Load(backend, dtype, 2 * active, shape.hidden));
      dense_down.push_back(Load(backend, dtype, shape.hidden, active));
      size_bytes += dense_gate_up.back()->size_bytes() + dense_down.back()->size_bytes();
    } while (size_bytes < wanted);
    dense_bytes = size_bytes / dense_down.size();
    size_bytes = 0;
    do {
      gate_up.emplace_back();
      down.emplace_back();
      for (int64_t e = 0; e < shape.experts; ++e) {
        gate_up.back().push_back(Keep(Load(backend, dtype, 2 * shape.inner, shape.hidden, true)));
        down.back().push_back(Keep(Load(backend, dtype, shape.hidden, shape.inner, true)));
        expert_bytes = gate_up.back()[0]->size_bytes() + down.back()[0]->size_bytes();
        size_bytes += expert_bytes;
      }
    } while (size_bytes < wanted);
  }
  const WeightMatrix* router() const { return router_.get(); }

  std::vector<std::unique_ptr<WeightMatrix>> dense_gate_up, dense_down;  // by copy
  std::vector<std::vector<const WeightMatrix*>> gate_up, down;           // by copy, expert
  size_t dense_bytes = 0, expert_bytes = 0;

 private:
  std::unique_ptr<WeightMatrix> Load(Backend& backend, DType dtype, int64_t rows, int64_t cols,
                                     bool for_experts = false) {
    stored_.push_back(kernels::cpu::RandomMatrix(dtype, rows, cols, ++seed_));
    return Must(backend.LoadMatrix({stored_.back().stored}, {.for_experts = for_experts}));
  }
  const WeightMatrix* Keep(std::unique_ptr<WeightMatrix> matrix) {
    kept_.push_back(std::move(matrix));
    return kept_.back().get();
  }
  std::vector<kernels::cpu::TestMatrix> stored_;
  std::vector<std::unique_ptr<WeightMatrix>> kept_;
  std::unique_ptr<WeightMatrix> router_;
  uint32_t seed_ = 0;
};

struct Bench {
  Backend& backend;
  const Weights& weights;
  Shape shape;
  NumericMode mode;
  int64_t tokens;
  bool round;
  // Steps take turns, so that even a single token's experts change from step to step and come from
  // memory.
  static constexpr uint32_t kInputs = 32;
  std::vector<std::vector<float>> xs;
  size_t steps = 0;
  int64_t experts_used = 0, mixture_steps = 0;
  std::vector<float> y, inner, gated, outputs, logits, gates;
  std::vector<int32_t> experts, offsets, token_of, place_of;

  Bench(Backend& backend, const Weights& weights, const Shape& shape, const NumericMode& mode,
        int64_t tokens)
      : backend(backend),
        weights(weights),
        shape(shape),
        mode(mode),
        tokens(tokens),
        round(mode.policy == Policy::kThroughput && mode.activations == ActivationType::kBF16) {
    const int64_t slots = tokens * shape.top_k;
    for (uint32_t seed = 0; seed < kInputs; ++seed) {
      xs.push_back(kernels::cpu::RandomValues(tokens * shape.hidden, seed));
    }
    y.resize(xs[0].size());
    inner.resize(slots * 2 * shape.inner);
    gated.resize(slots * shape.inner);
    outputs.resize(slots * shape.hidden);
    logits.resize(tokens * shape.experts);
    gates.resize(slots);
    experts.resize(slots);
    token_of.resize(slots);
    place_of.resize(slots);
    offsets.resize(shape.experts + 1);
  }

  void Dense(size_t copy) {
    const std::vector<float>& x = xs[steps++ % kInputs];
    const int64_t active = shape.top_k * shape.inner;
    Must(backend.Gemm({.mode = mode,
                       .weight = weights.dense_gate_up[copy].get(),
                       .tokens = tokens,
                       .x = x.data(),
                       .x_stride = shape.hidden,
                       .y = inner.data(),
                       .y_stride = 2 * active,
                       .round_output = round}));
    Must(backend.SwiGlu({.mode = mode,
                         .gate_up = inner.data(),
                         .y = gated.data(),
                         .tokens = tokens,
                         .cols = active}));
    Must(backend.Gemm({.mode = mode,
                       .weight = weights.dense_down[copy].get(),
                       .tokens = tokens,
                       .x = gated.data(),
                       .x_stride = active,
                       .y = y.data(),
                       .y_stride = shape.hidden,
                       .residual = x.data(),
                       .round_output = round}));
  }

  // Adds the seconds of each stage.
  void Mixture(size_t copy, double (&seconds)[kNumStages]) {
    const std::vector<float>& x = xs[steps++ % kInputs];
    const int64_t slots = tokens * shape.top_k;
    double at = Now();
    const auto stage_ends = [&](Stage stage) {
      const double now = Now();
      seconds[stage] += now - at;
      at = now;
    };
    Must(backend.Gemm({.mode = {mode.policy, ActivationType::kF32},
                       .weight = weights.router(),
                       .tokens = tokens,
                       .x = x.data(),
                       .x_stride = shape.hidden,
                       .y = logits.data(),
                       .y_stride = shape.experts}));
    stage_ends(kRouter);
    Must(backend.MoeRoute({.mode = mode,
                           .logits = logits.data(),
                           .tokens = tokens,
                           .num_experts = shape.experts,
                           .top_k = shape.top_k,
                           .experts = experts.data(),
                           .weights = gates.data()}));
    stage_ends(kRoute);
    Must(backend.MoePermute({.experts = experts.data(),
                             .tokens = tokens,
                             .num_experts = shape.experts,
                             .top_k = shape.top_k,
                             .offsets = offsets.data(),
                             .token_of = token_of.data(),
                             .place_of = place_of.data()}));
    stage_ends(kPermute);
    Must(backend.GroupedGemm({.mode = mode,
                              .weights = weights.gate_up[copy],
                              .offsets = offsets.data(),
                              .max_places = slots,
                              .x = x.data(),
                              .x_rows = tokens,
                              .x_stride = shape.hidden,
                              .rows = token_of.data(),
                              .y = inner.data(),
                              .y_stride = 2 * shape.inner,
                              .round_output = round}));
    stage_ends(kGateUp);
    Must(backend.SwiGlu({.mode = mode,
                         .gate_up = inner.data(),
                         .y = gated.data(),
                         .tokens = slots,
                         .cols = shape.inner}));
    stage_ends(kSwiGlu);
    Must(backend.GroupedGemm({.mode = mode,
                              .weights = weights.down[copy],
                              .offsets = offsets.data(),
                              .max_places = slots,
                              .x = gated.data(),
                              .x_rows = slots,
                              .x_stride = shape.inner,
                              .y = outputs.data(),
                              .y_stride = shape.hidden,
                              .round_output = round}));
    stage_ends(kDown);
    Must(backend.MoeCombine({.mode = mode,
                             .expert_rows = outputs.data(),
                             .place_of = place_of.data(),
                             .weights = gates.data(),
                             .tokens = tokens,
                             .top_k = shape.top_k,
                             .cols = shape.hidden,
                             .residual = x.data(),
                             .y = y.data(),
                             .round_output = round}));
    stage_ends(kCombine);
    ++mixture_steps;
    for (int64_t e = 0; e < shape.experts; ++e) experts_used += offsets[e + 1] > offsets[e];
  }
};

double Typical(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return absl::GetFlag(FLAGS_minimum) ? values[0] : values[values.size() / 2];
}

nlohmann::json Measure(Bench& bench) {
  const Weights& weights = bench.weights;
  double ignored[kNumStages] = {};
  for (size_t i = 0; i < weights.dense_down.size(); ++i) bench.Dense(i);  // makes second copies
  for (size_t i = 0; i < weights.down.size(); ++i) bench.Mixture(i, ignored);
  const double least = absl::GetFlag(FLAGS_milliseconds) / 1e3;
  const auto calls_for = [&](auto run) {
    const double start = Now();
    run();
    return std::max(1, static_cast<int>(least / std::max(Now() - start, 1e-7)));
  };
  const int dense_calls = calls_for([&] { bench.Dense(0); });
  const int mixture_calls = calls_for([&] { bench.Mixture(0, ignored); });
  std::vector<double> dense, mixture, stages[kNumStages];
  size_t dense_copy = 0, copy = 0;
  for (int repetition = 0; repetition < absl::GetFlag(FLAGS_repetitions); ++repetition) {
    double start = Now();
    for (int call = 0; call < dense_calls; ++call) {
      bench.Dense(dense_copy);
      dense_copy = (dense_copy + 1) % weights.dense_down.size();
    }
    dense.push_back((Now() - start) / dense_calls);
    double seconds[kNumStages] = {};
    start = Now();
    for (int call = 0; call < mixture_calls; ++call) {
      bench.Mixture(copy, seconds);
      copy = (copy + 1) % weights.down.size();
    }
    mixture.push_back((Now() - start) / mixture_calls);
    for (int s = 0; s < kNumStages; ++s) stages[s].push_back(seconds[s] / mixture_calls);
  }
  const double active =
      static_cast<double>(bench.experts_used) / static_cast<double>(bench.mixture_steps);
  const double dense_seconds = Typical(dense), mixture_seconds = Typical(mixture);
  double overhead = 0;
  nlohmann::json stage_us, kernels = nlohmann::json::array();
  for (int s = 0; s < kNumStages; ++s) {
    const double seconds = Typical(stages[s]);
    stage_us[kStageNames[s]] = seconds * 1e6;
    if (s != kGateUp && s != kSwiGlu && s != kDown) overhead += seconds;
  }
  for (int64_t e = 0; e < bench.shape.experts; ++e) {
    const int64_t count = bench.offsets[e + 1] - bench.offsets[e];
    kernels.push_back({{"tokens", count},
                       {"kernel", bench.backend.GemmKernel(bench.mode, *weights.gate_up[0][e],
                                                           std::max<int64_t>(count, 1))}});
  }
  const double weight_bytes = active * static_cast<double>(weights.expert_bytes);
  const double flops = 6.0 * static_cast<double>(bench.tokens * bench.shape.top_k *
                                                 bench.shape.hidden * bench.shape.inner);
  return {
      {"dense_us", dense_seconds * 1e6},
      {"mixture_us", mixture_seconds * 1e6},
      {"speed_over_dense", dense_seconds / mixture_seconds},
      {"dense_gflops", flops / dense_seconds * 1e-9},
      {"mixture_gflops", flops / mixture_seconds * 1e-9},
      {"stages_us", stage_us},
      {"routing_share", overhead / mixture_seconds},
      {"experts_used", active},
      {"dense_weight_bytes", weights.dense_bytes},
      {"mixture_weight_bytes", weight_bytes},
      {"mixture_weight_gb_per_s", weight_bytes / mixture_seconds * 1e-9},
      {"dense_weight_gb_per_s", static_cast<double>(weights.dense_bytes) / dense_seconds * 1e-9},
      {"kernels", kernels}};
}

int Main() {
  auto backend = Must(kernels::cpu::CpuBackend::Create({.threads = absl::GetFlag(FLAGS_threads)}));
  std::printf("%s, %d experts, top %d\n", backend->Describe().c_str(), absl::GetFlag(FLAGS_experts),
              absl::GetFlag(FLAGS_top_k));
  std::printf("%-6s %-16s %11s %7s %10s %10s %7s %9s %8s\n", "", "", "hidden x I", "tokens",
              "dense us", "MoE us", "ratio", "routing %", "MoE GB/s");
  nlohmann::json results = nlohmann::json::array();
  for (const std::string& format : absl::GetFlag(FLAGS_formats)) {
    for (const std::string& sides_text : absl::GetFlag(FLAGS_shapes)) {
      const std::vector<std::string> sides = absl::StrSplit(sides_text, 'x');
      Shape shape{0, 0, absl::GetFlag(FLAGS_experts), absl::GetFlag(FLAGS_top_k)};
      if (sides.size() != 2 || !absl::SimpleAtoi(sides[0], &shape.hidden) ||
          !absl::SimpleAtoi(sides[1], &shape.inner)) {
        std::fprintf(stderr, "--shapes: %s is not HIDDENxINNER\n", sides_text.c_str());
        return 2;
      }
      const Weights weights(*backend, shape, DTypeNamed(format));
      for (const std::string& mode : absl::GetFlag(FLAGS_modes)) {
        for (const std::string& tokens_text : absl::GetFlag(FLAGS_tokens)) {
          int64_t tokens = 0;
          if (!absl::SimpleAtoi(tokens_text, &tokens) || tokens < 1) {
            std::fprintf(stderr, "--tokens: %s\n", tokens_text.c_str());
            return 2;
          }
          Bench bench(*backend, weights, shape, ModeNamed(mode), tokens);
          nlohmann::json result = Measure(bench);
          result["format"] = format;
          result["mode"] = mode;
          result["hidden"] = shape.hidden;
          result["inner"] = shape.inner;
          result["tokens"] = tokens;
          std::printf("%-6s %-16s %11s %7ld %10.1f %10.1f %7.2f %9.1f %8.1f\n", format.c_str(),
                      mode.c_str(), sides_text.c_str(), tokens, result["dense_us"].get<double>(),
                      result["mixture_us"].get<double>(), result["speed_over_dense"].get<double>(),
                      result["routing_share"].get<double>() * 100,
                      result["mixture_weight_gb_per_s"].get<double>());
          std::fflush(stdout);
          results.push_back(std::move(result));
        }
      }
    }
  }
  if (const std::string path = absl::GetFlag(FLAGS_json); !path.empty()) {
    const nlohmann::json document = {
        {"benchmark", "moe"},
        {"backend", backend->Describe()},
        {"experts", absl::GetFlag(FLAGS_experts)},
        {"top_k", absl::GetFlag(FLAGS_top_k)},
        {"clock", absl::GetFlag(FLAGS_processor_time) ? "processor" : "wall"},
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
