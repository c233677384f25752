/* Classifies a picture: classify FOLDER PIXELS LABELS
 *
 * FOLDER is a packed model. PIXELS holds float32 [image_size, image_size, 3], normalised as
 * preprocessor_config.json says. A line of LABELS is a label, a tab, and the token ids of its prompt.
 *
 *   cc -I tclip/engine/include tclip/engine/examples/classify.c -ltclip_engine -lm
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tclip.h"

enum { MAX_LINE = 8192 };

static void fail(const char *what) {
  fprintf(stderr, "classify: error: %s\n", what);
  exit(1);
}

int main(int count, char **arguments) {
  if (count != 4) fail("usage: classify FOLDER PIXELS LABELS");
  char error[512];
  tclip_model *model;
  if (tclip_open(arguments[1], TCLIP_IMAGES | TCLIP_TEXTS, &model, error, sizeof error)) fail(error);
  tclip_info info;
  tclip_get_info(model, &info);

  size_t values = (size_t)info.image_size * info.image_size * 3;
  float *pixels = malloc(values * sizeof *pixels);
  float *image = malloc(info.embed_dim * sizeof *image);
  float *text = malloc(info.embed_dim * sizeof *text);
  int32_t *tokens = malloc(info.context_length * sizeof *tokens);
  if (!pixels || !image || !text || !tokens) fail("out of memory");
  FILE *file = fopen(arguments[2], "rb");
  if (!file || fread(pixels, sizeof *pixels, values, file) != values) fail("PIXELS is too short");
  fclose(file);
  if (tclip_encode_images(model, pixels, 1, TCLIP_INT8, image, error, sizeof error)) fail(error);

  char line[MAX_LINE];
  if (!(file = fopen(arguments[3], "r"))) fail("LABELS cannot be opened");
  while (fgets(line, sizeof line, file)) {
    char *next = strchr(line, '\t');
    if (!next) fail("a line of LABELS has no tab");
    *next++ = '\0';
    int32_t length = 0;
    for (char *end; length < info.context_length; next = end) {
      tokens[length] = (int32_t)strtol(next, &end, 10);
      if (end == next) break;
      length++;
    }
    if (tclip_encode_texts(model, tokens, 1, length, TCLIP_INT8, text, error, sizeof error))
      fail(error);
    float cosine = 0;
    for (int32_t i = 0; i < info.embed_dim; i++) cosine += image[i] * text[i];
    printf("%s\t%.4f\n", line, cosine * info.logit_scale + info.logit_bias);
  }
  fclose(file);
  free(pixels), free(image), free(text), free(tokens);
  tclip_close(model);
  return 0;
}
