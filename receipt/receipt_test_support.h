// Receipts and key files for tests.
#pragma once

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>

#include "receipt/receipt.h"

namespace verbatim::receipt {

// Every field has a value of its own, none its default.
inline Receipt SampleReceipt() {
  Receipt r;
  r.server_version = "0.1.0";
  r.model = "té\"st\\ \n";
  r.weights_sha256 = std::string(32, 'a') + std::string(32, '0');
  r.tokenizer_sha256 = std::string(64, 'b');
  r.policy = "pinned";
  r.numerics_id = "v1/portable/cpu-tree128/kv-F32";
  r.prompt_token_ids = {1, 2, 300, 0};
  r.sampling = {.temperature = 0.7f,
                .top_k = 40,
                .top_p = 0.9f,
                .min_p = 0.05f,
                .presence_penalty = -0.5f,
                .frequency_penalty = 0.25f,
                .repetition_penalty = 1.1f,
                .logit_bias = {{3, -100.0f}, {9, 2.5f}},
                .n = 4,
                .stop = {"\n\n", "end\x01"},
                .stop_token_ids = {2, 7},
                .ignore_eos = true,
                .max_tokens = 3,
                .min_tokens = 1,
                .skip_special_tokens = false,
                .include_stop_str_in_output = true};
  r.seed = 0xFFFFFFFFFFFFFFFE;
  r.sample_index = 2;
  r.output_token_ids = {5, 6, 7};
  r.finish_reason = "stop";
  r.stop_reason = "7";
  r.row_fingerprints = {{1, 2}, {0xFEDCBA9876543210, 0x0123456789ABCDEF}, {0, 0}};
  r.logits_sha256 = std::string(64, 'c');
  return r;
}

// A directory of its own that vanishes with it.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string pattern = (std::filesystem::temp_directory_path() / "verbatim-XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~TemporaryDirectory() { std::filesystem::remove_all(path_); }

  std::string Write(const std::string& name, const std::string& text, int mode = 0600) const {
    const std::string path = path_ + "/" + name;
    std::ofstream(path, std::ios::binary) << text;
    chmod(path.c_str(), static_cast<mode_t>(mode));
    return path;
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

struct KeyPair {
  std::string private_pem, public_pem;
};

inline KeyPair ToPem(EVP_PKEY* key) {
  KeyPair pair;
  for (bool is_private : {true, false}) {
    BIO* bio = BIO_new(BIO_s_mem());
    if (is_private) {
      PEM_write_bio_PrivateKey(bio, key, nullptr, nullptr, 0, nullptr, nullptr);
    } else {
      PEM_write_bio_PUBKEY(bio, key);
    }
    char* data = nullptr;
    const long size = BIO_get_mem_data(bio, &data);
    (is_private ? pair.private_pem : pair.public_pem).assign(data, static_cast<size_t>(size));
    BIO_free(bio);
  }
  return pair;
}

// The Ed25519 key whose 32 secret bytes are all `byte`.
inline KeyPair Ed25519Pair(uint8_t byte) {
  const std::string secret(32, static_cast<char>(byte));
  EVP_PKEY* key = EVP_PKEY_new_raw_private_key(
      EVP_PKEY_ED25519, nullptr, reinterpret_cast<const uint8_t*>(secret.data()), secret.size());
  const KeyPair pair = ToPem(key);
  EVP_PKEY_free(key);
  return pair;
}

}  // namespace verbatim::receipt
