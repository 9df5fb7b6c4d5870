/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the parts of `drover pki` share. */
#pragma once
#include "cli/cli.h"
#include "net/pki.h"

/* {"file","subject","issuer","names":[…],"for":["ca","server","client"],"key":ALGORITHM,"key_id","serial","from_ms","until_ms",
 * "problem":TEXT or null}. (transfer full) */
JsonObject *dr_pki_cert_json(const char *file, const DrCertInfo *info, const char *problem);

/* "2028-10-12", UTC. (transfer full) */
char *dr_pki_date(gint64 seconds);

int dr_pki_show(DrCli *cli, const void *unused);
