// For tests: tiny models of every family, as GGUF and as Hugging Face directories.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "model/checkpoint_test_files.h"
#include "nlohmann/json.hpp"

namespace verbatim::model::testing {

// hidden 32, 2 heads, 1 KV head, head_dim 16, intermediate 64, vocabulary 40, 1 layer; matrices
// Q8_0.
inline GgufBuilder TinyGguf(const std::string& architecture) {
  GgufBuilder builder;
  const std::string& a = architecture;
  builder.AddString("general.architecture", a)
      .AddString("general.name", "tiny")
      .AddU32(a + ".block_count", 1)
      .AddU32(a + ".context_length", 128)
      .AddU32(a + ".embedding_length", 32)
      .AddU32(a + ".feed_forward_length", 64)
      .AddU32(a + ".attention.head_count", 2)
      .AddU32(a + ".attention.head_count_kv", 1)
      .AddF32(a + ".attention.layer_norm_rms_epsilon", 1e-5f)
      .AddF32(a + ".rope.freq_base", 10000.0f)
      .AddU32("tokenizer.ggml.eos_token_id", 2);
  uint32_t seed = 1;
  const auto matrix = [&](const std::string& name, uint64_t rows, uint64_t cols) {
    builder.AddTensor(name, {rows, cols}, 8, PatternBytes(rows * cols / 32 * 34, seed++));
  };
  const auto vector = [&](const std::string& name, uint64_t size) {
    builder.AddTensor(name, {size}, 0, PatternBytes(size * 4, seed++));
  };
  matrix("token_embd.weight", 40, 32);
  vector("output_norm.weight", 32);
  vector("blk.0.attn_norm.weight", 32);
  vector("blk.0.ffn_norm.weight", 32);
  matrix("blk.0.attn_q.weight", 32, 32);
  matrix("blk.0.attn_k.weight", 16, 32);
  matrix("blk.0.attn_v.weight", 16, 32);
  matrix("blk.0.attn_output.weight", 32, 32);
  matrix("blk.0.ffn_gate.weight", 64, 32);
  matrix("blk.0.ffn_up.weight", 64, 32);
  matrix("blk.0.ffn_down.weight", 32, 64);
  if (a == "qwen2") {
    vector("blk.0.attn_q.bias", 32);
    vector("blk.0.attn_k.bias", 16);
    vector("blk.0.attn_v.bias", 16);
  }
  if (a == "qwen3") {
    vector("blk.0.attn_q_norm.weight", 16);
    vector("blk.0.attn_k_norm.weight", 16);
  }
  return builder;
}

// config.json of the same model; `model_type` is llama, mistral, qwen2 or qwen3.
inline nlohmann::json TinyConfig(const std::string& model_type) {
  nlohmann::json config = {{"architectures", {"LlamaForCausalLM"}},
                           {"model_type", model_type},
                           {"vocab_size", 40},
                           {"hidden_size", 32},
                           {"intermediate_size", 64},
                           {"num_hidden_layers", 1},
                           {"num_attention_heads", 2},
                           {"num_key_value_heads", 1},
                           {"max_position_embeddings", 128},
                           {"hidden_act", "silu"},
                           {"rms_norm_eps", 1e-5},
                           {"rope_theta", 10000.0},
                           {"rope_scaling", nullptr},
                           {"tie_word_embeddings", true},
                           {"eos_token_id", 2}};
  if (model_type == "mistral") config["architectures"] = {"MistralForCausalLM"};
  if (model_type == "qwen2") config["architectures"] = {"Qwen2ForCausalLM"};
  if (model_type == "qwen3") {
    config["architectures"] = {"Qwen3ForCausalLM"};
    config["head_dim"] = 16;
  }
  return config;
}

struct NamedShape {
  std::string name;
  std::vector<int64_t> shape;
};

inline std::vector<NamedShape> TinyTensors(const std::string& model_type) {
  const std::string layer = "model.layers.0.";
  std::vector<NamedShape> tensors = {{"model.embed_tokens.weight", {40, 32}},
                                     {"model.norm.weight", {32}},
                                     {layer + "input_layernorm.weight", {32}},
                                     {layer + "post_attention_layernorm.weight", {32}},
                                     {layer + "self_attn.q_proj.weight", {32, 32}},
                                     {layer + "self_attn.k_proj.weight", {16, 32}},
                                     {layer + "self_attn.v_proj.weight", {16, 32}},
                                     {layer + "self_attn.o_proj.weight", {32, 32}},
                                     {layer + "mlp.gate_proj.weight", {64, 32}},
                                     {layer + "mlp.up_proj.weight", {64, 32}},
                                     {layer + "mlp.down_proj.weight", {32, 64}}};
  if (model_type == "qwen2") {
    tensors.push_back({layer + "self_attn.q_proj.bias", {32}});
    tensors.push_back({layer + "self_attn.k_proj.bias", {16}});
    tensors.push_back({layer + "self_attn.v_proj.bias", {16}});
  }
  if (model_type == "qwen3") {
    tensors.push_back({layer + "self_attn.q_norm.weight", {16}});
    tensors.push_back({layer + "self_attn.k_norm.weight", {16}});
  }
  return tensors;
}

// A safetensors file of BF16 tensors with pattern values.
inline std::string TinySafetensors(const std::vector<NamedShape>& tensors, uint32_t seed = 1) {
  nlohmann::json header;
  size_t offset = 0;
  for (const NamedShape& tensor : tensors) {
    size_t bytes = 2;
    for (const int64_t size : tensor.shape) bytes *= static_cast<size_t>(size);
    header[tensor.name] = {
        {"dtype", "BF16"}, {"shape", tensor.shape}, {"data_offsets", {offset, offset + bytes}}};
    offset += bytes;
  }
  return SafetensorsBytes(header.dump(), PatternBytes(offset, seed));
}

}  // namespace verbatim::model::testing
