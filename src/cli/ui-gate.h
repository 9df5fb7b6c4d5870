/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Who may use the dashboard's proxy. It listens where every user and every page in the browser can reach it, and what is behind
 * it can move VMs, so that nothing is taken on trust:
 *
 *   the link's token    128 random bits, taken once; a browser then has the session cookie instead, which no script reads and
 *                       no other site's page can send (HttpOnly, SameSite=Strict)
 *   Host                our own name only, or a page whose name was made to lead to 127.0.0.1 would be of our origin
 *   Origin, X-Drover    of what changes something: a page of another port on this host is of the same site (though not of the
 *                       same origin), sends the cookie along, and can set no header of its own without being asked first
 */
#pragma once
#include "cli/ui-request.h"

typedef struct DrUiGate DrUiGate;

DrUiGate *dr_ui_gate_new(guint port);
void dr_ui_gate_free(DrUiGate *gate);

/* The link with its token. (transfer none) */
const char *dr_ui_gate_url(const DrUiGate *gate);

/* What the browser is to be told together with its cookie: the value of Set-Cookie. (transfer full) */
char *dr_ui_gate_cookie(const DrUiGate *gate);

typedef enum {
  DR_UI_REFUSED,
  DR_UI_TOKEN,   /* the token was right, and is now spent: give the cookie */
  DR_UI_FORWARD, /* hand it to droverd */
  DR_UI_HOME,    /* to the dashboard */
} DrUiVerdict;

/* From any thread. REFUSED with an error: REFUSED (with a remedy), or NOT_FOUND for a path that is not handed on. */
DrUiVerdict dr_ui_gate_check(DrUiGate *gate, const DrUiRequest *request, GError **error);
