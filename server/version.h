// The version of this software.
#pragma once

namespace verbatim::server {

inline constexpr char kServerVersion[] = "0.1.0";

}  // namespace verbatim::server
