/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One-time tokens, by which a connection without TLS is known. Any thread. */
#pragma once
#include "base/json.h"

#define DR_TOKEN_DIGITS 64 /* hexadecimal */
#define DR_TOKEN_MS 10000  /* how long one is good */
#define DR_TOKENS_MAX 256  /* beyond that the oldest is no longer good */

typedef struct DrTokens DrTokens;

DrTokens *dr_tokens_new(void);
void dr_tokens_free(DrTokens *tokens);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrTokens, dr_tokens_free)

/* A new one. `hello` is consumed. (transfer full) */
char *dr_tokens_give(DrTokens *tokens, const char *peer, JsonObject *hello);
/* Whether one is outstanding: if not, nobody who has no TLS need be listened to. */
gboolean dr_tokens_any(DrTokens *tokens);
/* FALSE: there is no such token, or it is too old. It is good once. (transfer full) */
gboolean dr_tokens_take(DrTokens *tokens, const char *digits, char **ret_peer, JsonObject **ret_hello);
