/* Attacks that are known from the field, one group for each row of docs/cve-review.md, said as `Sn.what=answer`; and what
   uses a sandbox up. Everything here is harmless if it succeeds: what is opened is not written to, what is made is
   in the sandbox. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

static void tried(const char *name, long result) {
    printf("%s=%s\n", name, result < 0 ? strerrorname_np(errno) : "ALLOWED");
}

static void opened(const char *name, const char *path, int flags) {
    int fd = open(path, flags | O_CLOEXEC);
    tried(name, fd);
    if (fd >= 0) close(fd);
}

/* S1: the program of a process of the runtime, opened for writing. */
static void executables(void) {
    int writable = 0, busy = 0, seen = 0;
    DIR *dir = opendir("/proc");
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        char path[300];
        if (entry->d_name[0] < '0' || entry->d_name[0] > '9') continue;
        snprintf(path, sizeof path, "/proc/%s/exe", entry->d_name);
        int fd = open(path, O_WRONLY | O_CLOEXEC);
        seen++;
        if (fd >= 0) { writable++; close(fd); }
        else if (errno == ETXTBSY) busy++;
    }
    if (dir) closedir(dir);
    printf("S1.seen=%d\nS1.writable=%d\nS1.busy=%d\n", seen, writable, busy);
    opened("S1.init_exe", "/proc/1/exe", O_WRONLY);
    opened("S1.init_mem", "/proc/1/mem", O_RDWR);
    opened("S1.init_environ", "/proc/1/environ", O_RDONLY);
}

/* S2: a working directory or a descriptor outside the root. */
static void climbing(void) {
    struct stat root, here;
    char path[8192] = "";
    stat("/", &root);
    for (int i = 0; i < 200; i++) if (chdir("..")) break;
    stat(".", &here);
    printf("S2.top_is_root=%s\n", root.st_ino == here.st_ino && root.st_dev == here.st_dev ? "yes" : "NO");
    for (int i = 0; i < 200; i++) strcat(path, "../");
    stat(path, &here);
    printf("S2.path_top_is_root=%s\n", root.st_ino == here.st_ino && root.st_dev == here.st_dev ? "yes" : "NO");
    int outside = 0;
    for (int fd = 3; fd < 4096; fd++) if (fcntl(fd, F_GETFD) >= 0) outside++;
    printf("S2.descriptors=%d\n", outside);
}

/* S4, S14: what the kernel takes orders from. */
static void orders(void) {
    static const char *paths[] = {
        "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/kernel/hotplug", "/proc/sysrq-trigger",
        "/proc/sys/vm/drop_caches", "/proc/sys/kernel/ns_last_pid", "/proc/sys/user/max_user_namespaces", "/proc/bus/pci",
        "/proc/sys/fs/binfmt_misc/register", "/sys/fs/cgroup/release_agent", "/sys/fs/cgroup/cgroup.procs",
        "/sys/kernel/uevent_helper", "/sys/kernel/mm/transparent_hugepage/enabled", "/sys/power/state", "/proc/kcore",
        "/proc/self/attr/current", "/proc/self/uid_map", "/proc/self/setgroups", "/proc/timer_list", "/proc/scsi/scsi",
    };
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        char name[100];
        snprintf(name, sizeof name, "S14.%s", paths[i]);
        /* One's own map opens for writing and takes nothing: it is written. */
        int fd = open(paths[i], O_WRONLY | O_CLOEXEC);
        if (fd >= 0 && !strncmp(paths[i], "/proc/self/", 11)) {
            tried(name, write(fd, "0 0 1\n", 6));
        } else {
            tried(name, fd);
        }
        if (fd >= 0) close(fd);
    }
}

/* S15: typing into a terminal, also with a bit that the kernel does not look at. */
static void terminals(void) {
    static const struct { const char *name; unsigned long request; } calls[] = {
        {"tiocsti", 0x5412}, {"tioclinux", 0x541c}, {"tioccons", 0x541d}, {"tiocsetd", 0x5423},
    };
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
        for (int high = 0; high < 2; high++) {
            char name[40];
            snprintf(name, sizeof name, "S15.%s%s", calls[i].name, high ? "_bit32" : "");
            tried(name, syscall(SYS_ioctl, 0, calls[i].request | (unsigned long)high << 32, "x"));
        }
    printf("S15.ctty=%s\n", open("/dev/tty", O_RDWR) < 0 ? "none" : "OPEN");
}

/* S16: calls by number. What is refused is refused with these two answers, whatever the arguments. */
static void numbers(int count, char **numbers) {
    int wrong = 0;
    for (int i = 0; i < count; i++) {
        long number = atol(numbers[i]);
        long result = syscall(number, 0, 0, 0, 0, 0, 0);
        if (result >= 0 || (errno != EPERM && errno != ENOSYS)) {
            printf("S16.%ld=%s\n", number, result >= 0 ? "ALLOWED" : strerrorname_np(errno));
            wrong++;
        }
    }
    printf("S16.tried=%d\nS16.wrong=%d\n", count, wrong);
}

/* S17: another architecture, another interface, a tracer that suspends the filter. */
static void architectures(void) {
    pid_t child = fork();
    if (child == 0) {
        long result;
        __asm__ volatile("int $0x80" : "=a"(result) : "a"(20L) : "memory");
        _exit(result > 0 ? 0 : 1);
    }
    int status = 0;
    waitpid(child, &status, 0);
    if (WIFSIGNALED(status)) printf("S17.int80=SIG%s\n", sigabbrev_np(WTERMSIG(status)));
    else printf("S17.int80=%s\n", WEXITSTATUS(status) ? "refused" : "ALLOWED");
    tried("S17.x32_getpid", syscall(0x40000000 | SYS_getpid));
    tried("S17.x32_execve", syscall(0x40000000 | 520, "/", 0, 0));
    tried("S17.suspend_seccomp", ptrace(PTRACE_SEIZE, getppid(), 0, 0x200000));
}

/* S19, S29: socket families. */
static void families(void) {
    char made[400] = "";
    for (int family = 0; family < 64; family++) {
        static const int kinds[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_RAW, SOCK_SEQPACKET};
        for (size_t i = 0; i < 4; i++) {
            int fd = socket(family, kinds[i], 0);
            if (fd < 0) continue;
            close(fd);
            if (family != AF_UNIX && family != AF_INET && family != AF_INET6 && family != AF_NETLINK)
                snprintf(made + strlen(made), sizeof made - strlen(made), "%d ", family);
        }
    }
    printf("S19.other_families=%s\n", made);
    tried("S19.alg", socket(38, SOCK_SEQPACKET, 0));
    tried("S19.xfrm", socket(AF_NETLINK, SOCK_RAW, 6));
    tried("S19.rxrpc", socket(33, SOCK_DGRAM, 0));
    tried("S29.vsock", socket(40, SOCK_STREAM, 0));
}

/* S20: keys; S21: helpers of races. */
static void helpers(void) {
    tried("S20.add_key", syscall(SYS_add_key, "user", "a", "b", 1, -3));
    tried("S20.keyctl_session", syscall(SYS_keyctl, 0, -3, 1));
    tried("S20.request_key", syscall(SYS_request_key, "user", "a", NULL, -3));
    opened("S20.proc_keys", "/proc/keys", O_RDONLY);
    tried("S21.userfaultfd", syscall(SYS_userfaultfd, 1));
    tried("S21.fuse", open("/dev/fuse", O_RDWR));
    tried("S21.perf", syscall(SYS_perf_event_open, NULL, 0, -1, -1, 0));
    tried("S21.bpf", syscall(SYS_bpf, 5, NULL, 0));
    tried("S21.fanotify", syscall(SYS_fanotify_init, 0, 0));
    tried("S18.io_uring", syscall(SYS_io_uring_setup, 1, NULL));
}

/* S22: namespaces inside the sandbox, by every way that the kernel has. */
static void namespaces(void) {
    static const struct { const char *name; unsigned long flag; } kinds[] = {
        {"user", CLONE_NEWUSER}, {"mnt", CLONE_NEWNS}, {"pid", CLONE_NEWPID}, {"net", CLONE_NEWNET}, {"ipc", CLONE_NEWIPC},
        {"uts", CLONE_NEWUTS}, {"cgroup", CLONE_NEWCGROUP}, {"time", 0x80},
    };
    char name[40];
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        snprintf(name, sizeof name, "S22.unshare_%s", kinds[i].name);
        pid_t child = fork();
        if (child == 0) {
            tried(name, syscall(SYS_unshare, kinds[i].flag));
            fflush(stdout);
            _exit(0);
        }
        waitpid(child, NULL, 0);
        snprintf(name, sizeof name, "S22.clone_%s", kinds[i].name);
        long made = syscall(SYS_clone, kinds[i].flag | SIGCHLD, 0, 0, 0, 0);
        if (made == 0) _exit(0);
        tried(name, made);
        if (made > 0) waitpid((pid_t)made, NULL, 0);
    }
    struct clone_args args = {.flags = CLONE_NEWUSER, .exit_signal = SIGCHLD};
    long made = syscall(SYS_clone3, &args, sizeof args);
    if (made == 0) _exit(0);
    tried("S22.clone3_user", made);
    int fd = open("/proc/self/ns/user", O_RDONLY);
    tried("S22.setns", syscall(SYS_setns, fd, 0));
    tried("S22.parent_user_namespace", ioctl(fd, 0xb702));
}

/* S23, S24: files that gain power elsewhere. */
static void files(const char *input) {
    tried("S23.link_input", link(input, "/build/linked"));
    tried("S23.link_input_tmp", link(input, "/tmp/linked"));
    tried("S23.rename_input", rename(input, "/build/renamed"));
    opened("S23.write_input", input, O_WRONLY);
    tried("S23.chmod_input", chmod(input, 0777));
    tried("S23.truncate_input", truncate(input, 0));
    tried("S23.setxattr_input", setxattr(input, "user.x", "y", 1, 0));
    close(open("/tmp/file", O_CREAT | O_WRONLY, 0600));
    tried("S24.capability", setxattr("/tmp/file", "security.capability", "\0\0\0\2\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 20, 0));
    tried("S24.trusted", setxattr("/tmp/file", "trusted.overlay.opaque", "y", 1, 0));
    tried("S24.chmod_setuid", chmod("/tmp/file", 06755));
    tried("S24.fchmodat2_setuid", syscall(452, AT_FDCWD, "/tmp/file", 04755, 0));
    tried("S24.open_setuid", open("/tmp/file2", O_CREAT | O_WRONLY, 04755));
    tried("S24.mkdir_setgid", mkdir("/tmp/dir", 02755));
    struct stat made;
    printf("S24.setgid_kept=%s\n", stat("/tmp/dir", &made) == 0 && made.st_mode & 02000 ? "YES" : "no");
    tried("S24.mknod_block", mknod("/tmp/disk", S_IFBLK | 0600, 0x700));
    tried("S24.mknod_char", mknod("/tmp/null", S_IFCHR | 0600, 0x103));
    tried("S24.chown_away", chown("/tmp/file", 0, 0));
}

/* S26, S28 and what a step is: held against what is expected by who asked. */
static void identity(void) {
    static const char *names[] = {"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[64], target[64] = "";
        snprintf(path, sizeof path, "/proc/self/ns/%s", names[i]);
        ssize_t length = readlink(path, target, sizeof target - 1);
        printf("ns.%s=%.*s\n", names[i], length < 0 ? 0 : (int)length, target);
    }
    struct { unsigned version; int pid; } head = {0x20080522, 0};
    struct { unsigned effective, permitted, inheritable; } sets[2];
    if (syscall(SYS_capget, &head, sets) == 0) printf("capabilities=%08x%08x\n", sets[1].effective, sets[0].effective);
    char map[256] = "";
    int fd = open("/proc/self/uid_map", O_RDONLY);
    ssize_t length = read(fd, map, sizeof map - 1);
    for (char *c = map; *c; c++) if (*c == '\n') *c = 0;
    printf("uid_map=%s\n", length > 0 ? map : "?");
    char group[512] = "";
    fd = open("/proc/self/cgroup", O_RDONLY);
    length = read(fd, group, sizeof group - 1);
    int outside = 0;
    for (char *line = strtok(group, "\n"); line; line = strtok(NULL, "\n")) {
        char *path = strrchr(line, ':');
        if (path && strcmp(path, ":/") && strncmp(path, ":/steps", 7)) outside++;
    }
    printf("cgroup_paths_outside=%d\n", outside);
    struct rlimit limit;
    static const struct { const char *name; int which; } limits[] = {
        {"core", RLIMIT_CORE}, {"memlock", RLIMIT_MEMLOCK}, {"rtprio", RLIMIT_RTPRIO}, {"nice", RLIMIT_NICE}, {"nofile", RLIMIT_NOFILE},
    };
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        getrlimit(limits[i].which, &limit);
        printf("rlimit.%s=%llu\n", limits[i].name, (unsigned long long)limit.rlim_max);
    }
    struct sched_param real_time = {.sched_priority = 1};
    tried("sched_fifo", sched_setscheduler(0, SCHED_FIFO, &real_time));
    tried("nice_below_zero", setpriority(PRIO_PROCESS, 0, -5));
    tried("oom_score_lower", ({ int f = open("/proc/self/oom_score_adj", O_WRONLY); long n = f < 0 ? f : write(f, "-1000", 5); n; }));
    // What comes after would not be said if it died.
    kill(1, SIGKILL);
    kill(1, SIGTERM);
    tried("dumpable_init", kill(1, 0));
}

static void file_system(const char *name, const char *path) {
    struct statfs fs;
    printf("%s=%s\n", name, statfs(path, &fs) ? strerrorname_np(errno) : fs.f_type == 0x794c7630 ? "overlay" : "other");
}

int attacks(const char *input, int count, char **calls) {
    executables();
    climbing();
    orders();
    terminals();
    numbers(count, calls);
    architectures();
    families();
    helpers();
    namespaces();
    files(input);
    identity();
    file_system("fs.input", input);
    file_system("fs.usr", "/usr");
    opened("landlock.open_directory", "/open/new", O_CREAT | O_WRONLY);
    return 0;
}

static void *waiting(void *unused) { (void)unused; for (;;) pause(); return NULL; }

/* Threads until there is no more. */
int threads(int most) {
    int count = 0;
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 32768);
    for (pthread_t thread; count < most; count++) {
        int error = pthread_create(&thread, &attr, waiting, NULL);
        if (error) { printf("threads=%d\nrefused=%s\n", count, strerrorname_np(error)); return 1; }
    }
    printf("threads=%d\nrefused=no\n", count);
    return 0;
}

/* Descriptors until there is no more. */
int descriptors(void) {
    int count = 0;
    while (open("/dev/null", O_RDONLY) >= 0) count++;
    printf("opened=%d\nrefused=%s\n", count, strerrorname_np(errno));
    return 0;
}

/* Memory that is no process's own: counted all the same. */
int memory_file(long megabytes) {
    int fd = memfd_create("hog", 0);
    char block[65536];
    memset(block, 1, sizeof block);
    for (long at = 0; at < megabytes * 16; at++)
        if (write(fd, block, sizeof block) < 0) { printf("memfd=%s\n", strerrorname_np(errno)); return 1; }
    printf("memfd=written\n");
    return 0;
}

/* Turns a processor for so many milliseconds of time, with so many processes, and says how much it got. */
int spin(int milliseconds, int processes) {
    struct timespec begun, now;
    for (int i = 1; i < processes; i++) if (fork() == 0) break;
    clock_gettime(CLOCK_MONOTONIC, &begun);
    do clock_gettime(CLOCK_MONOTONIC, &now);
    while ((now.tv_sec - begun.tv_sec) * 1000 + (now.tv_nsec - begun.tv_nsec) / 1000000 < milliseconds);
    return 0;
}

/* Children that are stopped, in a session of their own, and children of theirs. */
int stopped(int count, const char *marker) {
    for (int i = 0; i < count; i++)
        if (fork() == 0) {
            setsid();
            if (fork() == 0) execl("/proc/self/exe", "probe", "wait", marker, NULL);
            raise(SIGSTOP);
            _exit(0);
        }
    return 0;
}

/* Room on the disk, by the ways that there are. */
int room(long megabytes) {
    int fd = open("/build/fallocated", O_CREAT | O_WRONLY, 0600);
    tried("fallocate", fallocate(fd, 0, 0, megabytes << 20));
    close(fd);
    unlink("/build/fallocated");
    fd = open("/build/sparse", O_CREAT | O_WRONLY, 0600);
    tried("truncate", ftruncate(fd, 1L << 40));
    struct stat sparse;
    fstat(fd, &sparse);
    printf("sparse_blocks=%lld\n", (long long)sparse.st_blocks);
    close(fd);
    char value[3000];
    memset(value, 'x', sizeof value);
    int count = 0;
    for (;; count++) {
        char path[64];
        snprintf(path, sizeof path, "/build/x%d", count);
        int file = open(path, O_CREAT | O_WRONLY, 0600);
        /* Equal attributes share their block. */
        memcpy(value, &count, sizeof count);
        if (file < 0 || fsetxattr(file, "user.a", value, sizeof value, 0)) break;
        close(file);
    }
    printf("xattrs=%d\nrefused=%s\n", count, strerrorname_np(errno));
    return 0;
}

/* Many names in one directory, and a tree that is deep. */
int names(int count, int depth) {
    char path[64];
    for (int i = 0; i < count; i++) {
        snprintf(path, sizeof path, "/build/n%d", i);
        int fd = open(path, O_CREAT | O_WRONLY, 0600);
        if (fd < 0) { printf("names=%d\nrefused=%s\n", i, strerrorname_np(errno)); return 1; }
        close(fd);
    }
    if (chdir("/build")) return 1;
    for (int i = 0; i < depth; i++) if (mkdir("d", 0700) || chdir("d")) { printf("depth=%d\n", i); return 1; }
    printf("names=%d\ndepth=%d\n", count, depth);
    return 0;
}
