/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A small HTTP server on loopback that lets one browser through to droverd: drover ui.
 *
 * A connection is a thread with one request, read, judged (ui-gate.h) and handed on; what droverd answers is passed as it
 * comes, 64 KiB at a time, so that a stream of events is one for the browser, too. */
#pragma once
#include "cli/cli.h"

typedef struct DrUiProxy DrUiProxy;

/* Listens on 127.0.0.1; `port` 0: any. `cli` must outlive it. Accepts in the default main context. Errors: EXISTS
 * for a port that is taken, IO. */
DrUiProxy *dr_ui_proxy_new(const DrCli *cli, guint port, GError **error);

guint dr_ui_proxy_port(const DrUiProxy *proxy);
/* The link that opens it, once. (transfer none) */
const char *dr_ui_proxy_url(const DrUiProxy *proxy);

/* Ends all connections, and waits a little for their threads. */
void dr_ui_proxy_free(DrUiProxy *proxy);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrUiProxy, dr_ui_proxy_free)
