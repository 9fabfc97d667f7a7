// The link between GPUs: NCCL, opened when it is needed, so that one program also runs on machines
// without it.
#pragma once

#include <nccl.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <mutex>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "parallel/device_link.h"

namespace verbatim::parallel {

// What is used of the library; tests put functions of their own in their places.
struct NcclFunctions {
  decltype(&ncclGetVersion) get_version = nullptr;
  decltype(&ncclGetUniqueId) get_unique_id = nullptr;
  decltype(&ncclGetErrorString) get_error_string = nullptr;
  decltype(&ncclGetLastError) get_last_error = nullptr;
  decltype(&ncclCommInitRankConfig) comm_init = nullptr;
  decltype(&ncclCommGetAsyncError) comm_get_async_error = nullptr;
  decltype(&ncclCommAbort) comm_abort = nullptr;
  decltype(&ncclGroupStart) group_start = nullptr;
  decltype(&ncclGroupEnd) group_end = nullptr;
  decltype(&ncclSend) send = nullptr;
  decltype(&ncclRecv) recv = nullptr;
  decltype(&ncclAllReduce) all_reduce = nullptr;
};

// FAILED_PRECONDITION, naming --device: no library, or one that is older than its header was that
// this program was built with.
absl::StatusOr<NcclFunctions> OpenNccl();

absl::StatusOr<ncclUniqueId> MakeNcclId(const NcclFunctions& nccl);

// NCCL's communicators are made not to block: what it does on the host goes on in the background
// and is polled for, so that Abort can end it wherever it is. Nothing here waits for the stream, so
// calls may be captured. NCCL's rules for that: all ranks capture the same calls and replay graphs
// of the same captures; the capture is thread-local, because a call goes on in a thread of NCCL's;
// graphs go before the communicator does, which waits for them.
class NcclLink final : public DeviceLink {
 public:
  // All ranks at once, each with its device current, which no two may share, and the id that one of
  // them made. `failure` is asked for a reason to give up waiting for the others: OK, or what is
  // returned.
  static absl::StatusOr<std::unique_ptr<NcclLink>> Connect(
      const NcclFunctions& nccl, const ncclUniqueId& id, int rank, int size, cudaStream_t stream,
      const std::function<absl::Status()>& failure);
  // Release does not wait longer than this: a device that has failed may never let go of graphs.
  static constexpr std::chrono::seconds kReleaseLimit{10};
  // Abort waits so long for a call that is under way.
  static constexpr std::chrono::milliseconds kCallLimit{500};
  // Tests have less time.
  void set_release_limit(std::chrono::milliseconds limit) { release_limit_ = limit; }
  ~NcclLink() override;

  absl::Status Exchange(absl::Span<const Message> sends,
                        absl::Span<const Message> receives) override;
  absl::Status AllReduceSum(float* data, int64_t count) override;
  absl::Status Check() override;
  // Also the orderly end: NCCL's own would wait for the other ranks.
  void Abort() override;
  void Release() override;

 private:
  NcclLink(const NcclFunctions& nccl, cudaStream_t stream) : nccl_(nccl), stream_(stream) {}

  // Until `result`, a call's, is not ncclInProgress any more.
  absl::Status Finish(const char* call, ncclResult_t result);
  // With mu_ held.
  absl::Status StatusOf(const char* call, ncclResult_t result) const;

  const NcclFunctions nccl_;
  const cudaStream_t stream_;
  // Held during calls. They should not wait, but one that puts more on a stream than fits waits for
  // the device, and so for ranks that may be gone: Check and Abort do without.
  std::mutex mu_;
  std::atomic<ncclComm_t> comm_ = nullptr;  // null once aborted
  std::mutex aborted_mu_;
  std::future<void> aborted_;  // the end of ncclCommAbort; not valid before and after
  std::chrono::milliseconds release_limit_ = kReleaseLimit;
};

}  // namespace verbatim::parallel
