// A small random Llama held in memory, so that the suite needs no files.
#include "conformance/synthetic_model.h"

#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "conformance/random.h"

namespace verbatim::conformance {
namespace {

using kernels::DType;

constexpr int64_t kVocab = 509;
constexpr int32_t kEos = 2;

// Every token stands for one letter or one number in brackets; nothing is special but the end.
class SyntheticTokenizer final : public model::Tokenizer {
 public:
  SyntheticTokenizer() {
    for (int32_t id = 0; id < kVocab; ++id) {
      texts_.push_back(id < 26 ? std::string(1, static_cast<char>('a' + id))
                               : absl::StrCat("<", id, ">"));
    }
  }

  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              const model::EncodeOptions&) const override {
    std::vector<int32_t> ids;
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c) % 26);
    return ids;
  }
  std::string_view TokenBytes(int32_t id) const override {
    return id >= 0 && id < kVocab ? std::string_view(texts_[id]) : std::string_view();
  }
  std::string_view FirstTokenBytes(int32_t id) const override { return TokenBytes(id); }
  bool IsSpecial(int32_t id) const override { return id == kEos; }
  std::string Decode(absl::Span<const int32_t> ids, bool skip_special_tokens) const override {
    std::string text;
    for (const int32_t id : ids) {
      if (!skip_special_tokens || !IsSpecial(id)) text += TokenBytes(id);
    }
    return text;
  }
  int32_t vocab_size() const override { return kVocab; }
  std::optional<int32_t> bos_id() const override { return std::nullopt; }
  absl::Span<const int32_t> eos_ids() const override { return eos_; }
  std::optional<int32_t> IdOf(std::string_view token_text) const override {
    for (int32_t id = 0; id < kVocab; ++id) {
      if (texts_[id] == token_text) return id;
    }
    return std::nullopt;
  }
  std::string_view chat_template() const override { return ""; }
  std::string_view fingerprint() const override { return "synthetic"; }

 private:
  std::vector<std::string> texts_;
  const std::vector<int32_t> eos_ = {kEos};
};

template <typename T>
void Append(std::vector<std::byte>* bytes, T value) {
  const size_t at = bytes->size();
  bytes->resize(at + sizeof(value));
  std::memcpy(bytes->data() + at, &value, sizeof(value));
}

// The IEEE binary16 of a positive normal number, cut off.
uint16_t Half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<uint16_t>(((bits >> 23) - 127 + 15) << 10 | ((bits >> 13) & 0x3FF));
}

// Random values of standard deviation about `scale`.
std::vector<std::byte> RandomMatrix(DType dtype, int64_t elements, float scale, Random& random) {
  std::vector<std::byte> bytes;
  const float width = scale * 3.4641016f;  // of a uniform distribution
  switch (dtype) {
    case DType::kF32:
    case DType::kBF16:
      for (int64_t i = 0; i < elements; ++i) {
        const float value = (random.Uniform() - 0.5f) * width;
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof(bits));
        if (dtype == DType::kF32) {
          Append(&bytes, bits);
        } else {
          Append(&bytes, static_cast<uint16_t>(bits >> 16));
        }
      }
      break;
    case DType::kQ8_0:
      for (int64_t block = 0; block < elements / 32; ++block) {
        Append(&bytes, Half(width / 255.0f * (0.5f + random.Uniform())));
        for (int j = 0; j < 32; ++j) Append(&bytes, static_cast<int8_t>(random.Below(255)));
      }
      break;
    default:  // Q4_1: d in [0.5, 1.5] steps, m so that the values are centred
      for (int64_t block = 0; block < elements / 32; ++block) {
        const float d = width / 15.0f * (0.5f + random.Uniform());
        Append(&bytes, Half(d));
        Append(&bytes, static_cast<uint16_t>(Half(7.5f * d) | 0x8000));
        for (int j = 0; j < 16; ++j) Append(&bytes, static_cast<uint8_t>(random.Below(256)));
      }
  }
  return bytes;
}

class SyntheticModel final : public model::Checkpoint {
 public:
  SyntheticModel() {
    config_.name = "synthetic";
    config_.vocab_size = kVocab;
    config_.hidden_size = 256;
    config_.intermediate_size = 672;
    config_.num_layers = 2;
    config_.num_heads = 4;
    config_.num_kv_heads = 2;
    config_.head_dim = 64;
    config_.max_position = 2048;
    config_.eos_ids = {kEos};
    const int64_t hidden = config_.hidden_size, inner = config_.intermediate_size;
    const int64_t kv = config_.num_kv_heads * config_.head_dim;
    Matrix("embed", DType::kF32, kVocab, hidden, 1.0f);
    Matrix("lm_head", DType::kBF16, kVocab, hidden, 2.0f / std::sqrt(256.0f));
    Vector("final_norm", hidden);
    for (int64_t i = 0; i < config_.num_layers; ++i) {
      const std::string layer = absl::StrCat("layers.", i, ".");
      const bool even = i % 2 == 0;
      const float in = 1.0f / std::sqrt(static_cast<float>(hidden));
      Vector(layer + "attn_norm", hidden);
      Vector(layer + "ffn_norm", hidden);
      // Large query and key weights make attention look at few positions instead of averaging all.
      Matrix(layer + "q", even ? DType::kQ8_0 : DType::kF32, hidden, hidden, 2 * in);
      Matrix(layer + "k", even ? DType::kQ8_0 : DType::kF32, kv, hidden, 2 * in);
      Matrix(layer + "v", even ? DType::kQ8_0 : DType::kF32, kv, hidden, in);
      Matrix(layer + "o", DType::kQ8_0, hidden, hidden, in);
      Matrix(layer + "gate", even ? DType::kQ4_1 : DType::kBF16, inner, hidden, in);
      Matrix(layer + "up", even ? DType::kQ4_1 : DType::kBF16, inner, hidden, in);
      Matrix(layer + "down", even ? DType::kF32 : DType::kQ4_1, hidden, inner,
             2.0f / std::sqrt(static_cast<float>(inner)));
    }
  }

  const model::ModelConfig& config() const override { return config_; }
  absl::StatusOr<kernels::StoredMatrix> Matrix(std::string_view name) const override {
    const auto it = matrices_.find(name);
    if (it == matrices_.end()) return absl::NotFoundError(std::string(name));
    kernels::StoredMatrix matrix = it->second.shape;
    matrix.data = it->second.bytes.data();
    return matrix;
  }
  absl::StatusOr<std::vector<float>> Vector(std::string_view name) const override {
    const auto it = vectors_.find(name);
    if (it == vectors_.end()) return absl::NotFoundError(std::string(name));
    return it->second;
  }
  absl::StatusOr<std::unique_ptr<model::Tokenizer>> LoadTokenizer() const override {
    return std::make_unique<SyntheticTokenizer>();
  }
  std::string WeightsFingerprint() const override { return "synthetic"; }
  int64_t weight_bytes() const override {
    int64_t bytes = 0;
    for (const auto& [name, matrix] : matrices_) bytes += matrix.shape.size_bytes();
    return bytes;
  }
  const std::string& path() const override { return path_; }

 private:
  struct Stored {
    kernels::StoredMatrix shape;
    std::vector<std::byte> bytes;
  };

  void Matrix(const std::string& name, DType dtype, int64_t rows, int64_t cols, float scale) {
    Stored stored;
    stored.shape = {.dtype = dtype, .rows = rows, .cols = cols};
    stored.bytes = RandomMatrix(dtype, rows * cols, scale, random_);
    matrices_.emplace(name, std::move(stored));
  }
  void Vector(const std::string& name, int64_t size) {
    std::vector<float> values;
    for (int64_t i = 0; i < size; ++i) values.push_back(0.75f + 0.5f * random_.Uniform());
    vectors_.emplace(name, std::move(values));
  }

  model::ModelConfig config_;
  Random random_{20240229};
  std::map<std::string, Stored, std::less<>> matrices_;
  std::map<std::string, std::vector<float>, std::less<>> vectors_;
  const std::string path_ = "synthetic";
};

}  // namespace

std::unique_ptr<model::Checkpoint> MakeSyntheticModel() {
  return std::make_unique<SyntheticModel>();
}

}  // namespace verbatim::conformance
