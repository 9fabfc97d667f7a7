// A model in one GGUF file. Source of the tensor names: the GGUF specification.
#include <map>
#include <optional>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "model/checkpoint_tensors.h"
#include "model/config.h"
#include "model/gguf.h"

namespace verbatim::model {
namespace {

// "layers.3.q.bias" to "blk.3.attn_q.bias", "layers.3.experts.5.up" to part of
// "blk.3.ffn_up_exps.weight" or, in older files, "blk.3.ffn_up.5.weight".
std::vector<TensorPlace> GgufPlaces(const std::string& canonical, const MoeConfig& moe) {
  static const auto& kModelNames =
      *new std::map<std::string, std::string>{{"embed", "token_embd.weight"},
                                              {"final_norm", "output_norm.weight"},
                                              {"lm_head", "output.weight"}};
  static const auto& kLayerNames =
      *new std::map<std::string, std::string>{{"attn_norm", "attn_norm.weight"},
                                              {"q", "attn_q.weight"},
                                              {"k", "attn_k.weight"},
                                              {"v", "attn_v.weight"},
                                              {"o", "attn_output.weight"},
                                              {"ffn_norm", "ffn_norm.weight"},
                                              {"gate", "ffn_gate.weight"},
                                              {"up", "ffn_up.weight"},
                                              {"down", "ffn_down.weight"},
                                              {"q.bias", "attn_q.bias"},
                                              {"k.bias", "attn_k.bias"},
                                              {"v.bias", "attn_v.bias"},
                                              {"q_norm", "attn_q_norm.weight"},
                                              {"k_norm", "attn_k_norm.weight"},
                                              {"router", "ffn_gate_inp.weight"},
                                              {"shared.gate", "ffn_gate_shexp.weight"},
                                              {"shared.up", "ffn_up_shexp.weight"},
                                              {"shared.down", "ffn_down_shexp.weight"},
                                              {"shared_gate", "ffn_gate_inp_shexp.weight"}};
  if (const auto it = kModelNames.find(canonical); it != kModelNames.end()) return {{it->second}};
  const LayerTensorName name = SplitLayerName(canonical);
  const std::string block = absl::StrCat("blk.", name.layer, ".");
  if (name.expert < 0) return {{block + kLayerNames.at(name.rest)}};
  return {{.file_name = absl::StrCat(block, "ffn_", name.rest, "_exps.weight"),
           .experts = moe.num_experts,
           .expert = name.expert},
          {.file_name = absl::StrCat(block, "ffn_", name.rest, ".", name.expert, ".weight")}};
}

class GgufCheckpoint : public TensorCheckpoint {
 public:
  GgufCheckpoint(std::unique_ptr<GgufFile> file, ModelConfig config)
      : TensorCheckpoint(file->path(), std::move(config)), file_(std::move(file)) {}

  absl::Status Read() {
    if (absl::Status status = AddTensors(); !status.ok()) return status;
    // A tensor that is not used, such as a bias of a family that has none, would change the result.
    for (const auto& [name, tensor] : file_->tensors()) {
      if (!IsUsed(name) && name != "rope_freqs.weight") {
        return absl::UnimplementedError(
            absl::StrCat(path(), ": tensor ", absl::CHexEscape(name),
                         " does not belong to a model of this configuration"));
      }
    }
    return absl::OkStatus();
  }

 protected:
  absl::StatusOr<std::unique_ptr<Tokenizer>> ReadTokenizer() const override {
    return Tokenizer::FromGguf(*file_);
  }
  std::optional<FileTensor> InFiles(const std::string& file_name) const override {
    const auto it = file_->tensors().find(file_name);
    if (it == file_->tensors().end()) return std::nullopt;
    const GgufTensor& tensor = it->second;
    return FileTensor{{tensor.dtype, tensor.shape, tensor.data, tensor.size_bytes}, path()};
  }
  std::vector<TensorPlace> PlacesOf(const std::string& canonical_name) const override {
    return GgufPlaces(canonical_name, config().moe);
  }

 private:
  const std::unique_ptr<GgufFile> file_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> OpenGgufCheckpoint(const std::string& path) {
  absl::StatusOr<std::unique_ptr<GgufFile>> file = GgufFile::Open(path);
  if (!file.ok()) return file.status();
  absl::StatusOr<ModelConfig> config = ReadGgufConfig(**file);
  if (!config.ok()) return config.status();
  auto checkpoint = std::make_unique<GgufCheckpoint>(*std::move(file), *std::move(config));
  if (absl::Status status = checkpoint->Read(); !status.ok()) return status;
  return checkpoint;
}

}  // namespace verbatim::model
