/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Directories and programs for the tests of keys and certificates. */
#pragma once
#include "net/pki.h"

typedef struct {
  char *dir, *ca,
      *host; /* a directory; in it a CA, and the certificates that it issued for host2, 10.0.0.2, 2001:db8::7 */
} Pki;

void pki_set_up(Pki *pki, gconstpointer unused);
void pki_tear_down(Pki *pki, gconstpointer unused);

/* DIR/NAME. (transfer full) */
char *at(const char *dir, const char *name);
char *read_all(const char *path);
void write_all_of(const char *path, const char *text);

/* Runs a program to its end, at most 20 s. `input` may be NULL. Returns its exit code; *ret_out (nullable) is what it printed on
 * either stream, (transfer full). */
int run_program(const char *const *argv, const char *input, char **ret_out);
#define RUN(ret_out, ...) run_program((const char *const[]){ __VA_ARGS__, NULL }, NULL, ret_out)

/* FALSE after a g_test_skip(). */
gboolean have(const char *program);

/* A request for the fixture's host. */
DrPkiRequest request_of(const Pki *pki);

extern const char *const test_addresses[];

/* test-pki-trust.c */
void add_trust_tests(void);
