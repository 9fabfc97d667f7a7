// Copying or writing the tokenizer.
#include "upcycle/tokenizer_files.h"

#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "evaluate/token_windows.h"
#include "model/gguf.h"
#include "model/tokenizer_json_writer.h"
#include "model/tokenizer_spec.h"

namespace verbatim::upcycle {
namespace {

namespace fs = std::filesystem;

absl::StatusOr<TokenizerSource> FromGguf(const std::string& path) {
  absl::StatusOr<std::unique_ptr<model::GgufFile>> file = model::GgufFile::Open(path);
  if (!file.ok()) return file.status();
  absl::StatusOr<model::TokenizerSpec> spec = model::ReadGgufTokenizerSpec(**file);
  if (!spec.ok()) return spec.status();
  absl::StatusOr<model::TokenizerFiles> written = model::WriteTokenizerFiles(*spec);
  if (!written.ok()) {
    return absl::Status(written.status().code(),
                        absl::StrCat(path, ": ", std::string(written.status().message())));
  }
  TokenizerSource source;
  source.files["tokenizer.json"] = std::move(written->tokenizer_json);
  source.files["tokenizer_config.json"] = std::move(written->tokenizer_config_json);
  const absl::StatusOr<std::string> license = (*file)->GetString("general.license");
  if (license.ok()) source.license = *license;
  return source;
}

}  // namespace

absl::StatusOr<TokenizerSource> ReadTokenizerSource(const std::string& model) {
  if (fs::path(model).extension() == ".gguf") return FromGguf(model);
  std::error_code error;
  const fs::path folder =
      fs::is_directory(model, error) ? fs::path(model) : fs::path(model).parent_path();
  TokenizerSource source;
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}) {
    const std::string path = (folder / name).string();
    if (!fs::exists(path, error)) continue;
    absl::StatusOr<std::string> content = evaluate::ReadText(path);
    if (!content.ok()) return content.status();
    source.files[name] = *std::move(content);
  }
  return source;
}

}  // namespace verbatim::upcycle
