/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* XPath in short, and what changes in libvirt's files when a domain has another QEMU. The latter is pure. */
#pragma once
#include "base/json.h"

#include <libxml/tree.h>

typedef xmlDoc DrXml;
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrXml, xmlFreeDoc)

/* At most 16 MiB, without entities and without the network. (transfer full) */
DrXml *dr_xml_read(const char *path, GError **error);
DrXml *dr_xml_parse(const char *text, const char *what, GError **error);

/* What `xpath` finds first, as text; below `node`, or in the whole document. NULL: nothing. (transfer full) */
char *dr_xml_text(DrXml *doc, xmlNode *node, const char *xpath);
/* The nodes that it finds. (transfer full) (element-type xmlNode) */
GPtrArray *dr_xml_nodes(DrXml *doc, xmlNode *node, const char *xpath);

/* The names of <flag name=…> that libvirt's cache has for an emulator. (transfer full) */
JsonArray *dr_xml_flags(DrXml *caps);

/* <domstatus pid=…> alone. */
gboolean dr_xml_patch_pid(DrXml *status, gint64 pid, GError **error);

/* Facts about the new QEMU: {"pid": N, "emulator": PATH, "vcpus": {"0": TID}, "ptys": {"serial0": "/dev/pts/3"}}; `flags`, nullable: of the
 * element <flag name=…> that libvirt's cache has for that emulator. Both change `doc` in place; again they change nothing more. */
gboolean dr_xml_patch_status(DrXml *doc, JsonObject *facts, JsonArray *flags, GError **error);
/* Of a persistent domain: its emulator. FALSE: it had it already. */
gboolean dr_xml_patch_config(DrXml *doc, const char *emulator);

/* Writes it over `path` atomically, with the mode that the file has; on disk when it returns. */
gboolean dr_xml_write(DrXml *doc, const char *path, GError **error);
