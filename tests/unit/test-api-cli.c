/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "test-api-util.h"
void add_cli_tests(void){}
