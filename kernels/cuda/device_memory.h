// Memory of the device and the way into it: buffers, and page-locked staging for uploads.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/cuda/runtime.h"

namespace verbatim::kernels::cuda {

class DeviceBuffer final : public Buffer {
 public:
  static absl::StatusOr<std::unique_ptr<DeviceBuffer>> Create(size_t size_bytes);
  ~DeviceBuffer() override { runtime::Free(data_); }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  void* data() override { return data_; }
  size_t size_bytes() const override { return size_bytes_; }

 private:
  DeviceBuffer(void* data, size_t size_bytes) : data_(data), size_bytes_(size_bytes) {}
  void* const data_;
  const size_t size_bytes_;
};

class PinnedBuffer {
 public:
  static absl::StatusOr<std::unique_ptr<PinnedBuffer>> Create(size_t size_bytes);
  ~PinnedBuffer() { runtime::FreePinned(data_); }
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;
  void* data() const { return data_; }
  size_t size_bytes() const { return size_bytes_; }

 private:
  PinnedBuffer(void* data, size_t size_bytes) : data_(data), size_bytes_(size_bytes) {}
  void* const data_;
  const size_t size_bytes_;
};

// Copies pageable host memory to the device in stream order without waiting for the stream: bytes
// go through page-locked slots, each used again once its copy has passed.
class Uploader {
 public:
  static absl::StatusOr<std::unique_ptr<Uploader>> Create(size_t slot_bytes, int slots,
                                                          Stream stream);
  ~Uploader();
  Uploader(const Uploader&) = delete;
  Uploader& operator=(const Uploader&) = delete;

  // Closed, uploads are refused with FAILED_PRECONDITION: in a recording they would copy, in every
  // replay, whatever the slot holds by then.
  void set_closed(bool closed) { closed_ = closed; }
  bool closed() const { return closed_; }
  // In whose order uploads come.
  Stream stream() const { return stream_; }

  // `host` may be changed as soon as this returns.
  absl::Status Upload(void* device, const void* host, size_t size_bytes);
  // Rows of row_bytes each to places `pitch_bytes` apart, what lies between them zero.
  absl::Status UploadRows(void* device, size_t pitch_bytes, const void* host, size_t row_bytes,
                          size_t rows);

 private:
  struct Slot {
    std::unique_ptr<PinnedBuffer> memory;
    runtime::Event* passed = nullptr;
    bool used = false;
  };
  explicit Uploader(Stream stream) : stream_(stream) {}
  // Uploads size_bytes that fill(done, count, to) puts into page-locked memory piece by piece.
  using Fill = absl::FunctionRef<void(size_t done, size_t count, char* to)>;
  absl::Status UploadFilled(void* device, size_t size_bytes, Fill fill);

  const Stream stream_;
  std::vector<Slot> slots_;
  size_t next_ = 0;
  bool closed_ = false;
};

}  // namespace verbatim::kernels::cuda
