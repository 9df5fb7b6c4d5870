/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* When droverd's certificates end. */
#pragma once
#include "net/pki.h"

typedef struct {
  gint64 ca, server, client; /* s since 1970; 0: not known */
} DrExpiry;

/* Of the files as they are now. `ca`: of the certificate in the CA's file that issued ours; several may be in it while a CA is
 * changed for another. */
void dr_expiry_read(const DrPkiPaths *paths, DrExpiry *ret_expiry);
