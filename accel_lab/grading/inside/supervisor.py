"""The life of a sandbox: it isolates itself, then answers question after question, each in a
process of its own.

Around all sandboxes stands the outer isolation (bubblewrap: no file but Python's, no network, see
``grading.isolation``). A sandbox adds what keeps it from other sandboxes and from the zygote:
processes, mounts, network and shared memory of its own, a user without any right, limits, and no
system call that could undo any of it. It does so itself, before it has seen a line of a learner's
code.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import signal
import struct
import time
from typing import NoReturn

from . import answer, frames

C = ctypes.CDLL(None, use_errno=True)
NEW_MOUNTS, NEW_HOSTNAME, NEW_IPC, NEW_USERS, NEW_PROCESSES, NEW_NETWORK = (
    0x00020000,
    0x04000000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
PRIVATE, RECURSIVE, NO_SUID, NO_DEVICES, NO_EXEC = 1 << 18, 1 << 14, 2, 4, 8
MB = 1 << 20


def _succeed(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def unshare(flags: int) -> None:
    _succeed(C.unshare(flags), "unshare")


def keep_large_memory_apart() -> None:
    """Blocks of a MB and more are given back when freed, so that what a process holds is what it
    uses.
    """
    map_threshold = -3
    C.mallopt(map_threshold, MB)


def adopt_orphans() -> None:
    """What loses its parent below this process becomes its child."""
    set_child_subreaper = 36
    C.prctl(set_child_subreaper, 1, 0, 0, 0)


def live(line: int, channel: int, output: int, isolation: str, limits: dict, user: int) -> NoReturn:
    """All of a sandbox's life, which ends when the grader closes the line, or ends it.

    line: questions come from there, and what became of the process that was asked is told there;
    that process has it no more, so what is said there is true · channel: is that process's.
    """
    try:
        # their default cannot touch number 1 of a sandbox
        for signal_ in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGINT):
            signal.signal(signal_, signal.SIG_DFL)
        line, channel = _keep_only(line, channel, output)
        _enclose(isolation, limits, user)
        frames.send(line, {"ready": True})
        while True:
            _answer_in_a_process(line, channel, frames.receive(line), isolation)
    except EOFError:
        os._exit(0)
    except BaseException as error:
        frames.send(line, {"not ready": f"{type(error).__name__}: {error}"})
        os._exit(1)


def _keep_only(line: int, channel: int, output: int) -> tuple[int, int]:
    """Close every other descriptor: the zygote's own socket among them."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    line, channel, output, nothing = (
        os.dup2(os.dup(one), 200 + i) for i, one in enumerate((line, channel, output, nothing))
    )
    os.closerange(3, 200)
    os.dup2(nothing, 0)
    os.dup2(output, 1), os.dup2(output, 2)
    os.closerange(202, 1 << 16)
    return line, channel


def _answer_in_a_process(line: int, channel: int, request: dict, isolation: str) -> None:
    process = _fork()
    if process == 0:
        os.close(line)
        answer.give(request, channel)
        os._exit(0)
    status = os.waitpid(process, 0)[1]
    if isolation == "bubblewrap":
        with contextlib.suppress(ProcessLookupError):
            # whatever it has left behind: we are number 1 here, so this reaches the sandbox alone
            os.kill(-1, signal.SIGKILL)
    try:
        while True:
            os.waitpid(-1, 0)
    except ChildProcessError:
        frames.send(line, {"exit": os.waitstatus_to_exitcode(status)})


def _fork() -> int:
    for _ in range(200):
        try:
            return os.fork()
        except BlockingIOError:
            # another of this user has just used up its processes, and is about to be ended
            time.sleep(0.05)
    return os.fork()


def _enclose(isolation: str, limits: dict, user: int) -> None:
    os.setsid()
    os.umask(0o077)
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # where memory runs out, this is what has to go
    if isolation == "bubblewrap":
        unshare(NEW_MOUNTS | NEW_NETWORK | NEW_IPC | NEW_HOSTNAME)
        _mount(b"", b"/", b"", PRIVATE | RECURSIVE, b"")
        _mount(b"proc", b"/proc", b"proc", NO_SUID | NO_DEVICES | NO_EXEC, b"")
        for folder in (limits["scratch"].encode(), b"/dev/shm"):
            size = b"mode=1777,size=%d,nr_inodes=%d" % (limits["folder bytes"], limits["files"])
            _mount(b"tmpfs", folder, b"tmpfs", NO_SUID | NO_DEVICES, size)
        # terminals are another way to meet
        _mount(b"tmpfs", b"/dev/pts", b"tmpfs", NO_SUID | NO_DEVICES, b"mode=0,size=4096")
        os.chdir(limits["scratch"])
    limits = {**limits, "address space": limits["address space"] + answer.status("VmSize")}
    for name, which in RESOURCES.items():
        resource.setrlimit(which, (limits[name],) * 2)
    _renounce(user if isolation == "bubblewrap" else None)
    if isolation == "landlock":
        _landlock(limits["readable"], limits["writable"])
    _forbid_system_calls()


RESOURCES = {
    "address space": resource.RLIMIT_AS,
    "file size": resource.RLIMIT_FSIZE,
    "processes": resource.RLIMIT_NPROC,
    "cpu seconds": resource.RLIMIT_CPU,
    "open files": resource.RLIMIT_NOFILE,
    "core": resource.RLIMIT_CORE,
}


def _mount(what: bytes, where: bytes, kind: bytes, flags: int, options: bytes) -> None:
    _succeed(C.mount(what, where, kind, flags, options), f"mount {where.decode()}")


def _renounce(user: int | None) -> None:
    """Every capability, for good; and root, to be a user of whom nothing else here is, with a count
    of processes of its own.
    """
    drop_from_bounding_set, no_new_privileges, be_dumpable = 24, 38, 4
    for capability in range(64):
        C.prctl(drop_from_bounding_set, capability, 0, 0, 0)
    if user is not None and os.getuid() == 0:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    header, nothing = struct.pack("<Ii", 0x20080522, 0), bytes(24)
    _succeed(C.capset(header, nothing), "capset")
    _succeed(C.prctl(no_new_privileges, 1, 0, 0, 0), "no_new_privs")
    C.prctl(be_dumpable, 0, 0, 0, 0)  # nobody of the same user looks into its memory


# by machine: the audit number, the numbers of these calls there, and those of four that are refused
# in part
FORBIDDEN = {
    "x86_64": (
        0xC000003E,
        {
            "unshare": 272,
            "setns": 308,
            "mount": 165,
            "umount2": 166,
            "pivot_root": 155,
            "ptrace": 101,
            "process_vm_readv": 310,
            "process_vm_writev": 311,
            "add_key": 248,
            "request_key": 249,
            "keyctl": 250,
            "bpf": 321,
            "perf_event_open": 298,
            "inotify_add_watch": 254,
            "fanotify_init": 300,
            "shmget": 29,
            "msgget": 68,
            "semget": 64,
            "memfd_create": 319,
            "flock": 73,
            "userfaultfd": 323,
            "io_uring_setup": 425,
            "pidfd_getfd": 438,
        },
        {"clone": 56, "clone3": 435, "fcntl": 72, "socket": 41},
    ),
    "aarch64": (
        0xC00000B7,
        {
            "unshare": 97,
            "setns": 268,
            "mount": 40,
            "umount2": 39,
            "pivot_root": 41,
            "ptrace": 117,
            "process_vm_readv": 270,
            "process_vm_writev": 271,
            "add_key": 217,
            "request_key": 218,
            "keyctl": 219,
            "bpf": 280,
            "perf_event_open": 241,
            "inotify_add_watch": 27,
            "fanotify_init": 262,
            "shmget": 194,
            "msgget": 186,
            "semget": 190,
            "memfd_create": 279,
            "flock": 32,
            "userfaultfd": 282,
            "io_uring_setup": 425,
            "pidfd_getfd": 438,
        },
        {"clone": 220, "clone3": 435, "fcntl": 25, "socket": 198},
    ),
}
# of fcntl: on a file that all sandboxes see they say something; and F_SETPIPE_SZ
LOCKS_AND_LEASES = (5, 6, 7, 36, 37, 38, 1024, 1026, 1031)
# families of sockets that a network of one's own keeps in
LOCAL, INTERNET, INTERNET_6, NETLINK = 1, 2, 10, 16


def _forbid_system_calls() -> None:
    """A seccomp filter: what could open a new namespace, look into another process, or reach
    another sandbox is refused.
    """
    if platform.machine() not in FORBIDDEN:
        return
    audit, calls, partly = FORBIDDEN[platform.machine()]
    load, equal, any_bit, leave = 0x20, 0x15, 0x45, 0x06
    allow, refuse, unknown = (
        (leave, 0, 0, value) for value in (0x7FFF0000, 0x00050000 | 1, 0x00050000 | 38)
    )
    at_number, at_machine, arguments = 0, 4, (16, 24)

    def of(call: str, lines: list[tuple]) -> list[tuple]:
        """These lines decide on that call."""
        return [(equal, 0, len(lines), partly[call]), *lines]

    program = [(load, 0, 0, at_machine), (equal, 1, 0, audit), refuse, (load, 0, 0, at_number)]
    if platform.machine() == "x86_64":
        # the same calls by their 32-bit-pointer numbers
        program += [(0x35, 0, 1, 0x40000000), refuse]
    for number in calls.values():
        program += [(equal, 0, 1, number), refuse]
    program += of("clone3", [unknown])  # the C library then uses clone, whose flags can be seen
    program += of("clone", [(load, 0, 0, arguments[0]), (any_bit, 0, 1, NEW_USERS), refuse, allow])
    locks = [line for command in LOCKS_AND_LEASES for line in ((equal, 0, 1, command), refuse)]
    program += of("fcntl", [(load, 0, 0, arguments[1]), *locks, allow])
    families = [
        line
        for family in (LOCAL, INTERNET, INTERNET_6, NETLINK)
        for line in ((equal, 0, 1, family), allow)
    ]
    program += of("socket", [(load, 0, 0, arguments[0]), *families, refuse])
    program += [allow]
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *line) for line in program))
    filter_ = struct.pack("<HxxxxxxQ", len(program), ctypes.addressof(code))
    set_seccomp, by_filter = 22, 2
    _succeed(C.prctl(set_seccomp, by_filter, filter_, 0, 0), "seccomp")


def landlock_version() -> int:
    """0 where the kernel has none."""
    return max(0, C.syscall(444, None, ctypes.c_size_t(0), ctypes.c_uint(1)))


def _landlock(readable: list[str], writable: list[str]) -> None:
    """Nothing but these folders, for this process and all that come from it, and no TCP (Linux ≥
    6.7). Needs no right.
    """
    version = landlock_version()
    every_access = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    of_files, read_and_execute = 0b111 | 1 << 14 | 1 << 15, 0b1101
    every_tcp, every_scope = 3, 3
    rules = struct.pack("<QQQ", every_access, every_tcp, every_scope)[
        : 24 if version >= 6 else 16 if version >= 4 else 8
    ]
    rule_set = _succeed(
        C.syscall(444, rules, ctypes.c_size_t(len(rules)), ctypes.c_uint(0)), "landlock"
    )
    for paths, access in ((readable, read_and_execute), (writable, every_access)):
        for path in filter(os.path.exists, paths):
            folder = os.open(path, os.O_PATH)
            allowed = access if os.path.isdir(path) else access & of_files & every_access
            _succeed(
                C.syscall(445, rule_set, 1, struct.pack("<Qi", allowed, folder), ctypes.c_uint(0)),
                f"landlock {path}",
            )
            os.close(folder)
    _succeed(C.syscall(446, rule_set, ctypes.c_uint(0)), "landlock")
    os.close(rule_set)
