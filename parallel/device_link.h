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
// order; the other calls by any.
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
  // Ends what is on the stream, with whatever has arrived, and waits for no other rank. All other
  // calls fail from then on.
  virtual void Abort() = 0;
};

}  // namespace verbatim::parallel
