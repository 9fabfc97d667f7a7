// What launching costs in a decode step: the same step as a graph and with every operation launched
// by itself, against the time that the operations take.
#pragma once

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/cuda/runtime.h"
#include "kernels/cuda/stream.h"
#include "kernels/forwarding_backend.h"
#include "nlohmann/json.hpp"

namespace verbatim::bench {

// A CUDA backend whose decode steps are replayed, launched operation by operation, or launched so
// with events around every operation.
class LaunchTimer final : public kernels::ForwardingBackend {
 public:
  enum class Mode { kReplay, kEager, kTimed };

  // The first GPU; ends the process with a message if it cannot be used. `occupy_bytes`: of a copy
  // that keeps the device busy for about 0.1 ms (256 MiB on an H200).
  static std::unique_ptr<LaunchTimer> Open(size_t occupy_bytes);
  ~LaunchTimer() override;

  kernels::cuda::Stream stream() const { return stream_; }
  void set_mode(Mode mode) { mode_ = mode; }
  // kTimed: milliseconds of all operations since the last call, less what events around nothing
  // take. Waits for the stream. A kernel's time contains its start and end on the device.
  double TakeOperationsMs();

  absl::Status RunDecode(const kernels::DecodeStep& step,
                         absl::FunctionRef<absl::Status()> operations) override;
  absl::Status Embedding(const kernels::EmbeddingParams& params) override;
  absl::Status RmsNorm(const kernels::RmsNormParams& params) override;
  absl::Status Gemm(const kernels::GemmParams& params) override;
  absl::Status Rope(const kernels::RopeParams& params) override;
  absl::Status KvWrite(const kernels::KvWriteParams& params) override;
  absl::Status Attention(const kernels::AttentionParams& params) override;
  absl::Status SwiGlu(const kernels::SwiGluParams& params) override;
  absl::Status MoeRoute(const kernels::MoeRouteParams& params) override;
  absl::Status MoePermute(const kernels::MoePermuteParams& params) override;
  absl::Status GroupedGemm(const kernels::GroupedGemmParams& params) override;
  absl::Status MoeCombine(const kernels::MoeCombineParams& params) override;
  absl::Status GatherRows(const kernels::GatherRowsParams& params) override;

 private:
  using Event = kernels::cuda::runtime::Event;

  LaunchTimer(std::unique_ptr<kernels::Backend> cuda, kernels::cuda::Stream stream,
              size_t occupy_bytes);
  // Between events if that is asked for.
  absl::Status Time(absl::FunctionRef<absl::Status()> operation);
  // Keeps the device busy for some milliseconds, so that what is measured waits for no launch.
  absl::Status Occupy();

  const kernels::cuda::Stream stream_;
  const size_t occupy_bytes_;
  Mode mode_ = Mode::kReplay;
  std::unique_ptr<kernels::Buffer> from_, to_;
  std::vector<std::pair<Event*, Event*>> events_;
  size_t used_ = 0;
};

// `model` runs a step's forward pass and logits, `sample` the rest of it. Milliseconds of the whole
// step and of the model's part on the device, as graph and eager in turns; of the operations alone;
// and the share of the model's part in which no operation runs. The device's times are null where
// it measures none (the emulator).
nlohmann::json MeasureLaunches(LaunchTimer& timer, int repetitions,
                               const std::function<void()>& model,
                               const std::function<void()>& sample);

}  // namespace verbatim::bench
