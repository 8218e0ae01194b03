"""Runs the cases against the `zfs` of the host it is on: standard library only, because it is sent to the lab.

Reads {"cases": {name: steps}, "root": dataset, "key": path} on stdin, writes {name: [answers]} on stdout.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time

ENV = {"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


def run(argv):
    done = subprocess.run(argv, capture_output=True, text=True, env=ENV, check=False, stdin=subprocess.DEVNULL)
    return {"status": done.returncode, "stdout": done.stdout, "stderr": done.stderr}


def fed(argv, text):
    done = subprocess.run(argv, capture_output=True, text=True, env=ENV, check=False, input=text)
    return {"status": done.returncode, "stdout": done.stdout, "stderr": done.stderr}


def send_only(argv):
    """A send that is expected to fail: its stream, were there one, goes nowhere."""
    done = subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ENV, check=False)
    return {"status": done.returncode, "stdout": "", "stderr": done.stderr}


def pipe(producer, consumer, kib=None):
    first = subprocess.Popen(producer, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENV)
    second = subprocess.Popen(consumer, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENV)
    left = None if kib is None else kib * 1024
    while left is None or left > 0:
        data = os.read(first.stdout.fileno(), 65536 if left is None else min(65536, left))
        if not data:
            break
        left = None if left is None else left - len(data)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(second.stdin.fileno(), view) :]
        except BrokenPipeError:
            break
    first.stdout.close()
    out, err = second.communicate()
    sent = first.stderr.read().decode()
    first.stderr.close()
    return {
        "sent": first.wait(), "sent stderr": sent,
        "status": second.returncode, "stdout": out.decode(), "stderr": err.decode(),
    }  # fmt: skip


def pack(producers, consumers, cut=None):
    line = " && ".join(shlex.join(words) for words in consumers)
    taker = subprocess.Popen(
        ("sh", "-c", line), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENV
    )
    sent = []
    for number, words in enumerate(producers):
        limit = cut[1] * 1024 if cut and cut[0] == number else None
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENV) as sender:
            gone = poured(sender.stdout, taker.stdin, limit)
            sender.stdout.close()
            sent.append(sender.wait())
        if gone or limit is not None or sent[-1]:
            break
    out, err = taker.communicate()
    return {
        "sent": next((code for code in sent if code not in (0, -13)), 0), "sent stderr": "",
        "status": taker.returncode, "stdout": out.decode(), "stderr": err.decode(),
    }  # fmt: skip


def poured(source, sink, limit):
    """Whether the other end was gone."""
    while limit is None or limit > 0:
        data = os.read(source.fileno(), 65536 if limit is None else min(65536, limit))
        if not data:
            return False
        limit = None if limit is None else limit - len(data)
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(sink.fileno(), view) :]
        except BrokenPipeError:
            return True
    return False


def write(dataset, kib):
    asked = run(("zfs", "get", "-H", "-o", "value", "mounted,mountpoint", dataset))["stdout"].splitlines()
    if asked[0] != "yes":
        subprocess.run(("zfs", "mount", dataset), check=True, env=ENV)
    with open(f"{asked[1]}/{time.monotonic_ns()}", "wb") as file:
        file.write(os.urandom(kib * 1024))
        os.fsync(file.fileno())


def filled(step, base):
    def token(match):
        return run(("zfs", "get", "-H", "-o", "value", "receive_resume_token", match[1]))["stdout"].strip()

    def signed(match):
        guid = int(run(("zfs", "get", "-Hp", "-o", "value", "guid", match[1]))["stdout"])
        return str(guid - (1 << 64) if guid >> 63 else guid)

    def fill(part):
        if isinstance(part, list):
            return [fill(item) for item in part]
        if not isinstance(part, str):
            return part
        return re.sub(r"\{signed:([^}]+)\}", signed, re.sub(r"\{token:([^}]+)\}", token, part.replace("{b}", base)))

    return fill(step)


def play(steps, base):
    answers = []
    for raw in steps:
        step = filled(raw, base)
        if step[0] == "pipe":
            answers.append(pipe(*step[1:]))
        elif step[0] == "pack":
            answers.append(pack(*step[1:]))
        elif step[0] == "fed":
            answers.append(fed(*step[1:]))
        elif step[0] == "write":
            write(*step[1:])
        elif step[1] == "send" and "-nvP" not in step:
            answers.append(send_only(step))
        else:
            answers.append(run(step))
    return answers


def main():
    asked = json.load(sys.stdin)
    if asked.get("key"):
        with open(asked["key"], "wb") as file:
            file.write(b"k" * 32)
    root = asked["root"]
    run(("zfs", "destroy", "-r", root))
    subprocess.run(("zfs", "create", root), check=True, env=ENV)
    told = {}
    for name, steps in asked["cases"].items():
        base = f"{root}/{name}"
        subprocess.run(("zfs", "create", base), check=True, env=ENV)
        told[name] = play(steps, base)
    held = run(("zfs", "list", "-H", "-o", "name,userrefs", "-t", "snapshot", "-r", root))["stdout"].splitlines()
    for tag in "tu":
        run(("zfs", "release", tag, *(line.split()[0] for line in held if line.split()[1] != "0")))
    run(("zfs", "destroy", "-R", root))
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
