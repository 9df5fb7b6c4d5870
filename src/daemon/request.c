/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Checks the members of a body against a table. */
#include "daemon/request.h"
#include "base/error.h"

static gboolean
is_value(JsonNode *node, GType type)
{
  return JSON_NODE_HOLDS_VALUE(node) && json_node_get_value_type(node) == type;
}

static gboolean
is_texts(JsonNode *node)
{
  g_auto(GStrv) texts = JSON_NODE_HOLDS_ARRAY(node) ? dr_json_strv(json_node_get_array(node)) : NULL;

  return texts != NULL;
}

static gboolean
has_type(JsonNode *node, DrMemberType type)
{
  switch (type) {
  case DR_MEMBER_TEXT:
    return is_value(node, G_TYPE_STRING);
  case DR_MEMBER_TEXTS:
    return is_texts(node);
  case DR_MEMBER_FLAG:
    return is_value(node, G_TYPE_BOOLEAN);
  case DR_MEMBER_NUMBER:
    return is_value(node, G_TYPE_INT64);
  case DR_MEMBER_OBJECT:
    return JSON_NODE_HOLDS_OBJECT(node);
  case DR_MEMBER_ANY:
    return TRUE;
  }
  return FALSE;
}

static gboolean
check_member(const DrMember *member, JsonNode *node, GError **error)
{
  static const char *const words[] = {
    [DR_MEMBER_TEXT] = "a string",      [DR_MEMBER_TEXTS] = "an array of strings",
    [DR_MEMBER_FLAG] = "true or false", [DR_MEMBER_NUMBER] = "a whole number",
    [DR_MEMBER_OBJECT] = "an object",
  };

  if (JSON_NODE_HOLDS_NULL(node))
    return TRUE;
  if (!has_type(node, member->type))
    return dr_error_set(error, DR_ERROR_INVALID, "'%s' must be %s", member->name, words[member->type]);
  if (member->type != DR_MEMBER_NUMBER ||
      (json_node_get_int(node) >= member->min && json_node_get_int(node) <= member->max))
    return TRUE;
  return dr_error_set(error, DR_ERROR_INVALID, "'%s' must be %" G_GINT64_FORMAT " to %" G_GINT64_FORMAT,
                      member->name, member->min, member->max);
}

static const DrMember *
find(const DrMember *members, const char *name)
{
  for (; members->name; members++)
    if (g_str_equal(members->name, name))
      return members;
  return NULL;
}

gboolean
dr_request_check(JsonObject *request, const DrMember *members, GError **error)
{
  JsonObjectIter iter;
  const char *name;
  JsonNode *node;

  json_object_iter_init(&iter, request);
  while (json_object_iter_next(&iter, &name, &node)) {
    const DrMember *member = find(members, name);

    if (!member) {
      dr_error_set(error, DR_ERROR_INVALID, "the body has an unknown member '%.80s'", name);
      return dr_error_remedy(error, "docs/API.md lists the members");
    }
    if (!check_member(member, node, error))
      return FALSE;
  }
  return TRUE;
}
