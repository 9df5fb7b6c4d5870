/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* QMP: one line of JSON each way, answers matched by id, events queued. */
#include "qmp/qmp.h"
#include "base/error.h"
#include "base/fd.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#define MAX_LINE                                                                                             \
  (16 * 1024 * 1024) /* query-named-block-nodes of a VM with many snapshots has some hundred KiB */
#define MAX_OWED 4   /* commands in a monitor's queue; QEMU takes 8 (QMP_REQ_QUEUE_LEN_MAX) */
#define GREETING_MS 3000

struct DrQmp {
  int fd;
  int cancel_fd; /* -1, not owned */
  gboolean closed;
  pid_t peer;
  char *what; /* for messages */
  char *version;
  int version_number;
  GByteArray *in; /* bytes of a line that has not ended yet */
  GQueue events;  /* of DrQmpEvent */
  guint dropped;
  gint64 next_id;
  gboolean oob;       /* this connection takes commands out of band */
  gint64 wanted_id;   /* the answer that a call waits for; 0: none */
  JsonArray *record;  /* nullable, borrowed */
  guint owed;         /* answers to calls that nobody waits for any more */
  JsonObject *answer; /* it, once it came */
  JsonObject *greeting;
};

void
dr_qmp_event_free(DrQmpEvent *event)
{
  if (!event)
    return;
  g_clear_pointer(&event->data, json_object_unref);
  g_free(event->name);
  g_free(event);
}

void
dr_qmp_free(DrQmp *qmp)
{
  if (!qmp)
    return;
  close(qmp->fd);
  g_queue_clear_full(&qmp->events, (GDestroyNotify)dr_qmp_event_free);
  g_byte_array_unref(qmp->in);
  g_clear_pointer(&qmp->answer, json_object_unref);
  g_clear_pointer(&qmp->greeting, json_object_unref);
  g_free(qmp->version);
  g_free(qmp->what);
  g_free(qmp);
}

void
dr_qmp_set_cancel_fd(DrQmp *qmp, int fd)
{
  qmp->cancel_fd = fd;
}

pid_t
dr_qmp_peer_pid(DrQmp *qmp)
{
  return qmp->peer;
}

int
dr_qmp_fd(DrQmp *qmp)
{
  return qmp->fd;
}

gboolean
dr_qmp_closed(DrQmp *qmp)
{
  return qmp->closed;
}

const char *
dr_qmp_version(DrQmp *qmp)
{
  return qmp->version;
}

int
dr_qmp_version_number(DrQmp *qmp)
{
  return qmp->version_number;
}

static void
queue_event(DrQmp *qmp, JsonObject *message, const char *name)
{
  DrQmpEvent *event = g_new0(DrQmpEvent, 1);
  JsonObject *data = dr_json_obj(message, "data");

  event->name = g_strdup(name);
  event->data = data ? json_object_ref(data) : NULL;
  event->time_us = dr_json_int(message, "timestamp.seconds", 0) * G_USEC_PER_SEC +
                   dr_json_int(message, "timestamp.microseconds", 0);
  if (g_queue_get_length(&qmp->events) >= DR_QMP_MAX_EVENTS) {
    dr_qmp_event_free(g_queue_pop_head(&qmp->events));
    if (qmp->dropped++ == 0)
      g_warning("%s: more than %d events unread, the oldest are dropped", qmp->what, DR_QMP_MAX_EVENTS);
  }
  g_queue_push_tail(&qmp->events, event);
}

static void
take_answer(DrQmp *qmp, JsonObject *message)
{
  if (qmp->wanted_id && dr_json_int(message, "id", 0) == qmp->wanted_id) {
    g_clear_pointer(&qmp->answer, json_object_unref);
    qmp->answer = json_object_ref(message);
    return;
  }
  if (qmp->owed > 0)
    qmp->owed--;
  if (dr_json_obj(message, "error"))
    g_message("%s: a command that nobody waits for failed: %s", qmp->what,
              dr_json_str(message, "error.desc", "?"));
}

static gboolean
take_line(DrQmp *qmp, const char *line, gsize len, GError **error)
{
  g_autoptr(JsonObject) message = NULL;
  const char *event;

  if (len == 0 || (len == 1 && line[0] == '\r'))
    return TRUE;
  message = dr_json_parse_object(line, len, MAX_LINE, error);
  if (!message) {
    g_prefix_error(error, "%s sent garbage: ", qmp->what);
    return FALSE;
  }
  event = dr_json_str(message, "event", NULL);
  if (event)
    queue_event(qmp, message, event);
  else if (dr_json_obj(message, "QMP") && !qmp->greeting)
    qmp->greeting = json_object_ref(message);
  else
    take_answer(qmp, message);
  return TRUE;
}

/* Takes all whole lines out of the buffer. */
static gboolean
take_lines(DrQmp *qmp, GError **error)
{
  gsize begin = 0;
  guint8 *end;

  while ((end = memchr(qmp->in->data + begin, '\n', qmp->in->len - begin))) {
    gsize len = end - (qmp->in->data + begin);

    if (!take_line(qmp, (char *)qmp->in->data + begin, len, error))
      return FALSE;
    begin += len + 1;
  }
  if (begin)
    g_byte_array_remove_range(qmp->in, 0, begin);
  if (qmp->in->len > MAX_LINE)
    return dr_error_set(error, DR_ERROR_INVALID, "%s sent a line of more than %d bytes", qmp->what, MAX_LINE);
  return TRUE;
}

/* Reads what is there, once. A connection that ends or turns to garbage is closed for good. */
static gboolean
receive(DrQmp *qmp, GError **error)
{
  guint8 chunk[65536];
  gssize n = recv(qmp->fd, chunk, sizeof chunk, MSG_DONTWAIT);

  if (n < 0 && (errno == EAGAIN || errno == EINTR))
    return TRUE;
  if (n <= 0) {
    qmp->closed = TRUE;
    return dr_error_set(error, DR_ERROR_CLOSED, "%s closed its monitor connection", qmp->what);
  }
  g_byte_array_append(qmp->in, chunk, n);
  if (!take_lines(qmp, error)) {
    qmp->closed = TRUE;
    return FALSE;
  }
  return TRUE;
}

/* Waits until one of the connections is readable. */
static gboolean
wait_readable(DrQmp *const *qmps, guint n, DrDeadline deadline, const char *what, GError **error)
{
  struct pollfd fds[8];
  guint used = 0;
  int got;

  g_assert(n <= 6);
  for (guint i = 0; i < n; i++) {
    if (qmps[i] && !qmps[i]->closed)
      fds[used++] = (struct pollfd){ .fd = qmps[i]->fd, .events = POLLIN };
  }
  for (guint i = 0; i < n; i++) {
    if (qmps[i] && qmps[i]->cancel_fd >= 0) {
      fds[used++] = (struct pollfd){ .fd = qmps[i]->cancel_fd, .events = POLLIN };
      break;
    }
  }
  do
    got = poll(fds, used, dr_deadline_left(deadline));
  while (got < 0 && errno == EINTR);
  if (got == 0)
    return dr_error_set(error, DR_ERROR_TIMEOUT, "%s did not answer in time", what);
  for (guint i = 0; i < n; i++) {
    if (qmps[i] && qmps[i]->cancel_fd >= 0 && fds[used - 1].fd == qmps[i]->cancel_fd && fds[used - 1].revents)
      return dr_error_set(error, DR_ERROR_CANCELLED, "cancelled");
  }
  return TRUE;
}

/* `fd`: goes with the first byte; -1: none. */
static gssize
send_some(DrQmp *qmp, const char *text, gsize len, int fd)
{
  union {
    char buffer[CMSG_SPACE(sizeof(int))];
    struct cmsghdr align;
  } control = { 0 };
  struct iovec data = { .iov_base = (void *)text, .iov_len = len };
  struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1 };

  if (fd >= 0) {
    message.msg_control = control.buffer;
    message.msg_controllen = sizeof control.buffer;
    CMSG_FIRSTHDR(&message)->cmsg_level = SOL_SOCKET;
    CMSG_FIRSTHDR(&message)->cmsg_type = SCM_RIGHTS;
    CMSG_FIRSTHDR(&message)->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(CMSG_FIRSTHDR(&message)), &fd, sizeof fd);
  }
  return sendmsg(qmp->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static gboolean
send_all(DrQmp *qmp, const char *text, gsize len, int passed, DrDeadline deadline, GError **error)
{
  while (len > 0) {
    gssize n = send_some(qmp, text, len, passed);

    if (n < 0 && errno == EAGAIN) {
      struct pollfd fd = { .fd = qmp->fd, .events = POLLOUT };

      if (poll(&fd, 1, dr_deadline_left(deadline)) == 0)
        return dr_error_set(error, DR_ERROR_TIMEOUT, "%s does not read its monitor", qmp->what);
      continue;
    }
    if (n < 0 && errno == EINTR)
      continue;
    if (n < 0) {
      qmp->closed = TRUE;
      return dr_error_set(error, DR_ERROR_CLOSED, "%s closed its monitor connection", qmp->what);
    }
    passed = -1;
    text += n;
    len -= n;
  }
  return TRUE;
}

static gboolean
send_command(DrQmp *qmp, const char *how, const char *command, JsonObject *arguments, gint64 id, int passed,
             DrDeadline deadline, GError **error)
{
  g_autoptr(JsonObject) message = json_object_new();
  g_autofree char *text = NULL;
  g_autofree char *line = NULL;

  json_object_set_string_member(message, how, command);
  if (arguments)
    json_object_set_object_member(message, "arguments", arguments);
  json_object_set_int_member(message, "id", id);
  text = dr_json_print_object(message, FALSE);
  line = g_strconcat(text, "\r\n", NULL);
  return send_all(qmp, line, strlen(line), passed, deadline, error);
}

static JsonNode *
result_of(DrQmp *qmp, const char *command, JsonObject *answer, GError **error)
{
  JsonNode *node = json_object_get_member(answer, "return");

  if (node)
    return json_node_copy(node);
  dr_error_set(error, DR_ERROR_QMP, "%s refused '%s': %s", qmp->what, command,
               dr_json_str(answer, "error.desc", "no reason given"));
  return NULL;
}

static gboolean
read_more(DrQmp *qmp, DrDeadline deadline, GError **error)
{
  if (qmp->closed)
    return dr_error_set(error, DR_ERROR_CLOSED, "%s closed its monitor connection", qmp->what);
  return wait_readable(&qmp, 1, deadline, qmp->what, error) && receive(qmp, error);
}

/* QEMU stops reading a monitor whose queue is full, and a command out of band would not get through to it either. */
static gboolean
wait_room(DrQmp *qmp, DrDeadline deadline, GError **error)
{
  while (qmp->owed >= MAX_OWED)
    if (!read_more(qmp, deadline, error))
      return FALSE;
  return TRUE;
}

static gboolean
get_answer(DrQmp *qmp, DrDeadline deadline, GError **error)
{
  while (!qmp->answer)
    if (!read_more(qmp, deadline, error)) {
      qmp->owed++;
      return FALSE;
    }
  return TRUE;
}

void
dr_qmp_record(DrQmp *qmp, JsonArray *into)
{
  qmp->record = into;
}

static void
note(DrQmp *qmp, const char *command, JsonObject *arguments)
{
  JsonObject *one = dr_json("{'execute': <%s>}", command);

  if (arguments)
    json_object_set_object_member(one, "arguments", json_object_ref(arguments));
  json_array_add_object_element(qmp->record, one);
}

static JsonNode *
call(DrQmp *qmp, const char *how, const char *command, JsonObject *arguments, int passed, int timeout_ms,
     GError **error)
{
  DrDeadline deadline = dr_deadline_in(timeout_ms);
  gboolean in_band = g_str_equal(how, "execute");
  g_autoptr(JsonObject) own = arguments;
  g_autoptr(JsonObject) answer = NULL;
  gint64 id = ++qmp->next_id;

  if (qmp->record)
    note(qmp, command, arguments);
  qmp->wanted_id = id;
  if ((in_band && !wait_room(qmp, deadline, error)) ||
      !send_command(qmp, how, command, g_steal_pointer(&own), id, passed, deadline, error) ||
      !get_answer(qmp, deadline, error)) {
    g_prefix_error(error, "QMP command '%s': ", command);
    qmp->wanted_id = 0;
    return NULL;
  }
  qmp->wanted_id = 0;
  answer = g_steal_pointer(&qmp->answer);
  return result_of(qmp, command, answer, error);
}

JsonNode *
dr_qmp_call(DrQmp *qmp, const char *command, JsonObject *arguments, int timeout_ms, GError **error)
{
  return call(qmp, "execute", command, arguments, -1, timeout_ms, error);
}

gboolean
dr_qmp_pass_fd(DrQmp *qmp, const char *name, int fd, GError **error)
{
  g_autoptr(JsonNode) answer =
      call(qmp, "execute", "getfd", dr_json("{'fdname': <%s>}", name), fd, DR_QMP_TIMEOUT_MS, error);

  return answer != NULL;
}

gboolean
dr_qmp_do_oob(DrQmp *qmp, const char *command, JsonObject *arguments, GError **error)
{
  g_autoptr(JsonNode) answer =
      call(qmp, qmp->oob ? "exec-oob" : "execute", command, arguments, -1, DR_QMP_TIMEOUT_MS, error);

  return answer != NULL;
}

JsonObject *
dr_qmp_call_object(DrQmp *qmp, const char *command, JsonObject *arguments, GError **error)
{
  g_autoptr(JsonNode) node = dr_qmp_call(qmp, command, arguments, DR_QMP_TIMEOUT_MS, error);

  if (!node)
    return NULL;
  if (JSON_NODE_HOLDS_OBJECT(node))
    return json_node_dup_object(node);
  dr_error_set(error, DR_ERROR_QMP, "%s answered '%s' with something that is not an object", qmp->what,
               command);
  return NULL;
}

JsonArray *
dr_qmp_call_array(DrQmp *qmp, const char *command, JsonObject *arguments, GError **error)
{
  g_autoptr(JsonNode) node = dr_qmp_call(qmp, command, arguments, DR_QMP_TIMEOUT_MS, error);

  if (!node)
    return NULL;
  if (JSON_NODE_HOLDS_ARRAY(node))
    return json_node_dup_array(node);
  dr_error_set(error, DR_ERROR_QMP, "%s answered '%s' with something that is not an array", qmp->what,
               command);
  return NULL;
}

gboolean
dr_qmp_do(DrQmp *qmp, const char *command, JsonObject *arguments, GError **error)
{
  g_autoptr(JsonNode) node = dr_qmp_call(qmp, command, arguments, DR_QMP_TIMEOUT_MS, error);

  return node != NULL;
}

char *
dr_qmp_hmp(DrQmp *qmp, GError **error, const char *format, ...)
{
  g_autofree char *line = NULL;
  g_autoptr(JsonNode) node = NULL;
  va_list ap;

  va_start(ap, format);
  line = g_strdup_vprintf(format, ap);
  va_end(ap);
  node = dr_qmp_call(qmp, "human-monitor-command", dr_json("{'command-line': <%s>}", line), DR_QMP_TIMEOUT_MS,
                     error);
  return node ? g_strdup(JSON_NODE_HOLDS_VALUE(node) ? json_node_get_string(node) : "") : NULL;
}

JsonNode *
dr_qmp_qom_get(DrQmp *qmp, const char *path, const char *property, GError **error)
{
  return dr_qmp_call(qmp, "qom-get", dr_json("{'path': <%s>, 'property': <%s>}", path, property),
                     DR_QMP_TIMEOUT_MS, error);
}

char *
dr_qmp_qom_str(DrQmp *qmp, const char *path, const char *property, GError **error)
{
  g_autoptr(JsonNode) node = dr_qmp_qom_get(qmp, path, property, error);

  if (!node)
    return NULL;
  if (JSON_NODE_HOLDS_VALUE(node) && json_node_get_value_type(node) == G_TYPE_STRING)
    return json_node_dup_string(node);
  dr_error_set(error, DR_ERROR_QMP, "%s: property '%s' of '%s' is not a string", qmp->what, property, path);
  return NULL;
}

DrQmpEvent *
dr_qmp_pop_event(DrQmp *qmp)
{
  return g_queue_pop_head(&qmp->events);
}

/* Whether `name` is one of "A|B|C". */
static gboolean
name_matches(const char *names, const char *name)
{
  g_auto(GStrv) all = g_strsplit(names, "|", -1);

  return g_strv_contains((const char *const *)all, name);
}

DrQmpEvent *
dr_qmp_wait_event(DrQmp *qmp, const char *name, DrDeadline deadline, GError **error)
{
  for (;;) {
    g_autoptr(DrQmpEvent) event = dr_qmp_pop_event(qmp);

    if (event && name_matches(name, event->name))
      return g_steal_pointer(&event);
    if (event)
      continue;
    if (qmp->closed) {
      dr_error_set(error, DR_ERROR_CLOSED, "%s closed its monitor connection", qmp->what);
      return NULL;
    }
    if (!wait_readable(&qmp, 1, deadline, qmp->what, error)) {
      g_prefix_error(error, "waiting for event %s: ", name);
      return NULL;
    }
    if (!receive(qmp, error))
      return NULL;
  }
}

gboolean
dr_qmp_wait_many(DrQmp *const *qmps, guint n, DrDeadline deadline, GError **error)
{
  for (;;) {
    for (guint i = 0; i < n; i++)
      if (qmps[i] && (qmps[i]->closed || !g_queue_is_empty(&qmps[i]->events)))
        return TRUE;
    if (!wait_readable(qmps, n, deadline, "QEMU", error))
      return FALSE;
    for (guint i = 0; i < n; i++)
      if (qmps[i])
        dr_qmp_read_some(qmps[i]);
  }
}

gboolean
dr_qmp_read_some(DrQmp *qmp)
{
  g_autoptr(GError) error = NULL;

  if (!qmp->closed && !receive(qmp, &error))
    g_debug("%s", error->message);
  return !qmp->closed;
}

static gboolean
offers_oob(DrQmp *qmp)
{
  JsonArray *offered = dr_json_arr(qmp->greeting, "QMP.capabilities");
  g_auto(GStrv) names = offered ? dr_json_strv(offered) : NULL;

  return names && g_strv_contains((const char *const *)names, "oob");
}

static gboolean
enter_command_mode(DrQmp *qmp, GError **error)
{
  qmp->oob = offers_oob(qmp);
  return dr_qmp_do(qmp, "qmp_capabilities", qmp->oob ? dr_json("{'enable': <['oob']>}") : NULL, error);
}

static gboolean
greet(DrQmp *qmp, DrDeadline deadline, GError **error)
{
  g_autoptr(GError) local = NULL;
  JsonObject *version;

  while (!qmp->greeting) {
    if (!wait_readable(&qmp, 1, deadline, qmp->what, &local)) {
      dr_error_set(
          error, DR_ERROR_BUSY,
          "%s accepted a connection but does not greet: another client holds it, or it is no QMP socket",
          qmp->what);
      return dr_error_remedy(error,
                             "close the other client of that monitor, or give the VM a second -qmp socket");
    }
    if (!receive(qmp, error))
      return FALSE;
  }
  version = dr_json_obj(qmp->greeting, "QMP.version.qemu");
  qmp->version_number = DR_QEMU(dr_json_int(version, "major", 0), dr_json_int(version, "minor", 0)) +
                        dr_json_int(version, "micro", 0);
  qmp->version =
      g_strdup_printf("%d.%d.%d", (int)dr_json_int(version, "major", 0),
                      (int)dr_json_int(version, "minor", 0), (int)dr_json_int(version, "micro", 0));
  return enter_command_mode(qmp, error);
}

static pid_t
peer_of(int fd)
{
  struct ucred cred;
  socklen_t len = sizeof cred;

  return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) == 0 ? cred.pid : 0;
}

DrQmp *
dr_qmp_new_fd(int fd, const char *what, DrDeadline deadline, GError **error)
{
  g_autoptr(DrQmp) qmp = g_new0(DrQmp, 1);

  qmp->fd = fd;
  qmp->cancel_fd = -1;
  qmp->what = g_strdup(what);
  qmp->peer = peer_of(fd);
  qmp->in = g_byte_array_new();
  g_queue_init(&qmp->events);
  return greet(qmp, deadline, error) ? g_steal_pointer(&qmp) : NULL;
}

static int
try_connect(const char *path)
{
  struct sockaddr_un address = { .sun_family = AF_UNIX };
  gsize len = strlen(path);
  int fd;

  if (len >= sizeof address.sun_path) {
    errno = ENAMETOOLONG;
    return -1;
  }
  memcpy(address.sun_path, path, len);
  if (path[0] == '@')
    address.sun_path[0] = '\0';
  fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0)
    return -1;
  /* A listener with a full queue blocks connect(2); a sending timeout bounds that on unix sockets. */
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &(struct timeval){ .tv_sec = 2 }, sizeof(struct timeval));
  if (connect(fd, (struct sockaddr *)&address,
              path[0] == '@' ? offsetof(struct sockaddr_un, sun_path) + len : sizeof address) == 0)
    return fd;
  g_assert(errno != 0);
  int saved = errno;
  close(fd);
  errno = saved;
  return -1;
}

pid_t
dr_qmp_listener(const char *path)
{
  dr_autofd int fd = try_connect(path);

  return fd >= 0 ? peer_of(fd) : 0;
}

static gboolean
has_ended(int pidfd)
{
  struct pollfd fd = { .fd = pidfd, .events = POLLIN };

  return pidfd >= 0 && poll(&fd, 1, 0) > 0;
}

/* Tries until it is connected, the deadline has passed or the process behind `pidfd` has ended. -1: errno tells. */
static int
keep_trying(const char *path, int pidfd, DrDeadline deadline)
{
  int fd;

  while ((fd = try_connect(path)) < 0) {
    int err = errno;

    if ((err != ENOENT && err != ECONNREFUSED) || dr_deadline_passed(deadline) || has_ended(pidfd)) {
      errno = err;
      return -1;
    }
    g_usleep(500);
  }
  return fd;
}

/* connect(2) refuses a file as it refuses a socket on which nobody listens any more. */
static void
connect_error(const char *path, int err, GError **error)
{
  struct stat st;

  if (err == EAGAIN) {
    dr_error_set(
        error, DR_ERROR_BUSY,
        "cannot connect to QMP socket '%s': its queue is full and it does not greet: another client holds it",
        path);
    dr_error_remedy(error, "close the other client of that monitor, or give the VM a second -qmp socket");
  } else if (err == ECONNREFUSED && stat(path, &st) == 0 && !S_ISSOCK(st.st_mode)) {
    dr_error_set(error, DR_ERROR_IO, "cannot connect to QMP socket '%s': it is no socket", path);
  } else if (err == ECONNREFUSED) {
    dr_error_set(error, DR_ERROR_IO, "cannot connect to QMP socket '%s': nobody listens there any more",
                 path);
  } else {
    dr_error_set_errno(error, err, "cannot connect to QMP socket '%s'", path);
    if (err == ENOENT)
      dr_error_remedy(error, "give the path that stands behind -qmp unix: on the command line of its QEMU");
  }
}

static DrQmp *
connected(int fd, int err, const char *path, DrDeadline deadline, GError **error)
{
  g_autofree char *what = g_strdup_printf("QEMU at '%s'", path);

  if (fd >= 0)
    return dr_qmp_new_fd(fd, what, deadline, error);
  connect_error(path, err, error);
  return NULL;
}

DrQmp *
dr_qmp_connect(const char *path, gboolean wait, DrDeadline deadline, GError **error)
{
  int fd = wait ? keep_trying(path, -1, deadline) : try_connect(path);

  return connected(fd, errno, path, wait ? deadline : MIN(deadline, dr_deadline_in(GREETING_MS)), error);
}

/* A socket that another process has, too, keeps a connection open that nobody will take. */
static void
wait_for_greeting(int fd, int pidfd, DrDeadline deadline)
{
  struct pollfd fds[] = { { .fd = fd, .events = POLLIN }, { .fd = pidfd, .events = POLLIN } };

  while (poll(fds, G_N_ELEMENTS(fds), dr_deadline_left(deadline)) < 0 && errno == EINTR)
    ;
}

DrQmp *
dr_qmp_await(const char *path, int pidfd, DrDeadline deadline, GError **error)
{
  dr_autofd int waiting = keep_trying(path, pidfd, deadline);
  int err = errno, fd;

  if (waiting >= 0 && pidfd >= 0)
    wait_for_greeting(waiting, pidfd, deadline);
  fd = has_ended(pidfd) ? -1 : dr_fd_steal(&waiting);
  if (fd < 0 && has_ended(pidfd)) {
    dr_error_set(error, DR_ERROR_CLOSED, "QEMU ended before it was ready");
    return NULL;
  }
  return connected(fd, err, path, deadline, error);
}
