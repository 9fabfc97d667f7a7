// Small random models held in memory, so that the suite needs no files.
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

class SyntheticModel : public model::Checkpoint {
 public:
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
  std::string WeightsFingerprint() const override { return path_; }
  int64_t weight_bytes() const override {
    int64_t bytes = 0;
    for (const auto& [name, matrix] : matrices_) bytes += matrix.shape.size_bytes();
    return bytes;
  }
  const std::string& path() const override { return path_; }

 protected:
  SyntheticModel(const std::string& name, uint64_t seed) : random_(seed), path_(name) {
    config_.name = name;
    config_.vocab_size = kVocab;
    config_.head_dim = 64;
    config_.max_position = 2048;
    config_.eos_ids = {kEos};
  }

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

  // The norms and attention of a layer. Large query and key weights make attention look at few
  // positions instead of averaging all.
  void Attention(const std::string& layer, DType dtype, DType dtype_of_o) {
    const int64_t hidden = config_.hidden_size;
    const int64_t q = config_.num_heads * config_.head_dim;
    const int64_t kv = config_.num_kv_heads * config_.head_dim;
    const float in = 1.0f / std::sqrt(static_cast<float>(hidden));
    Vector(layer + "attn_norm", hidden);
    Vector(layer + "ffn_norm", hidden);
    Matrix(layer + "q", dtype, q, hidden, 2 * in);
    Matrix(layer + "k", dtype, kv, hidden, 2 * in);
    Matrix(layer + "v", dtype, kv, hidden, in);
    Matrix(layer + "o", dtype_of_o, hidden, q, in);
  }
  void FeedForward(const std::string& prefix, DType dtype, DType dtype_of_down, int64_t inner) {
    const int64_t hidden = config_.hidden_size;
    const float in = 1.0f / std::sqrt(static_cast<float>(hidden));
    Matrix(prefix + "gate", dtype, inner, hidden, in);
    Matrix(prefix + "up", dtype, inner, hidden, in);
    Matrix(prefix + "down", dtype_of_down, hidden, inner,
           2.0f / std::sqrt(static_cast<float>(inner)));
  }

  model::ModelConfig config_;

 private:
  struct Stored {
    kernels::StoredMatrix shape;
    std::vector<std::byte> bytes;
  };

  Random random_;
  std::map<std::string, Stored, std::less<>> matrices_;
  std::map<std::string, std::vector<float>, std::less<>> vectors_;
  const std::string path_;
};

class SyntheticLlama final : public SyntheticModel {
 public:
  SyntheticLlama() : SyntheticModel("synthetic", 20240229) {
    config_.hidden_size = 256;
    config_.intermediate_size = 672;
    config_.num_layers = 2;
    config_.num_heads = 4;
    config_.num_kv_heads = 2;
    Matrix("embed", DType::kF32, kVocab, config_.hidden_size, 1.0f);
    Matrix("lm_head", DType::kBF16, kVocab, config_.hidden_size, 2.0f / std::sqrt(256.0f));
    Vector("final_norm", config_.hidden_size);
    for (int64_t i = 0; i < config_.num_layers; ++i) {
      const std::string layer = absl::StrCat("layers.", i, ".");
      const bool even = i % 2 == 0;
      Attention(layer, even ? DType::kQ8_0 : DType::kF32, DType::kQ8_0);
      FeedForward(layer, even ? DType::kQ4_1 : DType::kBF16, even ? DType::kF32 : DType::kQ4_1,
                  config_.intermediate_size);
    }
  }
};

class SyntheticMixture final : public SyntheticModel {
 public:
  explicit SyntheticMixture(bool shared)
      : SyntheticModel(shared ? "synthetic moe, shared expert" : "synthetic moe", 20240301) {
    const int64_t hidden = config_.hidden_size = 192;
    config_.num_layers = shared ? 3 : 4;
    config_.num_heads = 3;
    config_.num_kv_heads = 1;
    config_.family = shared ? model::Family::kQwen2Moe : model::Family::kMixtral;
    model::MoeConfig& moe = config_.moe;
    moe.num_experts = shared ? 12 : 8;
    moe.experts_per_token = shared ? 3 : 2;
    moe.intermediate_size = shared ? 160 : 416;
    if (shared) {
      config_.intermediate_size = 416;
      moe.shared_intermediate_size = 416;
      moe.shared_gate = true;
      moe.normalise = false;
      moe.dense_layers = {true, false, false};
    }
    const float in = 1.0f / std::sqrt(static_cast<float>(hidden));
    Matrix("embed", DType::kF32, kVocab, hidden, 1.0f);
    Matrix("lm_head", DType::kBF16, kVocab, hidden, 2 * in);
    Vector("final_norm", hidden);
    const DType in_types[] = {DType::kQ4_1, DType::kBF16, DType::kQ8_0, DType::kBF16};
    const DType out_types[] = {DType::kF32, DType::kQ4_1, DType::kBF16, DType::kQ8_0};
    for (int64_t i = 0; i < config_.num_layers; ++i) {
      const std::string layer = absl::StrCat("layers.", i, ".");
      Attention(layer, i % 2 == 0 ? DType::kQ8_0 : DType::kF32, DType::kQ8_0);
      if (!moe.IsMoe(i)) {
        FeedForward(layer, in_types[i], out_types[i], config_.intermediate_size);
        continue;
      }
      // Logits of standard deviation 1.5: weights of a token's experts differ, none is negligible.
      Matrix(layer + "router", DType::kF32, moe.num_experts, hidden, 1.5f * in);
      for (int64_t e = 0; e < moe.num_experts; ++e) {
        FeedForward(absl::StrCat(layer, "experts.", e, "."), in_types[i], out_types[i],
                    moe.intermediate_size);
      }
      if (!shared) continue;
      FeedForward(layer + "shared.", in_types[i], out_types[i], moe.shared_intermediate_size);
      Matrix(layer + "shared_gate", DType::kF32, 1, hidden, in);
    }
  }
};

class SyntheticForFourRanks final : public SyntheticModel {
 public:
  SyntheticForFourRanks() : SyntheticModel("synthetic for four ranks", 20240302) {
    const int64_t hidden = config_.hidden_size = 128;
    config_.num_layers = 2;
    config_.num_heads = 9;
    config_.num_kv_heads = 3;
    config_.intermediate_size = 608;
    config_.family = model::Family::kQwen2Moe;
    model::MoeConfig& moe = config_.moe;
    moe.num_experts = 4;
    moe.experts_per_token = 2;
    moe.intermediate_size = 544;
    moe.shared_intermediate_size = 512;
    moe.shared_gate = true;
    moe.dense_layers = {true, false};
    const float in = 1.0f / std::sqrt(static_cast<float>(hidden));
    Matrix("embed", DType::kF32, kVocab, hidden, 1.0f);
    Matrix("lm_head", DType::kBF16, kVocab, hidden, 2 * in);
    Vector("final_norm", hidden);
    Attention("layers.0.", DType::kQ8_0, DType::kQ4_1);
    FeedForward("layers.0.", DType::kQ4_1, DType::kQ4_1, config_.intermediate_size);
    Attention("layers.1.", DType::kBF16, DType::kBF16);
    Matrix("layers.1.router", DType::kF32, moe.num_experts, hidden, 1.5f * in);
    for (int64_t e = 0; e < moe.num_experts; ++e) {
      FeedForward(absl::StrCat("layers.1.experts.", e, "."), DType::kBF16,
                  e % 2 == 0 ? DType::kBF16 : DType::kQ8_0, moe.intermediate_size);
    }
    FeedForward("layers.1.shared.", DType::kQ8_0, DType::kF32, moe.shared_intermediate_size);
    Matrix("layers.1.shared_gate", DType::kF32, 1, hidden, in);
  }
};

}  // namespace

std::unique_ptr<model::Checkpoint> MakeSyntheticForFourRanks() {
  return std::make_unique<SyntheticForFourRanks>();
}

std::unique_ptr<model::Checkpoint> MakeSyntheticModel() {
  return std::make_unique<SyntheticLlama>();
}

std::unique_ptr<model::Checkpoint> MakeSyntheticMixture(bool shared) {
  return std::make_unique<SyntheticMixture>(shared);
}

}  // namespace verbatim::conformance
