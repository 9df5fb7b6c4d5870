/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Targets and sources of disk data: their names, and what is there already. */
#include "job/disk-target.h"
#include "base/error.h"
#include "qemu/tool.h"

#include <string.h>
#include <sys/stat.h>

#define LOOK_MS 15000
#define INFO_MAX (4 * 1024 * 1024)
#define NBD_PORT 10809 /* IANA */

/* --- Names --- */

static gboolean
no_target(const char *text, GError **error)
{
  dr_error_set(error, DR_ERROR_INVALID, "'%s' names no place for a disk's data", text);
  return dr_error_remedy(error,
                         "give an absolute path, nbd://HOST[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH, "
                         "or to read from http://… or https://…");
}

static JsonObject *
nbd_options(JsonObject *server, GUri *uri)
{
  const char *path = g_uri_get_path(uri);
  JsonObject *options = json_object_new();

  json_object_set_string_member(options, "driver", "nbd");
  json_object_set_object_member(options, "server", server);
  json_object_set_string_member(options, "export", *path == '/' ? path + 1 : path);
  return options;
}

static JsonObject *
unix_server(GUri *uri)
{
  g_autoptr(GHashTable) params =
      g_uri_get_query(uri) ? g_uri_parse_params(g_uri_get_query(uri), -1, "&", G_URI_PARAMS_NONE, NULL)
                           : NULL;
  const char *socket = params ? g_hash_table_lookup(params, "socket") : NULL;

  if (!socket || !g_path_is_absolute(socket) || (g_uri_get_host(uri) && *g_uri_get_host(uri)))
    return NULL;
  return dr_json("{'type': <'unix'>, 'path': <%s>}", socket);
}

static JsonObject *
inet_server(GUri *uri)
{
  g_autofree char *port = g_strdup_printf("%d", g_uri_get_port(uri) > 0 ? g_uri_get_port(uri) : NBD_PORT);
  const char *host = g_uri_get_host(uri);

  if (!host || !*host || g_uri_get_query(uri))
    return NULL;
  return dr_json("{'type': <'inet'>, 'host': <%s>, 'port': <%s>}", host, port);
}

static JsonObject *
parse_uri(const char *text, DrTargetKind *ret_kind, GError **error)
{
  g_autoptr(GUri) uri = g_uri_parse(text, G_URI_FLAGS_NON_DNS, NULL);
  const char *scheme = uri ? g_uri_get_scheme(uri) : "";
  JsonObject *server = NULL;

  *ret_kind = DR_TARGET_NBD;
  if (g_str_equal(scheme, "nbds") || g_str_equal(scheme, "nbds+unix")) {
    dr_error_set(error, DR_ERROR_UNSUPPORTED, "'%s': NBD with TLS is not supported here", text);
    dr_error_remedy(error, "use nbd:// in a trusted network, or a tunnel");
    return NULL;
  }
  if (g_str_equal(scheme, "nbd"))
    server = inet_server(uri);
  else if (g_str_equal(scheme, "nbd+unix"))
    server = unix_server(uri);
  if (server)
    return nbd_options(server, uri);
  if ((g_str_equal(scheme, "http") || g_str_equal(scheme, "https")) && g_uri_get_host(uri) &&
      *g_uri_get_host(uri)) {
    *ret_kind = DR_TARGET_HTTP;
    return dr_json("{'driver': <%s>, 'url': <%s>}", scheme, text);
  }
  no_target(text, error);
  return NULL;
}

JsonObject *
dr_target_parse_options(const char *text, DrTargetKind *ret_kind, GError **error)
{
  struct stat st;

  if (*text != '/')
    return parse_uri(text, ret_kind, error);
  *ret_kind = stat(text, &st) == 0 && S_ISBLK(st.st_mode) ? DR_TARGET_DEVICE : DR_TARGET_FILE;
  return dr_json("{'driver': <%s>, 'filename': <%s>}", *ret_kind == DR_TARGET_DEVICE ? "host_device" : "file",
                 text);
}

/* --- What is there --- */

/* qemu-img is another client than the guest's QEMU: what a server or a header does to it does not touch the guest. */
static JsonNode *
ask(const DrTarget *target, const char *format, GError **error)
{
  const char *raw = target->kind == DR_TARGET_NBD && !format ? "raw" : format;
  const char *argv[] = {
    "qemu-img", "info", "--output=json", "--backing-chain", "-U", NULL, NULL, NULL, NULL
  };
  g_autofree char *said = NULL;
  guint n = 5;

  if (raw) {
    argv[n++] = "-f";
    argv[n++] = raw;
  }
  argv[n] = target->text;
  said = dr_tool_run(argv, INFO_MAX, LOOK_MS, error);
  if (!said && error)
    g_prefix_error(error, "cannot look at '%s': ", target->text);
  return said ? dr_json_parse(said, -1, INFO_MAX, error) : NULL;
}

static gboolean
look(DrTarget *target, const char *format, GError **error)
{
  g_autoptr(JsonNode) node = ask(target, format, error);
  JsonArray *chain = node && JSON_NODE_HOLDS_ARRAY(node) ? json_node_get_array(node) : NULL;
  JsonObject *top;

  if (!chain || json_array_get_length(chain) == 0 ||
      !JSON_NODE_HOLDS_OBJECT(json_array_get_element(chain, 0)))
    return node ? dr_error_set(error, DR_ERROR_IO, "qemu-img tells nothing of '%s'", target->text) : FALSE;
  top = json_array_get_object_element(chain, 0);
  target->format = g_strdup(dr_json_str(top, "format", NULL));
  target->bytes = dr_json_int(top, "virtual-size", -1);
  target->images = json_array_get_length(chain);
  target->backing =
      g_strdup(dr_json_str(top, "full-backing-filename", dr_json_str(top, "backing-filename", NULL)));
  target->backing_format = g_strdup(dr_json_str(top, "backing-filename-format", NULL));
  if (!dr_json_bool(top, "format-specific.data.corrupt", FALSE))
    return TRUE;
  dr_error_set(error, DR_ERROR_IO, "the image '%s' is marked as corrupt", target->text);
  return dr_error_remedy(error, "look at it with qemu-img check, and repair it with qemu-img check -r all");
}

static gboolean
is_there(DrTarget *target, gboolean *ret_regular, GError **error)
{
  struct stat st;

  *ret_regular = TRUE;
  if (target->kind == DR_TARGET_NBD || target->kind == DR_TARGET_HTTP)
    return TRUE;
  if (stat(target->text, &st) < 0)
    return FALSE;
  if (S_ISREG(st.st_mode) || S_ISBLK(st.st_mode))
    return TRUE;
  *ret_regular = FALSE;
  return dr_error_set(error, DR_ERROR_INVALID, "'%s' is %s", target->text,
                      S_ISDIR(st.st_mode) ? "a directory" : "neither a file nor a block device");
}

DrTarget *
dr_target_look(const char *text, const char *format, GError **error)
{
  g_autoptr(DrTarget) target = g_new0(DrTarget, 1);
  g_autoptr(JsonObject) options = dr_target_parse_options(text, &target->kind, error);
  gboolean regular;

  if (!options)
    return NULL;
  target->text = g_strdup(text);
  target->bytes = -1;
  target->exists = is_there(target, &regular, error);
  if (!regular || (target->exists && target->kind != DR_TARGET_HTTP && !look(target, format, error)))
    return NULL;
  return g_steal_pointer(&target);
}

void
dr_target_free(DrTarget *target)
{
  if (!target)
    return;
  g_free(target->text);
  g_free(target->format);
  g_free(target->backing);
  g_free(target->backing_format);
  g_free(target);
}
