/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "api/http.h"
#include "test-api-fake.h"
int main(int c, char**v){
  if (c > 2 && g_str_equal(v[1], "--serve")) {
    DrEvents *e = dr_events_new(); DrService *s = fake_service_new(e); GError *err=NULL;
    DrApi *a = dr_api_new(s, e, v[2], &err); if(!a) g_error("%s", err->message);
    g_main_loop_run(g_main_loop_new(NULL, FALSE));
  }
  return 0;
}
