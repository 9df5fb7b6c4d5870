/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* JSON from strangers, errors with remedies, findings. */
#include "base/error.h"
#include "base/finding.h"
#include "base/json.h"

#include <string.h>

static void
assert_refused(const char *text, gssize len, gsize max)
{
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonNode) node = dr_json_parse(text, len, max, &error);

  g_assert_null(node);
  g_assert_error(error, DR_ERROR, DR_ERROR_INVALID);
}

static void
test_depth(void)
{
  g_autofree char *deep = g_strnfill(100000, '[');
  g_autofree char *allowed = g_strconcat("[[[[", "1", "]]]]", NULL);
  g_autoptr(JsonNode) node = dr_json_parse(allowed, -1, 100, NULL);

  g_assert_nonnull(node);
  assert_refused(deep, -1, 1 << 20);
}

/* json-glib takes comments; one with a quote in it would hide brackets from a guard that only knows strings. */
static void
test_hidden_depth(void)
{
  g_autofree char *deep = g_strnfill(100000, '[');
  g_autofree char *comment = g_strconcat("/*\"*/", deep, NULL);
  g_autofree char *hash = g_strconcat("#\"\n", deep, NULL);
  g_autofree char *single = g_strconcat("'\"'", deep, NULL);

  assert_refused(comment, -1, 1 << 20);
  assert_refused(hash, -1, 1 << 20);
  assert_refused(single, -1, 1 << 20);
}

static void
test_refused(void)
{
  static const char *const bad[] = { "",          " ",   "{",  "{]",       "{\"a\":}",
                                     "{\"a\" 1}", "tru", "\"", "{\"a\":1", "[1,,2]" };

  for (guint i = 0; i < G_N_ELEMENTS(bad); i++)
    assert_refused(bad[i], -1, 100);
  assert_refused("{\"a\": 12345}", -1, 5);
}

/* What json-glib would take as another text than was sent. */
static void
test_nothing_is_passed_over(void)
{
  static const char inside[] = "{\"name\": \"vm\0x\"}";
  g_autoptr(JsonObject) escaped = dr_json_parse_object("{\"a\\\\u0000\": 1} \r\n", -1, 100, NULL);

  assert_refused(inside, sizeof inside - 1, 100);
  assert_refused("{\"name\": \"vm\\u0000x\"}", -1, 100);
  assert_refused("{\"name\": 1}{\"name\": 2}", -1, 100);
  assert_refused("[1] x", -1, 100);
  g_assert_cmpint(dr_json_int(escaped, "a\\u0000", 0), ==, 1); /* a backslash and letters, no NUL */
}

static void
test_what_is_printed_is_utf8(void)
{
  g_autoptr(JsonObject) object = json_object_new();
  g_autofree char *text = NULL;

  json_object_set_string_member(object, "path", "/tmp/\xff");
  text = dr_json_print_object(object, FALSE);
  g_assert_true(g_utf8_validate(text, -1, NULL));
}

static void
test_strings_keep_brackets(void)
{
  g_autoptr(GString) text = g_string_new("{\"a\": \"");
  g_autoptr(JsonObject) object = NULL;

  for (int i = 0; i < 1000; i++)
    g_string_append(text, "[{/'#\\\"");
  g_string_append(text, "\"}");
  object = dr_json_parse_object(text->str, -1, 1 << 20, NULL);
  g_assert_nonnull(object);
  g_assert_cmpuint(strlen(dr_json_str(object, "a", "")), ==, 6000);
}

static void
test_lookup(void)
{
  g_autoptr(JsonObject) object = dr_json_parse_object(
      "{\"a\": {\"b\": {\"n\": 7, \"s\": \"x\", \"t\": true, \"l\": [\"p\", \"q\"]}}, \"m\": [1]}", -1, 1000,
      NULL);
  g_auto(GStrv) list = dr_json_strv(dr_json_arr(object, "a.b.l"));

  g_assert_cmpint(dr_json_int(object, "a.b.n", 0), ==, 7);
  g_assert_cmpstr(dr_json_str(object, "a.b.s", NULL), ==, "x");
  g_assert_true(dr_json_bool(object, "a.b.t", FALSE));
  g_assert_cmpint(dr_json_int(object, "a.b.s", 3), ==, 3); /* another type */
  g_assert_cmpint(dr_json_int(object, "a.x.n", 4), ==, 4); /* not there */
  g_assert_cmpint(dr_json_int(object, "m.n", 5), ==, 5);   /* not an object on the way */
  g_assert_cmpstr(list[1], ==, "q");
  g_assert_null(dr_json_strv(dr_json_arr(object, "m")));
  g_assert_null(dr_json_strv(NULL));
}

static void
test_build(void)
{
  g_autoptr(JsonObject) object =
      dr_json("{'id': <%s>, 'size': <%x>, 'share': <%b>}", "a\"b", (gint64)1 << 40, TRUE);
  g_autofree char *text = dr_json_print_object(object, FALSE);
  g_autoptr(JsonObject) again = dr_json_parse_object(text, -1, 1000, NULL);

  g_assert_cmpstr(dr_json_str(again, "id", NULL), ==, "a\"b");
  g_assert_cmpint(dr_json_int(again, "size", 0), ==, (gint64)1 << 40);
}

static void
test_numbers(void)
{
  g_autoptr(JsonObject) object =
      dr_json("{'ms': <%d>, 'big': <%x>, 's': <%s>}", 2.9, G_MAXINT64, "a\"2.8999999999999999\\");
  g_autofree char *text = dr_json_print_object(object, FALSE);

  g_assert_nonnull(strstr(text, ":2.9,"));
  g_assert_nonnull(strstr(text, ":9223372036854775807,"));
  g_assert_nonnull(strstr(text, "a\\\"2.8999999999999999"));
}

static void
test_dup(void)
{
  g_autoptr(JsonNode) node = dr_json_node(dr_json("{'a': <{'b': <%x>}>}", (gint64)1));
  g_autoptr(JsonNode) copy = dr_json_dup(node);

  g_assert_true(json_node_equal(node, copy));
  g_assert_true(dr_json_obj(json_node_get_object(node), "a") != dr_json_obj(json_node_get_object(copy), "a"));
}

static void
test_errors(void)
{
  g_autoptr(GError) error = NULL;
  g_autoptr(GError) copy = NULL;

  g_assert_false(dr_error_set(&error, DR_ERROR_BUSY, "VM '%s' is busy", "a"));
  g_assert_false(dr_error_remedy(&error, "wait for job %d", 3));
  copy = g_error_copy(error);
  g_assert_cmpstr(dr_error_get_remedy(copy), ==, "wait for job 3");
  g_assert_cmpstr(dr_error_code_name(copy), ==, "busy");
  dr_error_set(NULL, DR_ERROR_IO, "nobody listens");
  dr_error_remedy(NULL, "nothing");
}

static void
test_findings(void)
{
  g_autoptr(DrFindings) findings = dr_findings_new();
  g_autoptr(DrFindings) more = dr_findings_new();
  g_autoptr(JsonArray) json = NULL;
  g_autoptr(GError) error = NULL;

  dr_findings_add(findings, DR_FINDING_NOTE, "mode", NULL, "RAM: %s", "shared");
  g_assert_false(dr_findings_block(findings));
  dr_findings_add(more, DR_FINDING_BLOCKER, "vfio", "unplug it", "device '%s' is a host's", "hostdev0");
  dr_findings_add(more, DR_FINDING_BLOCKER, "vfio", "unplug it", "device '%s' is a host's", "hostdev0");
  dr_findings_merge(findings, more);
  g_assert_cmpuint(dr_findings_count(findings), ==, 2);
  g_assert_cmpuint(dr_findings_count(more), ==, 0);
  g_assert_true(dr_findings_block(findings));
  json = dr_findings_json(findings);
  g_assert_cmpstr(dr_json_str(json_array_get_object_element(json, 1), "severity", NULL), ==, "blocker");
  g_assert_false(dr_findings_to_error(findings, "upgrade VM 'a'", &error));
  g_assert_error(error, DR_ERROR, DR_ERROR_REFUSED);
  g_assert_cmpstr(error->message, ==, "cannot upgrade VM 'a': device 'hostdev0' is a host's");
  g_assert_cmpstr(dr_error_get_remedy(error), ==, "unplug it");
}

int
main(int argc, char **argv)
{
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/json/depth", test_depth);
  g_test_add_func("/json/hidden-depth", test_hidden_depth);
  g_test_add_func("/json/refused", test_refused);
  g_test_add_func("/json/strings-keep-brackets", test_strings_keep_brackets);
  g_test_add_func("/json/nothing-passed-over", test_nothing_is_passed_over);
  g_test_add_func("/json/utf8", test_what_is_printed_is_utf8);
  g_test_add_func("/json/lookup", test_lookup);
  g_test_add_func("/json/build", test_build);
  g_test_add_func("/json/numbers", test_numbers);
  g_test_add_func("/json/dup", test_dup);
  g_test_add_func("/error/remedy", test_errors);
  g_test_add_func("/finding/list", test_findings);
  return g_test_run();
}
