/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A client of qemu-guest-agent. */
#include "qemu/agent.h"
#include "base/error.h"
#include "base/fd.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#define ANSWER_MAX (1024 * 1024)
#define SENTINEL '\xff' /* before the answer to guest-sync-delimited: what was before it is somebody else's */

struct DrAgent {
  int fd;
  GString *in;
};

static gboolean
wait_for(const DrAgent *agent, short events, DrDeadline deadline, GError **error)
{
  struct pollfd fd = { .fd = agent->fd, .events = events };

  if (poll(&fd, 1, dr_deadline_left(deadline)) > 0)
    return TRUE;
  return dr_error_set(error, DR_ERROR_TIMEOUT, "the guest agent does not answer");
}

static gboolean
send_line(DrAgent *agent, const char *text, DrDeadline deadline, GError **error)
{
  gsize len = strlen(text);

  while (len > 0) {
    gssize n = send(agent->fd, text, len, MSG_NOSIGNAL | MSG_DONTWAIT);

    if (n > 0) {
      text += n;
      len -= (gsize)n;
    } else if (errno == EAGAIN || errno == EINTR) {
      if (!wait_for(agent, POLLOUT, deadline, error))
        return FALSE;
    } else {
      return dr_error_set_errno(error, errno, "cannot write to the guest agent");
    }
  }
  return TRUE;
}

static gboolean
read_some(DrAgent *agent, DrDeadline deadline, GError **error)
{
  char buffer[4096];
  gssize n;

  if (!wait_for(agent, POLLIN, deadline, error))
    return FALSE;
  n = recv(agent->fd, buffer, sizeof buffer, MSG_DONTWAIT);
  if (n == 0)
    return dr_error_set(error, DR_ERROR_CLOSED, "QEMU has closed the guest agent's port");
  if (n < 0)
    return errno == EAGAIN || errno == EINTR
               ? TRUE
               : dr_error_set_errno(error, errno, "cannot read from the guest agent");
  g_string_append_len(agent->in, buffer, n);
  return agent->in->len <= ANSWER_MAX ||
         dr_error_set(error, DR_ERROR_INVALID, "the guest agent's answer has no end");
}

/* The next line of at least one character. (transfer full) */
static char *
read_line(DrAgent *agent, DrDeadline deadline, GError **error)
{
  for (;;) {
    char *end = memchr(agent->in->str, '\n', agent->in->len);
    char *line;

    if (!end) {
      if (!read_some(agent, deadline, error))
        return NULL;
      continue;
    }
    line = g_strndup(agent->in->str, (gsize)(end - agent->in->str));
    g_string_erase(agent->in, 0, end - agent->in->str + 1);
    if (*line)
      return line;
    g_free(line);
  }
}

static JsonNode *
result_of(const char *line, GError **error)
{
  g_autoptr(JsonObject) answer = dr_json_parse_object(line, -1, ANSWER_MAX, error);
  JsonNode *node;

  if (!answer)
    return NULL;
  if (json_object_has_member(answer, "error")) {
    dr_error_set(error, DR_ERROR_QMP, "the guest agent says: %s",
                 dr_json_str(answer, "error.desc", "an error"));
    return NULL;
  }
  node = json_object_get_member(answer, "return");
  if (!node)
    dr_error_set(error, DR_ERROR_INVALID, "the guest agent's answer is none");
  return node ? dr_json_dup(node) : NULL;
}

static char *
request(const char *command, JsonObject *arguments)
{
  g_autoptr(JsonObject) object = dr_json("{'execute': <%s>}", command);
  g_autofree char *text = NULL;

  if (arguments)
    json_object_set_object_member(object, "arguments", arguments);
  text = dr_json_print_object(object, FALSE);
  return g_strconcat(text, "\n", NULL);
}

JsonNode *
dr_agent_call(DrAgent *agent, const char *command, JsonObject *arguments, DrDeadline deadline, GError **error)
{
  g_autofree char *text = request(command, arguments);
  g_autofree char *line = send_line(agent, text, deadline, error) ? read_line(agent, deadline, error) : NULL;

  return line ? result_of(line, error) : NULL;
}

/* Reads away what an earlier client has left, up to the answer to a question that only we can have asked. */
static gboolean
sync_with(DrAgent *agent, DrDeadline deadline, GError **error)
{
  gint64 id = (gint64)g_random_int();
  g_autofree char *text = request("guest-sync-delimited", dr_json("{'id': <%x>}", id));

  if (!send_line(agent, "\xff", deadline, error) || !send_line(agent, text, deadline, error))
    return FALSE;
  for (;;) {
    g_autofree char *line = read_line(agent, deadline, error);
    const char *begin = line ? strrchr(line, SENTINEL) : NULL;
    g_autoptr(JsonNode) node = begin ? result_of(begin + 1, NULL) : NULL;

    if (!line)
      return FALSE;
    if (node && JSON_NODE_HOLDS_VALUE(node) && json_node_get_int(node) == id)
      return TRUE;
  }
}

DrAgent *
dr_agent_connect(const char *path, DrDeadline deadline, GError **error)
{
  struct sockaddr_un address = { .sun_family = AF_UNIX };
  g_autoptr(DrAgent) agent = g_new0(DrAgent, 1);

  agent->in = g_string_new(NULL);
  agent->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (strlen(path) >= sizeof address.sun_path) {
    dr_error_set(error, DR_ERROR_INVALID, "the guest agent's socket '%s' has too long a path", path);
    return NULL;
  }
  g_strlcpy(address.sun_path, path, sizeof address.sun_path);
  if (agent->fd < 0 || connect(agent->fd, (struct sockaddr *)&address, sizeof address) < 0) {
    dr_error_set(error, errno == ENOENT || errno == ECONNREFUSED ? DR_ERROR_CLOSED : DR_ERROR_TIMEOUT,
                 "cannot connect to the guest agent's socket '%s': %s", path, g_strerror(errno));
    return NULL;
  }
  return sync_with(agent, deadline, error) ? g_steal_pointer(&agent) : NULL;
}

void
dr_agent_free(DrAgent *agent)
{
  if (!agent)
    return;
  if (agent->fd >= 0)
    close(agent->fd);
  g_string_free(agent->in, TRUE);
  g_free(agent);
}
