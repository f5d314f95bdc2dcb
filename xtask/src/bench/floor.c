/* The launch floor: what the kernel alone costs. All seven namespaces, a root on a tmpfs with
 * the system directories bound read-only, an overlay of LOWER, pivot_root, and `true`.
 *
 * usage: floor LOWER UPPER WORK */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void must(int result, const char *what)
{
	if (result < 0) {
		fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
		exit(1);
	}
}

static void put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	must(fd, path);
	must(write(fd, text, strlen(text)), path);
	close(fd);
}

static void show(const char *name)
{
	char from[64], to[64], target[64];
	struct stat st;
	snprintf(from, sizeof from, "/%s", name);
	snprintf(to, sizeof to, "/tmp/%s", name);
	if (lstat(from, &st) < 0)
		return;
	if (S_ISLNK(st.st_mode)) {
		ssize_t n = readlink(from, target, sizeof target - 1);
		must(n, from);
		target[n] = 0;
		must(symlink(target, to), to);
		return;
	}
	must(mkdir(to, 0755), to);
	must(mount(from, to, NULL, MS_BIND | MS_REC, NULL), to);
	must(mount(NULL, to, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV, NULL), to);
}

int main(int argc, char **argv)
{
	char map[64], options[4096];
	uid_t uid = geteuid();
	gid_t gid = getegid();
	if (argc != 4)
		return 2;
	must(unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS |
		     CLONE_NEWNET | CLONE_NEWCGROUP), "unshare");
	put("/proc/self/setgroups", "deny");
	snprintf(map, sizeof map, "%u %u 1", uid, uid);
	put("/proc/self/uid_map", map);
	snprintf(map, sizeof map, "%u %u 1", gid, gid);
	put("/proc/self/gid_map", map);
	pid_t pid = fork();
	must(pid, "fork");
	if (pid > 0) {
		int status;
		must(waitpid(pid, &status, 0), "wait");
		return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
	}
	must(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "private");
	must(mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, NULL), "tmpfs");
	show("usr"); show("bin"); show("sbin"); show("lib"); show("lib64"); show("lib32");
	must(mkdir("/tmp/work", 0755), "work");
	must(mkdir("/tmp/proc", 0755), "proc");
	snprintf(options, sizeof options, "lowerdir=%s,upperdir=%s,workdir=%s,userxattr", argv[1], argv[2], argv[3]);
	must(mount("overlay", "/tmp/work", "overlay", MS_NOSUID | MS_NODEV, options), "overlay");
	must(mount("proc", "/tmp/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL), "proc");
	must(mkdir("/tmp/old", 0755), "old");
	must(syscall(SYS_pivot_root, "/tmp", "/tmp/old"), "pivot_root");
	must(chdir("/work"), "chdir");
	must(umount2("/old", MNT_DETACH), "umount");
	execl("/bin/true", "true", (char *)NULL);
	must(-1, "exec");
}
