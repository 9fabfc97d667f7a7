// SHA-256 chain that names the content of a KV page: the cache salt and every token id up to its
// end.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "absl/types/span.h"

namespace verbatim::scheduler {

using Digest = std::array<uint8_t, 32>;

// SHA-256 of a domain tag and the salt: the parent of the first page of every sequence with it.
Digest SaltDigest(const std::string& cache_salt);

// SHA-256 of the parent's digest and the page's token ids, each as 4 bytes, little endian.
Digest PageDigest(const Digest& parent, absl::Span<const int32_t> tokens);

}  // namespace verbatim::scheduler
