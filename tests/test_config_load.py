"""Loading: what the good samples mean, and every problem of the bad ones with its place (golden)."""

from __future__ import annotations

import os
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from pve_zfsbackup.config import DEFAULT_KEEP, Api, Config, Job, Target, load_config, parse_config
from pve_zfsbackup.config.hooks import Hooks, Vzdump
from pve_zfsbackup.errors import ConfigError, ExitCode
from pve_zfsbackup.model import Compress, DiskPattern, Keep, Quiesce, RateRule, Vmid, parse_selector

HERE = Path(__file__).parent
BAD = sorted((HERE / "config/bad").glob("*.yaml"))
GOOD = sorted((HERE / "config/good").glob("*.yaml"))


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "c")
    assert caught.value.exit_code is ExitCode.CONFIG
    return caught.value.problems


def good(name: str) -> Config:
    path = HERE / "config/good" / f"{name}.yaml"
    return parse_config(path.read_text(), str(path))


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_problems_of_a_bad_file_are_all_told_with_their_places(path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(path.read_text(), path.name)
    told = "".join(f"{problem}\n" for problem in caught.value.problems)
    golden = HERE / "golden/config" / f"{path.stem}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(told)
    assert told == golden.read_text()


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in (HERE / "golden/config").glob("*.txt")} == {path.stem for path in BAD}


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_good_files_load(path: Path) -> None:
    assert isinstance(parse_config(path.read_text(), path.name), Config)


def test_problems_are_one_line_each_and_printable() -> None:
    for path in BAD:
        with pytest.raises(ConfigError) as caught:
            parse_config(path.read_text(), "bad\nname\x1b.yaml")
        assert all(problem.isprintable() for problem in caught.value.problems), path


def test_full_file_sets_every_option() -> None:
    pairs = "00112233445566778899AABBCCDDEEFF" * 2
    assert good("full") == Config(
        api=Api(
            url="https://[::1]:8006",
            token_file=Path("/etc/pve/priv/pve-zfsbackup.token"),
            ca_file=Path("/etc/ssl/certs/ca-certificates.crt"),
            fingerprint=":".join(pairs[i : i + 2] for i in range(0, 64, 2)),
            timeout=7.5,
            node="pve1",
        ),
        targets={
            "backup1": Target(
                name="backup1",
                host="2001:db8::17",
                user="Backup.User",
                port=2222,
                identity_file=Path("/root/.ssh/backup"),
                known_hosts_file=Path("/root/.ssh/known"),
                root="tank/backups/pve-1.example:x_y",
                parallel=8,
                connect_timeout=3.0,
                retries=0,
                retry_wait=1.5,
                stall=900.0,
                rate=500 << 10,
                rate_schedule=(
                    RateRule(days=frozenset(range(5)), start=480, end=1080, rate=20 << 20),
                    RateRule(days=frozenset(range(7)), start=1320, end=360, rate=0),
                    RateRule(days=frozenset({6}), start=0, end=1440, rate=1 << 30),
                ),
                mbuffer=64 << 20,
                compress=Compress.AUTO,
                keep=Keep(last=2, hourly=48, daily=14, weekly=8, monthly=24, yearly=5),
            )
        },
        jobs={
            "nightly-1": Job(
                name="nightly-1",
                guests=tuple(
                    parse_selector(word)
                    for word in (
                        "100",
                        "200-299",
                        "name:Web*",
                        "tag:prod",
                        "pool:production",
                        "storage:fast",
                        "node:pve1",
                        "!101",
                    )
                ),
                exclude=(parse_selector("tag:scratch"),),
                exclude_disks=(
                    DiskPattern(text="101:scsi1", key="scsi1", vmid=Vmid(101)),
                    DiskPattern(text="mp*", key="mp*"),
                    DiskPattern(text="102:scsi[23]", key="scsi[23]", vmid=Vmid(102)),
                ),
                quiesce=Quiesce.REQUIRE,
                freeze_limit=2.0,
                container_freeze=True,
                before_freeze=("/bin/pause", "now please"),
                after_thaw=("/bin/resume",),
                lock_wait=0.0,
                targets=("backup1",),
                keep=Keep(last=1),
            )
        },
        hooks=Hooks(
            before_run=("/bin/a",),
            before_snapshot=("/bin/b",),
            after_snapshot=("/bin/c",),
            before_replicate=("/bin/d",),
            after_replicate=("/bin/e",),
            after_prune=("/bin/f",),
            on_error=("/bin/g", "x"),
            after_run=("/bin/h",),
            timeout=5.0,
        ),
        vzdump=Vzdump(replicate=False, skip_within=0.0, fail_backup=True),
        timezone=ZoneInfo("Asia/Kathmandu"),
        journal_dir=Path("/srv/journal"),
        runtime_dir=Path("/run/elsewhere"),
        state_dir=Path("/srv/state"),
    )


@pytest.mark.parametrize("name", ["empty", "commented-out"])
def test_nothing_set_is_all_defaults(name: str) -> None:
    config = good(name)
    assert config == Config()
    assert config.api.url == "https://127.0.0.1:8006"
    assert config.timezone is None
    assert (config.journal_dir, config.runtime_dir, config.state_dir) == (
        Path("/var/log/pve-zfsbackup"),
        Path("/run/pve-zfsbackup"),
        Path("/var/lib/pve-zfsbackup"),
    )


def test_default_history() -> None:
    config = parse_config("targets: {t: {host: h, root: a/b}}\njobs: {j: {guests: all}}", "c")
    assert config.targets["t"].keep == config.jobs["j"].keep == DEFAULT_KEEP
    assert Keep(hourly=24, daily=7, weekly=4, monthly=12) == DEFAULT_KEEP


@pytest.mark.parametrize("text", ["{}", "{keep-last: 0}"])
def test_empty_history_keeps_everything(text: str) -> None:
    keep = parse_config(f"jobs: {{j: {{guests: all, keep: {text}}}}}", "c").jobs["j"].keep
    assert keep == Keep()
    assert keep.everything


def test_history_without_a_value_is_not_guessed() -> None:
    told = problems("jobs:\n  j:\n    guests: all\n    keep:\n")
    assert told == [
        "c:4:10: nothing is set here: an empty section is written {}, or leave the line out for the default"
    ]


def test_anchors_aliases_and_merges() -> None:
    config = good("anchors")
    targets = config.targets
    assert [(t.host, t.root, t.port, t.parallel) for t in targets.values()] == [
        ("one.example", "tank/a", 22, 4),
        ("two.example", "tank/a", 22, 4),
        ("one.example", "tank/c", 2022, 4),
    ]
    assert {t.keep for t in targets.values()} == {Keep(last=3)}
    assert config.jobs["day"].keep == Keep(last=3)
    assert config.jobs["night"].guests == config.jobs["day"].guests == (parse_selector("tag:day"),)
    assert config.jobs["night"].targets == ("first", "second")


def test_earlier_of_several_merged_sections_wins() -> None:
    text = "targets:\n  a: {<<: [{host: x, port: 1}, {host: y, root: t/a}]}"
    target = parse_config(text, "c").targets["a"]
    assert (target.host, target.port, target.root) == ("x", 1, "t/a")


def test_quiesce_words_that_yaml_takes_for_booleans() -> None:
    jobs = good("quiesce").jobs
    off, prefer = Quiesce.OFF, Quiesce.PREFER
    assert [job.quiesce for job in jobs.values()] == [off, off, off, off, prefer, Quiesce.REQUIRE]


@pytest.mark.parametrize(("word", "value"), [("true", True), ("yes", True), ("Off", False), ("false", False)])
def test_an_append_only_target(word: str, value: bool) -> None:
    text = f"targets: {{b: {{host: b, root: tank/b, append-only: {word}}}}}"
    assert parse_config(text, "x").targets["b"].append_only is value


def test_a_policy_for_a_target_that_prunes_itself_is_refused() -> None:
    text = "targets:\n  b:\n    host: b\n    root: tank/b\n    append-only: true\n    keep: {keep-last: 3}\n"
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "x")
    assert [problem for problem in caught.value.problems if "6:" in problem and "by its own policy" in problem]
    with pytest.raises(ConfigError, match="true or false"):
        parse_config("targets: {b: {host: b, root: tank/b, append-only: maybe}}", "x")


def test_names_come_from_the_keys() -> None:
    config = good("anchors")
    assert [target.name for target in config.targets.values()] == list(config.targets)
    assert [job.name for job in config.jobs.values()] == list(config.jobs)


def test_loaded_values_cannot_be_changed() -> None:
    config = good("full")
    with pytest.raises(TypeError):
        config.targets["x"] = config.targets["backup1"]  # type: ignore[index]
    with pytest.raises(AttributeError):
        config.jobs["nightly-1"].quiesce = Quiesce.OFF  # type: ignore[misc]


@pytest.mark.parametrize(
    ("word", "nearest"),
    [("job", "jobs"), ("journal_dir", "journal-dir"), ("Targets", "targets"), ("time-zone", "timezone")],
)
def test_nearest_key_is_named(word: str, nearest: str) -> None:
    assert problems(f"{word}: {{}}") == [f"c:1:1: unknown key '{word}', did you mean '{nearest}'?"]


def test_key_far_from_all_names_them_all() -> None:
    assert problems("xyzzy: 1") == [
        "c:1:1: unknown key 'xyzzy'; expected one of: api, targets, boxes, jobs, alerts, webhooks, failover, "
        "hooks, vzdump, verify, timezone, journal-dir, runtime-dir, state-dir"
    ]


def test_misspelt_required_key_is_not_also_missing() -> None:
    assert problems("targets: {t: {hots: h, root: a/b}}") == ["c:1:15: unknown key 'hots', did you mean 'host'?"]


def test_target_with_a_problem_is_still_a_target() -> None:
    told = problems("targets: {backup1: {host: h, root: tank}}\njobs: {j: {guests: all, targets: backup1}}")
    assert len(told) == 1
    assert told[0].startswith("c:1:36: expected a dataset below the pool")


@pytest.mark.parametrize("text", ["[" * 1500, "{a: " * 1500])
def test_deep_nesting_is_a_problem_and_not_a_crash(text: str) -> None:
    assert problems(text) == ["c:1:1: not valid YAML: nested too deeply"]


def test_many_aliases_of_aliases_end_soon() -> None:
    lines = ["x0: &x0 {a: 1}"] + [f"x{i}: &x{i} {{<<: [{', '.join([f'*x{i - 1}'] * 20)}]}}" for i in range(1, 20)]
    lines.append("api: {<<: *x19}")
    told = problems("\n".join(lines))
    assert "c:1:10: unknown key 'a'; expected one of: url, token-file, ca-file, fingerprint, timeout, node" in told


@pytest.mark.parametrize(
    "host", ["b", "backup1", "Backup-1.example.org", "10.0.0.1", "::1", "2001:db8::", "fe80::1%vmbr0", "1host"]
)
def test_host_of_a_target(host: str) -> None:
    assert parse_config(f"targets: {{t: {{host: '{host}', root: a/b}}}}", "c").targets["t"].host == host


@pytest.mark.parametrize("host", ["", "-x", "a b", "user@host", "host:22", "[::1]", "h;x", "$(x)", "a..", "::g", ":::"])
def test_not_a_host(host: str) -> None:
    (told,) = problems(f"targets: {{t: {{host: '{host}', root: a/b}}}}")
    assert told.startswith("c:1:21: expected a host name or address")


def test_what_may_be_a_secret_is_not_repeated() -> None:
    secret = "11111111-2222-3333-4444-555555555555"
    told = problems(f"api: {{token-file: root@pam!t={secret}, url: 'https://u:{secret}@h', token: {secret}}}")
    assert len(told) == 3
    assert secret not in "".join(told)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://pve1", "https://pve1"),
        ("https://pve1.example:443/", "https://pve1.example:443"),
        ("https://[2001:db8::1]:8006", "https://[2001:db8::1]:8006"),
        ("https://", None),
        ("https://:8006", None),
        ("https://pve1:port", None),
        ("https://pve1:0", None),
        ("https://pve1:99999", None),
        ("https://[::1", None),
        ("https://pve1/api2", None),
        ("https://pve1?x", None),
        ("https://pve1#x", None),
        ("https://pve 1", None),
        ("pve1:8006", None),
        ("HTTP://pve1", None),
        ("file:///etc/passwd", None),
    ],
)
def test_address_of_the_api(text: str, url: str | None) -> None:
    if url is not None:
        assert parse_config(f"api: {{url: '{text}'}}", "c").api.url == url
    else:
        (told,) = problems(f"api: {{url: '{text}'}}")
        assert told.startswith("c:1:12: expected https://HOST[:PORT]")


def test_long_values_are_cut_in_messages() -> None:
    (told,) = problems(f"api: {{node: {'x ' * 500}}}")
    assert len(told) < 150


def test_load_config_reads_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("api: {node: pve7}\n")
    path.chmod(0o640)
    assert load_config(path) == Config(api=Api(node="pve7"))


def test_load_config_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("\napi: {nod: pve7}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert caught.value.problems == [f"{path}:2:7: unknown key 'nod', did you mean 'node'?"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("hooks: {on-error: notify}", "c:1:19: the first word must be the absolute path of a program"),
        ("hooks: {on-error: [/a=b]}", "c:1:19: the first word must be the absolute path of a program"),
        ("hooks: {on-eror: /bin/x}", "c:1:9: unknown key 'on-eror', did you mean 'on-error'?"),
        ("jobs: {j: {guests: all, before-freeze: [sh, -c, x]}}", "c:1:40: the first word must be the absolute path"),
        ("vzdump: {replicate: 1}", "c:1:21: expected true or false; found '1'"),
    ],
)
def test_commands_that_could_not_be_run(text: str, told: str) -> None:
    (problem,) = problems(text)
    assert problem.startswith(told)
