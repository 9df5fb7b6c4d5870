/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Directories and programs for the tests of keys and certificates. */
#include "test-pki-util.h"

#include <glib/gstdio.h>
#include <string.h>
#include <sys/wait.h>

const char *const test_addresses[] = { "10.0.0.2", "2001:DB8::7", "host2", NULL };

char *
at(const char *dir, const char *name)
{
  return g_build_filename(dir, name, NULL);
}

char *
read_all(const char *path)
{
  char *text = NULL;
  g_autoptr(GError) error = NULL;

  g_file_get_contents(path, &text, NULL, &error);
  g_assert_no_error(error);
  return text;
}

void
write_all_of(const char *path, const char *text)
{
  g_assert_true(g_file_set_contents(path, text, -1, NULL));
}

/* The program's standard error goes where its output goes, by the shell. */
int
run_program(const char *const *argv, const char *input, char **ret_out)
{
  g_autoptr(GStrvBuilder) builder = g_strv_builder_new();
  g_autoptr(GError) error = NULL;
  g_autofree char *out = NULL;
  g_auto(GStrv) words = NULL;
  g_autofree char *path = NULL;
  int status = 0;

  g_strv_builder_add_many(builder, "timeout", "20", "sh", "-c", "in=$1; shift; exec \"$@\" <\"$in\" 2>&1",
                          "sh", NULL);
  if (input) {
    close(g_file_open_tmp("drover-pki-XXXXXX", &path, NULL));
    write_all_of(path, input);
  }
  g_strv_builder_add(builder, path ? path : "/dev/null");
  g_strv_builder_addv(builder, (const char **)argv);
  words = g_strv_builder_end(builder);
  g_spawn_sync("/", words, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, &out, NULL, &status, &error);
  g_assert_no_error(error);
  if (path)
    g_unlink(path);
  if (ret_out)
    *ret_out = g_steal_pointer(&out);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

gboolean
have(const char *program)
{
  g_autofree char *path = g_find_program_in_path(program);
  g_autofree char *why = g_strdup_printf("no %s", program);

  if (!path)
    g_test_skip(why);
  return path != NULL;
}

DrPkiRequest
request_of(const Pki *pki)
{
  return (DrPkiRequest){ .dir = pki->ca, .host = "host2", .addresses = test_addresses, .out = pki->host };
}

void
pki_set_up(Pki *pki, gconstpointer unused)
{
  g_autoptr(GError) error = NULL;
  DrPkiRequest request;

  pki->dir = g_dir_make_tmp("drover-pki-XXXXXX", NULL);
  pki->ca = at(pki->dir, "ca");
  pki->host = at(pki->dir, "host2");
  dr_pki_init(pki->ca, "the CA", 30, &error);
  g_assert_no_error(error);
  request = request_of(pki);
  dr_pki_issue(&request, &error);
  g_assert_no_error(error);
}

static void
remove_tree(const char *path)
{
  g_autoptr(GDir) dir = g_file_test(path, G_FILE_TEST_IS_SYMLINK) ? NULL : g_dir_open(path, 0, NULL);
  const char *name;

  while (dir && (name = g_dir_read_name(dir))) {
    g_autofree char *inner = at(path, name);

    remove_tree(inner);
  }
  g_assert_cmpint(g_remove(path), ==, 0);
}

void
pki_tear_down(Pki *pki, gconstpointer unused)
{
  remove_tree(pki->dir);
  g_free(pki->dir);
  g_free(pki->ca);
  g_free(pki->host);
}
