/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The ends of certificates. */
#include "daemon/expiry.h"

/* The first in a file is the host's own, those behind it lead to the CA. */
static gint64
end_of_first(const GPtrArray *certs)
{
  return certs && certs->len ? ((const DrCertInfo *)certs->pdata[0])->until : 0;
}

/* Of several of one name the last counts: it is with that one that a handshake goes on. */
static gint64
end_of_issuer(const GPtrArray *authorities, const GPtrArray *certs)
{
  gint64 last = 0;

  for (guint i = 0; authorities && certs && certs->len && i < authorities->len; i++) {
    const DrCertInfo *authority = authorities->pdata[i], *top = certs->pdata[certs->len - 1];

    if (g_strcmp0(authority->subject, top->issuer) == 0)
      last = MAX(last, authority->until);
  }
  return last;
}

void
dr_expiry_read(const DrPkiPaths *paths, DrExpiry *ret_expiry)
{
  g_autoptr(GPtrArray) authorities = dr_cert_read(paths->ca, NULL);
  g_autoptr(GPtrArray) server = dr_cert_read(paths->server_cert, NULL);
  g_autoptr(GPtrArray) client = dr_cert_read(paths->client_cert, NULL);

  ret_expiry->ca = end_of_issuer(authorities, server);
  ret_expiry->server = end_of_first(server);
  ret_expiry->client = end_of_first(client);
}
