/* The first process of every pod: holds its namespaces open, reaps what is left to it, and goes when told to. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void leave(int signal) {
    (void)signal;
    _exit(0);
}

static void reap(int signal) {
    (void)signal;
    while (waitpid(-1, NULL, WNOHANG) > 0) {
    }
}

int main(void) {
    struct sigaction on_leave = {.sa_handler = leave}, on_child = {.sa_handler = reap};
    sigaction(SIGINT, &on_leave, NULL);
    sigaction(SIGTERM, &on_leave, NULL);
    sigaction(SIGCHLD, &on_child, NULL);
    for (;;) {
        pause();
    }
}
