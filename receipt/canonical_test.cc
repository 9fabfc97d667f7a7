// Tests of the canonical form: one form, nothing lost, nothing accepted that it does not have.
#include "receipt/canonical.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <random>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "nlohmann/json.hpp"
#include "receipt/canonical_json.h"
#include "receipt/receipt_test_support.h"
#include "receipt/signature.h"

namespace verbatim::receipt {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::StartsWith;

Receipt Signed() {
  Receipt receipt = SampleReceipt();
  receipt.signature = {.key_id = std::string(32, 'd'), .value = std::string(128, 'e')};
  return receipt;
}

std::string ErrorOf(const std::string& text) {
  const absl::StatusOr<Parsed> parsed = ParseReceipt(text, "r.json");
  return parsed.ok() ? "accepted" : std::string(parsed.status().message());
}

// The text after a change to its parsed form, with checksums that fit unless `stale`.
std::string Changed(const std::function<void(json&)>& change, bool stale = false) {
  json object = json::parse(ToCanonicalJson(Signed()));
  change(object);
  if (!stale) object["checksums"] = Checksums(object);
  return object.dump();
}

TEST(CanonicalTest, RoundTripKeepsEveryField) {
  for (const Receipt& receipt : {SampleReceipt(), Signed()}) {
    const std::string text = ToCanonicalJson(receipt);
    const absl::StatusOr<Parsed> parsed = ParseReceipt(text);
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(parsed->receipt, receipt);
    EXPECT_EQ(parsed->altered_field, std::nullopt);
    EXPECT_EQ(ToCanonicalJson(parsed->receipt), text);
  }
}

TEST(CanonicalTest, RandomReceiptsSurviveTheRoundTrip) {
  std::mt19937_64 random(1);
  const auto any_float = [&] {
    float value;
    do {
      const uint32_t bits = static_cast<uint32_t>(random());
      memcpy(&value, &bits, sizeof(value));
    } while (!std::isfinite(value));
    return value;
  };
  for (int i = 0; i < 200; ++i) {
    Receipt r = SampleReceipt();
    r.seed = random();
    r.sampling.temperature = any_float();
    r.sampling.top_p = any_float();
    r.sampling.min_p = -0.0f;
    r.sampling.logit_bias.clear();
    for (int64_t token = 0; token < 20; ++token) {
      if (random() % 2 == 0) r.sampling.logit_bias.emplace_back(token * 1000, any_float());
    }
    r.prompt_token_ids.resize(1 + random() % 100);
    for (int64_t& token : r.prompt_token_ids) token = static_cast<int64_t>(random() >> 33);
    r.output_token_ids.resize(1 + random() % 100);
    r.row_fingerprints.resize(r.output_token_ids.size());
    for (auto& row : r.row_fingerprints) row = {random(), random()};
    const std::string text = ToCanonicalJson(r);
    const absl::StatusOr<Parsed> parsed = ParseReceipt(text);
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(ToCanonicalJson(parsed->receipt), text);
    EXPECT_EQ(parsed->receipt, r);
  }
}

// scripts/make_receipt_golden.py wrote it, signature included, without this code.
TEST(CanonicalTest, TheGoldenFileIsWhatIsWritten) {
  std::ifstream file("receipt/testdata/golden.json", std::ios::binary);
  const std::string golden{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  const TemporaryDirectory directory;
  Receipt receipt = SampleReceipt();
  ASSERT_TRUE(
      SigningKey::Load(directory.Write("key", Ed25519Pair(1).private_pem))->Sign(&receipt).ok());
  EXPECT_TRUE(ToCanonicalJson(receipt) + "\n" == golden)
      << "the canonical form may change only with the receipt version: "
      << ToCanonicalJson(receipt);
}

TEST(CanonicalTest, WhiteSpaceAndOrderOfKeysDoNotMatter) {
  const Receipt receipt = Signed();
  const std::string pretty = nlohmann::ordered_json::parse(ToCanonicalJson(receipt)).dump(2);
  const absl::StatusOr<Parsed> parsed = ParseReceipt(pretty);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->receipt, receipt);
}

// A checksum names the field that was changed, whatever the change.
TEST(CanonicalTest, EveryChangedFieldIsNamed) {
  const json original = json::parse(ToCanonicalJson(Signed()));
  std::set<std::string> named;
  const auto expect_named = [&](const json& changed, const std::string& field) {
    const absl::StatusOr<Parsed> parsed = ParseReceipt(changed.dump());
    if (!parsed.ok()) {
      // A value that the field cannot have is refused by name.
      EXPECT_THAT(std::string(parsed.status().message()), HasSubstr(field));
    } else {
      EXPECT_EQ(parsed->altered_field, field);
    }
    named.insert(field);
  };
  const std::function<void(json&)> change_value = [&](json& value) {
    if (value.is_boolean()) {
      value = !value.get<bool>();
    } else if (value.is_number()) {
      value = value.get<int64_t>() ^ 1;
    } else if (value.is_string()) {
      std::string text = value.get<std::string>();
      text.back() = text.back() == '1' ? '2' : '1';
      value = text;
    } else {
      change_value(value.back());
    }
  };
  for (const auto& [key, value] : original.items()) {
    if (key == "checksums" || key == "signature") continue;
    if (key == "sampling") {
      for (const auto& [name, parameter] : value.items()) {
        json changed = original;
        change_value(changed[key][name]);
        expect_named(changed, absl::StrCat(key, ".", name));
      }
      continue;
    }
    json changed = original;
    change_value(changed[key]);
    expect_named(changed, key);
  }
  EXPECT_EQ(named.size(), original["checksums"].size());
  for (const auto& [field, value] : original["checksums"].items()) {
    json changed = original;
    change_value(changed["checksums"][field]);
    expect_named(changed, field);
  }
}

// Any one bit: the text is refused, or a field is named, or nothing that it says has changed.
TEST(CanonicalTest, EveryFlippedBitIsNoticed) {
  const Receipt receipt = SampleReceipt();
  const std::string text = ToCanonicalJson(receipt);
  int refused = 0, named = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string changed = text;
      changed[i] = static_cast<char>(changed[i] ^ (1 << bit));
      const absl::StatusOr<Parsed> parsed = ParseReceipt(changed);
      if (!parsed.ok()) {
        ++refused;
      } else if (parsed->altered_field.has_value()) {
        ++named;
      } else {
        EXPECT_EQ(ToCanonicalJson(parsed->receipt), text) << "byte " << i << " bit " << bit;
      }
    }
  }
  EXPECT_GT(refused, 1000);
  EXPECT_GT(named, 1000);
}

TEST(CanonicalTest, TruncatedTextsAreRefused) {
  const std::string text = ToCanonicalJson(Signed());
  for (size_t size = 0; size < text.size(); ++size) {
    const std::string error = ErrorOf(text.substr(0, size));
    ASSERT_THAT(error, StartsWith("r.json: offset ")) << size;
  }
}

TEST(CanonicalTest, WhatHasNoPlaceInAReceiptIsRefusedByName) {
  const std::vector<std::pair<std::string, std::function<void(json&)>>> changes = {
      {"extra: is not a field", [](json& o) { o["extra"] = 1; }},
      {"sampling.top_z: is not a field", [](json& o) { o["sampling"]["top_z"] = 1; }},
      {"signature.x: is not a field", [](json& o) { o["signature"]["x"] = 1; }},
      {"seed: is missing", [](json& o) { o.erase("seed"); }},
      {"sampling: is missing", [](json& o) { o.erase("sampling"); }},
      {"sampling.top_p: is missing", [](json& o) { o["sampling"].erase("top_p"); }},
      {"sampling.is not an object", [](json& o) { o["sampling"] = 3; }},
      {"seed: is not a string", [](json& o) { o["seed"] = 3; }},
      {"seed: '007'", [](json& o) { o["seed"] = "007"; }},
      {"seed: '-1'", [](json& o) { o["seed"] = "-1"; }},
      {"seed: '18446744073709551616'", [](json& o) { o["seed"] = "18446744073709551616"; }},
      {"sample_index: is not an integer", [](json& o) { o["sample_index"] = 1.0; }},
      {"sample_index: is not an integer", [](json& o) { o["sample_index"] = 1ull << 63; }},
      {"sample_index: 4 is not below sampling.n", [](json& o) { o["sample_index"] = 4; }},
      {"sample_index: -1", [](json& o) { o["sample_index"] = -1; }},
      {"policy: 'throughput'", [](json& o) { o["policy"] = "throughput"; }},
      {"finish_reason: 'ended'", [](json& o) { o["finish_reason"] = "ended"; }},
      {"weights_sha256: 65 bytes", [](json& o) { o["weights_sha256"] = std::string(65, 'a'); }},
      {"weights_sha256: is not 64 hex digits", [](json& o) { o["weights_sha256"] = "ab"; }},
      {"logits_sha256: is not 64", [](json& o) { o["logits_sha256"] = std::string(64, 'A'); }},
      {"prompt_token_ids: is empty", [](json& o) { o["prompt_token_ids"] = json::array(); }},
      {"prompt_token_ids[0]: -1", [](json& o) { o["prompt_token_ids"][0] = -1; }},
      {"prompt_token_ids[1]: 4294967296", [](json& o) { o["prompt_token_ids"][1] = 1ull << 32; }},
      {"prompt_token_ids[1]: is not an integer", [](json& o) { o["prompt_token_ids"][1] = "2"; }},
      {"prompt_token_ids: is not an array", [](json& o) { o["prompt_token_ids"] = 7; }},
      {"output_token_ids: is empty",
       [](json& o) { o["output_token_ids"] = o["row_fingerprints"] = json::array(); }},
      {"row_fingerprints: 2 entries for 3", [](json& o) { o["row_fingerprints"].erase(0); }},
      {"row_fingerprints[1]: is not 32", [](json& o) { o["row_fingerprints"][1] = "12"; }},
      {"sampling.temperature: is not the eight", [](json& o) { o["sampling"]["temperature"] = 1; }},
      {"sampling.temperature: nan", [](json& o) { o["sampling"]["temperature"] = "7fc00000"; }},
      {"sampling.top_p: inf", [](json& o) { o["sampling"]["top_p"] = "7f800000"; }},
      {"sampling.n: 0", [](json& o) { o["sampling"]["n"] = 0; }},
      {"sampling.max_tokens: 0", [](json& o) { o["sampling"]["max_tokens"] = 0; }},
      {"sampling.top_k: -1", [](json& o) { o["sampling"]["top_k"] = -1; }},
      {"sampling.ignore_eos: is not true", [](json& o) { o["sampling"]["ignore_eos"] = 1; }},
      {"sampling.stop[0]: is empty", [](json& o) { o["sampling"]["stop"][0] = ""; }},
      {"sampling.stop[1]: 1025 bytes",
       [](json& o) { o["sampling"]["stop"][1] = std::string(1025, 'x'); }},
      {"sampling.stop: 65 entries",
       [](json& o) { o["sampling"]["stop"] = std::vector<std::string>(65, "x"); }},
      {"sampling.logit_bias[1]: token ids do not ascend",
       [](json& o) { o["sampling"]["logit_bias"][1][0] = 3; }},
      {"sampling.logit_bias[0]: is not [", [](json& o) { o["sampling"]["logit_bias"][0] = 3; }},
      {"sampling.logit_bias: 1025 entries",
       [](json& o) { o["sampling"]["logit_bias"] = std::vector<int>(1025, 1); }},
      {"model: 1025 bytes", [](json& o) { o["model"] = std::string(1025, 'x'); }},
      {"signature.algorithm: 'rsa'", [](json& o) { o["signature"]["algorithm"] = "rsa"; }},
      {"signature.value: is missing", [](json& o) { o["signature"].erase("value"); }},
      {"signature.key_id: is not 32", [](json& o) { o["signature"]["key_id"] = "d"; }},
      {"receipt_version: 2; this software knows 1", [](json& o) { o["receipt_version"] = 2; }},
  };
  for (const auto& [error, change] : changes) {
    EXPECT_THAT(ErrorOf(Changed(change)), StartsWith("r.json: " + error));
  }
  const std::vector<std::pair<std::string, std::function<void(json&)>>> checksums = {
      {"checksums: is missing", [](json& o) { o.erase("checksums"); }},
      {"checksums: is not an object", [](json& o) { o["checksums"] = 1; }},
      {"checksums.seed: is missing", [](json& o) { o["checksums"].erase("seed"); }},
      {"checksums.more: is not a field", [](json& o) { o["checksums"]["more"] = "0"; }},
      {"checksums.seed: is not 16", [](json& o) { o["checksums"]["seed"] = "0"; }},
  };
  for (const auto& [error, change] : checksums) {
    EXPECT_THAT(ErrorOf(Changed(change, /*stale=*/true)), StartsWith("r.json: " + error));
  }
}

TEST(CanonicalTest, OtherBadTextsAreRefused) {
  const std::string good = ToCanonicalJson(SampleReceipt());
  EXPECT_THAT(ErrorOf(""), StartsWith("r.json: offset 0"));
  EXPECT_THAT(ErrorOf("[]"), StartsWith("r.json: is not a JSON object"));
  EXPECT_THAT(ErrorOf("7"), StartsWith("r.json: is not a JSON object"));
  EXPECT_THAT(ErrorOf(good + "x"), StartsWith("r.json: offset "));
  EXPECT_THAT(ErrorOf("{\"seed\":\"1\"," + good.substr(1)), HasSubstr("occurs twice"));
  EXPECT_THAT(ErrorOf(absl::StrReplaceAll(good, {{"0.1.0", "0.\xff"}})), HasSubstr("offset "));
  EXPECT_THAT(ErrorOf(std::string(kMaxReceiptBytes + 1, ' ')), HasSubstr("bytes, at most"));
  std::string deep;
  for (int i = 0; i < 100; ++i) deep += "{\"a\":";
  EXPECT_THAT(ErrorOf(deep), HasSubstr("nested"));
  const absl::Status version =
      ParseReceipt(absl::StrReplaceAll(good, {{"\"receipt_version\":1", "\"receipt_version\":9"}}))
          .status();
  EXPECT_EQ(version.code(), absl::StatusCode::kFailedPrecondition);
}

TEST(CanonicalTest, FilesHoldOneReceiptOrOneALine) {
  const std::string one = ToCanonicalJson(SampleReceipt());
  EXPECT_THAT(SplitReceipts(one), ::testing::ElementsAre(one));
  EXPECT_THAT(SplitReceipts(one + "\n"), ::testing::ElementsAre(one));
  EXPECT_THAT(SplitReceipts(one + "\n" + one + "\r\n\n"), ::testing::ElementsAre(one, one));
  const std::string pretty = json::parse(one).dump(2);
  EXPECT_THAT(SplitReceipts(pretty), ::testing::ElementsAre(pretty));
  EXPECT_THAT(SplitReceipts(""), ::testing::ElementsAre(""));
}

}  // namespace
}  // namespace verbatim::receipt
