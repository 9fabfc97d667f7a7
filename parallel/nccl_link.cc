// The link between GPUs.
#include "parallel/nccl_link.h"

#include <dlfcn.h>

#include <chrono>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"

namespace verbatim::parallel {
namespace {

// Between two looks at what goes on in the background: connecting takes seconds, an exchange
// nothing after the first.
constexpr std::chrono::microseconds kPollInterval(20);

absl::Status Ended() { return absl::CancelledError("NCCL: the link has been ended"); }

absl::Status Refuse(const std::string& why) {
  return absl::FailedPreconditionError(
      absl::StrCat("--device: ranks on GPUs exchange their parts by NCCL: ", why));
}

std::string Version(int code) {
  return absl::StrCat(code / 10000, ".", code % 10000 / 100, ".", code % 100);
}

}  // namespace

absl::StatusOr<NcclFunctions> OpenNccl() {
  void* library = nullptr;
  for (const char* name : {"libnccl.so.2", "/usr/local/cuda/lib64/libnccl.so.2"}) {
    library = dlopen(name, RTLD_NOW | RTLD_LOCAL);  // stays open until the process ends
    if (library != nullptr) break;
  }
  if (library == nullptr) {
    return Refuse("no libnccl.so.2 in LD_LIBRARY_PATH or /usr/local/cuda/lib64");
  }
  NcclFunctions nccl;
  const char* missing = nullptr;
  const auto find = [&](const char* name, auto* function) {
    *function =
        reinterpret_cast<std::remove_reference_t<decltype(*function)>>(dlsym(library, name));
    if (*function == nullptr) missing = name;
  };
  find("ncclGetVersion", &nccl.get_version);
  find("ncclGetUniqueId", &nccl.get_unique_id);
  find("ncclGetErrorString", &nccl.get_error_string);
  find("ncclGetLastError", &nccl.get_last_error);
  find("ncclCommInitRankConfig", &nccl.comm_init);
  find("ncclCommGetAsyncError", &nccl.comm_get_async_error);
  find("ncclCommAbort", &nccl.comm_abort);
  find("ncclGroupStart", &nccl.group_start);
  find("ncclGroupEnd", &nccl.group_end);
  find("ncclSend", &nccl.send);
  find("ncclRecv", &nccl.recv);
  find("ncclAllReduce", &nccl.all_reduce);
  if (missing != nullptr) return Refuse(absl::StrCat("libnccl.so.2 has no ", missing));
  int version = 0;
  nccl.get_version(&version);
  if (version < NCCL_VERSION_CODE) {
    return Refuse(absl::StrCat("libnccl.so.2 is version ", Version(version),
                               ", this program was built for ", Version(NCCL_VERSION_CODE),
                               " or newer"));
  }
  return nccl;
}

absl::StatusOr<ncclUniqueId> MakeNcclId(const NcclFunctions& nccl) {
  ncclUniqueId id;
  const ncclResult_t result = nccl.get_unique_id(&id);
  if (result == ncclSuccess) return id;
  return absl::InternalError(absl::StrCat("NCCL: ncclGetUniqueId: ", nccl.get_error_string(result),
                                          " (", nccl.get_last_error(nullptr), ")"));
}

absl::StatusOr<std::unique_ptr<NcclLink>> NcclLink::Connect(
    const NcclFunctions& nccl, const ncclUniqueId& id, int rank, int size, cudaStream_t stream,
    const std::function<absl::Status()>& failure) {
  auto link = std::unique_ptr<NcclLink>(new NcclLink(nccl, stream));
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  std::unique_lock lock(link->mu_);
  ncclComm_t comm = nullptr;
  ncclResult_t result = nccl.comm_init(&comm, size, id, rank, &config);
  link->comm_ = comm;
  while (result == ncclInProgress && comm != nullptr) {
    lock.unlock();
    if (absl::Status failed = failure(); !failed.ok()) return failed;
    std::this_thread::sleep_for(kPollInterval);
    lock.lock();
    const ncclResult_t asked = nccl.comm_get_async_error(comm, &result);
    if (asked != ncclSuccess) result = asked;
  }
  absl::Status status = link->StatusOf("ncclCommInitRankConfig", result);
  lock.unlock();
  if (!status.ok()) return status;
  return link;
}

absl::Status NcclLink::StatusOf(const char* call, ncclResult_t result) const {
  if (result == ncclSuccess) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("NCCL: ", call, ": ", nccl_.get_error_string(result),
                                          " (", nccl_.get_last_error(comm_), ")"));
}

absl::Status NcclLink::Finish(const char* call, ncclResult_t result) {
  while (true) {
    {
      std::lock_guard lock(mu_);
      const ncclComm_t comm = comm_;
      if (comm == nullptr) return Ended();
      if (result != ncclInProgress) return StatusOf(call, result);
      const ncclResult_t asked = nccl_.comm_get_async_error(comm, &result);
      if (asked != ncclSuccess) return StatusOf("ncclCommGetAsyncError", asked);
      if (result == ncclSuccess) return absl::OkStatus();
    }
    std::this_thread::sleep_for(kPollInterval);
  }
}

absl::Status NcclLink::Exchange(absl::Span<const Message> sends,
                                absl::Span<const Message> receives) {
  if (sends.empty() && receives.empty()) return absl::OkStatus();
  ncclResult_t result = ncclSuccess;
  {
    std::lock_guard lock(mu_);
    const ncclComm_t comm = comm_;
    if (comm == nullptr) return Ended();
    const auto note = [&](ncclResult_t one) {
      if (one != ncclSuccess && one != ncclInProgress && result == ncclSuccess) result = one;
    };
    note(nccl_.group_start());
    for (const Message& message : receives) {
      note(nccl_.recv(message.data, static_cast<size_t>(message.count), ncclFloat32, message.peer,
                      comm, stream_));
    }
    for (const Message& message : sends) {
      note(nccl_.send(message.data, static_cast<size_t>(message.count), ncclFloat32, message.peer,
                      comm, stream_));
    }
    const ncclResult_t ended = nccl_.group_end();
    if (result == ncclSuccess) result = ended;
  }
  return Finish("an exchange", result);
}

absl::Status NcclLink::AllReduceSum(float* data, int64_t count) {
  if (count == 0) return absl::OkStatus();
  ncclResult_t result;
  {
    std::lock_guard lock(mu_);
    const ncclComm_t comm = comm_;
    if (comm == nullptr) return Ended();
    result = nccl_.all_reduce(data, data, static_cast<size_t>(count), ncclFloat32, ncclSum, comm,
                              stream_);
  }
  return Finish("ncclAllReduce", result);
}

absl::Status NcclLink::Check() {
  const std::unique_lock lock(mu_, std::try_to_lock);
  const ncclComm_t comm = comm_;
  if (!lock.owns_lock() || comm == nullptr) return absl::OkStatus();
  ncclResult_t result = ncclSuccess;
  const ncclResult_t asked = nccl_.comm_get_async_error(comm, &result);
  if (asked != ncclSuccess) return StatusOf("ncclCommGetAsyncError", asked);
  return result == ncclInProgress ? absl::OkStatus() : StatusOf("in the background", result);
}

// ncclCommAbort first tells the device to stop, which also ends a call that waits for it, and then
// waits until every graph with one of the communicator's operations has been destroyed (NCCL 2.28,
// commDestroySync in src/init.cc): by whoever hears of the failure, hence not while the watcher is
// held up here.
void NcclLink::Abort() {
  std::unique_lock lock(mu_, std::defer_lock);
  for (const auto limit = std::chrono::steady_clock::now() + kCallLimit;
       !lock.try_lock() && std::chrono::steady_clock::now() < limit;) {
    std::this_thread::sleep_for(kPollInterval);
  }
  const ncclComm_t comm = comm_.exchange(nullptr);
  if (comm == nullptr) return;
  std::promise<void> done;
  {
    std::lock_guard aborted_lock(aborted_mu_);
    aborted_ = done.get_future();
  }
  std::thread([abort = nccl_.comm_abort, comm, done = std::move(done)]() mutable {
    abort(comm);
    done.set_value();
  }).detach();
}

void NcclLink::Release() {
  std::future<void> aborted;
  {
    std::lock_guard lock(aborted_mu_);
    aborted = std::move(aborted_);
  }
  if (aborted.valid()) aborted.wait_for(release_limit_);
}

NcclLink::~NcclLink() {
  Abort();
  Release();
}

}  // namespace verbatim::parallel
