"""Attempts on the kernel: to gain rights, namespaces and files by it, and on interfaces of its that no task needs."""

from __future__ import annotations

from envfarm.hostile.attempt import Attempt
from envfarm.hostile.escape import Escape

ATTEMPTS: tuple[Attempt, ...] = (
    Escape(
        "setuid",
        "become root: by call, by a set-uid copy, by the image's set-uid programs",
        "",
        """
for name in ("setuid", "setgid", "setgroups"):
    tries(name, getattr(os, name), [0] if name == "setgroups" else 0)
import shutil, subprocess
shutil.copy("/usr/bin/id", "/task/id"); os.chmod("/task/id", 0o6755)
found = ["/task/id"] + [e.path for d in ("/usr/bin", "/usr/sbin", "/bin", "/sbin") for e in os.scandir(d)
                        if e.is_file(follow_symlinks=False) and e.stat(follow_symlinks=False).st_mode & 0o6000]
status = open("/proc/self/status").read()
for path in found:
    if path == "/task/id":
        uid = subprocess.run([path, "-u"], capture_output=True, text=True).stdout.strip()
        got("root by a set-uid copy") if uid == "0" else no(path, f"uid {uid or 'unknown'}")
    elif "NoNewPrivs:\\t0" in status:
        got(f"{path} gives root") 
for line in status.splitlines():
    if line.startswith(("CapEff", "CapPrm", "CapBnd")):
        got(line) if int(line.split()[1], 16) else no(line.split(":")[0], "empty")
""",
    ),
    Escape(
        "mount",
        "another file system, another root",
        "",
        """
os.makedirs("/task/m", exist_ok=True)
calls("mount", b"none", b"/task/m", b"tmpfs", 0, None)
calls("mount", b"/proc", b"/task/m", None, 4096, None)
calls("umount2", b"/proc", 2)
calls("pivot_root", b"/task/m", b"/task/m")
calls("chroot", b"/")
""",
    ),
    Escape(
        "unshare",
        "namespaces of its own, where it would be root",
        "namespaces",
        """
for flag in (0x10000000, 0x00020000, 0x40000000, 0x20000000, 0x10020000):
    if os.fork() == 0:
        calls("unshare", flag); os._exit(0)
    os.wait()
""",
    ),
    Escape(
        "other namespaces",
        "join those of process 1 and of whatever is seen",
        "",
        """
for pid in others() or [1]:
    for kind in ("mnt", "net", "pid", "user"):
        try:
            fd = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY)
        except OSError as error:
            no(f"{kind} of {pid}", errno.errorcode[error.errno]); continue
        calls("setns", fd, 0)
""",
    ),
    Escape(
        "devices",
        "disks, memory, the kernel's messages",
        "",
        """
import stat
tries("mknod", os.mknod, "/task/disk", stat.S_IFBLK | 0o600, os.makedev(8, 0))
for path in ("/dev/mem", "/dev/kmem", "/dev/kmsg", "/dev/sda", "/dev/nvme0n1", "/dev/vda",
             "/dev/kvm", "/dev/fuse", "/dev/net/tun"):
    opens(path)
""",
    ),
    Escape(
        "read-only files",
        "write where the image or the machine is",
        "",
        """
for path in ("/etc/passwd", "/usr/bin/env", "/etc/ld.so.preload", "/usr/lib/x", "/x", "/var/x", "/root/x"):
    opens(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
tries("hard link", os.link, "/etc/passwd", "/task/passwd")
tries("rename", os.rename, "/usr/bin/env", "/usr/bin/env2")
""",
    ),
    Escape(
        "io_uring",
        "file access that filters do not see",
        "syscalls",
        """
calls("io_uring_setup", 4, ctypes.create_string_buffer(256))
""",
    ),
    Escape(
        "keyrings",
        "keys, which the kernel shares between boxes of one user",
        "syscalls",
        """
calls("add_key", b"user", b"x", b"y", 1, ctypes.c_int(-4))
calls("keyctl", 0, ctypes.c_int(-3), 1)
""",
    ),
    Escape(
        "bpf",
        "programs in the kernel, its counters, faults handled by the agent",
        "syscalls",
        """
calls("bpf", 0, ctypes.create_string_buffer(128), 128)
attributes = ctypes.create_string_buffer(b"\\0\\0\\0\\0\\x70\\0\\0\\0", 128)
calls("perf_event_open", attributes, 0, ctypes.c_int(-1), ctypes.c_int(-1), 0)
calls("userfaultfd", 0)
""",
    ),
    Escape(
        "kernel modules",
        "load code into the kernel, start another one, switch swap on",
        "",
        """
calls("init_module", b"x", 1, b"")
calls("kexec_load", 0, 0, None, 0)
calls("swapon", b"/task/x", 0)
""",
    ),
    Escape(
        "ptrace",
        "steer process 1 and whatever else runs in the box",
        "syscalls",
        """
for pid in others():
    calls("ptrace", 0x4206, pid, 0, 0)  # seize
    calls("process_vm_readv", pid, None, 0, None, 0, 0)
""",
    ),
    Escape(
        "memory of others",
        "write into process 1 and whatever else runs in the box, by /proc",
        "tracing",
        """
for pid in others():
    tries(f"memory of {pid}", lambda: os.close(os.open(f"/proc/{pid}/mem", os.O_RDWR)))
""",
    ),
    Escape(
        "/proc tricks",
        "settings of the kernel, roots of others, the core pattern",
        "",
        """
for path in ("/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/vm/drop_caches",
             "/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/release_agent", "/sys/kernel/uevent_helper",
             "/proc/self/oom_score_adj"):
    if path.endswith("oom_score_adj"):
        tries("be spared when memory is short", lambda: os.write(os.open(path, os.O_WRONLY), b"-1000"))
    else:
        opens(path, os.O_WRONLY)
for path in ("/proc/kcore", "/proc/kallsyms", f"/proc/1/root{BAIT_FILE}", "/sys/kernel/security/x"):
    if path == "/proc/kallsyms" and os.path.exists(path):
        addresses = {line.split()[0].strip("0") for line in open(path)}
        got("kernel addresses") if addresses - {""} else no(path, "zeros")
    else:
        opens(path)
""",
    ),
    Escape(
        "clock",
        "set the time that everybody sees",
        "",
        """
now = (ctypes.c_long * 2)(int(time.time()), 0)
calls("clock_settime", 0, now)
calls("settimeofday", now, None)
calls("sethostname", b"other", 5)
""",
    ),
)
