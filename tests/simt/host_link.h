// The link between emulated devices: their memory is the host's and their streams run at once, so
// the host's communicator carries the messages, between threads or, over MPI, processes.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <set>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/device_link.h"

namespace verbatim::parallel {

// While the emulated stream is recorded, messages are recorded with it, and every replay carries
// them. NCCL's rules for captures are checked, and a rule that was broken fails every rank:
// - what one end of a message has recorded, the other end has, at the same place of a recording
//   that is its as many-th (messages are headed by how they were put on the stream);
// - the memory of recorded messages is still the same allocation when they are replayed;
// - recordings go before the link does: Release ends the process where one is left, for NCCL would
//   wait for ever.
class HostLink final : public DeviceLink {
 public:
  // `host` must outlive the result.
  explicit HostLink(Communicator& host);
  ~HostLink() override;

  absl::Status Exchange(absl::Span<const Message> sends,
                        absl::Span<const Message> receives) override;
  absl::Status AllReduceSum(float* data, int64_t count) override;
  absl::Status Check() override { return absl::OkStatus(); }
  void Abort() override {}  // the failure of the host's communicator has ended its exchanges
  void Release() override;

 private:
  // How messages were put on the stream; all 0: they were not recorded.
  struct Origin {
    int64_t recording = 0;  // how many this link had been part of, with this one
    int64_t place = 0;      // in the recording
  };

  Origin NextOrigin();
  absl::Status Carry(const Origin& origin, absl::Span<const Message> sends,
                     absl::Span<const Message> receives);
  absl::Status CarrySum(const Origin& origin, float* data, int64_t count);
  // Runs `work` now, or records it. `buffers` are the messages' memory.
  template <class Work>
  absl::Status Put(const std::vector<const float*>& buffers, Work work);

  Communicator& host_;
  uint64_t last_recording_ = 0;
  Origin last_;
  // One owner for each item in a recording that is alive, and this link.
  std::shared_ptr<int> recorded_ = std::make_shared<int>(0);
};

}  // namespace verbatim::parallel
