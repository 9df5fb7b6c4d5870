/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Pinning -cpu host and -cpu max.
 *
 * A guest that began under an old QEMU knows the features that this one could pass on. A newer one passes on more; a guest
 * that is restarted there, or asks again, would find them, and could not go back. So they are turned off by name. */
#include "job/preflight-cpu.h"
#include "base/error.h"

#include <string.h>

/* "host" for a CPU of the type "host-x86_64-cpu". NULL: a model that is the same in every version. */
static const char *
floating_model(const DrInventory *inventory)
{
  const char *type = dr_inventory_cpu(inventory);

  if (type && g_str_has_prefix(type, "host-"))
    return "host";
  return type && g_str_has_prefix(type, "max-") ? "max" : NULL;
}

static char *
first_cpu(DrQmp *source, GError **error)
{
  g_autoptr(JsonArray) cpus = dr_qmp_call_array(source, "query-cpus-fast", NULL, error);

  return cpus && json_array_get_length(cpus)
             ? g_strdup(dr_json_str(json_array_get_object_element(cpus, 0), "qom-path", ""))
             : NULL;
}

/* What the guest has: a feature that its QEMU does not even know is off. *ret NULL: as the new QEMU has it, or not to be
 * told. */
static gboolean
wanted(DrQmp *source, const char *cpu, const char *name, JsonNode *theirs, char **ret, GError **error)
{
  g_autoptr(GError) local = NULL;
  g_autoptr(JsonNode) ours = dr_qmp_qom_get(source, cpu, name, &local);
  gboolean flag = JSON_NODE_HOLDS_VALUE(theirs) && json_node_get_value_type(theirs) == G_TYPE_BOOLEAN;

  *ret = NULL;
  if (local && !g_error_matches(local, DR_ERROR, DR_ERROR_QMP)) {
    g_propagate_error(error, g_steal_pointer(&local));
    return FALSE;
  }
  if (flag && (!ours || !json_node_get_boolean(ours)))
    *ret = g_strdup("off");
  else if (!flag && ours && json_node_get_int(ours) != json_node_get_int(theirs))
    *ret = g_strdup_printf("%" G_GINT64_FORMAT, json_node_get_int(ours));
  return TRUE;
}

/* Features that the new QEMU would turn on, and the three numbers by which software knows a CPU. */
static gboolean
is_of_interest(const char *name, JsonNode *value)
{
  static const char *const numbers[] = { "family", "model", "stepping", NULL };

  if (!JSON_NODE_HOLDS_VALUE(value))
    return FALSE;
  if (json_node_get_value_type(value) == G_TYPE_BOOLEAN)
    return json_node_get_boolean(value);
  return json_node_get_value_type(value) == G_TYPE_INT64 && g_strv_contains(numbers, name);
}

/* The number "model" is a key of its own beside the name, which is what the parsed form calls so. */
static gboolean
is_given(const DrOpts *opts, const char *value, const char *name)
{
  return g_str_equal(name, "model") ? strstr(value, ",model=") != NULL : dr_opts_has(opts, name);
}

/* What is off because a newer QEMU had it is nothing that an older one has to be told. (transfer full) */
static char *
without_unknown(const char *value, JsonObject *props)
{
  g_auto(GStrv) words = g_strsplit(value, ",", -1);
  g_autoptr(GStrvBuilder) kept = g_strv_builder_new();
  g_auto(GStrv) left = NULL;

  for (char **word = words; *word; word++) {
    g_autofree char *name = g_strndup(*word, strcspn(*word, "="));

    if (!g_str_has_suffix(*word, "=off") || json_object_has_member(props, name))
      g_strv_builder_add(kept, *word);
  }
  left = g_strv_builder_end(kept);
  return g_strjoinv(",", left);
}

static gboolean
pin(DrPreflight *p, DrQmp *source, DrOpt *opt, JsonObject *props, GError **error)
{
  g_autofree char *cpu = first_cpu(source, error);
  g_autoptr(DrOpts) opts = dr_opt_parse(opt, error);
  g_autofree char *known = without_unknown(opt->value, props);
  g_autoptr(GString) pinned = g_string_new(known);
  JsonObjectIter iter;
  const char *name;
  JsonNode *value;

  if (!cpu || !opts)
    return FALSE;
  json_object_iter_init(&iter, props);
  while (json_object_iter_next(&iter, &name, &value)) {
    g_autofree char *text = NULL;

    if (!is_of_interest(name, value) || is_given(opts, opt->value, name))
      continue;
    if (!wanted(source, cpu, name, value, &text, error))
      return FALSE;
    if (text)
      g_string_append_printf(pinned, ",%s=%s", name, text);
  }
  if (!g_str_equal(pinned->str, opt->value)) {
    dr_findings_add(p->findings, DR_FINDING_NOTE, "cpu-pinned", NULL,
                    "CPU: '%s' is not in %s %s what the guest has, and is started as %s", opt->value,
                    p->binary, p->caps->version, pinned->str);
    dr_opt_set_value(opt, pinned->str);
  }
  return TRUE;
}

gboolean
dr_preflight_cpu(DrPreflight *p, DrQmp *source, GError **error)
{
  const char *model = floating_model(p->inventory);
  DrOpt *opt = dr_argv_find_last(p->truth, "cpu");
  g_autoptr(JsonObject) props = NULL;
  g_autoptr(GError) local = NULL;

  if (!p->caps || !model || !opt)
    return TRUE;
  props = dr_caps_cpu_model(p->caps, dr_inventory_kvm(p->inventory), model, &local);
  if (!props) {
    dr_findings_add(p->findings, DR_FINDING_WARNING, "cpu",
                    "name a CPU model (-cpu MODEL) when the guest is next restarted",
                    "what '-cpu %s' is in the new QEMU cannot be found out before it is started: %s", model,
                    local->message);
    return TRUE;
  }
  return pin(p, source, opt, props, error);
}
