/* The first process of a pod's sandbox: waits for ever, reaps orphans, ends on TERM or INT. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void end(int number) {
  (void)number;
  _exit(0);
}

static void reap(int number) {
  (void)number;
  while (waitpid(-1, NULL, WNOHANG) > 0) {
  }
}

int main(void) {
  struct sigaction ending = {0}, reaping = {0};
  ending.sa_handler = end;
  sigaction(SIGINT, &ending, NULL);
  sigaction(SIGTERM, &ending, NULL);
  reaping.sa_handler = reap;
  reaping.sa_flags = SA_NOCLDSTOP;
  sigaction(SIGCHLD, &reaping, NULL);
  for (;;) pause();
}
