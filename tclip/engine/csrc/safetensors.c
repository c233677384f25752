#define _POSIX_C_SOURCE 200809L
#include "safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "json.h"

/* Opens a regular file; its size, or -1 and the line. */
static int open_file(const char *path, size_t *size, const struct tclip_error *error) {
  struct stat info;
  int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return tclip_fail(error, "%s: %s", path, strerror(errno));
  if (fstat(file, &info) || !S_ISREG(info.st_mode) || info.st_size < 0 ||
      (uint64_t)info.st_size > SIZE_MAX / 2) {
    close(file);
    return tclip_fail(error, "%s: not a file that can be read", path);
  }
  *size = (size_t)info.st_size;
  return file;
}

char *tclip_read_file(const char *path, size_t most, size_t *size,
                      const struct tclip_error *error) {
  int file = open_file(path, size, error);
  if (file < 0) return NULL;
  char *text = NULL;
  if (*size > most) {
    tclip_fail(error, "%s: %zu bytes are too many", path, *size);
  } else if (!(text = malloc(*size + 1))) {
    tclip_fail(error, "%s: out of memory", path);
  } else {
    size_t done = 0;
    ssize_t part;
    while (done < *size && (part = read(file, text + done, *size - done)) > 0) done += (size_t)part;
    if (done < *size) {
      tclip_fail(error, "%s: cannot be read", path);
      free(text);
      text = NULL;
    }
  }
  close(file);
  return text;
}

static int by_name(const void *a, const void *b) {
  return strcmp(((const struct tclip_tensor *)a)->name, ((const struct tclip_tensor *)b)->name);
}

/* An integer of an array of them, as a size; -1 if it is none. */
static int size_of(const struct tclip_json *json, size_t *size) {
  if (!json || json->kind != TCLIP_JSON_NUMBER || !json->is_integer || json->integer < 0) return -1;
  *size = (size_t)json->integer;
  return 0;
}

/* What an entry of the header says, checked against the bytes that follow the header. 0 for a
 * tensor, 1 for one of no use here (its dtype or axes), -1 if it is wrong. */
static int read_entry(const struct tclip_json *entry, const char *data, size_t data_size,
                      struct tclip_tensor *tensor) {
  const struct tclip_json *dtype = tclip_json_get(entry, "dtype");
  const struct tclip_json *shape = tclip_json_get(entry, "shape");
  const struct tclip_json *offsets = tclip_json_get(entry, "data_offsets");
  size_t bytes, begin, end, i = 0;
  if (!dtype || dtype->kind != TCLIP_JSON_STRING || !shape || shape->kind != TCLIP_JSON_ARRAY ||
      !offsets || offsets->kind != TCLIP_JSON_ARRAY || offsets->count != 2)
    return -1;
  if (size_of(offsets->first, &begin) || size_of(offsets->first->next, &end) || begin > end ||
      end > data_size)
    return -1;
  if (!strcmp(dtype->string, "F16"))
    tensor->dtype = TCLIP_F16, bytes = 2;
  else if (!strcmp(dtype->string, "F32"))
    tensor->dtype = TCLIP_F32, bytes = 4;
  else if (!strcmp(dtype->string, "I32"))
    tensor->dtype = TCLIP_I32, bytes = 4;
  else
    return 1;
  if (shape->count > TCLIP_MOST_AXES) return 1;
  size_t width = bytes;
  tensor->axes = shape->count;
  for (const struct tclip_json *axis = shape->first; axis; axis = axis->next, i++) {
    if (size_of(axis, &tensor->shape[i])) return -1;
    if (tensor->shape[i] && bytes > SIZE_MAX / tensor->shape[i]) return -1;
    bytes *= tensor->shape[i];
  }
  if (bytes != end - begin) return -1;
  tensor->data = data + begin;
  return (uintptr_t)tensor->data % width ? -1 : 0;
}

static int read_header(const char *path, struct tclip_tensors *t, const struct tclip_error *error) {
  const unsigned char *bytes = t->map;
  uint64_t length = 0;
  for (int i = 0; t->map_size >= 8 && i < 8; i++) length |= (uint64_t)bytes[i] << 8 * i;
  if (t->map_size < 8 || length > t->map_size - 8)
    return tclip_fail(error, "%s: no valid safetensors file: its header is cut off", path);
  const char *text = (const char *)bytes + 8, *data = text + length;
  struct tclip_json *header = tclip_json_parse(text, (size_t)length, path, error);
  if (!header) return -1;
  int status = 0;
  if (header->kind != TCLIP_JSON_OBJECT)
    status = tclip_fail(error, "%s: no valid safetensors file: its header is no object", path);
  else if (!(t->tensors = calloc(header->count + 1, sizeof *t->tensors)))
    status = tclip_fail(error, "%s: out of memory", path);
  for (struct tclip_json *e = header->first; e && !status; e = e->next) {
    struct tclip_tensor *tensor = &t->tensors[t->count];
    if (!strcmp(e->key, "__metadata__")) continue;
    int read = read_entry(e, data, t->map_size - 8 - (size_t)length, tensor);
    if (read)
      status = tclip_fail(error, "%s: tensor '%s' %s", path, e->key,
                          read < 0 ? "does not lie in the file as its header says"
                                   : "has a dtype or axes that no model has");
    tensor->name = e->key;
    e->key = NULL;
    t->count++;
  }
  if (t->tensors && t->count) qsort(t->tensors, t->count, sizeof *t->tensors, by_name);
  for (size_t i = 1; i < t->count && !status; i++)
    if (!by_name(&t->tensors[i - 1], &t->tensors[i]))
      status = tclip_fail(error, "%s: tensor '%s' comes twice", path, t->tensors[i].name);
  /* Its keys went to the tensors, up to an error. */
  tclip_json_free(header);
  return status;
}

int tclip_tensors_open(const char *path, struct tclip_tensors *t, const struct tclip_error *error) {
  memset(t, 0, sizeof *t);
  int file = open_file(path, &t->map_size, error);
  if (file < 0) return -1;
  void *map = t->map_size ? mmap(NULL, t->map_size, PROT_READ, MAP_PRIVATE, file, 0) : MAP_FAILED;
  close(file);
  if (map == MAP_FAILED) return tclip_fail(error, "%s: cannot be mapped", path);
  t->map = map;
  if (!read_header(path, t, error)) return 0;
  tclip_tensors_close(t);
  return -1;
}

void tclip_tensors_close(struct tclip_tensors *t) {
  for (size_t i = 0; i < t->count; i++) free(t->tensors[i].name);
  free(t->tensors);
  if (t->map) munmap(t->map, t->map_size);
  memset(t, 0, sizeof *t);
}

struct tclip_tensor *tclip_tensors_find(const struct tclip_tensors *t, const char *name) {
  struct tclip_tensor key = {.name = (char *)name};
  return t->count ? bsearch(&key, t->tensors, t->count, sizeof key, by_name) : NULL;
}
