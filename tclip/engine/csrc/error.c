#include "error.h"

#include <stdarg.h>
#include <stdio.h>

int tclip_fail(const struct tclip_error *error, const char *format, ...) {
  if (!error->size) return -1;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(error->text, error->size, format, arguments);
  va_end(arguments);
  /* Names come from files of unknown origin: nothing of them may reach a terminal as it is. */
  for (char *c = error->text; *c; c++)
    if ((unsigned char)*c < ' ' || *c == 0x7F) *c = '?';
  return -1;
}
