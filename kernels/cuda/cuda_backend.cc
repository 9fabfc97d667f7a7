// Life cycle and memory of the backend; the operations are in cuda_operations.cc.
#include "kernels/cuda/cuda_backend.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/cuda_kv_cache.h"
#include "kernels/cuda/shared_memory.h"

namespace verbatim::kernels::cuda {
namespace {

// More than a decode step's uploads: none of them waits for another one's copy.
constexpr int kStagingSlots = 8;

std::string Architecture(const runtime::DeviceInfo& info) {
  return absl::StrCat("sm", info.major, info.minor);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> CudaBackend::Create(const CudaBackendOptions& options) {
  absl::StatusOr<runtime::DeviceInfo> info = runtime::OpenDevice(options.device);
  if (!info.ok()) return info.status();
  if (absl::Status allowed = AllowSharedMemory(*info, CommonNeeds()); !allowed.ok()) return allowed;
  absl::StatusOr<Stream> stream = runtime::CreateStream();
  if (!stream.ok()) return stream.status();
  auto backend = std::unique_ptr<CudaBackend>(new CudaBackend(options, *std::move(info), *stream));
  absl::StatusOr<std::unique_ptr<Uploader>> uploader =
      Uploader::Create(options.staging_slot_bytes, kStagingSlots, *stream);
  if (!uploader.ok()) return uploader.status();
  backend->uploader_ = *std::move(uploader);
  const struct {
    std::unique_ptr<DeviceBuffer>* buffer;
    size_t size_bytes;
  } buffers[] = {{&backend->fault_, sizeof(uint32_t)},
                 {&backend->workspace_, options.workspace_bytes},
                 {&backend->kv_tables_, options.table_bytes},
                 {&backend->attention_tables_, options.table_bytes}};
  for (const auto& wanted : buffers) {
    absl::StatusOr<std::unique_ptr<DeviceBuffer>> buffer = DeviceBuffer::Create(wanted.size_bytes);
    if (!buffer.ok()) return buffer.status();
    *wanted.buffer = *std::move(buffer);
  }
  absl::StatusOr<std::unique_ptr<PinnedBuffer>> fault_copy = PinnedBuffer::Create(sizeof(uint32_t));
  if (!fault_copy.ok()) return fault_copy.status();
  backend->fault_copy_ = *std::move(fault_copy);
  absl::StatusOr<std::unique_ptr<CudaSampler>> sampler =
      CudaSampler::Create(options.sampling_scratch_bytes, options.sampling_list_bytes, *stream);
  if (!sampler.ok()) return sampler.status();
  backend->sampler_ = *std::move(sampler);
  absl::StatusOr<std::unique_ptr<PinnedGemmForm>> form = PinnedGemmForm::Create(
      options.matrix_units && options.wgmma, backend->info_, *backend->uploader_, *stream);
  if (!form.ok()) return form.status();
  backend->pinned_form_ = *std::move(form);
  absl::StatusOr<std::unique_ptr<ExpertTables>> expert_tables = ExpertTables::Create(
      options.expert_table_bytes, backend->pinned_form_->IsByWgmma(), *backend->uploader_);
  if (!expert_tables.ok()) return expert_tables.status();
  backend->expert_tables_ = *std::move(expert_tables);
  if (options.matrix_units && options.library_products) {
    absl::StatusOr<std::unique_ptr<LibraryGemm>> library =
        LibraryGemm::Open(options.library_workspace_bytes);
    if (library.ok()) {
      backend->library_ = *std::move(library);
    } else if (library.status().code() == absl::StatusCode::kNotFound) {
      backend->no_library_ = std::string(library.status().message());
    } else {
      return library.status();
    }
  }
  absl::Status cleared = runtime::Fill(backend->fault(), 0, sizeof(uint32_t), *stream);
  if (!cleared.ok()) return cleared;
  if (absl::Status ready = runtime::Synchronize(*stream); !ready.ok()) return ready;
  return std::unique_ptr<Backend>(std::move(backend));
}

CudaBackend::~CudaBackend() {
  // Memory goes only when nothing on the stream can touch it; a device that has failed cannot.
  runtime::Synchronize(stream_).IgnoreError();
  graphs_.Clear();
  runtime::DestroyStream(stream_);
}

std::string CudaBackend::Describe() const {
  // Not which of the machine's devices it is: equal ones give equal bits, and a trace of one may be
  // replayed on another.
  std::string text = absl::StrCat("cuda ", info_.name, ", ", Architecture(info_), ", ",
                                  info_.multiprocessors, " multiprocessors, ",
                                  info_.memory_bytes >> 20, " MiB, kernels ", info_.code_tag);
  if (const std::string form = pinned_form_->Describe(); options_.matrix_units && !form.empty()) {
    absl::StrAppend(&text, ", ", form);
  }
  if (library_ != nullptr) {
    absl::StrAppend(&text, ", throughput products by ", library_->Version());
  } else if (options_.matrix_units) {
    absl::StrAppend(&text, ", throughput products by pinned kernels (", no_library_, ")");
  }
  return text;
}

absl::Status CudaBackend::CheckPolicy(const char* operation, Policy policy) const {
  if (policy == Policy::kPortable || options_.matrix_units) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(operation, ": policy ", std::string(NameOf(policy)),
                   " needs the weights as bf16, which this backend was told not to keep"));
}

absl::StatusOr<std::string> CudaBackend::NumericsTag(Policy policy) const {
  if (absl::Status status = CheckPolicy("cuda", policy); !status.ok()) return status;
  switch (policy) {
    case Policy::kPortable:
      return std::string(kPortableTag);
    case Policy::kPinned:
      return absl::StrCat("v1/pinned/cuda-", Architecture(info_), "-S4-", info_.code_tag);
    case Policy::kThroughput:
      break;
  }
  std::string tag = absl::StrCat("v1/throughput/cuda-", Architecture(info_), "-", info_.name, "-",
                                 info_.code_tag);
  if (library_ != nullptr) absl::StrAppend(&tag, "-", library_->Version());
  return tag;
}

absl::Status CudaBackend::Enter() { return runtime::UseDevice(options_.device); }

absl::StatusOr<std::unique_ptr<Buffer>> CudaBackend::Allocate(size_t size_bytes) {
  if (absl::Status status = Enter(); !status.ok()) return status;
  absl::StatusOr<std::unique_ptr<DeviceBuffer>> buffer = DeviceBuffer::Create(size_bytes);
  if (!buffer.ok()) return buffer.status();
  return std::unique_ptr<Buffer>(*std::move(buffer));
}

absl::StatusOr<int64_t> CudaBackend::FreeMemoryBytes() {
  if (absl::Status status = Enter(); !status.ok()) return status;
  return runtime::FreeMemoryBytes();
}

absl::Status CudaBackend::CopyToDevice(void* device, const void* host, size_t size_bytes) {
  if (absl::Status status = Enter(); !status.ok()) return status;
  return uploader_->Upload(device, host, size_bytes);
}

absl::Status CudaBackend::CopyToHost(void* host, const void* device, size_t size_bytes) {
  absl::Status status = Enter();
  if (status.ok()) status = runtime::CopyToHost(host, device, size_bytes, stream_);
  if (!status.ok()) return pinned_form_->Explained(status);
  return Synchronize();
}

absl::Status CudaBackend::Synchronize() { return TakeFault(); }

absl::Status CudaBackend::TakeFault() {
  absl::Status status = Enter();
  if (!status.ok()) return status;
  status = runtime::CopyToHost(fault_copy_->data(), fault(), sizeof(uint32_t), stream_);
  status.Update(runtime::Synchronize(stream_));
  if (!status.ok()) return pinned_form_->Explained(status);
  return FaultStatus(*static_cast<const uint32_t*>(fault_copy_->data()));
}

absl::Status CudaBackend::FaultStatus(uint32_t bits) {
  if (bits == 0) return absl::OkStatus();
  absl::Status status = runtime::Fill(fault(), 0, sizeof(uint32_t), stream_);
  if (!status.ok()) return status;
  std::string what;
  if ((bits & kFaultToken) != 0) absl::StrAppend(&what, " Embedding: a token is out of range;");
  if ((bits & kFaultRowIndex) != 0)
    absl::StrAppend(&what, " GatherRows: an index is out of range;");
  if ((bits & kFaultPosition) != 0) absl::StrAppend(&what, " Rope: a position is negative;");
  if ((bits & kFaultExpert) != 0) {
    absl::StrAppend(&what, " MoePermute: an expert is out of range;");
  }
  if ((bits & kFaultPlace) != 0) {
    absl::StrAppend(&what, " GroupedGemm or MoeCombine: an offset, row or place is out of range;");
  }
  what.pop_back();
  return absl::InvalidArgumentError(absl::StrCat("cuda:", what));
}

absl::StatusOr<std::unique_ptr<WeightMatrix>> CudaBackend::LoadMatrix(
    absl::Span<const StoredMatrix> parts, const LoadMatrixOptions& options) {
  if (absl::Status status = Enter(); !status.ok()) return status;
  absl::StatusOr<std::unique_ptr<CudaMatrix>> matrix =
      CudaMatrix::Load(parts, options, options_.matrix_units, weights_, *uploader_);
  if (!matrix.ok()) return matrix.status();
  absl::Status checked = pinned_form_->Check((*matrix)->bf16(), options, *uploader_);
  if (!checked.ok()) return checked;
  return std::unique_ptr<WeightMatrix>(*std::move(matrix));
}

absl::StatusOr<std::unique_ptr<KvCache>> CudaBackend::CreateKvCache(const KvCacheConfig& config) {
  if (absl::Status status = Enter(); !status.ok()) return status;
  return CudaKvCache::Create(config, stream_);
}

}  // namespace verbatim::kernels::cuda
