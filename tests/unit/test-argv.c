/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The command line as data: round trips of real ones, the table of options, launchers, errors, changes.
 *
 * `test-argv --dump-options` prints the table for check-options.py: name, 0 or 1 for an argument, version
 * bits. */
#include "test-argv-util.h"

#include <stdio.h>

static void
check_round_trip(const char *name, const char *const *words)
{
  g_autoptr(GError) error = NULL;
  g_autoptr(DrArgv) argv = dr_argv_parse(words, &error), copy = NULL;
  g_auto(GStrv) printed = NULL, copied = NULL;

  g_test_message("%s", name);
  g_assert_no_error(error);
  printed = dr_argv_to_strv(argv);
  assert_words(printed, words);
  copy = dr_argv_copy(argv);
  g_clear_pointer(&argv, dr_argv_free);
  copied = dr_argv_to_strv(copy);
  assert_words(copied, words);
}

static void
check_values(const char *name, const char *const *words)
{
  g_autoptr(DrArgv) argv = dr_argv_parse(words, NULL);

  for (DrOpt *opt = NULL; (opt = dr_argv_next(argv, NULL, opt));) {
    g_autoptr(GError) error = NULL;
    g_autoptr(DrOpts) opts = NULL;
    g_autoptr(DrChardev) chardev = NULL;
    g_autofree char *printed = NULL;

    if (opt->info->kind == DR_VALUE_CHARDEV) {
      chardev = dr_opt_parse_chardev(opt, &error);
      g_assert_no_error(error);
    }
    if (opt->info->kind < DR_VALUE_KEYVAL || opt->info->kind == DR_VALUE_CHARDEV)
      continue;
    opts = dr_opt_parse(opt, &error);
    g_assert_no_error(error);
    printed = dr_opts_print(opts);
    g_assert_cmpstr(printed, ==, opt->value);
  }
}

static void
check_shell(const char *name, const char *const *words)
{
  g_autoptr(DrArgv) argv = dr_argv_parse(words, NULL);

  for (int lines = 0; lines < 2; lines++) {
    g_autofree char *text = dr_argv_quote_shell(argv, lines);
    g_auto(GStrv) back = NULL;
    g_autoptr(GError) error = NULL;

    g_shell_parse_argv(text, NULL, &back, &error);
    g_assert_no_error(error);
    assert_words(back, words);
  }
}

static void
test_files(void)
{
  g_assert_cmpuint(argv_data_for_each(check_round_trip), >=, 40);
  argv_data_for_each(check_values);
  argv_data_for_each(check_shell);
}

static void
test_table(void)
{
  gsize n;
  const DrOptInfo *table = dr_options_table(&n);

  for (gsize i = 0; i < n; i++) {
    g_assert_true(dr_option_lookup(table[i].name) == &table[i]);
    g_assert_true(i == 0 || strcmp(table[i - 1].name, table[i].name) < 0);
    g_assert_true(!table[i].alias || dr_option_lookup(table[i].alias) == &table[i]);
    g_assert_true(table[i].why && *table[i].why);
    g_assert_true(!table[i].implied || table[i].kind >= DR_VALUE_KEYVAL);
  }
  g_assert_true(dr_option_lookup("--machine") == dr_option_lookup("M"));
  g_assert_true(dr_option_lookup("-h") == dr_option_lookup("help"));
  g_assert_null(dr_option_lookup("---m"));
  g_assert_null(dr_option_lookup(""));
  g_assert_null(dr_option_lookup("--"));
  g_assert_null(dr_option_lookup("-Machine"));
  g_assert_null(dr_option_lookup("-machine=q35"));
}

static void
test_version_columns(void)
{
  g_assert_cmpint(dr_option_version_bit(4, 2), ==, DR_QEMU_5_2);
  g_assert_cmpint(dr_option_version_bit(5, 2), ==, DR_QEMU_5_2);
  g_assert_cmpint(dr_option_version_bit(7, 1), ==, DR_QEMU_5_2);
  g_assert_cmpint(dr_option_version_bit(7, 2), ==, DR_QEMU_7_2);
  g_assert_cmpint(dr_option_version_bit(9, 2), ==, DR_QEMU_7_2);
  g_assert_cmpint(dr_option_version_bit(10, 0), ==, DR_QEMU_10_0);
  g_assert_cmpint(dr_option_version_bit(12, 0), ==, DR_QEMU_11_1);
}

static void
test_unknown_to(void)
{
  g_autoptr(DrArgv) argv = argv_from_line("qemu -no-hpet -m 1G -run-with user=x -chroot /");
  g_autoptr(GPtrArray) old = dr_argv_unknown_to(argv, DR_QEMU_5_2),
                       new = dr_argv_unknown_to(argv, DR_QEMU_11_1);

  g_assert_cmpuint(old->len, ==, 1);
  g_assert_cmpstr(((DrOpt *)old->pdata[0])->info->name, ==, "run-with");
  g_assert_cmpuint(new->len, ==, 2);
  g_assert_cmpstr(((DrOpt *)new->pdata[0])->info->successor, ==, "-machine hpet=off");
}

static void
test_launchers(void)
{
  static const struct {
    const char *line, *program;
    guint launcher;
  } cases[] = {
    { "qemu-system-x86_64 -S", "qemu-system-x86_64", 0 },
    { "./custom-vmm -S", "./custom-vmm", 0 },
    { "/lib64/ld-linux-x86-64.so.2 --library-path /a:/b /opt/vmm -S", "/opt/vmm", 3 },
    { "/x/ld-2.31.so --argv0 q --inhibit-cache --preload p.so /opt/vmm -S", "/opt/vmm", 6 },
    { "env A=B /usr/bin/vmm -S", "/usr/bin/vmm", 2 },
    { "/usr/bin/env -i -u X C=D nice -n 5 kvm -S", "kvm", 8 },
    { "taskset 0x3 ionice -c2 qemu-kvm -S", "qemu-kvm", 4 },
    { "env LD_X=1 /y/ld-musl-x86_64.so.1 --library-path z qemu -S", "qemu", 5 },
  };

  for (gsize i = 0; i < G_N_ELEMENTS(cases); i++) {
    g_autoptr(DrArgv) argv = argv_from_line(cases[i].line);

    g_assert_cmpstr(dr_argv_program(argv), ==, cases[i].program);
    g_assert_cmpuint(g_strv_length((char **)dr_argv_launcher(argv)), ==, cases[i].launcher);
    g_assert_cmpuint(dr_argv_n(argv), ==, 1);
  }
}

static void
test_set_launcher(void)
{
  static const char *const words[] = { "env", "A=B", NULL };
  g_autoptr(DrArgv) argv = argv_from_line("taskset 1 qemu -S");
  g_autofree char *text = NULL, *bare = NULL;

  dr_argv_set_launcher(argv, words);
  dr_argv_set_program(argv, "/opt/my qemu");
  text = dr_argv_quote_shell(argv, FALSE);
  g_assert_cmpstr(text, ==, "env A=B '/opt/my qemu' -S");
  dr_argv_set_launcher(argv, NULL);
  bare = dr_argv_quote_shell(argv, TRUE);
  g_assert_cmpstr(bare, ==, "'/opt/my qemu' \\\n  -S");
}

static void
test_parse_errors(void)
{
  static const struct {
    const char *line, *message;
  } cases[] = {
    { "qemu -S -foo", "unknown option '-foo' (word 2)" },
    { "env A=B qemu -S -m 1 -foo", "unknown option '-foo' (word 6)" },
    { "qemu -S -m", "option '-m' (word 2) needs a value" },
    { "qemu --machine", "option '--machine' (word 1) needs a value" },
    { "qemu -machine=q35", "unknown option '-machine=q35' (word 1)" },
    { "qemu -", "unknown option '-' (word 1)" },
    { "qemu --", "unknown option '--' (word 1)" },
    { "qemu -snapshot=on", "unknown option '-snapshot=on' (word 1)" },
    { "env A=B", "no program behind 'env'" },
    { "taskset 0x1 ls", "no program behind 'taskset'" },
    { "ld-linux.so.2 --library-path", "no program behind 'ld-linux.so.2'" },
  };
  static const char *const empty[] = { NULL }, *const no_name[] = { "", "-S", NULL };
  g_autoptr(GError) error = NULL;

  for (gsize i = 0; i < G_N_ELEMENTS(cases); i++) {
    g_auto(GStrv) words = g_strsplit(cases[i].line, " ", -1);

    g_assert_null(dr_argv_parse((const char *const *)words, &error));
    assert_invalid(&error, cases[i].message);
  }
  g_assert_null(dr_argv_parse(empty, &error));
  assert_invalid(&error, "the command line has no program");
  g_assert_null(dr_argv_parse(no_name, NULL));
}

static void
test_find(void)
{
  g_autoptr(DrArgv) argv =
      argv_from_line("qemu a.img -M q35 -device x,id=d0 --machine usb=on -device y,id=d1 -hda b.img");
  g_autoptr(DrOpts) machine = NULL;

  g_assert_cmpuint(dr_argv_n(argv), ==, 6);
  g_assert_cmpuint(dr_argv_count(argv, "machine"), ==, 2);
  g_assert_cmpstr(dr_argv_find(argv, "M", 0)->value, ==, "q35");
  g_assert_cmpstr(dr_argv_find(argv, "-machine", 1)->spelling, ==, "--machine");
  g_assert_cmpstr(dr_argv_find_last(argv, "device")->value, ==, "y,id=d1");
  g_assert_null(dr_argv_find(argv, "device", 2));
  g_assert_null(dr_argv_find(argv, "no-such-option", 0));
  g_assert_null(dr_argv_opt(argv, 0)->spelling);
  g_assert_cmpuint(dr_argv_count(argv, "hda"), ==, 2);
  g_assert_true(dr_argv_find_id(argv, "device", "d1") == dr_argv_find(argv, "device", 1));
  g_assert_null(dr_argv_find_id(argv, "device", "d2"));
  g_assert_true(dr_argv_has(argv, "hda"));
  g_assert_false(dr_argv_has(argv, "kernel"));
}

static void
test_effective(void)
{
  g_autoptr(DrArgv) argv = argv_from_line("qemu -M q35,usb=on -machine pc,hpet=off -M usb=off -cpu max -cpu "
                                          "host,+avx -spice tls-channel=a,tls-channel=b");
  g_autoptr(DrOpts) machine = dr_argv_effective(argv, "machine", NULL),
                    cpu = dr_argv_effective(argv, "cpu", NULL);
  g_autoptr(DrOpts) none = dr_argv_effective(argv, "m", NULL);
  g_autofree char *machine_text = dr_opts_print(machine), *cpu_text = dr_opts_print(cpu);

  g_assert_cmpstr(machine_text, ==, "pc,usb=off,hpet=off");
  g_assert_cmpstr(cpu_text, ==, "host,+avx");
  g_assert_null(none);
}

static void
test_change(void)
{
  g_autoptr(DrArgv) argv = argv_from_line("qemu -M q35 -device a -device b -S");
  DrOpt *b = dr_argv_find(argv, "device", 1);
  g_autofree char *text = NULL;

  dr_argv_insert_before(argv, b, "chardev", "null,id=c");
  dr_argv_insert_after(argv, b, "--name", "x y");
  dr_argv_insert(argv, 0, "enable-kvm", NULL);
  dr_argv_append(argv, "incoming", "defer");
  dr_opt_set_value(dr_argv_find(argv, "M", 0), "pc");
  dr_argv_remove(argv, dr_argv_find(argv, "device", 0));
  g_assert_cmpuint(dr_argv_remove_all(argv, "S"), ==, 1);
  text = dr_argv_quote_shell(argv, FALSE);
  g_assert_cmpstr(text, ==,
                  "qemu -enable-kvm -M pc -chardev null,id=c -device b --name 'x y' -incoming defer");
}

/* Any bytes: what parses must come back the same, what does not must say why, and nothing may crash. */
static void
test_random(void)
{
  static const char *const pieces[] = {
    "-m",      "-device", "--name",   "a,,b",       "k=v",      ",",    "=",    "{\"driver\":\"x\"}",
    "{",       "[1,2]}",  "no",       "off",        "+avx",     "mon:", "tcp:", ":",
    "unix:/x", "-cpu",    "-global",  "a.b=c",      "\xff\xfe", "",     "\\",   "\"",
    "-S",      "-serial", "chardev:", "vc:80Cx24C",
  };
  g_autoptr(GRand) rand = g_rand_new_with_seed(4711);

  for (int round = 0; round < 20000; round++) {
    g_autoptr(GStrvBuilder) builder = g_strv_builder_new();
    g_auto(GStrv) words = NULL, printed = NULL;
    g_autoptr(GError) error = NULL;
    g_autoptr(DrArgv) argv = NULL;

    g_strv_builder_add(builder, "qemu");
    for (int n = g_rand_int_range(rand, 0, 8); n > 0; n--) {
      g_autoptr(GString) word = g_string_new(NULL);

      for (int k = g_rand_int_range(rand, 1, 4); k > 0; k--)
        g_string_append(word, pieces[g_rand_int_range(rand, 0, G_N_ELEMENTS(pieces))]);
      g_strv_builder_add(builder, word->str);
    }
    words = g_strv_builder_end(builder);
    argv = dr_argv_parse((const char *const *)words, &error);
    g_assert_true((argv == NULL) == (error != NULL));
    if (!argv)
      continue;
    printed = dr_argv_to_strv(argv);
    assert_words(printed, (const char *const *)words);
  }
}

static int
dump_options(void)
{
  gsize n;
  const DrOptInfo *table = dr_options_table(&n);

  for (gsize i = 0; i < n; i++) {
    printf("%s %d %d\n", table[i].name, dr_option_has_arg(&table[i]), table[i].versions);
    if (table[i].alias)
      printf("%s %d %d\n", table[i].alias, dr_option_has_arg(&table[i]), table[i].versions);
  }
  return 0;
}

int
main(int argc, char **argv)
{
  if (argc == 2 && g_str_equal(argv[1], "--dump-options"))
    return dump_options();
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/argv/files", test_files);
  g_test_add_func("/argv/table", test_table);
  g_test_add_func("/argv/version-columns", test_version_columns);
  g_test_add_func("/argv/unknown-to", test_unknown_to);
  g_test_add_func("/argv/launchers", test_launchers);
  g_test_add_func("/argv/set-launcher", test_set_launcher);
  g_test_add_func("/argv/errors", test_parse_errors);
  g_test_add_func("/argv/find", test_find);
  g_test_add_func("/argv/effective", test_effective);
  g_test_add_func("/argv/change", test_change);
  g_test_add_func("/argv/random", test_random);
  return g_test_run();
}
