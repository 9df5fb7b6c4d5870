/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a QEMU binary can do, found by asking it once (`-machine none`, QMP) and kept by (path, inode, size, mtime). */
#pragma once
#include "base/json.h"

typedef struct {
  char *binary;                /* absolute path */
  char *version;               /* "10.0.11" */
  int version_number;          /* as dr_qmp_version_number() */
  GHashTable *machines;        /* canonical name or alias -> canonical name (char* -> char*) */
  GHashTable *default_ram_ids; /* canonical machine name -> default-ram-id (only machines that have one) */
  GHashTable
      *devices; /* set of device type names; NULL: not known, because this QEMU aborts when it is asked: it
                            loads all its modules then, and found those of another build (QEMU_MODULE_DIR) */
  GHashTable *cpus;           /* set of CPU model names */
  GHashTable *commands;       /* set of QMP commands */
  GHashTable *migration_caps; /* set of migration capability names */
  gboolean kvm_built_in;      /* it has that accelerator … */
  gboolean kvm;               /* … and /dev/kvm opens */
} DrCaps;

DrCaps *dr_caps_ref(DrCaps *caps);
void dr_caps_unref(DrCaps *caps);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrCaps, dr_caps_unref)

#define DR_CAPS_PROBE_MS 10000
#define DR_CAPS_SCRIPT_MS 60000

/* Asks a binary, or answers from the cache in memory and in `cache_dir` (one JSON file a binary; nullable: memory only).
 * `binary`: a path, or a name that is looked up in droverd's PATH. Thread-safe; threads that ask for the same binary at
 * once share one probe. A script (a wrapper) is remembered for a minute and in memory only, since what it starts may
 * change while the script does not; for the same reason nothing is noticed of modules or libraries that are replaced
 * beside an unchanged binary.
 *
 * Errors: DR_ERROR_NOT_FOUND (no such file), DR_ERROR_INVALID (not executable, or it does not behave like a QEMU: the
 * message quotes the first line it printed), DR_ERROR_UNSUPPORTED (older than 5.2, or not a system emulator),
 * DR_ERROR_TIMEOUT (10 s). A file that is not an ELF or #! script of a QEMU must do no harm when tried: no stdin, its
 * own session, killed at the deadline. Returns: (transfer full). */
DrCaps *dr_caps_get(const char *binary, const char *cache_dir, GError **error);

/* The properties of a CPU model on this host under KVM or TCG: each feature's name with true or false, and family, model,
 * stepping as numbers (query-cpu-model-expansion, "static"). Not kept: starts the binary each time, some 70 ms. It is for
 * "host" and "max", which are something else in each version. (transfer full) */
JsonObject *dr_caps_cpu_model(const DrCaps *caps, gboolean kvm, const char *model, GError **error);
