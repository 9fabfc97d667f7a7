// What the emulator's own tests run kernels under, and what became of the last one.
#pragma once

#include <string>

#include "simt/emulator.h"

namespace verbatim::kernels::cuda {

// The fault of the last launch that had one; cleared by whoever wants to know of the next.
std::string& LastFault();

inline constexpr simt::Schedule kSchedules[] = {{simt::Order::kForward},
                                                {simt::Order::kReversed},
                                                {simt::Order::kSeeded, 1},
                                                {simt::Order::kSeeded, 2},
                                                {simt::Order::kSeeded, 3}};

}  // namespace verbatim::kernels::cuda
