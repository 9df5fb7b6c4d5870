/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* See versions.h. */
#include "libvirt/versions.h"

#include <stdio.h>

#define MEMFD_BEFORE_MAJOR 8
#define MEMFD_BEFORE_MINOR 1

/* Those of tests/e2e/test_libvirt*.py. */
static const unsigned long tested[] = { 9000000, 11003000, 12008000 };

gboolean
dr_libvirt_is_tested(unsigned long version)
{
  for (guint i = 0; i < G_N_ELEMENTS(tested); i++)
    if (version / 1000 == tested[i] / 1000)
      return TRUE;
  return FALSE;
}

unsigned long
dr_libvirt_version_number(const char *text)
{
  unsigned long major = 0, minor = 0, micro = 0;

  if (sscanf(text, "%3lu.%3lu.%3lu", &major, &minor, &micro) < 2)
    return 0;
  return major * 1000000 + minor * 1000 + micro;
}

gboolean
dr_qemu_sends_memfd(const char *version)
{
  int major = 0, minor = 0;

  if (!version || sscanf(version, "%3d.%3d", &major, &minor) != 2)
    return FALSE;
  return major > MEMFD_BEFORE_MAJOR || (major == MEMFD_BEFORE_MAJOR && minor >= MEMFD_BEFORE_MINOR);
}
