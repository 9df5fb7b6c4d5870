/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Character devices: -chardev to the struct, and the struct to -chardev. */
#include "argv/chardev-private.h"
#include "argv/options.h"
#include "base/error.h"

#include <string.h>

void
dr_chardev_free(DrChardev *chardev)
{
  if (!chardev)
    return;
  g_free(chardev->backend);
  g_free(chardev->id);
  g_free(chardev->path);
  g_free(chardev->fd);
  g_free(chardev->host);
  g_free(chardev->port);
  g_free(chardev->local_host);
  g_free(chardev->local_port);
  dr_opts_free(chardev->extra);
  g_free(chardev);
}

DrChardev *
dr_chardev_copy(const DrChardev *chardev)
{
  DrChardev *copy = g_memdup2(chardev, sizeof(*chardev));

  copy->backend = g_strdup(chardev->backend);
  copy->id = g_strdup(chardev->id);
  copy->path = g_strdup(chardev->path);
  copy->fd = g_strdup(chardev->fd);
  copy->host = g_strdup(chardev->host);
  copy->port = g_strdup(chardev->port);
  copy->local_host = g_strdup(chardev->local_host);
  copy->local_port = g_strdup(chardev->local_port);
  copy->extra = dr_opts_copy(chardev->extra);
  return copy;
}

static gboolean
take_bool(const DrOpts *opts, const char *key, gboolean *field, GError **error)
{
  return dr_opts_get_bool(opts, key, *field, field, error);
}

static gboolean
take_protocol(DrChardev *chardev, const DrOpts *opts, const char *key, DrChardevProtocol protocol,
              GError **error)
{
  gboolean on = FALSE;

  if (!take_bool(opts, key, &on, error))
    return FALSE;
  if (on)
    chardev->protocol = protocol;
  return TRUE;
}

static void
take_string(const DrOpts *opts, const char *key, char **field)
{
  const char *value = dr_opts_get(opts, key);

  if (value) {
    g_free(*field);
    *field = g_strdup(value);
  }
}

static DrChardevKind
socket_kind(const DrChardev *chardev)
{
  return chardev->path || chardev->fd ? DR_CHARDEV_UNIX : DR_CHARDEV_TCP;
}

/* The keys that have a field of their own; all others stay in `extra`. */
static const char *const own_keys[] = {
  "backend", "id",        "path",   "fd",   "host",   "port",   "localaddr", "localport", "telnet",
  "tn3270",  "websocket", "server", "wait", "append", "signal", "mux",       NULL,
};

gboolean
dr_chardev_take_opts(DrChardev *chardev, const DrOpts *opts, GError **error)
{
  take_string(opts, "id", &chardev->id);
  take_string(opts, "path", &chardev->path);
  take_string(opts, "fd", &chardev->fd);
  take_string(opts, "host", &chardev->host);
  take_string(opts, "port", &chardev->port);
  take_string(opts, "localaddr", &chardev->local_host);
  take_string(opts, "localport", &chardev->local_port);
  for (guint i = 0; i < dr_opts_n(opts); i++) {
    const char *key = dr_opts_key(opts, i);

    if (!*key)
      return dr_error_set(error, DR_ERROR_INVALID, "a key of the character device is empty");
    if (!g_strv_contains(own_keys, key))
      dr_opts_set(chardev->extra, key, dr_opts_value(opts, i));
  }
  if (g_str_equal(chardev->backend, "socket"))
    chardev->kind = socket_kind(chardev);
  return take_bool(opts, "server", &chardev->server, error) &&
         take_bool(opts, "wait", &chardev->wait, error) &&
         take_bool(opts, "append", &chardev->append, error) &&
         take_bool(opts, "signal", &chardev->signal, error) && take_bool(opts, "mux", &chardev->mux, error) &&
         take_protocol(chardev, opts, "telnet", DR_CHARDEV_TELNET, error) &&
         take_protocol(chardev, opts, "tn3270", DR_CHARDEV_TN3270, error) &&
         take_protocol(chardev, opts, "websocket", DR_CHARDEV_WEBSOCKET, error);
}

/* Backends with a kind of their own. Two names for one: the second is gone in 11.1, so the first is what is
 * kept. */
static const struct {
  const char *backend, *old_name;
  DrChardevKind kind;
} backends[] = {
  { "socket", NULL, DR_CHARDEV_TCP }, /* until it turns out to have a path or a descriptor */
  { "udp", NULL, DR_CHARDEV_UDP },
  { "file", NULL, DR_CHARDEV_FILE },
  { "pipe", NULL, DR_CHARDEV_PIPE },
  { "pty", NULL, DR_CHARDEV_PTY },
  { "stdio", NULL, DR_CHARDEV_STDIO },
  { "null", NULL, DR_CHARDEV_NULL },
  { "vc", NULL, DR_CHARDEV_VC },
  { "serial", "tty", DR_CHARDEV_SERIAL },
  { "parallel", "parport", DR_CHARDEV_PARALLEL },
  { "ringbuf", "memory", DR_CHARDEV_RINGBUF },
};

DrChardev *
dr_chardev_new(const char *backend)
{
  DrChardev *chardev = g_new0(DrChardev, 1);

  chardev->kind = DR_CHARDEV_OTHER;
  chardev->backend = g_strdup(backend);
  chardev->wait = TRUE;
  chardev->signal = TRUE;
  chardev->extra = dr_opts_new("chardev", DR_OPTS_KEYVAL);
  for (gsize i = 0; backend && i < G_N_ELEMENTS(backends); i++) {
    if (!g_str_equal(backends[i].backend, backend) && g_strcmp0(backends[i].old_name, backend) != 0)
      continue;
    chardev->kind = backends[i].kind;
    g_free(chardev->backend);
    chardev->backend = g_strdup(backends[i].backend);
  }
  return chardev;
}

static DrChardev *
parse_long(const char *value, GError **error)
{
  g_autoptr(DrOpts) opts = dr_opts_parse("chardev", value, error);
  g_autoptr(DrChardev) chardev = NULL;
  const char *backend;

  if (!opts)
    return NULL;
  backend = dr_opts_get(opts, "backend");
  if (!backend || !*backend) {
    dr_error_set(error, DR_ERROR_INVALID, "the character device '%s' has no backend", value);
    return NULL;
  }
  chardev = dr_chardev_new(backend);
  return dr_chardev_take_opts(chardev, opts, error) ? g_steal_pointer(&chardev) : NULL;
}

static gboolean
takes_none(const DrOptInfo *info)
{
  static const char *const options[] = { "serial", "parallel", "monitor", "gdb", NULL };

  return g_strv_contains(options, info->name);
}

/* gdbserver_start() appends wait=off,nodelay=on,server=on to what begins with tcp:. */
static void
apply_gdb(DrChardev *chardev, const char *value)
{
  if (!g_str_has_prefix(value, "tcp:"))
    return;
  chardev->server = TRUE;
  chardev->wait = FALSE;
  dr_opts_set(chardev->extra, "delay", "off"); /* 5.2 has no key nodelay */
}

DrChardev *
dr_chardev_parse(const char *option, const char *value, GError **error)
{
  const DrOptInfo *info = dr_option_lookup(option);
  DrChardev *chardev;

  if (!info || (info->kind != DR_VALUE_CHARDEV && !g_str_equal(info->name, "chardev"))) {
    dr_error_set(error, DR_ERROR_INVALID, "option '%s' takes no character device", option);
    return NULL;
  }
  if (g_str_equal(info->name, "chardev"))
    chardev = parse_long(value, error);
  else
    chardev = dr_chardev_parse_short(value, takes_none(info), error);
  if (chardev && g_str_equal(info->name, "gdb"))
    apply_gdb(chardev, value);
  if (!chardev)
    g_prefix_error(error, "cannot read the value of '-%s': ", info->name);
  return chardev;
}

static void
put_string(DrOpts *opts, const char *key, const char *value)
{
  if (value)
    dr_opts_set(opts, key, value);
}

static void
put_socket(const DrChardev *chardev, DrOpts *opts)
{
  static const char *const protocols[] = { NULL, "telnet", "tn3270", "websocket" };

  if (chardev->protocol != DR_CHARDEV_PLAIN)
    dr_opts_set_bool(opts, protocols[chardev->protocol], TRUE);
  if (chardev->server)
    dr_opts_set_bool(opts, "server", TRUE);
  if (chardev->server && !chardev->wait) /* of a client QEMU refuses it */
    dr_opts_set_bool(opts, "wait", FALSE);
}

DrOpts *
dr_chardev_to_opts(const DrChardev *chardev, const char *id)
{
  DrOpts *opts;

  g_return_val_if_fail(chardev->backend, NULL);
  opts = dr_opts_new("chardev", DR_OPTS_KEYVAL);
  dr_opts_set(opts, "backend", chardev->backend);
  dr_opts_set(opts, "id", id);
  put_string(opts, "path", chardev->path);
  put_string(opts, "fd", chardev->fd);
  put_string(opts, "host", chardev->host);
  put_string(opts, "port", chardev->port);
  put_string(opts, "localaddr", chardev->local_host);
  put_string(opts, "localport", chardev->local_port);
  put_socket(chardev, opts);
  if (chardev->append && chardev->kind == DR_CHARDEV_FILE)
    dr_opts_set_bool(opts, "append", TRUE);
  if (chardev->mux)
    dr_opts_set_bool(opts, "mux", TRUE);
  if (!chardev->signal && chardev->kind == DR_CHARDEV_STDIO)
    dr_opts_set_bool(opts, "signal", FALSE);
  for (guint i = 0; i < dr_opts_n(chardev->extra); i++)
    dr_opts_set(opts, dr_opts_key(chardev->extra, i), dr_opts_value(chardev->extra, i));
  return opts;
}

gboolean
dr_chardev_is_listener(const DrChardev *chardev)
{
  switch (chardev->kind) {
  case DR_CHARDEV_UNIX:
  case DR_CHARDEV_TCP:
    return chardev->server;
  case DR_CHARDEV_UDP:
    return chardev->local_port && *chardev->local_port && !g_str_equal(chardev->local_port, "0");
  default:
    return FALSE;
  }
}

const char *
dr_chardev_kind_name(DrChardevKind kind)
{
  static const char *const names[] = {
    [DR_CHARDEV_NONE] = "none",
    [DR_CHARDEV_REF] = "reference",
    [DR_CHARDEV_UNIX] = "unix socket",
    [DR_CHARDEV_TCP] = "tcp socket",
    [DR_CHARDEV_UDP] = "udp socket",
    [DR_CHARDEV_FILE] = "file",
    [DR_CHARDEV_PIPE] = "pipe",
    [DR_CHARDEV_PTY] = "pty",
    [DR_CHARDEV_STDIO] = "stdio",
    [DR_CHARDEV_NULL] = "null",
    [DR_CHARDEV_VC] = "virtual console",
    [DR_CHARDEV_SERIAL] = "serial port",
    [DR_CHARDEV_PARALLEL] = "parallel port",
    [DR_CHARDEV_RINGBUF] = "ring buffer",
    [DR_CHARDEV_OTHER] = "other",
  };

  return names[kind];
}
