/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The sub-options of one option value: `virtio-net-pci,id=n0,mac=…` or the same as JSON, read and changed in
 * place.
 *
 * What is not touched is printed byte for byte as it was (short forms, order, doubled commas, a JSON number's
 * digits and a string's escapes); only a changed entry is written anew, in the form that surrounds it. A JSON
 * value that was changed somewhere loses the spaces between its tokens, as libvirt writes it.
 */
#pragma once
#include <glib.h>

typedef enum {
  DR_OPTS_KEYVAL, /* key=value,flag,noflag */
  DR_OPTS_JSON,   /* {"key":"value"}; a nested member's key is dotted: "file.filename", "list.0" */
  DR_OPTS_CPU,    /* model,+feature,-feature,feature=value */
  DR_OPTS_GLOBAL, /* driver.property=value, seen as the keys driver, property and value */
} DrOptsForm;

typedef struct _DrOpts DrOpts;

/* Parses `value`, the argument of the option `name` ("device", "-device", "M" …; any spelling of the table).
 *
 * The implied key is filled in (`q35` of -machine is type=q35), `flag` reads as flag=on, `noflag` as
 * flag=off: QEMU's QemuOpts rule, which newer QEMUs no longer apply to -machine, -smp and -boot but take an
 * error there. What QEMU would refuse for its keys or values is not refused here.
 *
 * Returns: (transfer full): NULL with DR_ERROR_INVALID for an unknown option, one without sub-options (paths,
 * character device short forms), or malformed JSON. */
DrOpts *dr_opts_parse(const char *name, const char *value, GError **error);

/* An empty list for the option `name`, to be filled by dr_opts_set(). `form` is DR_OPTS_KEYVAL or
 * DR_OPTS_JSON.
 * Returns: (transfer full). The option must be one of the table with sub-options (programming error
 * otherwise). */
DrOpts *dr_opts_new(const char *name, DrOptsForm form);

/* Returns: (transfer full): a deep copy; NULL for NULL. */
DrOpts *dr_opts_copy(const DrOpts *opts);
void dr_opts_free(DrOpts *opts);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrOpts, dr_opts_free)

DrOptsForm dr_opts_form(const DrOpts *opts);

/* The option's value again: identical to what was parsed if nothing was changed. Returns: (transfer full). */
char *dr_opts_print(const DrOpts *opts);

/* The leaves in their order, duplicates included. `i` counts from 0 to dr_opts_n() - 1. Keys and values are
 * decoded (no doubled commas, no JSON escapes); JSON true, false and null read "on", "off", "". An empty JSON
 * object or array is a leaf with the value "{}" or "[]". Returned strings: (transfer none), valid until the
 * next change of `opts`. */
guint dr_opts_n(const DrOpts *opts);
const char *dr_opts_key(const DrOpts *opts, guint i);
const char *dr_opts_value(const DrOpts *opts, guint i);

/* The value of `key`, of its last occurrence, which is the one that counts for QEMU. In the keyval form the
 * implied key answers too. Returns: (transfer none) (nullable): as dr_opts_value(). */
const char *dr_opts_get(const DrOpts *opts, const char *key);

/* All values of a key that may be repeated (hostfwd, guestfwd, tls-channel, smbios' value). For JSON also the
 * elements of the array `key`, and their "str" member where they are {"str": …} as -netdev user has them.
 * Returns: (transfer full): a NULL-terminated array, empty if there is none. */
char **dr_opts_get_all(const DrOpts *opts, const char *key);

/* Whether there is `key` or, in JSON and dotted lists, anything below it ("file" when there is
 * "file.filename"). */
gboolean dr_opts_has(const DrOpts *opts, const char *key);

/* on, yes, true, y / off, no, false, n; a bare `key` or `nokey`. *ret_value is `otherwise` where the key is
 * missing.
 * Returns: FALSE with DR_ERROR_INVALID if the value is none of these. */
gboolean dr_opts_get_bool(const DrOpts *opts, const char *key, gboolean otherwise, gboolean *ret_value,
                          GError **error);

/* A size in bytes, by QEMU's rules: a number (decimal with fraction, or 0x…) and B, K, M, G, T, P or E of
 * 1024. Without a suffix the unit is the option's own: MiB for `-m`'s size and `-numa`'s mem, else bytes.
 * *ret_bytes is `otherwise` where the key is missing. Returns: FALSE with DR_ERROR_INVALID. */
gboolean dr_opts_get_size(const DrOpts *opts, const char *key, guint64 otherwise, guint64 *ret_bytes,
                          GError **error);

/* A whole number, decimal or 0x…. *ret_value is `otherwise` where the key is missing. */
gboolean dr_opts_get_uint(const DrOpts *opts, const char *key, guint64 otherwise, guint64 *ret_value,
                          GError **error);

/* Gives `key` the text `value`: in its place if it is there (further occurrences are dropped), else at the
 * end. In JSON the value becomes a string, or keeps being a number or boolean if the old value was one and
 * the new one reads as one; missing objects of a dotted key are made. A comma in `value` is doubled where the
 * form needs it. A key with '=' or ',' and, for -cpu, a value with ',' cannot be written (programming
 * error). */
void dr_opts_set(DrOpts *opts, const char *key, const char *value);
/* The same, for JSON as a boolean or number, in the other forms as on/off or digits. */
void dr_opts_set_bool(DrOpts *opts, const char *key, gboolean value);
void dr_opts_set_uint(DrOpts *opts, const char *key, guint64 value);

/* Adds one more occurrence at the end, for a key that may be repeated. In JSON: one more element of the array
 * `key`. */
void dr_opts_append(DrOpts *opts, const char *key, const char *value);

/* Removes every occurrence of `key` and, in JSON and dotted lists, what is below it. -cpu's model can be
 * changed but not removed (programming error). Returns: whether there was one. */
gboolean dr_opts_unset(DrOpts *opts, const char *key);

/* Parses a size as QEMU's qemu_strtosz does. `unit` is the suffix of a bare number: 'B', 'K', 'M', 'G'. */
gboolean dr_parse_size(const char *text, char unit, guint64 *ret_bytes, GError **error);

/* A value as QEMU's option strings have it: each comma is two. (transfer full) */
char *dr_opts_double(const char *value);
