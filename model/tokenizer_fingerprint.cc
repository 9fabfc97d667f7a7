// SHA-256 over the specification's fields, each with its length, in a fixed order.
#include "model/tokenizer_fingerprint.h"

#include <openssl/evp.h>

#include <memory>
#include <string_view>

#include "absl/strings/escaping.h"

namespace verbatim::model {
namespace {

class Hasher {
 public:
  Hasher() : context_(EVP_MD_CTX_new()) {
    EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr);
  }

  void Number(int64_t value) {
    unsigned char bytes[8];
    for (int i = 0; i < 8; ++i)
      bytes[i] = static_cast<unsigned char>(static_cast<uint64_t>(value) >> (8 * i));
    Raw(bytes, sizeof(bytes));
  }
  void Text(std::string_view text) {
    Number(static_cast<int64_t>(text.size()));
    Raw(text.data(), text.size());
  }
  void Numbers(const std::vector<int32_t>& values) {
    Number(static_cast<int64_t>(values.size()));
    for (int32_t value : values) Number(value);
  }
  std::string Finish() {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned int size = 0;
    EVP_DigestFinal_ex(context_.get(), digest, &size);
    return absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(digest), size));
  }

 private:
  struct Deleter {
    void operator()(EVP_MD_CTX* p) const { EVP_MD_CTX_free(p); }
  };
  void Raw(const void* data, size_t size) { EVP_DigestUpdate(context_.get(), data, size); }
  std::unique_ptr<EVP_MD_CTX, Deleter> context_;
};

}  // namespace

std::string TokenizerFingerprint(const TokenizerSpec& spec) {
  Hasher h;
  h.Text("verbatim tokenizer 1");
  h.Number(static_cast<int64_t>(spec.tokens.size()));
  for (const std::string& token : spec.tokens) h.Text(token);
  h.Number(spec.byte_level);
  h.Number(static_cast<int64_t>(spec.merges.size()));
  for (const BpeMerge& m : spec.merges) {
    for (int32_t value : {m.left, m.right, m.result, m.rank}) h.Number(value);
  }
  h.Number(static_cast<int64_t>(spec.extra_symbols.size()));
  for (const std::string& symbol : spec.extra_symbols) h.Text(symbol);
  for (bool flag : {spec.ignore_merges, spec.byte_fallback, spec.fuse_unknown}) h.Number(flag);
  h.Number(spec.unknown_id.value_or(-1));
  h.Number(static_cast<int64_t>(spec.normalizer.size()));
  for (const NormalizerStep& step : spec.normalizer) {
    h.Number(static_cast<int64_t>(step.kind));
    h.Text(step.pattern);
    h.Text(step.content);
  }
  h.Number(static_cast<int64_t>(spec.pre_tokenizer.size()));
  for (const PreTokenizerStep& step : spec.pre_tokenizer) {
    h.Number(static_cast<int64_t>(step.kind));
    h.Text(step.pattern);
    h.Text(step.content);
    for (bool flag : {step.literal, step.invert, step.first_only}) h.Number(flag);
    h.Number(static_cast<int64_t>(step.behavior));
  }
  h.Number(static_cast<int64_t>(spec.added_tokens.size()));
  for (const AddedToken& token : spec.added_tokens) {
    h.Number(token.id);
    for (bool flag :
         {token.special, token.single_word, token.lstrip, token.rstrip, token.normalized}) {
      h.Number(flag);
    }
  }
  h.Numbers(spec.prefix_ids);
  h.Numbers(spec.suffix_ids);
  h.Number(spec.decode_byte_tokens);
  h.Number(static_cast<int64_t>(spec.decode_replacements.size()));
  for (const auto& [from, to] : spec.decode_replacements) {
    h.Text(from);
    h.Text(to);
  }
  h.Number(static_cast<int64_t>(spec.decode_start));
  return h.Finish();
}

}  // namespace verbatim::model
