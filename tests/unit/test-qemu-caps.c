/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What QEMU binaries, and things that are none, answer to the probe. */
#include "test-qemu-util.h"
#include "qemu/caps.h"

#include <string.h>
#include <sys/stat.h>

static void
check_has(GHashTable *set, const char *name)
{
  if (!g_hash_table_contains(set, name))
    g_error("'%s' is missing", name);
}

static void
check_caps(const DrCaps *caps, const char *version)
{
  g_autofree char *prefix = g_strconcat(version, ".", NULL);
  g_autofree char *q35 = g_strconcat("pc-q35-", version, NULL);
  g_autofree char *i440fx = g_strconcat("pc-i440fx-", version, NULL);

  g_assert_true(g_path_is_absolute(caps->binary));
  g_assert_true(g_str_has_prefix(caps->version, prefix));
  g_assert_cmpint(caps->version_number / 1000, ==, atoi(version) * 1000 + atoi(strchr(version, '.') + 1));
  g_assert_cmpstr(g_hash_table_lookup(caps->machines, "q35"), ==, q35);
  g_assert_cmpstr(g_hash_table_lookup(caps->machines, q35), ==, q35);
  g_assert_cmpstr(g_hash_table_lookup(caps->machines, "pc"), ==, i440fx);
  g_assert_cmpstr(g_hash_table_lookup(caps->machines, "pc-q35-5.2"), ==, "pc-q35-5.2");
  g_assert_null(g_hash_table_lookup(caps->machines, "pc-q35-99.0"));
  g_assert_cmpstr(g_hash_table_lookup(caps->default_ram_ids, q35), ==, "pc.ram");
  g_assert_cmpstr(g_hash_table_lookup(caps->default_ram_ids, "microvm"), ==, "microvm.ram");
  check_has(caps->cpus, "qemu64");
  check_has(caps->cpus, "EPYC");
  check_has(caps->commands, "migrate-recover");
  check_has(caps->migration_caps, "x-ignore-shared");
  check_has(caps->migration_caps, "postcopy-ram");
  if (caps->devices)
    check_has(caps->devices, "virtio-net-pci");
  else
    g_test_message("QEMU %s: the devices are not known", version);
  g_assert_true(caps->kvm_built_in);
  g_assert_cmpint(caps->kvm, ==, access("/dev/kvm", R_OK | W_OK) == 0);
}

static void
test_version(gconstpointer data)
{
  const char *version = data;
  auto_tmp char *dir = tmp_new();
  g_autofree char *binary = qemu_find(version);
  g_autoptr(GError) error = NULL;
  g_autoptr(DrCaps) caps = NULL, again = NULL;
  gint64 begin = g_get_monotonic_time(), middle;

  if (!binary) {
    g_test_skip("this QEMU is not here: tests/tools/fetch-qemu brings it");
    return;
  }
  caps = dr_caps_get(binary, dir, &error);
  g_assert_no_error(error);
  middle = g_get_monotonic_time();
  again = dr_caps_get(binary, dir, &error);
  g_test_message("QEMU %s: probe %d us, again %d us", caps->version, (int)(middle - begin),
                 (int)(g_get_monotonic_time() - middle));
  g_assert_true(again == caps);
  check_caps(caps, version);
}

/* A copy of the installed QEMU, by a hard name of its own so that the cache in memory does not know it. */
static char *
link_qemu(const char *dir)
{
  g_autofree char *qemu = qemu_find("7.2");
  char *path = g_build_filename(dir, "qemu-system-x86_64", NULL);

  if (!qemu || symlink(qemu, path) < 0)
    g_clear_pointer(&path, g_free);
  return path;
}

static guint
count_files(const char *dir, char **ret_path)
{
  g_autoptr(GDir) open_dir = g_dir_open(dir, 0, NULL);
  const char *name;
  guint n = 0;

  while (open_dir && (name = g_dir_read_name(open_dir))) {
    n++;
    g_free(*ret_path);
    *ret_path = g_build_filename(dir, name, NULL);
  }
  return n;
}

static int
compare_sets(GHashTable *a, GHashTable *b)
{
  GHashTableIter iter;
  gpointer key, value;

  if (!a || !b || g_hash_table_size(a) != g_hash_table_size(b))
    return a == b ? 0 : 1;
  g_hash_table_iter_init(&iter, a);
  while (g_hash_table_iter_next(&iter, &key, &value))
    if (g_strcmp0(value, g_hash_table_lookup(b, key)) != 0 && key != value)
      return 1;
  return 0;
}

/* A second process: what it reads from the file must be what was asked. */
static void
check_from_file(void)
{
  const char *binary = g_getenv("TEST_BINARY"), *dir = g_getenv("TEST_CACHE");
  g_autoptr(DrCaps) stored = NULL, asked = NULL;
  gint64 begin = g_get_monotonic_time();

  stored = dr_caps_get(binary, dir, NULL);
  g_print("from the file in %d us\n", (int)(g_get_monotonic_time() - begin));
  g_assert_cmpint(g_get_monotonic_time() - begin, <, 1000000);
  g_autofree char *other = g_strconcat(g_getenv("TEST_BINARY"), "-2", NULL);
  asked = dr_caps_get(other, NULL, NULL);
  g_assert_cmpstr(stored->version, ==, asked->version);
  g_assert_cmpint(stored->version_number, ==, asked->version_number);
  g_assert_cmpint(stored->kvm, ==, asked->kvm);
  g_assert_cmpint(compare_sets(stored->machines, asked->machines), ==, 0);
  g_assert_cmpint(compare_sets(stored->default_ram_ids, asked->default_ram_ids), ==, 0);
  g_assert_cmpint(compare_sets(stored->devices, asked->devices), ==, 0);
  g_assert_cmpint(compare_sets(stored->cpus, asked->cpus), ==, 0);
  g_assert_cmpint(compare_sets(stored->commands, asked->commands), ==, 0);
  g_assert_cmpint(compare_sets(stored->migration_caps, asked->migration_caps), ==, 0);
}

static void
test_file(void)
{
  auto_tmp char *dir = tmp_new();
  g_autofree char *cache = g_build_filename(dir, "new", "cache", NULL);
  g_autofree char *binary = link_qemu(dir);
  g_autofree char *second = g_strconcat(binary ? binary : "", "-2", NULL);
  g_autofree char *file = NULL, *self = g_file_read_link("/proc/self/exe", NULL), *output = NULL;
  g_autoptr(DrCaps) caps = NULL;
  int status;

  if (!binary) {
    g_test_skip("no qemu-system-x86_64 is installed");
    return;
  }
  g_assert_cmpint(symlink("qemu-system-x86_64", second), ==, 0);
  caps = dr_caps_get(binary, cache, NULL);
  g_assert_nonnull(caps);
  g_assert_cmpuint(count_files(cache, &file), ==, 1);
  g_setenv("TEST_BINARY", binary, TRUE);
  g_setenv("TEST_CACHE", cache, TRUE);
  char *argv[] = { self, (char *)"--from-file", NULL };
  g_assert_true(g_spawn_sync(NULL, argv, NULL, G_SPAWN_DEFAULT, NULL, NULL, &output, NULL, &status, NULL));
  g_test_message("%s", g_strchomp(output));
  g_assert_cmpint(status, ==, 0);

  /* Rubbish in its place is a file that is not there. */
  g_assert_true(g_file_set_contents(file, "{\"key\":[[[", -1, NULL));
  g_assert_true(
      g_spawn_sync(NULL, argv, NULL, G_SPAWN_STDOUT_TO_DEV_NULL, NULL, NULL, NULL, NULL, &status, NULL));
  g_assert_cmpint(status, ==, 0);
}

/* The same path, another program. */
static void
test_replaced(void)
{
  auto_tmp char *dir = tmp_new();
  g_autofree char *binary = link_qemu(dir);
  g_autoptr(DrCaps) caps = NULL;
  g_autoptr(GError) error = NULL;

  if (!binary) {
    g_test_skip("no qemu-system-x86_64 is installed");
    return;
  }
  caps = dr_caps_get(binary, NULL, &error);
  g_assert_no_error(error);
  unlink(binary);
  g_assert_cmpint(symlink("/bin/true", binary), ==, 0);
  g_assert_null(dr_caps_get(binary, NULL, &error));
  assert_error(&error, DR_ERROR_INVALID, "does not behave like a QEMU");
}

static void
test_in_path(void)
{
  g_autofree char *binary = qemu_find("7.2");
  g_autoptr(GError) error = NULL;
  g_autoptr(DrCaps) caps = NULL;

  if (!binary) {
    g_test_skip("no qemu-system-x86_64 is installed");
    return;
  }
  caps = dr_caps_get("qemu-system-x86_64", NULL, &error);
  g_assert_no_error(error);
  g_assert_cmpstr(caps->binary, ==, binary);
}

static void
check_refused(const char *binary, DrErrorCode code, const char *words)
{
  g_autoptr(GError) error = NULL;

  g_assert_null(dr_caps_get(binary, NULL, &error));
  g_assert_nonnull(error);
  g_assert_nonnull(dr_error_get_remedy(error));
  assert_error(&error, code, words);
}

static void
test_refusals(void)
{
  auto_tmp char *dir = tmp_new();
  g_autofree char *text = tmp_file(dir, "text", "hello\n", 0644);
  g_autofree char *rubbish = tmp_file(dir, "rubbish", "hello\n", 0755);
  g_autofree char *bad = tmp_file(dir, "bad", "#!/no/such/shell\n", 0755);
  g_autofree char *talker =
      tmp_file(dir, "talker", "#!/bin/sh\necho; echo 'who are \377 you?'; exit 1\n", 0755);
  g_autofree char *qmp = tmp_file(dir, "qmp", "#!/bin/sh\necho rubbish >&3; exec sleep 1000\n", 0755);
  g_autofree char *old = tmp_file(
      dir, "old",
      "#!/bin/sh\necho '{\"QMP\":{\"version\":{\"qemu\":{\"major\":4,\"minor\":2,\"micro\":1}}}}' >&3\n"
      "read x <&3; echo '{\"return\":{},\"id\":1}' >&3; exec sleep 1000\n",
      0755);
  g_autofree char *silent = tmp_file(dir, "silent", "#!/bin/sh\nexec 3>&-; exec sleep 1000\n", 0755);
  g_autofree char *img = g_find_program_in_path("qemu-img");

  check_refused("/no/such/qemu", DR_ERROR_NOT_FOUND, "there is no such file");
  check_refused("no-such-qemu", DR_ERROR_NOT_FOUND, "in no directory of PATH");
  check_refused(dir, DR_ERROR_INVALID, "is a directory");
  check_refused(text, DR_ERROR_INVALID, "Permission denied");
  check_refused(rubbish, DR_ERROR_INVALID, "neither a program");
  check_refused(bad, DR_ERROR_INVALID, "interpreter");
  check_refused("/bin/true", DR_ERROR_INVALID, "it prints nothing");
  check_refused("/bin/cat", DR_ERROR_INVALID, "it says: /bin/cat: invalid option");
  check_refused(talker, DR_ERROR_INVALID, "it says: who are \xef\xbf\xbd you?");
  check_refused(qmp, DR_ERROR_INVALID, "does not behave like a QEMU");
  check_refused(silent, DR_ERROR_INVALID, "does not behave like a QEMU");
  check_refused(old, DR_ERROR_UNSUPPORTED, "is QEMU 4.2.1");
  if (img)
    check_refused(img, DR_ERROR_UNSUPPORTED, "is not a system emulator");
}

/* Whether a process has this word on its command line. */
static gboolean
is_running(const char *word)
{
  g_autoptr(GDir) proc = g_dir_open("/proc", 0, NULL);
  const char *name;

  while ((name = g_dir_read_name(proc))) {
    pid_t pid = atoi(name);
    g_auto(GStrv) words = pid > 0 ? dr_proc_cmdline(pid, NULL) : NULL;

    if (words && g_strv_contains((const char *const *)words, word))
      return TRUE;
  }
  return FALSE;
}

/* The script's child, too, is gone; and one that fills its stdout does not fill ours. */
static void
test_sleeper(void)
{
  auto_tmp char *dir = tmp_new();
  g_autofree char *mark = g_strdup_printf("1000.%d", getpid());
  g_autofree char *script = g_strdup_printf("#!/bin/sh\nsleep %s &\nwhile :; do echo rubbish; done\n", mark);
  g_autofree char *sleeper = tmp_file(dir, "sleeper", script, 0755);
  gint64 begin = g_get_monotonic_time();

  check_refused(sleeper, DR_ERROR_TIMEOUT, "did not answer as a QEMU within 10 s: it says: rubbish");
  g_assert_cmpint((g_get_monotonic_time() - begin) / 1000, <, DR_CAPS_PROBE_MS + 2000);
  wait_until(!is_running(mark));
  wait_until(!is_running(sleeper));
}

static gpointer
get_caps(gpointer binary)
{
  return dr_caps_get(binary, NULL, NULL);
}

/* Eight threads, one probe: the wrapper counts how often it is run. */
static void
test_threads(void)
{
  auto_tmp char *dir = tmp_new();
  g_autofree char *qemu = qemu_find("7.2");
  g_autofree char *count = g_build_filename(dir, "count", NULL);
  g_autofree char *text = g_strdup_printf("#!/bin/sh\necho x >>'%s'\nexec '%s' \"$@\"\n", count, qemu);
  g_autofree char *wrapper = tmp_file(dir, "wrapper", text, 0755);
  g_autofree char *counted = NULL;
  GThread *threads[8];

  if (!qemu) {
    g_test_skip("no qemu-system-x86_64 is installed");
    return;
  }
  for (guint i = 0; i < 8; i++)
    threads[i] = g_thread_new("caps", get_caps, wrapper);
  for (guint i = 0; i < 8; i++) {
    g_autoptr(DrCaps) caps = g_thread_join(threads[i]);

    g_assert_nonnull(caps);
  }
  g_assert_true(g_file_get_contents(count, &counted, NULL, NULL));
  g_assert_cmpstr(counted, ==, "x\n");
}

/* All who ask at once get the error, and each a copy of its own. */
static void
test_threads_refused(void)
{
  auto_tmp char *dir = tmp_new();
  g_autofree char *script = tmp_file(dir, "no", "#!/bin/sh\nsleep 0.2; exit 1\n", 0755);
  GThread *threads[8];

  for (guint i = 0; i < 8; i++)
    threads[i] = g_thread_new("caps", get_caps, script);
  for (guint i = 0; i < 8; i++)
    g_assert_null(g_thread_join(threads[i]));
}

int
main(int argc, char **argv)
{
  if (argc == 2 && g_str_equal(argv[1], "--from-file")) {
    check_from_file();
    return 0;
  }
  g_test_init(&argc, &argv, NULL);
  g_test_add_data_func("/qemu/caps/5.2", "5.2", test_version);
  g_test_add_data_func("/qemu/caps/7.2", "7.2", test_version);
  g_test_add_data_func("/qemu/caps/10.0", "10.0", test_version);
  g_test_add_data_func("/qemu/caps/11.1", "11.1", test_version);
  g_test_add_func("/qemu/caps/file", test_file);
  g_test_add_func("/qemu/caps/replaced", test_replaced);
  g_test_add_func("/qemu/caps/in-path", test_in_path);
  g_test_add_func("/qemu/caps/refusals", test_refusals);
  g_test_add_func("/qemu/caps/sleeper", test_sleeper);
  g_test_add_func("/qemu/caps/threads", test_threads);
  g_test_add_func("/qemu/caps/threads-refused", test_threads_refused);
  return g_test_run();
}
