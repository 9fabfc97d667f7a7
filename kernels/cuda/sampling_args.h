// What the sampling kernel is called with and what it answers, row by row.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/stream.h"

namespace verbatim::kernels::cuda {

struct TokenBias {
  int32_t token;
  float bias;
};
struct TokenUse {
  int32_t token, in_prompt, in_output;
};

// A SamplingRow with its spans as ranges of flat arrays. top_p is mantissa · 2^-shift exactly; a
// mantissa of 0 keeps all.
struct SampleRequest {
  float temperature, min_p;
  float presence_penalty, frequency_penalty, repetition_penalty;
  int32_t top_k;
  uint32_t top_p_mantissa;
  int32_t top_p_shift;
  int32_t bias_begin, bias_count;
  int32_t use_begin, use_count;  // no uses: no penalty
  int32_t banned_begin, banned_count;
  uint64_t seed;
  uint32_t position, sample_index;
  int32_t num_logprobs;  // at most the vocabulary; -1: none
  int32_t forced_token;
  int32_t top_begin;  // into SampleArgs::top
};

struct SampleReply {
  uint64_t fingerprint_a, fingerprint_b;
  uint64_t total;  // of the raw logits' integer weights; with num_logprobs >= 0
  int32_t max_key, second_key;
  int32_t token;
  int32_t finite;
  int32_t rank;  // of the token, from 1; with num_logprobs >= 0
  float logit;   // raw, of the token
};

struct TopToken {
  int32_t token;
  float logit;
};

struct SampleArgs {
  const float* logits;
  int64_t stride;
  int64_t vocab;
  int64_t rows;
  const SampleRequest* requests;
  const TokenBias* biases;
  const TokenUse* uses;
  const int32_t* banned;
  float* scratch;  // [rows, vocab]
  SampleReply* replies;
  TopToken* top;  // of each row from top_begin on, in no order
  // What kernels before it have to report, fetched with the replies.
  const uint32_t* fault;
  uint32_t* fault_reply;
};

// One block a row; 0 or the error code of the launch.
int LaunchSample(const SampleArgs& args, Stream stream);

}  // namespace verbatim::kernels::cuda
