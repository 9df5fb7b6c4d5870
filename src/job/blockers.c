/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Blockers that the command line names. */
#include "job/blockers.h"

#include <string.h>

#define RESTART "shut the guest down and start it without"

/* Options that stand in the way by themselves. */
static const struct {
  const char *option, *code, *why, *remedy;
} options[] = {
  { "readconfig", "readconfig", "what its file adds cannot be compared or rewritten",
    "write its contents out as options and start the guest with them" },
  { "snapshot", "snapshot", "the guest's writes are in temporary files that only the running QEMU has",
    RESTART " -snapshot" },
  { "curses", "curses", "it has the terminal that the running QEMU uses",
    "use -display none, VNC or -nographic" },
  { "virtfs", "virtio-9p", "a shared folder that is mounted cannot move", RESTART " it" },
  { "spice", "spice", "its port and clients belong to one QEMU", "use VNC" },
};

static void
check_options(const DrArgv *argv, DrFindings *findings)
{
  for (guint i = 0; i < G_N_ELEMENTS(options); i++)
    if (dr_argv_has(argv, options[i].option))
      dr_findings_add(findings, DR_FINDING_BLOCKER, options[i].code, options[i].remedy,
                      "option '-%s' cannot be taken along: %s", options[i].option, options[i].why);
}

static gboolean
is_on(const DrOpts *opts, const char *key)
{
  gboolean value = FALSE;

  return dr_opts_get_bool(opts, key, FALSE, &value, NULL) && value;
}

static void
check_drives(const DrArgv *argv, DrFindings *findings)
{
  for (DrOpt *opt = NULL; (opt = dr_argv_next(argv, "drive", opt));) {
    g_autoptr(DrOpts) opts = dr_opt_parse(opt, NULL);
    const char *file = opts ? dr_opts_get(opts, "file") : NULL;

    if (opts && is_on(opts, "snapshot"))
      dr_findings_add(findings, DR_FINDING_BLOCKER, "snapshot", RESTART " snapshot=on",
                      "drive '%s' has snapshot=on: the guest's writes are in a temporary file that only the "
                      "running QEMU has",
                      file ? file : opt->value);
  }
}

static void
check_display(const DrArgv *argv, DrFindings *findings)
{
  for (DrOpt *opt = NULL; (opt = dr_argv_next(argv, "display", opt));) {
    if (g_str_has_prefix(opt->value, "curses"))
      dr_findings_add(
          findings, DR_FINDING_BLOCKER, "curses", "use -display none, VNC or -nographic",
          "option '-display curses' cannot be taken along: it has the terminal that the running QEMU uses");
    else if (g_str_has_prefix(opt->value, "spice"))
      dr_findings_add(findings, DR_FINDING_BLOCKER, "spice", "use VNC",
                      "option '-display %s' cannot be taken along: its port and clients belong to one QEMU",
                      opt->value);
  }
}

/* Memory encryption, by either of its two machine properties. */
static void
check_machine(const DrArgv *argv, DrFindings *findings)
{
  g_autoptr(DrOpts) opts = dr_argv_effective(argv, "machine", NULL);

  if (opts && (dr_opts_get(opts, "confidential-guest-support") || dr_opts_get(opts, "memory-encryption")))
    dr_findings_add(findings, DR_FINDING_BLOCKER, "confidential",
                    "shut the guest down and start it under the new QEMU",
                    "the guest's memory is encrypted by the processor and cannot move");
}

/* Seen on the command line before it shows up in query-tpm, which lists only those with a device. */
static void
check_tpm(const DrArgv *argv, DrFindings *findings)
{
  for (DrOpt *opt = NULL; (opt = dr_argv_next(argv, "tpmdev", opt));) {
    g_autoptr(DrOpts) opts = dr_opt_parse(opt, NULL);
    const char *id = opts ? dr_opts_get(opts, "id") : NULL;
    const char *type = opts ? dr_opts_get(opts, "type") : NULL;

    dr_findings_add(
        findings, DR_FINDING_BLOCKER, "tpm", "shut the guest down and start it under the new QEMU",
        "TPM '%s' (%s) cannot move: it serves one QEMU at a time", id ? id : "?", type ? type : "?");
  }
}

void
dr_argv_blockers(const DrArgv *argv, DrFindings *findings)
{
  check_options(argv, findings);
  check_drives(argv, findings);
  check_display(argv, findings);
  check_machine(argv, findings);
  check_tpm(argv, findings);
}
