// The link between emulated devices: their memory is the host's and their streams run at once, so
// the host's communicator carries the messages, between threads or, over MPI, processes.
#pragma once

#include <memory>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/device_link.h"

namespace verbatim::parallel {

class HostLink final : public DeviceLink {
 public:
  // `host` must outlive the result.
  explicit HostLink(Communicator& host) : host_(host) {}

  absl::Status Exchange(absl::Span<const Message> sends,
                        absl::Span<const Message> receives) override {
    return host_.Exchange(Blocks(sends), Blocks(receives));
  }
  absl::Status AllReduceSum(float* data, int64_t count) override {
    return host_.AllReduceSum(data, count);
  }
  absl::Status Check() override { return absl::OkStatus(); }
  void Abort() override {}  // the failure of the host's communicator has ended its exchanges

 private:
  static std::vector<Block> Blocks(absl::Span<const Message> messages) {
    std::vector<Block> blocks;
    for (const Message& message : messages) {
      blocks.push_back({.peer = message.peer, .data = message.data, .cols = message.count});
    }
    return blocks;
  }

  Communicator& host_;
};

}  // namespace verbatim::parallel
