/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A list of findings. */
#include "base/finding.h"
#include "base/error.h"

struct DrFindings {
  GPtrArray *list; /* of DrFinding */
};

static const char *const severity_names[] = {
  [DR_FINDING_BLOCKER] = "blocker",
  [DR_FINDING_WARNING] = "warning",
  [DR_FINDING_NOTE] = "note",
};

static void
finding_free(DrFinding *finding)
{
  g_free(finding->code);
  g_free(finding->text);
  g_free(finding->remedy);
  g_free(finding);
}

DrFindings *
dr_findings_new(void)
{
  DrFindings *findings = g_new0(DrFindings, 1);

  findings->list = g_ptr_array_new_with_free_func((GDestroyNotify)finding_free);
  return findings;
}

void
dr_findings_free(DrFindings *findings)
{
  if (!findings)
    return;
  g_ptr_array_unref(findings->list);
  g_free(findings);
}

static gboolean
is_known(const DrFindings *findings, const char *code, const char *text)
{
  for (guint i = 0; i < findings->list->len; i++) {
    const DrFinding *other = findings->list->pdata[i];

    if (g_str_equal(other->code, code) && g_str_equal(other->text, text))
      return TRUE;
  }
  return FALSE;
}

void
dr_findings_add(DrFindings *findings, DrSeverity severity, const char *code, const char *remedy,
                const char *format, ...)
{
  DrFinding *finding;
  g_autofree char *text = NULL;
  va_list ap;

  va_start(ap, format);
  text = g_strdup_vprintf(format, ap);
  va_end(ap);
  if (is_known(findings, code, text))
    return;
  finding = g_new0(DrFinding, 1);
  finding->severity = severity;
  finding->code = g_strdup(code);
  finding->text = g_steal_pointer(&text);
  finding->remedy = g_strdup(remedy);
  g_ptr_array_add(findings->list, finding);
}

guint
dr_findings_count(const DrFindings *findings)
{
  return findings->list->len;
}

const DrFinding *
dr_findings_get(const DrFindings *findings, guint i)
{
  return findings->list->pdata[i];
}

gboolean
dr_findings_block(const DrFindings *findings)
{
  for (guint i = 0; i < findings->list->len; i++)
    if (dr_findings_get(findings, i)->severity == DR_FINDING_BLOCKER)
      return TRUE;
  return FALSE;
}

void
dr_findings_merge(DrFindings *findings, DrFindings *from)
{
  g_ptr_array_extend_and_steal(findings->list, from->list);
  from->list = g_ptr_array_new_with_free_func((GDestroyNotify)finding_free);
}

JsonArray *
dr_findings_json(const DrFindings *findings)
{
  JsonArray *array = json_array_new();

  for (guint i = 0; i < findings->list->len; i++) {
    const DrFinding *finding = dr_findings_get(findings, i);
    JsonObject *object = json_object_new();

    json_object_set_string_member(object, "severity", severity_names[finding->severity]);
    json_object_set_string_member(object, "code", finding->code);
    json_object_set_string_member(object, "text", finding->text);
    json_object_set_string_member(object, "remedy", finding->remedy);
    json_array_add_object_element(array, object);
  }
  return array;
}

gboolean
dr_findings_to_error(const DrFindings *findings, const char *doing, GError **error)
{
  g_autoptr(GString) text = g_string_new(NULL);
  g_autoptr(GString) remedy = g_string_new(NULL);

  for (guint i = 0; i < findings->list->len; i++) {
    const DrFinding *finding = dr_findings_get(findings, i);

    if (finding->severity != DR_FINDING_BLOCKER)
      continue;
    g_string_append_printf(text, "%s%s", text->len ? "; " : "", finding->text);
    if (finding->remedy)
      g_string_append_printf(remedy, "%s%s", remedy->len ? "; " : "", finding->remedy);
  }
  dr_error_set(error, DR_ERROR_REFUSED, "cannot %s: %s", doing, text->str);
  return remedy->len ? dr_error_remedy(error, "%s", remedy->str) : FALSE;
}
