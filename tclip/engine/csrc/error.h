#ifndef TCLIP_ERROR_H
#define TCLIP_ERROR_H

#include <stddef.h>

/* Where the one line that says what is wrong goes. */
struct tclip_error {
  char *text;
  size_t size;
};

/* Writes the line and returns -1. */
int tclip_fail(const struct tclip_error *error, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#endif
