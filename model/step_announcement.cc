// What rank 0 tells the other ranks to compute.
#include "model/step_announcement.h"

#include <cstring>
#include <type_traits>

namespace verbatim::model {
namespace {

class Writer {
 public:
  template <class T>
  void Put(T value) {
    static_assert(std::is_trivially_copyable_v<T>);
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  template <class T>
  void PutAll(const T* values, size_t count) {
    Put(static_cast<uint64_t>(count));
    if (count > 0) bytes_.append(reinterpret_cast<const char*>(values), count * sizeof(T));
  }
  std::string Take() { return std::move(bytes_); }

 private:
  std::string bytes_;
};

class Reader {
 public:
  explicit Reader(const std::string& bytes) : bytes_(bytes) {}

  template <class T>
  T Get() {
    T value{};
    if (bytes_.size() - at_ < sizeof(T)) {
      ok_ = false;
      return value;
    }
    std::memcpy(&value, bytes_.data() + at_, sizeof(T));
    at_ += sizeof(T);
    return value;
  }
  // A vector or a string.
  template <class Values>
  void GetAll(Values* values) {
    using T = typename Values::value_type;
    const uint64_t count = Get<uint64_t>();
    if (!ok_ || count > (bytes_.size() - at_) / sizeof(T)) {
      ok_ = false;
      return;
    }
    values->resize(count);
    if (count > 0) std::memcpy(values->data(), bytes_.data() + at_, count * sizeof(T));
    at_ += count * sizeof(T);
  }
  bool ok() const { return ok_; }
  bool done() const { return ok_ && at_ == bytes_.size(); }

 private:
  const std::string& bytes_;
  size_t at_ = 0;
  bool ok_ = true;
};

// A span without its pages, which follow one another.
struct SpanHeader {
  int32_t first_row, num_rows, first_position, num_pages;
};

}  // namespace

std::string EncodeForward(const ForwardBatch& batch, const kernels::NumericMode& mode,
                          const DecodeTerms& terms) {
  std::vector<SpanHeader> spans;
  std::vector<int32_t> pages;
  for (const kernels::SequenceSpan& span : batch.spans) {
    spans.push_back({span.first_row, span.num_rows, span.first_position, span.num_pages});
    pages.insert(pages.end(), span.pages, span.pages + span.num_pages);
  }
  Writer out;
  out.Put(uint8_t{0});
  out.Put(mode.policy);
  out.Put(mode.activations);
  out.PutAll(batch.tokens.data(), batch.tokens.size());
  out.PutAll(batch.positions.data(), batch.positions.size());
  out.PutAll(batch.capacity_exempt.data(), batch.capacity_exempt.size());
  out.PutAll(spans.data(), spans.size());
  out.PutAll(pages.data(), pages.size());
  out.Put(terms.rows);
  out.Put(static_cast<uint8_t>(terms.replayable));
  out.PutAll(terms.plan.data(), terms.plan.size());
  return out.Take();
}

std::string EncodeLogits(absl::Span<const int32_t> rows, const kernels::NumericMode& mode) {
  Writer out;
  out.Put(uint8_t{1});
  out.Put(mode.policy);
  out.Put(mode.activations);
  out.PutAll(rows.data(), rows.size());
  return out.Take();
}

absl::Status DecodeStep(const std::string& bytes, StepAnnouncement* step) {
  absl::Status malformed = absl::InvalidArgumentError("a malformed step was announced");
  *step = {};
  Reader in(bytes);
  const uint8_t kind = in.Get<uint8_t>();
  step->mode.policy = in.Get<kernels::Policy>();
  step->mode.activations = in.Get<kernels::ActivationType>();
  if (kind > 1) return malformed;
  step->logits = kind == 1;
  if (step->logits) {
    in.GetAll(&step->logit_rows);
    return in.done() ? absl::OkStatus() : malformed;
  }
  std::vector<SpanHeader> spans;
  in.GetAll(&step->batch.tokens);
  in.GetAll(&step->batch.positions);
  in.GetAll(&step->batch.capacity_exempt);
  in.GetAll(&spans);
  in.GetAll(&step->pages);
  step->terms.rows = in.Get<int64_t>();
  step->terms.replayable = in.Get<uint8_t>() != 0;
  in.GetAll(&step->terms.plan);
  if (!in.done()) return malformed;
  size_t at = 0;
  for (const SpanHeader& span : spans) {
    if (span.num_pages < 0 || step->pages.size() - at < static_cast<size_t>(span.num_pages)) {
      return malformed;
    }
    step->batch.spans.push_back({.first_row = span.first_row,
                                 .num_rows = span.num_rows,
                                 .first_position = span.first_position,
                                 .pages = step->pages.data() + at,
                                 .num_pages = span.num_pages});
    at += static_cast<size_t>(span.num_pages);
  }
  return at == step->pages.size() ? absl::OkStatus() : malformed;
}

absl::Status FollowSteps(Transformer& transformer, kernels::KvCache& cache,
                         parallel::Communicator& communicator) {
  StepAnnouncement step;
  while (true) {
    const absl::StatusOr<std::string> bytes = communicator.NextAnnouncement();
    if (absl::IsOutOfRange(bytes.status())) return absl::OkStatus();
    if (!bytes.ok()) return bytes.status();
    absl::Status status = DecodeStep(*bytes, &step);
    if (status.ok()) {
      status = step.logits ? transformer.ComputeLogits(step.logit_rows, step.mode).status()
                           : transformer.FollowForward(step.batch, step.mode, cache, step.terms);
    }
    if (status.ok()) continue;
    communicator.Abort(status);
    return communicator.failure();
  }
}

}  // namespace verbatim::model
