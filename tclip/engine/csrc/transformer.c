#include "transformer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "threads.h"

enum { ALIGNMENT = 64, ROWS_A_TASK = 8 };

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }
static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }
static size_t round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

/* Adds two sizes of which the second is a product; SIZE_MAX is too much. */
static size_t add_product(size_t sum, size_t a, size_t b) {
  size_t product;
  if (__builtin_mul_overflow(a, b, &product) ||
      __builtin_add_overflow(sum, round_up(product, ALIGNMENT), &sum))
    return SIZE_MAX / 2;
  return sum > SIZE_MAX / 2 ? SIZE_MAX / 2 : sum;
}

static size_t product_bytes(const tclip_model *m, size_t rows, size_t threads) {
  /* The largest need of any weight: of blocks of one row each, which none exceeds. */
  size_t most = 0;
  const struct tclip_block *towers[] = {m->vision.blocks, m->text.blocks};
  const struct tclip_sizes *sizes[] = {&m->config.vision, &m->config.text};
#define NEED(linear) \
  most = larger(most, tclip_product_bytes(m->kernel, &(linear).w, rows, threads))
  for (int t = 0; t < 2; t++)
    for (size_t i = 0; towers[t] && i < sizes[t]->layers; i++) {
      const struct tclip_block *b = &towers[t][i];
      NEED(b->attention.q);
      NEED(b->attention.k);
      NEED(b->attention.v);
      NEED(b->attention.out);
      NEED(b->mlp.fc1);
      NEED(b->mlp.fc2);
    }
  if (m->towers & TCLIP_IMAGES) {
    NEED(m->vision.patch_embed);
    if (m->config.is_map) {
      NEED(m->vision.pool.q);
      NEED(m->vision.pool.k);
      NEED(m->vision.pool.v);
      NEED(m->vision.pool.out);
      NEED(m->vision.mlp.fc1);
      NEED(m->vision.mlp.fc2);
    } else {
      NEED(m->vision.projection);
    }
  }
  if (m->towers & TCLIP_TEXTS) NEED(m->text.projection);
#undef NEED
  return most;
}

int tclip_memory_init(struct tclip_memory *memory, const tclip_model *m,
                      const struct tclip_sizes *sizes, size_t inputs, size_t rows, size_t tokens,
                      int is_int8) {
  size_t width = sizes->width, hidden = larger(sizes->mlp_dim, inputs);
  size_t head = width / sizes->heads, threads = tclip_thread_count();
  size_t columns = m->kernel->floats->columns, tile_rows = m->kernel->floats->rows;
  size_t keys = round_up(tokens, columns);
  size_t attention = add_product(0, keys * head, sizeof(float));
  attention = add_product(attention, round_up(head, columns) * tokens, sizeof(float));
  attention = add_product(attention, tile_rows * (keys + columns + 1), sizeof(float));
  size_t stream = add_product(0, rows, width * sizeof(float));
  size_t q_bytes = is_int8 ? tclip_q_stride(larger(hidden, width)) : 0;
  size_t bytes = add_product(2 * ALIGNMENT, stream, 5);
  bytes = add_product(bytes, rows, hidden * sizeof(float));
  bytes = add_product(bytes, rows, q_bytes);
  bytes = add_product(bytes, rows, sizeof(float));
  bytes = add_product(bytes, product_bytes(m, rows, threads), 1);
  bytes = add_product(bytes, attention, threads);
  char *at = bytes >= SIZE_MAX / 2 ? NULL : malloc(bytes);
  *memory = (struct tclip_memory){
      .kernel = m->kernel, .config = &m->config, .is_int8 = is_int8, .allocation = at};
  if (!at) return -1;
  at = (char *)round_up((size_t)at, ALIGNMENT);
  float **streams[] = {&memory->x, &memory->y, &memory->q, &memory->k, &memory->v};
  for (int i = 0; i < 5; i++, at += stream) *streams[i] = (float *)at;
  memory->hidden = (float *)at;
  at += round_up(rows * hidden * sizeof(float), ALIGNMENT);
  memory->rounded = (int8_t *)at;
  at += round_up(rows * q_bytes, ALIGNMENT);
  memory->row_scale = (float *)at;
  at += round_up(rows * sizeof(float), ALIGNMENT);
  memory->attention = at;
  memory->attention_bytes = attention;
  memory->product = at + attention * threads;
  return 0;
}

void tclip_memory_free(struct tclip_memory *memory) { free(memory->allocation); }

void tclip_multiply(struct tclip_memory *memory, struct tclip_rows *x,
                    const struct tclip_linear *linear, enum tclip_activation activation, int add,
                    float *y) {
  if (memory->is_int8 && linear->w.kind == TCLIP_TERNARY && !x->q)
    tclip_quantize(memory->kernel, x, memory->rounded, memory->row_scale);
  struct tclip_finish finish = {.bias = linear->bias,
                                .activation = activation,
                                .add = add,
                                .y = y,
                                .y_stride = linear->w.columns};
  tclip_product(memory->kernel, x, &linear->w, &finish, memory->product);
}

struct normalizing {
  const struct tclip_memory *memory;
  const struct tclip_norm *norm;
  const float *x;
  float *y;
  size_t count, width;
};

static void normalize_rows(void *argument, size_t task, size_t thread) {
  (void)thread;
  const struct normalizing *job = argument;
  size_t end = smaller((task + 1) * ROWS_A_TASK, job->count), width = job->width;
  for (size_t i = task * ROWS_A_TASK; i < end; i++)
    job->memory->kernel->floats->layer_norm(job->x + i * width, width, job->norm->scale,
                                            job->norm->bias, job->memory->config->layer_norm_eps,
                                            job->y + i * width);
}

void tclip_normalize(struct tclip_memory *memory, const struct tclip_norm *norm, const float *x,
                     size_t count, size_t width, float *y) {
  struct normalizing job = {memory, norm, x, y, count, width};
  tclip_parallel((count + ROWS_A_TASK - 1) / ROWS_A_TASK, normalize_rows, &job);
}

struct attending {
  const struct tclip_memory *memory;
  const struct tclip_sizes *sizes;
  const struct tclip_batch *batch;
  int is_pooled, is_causal;
};

/* One head of one sequence. */
static void attend_head(void *argument, size_t task, size_t thread) {
  const struct attending *job = argument;
  const struct tclip_memory *memory = job->memory;
  const struct tclip_floats *floats = memory->kernel->floats;
  size_t width = job->sizes->width, head = width / job->sizes->heads, columns = floats->columns;
  size_t sequence = task / job->sizes->heads, at = task % job->sizes->heads * head;
  size_t start = job->batch->starts[sequence], n = job->batch->starts[sequence + 1] - start;
  size_t keys = round_up(n, columns), first = job->is_pooled ? sequence : start;
  size_t queries = job->is_pooled ? 1 : n;
  float *k_panels = (float *)(memory->attention + thread * memory->attention_bytes);
  float *v_panels = k_panels + round_up(keys * head, ALIGNMENT / sizeof(float));
  float *scores = v_panels + round_up(round_up(head, columns) * n, ALIGNMENT / sizeof(float));
  float *product = scores + floats->rows * keys, *inverse = product + floats->rows * columns;

  for (size_t j = 0; j < n; j += columns)
    floats->unpack_transposed(memory->k + (start + j) * width + at, width, head,
                              smaller(columns, n - j), k_panels + j * head);
  for (size_t j = 0; j < head; j += columns)
    floats->unpack_float(memory->v + start * width + at + j, width, n, smaller(columns, head - j),
                         v_panels + j * n);
  float factor = 1.0f / sqrtf((float)head);
  size_t tiles = (queries + floats->rows - 1) / floats->rows;
  for (size_t t = 0; t < tiles; t++) {
    size_t i = t * queries / tiles, rows = (t + 1) * queries / tiles - i;
    /* Causal: the last row of the tile sees keys up to itself. */
    size_t seen = job->is_causal && !job->is_pooled ? i + rows : n;
    const float *q = memory->q + (first + i) * width + at;
    for (size_t j = 0; j < seen; j += columns)
      floats->tile(k_panels + j * head, head, q, width, rows, scores + j, keys);
    for (size_t r = 0; r < rows; r++) {
      float *row = scores + r * keys;
      size_t visible = seen == n && !(job->is_causal && !job->is_pooled) ? n : i + r + 1;
      inverse[r] = floats->softmax(row, visible, factor);
      memset(row + visible, 0, (seen - visible) * sizeof *row);
    }
    for (size_t j = 0; j < head; j += columns) {
      struct tclip_finish finish = {.row_scale = inverse,
                                    .y = memory->y + (first + i) * width + at + j,
                                    .y_stride = width};
      floats->tile(v_panels + j * n, seen, scores, keys, rows, product, columns);
      floats->finish(product, columns, rows, smaller(columns, head - j), &finish);
    }
  }
}

void tclip_attend(struct tclip_memory *memory, const struct tclip_sizes *sizes,
                  const struct tclip_batch *batch, int is_pooled, int is_causal) {
  struct attending job = {memory, sizes, batch, is_pooled, is_causal};
  tclip_parallel(batch->count * sizes->heads, attend_head, &job);
}

void tclip_feed_forward(struct tclip_memory *memory, const struct tclip_norm *norm,
                        const struct tclip_mlp *mlp, const struct tclip_sizes *sizes,
                        size_t count) {
  tclip_normalize(memory, norm, memory->x, count, sizes->width, memory->y);
  struct tclip_rows y = {memory->y, sizes->width, count, sizes->width, NULL, 0, NULL};
  tclip_multiply(memory, &y, &mlp->fc1, memory->config->activation, 0, memory->hidden);
  struct tclip_rows h = {memory->hidden, sizes->mlp_dim, count, sizes->mlp_dim, NULL, 0, NULL};
  tclip_multiply(memory, &h, &mlp->fc2, TCLIP_LINEAR, 1, memory->x);
}

/* Moves the rows `chosen`, ascending, to the front. */
static void choose_rows(float *x, const size_t *chosen, size_t count, size_t width) {
  for (size_t i = 0; i < count; i++)
    memmove(x + i * width, x + chosen[i] * width, width * sizeof *x);
}

void tclip_run_blocks(struct tclip_memory *memory, const struct tclip_block *blocks,
                      const struct tclip_sizes *sizes, const struct tclip_batch *batch,
                      int is_causal, const size_t *pooled) {
  size_t width = sizes->width, count = batch->starts[batch->count];
  for (size_t i = 0; i < sizes->layers; i++) {
    const struct tclip_block *b = &blocks[i];
    int is_pooled = pooled && i + 1 == sizes->layers;
    tclip_normalize(memory, &b->ln_1, memory->x, count, width, memory->y);
    struct tclip_rows y = {memory->y, width, count, width, NULL, 0, NULL};
    tclip_multiply(memory, &y, &b->attention.k, TCLIP_LINEAR, 0, memory->k);
    tclip_multiply(memory, &y, &b->attention.v, TCLIP_LINEAR, 0, memory->v);
    if (is_pooled) {
      count = batch->count;
      choose_rows(memory->x, pooled, count, width);
      choose_rows(memory->y, pooled, count, width);
      y = (struct tclip_rows){memory->y, width, count, width, NULL, 0, NULL};
    }
    tclip_multiply(memory, &y, &b->attention.q, TCLIP_LINEAR, 0, memory->q);
    tclip_attend(memory, sizes, batch, is_pooled, is_causal);
    struct tclip_rows a = {memory->y, width, count, width, NULL, 0, NULL};
    tclip_multiply(memory, &a, &b->attention.out, TCLIP_LINEAR, 1, memory->x);
    tclip_feed_forward(memory, &b->ln_2, &b->mlp, sizes, count);
  }
}

void tclip_to_unit_length(float *rows, size_t count, size_t width) {
  for (size_t i = 0; i < count; i++, rows += width) {
    float sum = 0;
    for (size_t n = 0; n < width; n++) sum += rows[n] * rows[n];
    float length = sqrtf(sum);
    for (size_t n = 0; n < width && length != 0; n++) rows[n] /= length;
  }
}
