/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* See facts.h. */
#include "libvirt/facts.h"
#include "base/error.h"
#include "libvirt/xml.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* --- QEMU's side --- */

static JsonObject *
vcpus(DrQmp *qmp, GError **error)
{
  g_autoptr(JsonArray) all = dr_qmp_call_array(qmp, "query-cpus-fast", NULL, error);
  JsonObject *threads = all ? json_object_new() : NULL;

  for (guint i = 0; threads && i < json_array_get_length(all); i++) {
    JsonObject *one = json_array_get_object_element(all, i);
    g_autofree char *index = g_strdup_printf("%d", (int)dr_json_int(one, "cpu-index", 0));

    json_object_set_int_member(threads, index, dr_json_int(one, "thread-id", 0));
  }
  return threads;
}

/* {"label": "charserial0", "filename": "pty:/dev/pts/3"}: libvirt puts "char" before a device's alias (qemuAliasChardevFromDevAlias()). */
static JsonObject *
ptys(DrQmp *qmp, GError **error)
{
  g_autoptr(JsonArray) all = dr_qmp_call_array(qmp, "query-chardev", NULL, error);
  JsonObject *paths = all ? json_object_new() : NULL;

  for (guint i = 0; paths && i < json_array_get_length(all); i++) {
    JsonObject *one = json_array_get_object_element(all, i);
    const char *label = dr_json_str(one, "label", ""), *file = dr_json_str(one, "filename", "");

    if (g_str_has_prefix(label, "char") && g_str_has_prefix(file, "pty:"))
      json_object_set_string_member(paths, label + strlen("char"), file + strlen("pty:"));
  }
  return paths;
}

static JsonArray *
array_of(GHashTable *set)
{
  g_autoptr(GList) keys = g_list_sort(g_hash_table_get_keys(set), (GCompareFunc)strcmp);
  JsonArray *array = json_array_new();

  for (GList *key = keys; key; key = key->next)
    json_array_add_string_element(array, key->data);
  return array;
}

static JsonArray *
files(DrQmp *qmp, GError **error)
{
  g_autoptr(JsonArray) nodes =
      dr_qmp_call_array(qmp, "query-named-block-nodes", dr_json("{'flat': <true>}"), error);
  g_autoptr(GHashTable) set = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);

  for (guint i = 0; nodes && i < json_array_get_length(nodes); i++) {
    JsonObject *node = json_array_get_object_element(nodes, i);
    const char *driver = dr_json_str(node, "drv", "");

    if (g_str_equal(driver, "file") || g_str_equal(driver, "host_device"))
      g_hash_table_add(set, g_strdup(dr_json_str(node, "file", "")));
  }
  return nodes ? array_of(set) : NULL;
}

/* "…: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:11:22:33" */
static JsonArray *
macs(DrQmp *qmp, GError **error)
{
  g_autofree char *text = dr_qmp_hmp(qmp, error, "info network");
  g_autoptr(GHashTable) set = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
  g_auto(GStrv) parts = text ? g_strsplit(text, "type=nic,", -1) : NULL;

  for (char **part = parts; part && *part && part[1]; part++) {
    const char *at = strstr(part[1], "macaddr=");

    if (at)
      g_hash_table_add(set, g_ascii_strdown(at + strlen("macaddr="), 17));
  }
  return text ? array_of(set) : NULL;
}

JsonObject *
dr_libvirt_facts(DrQmp *qmp, const DrProcId *id, const char *emulator, GError **error)
{
  g_autoptr(JsonObject) facts = json_object_new();
  g_autoptr(JsonObject) status = dr_qmp_call_object(qmp, "query-status", NULL, error);
  JsonObject *cpus = status ? vcpus(qmp, error) : NULL, *consoles = cpus ? ptys(qmp, error) : NULL;
  JsonArray *images = consoles ? files(qmp, error) : NULL, *nics = images ? macs(qmp, error) : NULL;

  json_object_set_int_member(facts, "pid", id->pid);
  json_object_set_string_member(facts, "emulator", emulator);
  json_object_set_boolean_member(facts, "running", status && dr_json_bool(status, "running", FALSE));
  if (cpus)
    json_object_set_object_member(facts, "vcpus", cpus);
  if (consoles)
    json_object_set_object_member(facts, "ptys", consoles);
  if (images)
    json_object_set_array_member(facts, "files", images);
  if (nics)
    json_object_set_array_member(facts, "macs", nics);
  return nics ? g_steal_pointer(&facts) : NULL;
}

/* --- libvirt's side --- */

static void
differs(DrFindings *findings, const char *what, const char *libvirts, const char *qemus)
{
  dr_findings_add(findings, DR_FINDING_WARNING, "view",
                  "compare virsh dumpxml with the QEMU; see the how-to \"Upgrade QEMU below libvirt\"",
                  "libvirt's view is not QEMU's: %s is %s to libvirt, %s to QEMU", what, libvirts, qemus);
}

static void
compare_text(DrFindings *findings, const char *what, const char *libvirts, const char *qemus)
{
  if (g_strcmp0(libvirts, qemus) != 0)
    differs(findings, what, libvirts ? libvirts : "not there", qemus ? qemus : "not there");
}

/* All that `xpath` finds, in order, each once. */
static JsonArray *
all_of(DrXml *doc, const char *xpath)
{
  g_autoptr(GPtrArray) nodes = dr_xml_nodes(doc, NULL, xpath);
  g_autoptr(GHashTable) set = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);

  for (guint i = 0; i < nodes->len; i++) {
    xmlChar *text = xmlNodeGetContent(nodes->pdata[i]);

    g_hash_table_add(set, g_strdup((const char *)text));
    xmlFree(text);
  }
  return array_of(set);
}

static char *
words_of(JsonArray *array)
{
  g_autoptr(GString) text = g_string_new(NULL);

  for (guint i = 0; array && i < json_array_get_length(array); i++)
    g_string_append_printf(text, "%s%s", i ? ", " : "", json_array_get_string_element(array, i));
  return g_strdup(text->len ? text->str : "none");
}

static void
compare_list(DrFindings *findings, const char *what, DrXml *doc, const char *xpath, JsonArray *qemus)
{
  g_autoptr(JsonArray) libvirts = all_of(doc, xpath);
  g_autofree char *a = words_of(libvirts);
  g_autofree char *b = words_of(qemus);

  compare_text(findings, what, a, b);
}

static void
compare_ptys(DrFindings *findings, DrXml *doc, JsonObject *paths)
{
  g_autoptr(GList) aliases = paths ? json_object_get_members(paths) : NULL;

  for (GList *alias = aliases; alias; alias = alias->next) {
    g_autofree char *xpath =
        g_strdup_printf("/domain/devices/*[@type='pty'][alias/@name='%s']/source/@path", (char *)alias->data);
    g_autofree char *path = dr_xml_text(doc, NULL, xpath);

    compare_text(findings, alias->data, path, dr_json_str(paths, alias->data, NULL));
  }
}

static void
compare_process(DrFindings *findings, const DrLibvirtPlaces *places, const char *name, JsonObject *facts)
{
  g_autoptr(DrLibvirtDomain) domain = dr_libvirt_domain_read(places, name, NULL);
  g_autofree char *libvirts = g_strdup_printf("%d", domain ? (int)domain->process.pid : 0);
  g_autofree char *qemus = g_strdup_printf("%d", (int)dr_json_int(facts, "pid", 0));
  g_autofree char *file = NULL;
  struct stat st;

  compare_text(findings, "the pid", libvirts, qemus);
  if (domain && stat(domain->status_file, &st) == 0 &&
      (gint64)st.st_ino == dr_json_int(facts, "status_inode", 0))
    dr_findings_add(findings, DR_FINDING_WARNING, "view", "see libvirt's log",
                    "libvirt has not taken the domain up: it has not written '%s' again",
                    domain->status_file);
  if (domain && g_file_get_contents(domain->pid_file, &file, NULL, NULL))
    compare_text(findings, "the pid file", g_strstrip(file), qemus);
}

static gboolean
compare_domain(virDomainPtr domain, JsonObject *facts, DrFindings *findings, GError **error)
{
  g_autoptr(DrXml) doc = NULL;
  char *text = virDomainGetXMLDesc(domain, 0);
  g_autofree char *emulator = NULL;
  int state = -1;

  doc = text ? dr_xml_parse(text, "libvirt's description of the domain", error) : NULL;
  free(text);
  if (!doc || virDomainGetState(domain, &state, NULL, 0) < 0)
    return FALSE;
  compare_text(findings, "the state", state == VIR_DOMAIN_RUNNING ? "running" : "not running",
               dr_json_bool(facts, "running", FALSE) ? "running" : "not running");
  emulator = dr_xml_text(doc, NULL, "/domain/devices/emulator");
  compare_text(findings, "the emulator", emulator, dr_json_str(facts, "emulator", NULL));
  compare_list(findings, "the set of image files", doc,
               "/domain/devices/disk//source[not(ancestor::mirror)]/@file|/domain/devices/disk//"
               "source[not(ancestor::mirror)]/@dev"
               "|/domain/os/nvram[not(source)]/text()|/domain/os/nvram/source/@file|/domain/os/"
               "loader[@type='pflash']/text()",
               dr_json_arr(facts, "files"));
  compare_list(findings, "the set of network interfaces", doc, "/domain/devices/interface/mac/@address",
               dr_json_arr(facts, "macs"));
  compare_ptys(findings, doc, dr_json_obj(facts, "ptys"));
  return TRUE;
}

gboolean
dr_libvirt_verify(virConnectPtr conn, const DrLibvirtPlaces *places, const char *name, JsonObject *facts,
                  DrFindings *findings, GError **error)
{
  virDomainPtr domain = virDomainLookupByName(conn, name);
  gboolean good;

  if (!domain)
    return dr_libvirt_error(error, "find domain '%s' again", name);
  good = compare_domain(domain, facts, findings, error);
  virDomainFree(domain);
  if (good)
    compare_process(findings, places, name, facts);
  else if (error && !*error)
    dr_libvirt_error(error, "read domain '%s'", name);
  return good;
}
