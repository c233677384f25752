#include "product.h"

#include <string.h>

#include "half.h"
#include "threads.h"

enum { ALIGNMENT = 64 };

static size_t round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }
static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

/* Rows whose distance is a large power of two would push each other out of the cache. */
size_t tclip_q_stride(size_t columns) { return round_up(columns, 64) + 64; }

struct quantizing {
  const struct tclip_kernel *kernel;
  struct tclip_rows *x;
};

enum { ROWS_A_TASK = 8 };

static void quantize_rows(void *argument, size_t task, size_t thread) {
  (void)thread;
  struct quantizing *job = argument;
  struct tclip_rows *x = job->x;
  size_t padded = round_up(x->columns, 16), end = smaller((task + 1) * ROWS_A_TASK, x->count);
  for (size_t i = task * ROWS_A_TASK; i < end; i++) {
    int8_t *q = x->q + i * x->q_stride;
    x->scale[i] = job->kernel->floats->quantize(x->x + i * x->stride, x->columns, q);
    memset(q + x->columns, 0, padded - x->columns);
    job->kernel->floats->transpose(q, padded);
  }
}

void tclip_quantize(const struct tclip_kernel *kernel, struct tclip_rows *x, int8_t *q,
                    float *scale) {
  x->q = q;
  x->q_stride = tclip_q_stride(x->columns);
  x->scale = scale;
  struct quantizing job = {kernel, x};
  tclip_parallel((x->count + ROWS_A_TASK - 1) / ROWS_A_TASK, quantize_rows, &job);
}

float tclip_scale_at(const struct tclip_weight *w, size_t row, size_t column) {
  size_t rows = w->rows / w->scale_rows, columns = w->columns / w->scale_columns;
  size_t i = row / rows * w->scale_columns + column / columns;
  return w->scale_is_half ? tclip_half(((const uint16_t *)w->scale)[i])
                          : ((const float *)w->scale)[i];
}

/* How a product is cut: K into blocks of a scale, each padded to whole words; N into panels. */
struct plan {
  const struct tclip_kernel *kernel;
  const struct tclip_rows *x;
  const struct tclip_weight *w;
  const struct tclip_finish *finish;
  int is_int8;
  size_t columns, tile_rows;         /* of a panel, of a tile */
  size_t blocks, block, block_words; /* number, rows, words each */
  int is_ragged;                     /* blocks that do not end with a word */
  const int8_t *q;                   /* rows of x, blocks padded */
  size_t q_stride;
  int32_t *row_sums; /* [count, blocks] */
  char *scratch;     /* of a thread: */
  size_t panel_at, words_at, scale_at, sums_at, product_at, scratch_bytes;
};

/* Lays out a plan, and in `bytes` returns what it needs but for the threads' scratch. */
static struct plan plan_of(const struct tclip_kernel *kernel, const struct tclip_weight *w,
                           size_t count, int is_int8, size_t *bytes) {
  struct plan p = {.kernel = kernel, .w = w, .is_int8 = is_int8};
  p.columns = is_int8 ? kernel->columns : kernel->floats->columns;
  p.tile_rows = is_int8 ? kernel->rows : kernel->floats->rows;
  p.blocks = w->kind == TCLIP_TERNARY ? w->scale_rows : 1;
  p.block = w->rows / p.blocks;
  p.block_words = (p.block + 15) / 16;
  p.is_ragged = p.blocks > 1 && p.block % 16;
  size_t words = p.blocks * p.block_words, at = 0;
  p.panel_at = at;
  at += round_up(is_int8 ? words * 16 * p.columns : w->rows * p.columns * sizeof(float), ALIGNMENT);
  p.words_at = at;
  at += round_up(is_int8 ? words * p.columns * sizeof(uint32_t) : 0, ALIGNMENT);
  p.scale_at = at;
  at += round_up(p.blocks * p.columns * sizeof(float), ALIGNMENT);
  p.sums_at = at;
  at += round_up(p.tile_rows * p.columns * sizeof(int32_t), ALIGNMENT);
  p.product_at = at;
  at += round_up(p.tile_rows * p.columns * sizeof(float), ALIGNMENT);
  p.scratch_bytes = at;
  *bytes = ALIGNMENT;
  if (is_int8) {
    *bytes += round_up(count * p.blocks * sizeof(int32_t), ALIGNMENT);
    if (p.is_ragged) *bytes += round_up(count * tclip_q_stride(words * 16), ALIGNMENT);
  }
  return p;
}

size_t tclip_product_bytes(const struct tclip_kernel *kernel, const struct tclip_weight *w,
                           size_t count, size_t threads) {
  size_t most = 0;
  for (int is_int8 = 0; is_int8 < 2; is_int8++) {
    size_t bytes;
    struct plan p = plan_of(kernel, w, count, is_int8, &bytes);
    bytes += threads * p.scratch_bytes;
    most = bytes > most ? bytes : most;
  }
  return most;
}

/* Moves the blocks of a row apart, so that each begins with a word. */
static void pad_blocks(const struct plan *p, const int8_t *from, int8_t *to) {
  size_t padded = 16 * p->block_words;
  memset(to, 0, p->blocks * padded);
  for (size_t k = 0; k < p->w->rows; k++) {
    /* Both are transposed in pieces of 16. */
    size_t j = k / p->block * padded + k % p->block, a = k % 16, b = j % 16;
    to[j - b + b % 4 * 4 + b / 4] = from[k - a + a % 4 * 4 + a / 4];
  }
}

/* Words [blocks * block_words, panel columns] of the panel's columns, blocks padded. */
static void copy_words(const struct plan *p, size_t first, size_t columns, uint32_t *to) {
  const uint32_t *from = (const uint32_t *)p->w->data + first;
  memset(to, 0, p->blocks * p->block_words * p->columns * sizeof *to);
  if (!p->is_ragged) {
    for (size_t r = 0; r < p->blocks * p->block_words; r++)
      memcpy(to + r * p->columns, from + r * p->w->columns, columns * sizeof *to);
    return;
  }
  for (size_t k = 0; k < p->w->rows; k++) {
    size_t j = k / p->block * 16 * p->block_words + k % p->block;
    for (size_t n = 0; n < columns; n++) {
      uint32_t code = from[k / 16 * p->w->columns + n] >> 2 * (k % 16) & 3;
      to[j / 16 * p->columns + n] |= code << 2 * (j % 16);
    }
  }
}

static void read_scale(const struct plan *p, size_t first, size_t columns, float *scale) {
  const struct tclip_weight *w = p->w;
  for (size_t g = 0; g < p->blocks; g++, scale += p->columns) {
    size_t row = g * w->scale_columns + first;
    if (w->scale_columns < w->columns)
      for (size_t n = 0; n < columns; n++) scale[n] = tclip_scale_at(w, g * p->block, first + n);
    else if (w->scale_is_half)
      p->kernel->floats->from_half((const uint16_t *)w->scale + row, columns, scale);
    else
      memcpy(scale, (const float *)w->scale + row, columns * sizeof *scale);
    for (size_t n = columns; n < p->columns; n++) scale[n] = 0;
  }
}

/* The finish of a tile whose first entry is [row, column]. */
static struct tclip_finish finish_at(const struct plan *p, size_t row, size_t column) {
  struct tclip_finish finish = *p->finish;
  finish.row_scale = p->is_int8 ? p->x->scale + row : NULL;
  finish.bias = finish.bias ? finish.bias + column : NULL;
  finish.y += row * finish.y_stride + column;
  return finish;
}

static void int8_panel(void *argument, size_t task, size_t thread) {
  const struct plan *p = argument;
  const struct tclip_kernel *kernel = p->kernel;
  char *scratch = p->scratch + thread * p->scratch_bytes;
  uint8_t *panel = (uint8_t *)(scratch + p->panel_at);
  uint32_t *copy = (uint32_t *)(scratch + p->words_at);
  float *scale = (float *)(scratch + p->scale_at), *product = (float *)(scratch + p->product_at);
  int32_t *sums = (int32_t *)(scratch + p->sums_at);

  size_t first = task * p->columns, columns = smaller(p->columns, p->w->columns - first);
  size_t count = p->blocks * p->block_words, stride = p->w->columns;
  const uint32_t *words = (const uint32_t *)p->w->data + first;
  if (columns < p->columns || p->is_ragged) {
    copy_words(p, first, columns, copy);
    words = copy;
    stride = p->columns;
  }
  read_scale(p, first, columns, scale);
  int is_row = p->x->count == 1;
  if (!is_row) kernel->unpack(words, stride, count, panel);
  size_t tiles = (p->x->count + p->tile_rows - 1) / p->tile_rows;
  for (size_t t = 0; t < tiles; t++) {
    size_t i = t * p->x->count / tiles, rows = (t + 1) * p->x->count / tiles - i;
    for (size_t g = 0; g < p->blocks; g++) {
      const int8_t *q = p->q + i * p->q_stride + g * 16 * p->block_words;
      size_t r = g * p->block_words;
      if (is_row)
        kernel->row(words + r * stride, stride, p->block_words, q, sums);
      else
        kernel->tile(panel + r * 16 * p->columns, p->block_words, q, p->q_stride, rows, sums);
      kernel->floats->scale_sums(sums, p->row_sums + i * p->blocks + g, p->blocks,
                                 scale + g * p->columns, rows, p->columns, g == 0, product);
    }
    struct tclip_finish finish = finish_at(p, i, first);
    kernel->floats->finish(product, p->columns, rows, columns, &finish);
  }
}

static void float_panel(void *argument, size_t task, size_t thread) {
  const struct plan *p = argument;
  const struct tclip_floats *floats = p->kernel->floats;
  const struct tclip_weight *w = p->w;
  char *scratch = p->scratch + thread * p->scratch_bytes;
  float *panel = (float *)(scratch + p->panel_at), *product = (float *)(scratch + p->product_at);
  float *scale = (float *)(scratch + p->scale_at);

  size_t first = task * p->columns, columns = smaller(p->columns, w->columns - first);
  if (w->kind == TCLIP_TERNARY) {
    read_scale(p, first, columns, scale);
    floats->unpack_ternary((const uint32_t *)w->data + first, w->columns, w->rows, columns, scale,
                           p->block, panel);
  } else if (w->kind == TCLIP_HALF) {
    floats->unpack_half((const uint16_t *)w->data + first, w->columns, w->rows, columns, panel);
  } else {
    floats->unpack_float((const float *)w->data + first, w->columns, w->rows, columns, panel);
  }
  size_t tiles = (p->x->count + p->tile_rows - 1) / p->tile_rows;
  for (size_t t = 0; t < tiles; t++) {
    size_t i = t * p->x->count / tiles, rows = (t + 1) * p->x->count / tiles - i;
    floats->tile(panel, w->rows, p->x->x + i * p->x->stride, p->x->stride, rows, product,
                 p->columns);
    struct tclip_finish finish = finish_at(p, i, first);
    floats->finish(product, p->columns, rows, columns, &finish);
  }
}

/* The next aligned bytes of the caller's memory. */
static void *take(char **memory, size_t bytes) {
  char *aligned = (char *)round_up((size_t)*memory, ALIGNMENT);
  *memory = aligned + bytes;
  return aligned;
}

static void sum_rows(void *argument, size_t i, size_t thread) {
  (void)thread;
  struct plan *p = argument;
  size_t padded = 16 * p->block_words;
  if (p->is_ragged)
    pad_blocks(p, p->x->q + i * p->x->q_stride, (int8_t *)p->q + i * p->q_stride);
  for (size_t g = 0; g < p->blocks; g++)
    p->row_sums[i * p->blocks + g] =
        p->kernel->floats->sum(p->q + i * p->q_stride + g * padded, padded);
}

void tclip_product(const struct tclip_kernel *kernel, const struct tclip_rows *x,
                   const struct tclip_weight *w, const struct tclip_finish *finish, void *memory) {
  size_t bytes;
  int is_int8 = x->q && w->kind == TCLIP_TERNARY;
  struct plan p = plan_of(kernel, w, x->count, is_int8, &bytes);
  p.x = x;
  p.finish = finish;
  char *free = memory;
  if (is_int8) {
    p.row_sums = take(&free, x->count * p.blocks * sizeof *p.row_sums);
    p.q = x->q;
    p.q_stride = x->q_stride;
    if (p.is_ragged) {
      p.q_stride = tclip_q_stride(p.blocks * p.block_words * 16);
      p.q = take(&free, x->count * p.q_stride);
    }
    for (size_t i = 0; i < x->count; i++) sum_rows(&p, i, 0);
  }
  p.scratch = take(&free, 0);
  size_t panels = (w->columns + p.columns - 1) / p.columns;
  tclip_parallel(panels, is_int8 ? int8_panel : float_panel, &p);
}
