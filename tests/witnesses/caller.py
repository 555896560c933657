"""Twilio's own library checks what mock-twilio signs, writes the TwiML it follows, and signs what the bridge is asked."""

import asyncio
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
import xml.etree.ElementTree as xml
from http.server import BaseHTTPRequestHandler, HTTPServer

import websockets
from twilio.request_validator import RequestValidator
from twilio.twiml.voice_response import Connect, VoiceResponse

BIN = os.environ["BIN"]
TOKEN = "0123456789abcdef0123456789abcdef"
PUBLIC = "https://voice.example.com"
VALIDATOR = RequestValidator(TOKEN)


def twiml(url, parameters, hangs_up=False, **more):
    """What Twilio's library writes for a call that is connected to a stream."""
    response, connect = VoiceResponse(), Connect()
    stream = connect.stream(url=url, **more)
    for name, value in parameters.items():
        stream.parameter(name=name, value=value)
    response.append(connect)
    if hangs_up:
        response.hangup()
    return str(response)


def canonical(text):
    return xml.canonicalize(text, strip_text=True)


class Webhook(BaseHTTPRequestHandler):
    """Answers with TwiML, if the signature is right."""

    stream = ""
    verdicts = []

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        form = dict(urllib.parse.parse_qsl(body, keep_blank_values=True))
        good = VALIDATOR.validate(PUBLIC + self.path, form, self.headers.get("X-Twilio-Signature", ""))
        Webhook.verdicts.append(good)
        answer = twiml(Webhook.stream, {"caller": form["From"], "odd": 'a "b" & <c>'}).encode()
        self.send_response(200 if good else 403)
        self.send_header("Content-Type", "text/xml")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


async def the_mock_caller():
    """mock-twilio asks a webhook and opens a stream; both signatures are right, and its TwiML is followed."""
    started = asyncio.get_running_loop().create_future()

    async def stream(connection):
        request = connection.request
        signature = request.headers.get("x-twilio-signature", "")
        good = VALIDATOR.validate("wss://voice.example.com/media", {}, signature)
        async for message in connection:
            if '"event":"start"' in message.replace(" ", "") and not started.done():
                started.set_result((good, request.path, message))
            if started.done():
                await connection.close()
                return

    async with websockets.serve(stream, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        webhook = HTTPServer(("127.0.0.1", 0), Webhook)
        Webhook.stream = "wss://voice.example.com/media"
        threading.Thread(target=webhook.serve_forever, daemon=True).start()
        call = await asyncio.create_subprocess_exec(
            f"{BIN}/mock-twilio", f"ws://127.0.0.1:{port}", "--start-url",
            f"http://127.0.0.1:{webhook.server_port}/voice?tenant=a%20b", "--public-url", PUBLIC,
            "--signature-token", TOKEN, stdout=asyncio.subprocess.DEVNULL,
        )
        good, path, start = await asyncio.wait_for(started, 20)
        await call.wait()
        webhook.shutdown()
    assert Webhook.verdicts == [True], "the webhook's signature is not what Twilio's library computes"
    assert good, "the upgrade's signature is not what Twilio's library computes"
    assert path == "/media", path
    assert '"caller":"+14155550123"' in start.replace(" ", "") and 'a \\"b\\" & <c>' in start, start
    print("passed  what mock-twilio signs is valid to Twilio's library, and what that writes is followed")


def ask(url, form, signature=None):
    request = urllib.request.Request(url, data=urllib.parse.urlencode(form).encode(), method="POST")
    if signature is not None:
        request.add_header("X-Twilio-Signature", signature)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


FORM = {
    "AccountSid": "AC" + "a" * 32, "ApiVersion": "2010-04-01", "CallSid": "CA" + "b" * 32, "CallStatus": "ringing",
    "Called": "+15005550006", "Caller": "+14155550123", "CallerName": "Zoë O’Neil", "Direction": "inbound",
    "From": "+14155550123", "FromCity": "", "To": "+15005550006",
}


async def the_bridge():
    """The bridge's TwiML is what Twilio's library would have written, and a signed webhook is answered."""
    with __import__("socket").socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = dict(
        os.environ, OPENAI_API_KEY="any", BRIDGE_LISTEN=f"127.0.0.1:{port}", BRIDGE_PUBLIC_URL=PUBLIC,
        TWILIO_AUTH_TOKEN=TOKEN, BRIDGE_LOG="error",
    )
    bridge = subprocess.Popen([f"{BIN}/bridge"], env=env)
    try:
        url = f"http://127.0.0.1:{port}/voice"
        for _ in range(100):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=1)
                break
            except OSError:
                await asyncio.sleep(0.1)
        signature = VALIDATOR.compute_signature(PUBLIC + "/voice", FORM)
        status, text = ask(url, FORM, signature)
        assert status == 200, f"a webhook signed by Twilio's library was answered with {status}: {text}"
        root = xml.fromstring(text)
        (stream,) = root.findall("./Connect/Stream")
        parameters = {p.get("name"): p.get("value") for p in stream.findall("Parameter")}
        callback = {"status_callback": "statusCallback", "status_callback_method": "statusCallbackMethod"}
        more = {ours: stream.get(wire) for ours, wire in callback.items() if stream.get(wire) is not None}
        hangs_up = root.find("./Hangup") is not None
        ours, theirs = canonical(text), canonical(twiml(stream.get("url"), parameters, hangs_up, **more))
        assert ours == theirs, f"the bridge wrote\n  {ours}\nTwilio's library writes\n  {theirs}"
        assert stream.get("url").startswith("wss://voice.example.com/"), text
        unsigned, _ = ask(url, FORM)
        if unsigned == 200:
            print("passed  the bridge's TwiML is what Twilio's library writes (this bridge checks no signatures)")
            return
        assert unsigned == 403, f"an unsigned webhook was answered with {unsigned}"
        wrong, _ = ask(url, FORM | {"From": "+10000000000"}, signature)
        assert wrong == 403, f"a webhook with another form was answered with {wrong}"
        socket, asked = f"ws://127.0.0.1:{port}/twilio", stream.get("url")
        async with websockets.connect(
            socket, additional_headers={"X-Twilio-Signature": VALIDATOR.compute_signature(asked, {})}
        ):
            pass
        try:
            async with websockets.connect(socket):
                raise AssertionError("an upgrade without a signature was taken")
        except websockets.exceptions.InvalidStatus as refused:
            assert refused.response.status_code == 403, refused
        print("passed  the bridge takes what Twilio's library signs and nothing else, and writes what it writes")
    finally:
        bridge.kill()
        bridge.wait()


async def main():
    await the_mock_caller()
    await the_bridge()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
