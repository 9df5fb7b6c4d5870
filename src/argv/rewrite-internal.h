/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the parts of the rewriter share. */
#pragma once
#include "argv/rewrite.h"

typedef struct {
  const DrRewritePlan *plan;
  DrRewrite *out;
  DrFindings *findings;
  guint named; /* counts the -chardev ids that were made up */
} DrRewriter;

/* PUBLIC path -> the private one, noted as a rename. Returns: (transfer full). */
char *dr_rewriter_private(DrRewriter *r, const char *public_path);

/* The numbers that the caller filled in for the option at `opt` of the ORIGINAL command line, or NULL. */
const DrNeed *dr_rewriter_need(DrRewriter *r, DrNeedKind kind, guint opt);

/* -netdev, -nic, -net */
gboolean dr_rewrite_is_network(const DrOpt *opt);

/* Serial ports, monitors, consoles. `original` is the untouched command line that out->argv is a copy of. */
gboolean dr_rewrite_chardevs(DrRewriter *r, const DrArgv *original, GError **error);
