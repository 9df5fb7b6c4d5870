/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The test guest's only program: PID 1 that dirties and checks memory and disks, and tells what it saw. */

/*
 * Each part is a thread that knows nothing of the others:
 *
 *   memory   writes every page anew in passes, and checks the whole old content first
 *   disk     one a disk: numbered blocks, each acknowledged by O_DIRECT|O_SYNC before the next; reads back
 *   fs       numbered records in files on ext4, each acknowledged by fsync before the next; reads back
 *   agent    starts qemu-ga and waits for its end
 *   udp      port 7000: echoes what begins with 't', answers every other datagram as a command
 *   tcp      port 7000: answers lines as commands, one client at a time
 *   tick     one byte or datagram a millisecond, numbered: an outside observer measures silence by it
 *   console  (the main thread) line commands on ttyS0
 *
 * The kernel command line sets it up (w.mem=, w.rate=, ...); README.md beside this file has the table.
 * Whatever is wrong is counted, and printed as "WITNESS BAD ..." on the console.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <linux/random.h>
#include <net/if.h>
#include <net/route.h>
#include <pthread.h>
#include <sched.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096u
#define WORDS (PAGE / sizeof(uint64_t))
#define MIB (1024u * 1024u)
#define PAGES_PER_MIB (MIB / PAGE)
#define NS_PER_S 1000000000ull
#define MAX_DISKS 16
#define MAX_BAD_LINES 20 /* then errors are only counted: a broken guest must not drown the console */
#define STATUS_MAX 8192

static char cmdline[4096];
static uint64_t bootid;
static int console_fd = -1;
static pthread_mutex_t console_lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- small helpers ------------------------------------------------------------------------------------ */

static uint64_t
now_ns(clockid_t clock)
{
  struct timespec t;
  clock_gettime(clock, &t);
  return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

static void
sleep_until_ns(uint64_t when)
{
  struct timespec t = { (time_t)(when / NS_PER_S), (long)(when % NS_PER_S) };
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
    ;
}

/* splitmix64: every bit of the result depends on every bit of x. */
static inline uint64_t
mix(uint64_t x)
{
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

/* One line on the console, whole: other threads' lines do not get mixed in. */
__attribute__((format(printf, 1, 2))) static void
say(const char *format, ...)
{
  char line[STATUS_MAX + 64];
  va_list args;
  va_start(args, format);
  int n = vsnprintf(line, sizeof line - 2, format, args);
  va_end(args);
  if (n < 0)
    return;
  if ((size_t)n > sizeof line - 3)
    n = sizeof line - 3;
  line[n++] = '\r';
  line[n++] = '\n';
  pthread_mutex_lock(&console_lock);
  for (int done = 0; done < n;) {
    ssize_t k = write(console_fd, line + done, (size_t)(n - done));
    if (k <= 0 && errno != EINTR)
      break;
    if (k > 0)
      done += (int)k;
  }
  pthread_mutex_unlock(&console_lock);
}

static atomic_uint bad_lines;
#define bad(...)                                                                                             \
  do {                                                                                                       \
    if (atomic_fetch_add(&bad_lines, 1) < MAX_BAD_LINES)                                                     \
      say("WITNESS BAD " __VA_ARGS__);                                                                       \
  } while (0)

/* Copies the value of "w.NAME=" from the kernel command line; false if it is not there. */
static bool
option(const char *name, char *value, size_t size)
{
  char key[64];
  snprintf(key, sizeof key, "w.%s=", name);
  for (const char *p = cmdline; (p = strstr(p, key)); p++)
    if (p == cmdline || isspace((unsigned char)p[-1])) {
      p += strlen(key);
      size_t n = strcspn(p, " \n");
      if (n >= size)
        n = size - 1;
      memcpy(value, p, n);
      value[n] = 0;
      return true;
    }
  return false;
}

static long
option_number(const char *name, long otherwise)
{
  char value[32];
  return option(name, value, sizeof value) ? strtol(value, NULL, 0) : otherwise;
}

static bool
read_line(const char *path, char *line, size_t size)
{
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t n = fd < 0 ? -1 : read(fd, line, size - 1);
  if (fd >= 0)
    close(fd);
  if (n < 0)
    n = 0;
  line[n] = 0;
  line[strcspn(line, "\n")] = 0;
  return n > 0;
}

static void
start_thread(void *(*run)(void *), void *argument, int realtime_priority)
{
  pthread_t thread;
  pthread_attr_t attributes;
  struct sched_param priority = { .sched_priority = realtime_priority };
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_attr_setstacksize(&attributes, 256 * 1024);
  if (realtime_priority > 0) {
    pthread_attr_setinheritsched(&attributes, PTHREAD_EXPLICIT_SCHED);
    pthread_attr_setschedpolicy(&attributes, SCHED_FIFO);
    pthread_attr_setschedparam(&attributes, &priority);
  }
  int error = pthread_create(&thread, &attributes, run, argument);
  if (error)
    bad("cannot start a thread: %s", strerror(error));
  pthread_attr_destroy(&attributes);
}

/* ---- memory ------------------------------------------------------------------------------------------- */

/*
 * No table of what each page should hold: pages below `cursor` have `generation`, the others the one before.
 * So a page that a migration left stale (or a torn one) differs from what these two numbers say.
 */
static struct {
  uint64_t *base;
  uint64_t pages;
  uint64_t generation;
  uint64_t cursor;
  atomic_ulong rate;  /* MiB/s written (0: none) */
  atomic_ulong check; /* MiB/s checked while nothing is written */
  atomic_ulong passes, checked, written, wrong;
} memory;

static inline uint64_t
page_seed(uint64_t page, uint64_t generation)
{
  return mix(bootid ^ mix(page ^ (generation << 40)));
}

static void
page_write(uint64_t page, uint64_t generation)
{
  uint64_t *word = memory.base + page * WORDS, seed = page_seed(page, generation);
  word[0] = page;
  word[1] = generation;
  word[2] = bootid;
  for (unsigned i = 3; i < WORDS; i++)
    word[i] = seed + i * 0x9e3779b97f4a7c15ull;
}

static void
page_check(uint64_t page, uint64_t generation)
{
  const uint64_t *word = memory.base + page * WORDS;
  uint64_t seed = page_seed(page, generation), differs = 0;
  differs |= word[0] ^ page;
  differs |= word[1] ^ generation;
  differs |= word[2] ^ bootid;
  for (unsigned i = 3; i < WORDS; i++)
    differs |= word[i] ^ (seed + i * 0x9e3779b97f4a7c15ull);
  memory.checked++;
  if (!differs)
    return;
  memory.wrong++;
  bad("page=%" PRIu64 " generation=%" PRIu64 " found page=%" PRIu64 " generation=%" PRIu64 "%s", page,
      generation, word[0], word[1],
      word[0] == page && word[1] != generation ? " (stale)" : " (torn or foreign)");
  page_write(page, generation); /* counted once */
}

static void
memory_step_write(void)
{
  page_check(memory.cursor, memory.generation - 1);
  page_write(memory.cursor, memory.generation);
  memory.written++;
  if (++memory.cursor == memory.pages) {
    memory.cursor = 0;
    memory.generation++;
    memory.passes++;
  }
}

static void
memory_step_check(uint64_t *at)
{
  page_check(*at, *at < memory.cursor ? memory.generation : memory.generation - 1);
  if (++*at == memory.pages) {
    *at = 0;
    memory.passes++;
  }
}

static void *
memory_run(void *unused)
{
  uint64_t at = 0, due = now_ns(CLOCK_MONOTONIC);
  (void)unused;
  for (;;) {
    unsigned long rate = memory.rate, check = memory.check;
    uint64_t speed = (rate ? rate : check) * PAGES_PER_MIB; /* pages/s */
    if (!speed) {
      sleep_until_ns(now_ns(CLOCK_MONOTONIC) + 20 * 1000000);
      due = now_ns(CLOCK_MONOTONIC);
      continue;
    }
    for (int i = 0; i < 16; i++)
      if (rate)
        memory_step_write();
      else
        memory_step_check(&at);
    due += 16 * NS_PER_S / speed;
    uint64_t now = now_ns(CLOCK_MONOTONIC);
    if (due > now + 1000000)
      sleep_until_ns(due);
    else if (due + 100000000 < now)
      due = now - 100000000; /* cannot keep the rate: forget the debt */
  }
  return NULL;
}

static bool
memory_start(uint64_t mib)
{
  if (!mib)
    return true;
  memory.pages = mib * PAGES_PER_MIB;
  memory.base = mmap(NULL, mib * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory.base == MAP_FAILED) {
    bad("cannot allocate w.mem=%" PRIu64 " MiB: %s", mib, strerror(errno));
    return false;
  }
  memory.generation = 1;
  for (uint64_t page = 0; page < memory.pages; page++)
    page_write(page, 0);
  start_thread(memory_run, NULL, 0);
  return true;
}

/* ---- disks -------------------------------------------------------------------------------------------- */

/*
 * Block b of the first `blocks` of a disk holds the largest written number s with s % blocks == b. So the
 * whole state follows from the highest number, for us at start and for a test that reads the image.
 */
struct disk_block {
  char magic[8];
  uint64_t number, block, bootid;
  uint32_t crc; /* CRC-32 (zlib's) of the block with this field 0 */
  uint32_t reserved;
  uint64_t filler[WORDS - 5];
};
_Static_assert(sizeof(struct disk_block) == PAGE, "a disk block is one page");
static const char DISK_MAGIC[8] = "DROVERW1";

/* How long the writes of a disk took: 16 steps an octave, so a step is 1/16 of its least at most. */
#define LATENCY_STEPS 16u
#define LATENCY_OCTAVES 37u /* up to 2^40 ns, 18 minutes */

struct disk {
  char path[32];
  atomic_bool used, stop;
  uint64_t blocks;
  atomic_ulong found, acked, errors, wrong, checked, slowest_us;
  atomic_uint latency[LATENCY_OCTAVES * LATENCY_STEPS];
};
static struct disk disks[MAX_DISKS];
static atomic_ulong disk_rate; /* writes/s (0: as fast as it goes) */

static uint32_t crc_table[256];

static void
crc_init(void)
{
  for (uint32_t i = 0; i < 256; i++) {
    uint32_t c = i;
    for (int k = 0; k < 8; k++)
      c = c & 1 ? 0xedb88320u ^ (c >> 1) : c >> 1;
    crc_table[i] = c;
  }
}

static uint32_t
crc32(const void *data, size_t size)
{
  const uint8_t *p = data;
  uint32_t c = ~0u;
  while (size--)
    c = crc_table[(c ^ *p++) & 0xff] ^ (c >> 8);
  return ~c;
}

static bool
block_valid(struct disk_block *b, uint64_t block)
{
  uint32_t crc = b->crc;
  b->crc = 0;
  bool valid = crc32(b, sizeof *b) == crc && b->block == block && !memcmp(b->magic, DISK_MAGIC, 8);
  b->crc = crc;
  return valid;
}

/* The number that block `block` must hold when `last` is the highest one; 0: never written. */
static uint64_t
number_in(const struct disk *d, uint64_t block, uint64_t last)
{
  uint64_t back = (last % d->blocks + d->blocks - block) % d->blocks;
  return last > back ? last - back : 0;
}

static void
disk_check(struct disk *d, int fd, struct disk_block *b, uint64_t block, uint64_t last)
{
  uint64_t wanted = number_in(d, block, last);
  if (!wanted)
    return;
  if (pread(fd, b, PAGE, (off_t)(block * PAGE)) != PAGE) {
    d->errors++;
    bad("disk=%s block=%" PRIu64 " read: %s", d->path, block, strerror(errno));
    return;
  }
  d->checked++;
  if (block_valid(b, block) && b->number == wanted)
    return;
  d->wrong++;
  bad("disk=%s block=%" PRIu64 " number=%" PRIu64 " found=%" PRIu64 "%s", d->path, block, wanted, b->number,
      block_valid(b, block) ? "" : " (invalid)");
}

/* Finds the highest number that an earlier run left on the disk. */
static uint64_t
disk_scan(struct disk *d, int fd, struct disk_block *b)
{
  uint64_t last = 0;
  if (pread(fd, b, PAGE, PAGE) == PAGE && !block_valid(b, 1))
    return 0; /* block 1 is the first one written: a new disk */
  for (uint64_t block = 0; block < d->blocks; block++)
    if (pread(fd, b, PAGE, (off_t)(block * PAGE)) == PAGE && block_valid(b, block) && b->number > last)
      last = b->number;
  return last;
}

/* ns < 32 have a step each; from there on 2^e ns are the beginning of an octave. */
static unsigned
latency_step(uint64_t ns)
{
  unsigned octave = ns < 2 * LATENCY_STEPS ? 0 : 63 - (unsigned)__builtin_clzll(ns) - 4;
  uint64_t step = octave * LATENCY_STEPS + (ns >> octave);
  return step < LATENCY_OCTAVES * LATENCY_STEPS ? (unsigned)step : LATENCY_OCTAVES * LATENCY_STEPS - 1;
}

/* The least that falls into a step. */
static uint64_t
latency_ns(unsigned step)
{
  unsigned octave = step < 2 * LATENCY_STEPS ? 0 : step / LATENCY_STEPS - 1;
  return (uint64_t)(step - octave * LATENCY_STEPS) << octave;
}

static void
disk_write(struct disk *d, int fd, struct disk_block *b, uint64_t number)
{
  uint64_t block = number % d->blocks, seed = mix(number ^ bootid);
  memset(b, 0, PAGE);
  memcpy(b->magic, DISK_MAGIC, 8);
  b->number = number;
  b->block = block;
  b->bootid = bootid;
  for (unsigned i = 0; i < sizeof b->filler / sizeof *b->filler; i++)
    b->filler[i] = seed + i;
  b->crc = crc32(b, sizeof *b);
  while (!d->stop) {
    uint64_t begun = now_ns(CLOCK_MONOTONIC);
    if (pwrite(fd, b, PAGE, (off_t)(block * PAGE)) == PAGE) {
      uint64_t took = now_ns(CLOCK_MONOTONIC) - begun;
      if (took / 1000 > d->slowest_us)
        d->slowest_us = took / 1000;
      d->latency[latency_step(took)]++;
      d->acked = number;
      return;
    }
    d->errors++;
    bad("disk=%s number=%" PRIu64 " write: %s", d->path, number, strerror(errno));
    sleep_until_ns(now_ns(CLOCK_MONOTONIC) + 50 * 1000000);
  }
}

static void *
disk_run(void *argument)
{
  struct disk *d = argument;
  struct disk_block *b = aligned_alloc(PAGE, PAGE);
  uint64_t size = 0, due;
  int fd = -1;
  for (int i = 0; i < 100 && fd < 0; i++) { /* a disk just plugged in appears within moments */
    fd = open(d->path, O_RDWR | O_DIRECT | O_SYNC | O_CLOEXEC);
    if (fd < 0)
      sleep_until_ns(now_ns(CLOCK_MONOTONIC) + 50 * 1000000);
  }
  if (fd < 0 || ioctl(fd, BLKGETSIZE64, &size) || size < 2 * PAGE) {
    d->errors++;
    bad("disk=%s open: %s", d->path, strerror(errno));
    d->used = false;
    return NULL;
  }
  d->blocks = (uint64_t)option_number("diskmib", 4) * PAGES_PER_MIB;
  if (d->blocks > size / PAGE)
    d->blocks = size / PAGE;
  d->found = d->acked = disk_scan(d, fd, b);
  for (uint64_t block = 0; d->found && block < d->blocks; block++)
    disk_check(d, fd, b, block, d->found);
  due = now_ns(CLOCK_MONOTONIC);
  while (!d->stop) {
    disk_write(d, fd, b, d->acked + 1);
    uint64_t written = d->acked < d->blocks ? d->acked : d->blocks;
    disk_check(d, fd, b, (d->acked - mix(d->acked) % written) % d->blocks, d->acked);
    uint64_t now = now_ns(CLOCK_MONOTONIC), rate = disk_rate;
    due = rate ? due + NS_PER_S / rate : now;
    if (due > now)
      sleep_until_ns(due);
    else
      due = now;
  }
  close(fd);
  free(b);
  d->used = false;
  return NULL;
}

static struct disk *
disk_find(const char *path)
{
  for (struct disk *d = disks; d < disks + MAX_DISKS; d++)
    if (d->used && !strcmp(d->path, path))
      return d;
  return NULL;
}

static const char *
disk_start(const char *path)
{
  if (disk_find(path))
    return "already in use";
  for (struct disk *d = disks; d < disks + MAX_DISKS; d++)
    if (!d->used) {
      memset(d, 0, sizeof *d);
      snprintf(d->path, sizeof d->path, "%s", path);
      d->used = true;
      start_thread(disk_run, d, 0);
      return NULL;
    }
  return "too many disks";
}

static const char *
disk_stop(const char *path)
{
  struct disk *d = disk_find(path);
  if (!d)
    return "not in use";
  d->stop = true;
  for (int i = 0; i < 200 && d->used; i++)
    sleep_until_ns(now_ns(CLOCK_MONOTONIC) + 10 * 1000000);
  return d->used ? "does not stop (blocked in I/O)" : NULL;
}

/* ---- file system -------------------------------------------------------------------------------------- */

/*
 * Record n is line (n - 1) % FS_PER_FILE of the file /fs/r.K, K = (n - 1) / FS_PER_FILE. The last FS_FILES files
 * are kept, so what is written for ever needs little room, and files are made and removed. A frozen file system
 * blocks this thread only; fs.begun tells since when.
 */
#define FS_RECORD 128u
#define FS_PER_FILE 1024u
#define FS_FILES 8u
#define FS_CRC_AT (FS_RECORD - 9) /* eight hex digits: CRC-32 (zlib's) of what is before; then end of line */

static struct {
  char path[32];
  atomic_bool used;
  atomic_ulong rate; /* records/s (0: as fast as it goes) */
  atomic_ulong found, acked, checked, errors, wrong, slowest_us;
  atomic_ulong begun; /* ns: when the write under way began; 0: none is */
} fs;

static void
fs_name(char *name, size_t size, uint64_t file)
{
  snprintf(name, size, "/fs/r.%08" PRIu64, file);
}

/* "NUMBER BOOTID ......CRC", of fixed length. */
static void
fs_format(char *record, uint64_t number)
{
  char tail[16];
  int n = snprintf(record, FS_RECORD, "%020" PRIu64 " %016" PRIx64 " ", number, bootid);
  memset(record + n, '.', FS_CRC_AT - (size_t)n);
  snprintf(tail, sizeof tail, "%08" PRIx32 "\n", crc32(record, FS_CRC_AT));
  memcpy(record + FS_CRC_AT, tail, FS_RECORD - FS_CRC_AT);
}

/* Whatever boot has written it. */
static bool
fs_valid(const char *record, uint64_t number)
{
  char start[32], tail[16];
  snprintf(start, sizeof start, "%020" PRIu64 " ", number);
  snprintf(tail, sizeof tail, "%08" PRIx32 "\n", crc32(record, FS_CRC_AT));
  return !memcmp(record, start, strlen(start)) && !memcmp(record + FS_CRC_AT, tail, FS_RECORD - FS_CRC_AT);
}

static void
fs_error(uint64_t number, const char *what)
{
  int error = errno;
  fs.errors++;
  bad("fs=%s number=%" PRIu64 " %s: %s", fs.path, number, what, strerror(error));
}

/* Reads a record back; uncached: from the disk, as far as the kernel can be told so. */
static void
fs_check(uint64_t number, bool uncached)
{
  char name[32], record[FS_RECORD] = "";
  fs_name(name, sizeof name, (number - 1) / FS_PER_FILE);
  int fd = open(name, O_RDONLY | O_CLOEXEC);
  if (fd >= 0 && uncached)
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
  ssize_t n = fd < 0 ? -1 : pread(fd, record, FS_RECORD, (off_t)((number - 1) % FS_PER_FILE * FS_RECORD));
  if (n < 0)
    fs_error(number, "read");
  else if (n != FS_RECORD || !fs_valid(record, number)) {
    fs.wrong++;
    bad("fs=%s number=%" PRIu64 " found %.*s", fs.path, number, n > 0 ? 37 : 4, n > 0 ? record : "none");
  }
  fs.checked++;
  if (fd >= 0)
    close(fd);
}

/* The first record whose file is surely there while `last` is the last: one file may have been removed already. */
static uint64_t
fs_first(uint64_t last)
{
  uint64_t file = (last - 1) / FS_PER_FILE;
  return file > FS_FILES - 2 ? (file - (FS_FILES - 2)) * FS_PER_FILE + 1 : 1;
}

/* The last whole record that an earlier run left. */
static uint64_t
fs_scan(void)
{
  uint64_t last = 0;
  DIR *dir = opendir("/fs");
  for (struct dirent *e; dir && (e = readdir(dir));) {
    char name[288];
    struct stat st;
    snprintf(name, sizeof name, "/fs/%s", e->d_name);
    if (strncmp(e->d_name, "r.", 2) || stat(name, &st) || st.st_size < FS_RECORD)
      continue;
    uint64_t end = strtoull(e->d_name + 2, NULL, 10) * FS_PER_FILE + (uint64_t)st.st_size / FS_RECORD;
    if (end > last)
      last = end;
  }
  if (dir)
    closedir(dir);
  return last;
}

/* The file for record `number`, made when it is the first one in it; the oldest file goes. */
static int
fs_open(uint64_t number, int root)
{
  char name[32];
  uint64_t file = (number - 1) / FS_PER_FILE;
  if (file >= FS_FILES) {
    fs_name(name, sizeof name, file - FS_FILES);
    if (unlink(name) && errno != ENOENT)
      fs_error(number, "unlink");
  }
  fs_name(name, sizeof name, file);
  int fd = open(name, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
  if (fd >= 0 && fsync(root)) {
    close(fd);
    return -1;
  }
  return fd;
}

/* One record; false when it failed. */
static bool
fs_append(uint64_t number, int root, int *fd)
{
  char record[FS_RECORD];
  fs_format(record, number);
  if (*fd >= 0 && (number - 1) % FS_PER_FILE == 0) {
    close(*fd);
    *fd = -1;
  }
  if (*fd < 0)
    *fd = fs_open(number, root);
  if (*fd < 0)
    fs_error(number, "open");
  else if (pwrite(*fd, record, FS_RECORD, (off_t)((number - 1) % FS_PER_FILE * FS_RECORD)) != FS_RECORD)
    fs_error(number, "write");
  else if (fsync(*fd))
    fs_error(number, "fsync");
  else
    return true;
  return false;
}

/* Mounts it; returns the root directory or -1. */
static int
fs_mount(void)
{
  for (int i = 0; i < 100 && access(fs.path, F_OK); i++) /* its driver may still be at it */
    sleep_until_ns(now_ns(CLOCK_MONOTONIC) + 50 * 1000000);
  mkdir("/fs", 0755);
  int root = -1;
  if (mount(fs.path, "/fs", "ext4", MS_NOATIME, "errors=remount-ro") == 0)
    root = open("/fs", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (root < 0)
    fs_error(0, "mount");
  return root;
}

static void *
fs_run(void *unused)
{
  int fd = -1, root = fs_mount();
  (void)unused;
  if (root < 0)
    return NULL;
  fs.found = fs.acked = fs_scan();
  for (uint64_t number = fs.found ? fs_first(fs.found) : 1; number <= fs.found; number++)
    fs_check(number, false);
  for (uint64_t due = now_ns(CLOCK_MONOTONIC);;) {
    uint64_t number = fs.acked + 1;
    fs.begun = now_ns(CLOCK_MONOTONIC);
    while (!fs_append(number, root, &fd))
      sleep_until_ns(now_ns(CLOCK_MONOTONIC) + 50 * 1000000);
    uint64_t now = now_ns(CLOCK_MONOTONIC), took = (now - fs.begun) / 1000;
    if (took > fs.slowest_us)
      fs.slowest_us = took;
    fs.acked = number;
    fs.begun = 0;
    fs_check(number - mix(number) % (number - fs_first(number) + 1), true);
    now = now_ns(CLOCK_MONOTONIC);
    uint64_t rate = fs.rate;
    due = rate ? due + NS_PER_S / rate : now;
    if (due > now)
      sleep_until_ns(due);
    else
      due = now;
  }
  return NULL;
}

/* w.fs=/dev/vdb */
static void
fs_start(void)
{
  if (!option("fs", fs.path, sizeof fs.path))
    return;
  fs.used = true;
  fs.rate = (unsigned long)option_number("fsrate", 20);
  /* A writer that waits for a thaw is no fault to print lines about. */
  int fd = open("/proc/sys/kernel/hung_task_timeout_secs", O_WRONLY | O_CLOEXEC);
  if (fd < 0 || write(fd, "0", 1) != 1)
    bad("hung_task_timeout_secs: %s", strerror(errno));
  if (fd >= 0)
    close(fd);
  start_thread(fs_run, NULL, 0);
}

/* ---- guest agent -------------------------------------------------------------------------------------- */

#define AGENT "/usr/sbin/qemu-ga"
#define AGENT_PORT "org.qemu.guest_agent.0"
#define AGENT_LOG "/run/qemu-ga.log"

static struct {
  atomic_bool used;
  atomic_int pid; /* 0: does not run */
} agent;

/* Makes /dev/virtio-ports/NAME, as udev does; waits for the port. */
static bool
agent_port(void)
{
  for (int i = 0; i < 500; i++) {
    DIR *dir = opendir("/sys/class/virtio-ports");
    for (struct dirent *e; dir && (e = readdir(dir));) {
      char path[320], name[64];
      snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", e->d_name);
      if (e->d_name[0] == '.' || !read_line(path, name, sizeof name) || strcmp(name, AGENT_PORT))
        continue;
      snprintf(path, sizeof path, "/dev/%s", e->d_name);
      closedir(dir);
      mkdir("/dev/virtio-ports", 0755);
      return !symlink(path, "/dev/virtio-ports/" AGENT_PORT) || errno == EEXIST;
    }
    if (dir)
      closedir(dir);
    sleep_until_ns(now_ns(CLOCK_MONOTONIC) + 20 * 1000000);
  }
  errno = ENODEV;
  return false;
}

/* posix_spawn: a fork would make every page of the memory part copy on write. */
static int
agent_spawn(pid_t *pid)
{
  char *argv[] = { AGENT, "-m", "virtio-serial", "-p", "/dev/virtio-ports/" AGENT_PORT, "-t", "/run", NULL };
  char *env[] = { "PATH=/usr/sbin:/usr/bin:/sbin:/bin", NULL };
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&files, 1, AGENT_LOG, O_WRONLY | O_CREAT | O_APPEND, 0644);
  posix_spawn_file_actions_adddup2(&files, 1, 2);
  int error = posix_spawn(pid, AGENT, &files, NULL, argv, env);
  posix_spawn_file_actions_destroy(&files);
  return error;
}

/* The last line that the agent has printed. */
static void
agent_last_line(char *line, size_t size)
{
  FILE *log = fopen(AGENT_LOG, "re");
  line[0] = 0;
  while (log && fgets(line, (int)size, log))
    ;
  line[strcspn(line, "\n")] = 0;
  if (log)
    fclose(log);
}

static void *
agent_run(void *unused)
{
  pid_t pid = 0, ended;
  int how, error;
  char line[160];
  (void)unused;
  if (!agent_port()) {
    bad("agent: port " AGENT_PORT ": %s", strerror(errno));
    return NULL;
  }
  if ((error = agent_spawn(&pid))) {
    bad("agent: " AGENT ": %s", strerror(error));
    return NULL;
  }
  agent.pid = pid;
  while ((ended = waitpid(-1, &how, 0)) > 0 || errno == EINTR) /* orphans come to PID 1 too */
    if (ended == pid) {
      agent.pid = 0;
      agent_last_line(line, sizeof line);
      bad("agent: ended (%s %d) %s", WIFSIGNALED(how) ? "signal" : "exit code",
          WIFSIGNALED(how) ? WTERMSIG(how) : WEXITSTATUS(how), line);
    }
  return NULL;
}

/* ---- network ------------------------------------------------------------------------------------------ */

static void
address(struct sockaddr *to, in_addr_t from)
{
  struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr.s_addr = from };
  memcpy(to, &in, sizeof in);
}

/* "10.0.2.15/24" to interface `name`; NULL: only bring it up. */
static const char *
nic_up(const char *name, const char *ip, const char *gateway)
{
  int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  struct ifreq r = { 0 };
  const char *error = NULL;
  snprintf(r.ifr_name, sizeof r.ifr_name, "%s", name);
  if (ip) {
    char text[64], *slash;
    struct in_addr in;
    snprintf(text, sizeof text, "%s", ip);
    slash = strchr(text, '/');
    int prefix = slash ? atoi(slash + 1) : 24;
    if (slash)
      *slash = 0;
    if (inet_aton(text, &in)) {
      address(&r.ifr_addr, in.s_addr);
      if (ioctl(s, SIOCSIFADDR, &r))
        error = strerror(errno);
      address(&r.ifr_netmask, htonl(prefix > 0 ? ~0u << (32 - prefix) : 0));
      ioctl(s, SIOCSIFNETMASK, &r);
    } else
      error = "not an address";
  }
  if (!ioctl(s, SIOCGIFFLAGS, &r)) {
    r.ifr_flags |= IFF_UP | IFF_RUNNING;
    if (ioctl(s, SIOCSIFFLAGS, &r))
      error = strerror(errno);
  } else
    error = strerror(errno);
  struct in_addr via;
  if (!error && gateway && inet_aton(gateway, &via)) {
    struct rtentry route = { .rt_flags = RTF_UP | RTF_GATEWAY };
    address(&route.rt_dst, 0);
    address(&route.rt_genmask, 0);
    address(&route.rt_gateway, via.s_addr);
    if (ioctl(s, SIOCADDRT, &route) && errno != EEXIST)
      error = strerror(errno);
  }
  close(s);
  return error;
}

/* Brings every NIC up: the n-th one (eth0, eth1, ...) with w.ip, w.ip1, w.ip2, ... */
static void
nics_up(void)
{
  nic_up("lo", "127.0.0.1/8", NULL);
  for (int i = 0; i < 8; i++) {
    char name[16], key[16], path[64], ip[64], gateway[64];
    snprintf(name, sizeof name, "eth%d", i);
    snprintf(path, sizeof path, "/sys/class/net/%s", name);
    if (access(path, F_OK))
      continue;
    snprintf(key, sizeof key, i ? "ip%d" : "ip", i);
    bool has_ip = option(key, ip, sizeof ip), has_gateway = i == 0 && option("gw", gateway, sizeof gateway);
    const char *error = nic_up(name, has_ip ? ip : NULL, has_gateway ? gateway : NULL);
    if (error)
      bad("nic=%s %s", name, error);
  }
}

/* ---- status ------------------------------------------------------------------------------------------- */

static atomic_ulong ticks, datagrams;

struct text {
  char *data;
  size_t size, used;
};

__attribute__((format(printf, 2, 3))) static void
add(struct text *t, const char *format, ...)
{
  va_list args;
  va_start(args, format);
  int n = vsnprintf(t->data + t->used, t->size - t->used, format, args);
  va_end(args);
  if (n > 0 && (size_t)n < t->size - t->used)
    t->used += (size_t)n;
}

static bool
sysfs(const char *class, const char *name, const char *leaf, char *value, size_t size)
{
  char path[384];
  snprintf(path, sizeof path, "/sys/%s/%s/%s", class, name, leaf);
  return read_line(path, value, size);
}

static void
add_nics(struct text *t)
{
  DIR *dir = opendir("/sys/class/net");
  int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  const char *comma = "";
  for (struct dirent *e; dir && (e = readdir(dir));) {
    char mac[32], carrier[8], ip[INET_ADDRSTRLEN] = "";
    struct ifreq r = { 0 };
    if (e->d_name[0] == '.' || !strcmp(e->d_name, "lo"))
      continue;
    memcpy(r.ifr_name, e->d_name, strnlen(e->d_name, sizeof r.ifr_name - 1));
    if (!ioctl(s, SIOCGIFADDR, &r)) {
      struct sockaddr_in in;
      memcpy(&in, &r.ifr_addr, sizeof in);
      inet_ntop(AF_INET, &in.sin_addr, ip, sizeof ip);
    }
    sysfs("class/net", e->d_name, "address", mac, sizeof mac);
    if (!sysfs("class/net", e->d_name, "carrier", carrier, sizeof carrier))
      strcpy(carrier, "0");
    add(t, "%s{\"name\":\"%s\",\"mac\":\"%s\",\"ip\":\"%s\",\"carrier\":%s}", comma, e->d_name, mac, ip,
        carrier);
    comma = ",";
  }
  if (dir)
    closedir(dir);
  close(s);
}

static void
add_block_devices(struct text *t)
{
  DIR *dir = opendir("/sys/block");
  const char *comma = "";
  for (struct dirent *e; dir && (e = readdir(dir));) {
    char sectors[32], serial[64];
    if (e->d_name[0] == '.' || !sysfs("block", e->d_name, "size", sectors, sizeof sectors))
      continue;
    if (!sysfs("block", e->d_name, "serial", serial, sizeof serial))
      serial[0] = 0;
    add(t, "%s{\"name\":\"%s\",\"bytes\":%llu,\"serial\":\"%s\"}", comma, e->d_name,
        strtoull(sectors, NULL, 10) * 512, serial);
    comma = ",";
  }
  if (dir)
    closedir(dir);
}

static void
add_disks(struct text *t)
{
  const char *comma = "";
  for (struct disk *d = disks; d < disks + MAX_DISKS; d++) {
    if (!d->used)
      continue;
    add(t,
        "%s{\"path\":\"%s\",\"acked\":%lu,\"found\":%lu,\"checked\":%lu,\"errors\":%lu,\"bad\":%lu,"
        "\"slowest_us\":%lu}",
        comma, d->path, d->acked, d->found, d->checked, d->errors, d->wrong, d->slowest_us);
    comma = ",";
  }
}

static const char *
latency_line(const char *path, char *line, size_t size)
{
  struct disk *d = disk_find(path);
  struct text t = { line, size, 0 };
  const char *comma = "";
  if (!d)
    return "not in use";
  add(&t, "{\"path\":\"%s\",\"at_ns\":%" PRIu64 ",\"writes\":[", d->path, now_ns(CLOCK_MONOTONIC));
  for (unsigned i = 0; i < LATENCY_OCTAVES * LATENCY_STEPS; i++)
    if (d->latency[i]) {
      add(&t, "%s[%" PRIu64 ",%u]", comma, latency_ns(i), d->latency[i]);
      comma = ",";
    }
  add(&t, "]}");
  return NULL;
}

/* Only what was asked for. */
static void
add_fs_and_agent(struct text *t)
{
  uint64_t begun = fs.begun, now = now_ns(CLOCK_MONOTONIC);
  if (fs.used)
    add(t,
        ",\"fs\":{\"path\":\"%s\",\"acked\":%lu,\"found\":%lu,\"checked\":%lu,\"errors\":%lu,\"bad\":%lu,"
        "\"slowest_us\":%lu,\"blocked_ms\":%lu}",
        fs.path, fs.acked, fs.found, fs.checked, fs.errors, fs.wrong, fs.slowest_us,
        (unsigned long)(begun && now > begun ? (now - begun) / 1000000 : 0));
  if (agent.used)
    add(t, ",\"agent\":%d", agent.pid);
}

static size_t
status_line(char *line, size_t size)
{
  struct text t = { line, size, 0 };
  unsigned long disk_errors = 0;
  for (struct disk *d = disks; d < disks + MAX_DISKS; d++)
    disk_errors += d->errors + d->wrong;
  add(&t, "{\"bootid\":\"%016" PRIx64 "\",\"up_ms\":%llu,\"real_ms\":%llu,\"cpus\":%ld,", bootid,
      (unsigned long long)(now_ns(CLOCK_MONOTONIC) / 1000000),
      (unsigned long long)(now_ns(CLOCK_REALTIME) / 1000000), sysconf(_SC_NPROCESSORS_ONLN));
  add(&t, "\"mem_mib\":%lu,\"rate\":%lu,\"passes\":%lu,\"checked\":%lu,\"written\":%lu,\"bad\":%lu,",
      (unsigned long)(memory.pages / PAGES_PER_MIB), memory.rate, memory.passes, memory.checked,
      memory.written, memory.wrong);
  add(&t, "\"errors\":%u,\"disk_errors\":%lu,\"ticks\":%lu,\"datagrams\":%lu,\"disks\":[", bad_lines,
      disk_errors, ticks, datagrams);
  add_disks(&t);
  add(&t, "],\"block\":[");
  add_block_devices(&t);
  add(&t, "],\"nics\":[");
  add_nics(&t);
  add(&t, "]");
  add_fs_and_agent(&t);
  add(&t, "}");
  return t.used;
}

/* ---- ticks -------------------------------------------------------------------------------------------- */

struct tick_sinks {
  bool port;  /* a byte to I/O port 0xe9 (isa-debugcon): the most precise one, no driver between */
  int file;   /* a byte to a serial line or virtio port, or -1 */
  int socket; /* a datagram, or -1 */
  struct sockaddr_in to;
};

static void *
tick_run(void *argument)
{
  struct tick_sinks *sinks = argument;
  uint64_t interval = (uint64_t)option_number("tickus", 1000) * 1000;
  uint64_t due = now_ns(CLOCK_MONOTONIC);
  if (sinks->port && ioperm(0xe9, 1, 1)) {
    bad("no access to I/O port 0xe9: %s", strerror(errno));
    sinks->port = false;
  }
  for (uint64_t number = 1;; number++) {
    uint8_t byte = (uint8_t)number;
    if (sinks->port)
      outb(byte, 0xe9);
    if (sinks->file >= 0 && write(sinks->file, &byte, 1) != 1)
      continue; /* nobody reads: the number stays what an observer expects */
    if (sinks->socket >= 0) {
      uint64_t datagram[2] = { bootid, number };
      sendto(sinks->socket, datagram, sizeof datagram, MSG_DONTWAIT, (struct sockaddr *)&sinks->to,
             sizeof sinks->to);
    }
    ticks = number;
    uint64_t now = now_ns(CLOCK_MONOTONIC);
    due = due + interval > now ? due + interval : now + interval;
    sleep_until_ns(due);
  }
  return NULL;
}

static void
raw_mode(int fd)
{
  struct termios t;
  if (tcgetattr(fd, &t))
    return;
  cfmakeraw(&t);
  cfsetspeed(&t, B115200);
  tcsetattr(fd, TCSANOW, &t);
}

/* w.tick=port,udp,/dev/ttyS1,/dev/vport*p1: any of these; w.tickto=ADDRESS:PORT for udp (else w.gw:7001). */
static void
ticks_start(void)
{
  static struct tick_sinks sinks = { .file = -1, .socket = -1 };
  char list[128], to[64] = "", *save = NULL;
  if (!option("tick", list, sizeof list))
    return;
  for (char *sink = strtok_r(list, ",", &save); sink; sink = strtok_r(NULL, ",", &save)) {
    if (!strcmp(sink, "port")) {
      sinks.port = true;
    } else if (!strcmp(sink, "udp")) {
      if (!option("tickto", to, sizeof to) && option("gw", to, sizeof to - 5))
        strcat(to, ":7001");
      char *colon = strchr(to, ':');
      if (!colon) {
        bad("w.tick=udp wants w.tickto=ADDRESS:PORT or w.gw");
        continue;
      }
      *colon = 0;
      sinks.to = (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(colon + 1)) };
      inet_aton(to, &sinks.to.sin_addr);
      sinks.socket = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    } else {
      /* A pattern, as the number in vport1p1 is that of all virtio devices; the port appears a moment after
             * its driver. */
      glob_t found = { 0 };
      for (int i = 0; i < 200 && glob(sink, 0, NULL, &found); i++)
        sleep_until_ns(now_ns(CLOCK_MONOTONIC) + 10 * 1000000);
      sinks.file = open(found.gl_pathc ? found.gl_pathv[0] : sink, O_WRONLY | O_NOCTTY | O_CLOEXEC);
      globfree(&found);
      if (sinks.file < 0)
        bad("tick=%s open: %s", sink, strerror(errno));
      else
        raw_mode(sinks.file);
    }
  }
  start_thread(tick_run, &sinks, 60);
}

/* ---- commands ----------------------------------------------------------------------------------------- */

static void
power(int how)
{
  sync();
  reboot(how);
}

static void
cpus_online(void)
{
  for (int i = 1; i < 256; i++) {
    char path[64];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/online", i);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
      continue;
    if (write(fd, "1", 1) < 0 && errno != EINVAL)
      bad("cpu=%d %s", i, strerror(errno));
    close(fd);
  }
}

/* Carries out one line and writes the answer (one line, no end of line). */
static void
command(char *line, char *answer, size_t size)
{
  char *save = NULL, *verb = strtok_r(line, " \t\r\n", &save);
  const char *error = NULL;
  if (!verb) {
    answer[0] = 0;
    return;
  }
  if (!strcmp(verb, "echo")) {
    snprintf(answer, size, "ECHO %s", save ? save : "");
    return;
  }
  char *a = strtok_r(NULL, " \t\r\n", &save), *b = strtok_r(NULL, " \t\r\n", &save),
       *c = strtok_r(NULL, " \t\r\n", &save);
  if (!strcmp(verb, "status")) {
    size_t n = (size_t)snprintf(answer, size, "STATUS ");
    status_line(answer + n, size - n);
    return;
  }
  if (!strcmp(verb, "latency") && a) {
    size_t n = (size_t)snprintf(answer, size, "LATENCY ");
    error = latency_line(a, answer + n, size - n);
    if (error)
      snprintf(answer, size, "ERR %s: %s", verb, error);
    return;
  }
  if (!strcmp(verb, "rate") && a)
    memory.rate = strtoul(a, NULL, 10);
  else if (!strcmp(verb, "check") && a)
    memory.check = strtoul(a, NULL, 10);
  else if (!strcmp(verb, "diskrate") && a)
    disk_rate = strtoul(a, NULL, 10);
  else if (!strcmp(verb, "fsrate") && a)
    fs.rate = strtoul(a, NULL, 10);
  else if (!strcmp(verb, "disk") && a)
    error = disk_start(a);
  else if (!strcmp(verb, "diskstop") && a)
    error = disk_stop(a);
  else if (!strcmp(verb, "net") && a)
    error = nic_up(a, b, c);
  else if (!strcmp(verb, "net"))
    nics_up();
  else if (!strcmp(verb, "cpus"))
    cpus_online();
  else if (!strcmp(verb, "poweroff"))
    power(RB_POWER_OFF);
  else if (!strcmp(verb, "reboot"))
    power(RB_AUTOBOOT);
  else
    error = "unknown command or missing argument";
  if (error)
    snprintf(answer, size, "ERR %s: %s", verb, error);
  else
    snprintf(answer, size, "OK %s%s%s", verb, a ? " " : "", a ? a : "");
}

static void *
udp_run(void *unused)
{
  static char in[2048], out[STATUS_MAX];
  struct sockaddr_in any = { .sin_family = AF_INET, .sin_port = htons(7000) }, from;
  int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  (void)unused;
  if (bind(s, (struct sockaddr *)&any, sizeof any)) {
    bad("udp bind: %s", strerror(errno));
    return NULL;
  }
  for (;;) {
    socklen_t length = sizeof from;
    ssize_t n = recvfrom(s, in, sizeof in - 1, 0, (struct sockaddr *)&from, &length);
    if (n <= 0)
      continue;
    datagrams++;
    if (in[0] == 't') { /* the tick probe: back at once, as it is */
      sendto(s, in, (size_t)n, 0, (struct sockaddr *)&from, length);
      continue;
    }
    in[n] = 0;
    command(in, out, sizeof out);
    sendto(s, out, strlen(out), 0, (struct sockaddr *)&from, length);
  }
  return NULL;
}

static void
tcp_serve(int client)
{
  static char line[512], answer[STATUS_MAX];
  size_t used = 0;
  char byte;
  while (used < sizeof line - 1 && read(client, &byte, 1) == 1) {
    if (byte != '\n') {
      line[used++] = byte;
      continue;
    }
    line[used] = 0;
    used = 0;
    command(line, answer, sizeof answer - 1);
    strcat(answer, "\n");
    if (send(client, answer, strlen(answer), MSG_NOSIGNAL) < 0)
      return;
  }
}

static void *
tcp_run(void *unused)
{
  struct sockaddr_in any = { .sin_family = AF_INET, .sin_port = htons(7000) };
  int s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  (void)unused;
  setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &(int){ 1 }, sizeof(int));
  if (bind(s, (struct sockaddr *)&any, sizeof any) || listen(s, 8)) {
    bad("tcp listen: %s", strerror(errno));
    return NULL;
  }
  for (;;) {
    int client = accept(s, NULL, NULL);
    if (client < 0)
      continue;
    /* A client that went away with its host is not waited for. */
    setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){ .tv_sec = 2 }, sizeof(struct timeval));
    tcp_serve(client);
    close(client);
  }
  return NULL;
}

static void
console_run(void)
{
  static char line[512], answer[STATUS_MAX];
  size_t used = 0;
  for (;;) {
    char byte;
    if (read(console_fd, &byte, 1) != 1) {
      sleep_until_ns(now_ns(CLOCK_MONOTONIC) + 100 * 1000000);
      continue;
    }
    if (byte != '\n' && byte != '\r') {
      if (used < sizeof line - 1)
        line[used++] = byte;
      continue;
    }
    line[used] = 0;
    used = 0;
    command(line, answer, sizeof answer);
    if (answer[0])
      say("%s", answer);
  }
}

/* ---- start -------------------------------------------------------------------------------------------- */

static void
load_modules(void)
{
  FILE *order = fopen("/modules/order", "re");
  char name[64], path[96];
  while (order && fgets(name, sizeof name, order)) {
    name[strcspn(name, "\n")] = 0;
    snprintf(path, sizeof path, "/modules/%s", name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST && errno != ENODEV))
      bad("module=%s %s", name, strerror(errno));
    if (fd >= 0)
      close(fd);
  }
  if (order)
    fclose(order);
}

static void
open_console(void)
{
  char path[32] = "/dev/ttyS0";
  option("console", path, sizeof path);
  console_fd = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
  if (console_fd < 0)
    console_fd = open("/dev/console", O_RDWR | O_NOCTTY | O_CLOEXEC);
  raw_mode(console_fd);
}

int
main(int argc, char **argv)
{
  char list[256], ip[64] = "-", *save = NULL;

  /* What qemu-ga runs at guest-shutdown. */
  if (getpid() != 1)
    return argc > 0 && strstr(argv[0], "shutdown") ? (sync(), reboot(RB_POWER_OFF)) : 2;

  mkdir("/proc", 0755);
  mkdir("/sys", 0755);
  mkdir("/dev", 0755);
  mount("proc", "/proc", "proc", 0, NULL);
  mount("sysfs", "/sys", "sysfs", 0, NULL);
  mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
  read_line("/proc/cmdline", cmdline, sizeof cmdline);
  reboot(RB_DISABLE_CAD);
  open_console();
  if (getrandom(&bootid, sizeof bootid, GRND_NONBLOCK | GRND_INSECURE) != sizeof bootid)
    bootid = mix(now_ns(CLOCK_REALTIME));
  crc_init();
  load_modules();
  nics_up();

  memory.rate = (unsigned long)option_number("rate", 0);
  memory.check = (unsigned long)option_number("check", 64);
  disk_rate = (unsigned long)option_number("diskrate", 100);
  memory_start((uint64_t)option_number("mem", 16));
  if (option("disk", list, sizeof list))
    for (char *path = strtok_r(list, ",", &save); path; path = strtok_r(NULL, ",", &save))
      disk_start(path);
  fs_start();
  agent.used = option_number("agent", 0) != 0;
  if (agent.used)
    start_thread(agent_run, NULL, 0);
  start_thread(udp_run, NULL, 50);
  start_thread(tcp_run, NULL, 0);
  ticks_start();

  option("ip", ip, sizeof ip);
  say("WITNESS READY bootid=%016" PRIx64 " up_ms=%llu ip=%s cpus=%ld", bootid,
      (unsigned long long)(now_ns(CLOCK_MONOTONIC) / 1000000), ip, sysconf(_SC_NPROCESSORS_ONLN));
  console_run();
}
