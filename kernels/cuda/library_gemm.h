// Matrix products of bf16 values by a vendor's library: what THROUGHPUT multiplies with.
//
// Two implementations, never linked together: library_gemm_cuda.cc over cuBLASLt, which is opened
// when the program runs, and the emulator's in tests/simt.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/stream.h"

namespace verbatim::kernels::cuda {

// Numbers of tokens that the library is asked about: 1, 2, 4, multiples of 8 up to 256, of 64 from
// there on. One that lies between them gets the algorithm of the next: a batch that is padded to
// such a number has the algorithm of the one that is not, and there is little to remember.
constexpr int64_t LibraryTokens(int64_t tokens) {
  if (tokens <= 2) return tokens;
  if (tokens <= 4) return 4;
  const int64_t step = tokens <= 256 ? 8 : 64;
  return (tokens + step - 1) / step * step;
}

// y [tokens, rows] fp32 = x [tokens, cols] bf16 · wᵀ, w [rows, cols] bf16, sums in fp32.
struct LibraryGemmShape {
  int64_t tokens = 0;
  int64_t rows = 0;
  int64_t cols = 0;  // with the padding of RowPitch, which is +0; rows of x and w lie so far apart
  int64_t y_stride = 0;  // elements between rows of y
  bool aligned = true;   // y is on 16 bytes; x and w are on 256

  bool operator==(const LibraryGemmShape&) const = default;
  template <typename H>
  friend H AbslHashValue(H h, const LibraryGemmShape& s) {
    return H::combine(std::move(h), s.tokens, s.rows, s.cols, s.y_stride, s.aligned);
  }
};

// Device pointers, and how many tokens there are.
struct LibraryGemmArgs {
  int64_t tokens = 0;
  const void* x = nullptr;
  const void* w = nullptr;
  float* y = nullptr;
  const float* residual = nullptr;  // added; laid out and aligned as y, may be y itself; or null
};

class LibraryGemm {
 public:
  // How the library would multiply a shape. Lives as long as the library.
  class Algorithm {
   public:
    virtual ~Algorithm() = default;
    // All that tells it from the library's others: "cublaslt algo 66 tile 20 … splitk 4 …".
    const std::string& name() const { return name_; }

   protected:
    explicit Algorithm(std::string name) : name_(std::move(name)) {}

   private:
    const std::string name_;
  };

  // For the calling thread's device, with working memory of its own. NOT_FOUND, saying which and
  // why: there is no such library here, or none that can be used. RESOURCE_EXHAUSTED: too little
  // memory.
  static absl::StatusOr<std::unique_ptr<LibraryGemm>> Open(size_t workspace_bytes);
  virtual ~LibraryGemm() = default;

  // The library and its version, without spaces: "cublaslt-13.1.0". The same version chooses the
  // same algorithms on equal devices with equal workspaces.
  virtual std::string Version() const = 0;
  // The first choice of the library's heuristics for a shape with LibraryTokens of its tokens,
  // asked once and remembered; null if it has none. Nothing is put on a stream.
  virtual const Algorithm* Choose(const LibraryGemmShape& shape) = 0;
  // Puts the product on the stream. `algorithm` is what Choose gave for the shape of `args`. One
  // thread and one stream at a time, as the working memory is shared.
  virtual absl::Status Run(const Algorithm& algorithm, const LibraryGemmArgs& args,
                           Stream stream) = 0;
};

}  // namespace verbatim::kernels::cuda
