// Which places of a grouped product a block computes.
//
// How many places each expert has is known to the device alone. A launch has as many blocks as
// there can be tiles, and each looks up its tile in the offsets; those without one end at once.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launchers.h"

namespace verbatim::kernels::cuda {

// PINNED: experts with so many places or fewer are computed a warp a shard.
inline constexpr int32_t kFewPlaces = 32;

// Consecutive places of one expert.
struct PlaceTile {
  int32_t expert;
  int32_t first;
  int32_t count;  // 0: no such tile
};

// The expert's places within the launch's; never outside them, whatever the offsets say.
__device__ __forceinline__ PlaceTile PlacesOf(const GroupedPlaces& places, int32_t expert) {
  const int32_t begin = static_cast<int32_t>(places.begin), end = static_cast<int32_t>(places.end);
  int32_t first = places.offsets[expert], last = places.offsets[expert + 1];
  first = first < begin ? begin : first;
  last = last > end ? end : last;
  return {expert, first, last > first ? last - first : 0};
}

// The sum of the lanes' counts up to this lane's. By whole warps.
__device__ __forceinline__ int32_t SumThrough(int32_t count, int lane) {
  for (int delta = 1; delta < kWarpSize; delta *= 2) {
    const int32_t lower = ShuffleUp(count, delta);
    if (lane >= delta) count += lower;
  }
  return count;
}

// Tile `index` of at most `most` places, in ascending order of experts, counting those with more
// than `above` and at most `up_to` places. Called by whole warps; the same for all lanes.
__device__ __forceinline__ PlaceTile FindTile(const GroupedPlaces& places, int32_t above,
                                              int32_t up_to, int32_t most, int32_t index,
                                              int lane) {
  int32_t before = 0;  // tiles of lower experts
  for (int32_t base = 0; base < places.num_experts; base += 32) {
    PlaceTile own{base + lane, 0, 0};
    if (own.expert < places.num_experts) own = PlacesOf(places, own.expert);
    const bool counts = own.count > above && own.count <= up_to;
    const int32_t tiles = counts ? (own.count + most - 1) / most : 0;
    const int32_t through = SumThrough(tiles, lane);
    const int32_t all = Shuffle(through, 31);
    if (index < before + all) {
      const int source = PopCount(Ballot(before + through <= index));
      const int32_t skipped =
          (index - before - Shuffle(through, source) + Shuffle(tiles, source)) * most;
      const int32_t left = Shuffle(own.count, source) - skipped;
      return {base + source, Shuffle(own.first, source) + skipped, left < most ? left : most};
    }
    before += all;
  }
  return {0, 0, 0};
}

// Sets the fault word where offsets do not ascend from 0 within `max_places`, or a place's row of x
// does not exist. By one block.
__device__ __forceinline__ void CheckPlaces(const GroupedPlaces& places, int threads) {
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  bool bad = thread == 0 && places.offsets[0] != 0;
  for (int32_t e = thread; e < places.num_experts; e += threads) {
    bad = bad || places.offsets[e] > places.offsets[e + 1];
  }
  const int64_t all = places.offsets[places.num_experts];
  bad = bad || all > places.max_places || (places.rows == nullptr && all > places.x_rows);
  if (places.rows != nullptr) {
    const int64_t used = all < places.max_places ? all : places.max_places;
    for (int64_t p = thread; p < used; p += threads) {
      bad = bad || places.rows[p] < 0 || places.rows[p] >= places.x_rows;
    }
  }
  if (bad) AtomicOr(places.fault, kFaultPlace);
}

// The row of x at a place; −1 if there is none.
__device__ __forceinline__ int64_t RowAt(const GroupedPlaces& places, int32_t place) {
  const int32_t row = places.rows != nullptr ? places.rows[place] : place;
  return row >= 0 && row < places.x_rows ? row : -1;
}

// Most tiles that FindTile can count, for the launch's grid.
inline unsigned int TileBound(const GroupedPlaces& places, int64_t above, int64_t most) {
  const int64_t count = places.end - places.begin;
  const int64_t experts = count / (above + 1);  // that can have so many
  return static_cast<unsigned int>(count / most +
                                   (experts < places.num_experts ? experts : places.num_experts));
}

}  // namespace verbatim::kernels::cuda
