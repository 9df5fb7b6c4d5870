/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The short forms of character devices: "unix:/p,server=on", "mon:stdio", "vc:80Cx24C". */
#include "argv/chardev-private.h"
#include "base/error.h"

#include <stdio.h>
#include <string.h>

static const char *
after_prefix(const char *text, const char *prefix)
{
  return g_str_has_prefix(text, prefix) ? text + strlen(prefix) : NULL;
}

/* "HOST:PORT", the host possibly empty, by QEMU's scanf patterns: at most 64 and 32 bytes, no ':' in the
 * host. `stops` are the characters that end the port. Returns: what follows, or NULL. */
static const char *
read_address(const char *at, const char *stops, char **ret_host, char **ret_port)
{
  gsize host_len = strcspn(at, ":");
  gsize port_len;

  if (at[host_len] != ':' || host_len > 64)
    return NULL;
  port_len = strcspn(at + host_len + 1, stops);
  if (port_len == 0 || port_len > 32)
    return NULL;
  *ret_host = g_strndup(at, host_len);
  *ret_port = g_strndup(at + host_len + 1, port_len);
  return at + host_len + 1 + port_len;
}

/* Takes what follows a comma. It is read as the rest of a -chardev, which has the same keys. */
static gboolean
take_rest(DrChardev *chardev, const char *rest, GError **error)
{
  g_autofree char *value = g_strdup_printf("socket,%s", rest);
  g_autoptr(DrOpts) opts = NULL;

  if (*rest == ',')
    return dr_error_set(error, DR_ERROR_INVALID, "an option is empty in ',%s'", rest);
  opts = dr_opts_parse("chardev", value, error);
  return opts && dr_chardev_take_opts(chardev, opts, error);
}

static DrChardev *
parse_tcp(const char *at, DrChardevProtocol protocol, GError **error)
{
  g_autoptr(DrChardev) chardev = dr_chardev_new("socket");
  const char *rest = read_address(at, ",", &chardev->host, &chardev->port);

  if (!rest) {
    dr_error_set(error, DR_ERROR_INVALID, "'%s' is no HOST:PORT of a character device", at);
    return NULL;
  }
  if (*rest == ',' && !take_rest(chardev, rest + 1, error))
    return NULL;
  if (protocol != DR_CHARDEV_PLAIN)
    chardev->protocol = protocol;
  return g_steal_pointer(&chardev);
}

static DrChardev *
parse_udp(const char *at, GError **error)
{
  g_autoptr(DrChardev) chardev = dr_chardev_new("udp");
  const char *rest = read_address(at, "@,", &chardev->host, &chardev->port);

  if (rest && *rest == '@')
    rest = read_address(rest + 1, ",", &chardev->local_host, &chardev->local_port);
  if (!rest) {
    dr_error_set(error, DR_ERROR_INVALID, "'%s' is no HOST:PORT@HOST:PORT of a character device", at);
    return NULL;
  }
  return g_steal_pointer(&chardev); /* QEMU ignores options here */
}

/* "PATH,server=on": here the path is a value with doubled commas. In QEMU's list it is the implied key, so
 * that `unix:path=/x` works too, and `unix:/x=y` does not. */
static DrChardev *
parse_unix(const char *at, GError **error)
{
  g_autoptr(DrChardev) chardev = dr_chardev_new("socket");
  gboolean has_key = at[strcspn(at, "=,")] == '=';
  g_autofree char *rest = g_strconcat(has_key ? "" : "path=", at, NULL);

  if (!take_rest(chardev, rest, error))
    return NULL;
  if ((!chardev->path || !*chardev->path) && !chardev->fd) {
    dr_error_set(error, DR_ERROR_INVALID, "'unix:%s' has no path", at);
    return NULL;
  }
  return g_steal_pointer(&chardev);
}

/* qemu_chr_parse_compat(): "vc" and whatever follows it is a console; with a colon a size must follow. */
static DrChardev *
parse_vc(const char *at, GError **error)
{
  g_autoptr(DrChardev) chardev = dr_chardev_new("vc");
  char width[8], height[8];

  if (*at != ':')
    return g_steal_pointer(&chardev);
  if (sscanf(at + 1, "%7[0-9]x%7[0-9]", width, height) == 2) {
    dr_opts_set(chardev->extra, "width", width);
    dr_opts_set(chardev->extra, "height", height);
  } else if (sscanf(at + 1, "%7[0-9]Cx%7[0-9]C", width, height) == 2) {
    dr_opts_set(chardev->extra, "cols", width);
    dr_opts_set(chardev->extra, "rows", height);
  } else {
    dr_error_set(error, DR_ERROR_INVALID, "'vc%s' is no size of a virtual console", at);
    return NULL;
  }
  return g_steal_pointer(&chardev);
}

static DrChardev *
with_path(const char *backend, const char *path)
{
  DrChardev *chardev = dr_chardev_new(backend);

  chardev->path = g_strdup(path);
  return chardev;
}

static DrChardev *
parse_with_path(const char *value)
{
  const char *rest;

  if ((rest = after_prefix(value, "file:")))
    return with_path("file", rest);
  if ((rest = after_prefix(value, "pipe:")))
    return with_path("pipe", rest);
  if ((rest = after_prefix(value, "pty:")))
    return with_path("pty", rest);
  if (g_str_has_prefix(value, "/dev/parport") || g_str_has_prefix(value, "/dev/ppi"))
    return with_path("parallel", value);
  if (g_str_has_prefix(value, "/dev/") || g_str_has_prefix(value, "COM"))
    return with_path("serial", value);
  return NULL;
}

static DrChardev *
parse_backend(const char *value, GError **error)
{
  static const char *const words[] = { "null",    "pty",     "msmouse", "wctablet",
                                       "braille", "testdev", "stdio",   NULL };
  const char *rest;
  DrChardev *chardev;

  if (g_strv_contains(words, value))
    return dr_chardev_new(value);
  if ((rest = after_prefix(value, "vc")))
    return parse_vc(rest, error);
  if ((rest = after_prefix(value, "tcp:")))
    return parse_tcp(rest, DR_CHARDEV_PLAIN, error);
  if ((rest = after_prefix(value, "telnet:")))
    return parse_tcp(rest, DR_CHARDEV_TELNET, error);
  if ((rest = after_prefix(value, "tn3270:")))
    return parse_tcp(rest, DR_CHARDEV_TN3270, error);
  if ((rest = after_prefix(value, "websocket:")))
    return parse_tcp(rest, DR_CHARDEV_WEBSOCKET, error);
  if ((rest = after_prefix(value, "udp:")))
    return parse_udp(rest, error);
  if ((rest = after_prefix(value, "unix:")))
    return parse_unix(rest, error);
  chardev = parse_with_path(value);
  if (!chardev)
    dr_error_set(error, DR_ERROR_INVALID, "'%s' is no character device", value);
  return chardev;
}

static DrChardev *
parse_monitored(const char *value, GError **error)
{
  DrChardev *chardev = parse_backend(value, error);

  if (!chardev)
    return NULL;
  chardev->mux = TRUE;
  chardev->monitor = TRUE;
  if (chardev->kind == DR_CHARDEV_STDIO)
    chardev->signal = FALSE; /* Ctrl-C goes to the guest */
  return chardev;
}

DrChardev *
dr_chardev_parse_short(const char *value, gboolean takes_none, GError **error)
{
  const char *rest;
  DrChardev *chardev;

  if ((rest = after_prefix(value, "mon:")))
    return parse_monitored(rest, error);
  if (takes_none && g_str_equal(value, "none")) {
    chardev = dr_chardev_new(NULL);
    chardev->kind = DR_CHARDEV_NONE;
    return chardev;
  }
  if (!(rest = after_prefix(value, "chardev:")))
    return parse_backend(value, error);
  chardev = dr_chardev_new(NULL);
  chardev->kind = DR_CHARDEV_REF;
  chardev->id = g_strdup(rest);
  return chardev;
}
