/* config.json: the fields and defaults of tclip.models.architectures. */
#include <math.h>
#include <string.h>

#include "json.h"
#include "model.h"

/* Products of two sizes, and bytes of them, fit 64 bits with room to spare. */
enum { LARGEST_SIZE = 1 << 24 };

/* A field: where its value goes, and which values there are. */
struct field {
  const char *key;
  size_t *size;       /* an integer, from `least` */
  int *flag;          /* true or false, or which of `names` */
  float *number;      /* positive */
  const char *names[4];
  size_t least;
  int ignored;        /* says how JAX computes, and not what */
};

static int read_field(const struct field *f, const struct tclip_json *value, const char *where,
                      const struct tclip_error *error) {
  if (f->ignored) return 0;
  if (f->size) {
    if (value->kind == TCLIP_JSON_NUMBER && value->is_integer &&
        value->integer >= (int64_t)f->least && value->integer <= LARGEST_SIZE) {
      *f->size = (size_t)value->integer;
      return 0;
    }
  } else if (f->number) {
    if (value->kind == TCLIP_JSON_NUMBER && isfinite((float)value->number) && value->number >= 0) {
      *f->number = (float)value->number;
      return 0;
    }
  } else if (f->names[0]) {
    for (int i = 0; i < 4 && f->names[i]; i++)
      if (value->kind == TCLIP_JSON_STRING && !strcmp(value->string, f->names[i])) {
        *f->flag = i;
        return 0;
      }
  } else if (value->kind == TCLIP_JSON_BOOL) {
    *f->flag = value->number != 0;
    return 0;
  }
  return tclip_fail(error, "%s.%s: no value that a model can have", where, f->key);
}

static int read_fields(const struct tclip_json *group, const struct field *fields, size_t count,
                       const char *where, const struct tclip_error *error) {
  if (group && group->kind != TCLIP_JSON_OBJECT)
    return tclip_fail(error, "%s: expected a group of keys", where);
  for (const struct tclip_json *e = group ? group->first : NULL; e; e = e->next) {
    size_t i = 0;
    while (i < count && strcmp(fields[i].key, e->key)) i++;
    if (i == count) return tclip_fail(error, "%s.%s: unknown key", where, e->key);
    if (read_field(&fields[i], e, where, error)) return -1;
  }
  return 0;
}

#define COUNT(array) (sizeof(array) / sizeof *(array))
#define SIZES(s)                                                                         \
  {.key = "width", .size = &(s)->width, .least = 1},                                     \
      {.key = "layers", .size = &(s)->layers, .least = 1},                               \
      {.key = "heads", .size = &(s)->heads, .least = 1},                                 \
      {.key = "mlp_dim", .size = &(s)->mlp_dim, .least = 1}

int tclip_read_config(const struct tclip_json *model, const char *name, struct tclip_config *c,
                      const struct tclip_error *error) {
  *c = (struct tclip_config){
      .embed_dim = 512,
      .vision = {768, 12, 12, 3072},
      .text = {512, 12, 8, 2048},
      .image_size = 224,
      .patch_size = 32,
      .context_length = 77,
      .vocab_size = 49408,
      .eot_token_id = 49407,
      .is_causal = 1,
      .is_eot = 1,
      .activation = TCLIP_QUICK_GELU,
      .layer_norm_eps = 1e-5f,
  };
  int activation = 0, is_last = 0;
  const struct field vision[] = {
      SIZES(&c->vision),
      {.key = "image_size", .size = &c->image_size, .least = 1},
      {.key = "patch_size", .size = &c->patch_size, .least = 1},
      {.key = "pooling", .flag = &c->is_map, .names = {"cls", "map"}},
  };
  const struct field text[] = {
      SIZES(&c->text),
      {.key = "context_length", .size = &c->context_length, .least = 1},
      {.key = "vocab_size", .size = &c->vocab_size, .least = 1},
      {.key = "eot_token_id", .size = &c->eot_token_id},
      {.key = "causal", .flag = &c->is_causal},
      {.key = "pooling", .flag = &is_last, .names = {"eot", "last"}},
      {.key = "projection_bias", .flag = &c->has_projection_bias},
  };
  const struct field whole[] = {
      {.key = "embed_dim", .size = &c->embed_dim, .least = 1},
      {.key = "vision", .ignored = 1},
      {.key = "text", .ignored = 1},
      {.key = "activation", .flag = &activation, .names = {"quick_gelu", "gelu", "gelu_tanh"}},
      {.key = "layer_norm_eps", .number = &c->layer_norm_eps},
      {.key = "dtype", .ignored = 1},
      {.key = "scan_layers", .flag = &c->scan_layers},
      {.key = "remat", .ignored = 1},
      {.key = "logit_bias", .flag = &c->has_logit_bias},
  };
  const struct tclip_json *vision_group = tclip_json_get(model, "vision");
  const struct tclip_json *text_group = tclip_json_get(model, "text");
  if (read_fields(model, whole, COUNT(whole), name, error) ||
      read_fields(vision_group, vision, COUNT(vision), "vision", error) ||
      read_fields(text_group, text, COUNT(text), "text", error))
    return -1;
  c->activation = TCLIP_QUICK_GELU + activation;
  c->is_eot = !is_last;
  const char *wrong = c->vision.width % c->vision.heads ? "vision"
                      : c->text.width % c->text.heads   ? "text"
                                                        : NULL;
  if (wrong) return tclip_fail(error, "%s: %s: width is not divisible by heads", name, wrong);
  if (c->patch_size > c->image_size)
    return tclip_fail(error, "%s: no patch of patch_size fits into image_size", name);
  if (c->eot_token_id >= c->vocab_size)
    return tclip_fail(error, "%s: eot_token_id is outside the vocabulary", name);
  if (c->is_map && c->vision.width != c->embed_dim)
    return tclip_fail(error, "%s: embed_dim has to be the width of the image tower", name);
  return 0;
}

size_t tclip_image_tokens(const struct tclip_config *config) {
  size_t side = config->image_size / config->patch_size;
  return side * side + !config->is_map;
}
