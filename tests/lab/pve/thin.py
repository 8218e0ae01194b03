#!/usr/bin/python3 -IS
"""pvesh, qm and pct of the lab host: send the command line to the simulated node, print its answer."""
import json
import os
import socket
import sys


def main() -> int:
    if os.geteuid() != 0:
        sys.stderr.write("please run as root\n")
        return 255
    link = socket.socket(socket.AF_UNIX)
    link.connect("/run/pvesim/cli.sock")
    link.sendall(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]).encode() + b"\n")
    answer = b""
    while part := link.recv(65536):
        answer += part
    if not answer:
        sys.stderr.write("ipcc_send_rec[1] failed: Connection refused\n")
        return 111
    code, out, err = json.loads(answer)
    sys.stdout.write(out)
    sys.stdout.flush()
    sys.stderr.write(err)
    return int(code)


sys.exit(main())
