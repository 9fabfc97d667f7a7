// cuBLASLt, loaded at run time: it is too large to travel with the benchmarks.
#include "bench/cuda_library_gemm.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

namespace verbatim::bench {
namespace {

constexpr size_t kWorkspaceBytes = size_t{32} << 20;

struct Functions {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtMatmulDescCreate) desc_create;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set;
  decltype(&cublasLtMatrixLayoutCreate) layout_create;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
  decltype(&cublasLtMatmul) matmul;
};

template <class F>
bool Find(void* library, const char* name, F* function) {
  *function = reinterpret_cast<F>(dlsym(library, name));
  return *function != nullptr;
}

class CublasLt final : public LibraryGemm {
 public:
  CublasLt(const Functions& f, cublasLtHandle_t handle, void* workspace)
      : f_(f), handle_(handle), workspace_(workspace) {}

  // Column-major for the library: y ᵀ = w · x ᵀ. Descriptors live as long as the process.
  bool Prepare(int64_t tokens, int64_t n, int64_t k) override {
    const cublasOperation_t transposed = CUBLAS_OP_T;
    cublasLtMatmulPreference_t preference;
    const uint64_t rows = static_cast<uint64_t>(n), columns = static_cast<uint64_t>(tokens),
                   inner = static_cast<uint64_t>(k);
    bool ok = f_.desc_create(&desc_, CUBLAS_COMPUTE_32F, CUDA_R_32F) == CUBLAS_STATUS_SUCCESS;
    ok = ok && f_.desc_set(desc_, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)) ==
                   CUBLAS_STATUS_SUCCESS;
    ok = ok && f_.layout_create(&a_, CUDA_R_16BF, inner, rows, k) == CUBLAS_STATUS_SUCCESS;
    ok = ok && f_.layout_create(&b_, CUDA_R_16BF, inner, columns, k) == CUBLAS_STATUS_SUCCESS;
    ok = ok && f_.layout_create(&c_, CUDA_R_32F, rows, columns, n) == CUBLAS_STATUS_SUCCESS;
    ok = ok && f_.preference_create(&preference) == CUBLAS_STATUS_SUCCESS;
    const size_t limit = kWorkspaceBytes;
    ok = ok && f_.preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &limit,
                                 sizeof(limit)) == CUBLAS_STATUS_SUCCESS;
    int found = 0;
    ok = ok && f_.heuristic(handle_, desc_, a_, b_, c_, c_, preference, 1, &choice_, &found) ==
                   CUBLAS_STATUS_SUCCESS;
    return ok && found == 1;
  }

  bool Run(const void* x, const void* w, float* y) override {
    const float one = 1.0f, zero = 0.0f;
    return f_.matmul(handle_, desc_, &one, w, a_, x, b_, &zero, y, c_, y, c_, &choice_.algo,
                     workspace_, kWorkspaceBytes, nullptr) == CUBLAS_STATUS_SUCCESS;
  }

 private:
  const Functions f_;
  const cublasLtHandle_t handle_;
  void* const workspace_;
  cublasLtMatmulDesc_t desc_ = nullptr;
  cublasLtMatrixLayout_t a_ = nullptr, b_ = nullptr, c_ = nullptr;
  cublasLtMatmulHeuristicResult_t choice_ = {};
};

}  // namespace

std::unique_ptr<LibraryGemm> LibraryGemm::Load(std::string* why) {
  void* library = nullptr;
  for (const char* name : {"libcublasLt.so.13", "/usr/local/cuda/lib64/libcublasLt.so.13"}) {
    library = dlopen(name, RTLD_NOW);
    if (library != nullptr) break;
  }
  if (library == nullptr) {
    *why = dlerror();
    return nullptr;
  }
  Functions f;
  if (!Find(library, "cublasLtCreate", &f.create) ||
      !Find(library, "cublasLtMatmulDescCreate", &f.desc_create) ||
      !Find(library, "cublasLtMatmulDescSetAttribute", &f.desc_set) ||
      !Find(library, "cublasLtMatrixLayoutCreate", &f.layout_create) ||
      !Find(library, "cublasLtMatmulPreferenceCreate", &f.preference_create) ||
      !Find(library, "cublasLtMatmulPreferenceSetAttribute", &f.preference_set) ||
      !Find(library, "cublasLtMatmulAlgoGetHeuristic", &f.heuristic) ||
      !Find(library, "cublasLtMatmul", &f.matmul)) {
    *why = "libcublasLt.so.13 lacks a function";
    return nullptr;
  }
  cublasLtHandle_t handle = nullptr;
  void* workspace = nullptr;
  if (f.create(&handle) != CUBLAS_STATUS_SUCCESS ||
      cudaMalloc(&workspace, kWorkspaceBytes) != cudaSuccess) {
    *why = "cublasLtCreate failed";
    return nullptr;
  }
  return std::make_unique<CublasLt>(f, handle, workspace);
}

}  // namespace verbatim::bench
