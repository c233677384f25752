/* The architecture and the weights of a packed folder. */
#ifndef TCLIP_MODEL_H
#define TCLIP_MODEL_H

#include "error.h"
#include "product.h"
#include "safetensors.h"
#include "tclip.h"

/* The sizes of a transformer. */
struct tclip_sizes {
  size_t width, layers, heads, mlp_dim;
};

struct tclip_config {
  size_t embed_dim;
  struct tclip_sizes vision, text;
  size_t image_size, patch_size;
  int is_map; /* SigLIP's attention pooling; else CLIP's class token */
  size_t context_length, vocab_size, eot_token_id;
  int is_causal, is_eot, has_projection_bias;
  enum tclip_activation activation;
  float layer_norm_eps;
  int scan_layers, has_logit_bias;
};

struct tclip_linear {
  struct tclip_weight w;
  const float *bias; /* or NULL */
};

struct tclip_norm {
  const float *scale, *bias;
};

struct tclip_attention {
  struct tclip_linear q, k, v, out;
};

struct tclip_mlp {
  struct tclip_linear fc1, fc2;
};

struct tclip_block {
  struct tclip_norm ln_1, ln_2;
  struct tclip_attention attention;
  struct tclip_mlp mlp;
};

struct tclip_vision {
  struct tclip_linear patch_embed, projection;
  const float *class_embedding, *positions, *probe;
  struct tclip_norm ln_pre, ln_post, ln_mlp;
  struct tclip_block *blocks;
  struct tclip_attention pool; /* of is_map, as are probe, ln_mlp and mlp */
  struct tclip_mlp mlp;
};

struct tclip_text {
  struct tclip_weight table;
  const float *positions;
  struct tclip_norm ln_final;
  struct tclip_block *blocks;
  struct tclip_linear projection;
};

struct tclip_model {
  const struct tclip_kernel *kernel;
  struct tclip_config config;
  int towers;
  float log_scale, logit_bias;
  struct tclip_vision vision;
  struct tclip_text text;
  struct tclip_tensors file;
  void **allocations;
  size_t allocation_count;
  size_t most_columns; /* of any input or output of a layer, and at least any panel's */
};

/* Tokens of an image. */
size_t tclip_image_tokens(const struct tclip_config *config);

/* Reads config.json's `model`, as tclip.models.architectures defines it; "" in `ternary` etc. */
struct tclip_json;
int tclip_read_config(const struct tclip_json *description, const char *name,
                      struct tclip_config *config, const struct tclip_error *error);

#endif
