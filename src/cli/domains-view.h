/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Runs over libvirt's domains in words. */
#pragma once
#include "base/json.h"

/* How many domains the run is over; 0 also before it has looked. */
guint dr_domains_view_count(JsonObject *run);

/* What it does just now: "stopping libvirtd.service". (transfer full) */
char *dr_domains_view_doing(JsonObject *run);

/* Whether nothing more will become of a domain, but that libvirt's view is looked at. */
gboolean dr_domains_view_settled(JsonObject *domain);
/* What its upgrade waits for, on stderr. */
void dr_domains_view_print_note(JsonObject *domain);
/* What has become of it: a sentence on stdout, or why not on stderr with each blocker and remedy. */
void dr_domains_view_print(JsonObject *domain, gboolean color);

/* How the run ended: what is to be said beside its domains. */
void dr_domains_view_print_end(JsonObject *run);
int dr_domains_view_exit(JsonObject *run);

/* A report of a check. */
void dr_domains_view_print_report(JsonObject *report, gboolean color);
