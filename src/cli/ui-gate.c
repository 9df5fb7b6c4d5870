/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The gate before the dashboard's proxy: Host, token, cookie, Origin. */
#include "cli/ui-gate.h"
#include "base/error.h"

#include <string.h>
#include <sys/random.h>

#define SECRET_BYTES 16

struct DrUiGate {
  GMutex lock;
  char *hosts[2];   /* 127.0.0.1:PORT, localhost:PORT */
  char *origins[2]; /* http:// and these */
  char *name;       /* the cookie's: cookies do not tell ports apart */
  char *token, *session, *url;
  gboolean spent;
};

static char *
make_secret(void)
{
  guint8 bytes[SECRET_BYTES];
  GString *text = g_string_new(NULL);

  /* So few bytes are never cut short; without them there is no secret to go on with. */
  if (getentropy(bytes, sizeof bytes) < 0)
    g_error("cannot get random bytes: %s", g_strerror(errno));
  for (guint i = 0; i < sizeof bytes; i++)
    g_string_append_printf(text, "%02x", bytes[i]);
  return g_string_free(text, FALSE);
}

DrUiGate *
dr_ui_gate_new(guint port)
{
  static const char *const names[] = { "127.0.0.1", "localhost" };
  DrUiGate *gate = g_new0(DrUiGate, 1);

  g_mutex_init(&gate->lock);
  for (guint i = 0; i < G_N_ELEMENTS(names); i++) {
    gate->hosts[i] = g_strdup_printf("%s:%u", names[i], port);
    gate->origins[i] = g_strconcat("http://", gate->hosts[i], NULL);
  }
  gate->name = g_strdup_printf("drover-%u", port);
  gate->token = make_secret();
  gate->session = make_secret();
  gate->url = g_strdup_printf("%s/?token=%s", gate->origins[0], gate->token);
  return gate;
}

void
dr_ui_gate_free(DrUiGate *gate)
{
  if (!gate)
    return;
  for (guint i = 0; i < G_N_ELEMENTS(gate->hosts); i++) {
    g_free(gate->hosts[i]);
    g_free(gate->origins[i]);
  }
  g_free(gate->name);
  g_free(gate->token);
  g_free(gate->session);
  g_free(gate->url);
  g_mutex_clear(&gate->lock);
  g_free(gate);
}

const char *
dr_ui_gate_url(const DrUiGate *gate)
{
  return gate->url;
}

char *
dr_ui_gate_cookie(const DrUiGate *gate)
{
  return g_strdup_printf("%s=%s; Path=/; HttpOnly; SameSite=Strict", gate->name, gate->session);
}

/* In a time that does not tell how much of it was right. */
static gboolean
is_secret(const char *secret, const char *text)
{
  gsize len = strlen(secret);
  guint8 differ = 0;

  if (strlen(text) != len)
    return FALSE;
  for (gsize i = 0; i < len; i++)
    differ |= (guint8)(secret[i] ^ text[i]);
  return differ == 0;
}

/* Which of its two names the request came to; -1: another one. */
static int
host_index(const DrUiGate *gate, const DrUiRequest *request)
{
  const char *host = dr_ui_request_header(request, "Host");

  for (guint i = 0; host && i < G_N_ELEMENTS(gate->hosts); i++)
    if (g_ascii_strcasecmp(host, gate->hosts[i]) == 0)
      return (int)i;
  return -1;
}

static gboolean
has_cookie(const DrUiGate *gate, const DrUiRequest *request)
{
  const char *header = dr_ui_request_header(request, "Cookie");
  g_auto(GStrv) cookies = g_strsplit(header ? header : "", ";", 64);
  gsize len = strlen(gate->name);

  for (char **cookie = cookies; *cookie; cookie++) {
    const char *one = g_strstrip(*cookie);

    if (strncmp(one, gate->name, len) == 0 && one[len] == '=' && is_secret(gate->session, one + len + 1))
      return TRUE;
  }
  return FALSE;
}

static gboolean
refuse(GError **error, const char *why, const char *remedy)
{
  dr_error_set(error, DR_ERROR_REFUSED, "%s", why);
  return dr_error_remedy(error, "%s", remedy);
}

/* A token is good once, whoever comes first: so its owner sees it if somebody else was. */
static gboolean
take_token(DrUiGate *gate, const char *token, GError **error)
{
  gboolean spent;

  if (!is_secret(gate->token, token))
    return refuse(error, "this link is of another drover ui, or incomplete",
                  "use the link that drover ui printed last");
  g_mutex_lock(&gate->lock);
  spent = gate->spent;
  gate->spent = TRUE;
  g_mutex_unlock(&gate->lock);
  return !spent || refuse(error, "this link has been used: it opens the dashboard once",
                          "go on in the browser that used it, or end drover ui and run it again. If "
                          "you did not use it, somebody else on this machine has: end it at once");
}

/* A browser says where a request comes from: another port of this host is "same-site". */
static gboolean
is_own_page(const DrUiRequest *request)
{
  const char *site = dr_ui_request_header(request, "Sec-Fetch-Site");

  return !site || g_str_equal(site, "same-origin") || g_str_equal(site, "none");
}

static gboolean
may_change(const DrUiGate *gate, const DrUiRequest *request, GError **error)
{
  const char *origin = dr_ui_request_header(request, "Origin");
  int host = host_index(gate, request);

  if (!origin || !g_str_equal(origin, gate->origins[host]))
    return refuse(error, "this request is of another page's origin", "use the dashboard itself");
  if (!dr_ui_request_header(request, "X-Drover"))
    return refuse(error, "this request has no header X-Drover, which every one of the dashboard's has",
                  "use the dashboard itself");
  return TRUE;
}

static gboolean
is_handed_on(const char *path)
{
  return g_str_equal(path, "/ui") || g_str_has_prefix(path, "/ui/") || g_str_has_prefix(path, "/v1/") ||
         g_str_equal(path, "/metrics");
}

static DrUiVerdict
check_session(DrUiGate *gate, const DrUiRequest *request, GError **error)
{
  gboolean reads = g_str_equal(request->method, "GET") || g_str_equal(request->method, "HEAD");

  if (!has_cookie(gate, request) || !is_own_page(request)) {
    refuse(error, "this browser has not opened the dashboard", "open the link that drover ui printed");
    return DR_UI_REFUSED;
  }
  if (!reads && !may_change(gate, request, error))
    return DR_UI_REFUSED;
  if (reads && g_str_equal(request->path, "/"))
    return DR_UI_HOME;
  if (is_handed_on(request->path))
    return DR_UI_FORWARD;
  dr_error_set(error, DR_ERROR_NOT_FOUND, "there is no page '%.200s'", request->path);
  dr_error_remedy(error, "the dashboard is at /ui/");
  return DR_UI_REFUSED;
}

DrUiVerdict
dr_ui_gate_check(DrUiGate *gate, const DrUiRequest *request, GError **error)
{
  if (host_index(gate, request) < 0) {
    refuse(error, "this is not a name that drover ui goes by",
           "open the link as drover ui printed it, with 127.0.0.1 or localhost");
    return DR_UI_REFUSED;
  }
  if (g_str_equal(request->path, "/") && g_str_equal(request->method, "GET") && request->query &&
      g_str_has_prefix(request->query, "token="))
    return take_token(gate, request->query + strlen("token="), error) ? DR_UI_TOKEN : DR_UI_REFUSED;
  return check_session(gate, request, error);
}
