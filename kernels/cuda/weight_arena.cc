// Blocks and their pieces.
#include "kernels/cuda/weight_arena.h"

#include <algorithm>
#include <utility>

namespace verbatim::kernels::cuda {
namespace {

// A block of a piece's own has whole units of this part of an ordinary block: 2 MiB of 128.
constexpr size_t kUnitsOfBlock = 64;
constexpr size_t kOwnBlockFrom = 8;

size_t RoundUp(size_t size_bytes, size_t unit) { return (size_bytes + unit - 1) / unit * unit; }

}  // namespace

absl::StatusOr<WeightArena::Piece> WeightArena::Allocate(size_t size_bytes) {
  const size_t wanted = std::max(RoundUp(size_bytes, kAlignment), kAlignment);
  std::erase_if(open_, [](const Open& open) { return open.block.expired(); });
  for (Open& open : open_) {
    std::shared_ptr<DeviceBuffer> block = open.block.lock();
    if (block == nullptr || block->size_bytes() - open.used_bytes < wanted) continue;
    std::byte* const data = static_cast<std::byte*>(block->data()) + open.used_bytes;
    open.used_bytes += wanted;
    return Piece{data, std::move(block)};
  }
  const bool own = wanted * kOwnBlockFrom >= block_bytes_;
  const size_t unit = std::max(block_bytes_ / kUnitsOfBlock, kAlignment);
  absl::StatusOr<std::unique_ptr<DeviceBuffer>> buffer =
      DeviceBuffer::Create(own ? RoundUp(wanted, unit) : block_bytes_);
  if (absl::IsResourceExhausted(buffer.status())) buffer = DeviceBuffer::Create(size_bytes);
  if (!buffer.ok()) return buffer.status();
  std::shared_ptr<DeviceBuffer> block = *std::move(buffer);
  if (block->size_bytes() >= wanted + kAlignment) open_.push_back({block, wanted});
  return Piece{static_cast<std::byte*>(block->data()), std::move(block)};
}

}  // namespace verbatim::kernels::cuda
