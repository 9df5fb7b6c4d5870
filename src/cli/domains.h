/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* libvirt's domains: checks and upgrades of those that drover has no VM of. */
#pragma once
#include "cli/cli.h"

/* Options of verbs that take domains. */
typedef struct {
  char *uri, *emulator;
  gboolean untested;
} DrDomainOptions;

void dr_domain_options_clear(DrDomainOptions *options);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(DrDomainOptions, dr_domain_options_clear)

#define DR_CLI_DOMAIN_OPTIONS(options)                                                                         \
  { "emulator",                                                                                                \
    0,                                                                                                         \
    0,                                                                                                         \
    G_OPTION_ARG_FILENAME,                                                                                     \
    &(options)->emulator,                                                                                      \
    "The QEMU for domains of libvirt's (default: each domain's own path)",                                     \
    "BINARY" },                                                                                                \
      { "uri", 0, 0, G_OPTION_ARG_STRING, &(options)->uri, "Which libvirt (default: qemu:///system)", "URI" }, \
  {                                                                                                            \
    "untested-libvirt", 0, 0, G_OPTION_ARG_NONE, &(options)->untested,                                         \
        "Go on with a version of libvirt that drover was not tried with", NULL                                 \
  }

/* A body for all of those below. `names`: NULL or empty: all domains. (transfer full); NULL with the error set. */
JsonObject *dr_domains_request(const DrCli *cli, char **names, const DrDomainOptions *options,
                               GError **error);

/* As the shell finds a program: a path is taken from here, a bare word from PATH. droverd has another directory and another PATH.
 * `option`: for the error. (transfer full) */
char *dr_cli_find_qemu(const DrCli *cli, const char *qemu, const char *option, GError **error);

/* All return the exit code; -1 with the error set. `cause` (nullable): names were typed that drover has no VM of, and that is what it said:
 * where libvirt has no such domains either, both are told. follow: the run that is under way, or the last one. */
int dr_domains_check(DrCli *cli, JsonObject *body, const GError *cause, GError **error);
int dr_domains_upgrade(DrCli *cli, JsonObject *body, gboolean async, const GError *cause, GError **error);
int dr_domains_follow(DrCli *cli, GError **error);
