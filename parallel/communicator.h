// What the ranks of tensor parallelism say to each other: what to compute, blocks of floats, and
// that one of them has failed.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace verbatim::parallel {

// Rows of floats that go to a peer or come from it; memory of the backend.
struct Block {
  int peer = 0;
  float* data = nullptr;  // [rows, cols]; only read when sent
  int64_t rows = 1;
  int64_t cols = 0;
  int64_t stride = 0;  // elements from row to row; of no account with one row
};

// One rank's end. Exchange and AllReduceSum are called by one thread, by all ranks in the same
// order, and may be asynchronous as the backend's operations are. The other calls are thread-safe.
//
// Failures are final: once a rank has failed, every call of every rank that cannot be completed
// returns UNAVAILABLE naming that rank, also calls under way. None waits for a rank that is gone.
class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  // Rank 0 tells all others; they hear what it said in the order in which it was said.
  virtual absl::Status Announce(const std::string& bytes) = 0;
  // Of the other ranks; waits as long as it takes. OUT_OF_RANGE when rank 0 has closed.
  virtual absl::StatusOr<std::string> NextAnnouncement() = 0;
  // The other ranks tell rank 0, which takes one report from each: [size − 1], by rank.
  virtual absl::Status Report(const std::string& bytes) = 0;
  virtual absl::StatusOr<std::vector<std::string>> TakeReports() = 0;

  // Sends and receives all blocks. Between two ranks, blocks match in order and must agree in rows
  // and cols. On return (for a device: in stream order) sent blocks may be overwritten and received
  // ones read.
  virtual absl::Status Exchange(absl::Span<const Block> sends,
                                absl::Span<const Block> receives) = 0;
  // Whether Exchange and AllReduceSum are put on the stream of the backend's device as its
  // operations are, so that a recording of it (kernels::Backend::RunDecode) holds them too.
  virtual bool on_stream() const { return false; }
  // data[i] = the sum of all ranks' data[i] in whatever order is fast, the same bits on every rank.
  virtual absl::Status AllReduceSum(float* data, int64_t count) = 0;

  // Rank 0: no announcement will follow; ranks may go without being missed. Waits for nobody.
  virtual void Close() = 0;
  // This rank cannot go on: tells all others why. Later calls do nothing.
  virtual void Abort(const absl::Status& why) = 0;
  // OK, or the failure.
  virtual absl::Status failure() const = 0;
  // Calls `callback` once, on any thread, when a rank has failed; at once if one has. It takes the
  // place of the one before, which is not running any more then, and must not call this object.
  virtual void OnFailure(std::function<void(const absl::Status&)> callback) = 0;
};

}  // namespace verbatim::parallel
