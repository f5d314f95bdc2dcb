/* A client for the rows of the network. Each connection sends a ClientHello for bench.test, whose
 * random says what is wanted, and reads the answer.
 *
 * usage: egress direct|proxy PORT connect N    nanoseconds for each of N connections, one after the other
 *                                 bulk         nanoseconds for one large answer, from its first byte on
 *                                 hold N       N connections at once, until standard input ends */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define NAME "bench.test"

static int proxied;
static int port;

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static int64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void send_all(int fd, const void *data, size_t size)
{
	if (send(fd, data, size, MSG_NOSIGNAL) != (ssize_t)size)
		fail("send");
}

static size_t hello(unsigned char *to, char mode)
{
	/* supported_versions: TLS 1.3; signature_algorithms: ecdsa_secp256r1_sha256 */
	static const unsigned char more[] = { 0, 43, 0, 3, 2, 3, 4, 0, 13, 0, 4, 0, 2, 4, 3 };
	const size_t name = strlen(NAME);
	unsigned char body[256], *p = body;
	size_t size;
	*p++ = 3, *p++ = 3;
	memset(p, mode, 32), p += 32;
	*p++ = 0;                                     /* no session id */
	memcpy(p, "\0\2\x13\1\1\0", 6), p += 6;       /* one cipher suite, no compression */
	*p++ = 0, *p++ = (unsigned char)(name + 9 + sizeof more);
	*p++ = 0, *p++ = 0, *p++ = 0, *p++ = (unsigned char)(name + 5);
	*p++ = 0, *p++ = (unsigned char)(name + 3), *p++ = 0, *p++ = 0, *p++ = (unsigned char)name;
	memcpy(p, NAME, name), p += name;
	memcpy(p, more, sizeof more), p += sizeof more;
	size = (size_t)(p - body);
	memcpy(to, "\x16\3\1\0", 4);
	to[4] = (unsigned char)(size + 4);
	memcpy(to + 5, "\1\0\0", 3);
	to[8] = (unsigned char)size;
	memcpy(to + 9, body, size);
	return size + 9;
}

static int open_one(char mode)
{
	static const char connect_line[] = "CONNECT " NAME ":443 HTTP/1.1\r\nHost: " NAME ":443\r\n\r\n";
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(proxied ? 3128 : port) };
	unsigned char buffer[512];
	size_t size;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
	to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to))
		fail("connect");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
	if (proxied) {
		size_t got = 0;
		send_all(fd, connect_line, sizeof connect_line - 1);
		while (got < 4 || memcmp(buffer + got - 4, "\r\n\r\n", 4)) {
			if (got == sizeof buffer || read(fd, buffer + got, 1) != 1)
				fail("the proxy's answer");
			got++;
		}
		if (memcmp(buffer + 9, "200", 3)) {
			fprintf(stderr, "%.*s\n", (int)got, buffer);
			exit(1);
		}
	}
	size = hello(buffer, mode);
	send_all(fd, buffer, size);
	return fd;
}

static void read_one(int fd)
{
	char byte;
	if (read(fd, &byte, 1) != 1)
		fail("read");
}

int main(int argc, char **argv)
{
	static char buffer[256 * 1024];
	int n = argc > 4 ? atoi(argv[4]) : 1, i;
	int64_t start;
	if (argc < 4)
		return 2;
	proxied = !strcmp(argv[1], "proxy");
	port = atoi(argv[2]);
	if (!strcmp(argv[3], "connect")) {
		start = now();
		for (i = 0; i < n; i++) {
			int fd = open_one('c');
			read_one(fd);
			close(fd);
		}
		printf("%lld\n", (long long)((now() - start) / n));
	} else if (!strcmp(argv[3], "bulk")) {
		int fd = open_one('b');
		ssize_t got;
		read_one(fd);
		start = now();
		while ((got = read(fd, buffer, sizeof buffer)) > 0)
			;
		if (got < 0)
			fail("read");
		printf("%lld\n", (long long)(now() - start));
	} else {
		for (i = 0; i < n; i++)
			read_one(open_one('h'));
		puts("open");
		fflush(stdout);
		while (read(0, buffer, sizeof buffer) > 0)
			;
	}
	return 0;
}
