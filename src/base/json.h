/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* JSON with json-glib, made safe against what a stranger sends and short to write.
 *
 * json-glib 1.6 recurses a level per nesting and crashes on ~100,000 of them: everything that was not made by
 * this process goes through dr_json_parse(), which looks at depth and size before the parser does.
 */
#pragma once
#include <json-glib/json-glib.h>

#define DR_JSON_MAX_DEPTH 64
#define DR_JSON_MAX_VALUES 200000 /* one takes up to 300 bytes when it has been parsed */

/* Parses one JSON document of at most `max` bytes and DR_JSON_MAX_DEPTH levels.
 * Returns: (transfer full): the root, or NULL with DR_ERROR_INVALID. */
JsonNode *dr_json_parse(const char *text, gssize len, gsize max, GError **error);

/* The same where the root must be an object. Returns: (transfer full). */
JsonObject *dr_json_parse_object(const char *text, gssize len, gsize max, GError **error);

/* An object from GVariant's text form, the shortest way to write a QMP argument:
 *   dr_json("{'id': <%s>, 'size': <%x>, 'share': <true>}", id, (gint64)size)
 * %s string, %i gint32, %x gint64, %b gboolean, %d double; nesting and arrays as GVariant has them.
 * Returns: (transfer full). */
JsonObject *dr_json(const char *format, ...);

/* One line of text, no newline behind. Returns: (transfer full). The node or object is not consumed. */
char *dr_json_print(JsonNode *node, gboolean pretty);
char *dr_json_print_object(JsonObject *object, gboolean pretty);

/* A copy that shares nothing with the original. json_node_copy() shares objects and arrays, whose reference counts are
 * not atomic in 1.6: what another thread will read must be copied by this. Returns: (transfer full). */
JsonNode *dr_json_dup(JsonNode *node);

/* The same of an object. */
JsonObject *dr_json_dup_object(JsonObject *object);

/* An object as a node. Takes over the reference. Returns: (transfer full). */
JsonNode *dr_json_node(JsonObject *object);

/* Members with a default where they are missing, null or of another type. `path` may be dotted: "a.b.c".
 * Strings and objects are (transfer none). */
const char *dr_json_str(JsonObject *object, const char *path, const char *otherwise);
gint64 dr_json_int(JsonObject *object, const char *path, gint64 otherwise);
gboolean dr_json_bool(JsonObject *object, const char *path, gboolean otherwise);
double dr_json_double(JsonObject *object, const char *path, double otherwise); /* an integer is one, too */
JsonObject *dr_json_obj(JsonObject *object, const char *path);
JsonArray *dr_json_arr(JsonObject *object, const char *path);

/* Adds a member, unless there is nothing to say: NULL, 0, FALSE. */
void dr_json_add_text(JsonObject *object, const char *name, const char *text);
void dr_json_add_number(JsonObject *object, const char *name, gint64 number);
void dr_json_add_flag(JsonObject *object, const char *name, gboolean flag);

/* An array of strings, both ways. dr_json_strv() returns NULL if it is no array of strings only. (transfer full) */
char **dr_json_strv(JsonArray *array);
JsonArray *dr_json_array_from_strv(const char *const *strv);
