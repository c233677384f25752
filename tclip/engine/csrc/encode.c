/* The two towers: from pixels and tokens to unit embeddings. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "half.h"
#include "threads.h"
#include "transformer.h"

/* Rows of activations at a time: enough that unpacking the weights takes no share of it. */
enum { MOST_ROWS = 512 };

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

/* Patches of an image, row by row, each [patch, patch, 3]; pixels beyond the last whole patch are
 * left out. */
static void cut_patches(const struct tclip_config *c, const float *pixels, float *patches) {
  size_t p = c->patch_size, side = c->image_size / p, line = 3 * p;
  for (size_t row = 0; row < side; row++)
    for (size_t column = 0; column < side; column++)
      for (size_t y = 0; y < p; y++, patches += line)
        memcpy(patches, pixels + ((row * p + y) * c->image_size + column * p) * 3,
               line * sizeof *pixels);
}

/* The tower's input: patches, class token and positions of `count` images, in memory->x. */
static void embed_images(struct tclip_memory *memory, const tclip_model *m, const float *pixels,
                         size_t count) {
  const struct tclip_config *c = &m->config;
  size_t width = c->vision.width, tokens = tclip_image_tokens(c), patches = tokens - !c->is_map;
  size_t inputs = 3 * c->patch_size * c->patch_size;
  for (size_t i = 0; i < count; i++)
    cut_patches(c, pixels + i * 3 * c->image_size * c->image_size,
                memory->hidden + i * patches * inputs);
  struct tclip_rows rows = {memory->hidden, inputs, count * patches, inputs, NULL, 0, NULL};
  tclip_multiply(memory, &rows, &m->vision.patch_embed, TCLIP_LINEAR, 0, memory->y);
  for (size_t i = 0; i < count; i++)
    for (size_t t = 0; t < tokens; t++) {
      const float *token = c->is_map ? memory->y + (i * patches + t) * width
                           : t       ? memory->y + (i * patches + t - 1) * width
                                     : m->vision.class_embedding;
      float *x = memory->x + (i * tokens + t) * width;
      for (size_t n = 0; n < width; n++) x[n] = token[n] + m->vision.positions[t * width + n];
    }
  if (!c->is_map)
    tclip_normalize(memory, &m->vision.ln_pre, memory->x, count * tokens, width, memory->x);
}

/* Attention pooling of memory->x into its first rows. */
static void pool_images(struct tclip_memory *memory, const tclip_model *m,
                        const struct tclip_batch *batch) {
  const struct tclip_vision *v = &m->vision;
  size_t width = m->config.vision.width, rows = batch->starts[batch->count];
  tclip_normalize(memory, &v->ln_post, memory->x, rows, width, memory->y);
  struct tclip_rows y = {memory->y, width, rows, width, NULL, 0, NULL};
  tclip_multiply(memory, &y, &v->pool.k, TCLIP_LINEAR, 0, memory->k);
  tclip_multiply(memory, &y, &v->pool.v, TCLIP_LINEAR, 0, memory->v);
  struct tclip_rows probe = {v->probe, width, 1, width, NULL, 0, NULL};
  tclip_multiply(memory, &probe, &v->pool.q, TCLIP_LINEAR, 0, memory->q);
  for (size_t i = 1; i < batch->count; i++)
    memcpy(memory->q + i * width, memory->q, width * sizeof *memory->q);
  tclip_attend(memory, &m->config.vision, batch, 1, 0);
  struct tclip_rows a = {memory->y, width, batch->count, width, NULL, 0, NULL};
  tclip_multiply(memory, &a, &v->pool.out, TCLIP_LINEAR, 0, memory->x);
  tclip_feed_forward(memory, &v->ln_mlp, &v->mlp, &m->config.vision, batch->count);
}

static int check(const tclip_model *m, int tower, int activations,
                 const struct tclip_error *error) {
  if (!(m->towers & tower))
    return tclip_fail(error, "the tower for %s was not loaded",
                      tower == TCLIP_IMAGES ? "images" : "texts");
  if (activations != TCLIP_NATIVE && activations != TCLIP_INT8)
    return tclip_fail(error, "activations: %d is neither TCLIP_NATIVE nor TCLIP_INT8", activations);
  return 0;
}

int tclip_encode_images(const tclip_model *m, const float *pixels, size_t count, int activations,
                        float *embeddings, char *error, size_t error_size) {
  struct tclip_error e = {error, error_size};
  if (check(m, TCLIP_IMAGES, activations, &e)) return -1;
  const struct tclip_config *c = &m->config;
  size_t tokens = tclip_image_tokens(c), width = c->vision.width;
  size_t most = tokens < MOST_ROWS ? MOST_ROWS / tokens : 1;
  most = smaller(most, count);
  if (!count) return 0;
  size_t *starts = malloc((most + 1) * sizeof *starts);
  struct tclip_memory memory;
  if (!starts || tclip_memory_init(&memory, m, &c->vision, 3 * c->patch_size * c->patch_size,
                                   most * tokens, tokens, activations == TCLIP_INT8)) {
    free(starts);
    return tclip_fail(&e, "out of memory");
  }
  for (size_t i = 0; i <= most; i++) starts[i] = i * tokens;
  for (size_t done = 0; done < count; done += most) {
    struct tclip_batch batch = {smaller(most, count - done), starts};
    embed_images(&memory, m, pixels + done * 3 * c->image_size * c->image_size, batch.count);
    float *out = embeddings + done * c->embed_dim;
    tclip_run_blocks(&memory, m->vision.blocks, &c->vision, &batch, 0, c->is_map ? NULL : starts);
    if (c->is_map) {
      pool_images(&memory, m, &batch);
      memcpy(out, memory.x, batch.count * width * sizeof *out);
    } else {
      tclip_normalize(&memory, &m->vision.ln_post, memory.x, batch.count, width, memory.y);
      struct tclip_rows y = {memory.y, width, batch.count, width, NULL, 0, NULL};
      tclip_multiply(&memory, &y, &m->vision.projection, TCLIP_LINEAR, 0, out);
    }
    tclip_to_unit_length(out, batch.count, c->embed_dim);
  }
  tclip_memory_free(&memory);
  free(starts);
  return 0;
}

/* A row of the token table, in float32. */
static void read_token(const tclip_model *m, size_t token, float *x) {
  const struct tclip_weight *table = &m->text.table;
  size_t width = table->columns;
  if (table->kind == TCLIP_HALF) {
    m->kernel->floats->from_half((const uint16_t *)table->data + token * width, width, x);
  } else if (table->kind == TCLIP_FLOAT) {
    memcpy(x, (const float *)table->data + token * width, width * sizeof *x);
  } else {
    const uint32_t *words = (const uint32_t *)table->data + token / 16 * width;
    int shift = 30 - 2 * (int)(token % 16);
    for (size_t n = 0; n < width; n++)
      x[n] = (float)((int32_t)(words[n] << shift) >> 30) * tclip_scale_at(table, token, n);
  }
}

/* The token at which a text is pooled: its first end, or 0 without one, as argmax has it. */
static size_t find_end(const struct tclip_config *c, const int32_t *tokens, size_t length) {
  for (size_t i = 0; i < length; i++)
    if ((size_t)tokens[i] == c->eot_token_id) return i;
  return 0;
}

/* Where texts lie in the rows of a batch and where they are pooled. Under a causal mask nothing
 * that follows the end of a text is seen by it, and so it is left out. */
static void lay_out(const struct tclip_config *c, const int32_t *tokens, size_t length, size_t most,
                    struct tclip_batch *batch, size_t *starts, size_t *pooled) {
  size_t rows = 0;
  starts[0] = 0;
  for (batch->count = 0; batch->count < most; batch->count++, tokens += length) {
    size_t end = c->is_eot ? find_end(c, tokens, length) : length - 1;
    size_t kept = c->is_causal && c->is_eot ? end + 1 : length;
    if (batch->count && rows + kept > MOST_ROWS) break;
    pooled[batch->count] = rows + end;
    starts[batch->count + 1] = rows += kept;
  }
  batch->starts = starts;
}

static void embed_texts(struct tclip_memory *memory, const tclip_model *m, const int32_t *tokens,
                        size_t length, const struct tclip_batch *batch) {
  size_t width = m->config.text.width;
  for (size_t i = 0; i < batch->count; i++)
    for (size_t t = 0; t < batch->starts[i + 1] - batch->starts[i]; t++) {
      float *x = memory->x + (batch->starts[i] + t) * width;
      read_token(m, (size_t)tokens[i * length + t], x);
      for (size_t n = 0; n < width; n++) x[n] += m->text.positions[t * width + n];
    }
}

static int check_tokens(const tclip_model *m, const int32_t *tokens, size_t count, size_t length,
                        const struct tclip_error *error) {
  const struct tclip_config *c = &m->config;
  if (length < 1 || length > c->context_length)
    return tclip_fail(error, "tokens: %zu a text are not within the context length %zu", length,
                      c->context_length);
  for (size_t i = 0; i < count * length; i++)
    if (tokens[i] < 0 || (size_t)tokens[i] >= c->vocab_size)
      return tclip_fail(error, "tokens: %d in text %zu is not in the vocabulary of %zu", tokens[i],
                        i / length, c->vocab_size);
  return 0;
}

int tclip_encode_texts(const tclip_model *m, const int32_t *tokens, size_t count, size_t length,
                       int activations, float *embeddings, char *error, size_t error_size) {
  struct tclip_error e = {error, error_size};
  const struct tclip_config *c = &m->config;
  if (check(m, TCLIP_TEXTS, activations, &e) || (count && check_tokens(m, tokens, count, length, &e)))
    return -1;
  if (!count) return 0;
  size_t most = smaller(count, MOST_ROWS), width = c->text.width;
  size_t rows = count < MOST_ROWS && count * length < MOST_ROWS ? count * length : MOST_ROWS;
  if (rows < length) rows = length;
  size_t *starts = malloc((2 * most + 1) * sizeof *starts);
  struct tclip_memory memory;
  if (!starts || tclip_memory_init(&memory, m, &c->text, 0, rows, length,
                                   activations == TCLIP_INT8)) {
    free(starts);
    return tclip_fail(&e, "out of memory");
  }
  size_t *pooled = starts + most + 1;
  struct tclip_batch batch;
  for (size_t done = 0; done < count; done += batch.count) {
    const int32_t *texts = tokens + done * length;
    lay_out(c, texts, length, smaller(most, count - done), &batch, starts, pooled);
    embed_texts(&memory, m, texts, length, &batch);
    tclip_run_blocks(&memory, m->text.blocks, &c->text, &batch, c->is_causal, pooled);
    tclip_normalize(&memory, &m->text.ln_final, memory.x, batch.count, width, memory.y);
    float *out = embeddings + done * c->embed_dim;
    struct tclip_rows y = {memory.y, width, batch.count, width, NULL, 0, NULL};
    tclip_multiply(&memory, &y, &m->text.projection, TCLIP_LINEAR, 0, out);
    tclip_to_unit_length(out, batch.count, c->embed_dim);
  }
  tclip_memory_free(&memory);
  free(starts);
  return 0;
}
