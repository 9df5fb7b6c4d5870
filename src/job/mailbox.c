/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Questions to a running job. */
#include "job/mailbox.h"
#include "base/deadline.h"
#include "base/error.h"

#include <sys/eventfd.h>
#include <unistd.h>

typedef struct {
  const char *method;
  JsonObject *params;
  JsonObject *reply; /* the answer: this, or error */
  GError *error;
  gboolean taken, answered;
} Question;

struct DrMailbox {
  gatomicrefcount refs;
  GMutex lock;
  GCond changed;
  int fd;
  gboolean closed;
  Question *question; /* on the stack of who asks; NULL: none */
  Question *taken;    /* the job is at it; NULL: none, or who asked has given up */
};

DrMailbox *
dr_mailbox_new(void)
{
  DrMailbox *box = g_new0(DrMailbox, 1);

  g_atomic_ref_count_init(&box->refs);
  g_mutex_init(&box->lock);
  g_cond_init(&box->changed);
  box->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  return box;
}

DrMailbox *
dr_mailbox_ref(DrMailbox *box)
{
  g_atomic_ref_count_inc(&box->refs);
  return box;
}

void
dr_mailbox_unref(DrMailbox *box)
{
  if (!box || !g_atomic_ref_count_dec(&box->refs))
    return;
  close(box->fd);
  g_mutex_clear(&box->lock);
  g_cond_clear(&box->changed);
  g_free(box);
}

static gboolean
wait_turn(DrMailbox *box, DrDeadline deadline)
{
  while (box->question && !box->closed)
    if (!g_cond_wait_until(&box->changed, &box->lock, deadline))
      return FALSE;
  return !box->closed;
}

static void
wait_answer(DrMailbox *box, Question *question, DrDeadline deadline)
{
  box->question = question;
  eventfd_write(box->fd, 1);
  while (!question->answered && !(box->closed && !question->taken))
    if (!g_cond_wait_until(&box->changed, &box->lock, deadline))
      break;
  box->question = NULL;
  if (box->taken == question)
    box->taken = NULL; /* its answer will be dropped */
  g_cond_broadcast(&box->changed);
}

JsonObject *
dr_mailbox_ask(DrMailbox *box, const char *method, JsonObject *params, int timeout_ms, GError **error)
{
  DrDeadline deadline = dr_deadline_in(timeout_ms);
  Question question = { .method = method, .params = params };
  gboolean closed;

  g_mutex_lock(&box->lock);
  if (wait_turn(box, deadline))
    wait_answer(box, &question, deadline);
  closed = box->closed;
  g_mutex_unlock(&box->lock);
  if (question.error)
    g_propagate_error(error, question.error);
  else if (!question.answered && closed)
    dr_error_set(error, DR_ERROR_CLOSED, "the job that '%s' was meant for has ended", method);
  else if (!question.answered)
    dr_error_set(error, DR_ERROR_TIMEOUT, "the job did not answer '%s' in %d ms", method, timeout_ms);
  return question.reply;
}

int
dr_mailbox_fd(DrMailbox *box)
{
  return box->fd;
}

gboolean
dr_mailbox_take(DrMailbox *box, char **ret_method, JsonObject **ret_params)
{
  gboolean found;
  eventfd_t count;

  g_mutex_lock(&box->lock);
  eventfd_read(box->fd, &count);
  found = box->question && !box->question->taken;
  if (found) {
    box->taken = box->question;
    box->taken->taken = TRUE;
    *ret_method = g_strdup(box->taken->method);
    *ret_params = dr_json_dup_object(box->taken->params);
  }
  g_mutex_unlock(&box->lock);
  return found;
}

void
dr_mailbox_answer(DrMailbox *box, JsonObject *reply, const GError *error)
{
  Question *question;

  g_mutex_lock(&box->lock);
  question = box->taken;
  box->taken = NULL;
  if (question) {
    question->error = reply ? NULL : g_error_copy(error);
    question->reply = g_steal_pointer(&reply);
    question->answered = TRUE;
    g_cond_broadcast(&box->changed);
  }
  g_mutex_unlock(&box->lock);
  if (reply)
    json_object_unref(reply);
}

void
dr_mailbox_close(DrMailbox *box)
{
  g_mutex_lock(&box->lock);
  box->closed = TRUE;
  g_cond_broadcast(&box->changed);
  g_mutex_unlock(&box->lock);
}

/* --- Which can be asked --- */

static GMutex lock;
static GHashTable *published; /* "KIND/VM" -> DrMailbox */

static char *
key_of(const char *kind, const char *vm)
{
  return g_strconcat(kind, "/", vm, NULL);
}

void
dr_mailbox_publish(const char *kind, const char *vm, DrMailbox *box)
{
  g_mutex_lock(&lock);
  if (!published)
    published = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, (GDestroyNotify)dr_mailbox_unref);
  g_hash_table_insert(published, key_of(kind, vm), dr_mailbox_ref(box));
  g_mutex_unlock(&lock);
}

void
dr_mailbox_withdraw(const char *kind, const char *vm, DrMailbox *box)
{
  g_autofree char *key = key_of(kind, vm);

  g_mutex_lock(&lock);
  if (published && g_hash_table_lookup(published, key) == box)
    g_hash_table_remove(published, key);
  g_mutex_unlock(&lock);
}

DrMailbox *
dr_mailbox_find(const char *kind, const char *vm)
{
  g_autofree char *key = key_of(kind, vm);
  DrMailbox *box;

  g_mutex_lock(&lock);
  box = published ? g_hash_table_lookup(published, key) : NULL;
  if (box)
    dr_mailbox_ref(box);
  g_mutex_unlock(&lock);
  return box;
}
