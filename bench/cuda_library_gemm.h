// cuBLASLt's matrix product for comparison, from whatever library the machine has.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace verbatim::bench {

class LibraryGemm {
 public:
  // Null, with the reason in *why, where libcublasLt.so.13 cannot be loaded.
  static std::unique_ptr<LibraryGemm> Load(std::string* why);
  virtual ~LibraryGemm() = default;

  // Prepares y [tokens, n] fp32 = x [tokens, k] bf16 · w [n, k]ᵀ bf16 with the library's first
  // choice for the shape; false if it has none.
  virtual bool Prepare(int64_t tokens, int64_t n, int64_t k) = 0;
  // Runs it on the default stream. Device pointers.
  virtual bool Run(const void* x, const void* w, float* y) = 0;
};

}  // namespace verbatim::bench
