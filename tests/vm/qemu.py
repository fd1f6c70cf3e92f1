"""Boot kernels in QEMU and talk to them."""

import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Optional, Union

from . import bench, cache, guest
from .bench import BenchError
from .kernels import Kernel

BOOT_SECONDS = 180
"""How long a boot may take: ten times what it does on a machine with nothing else."""

_TAIL = 60
_PANIC = rb"Kernel panic - not syncing[^\r\n]*"


class VMError(BenchError):
    """A guest did not do what was expected; ends with the end of its serial log."""


class Disk(NamedTuple):
    """A virtio disk; the guest finds it by its name in /sys/block/*/serial."""

    path: Path
    name: str
    keep: bool = False
    """Whether the guest's writes reach the file."""
    write_mib: int = 0
    """MiB that it takes per second; as many as it can if 0."""


class Result(NamedTuple):
    """What a command in the guest did."""

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output as text."""
        return self.stdout.decode("utf-8", "replace")


def command(
    kernel: Kernel,
    initrd: Path,
    *,
    append: str = "",
    memory_mib: int = 512,
    levels: int = 4,
    kaslr: bool = False,
    smp: int = 1,
    disks: Sequence[Disk] = (),
    ram: Optional[Path] = None,
    accel: Optional[str] = None,
) -> list[str]:
    """Return the command line that boots a kernel, but for its serial ports."""
    if accel is None:
        accel = "tcg" if levels == 5 else accelerator(kernel)
    words = ["console=ttyS0", "panic=-1"]
    if not kaslr:
        words.append("nokaslr")
    if append:
        words.append(append)
    memory = f"{memory_mib}M"
    machine = "q35"
    extra: list[str] = []
    if ram is not None:
        machine += ",memory-backend=ram"
        backend = f"memory-backend-file,id=ram,size={memory},mem-path={ram}"
        extra += ["-object", f"{backend},share=on"]
    for i, disk in enumerate(disks):
        drive = f"file={disk.path},format=raw,if=none,id=disk{i},cache=unsafe"
        if disk.keep:
            drive += ",discard=unmap,detect-zeroes=unmap"
        else:
            drive += ",snapshot=on"
        if disk.write_mib:
            drive += f",throttling.bps-write={disk.write_mib << 20}"
        device = f"virtio-blk-pci,drive=disk{i},serial={disk.name}"
        extra += ["-drive", drive, "-device", device]
    return [
        bench.program("qemu-system-x86_64"),
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", machine, "-accel", _ACCEL[accel]),
        *("-cpu", "max" if levels == 5 else "max,la57=off"),
        *("-smp", str(smp), "-m", memory),
        *("-action", "reboot=shutdown"),
        *("-device", "vmcoreinfo", "-device", "virtio-balloon-pci"),
        *("-kernel", str(kernel.vmlinuz), "-initrd", str(initrd)),
        *("-append", " ".join(words)),
        *extra,
    ]


class VM:
    """A guest that lives as long as a `with` block.

    Under TCG unless KVM has been seen to work (see accelerator()). A panic or a
    reboot ends QEMU unless let_reboot() was called.

    :param initrd: made by guest.initramfs().
    :param append: more of the kernel's command line.
    :param levels: of page tables, 4 or 5; 5 needs a kernel that can.
    :param disks: virtio disks.
    :param ram: file that holds the guest's memory, for the host to read and write;
        made if it is not there.
    :param options: more for QEMU.
    :param folder: where serial.log goes; a temporary one if None.
    """

    def __init__(
        self,
        kernel: Kernel,
        initrd: Path,
        *,
        append: str = "",
        memory_mib: int = 512,
        levels: int = 4,
        kaslr: bool = False,
        smp: int = 1,
        disks: Sequence[Disk] = (),
        ram: Optional[Path] = None,
        options: Sequence[str] = (),
        accel: Optional[str] = None,
        folder: Optional[Path] = None,
    ) -> None:
        self.kernel = kernel
        self.ram = ram
        # Sockets need a short path.
        self._temp = Path(tempfile.mkdtemp(prefix="bench-"))
        self.log = (folder or self._temp) / "serial.log"
        self._seen = 0
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._qmp: Optional[socket.socket] = None
        self._qmp_in = b""
        self._agent: Optional[socket.socket] = None
        self._agent_in = b""
        self._argv = [
            *command(
                kernel,
                initrd,
                append=append,
                memory_mib=memory_mib,
                levels=levels,
                kaslr=kaslr,
                smp=smp,
                disks=disks,
                ram=ram,
                accel=accel,
            ),
            *("-chardev", f"file,id=console,path={self.log}"),
            *("-serial", "chardev:console"),
            *(
                "-chardev",
                f"socket,id=agent,path={self._temp}/agent,server=on,wait=off",
            ),
            *("-serial", "chardev:agent"),
            *("-chardev", f"socket,id=qmp,path={self._temp}/qmp,server=on,wait=off"),
            *("-mon", "chardev=qmp,mode=control"),
            *options,
        ]

    def __enter__(self) -> "VM":
        try:
            with (self._temp / "qemu.log").open("wb") as log:
                self._process = subprocess.Popen(
                    self._argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    preexec_fn=_die_with_parent,
                )
            self._qmp = self._connect("qmp")
            self._qmp_answer()
            self.qmp("qmp_capabilities")
            self._agent = self._connect("agent")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        value: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        for connection in (self._qmp, self._agent):
            if connection is not None:
                connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._temp, ignore_errors=True)

    # --- what the serial log says

    def _serial(self) -> bytes:
        try:
            return self.log.read_bytes()
        except FileNotFoundError:
            return b""

    def error(self, what: str) -> VMError:
        """Return an error to raise, with the end of the serial log."""
        lines = self._serial().decode("utf-8", "replace").splitlines()[-_TAIL:]
        with contextlib.suppress(FileNotFoundError):
            said = (self._temp / "qemu.log").read_text(errors="replace").strip()
            if said:
                lines += ["QEMU:", said]
        end = "\n".join(f"  {line.rstrip()}" for line in lines)
        return VMError(f"{self.kernel.name}: {what}; the end of its serial log:\n{end}")

    def wait_for(
        self,
        pattern: Union[str, bytes],
        seconds: float = BOOT_SECONDS,
        *,
        panic: bool = False,
    ) -> re.Match[bytes]:
        """Wait until the serial log has a pattern, after what was waited for before.

        :param panic: whether a kernel panic is expected on the way.
        :raises VMError: it does not come, QEMU ends, or the kernel panics.
        """
        if isinstance(pattern, str):
            pattern = pattern.encode()
        assert self._process
        limit = time.monotonic() + seconds
        while True:
            # In this order, or the last words before the end are missed.
            ended = self._process.poll() is not None
            late = time.monotonic() > limit
            text = self._serial()
            match = re.compile(pattern).search(text, self._seen)
            if match:
                self._seen = match.end()
                return match
            wanted = pattern.decode("utf-8", "replace")
            died = None if panic else re.compile(_PANIC).search(text, self._seen)
            if died:
                said = died.group().decode("utf-8", "replace")
                raise self.error(f"{said!r} while waiting for {wanted!r}")
            if ended:
                raise self.error(f"QEMU ended while waiting for {wanted!r}")
            if late:
                raise self.error(f"no {wanted!r} in {seconds:.0f} s")
            time.sleep(0.05)

    def wait_end(self, seconds: float = 60) -> None:
        """Wait until the guest has turned itself off."""
        assert self._process
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise self.error(f"still running after {seconds:.0f} s") from None

    # --- QEMU's monitor

    def _connect(self, name: str) -> socket.socket:
        assert self._process
        for _ in range(200):
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(self._temp / name))
                return connection
            except OSError:
                connection.close()
            if self._process.poll() is not None:
                break
            time.sleep(0.05)
        raise self.error("QEMU did not start")

    def _qmp_answer(self) -> dict[str, Any]:
        assert self._qmp
        while True:
            while b"\n" not in self._qmp_in:
                try:
                    chunk = self._qmp.recv(65536)
                except socket.timeout:
                    raise self.error("QEMU's monitor does not answer") from None
                except OSError:
                    chunk = b""
                if not chunk:
                    raise self.error("QEMU ended")
                self._qmp_in += chunk
            line, _, self._qmp_in = self._qmp_in.partition(b"\n")
            answer = json.loads(line)
            assert isinstance(answer, dict)
            if "event" not in answer:
                return answer

    def qmp(self, command: str, *, seconds: float = 300, **arguments: Any) -> Any:
        """Run a command of QEMU's monitor and return what it returns.

        Underscores in the arguments' names become dashes.

        :raises VMError: QEMU says no.
        """
        assert self._qmp
        self._qmp.settimeout(seconds)
        fixed = {name.replace("_", "-"): value for name, value in arguments.items()}
        message = {"execute": command, "arguments": fixed}
        try:
            self._qmp.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            raise self.error(f"QEMU ended before {command}") from None
        answer = self._qmp_answer()
        if "error" in answer:
            raise self.error(f"{command}: {answer['error']['desc']}")
        return answer["return"]

    def dump(self, path: Path) -> None:
        """Write the guest's memory as an ELF file, the guest standing still.

        It goes on afterwards if it was running.
        """
        running = self.qmp("query-status")["running"]
        self.qmp("stop")
        self.qmp("dump-guest-memory", paging=False, protocol=f"file:{path}")
        if running:
            self.qmp("cont")

    def balloon(self, mib: int, seconds: float = 60) -> None:
        """Let the guest give memory back until it has so much left."""
        self.qmp("balloon", value=mib << 20)
        limit = time.monotonic() + seconds
        while self.qmp("query-balloon")["actual"] > mib << 20:
            if time.monotonic() > limit:
                raise self.error(f"the balloon did not get to {mib} MiB")
            time.sleep(0.1)

    def reset(self) -> None:
        """Press the reset button; memory keeps what it has.

        What the firmware and the loader put into memory is overwritten, the rest
        stays. Wait with ready() afterwards. From now on let_reboot() holds.
        """
        self.let_reboot()
        self._agent_in = b""
        self._seen = len(self._serial())
        self.qmp("system_reset")

    def let_reboot(self) -> None:
        """From now on a reboot of the guest is a reset, not the end of QEMU."""
        self.qmp("set-action", reboot="reset")

    # --- commands in the guest

    def ready(self, seconds: float = BOOT_SECONDS, *, panic: bool = False) -> None:
        """Wait until the guest takes commands: after a boot, a reset, a reboot.

        :param panic: whether a kernel panic is expected on the way.
        """
        # Until it does, nothing may be sent.
        self.wait_for(r"bench: [^\r\n]* is up", seconds, panic=panic)
        limit = time.monotonic() + 60
        while b"agent ready\n" not in self._agent_in:
            self._receive(limit, "the agent to be ready")
        self._agent_in = self._agent_in.rpartition(b"agent ready\n")[2]

    def _receive(self, limit: float, what: str) -> None:
        """Get more from the agent, or wait a moment for it."""
        assert self._agent
        left = limit - time.monotonic()
        if left <= 0:
            raise self.error(f"timeout while waiting for {what}")
        self._agent.settimeout(min(left, 1))
        try:
            chunk = self._agent.recv(1 << 20)
        except socket.timeout:
            chunk = None
        except OSError:
            chunk = b""
        if chunk:
            self._agent_in += chunk
            return
        died = re.compile(_PANIC).search(self._serial(), self._seen)
        if died:
            said = died.group().decode("utf-8", "replace")
            raise self.error(f"{said!r} while waiting for {what}")
        if chunk is not None:
            raise self.error(f"QEMU ended while waiting for {what}")

    def _take(self, length: Optional[int], limit: float, what: str) -> bytes:
        """Take so many bytes, or a line, from the agent."""
        while True:
            if length is None:
                line, newline, rest = self._agent_in.partition(b"\n")
                if newline:
                    self._agent_in = rest
                    return line
            elif len(self._agent_in) >= length:
                taken = self._agent_in[:length]
                self._agent_in = self._agent_in[length:]
                return taken
            self._receive(limit, what)

    def run(
        self,
        command: str,
        *,
        stdin: bytes = b"",
        seconds: float = 120,
        check: bool = True,
    ) -> Result:
        """Run a shell command in the guest.

        Its output may be anything and long (some 100 KB/s).

        :raises VMError: it takes too long, or fails and *check* is true.
        """
        assert self._agent
        limit = time.monotonic() + seconds
        what = f"the command {command!r}"
        for kind, text in ((b"C", command.encode()), (b"I", stdin)):
            for at in range(0, len(text), 1024):
                chunk = text[at : at + 1024]
                self._agent.sendall(b"%c %d\n" % (kind, len(chunk)) + chunk)
                self._take(None, limit, what)
        self._agent.sendall(b"R\n")
        output: dict[bytes, list[bytes]] = {b"O": [], b"E": []}
        while True:
            kind, _, number = self._take(None, limit, what).partition(b" ")
            if kind == b"X":
                break
            output[kind].append(self._take(int(number), limit, what))
        result = Result(int(number), b"".join(output[b"O"]), b"".join(output[b"E"]))
        if check and result.status:
            said = (result.stderr or result.stdout).decode("utf-8", "replace").strip()
            raise self.error(f"{what} failed with status {result.status}: {said}")
        return result

    def read(self, path: str) -> bytes:
        """Return the content of a file in the guest."""
        return self.run(f"cat '{path}'").stdout

    def write(self, path: str, content: bytes) -> None:
        """Write a file in the guest (a kilobyte at a time: not for megabytes)."""
        self.run(f"cat > '{path}'", stdin=content)


_ACCEL = {"tcg": "tcg,thread=multi", "kvm": "kvm"}


def _die_with_parent() -> None:
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def accelerator(kernel: Kernel) -> str:
    """Return "kvm" where it works, else "tcg".

    /dev/kvm being there says little: under nested virtualization it may open, make a
    machine, and then hang in early boot. So a kernel is booted, once per boot of the
    host. The environment variable DRGN_TOOLS_ACCEL decides without a try.
    """
    chosen = os.environ.get("DRGN_TOOLS_ACCEL")
    if chosen in _ACCEL:
        return chosen
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    verdict = cache.root() / f"accel-{boot}"
    with cache.lock("accel"):
        if not verdict.exists():
            for old in cache.root().glob("accel-*"):
                old.unlink()
            verdict.write_text("kvm" if _kvm_works(kernel) else "tcg")
    return verdict.read_text()


def _kvm_works(kernel: Kernel) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        initrd = guest.initramfs(Path(folder) / "initrd", kernel)
        try:
            with VM(kernel, initrd, accel="kvm") as vm:
                vm.ready(20)
        except VMError:
            return False
    return True


@contextlib.contextmanager
def booted(kernel: Kernel, **options: Any) -> Iterator[VM]:
    """Boot a kernel with an ordinary initramfs and wait until it takes commands.

    :param options: those of guest.initramfs() and of VM.
    """
    for_initramfs = ("init", "programs", "load", "modules", "files")
    parts = {name: options.pop(name) for name in for_initramfs if name in options}
    if "programs" in parts:
        parts["programs"] = ("agent", *parts["programs"])
    with tempfile.TemporaryDirectory() as folder:
        initrd = guest.initramfs(Path(folder) / "initrd", kernel, **parts)
        with VM(kernel, initrd, **options) as vm:
            vm.ready()
            yield vm
