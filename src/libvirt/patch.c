/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* See patch.h. */
#include "libvirt/patch.h"
#include "base/finding.h"
#include "libvirt/facts.h"
#include "libvirt/xml.h"

#include <sys/stat.h>

gboolean
dr_libvirt_patch_pid(const DrLibvirtPlaces *places, const char *name, pid_t pid, GError **error)
{
  g_autoptr(DrLibvirtDomain) files = dr_libvirt_domain_read(places, name, error);
  g_autofree char *text = g_strdup_printf("%d", (int)pid);

  return files && dr_xml_patch_pid(files->status, pid, error) &&
         dr_xml_write(files->status, files->status_file, error) &&
         g_file_set_contents_full(files->pid_file, text, -1, G_FILE_SET_CONTENTS_CONSISTENT, 0644, error);
}

static gboolean
patch_status(const DrLibvirtDomain *files, JsonObject *facts, JsonArray *flags, GError **error)
{
  struct stat st;

  if (!dr_xml_patch_status(files->status, facts, flags, error) ||
      !dr_xml_write(files->status, files->status_file, error))
    return FALSE;
  /* libvirt writes another one when it has taken the domain up. */
  json_object_set_int_member(facts, "status_inode",
                             stat(files->status_file, &st) == 0 ? (gint64)st.st_ino : 0);
  return TRUE;
}

/* QEMU has no password of its predecessor's; libvirt's file has it. */
static void
set_vnc_password(DrQmp *qmp, const DrLibvirtDomain *files)
{
  g_autofree char *password =
      dr_xml_text(files->status, NULL, "/domstatus/domain/devices/graphics[@type='vnc']/@passwd");
  g_autoptr(GError) error = NULL;

  if (password && *password &&
      !dr_qmp_do(qmp, "set_password", dr_json("{'protocol': <'vnc'>, 'password': <%s>}", password), &error))
    g_warning("domain '%s': its VNC password could not be set: %s", files->name, error->message);
}

/* An emulator that somebody has already chosen for the next start stays. */
static gboolean
patch_config(const DrLibvirtDomain *files, const char *before, const char *emulator, GError **error)
{
  g_autoptr(DrXml) doc = files->config_file ? dr_xml_read(files->config_file, error) : NULL;
  g_autofree char *now = doc ? dr_xml_text(doc, NULL, "/domain/devices/emulator") : NULL;

  if (!files->config_file || (doc && g_strcmp0(now, before) != 0))
    return TRUE;
  return doc && (!dr_xml_patch_config(doc, emulator) || dr_xml_write(doc, files->config_file, error));
}

static void
warn_of_next_start(JsonObject *domain, const DrLibvirtDomain *files, const GError *cause)
{
  g_autoptr(DrFindings) findings = dr_findings_new();
  g_autoptr(JsonArray) told = NULL;
  JsonArray *all = dr_json_arr(domain, "findings");

  g_warning("domain '%s': %s", files->name, cause->message);
  dr_findings_add(findings, DR_FINDING_WARNING, "next-start", "set <emulator> by virsh edit",
                  "the next start of the domain is under '%s' again: %s",
                  dr_json_str(domain, "emulator_before", "?"), cause->message);
  told = dr_findings_json(findings);
  if (all)
    json_array_add_element(all, dr_json_dup(json_array_get_element(told, 0)));
}

/* That is not this run's business: if it fails, it is told. */
static void
patch_next_start(JsonObject *domain, const DrLibvirtDomain *files)
{
  g_autoptr(GError) error = NULL;

  if (!patch_config(files, dr_json_str(domain, "emulator_before", ""), dr_json_str(domain, "emulator", ""),
                    &error))
    warn_of_next_start(domain, files, error);
}

gboolean
dr_libvirt_patch(const DrLibvirtPlaces *places, JsonObject *domain, DrQmp *qmp, const DrProcId *id,
                 JsonArray *flags, GError **error)
{
  JsonObject *facts = dr_libvirt_facts(qmp, id, dr_json_str(domain, "emulator", ""), error);
  g_autoptr(DrLibvirtDomain) files =
      facts ? dr_libvirt_domain_read(places, dr_json_str(domain, "name", ""), error) : NULL;

  if (facts)
    json_object_set_object_member(domain, "facts", facts);
  if (!files || !patch_status(files, facts, flags, error))
    return FALSE;
  set_vnc_password(qmp, files);
  patch_next_start(domain, files);
  return TRUE;
}
