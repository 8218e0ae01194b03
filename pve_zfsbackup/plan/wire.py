"""Whether plain streams to a target are compressed on their way, and whether they gain by a buffer, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, assert_never

from pve_zfsbackup.model import Compress
from pve_zfsbackup.plan.obstacles import readable

SLOW: Final = 64 << 20  # bytes per second, half of what 1 Gbit/s carries: zstd on one processor is faster than that
ENOUGH: Final = 64 << 20  # bytes that a run must have sent to say anything of the link
LONG: Final = 10.0  # and seconds, where it would be called slow: ssh and ZFS take one or two to begin
KEPT: Final = 30 * 86_400  # seconds for which a speed is believed: what is compressed says nothing of the link
GAIN: Final = 0.1  # of the time: what a buffer has to save to be worth its memory
COMPRESSED: Final = 1.05  # ZFS saved so much already: zstd would find little


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """`compress` is what holds for the streams of a run: OFF where `auto` finds the link fast, or does not know it."""

    compress: Compress
    why: str

    def packs(self, ratio: float = 1.0) -> bool:
        """Whether a plain stream of a disk is compressed; `ratio` as ZFS tells it (compressratio)."""
        match self.compress:
            case Compress.OFF:
                return False
            case Compress.ZSTD:
                return True
            case Compress.AUTO:
                return ratio < COMPRESSED
            case unknown:
                assert_never(unknown)

    def told(self, *, raw: bool, ratio: float = 1.0) -> str:
        """The same in words, for one stream."""
        if raw:
            return "as it is on the wire: it is encrypted"
        if self.compress is Compress.AUTO and not self.packs(ratio):
            return f"as it is on the wire: ZFS compressed it to 1/{ratio:.2f}"
        return f"{'compressed' if self.packs(ratio) else 'as it is'} on the wire: {self.why}"


def plan_wire(compress: Compress, *, limit: int = 0, measured: int = 0) -> Wire:
    """For a target with this option. `limit` is the rate that holds now, `measured` what the link was seen to carry;
    bytes per second, 0 where there is none."""
    if compress is not Compress.AUTO:
        return Wire(compress=compress, why=f"`compress` is {compress}")
    known = [(limit, "are the most that may go there now")] if limit else []
    known += [(measured, "are the most that runs of a month brought there")] if measured else []
    if not known:
        return Wire(compress=Compress.OFF, why="`compress` is auto, and how fast the link is no run has seen yet")
    rate, what = min(known)
    slow = rate < SLOW
    return Wire(compress=Compress.AUTO if slow else Compress.OFF, why=f"{readable(rate)} a second {what}")


def measured_rate(moved: int, seconds: float) -> int:
    """Bytes per second that so many bytes of plain streams in this time speak of; 0 where they say nothing."""
    rate = int(moved / max(seconds, 0.001))
    return rate if moved >= ENOUGH and (seconds >= LONG or rate >= SLOW) else 0


def believed(memory: Mapping[str, object], now: float) -> int:
    """The speed that is remembered of a link, as `remembered` made it; 0 for none, or none that is understood."""
    match memory:
        case {"rate": int(rate), "at": int(at) | float(at)} if rate > 0 and 0 <= now - at <= KEPT:
            return rate
        case _:
            return 0


def remembered(memory: Mapping[str, object], rate: int, now: float) -> Mapping[str, object]:
    """The best of a month: how much a slower run had to send, or what else was slow, says nothing of the link."""
    return memory if believed(memory, now) > rate else {**memory, "rate": rate, "at": int(now)}


def gain(moved: int, seconds: float, lost: float) -> float | None:
    """The part of the time that a buffer would save at most; None where so little says nothing. `lost` are the seconds
    in which the slower of both ends waited for the other one, while at other times it was the other way round."""
    return lost / seconds if moved >= ENOUGH and seconds >= LONG and seconds else None


def gains(memory: Mapping[str, object], now: float) -> bool:
    """Whether a buffer pays, by what `gained` made of a link: the newest of a month, as it is used from then on."""
    match memory:
        case {"gain": int(part) | float(part), "gain-at": int(at) | float(at)}:
            return part >= GAIN and 0 <= now - at <= KEPT
        case _:
            return False


def gained(memory: Mapping[str, object], part: float, now: float) -> Mapping[str, object]:
    """The same memory with what was seen now."""
    return {**memory, "gain": round(part, 3), "gain-at": int(now)}
