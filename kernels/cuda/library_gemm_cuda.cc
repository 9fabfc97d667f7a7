// Products by cuBLASLt, opened when the program runs: it is too large to be part of every build,
// and a machine without it serves all the same.
#include <cublasLt.h>
#include <dlfcn.h>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/library_gemm.h"

namespace verbatim::kernels::cuda {
namespace {

// The linker's places (LD_LIBRARY_PATH, ld.so.cache), then those of NVIDIA's packages.
constexpr const char* kLibraries[] = {
    "libcublasLt.so.13",
    "/usr/local/cuda/lib64/libcublasLt.so.13",
    "/usr/local/cuda/lib/libcublasLt.so.13",
    "/usr/local/cuda-13.0/lib64/libcublasLt.so.13",
};

struct Functions {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtDestroy) destroy;
  decltype(&cublasLtGetProperty) property;
  decltype(&cublasLtGetStatusString) status_string;
  decltype(&cublasLtMatmulDescCreate) desc_create;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set;
  decltype(&cublasLtMatrixLayoutCreate) layout_create;
  decltype(&cublasLtMatrixLayoutSetAttribute) layout_set;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
  decltype(&cublasLtMatmulAlgoConfigGetAttribute) algorithm_get;
  decltype(&cublasLtMatmul) matmul;
};

// The name of a function that the library lacks, or null.
const char* FindAll(void* library, Functions* f) {
  const char* missing = nullptr;
  const auto find = [&]<class F>(const char* name, F* function) {
    *function = reinterpret_cast<F>(dlsym(library, name));
    if (*function == nullptr) missing = name;
  };
  find("cublasLtCreate", &f->create);
  find("cublasLtDestroy", &f->destroy);
  find("cublasLtGetProperty", &f->property);
  find("cublasLtGetStatusString", &f->status_string);
  find("cublasLtMatmulDescCreate", &f->desc_create);
  find("cublasLtMatmulDescDestroy", &f->desc_destroy);
  find("cublasLtMatmulDescSetAttribute", &f->desc_set);
  find("cublasLtMatrixLayoutCreate", &f->layout_create);
  find("cublasLtMatrixLayoutSetAttribute", &f->layout_set);
  find("cublasLtMatrixLayoutDestroy", &f->layout_destroy);
  find("cublasLtMatmulPreferenceCreate", &f->preference_create);
  find("cublasLtMatmulPreferenceDestroy", &f->preference_destroy);
  find("cublasLtMatmulPreferenceSetAttribute", &f->preference_set);
  find("cublasLtMatmulAlgoGetHeuristic", &f->heuristic);
  find("cublasLtMatmulAlgoConfigGetAttribute", &f->algorithm_get);
  find("cublasLtMatmul", &f->matmul);
  return missing;
}

class CublasLt final : public LibraryGemm {
 public:
  CublasLt(const Functions& f, cublasLtHandle_t handle, std::unique_ptr<DeviceBuffer> workspace)
      : f_(f), handle_(handle), workspace_(std::move(workspace)) {}
  ~CublasLt() override {
    choices_.clear();
    if (desc_ != nullptr) f_.desc_destroy(desc_);
    f_.destroy(handle_);
  }

  // What all products have in common. In the library's terms, column by column, they are
  // yᵀ [rows, tokens] = w · xᵀ with w and x stored transposed.
  cublasStatus_t Prepare() {
    cublasStatus_t status = f_.desc_create(&desc_, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    const cublasOperation_t transposed = CUBLAS_OP_T;
    if (status == CUBLAS_STATUS_SUCCESS) {
      status = f_.desc_set(desc_, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed));
    }
    for (const auto& [type, part] :
         {std::pair{MAJOR_VERSION, 0}, {MINOR_VERSION, 1}, {PATCH_LEVEL, 2}}) {
      if (status == CUBLAS_STATUS_SUCCESS) status = f_.property(type, &version_[part]);
    }
    return status;
  }

  std::string Version() const override {
    return absl::StrCat("cublaslt-", version_[0], ".", version_[1], ".", version_[2]);
  }

  const Algorithm* Choose(const LibraryGemmShape& shape) override {
    LibraryGemmShape asked = shape;
    asked.tokens = LibraryTokens(shape.tokens);
    auto [found, is_new] = choices_.try_emplace(asked);
    if (is_new) found->second = Ask(asked);
    return found->second.get();
  }

  absl::Status Run(const Algorithm& algorithm, const LibraryGemmArgs& args,
                   Stream stream) override {
    const auto& choice = static_cast<const Choice&>(algorithm);
    const uint64_t tokens = static_cast<uint64_t>(args.tokens);
    for (cublasLtMatrixLayout_t layout : {choice.x, choice.y}) {
      const cublasStatus_t set =
          f_.layout_set(layout, CUBLASLT_MATRIX_LAYOUT_COLS, &tokens, sizeof(tokens));
      if (set != CUBLAS_STATUS_SUCCESS) return Failed(choice, set);
    }
    const float one = 1.0f, zero = 0.0f;
    const float* added = args.residual != nullptr ? args.residual : args.y;
    const cublasStatus_t status =
        f_.matmul(handle_, desc_, &one, args.w, choice.w, args.x, choice.x,
                  args.residual != nullptr ? &one : &zero, added, choice.y, args.y, choice.y,
                  &choice.algo, workspace_->data(), workspace_->size_bytes(), stream);
    return status == CUBLAS_STATUS_SUCCESS ? absl::OkStatus() : Failed(choice, status);
  }

 private:
  struct Layout {
    const Functions& f;
    cublasLtMatrixLayout_t layout = nullptr;

    Layout(const Functions& functions, cudaDataType type, int64_t rows, int64_t columns,
           int64_t stride)
        : f(functions) {
      if (f.layout_create(&layout, type, static_cast<uint64_t>(rows),
                          static_cast<uint64_t>(columns), stride) != CUBLAS_STATUS_SUCCESS) {
        layout = nullptr;
      }
    }
    ~Layout() {
      if (layout != nullptr) f.layout_destroy(layout);
    }
    Layout(const Layout&) = delete;
    Layout& operator=(const Layout&) = delete;
  };

  struct Layouts {
    Layout w, x, y;
    bool ok() const { return w.layout != nullptr && x.layout != nullptr && y.layout != nullptr; }
  };

  class Choice final : public Algorithm {
   public:
    Choice(std::string name, const cublasLtMatmulAlgo_t& algorithm,
           std::unique_ptr<Layouts> layouts)
        : Algorithm(std::move(name)),
          algo(algorithm),
          w(layouts->w.layout),
          x(layouts->x.layout),
          y(layouts->y.layout),
          layouts_(std::move(layouts)) {}

    const cublasLtMatmulAlgo_t algo;
    const cublasLtMatrixLayout_t w, x, y;

   private:
    const std::unique_ptr<Layouts> layouts_;
  };

  absl::Status Failed(const Algorithm& algorithm, cublasStatus_t status) const {
    return absl::InternalError(
        absl::StrCat("cuda: cublasLtMatmul (", algorithm.name(), "): ", f_.status_string(status)));
  }

  std::unique_ptr<Choice> Ask(const LibraryGemmShape& shape) {
    auto layouts = std::unique_ptr<Layouts>(
        new Layouts{{f_, CUDA_R_16BF, shape.cols, shape.rows, shape.cols},
                    {f_, CUDA_R_16BF, shape.cols, shape.tokens, shape.cols},
                    {f_, CUDA_R_32F, shape.rows, shape.tokens, shape.y_stride}});
    cublasLtMatmulPreference_t preference = nullptr;
    if (!layouts->ok() || f_.preference_create(&preference) != CUBLAS_STATUS_SUCCESS) {
      return nullptr;
    }
    const uint64_t workspace = workspace_->size_bytes();
    const uint32_t alignment = shape.aligned ? 16 : 4;
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
      return f_.preference_set(preference, attribute, &value, sizeof(value)) ==
             CUBLAS_STATUS_SUCCESS;
    };
    cublasLtMatmulHeuristicResult_t result = {};
    int results = 0;
    const bool ok =
        set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace) &&
        set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment) &&
        set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment) &&
        f_.heuristic(handle_, desc_, layouts->w.layout, layouts->x.layout, layouts->y.layout,
                     layouts->y.layout, preference, 1, &result, &results) == CUBLAS_STATUS_SUCCESS;
    f_.preference_destroy(preference);
    if (!ok || results < 1 || result.state != CUBLAS_STATUS_SUCCESS) return nullptr;
    return std::make_unique<Choice>(NameOf(result.algo), result.algo, std::move(layouts));
  }

  // By the numbers that cublasLt.h gives to tiles, stages, reductions and clusters.
  std::string NameOf(const cublasLtMatmulAlgo_t& algorithm) const {
    std::string name = "cublaslt";
    const auto append = [&]<class T>(const char* what, cublasLtMatmulAlgoConfigAttributes_t key,
                                     T value) {
      size_t written = 0;
      if (f_.algorithm_get(&algorithm, key, &value, sizeof(value), &written) ==
          CUBLAS_STATUS_SUCCESS) {
        absl::StrAppend(&name, " ", what, " ", value);
      }
    };
    append("algo", CUBLASLT_ALGO_CONFIG_ID, int32_t{0});
    append("tile", CUBLASLT_ALGO_CONFIG_TILE_ID, uint32_t{0});
    append("stages", CUBLASLT_ALGO_CONFIG_STAGES_ID, uint32_t{0});
    append("splitk", CUBLASLT_ALGO_CONFIG_SPLITK_NUM, int32_t{0});
    append("reduction", CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, uint32_t{0});
    append("swizzle", CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING, uint32_t{0});
    append("custom", CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION, uint32_t{0});
    append("inner", CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID, uint16_t{0});
    append("cluster", CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID, uint16_t{0});
    return name;
  }

  const Functions f_;
  const cublasLtHandle_t handle_;
  const std::unique_ptr<DeviceBuffer> workspace_;
  cublasLtMatmulDesc_t desc_ = nullptr;
  int version_[3] = {};
  absl::flat_hash_map<LibraryGemmShape, std::unique_ptr<Choice>> choices_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<LibraryGemm>> LibraryGemm::Open(size_t workspace_bytes) {
  void* library = nullptr;
  for (const char* name : kLibraries) {
    library = dlopen(name, RTLD_NOW | RTLD_LOCAL);  // stays open until the process ends
    if (library != nullptr) break;
  }
  if (library == nullptr) {
    return absl::NotFoundError("no libcublasLt.so.13 in LD_LIBRARY_PATH or /usr/local/cuda/lib64");
  }
  Functions f = {};
  if (const char* missing = FindAll(library, &f); missing != nullptr) {
    return absl::NotFoundError(absl::StrCat("libcublasLt.so.13 has no ", missing));
  }
  cublasLtHandle_t handle = nullptr;
  if (const cublasStatus_t status = f.create(&handle); status != CUBLAS_STATUS_SUCCESS) {
    const std::string text = absl::StrCat("cublasLtCreate: ", f.status_string(status));
    if (status == CUBLAS_STATUS_ALLOC_FAILED) return absl::ResourceExhaustedError(text);
    return absl::NotFoundError(text);
  }
  absl::StatusOr<std::unique_ptr<DeviceBuffer>> workspace = DeviceBuffer::Create(workspace_bytes);
  if (!workspace.ok()) {
    f.destroy(handle);
    return workspace.status();
  }
  auto opened = std::make_unique<CublasLt>(f, handle, *std::move(workspace));
  if (const cublasStatus_t status = opened->Prepare(); status != CUBLAS_STATUS_SUCCESS) {
    return absl::NotFoundError(
        absl::StrCat("cuBLASLt cannot describe a product: ", f.status_string(status)));
  }
  return opened;
}

}  // namespace verbatim::kernels::cuda
