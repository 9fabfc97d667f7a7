// Sampling on the device: requests in, one kernel a slice of rows, replies out.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/sampling_args.h"
#include "kernels/ops/sampling.h"

namespace verbatim::kernels::cuda {

class CudaSampler {
 public:
  // Allocates all that sampling will ever use: `scratch_bytes` for logits (a slice of rows at a
  // time), `argument_bytes` for the rows' lists and as much for the answers.
  static absl::StatusOr<std::unique_ptr<CudaSampler>> Create(size_t scratch_bytes,
                                                             size_t argument_bytes, Stream stream);

  // As Backend::Sample for one row or more; waits for the stream. RESOURCE_EXHAUSTED for a row that
  // asks for more than the memory holds. `*faults`: what the word `fault`, in the device's memory,
  // was when the rows were sampled; it comes with the answers.
  absl::Status Sample(const SamplingParams& params, const uint32_t* fault, uint32_t* faults);

 private:
  explicit CudaSampler(Stream stream) : stream_(stream) {}
  absl::Status SampleSlice(const SamplingParams& params, int64_t first, int64_t count,
                           const uint32_t* fault, uint32_t* faults);

  const Stream stream_;
  std::unique_ptr<DeviceBuffer> scratch_, device_arguments_, device_replies_;
  std::unique_ptr<PinnedBuffer> arguments_, replies_;
};

}  // namespace verbatim::kernels::cuda
