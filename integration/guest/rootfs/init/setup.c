// SPDX-License-Identifier: MIT OR Apache-2.0
#include "init.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <net/route.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

static void mount_or_report(const char *type, const char *where, unsigned long flags, const char *options)
{
    mkdir(where, 0755);
    if (mount(type, where, type, flags, options) < 0)
        report("init: cannot mount %s on %s: %s", type, where, strerror(errno));
}

void mount_basics(void)
{
    mount_or_report("devtmpfs", "/dev", MS_NOSUID, NULL);
    mount_or_report("proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    mount_or_report("sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    mount_or_report("tmpfs", "/tmp", MS_NOSUID | MS_NODEV, "mode=1777");
    mount_or_report("tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=755");
    mount_or_report("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "mode=620");
}

// The ext4 superblock is at byte 1024, its magic number 0x38 bytes in. Looking first keeps the kernel from complaining
// about a blank disk.
static bool has_ext4(const char *device)
{
    unsigned char magic[2];
    int fd = open(device, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t length = pread(fd, magic, sizeof magic, 1024 + 0x38);
    close(fd);
    return length == sizeof magic && magic[0] == 0x53 && magic[1] == 0xef;
}

bool mount_data(void)
{
    mkdir("/data", 0755);
    if (!has_ext4("/dev/vda"))
        return false;
    if (mount("/dev/vda", "/data", "ext4", MS_NOSUID | MS_NODEV, NULL) < 0) {
        report("init: cannot mount /dev/vda on /data: %s", strerror(errno));
        return false;
    }
    return true;
}

void unmount_data(void)
{
    // Somebody may still have a file open there; a read-only remount at least leaves a clean file system.
    if (umount("/data") < 0 && errno == EBUSY)
        mount(NULL, "/data", NULL, MS_REMOUNT | MS_RDONLY, NULL);
}

void write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, text, strlen(text)) < 0)
        report("init: cannot write %s: %s", path, strerror(errno));
    if (fd >= 0)
        close(fd);
}

static void set_address(struct sockaddr *address, in_addr_t value)
{
    struct sockaddr_in *in = (struct sockaddr_in *)address;
    memset(in, 0, sizeof *in);
    in->sin_family = AF_INET;
    in->sin_addr.s_addr = value;
}

static bool interface_up(int fd, const char *name)
{
    struct ifreq request = {0};
    strncpy(request.ifr_name, name, sizeof request.ifr_name - 1);
    if (ioctl(fd, SIOCGIFFLAGS, &request) < 0)
        return false;
    request.ifr_flags |= IFF_UP;
    return ioctl(fd, SIOCSIFFLAGS, &request) == 0;
}

// `text` is A.B.C.D or A.B.C.D/NN.
static bool interface_address(int fd, const char *name, const char *text)
{
    char address[32];
    snprintf(address, sizeof address, "%s", text);
    char *slash = strchr(address, '/');
    int prefix = 24;
    if (slash) {
        *slash = '\0';
        prefix = atoi(slash + 1);
    }
    in_addr_t value = inet_addr(address);
    if (value == INADDR_NONE || prefix < 1 || prefix > 32)
        return false;

    struct ifreq request = {0};
    strncpy(request.ifr_name, name, sizeof request.ifr_name - 1);
    set_address(&request.ifr_addr, value);
    if (ioctl(fd, SIOCSIFADDR, &request) < 0)
        return false;
    set_address(&request.ifr_netmask, htonl(0xffffffffu << (32 - prefix)));
    return ioctl(fd, SIOCSIFNETMASK, &request) == 0;
}

static bool default_route(int fd, const char *gateway)
{
    struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};
    in_addr_t value = inet_addr(gateway);
    if (value == INADDR_NONE)
        return false;
    set_address(&route.rt_dst, INADDR_ANY);
    set_address(&route.rt_genmask, INADDR_ANY);
    set_address(&route.rt_gateway, value);
    return ioctl(fd, SIOCADDRT, &route) == 0 || errno == EEXIST;
}

void network_up(void)
{
    // The kernel has done eth0 already if there was an `ip=` on its command line.
    const char *address = cmdline_get("lockstep.ip", NULL);
    const char *gateway = cmdline_get("lockstep.gw", NULL);
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return;
    interface_up(fd, "lo");
    if (address && !interface_address(fd, "eth0", address))
        report("init: cannot give eth0 the address %s", address);
    if (address && !interface_up(fd, "eth0"))
        report("init: cannot bring eth0 up");
    if (gateway && !default_route(fd, gateway))
        report("init: cannot route by %s", gateway);
    close(fd);
}
