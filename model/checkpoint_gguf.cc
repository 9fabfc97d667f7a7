// A model in one GGUF file. Source of the tensor names: the GGUF specification.
#include <map>
#include <set>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "model/checkpoint_tensors.h"
#include "model/config.h"
#include "model/gguf.h"

namespace verbatim::model {
namespace {

// "layers.3.q.bias" to "blk.3.attn_q.bias".
std::string GgufName(const std::string& canonical) {
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
                                              {"k_norm", "attn_k_norm.weight"}};
  if (const auto it = kModelNames.find(canonical); it != kModelNames.end()) return it->second;
  const size_t index_end = canonical.find('.', 7);  // after "layers."
  return absl::StrCat("blk.", canonical.substr(7, index_end - 7), ".",
                      kLayerNames.at(canonical.substr(index_end + 1)));
}

class GgufCheckpoint : public TensorCheckpoint {
 public:
  GgufCheckpoint(std::unique_ptr<GgufFile> file, ModelConfig config)
      : TensorCheckpoint(file->path(), std::move(config)), file_(std::move(file)) {}

  absl::Status AddTensors() {
    std::set<std::string, std::less<>> used = {"rope_freqs.weight"};
    for (const ExpectedTensor& expected : ExpectedTensors(config())) {
      const std::string name = GgufName(expected.name);
      const auto it = file_->tensors().find(name);
      if (it == file_->tensors().end()) {
        return absl::InvalidArgumentError(absl::StrCat(path(), ": tensor ", name, " is missing"));
      }
      const GgufTensor& tensor = it->second;
      if (absl::Status status = Add(expected, path(), name,
                                    {tensor.dtype, tensor.shape, tensor.data, tensor.size_bytes});
          !status.ok()) {
        return status;
      }
      used.insert(name);
    }
    // A tensor that is not used, such as a bias of a family that has none, would change the result.
    for (const auto& [name, tensor] : file_->tensors()) {
      if (!used.contains(name)) {
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
  if (absl::Status status = checkpoint->AddTensors(); !status.ok()) return status;
  return checkpoint;
}

}  // namespace verbatim::model
