// Ed25519 signatures of receipts, and their keys in PEM files.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "receipt/receipt.h"

struct evp_pkey_st;  // OpenSSL's EVP_PKEY

namespace verbatim::receipt {

struct KeyDeleter {
  void operator()(evp_pkey_st* key) const;
};
using KeyPtr = std::unique_ptr<evp_pkey_st, KeyDeleter>;

// Checks signatures; immutable, thread-safe.
class PublicKey {
 public:
  // A PEM file "PUBLIC KEY" (SubjectPublicKeyInfo). NOT_FOUND, PERMISSION_DENIED or
  // INVALID_ARGUMENT naming the file: no such file, unreadable, no such PEM block, not Ed25519.
  static absl::StatusOr<PublicKey> Load(const std::string& path);

  // The first 32 hex digits of SHA-256 of the 32 bytes of the key.
  const std::string& id() const { return id_; }

  // OK when `receipt` carries this key's signature over all its other fields. FAILED_PRECONDITION
  // otherwise: not signed, signed by another key, or a signature that does not fit.
  absl::Status Check(const Receipt& receipt) const;

 private:
  friend class SigningKey;
  explicit PublicKey(KeyPtr key);
  std::shared_ptr<evp_pkey_st> key_;
  std::string id_;
};

// Makes signatures; immutable, thread-safe.
class SigningKey {
 public:
  // A PEM file "PRIVATE KEY" (PKCS #8, not encrypted) that nobody but its owner may write and only
  // owner and group may read. NOT_FOUND, PERMISSION_DENIED or INVALID_ARGUMENT naming the file and
  // what is wrong with it.
  static absl::StatusOr<SigningKey> Load(const std::string& path);

  const PublicKey& public_key() const { return public_key_; }

  // Fills in receipt.signature. Ed25519 draws nothing: equal receipts get equal signatures.
  absl::Status Sign(Receipt* receipt) const;

 private:
  SigningKey(KeyPtr key, PublicKey public_key)
      : key_(std::move(key)), public_key_(std::move(public_key)) {}
  std::shared_ptr<evp_pkey_st> key_;
  PublicKey public_key_;
};

}  // namespace verbatim::receipt
