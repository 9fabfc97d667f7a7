// The version of Verbatim that traces name.
#pragma once

namespace verbatim::trace {

inline constexpr char kVersion[] = "0.1.0";

}  // namespace verbatim::trace
