/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Sources of streamed disks. */
#include "job/stream-source.h"
#include "base/error.h"
#include "job/disk.h"
#include "qemu/tool.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#define LOOK_MS 15000
#define INFO_MAX (4 * 1024 * 1024)
#define NAME_MAX_BYTES 1023 /* of a backing file's name: docs/interop/qcow2.txt */
/* Seconds for which reads wait for an NBD server that is away: without an end. Not only because the guest is to see no error: while
 * block-stream runs, a read for which QEMU cannot learn where the source has data comes back as done, with whatever was in the buffer
 * (cor_co_preadv_part() of block/copy-on-read.c, reproduced on 7.2 and 10.0). So asking for that must never fail. */
#define RECONNECT_S (365 * 86400)
#define HTTP_S 30 /* for one read of up to 256 KiB; QEMU's own 5 s are not enough for a slow link */

static const char *const formats[] = { "raw", "qcow2", "qed", "vdi", "vpc", "vhdx", NULL };

static gboolean
is_remote(const DrStreamSource *source)
{
  return source->kind == DR_TARGET_NBD || source->kind == DR_TARGET_HTTP;
}

/* --- Looking --- */

static gboolean
is_file(const DrStreamSource *source, GError **error)
{
  struct stat st;

  if (is_remote(source))
    return TRUE;
  if (stat(source->text, &st) < 0)
    return dr_error_set_errno(error, errno, "cannot look at '%s'", source->text);
  return S_ISREG(st.st_mode) || S_ISBLK(st.st_mode) ||
         dr_error_set(error, DR_ERROR_INVALID, "'%s' is %s", source->text,
                      S_ISDIR(st.st_mode) ? "a directory" : "neither a file nor a block device");
}

static gboolean
check_format(const char *format, GError **error)
{
  g_autofree char *known = NULL;

  if (!format || g_strv_contains(formats, format))
    return TRUE;
  known = g_strjoinv(", ", (char **)formats);
  dr_error_set(error, DR_ERROR_INVALID, "'%s' is no format that a disk can be streamed from", format);
  return dr_error_remedy(error, "it is one of: %s", known);
}

void
dr_stream_explain(GError **error)
{
  if (error && *error &&
      (strstr((*error)->message, "Unknown driver 'http") ||
       strstr((*error)->message, "Unknown protocol 'http")))
    dr_error_remedy(error,
                    "install QEMU's curl block driver (Debian: qemu-block-extra), or serve the image by NBD");
  else if (error && *error && strstr((*error)->message, "certificate"))
    dr_error_remedy(error, "make the server's CA known to this host, or say sslverify=off");
}

/* "qemu-img: Could not open 'json:{…}': Connection refused" without what nobody has typed. */
static void
tell(const DrStreamSource *source, GError *cause, GError **error)
{
  const char *why = strstr(cause->message, "}': ");
  gboolean unknown = strstr(cause->message, "Unknown driver") != NULL;

  dr_error_set(error, unknown ? DR_ERROR_UNSUPPORTED : (DrErrorCode)cause->code, "cannot look at '%s': %s",
               source->text, why ? why + strlen("}': ") : cause->message);
  dr_stream_explain(error);
  g_error_free(cause);
}

static JsonObject *
ask(const DrStreamSource *source, const char *format, GError **error)
{
  g_autoptr(JsonObject) options = json_object_new();
  g_autofree char *json = NULL, *name = NULL, *said = NULL;
  const char *argv[] = { "qemu-img", "info", "--output=json", "-U", NULL, NULL };
  GError *local = NULL;

  if (format)
    json_object_set_string_member(options, "driver", format);
  json_object_set_object_member(options, "file", json_object_ref(source->protocol));
  json = dr_json_print_object(options, FALSE);
  argv[4] = name = g_strconcat("json:", json, NULL);
  said = dr_tool_run(argv, INFO_MAX, LOOK_MS, &local);
  if (!said)
    tell(source, local, error);
  return said ? dr_json_parse_object(said, -1, INFO_MAX, error) : NULL;
}

static gboolean
refuse(const DrStreamSource *source, const char *why, const char *remedy, GError **error)
{
  dr_error_set(error, DR_ERROR_REFUSED, "'%s' %s", source->text, why);
  return dr_error_remedy(error, "%s", remedy);
}

/* What an image names is opened by whoever opens it: nobody but its server has said that name. */
static gboolean
stands_alone(const DrStreamSource *source, JsonObject *info, GError **error)
{
  static const char *const members[] = { "backing-filename", "format-specific.data.data-file" };

  for (guint i = 0; is_remote(source) && i < G_N_ELEMENTS(members); i++) {
    const char *other = dr_json_str(info, members[i], NULL);
    g_autofree char *why = other ? g_strdup_printf("stands on another image, '%s'", other) : NULL;

    if (other)
      return refuse(
          source, why,
          "serve the disk as one image: qemu-img convert, or qemu-nbd, which serves the whole chain", error);
  }
  return TRUE;
}

static gboolean
judge(DrStreamSource *source, JsonObject *info, const char *format, GError **error)
{
  const char *found = dr_json_str(info, "format", "");

  source->bytes = dr_json_int(info, "virtual-size", 0);
  if (!format && !g_str_equal(found, "raw")) {
    g_autofree char *why = g_strdup_printf("looks like a %s image, and its format is not given", found);
    g_autofree char *remedy =
        g_strdup_printf("add format=%s if it is one, format=raw if these bytes are the guest's own", found);

    return refuse(source, why, remedy, error);
  }
  source->format = g_strdup(format ? format : "raw");
  if (dr_json_bool(info, "encrypted", FALSE))
    return refuse(source, "is encrypted", "serve it decrypted", error);
  if (dr_json_bool(info, "format-specific.data.corrupt", FALSE))
    return refuse(source, "is marked as corrupt",
                  "look at it with qemu-img check, and repair it with qemu-img check -r all", error);
  if (source->kind == DR_TARGET_HTTP &&
      !g_str_equal(source->format, "raw")) /* its tables may not be readable: see RECONNECT_S */
    return refuse(source, "is not raw, and by HTTP only raw images can be streamed",
                  "serve it raw (qemu-img convert -O raw), or by NBD", error);
  if (source->bytes <= 0)
    return refuse(source, "holds no data", "is it the right one?", error);
  return stands_alone(source, info, error);
}

DrStreamSource *
dr_stream_source_look(const char *text, const char *format, gboolean verify, GError **error)
{
  g_autoptr(DrStreamSource) source = g_new0(DrStreamSource, 1);
  g_autoptr(JsonObject) info = NULL;

  source->text = g_strdup(text);
  source->protocol = dr_target_parse_options(text, &source->kind, error);
  if (!source->protocol || !check_format(format, error) || !is_file(source, error))
    return NULL;
  if (source->kind == DR_TARGET_HTTP)
    json_object_set_int_member(source->protocol, "timeout", HTTP_S);
  if (source->kind == DR_TARGET_HTTP && !verify)
    json_object_set_boolean_member(source->protocol, "sslverify", FALSE);
  info = ask(source, format, error);
  return info && judge(source, info, format, error) ? g_steal_pointer(&source) : NULL;
}

void
dr_stream_source_free(DrStreamSource *source)
{
  if (!source)
    return;
  g_free(source->text);
  g_free(source->format);
  g_clear_pointer(&source->protocol, json_object_unref);
  g_free(source);
}

/* --- In a header --- */

static JsonObject *
lasting(const DrStreamSource *source)
{
  JsonObject *options = dr_json_dup_object(source->protocol);
  JsonObject *server = dr_json_obj(options, "server");

  if (source->kind != DR_TARGET_NBD)
    return options;
  json_object_set_int_member(options, "reconnect-delay", RECONNECT_S);
  if (g_str_equal(dr_json_str(server, "type", ""), "inet"))
    json_object_set_boolean_member(server, "keep-alive", TRUE);
  return options;
}

char *
dr_stream_source_name(const DrStreamSource *source, GError **error)
{
  g_autoptr(JsonObject) options = json_object_new();
  g_autofree char *json = NULL;
  g_autofree char *name = NULL;

  if (!is_remote(source))
    return g_strdup(source->text);
  json_object_set_string_member(options, "driver", source->format);
  json_object_set_object_member(options, "file", lasting(source));
  if (g_str_equal(source->format, "qcow2") || g_str_equal(source->format, "qed"))
    json_object_set_null_member(options, "backing"); /* whatever the server puts there later */
  json = dr_json_print_object(options, FALSE);
  name = g_strconcat("json:", json, NULL);
  if (strlen(name) <= NAME_MAX_BYTES)
    return g_steal_pointer(&name);
  refuse(source, "has a name that is too long for the header of an image", "give it a shorter one", error);
  return NULL;
}

/* What tells one source from another; not how it is read. (transfer full) */
static char *
key_of(JsonObject *protocol)
{
  static const char *const members[] = { "driver",      "url",         "filename",    "export",
                                         "server.type", "server.path", "server.host", "server.port" };
  GString *key = g_string_new(NULL);

  for (guint i = 0; i < G_N_ELEMENTS(members); i++)
    g_string_append_printf(key, "%s\n", dr_json_str(protocol, members[i], ""));
  return g_string_free(key, FALSE);
}

/* The protocol node that a header's backing name means; NULL: it cannot be told. (transfer full) */
static JsonObject *
parse_name(const char *name, const char *dir)
{
  g_autofree char *path = NULL;
  g_autoptr(JsonObject) object = NULL;
  DrTargetKind kind;

  if (g_str_has_prefix(name, "json:")) {
    object = dr_json_parse_object(name + strlen("json:"), -1, INFO_MAX, NULL);
    return object && dr_json_obj(object, "file") ? json_object_ref(dr_json_obj(object, "file"))
                                                 : g_steal_pointer(&object);
  }
  if (name[strcspn(name, ":/")] != ':')
    name = path = g_canonicalize_filename(name, dir);
  return dr_target_parse_options(name, &kind, NULL);
}

gboolean
dr_stream_source_is(const DrStreamSource *source, const char *name, const char *dir)
{
  g_autoptr(JsonObject) other = parse_name(name, dir);
  g_autofree char *mine = key_of(source->protocol);
  g_autofree char *theirs = other ? key_of(other) : NULL;

  if (!is_remote(source) && other && dr_json_str(other, "filename", NULL))
    return dr_same_file(source->text, dr_json_str(other, "filename", ""), dir);
  return g_strcmp0(mine, theirs) == 0;
}
