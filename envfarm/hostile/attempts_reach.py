"""Attempts to reach what is outside: over the network, and by what the worker left open or lying about."""

from __future__ import annotations

from envfarm.hostile.attempt import Attempt
from envfarm.hostile.escape import Escape

ATTEMPTS: tuple[Attempt, ...] = (
    Escape(
        "sockets out",
        "TCP to the worker's machine and to a public address",
        "network",
        """
for address, port in (("127.0.0.1", PORT), ("10.0.0.1", PORT), ("172.17.0.1", PORT), ("1.1.1.1", 53)):
    tries(f"tcp {address}", socket.create_connection, (address, port), 2)
tries("tcp6", lambda: socket.create_connection(("2606:4700:4700::1111", 53), 2))
""",
    ),
    Escape(
        "raw sockets",
        "packets written by hand, and the kernel's routes",
        "network",
        """
tries("raw", socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
tries("packet", socket.socket, socket.AF_PACKET, socket.SOCK_RAW)
open("/proc/net/dev").read().count(":") > 1 and got("an interface beside loopback") or no("interfaces", "loopback alone")
""",
    ),
    Escape(
        "DNS",
        "a datagram to resolvers, and the image's own resolver",
        "network",
        """
def ask(address):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.sendto(b"\\x12\\x34\\x01\\0\\0\\x01\\0\\0\\0\\0\\0\\0\\x07example\\x03com\\0\\0\\x01\\0\\x01", (address, 53))
for address in ("1.1.1.1", "8.8.8.8", "10.96.0.10"):
    tries(f"udp {address}", ask, address)
tries("example.com", socket.gethostbyname, "example.com")
""",
    ),
    Escape(
        "metadata address",
        "credentials of the machine at 169.254.169.254",
        "network",
        """
for address in ("169.254.169.254", "169.254.170.2", "100.100.100.200"):
    tries(address, lambda: socket.create_connection((address, 80), 2))
""",
    ),
    Escape(
        "abstract sockets",
        "an abstract Unix socket of the worker's machine",
        "network",
        """
with socket.socket(socket.AF_UNIX) as s:
    tries("connect", s.connect, "\\0" + ABSTRACT)
listed = "/proc/net/unix"
if os.path.exists(listed) and ABSTRACT in open(listed).read():
    got("its name")
""",
    ),
    Escape(
        "inherited descriptors",
        "read what the worker had open",
        "",
        """
held = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")}
extra = [where for fd, where in held.items() if int(fd) > 2 and "/proc/" not in where and not where.endswith("attempt.py")]
for where in extra:
    got(f"descriptor of {where}")
no("descriptors", f"{len(held) - len(extra)} of its own")
for pid in others():
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            where = os.readlink(f"/proc/{pid}/fd/{fd}")
            if not where.startswith(("pipe:", "socket:", "/dev/null", "host:", "/proc", "anon_inode")):
                got(f"{where} of {pid}")
    except OSError as error:
        no(f"descriptors of {pid}", errno.errorcode[error.errno])
""",
    ),
    Escape(
        "the worker's files",
        "secrets, sockets and tokens where they usually lie, and a file that is known to be there",
        "",
        """
for path in (BAIT_FILE, "/var/run/docker.sock", "/run/containerd/containerd.sock", "/root/.ssh",
             "/var/run/secrets/kubernetes.io/serviceaccount/token", f"/proc/{WORKER}/environ", f"/proc/{WORKER}/root"):
    opens(path)
try:  # an image's own holds no password
    hashes = [line for line in open("/etc/shadow") if ":$" in line]
    got("/etc/shadow") if hashes else no("/etc/shadow", "no password")
except OSError as error:
    no("/etc/shadow", errno.errorcode[error.errno])
for pid in others():
    for name in ("environ", "cmdline"):
        try:
            print(open(f"/proc/{pid}/{name}", errors="replace").read())
        except OSError as error:
            no(f"{name} of {pid}", errno.errorcode[error.errno])
print(dict(os.environ))
""",
    ),
    Escape(
        "killing the worker",
        "signals to its process number and to all others but the box's own",
        "",
        """
os.setpgid(0, 0)
for pid in (WORKER, os.getppid() + 1000, 2**22 - 7):
    tries(f"kill {pid}", os.kill, pid, 0)
fd = system_call("pidfd_open", WORKER, 0)
if fd >= 0:
    got("a handle of the worker")
""",
    ),
)
