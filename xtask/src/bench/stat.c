/* The capture floor: asks the kernel about every entry of a tree, with THREADS threads, and
 * leaves out `.git` at the top. Prints how many entries it saw.
 *
 * usage: stat DIR THREADS */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct dir { struct dir *next; char path[]; };
static struct dir *queue;
static int busy;
static long seen;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

static void push(const char *parent, const char *name)
{
	struct dir *dir = malloc(sizeof *dir + strlen(parent) + strlen(name) + 2);
	sprintf(dir->path, *name ? "%s/%s" : "%s%s", parent, name);
	pthread_mutex_lock(&lock);
	dir->next = queue;
	queue = dir;
	pthread_cond_signal(&changed);
	pthread_mutex_unlock(&lock);
}

static long scan(const char *path, int top)
{
	long count = 0;
	DIR *dir = opendir(path);
	struct dirent *entry;
	if (!dir)
		return 0;
	while ((entry = readdir(dir))) {
		struct statx st;
		const char *name = entry->d_name;
		if (!strcmp(name, ".") || !strcmp(name, "..") || (top && !strcmp(name, ".git")))
			continue;
		if (statx(dirfd(dir), name, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, &st) < 0)
			continue;
		count++;
		if (S_ISDIR(st.stx_mode))
			push(path, name);
	}
	closedir(dir);
	return count;
}

static const char *root;

static void *work(void *unused)
{
	(void)unused;
	pthread_mutex_lock(&lock);
	for (;;) {
		while (!queue && busy)
			pthread_cond_wait(&changed, &lock);
		if (!queue)
			break;
		struct dir *dir = queue;
		queue = dir->next;
		busy++;
		pthread_mutex_unlock(&lock);
		long count = scan(dir->path, !strcmp(dir->path, root));
		free(dir);
		pthread_mutex_lock(&lock);
		seen += count;
		busy--;
		pthread_cond_broadcast(&changed);
	}
	pthread_mutex_unlock(&lock);
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[64];
	int count = argc == 3 ? atoi(argv[2]) : 0;
	if (count < 1 || count > 64)
		return 2;
	root = argv[1];
	push(root, "");
	for (int n = 0; n < count; n++)
		pthread_create(&threads[n], NULL, work, NULL);
	for (int n = 0; n < count; n++)
		pthread_join(threads[n], NULL);
	printf("%ld\n", seen);
	return 0;
}
