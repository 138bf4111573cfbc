"""What a compiled program communicates: its collectives with their bytes and devices, from the text of its HLO."""

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}
_SIZES |= {"f64": 8, "s64": 8, "u64": 8}
_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_OPERATION = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_WHILE = re.compile(r"\bwhile\(.*body=%?([\w.\-]+)")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}",
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Attributes:
      kind: one of `KINDS`.
      times: how often it runs; in the body of a loop as often as the loop does, where XLA knows that, else once.
      num_bytes: of its result on one device: of an all-gather what is gathered, of a reduce-scatter what remains.
      groups: `[G, N]`, the devices that take part together.
    """

    kind: str
    times: int
    num_bytes: int
    groups: np.ndarray

    def spans(self, host_size: int) -> bool:
        """Returns whether a group has devices of several hosts, of so many devices each."""
        return bool(np.any(self.groups // host_size != self.groups[:, :1] // host_size))

    def seconds(self, bandwidth: float) -> float:
        """Returns the time of a ring of devices that each send and receive `bandwidth` bytes per second."""
        size = self.groups.shape[1]
        sent = {"all-reduce": 2 * (size - 1) / size, "reduce-scatter": size - 1, "collective-permute": 1}
        return self.times * self.num_bytes * sent.get(self.kind, (size - 1) / size) / bandwidth


def collectives(text: str, num_devices: int) -> list[Collective]:
    """Reads the collectives of a program.

    Args:
      text: optimised HLO of one device, `compiled.as_text()`.
      num_devices: devices of the program.

    Returns:
      The collectives, in the order of the program.
    """
    bodies, entry = _computations(text)
    found = []
    for line, times in _executed(bodies, entry, 1):
        if match := _OPERATION.search(line):
            size = _num_bytes(match[1], is_start=match[3] is not None)
            found.append(Collective(match[2], times, size, _groups(line, num_devices)))
    return [each for each in found if each.groups.shape[1] > 1]


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    bodies: dict[str, list[str]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if match := _HEADER.match(line):
            current = match[1]
            bodies[current] = []
            entry = current if line.startswith("ENTRY") else entry
        elif line == "}":
            current = None
        elif current is not None:
            bodies[current].append(line)
    return bodies, entry


def _executed(bodies: dict[str, list[str]], name: str, times: int) -> Iterator[tuple[str, int]]:
    """Lines of a computation and of those that it calls, with how often each runs."""
    for line in bodies.get(name, ()):
        yield line, times
        loop = _WHILE.search(line)
        trips = int(found[1]) if loop and (found := _TRIPS.search(line)) else 1
        called = _CALLED.findall(line)
        for branches in _BRANCHES.findall(line):
            called += [branch.strip().lstrip("%") for branch in branches.split(",")]
        for each in called:
            yield from _executed(bodies, each, times * (trips if loop and each == loop[1] else 1))


def _num_bytes(shapes: str, *, is_start: bool) -> int:
    """Bytes of a result; of an asynchronous start, which returns operands and results, of the results."""
    arrays = [_SIZES.get(dtype, 0) * math.prod(_integers(dimensions)) for dtype, dimensions in _ARRAY.findall(shapes)]
    return sum(arrays[len(arrays) // 2 :] if is_start else arrays)


def _integers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _iota(dimensions: str, order: str | None) -> np.ndarray:
    shape = _integers(dimensions)
    numbers = np.arange(math.prod(shape)).reshape(shape)
    return numbers.transpose(_integers(order)).ravel() if order else numbers.ravel()


def _groups(line: str, num_devices: int) -> np.ndarray:
    """The groups of devices of a collective, in any of the three notations; all devices where none is given."""
    if match := _MESH.search(line):
        axes = [(name.strip("' "), int(size)) for name, size in (axis.split("=") for axis in match[1].split(","))]
        devices = _iota(match[2], match[3]) if match[2] else np.arange(num_devices)
        named = [number for number, (name, _) in enumerate(axes) if f"'{name}'" in match[4]]
        size = math.prod(axes[number][1] for number in named)
        last = range(-len(named), 0)
        return np.moveaxis(devices.reshape([size for _, size in axes]), named, last).reshape(-1, size)
    if match := _IOTA.search(line):
        return _iota(match[2], match[3]).reshape(_integers(match[1]))
    if match := _LISTED.search(line):
        return np.array([_integers(group) for group in re.findall(r"\{([\d, ]+)\}", match[1])])
    return np.arange(num_devices)[None]
