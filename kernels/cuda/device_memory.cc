// Buffers and staged uploads.
#include "kernels/cuda/device_memory.h"

#include <algorithm>
#include <cstring>

namespace verbatim::kernels::cuda {

absl::StatusOr<std::unique_ptr<DeviceBuffer>> DeviceBuffer::Create(size_t size_bytes) {
  // An empty buffer has an address too.
  absl::StatusOr<void*> data = runtime::Allocate(std::max<size_t>(size_bytes, 1));
  if (!data.ok()) return data.status();
  return std::unique_ptr<DeviceBuffer>(new DeviceBuffer(*data, size_bytes));
}

absl::StatusOr<std::unique_ptr<PinnedBuffer>> PinnedBuffer::Create(size_t size_bytes) {
  absl::StatusOr<void*> data = runtime::AllocatePinned(std::max<size_t>(size_bytes, 1));
  if (!data.ok()) return data.status();
  return std::unique_ptr<PinnedBuffer>(new PinnedBuffer(*data, size_bytes));
}

absl::StatusOr<std::unique_ptr<Uploader>> Uploader::Create(size_t slot_bytes, int slots,
                                                           Stream stream) {
  auto uploader = std::unique_ptr<Uploader>(new Uploader(stream));
  for (int i = 0; i < slots; ++i) {
    absl::StatusOr<std::unique_ptr<PinnedBuffer>> memory = PinnedBuffer::Create(slot_bytes);
    if (!memory.ok()) return memory.status();
    absl::StatusOr<runtime::Event*> passed = runtime::CreateEvent();
    if (!passed.ok()) return passed.status();
    uploader->slots_.push_back({.memory = *std::move(memory), .passed = *passed});
  }
  return uploader;
}

Uploader::~Uploader() {
  for (Slot& slot : slots_) runtime::DestroyEvent(slot.passed);
}

absl::Status Uploader::UploadFilled(void* device, size_t size_bytes, Fill fill) {
  if (closed_) return absl::FailedPreconditionError("cuda: an upload in a step that is recorded");
  for (size_t done = 0; done < size_bytes;) {
    Slot& slot = slots_[next_];
    next_ = (next_ + 1) % slots_.size();
    if (slot.used) {
      if (absl::Status status = runtime::WaitForEvent(slot.passed); !status.ok()) return status;
    }
    const size_t count = std::min(size_bytes - done, slot.memory->size_bytes());
    fill(done, count, static_cast<char*>(slot.memory->data()));
    absl::Status status = runtime::CopyToDevice(static_cast<char*>(device) + done,
                                                slot.memory->data(), count, stream_);
    if (!status.ok()) return status;
    slot.used = true;
    status = runtime::RecordEvent(slot.passed, stream_);
    if (!status.ok()) return status;
    done += count;
  }
  return absl::OkStatus();
}

absl::Status Uploader::Upload(void* device, const void* host, size_t size_bytes) {
  return UploadFilled(device, size_bytes, [&](size_t done, size_t count, char* to) {
    std::memcpy(to, static_cast<const char*>(host) + done, count);
  });
}

absl::Status Uploader::UploadRows(void* device, size_t pitch_bytes, const void* host,
                                  size_t row_bytes, size_t rows) {
  if (row_bytes == pitch_bytes) return Upload(device, host, rows * row_bytes);
  return UploadFilled(device, rows * pitch_bytes, [&](size_t done, size_t count, char* to) {
    for (size_t end = done + count; done < end;) {
      const size_t row = done / pitch_bytes, at = done % pitch_bytes;
      const size_t piece = std::min(end - done, (at < row_bytes ? row_bytes : pitch_bytes) - at);
      if (at < row_bytes) {
        std::memcpy(to, static_cast<const char*>(host) + row * row_bytes + at, piece);
      } else {
        std::memset(to, 0, piece);
      }
      done += piece;
      to += piece;
    }
  });
}

}  // namespace verbatim::kernels::cuda
