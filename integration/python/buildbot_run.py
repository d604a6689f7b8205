"""Builds commits with a master.cfg: buildbot_run.py MASTER_CFG BASEDIR PORT COMMIT... Prints results and each step's log.

A master and its worker are made in BASEDIR and ended again. What is asked goes over the master's REST API alone. Each
commit is what `main` of APP_REPOSITORY is for its build.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
import urllib.request

config, base, port = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
API = f"http://127.0.0.1:{port}/api/v2/"
BUILDBOT = [sys.executable, pathlib.Path(sys.executable).with_name("buildbot")]
DEADLINE = time.monotonic() + 100


def ask(path: str, body: dict | None = None):
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(API + path, data, {"content-type": "application/json"} if body else {})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read()


def until(what: str, found):
    while True:
        if master.poll() is not None:
            sys.exit(f"the master ended with {master.returncode}: {(base / 'twistd.log').read_text()[-4000:]}")
        try:
            if result := found():
                return result
        except (OSError, ValueError):
            pass  # it does not listen yet
        if time.monotonic() > DEADLINE:
            sys.exit(f"{what}: still not; {(base / 'twistd.log').read_text()[-4000:]}")
        time.sleep(0.1)


def show(build: dict):
    print("result", build["results"])
    for step in json.loads(ask(f"builds/{build['buildid']}/steps"))["steps"]:
        print("step", step["name"], step["results"])
        for log in json.loads(ask(f"steps/{step['stepid']}/logs"))["logs"]:
            sys.stdout.flush()
            sys.stdout.buffer.write(ask(f"logs/{log['logid']}/raw"))
            sys.stdout.buffer.write(b"\n")


subprocess.run([*BUILDBOT, "create-master", "--quiet", base], check=True, stdout=subprocess.DEVNULL)
shutil.copy(config, base / "master.cfg")
environment = {**os.environ, "BUILDBOT_PORT": port}
with open(base / "stdout", "wb") as out:
    command = [*BUILDBOT, "start", "--nodaemon", base]
    master = subprocess.Popen(command, env=environment, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
try:
    worker = lambda: [one for one in json.loads(ask("workers"))["workers"] if one["connected_to"]]
    until("the worker is there", worker)
    builder = json.loads(ask("builders"))["builders"][0]["builderid"]
    call = {"jsonrpc": "2.0", "id": 1, "method": "force", "params": {"builderid": str(builder)}}
    for number, commit in enumerate(sys.argv[4:]):
        subprocess.run(["git", "-C", os.environ["APP_REPOSITORY"], "update-ref", "refs/heads/main", commit], check=True)
        ask("forceschedulers/force", call)
        ended = lambda: [one for one in json.loads(ask("builds"))["builds"] if one["complete"]][number:]
        (build,) = until("the build has ended", ended)
        show(build)
finally:
    master.terminate()
    master.wait(20)
