/* A safetensors file, mapped; of unknown origin. */
#ifndef TCLIP_SAFETENSORS_H
#define TCLIP_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "error.h"

enum tclip_dtype { TCLIP_F16, TCLIP_F32, TCLIP_I32 };
enum { TCLIP_MOST_AXES = 4 };

struct tclip_tensor {
  char *name;
  enum tclip_dtype dtype;
  size_t axes, shape[TCLIP_MOST_AXES];
  const void *data; /* within the file, and aligned */
  int used;         /* for who reads it */
};

struct tclip_tensors {
  struct tclip_tensor *tensors; /* by name */
  size_t count;
  void *map;
  size_t map_size;
};

/* Maps the file and checks every size in it against the file's. 0, or -1 and the line. */
int tclip_tensors_open(const char *path, struct tclip_tensors *tensors,
                       const struct tclip_error *error);
void tclip_tensors_close(struct tclip_tensors *tensors);
struct tclip_tensor *tclip_tensors_find(const struct tclip_tensors *tensors, const char *name);

/* A whole file in memory, of at most so many bytes; NULL and the line if it cannot be read. */
char *tclip_read_file(const char *path, size_t most, size_t *size, const struct tclip_error *error);

#endif
