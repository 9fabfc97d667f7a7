// The numeric policy of a sequence: how strongly its bits are promised.
#pragma once

#include <cstdint>
#include <string_view>

namespace verbatim::kernels {

// Values are those of verbatim.v1.Determinism.
enum class Policy : uint8_t {
  kThroughput = 1,  // nothing is promised; the fastest kernel for the shape at hand
  kPinned = 2,  // same bits under any load, batch, chunking, cache state, thread count, on one kind
                // of device
  kPortable = 3,  // as kPinned, and on any device
};

constexpr bool IsStrong(Policy policy) { return policy != Policy::kThroughput; }

// NumericsTag of PORTABLE, the same on every device.
inline constexpr std::string_view kPortableTag = "v1/portable/cpu-tree128";

constexpr std::string_view NameOf(Policy policy) {
  switch (policy) {
    case Policy::kThroughput:
      return "throughput";
    case Policy::kPinned:
      return "pinned";
    case Policy::kPortable:
      return "portable";
  }
  return "unknown";
}

}  // namespace verbatim::kernels
