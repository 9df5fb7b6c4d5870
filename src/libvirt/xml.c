/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* XML by libxml2, as libvirt itself reads and writes it: see xml.h. */
#include "libvirt/xml.h"
#include "base/error.h"
#include "base/fd.h"

#include <libxml/parser.h>
#include <libxml/xpath.h>
#include <string.h>
#include <sys/stat.h>

#define MAX_XML (16 * 1024 * 1024)
#define PARSE (XML_PARSE_NONET | XML_PARSE_NOERROR | XML_PARSE_NOWARNING)

DrXml *
dr_xml_parse(const char *text, const char *what, GError **error)
{
  DrXml *doc = xmlReadMemory(text, (int)strlen(text), NULL, NULL, PARSE);

  if (!doc || xmlDocGetRootElement(doc))
    return doc;
  xmlFreeDoc(doc);
  dr_error_set(error, DR_ERROR_INVALID, "%s is no XML", what);
  return NULL;
}

DrXml *
dr_xml_read(const char *path, GError **error)
{
  g_autofree char *text = dr_file_read(path, MAX_XML, NULL, error);
  DrXml *doc = text ? dr_xml_parse(text, path, error) : NULL;

  if (text && !doc && error && !*error)
    dr_error_set(error, DR_ERROR_INVALID, "'%s' is no XML", path);
  return doc;
}

static xmlXPathObject *
evaluate(DrXml *doc, xmlNode *node, const char *xpath, xmlXPathContext **ret_context)
{
  *ret_context = xmlXPathNewContext(doc);
  (*ret_context)->node = node ? node : xmlDocGetRootElement(doc);
  return xmlXPathEvalExpression((const xmlChar *)xpath, *ret_context);
}

GPtrArray *
dr_xml_nodes(DrXml *doc, xmlNode *node, const char *xpath)
{
  GPtrArray *nodes = g_ptr_array_new();
  xmlXPathContext *context;
  xmlXPathObject *found = evaluate(doc, node, xpath, &context);

  for (int i = 0; found && found->nodesetval && i < found->nodesetval->nodeNr; i++)
    g_ptr_array_add(nodes, found->nodesetval->nodeTab[i]);
  xmlXPathFreeObject(found);
  xmlXPathFreeContext(context);
  return nodes;
}

char *
dr_xml_text(DrXml *doc, xmlNode *node, const char *xpath)
{
  g_autoptr(GPtrArray) nodes = dr_xml_nodes(doc, node, xpath);
  xmlChar *text = nodes->len ? xmlNodeGetContent(nodes->pdata[0]) : NULL;
  char *copy = g_strdup((const char *)text);

  xmlFree(text);
  return copy;
}

/* --- Patches --- */

static void
set_attribute(xmlNode *node, const char *name, const char *value)
{
  xmlSetProp(node, (const xmlChar *)name, (const xmlChar *)value);
}

static void
set_number(xmlNode *node, const char *name, gint64 value)
{
  g_autofree char *text = g_strdup_printf("%" G_GINT64_FORMAT, value);

  set_attribute(node, name, text);
}

static gboolean
patch_vcpus(DrXml *doc, JsonObject *vcpus, GError **error)
{
  g_autoptr(GPtrArray) nodes = dr_xml_nodes(doc, NULL, "/domstatus/vcpus/vcpu[@pid]");

  for (guint i = 0; i < nodes->len; i++) {
    g_autofree char *id = dr_xml_text(doc, nodes->pdata[i], "@id");
    gint64 thread = id ? dr_json_int(vcpus, id, 0) : 0;

    if (!thread)
      return dr_error_set(error, DR_ERROR_INTERNAL, "the new QEMU has no virtual CPU %s", id ? id : "?");
    set_number(nodes->pdata[i], "pid", thread);
  }
  return TRUE;
}

/* <serial type='pty'><source path=…/><alias name='serial0'/>, and <console tty=…> of the same alias. */
static void
patch_ptys(DrXml *doc, JsonObject *ptys)
{
  g_autoptr(GPtrArray) nodes = dr_xml_nodes(doc, NULL, "/domstatus/domain/devices/*[@type='pty'][alias]");

  for (guint i = 0; i < nodes->len; i++) {
    g_autofree char *alias = dr_xml_text(doc, nodes->pdata[i], "alias/@name");
    const char *path = alias ? dr_json_str(ptys, alias, NULL) : NULL;
    g_autoptr(GPtrArray) sources = dr_xml_nodes(doc, nodes->pdata[i], "source[@path]");

    if (!path)
      continue;
    for (guint n = 0; n < sources->len; n++)
      set_attribute(sources->pdata[n], "path", path);
    if (xmlHasProp(nodes->pdata[i], (const xmlChar *)"tty"))
      set_attribute(nodes->pdata[i], "tty", path);
  }
}

/* What the new QEMU can do decides what libvirt sends it from now on. */
static gboolean
patch_flags(DrXml *doc, JsonArray *flags, GError **error)
{
  g_autoptr(GPtrArray) found = dr_xml_nodes(doc, NULL, "/domstatus/qemuCaps");
  xmlNode *caps = found->len ? found->pdata[0] : NULL;

  if (!caps || !json_array_get_length(flags))
    return dr_error_set(error, DR_ERROR_UNSUPPORTED,
                        "libvirt's files do not have the capabilities of a QEMU where libvirt 9.0 has them");
  while (caps->children) {
    xmlNode *child = caps->children;

    xmlUnlinkNode(child);
    xmlFreeNode(child);
  }
  for (guint i = 0; i < json_array_get_length(flags); i++) {
    xmlNodeAddContent(caps, (const xmlChar *)"\n    ");
    set_attribute(xmlNewChild(caps, NULL, (const xmlChar *)"flag", NULL), "name",
                  json_array_get_string_element(flags, i));
  }
  xmlNodeAddContent(caps, (const xmlChar *)"\n  ");
  return TRUE;
}

static gboolean
set_text(DrXml *doc, const char *xpath, const char *text)
{
  g_autoptr(GPtrArray) nodes = dr_xml_nodes(doc, NULL, xpath);
  g_autofree char *now = dr_xml_text(doc, NULL, xpath);
  xmlChar *escaped;

  if (!nodes->len || g_strcmp0(now, text) == 0)
    return FALSE;
  escaped = xmlEncodeSpecialChars(doc, (const xmlChar *)text);
  xmlNodeSetContent(nodes->pdata[0], escaped);
  xmlFree(escaped);
  return TRUE;
}

JsonArray *
dr_xml_flags(DrXml *caps)
{
  g_autoptr(GPtrArray) found = dr_xml_nodes(caps, NULL, "/qemuCaps/flag[@name]");
  JsonArray *flags = json_array_new();

  for (guint i = 0; i < found->len; i++) {
    g_autofree char *name = dr_xml_text(caps, found->pdata[i], "@name");

    json_array_add_string_element(flags, name);
  }
  return flags;
}

gboolean
dr_xml_patch_pid(DrXml *doc, gint64 pid, GError **error)
{
  xmlNode *root = xmlDocGetRootElement(doc);

  if (!xmlStrEqual(root->name, (const xmlChar *)"domstatus") || !xmlHasProp(root, (const xmlChar *)"pid"))
    return dr_error_set(error, DR_ERROR_UNSUPPORTED, "libvirt's file is no <domstatus pid=…>");
  set_number(root, "pid", pid);
  return TRUE;
}

gboolean
dr_xml_patch_status(DrXml *doc, JsonObject *facts, JsonArray *flags, GError **error)
{
  if (!dr_xml_patch_pid(doc, dr_json_int(facts, "pid", 0), error) ||
      !patch_vcpus(doc, dr_json_obj(facts, "vcpus"), error) || (flags && !patch_flags(doc, flags, error)))
    return FALSE;
  patch_ptys(doc, dr_json_obj(facts, "ptys"));
  set_text(doc, "/domstatus/domain/devices/emulator", dr_json_str(facts, "emulator", ""));
  return TRUE;
}

gboolean
dr_xml_patch_config(DrXml *doc, const char *emulator)
{
  return set_text(doc, "/domain/devices/emulator", emulator);
}

/* Without <?xml …?>, as libvirt writes it. */
static char *
print(DrXml *doc, gsize *ret_len)
{
  xmlBuffer *buffer = xmlBufferCreate();
  char *text;

  for (xmlNode *node = doc->children; node; node = node->next) {
    xmlNodeDump(buffer, doc, node, 0, 0);
    xmlBufferCat(buffer, (const xmlChar *)(node->type == XML_COMMENT_NODE ? "\n\n" : "\n"));
  }
  *ret_len = (gsize)xmlBufferLength(buffer);
  text = g_strndup((const char *)xmlBufferContent(buffer), *ret_len);
  xmlBufferFree(buffer);
  return text;
}

gboolean
dr_xml_write(DrXml *doc, const char *path, GError **error)
{
  gsize len;
  g_autofree char *text = print(doc, &len);
  struct stat st;
  int mode = stat(path, &st) == 0 ? (int)(st.st_mode & 0777) : 0600;

  if (g_file_set_contents_full(path, text, (gssize)len,
                               G_FILE_SET_CONTENTS_CONSISTENT | G_FILE_SET_CONTENTS_DURABLE, mode, error))
    return TRUE;
  g_prefix_error(error, "cannot write '%s': ", path);
  return FALSE;
}
