"""The floods, each what one stranger can do. `python3 floods.py NAME SECONDS MAIN LIVE METRICS PID` is one of them.

Each is bounded by its time, by its connections, and by being the last of the machine to get processor time: a stranger's
machine is another one.
"""

import os
import resource
import signal
import socket
import sys
import time

import wire

FLOODS = {}


def flood(function):
    FLOODS[function.__name__] = function
    return function


class Target:
    def __init__(self, seconds, main, live, metrics, pid):
        self.ends, self.main, self.live, self.metrics, self.pid = time.monotonic() + seconds, main, live, metrics, pid

    def goes_on(self):
        return time.monotonic() < self.ends


def connect(port, rcvbuf=None):
    """A connection that never blocks for long; None when there is none."""
    s = socket.socket()
    if rcvbuf:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
    s.settimeout(2)
    try:
        s.connect(("127.0.0.1", port))
    except OSError:
        s.close()
        return None
    return s


class Crowd:
    """So many connections, each opened again as soon as it is gone; `begin` says what each says first."""

    def __init__(self, port, most, begin=b"", rcvbuf=None):
        self.port, self.most, self.begin, self.rcvbuf, self.open = port, most, begin, rcvbuf, []

    def fill(self, at_once=100):
        for _ in range(min(at_once, self.most - len(self.open))):
            s = connect(self.port, self.rcvbuf)
            if s is None:
                return
            s.setblocking(False)
            try:
                s.send(self.begin)
                self.open.append(s)
            except OSError:
                s.close()

    def say(self, data, read=True):
        """Says `data` on each; those that are gone are let go."""
        left = []
        for s in self.open:
            try:
                if read and s.recv(65536) == b"":
                    raise ConnectionError
            except BlockingIOError:
                pass
            except OSError:
                s.close()
                continue
            try:
                s.send(data)
                left.append(s)
            except BlockingIOError:
                left.append(s)
            except OSError:
                s.close()
        self.open = left


PING = wire.frame(b"p" * 125, opcode=9) * 200


def opened(t):
    """A WebSocket that Twilio's constant signature opens, and that says nothing yet."""
    s = connect(t.main, rcvbuf=4096)
    if s is None:
        return None
    s.sendall(wire.upgrade(t.main))
    return s if b" 101 " in s.recv(4096) else None


def pings(t, sockets):
    """Pings as fast as they are taken, and not one pong is read."""
    while t.goes_on():
        left = []
        for s in sockets():
            s.setblocking(False)
            try:
                s.send(PING)
            except BlockingIOError:
                pass
            except OSError:
                s.close()
                continue
            left.append(s)
        sockets.open = left


class Few:
    """A few WebSockets, each opened again when it was ended."""

    def __init__(self, most, begin):
        self.most, self.begin, self.open = most, begin, []

    def __call__(self):
        while len(self.open) < self.most:
            try:
                s = self.begin()
            except (OSError, AssertionError, IndexError):
                s = None
            if s is None:
                time.sleep(0.05)
                break
            self.open.append(s)
            time.sleep(0.05)
        return self.open


@flood
def pings_before(t):
    """Pings whose answers the client does not read, before any token."""
    pings(t, Few(4, lambda: opened(t)))


@flood
def pings_in_call(t):
    """The same in calls that were let in."""
    calls = iter(range(10**9))

    def begin():
        name = f"CAhostile{next(calls)}"
        s = connect(t.main)
        s.sendall(wire.webhook(t.main, name))
        answer = b""
        while data := s.recv(4096):
            answer += data
        stream = opened(t)
        sid = "MZ" + name
        stream.sendall(wire.connected() + wire.start(name, sid, wire.token_of(answer)) + wire.media(sid, 1))
        return stream

    pings(t, Few(2, begin))


@flood
def trickle(t):
    """1,100 connections that ask for something small every few seconds and stay."""
    crowd = Crowd(t.main, 1100)
    while t.goes_on():
        crowd.fill(1100)
        crowd.say(b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(min(2, max(0, t.ends - time.monotonic())))


@flood
def unread(t):
    """Requests one behind the other, whose answers are not read, on every listener."""
    ask = [(t.main, b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n"), (t.metrics, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"),
           (t.live, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")]
    crowds = [(Crowd(port, 200, rcvbuf=4096), request * 50) for port, request in ask]
    while t.goes_on():
        for crowd, requests in crowds:
            crowd.fill(20)
            crowd.say(requests, read=False)
        time.sleep(0.02)


def posts(t, body, most=8):
    """The same form, unsigned, one behind the other on a few connections."""
    head = (f"POST /voice HTTP/1.1\r\nHost: x\r\nX-Twilio-Signature: AAAA\r\n"
            f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n\r\n").encode()
    crowd = Crowd(t.main, most)
    while t.goes_on():
        crowd.fill()
        crowd.say(head + body)
        time.sleep(0.0005)


@flood
def forms(t):
    """Forms of 64 kB with 30,000 parameters."""
    posts(t, b"a&h&o&q&" * 8192)


@flood
def small_forms(t):
    """Forms as large and as full as they are still looked at."""
    posts(t, b"&".join(b"%d=" % n + b"x" * 75 for n in range(199)))


@flood
def refusals(t):
    """Small requests without a signature, as many as go through: each would be a line of the log."""
    posts(t, b"CallSid=CA1", 16)


@flood
def headers(t):
    """A thousand headers that do not end."""
    crowd = Crowd(t.main, 1000, b"GET / HTTP/1.1\r\nHost: x\r\nX: ")
    while t.goes_on():
        crowd.fill()
        crowd.say(b"x" * 8192, read=False)
        time.sleep(0.05)


@flood
def bodies(t):
    """Bodies that were announced and do not come."""
    head = b"POST /voice HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\nCallSid="
    crowds = [Crowd(t.main, 600, head % length) for length in (16000, 1_000_000_000)]
    while t.goes_on():
        for crowd in crowds:
            crowd.fill()
            crowd.say(b"x", read=False)
        time.sleep(0.5)


@flood
def silent(t):
    """Connections that say nothing, on every listener, and new ones all the time."""
    crowds = [Crowd(t.main, 1500), Crowd(t.live, 200), Crowd(t.metrics, 200)]
    while t.goes_on():
        for crowd in crowds:
            crowd.fill(50)
            crowd.say(b"")
            if len(crowd.open) >= crowd.most:
                for s in crowd.open[:50]:
                    s.close()
                del crowd.open[:50]
        time.sleep(0.02)


@flood
def watchers(t):
    """Those who watch the live page and do not read."""
    crowd = Crowd(t.live, 64, b"GET /live/events HTTP/1.1\r\nHost: localhost\r\n\r\n", rcvbuf=4096)
    while t.goes_on():
        crowd.fill()
        crowd.say(b"", read=False)
        time.sleep(0.1)


@flood
def hangups(t):
    """Signals to read the certificate again, where there is none."""
    while t.goes_on():
        os.kill(t.pid, signal.SIGHUP)
        time.sleep(0.1)


if __name__ == "__main__":
    os.nice(19)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65536), most))
    FLOODS[sys.argv[1]](Target(float(sys.argv[2]), *map(int, sys.argv[3:7])))
