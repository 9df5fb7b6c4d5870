/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Addresses of an NBD server, as people, QEMU and its clients write them. */
#include "job/backup-listen.h"
#include "base/address.h"
#include "base/error.h"

#include <string.h>

#define PATH_MAX_UNIX 107 /* sun_path */

static gboolean
is_loopback(const char *host)
{
  guint8 bytes[16] = { 0 };
  static const guint8 six[16] = { [15] = 1 };
  gsize len = dr_host_ip(host, bytes);

  return g_str_equal(host, "localhost") || (len == 4 && bytes[0] == 127) ||
         (len == 16 && memcmp(bytes, six, sizeof six) == 0);
}

static gboolean
parse_tcp(DrListen *listen, const char *text, GError **error)
{
  g_autofree char *host = NULL;
  guint64 port = 0;
  guint16 found = 0;

  if (g_ascii_string_to_unsigned(text, 10, 1, 65535, &port, NULL)) {
    listen->host = g_strdup("127.0.0.1");
    listen->port = (guint16)port;
    return TRUE;
  }
  if (!dr_address_parse(text, 0, &host, &found, error))
    return FALSE;
  if (found == 0)
    return dr_error_set(error, DR_ERROR_INVALID, "'tcp:%s' names no port", text);
  if (!is_loopback(host)) {
    dr_error_set(error, DR_ERROR_INVALID,
                 "'%s' is not this host itself: NBD is neither encrypted nor asks who reads", host);
    return dr_error_remedy(error, "serve on a unix socket or 127.0.0.1, and reach it by ssh -L");
  }
  listen->host = g_steal_pointer(&host);
  listen->port = found;
  return TRUE;
}

gboolean
dr_listen_parse(DrListen *listen, const char *text, GError **error)
{
  const char *path = g_str_has_prefix(text, "unix:") ? text + strlen("unix:") : NULL;

  if (g_str_has_prefix(text, "tcp:"))
    return parse_tcp(listen, text + strlen("tcp:"), error);
  if (!path || *path != '/')
    return dr_error_set(error, DR_ERROR_INVALID, "'%s' is neither unix:/PATH nor tcp:[HOST:]PORT", text);
  if (strlen(path) > PATH_MAX_UNIX)
    return dr_error_set(error, DR_ERROR_INVALID, "the socket's path '%s' is longer than %d bytes", path,
                        PATH_MAX_UNIX);
  listen->path = g_strdup(path);
  return TRUE;
}

void
dr_listen_clear(DrListen *listen)
{
  g_clear_pointer(&listen->path, g_free);
  g_clear_pointer(&listen->host, g_free);
}

JsonObject *
dr_listen_write(const DrListen *listen)
{
  return dr_json("{'path': <%s>, 'host': <%s>, 'port': <%x>}", listen->path ? listen->path : "",
                 listen->host ? listen->host : "", (gint64)listen->port);
}

static char *
text_of(JsonObject *object, const char *member)
{
  const char *text = dr_json_str(object, member, "");

  return *text ? g_strdup(text) : NULL;
}

void
dr_listen_read(DrListen *listen, JsonObject *object)
{
  listen->path = text_of(object, "path");
  listen->host = text_of(object, "host");
  listen->port = (guint16)dr_json_int(object, "port", 0);
}

JsonObject *
dr_listen_address(const DrListen *listen)
{
  g_autofree char *port = g_strdup_printf("%u", listen->port);

  return listen->path
             ? dr_json("{'type': <'unix'>, 'data': <{'path': <%s>}>}", listen->path)
             : dr_json("{'type': <'inet'>, 'data': <{'host': <%s>, 'port': <%s>}>}", listen->host, port);
}

char *
dr_listen_uri(const DrListen *listen, const char *disk)
{
  g_autofree char *name = g_uri_escape_string(disk, NULL, FALSE);
  g_autofree char *path = listen->path ? g_uri_escape_string(listen->path, "/", FALSE) : NULL;
  g_autofree char *address = listen->path ? NULL : dr_address_print(listen->host, listen->port);

  return path ? g_strdup_printf("nbd+unix:///%s?socket=%s", name, path)
              : g_strdup_printf("nbd://%s/%s", address, name);
}
