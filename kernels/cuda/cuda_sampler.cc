// Checks, marshalling, and the few steps that are done on the host in double.
#include "kernels/cuda/cuda_sampler.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/runtime.h"
#include "kernels/numerics/elementary64.h"
#include "kernels/ops/checks.h"

namespace verbatim::kernels::cuda {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int32_t kNegativeInfinityKey = static_cast<int32_t>(0x807fffffu);

int64_t TopOf(const SamplingRow& row, int64_t vocab) {
  return std::min<int64_t>(std::max(row.num_logprobs, 0), vocab);
}

// Bytes of a row in the argument and reply buffers, at most.
size_t ArgumentBytes(const SamplingRow& row) {
  return sizeof(SampleRequest) + row.logit_bias.size() * sizeof(TokenBias) +
         row.counts.size() * sizeof(TokenUse) + row.banned.size() * sizeof(int32_t);
}
size_t ReplyBytes(const SamplingRow& row, int64_t vocab) {
  return sizeof(SampleReply) + static_cast<size_t>(TopOf(row, vocab)) * sizeof(TopToken);
}
constexpr size_t kSlack = 4 * 256;  // alignment of the arrays in a buffer

float ValueOf(int32_t key) {
  const int32_t bits = key ^ (key < 0 ? 0x7fffffff : 0);
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

// Arrays one after the other in a buffer.
class Layout {
 public:
  size_t Take(size_t size_bytes) {
    const size_t start = used_;
    used_ += (size_bytes + 255) / 256 * 256;
    return start;
  }
  size_t used() const { return used_; }

 private:
  size_t used_ = 0;
};

SampleRequest RequestOf(const SamplingRow& row, int64_t vocab) {
  SampleRequest request = {};
  request.temperature = row.temperature;
  request.min_p = row.min_p;
  request.presence_penalty = row.presence_penalty;
  request.frequency_penalty = row.frequency_penalty;
  request.repetition_penalty = row.repetition_penalty;
  request.top_k = row.top_k;
  if (row.top_p < 1.0f) {
    int exponent;
    const float fraction = std::frexp(row.top_p, &exponent);
    request.top_p_mantissa = static_cast<uint32_t>(std::ldexp(fraction, 24));
    request.top_p_shift = 24 - exponent;
  }
  request.seed = row.seed;
  request.position = row.position;
  request.sample_index = row.sample_index;
  request.num_logprobs = row.num_logprobs < 0 ? -1 : static_cast<int32_t>(TopOf(row, vocab));
  request.forced_token = row.forced_token;
  return request;
}

void FillResult(const SampleReply& reply, const TopToken* top, const SamplingRow& row,
                int64_t vocab, SampledRow* result) {
  *result = SampledRow();
  if (reply.finite == 0) {
    result->finite = false;
    return;
  }
  result->token = reply.token;
  result->fingerprint = {reply.fingerprint_a, reply.fingerprint_b};
  if (vocab == 1 || reply.second_key == kNegativeInfinityKey) {
    result->top_margin = reply.max_key == kNegativeInfinityKey ? 0.0f : kInfinity;
  } else {
    result->top_margin = ValueOf(reply.max_key) - ValueOf(reply.second_key);
  }
  if (row.num_logprobs < 0) return;
  const float max = ValueOf(reply.max_key);
  const double log_total =
      max == -kInfinity ? 0.0 : numerics::Log64(static_cast<double>(reply.total) * 0x1p-40);
  const auto logprob = [&](float logit) {
    if (logit == -kInfinity) return -kInfinity;
    return static_cast<float>((static_cast<double>(logit) - static_cast<double>(max)) - log_total);
  };
  if (reply.token >= 0) result->chosen = {reply.token, logprob(reply.logit), reply.rank};
  std::vector<TopToken> sorted(top, top + TopOf(row, vocab));
  std::sort(sorted.begin(), sorted.end(), [](const TopToken& a, const TopToken& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
  });
  int32_t rank = 0;
  for (const TopToken& entry : sorted) {
    result->top.push_back({entry.token, logprob(entry.logit), ++rank});
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<CudaSampler>> CudaSampler::Create(size_t scratch_bytes,
                                                                 size_t argument_bytes,
                                                                 Stream stream) {
  auto sampler = std::unique_ptr<CudaSampler>(new CudaSampler(stream));
  const struct {
    std::unique_ptr<DeviceBuffer>* buffer;
    size_t size_bytes;
  } device[] = {{&sampler->scratch_, scratch_bytes},
                {&sampler->device_arguments_, argument_bytes},
                {&sampler->device_replies_, argument_bytes}};
  for (const auto& wanted : device) {
    absl::StatusOr<std::unique_ptr<DeviceBuffer>> buffer = DeviceBuffer::Create(wanted.size_bytes);
    if (!buffer.ok()) return buffer.status();
    *wanted.buffer = *std::move(buffer);
  }
  absl::StatusOr<std::unique_ptr<PinnedBuffer>> arguments = PinnedBuffer::Create(argument_bytes);
  if (!arguments.ok()) return arguments.status();
  sampler->arguments_ = *std::move(arguments);
  absl::StatusOr<std::unique_ptr<PinnedBuffer>> replies = PinnedBuffer::Create(argument_bytes);
  if (!replies.ok()) return replies.status();
  sampler->replies_ = *std::move(replies);
  return sampler;
}

absl::Status CudaSampler::Sample(const SamplingParams& params, const uint32_t* fault,
                                 uint32_t* faults) {
  *faults = 0;
  const int64_t rows = static_cast<int64_t>(params.rows.size());
  if (params.results.size() != params.rows.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("Sample: ", rows, " rows but ", params.results.size(), " results"));
  }
  if (rows == 0) return absl::OkStatus();
  if (params.logits == nullptr || params.vocab < 1 ||
      params.vocab > std::numeric_limits<int32_t>::max() ||
      (rows > 1 && params.stride < params.vocab)) {
    return absl::InvalidArgumentError(
        absl::StrCat("Sample: vocab ", params.vocab, ", stride ", params.stride,
                     params.logits == nullptr ? ", logits are missing" : ""));
  }
  for (int64_t i = 0; i < rows; ++i) {
    if (std::string error = SamplingRowError(params.rows[i], params.vocab); !error.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("Sample: rows[", i, "]: ", error, "; vocab is ", params.vocab));
    }
  }
  const int64_t most_rows =
      static_cast<int64_t>(scratch_->size_bytes() / sizeof(float)) / params.vocab;
  for (int64_t first = 0; first < rows;) {
    size_t argument_bytes = kSlack, reply_bytes = kSlack;
    int64_t count = 0;
    while (first + count < rows && count < most_rows) {
      const SamplingRow& row = params.rows[first + count];
      argument_bytes += ArgumentBytes(row);
      reply_bytes += ReplyBytes(row, params.vocab);
      if (argument_bytes > arguments_->size_bytes() || reply_bytes > replies_->size_bytes()) break;
      ++count;
    }
    if (count == 0) {
      return absl::ResourceExhaustedError(
          absl::StrCat("Sample: rows[", first, "] with ", params.vocab,
                       " logits does not fit the memory reserved for sampling"));
    }
    if (absl::Status status = SampleSlice(params, first, count, fault, faults); !status.ok()) {
      return status;
    }
    first += count;
  }
  return absl::OkStatus();
}

absl::Status CudaSampler::SampleSlice(const SamplingParams& params, int64_t first, int64_t count,
                                      const uint32_t* fault, uint32_t* faults) {
  std::vector<SampleRequest> requests;
  std::vector<TokenBias> biases;
  std::vector<TokenUse> uses;
  std::vector<int32_t> banned;
  int32_t top = 0;
  for (int64_t i = first; i < first + count; ++i) {
    const SamplingRow& row = params.rows[i];
    SampleRequest request = RequestOf(row, params.vocab);
    request.bias_begin = static_cast<int32_t>(biases.size());
    request.bias_count = static_cast<int32_t>(row.logit_bias.size());
    for (const auto& [token, bias] : row.logit_bias) biases.push_back({token, bias});
    request.use_begin = static_cast<int32_t>(uses.size());
    if (HasPenalty(row)) {
      request.use_count = static_cast<int32_t>(row.counts.size());
      for (const TokenCount& use : row.counts) {
        uses.push_back({use.token, use.in_prompt, use.in_output});
      }
    }
    request.banned_begin = static_cast<int32_t>(banned.size());
    request.banned_count = static_cast<int32_t>(row.banned.size());
    banned.insert(banned.end(), row.banned.begin(), row.banned.end());
    request.top_begin = top;
    top += static_cast<int32_t>(TopOf(row, params.vocab));
    requests.push_back(request);
  }
  Layout layout;
  const auto place = [&](const auto& values) {
    const size_t size_bytes = values.size() * sizeof(values[0]);
    const size_t at = layout.Take(size_bytes);
    if (size_bytes > 0) {
      std::memcpy(static_cast<char*>(arguments_->data()) + at, values.data(), size_bytes);
    }
    return static_cast<char*>(device_arguments_->data()) + at;
  };
  char* const device_requests = place(requests);
  char* const device_biases = place(biases);
  char* const device_uses = place(uses);
  char* const device_banned = place(banned);
  absl::Status status =
      runtime::CopyToDevice(device_arguments_->data(), arguments_->data(), layout.used(), stream_);
  if (!status.ok()) return status;

  Layout answers;
  const size_t replies_at = answers.Take(static_cast<size_t>(count) * sizeof(SampleReply));
  const size_t top_at = answers.Take(static_cast<size_t>(top) * sizeof(TopToken));
  const size_t fault_at = answers.Take(sizeof(uint32_t));
  char* const device_replies = static_cast<char*>(device_replies_->data());
  status = runtime::LaunchStatus(
      "Sample",
      LaunchSample({.logits = params.logits + first * params.stride,
                    .stride = params.stride,
                    .vocab = params.vocab,
                    .rows = count,
                    .requests = reinterpret_cast<const SampleRequest*>(device_requests),
                    .biases = reinterpret_cast<const TokenBias*>(device_biases),
                    .uses = reinterpret_cast<const TokenUse*>(device_uses),
                    .banned = reinterpret_cast<const int32_t*>(device_banned),
                    .scratch = static_cast<float*>(scratch_->data()),
                    .replies = reinterpret_cast<SampleReply*>(device_replies + replies_at),
                    .top = reinterpret_cast<TopToken*>(device_replies + top_at),
                    .fault = fault,
                    .fault_reply = reinterpret_cast<uint32_t*>(device_replies + fault_at)},
                   stream_));
  if (!status.ok()) return status;
  status = runtime::CopyToHost(replies_->data(), device_replies, answers.used(), stream_);
  if (!status.ok()) return status;
  if (status = runtime::Synchronize(stream_); !status.ok()) return status;
  const char* const host = static_cast<const char*>(replies_->data());
  const auto* replies = reinterpret_cast<const SampleReply*>(host + replies_at);
  const auto* tokens = reinterpret_cast<const TopToken*>(host + top_at);
  uint32_t fault_bits;
  std::memcpy(&fault_bits, host + fault_at, sizeof(fault_bits));
  *faults |= fault_bits;
  for (int64_t i = 0; i < count; ++i) {
    FillResult(replies[i], tokens + requests[i].top_begin, params.rows[first + i], params.vocab,
               &params.results[first + i]);
  }
  return absl::OkStatus();
}

}  // namespace verbatim::kernels::cuda
