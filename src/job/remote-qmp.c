/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A QMP server in a thread, on one end of a socket pair: it greets as that QEMU would, and asks the peer for the rest. Everything
 * that reads a guest by QMP so works for one on another host, too. */
#include "job/remote-qmp.h"
#include "base/error.h"
#include "base/fd.h"

#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#define GREET_MS 5000
#define ASK_MS 15000
#define MAX_LINE (1 << 20)

struct DrRemoteQmp {
  DrPeer *peer;
  char *move;
  int version_number;
  int fd;            /* the server's end */
  GHashTable *known; /* text of a command -> its answer, JsonObject: what was asked for all at once */
  GThread *thread;
  DrQmp *qmp;
};

static gboolean
say(DrRemoteQmp *remote, JsonObject *message)
{
  g_autofree char *text = dr_json_print_object(message, FALSE);
  g_autofree char *line = g_strconcat(text, "\r\n", NULL);
  gsize len = strlen(line), done = 0;

  json_object_unref(message);
  while (done < len) {
    gssize n = send(remote->fd, line + done, len - done, MSG_NOSIGNAL);

    if (n <= 0)
      return FALSE;
    done += (gsize)n;
  }
  return TRUE;
}

static gboolean
greet(DrRemoteQmp *remote)
{
  int number = remote->version_number;

  return say(remote,
             dr_json("{'QMP': <{'version': <{'qemu': <{'major': <%i>, 'minor': <%i>, 'micro': <%i>}>}>}>}",
                     number / 1000000, number / 1000 % 1000, number % 1000));
}

/* "query-status", "qom-get {…}" */
static char *
text_of(JsonObject *command)
{
  JsonObject *arguments = dr_json_obj(command, "arguments");
  g_autofree char *text = arguments ? dr_json_print_object(arguments, FALSE) : g_strdup("");

  return g_strconcat(dr_json_str(command, "execute", ""), " ", text, NULL);
}

/* The questions that the VM of here was asked are those that the other one will be asked, too: all of them go in one frame, for
 * each would be a round trip. What is not among them, or was refused there, is asked for by itself. */
static void
ask_ahead(DrRemoteQmp *remote, JsonArray *commands)
{
  JsonObject *params = dr_json("{'move': <%s>}", remote->move);
  g_autoptr(JsonObject) reply = NULL;
  JsonArray *answers;

  json_object_set_array_member(params, "commands", json_array_ref(commands));
  reply = dr_peer_ask(remote->peer, "move.qmps", params, ASK_MS, NULL);
  answers = reply ? dr_json_arr(reply, "answers") : NULL;
  for (guint i = 0; answers && i < MIN(json_array_get_length(answers), json_array_get_length(commands));
       i++) {
    JsonNode *node = json_array_get_element(answers, i);
    JsonObject *answer = JSON_NODE_HOLDS_OBJECT(node) ? json_node_get_object(node) : NULL;

    if (answer && json_object_has_member(answer, "return"))
      g_hash_table_replace(remote->known, text_of(json_array_get_object_element(commands, i)),
                           json_object_ref(answer));
  }
}

/* The command itself, without what belongs to this connection. */
static JsonObject *
ask(DrRemoteQmp *remote, JsonObject *command, GError **error)
{
  JsonObject *params =
      dr_json("{'move': <%s>, 'execute': <%s>}", remote->move, dr_json_str(command, "execute", ""));
  JsonObject *arguments = dr_json_obj(command, "arguments");
  g_autofree char *key = NULL;
  JsonObject *known;

  if (g_str_equal(dr_json_str(command, "execute", ""), "qmp_capabilities")) {
    json_object_unref(params);
    return dr_json("{'return': <@a{sv} {}>}");
  }
  key = text_of(command);
  known = g_hash_table_lookup(remote->known, key);
  if (known) {
    json_object_unref(params);
    return json_object_ref(known);
  }
  if (arguments)
    json_object_set_object_member(params, "arguments", json_object_ref(arguments));
  return dr_peer_ask(remote->peer, "move.qmp", params, ASK_MS, error);
}

static gboolean
answer(DrRemoteQmp *remote, const char *line, gsize len)
{
  g_autoptr(GError) error = NULL;
  g_autoptr(JsonObject) command = dr_json_parse_object(line, (gssize)len, MAX_LINE, NULL);
  JsonObject *reply = command ? ask(remote, command, &error) : NULL;

  if (!command)
    return FALSE;
  if (!reply && (g_error_matches(error, DR_ERROR, DR_ERROR_CLOSED) ||
                 g_error_matches(error, DR_ERROR, DR_ERROR_TIMEOUT)))
    return FALSE;
  if (!reply)
    reply = dr_json("{'error': <{'class': <'GenericError'>, 'desc': <%s>}>}", error->message);
  json_object_set_int_member(reply, "id", dr_json_int(command, "id", 0));
  return say(remote, reply);
}

static gpointer
serve(gpointer data)
{
  DrRemoteQmp *remote = data;
  g_autofree char *line = NULL;
  size_t room = 0;
  FILE *input = fdopen(dup(remote->fd), "r");
  gboolean open = input && greet(remote);

  while (open) {
    ssize_t len = getline(&line, &room, input);

    open = len > 0 && len <= MAX_LINE && answer(remote, line, (gsize)len);
  }
  shutdown(remote->fd, SHUT_RDWR);
  if (input)
    fclose(input);
  return NULL;
}

DrRemoteQmp *
dr_remote_qmp_new(DrPeer *peer, const char *move, int version_number, JsonArray *commands, GError **error)
{
  g_autoptr(DrRemoteQmp) remote = g_new0(DrRemoteQmp, 1);
  int fds[2];

  remote->peer = peer;
  remote->move = g_strdup(move);
  remote->version_number = version_number;
  remote->fd = -1;
  remote->known = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, (GDestroyNotify)json_object_unref);
  ask_ahead(remote, commands);
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0) {
    dr_error_set_errno(error, errno, "cannot make a socket pair");
    return NULL;
  }
  remote->fd = fds[0];
  remote->thread = g_thread_new("remote-qmp", serve, remote);
  remote->qmp = dr_qmp_new_fd(fds[1], "the QEMU on the other host", dr_deadline_in(GREET_MS), error);
  return remote->qmp ? g_steal_pointer(&remote) : NULL;
}

DrQmp *
dr_remote_qmp(DrRemoteQmp *remote)
{
  return remote->qmp;
}

void
dr_remote_qmp_free(DrRemoteQmp *remote)
{
  if (!remote)
    return;
  g_clear_pointer(&remote->qmp, dr_qmp_free);
  if (remote->fd >= 0)
    shutdown(remote->fd, SHUT_RDWR);
  if (remote->thread)
    g_thread_join(remote->thread);
  dr_fd_cleanup(&remote->fd);
  g_hash_table_unref(remote->known);
  g_free(remote->move);
  g_free(remote);
}
