#include "json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { DEEPEST = 32 };

struct parser {
  const char *at, *end, *start;
  const char *what; /* is wrong */
};

static struct tclip_json *parse_value(struct parser *p, int depth);

static struct tclip_json *wrong(struct parser *p, const char *what) {
  if (!p->what) p->what = what;
  return NULL;
}

static void skip_space(struct parser *p) {
  while (p->at < p->end && (*p->at == ' ' || *p->at == '\t' || *p->at == '\n' || *p->at == '\r'))
    p->at++;
}

static int take(struct parser *p, char c) {
  skip_space(p);
  if (p->at == p->end || *p->at != c) return 0;
  p->at++;
  return 1;
}

static int hex4(struct parser *p, unsigned *value) {
  if (p->end - p->at < 4) return 0;
  *value = 0;
  for (int i = 0; i < 4; i++, p->at++) {
    char c = *p->at;
    unsigned digit = c >= '0' && c <= '9'   ? (unsigned)(c - '0')
                     : c >= 'a' && c <= 'f' ? (unsigned)(c - 'a' + 10)
                     : c >= 'A' && c <= 'F' ? (unsigned)(c - 'A' + 10)
                                            : 16;
    if (digit == 16) return 0;
    *value = *value * 16 + digit;
  }
  return 1;
}

/* Writes the UTF-8 of an escape \uXXXX whose "\u" is behind; a pair of surrogates is one character.
 * Returns the end, NULL if it is none. */
static char *unicode_escape(struct parser *p, char *out) {
  unsigned c, low;
  if (!hex4(p, &c) || c == 0) return NULL;
  if (c >= 0xDC00 && c < 0xE000) return NULL;
  if (c >= 0xD800 && c < 0xDC00) {
    if (p->end - p->at < 2 || p->at[0] != '\\' || p->at[1] != 'u') return NULL;
    p->at += 2;
    if (!hex4(p, &low) || low < 0xDC00 || low >= 0xE000) return NULL;
    c = 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
  }
  if (c < 0x80) {
    *out++ = (char)c;
  } else if (c < 0x800) {
    *out++ = (char)(0xC0 | c >> 6);
    *out++ = (char)(0x80 | (c & 63));
  } else {
    if (c < 0x10000) {
      *out++ = (char)(0xE0 | c >> 12);
    } else {
      *out++ = (char)(0xF0 | c >> 18);
      *out++ = (char)(0x80 | (c >> 12 & 63));
    }
    *out++ = (char)(0x80 | (c >> 6 & 63));
    *out++ = (char)(0x80 | (c & 63));
  }
  return out;
}

/* The string whose opening quote is at hand, allocated. */
static char *parse_string(struct parser *p) {
  if (!take(p, '"')) return (void *)wrong(p, "expected a string");
  const char *close = p->at;
  while (close < p->end && *close != '"') close += *close == '\\' ? 2 : 1;
  if (close >= p->end) return (void *)wrong(p, "a string has no end");
  /* No escape is shorter than what it stands for. */
  char *string = malloc((size_t)(close - p->at) + 1), *out = string;
  if (!string) return (void *)wrong(p, "out of memory");
  while (p->at < close) {
    unsigned char c = (unsigned char)*p->at++;
    if (c < ' ') goto bad;
    if (c != '\\') {
      *out++ = (char)c;
      continue;
    }
    static const char NAMES[] = "\"\\/bfnrt", VALUES[] = "\"\\/\b\f\n\r\t";
    char name = *p->at++;
    const char *known = name ? strchr(NAMES, name) : NULL;
    if (known)
      *out++ = VALUES[known - NAMES];
    else if (name != 'u' || !(out = unicode_escape(p, out)) || p->at > close)
      goto bad;
  }
  *out = 0;
  p->at = close + 1;
  return string;
bad:
  free(string);
  return (void *)wrong(p, "a string holds what it may not");
}

static int is_digit(const struct parser *p) {
  return p->at < p->end && *p->at >= '0' && *p->at <= '9';
}

static int parse_number(struct parser *p, struct tclip_json *json) {
  int is_negative = *p->at == '-', exponent = 0, fits = 1;
  double value = 0;
  uint64_t integer = 0;
  if (is_negative) p->at++;
  if (!is_digit(p)) return 0;
  int is_zero = *p->at == '0';
  const char *start = p->at;
  for (; is_digit(p); p->at++) {
    value = value * 10 + (*p->at - '0');
    fits = fits && integer < (uint64_t)INT64_MAX / 10;
    if (fits) integer = integer * 10 + (uint64_t)(*p->at - '0');
  }
  if (is_zero && p->at - start > 1) return 0;
  json->is_integer = fits;
  if (p->at < p->end && *p->at == '.') {
    json->is_integer = 0;
    p->at++;
    if (!is_digit(p)) return 0;
    for (; is_digit(p); p->at++)
      if (exponent > -300) value = value * 10 + (*p->at - '0'), exponent--;
  }
  if (p->at < p->end && (*p->at == 'e' || *p->at == 'E')) {
    json->is_integer = 0;
    p->at++;
    int minus = p->at < p->end && *p->at == '-', digits = 0;
    if (minus || (p->at < p->end && *p->at == '+')) p->at++;
    if (!is_digit(p)) return 0;
    for (; is_digit(p); p->at++)
      if (digits < 1000) digits = digits * 10 + (*p->at - '0');
    exponent += minus ? -digits : digits;
  }
  value = exponent < 0 ? value / pow(10, -exponent) : value * pow(10, exponent);
  json->number = is_negative ? -value : value;
  json->integer = is_negative ? -(int64_t)integer : (int64_t)integer;
  return 1;
}

static int parse_elements(struct parser *p, struct tclip_json *json, char close, int depth) {
  struct tclip_json **last = &json->first;
  if (depth == DEEPEST) return wrong(p, "nested too deeply") != NULL;
  if (take(p, close)) return 1;
  do {
    char *key = NULL;
    if (json->kind == TCLIP_JSON_OBJECT) {
      if (!(key = parse_string(p))) return 0;
      if (!take(p, ':')) {
        free(key);
        return wrong(p, "expected a colon") != NULL;
      }
    }
    struct tclip_json *element = parse_value(p, depth + 1);
    if (!element) {
      free(key);
      return 0;
    }
    element->key = key;
    *last = element;
    last = &element->next;
    json->count++;
  } while (take(p, ','));
  return take(p, close) || wrong(p, "expected a comma or an end") != NULL;
}

static int take_word(struct parser *p, const char *word) {
  size_t length = strlen(word);
  if ((size_t)(p->end - p->at) < length || memcmp(p->at, word, length)) return 0;
  p->at += length;
  return 1;
}

static struct tclip_json *parse_value(struct parser *p, int depth) {
  struct tclip_json *json = calloc(1, sizeof *json);
  if (!json) return wrong(p, "out of memory");
  skip_space(p);
  char c = p->at < p->end ? *p->at : 0;
  int right = 0;
  if (c == '{' || c == '[') {
    p->at++;
    json->kind = c == '{' ? TCLIP_JSON_OBJECT : TCLIP_JSON_ARRAY;
    right = parse_elements(p, json, c == '{' ? '}' : ']', depth);
  } else if (c == '"') {
    json->kind = TCLIP_JSON_STRING;
    right = (json->string = parse_string(p)) != NULL;
  } else if (c == '-' || (c >= '0' && c <= '9')) {
    json->kind = TCLIP_JSON_NUMBER;
    right = parse_number(p, json);
  } else if (take_word(p, "null")) {
    right = 1;
  } else {
    json->kind = TCLIP_JSON_BOOL;
    json->number = take_word(p, "true");
    right = json->number != 0 || take_word(p, "false");
  }
  if (right) return json;
  tclip_json_free(json);
  return wrong(p, "unexpected characters");
}

struct tclip_json *tclip_json_parse(const char *text, size_t size, const char *name,
                                    const struct tclip_error *error) {
  struct parser p = {text, text + size, text, NULL};
  struct tclip_json *json = parse_value(&p, 0);
  skip_space(&p);
  if (json && p.at == p.end) return json;
  if (json) p.what = "something follows its end";
  tclip_json_free(json);
  tclip_fail(error, "%s: no valid JSON: %s, at byte %zu", name, p.what, (size_t)(p.at - p.start));
  return NULL;
}

/* Elements are as deep as the parser went; siblings, which may be many, are a loop. */
void tclip_json_free(struct tclip_json *json) {
  while (json) {
    struct tclip_json *next = json->next;
    tclip_json_free(json->first);
    free(json->key);
    free(json->string);
    free(json);
    json = next;
  }
}

const struct tclip_json *tclip_json_get(const struct tclip_json *object, const char *key) {
  if (!object || object->kind != TCLIP_JSON_OBJECT) return NULL;
  for (const struct tclip_json *e = object->first; e; e = e->next)
    if (!strcmp(e->key, key)) return e;
  return NULL;
}
