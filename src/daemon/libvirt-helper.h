/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* drover-libvirt, the program that knows libvirt, as droverd starts it: libvirt/run.h says what it does. */
#pragma once
#include "base/json.h"

#include <sys/types.h>

typedef struct {
  char *dir, *run_dir;   /* its own, beneath droverd's */
  const char *cache_dir; /* droverd's */
} DrLibvirtHelper;

gboolean dr_libvirt_helper_installed(void);

/* `check`: to its end. `stop` (nullable): droverd ends. (transfer full): the report. Errors: the program's own; UNSUPPORTED: it is not
 * installed; TIMEOUT. */
JsonObject *dr_libvirt_helper_check(const DrLibvirtHelper *helper, JsonObject *spec, const gint *stop,
                                    GError **error);

/* `upgrade` (with `spec`) or `recover` (NULL): started in a session of its own, where it survives droverd. What it says is in DIR/log. 0 on
 * error; the caller reaps it. */
pid_t dr_libvirt_helper_start(const DrLibvirtHelper *helper, JsonObject *spec, GError **error);

/* Whether one is at work, whoever has started it. */
gboolean dr_libvirt_helper_works(const DrLibvirtHelper *helper);

/* DIR/run.json (libvirt/journal.h). (transfer full); NULL without an error: there is none. */
JsonObject *dr_libvirt_helper_read(const DrLibvirtHelper *helper, GError **error);
/* Another number when DIR/run.json is another one. */
guint64 dr_libvirt_helper_stamp(const DrLibvirtHelper *helper);

/* The error in what it said last; where there is none, that it ended. Always FALSE. */
gboolean dr_libvirt_helper_last_error(const DrLibvirtHelper *helper, GError **error);
