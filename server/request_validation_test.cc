// Tests that every field of a request is checked, and that the error names it.
#include "server/request_validation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "server/parse_error.h"

namespace verbatim::server {
namespace {

using ::testing::ElementsAre;
using ::testing::Pair;
using ::testing::StartsWith;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();
constexpr int32_t kHuge32 = std::numeric_limits<int32_t>::max();

RequestLimits Limits() {
  RequestLimits limits;
  limits.served_model_name = "tiny";
  limits.vocab_size = 100;
  limits.max_model_len = 32;
  limits.max_logprobs = 5;
  limits.max_n = 8;
  limits.max_prompt_text_bytes = 50;
  return limits;
}

v1::GenerateRequest GoodRequest() {
  v1::GenerateRequest request;
  request.mutable_token_ids()->add_ids(3);
  return request;
}

using Edit = std::function<void(v1::GenerateRequest&)>;

// `set` gives a value to one field of the sampling parameters.
template <typename Set, typename T>
Edit Sampling(Set set, T value) {
  return [=](v1::GenerateRequest& r) { (r.mutable_sampling()->*set)(value); };
}

using P = v1::SamplingParams;

TEST(RequestValidation, RefusesEveryBadValueByFieldName) {
  std::vector<std::pair<std::string, Edit>> cases;
  const auto floats = [&](const std::string& field, void (P::*set)(float),
                          const std::vector<float>& values) {
    for (float value : values) cases.emplace_back("sampling." + field + ": ", Sampling(set, value));
  };
  floats("temperature", &P::set_temperature, {-1, 1e-30f, 1e30f, kNan, kInf, -kInf});
  floats("top_p", &P::set_top_p, {-1, 0, 1.5f, 1e30f, kNan, kInf, -kInf});
  floats("min_p", &P::set_min_p, {-1, 1.5f, 1e30f, kNan, kInf, -kInf});
  floats("presence_penalty", &P::set_presence_penalty, {-2.5f, 2.5f, 1e30f, kNan, kInf, -kInf});
  floats("frequency_penalty", &P::set_frequency_penalty, {-2.5f, 2.5f, 1e30f, kNan, kInf, -kInf});
  floats("repetition_penalty", &P::set_repetition_penalty,
         {-1, 0, 1e-30f, 101, 1e30f, kNan, kInf, -kInf});
  for (int32_t value : {-2, -kHuge32}) {
    cases.emplace_back("sampling.top_k: ", Sampling(&P::set_top_k, value));
  }
  for (int64_t value : {int64_t{-1}, int64_t{0}, int64_t{9}, int64_t{1'000'000}, kHuge, -kHuge}) {
    cases.emplace_back("sampling.n: ", Sampling(&P::set_n, value));
  }
  for (int64_t value : {int64_t{-1}, int64_t{0}, int64_t{32}, int64_t{1} << 32, kHuge}) {
    cases.emplace_back("sampling.max_tokens: ", Sampling(&P::set_max_tokens, value));
  }
  for (int64_t value : {int64_t{-1}, int64_t{32}, int64_t{1} << 32, kHuge}) {
    cases.emplace_back("sampling.min_tokens: ", Sampling(&P::set_min_tokens, value));
  }
  for (int32_t value : {-1, 6, kHuge32}) {
    cases.emplace_back("sampling.logprobs: ", Sampling(&P::set_logprobs, value));
    cases.emplace_back("sampling.prompt_logprobs: ", Sampling(&P::set_prompt_logprobs, value));
  }
  for (int64_t id : {int64_t{-1}, int64_t{100}, int64_t{1} << 32, kHuge}) {
    cases.emplace_back("token_ids.ids[1]: token id " + std::to_string(id),
                       [=](auto& r) { r.mutable_token_ids()->add_ids(id); });
    cases.emplace_back("sampling.stop_token_ids[0]: token id " + std::to_string(id),
                       [=](auto& r) { r.mutable_sampling()->add_stop_token_ids(id); });
    cases.emplace_back("sampling.logit_bias[" + std::to_string(id) + "]: ",
                       [=](auto& r) { (*r.mutable_sampling()->mutable_logit_bias())[id] = 1; });
  }
  for (float bias : {-101.0f, 101.0f, kNan, kInf, -kInf}) {
    cases.emplace_back("sampling.logit_bias[7]: ",
                       [=](auto& r) { (*r.mutable_sampling()->mutable_logit_bias())[7] = bias; });
  }
  const auto add = [&](const std::string& start, const Edit& edit) {
    cases.emplace_back(start, edit);
  };
  add("sampling.min_tokens: 5", [](auto& r) {
    r.mutable_sampling()->set_max_tokens(4);
    r.mutable_sampling()->set_min_tokens(5);
  });
  add("sampling.max_tokens: 31 with 2 prompt tokens", [](auto& r) {
    r.mutable_token_ids()->add_ids(1);
    r.mutable_sampling()->set_max_tokens(31);
  });
  add("sampling.stop[1]: is empty", [](auto& r) {
    r.mutable_sampling()->add_stop("x");
    r.mutable_sampling()->add_stop("");
  });
  add("sampling.stop[0]: 1025 bytes",
      [](auto& r) { r.mutable_sampling()->add_stop(std::string(1025, 'x')); });
  add("sampling.stop: 65 strings", [](auto& r) {
    for (int i = 0; i < 65; ++i) r.mutable_sampling()->add_stop("x");
  });
  add("sampling.stop_token_ids: 65 ids", [](auto& r) {
    for (int i = 0; i < 65; ++i) r.mutable_sampling()->add_stop_token_ids(1);
  });
  add("sampling.logit_bias: 1025 entries", [](auto& r) {
    for (int i = 0; i < 1025; ++i) (*r.mutable_sampling()->mutable_logit_bias())[i] = 1;
  });
  add("model: 'other'", [](auto& r) { r.set_model("other"); });
  add("determinism: unknown value 7",
      [](auto& r) { r.set_determinism(static_cast<v1::Determinism>(7)); });
  add("determinism: unknown value -1",
      [](auto& r) { r.set_determinism(static_cast<v1::Determinism>(-1)); });
  add("cache_salt: 1025 bytes", [](auto& r) { r.set_cache_salt(std::string(1025, 's')); });
  add("request_id: 129 bytes", [](auto& r) { r.set_request_id(std::string(129, 'i')); });
  add("prompt: one of", [](auto& r) { r.clear_token_ids(); });
  add("token_ids.ids: the prompt has no tokens", [](auto& r) {
    r.mutable_token_ids();
    r.mutable_token_ids()->clear_ids();
  });
  add("token_ids.ids: 32 prompt tokens leave no room", [](auto& r) {
    for (int i = 0; i < 31; ++i) r.mutable_token_ids()->add_ids(1);
  });
  add("text: is empty", [](auto& r) { r.set_text(""); });
  add("text: 51 bytes; at most 50", [](auto& r) { r.set_text(std::string(51, 'x')); });
  add("chat.messages: is empty", [](auto& r) { r.mutable_chat(); });
  add("chat.messages[0].role: is empty",
      [](auto& r) { r.mutable_chat()->add_messages()->set_content("x"); });
  add("chat.messages: 4097 messages", [](auto& r) {
    for (int i = 0; i < 4097; ++i) r.mutable_chat()->add_messages()->set_role("user");
  });
  add("chat.messages: 55 bytes", [](auto& r) {
    auto* message = r.mutable_chat()->add_messages();
    message->set_role("user");
    message->set_content(std::string(51, 'x'));
  });

  for (const auto& [start, edit] : cases) {
    v1::GenerateRequest request = GoodRequest();
    edit(request);
    const auto result = ConvertGenerateRequest(request, Limits());
    ASSERT_FALSE(result.ok()) << "accepted:\n" << request.ShortDebugString().substr(0, 300);
    EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument) << result.status();
    EXPECT_THAT(std::string(result.status().message()), StartsWith(start));
  }
}

TEST(RequestValidation, AcceptsTheEdgesOfEveryRange) {
  const std::vector<Edit> cases = {
      [](auto&) {},
      Sampling(&P::set_temperature, 0.0f),
      Sampling(&P::set_temperature, -0.0f),
      Sampling(&P::set_temperature, 1e-4f),
      Sampling(&P::set_temperature, 100.0f),
      Sampling(&P::set_top_k, -1),
      Sampling(&P::set_top_k, 0),
      Sampling(&P::set_top_k, 1),
      Sampling(&P::set_top_k, kHuge32),
      Sampling(&P::set_top_p, 1e-30f),
      Sampling(&P::set_top_p, 1.0f),
      Sampling(&P::set_min_p, 0.0f),
      Sampling(&P::set_min_p, 1.0f),
      Sampling(&P::set_presence_penalty, -2.0f),
      Sampling(&P::set_frequency_penalty, 2.0f),
      Sampling(&P::set_repetition_penalty, 100.0f),
      Sampling(&P::set_n, 8),
      Sampling(&P::set_max_tokens, 31),
      Sampling(&P::set_min_tokens, 0),
      Sampling(&P::set_logprobs, 0),
      Sampling(&P::set_prompt_logprobs, 5),
      [](auto& r) { r.set_model("tiny"); },
      [](auto& r) { r.set_text(std::string(50, 'x')); },
      [](auto& r) { r.mutable_token_ids()->add_ids(99); },
  };
  for (const Edit& edit : cases) {
    v1::GenerateRequest request = GoodRequest();
    edit(request);
    const auto result = ConvertGenerateRequest(request, Limits());
    EXPECT_TRUE(result.ok()) << result.status() << "\n" << request.ShortDebugString();
  }
}

TEST(RequestValidation, ConvertsEveryField) {
  v1::GenerateRequest request = GoodRequest();
  P& p = *request.mutable_sampling();
  p.set_temperature(0.5f);
  p.set_top_k(4);
  p.set_top_p(0.25f);
  p.set_min_p(0.125f);
  p.set_presence_penalty(1);
  p.set_frequency_penalty(-1);
  p.set_repetition_penalty(2);
  (*p.mutable_logit_bias())[9] = 5;
  (*p.mutable_logit_bias())[2] = -5;
  p.set_seed(1ull << 63);
  p.set_n(3);
  p.add_stop("end");
  p.add_stop_token_ids(42);
  p.set_ignore_eos(true);
  p.set_max_tokens(10);
  p.set_min_tokens(2);
  p.set_logprobs(3);
  p.set_prompt_logprobs(0);
  p.set_skip_special_tokens(false);
  p.set_include_stop_str_in_output(true);
  request.set_determinism(v1::DETERMINISM_PINNED);
  request.set_cache_salt("salt");
  request.set_disable_prefix_cache(true);
  const auto out = ConvertGenerateRequest(request, Limits());
  ASSERT_TRUE(out.ok()) << out.status();
  const engine::SamplingOptions& s = out->sampling;
  EXPECT_EQ(s.temperature, 0.5f);
  EXPECT_EQ(s.top_k, 4);
  EXPECT_EQ(s.top_p, 0.25f);
  EXPECT_EQ(s.min_p, 0.125f);
  EXPECT_EQ(s.presence_penalty, 1);
  EXPECT_EQ(s.frequency_penalty, -1);
  EXPECT_EQ(s.repetition_penalty, 2);
  EXPECT_THAT(s.logit_bias, ElementsAre(Pair(2, -5), Pair(9, 5)));
  EXPECT_EQ(s.seed, 1ull << 63);
  EXPECT_EQ(s.n, 3);
  EXPECT_THAT(s.stop, ElementsAre("end"));
  EXPECT_THAT(s.stop_token_ids, ElementsAre(42));
  EXPECT_TRUE(s.ignore_eos);
  EXPECT_EQ(s.max_tokens, 10);
  EXPECT_EQ(s.min_tokens, 2);
  EXPECT_EQ(s.logprobs, 3);
  EXPECT_EQ(s.prompt_logprobs, 0);
  EXPECT_FALSE(s.skip_special_tokens);
  EXPECT_TRUE(s.include_stop_str_in_output);
  EXPECT_EQ(out->policy, kernels::Policy::kPinned);
  EXPECT_EQ(out->cache_salt, "salt");
  EXPECT_FALSE(out->read_prefix_cache);
  EXPECT_THAT(out->prompt, ElementsAre(3));
}

TEST(RequestValidation, DefaultsAreTheServers) {
  RequestLimits limits = Limits();
  limits.default_policy = kernels::Policy::kPortable;
  limits.default_seed = 17;
  const auto out = ConvertGenerateRequest(GoodRequest(), limits);
  ASSERT_TRUE(out.ok());
  EXPECT_EQ(out->policy, kernels::Policy::kPortable);
  EXPECT_EQ(out->sampling.seed, 17u);
  EXPECT_EQ(out->sampling.temperature, 1.0f);
  EXPECT_EQ(out->sampling.logprobs, -1);
  EXPECT_FALSE(out->sampling.max_tokens.has_value());
}

TEST(ParseError, NamesTheStringThatIsNotUtf8) {
  v1::GenerateRequest request;
  request.set_text("abc\xff");
  const std::string bytes = request.SerializeAsString();
  ASSERT_FALSE(v1::GenerateRequest().ParseFromString(bytes));
  EXPECT_EQ(DescribeParseError(*v1::GenerateRequest::descriptor(), bytes).message(),
            "text: not valid UTF-8 at byte 3");

  request.set_text("fine");
  request.mutable_sampling()->add_stop("fine");
  request.mutable_sampling()->add_stop("\xed\xa0\x80");  // a surrogate
  EXPECT_EQ(
      DescribeParseError(*v1::GenerateRequest::descriptor(), request.SerializeAsString()).message(),
      "sampling.stop[1]: not valid UTF-8 at byte 0");

  request.clear_sampling();
  request.mutable_chat()->add_messages()->set_content("é");
  request.mutable_chat()->add_messages()->set_role("\xc3");
  EXPECT_EQ(
      DescribeParseError(*v1::GenerateRequest::descriptor(), request.SerializeAsString()).message(),
      "chat.messages[1].role: not valid UTF-8 at byte 0");
}

TEST(ParseError, NamesBrokenEncoding) {
  const std::string truncated("\x12\x7fzz", 4);  // field 2, 127 bytes announced
  ASSERT_FALSE(v1::GenerateRequest().ParseFromString(truncated));
  EXPECT_EQ(DescribeParseError(*v1::GenerateRequest::descriptor(), truncated).message(),
            "request: not a well-formed verbatim.v1.GenerateRequest");
}

}  // namespace
}  // namespace verbatim::server
