/* Every way in which somebody who can read a file may try to change it, or what lies below the overlay that shows it. What
   fails says so as `what=answer`; what the kernel allows because it touches a copy says `what=copy`. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/mount.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

int mount(const char *, const char *, const char *, unsigned long, const void *);

static void tried(const char *name, long result) {
    printf("%s=%s\n", name, result < 0 ? strerrorname_np(errno) : "ALLOWED");
}

static void mounts(const char *file, const char *dir) {
    struct mount_attr writable = {.attr_clr = MOUNT_ATTR_RDONLY};
    char options[300];
    tried("remount", mount(NULL, dir, NULL, MS_REMOUNT, NULL));
    tried("remount_bind", mount(NULL, dir, NULL, MS_REMOUNT | MS_BIND, NULL));
    tried("remount_root", mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND, NULL));
    tried("bind", mount(dir, "/tmp", NULL, MS_BIND, NULL));
    tried("mount_setattr", syscall(SYS_mount_setattr, AT_FDCWD, dir, 0, &writable, sizeof writable));
    tried("mount_setattr_recursive", syscall(SYS_mount_setattr, AT_FDCWD, "/", AT_RECURSIVE, &writable, sizeof writable));
    tried("open_tree", syscall(SYS_open_tree, AT_FDCWD, dir, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC));
    tried("fspick", syscall(SYS_fspick, AT_FDCWD, dir, 0));
    tried("fsopen", syscall(SYS_fsopen, "overlay", 0));
    snprintf(options, sizeof options, "lowerdir=%s,upperdir=/tmp,workdir=/tmp", dir);
    tried("overlay", mount("overlay", "/tmp", "overlay", 0, options));
    tried("umount", syscall(SYS_umount2, dir, 2));
    tried("umount_file", syscall(SYS_umount2, file, 2));
    tried("unshare", unshare(CLONE_NEWUSER | CLONE_NEWNS));
    struct { unsigned bytes; int type; char data[128]; } handle = {.bytes = 128};
    int id, named = syscall(SYS_name_to_handle_at, AT_FDCWD, file, &handle, &id, 0);
    tried("handle", named < 0 ? named : syscall(SYS_open_by_handle_at, AT_FDCWD, &handle, O_WRONLY));
}

static void names(const char *file, const char *dir) {
    char other[300], self[64];
    int fd = open(file, O_RDONLY | O_CLOEXEC), path = open(file, O_PATH | O_CLOEXEC);
    snprintf(other, sizeof other, "%s/planted", dir);
    snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
    tried("create", open(other, O_CREAT | O_WRONLY, 0644));
    tried("mkdir", mkdir(other, 0755));
    tried("symlink", symlink("/", other));
    tried("link_beside", link(file, other));
    tried("link_out", link(file, "/tmp/linked"));
    tried("link_out_proc", linkat(AT_FDCWD, self, AT_FDCWD, "/tmp/linked2", AT_SYMLINK_FOLLOW));
    tried("link_out_path", linkat(path, "", AT_FDCWD, "/tmp/linked3", AT_EMPTY_PATH));
    tried("rename", rename(file, other));
    tried("exchange", syscall(SYS_renameat2, AT_FDCWD, file, AT_FDCWD, "/tmp", RENAME_EXCHANGE));
    tried("whiteout", syscall(SYS_renameat2, AT_FDCWD, file, AT_FDCWD, other, RENAME_WHITEOUT));
    tried("unlink", unlink(file));
    tried("mknod_whiteout", mknod(other, S_IFCHR | 0600, 0));
    tried("opaque", setxattr(dir, "user.overlay.opaque", "y", 1, 0));
    tried("opaque_trusted", setxattr(dir, "trusted.overlay.opaque", "y", 1, 0));
    close(fd);
    close(path);
}

static void contents(const char *file) {
    char self[64], byte = 'P';
    int fd = open(file, O_RDONLY | O_CLOEXEC), path = open(file, O_PATH | O_CLOEXEC), flags = 0;
    struct stat st;
    fstat(fd, &st);
    tried("open", open(file, O_WRONLY));
    tried("open_append", open(file, O_RDWR | O_APPEND));
    tried("open_truncate", open(file, O_RDONLY | O_TRUNC));
    tried("truncate", truncate(file, 0));
    snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
    tried("reopen", open(self, O_RDWR));
    snprintf(self, sizeof self, "/proc/self/fd/%d", path);
    tried("reopen_path", open(self, O_WRONLY));
    tried("chmod_path", chmod(self, 0666));
    tried("write_read_only", pwrite(fd, &byte, 1, 0));
    tried("ftruncate", ftruncate(fd, 0));
    tried("fallocate", fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 1));
    tried("map_shared", mmap(NULL, 1, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED ? -1 : 0);
    void *shared = mmap(NULL, 1, PROT_READ, MAP_SHARED, fd, 0);
    tried("mprotect_shared", mprotect(shared, 1, PROT_READ | PROT_WRITE));
    tried("fchmod", fchmod(fd, 0666));
    tried("fchown", fchown(fd, 0, 0));
    tried("utimens", futimens(fd, NULL));
    tried("setxattr", fsetxattr(fd, "user.x", "x", 1, 0));
    tried("capability", fsetxattr(fd, "security.capability", "\1\0\0\2\1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 20, 0));
    tried("setflags", ioctl(fd, FS_IOC_SETFLAGS, &flags));
    tried("clone", ioctl(fd, FICLONE, fd));
    tried("copy_range", syscall(SYS_copy_file_range, fd, NULL, fd, NULL, 1, 0));
    /* A private mapping is written through /proc/self/mem (CVE-2016-5195): what changes is a copy. */
    char *map = mmap(NULL, 1, PROT_READ, MAP_PRIVATE, fd, 0);
    int mem = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
    if (mem >= 0 && map != MAP_FAILED && pwrite(mem, &byte, 1, (off_t)map) == 1) printf("mem=copy\n");
    else tried("mem", -1);
    /* A page of the file in a pipe that may be merged into (CVE-2022-0847). */
    int ends[2];
    if (pipe(ends) == 0) {
        for (int i = 0; i < 16; i++) if (write(ends[1], "xxxxxxxx", 8) != 8) break;
        char drain[128];
        if (read(ends[0], drain, sizeof drain) < 0) perror("read");
        off_t at = 0;
        if (splice(fd, &at, ends[1], NULL, 1, 0) == 1 && write(ends[1], &byte, 1) == 1) printf("pipe=copy\n");
        else tried("pipe", -1);
    }
    close(fd);
    close(path);
}

int poison(const char *dir, const char *name) {
    char file[300];
    snprintf(file, sizeof file, "%s/%s", dir, name);
    contents(file);
    names(file, dir);
    mounts(file, dir);
    return 0;
}
