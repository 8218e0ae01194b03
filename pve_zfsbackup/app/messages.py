"""Alerts as text and in the form each service expects. Names and messages are hostile text: none becomes markup."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

from pve_zfsbackup.config import WebhookType
from pve_zfsbackup.model import printable
from pve_zfsbackup.model.alerts import Known, Problem

LIMIT: Final = 3500  # characters of a message; services cut at 4,000 or refuse
DISCORD_LIMIT: Final = 1900
COUNT_LIMIT: Final = 100  # problems in one message for programs, and recoveries
TEXT_LIMIT: Final = 1000  # characters of each text in it
JSON: Final = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """What is told in one message: problems, and those that are over. Neither makes it a test."""

    node: str
    news: tuple[Known, ...] = ()
    recovered: tuple[Known, ...] = ()

    @property
    def title(self) -> str:
        parts = [f"{len(self.news)} {'problem' if len(self.news) == 1 else 'problems'}"] if self.news else []
        parts += [f"{len(self.recovered)} recovered"] if self.recovered else []
        return f"pve-zfsbackup on {_clean(self.node)}: {', '.join(parts) or 'test message'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A body to be posted, and its headers."""

    body: bytes
    headers: Mapping[str, str]


def alert_text(alert: Alert) -> str:
    """For mail and people: one paragraph for each."""
    if not alert.news and not alert.recovered:
        return "This is a test. Alerts of pve-zfsbackup arrive here.\n"
    parts = [_problem(item) for item in alert.news] + [_recovery(item) for item in alert.recovered]
    text = "\n\n".join(parts)
    return f"{text if len(text) <= LIMIT else text[:LIMIT] + ' …'}\n"


def alert_json(alert: Alert) -> dict[str, Any]:
    """The alert as data: format 1, as every JSON of ours. `left_out` counts what would make it too long to be taken."""
    sent = [items[:COUNT_LIMIT] for items in (alert.news, alert.recovered)]
    return {
        "format": 1,
        "node": alert.node,
        "title": alert.title,
        "problems": [_known(item) for item in sent[0]],
        "recovered": [_known(item) for item in sent[1]],
        "left_out": len(alert.news) + len(alert.recovered) - sum(map(len, sent)),
    }


def _known(known: Known) -> dict[str, Any]:
    return {**asdict(known), "problem": {key: text[:TEXT_LIMIT] for key, text in asdict(known.problem).items()}}


def message_for(kind: WebhookType, alert: Alert) -> Message:
    """The alert as this sort of service wants it."""
    if kind is WebhookType.NTFY:
        headers = {"Title": _ascii(alert.title), "Priority": "high" if alert.news else "default"}
        return Message(body=alert_text(alert).encode(), headers=headers)
    return Message(body=json.dumps(_PAYLOADS[kind](alert)).encode(), headers=JSON)


def _slack(alert: Alert) -> dict[str, Any]:
    return {"text": f"{_entities(alert.title)}\n{_entities(alert_text(alert))}", "mrkdwn": False}


def _mattermost(alert: Alert) -> dict[str, Any]:
    return {"text": f"{_clean(alert.title)}\n{_fenced(alert)}"}


def _discord(alert: Alert) -> dict[str, Any]:
    return {"content": f"{alert.title}\n{_fenced(alert, DISCORD_LIMIT)}", "allowed_mentions": {"parse": []}}


def _teams(alert: Alert) -> dict[str, Any]:
    """A card: its text runs take no markup."""
    blocks = [
        {"type": "RichTextBlock", "inlines": [{"type": "TextRun", "text": line}]}
        for line in (alert.title, *alert_text(alert).splitlines())
        if line
    ]
    card = {"type": "AdaptiveCard", "version": "1.4", "body": blocks}
    return {
        "type": "message",
        "attachments": [{"contentType": "application/vnd.microsoft.card.adaptive", "content": card}],
    }


def _gotify(alert: Alert) -> dict[str, Any]:
    return {"title": alert.title, "message": alert_text(alert), "priority": 8 if alert.news else 4}


_PAYLOADS: Final[Mapping[WebhookType, Callable[[Alert], dict[str, Any]]]] = {
    WebhookType.GENERIC: alert_json,
    WebhookType.SLACK: _slack,
    WebhookType.MATTERMOST: _mattermost,
    WebhookType.DISCORD: _discord,
    WebhookType.TEAMS: _teams,
    WebhookType.GOTIFY: _gotify,
}


def _problem(known: Known) -> str:
    problem = known.problem
    lines = [f"{_place(problem)}: {_clean(problem.message)}"]
    lines += [f"  what to do: {_clean(problem.hint)}"] if problem.hint else []
    lines += [f"  last good point: {_clean(problem.good) or 'none known'}"] if problem.guest else []
    lines += [f"  since {_time(known.since)}, told {known.tellings} times"] if known.tellings > 1 else []
    return "\n".join(lines)


def _recovery(known: Known) -> str:
    told = f"well again, after trouble since {_time(known.since)}: {_clean(known.problem.message)}"
    return f"{_place(known.problem)}: {told}"


def _place(problem: Problem) -> str:
    guest = f"guest {_clean(problem.guest)}" if problem.guest else ""
    host = f"target {_clean(problem.host)}" if problem.host else ""
    return ", ".join(part for part in (guest, problem.stage, host) if part)


def _time(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


def _clean(text: str) -> str:
    return printable(text)


def _ascii(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode("ascii")


def _entities(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _fenced(alert: Alert, limit: int = LIMIT) -> str:
    """As a block of code, which has no mentions and no links; nothing in it can end it."""
    text = alert_text(alert).replace("```", "'''")
    return f"```\n{text[:limit]}\n```"
