/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* QEMU's command line as data: parsed without loss, looked up by option, changed, and printed again.
 *
 *   g_autoptr(DrArgv) argv = dr_argv_parse(words, error);
 *   DrOpt *machine = dr_argv_find(argv, "machine", 0);         // -M, --machine and -machine alike
 *   g_autoptr(DrOpts) opts = dr_opt_parse(machine, error);
 *   dr_opts_set(opts, "type", "pc-q35-7.2");
 *   dr_opt_set_opts(machine, opts);
 *   g_auto(GStrv) changed = dr_argv_to_strv(argv);
 *
 * An untouched command line comes back word for word. Rules: QEMU 5.2 to 11.1, lookup_opt() in vl.c: an
 * option starts with '-' or '--', its argument is the next word whatever it looks like, any other word is a
 * disk image (-hda), and there is no `-option=value`.
 */
#pragma once
#include "argv/chardev.h"
#include "argv/options.h"
#include "argv/opts.h"

typedef struct _DrArgv DrArgv;

/* One option. Read the fields, change by the functions. */
typedef struct {
  const DrOptInfo *info; /* never NULL; info->name is the canonical name, "hda" for a bare disk image */
  char *spelling;        /* the word as it was written: "-m", "--machine", "-M"; NULL for a bare disk image */
  char *value;           /* the next word, raw; NULL where the option takes none */
} DrOpt;

/* Parses NULL-terminated `words`, words[0] being the program or what launches it.
 *
 * Words before the program (the launcher) are told from it by the first word: an ld.so
 * (`/lib64/ld-linux-x86-64.so.2 --library-path X PROGRAM`, which is what /proc/PID/cmdline shows of such a
 * VM) and env are read with their own options; behind nice, ionice, taskset, numactl, setpriv, prlimit, chrt,
 * stdbuf, nohup, setsid, cgexec, ip, unshare, nsenter, sudo and the like the program is the first word that
 * is called qemu-system-*, qemu-kvm, kvm or qemu. Anything else as first word is the program itself.
 *
 * Returns: (transfer full): NULL with DR_ERROR_INVALID and a message that names the word, words[i] being word
 * i: "unknown option '-foo' (word 7)", "option '-m' (word 9) needs a value", "no program behind
 * 'taskset'". */
DrArgv *dr_argv_parse(const char *const *words, GError **error);

/* A command line with no options. `program`: a path or name. Returns: (transfer full). */
DrArgv *dr_argv_new(const char *program);
DrArgv *dr_argv_copy(const DrArgv *argv);
void dr_argv_free(DrArgv *argv);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrArgv, dr_argv_free)

/* The words again, launcher first. Returns: (transfer full): g_strfreev(). */
char **dr_argv_to_strv(const DrArgv *argv);

/* For a reader and for a shell: words quoted for sh(1) where they need it. With `lines` one option a line, a
 * backslash before the newline. Returns: (transfer full). */
char *dr_argv_quote_shell(const DrArgv *argv, gboolean lines);

/* Returns: (transfer none): the words before the program, an empty array if there are none. */
const char *const *dr_argv_launcher(const DrArgv *argv);
/* Replaces them; NULL or an empty array removes them. Copies `words`. */
void dr_argv_set_launcher(DrArgv *argv, const char *const *words);

const char *dr_argv_program(const DrArgv *argv);
void dr_argv_set_program(DrArgv *argv, const char *program);

/* The options in their order, from 0. dr_argv_opt() returns (transfer none); a DrOpt lives until it is
 * removed. */
guint dr_argv_n(const DrArgv *argv);
DrOpt *dr_argv_opt(const DrArgv *argv, guint i);

/* The n-th (from 0) option called `name`, in any spelling; "hda" finds bare images too.
 * Returns: (transfer none) (nullable). An unknown `name` finds nothing. */
DrOpt *dr_argv_find(const DrArgv *argv, const char *name, guint n);
/* The last one, which is the one that counts for DR_REPEAT_LAST options. */
DrOpt *dr_argv_find_last(const DrArgv *argv, const char *name);
/* The option called `name` after `previous` (NULL: the first): for (o = NULL; (o = dr_argv_next(a, n, o));).
 * With `name` NULL every option. Returns: (transfer none) (nullable). */
DrOpt *dr_argv_next(const DrArgv *argv, const char *name, const DrOpt *previous);
guint dr_argv_count(const DrArgv *argv, const char *name);
static inline gboolean
dr_argv_has(const DrArgv *argv, const char *name)
{
  return dr_argv_find(argv, name, 0) != NULL;
}

/* The option `name` whose sub-option id= (node-name= of -blockdev) is `id`; options whose value
 * does not parse are passed over. Returns: (transfer none) (nullable). */
DrOpt *dr_argv_find_id(const DrArgv *argv, const char *name, const char *id);

/* What QEMU makes of all occurrences of a keyval option: for DR_REPEAT_MERGE their keys put together, later
 * ones winning; else the last one. Returns: (transfer full) (nullable): NULL without an error if the option
 * is not there. */
DrOpts *dr_argv_effective(const DrArgv *argv, const char *name, GError **error);

/* Adds an option. `name` is the spelling without dashes ("m", "M"; one dash is written before it) or with
 * ("--m"). `value` must be NULL exactly if the option takes no argument. Both are copied. An unknown name or
 * a wrong `value` is a programming error. `mark` must be in `argv`. Returns: (transfer none). */
DrOpt *dr_argv_append(DrArgv *argv, const char *name, const char *value);
DrOpt *dr_argv_insert_before(DrArgv *argv, const DrOpt *mark, const char *name, const char *value);
DrOpt *dr_argv_insert_after(DrArgv *argv, const DrOpt *mark, const char *name, const char *value);
/* The same at position `at` (0 is right behind the program, dr_argv_n() the end). */
DrOpt *dr_argv_insert(DrArgv *argv, guint at, const char *name, const char *value);

/* Removes and frees `opt`. */
void dr_argv_remove(DrArgv *argv, DrOpt *opt);
/* Removes every occurrence. Returns: how many there were. */
guint dr_argv_remove_all(DrArgv *argv, const char *name);

/* Replaces the raw value; only for an option with an argument. */
void dr_opt_set_value(DrOpt *opt, const char *value);
/* dr_opts_parse() of the option's value. */
DrOpts *dr_opt_parse(const DrOpt *opt, GError **error);
/* Prints `opts` into the option's value. */
void dr_opt_set_opts(DrOpt *opt, const DrOpts *opts);
/* dr_chardev_parse() of the option's value. */
DrChardev *dr_opt_parse_chardev(const DrOpt *opt, GError **error);

/* The options that a QEMU of that version column (dr_option_version_bit()) does not have.
 * Returns: (transfer container) (element-type DrOpt): the elements belong to `argv`. */
GPtrArray *dr_argv_unknown_to(const DrArgv *argv, DrQemuVersions version);
