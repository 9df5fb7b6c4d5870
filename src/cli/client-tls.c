/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Keys for the way to a droverd on another host. */
#include "cli/client-tls.h"
#include "base/address.h"
#include "base/error.h"
#include "net/pki.h"

#include <string.h>
#include <unistd.h>

/* A client needs no server's keys, which dr_pki_find() would ask for. */
static gboolean
is_there(const char *file, const char *dir, GError **error)
{
  if (access(file, R_OK) == 0)
    return TRUE;
  dr_error_set(error, DR_ERROR_NOT_FOUND,
               "cannot connect by TLS without keys: '%s' is missing or cannot be read", file);
  return dr_error_remedy(
      error,
      "have them made where the CA is (drover pki issue NAME --client) and copied to '%s', or say "
      "where they are: --pki DIR",
      dir);
}

static gboolean
load(DrClientTls *tls, GError **error)
{
  g_autoptr(DrPkiPaths) paths = dr_pki_layout(tls->dir);
  g_autoptr(GError) cause = NULL;

  if (!is_there(paths->ca, tls->dir, error) || !is_there(paths->client_cert, tls->dir, error) ||
      !is_there(paths->client_key, tls->dir, error))
    return FALSE;
  tls->certificate = g_tls_certificate_new_from_files(paths->client_cert, paths->client_key, &cause);
  if (tls->certificate)
    tls->authority = g_tls_file_database_new(paths->ca, &cause);
  if (tls->authority)
    return TRUE;
  dr_error_set(error, DR_ERROR_IO, "cannot use the keys in '%s': %s", tls->dir, cause->message);
  return dr_error_remedy(error, "see what is wrong with them: drover pki show %s", tls->dir);
}

static char *
keys_dir(const char *pki)
{
  const char *dir = pki ? pki : g_getenv("DROVER_PKI");

  return dir && *dir ? g_canonicalize_filename(dir, NULL) : dr_pki_default_dir("tls");
}

DrClientTls *
dr_client_tls_new(const char *address, const char *pki, GError **error)
{
  DrClientTls *tls = g_new0(DrClientTls, 1);
  g_autofree char *text = NULL;

  tls->dir = keys_dir(pki);
  if (!dr_address_parse(address, DR_API_PORT, &tls->host, &tls->port, error)) {
    dr_client_tls_free(tls);
    return NULL;
  }
  text = dr_address_print(tls->host, tls->port);
  tls->where = g_strconcat("tls://", text, NULL);
  if (load(tls, error))
    return tls;
  dr_client_tls_free(tls);
  return NULL;
}

void
dr_client_tls_free(DrClientTls *tls)
{
  if (!tls)
    return;
  g_free(tls->dir);
  g_free(tls->host);
  g_free(tls->where);
  g_clear_object(&tls->certificate);
  g_clear_object(&tls->authority);
  g_free(tls);
}

gboolean
dr_client_tls_on_refusal(gpointer source, GTlsCertificate *certificate, GTlsCertificateFlags wrong,
                         gpointer data)
{
  DrClientTls *tls = data;

  tls->wrong = wrong;
  return FALSE;
}

static void
on_event(GSocketClient *connector, GSocketClientEvent event, GSocketConnectable *to, GIOStream *stream,
         gpointer data)
{
  DrClientTls *tls = data;

  if (event != G_SOCKET_CLIENT_TLS_HANDSHAKING)
    return;
  g_tls_connection_set_database(G_TLS_CONNECTION(stream), tls->authority);
  g_tls_connection_set_certificate(G_TLS_CONNECTION(stream), tls->certificate);
  g_signal_connect(stream, "accept-certificate", G_CALLBACK(dr_client_tls_on_refusal), tls);
}

void
dr_client_tls_prepare(DrClientTls *tls, GSocketClient *connector)
{
  g_socket_client_set_tls(connector, TRUE);
  g_signal_connect(connector, "event", G_CALLBACK(on_event), tls);
}

/* --- What went wrong --- */

static const char *
what_is_wrong(GTlsCertificateFlags wrong)
{
  static const struct {
    GTlsCertificateFlags flag;
    const char *text;
  } reasons[] = {
    { G_TLS_CERTIFICATE_UNKNOWN_CA, "is not of the CA that is known here" },
    { G_TLS_CERTIFICATE_EXPIRED, "has expired" },
    { G_TLS_CERTIFICATE_NOT_ACTIVATED, "is not yet valid" },
    { G_TLS_CERTIFICATE_REVOKED, "is revoked" },
    { G_TLS_CERTIFICATE_BAD_IDENTITY, "is not for this name" },
    { G_TLS_CERTIFICATE_INSECURE, "is made with something insecure" },
  };

  for (guint i = 0; i < G_N_ELEMENTS(reasons); i++)
    if (wrong & reasons[i].flag)
      return reasons[i].text;
  return "cannot be accepted";
}

static gboolean
refused_by_us(const DrClientTls *tls, GError **error)
{
  dr_error_set(error, DR_ERROR_REFUSED, "the certificate of droverd at '%s' %s", tls->where,
               what_is_wrong(tls->wrong));
  if (tls->wrong == G_TLS_CERTIFICATE_BAD_IDENTITY)
    dr_error_remedy(
        error, "connect to a name that it has, or have it made for '%s', too: drover pki issue --address",
        tls->host);
  else
    dr_error_remedy(error, "hold it against the CA in '%s': drover pki show, on both hosts", tls->dir);
  return TRUE;
}

/* In TLS 1.3 a client learns by its first answer only that it was not liked. */
gboolean
dr_client_tls_explain(const DrClientTls *tls, const GError *cause, GError **error)
{
  gboolean cut = g_error_matches(cause, G_IO_ERROR, G_IO_ERROR_CONNECTION_CLOSED) ||
                 g_error_matches(cause, G_IO_ERROR, G_IO_ERROR_PARTIAL_INPUT) ||
                 g_error_matches(cause, G_TLS_ERROR, G_TLS_ERROR_EOF) ||
                 g_error_matches(cause, G_TLS_ERROR, G_TLS_ERROR_MISC);

  if (g_error_matches(cause, G_TLS_ERROR, G_TLS_ERROR_BAD_CERTIFICATE))
    return refused_by_us(tls, error);
  if (!cut && cause->domain != G_TLS_ERROR)
    return FALSE;
  dr_error_set(error, DR_ERROR_CLOSED, "droverd at '%s' broke the connection off: %s", tls->where,
               cause->message);
  dr_error_remedy(error,
                  "it may not know the CA of the certificate in '%s' (drover pki show), or be no droverd: "
                  "its log says more",
                  tls->dir);
  return TRUE;
}
