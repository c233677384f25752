/* Opens mutated copies of a packed folder: an error or a model that runs, never a crash.
 *
 * fuzz_reader FOLDER SCRATCH SEED COUNT; to be compiled with sanitizers. Prints how many opened.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tclip.h"

static unsigned long long state;

static unsigned next(unsigned below) {
  state = state * 6364136223846793005ull + 1442695040888963407ull;
  return (unsigned)(state >> 33) % below;
}

static char *read_file(const char *folder, const char *name, size_t *size) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  FILE *file = fopen(path, "rb");
  if (!file || fseek(file, 0, SEEK_END)) exit(2);
  *size = (size_t)ftell(file);
  rewind(file);
  char *data = malloc(*size + 1);
  if (fread(data, 1, *size, file) != *size) exit(2);
  fclose(file);
  return data;
}

static void write_file(const char *folder, const char *name, const char *data, size_t size) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  FILE *file = fopen(path, "wb");
  if (!file || fwrite(data, 1, size, file) != size) exit(2);
  fclose(file);
}

/* Changes a few bytes of the first `most`, for digits often to other digits, or cuts the end off. */
static size_t mutate(char *data, size_t size, size_t most) {
  for (unsigned i = 0, count = 1 + next(4); i < count && size; i++) {
    char *at = data + next((unsigned)(most < size ? most : size));
    if (*at >= '0' && *at <= '9' && next(4))
      *at = (char)('0' + next(10));
    else if (next(3))
      *at = "{}[]\",:\\u09eE-.tn"[next(17)];
    else
      *at = (char)next(256);
  }
  return next(16) ? size : next((unsigned)size + 1);
}

int main(int argc, char **argv) {
  if (argc != 5) return 2;
  state = strtoull(argv[3], NULL, 10);
  size_t config_size, weights_size;
  char *config = read_file(argv[1], "config.json", &config_size);
  char *weights = read_file(argv[1], "model.safetensors", &weights_size);
  char *copy = malloc(config_size > weights_size ? config_size : weights_size);
  int opened = 0;
  for (long i = 0, count = atol(argv[4]); i < count; i++) {
    size_t size = i % 2 ? weights_size : config_size, header = 8;
    memcpy(copy, i % 2 ? weights : config, size);
    if (i % 2) header += (unsigned char)weights[0] + 256u * (unsigned char)weights[1];
    size_t changed = mutate(copy, size, i % 2 ? header : size);
    write_file(argv[2], "config.json", i % 2 ? config : copy, i % 2 ? config_size : changed);
    write_file(argv[2], "model.safetensors", i % 2 ? copy : weights, i % 2 ? changed : weights_size);
    char error[512] = "";
    tclip_model *model;
    if (tclip_open(argv[2], TCLIP_IMAGES | TCLIP_TEXTS, &model, error, sizeof error)) {
      if (!*error || strchr(error, '\n')) return 3;
      continue;
    }
    opened++;
    tclip_info info;
    tclip_get_info(model, &info);
    size_t pixel_count = (size_t)info.image_size * (size_t)info.image_size * 3;
    float *pixels = calloc(pixel_count, sizeof *pixels);
    float *embedding = malloc((size_t)info.embed_dim * sizeof *embedding);
    int32_t token = 0;
    tclip_encode_images(model, pixels, 1, (int)next(2), embedding, error, sizeof error);
    tclip_encode_texts(model, &token, 1, 1, (int)next(2), embedding, error, sizeof error);
    free(pixels);
    free(embedding);
    tclip_close(model);
  }
  printf("%d\n", opened);
  free(copy);
  free(weights);
  free(config);
  return 0;
}
