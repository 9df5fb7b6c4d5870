/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The one error domain of drover: what went wrong, in one phrase, and what the user can do about it.
 *
 * A function returns its error (GError) or logs it, never both. The message is one phrase without a full stop
 * that names what was being done and to what. What to do about it is the remedy, kept apart, so that the CLI,
 * the API and a preflight finding can each show it in their own way:
 *
 *   dr_error_set(error, DR_ERROR_EXISTS, "cannot adopt pid %d as '%s': the name is taken", pid, name);
 *   dr_error_remedy(error, "choose another name, or drop the old one: drover forget %s", name);
 */
#pragma once
#include <glib.h>

typedef enum {
  DR_ERROR_INVALID,     /* bad input: usage, a name, a body, a command line */
  DR_ERROR_NOT_FOUND,   /* no such VM, job, file */
  DR_ERROR_EXISTS,      /* a name or a socket that is taken */
  DR_ERROR_BUSY,        /* the VM has a job under way, or somebody else holds its monitor */
  DR_ERROR_REFUSED,     /* preflight found a blocker */
  DR_ERROR_UNSUPPORTED, /* this QEMU, kernel or VM cannot do it */
  DR_ERROR_TIMEOUT,     /* a deadline passed; what was asked may still happen: query before deciding */
  DR_ERROR_CANCELLED,   /* somebody asked for it */
  DR_ERROR_CLOSED,      /* the other end went away */
  DR_ERROR_QMP,         /* QEMU answered with an error; the message holds its text */
  DR_ERROR_IO,          /* a system call failed */
  DR_ERROR_ATTENTION,   /* the VM needs a person: the remedy says what to do */
  DR_ERROR_DENIED,      /* the client may not do that */
  DR_ERROR_INTERNAL,    /* a bug of ours */
} DrErrorCode;

#define DR_ERROR (dr_error_quark())
GQuark dr_error_quark(void);

/* The code's name as JSON has it: "invalid", "not-found", … */
const char *dr_error_code_name(const GError *error);
/* And back; DR_ERROR_IO for what is not known. */
DrErrorCode dr_error_code_from_name(const char *name);

/* Sets *error (which may be NULL: then nothing happens). Always returns FALSE, so that a caller can write
 * `return dr_error_set(error, …);` */
gboolean dr_error_set(GError **error, DrErrorCode code, const char *format, ...) G_GNUC_PRINTF(3, 4);

/* Like dr_error_set() with ": " and the text of `err` (an errno value) behind the message; code DR_ERROR_IO. */
gboolean dr_error_set_errno(GError **error, int err, const char *format, ...) G_GNUC_PRINTF(3, 4);

/* Adds what to do about an error of this domain; does nothing for NULL or a foreign error. */
gboolean dr_error_remedy(GError **error, const char *format, ...) G_GNUC_PRINTF(2, 3);

/* Makes DR_ERROR_INVALID a DR_ERROR_UNSUPPORTED: for what came up when the request itself had been found right, so that
 * the fault is not in the words but in what this host has behind them (a program that is no QEMU, a QEMU that refuses its
 * command line). The command line tells the two apart by its exit code. */
void dr_error_not_the_words(GError **error);

/* Returns: (transfer none) (nullable): the remedy of an error. */
const char *dr_error_get_remedy(const GError *error);
