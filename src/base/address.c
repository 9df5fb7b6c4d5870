/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Checks of names, hosts and ports. */
#include "base/address.h"
#include "base/error.h"

#include <arpa/inet.h>
#include <string.h>

#define NAME_CHARS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
#define SHOWN 80 /* bytes of a bad name that a message repeats */
#define NAME_MAX_LEN 63
#define HOST_MAX_LEN 253

/* What somebody sent, fit for a terminal and a log. (transfer full) */
static char *
shown(const char *text)
{
  gsize len = text ? strlen(text) : 0;
  g_autofree char *valid = g_utf8_make_valid(text ? text : "", (gssize)MIN(len, SHOWN));

  for (char *at = valid; *at; at++)
    if (g_ascii_iscntrl(*at))
      *at = '?';
  return g_strconcat(valid, len > SHOWN ? "…" : "", NULL);
}

gboolean
dr_name_check(const char *name, const char *of, GError **error)
{
  g_autofree char *text = NULL;

  if (name && name[0] && name[0] != '.' && name[0] != '-' && strlen(name) <= NAME_MAX_LEN &&
      !name[strspn(name, NAME_CHARS "._-")])
    return TRUE;
  text = shown(name);
  dr_error_set(error, DR_ERROR_INVALID, "'%s' cannot be the name of %s", text, of);
  return dr_error_remedy(error,
                         "use 1 to 63 letters, digits, '.', '_' and '-', beginning with a letter or digit");
}

gsize
dr_host_ip(const char *host, guint8 ret_bytes[16])
{
  if (inet_pton(AF_INET, host, ret_bytes) == 1)
    return 4;
  return inet_pton(AF_INET6, host, ret_bytes) == 1 ? 16 : 0;
}

static gboolean
is_label(const char *label)
{
  gsize len = strlen(label);

  return len >= 1 && len <= 63 && !label[strspn(label, NAME_CHARS "_-")] && label[0] != '-' &&
         label[len - 1] != '-';
}

/* No top-level domain is a number: what looks like one is an address with a slip in it (RFC 3696, 2). */
static gboolean
is_dns_name(const char *host)
{
  g_auto(GStrv) labels = g_strsplit(host, ".", -1);
  guint n = g_strv_length(labels);

  for (guint i = 0; i < n; i++)
    if (!is_label(labels[i]))
      return FALSE;
  return n > 0 && labels[n - 1][strspn(labels[n - 1], "0123456789")];
}

gboolean
dr_host_check(const char *host, GError **error)
{
  g_autofree char *text = NULL;
  guint8 bytes[16];

  if (host && strlen(host) <= HOST_MAX_LEN && (dr_host_ip(host, bytes) || is_dns_name(host)))
    return TRUE;
  text = shown(host);
  dr_error_set(error, DR_ERROR_INVALID, "'%s' is neither a host's name nor an IP address", text);
  return dr_error_remedy(error, "write it like host2, host2.example.org, 192.0.2.7 or 2001:db8::7");
}

char *
dr_host_normal(const char *host)
{
  char text[INET6_ADDRSTRLEN];
  guint8 bytes[16];
  gsize len = dr_host_ip(host, bytes);

  if (len > 0 && inet_ntop(len == 4 ? AF_INET : AF_INET6, bytes, text, sizeof text))
    return g_strdup(text);
  return g_ascii_strdown(host, -1);
}

/* *ret_port is what it is where none is said. */
static gboolean
parse_port(const char *text, guint16 *ret_port, GError **error)
{
  g_autofree char *bad = NULL;
  guint64 port;

  if (g_ascii_string_to_unsigned(text, 10, 1, 65535, &port, NULL)) {
    *ret_port = (guint16)port;
    return TRUE;
  }
  bad = shown(text);
  dr_error_set(error, DR_ERROR_INVALID, "'%s' is no port", bad);
  return dr_error_remedy(error, "a port is 1 to 65535; %u where none is said", *ret_port);
}

/* *ret_port_text is where the port begins, or NULL. (transfer full): the host; NULL: brackets that do not fit. */
static char *
split(const char *text, const char **ret_port_text)
{
  const char *end = text[0] == '[' ? strchr(text, ']') : strchr(text, ':');

  *ret_port_text = NULL;
  if (text[0] == '[') {
    if (!end || (end[1] && end[1] != ':') || !memchr(text, ':', (gsize)(end - text)))
      return NULL;
    *ret_port_text = end[1] ? end + 2 : NULL;
    return g_strndup(text + 1, (gsize)(end - text - 1));
  }
  if (!end || strchr(end + 1, ':')) /* more than one colon: IPv6 as it is */
    return g_strdup(text);
  *ret_port_text = end + 1;
  return g_strndup(text, (gsize)(end - text));
}

gboolean
dr_address_parse(const char *text, guint16 otherwise, char **ret_host, guint16 *ret_port, GError **error)
{
  const char *port = NULL;
  g_autofree char *host = split(text, &port);

  *ret_port = otherwise;
  if (!dr_host_check(host ? host : text, error) || (port && !parse_port(port, ret_port, error)))
    return FALSE;
  *ret_host = g_steal_pointer(&host);
  return TRUE;
}

char *
dr_address_print(const char *host, guint16 port)
{
  return g_strdup_printf(strchr(host, ':') ? "[%s]:%u" : "%s:%u", host, port);
}
