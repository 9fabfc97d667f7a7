// Ed25519 through OpenSSL's EVP.
#include "receipt/signature.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/sha.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "receipt/canonical.h"

namespace verbatim::receipt {
namespace {

constexpr size_t kMaxPemBytes = 64 << 10;
constexpr size_t kSignatureBytes = 64;

using BioPtr = std::unique_ptr<BIO, decltype(&BIO_free)>;
using ContextPtr = std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)>;

std::string Hex(const uint8_t* bytes, size_t size) {
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(bytes), size));
}

absl::Status Bad(const std::string& path, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", what));
}

// The file's text; `secret`: refused when others than its owner (and its group, to read) get at it.
absl::StatusOr<std::string> ReadKeyFile(const std::string& path, bool secret) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    const std::string message = absl::StrCat(path, ": ", strerror(errno));
    if (errno == ENOENT) return absl::NotFoundError(message);
    return absl::PermissionDeniedError(message);
  }
  std::string text(kMaxPemBytes + 1, '\0');
  struct stat info;
  const bool known = fstat(fd, &info) == 0;
  const ssize_t size = known && S_ISREG(info.st_mode) ? read(fd, text.data(), text.size()) : -1;
  close(fd);
  if (size < 0) return Bad(path, "is not a regular file that can be read");
  if (static_cast<size_t>(size) > kMaxPemBytes) return Bad(path, "is too large for a key");
  if (secret && (info.st_mode & 0037) != 0) {
    return absl::PermissionDeniedError(
        absl::StrFormat("%s: its permissions %04o let others than its owner at the private key; "
                        "make them 0600 or 0640",
                        path, info.st_mode & 07777));
  }
  text.resize(size);
  return text;
}

// Without a passphrase: OpenSSL would ask for one on the terminal.
int NoPassphrase(char*, int, int, void*) { return -1; }

absl::StatusOr<KeyPtr> ParseKey(const std::string& path, const std::string& pem, bool is_private) {
  const BioPtr bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())), BIO_free);
  KeyPtr key(is_private ? PEM_read_bio_PrivateKey(bio.get(), nullptr, NoPassphrase, nullptr)
                        : PEM_read_bio_PUBKEY(bio.get(), nullptr, NoPassphrase, nullptr));
  ERR_clear_error();
  if (key == nullptr) {
    return Bad(path, is_private ? "holds no private key in PEM form (PKCS #8 without a passphrase)"
                                : "holds no public key in PEM form (\"BEGIN PUBLIC KEY\")");
  }
  if (EVP_PKEY_get_id(key.get()) != EVP_PKEY_ED25519) {
    const char* type = EVP_PKEY_get0_type_name(key.get());
    return Bad(path, absl::StrCat("holds a key of type ", type == nullptr ? "unknown" : type,
                                  ", not Ed25519"));
  }
  return key;
}

std::string RawPublicKey(EVP_PKEY* key) {
  std::array<uint8_t, 32> raw{};
  size_t size = raw.size();
  EVP_PKEY_get_raw_public_key(key, raw.data(), &size);
  return std::string(reinterpret_cast<const char*>(raw.data()), raw.size());
}

}  // namespace

void KeyDeleter::operator()(evp_pkey_st* key) const { EVP_PKEY_free(key); }

PublicKey::PublicKey(KeyPtr key) : key_(std::move(key)) {
  const std::string raw = RawPublicKey(key_.get());
  std::array<uint8_t, SHA256_DIGEST_LENGTH> digest;
  SHA256(reinterpret_cast<const uint8_t*>(raw.data()), raw.size(), digest.data());
  id_ = Hex(digest.data(), 16);
}

absl::StatusOr<PublicKey> PublicKey::Load(const std::string& path) {
  absl::StatusOr<std::string> pem = ReadKeyFile(path, /*secret=*/false);
  if (!pem.ok()) return pem.status();
  absl::StatusOr<KeyPtr> key = ParseKey(path, *pem, /*is_private=*/false);
  if (!key.ok()) return key.status();
  return PublicKey(*std::move(key));
}

absl::Status PublicKey::Check(const Receipt& receipt) const {
  if (receipt.signature.empty()) return absl::FailedPreconditionError("the receipt is not signed");
  if (receipt.signature.key_id != id_) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the receipt is signed by the key ", receipt.signature.key_id, ", this one is ", id_));
  }
  const std::string value = absl::HexStringToBytes(receipt.signature.value);
  const std::string message = SignedBytes(receipt);
  const ContextPtr context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
  const bool fits =
      value.size() == kSignatureBytes &&
      EVP_DigestVerifyInit(context.get(), nullptr, nullptr, nullptr, key_.get()) == 1 &&
      EVP_DigestVerify(context.get(), reinterpret_cast<const uint8_t*>(value.data()), value.size(),
                       reinterpret_cast<const uint8_t*>(message.data()), message.size()) == 1;
  ERR_clear_error();
  if (fits) return absl::OkStatus();
  return absl::FailedPreconditionError(
      "the signature does not fit: a field was changed, or another key made it");
}

absl::StatusOr<SigningKey> SigningKey::Load(const std::string& path) {
  absl::StatusOr<std::string> pem = ReadKeyFile(path, /*secret=*/true);
  if (!pem.ok()) return pem.status();
  absl::StatusOr<KeyPtr> key = ParseKey(path, *pem, /*is_private=*/true);
  if (!key.ok()) return key.status();
  const std::string raw = RawPublicKey(key->get());
  KeyPtr public_key(EVP_PKEY_new_raw_public_key(
      EVP_PKEY_ED25519, nullptr, reinterpret_cast<const uint8_t*>(raw.data()), raw.size()));
  if (public_key == nullptr) return Bad(path, "its public key cannot be derived");
  return SigningKey(*std::move(key), PublicKey(std::move(public_key)));
}

absl::Status SigningKey::Sign(Receipt* receipt) const {
  receipt->signature = {.key_id = public_key_.id()};
  const std::string message = SignedBytes(*receipt);
  std::array<uint8_t, kSignatureBytes> value;
  size_t size = value.size();
  const ContextPtr context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
  if (EVP_DigestSignInit(context.get(), nullptr, nullptr, nullptr, key_.get()) != 1 ||
      EVP_DigestSign(context.get(), value.data(), &size,
                     reinterpret_cast<const uint8_t*>(message.data()), message.size()) != 1) {
    ERR_clear_error();
    receipt->signature = {};
    return absl::InternalError("receipt: cannot be signed");
  }
  receipt->signature.value = Hex(value.data(), size);
  return absl::OkStatus();
}

}  // namespace verbatim::receipt
