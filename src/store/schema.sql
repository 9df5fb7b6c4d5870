-- SPDX-License-Identifier: LGPL-2.1-or-later
-- What must survive a crash of droverd: which VMs there are, what jobs did, the journal of each job's stages, and the peers.
-- user_version 1. A newer file is refused; an older one is migrated by a step here.
CREATE TABLE IF NOT EXISTS vms (
  name TEXT PRIMARY KEY,
  record TEXT NOT NULL           -- JSON, written and read by daemon/vm.c
) STRICT;
CREATE TABLE IF NOT EXISTS jobs (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  kind TEXT NOT NULL,
  vm TEXT NOT NULL,
  state TEXT NOT NULL,           -- queued, running, succeeded, failed, cancelled, attention
  stage TEXT NOT NULL,
  record TEXT NOT NULL,          -- JSON: request, findings, error, result, times
  created_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS jobs_state ON jobs (state);
CREATE TABLE IF NOT EXISTS journal (
  job INTEGER NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
  seq INTEGER NOT NULL,
  stage TEXT NOT NULL,           -- entered after this row was on disk
  note TEXT NOT NULL,            -- JSON: what recovery needs at this stage, and why it was entered
  time_ms INTEGER NOT NULL,
  PRIMARY KEY (job, seq)
) STRICT;
-- What a job has recorded of itself. A droverd that does not know the table leaves it alone, and drops a job's row with the job.
CREATE TABLE IF NOT EXISTS reports (
  job INTEGER PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE,
  report TEXT NOT NULL           -- JSON, at most 64 KiB, written and read by job/recorder.c
) STRICT;
-- What this host has said for good of a guest that was to come to it: another host may ask for it long after.
CREATE TABLE IF NOT EXISTS moves (
  id TEXT PRIMARY KEY,           -- the move's own, made by the other host
  vm TEXT NOT NULL,
  state TEXT NOT NULL,           -- arrived, discarded, lost
  resumed_us INTEGER NOT NULL DEFAULT 0,
  time_ms INTEGER NOT NULL
) STRICT;
-- Points in time of a VM's disks, on record until they are merged or deleted.
CREATE TABLE IF NOT EXISTS snapshots (
  vm TEXT NOT NULL,
  name TEXT NOT NULL,
  record TEXT NOT NULL,          -- JSON, written and read by job/snapshot.c
  created_ms INTEGER NOT NULL,
  PRIMARY KEY (vm, name)
) STRICT;
-- Which file a disk's last backup by a bitmap is: what the next incremental one stands on.
CREATE TABLE IF NOT EXISTS backups (
  vm TEXT NOT NULL,
  bitmap TEXT NOT NULL,
  disk TEXT NOT NULL,
  record TEXT NOT NULL,          -- JSON, written and read by job/backup.c
  PRIMARY KEY (vm, bitmap, disk)
) STRICT;
CREATE TABLE IF NOT EXISTS peers (
  name TEXT PRIMARY KEY,
  host TEXT NOT NULL,            -- as dr_host_normal() has it
  port INTEGER NOT NULL,
  pin TEXT,                      -- as dr_pin_parse() has it; NULL: any key of a certificate that the CA has signed
  added_ms INTEGER NOT NULL,
  UNIQUE (host, port)
) STRICT;
