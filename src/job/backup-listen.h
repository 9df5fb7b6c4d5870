/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Where disks are served by NBD. */
#pragma once
#include "base/json.h"

typedef struct {
  char *path; /* nullable: of a unix socket */
  char *host; /* nullable: of this host itself */
  guint16 port;
} DrListen;

/* "unix:PATH", "tcp:PORT" or "tcp:HOST:PORT", of this host itself only: NBD is neither encrypted nor asks who reads. Errors: INVALID. */
gboolean dr_listen_parse(DrListen *listen, const char *text, GError **error);
void dr_listen_clear(DrListen *listen);

/* For the journal. (transfer full) */
JsonObject *dr_listen_write(const DrListen *listen);
void dr_listen_read(DrListen *listen, JsonObject *object);

/* As nbd-server-start takes it. (transfer full) */
JsonObject *dr_listen_address(const DrListen *listen);
/* Of an export (the NBD URI specification). (transfer full) */
char *dr_listen_uri(const DrListen *listen, const char *name);
