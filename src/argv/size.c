/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Booleans, numbers and sizes of sub-options, by QEMU's rules. */
#include "argv/opts-private.h"
#include "base/error.h"

#include <errno.h>
#include <string.h>

gboolean
dr_opts_get_bool(const DrOpts *opts, const char *key, gboolean otherwise, gboolean *ret_value, GError **error)
{
  static const char *const yes[] = { "on", "yes", "true", "y", NULL };
  static const char *const no[] = { "off", "no", "false", "n", NULL };
  const char *value = dr_opts_get(opts, key);

  *ret_value = otherwise;
  if (!value)
    return TRUE;
  if (!g_strv_contains(yes, value) && !g_strv_contains(no, value))
    return dr_error_set(error, DR_ERROR_INVALID, "'%s' of '-%s' must be on or off, not '%s'", key,
                        opts->info->name, value);
  *ret_value = g_strv_contains(yes, value);
  return TRUE;
}

gboolean
dr_opts_get_uint(const DrOpts *opts, const char *key, guint64 otherwise, guint64 *ret_value, GError **error)
{
  const char *value = dr_opts_get(opts, key);
  guint64 number;
  char *end;

  *ret_value = otherwise;
  if (!value)
    return TRUE;
  errno = 0;
  number = g_ascii_strtoull(value, &end, 0);
  if (!g_ascii_isdigit(*value) || *end || errno)
    return dr_error_set(error, DR_ERROR_INVALID, "'%s' of '-%s' must be a whole number, not '%s'", key,
                        opts->info->name, value);
  *ret_value = number;
  return TRUE;
}

/* Powers of 1024, -1 for what is no suffix. */
static int
suffix_power(char suffix)
{
  static const char suffixes[] = "BKMGTPE";
  const char *found = suffix ? strchr(suffixes, g_ascii_toupper(suffix)) : NULL;

  return found ? (int)(found - suffixes) : -1;
}

/* Reads the digits, or the hexadecimal ones, and the fraction. Returns: what follows them, NULL if there are
 * none. */
static const char *
read_number(const char *text, guint64 *ret_whole, double *ret_fraction)
{
  gboolean hex = text[0] == '0' && (text[1] == 'x' || text[1] == 'X') && g_ascii_isxdigit(text[2]);
  char *end;

  *ret_fraction = 0;
  errno = 0;
  if (!g_ascii_isdigit(*text))
    return NULL;
  *ret_whole = g_ascii_strtoull(text, &end, hex ? 16 : 10);
  if (errno)
    return NULL;
  if (*end == '.' && !hex) {
    gsize digits = strspn(end + 1, "0123456789");
    g_autofree char *fraction = g_strdup_printf("0.%.*s", (int)digits, end + 1);

    *ret_fraction = g_ascii_strtod(fraction, NULL);
    end += 1 + digits;
  }
  return end;
}

gboolean
dr_parse_size(const char *text, char unit, guint64 *ret_bytes, GError **error)
{
  guint64 whole, scale;
  double fraction;
  const char *end = read_number(text, &whole, &fraction);
  int power = end ? suffix_power(*end ? *end : unit) : -1;

  /* A fraction of a byte is nothing, and for a bare number QEMU reads bytes before it applies the unit. */
  if (power < 0 || (*end && end[1]) || (fraction > 0 && (power == 0 || !*end)))
    return dr_error_set(error, DR_ERROR_INVALID, "'%s' is not a size", text);
  scale = G_GUINT64_CONSTANT(1) << (10 * power);
  if (whole > G_MAXUINT64 / scale)
    return dr_error_set(error, DR_ERROR_INVALID, "the size '%s' is too large", text);
  *ret_bytes = whole * scale + (guint64)(fraction * (double)scale);
  return TRUE;
}

/* set_memory_options() and parse_numa_node() in QEMU: for these two a bare number is MiB. */
static char
default_unit(const DrOpts *opts, const char *key)
{
  if (g_str_equal(opts->info->name, "m") && g_str_equal(key, "size"))
    return 'M';
  if (g_str_equal(opts->info->name, "numa") && g_str_equal(key, "mem"))
    return 'M';
  return 'B';
}

gboolean
dr_opts_get_size(const DrOpts *opts, const char *key, guint64 otherwise, guint64 *ret_bytes, GError **error)
{
  const char *value = dr_opts_get(opts, key);

  *ret_bytes = otherwise;
  if (!value)
    return TRUE;
  if (dr_parse_size(value, default_unit(opts, key), ret_bytes, error))
    return TRUE;
  g_prefix_error(error, "cannot read '%s' of '-%s': ", key, opts->info->name);
  return FALSE;
}
