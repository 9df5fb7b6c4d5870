/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* drover doctor: the keys by which hosts know each other. */
#include "base/error.h"
#include "cli/doctor.h"
#include "net/pki.h"

#include <sys/stat.h>
#include <unistd.h>

#define DAY_S 86400
#define SOON_DAYS 30

/* Without them no other host can be spoken to. That is a blocker only where the configuration wants it. */
static void
missing(DrDoctor *d, const GError *error)
{
  static const char remedy[] =
      "drover pki init and drover pki issue HOST make them; dir= in [tls] says where they are";

  if (d->config.listen_port)
    dr_doctor_blocker(d, "keys", remedy, "droverd is to listen for peers and has no keys: %s",
                      error->message);
  else
    dr_doctor_note(d, "keys", remedy, "there are no keys: no move to or from another host");
}

static void
tell_problem(DrDoctor *d, const char *file, const char *problem)
{
  static const char remedy[] =
      "drover pki issue HOST --force makes new ones; drover pki show DIR tells all about them";

  if (d->config.listen_port)
    dr_doctor_blocker(d, "certificate", remedy, "%s: %s", file, problem);
  else
    dr_doctor_warning(d, "certificate", remedy, "%s: %s", file, problem);
}

static void
check_end(DrDoctor *d, const char *file)
{
  g_autoptr(GError) error = NULL;
  g_autoptr(GPtrArray) infos = dr_cert_read(file, &error);
  const DrCertInfo *info = infos && infos->len ? infos->pdata[0] : NULL;
  gint64 days = info ? (info->until - g_get_real_time() / G_USEC_PER_SEC) / DAY_S : 0;

  if (info && days < SOON_DAYS)
    dr_doctor_warning(d, "certificate-end", "make a new one in time: drover pki issue HOST --force",
                      "%s ends in %d day%s", file, (int)days, days == 1 ? "" : "s");
  else if (info)
    dr_doctor_ok(d, "certificate", "%s: %s, %d days left", file, info->subject, (int)days);
}

static void
check_certificate(DrDoctor *d, const DrPkiPaths *paths, const char *file, DrCertUse use, const char *key)
{
  const char *ca = use == DR_CERT_CA ? NULL : paths->ca;
  g_autofree char *problem = dr_cert_problem(file, use, key, ca, use == DR_CERT_CA ? NULL : paths->crl);

  if (problem)
    tell_problem(d, file, problem);
  else
    check_end(d, file);
}

static void
check_mode(DrDoctor *d, const char *key)
{
  struct stat st;

  if (stat(key, &st) < 0)
    return;
  if (st.st_mode & (S_IRWXO | S_IWGRP))
    dr_doctor_warning(d, "key-mode", "chmod 0600 it; if others have been on this host, make a new one",
                      "%s is open to others (mode %04o)", key, (unsigned)st.st_mode & 07777);
  else
    dr_doctor_ok(d, "key-mode", "%s is its owner's", key);
}

void
dr_doctor_check_keys(DrDoctor *d)
{
  const DrConfig *config = &d->config;
  g_autoptr(GError) error = NULL;
  g_autoptr(DrPkiPaths) paths = NULL;

  if (!d->config_read)
    return; /* not known where they are */
  paths = dr_pki_find(config->tls_libvirt ? NULL : config->tls_dir, config->tls_crl, &error);
  if (!paths) {
    missing(d, error);
    return;
  }
  check_certificate(d, paths, paths->ca, DR_CERT_CA, NULL);
  check_certificate(d, paths, paths->server_cert, DR_CERT_SERVER, paths->server_key);
  check_certificate(d, paths, paths->client_cert, DR_CERT_CLIENT, paths->client_key);
  check_mode(d, paths->server_key);
  if (!g_str_equal(paths->server_key, paths->client_key))
    check_mode(d, paths->client_key);
}
