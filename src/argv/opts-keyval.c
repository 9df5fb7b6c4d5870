/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Reads and writes key=value lists, -cpu's features and -global's short form.
 *
 * The rules are those of get_opt_name_value() in util/qemu-option.c and of keyval_parse_one() in
 * util/keyval.c (5.2 to 11.1), which agree on all that both accept: a key ends at the first '=' or ','; a
 * value ends at a single ',', two of them being one comma of the value. Because a decoded value has only one
 * encoding, key, value and style say all, and printing them gives the text back. */
#include "argv/opts-private.h"

#include <string.h>

/* Reads a value from *at up to a single comma or the end; *at is left there. */
static char *
read_value(const char **at)
{
  g_autoptr(GString) value = g_string_new(NULL);
  const char *p = *at;

  for (; *p; p++) {
    if (*p == ',' && *++p != ',') {
      p--;
      break;
    }
    g_string_append_c(value, *p);
  }
  *at = p;
  return g_string_free(g_steal_pointer(&value), FALSE);
}

static void
add_flag(DrOpts *opts, const char *word)
{
  if (g_str_has_prefix(word, "no"))
    dr_opts_add_entry(opts, DR_STYLE_NOFLAG, word + 2, "off");
  else
    dr_opts_add_entry(opts, DR_STYLE_FLAG, word, "on");
}

/* Reads one entry. Returns: the comma behind it, or the end. */
static const char *
read_entry(DrOpts *opts, const char *at)
{
  gsize length = strcspn(at, "=,");
  g_autofree char *key = g_strndup(at, length);
  g_autofree char *value = NULL;
  gboolean first = opts->entries->len == 0;

  if (at[length] != '=' && !(first && opts->info->implied)) {
    add_flag(opts, key);
    return at + length;
  }
  if (at[length] == '=') {
    at += length + 1;
    value = read_value(&at);
    dr_opts_add_entry(opts, DR_STYLE_PAIR, key, value);
  } else {
    value = read_value(&at);
    dr_opts_add_entry(opts, DR_STYLE_IMPLIED, opts->info->implied, value);
  }
  return at;
}

static void
parse_list(DrOpts *opts, const char *text)
{
  while (*text) {
    text = read_entry(opts, text);
    if (*text == ',') {
      text++;
      opts->trailing = *text == '\0';
    }
  }
}

static void
add_cpu_feature(DrOpts *opts, const char *word)
{
  const char *equals = strchr(word, '=');
  g_autofree char *key = NULL;

  if (*word == '+')
    dr_opts_add_entry(opts, DR_STYLE_PLUS, word + 1, "on");
  else if (*word == '-')
    dr_opts_add_entry(opts, DR_STYLE_MINUS, word + 1, "off");
  else if (!equals)
    dr_opts_add_entry(opts, DR_STYLE_FLAG, word, "on");
  else {
    key = g_strndup(word, equals - word);
    dr_opts_add_entry(opts, DR_STYLE_PAIR, key, equals + 1);
  }
}

/* x86_cpu_parse_featurestr(): split at every comma, the first word is the model. Two commas are an empty
 * feature. */
static void
parse_cpu(DrOpts *opts, const char *text)
{
  g_auto(GStrv) words = g_strsplit(text, ",", -1);

  dr_opts_add_entry(opts, DR_STYLE_IMPLIED, opts->info->implied, words[0] ? words[0] : "");
  for (guint i = 1; words[0] && words[i]; i++)
    add_cpu_feature(opts, words[i]);
}

/* qemu_global_option(): "%63[^.=].%63[^=]" and then '='; the value is everything behind it. Else it is a
 * list. */
static gboolean
parse_global(DrOpts *opts, const char *text)
{
  gsize driver_len = strcspn(text, ".=");
  const char *property = text + driver_len + 1;
  g_autofree char *driver = NULL, *name = NULL;
  gsize name_len;

  if (driver_len == 0 || driver_len > 63 || text[driver_len] != '.')
    return FALSE;
  name_len = strcspn(property, "=");
  if (name_len == 0 || name_len > 63 || property[name_len] != '=')
    return FALSE;
  driver = g_strndup(text, driver_len);
  name = g_strndup(property, name_len);
  dr_opts_add_entry(opts, DR_STYLE_PAIR, "driver", driver);
  dr_opts_add_entry(opts, DR_STYLE_PAIR, "property", name);
  dr_opts_add_entry(opts, DR_STYLE_PAIR, "value", property + name_len + 1);
  return TRUE;
}

void
dr_opts_keyval_parse(DrOpts *opts, const char *text)
{
  if (opts->info->kind == DR_VALUE_CPU) {
    opts->form = DR_OPTS_CPU;
    parse_cpu(opts, text);
  } else if (opts->info->kind == DR_VALUE_GLOBAL && parse_global(opts, text)) {
    opts->form = DR_OPTS_GLOBAL;
  } else {
    opts->form = DR_OPTS_KEYVAL;
    parse_list(opts, text);
  }
}

static void
print_doubled(const char *value, GString *out)
{
  for (; *value; value++) {
    if (*value == ',')
      g_string_append_c(out, ',');
    g_string_append_c(out, *value);
  }
}

char *
dr_opts_double(const char *value)
{
  GString *out = g_string_new(NULL);

  print_doubled(value, out);
  return g_string_free(out, FALSE);
}

/* After a change the first entry may be one that would now be read as the implied key's value. */
static gboolean
needs_pair(const DrOpts *opts, const DrOptsEntry *entry, guint i)
{
  gboolean flag = entry->style == DR_STYLE_FLAG || entry->style == DR_STYLE_NOFLAG;

  return flag && i == 0 && opts->info->implied;
}

static void
print_entry(const DrOpts *opts, guint i, GString *out)
{
  const DrOptsEntry *entry = dr_opts_entry(opts, i);

  if (entry->style == DR_STYLE_PAIR || needs_pair(opts, entry, i)) {
    g_string_append_printf(out, "%s=", entry->key);
    print_doubled(entry->value, out);
  } else if (entry->style == DR_STYLE_IMPLIED) {
    print_doubled(entry->value, out);
  } else {
    g_string_append(out, entry->style == DR_STYLE_NOFLAG ? "no" : "");
    g_string_append(out, entry->key);
  }
}

static void
print_cpu(const DrOpts *opts, GString *out)
{
  for (guint i = 0; i < opts->entries->len; i++) {
    const DrOptsEntry *entry = dr_opts_entry(opts, i);

    g_string_append(out, i > 0 ? "," : "");
    if (entry->style == DR_STYLE_IMPLIED)
      g_string_append(out, entry->value);
    else if (entry->style == DR_STYLE_PAIR)
      g_string_append_printf(out, "%s=%s", entry->key, entry->value);
    else if (entry->style == DR_STYLE_FLAG)
      g_string_append(out, entry->key);
    else
      g_string_append_printf(out, "%c%s", entry->style == DR_STYLE_PLUS ? '+' : '-', entry->key);
  }
}

/* The short form holds what QEMU's scanf pattern takes and no more. */
static gboolean
print_global(const DrOpts *opts, GString *out)
{
  const char *driver = dr_opts_get(opts, "driver"), *property = dr_opts_get(opts, "property");
  const char *value = dr_opts_get(opts, "value");

  if (opts->entries->len != 3 || !driver || !property || !value)
    return FALSE;
  if (!*driver || strpbrk(driver, ".=") || strlen(driver) > 63)
    return FALSE;
  if (!*property || strchr(property, '=') || strlen(property) > 63)
    return FALSE;
  g_string_append_printf(out, "%s.%s=%s", driver, property, value);
  return TRUE;
}

void
dr_opts_keyval_print(const DrOpts *opts, GString *out)
{
  if (opts->form == DR_OPTS_CPU) {
    print_cpu(opts, out);
    return;
  }
  if (opts->form == DR_OPTS_GLOBAL && print_global(opts, out))
    return;
  for (guint i = 0; i < opts->entries->len; i++) {
    g_string_append(out, i > 0 ? "," : "");
    print_entry(opts, i, out);
  }
  g_string_append(out, opts->trailing && opts->entries->len > 0 ? "," : "");
}
