/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What preflight finds: one thing that stands in the way of a move, or that the user should know before it. */
#pragma once
#include "base/json.h"

typedef enum {
  DR_FINDING_BLOCKER, /* the move is refused */
  DR_FINDING_WARNING, /* it works, but something changes that somebody may notice */
  DR_FINDING_NOTE,    /* what was decided, and why */
} DrSeverity;

typedef struct {
  DrSeverity severity;
  char *code;   /* stable, for programs: "vfio", "machine-type", "tcg-aligned-ram" */
  char *text;   /* one phrase, no full stop */
  char *remedy; /* nullable */
} DrFinding;

typedef struct DrFindings DrFindings;

DrFindings *dr_findings_new(void);
void dr_findings_free(DrFindings *findings);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrFindings, dr_findings_free)

/* Adds one. `code` and `remedy` are copied; remedy may be NULL. An equal finding is not added twice. */
void dr_findings_add(DrFindings *findings, DrSeverity severity, const char *code, const char *remedy,
                     const char *format, ...) G_GNUC_PRINTF(5, 6);

guint dr_findings_count(const DrFindings *findings);
const DrFinding *dr_findings_get(const DrFindings *findings, guint i);
gboolean dr_findings_block(const DrFindings *findings);

/* Moves all of `from` behind those of `findings`; `from` is empty afterwards. */
void dr_findings_merge(DrFindings *findings, DrFindings *from);

/* [{"severity","code","text","remedy"}]. (transfer full) */
JsonArray *dr_findings_json(const DrFindings *findings);

/* DR_ERROR_REFUSED naming all blockers in one message ("cannot upgrade VM 'web1': A; B"); the remedy holds each
 * one's. */
gboolean dr_findings_to_error(const DrFindings *findings, const char *doing, GError **error);
