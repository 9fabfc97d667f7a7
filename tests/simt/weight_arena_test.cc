// Pieces of device memory: apart from each other, aligned, few blocks, given back.
#include "kernels/cuda/weight_arena.h"

#include <cstdint>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "simt/faults.h"

namespace verbatim::kernels::cuda {
namespace {

using ::testing::HasSubstr;

constexpr size_t kBlock = size_t{1} << 16;

class WeightArenaTest : public testing::Test {
 protected:
  void TearDown() override { simt_faults::Heal(); }
  // Device allocations that `work` makes.
  template <class Work>
  int64_t Blocks(Work work) {
    const int64_t before = simt_faults::Allocations();
    work();
    return simt_faults::Allocations() - before;
  }
  WeightArena::Piece Piece(WeightArena& arena, size_t size_bytes) {
    absl::StatusOr<WeightArena::Piece> piece = arena.Allocate(size_bytes);
    EXPECT_TRUE(piece.ok()) << piece.status();
    return piece.ok() ? *std::move(piece) : WeightArena::Piece{};
  }
};

TEST_F(WeightArenaTest, PiecesShareBlocksAndLieApart) {
  WeightArena arena(kBlock);
  std::vector<std::pair<WeightArena::Piece, size_t>> pieces;
  size_t all = 0;
  const int64_t blocks = Blocks([&] {
    for (size_t i = 0; i < 200; ++i) {
      const size_t size_bytes = 1 + i * 37 % 5000;
      pieces.emplace_back(Piece(arena, size_bytes), size_bytes);
      all += (size_bytes + 255) / 256 * 256;
    }
  });
  // Of each block less than an eighth is lost.
  EXPECT_LE(blocks, static_cast<int64_t>(all * 8 / (kBlock * 7)) + 1);
  for (size_t i = 0; i < pieces.size(); ++i) {
    const auto& [piece, size_bytes] = pieces[i];
    EXPECT_EQ(reinterpret_cast<uintptr_t>(piece.data) % WeightArena::kAlignment, 0u);
    const auto* begin = static_cast<const std::byte*>(piece.block->data());
    EXPECT_GE(piece.data, begin);
    EXPECT_LE(piece.data + size_bytes, begin + piece.block->size_bytes());
    for (size_t j = 0; j < i; ++j) {
      const auto& [other, other_bytes] = pieces[j];
      EXPECT_TRUE(piece.data + size_bytes <= other.data || other.data + other_bytes <= piece.data);
    }
  }
}

TEST_F(WeightArenaTest, LargePiecesHaveBlocksOfTheirOwn) {
  WeightArena arena(kBlock);
  const WeightArena::Piece large = Piece(arena, kBlock / 8 + 1);
  EXPECT_EQ(large.block->size_bytes(), kBlock / 8 + kBlock / 64);
  // What is left behind it is used.
  const WeightArena::Piece small = Piece(arena, 100);
  EXPECT_EQ(small.block, large.block);
  WeightArena none(0);
  const WeightArena::Piece first = Piece(none, 300), second = Piece(none, 300);
  EXPECT_NE(first.block, second.block);
}

TEST_F(WeightArenaTest, ABlockGoesWithItsLastPiece) {
  WeightArena arena(kBlock);
  WeightArena::Piece first = Piece(arena, 1000), second = Piece(arena, 1000);
  const std::weak_ptr<DeviceBuffer> block = first.block;
  EXPECT_EQ(first.block, second.block);
  first = {};
  EXPECT_FALSE(block.expired());
  second = {};
  EXPECT_TRUE(block.expired());
  EXPECT_EQ(Blocks([&] { first = Piece(arena, 1000); }), 1);
}

TEST_F(WeightArenaTest, WithoutRoomForABlockThePieceAloneIsTried) {
  WeightArena huge(size_t{1} << 40);  // more than the device has
  WeightArena::Piece piece = Piece(huge, 1000);
  ASSERT_NE(piece.block, nullptr);
  EXPECT_EQ(piece.block->size_bytes(), 1000u);
  simt_faults::FailAllocationsAfter(0);
  const absl::Status status = huge.Allocate(123456).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("cannot allocate 123456 bytes"));
}

}  // namespace
}  // namespace verbatim::kernels::cuda
