// Timing of decode steps by events.
#include "bench/decode_launches.h"

#include <algorithm>
#include <chrono>
#include <string>

#include "bench/must.h"
#include "kernels/cuda/cuda_backend.h"

namespace verbatim::bench {
namespace {

namespace runtime = kernels::cuda::runtime;
using nlohmann::json;

constexpr int kOccupyCopies = 64;
constexpr int kStepsInARow = 3;
constexpr int kEmptyPairs = 32;

double MedianOf(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

}  // namespace

std::unique_ptr<LaunchTimer> LaunchTimer::Open(size_t occupy_bytes) {
  std::unique_ptr<kernels::Backend> backend = Must(kernels::cuda::CudaBackend::Create({}));
  const kernels::cuda::Stream stream = dynamic_cast<kernels::cuda::CudaBackend&>(*backend).stream();
  return std::unique_ptr<LaunchTimer>(new LaunchTimer(std::move(backend), stream, occupy_bytes));
}

LaunchTimer::LaunchTimer(std::unique_ptr<kernels::Backend> cuda, kernels::cuda::Stream stream,
                         size_t occupy_bytes)
    : ForwardingBackend(std::move(cuda)), stream_(stream), occupy_bytes_(occupy_bytes) {}

LaunchTimer::~LaunchTimer() {
  for (const auto& [begin, end] : events_) {
    runtime::DestroyEvent(begin);
    runtime::DestroyEvent(end);
  }
}

absl::Status LaunchTimer::Time(absl::FunctionRef<absl::Status()> operation) {
  if (mode_ != Mode::kTimed) return operation();
  if (used_ == events_.size()) {
    Event* const begin = Must(runtime::CreateEvent());
    events_.emplace_back(begin, Must(runtime::CreateEvent()));
  }
  const auto [begin, end] = events_[used_++];
  absl::Status status = runtime::RecordEvent(begin, stream_);
  if (status.ok()) status = operation();
  if (status.ok()) status = runtime::RecordEvent(end, stream_);
  return status;
}

absl::Status LaunchTimer::Occupy() {
  if (from_ == nullptr) {
    from_ = Must(Allocate(occupy_bytes_));
    to_ = Must(Allocate(occupy_bytes_));
    Must(runtime::Fill(from_->data(), 0, occupy_bytes_, stream_));
  }
  absl::Status status;
  for (int i = 0; i < kOccupyCopies && status.ok(); ++i) {
    status = runtime::CopyOnDevice(to_->data(), from_->data(), occupy_bytes_, stream_);
  }
  return status;
}

double LaunchTimer::TakeOperationsMs() {
  const size_t operations = used_;
  for (int i = 0; i < kEmptyPairs; ++i) Must(Time([] { return absl::OkStatus(); }));
  Must(runtime::Synchronize(stream_));
  double total = 0;
  std::vector<double> empty;
  for (size_t i = 0; i < used_; ++i) {
    const double ms = Must(runtime::MillisecondsBetween(events_[i].first, events_[i].second));
    if (i < operations) {
      total += ms;
    } else {
      empty.push_back(ms);
    }
  }
  used_ = 0;
  return total - static_cast<double>(operations) * MedianOf(empty);
}

absl::Status LaunchTimer::RunDecode(const kernels::DecodeStep& step,
                                    absl::FunctionRef<absl::Status()> operations) {
  if (mode_ == Mode::kReplay) return ForwardingBackend::RunDecode(step, operations);
  kernels::DecodeStep eager = step;
  eager.replayable = false;
  return ForwardingBackend::RunDecode(eager, [&] {
    if (mode_ == Mode::kTimed) {
      if (absl::Status status = Occupy(); !status.ok()) return status;
    }
    return operations();
  });
}

absl::Status LaunchTimer::Embedding(const kernels::EmbeddingParams& params) {
  return Time([&] { return ForwardingBackend::Embedding(params); });
}
absl::Status LaunchTimer::RmsNorm(const kernels::RmsNormParams& params) {
  return Time([&] { return ForwardingBackend::RmsNorm(params); });
}
absl::Status LaunchTimer::Gemm(const kernels::GemmParams& params) {
  return Time([&] { return ForwardingBackend::Gemm(params); });
}
absl::Status LaunchTimer::Rope(const kernels::RopeParams& params) {
  return Time([&] { return ForwardingBackend::Rope(params); });
}
absl::Status LaunchTimer::KvWrite(const kernels::KvWriteParams& params) {
  return Time([&] { return ForwardingBackend::KvWrite(params); });
}
absl::Status LaunchTimer::Attention(const kernels::AttentionParams& params) {
  return Time([&] { return ForwardingBackend::Attention(params); });
}
absl::Status LaunchTimer::SwiGlu(const kernels::SwiGluParams& params) {
  return Time([&] { return ForwardingBackend::SwiGlu(params); });
}
absl::Status LaunchTimer::MoeRoute(const kernels::MoeRouteParams& params) {
  return Time([&] { return ForwardingBackend::MoeRoute(params); });
}
absl::Status LaunchTimer::MoePermute(const kernels::MoePermuteParams& params) {
  return Time([&] { return ForwardingBackend::MoePermute(params); });
}
absl::Status LaunchTimer::GroupedGemm(const kernels::GroupedGemmParams& params) {
  return Time([&] { return ForwardingBackend::GroupedGemm(params); });
}
absl::Status LaunchTimer::MoeCombine(const kernels::MoeCombineParams& params) {
  return Time([&] { return ForwardingBackend::MoeCombine(params); });
}
absl::Status LaunchTimer::GatherRows(const kernels::GatherRowsParams& params) {
  return Time([&] { return ForwardingBackend::GatherRows(params); });
}

json MeasureLaunches(LaunchTimer& timer, int repetitions, const std::function<void()>& model,
                     const std::function<void()>& sample) {
  using Mode = LaunchTimer::Mode;
  runtime::Event* const begin = Must(runtime::CreateEvent());
  runtime::Event* const end = Must(runtime::CreateEvent());
  struct Times {
    std::vector<double> step, model;
  } graph, eager;
  const auto steps = [&](Mode mode, Times& times) {
    timer.set_mode(mode);
    for (int i = 0; i < kStepsInARow; ++i) {
      const auto start = std::chrono::steady_clock::now();
      Must(runtime::RecordEvent(begin, timer.stream()));
      model();
      Must(runtime::RecordEvent(end, timer.stream()));
      sample();
      times.step.push_back(
          std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
              .count());
      times.model.push_back(Must(runtime::MillisecondsBetween(begin, end)));
    }
  };
  std::vector<double> operations;
  for (int i = 0; i < repetitions; ++i) {
    steps(Mode::kReplay, graph);
    steps(Mode::kEager, eager);
    timer.set_mode(Mode::kTimed);
    model();
    operations.push_back(timer.TakeOperationsMs());
  }
  timer.set_mode(Mode::kReplay);
  runtime::DestroyEvent(begin);
  runtime::DestroyEvent(end);
  const double operations_ms = MedianOf(operations);
  const auto figure = [&](const Times& times) {
    const double model_ms = MedianOf(times.model);
    json out = {{"step_ms", MedianOf(times.step)}, {"model_ms", model_ms}, {"gap_share", nullptr}};
    if (model_ms > 0) out["gap_share"] = 1.0 - operations_ms / model_ms;
    return out;
  };
  return {{"graph", figure(graph)}, {"eager", figure(eager)}, {"operations_ms", operations_ms}};
}

}  // namespace verbatim::bench
