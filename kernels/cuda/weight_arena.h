// Device memory of weight matrices: pieces of large blocks. The driver gives whole units of 2 MiB,
// of which thousands of experts' matrices would waste a large part.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cuda/device_memory.h"

namespace verbatim::kernels::cuda {

class WeightArena {
 public:
  // Pieces of an eighth of `block_bytes` or more get blocks of their own; 0: all do.
  explicit WeightArena(size_t block_bytes) : block_bytes_(block_bytes) {}
  WeightArena(const WeightArena&) = delete;
  WeightArena& operator=(const WeightArena&) = delete;

  // Pieces begin at multiples of so many bytes.
  static constexpr size_t kAlignment = 256;

  // Uninitialised. A block goes when its last piece has gone, which may be after the arena.
  struct Piece {
    std::byte* data = nullptr;
    std::shared_ptr<DeviceBuffer> block;
  };
  // Where there is no memory for a block, one for the piece alone is tried. RESOURCE_EXHAUSTED
  // names the piece's size.
  absl::StatusOr<Piece> Allocate(size_t size_bytes);

 private:
  // A block that has room; what is used of it only grows.
  struct Open {
    std::weak_ptr<DeviceBuffer> block;
    size_t used_bytes = 0;
  };
  const size_t block_bytes_;
  std::vector<Open> open_;
};

}  // namespace verbatim::kernels::cuda
