// A model in Hugging Face layout: config.json and one or more safetensors files in one directory.
#include <algorithm>
#include <filesystem>
#include <map>
#include <optional>
#include <system_error>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "model/checkpoint_tensors.h"
#include "model/config.h"
#include "model/huggingface_names.h"
#include "model/safetensors.h"

namespace verbatim::model {
namespace {

namespace fs = std::filesystem;

// Tensors that may lie in a file although the model does not read them: the embedding's second name
// when it is tied, and rotary frequencies, which follow from the configuration.
bool MayBeIgnored(const std::string& name, const ModelConfig& config) {
  return (config.tied_embeddings && name == "lm_head.weight") ||
         name.ends_with(".rotary_emb.inv_freq");
}

// The files of a model, in a fixed order, and what each tensor is.
struct Shards {
  std::vector<std::unique_ptr<SafetensorsFile>> files;
  struct Located {
    const SafetensorsFile* file;
    const SafetensorsTensor* tensor;
  };
  std::map<std::string, Located> tensors;
};

absl::StatusOr<const SafetensorsFile*> OpenShard(const std::string& path, Shards& shards) {
  absl::StatusOr<std::unique_ptr<SafetensorsFile>> file = SafetensorsFile::Open(path);
  if (!file.ok()) return file.status();
  shards.files.push_back(*std::move(file));
  return shards.files.back().get();
}

// Every tensor of one file.
absl::Status AddFile(const std::string& path, Shards& shards) {
  absl::StatusOr<const SafetensorsFile*> file = OpenShard(path, shards);
  if (!file.ok()) return file.status();
  for (const auto& [name, tensor] : (*file)->tensors()) {
    const auto [it, inserted] = shards.tensors.emplace(name, Shards::Located{*file, &tensor});
    if (!inserted) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": tensor ", absl::CHexEscape(name),
                                                     " is also in ", it->second.file->path()));
    }
  }
  return absl::OkStatus();
}

// The tensors of an index, each from the file that it names.
absl::Status AddIndex(const std::string& directory, const std::string& index_path, Shards& shards) {
  absl::StatusOr<std::map<std::string, std::string>> index = ReadSafetensorsIndex(index_path);
  if (!index.ok()) return index.status();
  std::map<std::string, const SafetensorsFile*> files;
  for (const auto& [name, file_name] : *index) {
    auto it = files.find(file_name);
    if (it == files.end()) {
      absl::StatusOr<const SafetensorsFile*> file =
          OpenShard(absl::StrCat(directory, "/", file_name), shards);
      if (!file.ok()) return file.status();
      it = files.emplace(file_name, *file).first;
    }
    const auto tensor = it->second->tensors().find(name);
    if (tensor == it->second->tensors().end()) {
      return absl::InvalidArgumentError(absl::StrCat(index_path, ": weight_map puts tensor ",
                                                     absl::CHexEscape(name), " into ", file_name,
                                                     ", which does not have it"));
    }
    shards.tensors.emplace(name, Shards::Located{it->second, &tensor->second});
  }
  // A tensor that the index passes over would be lost without a word.
  for (const auto& [file_name, file] : files) {
    for (const auto& [name, tensor] : file->tensors()) {
      if (!index->contains(name)) {
        return absl::InvalidArgumentError(absl::StrCat(index_path, ": weight_map lacks tensor ",
                                                       absl::CHexEscape(name), " of ", file_name));
      }
    }
  }
  return absl::OkStatus();
}

// The index if there is one, otherwise every .safetensors file by name.
absl::Status AddDirectory(const std::string& directory, Shards& shards) {
  std::error_code error;
  const std::string index_path = absl::StrCat(directory, "/model.safetensors.index.json");
  if (fs::exists(index_path, error)) return AddIndex(directory, index_path, shards);
  std::vector<std::string> paths;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    if (it->path().extension() == ".safetensors") paths.push_back(it->path().string());
  }
  if (error) {
    return absl::InvalidArgumentError(
        absl::StrCat(directory, ": cannot list the directory: ", error.message()));
  }
  if (paths.empty()) {
    return absl::NotFoundError(absl::StrCat(directory, ": has no .safetensors file"));
  }
  std::sort(paths.begin(), paths.end());
  for (const std::string& path : paths) {
    if (absl::Status status = AddFile(path, shards); !status.ok()) return status;
  }
  return absl::OkStatus();
}

class SafetensorsCheckpoint : public TensorCheckpoint {
 public:
  SafetensorsCheckpoint(const std::string& path, const std::string& directory, Shards shards,
                        ModelConfig config)
      : TensorCheckpoint(path, std::move(config)),
        directory_(directory),
        shards_(std::move(shards)) {}

  absl::Status Read() {
    if (absl::Status status = AddTensors(); !status.ok()) return status;
    // A tensor that is not used, such as a bias of a family that has none, would change the result.
    for (const auto& [name, located] : shards_.tensors) {
      if (!IsUsed(name) && !MayBeIgnored(name, config())) {
        return absl::UnimplementedError(
            absl::StrCat(located.file->path(), ": tensor ", absl::CHexEscape(name),
                         " does not belong to a model of this configuration"));
      }
    }
    return absl::OkStatus();
  }

 protected:
  absl::StatusOr<std::unique_ptr<Tokenizer>> ReadTokenizer() const override {
    return Tokenizer::FromJsonFile(absl::StrCat(directory_, "/tokenizer.json"));
  }
  std::optional<FileTensor> InFiles(const std::string& file_name) const override {
    const auto it = shards_.tensors.find(file_name);
    if (it == shards_.tensors.end()) return std::nullopt;
    const SafetensorsTensor& tensor = *it->second.tensor;
    return FileTensor{{tensor.dtype, tensor.shape, tensor.data, tensor.size_bytes},
                      it->second.file->path()};
  }
  std::vector<TensorPlace> PlacesOf(const std::string& canonical_name) const override {
    return HuggingFacePlaces(canonical_name, config());
  }

 private:
  const std::string directory_;
  const Shards shards_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> OpenSafetensorsCheckpoint(const std::string& path) {
  std::error_code error;
  const bool is_directory = fs::is_directory(path, error);
  const fs::path parent = fs::path(path).parent_path();
  const std::string directory = is_directory ? path : parent.empty() ? "." : parent.string();
  absl::StatusOr<ModelConfig> config = ReadHuggingFaceConfig(directory);
  if (!config.ok()) return config.status();
  Shards shards;
  absl::Status status = is_directory ? AddDirectory(directory, shards) : AddFile(path, shards);
  if (!status.ok()) return status;
  auto checkpoint = std::make_unique<SafetensorsCheckpoint>(path, directory, std::move(shards),
                                                            *std::move(config));
  if (status = checkpoint->Read(); !status.ok()) return status;
  return checkpoint;
}

}  // namespace verbatim::model
