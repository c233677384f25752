/* Opens a packed folder: every tensor that the architecture has, of its shape. */
#include "model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "half.h"
#include "json.h"

enum { MOST_CONFIG_BYTES = 1 << 26, NAME_SIZE = 128, PATH_SIZE = 4096 };

struct loader {
  struct tclip_model *model;
  const struct tclip_error *error;
  const char *file;                 /* of the tensors, for messages */
  const struct tclip_json *ternary; /* what config.json says of ternary tensors */
  enum tclip_dtype float_dtype;
  char prefix[NAME_SIZE];           /* of names */
  size_t layers, layer;             /* of stacked blocks; 0 layers are none */
  int failed;                       /* the rest is skipped */
};

static void *allocate(struct loader *l, size_t count, size_t size) {
  struct tclip_model *m = l->model;
  void **more = realloc(m->allocations, (m->allocation_count + 1) * sizeof *more);
  if (more) m->allocations = more;
  void *memory = more ? calloc(count ? count : 1, size) : NULL;
  if (memory)
    m->allocations[m->allocation_count++] = memory;
  else
    l->failed = tclip_fail(l->error, "%s: out of memory", l->file);
  return memory;
}

/* The layer at hand of the tensor prefix + name, of that shape [rows, columns] or, where rows is 0,
 * [columns], or, where both are, []. */
static const void *find(struct loader *l, const char *name, enum tclip_dtype dtype, size_t rows,
                        size_t columns) {
  static const char *const DTYPES[] = {"float16", "float32", "int32"};
  char path[2 * NAME_SIZE];
  size_t shape[TCLIP_MOST_AXES], axes = 0, elements = (rows ? rows : 1) * (columns ? columns : 1);
  if (l->failed) return NULL;
  snprintf(path, sizeof path, "%s%s", l->prefix, name);
  if (l->layers) shape[axes++] = l->layers;
  if (rows) shape[axes++] = rows;
  if (columns) shape[axes++] = columns;
  struct tclip_tensor *tensor = tclip_tensors_find(&l->model->file, path);
  if (!tensor) {
    l->failed = tclip_fail(l->error, "%s: tensor '%s' is missing", l->file, path);
    return NULL;
  }
  tensor->used = 1;
  if (tensor->dtype != dtype || tensor->axes != axes ||
      memcmp(tensor->shape, shape, axes * sizeof *shape)) {
    l->failed = tclip_fail(l->error, "%s: tensor '%s' is not the %s [%zu, %zu] that it has to be",
                           l->file, path, DTYPES[dtype], rows, columns);
    return NULL;
  }
  size_t bytes = dtype == TCLIP_F16 ? 2 : 4;
  return (const char *)tensor->data + l->layer * elements * bytes;
}

static int all_finite(const void *data, enum tclip_dtype dtype, size_t count) {
  /* All ones in the exponent are an infinity or NaN. */
  uint32_t wrong = 0;
  if (dtype == TCLIP_F16) {
    for (size_t i = 0; i < count; i++)
      wrong |= (((const uint16_t *)data)[i] & 0x7C00u) == 0x7C00u;
  } else {
    for (size_t i = 0; i < count; i++)
      wrong |= (((const uint32_t *)data)[i] & 0x7F800000u) == 0x7F800000u;
  }
  return !wrong;
}

static const void *find_floats(struct loader *l, const char *name, size_t rows, size_t columns) {
  const void *data = find(l, name, l->float_dtype, rows, columns);
  size_t count = (rows ? rows : 1) * (columns ? columns : 1);
  if (data && !all_finite(data, l->float_dtype, count)) {
    l->failed = tclip_fail(l->error, "%s: tensor '%s%s' holds NaN or infinity", l->file, l->prefix,
                           name);
    return NULL;
  }
  return data;
}

/* Floats in float32: a copy, since they are few and read often. */
static const float *vector(struct loader *l, const char *name, size_t rows, size_t columns) {
  const void *data = find_floats(l, name, rows, columns);
  size_t count = (rows ? rows : 1) * (columns ? columns : 1);
  float *copy = data ? allocate(l, count, sizeof *copy) : NULL;
  for (size_t i = 0; copy && i < count; i++)
    copy[i] = l->float_dtype == TCLIP_F16 ? tclip_half(((const uint16_t *)data)[i])
                                          : ((const float *)data)[i];
  return copy;
}

/* Reads an array of `count` sizes; -1 if it is none. */
static int read_sizes(const struct tclip_json *json, size_t *sizes, size_t count) {
  if (!json || json->kind != TCLIP_JSON_ARRAY || json->count != count) return -1;
  for (const struct tclip_json *e = json->first; e; e = e->next, sizes++) {
    if (e->kind != TCLIP_JSON_NUMBER || !e->is_integer || e->integer < 1) return -1;
    *sizes = (size_t)e->integer;
  }
  return 0;
}

static void check_codes(struct loader *l, const char *name, const struct tclip_weight *w) {
  const uint32_t *words = w->data;
  size_t count = (w->rows + 15) / 16 * w->columns, used = w->rows % 16;
  uint32_t wrong = 0, beyond = 0;
  for (size_t i = 0; i < count; i++) wrong |= words[i] >> 1 & ~words[i] & 0x55555555u;
  for (size_t i = used ? count - w->columns : count; i < count; i++) beyond |= words[i] >> 2 * used;
  if (wrong || beyond)
    l->failed = tclip_fail(l->error, "%s: tensor '%s%s/words' holds %s", l->file, l->prefix, name,
                           wrong ? "the code 0b10, which is no ternary digit"
                                 : "codes beyond its rows");
}

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

/* A weight [rows, columns], ternary where config.json says so. */
static void weight(struct loader *l, const char *name, size_t rows, size_t columns,
                   struct tclip_weight *w) {
  char path[2 * NAME_SIZE], part[NAME_SIZE];
  size_t shape[3], scale[3], axes = l->layers ? 3 : 2;
  if (l->failed) return;
  snprintf(path, sizeof path, "%s%s", l->prefix, name);
  const struct tclip_json *entry = tclip_json_get(l->ternary, path);
  *w = (struct tclip_weight){.rows = rows, .columns = columns, .scale_rows = 1, .scale_columns = 1};
  if (!entry) {
    w->kind = l->float_dtype == TCLIP_F16 ? TCLIP_HALF : TCLIP_FLOAT;
    w->data = find_floats(l, name, rows, columns);
    return;
  }
  size_t *inner = scale + axes - 2, *inner_shape = shape + axes - 2;
  if (read_sizes(tclip_json_get(entry, "shape"), shape, axes) ||
      read_sizes(tclip_json_get(entry, "scale_shape"), scale, axes) ||
      (l->layers && (shape[0] != l->layers || l->layers % scale[0])) || inner_shape[0] != rows ||
      inner_shape[1] != columns || rows % inner[0] || columns % inner[1]) {
    l->failed = tclip_fail(l->error, "config.json: ternary tensor '%s' does not fit [%zu, %zu]",
                           path, rows, columns);
    return;
  }
  w->kind = TCLIP_TERNARY;
  w->scale_rows = inner[0];
  w->scale_columns = inner[1];
  w->scale_is_half = l->float_dtype == TCLIP_F16;
  snprintf(part, sizeof part, "%s/words", name);
  w->data = find(l, part, TCLIP_I32, (rows + 15) / 16, columns);
  if (w->data) check_codes(l, name, w);
  snprintf(part, sizeof part, "%s/scale", name);
  /* Layers may share scales, as rows and columns do. */
  size_t layers = l->layers, layer = l->layer;
  if (layers) l->layers = scale[0], l->layer = layer / (layers / scale[0]);
  w->scale = find_floats(l, part, inner[0], inner[1]);
  l->layers = layers, l->layer = layer;
}

static void linear(struct loader *l, const char *name, size_t rows, size_t columns, int has_bias,
                   struct tclip_linear *linear) {
  char part[NAME_SIZE];
  snprintf(part, sizeof part, "%s/kernel", name);
  weight(l, part, rows, columns, &linear->w);
  snprintf(part, sizeof part, "%s/bias", name);
  linear->bias = has_bias ? vector(l, part, 0, columns) : NULL;
  l->model->most_columns = larger(l->model->most_columns, larger(rows, columns));
}

static void norm(struct loader *l, const char *name, size_t width, struct tclip_norm *norm) {
  char part[NAME_SIZE];
  snprintf(part, sizeof part, "%s/scale", name);
  norm->scale = vector(l, part, 0, width);
  snprintf(part, sizeof part, "%s/bias", name);
  norm->bias = vector(l, part, 0, width);
}

static void attention(struct loader *l, size_t width, struct tclip_attention *a) {
  linear(l, "attn/q_proj", width, width, 1, &a->q);
  linear(l, "attn/k_proj", width, width, 1, &a->k);
  linear(l, "attn/v_proj", width, width, 1, &a->v);
  linear(l, "attn/out_proj", width, width, 1, &a->out);
}

static void mlp(struct loader *l, const struct tclip_sizes *sizes, struct tclip_mlp *mlp) {
  linear(l, "mlp/fc1", sizes->width, sizes->mlp_dim, 1, &mlp->fc1);
  linear(l, "mlp/fc2", sizes->mlp_dim, sizes->width, 1, &mlp->fc2);
}

static struct tclip_block *blocks(struct loader *l, const char *tower,
                                  const struct tclip_sizes *sizes) {
  int is_stacked = l->model->config.scan_layers;
  /* Ten tensors a block, or stacked ones, whose first axis has to be found in the file. */
  if (!is_stacked && sizes->layers > l->model->file.count) {
    l->failed = tclip_fail(l->error, "%s: too few tensors for the layers that config.json names",
                           l->file);
    return NULL;
  }
  snprintf(l->prefix, sizeof l->prefix, "%s/blocks/", tower);
  if (is_stacked) {
    l->layers = sizes->layers;
    l->layer = 0;
    if (!find(l, "ln_1/bias", l->float_dtype, 0, sizes->width)) return NULL;
  }
  struct tclip_block *blocks = allocate(l, sizes->layers, sizeof *blocks);
  for (size_t i = 0; blocks && i < sizes->layers && !l->failed; i++) {
    if (is_stacked)
      l->layer = i;
    else
      snprintf(l->prefix, sizeof l->prefix, "%s/blocks_%zu/", tower, i);
    norm(l, "ln_1", sizes->width, &blocks[i].ln_1);
    attention(l, sizes->width, &blocks[i].attention);
    norm(l, "ln_2", sizes->width, &blocks[i].ln_2);
    mlp(l, sizes, &blocks[i].mlp);
  }
  l->layers = l->layer = 0;
  snprintf(l->prefix, sizeof l->prefix, "%s/", tower);
  return blocks;
}

static void load_vision(struct loader *l) {
  const struct tclip_config *c = &l->model->config;
  struct tclip_vision *v = &l->model->vision;
  size_t width = c->vision.width, p = c->patch_size;
  strcpy(l->prefix, "vision/");
  linear(l, "patch_embed", 3 * p * p, width, c->is_map, &v->patch_embed);
  v->positions = vector(l, "position_embedding", tclip_image_tokens(c), width);
  if (!c->is_map) {
    v->class_embedding = vector(l, "class_embedding", 0, width);
    norm(l, "ln_pre", width, &v->ln_pre);
    linear(l, "projection", width, c->embed_dim, 0, &v->projection);
  }
  norm(l, "ln_post", width, &v->ln_post);
  v->blocks = blocks(l, "vision", &c->vision);
  if (c->is_map) {
    strcpy(l->prefix, "vision/attn_pool/");
    v->probe = vector(l, "probe", 0, width);
    attention(l, width, &v->pool);
    norm(l, "ln_mlp", width, &v->ln_mlp);
    mlp(l, &c->vision, &v->mlp);
  }
}

static void load_text(struct loader *l) {
  const struct tclip_config *c = &l->model->config;
  struct tclip_text *t = &l->model->text;
  size_t width = c->text.width;
  strcpy(l->prefix, "text/");
  weight(l, "token_embedding/embedding", c->vocab_size, width, &t->table);
  t->positions = vector(l, "position_embedding", c->context_length, width);
  norm(l, "ln_final", width, &t->ln_final);
  linear(l, "projection", width, c->embed_dim, c->has_projection_bias, &t->projection);
  t->blocks = blocks(l, "text", &c->text);
}

static void load_rest(struct loader *l) {
  l->prefix[0] = 0;
  const float *scale = vector(l, "logit_scale", 0, 0), *bias = NULL;
  if (l->model->config.has_logit_bias) bias = vector(l, "logit_bias", 0, 0);
  l->model->log_scale = scale ? *scale : 0;
  l->model->logit_bias = bias ? *bias : 0;
}

static int starts_with(const char *name, const char *start) {
  return !strncmp(name, start, strlen(start));
}

/* A tensor of no use means that config.json and the tensors are not of the same model. */
static void check_used(struct loader *l) {
  const struct tclip_model *m = l->model;
  for (size_t i = 0; i < m->file.count && !l->failed; i++) {
    const struct tclip_tensor *t = &m->file.tensors[i];
    int is_other = (!(m->towers & TCLIP_IMAGES) && starts_with(t->name, "vision/")) ||
                   (!(m->towers & TCLIP_TEXTS) && starts_with(t->name, "text/"));
    if (!t->used && !is_other)
      l->failed = tclip_fail(l->error, "%s: tensor '%s' is not in the model", l->file, t->name);
  }
}

/* config.json, checked as tclip.packed does, but for the SHA-256 of the files. */
static const struct tclip_json *check_description(const struct tclip_json *description,
                                                  const char *name, struct loader *l) {
  const struct tclip_json *type = tclip_json_get(description, "model_type");
  const struct tclip_json *version = tclip_json_get(description, "format_version");
  const struct tclip_json *dtype = tclip_json_get(description, "float_dtype");
  const struct tclip_json *ternary = tclip_json_get(description, "ternary");
  const char *wrong = NULL;
  if (!type || type->kind != TCLIP_JSON_STRING || strcmp(type->string, "tclip"))
    wrong = "model_type is not 'tclip'";
  else if (!version || !version->is_integer || version->integer != 1)
    wrong = "format_version is not 1";
  else if (!dtype || dtype->kind != TCLIP_JSON_STRING ||
           (strcmp(dtype->string, "float16") && strcmp(dtype->string, "float32")))
    wrong = "float_dtype is neither float16 nor float32";
  else if (!ternary || ternary->kind != TCLIP_JSON_OBJECT)
    wrong = "ternary is missing or of the wrong type";
  if (wrong) {
    l->failed = tclip_fail(l->error, "%s: %s", name, wrong);
    return NULL;
  }
  l->float_dtype = strcmp(dtype->string, "float16") ? TCLIP_F32 : TCLIP_F16;
  l->ternary = ternary;
  const struct tclip_json *model = tclip_json_get(description, "model");
  if (!model || model->kind != TCLIP_JSON_OBJECT) {
    l->failed = tclip_fail(l->error, "%s: model is missing or of the wrong type", name);
    return NULL;
  }
  return model;
}

static int load(struct tclip_model *m, const char *folder, const struct tclip_error *error) {
  char config[PATH_SIZE], weights[PATH_SIZE];
  size_t size;
  struct loader l = {.model = m, .error = error, .file = weights};
  if (snprintf(weights, sizeof weights, "%s/model.safetensors", folder) >= PATH_SIZE ||
      snprintf(config, sizeof config, "%s/config.json", folder) >= PATH_SIZE)
    return tclip_fail(error, "the folder's path is too long");
  char *text = tclip_read_file(config, MOST_CONFIG_BYTES, &size, error);
  if (!text) return -1;
  struct tclip_json *description = tclip_json_parse(text, size, config, error);
  free(text);
  if (!description) return -1;
  const struct tclip_json *model = check_description(description, config, &l);
  if (model && !tclip_read_config(model, config, &m->config, error) &&
      !tclip_tensors_open(weights, &m->file, error)) {
    if (m->towers & TCLIP_IMAGES) load_vision(&l);
    if (m->towers & TCLIP_TEXTS) load_text(&l);
    load_rest(&l);
    check_used(&l);
  } else {
    l.failed = 1;
  }
  tclip_json_free(description);
  return l.failed ? -1 : 0;
}

int tclip_open(const char *folder, int towers, tclip_model **model, char *error,
               size_t error_size) {
  struct tclip_error e = {error, error_size};
  *model = NULL;
  const struct tclip_kernel *kernel = tclip_chosen_kernel();
  if (!kernel)
    return tclip_fail(&e, "TCLIP_KERNEL: no such kernel, or this processor cannot run it");
  if (!(towers & (TCLIP_IMAGES | TCLIP_TEXTS)))
    return tclip_fail(&e, "towers: neither TCLIP_IMAGES nor TCLIP_TEXTS");
  tclip_model *m = calloc(1, sizeof *m);
  if (!m) return tclip_fail(&e, "out of memory");
  m->kernel = kernel;
  m->towers = towers & (TCLIP_IMAGES | TCLIP_TEXTS);
  if (load(m, folder, &e)) {
    tclip_close(m);
    return -1;
  }
  *model = m;
  return 0;
}

void tclip_close(tclip_model *m) {
  if (!m) return;
  for (size_t i = 0; i < m->allocation_count; i++) free(m->allocations[i]);
  free(m->allocations);
  tclip_tensors_close(&m->file);
  free(m);
}

void tclip_get_info(const tclip_model *m, tclip_info *info) {
  const struct tclip_config *c = &m->config;
  *info = (tclip_info){
      .embed_dim = (int32_t)c->embed_dim,
      .image_size = (int32_t)c->image_size,
      .context_length = (int32_t)c->context_length,
      .vocab_size = (int32_t)c->vocab_size,
      .eot_token_id = c->is_eot ? (int32_t)c->eot_token_id : -1,
      .towers = m->towers,
      .logit_scale = expf(m->log_scale),
      .logit_bias = m->logit_bias,
  };
}
