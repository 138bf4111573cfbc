"""Failure detection between the processes of a run: when one ends, the others end with one line that names it.

Without it, JAX aborts the other processes with a C++ stack trace after 100 s, or leaves them waiting in a collective
for a process that has raised an error. Each process keeps a connection to process 0, which breaks at once when either
of the two is killed. A host that vanishes breaks no connection: each process also writes a heartbeat to the
key-value store of JAX's coordination service, which process 0 runs, and reads those of the others.
"""

import atexit
import contextlib
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from edgesafe_jax.errors import ConfigError

PERIOD = 1.0
"""Seconds between two heartbeats."""
PATIENCE = 15.0
"""Seconds without a heartbeat after which a process counts as dead."""
GRACE = 1.0
"""Seconds that a process has to report an error of its own before that of another ends it."""
STATUS = 1
"""Exit status of a process that ends because another one did."""

_LOST_PEER = re.compile("Gloo|NCCL|Connection reset|Connection closed|Socket closed")
"""In the message of a collective whose other side is gone."""

_ALIVE, _PLACES, _FAILED, _PORT = "edgesafe/alive/", "edgesafe/places/", "edgesafe/failed", "edgesafe/port"
_LEFT = "left"


@contextlib.contextmanager
def start_limit(seconds: float, address: str, *, hint_after: float = 15.0) -> Iterator[None]:
    """Ends the process with one line when a start takes longer; JAX itself aborts it with a C++ stack trace.

    Args:
      seconds: longest time of the block.
      address: of process 0, for the message.
      hint_after: seconds after which a line says what the process waits for.
    """

    def hint() -> None:
        print(f"waiting for all processes of the run to connect to {address}", file=sys.stderr, flush=True)

    def give_up() -> None:
        print(
            f"error: not all processes of the run have connected to {address} within {seconds:.0f} s. Check that "
            "JAX_COORDINATOR_ADDRESS is the address of process 0 as the others see it, that the port is open, and that "
            "as many processes were started as JAX_NUM_PROCESSES says.",
            file=sys.stderr,
            flush=True,
        )
        _exit(2)

    timers = [threading.Timer(hint_after, hint), threading.Timer(seconds, give_up)]
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()


class Watch:
    """Tells the other processes that this one is alive, and ends it when one of them is not."""

    def __init__(self, client: Any, address: str, number: int, count: int, *, end: Callable[[str], None]):
        """Starts the threads.

        Args:
          client: of JAX's coordination service.
          address: host and port of process 0.
          number: of this process.
          count: processes in all.
          end: called with the line that says why this process cannot go on.
        """
        self._client, self._host, self._number, self._count = (
            client,
            address.rsplit(":", 1)[0].strip("[]"),
            number,
            count,
        )
        self._report = end
        self._ending = threading.Lock()
        self._seen: dict[int, tuple[str, float]] = {}
        self._places: dict[int, str] = {}
        self._connections: dict[socket.socket, int] = {}
        self._leaving = False
        client.key_value_set(f"{_PLACES}{number}", f"pid {os.getpid()} on host {socket.gethostname()}")
        self._beat("0")
        self._thread = threading.Thread(target=self._exchange, name="peers", daemon=True)
        self._thread.start()
        threading.Thread(target=self._listen if number == 0 else self._hold, name="peer links", daemon=True).start()

    def fail(self, reason: str) -> None:
        """Tells the other processes why this one ends, and gives them the time to end first."""
        self._leaving = True
        self._announce(f"{self._name(self._number)} failed: {reason}")
        if self._number == 0:  # Its end takes the coordination service away.
            time.sleep(GRACE + 2 * PERIOD)

    def leave(self) -> None:
        """Stops watching, before this process ends in good order."""
        self._leaving = True
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.sendall(_LEFT.encode())
        self._thread.join(2 * PERIOD)
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._beat(_LEFT)

    def _announce(self, reason: str) -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # Another failure was announced before.
            self._client.key_value_set(_FAILED, reason)

    def _end(self, reason: str) -> None:
        if self._ending.acquire(blocking=False):
            self._report(reason)

    def _listen(self) -> None:
        """Holds process 0's ends of the connections and announces the one that breaks."""
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        with (
            socket.create_server(("", 0), family=family, dualstack_ipv6=dual) as server,
            selectors.DefaultSelector() as ready,
        ):
            self._client.key_value_set(_PORT, str(server.getsockname()[1]))
            ready.register(server, selectors.EVENT_READ)
            while True:
                for key, _ in ready.select():
                    link = key.fileobj
                    assert isinstance(link, socket.socket)
                    if link is server:
                        new = server.accept()[0]
                        ready.register(new, selectors.EVENT_READ)
                        continue
                    try:
                        text = link.recv(64).decode(errors="replace")
                    except OSError:
                        text = ""
                    if text.isdigit():
                        self._connections[link] = int(text)
                        continue
                    ready.unregister(link)
                    link.close()
                    number = self._connections.pop(link, None)
                    if text != _LEFT and number is not None and not self._leaving:
                        self._announce(f"{self._name(number)} ended")

    def _hold(self) -> None:
        """Holds this process's end of the connection to process 0 and ends with it."""
        try:
            port = int(self._client.blocking_key_value_get(_PORT, 60_000))
            link = socket.create_connection((self._host, port), timeout=10)
        except (OSError, jax.errors.JaxRuntimeError):
            return  # A port that is closed between the hosts: the heartbeats remain.
        with link:
            link.settimeout(None)
            link.sendall(str(self._number).encode())
            self._connections[link] = 0
            try:
                text = link.recv(64).decode(errors="replace")
            except OSError:
                text = ""
            if text != _LEFT and not self._leaving:
                # At once: JAX itself aborts this process when the coordination service is gone.
                self._end(f"{self._name(0)} ended")

    def _exchange(self) -> None:
        """Writes and reads heartbeats, and waits for a failure that another process announces."""
        beats = 0
        while not self._leaving:
            try:
                if len(self._places) < self._count:  # Asked for while process 0 can still answer.
                    self._places = self._read(_PLACES)
                failed = self._wait_for_failure()
                beats += 1
                self._beat(str(beats))
                dead = self._find_dead(time.monotonic())
            except jax.errors.JaxRuntimeError:
                if not self._leaving:
                    self._end(f"{self._name(0)} ended")
                return
            if failed:
                time.sleep(GRACE)
            for reason in (failed, dead):
                if reason and not self._leaving:
                    self._end(reason)
                    return

    def _wait_for_failure(self) -> str | None:
        try:
            return self._client.blocking_key_value_get(_FAILED, int(1000 * PERIOD))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" in str(error):
                return None
            raise

    def _beat(self, text: str) -> None:
        self._client.key_value_set(f"{_ALIVE}{self._number}", text, allow_overwrite=True)

    def _find_dead(self, now: float) -> str | None:
        signs = self._read(_ALIVE)
        for number in range(self._count):
            text = signs.get(number, "")
            if number not in self._seen or self._seen[number][0] != text:
                self._seen[number] = text, now
            elif text != _LEFT and number != self._number and now - self._seen[number][1] > PATIENCE:
                return f"{self._name(number)} ended: it gave no heartbeat for {PATIENCE:.0f} s"
        return None

    def _read(self, folder: str) -> dict[int, str]:
        """Reads what each process has written into a folder of the store."""
        return {int(key.rsplit("/", 1)[1]): text for key, text in self._client.key_value_dir_get(folder)}

    def _name(self, number: int) -> str:
        return f"process {number} of {self._count} ({self._places.get(number, 'place unknown')})"


_watch: Watch | None = None


def watch_peers(client: Any, address: str, number: int, count: int) -> None:
    """Starts to watch the other processes of a run, until this one ends.

    Errors that nobody catches are reported to the others from then on.

    Args:
      client: of JAX's coordination service.
      address: host and port of process 0.
      number: of this process.
      count: processes in all.
    """
    global _watch
    _watch = Watch(client, address, number, count, end=_end)
    atexit.register(_watch.leave)  # Runs before JAX disconnects, which was registered earlier.
    former = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if isinstance(error, jax.errors.JaxRuntimeError) or _LOST_PEER.search(str(error)):
            time.sleep(PATIENCE + 3 * PERIOD)  # Meanwhile the watch finds out which process is gone and ends this one.
        former(kind, error, traceback)
        leave_failed_run(f"{kind.__name__}: {error}", status=1)

    sys.excepthook = hook


def leave_failed_run(reason: str, *, status: int) -> None:
    """Ends this process and tells the others why; returns at once where this process runs alone.

    Ending as usual would wait for the others, which may wait for this process.

    Args:
      reason: what failed, for the others' message.
      status: exit status of this process.
    """
    if _watch is not None:
        _watch.fail(reason.strip().split("\n")[0][:300])
        _exit(status)


def _end(reason: str) -> None:
    mended = "once that is mended, " if " failed: " in reason else ""
    print(
        f"error: {reason.rstrip('.')}. This process ends too; {mended}the same command continues from the last "
        "checkpoint.",
        file=sys.stderr,
        flush=True,
    )
    _exit(STATUS)


def _exit(status: int) -> None:
    """Ends the process without JAX's wait for the others."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def run_local(arguments: Sequence[str]) -> int:
    """Runs a command in N connected processes of this machine, over the loopback interface.

    Args:
      arguments: N, then the command; it starts `parallel.initialize_multihost`, as launchers do.

    Returns:
      0, or the exit status of the first process that failed. SIGTERM is passed on to all of them.

    Raises:
      ConfigError: N is no positive whole number, there is no command, or the GPUs cannot be divided by N.
    """
    count, command = (arguments[0] if arguments else ""), list(arguments[1:])
    if not count.isdecimal() or int(count) < 1 or not command:
        raise ConfigError(f"{' '.join(arguments) or 'no arguments'}: expected a number of processes and a command.")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    told = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": count}
    parts = divide_gpus(_gpus(), int(count))
    processes = [
        subprocess.Popen(command, env=os.environ | told | parts[number] | {"JAX_PROCESS_ID": str(number)})
        for number in range(int(count))
    ]

    def pass_on(number: int, frame: object) -> None:
        for process in processes:
            process.send_signal(number)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        return _wait_for(processes)
    finally:
        signal.signal(signal.SIGTERM, before)
        for process in processes:
            process.kill()
            process.wait()


def divide_gpus(gpus: Sequence[str], count: int) -> list[dict[str, str]]:
    """Divides the GPUs of this machine between processes; without it each would take all of them.

    Args:
      gpus: their numbers.
      count: processes.

    Returns:
      For each process the variable that says which it sees; nothing where there are none.

    Raises:
      ConfigError: they cannot be divided evenly.
    """
    if len(gpus) % count:
        raise ConfigError(
            f"{count} processes for {len(gpus)} GPUs: expected a divisor of {len(gpus)}, or CUDA_VISIBLE_DEVICES with "
            "as many as shall be used (nothing for the CPU)."
        )
    size = len(gpus) // count
    return [
        {"CUDA_VISIBLE_DEVICES": ",".join(gpus[number * size : (number + 1) * size])} if size else {}
        for number in range(count)
    ]


def _gpus() -> list[str]:
    """Numbers of the GPUs that a process started here sees."""
    if (told := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [number for number in told.split(",") if number]
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return []
    return sorted((path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")), key=int)


def _wait_for(processes: Sequence["subprocess.Popen[bytes]"]) -> int:
    """Waits until all have ended, or for some time once one has failed; returns the first status that is not 0."""
    failed, since = 0, time.monotonic()
    while any(process.poll() is None for process in processes):
        if not failed:
            failed = next((process.returncode for process in processes if process.returncode), 0)
            since = time.monotonic()
        if failed and time.monotonic() - since > 2 * PATIENCE:
            break
        time.sleep(0.1)
    return failed or next((process.returncode for process in processes if process.returncode), 0)
