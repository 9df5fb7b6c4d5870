// SPDX-License-Identifier: LGPL-2.1-or-later
// Numbers and names as people read them. An absent number is an em dash.

const NONE = "–";

function is(number) {
  return typeof number === "number" && Number.isFinite(number);
}

export function bytes(number) {
  if (!is(number)) return NONE;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (number >= 1024 && unit < units.length - 1) {
    number /= 1024;
    unit += 1;
  }
  return `${number >= 100 || unit === 0 ? Math.round(number) : number.toFixed(1)} ${units[unit]}`;
}

export function ms(number) {
  if (!is(number)) return NONE;
  if (number < 10) return `${number.toFixed(1)} ms`;
  if (number < 1000) return `${Math.round(number)} ms`;
  if (number < 60000) return `${(number / 1000).toFixed(1)} s`;
  const minutes = Math.floor(number / 60000);
  return minutes < 60 ? `${minutes} min ${Math.round((number % 60000) / 1000)} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function rate(mib) {
  if (!is(mib)) return NONE;
  return `${mib >= 100 ? Math.round(mib) : mib.toFixed(1)} MiB/s`;
}

export function percent(done, total) {
  if (!is(done) || !is(total) || total <= 0) return NONE;
  return `${Math.min(100, Math.floor((done * 100) / total))} %`;
}

export function clock(epoch) {
  if (!is(epoch)) return NONE;
  const date = new Date(epoch);
  const today = date.toDateString() === new Date().toDateString();
  const time = date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
  return today ? time : `${date.toLocaleDateString()} ${time}`;
}

const KINDS = {
  upgrade: "Upgrade",
  migrate: "Move",
  incoming: "Arrival",
  "disk-copy": "Disk copy",
  "disk-pull": "Disk pull",
  "disk-stream": "Disk stream",
  "disk-snapshot": "Snapshot",
  "disk-merge": "Snapshot merge",
  "disk-backup": "Backup",
  "disk-serve": "Backup by NBD",
  "snapshot-revert": "Revert",
};

export function kind(name) {
  return KINDS[name] || name;
}

const MEMORY = { shared: "RAM shared, not copied", private: "RAM private", copy: "RAM copied", postcopy: "RAM by post-copy" };

export function memory(mode) {
  return MEMORY[mode] || mode || NONE;
}

export function versions(before, after) {
  return !before || before === after ? `QEMU ${after}` : `QEMU ${before} → ${after}`;
}

/* What came of a job, in one line. */
export function outcome(job) {
  const result = job.result || {};
  if (job.state === "cancelled") return "stopped on request";
  if (job.error) return job.error.message;
  if (job.state !== "succeeded") return job.state;
  const parts = [];
  if (result.peer) parts.push(job.kind === "incoming" ? `came from ${result.peer}` : `moved to ${result.peer}`);
  if (result.qemu_after) parts.push(versions(result.qemu_before, result.qemu_after));
  if (is(result.pause_ms)) parts.push(`paused ${ms(result.pause_ms)}`);
  if (is(result.total_ms)) parts.push(`took ${ms(result.total_ms)}`);
  return parts.join(", ") || "succeeded";
}
