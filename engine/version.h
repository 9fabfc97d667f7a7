// The version of Verbatim, as receipts, traces and servers name it.
#pragma once

namespace verbatim::engine {

inline constexpr char kVersion[] = "0.1.0";

}  // namespace verbatim::engine
