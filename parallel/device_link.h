// Messages between the memory of ranks' devices, in the order of each device's stream: what is used
// of NCCL.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"

namespace verbatim::parallel {

// `count` neighbouring floats that go to a peer or come from it.
struct Message {
  int peer = 0;
  float* data = nullptr;  // of the device; only read when sent
  int64_t count = 0;

  bool operator==(const Message&) const = default;
};

// One rank's end. Exchange and AllReduceSum are called by one thread, by all ranks in the same
// order; the other calls by any. While the stream is recorded (kernels::Backend::RunDecode) they
// are recorded with it, and carry in every replay what then lies at the same places: all ranks
// record and replay the same ones.
class DeviceLink {
 public:
  virtual ~DeviceLink() = default;

  // Puts all messages at once on the stream. Between two ranks they match in order and in count.
  virtual absl::Status Exchange(absl::Span<const Message> sends,
                                absl::Span<const Message> receives) = 0;
  // As Communicator::AllReduceSum.
  virtual absl::Status AllReduceSum(float* data, int64_t count) = 0;
  // What has gone wrong since with what is on the stream.
  virtual absl::Status Check() = 0;
  // Ends what is on the stream, with whatever has arrived, and waits for nobody: neither for other
  // ranks nor for recordings to go. All other calls fail from then on.
  virtual void Abort() = 0;
  // After Abort, and once no recording holds messages any more: waits until nothing of the link is
  // left, or for as long as that may take.
  virtual void Release() = 0;
};

}  // namespace verbatim::parallel
