/* A strict reader of JSON (RFC 8259) of unknown origin. */
#ifndef TCLIP_JSON_H
#define TCLIP_JSON_H

#include <stddef.h>
#include <stdint.h>

#include "error.h"

enum tclip_json_kind {
  TCLIP_JSON_NULL,
  TCLIP_JSON_BOOL,
  TCLIP_JSON_NUMBER,
  TCLIP_JSON_STRING,
  TCLIP_JSON_ARRAY,
  TCLIP_JSON_OBJECT
};

struct tclip_json {
  enum tclip_json_kind kind;
  char *key;         /* of a member of an object */
  char *string;      /* without \u0000, which is refused */
  double number;     /* of a bool 0 or 1 */
  int is_integer;    /* a number without fraction and exponent, that fits */
  int64_t integer;
  struct tclip_json *first, *next; /* the first of its elements; the one after this */
  size_t count;                    /* of elements */
};

/* Parses text [size]; NULL, and the line, if it is not JSON or memory is short. What it takes is in
 * proportion to size. To be freed by `tclip_json_free`. */
struct tclip_json *tclip_json_parse(const char *text, size_t size, const char *name,
                                    const struct tclip_error *error);
void tclip_json_free(struct tclip_json *json);

/* The member of that name, NULL if there is none or this is no object. */
const struct tclip_json *tclip_json_get(const struct tclip_json *object, const char *key);

#endif
