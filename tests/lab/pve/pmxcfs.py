#!/usr/bin/python3 -IS
"""/etc/pve as it is without quorum: a FUSE file system over the directory that everybody can read and nobody write.

usage: pmxcfs.py DIRECTORY LOG      until SIGTERM, which unmounts it

As pmxcfs has it (pve-facts §h): reads go on, every change is refused with EACCES, also to root, and no write bit shows,
not even that of the link `local`, by which a program tells. LOG gets a line per refused change: who wanted what. With
quorum there is nothing here: the directory is an ordinary one. Standard library only.
"""

import ctypes
import errno
import os
import signal
import stat
import struct
import sys
from collections.abc import Callable

LIBC = ctypes.CDLL(None, use_errno=True)
NOSUID_NODEV = 6
DETACH = 2
HEADER = struct.Struct("<IIQQIIII")
ANSWER = struct.Struct("<IiQ")
ATTRIBUTES = struct.Struct("<6Q10I")
INIT, DESTROY, FORGET, BATCH_FORGET, INTERRUPT, OPEN = 26, 38, 2, 42, 36, 14
CHANGES = {4: "setattr", 6: "symlink", 8: "mknod", 9: "mkdir", 10: "unlink", 11: "rmdir", 12: "rename", 13: "link",
           16: "write", 21: "setxattr", 24: "removexattr", 35: "create", 43: "fallocate", 45: "rename"}  # fmt: skip
DIRECT_IO = 1


class Mount:
    """The file system: nodes are known by the path below the directory, which is kept open below the mount."""

    def __init__(self, directory: str, log: str) -> None:
        self.below = os.open(directory, os.O_PATH | os.O_DIRECTORY)
        self.log = open(log, "a", buffering=1)  # noqa: SIM115 - as long as the process
        self.paths: dict[int, str] = {1: ""}
        self.numbers: dict[str, int] = {"": 1}
        self.device = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={self.device},rootmode=40755,user_id=0,group_id=0,allow_other".encode()
        if LIBC.mount(b"pmxcfs", directory.encode(), b"fuse", NOSUID_NODEV, options) != 0:
            raise OSError(ctypes.get_errno(), f"mount {directory}")
        self.answers: dict[int, Callable[[str, int, bytes], bytes]] = {
            1: self.lookup, 3: self.getattr, 5: self.readlink, OPEN: self.open, 15: self.read, 17: self.statfs,
            27: self.opendir, 28: self.readdir,
        }  # fmt: skip

    def serve(self) -> None:
        """Answer until the file system is unmounted."""
        while True:
            try:
                request = os.read(self.device, 1 << 18)
            except InterruptedError:
                continue
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                raise
            self.one(request)

    def one(self, request: bytes) -> None:
        _, code, unique, node, _, _, pid, _ = HEADER.unpack_from(request)
        body = request[HEADER.size :]
        if code in (FORGET, BATCH_FORGET, INTERRUPT):
            return
        number, data = 0, b""
        try:
            data = self.answer(code, self.paths.get(node, ""), node, pid, body)
        except OSError as error:
            number = -(error.errno or errno.EIO)
        os.write(self.device, ANSWER.pack(ANSWER.size + len(data), number, unique) + data)

    def answer(self, code: int, path: str, node: int, pid: int, body: bytes) -> bytes:
        if code == INIT:
            return struct.pack("<IIIIHHIIHHI7I", 7, 31, 1 << 16, 0, 16, 12, 1 << 16, 1, 16, 0, 0, *[0] * 7)
        wants = CHANGES.get(code, "")
        if code == OPEN and struct.unpack_from("<I", body)[0] & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC):
            wants = "open for writing"
        if wants:
            self.refuse(wants, path, pid, body)
        if code in (18, 20, 25, 29, 30, 34, DESTROY):  # release, fsync, flush, releasedir, fsyncdir, access
            return b""
        if code not in self.answers:
            raise OSError(errno.ENOSYS, "not here")
        return self.answers[code](path, node, body)

    def refuse(self, wants: str, path: str, pid: int, body: bytes) -> None:
        try:
            with open(f"/proc/{pid}/comm") as file:
                who = file.read().strip()
        except OSError:
            who = "?"
        names = b" ".join(part for part in body.split(b"\0") if part.isascii() and len(part) > 2)
        self.log.write(f"{who}: {wants} {path} {names.decode('ascii', 'replace')}".rstrip() + "\n")
        raise OSError(errno.EACCES, "no quorum")

    def real(self, path: str) -> str:
        return f"/proc/self/fd/{self.below}/{path}"

    def attributes(self, path: str, number: int) -> bytes:
        found = os.lstat(self.real(path)) if path else os.fstat(self.below)
        times = [int(at) for at in (found.st_atime, found.st_mtime, found.st_ctime)]
        fractions = [at % 10**9 for at in (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns)]
        mode = found.st_mode & ~0o222
        return ATTRIBUTES.pack(number, found.st_size, found.st_blocks, *times, *fractions, mode, found.st_nlink,
                               found.st_uid, found.st_gid, 0, 4096, 0)  # fmt: skip

    def lookup(self, path: str, node: int, body: bytes) -> bytes:
        name = body.partition(b"\0")[0].decode("utf-8", "surrogateescape")
        child = f"{path}/{name}" if path else name
        os.lstat(self.real(child))
        number = self.numbers.setdefault(child, len(self.numbers) + 1)
        self.paths[number] = child
        return struct.pack("<4Q2I", number, 0, 0, 0, 0, 0) + self.attributes(child, number)

    def getattr(self, path: str, node: int, body: bytes) -> bytes:
        return struct.pack("<QII", 0, 0, 0) + self.attributes(path, node)

    def readlink(self, path: str, node: int, body: bytes) -> bytes:
        return os.readlink(self.real(path)).encode("utf-8", "surrogateescape")

    def open(self, path: str, node: int, body: bytes) -> bytes:
        os.close(os.open(self.real(path), os.O_RDONLY))
        return struct.pack("<QII", 0, DIRECT_IO, 0)

    def read(self, path: str, node: int, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        with open(self.real(path), "rb") as file:
            return os.pread(file.fileno(), size, offset)

    def statfs(self, path: str, node: int, body: bytes) -> bytes:
        return struct.pack("<5Q4I6I", 1 << 15, 1 << 14, 1 << 14, 1 << 18, 1 << 17, 4096, 255, 4096, 0, *[0] * 6)

    def opendir(self, path: str, node: int, body: bytes) -> bytes:
        return struct.pack("<QII", 0, 0, 0)

    def readdir(self, path: str, node: int, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        out = b""
        with os.scandir(self.real(path)) as found:
            entries = sorted((e.name, e.inode(), stat.S_IFMT(e.stat(follow_symlinks=False).st_mode)) for e in found)
        for place, (name, inode, kind) in enumerate(entries[offset:], offset + 1):
            raw = name.encode("utf-8", "surrogateescape")
            entry = struct.pack("<QQII", inode, place, len(raw), kind >> 12) + raw
            entry += bytes(-len(entry) % 8)
            if len(out) + len(entry) > size:
                break
            out += entry
        return out


def main() -> None:
    directory, log = sys.argv[1:3]
    mount = Mount(directory, log)

    def end(*_: object) -> None:
        LIBC.umount2(directory.encode(), DETACH)
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    mount.serve()


if __name__ == "__main__":
    main()
