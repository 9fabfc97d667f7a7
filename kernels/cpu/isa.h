// Which instruction set the CPU kernels run with.
#pragma once

#include <cstdint>
#include <string_view>

namespace verbatim::kernels::cpu {

enum class Isa : uint8_t { kScalar, kAvx2, kAvx512 };

constexpr std::string_view NameOf(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return "scalar";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
  }
  return "unknown";
}

// The widest that this build has kernels for and this processor (and operating system) supports:
// kAvx2 needs AVX2, FMA and F16C; kAvx512 needs AVX-512 F, BW, DQ and VL besides.
Isa DetectIsa();

}  // namespace verbatim::kernels::cpu
