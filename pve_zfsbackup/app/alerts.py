"""After a run: who is told what. Telling never fails a run; what could not be told is told after the next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from pve_zfsbackup.app.gather import Scope
from pve_zfsbackup.app.leavings import stuck
from pve_zfsbackup.app.messages import Alert, alert_text, message_for
from pve_zfsbackup.app.outcome import JOURNAL, THAW
from pve_zfsbackup.app.run import ALL_STAGES, Report, Stage, run
from pve_zfsbackup.app.session import Home, Session
from pve_zfsbackup.config import Config, Webhook, checked_secrets, read_secret
from pve_zfsbackup.errors import BackupError, ExitCode, LockedError
from pve_zfsbackup.events import Outcome, Result
from pve_zfsbackup.host import notify
from pve_zfsbackup.host.guests import node_name
from pve_zfsbackup.host.memory import recall, remember
from pve_zfsbackup.host.notebook import changing
from pve_zfsbackup.host.runner import ProcessRunner, Runner
from pve_zfsbackup.model.alerts import HeldBack, Known, Problem
from pve_zfsbackup.model.stages import DRILL, SWEEP
from pve_zfsbackup.plan.alerting import tidings

FILE: Final = "alerts.json"
RUN: Final = "run"  # the stage of a run that broke off; its key names those it had to do, `run:snapshot+replicate`
QUEUE_LIMIT: Final = 20  # messages that wait for one service
QUEUE_SECONDS: Final = 7 * 86_400
UNREADABLE: Final = (AttributeError, KeyError, TypeError, ValueError, OverflowError)
Send = Callable[[Alert], None]


def alerted_run(session: Session, scope: Scope, stages: Sequence[Stage] = ALL_STAGES) -> tuple[Report, tuple[str, ...]]:
    """`run`, and whoever is to know is told of failures and recoveries; also returns what could not be told."""
    troubles = _ping(session.config, "/start")
    try:
        report = run(session, scope, stages)
    except LockedError:  # the other run tells, unless it hangs
        if late := list(stuck(session)):
            tell_results(session, late)
            _ping(session.config, "/fail")
        raise
    except Exception as error:
        _tell(session, [_broken(f"{RUN}:{'+'.join(stages)}", RUN, error)], ())
        _ping(session.config, "/fail")
        raise
    problems = [_problem(result) for result in report.results if result.outcome is Outcome.FAILED or result.alarm]
    troubles += _tell(session, problems, report.results, done=frozenset(stages) - frozenset(report.left))
    troubles += _ping(session.config, "" if report.exit_code is ExitCode.OK else "/fail")
    return report, tuple(troubles)


def tell_not_begun(config: Config, error: Exception) -> tuple[str, ...]:
    """The same for a run that has no session yet, as with a token that cannot be used: whom to tell is known."""
    home = Home(config=config, runner=ProcessRunner(), node=node_name(config.api.node or ""))
    return (*tell_broken(home, RUN, error), *_ping(config, "/fail"))


def held_back(session: Session) -> HeldBack:
    """What is still to be told, and which problems last. Raises `BackupError` when it cannot be read."""
    memory = _Memory.read(session.config.state_dir / FILE)
    counts = Counter(str(entry["service"]) for entry in memory.waiting)
    names = _services(session.config, session.runner)
    return HeldBack(waiting={name: counts[name] for name in names}, lasting=len(memory.known))


def tell_results(home: Home, results: Sequence[Result]) -> tuple[str, ...]:
    """Tell of failures and recoveries of something that is no run. Returns what could not be told."""
    problems = [_problem(result) for result in results if result.outcome is Outcome.FAILED]
    return tuple(_tell(home, problems, results))


def tell_broken(home: Home, stage: str, error: Exception, *, host: str = "") -> tuple[str, ...]:
    """Tell of what broke off before its end. It is well again when the stage ends with a result that did not fail, of
    that host if one is named."""
    key = f"{stage}::{host}" if host else stage
    return tuple(_tell(home, [_broken(key, stage, error, host)], ()))


def _broken(key: str, stage: str, error: Exception, host: str = "") -> Problem:
    message = error.message if isinstance(error, BackupError) else f"{type(error).__name__}: {error}"
    hint = error.hint if isinstance(error, BackupError) else ""
    return Problem(key=key, stage=stage, host=host, message=message, hint=hint)


def send_test(config: Config, runner: Runner, node: str) -> dict[str, str]:
    """A test message to every service: its name, and what went wrong or nothing."""
    return {name: _attempt(send, Alert(node=node)) for name, send in _services(config, runner).items()}


def _is_well(problem: Problem, results: Sequence[Result], done: Set[str] | None) -> bool:
    """Whether what once failed was tried again, and is well. `done` are the stages that a run has done, None where
    there was none. What skips no guest in particular was put off: it proves nothing. Not every result of a guest names
    its host; one of neither was not about the host."""
    if problem.stage == RUN:
        return done is not None and frozenset(filter(None, problem.key.partition(":")[2].split("+"))) <= done
    if problem.stage == THAW:  # each run that makes points looks first for what is frozen
        return done is not None and Stage.SNAPSHOT in done
    if problem.stage == JOURNAL:  # every result is written there
        return bool(results)
    proofs = [one for one in results if one.outcome is not Outcome.FAILED]
    proofs = [one for one in proofs if one.vmid or one.outcome is not Outcome.SKIPPED]
    if problem.key == problem.stage:  # it broke off
        return any(result.stage == problem.stage for result in proofs)
    stages = (SWEEP, DRILL) if problem.stage == SWEEP else (problem.stage,)  # a drill begins with a sweep
    return any(
        result.stage in stages
        and (result.host == problem.host or (result.vmid and not result.host) or not (problem.host or problem.guest))
        and (not problem.guest or _guest(result) == problem.guest)
        and (not problem.pool or result.pool == problem.pool)
        for result in proofs
    )


def _guest(result: Result) -> str:
    return f"{result.vmid} {result.guest}".strip() if result.vmid else ""


def _key(result: Result) -> str:
    return f"{result.stage}:{result.vmid or ''}:{result.host}{f':{result.pool}' if result.pool else ''}"


def _problem(result: Result) -> Problem:
    return Problem(
        key=_key(result),
        stage=result.stage,
        guest=_guest(result),
        host=result.host,
        pool=result.pool,
        message=result.message,
        hint=result.hint,
    )


@dataclass(slots=True)
class _Memory:
    """What outlives a run: lasting problems, the last good points, and messages that wait for a service. `lost` counts
    messages that cannot be read any more."""

    known: dict[str, Known]
    good: dict[str, str]
    waiting: list[dict[str, Any]]
    lost: int = 0

    @classmethod
    def read(cls, path: Path) -> _Memory:
        """Damaged parts, and those of another version, are forgotten: a problem is then told once more."""
        found = recall(path)
        queue = found.get("waiting")
        there = queue if isinstance(queue, list) else []
        waiting = [entry for entry in there if _readable(entry)]
        lost = len(there) - len(waiting)
        try:
            known = {key: _known(value) for key, value in found.get("known", {}).items()}
            good = {str(key): str(point) for key, point in found.get("good", {}).items()}
        except UNREADABLE:
            return cls({}, {}, waiting, lost)
        return cls(known, good, waiting, lost)

    def write(self, path: Path) -> None:
        known = {key: asdict(value) for key, value in self.known.items()}
        remember(path, {"format": 1, "known": known, "good": self.good, "waiting": self.waiting})


def _readable(entry: Any) -> bool:
    """Whether it is a message that waits, as this version writes them."""
    try:
        return bool(entry["service"]) and int(entry["since"]) >= 0 and bool(_alert(entry["alert"]).node)
    except UNREADABLE:
        return False


def _known(value: Mapping[str, Any]) -> Known:
    times = {key: int(number) for key, number in value.items() if key != "problem"}
    return Known(problem=Problem(**{key: str(text) for key, text in value["problem"].items()}), **times)


def _tell(
    home: Home, problems: Sequence[Problem], results: Sequence[Result], *, done: Set[str] | None = None
) -> list[str]:
    """Tell what is due, first what waits since earlier runs. Returns what went wrong with the telling. One at a time:
    a run and a drill may end together, and neither is to forget what the other remembers."""
    services = _services(home.config, home.runner)
    if not services:
        return []
    path = home.config.state_dir / FILE
    try:
        with changing(path):
            return _told(home, path, services, problems, results, done)
    except BackupError as error:
        return [f"alerts: {error.message}"]


def _told(
    home: Home, path: Path, services: Mapping[str, Send], problems: Sequence[Problem], results: Sequence[Result],
    done: Set[str] | None,
) -> list[str]:  # fmt: skip
    now = int(home.now().timestamp())
    memory = _Memory.read(path)
    fine = (result for result in results if result.point and result.outcome is not Outcome.FAILED)
    memory.good.update({_key(result): result.point for result in fine})
    well = [key for key, known in memory.known.items() if _is_well(known.problem, results, done)]
    problems = [replace(problem, good=memory.good.get(problem.key, "")) for problem in problems]
    told = tidings(memory.known, problems, well, now=now)
    if not told.empty:
        alert = Alert(node=home.node, news=told.news, recovered=told.recovered)
        memory.waiting += [{"service": name, "since": now, "alert": asdict(alert)} for name in services]
    memory.known = dict(told.memory)
    lost = [f"alerts: {memory.lost} messages that waited cannot be read: given up"] if memory.lost else []
    troubles = lost + _deliver(memory, services, now)
    memory.write(path)
    return troubles


def _deliver(memory: _Memory, services: Mapping[str, Send], now: int) -> list[str]:
    """Send what waits, oldest first; what a service does not take stays for the next time."""
    troubles: dict[str, str] = {}
    left = []
    for entry in memory.waiting:
        name = str(entry["service"])
        if name not in services or now - int(entry["since"]) > QUEUE_SECONDS:
            continue  # the service was removed, or it is no news any more
        if name not in troubles:
            trouble = _attempt(services[name], _alert(entry["alert"]))
            if not trouble:
                continue
            troubles[name] = trouble
        left.append(entry)
    counts = {name: [entry for entry in left if entry["service"] == name][-QUEUE_LIMIT:] for name in services}
    memory.waiting = [entry for entries in counts.values() for entry in entries]
    return [f"alert by {name}: {trouble}" for name, trouble in sorted(troubles.items())]


def _alert(value: Mapping[str, Any]) -> Alert:
    return Alert(
        node=str(value["node"]),
        news=tuple(_known(item) for item in value["news"]),
        recovered=tuple(_known(item) for item in value["recovered"]),
    )


def _attempt(send: Send, alert: Alert) -> str:
    try:
        send(alert)
    except BackupError as error:
        return error.message
    return ""


def _services(config: Config, runner: Runner) -> dict[str, Send]:
    """How each configured service is reached, by a name for people."""
    alerts = config.alerts
    found: dict[str, Send] = {}
    if alerts.mail:
        found["mail"] = lambda alert: notify.mail(runner, alerts.mail, alert.title, alert_text(alert))
    if path := alerts.apprise_file:
        found["apprise"] = lambda alert: notify.apprise(runner, checked_secrets(path), alert.title, alert_text(alert))
    for name, hook in config.webhooks.items():
        found[f"webhook {name}"] = _poster(hook)
    return found


def _poster(hook: Webhook) -> Send:
    def post(alert: Alert) -> None:
        message = message_for(hook.type, alert)
        notify.post(read_secret(hook.url_file).reveal(), message.body, message.headers, local=hook.local)

    return post


def _ping(config: Config, suffix: str) -> list[str]:
    """Call the dead man's switch. That it could not be called is what it notices by itself."""
    if config.alerts.ping_file is None:
        return []
    try:
        address, mark, query = read_secret(config.alerts.ping_file).reveal().partition("?")
        notify.ping(f"{address.rstrip('/')}{suffix}{mark}{query}")
    except BackupError as error:
        return [f"ping: {error.message}"]
    return []
