/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The host forwards of user-mode networks: a port is the old QEMU's until it has ended, so the new one gets it afterwards. */
#include "job/inventory.h"
#include "job/upgrade-internal.h"

#include <string.h>

#define TRIES 50 /* 20 ms each, for a port of the first QEMU's to become free */

/* The user-mode networks that have no id, so that QEMU made up a name, another one in each process; in QEMU's order, which is
 * that of the command line. "Hub -1 (#net189):" of `info usernet`; "__org.qemu.net1" on 5.2. (transfer full) */
static char **
unnamed_networks(const char *usernet)
{
  g_autoptr(GStrvBuilder) names = g_strv_builder_new();
  g_auto(GStrv) lines = g_strsplit_set(usernet ? usernet : "", "\r\n", -1);

  for (char **line = lines; *line; line++) {
    const char *begin = g_str_has_prefix(*line, "Hub ") ? strchr(*line, '(') : NULL;
    const char *end = begin ? strrchr(begin, ')') : NULL;
    g_autofree char *name = end ? g_strndup(begin + 1, end - begin - 1) : NULL;

    if (name && (name[0] == '#' || g_str_has_prefix(name, "__org.qemu")))
      g_strv_builder_add(names, name);
  }
  return g_strv_builder_end(names);
}

static int
index_of(char **names, const char *name)
{
  for (int i = 0; names[i]; i++)
    if (g_str_equal(names[i], name))
      return i;
  return -1;
}

JsonArray *
dr_upgrade_forwards(DrUpgrade *u)
{
  GPtrArray *forwards = dr_inventory_forwards(u->pre->inventory);
  g_autofree char *usernet = forwards->len ? dr_qmp_hmp(u->source, NULL, "info usernet") : NULL;
  g_auto(GStrv) unnamed = unnamed_networks(usernet);
  JsonArray *array = json_array_new();

  for (guint i = 0; i < forwards->len; i++) {
    const DrForward *forward = forwards->pdata[i];

    json_array_add_object_element(array,
                                  dr_json("{'netdev': <%s>, 'add': <%s>, 'nth': <%x>}", forward->netdev,
                                          forward->add, (gint64)index_of(unnamed, forward->netdev)));
  }
  return array;
}

/* Returns: (transfer full) (nullable): why it is not there. */
static char *
add_one(DrQmp *dest, const char *netdev, const char *rule)
{
  for (int try = 0;; try++) {
    g_autofree char *said = dr_qmp_hmp(dest, NULL, "hostfwd_add %s %s", netdev, rule);

    if (said && *g_strstrip(said) == '\0')
      return NULL;
    if (!said || !strstr(said, "could not set up") || try == TRIES)
      return said ? g_steal_pointer(&said) : g_strdup("the new QEMU does not answer");
    g_usleep(20000);
  }
}

/* A droverd that was killed in its commit had added some of them. */
static gboolean
is_there(const GPtrArray *forwards, const char *netdev, const char *rule)
{
  for (guint i = 0; i < forwards->len; i++) {
    const DrForward *forward = forwards->pdata[i];

    if (g_str_equal(forward->netdev, netdev) && g_str_equal(forward->add, rule))
      return TRUE;
  }
  return FALSE;
}

void
dr_upgrade_add_forwards(DrUpgrade *u, DrFindings *findings)
{
  guint n = json_array_get_length(u->plan.forwards);
  g_autofree char *usernet = n ? dr_qmp_hmp(u->dest, NULL, "info usernet") : NULL;
  g_autoptr(GPtrArray) there = dr_forwards_parse(usernet ? usernet : "");
  g_auto(GStrv) unnamed = unnamed_networks(usernet);

  for (guint i = 0; i < n; i++) {
    JsonObject *forward = json_array_get_object_element(u->plan.forwards, i);
    const char *rule = dr_json_str(forward, "add", "");
    gint64 nth = dr_json_int(forward, "nth", -1);
    gboolean is_unnamed = nth >= 0 && nth < (gint64)g_strv_length(unnamed);
    const char *netdev = is_unnamed ? unnamed[nth] : dr_json_str(forward, "netdev", "");
    g_autofree char *why = is_there(there, netdev, rule) ? NULL : add_one(u->dest, netdev, rule);

    if (!why)
      continue;
    g_warning("host forward %s of VM '%s' is not back: %s", rule, dr_vm_name(u->vm), why);
    dr_findings_add(findings, DR_FINDING_WARNING, "hostfwd", "add it by hand (hostfwd_add)",
                    "host forward %s of VM '%s' is not back: %s", rule, dr_vm_name(u->vm), why);
  }
}
