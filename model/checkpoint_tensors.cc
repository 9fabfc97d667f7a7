// The tensors of each family, access to them, and the fingerprint over them.
#include "model/checkpoint_tensors.h"

#include <openssl/evp.h>

#include <bit>
#include <cmath>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "kernels/ops/block_formats.h"

namespace verbatim::model {
namespace {

// SHA-256 over a sequence of fields; every field of variable size is preceded by its size, so that
// two different sequences never feed the same bytes.
class Hasher {
 public:
  Hasher() : context_(EVP_MD_CTX_new()) {
    ok_ = context_ != nullptr && EVP_DigestInit_ex(context_, EVP_sha256(), nullptr) == 1;
  }
  ~Hasher() { EVP_MD_CTX_free(context_); }
  Hasher(const Hasher&) = delete;
  Hasher& operator=(const Hasher&) = delete;

  void Bytes(const void* data, size_t size) {
    ok_ = ok_ && EVP_DigestUpdate(context_, data, size) == 1;
  }
  void Int(int64_t value) {
    unsigned char bytes[8];
    for (int i = 0; i < 8; ++i) bytes[i] = static_cast<uint64_t>(value) >> (8 * i) & 255;
    Bytes(bytes, sizeof(bytes));
  }
  void Float(double value) { Int(std::bit_cast<int64_t>(value)); }
  void Text(std::string_view text) {
    Int(static_cast<int64_t>(text.size()));
    Bytes(text.data(), text.size());
  }
  // Empty if the library failed.
  std::string Hex() {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned int size = 0;
    if (!ok_ || EVP_DigestFinal_ex(context_, digest, &size) != 1) return "";
    return absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(digest), size));
  }

 private:
  EVP_MD_CTX* context_;
  bool ok_;
};

// Everything that decides what is computed; not the name, which is only for people.
void HashConfig(const ModelConfig& config, Hasher& hasher) {
  hasher.Int(static_cast<int64_t>(config.family));
  for (const int64_t value :
       {config.vocab_size, config.hidden_size, config.intermediate_size, config.num_layers,
        config.num_heads, config.num_kv_heads, config.head_dim, config.max_position}) {
    hasher.Int(value);
  }
  hasher.Float(config.rms_norm_eps);
  hasher.Float(config.rope_theta);
  hasher.Int(static_cast<int64_t>(config.rope_scaling.kind));
  hasher.Float(config.rope_scaling.factor);
  hasher.Float(config.rope_scaling.low_freq_factor);
  hasher.Float(config.rope_scaling.high_freq_factor);
  hasher.Int(config.rope_scaling.original_max_position);
  hasher.Int(static_cast<int64_t>(config.rope_freq_factors.size()));
  for (const float factor : config.rope_freq_factors) hasher.Float(factor);
  for (const bool flag : {config.rope_interleaved, config.qkv_bias, config.qk_norm != QkNorm::kNone,
                          config.tied_embeddings}) {
    hasher.Int(flag ? 1 : 0);
  }
  hasher.Int(static_cast<int64_t>(config.eos_ids.size()));
  for (const int32_t id : config.eos_ids) hasher.Int(id);
  // Dense models have none of what follows, and their fingerprints do not know of it.
  if (config.moe.num_experts == 0) return;
  hasher.Text("mixture of experts");
  const MoeConfig& moe = config.moe;
  for (const int64_t value : {moe.num_experts, moe.experts_per_token, moe.intermediate_size,
                              moe.shared_intermediate_size, static_cast<int64_t>(config.qk_norm)}) {
    hasher.Int(value);
  }
  hasher.Int(moe.shared_gate ? 1 : 0);
  hasher.Int(moe.normalise ? 1 : 0);
  for (int64_t i = 0; i < config.num_layers; ++i) hasher.Int(moe.IsMoe(i) ? 1 : 0);
  for (const double value : {moe.scale, config.embedding_multiplier, config.attention_multiplier,
                             config.residual_multiplier, config.logits_scaling}) {
    hasher.Float(value);
  }
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

}  // namespace

std::vector<ExpectedTensor> ExpectedTensors(const ModelConfig& config) {
  const int64_t hidden = config.hidden_size;
  const int64_t q_rows = config.num_heads * config.head_dim;
  const int64_t kv_rows = config.num_kv_heads * config.head_dim;
  std::vector<ExpectedTensor> tensors = {{"embed", {config.vocab_size, hidden}},
                                         {"final_norm", {hidden}}};
  if (!config.tied_embeddings) tensors.push_back({"lm_head", {config.vocab_size, hidden}});
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const std::string layer = absl::StrCat("layers.", i, ".");
    const auto add = [&](const char* name, std::vector<int64_t> shape) {
      tensors.push_back({layer + name, std::move(shape)});
    };
    add("attn_norm", {hidden});
    add("q", {q_rows, hidden});
    add("k", {kv_rows, hidden});
    add("v", {kv_rows, hidden});
    add("o", {hidden, q_rows});
    add("ffn_norm", {hidden});
    const auto add_feed_forward = [&](const std::string& prefix, int64_t inner) {
      tensors.push_back({layer + prefix + "gate", {inner, hidden}});
      tensors.push_back({layer + prefix + "up", {inner, hidden}});
      tensors.push_back({layer + prefix + "down", {hidden, inner}});
    };
    const MoeConfig& moe = config.moe;
    if (!moe.IsMoe(i)) {
      add_feed_forward("", config.intermediate_size);
    } else {
      tensors.push_back({layer + "router", {moe.num_experts, hidden}, /*must_be_finite=*/true});
      for (int64_t e = 0; e < moe.num_experts; ++e) {
        add_feed_forward(absl::StrCat("experts.", e, "."), moe.intermediate_size);
      }
      if (moe.shared_intermediate_size > 0) {
        add_feed_forward("shared.", moe.shared_intermediate_size);
      }
      if (moe.shared_gate) {
        tensors.push_back({layer + "shared_gate", {1, hidden}, /*must_be_finite=*/true});
      }
    }
    if (config.qkv_bias) {
      add("q.bias", {q_rows});
      add("k.bias", {kv_rows});
      add("v.bias", {kv_rows});
    }
    if (config.qk_norm != QkNorm::kNone) {
      const bool all = config.qk_norm == QkNorm::kAll;
      add("q_norm", {all ? q_rows : config.head_dim});
      add("k_norm", {all ? kv_rows : config.head_dim});
    }
  }
  return tensors;
}

LayerTensorName SplitLayerName(const std::string& canonical) {
  const std::vector<std::string> parts = absl::StrSplit(canonical, absl::MaxSplits('.', 2));
  LayerTensorName name{.layer = std::stoll(parts[1]), .rest = parts[2]};
  if (name.rest.starts_with("experts.")) {
    const std::vector<std::string> expert = absl::StrSplit(name.rest, '.');
    name.expert = std::stoll(expert[1]);
    name.rest = expert[2];
  }
  return name;
}

absl::Status TensorCheckpoint::AddTensors() {
  for (const ExpectedTensor& expected : ExpectedTensors(config_)) {
    const std::vector<TensorPlace> places = PlacesOf(expected.name);
    absl::Status added = absl::InvalidArgumentError(
        absl::StrCat(path_, ": tensor ",
                     absl::StrJoin(places, " is missing, and so is ",
                                   [](std::string* out, const TensorPlace& place) {
                                     absl::StrAppend(out, place.file_name);
                                   }),
                     " is missing"));
    for (const TensorPlace& place : places) {
      const std::optional<FileTensor> found = InFiles(place.file_name);
      if (!found.has_value()) continue;
      added = Add(expected, place, *found);
      break;
    }
    if (!added.ok()) return added;
  }
  return absl::OkStatus();
}

absl::Status TensorCheckpoint::Add(const ExpectedTensor& expected, const TensorPlace& place,
                                   const FileTensor& found) {
  std::vector<int64_t> shape = expected.shape;
  if (place.parts > 1) shape[0] *= place.parts;
  if (place.experts > 0) shape.insert(shape.begin(), place.experts);
  StoredTensor tensor = found.tensor;
  // A matrix of one row may be stored as a vector.
  const bool is_row =
      shape.size() == 2 && shape[0] == 1 && tensor.shape == std::vector<int64_t>{shape[1]};
  if (tensor.shape != shape && !is_row) {
    return absl::InvalidArgumentError(absl::StrCat(found.path, ": tensor ", place.file_name,
                                                   " has shape ", ShapeText(tensor.shape),
                                                   ", the configuration says ", ShapeText(shape)));
  }
  if (place.experts > 0 || place.parts > 1) {
    const kernels::StoredMatrix rows = {
        .dtype = tensor.dtype, .rows = expected.shape[0], .cols = expected.shape[1]};
    tensor.data += (place.expert * place.parts + place.part) * rows.size_bytes();
    tensor.size_bytes = rows.size_bytes();
  }
  tensor.shape = expected.shape;
  if (expected.must_be_finite) {
    const kernels::StoredMatrix matrix = {
        .dtype = tensor.dtype, .rows = tensor.shape[0], .cols = tensor.shape[1]};
    std::vector<float> row(static_cast<size_t>(matrix.cols));
    for (int64_t r = 0; r < matrix.rows; ++r) {
      kernels::DecodeRow(matrix.dtype, tensor.data + r * matrix.row_bytes(), matrix.cols,
                         row.data());
      for (int64_t c = 0; c < matrix.cols; ++c) {
        if (std::isfinite(row[c])) continue;
        return absl::InvalidArgumentError(
            absl::StrCat(found.path, ": tensor ", place.file_name, " has ", row[c], " at [", r,
                         ", ", c, "]; weights that choose experts must be finite"));
      }
    }
  }
  weight_bytes_ += tensor.size_bytes;
  used_.insert(place.file_name);
  tensors_.emplace(expected.name, std::move(tensor));
  return absl::OkStatus();
}

const StoredTensor* TensorCheckpoint::Find(std::string_view canonical_name,
                                           size_t dimensions) const {
  const auto it = tensors_.find(canonical_name);
  if (it == tensors_.end() || it->second.shape.size() != dimensions) return nullptr;
  return &it->second;
}

absl::StatusOr<kernels::StoredMatrix> TensorCheckpoint::Matrix(
    std::string_view canonical_name) const {
  const StoredTensor* tensor = Find(canonical_name, /*dimensions=*/2);
  if (tensor == nullptr) {
    return absl::NotFoundError(
        absl::StrCat(path_, ": the model has no matrix ", std::string(canonical_name)));
  }
  return kernels::StoredMatrix{.dtype = tensor->dtype,
                               .rows = tensor->shape[0],
                               .cols = tensor->shape[1],
                               .data = tensor->data};
}

absl::StatusOr<std::vector<float>> TensorCheckpoint::Vector(std::string_view canonical_name) const {
  const StoredTensor* tensor = Find(canonical_name, /*dimensions=*/1);
  if (tensor == nullptr) {
    return absl::NotFoundError(
        absl::StrCat(path_, ": the model has no vector ", std::string(canonical_name)));
  }
  std::vector<float> values(static_cast<size_t>(tensor->shape[0]));
  kernels::DecodeRow(tensor->dtype, tensor->data, tensor->shape[0], values.data());
  return values;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> TensorCheckpoint::LoadTokenizer() const {
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = ReadTokenizer();
  if (!tokenizer.ok()) return tokenizer.status();
  if ((*tokenizer)->vocab_size() > config_.vocab_size) {
    return absl::InvalidArgumentError(
        absl::StrCat(path_, ": the tokenizer has ", (*tokenizer)->vocab_size(),
                     " tokens but the model's vocab_size is ", config_.vocab_size));
  }
  return tokenizer;
}

std::string TensorCheckpoint::ComputeFingerprint() const {
  Hasher hasher;
  hasher.Text("verbatim weights v1");
  HashConfig(config_, hasher);
  hasher.Int(static_cast<int64_t>(tensors_.size()));
  for (const auto& [name, tensor] : tensors_) {
    hasher.Text(name);
    hasher.Text(kernels::InfoOf(tensor.dtype).name);
    hasher.Int(static_cast<int64_t>(tensor.shape.size()));
    for (const int64_t size : tensor.shape) hasher.Int(size);
    hasher.Int(tensor.size_bytes);
    hasher.Bytes(tensor.data, static_cast<size_t>(tensor.size_bytes));
  }
  return hasher.Hex();
}

std::string TensorCheckpoint::WeightsFingerprint() const {
  std::call_once(fingerprint_once_, [this] { fingerprint_ = ComputeFingerprint(); });
  return fingerprint_;
}

}  // namespace verbatim::model
