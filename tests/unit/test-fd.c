/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What others may own is neither followed nor trusted. */
#include "base/error.h"
#include "base/fd.h"

#include <glib/gstdio.h>
#include <sys/socket.h>
#include <sys/stat.h>

static char *
make_dir(const char *in, const char *name)
{
  char *path = g_build_filename(in, name, NULL);

  g_assert_cmpint(g_mkdir(path, 0700), ==, 0);
  return path;
}

static void
write_file(const char *in, const char *name)
{
  g_autofree char *path = g_build_filename(in, name, NULL);

  g_assert_true(g_file_set_contents(path, "x", 1, NULL));
}

static gboolean
exists(const char *in, const char *name)
{
  g_autofree char *path = g_build_filename(in, name, NULL);

  return g_file_test(path, G_FILE_TEST_EXISTS);
}

static void
test_remove_tree(void)
{
  g_autofree char *top = g_dir_make_tmp("drover-XXXXXX", NULL);
  g_autofree char *outside = make_dir(top, "outside"), *tree = make_dir(top, "tree");
  g_autofree char *deep = make_dir(tree, "deep"), *deeper = make_dir(deep, "deeper");
  g_autofree char *link = g_build_filename(deeper, "link", NULL);
  g_autofree char *other = g_build_filename(top, "other", NULL);

  write_file(outside, "kept");
  write_file(tree, "a");
  write_file(deeper, "b");
  g_assert_cmpint(symlink(outside, link), ==, 0);
  g_assert_cmpint(symlink(outside, other), ==, 0);
  dr_remove_tree(tree);
  g_assert_false(exists(top, "tree"));
  dr_remove_tree(other); /* the link, not what it names */
  g_assert_false(exists(top, "other"));
  g_assert_true(exists(outside, "kept"));
  dr_remove_tree(tree); /* once more: it is not there */
  dr_remove_tree(top);
  g_assert_false(g_file_test(top, G_FILE_TEST_EXISTS));
}

static void
test_sockets(void)
{
  g_autofree char *top = g_dir_make_tmp("drover-XXXXXX", NULL);
  g_autofree char *path = g_build_filename(top, "socket", NULL), *link = g_build_filename(top, "link", NULL);
  g_autofree char *file = g_build_filename(top, "file", NULL);
  g_autoptr(GError) error = NULL;
  dr_autofd int listener = -1, client = -1;
  struct stat st;

  umask(077);
  listener = dr_unix_listen_for_all(path, 0, 1, &error);
  g_assert_no_error(error);
  g_assert_cmpint(stat(path, &st), ==, 0);
  g_assert_cmpint(st.st_mode & 0777, ==, 0666);
  client = dr_unix_connect_here(path, 0, &error);
  g_assert_no_error(error);
  g_assert_cmpint(client, >=, 0);
  g_assert_cmpint(symlink(path, link), ==, 0);
  g_assert_cmpint(dr_unix_connect_here(link, 0, &error), ==, -1);
  g_assert_error(error, DR_ERROR, DR_ERROR_IO);
  g_clear_error(&error);
  write_file(top, "file");
  g_assert_cmpint(dr_unix_connect_here(file, 0, &error), ==, -1);
  g_clear_error(&error);
  g_assert_cmpint(dr_unix_connect_here("/nonexistent/socket", 0, &error), ==, -1);
  g_assert_nonnull(error);
  dr_remove_tree(top);
}

int
main(int argc, char **argv)
{
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/fd/remove-tree", test_remove_tree);
  g_test_add_func("/fd/sockets", test_sockets);
  return g_test_run();
}
