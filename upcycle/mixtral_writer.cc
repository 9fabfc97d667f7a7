// Names, shapes and order of the tensors. Source of the names: the Mixtral model class of the
// transformers library (and of mistralai's published checkpoints).
#include "upcycle/mixtral_writer.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/numerics/bf16.h"
#include "kernels/ops/block_formats.h"

namespace verbatim::upcycle {
namespace {

constexpr kernels::DType kType = kernels::DType::kBF16;

std::string LayerName(int64_t layer, const char* rest) {
  return absl::StrCat("model.layers.", layer, ".", rest);
}

std::string ExpertName(int64_t layer, int64_t expert, const char* matrix) {
  return LayerName(
      layer, absl::StrCat("block_sparse_moe.experts.", expert, ".", matrix, ".weight").c_str());
}

std::vector<model::SafetensorsEntry> Entries(const model::ModelConfig& config,
                                             const Provenance& provenance) {
  const int64_t hidden = config.hidden_size, inner = provenance.intermediate_size;
  const int64_t q = config.num_heads * config.head_dim;
  const int64_t kv = config.num_kv_heads * config.head_dim;
  std::vector<model::SafetensorsEntry> entries;
  const auto add = [&](std::string name, std::vector<int64_t> shape) {
    entries.push_back({std::move(name), kType, std::move(shape)});
  };
  add("model.embed_tokens.weight", {config.vocab_size, hidden});
  for (int64_t i = 0; i < config.num_layers; ++i) {
    add(LayerName(i, "input_layernorm.weight"), {hidden});
    add(LayerName(i, "self_attn.q_proj.weight"), {q, hidden});
    add(LayerName(i, "self_attn.k_proj.weight"), {kv, hidden});
    add(LayerName(i, "self_attn.v_proj.weight"), {kv, hidden});
    add(LayerName(i, "self_attn.o_proj.weight"), {hidden, q});
    add(LayerName(i, "post_attention_layernorm.weight"), {hidden});
    add(LayerName(i, "block_sparse_moe.gate.weight"), {provenance.num_experts, hidden});
    for (int64_t e = 0; e < provenance.num_experts; ++e) {
      add(ExpertName(i, e, "w1"), {inner, hidden});
      add(ExpertName(i, e, "w2"), {hidden, inner});
      add(ExpertName(i, e, "w3"), {inner, hidden});
    }
  }
  add("model.norm.weight", {hidden});
  if (!config.tied_embeddings) add("lm_head.weight", {config.vocab_size, hidden});
  return entries;
}

std::vector<uint16_t> Rounded(absl::Span<const float> values) {
  std::vector<uint16_t> bits(values.size());
  for (size_t i = 0; i < values.size(); ++i) bits[i] = numerics::Bf16FromFloat(values[i]);
  return bits;
}

}  // namespace

absl::StatusOr<std::unique_ptr<MixtralWriter>> MixtralWriter::Create(
    const std::string& path, const model::Checkpoint& parent, const Provenance& provenance) {
  absl::StatusOr<std::unique_ptr<model::SafetensorsWriter>> file = model::SafetensorsWriter::Create(
      path, Entries(parent.config(), provenance),
      {{"format", "pt"}, {"upcycled_from_sha256", provenance.parent_weights_sha256}});
  if (!file.ok()) return file.status();
  return std::unique_ptr<MixtralWriter>(new MixtralWriter(parent, *std::move(file)));
}

absl::Status MixtralWriter::Bits(const std::string& name, const std::vector<uint16_t>& values) {
  return file_->Append(name, values.data(), static_cast<int64_t>(values.size() * sizeof(uint16_t)));
}

absl::Status MixtralWriter::Matrix(const std::string& name, const std::string& canonical_name,
                                   int64_t rotated_heads) {
  const absl::StatusOr<kernels::StoredMatrix> matrix = parent_.Matrix(canonical_name);
  if (!matrix.ok()) return matrix.status();
  const bool reorder = rotated_heads > 0 && parent_.config().rope_interleaved;
  const int64_t head_dim = parent_.config().head_dim;
  std::vector<uint16_t> bits(matrix->rows * matrix->cols);
  std::vector<float> row(matrix->cols);
  for (int64_t r = 0; r < matrix->rows; ++r) {
    // Row r of the result: of pair `within` % (head_dim / 2), the half within / (head_dim / 2).
    const int64_t within = r % head_dim, pairs = head_dim / 2;
    const int64_t source = reorder ? r - within + 2 * (within % pairs) + within / pairs : r;
    kernels::DecodeRow(matrix->dtype, matrix->data + source * matrix->row_bytes(), matrix->cols,
                       row.data());
    for (int64_t i = 0; i < matrix->cols; ++i) {
      bits[r * matrix->cols + i] = numerics::Bf16FromFloat(row[i]);
    }
  }
  return Bits(name, bits);
}

absl::Status MixtralWriter::Vector(const std::string& name, const std::string& canonical_name) {
  const absl::StatusOr<std::vector<float>> values = parent_.Vector(canonical_name);
  if (!values.ok()) return values.status();
  return Bits(name, Rounded(*values));
}

absl::Status MixtralWriter::Begin() { return Matrix("model.embed_tokens.weight", "embed", 0); }

absl::Status MixtralWriter::Layer(int64_t layer, absl::Span<const float> router,
                                  absl::Span<const Expert> experts) {
  const model::ModelConfig& config = parent_.config();
  const std::string from = absl::StrCat("layers.", layer, ".");
  absl::Status status = Vector(LayerName(layer, "input_layernorm.weight"), from + "attn_norm");
  const auto matrix = [&](const char* name, const char* canonical, int64_t rotated_heads) {
    if (status.ok()) status = Matrix(LayerName(layer, name), from + canonical, rotated_heads);
  };
  matrix("self_attn.q_proj.weight", "q", config.num_heads);
  matrix("self_attn.k_proj.weight", "k", config.num_kv_heads);
  matrix("self_attn.v_proj.weight", "v", 0);
  matrix("self_attn.o_proj.weight", "o", 0);
  if (status.ok()) {
    status = Vector(LayerName(layer, "post_attention_layernorm.weight"), from + "ffn_norm");
  }
  const auto bits = [&](const std::string& name, const std::vector<uint16_t>& values) {
    if (status.ok()) status = Bits(name, values);
  };
  bits(LayerName(layer, "block_sparse_moe.gate.weight"), Rounded(router));
  for (size_t e = 0; e < experts.size(); ++e) {
    bits(ExpertName(layer, static_cast<int64_t>(e), "w1"), experts[e].gate);
    bits(ExpertName(layer, static_cast<int64_t>(e), "w2"), experts[e].down);
    bits(ExpertName(layer, static_cast<int64_t>(e), "w3"), experts[e].up);
  }
  return status;
}

absl::Status MixtralWriter::Finish() {
  absl::Status status = Vector("model.norm.weight", "final_norm");
  if (status.ok() && !parent_.config().tied_embeddings) {
    status = Matrix("lm_head.weight", "lm_head", 0);
  }
  if (!status.ok()) return status;
  return file_->Finish();
}

}  // namespace verbatim::upcycle
