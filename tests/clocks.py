"""Processes whose wall clock is wrong: a library that is loaded before libc's shifts what they are told.

Only the wall clock is shifted, as on a host whose clock was set wrongly; the monotonic one is not. Needs a C compiler
and Linux's dynamic loader. Where there are none, says so and skips.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static long ahead(void) {
  const char *text = getenv("CLOCK_AHEAD_S");
  return text ? atol(text) : 0;
}
int clock_gettime(clockid_t id, struct timespec *at) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  int status = real(id, at);
  if (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE) at->tv_sec += ahead();
  return status;
}
int gettimeofday(struct timeval *restrict at, void *restrict zone) {
  struct timespec now;
  (void)zone;
  int status = clock_gettime(CLOCK_REALTIME, &now);
  at->tv_sec = now.tv_sec;
  at->tv_usec = now.tv_nsec / 1000;
  return status;
}
time_t time(time_t *at) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (at) *at = now.tv_sec;
  return now.tv_sec;
}
"""


def shifted_clock(folder: Path, ahead_s: int) -> dict[str, str]:
    """The environment of a process whose clock is so many seconds ahead (behind, below 0). Skips where it cannot be."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("no shifted clocks here: cc is not installed, or this is not Linux")
    source, library = folder / "clock.c", folder / "clock.so"
    source.write_text(SHIM, encoding="ascii")
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return {"LD_PRELOAD": str(library), "CLOCK_AHEAD_S": str(ahead_s)}
