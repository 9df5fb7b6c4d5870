/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* drover peer. */
#include "base/address.h"
#include "base/error.h"
#include "cli/cli.h"
#include "cli/list.h"
#include "cli/render.h"

#include <stdio.h>
#include <unistd.h>

typedef struct {
  char **pins;
  DrListOptions list;
} Options;

/* --- add, list, remove --- */

static void
tell_added(JsonObject *peer)
{
  g_autofree char *address =
      dr_address_print(dr_json_str(peer, "host", "?"), (guint16)dr_json_int(peer, "port", 0));

  printf("%s: added, %s%s\n", dr_json_str(peer, "name", "?"), address,
         dr_json_str(peer, "pin", NULL) ? ", pinned" : "");
}

static int
add(DrCli *cli, const void *data)
{
  const Options *options = data;
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonObject) body = json_object_new();
  g_autoptr(JsonNode) answer = NULL;
  g_autofree char *host = NULL;
  g_autofree char *pin = options->pins ? g_strjoinv(",", options->pins) : NULL;
  guint16 port;

  if (!dr_name_check(cli->words[0], "a peer", &error) ||
      !dr_address_parse(cli->words[1], DR_PEER_PORT, &host, &port, &error))
    return dr_cli_fail(cli, error);
  json_object_set_string_member(body, "name", cli->words[0]);
  json_object_set_string_member(body, "host", host);
  json_object_set_int_member(body, "port", port);
  if (pin)
    json_object_set_string_member(body, "pin", pin);
  answer = dr_cli_call(cli, "POST", "/v1/peers", NULL, body, &error);
  if (!answer)
    return dr_cli_fail(cli, error);
  if (cli->json || !JSON_NODE_HOLDS_OBJECT(answer))
    dr_cli_print_json(answer);
  else
    tell_added(json_node_get_object(answer));
  return DR_EXIT_DONE;
}

static char *
added(JsonObject *peer)
{
  return dr_list_time(peer, "added_ms");
}

static const DrColumn columns[] = {
  { "name" }, { "host" }, { "port" }, { "key-id", .member = "pin" }, { "added", .text = added, .wide = TRUE },
  { NULL },
};

static int
list(DrCli *cli, const void *data)
{
  const Options *options = data;
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonArray) rows = NULL;

  if (dr_list_check(cli, &options->list, columns, &error))
    rows = dr_cli_call_list(cli, "GET", "/v1/peers", NULL, &error);
  if (!rows)
    return dr_cli_fail(cli, error);
  return dr_list_print(cli, &options->list, columns, rows,
                       "no peers: add one with drover peer add NAME HOST");
}

static void
tell_removed(const char *name, JsonObject *nothing)
{
  printf("%s: removed\n", name);
}

static int
remove_peer(DrCli *cli, const void *data)
{
  return dr_cli_each(cli, "DELETE", "/v1/peers/{}", NULL, tell_removed);
}

/* --- test --- */

static void
tell_clock(JsonObject *test)
{
  double offset = dr_render_number(test, "clock_offset_ms", 0);
  g_autofree char *text = dr_render_ms(offset < 0 ? -offset : offset);

  if (json_object_has_member(test, "clock_offset_ms"))
    printf("%-14s %s %s this host's\n", "clock", text, offset < 0 ? "behind" : "ahead of");
}

static void
tell_test(const char *name, JsonObject *test)
{
  g_autofree char *address =
      dr_address_print(dr_json_str(test, "host", "?"), (guint16)dr_json_int(test, "port", 0));
  g_autofree char *trip = dr_render_ms(dr_render_number(test, "round_trip_ms", 0));

  printf("%s: droverd %s answers at %s\n", name, dr_json_str(test, "version", "?"), address);
  printf("%-14s %s\n", "certificate", dr_json_str(test, "certificate", "?"));
  printf("%-14s %s\n", "key id", dr_json_str(test, "key_id", "?"));
  printf("%-14s %s\n", "encryption", dr_json_str(test, "tls", "?"));
  printf("%-14s %s\n", "round trip", trip);
  printf("%-14s %.0f MiB/s there, %.0f MiB/s back\n", "throughput", dr_render_number(test, "send_mib", 0),
         dr_render_number(test, "receive_mib", 0));
  tell_clock(test);
}

static int
test(DrCli *cli, const void *data)
{
  return dr_cli_each(cli, "POST", "/v1/peers/{}/test", NULL, tell_test);
}

int
dr_cmd_peer(DrCli *cli, int argc, char **argv)
{
  static const DrSubverb subverbs[] = {
    { "add", "NAME HOST[:PORT]", 2, 2, " pin ", add },
    { "list", "", 0, 0, DR_LIST_OPTIONS, list, .columns = columns },
    { "remove", "NAME", 1, 1, "", remove_peer },
    { "test", "NAME", 1, 1, "", test },
    { NULL },
  };
  Options options = { 0 };
  const GOptionEntry entries[] = {
    { "pin", 0, 0, G_OPTION_ARG_STRING_ARRAY, &options.pins,
      "add: the id of the key that it must have; several times, if it may have several", "HEX" },
    DR_LIST_ENTRIES(options.list, "list: "),
    { NULL },
  };
  int code = dr_cli_subverb(cli, argc, argv, entries, subverbs, &options);

  g_strfreev(options.pins);
  g_free(options.list.output);
  return code;
}
