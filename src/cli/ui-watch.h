/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Looks whether droverd is still there, for as long as drover ui runs. */
#pragma once
#include "cli/cli.h"

typedef struct DrUiWatch DrUiWatch;

/* Asks every few seconds, on a thread; says on stderr when droverd goes away and when it is back, and ends `loop` when it has
 * been away for `away_s`. `cli` must outlive it. */
DrUiWatch *dr_ui_watch_new(const DrCli *cli, guint away_s, GMainLoop *loop);

/* Ends it. FALSE with the error set where droverd had been away for too long. */
gboolean dr_ui_watch_end(DrUiWatch *watch, GError **error);
