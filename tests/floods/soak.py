"""Calls beside each of the floods: `tests/floods/run` starts this."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import wire
from floods import FLOODS

BIN = Path(os.environ["BIN"]).resolve()
SECONDS = float(os.environ.get("SECONDS_EACH", "120"))
CALLS = int(os.environ.get("CALLS", "50"))
# What a caller may hear late beyond what the machine was late by, seconds.
GAP = 0.040
# What the process may grow by beyond what it grew by when nothing was wrong, kB.
GROWTH_KB = 96 * 1024
# What may be written to the log in a second, bytes.
LOG_RATE = 20_000
HEALTH = 1.0
# For how long the bridge is held once, to see that callers who hear a gap are noticed, seconds.
HELD = 0.3
HERE = Path(__file__).parent


def free_ports(n):
    sockets = [socket.socket() for _ in range(n)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Call:
    """A caller who listens. What counts is when playback runs dry while the answer goes on."""

    def __init__(self, port, name):
        self.port, self.call_sid, self.sid = port, "CA" + name, "MZ" + name
        self.dry_at = None  # when what was sent so far will have been heard
        self.gaps, self.counts, self.alive, self.over = [], False, False, None

    async def run(self):
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(wire.webhook(self.port, self.call_sid))
            token = wire.token_of(await reader.read())
            writer.close()
            reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
            self.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.writer.write(wire.upgrade(self.port))
            head = await reader.readuntil(b"\r\n\r\n")
            assert b" 101 " in head, head
            self.writer.write(wire.connected() + wire.start(self.call_sid, self.sid, token))
            self.alive = True
            speaks = asyncio.create_task(self.speak())
            try:
                await self.listen(reader)
            finally:
                speaks.cancel()
        except (OSError, AssertionError, asyncio.IncompleteReadError) as error:
            self.over = self.over or repr(error)
        self.alive = False

    async def speak(self):
        began = time.monotonic()
        for chunk in range(1, 10**9):
            self.writer.write(wire.media(self.sid, chunk))
            await asyncio.sleep(max(0, began + chunk * 0.02 - time.monotonic()))

    async def listen(self, reader):
        while True:
            head = await reader.readexactly(2)
            length = head[1] & 127
            if length == 126:
                length = int.from_bytes(await reader.readexactly(2))
            elif length == 127:
                length = int.from_bytes(await reader.readexactly(8))
            payload = await reader.readexactly(length)
            opcode = head[0] & 15
            if opcode == 8:
                self.over = f"closed by the bridge: {payload[:2].hex()} {payload[2:]!r}"
                return
            if opcode == 9:
                self.writer.write(wire.frame(payload, opcode=10))
            elif opcode == 1:
                self.hear(json.loads(payload), time.monotonic())

    def hear(self, message, now):
        if message["event"] == "media":
            lasts = len(message["media"]["payload"]) * 3 // 4 / 8000
            if self.dry_at is not None and now > self.dry_at and self.counts:
                self.gaps.append(now - self.dry_at)
            self.dry_at = max(now, self.dry_at or 0) + lasts
        elif message["event"] == "mark":
            back = wire.frame(json.dumps({"event": "mark", "streamSid": self.sid, "sequenceNumber": "5",
                                          "mark": message["mark"]}))
            asyncio.get_running_loop().call_later(max(0, (self.dry_at or now) - now), self.writer.write, back)

    def hang_up(self):
        self.counts = False
        if self.alive:
            self.over = "hung up"
            self.writer.write(wire.stop(self.sid))


async def lateness(worst):
    """How late this process comes to its own tasks: a bridge could not be heard to be sooner."""
    while True:
        due = time.monotonic() + 0.01
        await asyncio.sleep(0.01)
        worst[0] = max(worst[0], time.monotonic() - due)


class Bench:
    def __init__(self, folder):
        self.rounds = 0
        self.folder = folder
        self.main, self.live, self.metrics, self.model = free_ports(4)
        self.log = folder / "bridge.log"
        config = folder / "bridge.toml"
        # Next to no lead: what the bridge is late by is heard.
        config.write_text(
            f'listen = "127.0.0.1:{self.main}"\npublic_url = "http://127.0.0.1:{self.main}"\nmax_calls = {CALLS + 20}\n'
            f'loop_lag_ms_max = 0\n[openai]\nurl = "ws://127.0.0.1:{self.model}/v1/realtime"\napi_key = "any"\n'
            f'[twilio]\nauth_token = "{wire.TOKEN}"\n[live]\nlisten = "127.0.0.1:{self.live}"\n'
            f'[metrics]\nlisten = "127.0.0.1:{self.metrics}"\n[store]\nurl = "sqlite:{folder}/bridge.db"\n'
            '[call]\ngreeting = "Talk for as long as you can."\n[call.pacing]\nlead_ms = 40\nmark_every_ms = 40\n')
        env = {name: value for name, value in os.environ.items()
               if not name.startswith(("BRIDGE_", "TWILIO_", "OPENAI_", "OTEL_"))}
        answers = str(int((SECONDS + 60) * 1000))
        self.mock = subprocess.Popen(
            [BIN / "mock-openai", "--listen", f"127.0.0.1:{self.model}", "--answers", answers, "--speed", "1.2"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
        self.bridge = subprocess.Popen([BIN / "bridge", "--config", config], stderr=open(self.log, "wb"), env=env,
                                       cwd=folder)

    def close(self):
        for child in (self.bridge, self.mock):
            child.kill()
            child.wait()

    def rss_kb(self):
        for line in open(f"/proc/{self.bridge.pid}/status"):
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        return 0

    async def healthy(self):
        """How long /healthz takes on a connection of its own; None when it does not answer."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(10):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.main)
                writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                answer = await reader.read()
                writer.close()
        except OSError as error:
            return None, repr(error)
        except TimeoutError:
            return None, "no answer in 10 s"
        return (time.monotonic() - began, "") if answer.startswith(b"HTTP/1.1 200") else (None, repr(answer[:60]))

    async def beside(self, name):
        """Calls, and a flood beside them. What was measured, and what was wrong whatever the measure."""
        wrong, worst, health, rss = [], [0.0], [], []
        # A call that was played before is over, and its webhook would be a replay.
        self.rounds += 1
        calls = [Call(self.main, f"{name}{self.rounds}n{n}") for n in range(CALLS)]
        tasks = []
        for call in calls:
            tasks.append(asyncio.create_task(call.run()))
            await asyncio.sleep(0.03)
        for _ in range(200):
            if all(call.dry_at for call in calls):
                break
            await asyncio.sleep(0.1)
        await asyncio.sleep(1)
        control = asyncio.create_task(lateness(worst))
        for call in calls:
            call.counts = True
        log_before, ends = self.log.stat().st_size, time.monotonic() + SECONDS
        flood = None
        if name in FLOODS:
            flood = subprocess.Popen([sys.executable, "-B", HERE / "floods.py", name, str(SECONDS), str(self.main),
                                      str(self.live), str(self.metrics), str(self.bridge.pid)])
        if name == "held":
            self.bridge.send_signal(signal.SIGSTOP)
            await asyncio.sleep(HELD)
            self.bridge.send_signal(signal.SIGCONT)
            ends = time.monotonic() + 1
        while time.monotonic() < ends and self.bridge.poll() is None:
            took, why = await self.healthy()
            health.append(10.0 if took is None else took)
            if took is None:
                wrong.append(f"/healthz: {why}")
            rss.append(self.rss_kb())
            await asyncio.sleep(0.25)
        lost = [f"{call.call_sid}: {call.over}" for call in calls if not call.alive or not call.dry_at]
        if lost:
            wrong.append(f"{len(lost)} of {CALLS} calls did not go on: {lost[:3]}")
        for call in calls:
            call.hang_up()
        control.cancel()
        if flood is not None and flood.poll() is None:
            flood.send_signal(signal.SIGTERM)
        if flood is not None and flood.wait() not in (0, -signal.SIGTERM):
            wrong.append(f"the flood itself failed: {flood.returncode}")
        if self.bridge.poll() is not None:
            wrong.append(f"the bridge ended: {self.bridge.returncode}")
        await asyncio.wait(tasks, timeout=15)
        gaps = sorted((gap for call in calls for gap in call.gaps), reverse=True) or [0.0]
        return {"gap": gaps[0], "gaps": sum(gap > GAP for gap in gaps), "late": worst[0], "health": max(health or [10.0]),
                "rss": max(rss or [0]), "log": (self.log.stat().st_size - log_before) / SECONDS, "wrong": wrong}


async def soak(names):
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        try:
            for _ in range(300):
                if (await bench.healthy())[0] is not None:
                    break
                await asyncio.sleep(0.1)
            await bench.beside("warm")  # what is made once is made
            quiet = await bench.beside("quiet")
            report("quiet", quiet, [*quiet["wrong"]])
            if quiet["wrong"]:
                return 1
            held = await bench.beside("held")
            report("held", held, [])
            if held["gap"] < HELD / 2:
                print("the bridge was held, and no caller heard it: the bench measures nothing")
                return 1
            for name in names:
                # A machine that others use may be late for reasons of its own: what comes late is looked at once more.
                for last in (False, True):
                    seen = await bench.beside(name)
                    late, wrong = judged(seen, quiet)
                    report(name, seen, wrong + late)
                    if last or wrong or not late:
                        break
                if wrong or late:
                    failed.append(name)
                if bench.bridge.poll() is not None:
                    break
            if failed:
                sys.stderr.write("".join(bench.log.read_text(errors="replace").splitlines(True)[-40:]))
        finally:
            bench.close()
    print(f"{len(names) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


def judged(seen, quiet):
    """What came late, and what is wrong however busy the machine is."""
    late, wrong = [], list(seen["wrong"])
    if seen["gap"] > GAP + max(quiet["gap"], seen["late"]):
        late.append(f"callers heard gaps: {seen['gap'] * 1000:.0f} ms")
    if seen["health"] > HEALTH + quiet["health"] + 2 * seen["late"]:
        late.append(f"/healthz took {seen['health'] * 1000:.0f} ms")
    if seen["rss"] > quiet["rss"] + GROWTH_KB:
        wrong.append(f"memory grew to {seen['rss']} kB, from {quiet['rss']}")
    if seen["log"] > quiet["log"] + LOG_RATE:
        wrong.append(f"{seen['log']:.0f} bytes of log a second")
    return late, wrong


def report(name, seen, wrong):
    print(f"{name:14} gap {seen['gap'] * 1000:6.1f} ms ({seen['gaps']} over {GAP * 1000:.0f}), machine late by "
          f"{seen['late'] * 1000:5.1f} ms, health {seen['health'] * 1000:6.1f} ms, memory {seen['rss'] / 1024:6.1f} MB, "
          f"log {seen['log'] / 1000:6.1f} kB/s  {'; '.join(dict.fromkeys(wrong)) or 'ok'}", flush=True)


if __name__ == "__main__":
    chosen = sys.argv[1:] or list(FLOODS)
    unknown = set(chosen) - set(FLOODS)
    if unknown:
        sys.exit(f"no such flood: {', '.join(sorted(unknown))}; there are {', '.join(FLOODS)}")
    sys.exit(asyncio.run(soak(chosen)))
