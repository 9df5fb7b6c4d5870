/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Tokens. What is kept is their hash, so that how long a search takes says nothing of one. */
#include "net/tokens.h"
#include "base/deadline.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>

typedef struct {
  char *hash;
  char *peer;
  char *hello; /* as text: it goes from one thread to another */
  DrDeadline until;
} Token;

struct DrTokens {
  GMutex lock;
  GQueue all; /* of Token, the oldest first */
};

static void
token_free(gpointer data)
{
  Token *token = data;

  g_free(token->hash);
  g_free(token->peer);
  g_free(token->hello);
  g_free(token);
}

DrTokens *
dr_tokens_new(void)
{
  DrTokens *tokens = g_new0(DrTokens, 1);

  g_mutex_init(&tokens->lock);
  g_queue_init(&tokens->all);
  return tokens;
}

void
dr_tokens_free(DrTokens *tokens)
{
  if (!tokens)
    return;
  g_queue_clear_full(&tokens->all, token_free);
  g_mutex_clear(&tokens->lock);
  g_free(tokens);
}

static char *
random_digits(void)
{
  guint8 bytes[DR_TOKEN_DIGITS / 2];
  GString *digits = g_string_sized_new(DR_TOKEN_DIGITS);

  if (getrandom(bytes, sizeof bytes, 0) != sizeof bytes)
    g_error("no random numbers: %s", g_strerror(errno)); /* never, in a kernel that has booted */
  for (guint i = 0; i < sizeof bytes; i++)
    g_string_append_printf(digits, "%02x", bytes[i]);
  return g_string_free(digits, FALSE);
}

static char *
hash_of(const char *digits)
{
  return g_compute_checksum_for_string(G_CHECKSUM_SHA256, digits, -1);
}

/* Under the lock. */
static void
drop_old(DrTokens *tokens, guint keep)
{
  Token *first;

  while ((first = g_queue_peek_head(&tokens->all)) &&
         (tokens->all.length > keep || dr_deadline_passed(first->until)))
    token_free(g_queue_pop_head(&tokens->all));
}

char *
dr_tokens_give(DrTokens *tokens, const char *peer, JsonObject *hello)
{
  char *digits = random_digits();
  Token *token = g_new0(Token, 1);

  token->hash = hash_of(digits);
  token->peer = g_strdup(peer);
  token->hello = dr_json_print_object(hello, FALSE);
  token->until = dr_deadline_in(DR_TOKEN_MS);
  json_object_unref(hello);
  g_mutex_lock(&tokens->lock);
  drop_old(tokens, DR_TOKENS_MAX - 1);
  g_queue_push_tail(&tokens->all, token);
  g_mutex_unlock(&tokens->lock);
  return digits;
}

gboolean
dr_tokens_any(DrTokens *tokens)
{
  gboolean any;

  g_mutex_lock(&tokens->lock);
  drop_old(tokens, DR_TOKENS_MAX);
  any = tokens->all.length > 0;
  g_mutex_unlock(&tokens->lock);
  return any;
}

static gint
has_hash(gconstpointer token, gconstpointer hash)
{
  return strcmp(((const Token *)token)->hash, hash);
}

gboolean
dr_tokens_take(DrTokens *tokens, const char *digits, char **ret_peer, JsonObject **ret_hello)
{
  g_autofree char *hash = hash_of(digits);
  Token *token;
  GList *link;

  g_mutex_lock(&tokens->lock);
  drop_old(tokens, DR_TOKENS_MAX);
  link = g_queue_find_custom(&tokens->all, hash, has_hash);
  token = link ? link->data : NULL;
  if (link)
    g_queue_delete_link(&tokens->all, link);
  g_mutex_unlock(&tokens->lock);
  if (!token)
    return FALSE;
  *ret_peer = g_steal_pointer(&token->peer);
  *ret_hello = dr_json_parse_object(token->hello, -1, G_MAXSSIZE, NULL);
  token_free(token);
  return TRUE;
}
