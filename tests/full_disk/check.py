"""Calls on a small disk of their own, which fills up: `tests/full_disk/run` starts this where it may mount one."""

import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.request
from pathlib import Path

BIN = Path(os.environ["BIN"]).resolve()
# So much may wait for the database, the least there is: a few of these answers.
QUEUE_BYTES = 1 << 20
ANSWER = "word " * 12_000


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def until(what, holds, seconds=30):
    """Waits for something to come true."""
    last = None
    for _ in range(seconds * 20):
        try:
            last = holds()
            if last:
                return last
        except OSError as error:
            last = error
        time.sleep(0.05)
    raise AssertionError(f"{what}: not in {seconds} s ({last!r})")


class Bench:
    def __init__(self, folder):
        self.folder, self.disk = folder, folder / "disk"
        self.disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", self.disk], check=True)
        self.db, self.journals = self.disk / "bridge.db", self.disk / "journals"
        self.port, self.model = free_port(), free_port()
        self.config = folder / "bridge.toml"
        self.config.write_text(f"[store]\nqueue_bytes = {QUEUE_BYTES}\n")
        self.script = folder / "model.toml"
        answer = f'{{ answers = 600, transcript = "{ANSWER}" }}'
        self.script.write_text(f"turns = [{', '.join([answer] * 40)}]\n")
        self.log = folder / "log"
        self.running = []

    def begin(self):
        self.start(["mock-openai", "--listen", f"127.0.0.1:{self.model}", "--script", str(self.script)], self.folder / "model")
        self.start_bridge()

    def start(self, command, output):
        child = subprocess.Popen([BIN / command[0], *command[1:]], stdout=open(output, "ab"), stderr=subprocess.STDOUT,
                                 env=self.env())
        self.running.append(child)
        return child

    def env(self):
        return {**os.environ, "OPENAI_API_KEY": "any", "BRIDGE_STORE_URL": f"sqlite:{self.db}",
                "BRIDGE_JOURNAL_DIR": str(self.journals), "BRIDGE_LIVE_LISTEN": "off",
                "BRIDGE_METRICS_LISTEN": f"127.0.0.1:{self.port}", "BRIDGE_LOG": "info"}

    def start_bridge(self):
        self.earlier = set(self.journals.glob("*"))
        self.bridge = self.start(
            ["bridge", "--config", str(self.config), "--insecure-no-signature", "--listen", f"127.0.0.1:{self.port}",
             "--openai-url", f"ws://127.0.0.1:{self.model}/v1/realtime"], self.log)
        until("the bridge listens", lambda: self.metrics())

    def stop_bridge(self, how):
        self.bridge.send_signal(how)
        return self.bridge.wait(timeout=30)

    def close(self):
        for child in self.running:
            if child.poll() is None:
                child.kill()
                child.wait()
        subprocess.run(["umount", "-l", self.disk], check=False)

    def metrics(self):
        """Figures by name, summed over their labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        sums = {}
        for line in text.splitlines():
            if not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                name = name.split("{")[0].removeprefix("bridge_")
                sums[name] = sums.get(name, 0.0) + float(value)
        return sums

    def call(self, seed, turns=1):
        """A caller who speaks and listens to the answer, so many times; ends by itself."""
        script = self.folder / f"caller-{turns}.toml"
        steps = ['{ says = 600 }', '"hears_start"', '"hears_end"'] * turns + ['"hangs_up"']
        if not script.exists():
            script.write_text(f"steps = [{', '.join(steps)}]\n")
        return self.start(["mock-twilio", f"ws://127.0.0.1:{self.port}/twilio", "--script", str(script), "--heard", "300",
                           "--seed", str(seed)], self.folder / f"caller-{seed}")

    def called(self, caller, seed):
        """Waits for a call to end well."""
        code = caller.wait(timeout=60)
        words = (self.folder / f"caller-{seed}").read_text()
        assert code == 0, f"call {seed} did not take place as it should: {code}\n{words}"

    def all_stored(self):
        """Waits until every call is over and everything of it is in the database, and gives the calls."""
        ends = until("calls end and are stored", lambda: (m := self.metrics())
                     and m["calls_active"] == m["store_queued_records"] == 0 and m)
        assert ends["panics_total"] == 0, ends
        return self.stored()

    def fill(self):
        """Writes until there is no room at all."""
        with open(self.disk / "ballast", "ab", buffering=0) as ballast:
            for size in (65536, 4096, 512, 1):
                try:
                    while True:
                        ballast.write(b"x" * size)
                except OSError:
                    pass
        assert os.statvfs(self.disk).f_bavail == 0

    def free(self):
        (self.disk / "ballast").unlink()

    def bridge_calls(self, *arguments):
        command = [BIN / "bridge", "calls", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=self.env())
        assert done.returncode == 0, done.stderr
        return done.stdout

    def stored(self):
        """The stored calls, the newest first."""
        return [json.loads(line) for line in self.bridge_calls("export").splitlines()]

    def check_database(self):
        """A copy of the file and its log is whole: a reader must not need room on the disk."""
        copy = Path(tempfile.mkdtemp(dir=self.folder))
        for file in self.disk.glob("bridge.db*"):
            if not file.name.endswith("-shm"):
                shutil.copy(file, copy / file.name)
        with sqlite3.connect(copy / "bridge.db") as db:
            (verdict,) = db.execute("PRAGMA integrity_check").fetchone()
        assert verdict == "ok", verdict

    def journal(self, number, what, holds):
        """The journal of this process's call and its lines, once this holds of them."""

        def written():
            found = [path for path in self.journals.glob(f"call-*-{number:06}*.ndjson") if path not in self.earlier]
            text = found[0].read_text() if found else ""
            # A reader may see half a line while it is written, but not for long.
            if not text.endswith("\n"):
                return None
            lines = [json.loads(line) for line in text.split("\n")[:-1]]
            return holds(lines) and (found[0], lines)

        return until(f"the journal of call {number} {what}", written)

    def ended_journal(self, number):
        """The same, whole: its last line may come after the caller and the store know that the call is over."""
        return self.journal(number, "ends", lambda lines: lines[-1].get("is") == "end")

    def scn_reads(self, journal):
        """What the harness says of a journal that it makes a scenario of."""
        command = [BIN / "scn", "import", journal, "-o", self.folder / "imported.toml"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{journal} is no use: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def said(self, words):
        """How often the bridge's log says this."""
        return self.log.read_text().count(words)


def ok(words):
    print(f"ok  {words}", flush=True)


def holes_are_told(lines):
    """Every hole says how large it is, and the end how many lines are missing in all."""
    holes = [line["lines"] for line in lines if line.get("is") == "lost"]
    end = lines[-1]
    assert end["is"] == "end", end
    assert holes and sum(holes) == end["lost"], f"holes of {holes}, {end['lost']} in all"
    return end["lost"]


def a_disk_fills_up(bench):
    bench.called(bench.call(1), 1)
    calls = bench.all_stored()
    assert len(calls) == 1 and calls[0]["reason"] == "stopped", calls
    _, lines = bench.ended_journal(1)
    assert lines[-1] == {"us": lines[-1]["us"], "is": "end", "lost": 0}, lines[-1]
    ok("a call on a disk with room is kept whole")

    long = bench.call(2, turns=8)
    bench.journal(2, "has begun", lambda lines: len(lines) > 50)
    bench.fill()
    before = bench.metrics()
    for caller, seed in [(bench.call(seed, turns=2), seed) for seed in (3, 4, 5, 6)]:
        bench.called(caller, seed)
    assert long.poll() is None, "the long call goes on"
    full = until("the four calls end and what they lost is counted", lambda: (m := bench.metrics())
                 and m["calls_active"] == 1 and m["store_lost_records_total"] and m)
    assert QUEUE_BYTES / 2 < full["store_queued_bytes"] <= QUEUE_BYTES and full["store_failed_writes_total"] > 1, full
    assert full["journal_lost_lines_total"] - before["journal_lost_lines_total"] > 500, full
    assert full["journal_failed_writes_total"] > 10, full
    assert full["panics_total"] == 0, full
    ok(f"four calls on a full disk: {full['store_lost_records_total']:.0f} records and "
       f"{full['journal_lost_lines_total']:.0f} lines of journals were lost, and counted")
    bench.check_database()
    _, lines = bench.journal(2, "has whole lines", bool)
    ok(f"the database is whole meanwhile, and so are the {len(lines)} lines of the journal that goes on")
    for words in ("a journal cannot be written", "transcripts cannot be written", "transcripts are being lost"):
        # Small records may still find a place, and end a trouble that begins anew.
        assert 1 <= bench.said(words) <= 3, f"{words!r} is in the log {bench.said(words)} times"
    ok("each trouble is said when it begins, and not again for each frame")

    bench.free()
    until("what waited is written", lambda: bench.metrics()["store_queued_records"] == 0)
    bench.called(long, 2)
    bench.called(bench.call(7), 7)
    calls = bench.all_stored()
    by_sid = {call["stream_sid"]: call for call in calls}
    assert sum(call["reason"] == "stopped" for call in by_sid.values()) >= 3, by_sid
    assert calls[0]["reason"] == "stopped" and calls[0]["lines"], calls[0]
    path, lines = bench.ended_journal(2)
    lost = holes_are_told(lines)
    assert f"left {lost} lines out" in bench.scn_reads(path)
    _, lines = bench.ended_journal(7)
    assert lines[-1]["lost"] == 0, lines[-1]
    assert bench.said("the database is back") >= 1
    ok(f"with room again the next call is kept whole, and the long one tells of the {lost} lines it lacks")


def a_bridge_starts_on_a_full_disk(bench):
    bench.fill()
    assert bench.stop_bridge(signal.SIGTERM) == 0
    bench.start_bridge()
    bench.called(bench.call(8), 8)
    bench.free()
    calls = bench.all_stored()
    assert calls[0]["reason"] == "stopped" and calls[0]["lines"], calls[0]
    bench.check_database()
    ok("a bridge that starts on a full disk takes calls, and keeps them once there is room")


def a_bridge_is_killed(bench):
    bench.call(9, turns=30)
    path, _ = bench.journal(2, "is long enough", lambda lines: len(lines) > 200)
    until("and stored", lambda: not bench.stored()[0]["reason"] and bench.stored()[0]["lines"])
    bench.stop_bridge(signal.SIGKILL)
    bench.check_database()
    text = path.read_text()
    # Whole lines: at most the last one may be torn.
    records = [json.loads(line) for line in text.split("\n")[:-1]]
    assert records[-1]["us"] > 1_000_000 and not any(record.get("is") == "end" for record in records), records[-1]
    assert "ends before the call does" in bench.scn_reads(path)
    killed = bench.stored()[0]
    assert killed["reason"] is None and killed["lines"], killed
    bench.start_bridge()
    closed = next(call for call in bench.stored() if call["id"] == killed["id"])
    assert closed["reason"] == "process_died" and closed["lines"] == killed["lines"], closed
    bench.check_database()
    ok(f"killed in the middle of a call: {len(records)} lines of journal and {len(killed['lines'])} of transcript are "
       "there, and the next bridge closes the call")


def main():
    folder = Path(tempfile.mkdtemp(prefix="full-disk-"))
    bench = None
    try:
        bench = Bench(folder)
        bench.begin()
        a_disk_fills_up(bench)
        a_bridge_starts_on_a_full_disk(bench)
        a_bridge_is_killed(bench)
    except Exception:
        traceback.print_exc()
        log = folder / "log"
        if log.exists():
            lines = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text()).splitlines()
            print("\n".join(["the bridge said:", *lines[-40:]]), file=sys.stderr)
        return 1
    finally:
        if bench:
            bench.close()
        shutil.rmtree(folder, ignore_errors=True)
    return 0


sys.exit(main())
