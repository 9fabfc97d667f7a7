// Products of four warps on the matrix units of a Hopper GPU, for the emulator (the PTX ISA's
// wgmma): operands in shared memory, named by descriptors; results some time before a wait.
//
// A product's operands are read when it is issued or at the wait that covers it, as the order of
// the schedule has it, so that a stage that is filled too late or again too early gives wrong
// values. Accumulators are poisoned while a product on them is under way. Warps of a warpgroup need
// not keep step, but must issue the same.
#pragma once

#include <cstdint>

#include "simt/emulator.h"

namespace simt {

inline constexpr int kWarpgroupWarps = 4;

// Orders what the threads did with accumulators before products that follow.
void ProductFence(const Place& where);
// Lane's part of d [64, columns] += a [64, 16] · b [columns, 16]ᵀ for the warpgroup's warps, 16
// rows each, in the fragment layout of wgmma.m64nNk16; `d` are this lane's columns / 2
// accumulators. `add(sum, row of a, row of b)` is what an instruction does to an accumulator; rows
// are 16 elements of 16 bits.
void ProductAsync(float* d, int columns, uint64_t a, uint64_t b,
                  float (*add)(float sum, const uint16_t* a, const uint16_t* b),
                  const Place& where);
void ProductCommit(const Place& where);
// Waits until at most so many of the committed groups are under way.
void ProductWait(int pending_groups, const Place& where);

// In which order an instruction adds its products. Descending makes a device whose warpgroups sum
// otherwise than its warps.
void SumProductsDescending(bool descending);
bool ProductsDescend();

}  // namespace simt
