/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Is an image on the other host the same file, or only one of the same name? A file with a random name beside it shows. */
#include "base/fd.h"
#include "job/move-spec.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PREFIX ".drover-"

/* Of the file itself, where `path` is a link to it. */
static char *
directory_of(const char *path)
{
  g_autofree char *whole = realpath(path, NULL);

  return g_path_get_dirname(whole ? whole : path);
}

/* Of the file itself, too: two files of one directory are not one. (transfer full) */
static char *
name_of(const char *path)
{
  g_autofree char *whole = realpath(path, NULL);

  return g_path_get_basename(whole ? whole : path);
}

/* Bytes; -1: it has none that could be told. */
static gint64
size_of(const char *path, const struct stat *st)
{
  dr_autofd int fd = S_ISBLK(st->st_mode) ? open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK) : -1;

  if (S_ISREG(st->st_mode))
    return st->st_size;
  return fd >= 0 ? (gint64)lseek(fd, 0, SEEK_END) : -1;
}

/* A token is put once into each directory. NULL: it cannot be written there. (transfer none) */
static const char *
token_in(GHashTable *tokens, const char *dir, GPtrArray *files)
{
  g_autofree char *name = NULL, *path = NULL;
  const char *known = g_hash_table_lookup(tokens, dir);

  if (known)
    return known;
  name = g_strdup_printf(PREFIX "%08x%08x", g_random_int(), g_random_int());
  path = g_build_filename(dir, name, NULL);
  if (!dr_file_write(path, name, NULL))
    return NULL;
  g_ptr_array_add(files, g_steal_pointer(&path));
  g_hash_table_insert(tokens, g_strdup(dir), name);
  return g_steal_pointer(&name);
}

JsonArray *
dr_move_tokens_make(const DrInventory *inventory, const char *cwd, GPtrArray **ret_tokens)
{
  g_autoptr(GHashTable) tokens = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
  g_autoptr(GPtrArray) paths = dr_inventory_files(inventory, cwd);
  JsonArray *disks = json_array_new();

  *ret_tokens = g_ptr_array_new_with_free_func(g_free);
  for (guint i = 0; i < paths->len; i++) {
    const char *path = paths->pdata[i];
    g_autofree char *dir = directory_of(path);
    struct stat st;
    gboolean there = stat(path, &st) == 0;
    const char *token = there && S_ISREG(st.st_mode) ? token_in(tokens, dir, *ret_tokens) : NULL;
    JsonObject *disk = dr_json("{'path': <%s>, 'size': <%x>}", path, there ? size_of(path, &st) : (gint64)-1);

    if (token) {
      g_autofree char *name = name_of(path);

      json_object_set_string_member(disk, "token", token);
      json_object_set_string_member(disk, "name", name);
    }
    json_array_add_object_element(disks, disk);
  }
  return disks;
}

void
dr_move_tokens_free(GPtrArray *tokens)
{
  for (guint i = 0; tokens && i < tokens->len; i++)
    unlink(tokens->pdata[i]);
  g_clear_pointer(&tokens, g_ptr_array_unref);
}

/* An older droverd does not say the file's name. */
static gboolean
token_is_there(JsonObject *disk, const char *path, const char *token)
{
  g_autofree char *dir = directory_of(path);
  g_autofree char *file = g_build_filename(dir, token, NULL);
  g_autofree char *name = name_of(path);

  return g_str_equal(dr_json_str(disk, "name", name), name) && g_str_has_prefix(token, PREFIX) &&
         !strchr(token, '/') && access(file, F_OK) == 0;
}

static void
add_blocker(DrFindings *findings, const char *code, const char *path, const char *why)
{
  dr_findings_add(findings, DR_FINDING_BLOCKER, code,
                  "put the image on storage that both hosts have (under another name: --map disk=PATH:PATH)",
                  "image '%s' is %s", path, why);
}

gboolean
dr_move_tokens_is_same(JsonObject *disk)
{
  const char *path = dr_json_str(disk, "path", "?"), *token = dr_json_str(disk, "token", NULL);
  struct stat st;

  return token && stat(path, &st) == 0 && token_is_there(disk, path, token);
}

/* "copy": it is made here; "base": its contents are the same by the user's word. */
static void
check_disk(JsonObject *disk, DrFindings *findings)
{
  const char *path = dr_json_str(disk, "path", "?"), *role = dr_json_str(disk, "role", "");
  const char *token = dr_json_str(disk, "token", NULL);
  struct stat st;

  if (g_str_equal(role, "copy"))
    return;
  if (g_str_equal(role, "base") && stat(path, &st) == 0)
    return;
  if (stat(path, &st) < 0) {
    g_autofree char *why = g_strdup_printf("not on the other host: %s", g_strerror(errno));

    add_blocker(findings, "disk-missing", path, why);
  } else if (token ? !token_is_there(disk, path, token)
                   : dr_json_int(disk, "size", -1) != size_of(path, &st)) {
    add_blocker(findings, "disk-not-shared", path, "another file on the other host than here");
  } else if (!token) {
    dr_findings_add(findings, DR_FINDING_WARNING, "disk-unproven",
                    "see that it is: the guest would go on with another disk",
                    "whether image '%s' is the same one on both hosts cannot be told: %s", path,
                    S_ISREG(st.st_mode) ? "nothing can be written beside it" : "it is no file");
  }
}

void
dr_move_tokens_check(JsonArray *disks, DrFindings *findings)
{
  for (guint i = 0; disks && i < json_array_get_length(disks); i++)
    check_disk(json_array_get_object_element(disks, i), findings);
}
