// Tests of signatures and of key files.
#include "receipt/signature.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/rsa.h>

#include <functional>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "receipt/canonical.h"
#include "receipt/receipt_test_support.h"

namespace verbatim::receipt {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

class SignatureTest : public ::testing::Test {
 protected:
  SigningKey Signer(uint8_t byte) {
    return *SigningKey::Load(
        directory_.Write(absl::StrCat("private", byte), Ed25519Pair(byte).private_pem));
  }
  PublicKey Checker(uint8_t byte) {
    return *PublicKey::Load(
        directory_.Write(absl::StrCat("public", byte), Ed25519Pair(byte).public_pem, 0644));
  }
  Receipt Signed(uint8_t byte) {
    Receipt receipt = SampleReceipt();
    EXPECT_TRUE(Signer(byte).Sign(&receipt).ok());
    return receipt;
  }

  TemporaryDirectory directory_;
};

TEST_F(SignatureTest, FitsAfterARoundTrip) {
  const Receipt receipt = Signed(1);
  EXPECT_EQ(receipt.signature.key_id, Checker(1).id());
  EXPECT_EQ(Signed(1), receipt) << "nothing is drawn";
  const absl::StatusOr<Parsed> parsed = ParseReceipt(ToCanonicalJson(receipt));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_TRUE(Checker(1).Check(parsed->receipt).ok());
}

// The secret key of thirty-two bytes 01, as any other implementation of RFC 8032 gives it.
TEST_F(SignatureTest, TheKeyIdIsTheHashOfThePublicKey) {
  EXPECT_EQ(Checker(1).id(), "34750f98bd59fcfc946da45aaabe933b");
}

TEST_F(SignatureTest, EveryFieldIsSigned) {
  const PublicKey key = Checker(1);
  const std::vector<std::function<void(Receipt&)>> changes = {
      [](Receipt& r) { ++r.contract_version; },
      [](Receipt& r) { r.server_version += "1"; },
      [](Receipt& r) { r.model.clear(); },
      [](Receipt& r) { r.weights_sha256[5] = '1'; },
      [](Receipt& r) { r.tokenizer_sha256[63] = '1'; },
      [](Receipt& r) { r.policy = "portable"; },
      [](Receipt& r) { r.numerics_id += "x"; },
      [](Receipt& r) { r.prompt_token_ids[3] = 1; },
      [](Receipt& r) { r.seed ^= uint64_t{1} << 63; },
      [](Receipt& r) { r.sample_index = 0; },
      [](Receipt& r) { r.output_token_ids[0] ^= 1; },
      [](Receipt& r) { r.finish_reason = "length"; },
      [](Receipt& r) { r.stop_reason = ""; },
      [](Receipt& r) { r.row_fingerprints[2].b = 1; },
      [](Receipt& r) { r.logits_sha256[0] = 'd'; },
      [](Receipt& r) { r.sampling.temperature = 0.70000005f; },
      [](Receipt& r) { r.sampling.top_k = 0; },
      [](Receipt& r) { r.sampling.top_p = 1; },
      [](Receipt& r) { r.sampling.min_p = 0; },
      [](Receipt& r) { r.sampling.presence_penalty = 0.5f; },
      [](Receipt& r) { r.sampling.frequency_penalty = -0.25f; },
      [](Receipt& r) { r.sampling.repetition_penalty = 1; },
      [](Receipt& r) { r.sampling.logit_bias[1].second = 2; },
      [](Receipt& r) { r.sampling.n = 5; },
      [](Receipt& r) { r.sampling.stop.pop_back(); },
      [](Receipt& r) { std::swap(r.sampling.stop_token_ids[0], r.sampling.stop_token_ids[1]); },
      [](Receipt& r) { r.sampling.ignore_eos = false; },
      [](Receipt& r) { r.sampling.max_tokens = 4; },
      [](Receipt& r) { r.sampling.min_tokens = 0; },
      [](Receipt& r) { r.sampling.skip_special_tokens = true; },
      [](Receipt& r) { r.sampling.include_stop_str_in_output = false; },
  };
  for (size_t i = 0; i < changes.size(); ++i) {
    Receipt receipt = Signed(1);
    ASSERT_TRUE(key.Check(receipt).ok());
    changes[i](receipt);
    EXPECT_THAT(std::string(key.Check(receipt).message()), HasSubstr("does not fit")) << i;
  }
}

TEST_F(SignatureTest, EveryBitOfTheSignatureCounts) {
  const PublicKey key = Checker(1);
  const Receipt receipt = Signed(1);
  for (size_t digit = 0; digit < receipt.signature.value.size(); ++digit) {
    for (int bit = 0; bit < 4; ++bit) {
      std::string bytes = absl::HexStringToBytes(receipt.signature.value);
      bytes[digit / 2] = static_cast<char>(bytes[digit / 2] ^ (1 << (4 * (digit % 2) + bit)));
      Receipt changed = receipt;
      changed.signature.value = absl::BytesToHexString(bytes);
      EXPECT_FALSE(key.Check(changed).ok()) << digit << " " << bit;
    }
  }
}

TEST_F(SignatureTest, OtherKeysAndOtherDomainsAreRefused) {
  const Receipt receipt = Signed(1);
  EXPECT_THAT(std::string(Checker(2).Check(receipt).message()), HasSubstr("signed by the key"));
  Receipt renamed = receipt;  // another key's id does not help
  renamed.signature.key_id = Checker(2).id();
  EXPECT_THAT(std::string(Checker(2).Check(renamed).message()), HasSubstr("does not fit"));
  EXPECT_EQ(Checker(1).Check(SampleReceipt()).message(), "the receipt is not signed");

  // A signature by the same key over the same text without, or with another, domain.
  const std::string signed_bytes = SignedBytes(receipt);
  const std::string text = signed_bytes.substr(signed_bytes.find('\n') + 1);
  EXPECT_THAT(signed_bytes, StartsWith("verbatim receipt signature v1\n{"));
  for (const std::string& message : {text, "verbatim receipt signature v2\n" + text}) {
    const std::string secret(32, '\1');
    EVP_PKEY* key = EVP_PKEY_new_raw_private_key(
        EVP_PKEY_ED25519, nullptr, reinterpret_cast<const uint8_t*>(secret.data()), 32);
    EVP_MD_CTX* context = EVP_MD_CTX_new();
    std::string value(64, '\0');
    size_t size = value.size();
    ASSERT_EQ(EVP_DigestSignInit(context, nullptr, nullptr, nullptr, key), 1);
    ASSERT_EQ(EVP_DigestSign(context, reinterpret_cast<uint8_t*>(value.data()), &size,
                             reinterpret_cast<const uint8_t*>(message.data()), message.size()),
              1);
    EVP_MD_CTX_free(context);
    EVP_PKEY_free(key);
    Receipt other = receipt;
    other.signature.value = absl::BytesToHexString(value);
    EXPECT_THAT(std::string(Checker(1).Check(other).message()), HasSubstr("does not fit"));
  }
}

TEST_F(SignatureTest, KeyFilesThatCannotServeSayWhy) {
  const KeyPair pair = Ed25519Pair(3);
  EVP_PKEY* rsa = EVP_RSA_gen(1024);
  const KeyPair rsa_pair = ToPem(rsa);
  EVP_PKEY_free(rsa);
  const auto signing_error = [](const std::string& path) {
    const absl::Status status = SigningKey::Load(path).status();
    EXPECT_THAT(std::string(status.message()), StartsWith(path));
    return status.ToString();
  };
  const auto public_error = [](const std::string& path) {
    const absl::Status status = PublicKey::Load(path).status();
    EXPECT_THAT(std::string(status.message()), StartsWith(path));
    return status.ToString();
  };
  EXPECT_THAT(signing_error(directory_.path() + "/none"), StartsWith("NOT_FOUND"));
  EXPECT_THAT(public_error(directory_.path() + "/none"), StartsWith("NOT_FOUND"));
  EXPECT_THAT(signing_error(directory_.path()), HasSubstr("is not a regular file"));
  EXPECT_THAT(signing_error(directory_.Write("empty", "")), HasSubstr("holds no private key"));
  EXPECT_THAT(signing_error(directory_.Write("public", pair.public_pem)),
              HasSubstr("holds no private key"));
  EXPECT_THAT(public_error(directory_.Write("private", pair.private_pem)),
              HasSubstr("holds no public key"));
  EXPECT_THAT(signing_error(directory_.Write("rsa", rsa_pair.private_pem)),
              HasSubstr("of type RSA, not Ed25519"));
  EXPECT_THAT(public_error(directory_.Write("rsa.pub", rsa_pair.public_pem)),
              HasSubstr("of type RSA, not Ed25519"));
  EXPECT_THAT(signing_error(directory_.Write("cut", pair.private_pem.substr(0, 60))),
              HasSubstr("holds no private key"));
  EXPECT_THAT(signing_error(directory_.Write("large", std::string(1 << 20, 'x'))),
              HasSubstr("too large"));
  for (int mode : {0644, 0604, 0660, 0602, 0601}) {
    EXPECT_THAT(signing_error(directory_.Write("open", pair.private_pem, mode)),
                HasSubstr(absl::StrCat("permissions 0", absl::Hex((mode >> 6) & 7),
                                       absl::Hex((mode >> 3) & 7), absl::Hex(mode & 7))))
        << mode;
  }
  for (int mode : {0600, 0400, 0640}) {
    EXPECT_TRUE(SigningKey::Load(directory_.Write("kept", pair.private_pem, mode)).ok()) << mode;
    unlink((directory_.path() + "/kept").c_str());
  }
}

// With a passphrase OpenSSL would ask on the terminal.
TEST_F(SignatureTest, EncryptedKeysAreRefusedWithoutAsking) {
  const std::string secret(32, '\1');
  EVP_PKEY* key = EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, nullptr,
                                               reinterpret_cast<const uint8_t*>(secret.data()), 32);
  BIO* bio = BIO_new(BIO_s_mem());
  char passphrase[] = "secret";
  PEM_write_bio_PrivateKey(bio, key, EVP_aes_128_cbc(), nullptr, 0, nullptr, passphrase);
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  const std::string path = directory_.Write("locked", std::string(data, static_cast<size_t>(size)));
  BIO_free(bio);
  EVP_PKEY_free(key);
  EXPECT_THAT(std::string(SigningKey::Load(path).status().message()),
              HasSubstr("without a passphrase"));
}

}  // namespace
}  // namespace verbatim::receipt
