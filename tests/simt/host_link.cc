// Messages between emulated devices, and the rules for those that are recorded.
#include "simt/host_link.h"

#include <cstdio>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "simt/recording.h"

namespace verbatim::parallel {
namespace {

using kernels::cuda::AllocationOf;
using kernels::cuda::recording;

// In front of every message; small numbers, which floats hold exactly.
constexpr int64_t kHeader = 2;

std::string Words(float recording_number, float place) {
  if (recording_number == 0) return "not recorded";
  return absl::StrCat("recorded at place ", place, " of recording ", recording_number);
}

}  // namespace

HostLink::HostLink(Communicator& host) : host_(host) {}
HostLink::~HostLink() { Release(); }

void HostLink::Release() {
  if (recorded_.use_count() == 1) return;
  std::fprintf(stderr, "the link between devices ends before recordings of its messages do\n");
  std::abort();
}

HostLink::Origin HostLink::NextOrigin() {
  if (recording == nullptr) return {};
  if (recording->number != last_recording_) {
    last_recording_ = recording->number;
    last_ = {.recording = last_.recording + 1, .place = 0};
  }
  ++last_.place;
  return last_;
}

template <class Work>
absl::Status HostLink::Put(const std::vector<const float*>& buffers, Work work) {
  if (recording == nullptr) return work();
  std::vector<std::pair<const float*, uint64_t>> allocations;
  for (const float* buffer : buffers) allocations.emplace_back(buffer, AllocationOf(buffer));
  recording->work.push_back([this, allocations, work, alive = recorded_] {
    absl::Status status = host_.failure();
    for (const auto& [buffer, allocation] : allocations) {
      if (allocation != 0 && AllocationOf(buffer) == allocation) continue;
      status.Update(absl::InternalError("memory of a recorded message is not there any more"));
    }
    status.Update(status.ok() ? work() : absl::OkStatus());
    // As on a device, the stream goes on with whatever has arrived, and others find out.
    if (!status.ok()) host_.Abort(status);
    return 0;
  });
  return absl::OkStatus();
}

absl::Status HostLink::Carry(const Origin& origin, absl::Span<const Message> sends,
                             absl::Span<const Message> receives) {
  float mine[kHeader];
  std::vector<float> theirs(receives.size() * kHeader);
  std::vector<Block> out, in;
  mine[0] = static_cast<float>(origin.recording);
  mine[1] = static_cast<float>(origin.place);
  for (const Message& message : sends) {
    out.push_back({.peer = message.peer, .data = mine, .cols = kHeader});
    out.push_back({.peer = message.peer, .data = message.data, .cols = message.count});
  }
  for (size_t i = 0; i < receives.size(); ++i) {
    const Message& message = receives[i];
    in.push_back({.peer = message.peer, .data = theirs.data() + i * kHeader, .cols = kHeader});
    in.push_back({.peer = message.peer, .data = message.data, .cols = message.count});
  }
  if (absl::Status status = host_.Exchange(out, in); !status.ok()) return status;
  for (size_t i = 0; i < receives.size(); ++i) {
    const float* const other = theirs.data() + i * kHeader;
    if (other[0] == mine[0] && other[1] == mine[1]) continue;
    return absl::InternalError(absl::StrCat("a message is ", Words(other[0], other[1]), " on rank ",
                                            receives[i].peer, " and ", Words(mine[0], mine[1]),
                                            " here"));
  }
  return absl::OkStatus();
}

absl::Status HostLink::Exchange(absl::Span<const Message> sends,
                                absl::Span<const Message> receives) {
  if (sends.empty() && receives.empty()) return absl::OkStatus();
  std::vector<const float*> buffers;
  for (const Message& message : sends) buffers.push_back(message.data);
  for (const Message& message : receives) buffers.push_back(message.data);
  return Put(buffers,
             [this, origin = NextOrigin(), sends = std::vector<Message>(sends.begin(), sends.end()),
              receives = std::vector<Message>(receives.begin(), receives.end())] {
               return Carry(origin, sends, receives);
             });
}

absl::Status HostLink::CarrySum(const Origin& origin, float* data, int64_t count) {
  // The origins, by messages without content.
  std::vector<Message> all;
  for (int r = 0; r < host_.size(); ++r) {
    if (r != host_.rank()) all.push_back({.peer = r, .data = data, .count = 0});
  }
  absl::Status status = Carry(origin, all, all);
  return status.ok() ? host_.AllReduceSum(data, count) : status;
}

absl::Status HostLink::AllReduceSum(float* data, int64_t count) {
  if (count == 0) return absl::OkStatus();
  return Put({data},
             [this, origin = NextOrigin(), data, count] { return CarrySum(origin, data, count); });
}

}  // namespace verbatim::parallel
