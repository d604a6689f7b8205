/* Tries things inside a sandbox and says `name=value`, one a line. Static, so that it runs in any image. */
#define _GNU_SOURCE
#include <sys/xattr.h>
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <ifaddrs.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static void say(const char *name, const char *value) { printf("%s=%s\n", name, value); }

/* Whether a call was refused, and how. */
static void tried(const char *name, long result) {
    printf("%s=%s\n", name, result < 0 ? strerrorname_np(errno) : "ALLOWED");
}

static void status_lines(void) {
    char line[512];
    FILE *status = fopen("/proc/self/status", "r");
    while (status && fgets(line, sizeof line, status)) {
        char *colon = strchr(line, ':');
        if (!colon) continue;
        *colon = 0;
        line[strcspn(line, "\n")] = 0;
        char *value = colon + 1 + strspn(colon + 1, " \t");
        value[strcspn(value, "\n")] = 0;
        for (char *c = value; *c; c++) if (*c == '\t') *c = ' ';
        printf("status.%s=%s\n", line, value);
    }
    if (status) fclose(status);
}

/* What a step is given. */
static int self(void) {
    char text[4096] = "";
    size_t at = 0;
    for (int fd = 0; fd < 65536; fd++)
        if (fcntl(fd, F_GETFD) >= 0) at += (size_t)snprintf(text + at, sizeof text - at, "%s%d", at ? "," : "", fd);
    say("fds", text);
    printf("stdin_bytes=%zd\n", read(0, text, sizeof text));
    printf("uid=%d,%d\ngid=%d,%d\ngroups=%d\n", getuid(), geteuid(), getgid(), getegid(), getgroups(0, NULL));
    mode_t mask = umask(0);
    printf("umask=%04o\n", mask);
    say("cwd", getcwd(text, sizeof text) ? text : "?");
    gethostname(text, sizeof text);
    say("hostname", text);
    printf("session_leader=%s\n", getsid(0) == getpid() ? "yes" : "no");
    printf("tty=%s\n", open("/dev/tty", O_RDWR) < 0 ? "none" : "OPEN");
    sigset_t blocked;
    sigprocmask(SIG_BLOCK, NULL, &blocked);
    int odd = 0;
    for (int s = 1; s < 65; s++) {
        struct sigaction action;
        if (s == 32 || s == 33 || s == SIGKILL || s == SIGSTOP) continue;
        if (sigismember(&blocked, s)) odd++;
        if (sigaction(s, NULL, &action) == 0 && action.sa_handler != SIG_DFL) odd++;
    }
    printf("odd_signals=%d\n", odd);
    status_lines();
    return 0;
}

static void network(int port) {
    struct ifaddrs *list = NULL, *one;
    char names[256] = "";
    getifaddrs(&list);
    for (one = list; one; one = one->ifa_next)
        if (strcmp(one->ifa_name, "lo") != 0) strncat(names, one->ifa_name, 32);
    say("interfaces_but_lo", names);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
    inet_pton(AF_INET, "127.0.0.1", &to.sin_addr);
    tried("connect_host_loopback", connect(socket(AF_INET, SOCK_STREAM, 0), (void *)&to, sizeof to));
    inet_pton(AF_INET, "192.0.2.1", &to.sin_addr);
    tried("connect_outside_udp", connect(socket(AF_INET, SOCK_DGRAM, 0), (void *)&to, sizeof to));
    tried("connect_outside_tcp", connect(socket(AF_INET, SOCK_STREAM, 0), (void *)&to, sizeof to));
    tried("raw_socket", socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
    tried("packet_socket", socket(AF_PACKET, SOCK_RAW, 0));
    tried("vsock", socket(AF_VSOCK, SOCK_STREAM, 0));
    tried("netfilter_netlink", socket(AF_NETLINK, SOCK_RAW, 12));
}

static void calls(void) {
    char stack[65536];
    tried("mount", mount("none", "/tmp", "tmpfs", 0, NULL));
    tried("umount", umount2("/usr", MNT_DETACH));
    tried("remount", mount(NULL, "/usr", NULL, MS_REMOUNT | MS_BIND, NULL));
    tried("fsopen", syscall(SYS_fsopen, "tmpfs", 0));
    tried("open_tree", syscall(SYS_open_tree, AT_FDCWD, "/", 1));
    tried("pivot_root", syscall(SYS_pivot_root, "/tmp", "/tmp"));
    tried("chroot", chroot("/tmp"));
    tried("unshare_user", unshare(CLONE_NEWUSER));
    tried("unshare_mount", unshare(CLONE_NEWNS));
    tried("unshare_net", unshare(CLONE_NEWNET));
    long child = syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
    if (child == 0) _exit(0);
    tried("clone_user", child);
    memset(stack, 0, sizeof stack);
    tried("clone3", syscall(SYS_clone3, stack, 64));
    tried("setns", syscall(SYS_setns, open("/proc/self/ns/net", O_RDONLY), 0));
    tried("ptrace_traceme", ptrace(PTRACE_TRACEME, 0, 0, 0));
    tried("ptrace_init", ptrace(PTRACE_ATTACH, 1, 0, 0));
    tried("process_vm_readv", syscall(SYS_process_vm_readv, 1, NULL, 0, NULL, 0, 0));
    tried("pidfd_getfd", syscall(SYS_pidfd_getfd, 0, 0, 0));
    tried("mknod_char", mknod("/tmp/null", S_IFCHR | 0666, 0x103));
    tried("mknod_block", mknod("/tmp/disk", S_IFBLK | 0666, 0x801));
    tried("keyctl", syscall(SYS_keyctl, 0, -3, 0));
    tried("add_key", syscall(SYS_add_key, "user", "x", "x", 1, -3));
    tried("bpf", syscall(SYS_bpf, 0, NULL, 0));
    tried("perf_event_open", syscall(SYS_perf_event_open, stack, 0, -1, -1, 0));
    tried("userfaultfd", syscall(SYS_userfaultfd, 0));
    tried("io_uring_setup", syscall(SYS_io_uring_setup, 1, stack));
    tried("open_by_handle_at", syscall(SYS_open_by_handle_at, AT_FDCWD, stack, 0));
    tried("init_module", syscall(SYS_init_module, NULL, 0, ""));
    tried("kexec_load", syscall(SYS_kexec_load, 0, 0, NULL, 0));
    tried("reboot", syscall(SYS_reboot, 0, 0, 0, NULL));
    tried("syslog", syscall(SYS_syslog, 3, stack, 10));
    tried("sethostname", sethostname("x", 1));
    tried("clock_settime", syscall(SYS_clock_settime, 0, stack));
    tried("setuid_root", setuid(0));
    tried("setgroups", setgroups(0, NULL));
    close(open("/tmp/plain", O_CREAT | O_WRONLY, 0644));
    tried("chmod_setuid", chmod("/tmp/plain", 04755));
    tried("open_setuid", open("/tmp/plain2", O_CREAT | O_WRONLY, 04755));
    tried("tiocsti", syscall(SYS_ioctl, 0, 0x5412, "x"));
}

static void files(void) {
    const char *writes[] = {"/new", "/etc/passwd", "/usr/new", "/bin/new", "/etc/ld.so.preload", "/proc/self/oom_score_adj2"};
    const char *reads[] = {"/etc/shadow", "/etc/machine-id", "/proc/1/environ", "/proc/1/status", "/proc/kcore",
                           "/proc/kallsyms", "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/kmsg",
                           "/sys/kernel", "/dev/mem", "/dev/kmsg", "/dev/sda", "/dev/vda", "/dev/ptmx", "/dev/tty",
                           "/proc/keys", "/proc/self/mem2"};
    for (size_t i = 0; i < sizeof writes / sizeof *writes; i++) {
        printf("write:");
        tried(writes[i], open(writes[i], O_CREAT | O_WRONLY, 0644));
    }
    for (size_t i = 0; i < sizeof reads / sizeof *reads; i++) {
        printf("read:");
        tried(reads[i], open(reads[i], O_RDONLY));
    }
}

/* Every name in a directory, sorted by nobody. */
static int list(const char *name, const char *path) {
    DIR *dir = opendir(path);
    printf("%s=", name);
    if (!dir) { printf("%s\n", strerrorname_np(errno)); return 1; }
    for (struct dirent *entry; (entry = readdir(dir));)
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..")) printf("%s ", entry->d_name);
    printf("\n");
    closedir(dir);
    return 0;
}

static int isolation(int port) {
    network(port);
    calls();
    files();
    list("root", "/");
    list("roots_home", "/root");
    list("tmp", "/tmp");
    list("proc", "/proc");
    list("dev", "/dev");
    printf("own_pid=%d\n", getpid());
    tried("kill_init", kill(1, SIGKILL));
    return 0;
}

/* Forks until it is refused; every child waits to be killed. */
static int forks(int most) {
    int count = 0;
    while (count < most) {
        pid_t child = fork();
        if (child < 0) { printf("forked=%d\nrefused=%s\n", count, strerrorname_np(errno)); return 1; }
        if (child == 0) for (;;) pause();
        count++;
    }
    printf("forked=%d\nrefused=no\n", count);
    return 0;
}

static int hog(void) {
    for (size_t block = 8 << 20;;) {
        char *bytes = mmap(NULL, block, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (bytes == MAP_FAILED) return 9;
        memset(bytes, 1, block);
    }
}

/* A daemon as daemons do it: double fork, own session, streams elsewhere, signals ignored. */
static int daemons(int count, const char *marker) {
    for (int i = 0; i < count; i++) {
        if (fork() != 0) continue;
        setsid();
        if (fork() != 0) _exit(0);
        signal(SIGTERM, SIG_IGN);
        signal(SIGHUP, SIG_IGN);
        if (i % 2) { close(0); close(1); close(2); }
        execl("/proc/self/exe", "probe", "wait", marker, NULL);
        _exit(1);
    }
    while (wait(NULL) > 0) {}
    return 0;
}

/* Opens instances of inotify, up to a number, and keeps them while a process of this name waits. */
static int watches(int wanted, const char *marker) {
    int opened = 0;
    while (opened < wanted && inotify_init1(0) >= 0) opened++;
    printf("watches=%d\n", opened);
    fflush(stdout);
    if (!marker || !*marker) return 0;
    execl("/proc/self/exe", "probe", "wait", marker, NULL);
    return 1;
}

static int abstract(const char *name, int listening) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    size_t length = strlen(name);
    if (length > sizeof to.sun_path - 2) return 2;
    memcpy(to.sun_path + 1, name, length);
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + length);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (!listening) { tried("abstract", connect(fd, (void *)&to, size)); return 0; }
    if (bind(fd, (void *)&to, size) || listen(fd, 1)) return 3;
    printf("listening=yes\n");
    fflush(stdout);
    for (;;) pause();
}

/* A stream of bytes that any other program can compute: byte n is (n * 7 + n / 256 + salt) mod 256. */
static int pattern(int fd, long bytes, int salt) {
    unsigned char block[4096];
    for (long at = 0; at < bytes;) {
        long count = bytes - at < 4096 ? bytes - at : 4096;
        for (long i = 0; i < count; i++) block[i] = (unsigned char)((at + i) * 7 + (at + i) / 256 + salt);
        for (long done = 0; done < count;) {
            ssize_t wrote = write(fd, block + done, (size_t)(count - done));
            if (wrote < 0) return 1;
            done += wrote;
        }
        at += count;
    }
    return 0;
}

static int make_socket(const char *path) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    strncpy(to.sun_path, path, sizeof to.sun_path - 1);
    return bind(socket(AF_UNIX, SOCK_STREAM, 0), (void *)&to, sizeof to) ? 1 : 0;
}

static int facts(const char *path) {
    struct stat st;
    if (lstat(path, &st)) { printf("facts=%s\n", strerrorname_np(errno)); return 1; }
    printf("%s=%04o %ld %d:%d\n", path, st.st_mode & 07777, (long)st.st_mtime, st.st_uid, st.st_gid);
    return 0;
}

static int attributes(const char *path) {
    char names[4096];
    ssize_t length = llistxattr(path, names, sizeof names);
    if (length < 0) { tried(path, -1); return 1; }
    printf("%s=", path);
    for (ssize_t at = 0; at < length; at += (ssize_t)strlen(names + at) + 1) printf("%s ", names + at);
    printf("\n");
    return 0;
}

/* attacks.c */
int attacks(const char *input, int count, char **calls);
int threads(int most);
int descriptors(void);
int memory_file(long megabytes);
int spin(int milliseconds, int processes);
int stopped(int count, const char *marker);
int room(long megabytes);
int names(int count, int depth);
/* poison.c */
int poison(const char *dir, const char *name);

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    const char *what = argc > 1 ? argv[1] : "", *one = argc > 2 ? argv[2] : "", *two = argc > 3 ? argv[3] : "";
    if (!strcmp(what, "self")) return self();
    if (!strcmp(what, "poison")) return poison(one, two);
    if (!strcmp(what, "isolation")) return isolation(atoi(one));
    if (!strcmp(what, "forks")) return forks(atoi(one));
    if (!strcmp(what, "hog")) return hog();
    if (!strcmp(what, "daemons")) return daemons(atoi(one), two);
    if (!strcmp(what, "wait")) for (;;) pause();
    if (!strcmp(what, "watches")) return watches(atoi(one), two);
    if (!strcmp(what, "listen")) return abstract(one, 1);
    if (!strcmp(what, "connect")) return abstract(one, 0);
    if (!strcmp(what, "socket")) return make_socket(one);
    if (!strcmp(what, "list")) return list(one, one);
    if (!strcmp(what, "write")) { int fd = open(one, O_CREAT | O_WRONLY | O_TRUNC, 0644); tried(one, fd < 0 ? fd : write(fd, two, strlen(two))); return 0; }
    if (!strcmp(what, "attributes")) return attributes(one);
    if (!strcmp(what, "facts")) { for (int i = 2; i < argc; i++) facts(argv[i]); return 0; }
    if (!strcmp(what, "pattern")) { return pattern(1, atol(one), 1) || (argc > 3 && pattern(2, atol(two), 2)); }
    if (!strcmp(what, "kill")) { raise(atoi(one)); return 0; }
    if (!strcmp(what, "signals")) { signal(SIGTERM, SIG_IGN); printf("deaf=yes\n"); for (;;) pause(); }
    if (!strcmp(what, "cat")) { char b[4096]; int fd = open(one, O_RDONLY); ssize_t n; if (fd < 0) { tried(one, -1); return 1; } while ((n = read(fd, b, sizeof b)) > 0) if (write(1, b, (size_t)n) < 0) return 1; return 0; }
    if (!strcmp(what, "attacks")) return attacks(one, argc - 3, argv + 3);
    if (!strcmp(what, "threads")) return threads(atoi(one));
    if (!strcmp(what, "descriptors")) return descriptors();
    if (!strcmp(what, "memfd")) return memory_file(atol(one));
    if (!strcmp(what, "spin")) return spin(atoi(one), atoi(two));
    if (!strcmp(what, "stopped")) return stopped(atoi(one), two);
    if (!strcmp(what, "room")) return room(atol(one));
    if (!strcmp(what, "names")) return names(atoi(one), atoi(two));
    fprintf(stderr, "probe: unknown %s\n", what);
    return 64;
}
